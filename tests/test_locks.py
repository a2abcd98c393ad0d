"""The locked requirements: hashes, no address, one runtime each.

They agree with each other and with the lowest versions in pyproject.toml.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
EVERYTHING = "serve train mlflow heif tracing score s3 gcs ray bench dev"
EXTRAS = {
    "dev-cpu": f"{EVERYTHING} cpu",
    "dev-gpu": f"{EVERYTHING} gpu",
    "score-cpu": "serve score s3 gcs cpu",
    "serve-cpu": "serve cpu",
    "serve-gpu": "serve gpu",
}


def pins(lock: Path) -> dict[str, set[str]]:
    """name -> pinned versions; several for different Pythons."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE
    ):
        found.setdefault(name.lower(), set()).add(version)
    return found


def test_there_are_five_locks():
    assert [lock.stem for lock in LOCKS] == sorted(EXTRAS)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_has_hashes_and_no_address(lock):
    text = lock.read_text(encoding="utf-8")
    assert not re.search(r"://|--index|--find-links|--extra-index", text)
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
    assert len(entries) > 50
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_holds_exactly_one_onnx_runtime(lock):
    runtimes = {"onnxruntime", "onnxruntime-gpu"} & pins(lock).keys()
    assert runtimes == {"onnxruntime-gpu" if lock.stem.endswith("gpu") else "onnxruntime"}


@pytest.mark.parametrize(
    "lock", [lock for lock in LOCKS if not lock.stem.startswith("dev")], ids=lambda lock: lock.stem
)
def test_what_serves_has_no_torch(lock):
    assert {"torch", "torchvision", "scikit-learn"} & pins(lock).keys() == set()


def test_the_locks_agree():
    reference = pins(ROOT / "requirements" / "dev-cpu.txt")
    for lock in LOCKS:
        different = {
            name
            for name, versions in pins(lock).items()
            if name in reference and versions != reference[name]
        }
        assert different == set(), lock.stem


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_pin_satisfies_pyproject(lock):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(
            line
            for extra in EXTRAS[lock.stem].split()
            for line in project["optional-dependencies"][extra]
        ),
    ]
    found = pins(lock)
    for requirement in map(Requirement, wanted):
        versions = found[requirement.name.lower()]
        assert all(Version(version) in requirement.specifier for version in versions), requirement
