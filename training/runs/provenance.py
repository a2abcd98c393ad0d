"""What made a run or a package: time, code and versions."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from models.package.manifest import Provenance

PACKAGES = (
    "loupe-vision",
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "pillow",
)
ROOT = Path(__file__).resolve().parents[2]


def provenance() -> Provenance:
    """Of this process, now."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=commit,
        git_dirty=None if commit is None or changes is None else bool(changes),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: found for name in PACKAGES if (found := _version(name)) is not None},
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Git's answer about Loupe's checkout; None outside one, or without git."""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            ["git", "-C", str(ROOT), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
