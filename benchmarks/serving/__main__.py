"""Serving: Loupe against FastAPI, LitServe, BentoML's usual pattern and a loop without a server.

    .venv/bin/python -m benchmarks.serving [compare] [--rounds 3] [--seconds 4]
                                           [--data ../shared/data] [--out FILE]
    .venv/bin/python -m benchmarks.serving latency|overload|reload|memory|soak [...]

The second form measures Loupe alone under stress. The model is a built MobileNetV3-small with 1000
classes and random weights. The photos are those of imagenet-500 in random order. All servers and
the load generator share the cores of this machine. Within a round one contender runs at a time and
the others are stopped (SIGSTOP), so both sides of a ratio meet the same conditions. `compare` takes
about three minutes by default.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import command, machine, results_file, shared_data, versions, write
from benchmarks.serving.comparison import compare, print_comparison
from benchmarks.serving.ground import ground
from benchmarks.serving.scenarios import memory, overload, print_verdict, reload
from benchmarks.serving.soak import soak
from benchmarks.serving.tail import latency

PEER_PACKAGES = (
    "bentoml",
    "fastapi",
    "litserve",
    "pillow",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
)
SECONDS = {
    "compare": 4.0,
    "latency": 5.0,
    "overload": 5.0,
    "reload": 4.0,
    "memory": 10.0,
    "soak": 300.0,
}
"""Default of --seconds: of a measurement, between two changes of version, or of the whole soak."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one scenario, print its figures, write its JSON."""
    options = _options(arguments)
    with ground(options.data, limit=options.photos) as found:
        report = _run(options, found)
    if options.scenario == "compare":
        print_comparison(report)
    else:
        print_verdict(options.scenario, report)
    releases = versions() | {name: version(name) for name in PEER_PACKAGES}
    write(
        {
            "command": command("serving", arguments),
            "machine": machine(),
            "versions": releases,
            **report,
        },
        options.out,
    )


def _run(options: argparse.Namespace, found: Any) -> dict[str, Any]:
    seconds, workers, rounds = options.seconds, options.workers, options.rounds
    match options.scenario:
        case "compare":
            return compare(
                found,
                rounds=rounds,
                seconds=seconds,
                concurrency=options.concurrency,
                checked=options.checked,
            )
        case "latency":
            return latency(found, workers=workers, rounds=rounds, seconds=seconds)
        case "overload":
            return overload(
                found,
                workers=workers,
                rounds=rounds,
                seconds=seconds,
                deadline_ms=options.deadline_ms,
            )
        case "reload":
            return reload(found, workers=workers, changes=options.changes, seconds=seconds)
        case "memory":
            return memory(found, workers=workers, seconds=seconds)
        case _:
            return soak(
                found, workers=workers, seconds=seconds, slice_s=options.slice, rate=options.rate
            )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", nargs="?", choices=list(SECONDS), default="compare")
    parser.add_argument(
        "--data", type=Path, default=shared_data(), help="folder that holds imagenet-500"
    )
    parser.add_argument("--photos", type=int, help="take at most so many photos")
    parser.add_argument("--rounds", type=_positive(int), default=3)
    parser.add_argument("--seconds", type=_positive(float), help=f"default by scenario: {SECONDS}")
    parser.add_argument(
        "--workers",
        type=_positive(int),
        default=1,
        help="of Loupe, in every scenario but compare, which measures 1 and 2",
    )
    parser.add_argument(
        "--concurrency", type=_positive(int), default=32, help="compare: requests at a time"
    )
    parser.add_argument(
        "--checked",
        type=_positive(int),
        default=100,
        help="compare: photos to which all must give the same class",
    )
    parser.add_argument(
        "--deadline-ms",
        type=_positive(float),
        default=1000.0,
        help="overload: the service's deadline",
    )
    parser.add_argument(
        "--changes", type=_positive(int), default=3, help="reload: moves of the production alias"
    )
    parser.add_argument(
        "--slice",
        type=_positive(float),
        default=15.0,
        help="soak: seconds between two looks at the workers",
    )
    parser.add_argument(
        "--rate",
        type=_positive(float),
        help="soak: requests a second; default: 60 %% of saturation, measured first",
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or SECONDS[options.scenario]
    options.out = options.out or results_file(f"serving_{options.scenario}")
    return options


def _positive(kind: type[int] | type[float]) -> Any:  # Any: argparse calls it and takes what comes
    def number(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    number.__name__ = kind.__name__
    return number


if __name__ == "__main__":
    # Otherwise a benchmark that is told to stop would leave its servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
