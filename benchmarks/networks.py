"""CPU time of one image in each network, for `loupe networks`.

    .venv/bin/python -m benchmarks.networks [--network NAME ...] [--runs 15] [--out FILE]

Each network has random weights, whose values do not matter, and 1000 classes. It is exported at
the size of its published weights. Its answering part is run in ONNX Runtime with one thread, one
image at a time. The figure is the least CPU time (not wall time) of the runs in milliseconds:
other work on the machine disturbs it least. Networks that are not named keep their figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import command, machine, versions, write
from models.networks.catalogue import build, entry
from models.networks.listing import MEASURED
from models.networks.network import ServedGraph
from models.package.manifest import PreprocessSpec
from models.runtime.answer_graph import answering_part
from models.runtime.session import open_session
from training.export.onnx_file import to_onnx

NETWORKS = (
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "efficientnet_b0",
    "convnext_tiny",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "timm:tf_efficientnet_lite0",
    "timm:mobilenetv4_conv_small",
    "timm:vit_tiny_patch16_224",
    "timm:convnext_atto",
)
NOTE = "one image, one thread, fp32, on {cpu}, {level}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    from models.machine import cpu_class

    options = _options(arguments)
    kept = json.loads(options.out.read_bytes())["milliseconds"] if options.out.is_file() else {}
    for name in options.network or NETWORKS:
        kept[name] = round(measured_ms(name, runs=options.runs), 1)
        print(f"{name:40} {kept[name]:7.1f} ms", flush=True)
    about = machine()
    report: dict[str, Any] = {
        "command": command("networks", arguments),
        "machine": about,
        "versions": versions(),
        "note": NOTE.format(cpu=about["cpu"], level=cpu_class()),
        "milliseconds": dict(sorted(kept.items())),
    }
    write(report, options.out)


def measured_ms(name: str, *, runs: int) -> float:
    """The least CPU time of *runs* images, after three that warm up."""
    torch.manual_seed(0)
    inputs = entry(name).inputs()
    size = inputs.image_size
    network = build(name, num_classes=1000, image_size=size).eval()
    graph = ServedGraph(network, mean=inputs.mean, std=inputs.std, temperature=1.0)
    encoded, _ = answering_part(to_onnx(graph, PreprocessSpec(crop=(size, size), resize_size=size)))
    session = open_session(encoded, threads=1, provider="cpu", origin=name)
    image_NHWC = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    times = []
    for _ in range(3 + runs):
        begun = time.process_time()
        session.run(["probabilities"], {"image": image_NHWC})
        times.append(1000.0 * (time.process_time() - begun))
    return min(times[3:])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", help="as `loupe networks` names it")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=MEASURED)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
