"""The edge bundle: time to the first answer, each variant's figures, agreement with the service.

    .venv/bin/python -m benchmarks.edge [--package DIR] [--data DIR] [--photos 200] [--runs 9]
                                        [--seconds 5] [--ort-web FILE] [--out FILE]

Without --package, ImageNet's MobileNetV2 is built from DIR/weights. The time to the first answer is
that of a fresh process of the bundle's own runner with one photo. It is given for the whole
process, and from the first import to the answer. The disk's cache is warm. `loupe edge bench`
measures the variants, each in its own process with one thread. The page runs in headless Chromium
from `python -m http.server`. It agrees on a photo if its likeliest class is that of
`service.engine.classifier.Classifier` with the same package.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.packages import build_imagenet_package
from benchmarks.record import command, machine, results_file, shared_data, spread, versions, write
from tests.browser.agreement import agreement
from tests.browser.chromium import launched, static_server
from training.edge.build import build
from training.edge.bundle.bench import table
from training.edge.measure import measure

LEAST_RUNS = 7
FIRST_ANSWER = """
import sys, time
begun = time.perf_counter()
sys.path.insert(0, sys.argv[1])
from run import Classifier
from pathlib import Path
Classifier().classify(Path(sys.argv[2]).read_bytes())
print(time.perf_counter() - begun)
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write the JSON."""
    options = _options(arguments)
    photos = sorted((options.data / "imagenet-500").glob("*.jpg"))[: options.photos]
    with tempfile.TemporaryDirectory(prefix="loupe-edge-") as place:
        folder = Path(place)
        package = options.package or build_imagenet_package(folder / "package", data=options.data)
        bundle = build(package, folder / "bundle.zip", ort_web=options.ort_web)
        shutil.unpack_archive(bundle.path, folder / "bundle")
        variants = measure(bundle.path, threads=1, seconds=options.seconds)
        first = {
            variant: _first_answers(
                folder / "bundle", photos[0], variant=variant, runs=options.runs
            )
            for variant in bundle.variants
        }
        page = _page(folder / "bundle" / "web", package=package, photos=photos)
        bundle_bytes = bundle.path.stat().st_size
    print(table(variants))
    for variant, found in first.items():
        print(
            f"first answer of {variant}: {found['import_to_answer_s']['median']:.2f} s, the whole"
            f" process {found['process_s']['median']:.2f} s"
        )
    print(
        f"page and service agree on {page['same_top1']} of {page['photos']} photos, with equal"
        f" pixels on {page['same_pixels']}"
    )
    report: dict[str, Any] = {
        "command": command("edge", arguments),
        "machine": machine(),
        "versions": versions(),
        "bundle_bytes": bundle_bytes,
        "variants": variants,
        "first_answer": first,
        "page": page,
    }
    write(report, options.out)


def _first_answers(bundle: Path, photo: Path, *, variant: str, runs: int) -> dict[str, Any]:
    """Seconds to the first answer of *variant* over *runs* fresh processes."""
    inside_s, process_s = [], []
    code = FIRST_ANSWER.replace("Classifier()", f"Classifier(variant={variant!r})")
    for _ in range(runs):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, str(bundle), str(photo)],
            capture_output=True,
            text=True,
            check=True,
        )
        process_s.append(time.perf_counter() - started)
        inside_s.append(float(done.stdout))
    return {"import_to_answer_s": spread(inside_s), "process_s": spread(process_s), "runs": runs}


def _page(web: Path, *, package: Path, photos: Sequence[Path]) -> dict[str, Any]:
    with launched() as browser, static_server(web) as address:
        found = dataclasses.asdict(
            agreement(browser.new_page(), address, package=package, photos=photos)
        )
        found["browser"] = f"Chromium {browser.version}"
    return found | {name: spread(found[name]) for name in ("preprocess_ms", "model_ms")}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--package", type=Path, help="bundle this package instead of ImageNet's MobileNetV2 in fp32"
    )
    parser.add_argument(
        "--data", type=Path, default=shared_data(), help="folder with weights/ and imagenet-500/"
    )
    parser.add_argument(
        "--photos", type=int, default=200, help="photos that page and service both classify"
    )
    parser.add_argument(
        "--runs",
        type=int,
        default=9,
        help=f"fresh processes for the first answer, at least {LEAST_RUNS}",
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="for each of the two measurements of a variant"
    )
    parser.add_argument(
        "--ort-web", type=Path, help="npm's tarball of onnxruntime-web, where npm is not"
    )
    parser.add_argument("--out", type=Path, default=results_file("edge"))
    options = parser.parse_args(arguments)
    if options.runs < LEAST_RUNS:
        parser.error(f"--runs is {options.runs}; a median of fewer than {LEAST_RUNS} says little")
    return options


if __name__ == "__main__":
    main()
