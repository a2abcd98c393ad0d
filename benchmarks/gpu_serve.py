"""The service on a GPU and on the CPU: photos/s at saturation, latency alone and at 70 % load.

    python -m benchmarks.gpu_serve [--network resnet50 --network mobilenet_v3_small]
                                   [--provider cpu --provider cuda] [--rounds 3] [--seconds 4]
                                   [--concurrency 64] [--workers 1] [--data FOLDER] [--out FILE]

Both serve the same packages, built with 1000 classes and random weights. The photos are those of
imagenet-500 in FOLDER, in random order. First all services must give each of --checked photos the
same probabilities to a thousandth. Service and load generator share the cores of the machine.
Within a round one service runs at a time and the others are stopped (SIGSTOP), so both sides of a
ratio meet the same conditions. Refused requests are counted apart from the latencies.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.packages import build_network_package
from benchmarks.record import command, machine, results_file, shared_data, spread, versions, write
from benchmarks.serving.answers import OK, percentiles_ms
from benchmarks.serving.contenders import Contender, loupe
from benchmarks.serving.load import arrivals_s, ask, closed_loop, open_loop, shuffled
from benchmarks.serving.photos import read_photos
from benchmarks.serving.processes import awake
from models.doctor.hardware import list_gpus
from models.store.store import Store

NETWORKS = ("resnet50", "mobilenet_v3_small")
PROVIDERS = ("cpu", "cuda")
LOAD = 0.7
TOLERANCE = 1e-3
"""Largest difference of a probability between two providers."""
Services = dict[str, Contender]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every network, print the table, write the JSON."""
    options = _options(arguments)
    report: dict[str, Any] = {
        "command": command("gpu_serve", arguments),
        "machine": {**machine(), "gpus": list_gpus()},
        "versions": versions(),
        "workers": options.workers,
        "concurrency": options.concurrency,
        "networks": {},
    }
    for network in options.network or NETWORKS:
        report["networks"][network] = measure(network, options)
        print_table(network, report["networks"][network])
    write(report, options.out)


def measure(network: str, options: argparse.Namespace) -> dict[str, Any]:
    """Photos/s at saturation and latency of single requests, for each service of *network*.

    Every service is measured in each round.
    """
    photos = read_photos(options.data, limit=options.photos)
    with tempfile.TemporaryDirectory(prefix="loupe-gpu-serve-") as place, ExitStack() as stack:
        folder = Path(place)
        store = Store(folder / "store")
        store.publish(build_network_package(folder / "package", network=network), name="network")
        services: Services = {
            provider: stack.enter_context(
                loupe(
                    folder / provider,
                    store=store.root,
                    photos=photos,
                    workers=options.workers,
                    provider=provider,
                )
            )
            for provider in options.provider or PROVIDERS
        }
        difference = check_agreement(
            {name: probabilities(one, options.checked) for name, one in services.items()}
        )
        rounds = [_round(services, number, options) for number in range(options.rounds)]
    return {
        "checked": min(options.checked, len(photos)),
        "largest_difference": difference,
        "rounds": rounds,
        "summary": summarise(rounds),
    }


def probabilities(service: Contender, count: int) -> list[dict[int, float]]:
    """The likeliest classes and their probabilities, for each of the first *count* photos.

    Raises `SystemExit` for a status other than 200.
    """
    with awake(service.pid):
        answers = ask(service.port, service.requests[:count])
    wrong = [(status, body[:300]) for status, body in answers if status != OK]
    if wrong:
        raise SystemExit(
            f"{len(wrong)} of {len(answers)} photos got no answer, the first: {wrong[0]}"
        )
    return [
        {one["index"]: one["probability"] for one in json.loads(body)["predictions"]}
        for _, body in answers
    ]


def check_agreement(found: Mapping[str, Sequence[Mapping[int, float]]]) -> float:
    """Largest difference of a probability between the first provider and the others, by photo.

    Raises `SystemExit` above `TOLERANCE`.
    """
    (first, expected), *others = found.items()
    largest = 0.0
    for name, answers in others:
        for number, (ours, theirs) in enumerate(zip(expected, answers, strict=True)):
            # A class that only one of the two names lies below the last that the other names.
            difference = max(
                abs(ours.get(index, min(ours.values())) - theirs.get(index, min(theirs.values())))
                for index in {*ours, *theirs}
            )
            if not difference <= TOLERANCE:
                raise SystemExit(
                    f"{name} and {first} give photo {number} probabilities that differ by"
                    f" {difference:.2g}, more than {TOLERANCE:g}"
                )
            largest = max(largest, difference)
    return largest


def _round(services: Services, number: int, options: argparse.Namespace) -> dict[str, Any]:
    names = list(services)
    turn = number % len(names)
    return {name: _one(services[name], number, options) for name in (*names[turn:], *names[:turn])}


def _one(service: Contender, number: int, options: argparse.Namespace) -> dict[str, Any]:
    full = service.measure(seconds=options.seconds, concurrency=options.concurrency, seed=number)
    with awake(service.pid):
        order = shuffled(service.requests, seed=number)
        alone = closed_loop(service.port, order, concurrency=1, seconds=options.seconds / 2)
        # Batches of every size, in no order.
        offsets_s = arrivals_s(LOAD * full.per_second, options.seconds, seed=number)
        loaded = open_loop(service.port, order, offsets_s=offsets_s)
    if not all(len(run.latencies_ms()) for run in (alone, loaded)):
        raise SystemExit(
            f"a service answers nothing: alone {alone.counts()}, at {LOAD:.0%} load"
            f" {loaded.counts()}"
        )
    return {
        "per_second": full.per_second,
        "cpu_ms": full.cpu_ms,
        "counts": full.counts,
        "alone_ms": percentiles_ms(alone.latencies_ms()),
        "loaded_counts": loaded.counts(),
        "loaded_ms": percentiles_ms(loaded.latencies_ms()),
    }


def summarise(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each provider photos/s, CPU time of a photo, latency alone, and the ratio of photos/s.

    The ratio is to the first provider in the same round.
    """
    base = next(iter(rounds[0]))
    return {
        name: {
            "per_second": spread([found[name]["per_second"] for found in rounds]),
            "cpu_ms": spread([found[name]["cpu_ms"] for found in rounds]),
            "alone_p50_ms": spread([found[name]["alone_ms"]["p50"] for found in rounds]),
            "loaded_p50_ms": spread([found[name]["loaded_ms"]["p50"] for found in rounds]),
            "loaded_p99_ms": spread([found[name]["loaded_ms"]["p99"] for found in rounds]),
            "not_answered": sum(_refused(found[name]["counts"]) for found in rounds),
            "loaded_not_answered": sum(_refused(found[name]["loaded_counts"]) for found in rounds),
            f"times_{base}": spread(
                [found[name]["per_second"] / found[base]["per_second"] for found in rounds]
            ),
        }
        for name in rounds[0]
    }


def _refused(counts: Mapping[str, int]) -> int:
    return sum(count for status, count in counts.items() if status != str(OK))


def print_table(network: str, found: dict[str, Any]) -> None:
    """The figures of *network*, for a terminal."""
    for name, figures in found["summary"].items():
        rate, ratio = (
            figures["per_second"],
            next(value for key, value in figures.items() if key.startswith("times_")),
        )
        alone, p50, p99 = (
            figures[key]["median"] for key in ("alone_p50_ms", "loaded_p50_ms", "loaded_p99_ms")
        )
        print(
            f"{network:20} {name:8} {rate['median']:8.0f} photos/s ({rate['least']:.0f} to"
            f" {rate['greatest']:.0f})  {ratio['median']:.2f} times  alone {alone:.2f} ms  at"
            f" {LOAD:.0%} load p50 {p50:.2f} p99 {p99:.2f} ms  CPU"
            f" {figures['cpu_ms']['median']:.2f} ms a photo  not answered {figures['not_answered']}"
            f" and {figures['loaded_not_answered']}",
            flush=True,
        )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--network", action="append", help="of models.networks.catalogue; may be repeated"
    )
    parser.add_argument(
        "--provider", action="append", choices=("cpu", "cuda", "tensorrt"), help="may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="at saturation, for each service in a round"
    )
    parser.add_argument(
        "--concurrency", type=int, default=64, help="requests at a time at saturation"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--checked",
        type=int,
        default=50,
        help="photos to which all services must give the same probabilities",
    )
    parser.add_argument("--photos", type=int, help="take at most so many")
    parser.add_argument(
        "--data", type=Path, default=shared_data(), help="folder that holds imagenet-500"
    )
    parser.add_argument("--out", type=Path, default=results_file("gpu_serve"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
