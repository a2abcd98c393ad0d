"""Checks of the model store: every version sound, every alias with a version, nothing left behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from models.atomic_files import STAGING_PREFIX
from models.doctor.finding import Finding
from models.errors import LoupeError
from models.package.manifest import SIBLING_FILE, Manifest
from models.package.verify import verify_package
from models.store.store import Store


def check_store(root: Path, *, here: str) -> list[Finding]:
    """What is wrong in the store *root*, or one finding that says that nothing is.

    *here* is this machine's CPU class.

    Golden images are not run: `loupe models verify` does that.
    """
    store = Store(root)
    try:
        names = store.names()
    except LoupeError as error:
        return [
            Finding(
                "error",
                "store",
                str(error),
                f"ls -ld {root}; this user must be able to read the store",
            )
        ]
    if not names:
        return [
            Finding(
                "warning",
                "store",
                f"{root} has no model",
                "make demo, or loupe publish PACKAGE --name NAME",
            )
        ]
    findings = [finding for name in names for finding in _check_model(store, name, here=here)]
    sound = ", ".join(f"{name}:{version}" for name in names for version in store.versions(name))
    return findings or [Finding("ok", "store", f"{root}: sound are {sound}")]


def _check_model(store: Store, name: str, *, here: str) -> Iterator[Finding]:
    try:
        store.history(name)
    except LoupeError as error:
        yield Finding(
            "error",
            "store",
            str(error),
            f"{store.root / name}: mend the file that the message names, or restore it from a"
            " backup",
        )
    else:
        yield from _check_aliases(store, name)
    for version in store.versions(name):
        yield from _check_version(
            store.root / name / str(version), label=f"{name}:{version}", here=here
        )
    for place in sorted((store.root / name).glob(f"{STAGING_PREFIX}*")):
        if not _is_alive(place):
            yield Finding(
                "warning",
                "store",
                f"{place} was left behind by a command that was killed",
                f"loupe models gc {name} --keep 1000",
            )


def _check_aliases(store: Store, name: str) -> Iterator[Finding]:
    versions = store.versions(name)
    for alias, version in store.aliases(name).items():
        if version not in versions:
            message = f"alias {alias} of {name} means version {version}, which does not exist"
            yield Finding(
                "error",
                "store",
                message,
                f"loupe models promote {name} {versions[-1]} --alias {alias}",
            )


def _check_version(package: Path, *, label: str, here: str) -> Iterator[Finding]:
    try:
        manifest = verify_package(package).manifest
    except LoupeError as error:
        yield Finding(
            "error",
            "store",
            f"{label} may not be served: {error}",
            f"restore {package} from a backup, or rm -r {package}",
        )
    except ImportError as error:
        yield Finding("error", "store", f"{label} cannot be verified: {error}", "make setup")
    else:
        yield from _check_int8(manifest, label=label, here=here)


def _check_int8(manifest: Manifest, *, label: str, here: str) -> Iterator[Finding]:
    if manifest.precision != "int8" or manifest.cpu_class == here:
        return
    served = (
        "its fp32 sibling is served instead"
        if SIBLING_FILE in manifest.files
        else "it is refused unless its golden images pass here"
    )
    message = (
        f"{label} is int8, validated on {manifest.cpu_class}, and this machine is {here}: {served}"
    )
    yield Finding(
        "warning",
        "store",
        message,
        f"loupe export RUN --out PACKAGE --precision int8, on a machine of class {here}",
    )


def _is_alive(place: Path) -> bool:
    """Whether the process that stages in *place* still lives: it holds the lock of the file
    `alive`.
    """
    try:
        descriptor = os.open(place / "alive", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
