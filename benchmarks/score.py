"""Batch scoring against what the machine can do, and against a plain loop, in memory and on Ray.

    .venv/bin/python -m benchmarks.score [--network mobilenet_v2] [--images 1000] [--rounds 5]
                                         [--sizes 1000 10000 100000] [--ray-images 5000]
                                         [--ray-rounds 3] [--ray-address HOST:PORT] [--starts 7]
                                         [--short] [--out FILE]

In a round each way processes the same photos (`imagenet-500`, repeated), in another order each
time:

- `decode`: reading and preprocessing alone, one thread for each core;
- `model`: the network alone on ready pixels; the better of one thread for each core and one session
  with as many threads;
- `loop`: a loop over files through our own `Classifier.classify`, one image at a time, all cores;
- `by hand`: the loop of a usual script: Pillow, NumPy's normalisation, and the network in a session
  with ONNX Runtime's defaults, one image at a time;
- `score`: a whole job in this process, with journal, output and summary, without opening the model.

There are two upper bounds. `least` is min(decode, model): no pipeline is faster, and one that has
cores for both reaches it. `shared` is 1 / (1 / decode + 1 / model): the most that the same cores
can do if they do both.

Memory is the peak of `loupe score` as a process over a table of so many rows. `first` is the time
from its start until its journal has a record. Ray against local is the time of the whole command,
with the start of the cluster unless `--ray-address` gives one. `--short` only shows that it works.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx.utils
import onnxruntime as ort
from rich.console import Console

from benchmarks.decode import plain_way
from benchmarks.packages import build_network_package
from benchmarks.record import command, machine, results_file, shared_data, spread, versions, write
from benchmarks.score_processes import first_s, peak_mb, ray
from models.machine import threads_per_worker
from models.package.manifest import MODEL_FILE
from models.package.manifest_file import read_manifest
from models.pixels.preprocess import to_pixels
from models.runtime.session import Model, open_model
from service.engine.classifier import Classifier
from tests.models.packages import build_package

BATCH = 16


def main() -> None:
    """Measure, print the table, write the JSON."""
    options = _options()
    photos = sorted((options.data / "imagenet-500").glob("*.jpg"))
    with tempfile.TemporaryDirectory(prefix="loupe-score-") as place:
        folder = Path(place)
        package = build_network_package(folder / "network", network=options.network)
        tiny = build_package(folder / "tiny", labels=("ant", "bee"))
        rounds = _rounds(package, photos, folder, images=options.images, rounds=options.rounds)
        memory = {
            rows: peak_mb(tiny, _table(folder, photos[:20], rows), folder) for rows in options.sizes
        }
        first = [
            first_s(package, _table(folder, photos, 1000), folder, run)
            for run in range(options.starts)
        ]
        engines = [
            ray(
                package,
                _table(folder, photos, options.ray_images),
                folder,
                run,
                options.ray_address,
            )
            for run in range(options.ray_rounds)
        ]
    report: dict[str, Any] = {
        "command": command("score"),
        "machine": machine(),
        "versions": versions(),
        "network": options.network,
        "images": options.images,
        "rounds_images_per_s": rounds,
        "peak_memory_mb": memory,
        "start_to_first_s": first,
        "ray_images": options.ray_images,
        "ray_s": engines,
        "summary": _summary(rounds, memory, first, engines),
    }
    for name, figures in report["summary"].items():
        print(
            f"{name:34} {figures['median']:8.3g}   ({figures['least']:.3g} to"
            f" {figures['greatest']:.3g})"
        )
    write(report, options.out)


def _summary(
    rounds: list[dict[str, float]],
    memory: dict[int, float],
    first: list[float],
    ray: list[dict[str, float]],
) -> dict[str, dict[str, float]]:
    found = {f"{name} images/s": spread([one[name] for one in rounds]) for name in rounds[0]}
    found["score / shared ceiling"] = spread(
        [one["score"] * (1 / one["decode"] + 1 / one["model"]) for one in rounds]
    )
    found["score / least ceiling"] = spread(
        [one["score"] / min(one["decode"], one["model"]) for one in rounds]
    )
    found["score / loop"] = spread([one["score"] / one["loop"] for one in rounds])
    found["score / by hand"] = spread([one["score"] / one["by hand"] for one in rounds])
    found |= {f"peak MB at {rows} images": spread([value]) for rows, value in memory.items()}
    if first:
        found["start to first result, s"] = spread(first)
    if ray:
        found["ray / local"] = spread([one["local"] / one["ray"] for one in ray])
    return found


def _rounds(
    package: Path, photos: list[Path], folder: Path, *, images: int, rounds: int
) -> list[dict[str, float]]:
    """Images/s of each way, for each round; one uncounted round warms up."""
    cores = threads_per_worker(1)
    files = [photos[at % len(photos)] for at in range(images)]
    alone, wide = (
        open_model(package, threads=threads, warm_batches=(BATCH,)) for threads in (1, cores)
    )
    spec = alone.manifest.preprocess
    pixels = np.stack([to_pixels(file.read_bytes(), spec) for file in files[:BATCH]])
    batches = max(1, images // BATCH)
    classifier = Classifier(wide, name="network", version=0)
    table = _table(folder, photos, images)
    ways: dict[str, Callable[[], Any]] = {
        "decode": lambda: _on_threads(
            cores, files, lambda file: to_pixels(file.read_bytes(), spec)
        ),
        "model, session per core": lambda: _on_threads(
            cores, range(batches), lambda _: alone.run(pixels)
        ),
        "model, one session": lambda: [wide.run(pixels) for _ in range(batches)],
        "by hand": _by_hand(package, files, cores),
        "loop": lambda: [classifier.classify([file.read_bytes()]) for file in files],
        "score": lambda: _job(alone, table, folder),
    }
    counts = {name: batches * BATCH if name.startswith("model") else images for name in ways}
    measured = []
    for number in range(rounds + 1):
        turn = number % len(ways)
        rates = {}
        for name in [*ways][turn:] + [*ways][:turn]:
            begun = time.perf_counter()
            ways[name]()
            rates[name] = counts[name] / (time.perf_counter() - begun)
        rates["model"] = max(rates.pop("model, session per core"), rates.pop("model, one session"))
        measured.append(rates)
    return measured[1:]


def _by_hand(package: Path, files: Sequence[Path], cores: int) -> Callable[[], object]:
    """A usual loop over *files*, with the package's network after its normalisation."""
    manifest = read_manifest(package)
    encoded = onnx.load(package / MODEL_FILE)
    normalised = next(node for node in encoded.graph.node if node.op_type == "Conv").input[0]
    network = onnx.utils.Extractor(encoded).extract_model([normalised], ["probabilities"])
    settings = ort.SessionOptions()
    # The default counts the cores of the machine, not those that a container may use.
    settings.intra_op_num_threads = cores
    session = ort.InferenceSession(
        network.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    architecture, spec = manifest.architecture, manifest.preprocess
    mean, std = (
        np.array(values, dtype=np.float32) for values in (architecture.mean, architecture.std)
    )
    pixels = plain_way(spec.resize_size, spec.crop[0], mean, std)
    return lambda: [
        session.run(["probabilities"], {normalised: pixels(file.read_bytes())[np.newaxis]})[
            0
        ].argmax()
        for file in files
    ]


def _on_threads(count: int, work: Sequence[Any], do: Callable[[Any], Any]) -> None:
    threads = [
        threading.Thread(target=lambda part=work[at::count]: [do(one) for one in part])
        for at in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _job(model: Model, table: Path, folder: Path) -> None:
    """One job with an opened model."""
    from service.scoring.compute.unit import ScoringOptions
    from service.scoring.input.inputs import open_input
    from service.scoring.job import Job, local_engine
    from service.scoring.plan import Plan

    options = ScoringOptions(batch_size=BATCH)
    plan = Plan(
        input=str(table),
        path_column="path",
        carry=None,
        model="network:0",
        package="",
        precision="fp32",
        columns=("abstained", "top_k", "model"),
        top_k=5,
        batch_size=BATCH,
        shard=(0, 1),
        max_image_bytes=2**28,
    )
    classifier = Classifier(model, name="network", version=0)
    quiet = Console(file=Path(os.devnull).open("w"))  # noqa: SIM115 - as long as the process
    job = Job(
        plan=plan,
        source=open_input(str(table)),
        classifier=classifier,
        out=str(folder / "job.parquet"),
        state=folder / "state",
        console=quiet,
    )
    job.run(local_engine(job, options=options), overwrite=True)


def _table(folder: Path, photos: list[Path], rows: int) -> Path:
    """A table of *rows* rows over *photos*."""
    table = folder / f"{len(photos)}-{rows}.csv"
    names = [str(photo.resolve()) for photo in photos]
    table.write_text(
        "path\n" + "".join(f"{names[row % len(names)]}\n" for row in range(rows)), encoding="utf-8"
    )
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=shared_data(), help="folder with imagenet-500")
    parser.add_argument("--network", default="mobilenet_v2")
    parser.add_argument("--images", type=int, default=1000, help="photos of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[1000, 10_000, 100_000],
        help="rows of the tables for memory",
    )
    parser.add_argument("--ray-images", type=int, default=5000)
    parser.add_argument("--ray-rounds", type=int, default=3)
    parser.add_argument("--ray-address", help="a running cluster  [default: one for this command]")
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--short", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--out", type=Path, default=results_file("score"))
    options = parser.parse_args()
    if options.short:
        (
            options.images,
            options.rounds,
            options.sizes,
            options.ray_images,
            options.ray_rounds,
            options.starts,
        ) = (200, 2, [1000, 5000], 500, 1, 2)
    return options


if __name__ == "__main__":
    main()
