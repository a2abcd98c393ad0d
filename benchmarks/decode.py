"""Preprocessing against the plain way, and the accuracy that DCT-scaled decoding costs.

    .venv/bin/python -m benchmarks.decode [--data ../shared/data] [--rounds 7]
                                          [--resize 256 --crop 224] [--out FILE]

The plain way is what a service usually does: Pillow's full decode, upright, RGB, resize, centre
crop, NumPy normalisation to float32 NCHW, without colour profiles. Mean and standard deviation are
often `np.array([...])`, so NumPy computes in float64. The second plain way stays in float32. Ours
ends with `uint8`, because normalisation is in the graph.

One thread runs everything. Within a round each block of 50 photos goes through every way before
the next block, in another order each time. So a busy machine slows all ways alike. Accuracy is the
top-1 of MobileNetV2 on the same photos. `changed` counts predictions that differ from those of the
full decode.
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from benchmarks.record import command, machine, results_file, shared_data, write
from models.package.manifest import PreprocessSpec
from models.pixels.containers import read
from models.pixels.preprocess import DEFAULT_DCT_MARGIN, decode, to_pixels

MARGINS = (None, 1.0, 1.5, 2.0, 3.0)
BLOCK = 50
PLAIN, PLAIN_FLOAT32 = "plain way", "plain way, float32"
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def main() -> None:
    """Measure, print the table, write the JSON."""
    options = _options()
    files, labels = _photos(options.data / "imagenet-500")
    specs = _specs(options.resize, options.crop)
    classify = _classifier(options.data / "weights" / "mobilenet_v2-imagenet1k.safetensors")

    accuracy = {}
    full = classify([to_pixels(file, specs["full decode"]) for file in files])
    for name, spec in specs.items():
        predictions = classify([to_pixels(file, spec) for file in files])
        accuracy[name] = {
            "reduced": sum(_is_reduced(file, spec) for file in files),
            "top1": 100 * float(np.mean(predictions == labels)),
            "changed": int(np.sum(predictions != full)),
        }

    ways: dict[str, Callable[[bytes], Any]] = {
        PLAIN: plain_way(options.resize, options.crop, MEAN, STD),
        PLAIN_FLOAT32: plain_way(
            options.resize, options.crop, MEAN.astype(np.float32), STD.astype(np.float32)
        ),
    }
    ways |= {name: lambda file, spec=spec: to_pixels(file, spec) for name, spec in specs.items()}
    rounds = _time(ways, files, rounds=options.rounds)
    report = {
        "command": command("decode"),
        "machine": machine(),
        "versions": (
            {name: version(name) for name in ("pillow", "numpy", "torch", "torchvision")}
            | {
                "python": platform.python_version(),
                "libjpeg-turbo": features.version("libjpeg_turbo"),
            }
        ),
        "photos": len(files),
        "resize": options.resize,
        "crop": options.crop,
        "seconds_by_round": rounds,
        "accuracy": accuracy,
        "summary": _summary(rounds, len(files)),
    }
    _print_table(report)
    write(report, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=shared_data(), help="folder with imagenet-500 and weights"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--resize",
        type=int,
        default=256,
        help="shortest side before the crop; smaller ones decode more photos at a reduced scale",
    )
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--out", type=Path, default=results_file("decode"))
    return parser.parse_args()


def _photos(folder: Path) -> tuple[list[bytes], NDArray[np.int64]]:
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [(folder / row["file"]).read_bytes() for row in rows], np.array(
        [int(row["class_index"]) for row in rows]
    )


def _specs(resize: int, crop: int) -> dict[str, PreprocessSpec]:
    """Ours by name.

    They ignore colour profiles, as the plain way does. Only the last one converts them.
    """
    common: dict[str, Any] = {"resize_size": resize, "crop": (crop, crop)}
    specs = {
        "full decode" if margin is None else f"margin {margin}": PreprocessSpec(
            **common, dct_margin=margin
        )
        for margin in MARGINS
    }
    return specs | {
        f"margin {DEFAULT_DCT_MARGIN}, ICC": PreprocessSpec(
            **common, dct_margin=DEFAULT_DCT_MARGIN, convert_icc=True
        )
    }


def _is_reduced(file: bytes, spec: PreprocessSpec) -> bool:
    container = read(file, "JPEG")
    return sorted(decode(file, spec).size) != sorted((container.width, container.height))


def plain_way(
    resize: int, crop: int, mean: NDArray[Any], std: NDArray[Any]
) -> Callable[[bytes], NDArray[np.float32]]:
    """A function from an encoded image to normalised `float32 [3,crop,crop]`."""

    def plain(file: bytes) -> NDArray[np.float32]:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")
        width, height = image.size
        size = (
            (resize, int(resize * height / width))
            if width <= height
            else (int(resize * width / height), resize)
        )
        left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
        image = image.resize(size, Image.Resampling.BILINEAR).crop(
            (left, top, left + crop, top + crop)
        )
        pixels = np.asarray(image, np.float32) / 255
        return np.ascontiguousarray(
            ((pixels - mean) / std).astype(np.float32, copy=False).transpose(2, 0, 1)
        )

    return plain


def _classifier(weights: Path) -> Callable[[list[NDArray[np.uint8]]], NDArray[np.int64]]:
    import torch
    from safetensors.torch import load_file
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2()
    network.load_state_dict(load_file(weights))
    network.eval()
    mean, std = torch.tensor(MEAN, dtype=torch.float32), torch.tensor(STD, dtype=torch.float32)

    @torch.inference_mode()
    def classify(pixels: list[NDArray[np.uint8]]) -> NDArray[np.int64]:
        answers = []
        for start in range(0, len(pixels), BLOCK):
            batch = torch.from_numpy(np.stack(pixels[start : start + BLOCK])).float() / 255
            answers.append(network(((batch - mean) / std).permute(0, 3, 1, 2)).argmax(1))
        return torch.cat(answers).numpy()

    return classify


def _time(
    ways: dict[str, Callable[[bytes], Any]], files: list[bytes], *, rounds: int
) -> list[dict[str, float]]:
    """Seconds for all *files* by way, for each round; one uncounted round warms up."""
    measured = []
    names = list(ways)
    for number in range(rounds + 1):
        seconds = dict.fromkeys(names, 0.0)
        for block, start in enumerate(range(0, len(files), BLOCK)):
            turn = (number + block) % len(names)
            for name in names[turn:] + names[:turn]:
                begun = time.perf_counter()
                for file in files[start : start + BLOCK]:
                    ways[name](file)
                seconds[name] += time.perf_counter() - begun
        measured.append(seconds)
    return measured[1:]


def _summary(
    rounds: list[dict[str, float]], count: int
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """(median, least, greatest) of images/s and of the speed relative to the plain ways.

    A ratio compares figures of the same round.
    """

    def spread(values: list[float]) -> tuple[float, float, float]:
        return statistics.median(values), min(values), max(values)

    return {
        name: {
            "images_per_s": spread([count / seconds[name] for seconds in rounds]),
            "times_plain": spread([seconds[PLAIN] / seconds[name] for seconds in rounds]),
            "times_plain_float32": spread(
                [seconds[PLAIN_FLOAT32] / seconds[name] for seconds in rounds]
            ),
        }
        for name in rounds[0]
    }


def _print_table(report: dict[str, Any]) -> None:
    print(f"{report['command']}\n{report['machine']}\n{report['versions']}")
    print(
        f"{report['photos']} photos, one thread, {len(report['seconds_by_round'])} rounds: median"
        " (least to greatest)\n"
    )
    print(
        "| way | images/s | times the plain way | times it in float32 | reduced | top-1 % | changed"
        " |\n|---|---|---|---|---|---|---|"
    )
    for name, speed in report["summary"].items():
        rate, *ratios = speed.values()
        accuracy = report["accuracy"].get(name)
        cells = [
            name,
            "{:.0f} ({:.0f} to {:.0f})".format(*rate),
            *("{:.2f} ({:.2f} to {:.2f})".format(*ratio) for ratio in ratios),
        ]
        cells += (
            [str(accuracy["reduced"]), f"{accuracy['top1']:.1f}", str(accuracy["changed"])]
            if accuracy
            else ["-", "-", "-"]
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
