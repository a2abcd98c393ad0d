"""int8 of the ImageNet MobileNetV2: the search's table, and ONNX Runtime's plain settings beside it.

    .venv/bin/python -m benchmarks.int8 [--data FOLDER] [--seconds 600] [--runs 60] [--out FILE]

FOLDER holds imagenet-500 and weights/mobilenet_v2-imagenet1k.safetensors. Every second image calibrates (128 of them), the other 250 judge. Speed:
one thread, batch 1, fp32 and int8 in turns; the median of all runs. ONNX Runtime's plain settings are those of `quantize_static`: min-max
on the same images, signed activations and weights.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from benchmarks.record import command, machine, results_file, shared_data, versions, write
from models.architectures.catalogue import build
from models.architectures.network import IMAGENET_MEAN, IMAGENET_STD, ServedGraph
from models.architectures.weights import load_weights
from models.machine import cpu_class
from models.manifest import PreprocessSpec
from models.preprocess import to_pixels
from models.prune import answering_part
from training.data import Example
from training.metrics import wilson
from training.onnx_file import to_onnx
from training.quantise.candidate import Bench, interleaved_ms
from training.quantise.choose import CALIBRATION_IMAGES, Int8Options, find_on
from training.quantise.table import Progress

SPEC = PreprocessSpec()


def main() -> None:
    """Search, compare, write the figures."""
    options = _options()
    examples = _examples(options.data / "imagenet-500")
    calibration, judging = examples[0::2][:CALIBRATION_IMAGES], examples[1::2]
    encoded = _network(options.data / "weights" / "mobilenet_v2-imagenet1k.safetensors")
    progress = Progress()
    found = find_on(encoded, calibration, judging, SPEC, Int8Options(time_budget_s=options.seconds), progress.show)
    pixels_NHWC = np.stack([to_pixels(example.read(), SPEC) for example in judging])
    bench = Bench(encoded, pixels_NHWC, np.array([example.label for example in judging]), budget_points=1.0)
    plain = [bench.judge(name, model) for name, model in _plain(answering_part(encoded)[0], calibration)]
    for candidate in plain:
        progress.show(candidate)
    report: dict[str, Any] = {
        "command": command("int8"),
        "machine": {**machine(), "cpu_class": cpu_class()},
        "versions": versions(),
        "search": found.as_json(),
        "plain_onnxruntime": [candidate.as_json() for candidate in plain],
        "fp32": {"accuracy": wilson(bench.right, len(judging)).model_dump(mode="json"), "bytes": len(encoded)},
    }
    print(found.reason)
    if found.taken is not None:
        parts = answering_part(encoded)[0], answering_part(found.taken.encoded)[0]
        float_ms, ms = interleaved_ms(*parts, pixels_NHWC[:1], runs=options.runs)
        accuracy = wilson(round(found.taken.accuracy * len(judging)), len(judging))
        summary = {"loss_points": found.taken.loss_points, "bytes": len(found.taken.encoded), "fp32_ms": float_ms, "int8_ms": ms}
        report["int8"] = {**summary, "speedup": float_ms / ms, "runs": options.runs, "accuracy": accuracy.model_dump(mode="json")}
        print(f"{summary} speedup {float_ms / ms:.2f}")
    write(report, options.out)


def _network(weights: Path) -> bytes:
    network = build("mobilenet_v2", num_classes=1000)
    load_weights(network, "mobilenet_v2", str(weights))
    return to_onnx(ServedGraph(network.eval(), mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0).eval(), SPEC)


def _examples(folder: Path) -> list[Example]:
    with (folder / "labels.csv").open(encoding="utf-8") as stream:
        return [Example(name=row["file"], label=int(row["class_index"]), path=folder / row["file"]) for row in csv.DictReader(stream)]


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, examples: Sequence[Example]) -> None:
        self._feeds = ({"image": to_pixels(example.read(), SPEC)[np.newaxis]} for example in examples)

    def get_next(self) -> Any:
        return next(self._feeds, None)


def _plain(encoded: bytes, calibration: Sequence[Example]) -> list[tuple[str, bytes]]:
    """ONNX Runtime's plain settings, per channel and per tensor."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(encoded)
        for per_channel in (True, False):
            quantize_static(source, target, _Reader(calibration), per_channel=per_channel)
            made.append((f"plain ONNX Runtime, per {'channel' if per_channel else 'tensor'}", target.read_bytes()))
    return made


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=shared_data(), help="folder with imagenet-500 and weights")
    parser.add_argument("--seconds", type=float, default=600.0, help="time budget of the search")
    parser.add_argument("--runs", type=int, default=60, help="timed runs of each model")
    parser.add_argument("--out", type=Path, default=results_file("int8"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
