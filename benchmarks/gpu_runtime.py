"""CUDA and TensorRT against the CPU: the same answers, and images/s by batch bucket, in fp32 and
fp16, with and without IO binding.

    python -m benchmarks.gpu_runtime [--package DIR] [--provider cpu --provider cuda --provider
    tensorrt] [--batch 64] [--rounds 7]
                                     [--seconds 0.3] [--out FILE]

One call measures every provider that this machine has, and writes down why it has not the others.
Without --package the package of `benchmarks.open_package` is built, which needs the training
requirements; build it elsewhere and bring it along otherwise.

Within a round each variant runs for --seconds before the next one comes, and ratios are taken
inside a round. Two ways to call: `copied` is what the service does, NumPy in and NumPy out; `bound`
keeps input and output on the device, the ceiling that IO binding could reach. fp16 is made from the
package's graph by `onnxruntime.transformers.float16`, with uint8 in and float32 out as before; how
far its answers are from those of fp32 on the CPU stands beside its speed. Answers are compared on
the package's golden images and on noise of fixed seed. `changing` is one call after another with
ever another batch size, as a service makes them: with the sessions that Loupe opens for a provider,
and with a single one for all sizes.

Bringing the GPU build to a machine that only has the CPU build and reaches no package index. The
wheel is larger than most ways of carrying files allow, so it goes in pieces:

    python -m pip download --no-deps --only-binary :all: --python-version 3.12 --platform
    manylinux_2_28_x86_64 --dest wheel onnxruntime-gpu
    split --bytes 45M --numeric-suffixes wheel/onnxruntime_gpu-*.whl wheel/piece-        (every
    piece below 48 MiB)
    sha256sum wheel/*.whl > wheel/sum                                                    (carry
    piece-* and sum)

and on the machine, in the folder of this checkout, once all pieces are there:

    cat wheel/piece-* > wheel/"$(awk '{print $2}' wheel/sum | xargs basename)" && sha256sum --check
    wheel/sum
    python -m pip uninstall --yes onnxruntime && python -m pip install --no-index --no-deps
    wheel/*.whl

The two builds own the same folder: the CPU build goes first. CUDA's own libraries come with torch's
CUDA build of the same major version, where `onnxruntime.preload_dlls` finds them; `loupe doctor`
names those that do not load.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.packages import build_network_package
from benchmarks.record import command, machine, results_file, spread, versions, write
from models.doctor.hardware import list_gpus
from models.errors import LoupeError
from models.machine import threads_per_worker
from models.package.verify import VerifiedPackage, verify_package
from models.pixels.preprocess import to_pixels
from models.runtime.providers import ANY_SIZE, GpuOptions, Provider, batch_buckets, session_sizes
from models.runtime.session import open_session

PROVIDERS: tuple[Provider, ...] = ("cpu", "cuda", "tensorrt")
PRECISIONS = ("fp32", "fp16")
OUTPUT = "probabilities"
NOISE_IMAGES = 64
PASSES = 2
"""Over the batch sizes, up and down."""
Call = Callable[[], Any]


@dataclass(frozen=True)
class Variant:
    """One provider in one precision."""

    provider: Provider
    precision: str
    sessions: Mapping[int, ort.InferenceSession]
    """As `models.runtime.session.Model` has them: by batch size, or one for all."""

    def session(self, batch: int) -> ort.InferenceSession:
        """The one that runs batches of this size."""
        return self.sessions[ANY_SIZE if ANY_SIZE in self.sessions else batch]

    @property
    def name(self) -> str:
        """Such as `cuda fp16`."""
        return f"{self.provider} {self.precision}"


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


def open_variants(
    verified: VerifiedPackage,
    *,
    providers: Sequence[Provider],
    buckets: Sequence[int],
    threads: int,
    gpu: GpuOptions,
) -> tuple[list[Variant], dict[str, str]]:
    """A session for each provider and precision that this machine has, warm at every bucket; and
    why it has not the others.
    """
    height, width = verified.manifest.preprocess.crop
    opened, refused = [], {}
    for provider in providers:
        for precision in PRECISIONS:
            try:
                sessions = {
                    size: _open(
                        verified,
                        provider,
                        precision,
                        buckets=buckets if size == ANY_SIZE else (size,),
                        threads=threads,
                        gpu=gpu,
                    )
                    for size in session_sizes(provider, buckets)
                }
            except LoupeError as error:
                refused[f"{provider} {precision}"] = str(error)
                continue
            variant = Variant(provider, precision, sessions)
            for bucket in buckets:
                variant.session(bucket).run(
                    [OUTPUT], {"image": np.zeros((bucket, height, width, 3), np.uint8)}
                )
            opened.append(variant)
    return opened, refused


def changing_ms(
    verified: VerifiedPackage,
    variants: Sequence[Variant],
    *,
    buckets: Sequence[int],
    threads: int,
    gpu: GpuOptions,
) -> dict[str, Any]:
    """Milliseconds of calls whose batch size is not that of the call before (unless *buckets* is
    but one), by variant; CUDA's in one session too.
    """
    pixels_NHWC = _images(verified)
    sizes = [*buckets, *reversed(buckets[1:-1])]
    found = {}
    for variant in variants:
        ways = {variant.name: variant}
        if ANY_SIZE not in variant.sessions:
            session = _open(
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
            # The first pass warms up, a session that was just opened as one that has run before.
            for size in sizes * (1 + PASSES):
                batch_NHWC = np.resize(pixels_NHWC, (size, *pixels_NHWC.shape[1:]))
                begun_s = time.perf_counter()
                way.session(size).run([OUTPUT], {"image": batch_NHWC})
                spent_ms.append(1000.0 * (time.perf_counter() - begun_s))
            found[name] = spread(spent_ms[len(sizes) :])
    return found


def _open(
    verified: VerifiedPackage,
    provider: Provider,
    precision: str,
    *,
    buckets: Sequence[int],
    threads: int,
    gpu: GpuOptions,
) -> ort.InferenceSession:
    height, width = verified.manifest.preprocess.crop
    return open_session(
        verified.model if precision == "fp32" else to_fp16(verified.model),
        threads=threads,
        provider=provider,
        origin=f"{verified.path} as {precision}",
        gpu=gpu,
        shapes_NHWC=[(bucket, height, width, 3) for bucket in buckets],
    )


@cache
def to_fp16(model: bytes) -> bytes:
    """The graph with weights and arithmetic in half precision, its inputs and outputs as they were."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted: bytes = convert_float_to_float16(
        onnx.load_model_from_string(model), keep_io_types=True
    ).SerializeToString()
    return converted


def compare_answers(
    variants: Sequence[Variant], verified: VerifiedPackage, *, buckets: Sequence[int]
) -> dict[str, dict[str, float]]:
    """How far each variant's probabilities are from fp32 on the CPU (or else from the first
    variant), at the worst of all buckets.
    """
    pixels_NHWC = _images(verified)
    reference = next((variant for variant in variants if variant.name == "cpu fp32"), variants[0])
    expected_NK = _answers(reference, pixels_NHWC, bucket=1)
    compared = {}
    for variant in variants:
        found = [_answers(variant, pixels_NHWC, bucket=bucket) for bucket in buckets]
        compared[variant.name] = {
            "max_probability_difference": max(
                float(np.abs(found_NK - expected_NK).max()) for found_NK in found
            ),
            "top1_agreement": min(
                float(np.mean(found_NK.argmax(1) == expected_NK.argmax(1))) for found_NK in found
            ),
            "golden_tolerance": verified.golden_tolerance,
        }
    return compared


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
    pixels_NHWC = _images(verified)
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
    """Variant -> bucket -> images/s over the rounds, and how many times `cpu fp32 copied` of the
    same round where that was measured.
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
    print(
        "\nms of a call whose batch size is not that of the call before, median (least to greatest)"
    )
    print("| variant | ms |\n|---|---|")
    for name, spent in report["changing_ms"].items():
        print(
            f"| {name} | {spent['median']:.1f} ({spent['least']:.1f} to {spent['greatest']:.1f}) |"
        )


def _images(verified: VerifiedPackage) -> NDArray[np.uint8]:
    """The golden images and noise, as the network sees them."""
    golden = [to_pixels(image.encoded, verified.manifest.preprocess) for image in verified.golden]
    noise_NHWC = np.random.default_rng(0).integers(
        0, 256, size=(NOISE_IMAGES, *golden[0].shape), dtype=np.uint8
    )
    return np.concatenate([np.stack(golden), noise_NHWC])


def _answers(
    variant: Variant, pixels_NHWC: NDArray[np.uint8], *, bucket: int
) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(pixels_NHWC), bucket):
        part_NHWC = pixels_NHWC[start : start + bucket]
        filled_NHWC = np.concatenate(
            [part_NHWC, np.zeros((bucket - len(part_NHWC), *part_NHWC.shape[1:]), np.uint8)]
        )
        parts.append(
            variant.session(bucket).run([OUTPUT], {"image": filled_NHWC})[0][: len(part_NHWC)]
        )
    return np.concatenate(parts)


def _seconds_per_call(call: Call, seconds: float) -> float:
    """Mean over as many calls as fit into *seconds*, at least one, after one that is not counted."""
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
