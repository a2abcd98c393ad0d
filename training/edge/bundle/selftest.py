"""Says whether this bundle is whole, and answers here as it did where it was built: `python selftest.py`."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def damaged_files(bundle: Path) -> list[str]:
    """A line for each file of the bundle that is missing or changed. Runs nothing of what it checks."""
    try:
        files = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return [f"bundle.json cannot be read ({error})"]
    found = []
    for name, record in files.items():
        path = bundle / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != record["sha256"]:
            found.append(f"{name} was changed: it has {path.stat().st_size} bytes, was built with {record['bytes']}, and its SHA-256 differs")
    return found


def golden_differences(bundle: Path, *, variant: str) -> dict[str, float]:
    """For each golden image the largest difference of a probability from the recorded one."""
    from run import Classifier

    index = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    recorded = json.loads((bundle / "golden" / "golden.json").read_text(encoding="utf-8"))
    # The fp32 network beside an int8 one has answers of its own.
    answers = "probabilities" if variant.startswith(index["precision"]) else "sibling_probabilities"
    classifier = Classifier(bundle, variant=variant)
    differences = {}
    for image in recorded["images"]:
        found = classifier.probabilities((bundle / "golden" / image["file"]).read_bytes())
        differences[image["file"]] = max(abs(one - other) for one, other in zip(found, image[answers], strict=True))
    return differences


def check_variant(bundle: Path, variant: str, *, index: dict[str, Any], tolerance: float) -> str | None:
    """Print how *variant* did; the reason if it failed."""
    differences = golden_differences(bundle, variant=variant)
    worst = max(differences, key=lambda name: differences[name])
    line = f"{variant:12} {len(differences)} golden images, largest difference of a probability {differences[worst]:.1e}"
    if differences[worst] <= tolerance:  # written so that NaN fails
        print(f"ok    {line}")
        return None
    print(f"FAIL  {line} ({worst}), tolerance {tolerance:.0e}")
    if variant.startswith("int8"):
        return (
            f"{variant} computes something else on this {platform.machine()} than on {index['cpu_class']}, where it was validated. "
            "Take the fp32 variant if there is one (--variant fp32.onnx), or export int8 again on a machine of this kind"
        )
    return f"{variant} answers differently here: this machine decodes or computes differently. Export the package again on a machine of this kind"


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
    tolerance = json.loads((HERE / "golden" / "golden.json").read_text(encoding="utf-8"))["tolerance"]
    reasons = [check_variant(HERE, variant, index=index, tolerance=tolerance) for variant in index["variants"]]
    failed = [reason for reason in reasons if reason is not None]
    if not index["variants"]:
        print("      the model is for the browser alone; web/ has a self-test of its own")
    print("\n".join(f"self-test failed: {reason}" for reason in failed) or "self-test passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
