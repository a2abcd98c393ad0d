"""int8 of ImageNet's MobileNetV2 and of one fine-tuned on ants and bees: the table of the search.

    taskset -c 0 .venv/bin/python -m benchmarks.int8 [--data FOLDER] [--seconds 300] [--rounds 9]
                                                     [--runs 30] [--out FILE]

FOLDER holds imagenet-500, hymenoptera, and weights/mobilenet_v2-imagenet1k.safetensors. Of
imagenet-500 every second image calibrates (128 of them), and the other 250 judge. Ants and bees
take a user's way: `loupe train`, then the export in int8, calibrated on train and judged on val.

The table also has ONNX Runtime's defaults of `quantize_static`: min-max on the same images, signed
activations and weights. Speed is measured with one thread and batch size 1. fp32 and int8 alternate
with *runs* of each in a round. The speed of a round is the median over neighbouring runs. The
figure is the median over *rounds* with the least and the greatest value. `taskset` keeps everything
on one core.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from benchmarks.record import command, machine, results_file, shared_data, spread, versions, write
from models.machine import cpu_class
from models.networks.catalogue import build
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, ServedGraph
from models.networks.weights import load_weights
from models.package.manifest import MODEL_FILE, SIBLING_FILE, PreprocessSpec
from models.pixels.preprocess import to_pixels
from models.runtime.answer_graph import answering_part
from training.data.source import Example, load_dataset
from training.evaluate.metrics import wilson
from training.export.export import export
from training.export.int8.candidate import Bench, interleaved
from training.export.int8.choose import CALIBRATION_IMAGES, Int8Options, find_on
from training.export.int8.search_progress import show
from training.export.onnx_file import to_onnx
from training.runs.run import open_run

SPEC = PreprocessSpec()
WEIGHTS = Path("weights") / "mobilenet_v2-imagenet1k.safetensors"


def main() -> None:
    """Search, compare, write the figures."""
    options = _options()
    # ONNX Runtime's advice to fold batch normalisation first: the exporter has done it.
    logging.disable(logging.WARNING)
    report: dict[str, Any] = {
        "command": command("int8"),
        "machine": {**machine(), "cpu_class": cpu_class()},
        "versions": versions(),
    }
    report["imagenet"] = _imagenet(options)
    report["hymenoptera"] = _ants_and_bees(options)
    for name in ("imagenet", "hymenoptera"):
        print(f"{name}: {report[name]['search']['reason']}")
        if taken := report[name].get("int8"):
            told = "{median:.2f} times as fast as fp32 ({least:.2f} to {greatest:.2f})".format_map(
                taken["speedup"]
            )
            print(
                f"{name}: {taken['bytes'] / 1e6:.2f} MB, {told}, {options.rounds} rounds of"
                f" {options.runs} runs"
            )
    write(report, options.out)


def _imagenet(options: argparse.Namespace) -> dict[str, Any]:
    examples = _examples(options.data / "imagenet-500")
    calibration, judging = examples[0::2][:CALIBRATION_IMAGES], examples[1::2]
    encoded = _network(options.data / WEIGHTS)
    found = find_on(
        encoded,
        calibration,
        judging,
        SPEC,
        Int8Options(time_budget_s=options.seconds),
        show,
    )
    pixels_NHWC = np.stack([to_pixels(example.read(), SPEC) for example in judging])
    bench = Bench(
        encoded, pixels_NHWC, np.array([example.label for example in judging]), budget_points=1.0
    )
    plain = [
        bench.judge(name, model) for name, model in _plain(answering_part(encoded)[0], calibration)
    ]
    for candidate in plain:
        show(candidate)
    report: dict[str, Any] = {
        "search": found.as_json(),
        "plain_onnxruntime": [candidate.as_json() for candidate in plain],
        "fp32": {
            "accuracy": wilson(bench.right, len(judging)).model_dump(mode="json"),
            "bytes": len(encoded),
        },
    }
    if found.taken is not None:
        accuracy = wilson(round(found.taken.accuracy * len(judging)), len(judging)).model_dump(
            mode="json"
        )
        report["int8"] = {
            "accuracy": accuracy,
            **_raced(encoded, found.taken.encoded, pixels_NHWC[:1], options),
        }
    return report


def _ants_and_bees(options: argparse.Namespace) -> dict[str, Any]:
    data = options.data / "hymenoptera"
    with tempfile.TemporaryDirectory(prefix="loupe-int8-") as place:
        out, package = Path(place) / "run", Path(place) / "package"
        settings = ["--set", "network=mobilenet_v2", "--set", f"weights={options.data / WEIGHTS}"]
        asked = [
            sys.executable,
            "-m",
            "loupe",
            "train",
            "--recipe",
            "finetune",
            "--data",
            str(data),
            "--out",
            str(out),
            *settings,
        ]
        subprocess.run(asked, check=True)
        run, int8 = open_run(out), Int8Options(time_budget_s=options.seconds, keep_fp32=True)
        manifest = export(run, package, precision="int8", int8=int8, watch=show)
        report: dict[str, Any] = {
            "search": json.loads((package / "report.json").read_text(encoding="utf-8"))[
                "quantisation"
            ]
        }
        if manifest.precision == "int8":
            photo = load_dataset(str(data), seed=run.config.seed).splits["val"][0].read()
            pixels_1HWC = to_pixels(photo, manifest.preprocess)[np.newaxis]
            fp32, small = (package / SIBLING_FILE).read_bytes(), (package / MODEL_FILE).read_bytes()
            accuracy = manifest.evaluation.metrics["top1"].model_dump(mode="json")
            report["int8"] = {"accuracy": accuracy, **_raced(fp32, small, pixels_1HWC, options)}
    return report


def _raced(
    fp32: bytes, int8: bytes, pixels_1HWC: NDArray[np.uint8], options: argparse.Namespace
) -> dict[str, Any]:
    """Speed and size of *int8*, and times of both."""
    parts = answering_part(fp32)[0], answering_part(int8)[0]
    races = [interleaved(*parts, pixels_1HWC, runs=options.runs) for _ in range(options.rounds)]
    return {
        "bytes": len(int8),
        "rounds": options.rounds,
        "runs": options.runs,
        "fp32_ms": spread([race.first_ms for race in races]),
        "int8_ms": spread([race.second_ms for race in races]),
        "speedup": spread([race.speedup for race in races]),
    }


def _network(weights: Path) -> bytes:
    network = build("mobilenet_v2", num_classes=1000)
    load_weights(network, "mobilenet_v2", str(weights))
    return to_onnx(
        ServedGraph(network.eval(), mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0).eval(),
        SPEC,
    )


def _examples(folder: Path) -> list[Example]:
    with (folder / "labels.csv").open(encoding="utf-8") as stream:
        return [
            Example(name=row["file"], label=int(row["class_index"]), path=folder / row["file"])
            for row in csv.DictReader(stream)
        ]


class _Reader(CalibrationDataReader):
    def __init__(self, examples: Sequence[Example]) -> None:
        self._feeds = (
            {"image": to_pixels(example.read(), SPEC)[np.newaxis]} for example in examples
        )

    def get_next(self) -> Any:
        return next(self._feeds, None)


def _plain(encoded: bytes, calibration: Sequence[Example]) -> list[tuple[str, bytes]]:
    """The results of ONNX Runtime's defaults, per channel and per tensor."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(encoded)
        for per_channel in (True, False):
            quantize_static(source, target, _Reader(calibration), per_channel=per_channel)
            made.append(
                (
                    f"plain ONNX Runtime, per {'channel' if per_channel else 'tensor'}",
                    target.read_bytes(),
                )
            )
    return made


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=shared_data(),
        help="folder with imagenet-500, hymenoptera and weights",
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="time budget of each search")
    parser.add_argument(
        "--rounds", type=int, default=9, help="rounds that the speed is the median of"
    )
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each model in a round")
    parser.add_argument("--out", type=Path, default=results_file("int8"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
