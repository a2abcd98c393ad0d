"""Throughput at saturation of all contenders, in interleaved rounds, as ratios within a round."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.record import spread
from benchmarks.serving.contenders import (
    BENTOML,
    FASTAPI,
    LITSERVE,
    LOOP,
    PEERS,
    Contender,
    Loop,
    Measured,
    loop,
    loupe,
    peer,
)
from benchmarks.serving.ground import Ground

OURS = "Loupe, 2 workers"
WANTED: Mapping[str, float] = {LOOP: 0.90, FASTAPI: 1.25, LITSERVE: 1.8, BENTOML: 1.8}
"""Contender -> the target for our throughput divided by its throughput."""
Round = dict[str, Measured]


def compare(
    ground: Ground, *, rounds: int, seconds: float, concurrency: int, checked: int
) -> dict[str, Any]:
    """Measure every contender in each of *rounds* for *seconds*.

    First all must give the same classes to *checked* photos.
    """
    with tempfile.TemporaryDirectory(prefix="loupe-serving-") as place, ExitStack() as stack:
        folder = Path(place)
        ceiling = stack.enter_context(
            loop(folder / "loop", model=ground.model, package=ground.package, data=ground.data)
        )
        starts = [
            loupe(
                folder / f"loupe-{workers}",
                store=ground.store,
                photos=ground.photos,
                workers=workers,
            )
            for workers in (1, 2)
        ]
        starts += [
            peer(name, folder / f"peer-{number}", model=ground.model, photos=ground.photos)
            for number, name in enumerate(PEERS)
        ]
        servers = [stack.enter_context(start) for start in starts]
        contenders: list[Contender | Loop] = [ceiling, *servers]
        distinct = check_agreement(servers, checked)
        print(
            f"all {len(servers)} servers give the same top-1 to {checked} photos ({distinct}"
            " classes)\n"
        )
        measured = [
            _round(contenders, number, seconds=seconds, concurrency=concurrency)
            for number in range(rounds)
        ]
    return {
        "photos": len(ground.photos),
        "same_top1": {"photos": checked, "classes": distinct},
        "concurrency": concurrency,
        "seconds": seconds,
        "rounds": [{name: asdict(one) for name, one in found.items()} for found in measured],
        "summary": summarise(measured),
        "wanted": dict(WANTED),
    }


def check_agreement(servers: Sequence[Contender], count: int) -> int:
    """The likeliest classes of the first *count* photos.

    Raises `SystemExit` unless all *servers* give the same.
    """
    expected = servers[0].top1(count)
    for server in servers[1:]:
        differing = [
            photo
            for photo, (ours, theirs) in enumerate(zip(expected, server.top1(count), strict=True))
            if ours != theirs
        ]
        if differing:
            raise SystemExit(
                f"{server.name} and {servers[0].name} give other classes to {len(differing)}"
                f" photos, such as number {differing[0]}"
            )
    return len(set(expected))


def _round(
    contenders: Sequence[Contender | Loop], number: int, *, seconds: float, concurrency: int
) -> Round:
    """One measurement of each, starting with another one in every round."""
    turn = number % len(contenders)
    found = {
        one.name: one.measure(seconds=seconds, concurrency=concurrency, seed=number)
        for one in (*contenders[turn:], *contenders[:turn])
    }
    print(
        f"round {number + 1}: "
        + ", ".join(f"{name} {one.per_second:.0f}/s" for name, one in found.items()),
        flush=True,
    )
    return {one.name: found[one.name] for one in contenders}


def summarise(rounds: Sequence[Round]) -> dict[str, Any]:
    """For each contender photos/s, CPU time of a photo, and our speed against it in the same round.

    `ours_cpu` is the ratio of the CPU times. It is steadier if other work uses the machine.
    """
    return {
        name: {
            "per_second": spread([found[name].per_second for found in rounds]),
            "cpu_ms": spread([found[name].cpu_ms for found in rounds]),
            "generator_us": spread([found[name].generator_us for found in rounds]),
            "not_answered": sum(
                count
                for found in rounds
                for status, count in found[name].counts.items()
                if status != "200"
            ),
            "ours": spread([found[OURS].per_second / found[name].per_second for found in rounds]),
            "ours_cpu": spread([found[name].cpu_ms / found[OURS].cpu_ms for found in rounds]),
        }
        for name in rounds[0]
    }


def print_comparison(report: dict[str, Any]) -> None:
    """The table."""
    print(
        f"\n{len(report['rounds'])} rounds of {report['seconds']:g} s, {report['concurrency']}"
        " requests at a time: median (least to greatest)\n"
    )
    print(
        f"| contender | photos/s | CPU ms a photo | not answered | {OURS}, times as fast | by CPU"
        " time | wanted |\n|---|---|---|---|---|---|---|"
    )
    for name, figures in report["summary"].items():
        wanted = f"{report['wanted'][name]:.2f}" if name in report["wanted"] else "-"
        rate, cpu, ours, ours_cpu = (
            _range(figures[key], digits)
            for key, digits in (("per_second", 0), ("cpu_ms", 2), ("ours", 2), ("ours_cpu", 2))
        )
        print(
            f"| {name} | {rate} | {cpu} | {figures['not_answered']} | {ours} | {ours_cpu} |"
            f" {wanted} |"
        )
    generator = report["summary"][OURS]["generator_us"]["median"]
    print(
        f"\nThe load generator took {generator:.0f} us of CPU a request, on the same cores; no"
        " server is billed for it."
    )


def _range(figures: dict[str, float], digits: int) -> str:
    return (
        f"{figures['median']:.{digits}f} ({figures['least']:.{digits}f} to"
        f" {figures['greatest']:.{digits}f})"
    )
