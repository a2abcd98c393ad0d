"""`loupe score` as a process, as a call, and what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from service.scoring.commands import score as score_command
from tests.models.packages import encode_png

LABELS = ("ant", "bee", "cow", "dog", "elk")
SIZE = 8
PATIENCE_S = 100.0
"""Bound of every wait. Reached only by a test that fails."""
ROOT = Path(__file__).parents[3]
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def photo(number: int) -> bytes:
    """A PNG of just the model's size, of a colour that is nearly its own: the model sees means
    alone.
    """
    rng = np.random.default_rng(number)
    base = rng.integers(0, 256, size=3)
    return encode_png(
        np.clip(base + rng.integers(-20, 20, size=(SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    )


def write_photos(folder: Path, count: int) -> Path:
    """*folder* with *count* photos in `a/` and `b/`."""
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))
    return folder


def score(source: object, out: object, *options: object, store: Path, **settings: str) -> Result:
    """The command, called in this process; errors of the tree come through."""
    command = [
        str(source),
        "--model",
        "tiny",
        "--out",
        str(out),
        "--store",
        str(store),
        *map(str, options),
    ]
    return CliRunner(env=settings).invoke(score_command, command, catch_exceptions=False)


def command_line(source: object, out: object, *options: object, store: Path) -> list[str]:
    """The command for a process of its own."""
    return [
        sys.executable,
        "-m",
        "loupe",
        "score",
        *map(str, (source, "--model", "tiny", "--out", out, "--store", store, *options)),
    ]


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without proxies, with *settings*."""
    kept = {name: value for name, value in os.environ.items() if name not in PROXIES}
    return {**kept, "PYTHONPATH": str(ROOT), **settings}


def run_process(
    *arguments: object, store: Path, cwd: Path, check: bool = True, **settings: str
) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, ended."""
    done = subprocess.run(
        command_line(*arguments, store=store),
        cwd=cwd,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def failures(out: Path) -> dict[str, tuple[str, str]]:
    """path -> (code, reason) of the dead letters beside *out*."""
    return {
        row["path"]: (row["code"], row["reason"])
        for row in lines(out.with_name(f"{out.stem}.failed.jsonl"))
    }


def state_files(out: Path) -> set[str]:
    """Names in the state folder beside *out*."""
    folder = out.with_name(f"{out.name}.job")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
