"""CUDA and TensorRT against the CPU: the same answers, and images/s by batch size.

    python -m benchmarks.gpu_runtime [--package DIR] [--provider cpu --provider cuda]
                                     [--provider tensorrt] [--batch 64] [--rounds 7]
                                     [--seconds 0.3] [--out FILE]

One call measures every provider of this machine in fp32 and fp16, and records why others are
missing. Without --package the package of `benchmarks.open_package` is built, which needs the
training requirements. Otherwise build it elsewhere and copy it.

Within a round each variant runs for --seconds before the next one, and ratios are taken within a
round. There are two ways to call. `copied` is what the service does: NumPy in and NumPy out.
`bound` keeps input and output on the device, which is the most that IO binding could gain. fp16 is
made from the package's graph by `onnxruntime.transformers.float16`, with uint8 in and float32 out
as before. Answers are compared with fp32 on the CPU, on the package's golden images and on noise of
a fixed seed. `changing` measures calls with changing batch sizes, as a service makes them. It does
so with Loupe's sessions for a provider, and with a single session for all sizes.

benchmarks/README.md says how to bring the GPU build to a machine without a package index. `loupe
doctor` names CUDA libraries that do not load.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.gpu_variants import (
    OUTPUT,
    Variant,
    compare_answers,
    images_of,
    open_one,
    open_variants,
)
from benchmarks.packages import build_network_package
from benchmarks.record import command, machine, results_file, spread, versions, write
from models.doctor.hardware import list_gpus
from models.machine import threads_per_worker
from models.package.verify import VerifiedPackage, verify_package
from models.runtime.providers import ANY_SIZE, GpuOptions, Provider, batch_buckets

PROVIDERS: tuple[Provider, ...] = ("cpu", "cuda", "tensorrt")
PASSES = 2
"""Passes over the batch sizes, up and down."""
Call = Callable[[], Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the JSON."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="loupe-gpu-") as place:
        verified = verify_package(
            options.package or build_network_package(Path(place) / "mobilenet")
        )
        gpu = GpuOptions(engine_cache=Path(place) / "engines")
        buckets = batch_buckets(options.batch)
        variants, refused = open_variants(
            verified,
            providers=options.provider or PROVIDERS,
            buckets=buckets,
            threads=options.threads,
            gpu=gpu,
        )
        answers = compare_answers(variants, verified, buckets=buckets)
        rounds = measure(
            variants, verified, buckets=buckets, rounds=options.rounds, seconds=options.seconds
        )
        changing = changing_ms(
            verified, variants, buckets=buckets, threads=options.threads, gpu=gpu
        )
    report: dict[str, Any] = {
        "command": command("gpu_runtime", arguments),
        "machine": {**machine(), "gpus": list_gpus(), "threads": options.threads},
        "versions": {**versions(), "cuda_of_onnxruntime": ort.cuda_version or None},
        "network": verified.manifest.architecture.network,
        "refused": refused,
        "answers": answers,
        "images_per_s_by_round": rounds,
        "summary": summarise(rounds),
        "changing_ms": changing,
    }
    print_tables(report)
    write(report, options.out)


def changing_ms(
    verified: VerifiedPackage,
    variants: Sequence[Variant],
    *,
    buckets: Sequence[int],
    threads: int,
    gpu: GpuOptions,
) -> dict[str, Any]:
    """Milliseconds of calls with another batch size than the call before, by variant.

    CUDA is also measured with one session for all sizes.
    """
    pixels_NHWC = images_of(verified)
    sizes = [*buckets, *reversed(buckets[1:-1])]
    found = {}
    for variant in variants:
        ways = {variant.name: variant}
        if ANY_SIZE not in variant.sessions:
            session = open_one(
                verified,
                variant.provider,
                variant.precision,
                buckets=buckets,
                threads=threads,
                gpu=gpu,
            )
            ways[f"{variant.name}, one session"] = Variant(
                variant.provider, variant.precision, {ANY_SIZE: session}
            )
        for name, way in ways.items():
            spent_ms = []
            # The first pass warms up new and used sessions alike.
            for size in sizes * (1 + PASSES):
                batch_NHWC = np.resize(pixels_NHWC, (size, *pixels_NHWC.shape[1:]))
                begun_s = time.perf_counter()
                way.session(size).run([OUTPUT], {"image": batch_NHWC})
                spent_ms.append(1000.0 * (time.perf_counter() - begun_s))
            found[name] = spread(spent_ms[len(sizes) :])
    return found


def measure(
    variants: Sequence[Variant],
    verified: VerifiedPackage,
    *,
    buckets: Sequence[int],
    rounds: int,
    seconds: float,
) -> list[dict[str, dict[str, float]]]:
    """For each round: variant and way to call -> bucket -> images/s.

    The order of the variants turns from round to round.
    """
    pixels_NHWC = images_of(verified)
    ways = {
        (f"{variant.name} {way}", bucket): (
            bucket,
            make(variant, np.resize(pixels_NHWC, (bucket, *pixels_NHWC.shape[1:]))),
        )
        for bucket in buckets
        for variant in variants
        for way, make in (("copied", copied), ("bound", bound))
    }
    measured = []
    names = list(ways)
    for number in range(rounds):
        found: dict[str, dict[str, float]] = {name: {} for name, _ in names}
        turn = number % len(names)
        for name, bucket in names[turn:] + names[:turn]:
            count, call = ways[name, bucket]
            found[name][str(bucket)] = count / _seconds_per_call(call, seconds)
        measured.append(
            {
                name: dict(sorted(by_bucket.items(), key=lambda item: int(item[0])))
                for name, by_bucket in found.items()
            }
        )
    return measured


def copied(variant: Variant, pixels_NHWC: NDArray[np.uint8]) -> Call:
    """A call as the service makes it: pixels from NumPy, probabilities to NumPy."""
    session = variant.session(len(pixels_NHWC))
    return lambda: session.run([OUTPUT], {"image": pixels_NHWC})


def bound(variant: Variant, pixels_NHWC: NDArray[np.uint8]) -> Call:
    """A call with the pixels already on the device, that leaves the probabilities there."""
    device = "cpu" if variant.provider == "cpu" else "cuda"
    session = variant.session(len(pixels_NHWC))
    binding = session.io_binding()
    binding.bind_ortvalue_input("image", ort.OrtValue.ortvalue_from_numpy(pixels_NHWC, device, 0))
    binding.bind_output(OUTPUT, device)

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def summarise(
    rounds: Sequence[Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Variant -> bucket -> images/s over the rounds, and the ratio to `cpu fp32 copied`.

    The ratio is taken within a round, if that variant was measured.
    """
    base = "cpu fp32 copied"
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for name, by_bucket in rounds[0].items():
        summary[name] = {
            bucket: {"images_per_s": spread([found[name][bucket] for found in rounds])}
            for bucket in by_bucket
        }
        if base in rounds[0]:
            for bucket in by_bucket:
                summary[name][bucket]["times_cpu_fp32"] = spread(
                    [found[name][bucket] / found[base][bucket] for found in rounds]
                )
    return summary


def print_tables(report: Mapping[str, Any]) -> None:
    """The report for a person."""
    print(f"{report['command']}\n{report['machine']}\n{report['versions']}\n")
    for name, reason in report["refused"].items():
        print(f"not measured: {name}: {reason}")
    print("| answers | largest difference | same top-1 |\n|---|---|---|")
    for name, found in report["answers"].items():
        print(
            f"| {name} | {found['max_probability_difference']:.2e} |"
            f" {found['top1_agreement']:.1%} |"
        )
    print(
        f"\nimages/s, median (least to greatest) of {len(report['images_per_s_by_round'])} rounds;"
        " times cpu fp32 copied of the same round"
    )
    print("| variant | batch | images/s | times |\n|---|---|---|---|")
    for name, by_bucket in report["summary"].items():
        for bucket, figures in by_bucket.items():
            rate, times = figures["images_per_s"], figures.get("times_cpu_fp32")
            ratio = f"{times['median']:.2f}" if times else "-"
            print(
                f"| {name} | {bucket} | {rate['median']:.0f} ({rate['least']:.0f} to"
                f" {rate['greatest']:.0f}) | {ratio} |"
            )
    print("\nms of a call with another batch size than the call before, median (least to greatest)")
    print("| variant | ms |\n|---|---|")
    for name, spent in report["changing_ms"].items():
        print(
            f"| {name} | {spent['median']:.1f} ({spent['least']:.1f} to {spent['greatest']:.1f}) |"
        )


def _seconds_per_call(call: Call, seconds: float) -> float:
    """Mean over as many calls as fit into *seconds*, at least one; one uncounted call warms up."""
    call()
    calls, begun = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - begun
        if elapsed >= seconds:
            return elapsed / calls


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, help="measure this package instead of a built one")
    parser.add_argument(
        "--provider",
        action="append",
        choices=PROVIDERS,
        help="one to measure, may be repeated; all if not given",
    )
    parser.add_argument(
        "--batch", type=int, default=64, help="largest batch; the buckets are 1, 2, 4, ... up to it"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="for each variant, bucket and round"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=threads_per_worker(1),
        help="intra-op threads of the CPU sessions",
    )
    parser.add_argument("--out", type=Path, default=results_file("gpu_runtime"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
