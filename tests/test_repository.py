"""No private key is among the files that git tracks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# In two parts, so that this file does not hold what it looks for.
PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*" + rb"PRIVATE KEY(?: BLOCK)?-----")


def tracked() -> list[Path]:
    """Every file of git's index that is in the working tree."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git does not list the files of {ROOT}: {error}")
    paths = [ROOT / name for name in listed.stdout.decode("utf-8").split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_tracked_file_holds_a_private_key():
    files = tracked()
    assert len(files) > 300
    assert [
        str(path.relative_to(ROOT)) for path in files if PRIVATE_KEY.search(path.read_bytes())
    ] == []


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED ", "PGP "])
def test_the_scan_finds_every_usual_kind_of_private_key(kind):
    block = " BLOCK" if kind == "PGP " else ""
    assert PRIVATE_KEY.search(f"x\n-----BEGIN {kind}{'PRIVATE'} KEY{block}-----\n".encode())


@pytest.mark.parametrize("name", ["k.pem", "certs/server.key", "keys.json"])
def test_git_ignores_the_names_that_keys_usually_have(name):
    tracked()
    done = subprocess.run(
        ["git", "-C", str(ROOT), "check-ignore", "--no-index", "-q", name], check=False
    )
    assert done.returncode == 0
