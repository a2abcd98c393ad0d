"""Says what is in a photo: `python run.py photo.jpg`.

Needs numpy, pillow and onnxruntime, and nothing else.

Letters used in shapes: N images, H and W pixels, K classes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from models.errors import LoupeError
from models.machine import cpu_class
from models.pixels.preprocess import to_pixels

HERE = Path(__file__).resolve().parent


class Classifier:
    """One variant of the model in the bundle's folder, ready to answer."""

    def __init__(
        self, bundle: Path = HERE, *, variant: str | None = None, threads: int = 1
    ) -> None:
        import onnxruntime as ort  # not before `models`, which turns its usage reports off

        index = read_index(bundle)
        self.bundle, self.files = bundle, index["files"]
        self.variant = variant or index["default"]
        if self.variant not in index["variants"]:
            valid = ", ".join(index["variants"]) or "none; build it with --target python or ort"
            raise LoupeError(f"this bundle has no variant {self.variant}. Valid: {valid}")
        self.file: str = index["variants"][self.variant]
        # The fp32 network beside an int8 one has golden answers of its own.
        own = self.variant.startswith(index["precision"])
        self.recorded_as = "probabilities" if own else "sibling_probabilities"
        self.manifest = json.loads(self.read("manifest.json"))
        # JSON has lists only, and Pillow takes colours as tuples.
        # A package of an older Loupe lacks the newest fields.
        fields = {"stretch_size": None, "recompress": None} | {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.manifest["preprocess"].items()
        }
        self.spec: Any = SimpleNamespace(**fields)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(
            self.read(self.file), options, providers=["CPUExecutionProvider"]
        )

    def read(self, name: str) -> bytes:
        """The content of the bundle's file *name*, as it was built.

        Raises `LoupeError` for one that is missing or changed.
        """
        path = self.bundle / name
        content = path.read_bytes() if path.is_file() else None
        if content is None or hashlib.sha256(content).hexdigest() != self.files[name]["sha256"]:
            raise LoupeError(
                f"{name} of this bundle is {'missing' if content is None else 'changed'}; unpack"
                " the bundle again, into an empty folder"
            )
        return content

    def probabilities(self, encoded: bytes) -> list[float]:
        """The probability of each of the manifest's labels for the image file *encoded*."""
        pixels_1HWC = to_pixels(encoded, self.spec)[np.newaxis]
        [found_NK] = self.session.run(["probabilities"], {"image": pixels_1HWC})
        probabilities_K: list[float] = found_NK[0].tolist()
        return probabilities_K

    def classify(self, encoded: bytes, *, top_k: int = 5) -> list[tuple[str, float]]:
        """The likeliest *top_k* labels and their probabilities, likeliest first."""
        labelled = zip(self.manifest["labels"], self.probabilities(encoded), strict=True)
        return sorted(labelled, key=lambda pair: pair[1], reverse=True)[:top_k]

    def golden_differences(self) -> dict[str, float]:
        """For each golden image the largest difference of a probability from the recorded one."""
        differences = {}
        for image in json.loads(self.read("golden/golden.json"))["images"]:
            found_K = self.probabilities(self.read(f"golden/{image['file']}"))
            differences[image["file"]] = max(
                abs(one - other)
                for one, other in zip(found_K, image[self.recorded_as], strict=True)
            )
        return differences


def open_best(bundle: Path = HERE, *, threads: int = 1) -> Classifier:
    """The default variant, or fp32 where int8 was not validated and computes something else."""
    index = read_index(bundle)
    chosen = Classifier(bundle, threads=threads)
    spare = [variant for variant in index["variants"] if variant.startswith("fp32")]
    if index["cpu_class"] in (None, cpu_class()) or not spare:
        return chosen
    tolerance = json.loads(chosen.read("golden/golden.json"))["tolerance"]
    agrees = all(difference <= tolerance for difference in chosen.golden_differences().values())
    return chosen if agrees else Classifier(bundle, variant=spare[0], threads=threads)


def read_index(bundle: Path) -> dict[str, Any]:
    """What `bundle.json` says. Raises `LoupeError` if it cannot be read."""
    try:
        found: dict[str, Any] = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoupeError(
            f"bundle.json cannot be read ({error}); unpack the bundle again, into an empty folder"
        ) from error
    return found


def main() -> int:
    """Classify the photos named on the command line; 1 if one could not be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument(
        "--variant",
        help="model file, such as fp32.onnx or int8.ort; by default the bundle's own choice",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--top", type=int, default=5, help="labels for each photo")
    options = parser.parse_args()
    failed = 0
    try:
        opened = partial(Classifier, variant=options.variant) if options.variant else open_best
        classifier = opened(threads=options.threads)
    except LoupeError as error:
        parser.error(str(error))
    for photo in options.photos:
        try:
            answers = classifier.classify(photo.read_bytes(), top_k=options.top)
        except (LoupeError, OSError) as error:
            print(f"{photo}: {error}", file=sys.stderr)
            failed = 1
            continue
        unsure = answers[0][1] < classifier.manifest["abstain_threshold"]
        print(f"{photo}{'   (too unsure to call it an answer)' if unsure else ''}")
        for label, probability in answers:
            print(f"  {probability:7.2%}  {label}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
