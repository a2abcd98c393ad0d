"""Checks of the model store: sound versions, aliases that mean a version, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from models.atomic_files import dead_stagings
from models.doctor.check_result import CheckResult
from models.errors import LoupeError
from models.package.manifest import SIBLING_FILE
from models.package.verify import verify_package
from models.store.store import Store


def check_store(root: Path, *, here: str) -> list[CheckResult]:
    """What is wrong in the store *root*, or one finding that nothing is.

    *here* is this machine's CPU class. `loupe models verify` also runs the golden images.
    """
    store = Store(root)
    try:
        names = store.names()
    except LoupeError as error:
        return [
            CheckResult(
                "error",
                "store",
                str(error),
                f"ls -ld {root}; this user must be able to read the store",
            )
        ]
    if not names:
        return [
            CheckResult(
                "warning",
                "store",
                f"{root} has no model",
                "make demo, or loupe publish PACKAGE --name NAME",
            )
        ]
    findings = [finding for name in names for finding in _check_model(store, name, here=here)]
    sound = ", ".join(f"{name}:{version}" for name in names for version in store.versions(name))
    return findings or [CheckResult("ok", "store", f"{root}: sound are {sound}")]


def _check_model(store: Store, name: str, *, here: str) -> Iterator[CheckResult]:
    folder, versions = store.root / name, store.versions(name)
    try:
        store.history(name)
        aliases = store.aliases(name)
    except LoupeError as error:
        fix = f"{folder}: fix the file that the message names, or restore it from a backup"
        yield CheckResult("error", "store", str(error), fix)
        aliases = {}
    for alias, version in aliases.items():
        if version not in versions:
            message = f"alias {alias} of {name} means version {version}, which does not exist"
            fix = f"loupe models promote {name} {versions[-1]} --alias {alias}"
            yield CheckResult("error", "store", message, fix)
    for version in versions:
        yield from _check_version(folder / str(version), label=f"{name}:{version}", here=here)
    for place in dead_stagings(folder):
        message = f"{place} was left behind by a command that was killed"
        yield CheckResult("warning", "store", message, f"loupe models gc {name} --keep 1000")


def _check_version(package: Path, *, label: str, here: str) -> Iterator[CheckResult]:
    try:
        manifest = verify_package(package).manifest
    except LoupeError as error:
        message = f"{label} may not be served: {error}"
        fix = f"restore {package} from a backup, or rm -r {package}"
        yield CheckResult("error", "store", message, fix)
        return
    except ImportError as error:
        yield CheckResult("error", "store", f"{label} cannot be verified: {error}", "make setup")
        return
    if manifest.precision == "int8" and manifest.cpu_class != here:
        served = (
            "its fp32 sibling is served instead"
            if SIBLING_FILE in manifest.files
            else "it is refused unless its golden images pass here"
        )
        yield CheckResult(
            "warning",
            "store",
            f"{label} is int8, validated on {manifest.cpu_class}, and this machine is {here}:"
            f" {served}",
            f"loupe export RUN --out PACKAGE --precision int8, on a machine of class {here}",
        )
