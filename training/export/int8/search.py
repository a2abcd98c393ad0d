"""The search for an int8 model inside its accuracy budget.

It goes step by step, and each step keeps what the last one found: how ranges are chosen, corrected
biases, and last, if nothing is inside the budget yet, which layers stay in float. Of the candidates
inside the budget the one nearest to fp32 is taken. docs/quantisation.md explains the order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np

from models.machine import cpu_class
from models.runtime.answer_graph import answering_part
from training.export.int8.bias import correct_biases
from training.export.int8.candidate import Bench, Candidate, Settings, scores
from training.export.int8.graph import SCORES, Graph
from training.export.int8.pair_safe import with_safe_pairs
from training.export.int8.pixels import CENTRED, take_pixels
from training.export.int8.qdq import OPERATORS, quantised
from training.export.int8.statistics import METHODS, Batches, ranges, spreads

SATURATING = ("x86-64", "x86-64-avx2", "x86-64-avx512")
"""CPU classes whose signed kernels add two products in 16 bits."""
SENSITIVITY_IMAGES = 16
FLOAT_COUNTS = (1, 2, 4, 8, 16, 24)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where the search ended, and the way there."""

    taken: Candidate | None
    """The int8 model; None: nothing was inside the budget."""
    reason: str
    """Why this one, or why fp32 is kept."""
    path: tuple[Candidate, ...]
    """fp32, and every candidate in the order in which they were tried."""
    budget_points: float
    cpu_class: str
    calibration_images: int
    judging_images: int
    seconds: float

    def refused(self, why: str) -> Found:
        """The same search with nothing taken: its choice failed a later gate."""
        assert self.taken is not None
        return replace(
            self,
            taken=None,
            reason=f"fp32 is kept: the search ended at {self.taken.name}, {_against(self.taken)} on"
            f" the images that judge candidates, but {why}",
            path=tuple(replace(candidate, taken=False) for candidate in self.path),
        )

    def as_json(self) -> dict[str, object]:
        """The content of the report's `quantisation`."""
        return vars(self) | {
            "taken": None if self.taken is None else self.taken.name,
            "path": [candidate.as_json() for candidate in self.path],
        }


class _Workshop:
    """Makes candidates of one float model, which it measures once."""

    def __init__(self, encoded: bytes, batches: Batches) -> None:
        self._reference = answering_part(encoded)[0]
        self._graph = Graph.of(encoded)
        self._pixels = take_pixels(self._graph)
        self._spreads = spreads(self._graph, measurable(self._graph), batches)
        self._batches = batches

    def make(self, settings: Settings) -> bytes:
        """The int8 model."""
        encoded = quantised(
            self._graph,
            ranges(self._spreads, settings.method),
            pixels=self._pixels,
            in_float=settings.in_float,
        )
        if settings.pair_safe:
            encoded = with_safe_pairs(encoded, self._graph)
        if settings.bias_corrected:
            encoded = correct_biases(encoded, self._graph, self._spreads)
        return encoded

    def harms(self, settings: Settings) -> Iterator[tuple[float, str]]:
        """What each layer alone costs in int8, and the layer.

        The cost is the mean squared difference of the logits of a few calibration images from
        fp32's.
        """
        needed = self._graph.needed_for(SCORES)
        layers = [node.name for node in needed if self._graph.weight(node) is not None]
        sample_NHWC = np.concatenate(list(self._batches()))[:SENSITIVITY_IMAGES]
        expected_NK = scores(self._reference, sample_NHWC)
        for layer in layers:
            others = tuple(other for other in layers if other != layer)
            encoded = self.make(replace(settings, in_float=others))
            found_NK = scores(answering_part(encoded)[0], sample_NHWC)
            yield float(((found_NK - expected_NK) ** 2).mean()), layer


def search(
    encoded: bytes,
    bench: Bench,
    batches: Batches,
    *,
    time_budget_s: float,
    calibration_images: int,
    watch: Callable[[Candidate], None],
) -> Found:
    """What int8 makes of the fp32 model *encoded*, calibrated on *batches* and judged by *bench*.

    *watch* sees each candidate as it is done. After *time_budget_s* no further candidate is begun;
    the first one always is.
    """
    started = time.monotonic()
    workshop = _Workshop(encoded, batches)
    path: list[Candidate] = []
    late = False
    for settings in _next_settings(workshop, path):
        if path and (late := time.monotonic() - started > time_budget_s):
            break
        if settings is not None:
            judged = bench.judge(str(settings), workshop.make(settings))
            path.append(replace(judged, settings=settings))
            watch(path[-1])
    inside = [candidate for candidate in path if candidate.inside]
    taken = min(inside, key=attrgetter("distance"), default=None)
    marked = [replace(candidate, taken=candidate is taken) for candidate in path]
    return Found(
        taken=taken,
        reason=_reason(taken, marked, bench.budget_points, late=late),
        path=(bench.float_row, *marked),
        budget_points=bench.budget_points,
        cpu_class=cpu_class(),
        calibration_images=calibration_images,
        judging_images=len(bench.labels_N),
        seconds=time.monotonic() - started,
    )


def _next_settings(workshop: _Workshop, path: Sequence[Candidate]) -> Iterator[Settings | None]:
    """What to try next, after all that is in *path* by then.

    None gives the caller the chance to stop between two pieces of work.
    """
    for method in METHODS:
        yield Settings(method=method, pair_safe=cpu_class() in SATURATING)
    yield replace(min(path, key=attrgetter("distance")).settings, bias_corrected=True)
    if any(candidate.inside for candidate in path):
        return
    # The layers that int8 hurts most stay in float, more and more of them.
    best, harms = min(path, key=attrgetter("distance")).settings, []
    for harm in workshop.harms(best):
        harms.append(harm)
        yield None
    worst_first = [layer for _, layer in sorted(harms, key=lambda harm: -harm[0])]
    for count in FLOAT_COUNTS:
        if count < len(worst_first) and not path[-1].inside:
            yield replace(best, in_float=tuple(worst_first[:count]))


def measurable(graph: Graph) -> list[str]:
    """Values whose range int8 may need: what floating-point nodes before the scores give.

    A value that a ReLU behind it replaces is none of them.
    """
    found: list[str] = []
    floats = {name for name, dimensions in graph.floats().items() if dimensions > 1}
    for node in graph.needed_for(SCORES):
        # Networks compute shapes and places too, with the same operators, in whole numbers.
        if node.op_type not in OPERATORS or node.output[0] not in floats:
            continue
        for value in node.output:
            reader = graph.only_reader(value)
            if value != SCORES and (reader is None or reader.op_type not in ("Clip", "Relu")):
                found.append(value)
        # Operators that stay in float give values that others read in integers.
        found += [
            value
            for value in node.input[:2]
            if value in floats and _made_in_float(graph, value) and value not in found
        ]
    return found


def _made_in_float(graph: Graph, value: str) -> bool:
    maker = graph.maker(value)
    return (
        maker is not None
        and maker.op_type not in (*OPERATORS, "Cast", "Transpose")
        and value != CENTRED
    )


def _against(candidate: Candidate) -> str:
    return (
        f"{abs(candidate.loss_points):.2f} points"
        f" {'above' if candidate.loss_points < 0.0 else 'below'} fp32"
    )


def _reason(
    taken: Candidate | None, path: Sequence[Candidate], budget_points: float, *, late: bool
) -> str:
    ended = "the time budget ended the search" if late else "everything was tried"
    if taken is None:
        best = min(path, key=lambda candidate: (candidate.loss_points, candidate.distance))
        return (
            f"fp32 is kept: none of {len(path)} int8 candidates is inside the accuracy budget of"
            f" {budget_points:g} points ({ended}); the best loses {best.loss_points:.2f} points"
            f" ({best.name})"
        )
    inside = sum(candidate.inside for candidate in path)
    slower = "; it is not faster than fp32 here, only smaller" if taken.speedup <= 1.0 else ""
    return (
        f"{taken.name}: the nearest to fp32 of the {inside} of {len(path)} candidates inside the"
        f" budget of {budget_points:g} points ({ended}), {_against(taken)}, {taken.speedup:.2f}"
        f" times as fast{slower}"
    )
