"""Checks that this bundle is complete and gives the recorded answers here: `python selftest.py`."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def damaged_files(bundle: Path) -> list[str]:
    """A line for each file of the bundle that is missing or changed.

    It runs none of the files that it checks.
    """
    if not (bundle / "bundle.json").is_file():
        return ["bundle.json is missing"]
    try:
        index = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
        files = {
            name: (record["sha256"], record["bytes"]) for name, record in index["files"].items()
        }
        files |= {name: files[name] for name in index["variants"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [f"bundle.json cannot be read ({type(error).__name__}: {error})"]
    found = []
    for name, (sha256, size) in files.items():
        path = bundle / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            found.append(
                f"{name} was changed: it has {path.stat().st_size} bytes, was built with {size},"
                " and its SHA-256 differs"
            )
    return found


def check_variant(
    bundle: Path, variant: str, *, index: dict[str, Any], tolerance: float
) -> str | None:
    """Print how *variant* did; the reason if it failed."""
    from run import Classifier

    from models.machine import cpu_class

    differences = Classifier(bundle, variant=variant).golden_differences()
    worst = max(differences, key=lambda name: differences[name])
    line = (
        f"{variant:12} {len(differences)} golden images, largest difference of a probability"
        f" {differences[worst]:.1e}"
    )
    if differences[worst] <= tolerance:  # written so that NaN fails
        print(f"ok    {line}")
        return None
    reason = (
        f"{variant} answers differently here: this machine decodes or computes differently. Export"
        " the package again on a machine of this kind"
    )
    if variant.startswith("int8") and index["cpu_class"] != cpu_class():
        foreign = (
            f"int8 was validated on {index['cpu_class']}, and computes something else on this"
            f" {cpu_class()}"
        )
        if any(name.startswith("fp32") for name in index["variants"]):
            print(f"note  {line}: {foreign}; fp32 answers here")
            return None
        reason = (
            f"{foreign}. Export int8 again on a machine of this kind, or take a package that"
            " carries its fp32 network"
        )
    print(f"FAIL  {line} ({worst}), tolerance {tolerance:.0e}")
    return reason


def main() -> int:
    """Check every file, then every variant; 1 if anything failed."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    damaged = damaged_files(HERE)
    if damaged:
        print("\n".join(f"FAIL  {line}" for line in damaged))
        print("self-test failed: unpack the bundle again, into an empty folder")
        return 1
    index = json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))
    print(f"ok    {len(index['files'])} files as they were built")
    tolerance = json.loads((HERE / "golden" / "golden.json").read_text(encoding="utf-8"))[
        "tolerance"
    ]
    reasons = [
        check_variant(HERE, variant, index=index, tolerance=tolerance)
        for variant in index["variants"]
    ]
    failed = [reason for reason in reasons if reason is not None]
    if not index["variants"]:
        print("      the model is for the browser only; web/ has its own self-test")
    print("\n".join(f"self-test failed: {reason}" for reason in failed) or "self-test passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
