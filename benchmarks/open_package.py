"""How long a worker takes to open a package of MobileNetV2's size: read, hash, check the graph, load, warm up, answer the golden images.

    .venv/bin/python -m benchmarks.open_package [--package DIR] [--runs 9] [--batch 16] [--out FILE]

Without --package one is built: MobileNetV2 with 1000 classes and random weights (their values cost nothing), four golden photos of
500 x 375 pixels. Each run is a fresh process, as a starting worker is. What it imports is timed apart; then the package is opened
twice, by a process that never did so and by one that did. The disk's cache is warm, since the package was just written. The numbers
are medians, least and greatest over the runs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CLASSES, SIDE = 1000, 224
GOLDEN_IMAGES = 4
LOGITS_STD = 3.0
"""Over classes and images, of the built network's logits at its temperature."""
LEAST_RUNS = 7


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in fresh processes, print the table, write the JSON."""
    options = _options(arguments)
    if options.child:
        print(json.dumps(measure(options.package, threads=options.threads, batch=options.batch)))
        return
    with tempfile.TemporaryDirectory(prefix="loupe-open-") as place:
        package = options.package or build_mobilenet_package(Path(place) / "mobilenet")
        runs = [_fresh(package, options) for _ in range(options.runs)]
        megabytes = sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) / 1e6
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.open_package", *(sys.argv[1:] if arguments is None else arguments)]),
        "machine": machine(),
        "versions": versions(),
        "package_megabytes": round(megabytes, 2),
        "runs": runs,
        "summary": {name: spread([run[name] for run in runs]) for name in runs[0]},
    }
    for name, figures in report["summary"].items():
        print(f"{name:24} {figures['median']:9.4f}   ({figures['least']:.4f} to {figures['greatest']:.4f}, {len(runs)} processes)")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}")


def measure(package: Path, *, threads: int, batch: int) -> dict[str, float]:
    """Seconds of each step in this process, and the most memory that it held."""
    begun = time.perf_counter()
    from models.machine import threads_per_worker
    from models.package import verify_package
    from models.runtime import open_model, open_verified

    seconds = {"import_s": time.perf_counter() - begun}
    threads = threads or threads_per_worker(1)

    begun = time.perf_counter()
    verified = verify_package(package)
    seconds["verify_s"] = time.perf_counter() - begun
    open_verified(verified, threads=threads, warm_batches=(1, batch))
    seconds["open_s"] = time.perf_counter() - begun

    begun = time.perf_counter()
    open_model(package, threads=threads, warm_batches=(1, batch))
    seconds["open_again_s"] = time.perf_counter() - begun
    return {**seconds, "peak_memory_mib": _peak_memory_mib()}


def _peak_memory_mib() -> float:
    # Not getrusage: there a child begins with the peak of the process that forked it.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def build_mobilenet_package(folder: Path) -> Path:
    """*folder*, made and filled with a sound package of MobileNetV2 with 1000 classes and random weights.

    Batch normalisation and temperature are set on noise, so that activations and probabilities have the spread of a trained network's:
    otherwise every image would get the same answer, in any precision.
    """
    import torch

    from models.architectures.catalogue import build
    from models.architectures.network import IMAGENET_MEAN, IMAGENET_STD, ServedGraph
    from models.manifest import MODEL_FILE, PreprocessSpec
    from training.export import to_onnx

    torch.manual_seed(0)
    network = build("mobilenet_v2", num_classes=CLASSES)
    noise_N3HW = torch.randn(8, 3, SIDE, SIDE)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None
        network.train()(noise_N3HW)
        temperature = float(network.eval()(noise_N3HW).std()) / LOGITS_STD
    spec = PreprocessSpec(crop=(SIDE, SIDE))
    folder.mkdir(parents=True)
    graph = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=temperature).eval()
    (folder / MODEL_FILE).write_bytes(to_onnx(graph, spec))
    _finish_package(folder, spec=spec, parameters=sum(parameter.numel() for parameter in network.parameters()))
    return folder


def _finish_package(folder: Path, *, spec: Any, parameters: int) -> None:
    """Golden images and manifest around the model in *folder*."""
    import onnx

    from models.manifest import MODEL_FILE, write_manifest
    from models.package import GoldenImage, write_golden
    from models.preprocess import to_pixels
    from models.runtime import open_session
    from tests.models.packages import build_manifest

    encoded = [_photo(seed) for seed in range(GOLDEN_IMAGES)]
    model = (folder / MODEL_FILE).read_bytes()
    session = open_session(model, threads=1, provider="cpu", origin=str(folder))
    answers_NK = session.run(["probabilities"], {"image": np.stack([to_pixels(photo, spec) for photo in encoded])})[0]
    golden = [GoldenImage(f"{n}.jpg", photo, tuple(map(float, answers_NK[n]))) for n, photo in enumerate(encoded)]
    write_golden(folder, golden, tolerance=1e-3)
    for report in ("report.html", "report.json"):
        (folder / report).write_text("{}\n", encoding="utf-8")
    plain = build_manifest(folder, labels=tuple(f"class {index}" for index in range(CLASSES)), seed=0, size=SIDE)
    architecture = plain.architecture.model_copy(update={"network": "mobilenet_v2", "num_parameters": parameters})
    outputs = _outputs(onnx.load_model_from_string(model))
    write_manifest(folder, plain.model_copy(update={"architecture": architecture, "preprocess": spec, "outputs": outputs}))


def _outputs(model: Any) -> tuple[Any, ...]:
    from models.manifest import TensorSpec

    sizes = {output.name: [size.dim_value or "N" for size in output.type.tensor_type.shape.dim] for output in model.graph.output}
    return tuple(TensorSpec(name=name, dtype="float32", shape=tuple(shape)) for name, shape in sizes.items())


def _photo(seed: int) -> bytes:
    """A JPEG of 500 x 375 pixels with large and small structure, so that decoding it costs what a photo costs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, size=(12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    noisy_HWC = np.clip(np.asarray(coarse, np.int16) + rng.integers(-12, 13, size=(375, 500, 3)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy_HWC).save(stream, format="JPEG", quality=90)
    return stream.getvalue()


def _fresh(package: Path, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.open_package", "--child", "--package", str(package.resolve())]
    command += ["--threads", str(options.threads), "--batch", str(options.batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="open this package instead of a built one")
    parser.add_argument("--runs", type=int, default=9, help=f"fresh processes, at least {LEAST_RUNS}")
    parser.add_argument("--threads", type=int, default=0, help="intra-op threads; 0: all that the cgroup allows, as `loupe serve` does")
    parser.add_argument("--batch", type=int, default=16, help="largest batch that is warmed up, as `loupe serve` does")
    parser.add_argument("--out", type=Path, default=Path(os.path.relpath(ROOT / "benchmarks" / "results" / "open_package.json")))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.runs < LEAST_RUNS:
        parser.error(f"--runs is {options.runs}; a median of fewer than {LEAST_RUNS} says little")
    return options


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of *values*."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def machine() -> dict[str, Any]:
    """CPU, the cores that this process may use, and the system: never a host name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": names[0] if names else platform.processor(), "cores": cores, "system": f"{platform.system()} {platform.machine()}"}


def versions() -> dict[str, str]:
    """Releases that the numbers depend on."""
    import onnxruntime as ort

    return {"python": platform.python_version(), "onnxruntime": ort.__version__, "onnx": version("onnx"), "numpy": version("numpy")}


if __name__ == "__main__":
    main()
