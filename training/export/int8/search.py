"""The search for an int8 model inside its accuracy budget.

It goes step by step, each step keeping what the last one found: how ranges are chosen, equalised
channels, corrected biases, then the kind of weight that this class of CPU computes well, and last,
if nothing is inside yet, which layers stay in float. Of what is inside the budget the fastest is
taken. docs/quantisation.md tells why it goes in this order.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.machine import cpu_class
from models.runtime.answer_graph import answering_part
from training.export.int8.bias import correct
from training.export.int8.candidate import Bench, Candidate, Settings, Weights, scores
from training.export.int8.equalise import equalise
from training.export.int8.graph import SCORES, WEIGHTED, Graph
from training.export.int8.paired import with_safe_pairs
from training.export.int8.pixels import CENTRED, take_pixels
from training.export.int8.qdq import OPERATORS, quantised
from training.export.int8.ranges import METHODS, ranges
from training.export.int8.statistics import Batches, Spread, spreads
from training.export.int8.unsigned import with_unsigned_weights

SATURATING = ("x86-64", "x86-64-avx2", "x86-64-avx512")
"""CPU classes whose signed kernels add two products in 16 bits."""
SENSITIVITY_IMAGES = 16
FLOAT_COUNTS = (1, 2, 4, 8, 16, 24)
ALIKE_SPEED = 0.03
"""Of two candidates whose speed differs by less than this share, the nearer one to fp32 is taken."""


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
        """As this, but with nothing taken: what was chosen here failed a later gate."""
        assert self.taken is not None
        ended = (
            f"the search ended at {self.taken.name}, {_against(self.taken)} on the images that"
            " judge candidates"
        )
        reason = f"fp32 is kept: {ended}, but {why}"
        return dataclasses.replace(
            self,
            taken=None,
            reason=reason,
            path=tuple(replace(candidate, taken=False) for candidate in self.path),
        )

    def as_json(self) -> dict[str, object]:
        """The content of the report's `quantisation`."""
        record = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("taken", "path")
        }
        return {
            **record,
            "taken": None if self.taken is None else self.taken.name,
            "path": [candidate.as_json() for candidate in self.path],
        }


class _Workshop:
    """Makes candidates of one float model, measuring it only once for each state of its weights."""

    def __init__(self, encoded: bytes, batches: Batches) -> None:
        self._batches = batches
        self._sample_NHWC = _first(batches, SENSITIVITY_IMAGES)
        self._expected_NK = scores(answering_part(encoded)[0], self._sample_NHWC)
        self._plain = Graph.of(encoded)
        self.pixels = take_pixels(self._plain)
        self._measured: dict[bool, tuple[Graph, dict[str, Spread]]] = {}

    def measured(self, *, equalised: bool) -> tuple[Graph, dict[str, Spread]]:
        """The float graph, equalised or not, and the spread of its values."""
        if equalised not in self._measured:
            if equalised:
                plain, measured = self.measured(equalised=False)
                graph = Graph.of(plain.encoded())
                equalise(graph, measured)
            else:
                graph = self._plain
            self._measured[equalised] = graph, spreads(graph, measurable(graph), self._batches)
        return self._measured[equalised]

    def make(self, settings: Settings) -> bytes:
        """The int8 model."""
        graph, found = self.measured(equalised=settings.equalised)
        encoded = quantised(
            graph,
            ranges(found, settings.method),
            pixels=self.pixels,
            in_float=settings.in_float,
            per_channel=settings.per_channel,
            reduce_range=settings.weights == "7-bit",
        )
        if settings.weights == "pair-safe":
            encoded = with_safe_pairs(encoded, graph)
        if settings.bias_corrected:
            encoded = correct(encoded, graph, found)
        return with_unsigned_weights(encoded) if settings.weights == "unsigned" else encoded

    def distance(self, encoded: bytes) -> float:
        """Mean squared difference from fp32 of the logits of a few calibration images."""
        return float(
            (
                (scores(answering_part(encoded)[0], self._sample_NHWC) - self._expected_NK) ** 2
            ).mean()
        )

    def layers(self) -> list[str]:
        """Nodes with a weight, in order."""
        return [
            node.name
            for node in self._plain.needed_for(SCORES)
            if node.op_type in WEIGHTED and self._plain.weight(node) is not None
        ]


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

    *watch* sees each candidate as it is done.

    After *time_budget_s* no further candidate is begun; the first one always is.
    """
    started = time.monotonic()
    steps = _Steps(_Workshop(encoded, batches), bench, watch)
    late = False
    for _ in steps.walk():
        if late := time.monotonic() - started > time_budget_s:
            break
    taken = _best([candidate for candidate in steps.path if candidate.inside])
    marked = tuple(
        dataclasses.replace(candidate, taken=candidate is taken) for candidate in steps.path
    )
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


class _Steps:
    """The walk through the candidates.

    `walk` gives its caller the chance to stop between any two pieces of work.
    """

    def __init__(
        self, workshop: _Workshop, bench: Bench, watch: Callable[[Candidate], None]
    ) -> None:
        self._workshop = workshop
        self._bench = bench
        self._watch = watch
        self.path: list[Candidate] = []

    def walk(self) -> Iterator[None]:
        """Try one candidate after the other; what was tried is in `path`."""
        saturates = cpu_class() in SATURATING
        # Ranges are compared with weights that compute exactly, or saturation would be taken for a
        # fault of the ranges.
        settings = Settings(weights="pair-safe" if saturates else "signed")
        best = self._tried(settings)
        yield
        for other in [replace(settings, method=method) for method in METHODS[1:]]:
            best = min(best, self._tried(other), key=_distance)
            yield
        assert best.settings is not None
        best = min(best, self._tried(replace(best.settings, equalised=True)), key=_distance)
        yield
        assert best.settings is not None
        best = min(best, self._tried(replace(best.settings, bias_corrected=True)), key=_distance)
        yield
        assert best.settings is not None
        # What signed weights lose depends on the network; unsigned ones lose nothing but speed.
        others: tuple[Weights, ...] = ("signed", "7-bit", "unsigned") if saturates else ()
        for weights in others:
            self._tried(replace(best.settings, weights=weights))
            yield
        self._tried(replace(best.settings, per_channel=False))
        if not any(candidate.inside for candidate in self.path):
            yield
            yield from self._in_float(best.settings)

    def _in_float(self, settings: Settings) -> Iterator[None]:
        """The layers that int8 hurts most stay in float, more and more of them, until the budget is
        kept.
        """
        layers, harm = self._workshop.layers(), {}
        for layer in layers:
            others = tuple(other for other in layers if other != layer)
            harm[layer] = self._workshop.distance(
                self._workshop.make(replace(settings, in_float=others))
            )
            yield
        for count in FLOAT_COUNTS:
            if (
                count >= len(layers)
                or self._tried(replace(settings, in_float=_most(harm, count))).inside
            ):
                return
            yield

    def _tried(self, settings: Settings) -> Candidate:
        candidate = self._bench.judge(str(settings), self._workshop.make(settings), settings)
        self.path.append(candidate)
        self._watch(candidate)
        return candidate


def measurable(graph: Graph) -> list[str]:
    """Values whose range int8 may need: what floating-point nodes before the scores give, but for
    what a ReLU behind replaces.
    """
    found: list[str] = []
    floats = {name for name, dimensions in graph.floats().items() if dimensions > 1}
    for node in graph.needed_for(SCORES):
        # Networks reckon with shapes and places too, by the same operators, in whole numbers.
        if node.op_type not in OPERATORS or node.output[0] not in floats:
            continue
        for value in node.output:
            reader = graph.only_reader(value)
            if value != SCORES and (reader is None or reader.op_type not in ("Clip", "Relu")):
                found.append(value)
        # Operators that stay in float make values that others read in integers.
        found += [
            value
            for value in node.input[:2]
            if value in floats and _made_in_float(graph, value) and value not in found
        ]
    return found


def _first(batches: Batches, count: int) -> NDArray[np.uint8]:
    found: list[NDArray[np.uint8]] = []
    for pixels_NHWC in batches():
        found.append(pixels_NHWC)
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count]


def _made_in_float(graph: Graph, value: str) -> bool:
    maker = graph.maker(value)
    return (
        maker is not None
        and maker.op_type not in (*OPERATORS, "Cast", "Transpose")
        and value != CENTRED
    )


def _distance(candidate: Candidate) -> float:
    # NaN is as far away as can be.
    return math.inf if math.isnan(candidate.distance) else candidate.distance


def _most(harm: Mapping[str, float], count: int) -> tuple[str, ...]:
    return tuple(sorted(harm, key=lambda layer: -harm[layer])[:count])


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The nearest to fp32 of the fastest kind; kinds that are as good as equally fast count as one."""
    if not candidates:
        return None
    kinds: defaultdict[object, list[float]] = defaultdict(list)
    for candidate in candidates:
        assert candidate.settings is not None
        kinds[candidate.settings.kind].append(candidate.speedup)
    # One measurement of a kind is noisier than several: the median of all that was measured stands
    # for it.
    speed = {kind: statistics.median(found) for kind, found in kinds.items()}
    enough = (1.0 - ALIKE_SPEED) * max(speed.values())
    fast = [
        candidate
        for candidate in candidates
        if candidate.settings is not None and speed[candidate.settings.kind] >= enough
    ]
    return min(fast, key=_distance)


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
        best = min(path, key=lambda candidate: (candidate.loss_points, _distance(candidate)))
        return (
            f"fp32 is kept: none of {len(path)} int8 candidates is inside the accuracy budget of"
            f" {budget_points:g} points ({ended}); the best loses {best.loss_points:.2f} points"
            f" ({best.name})"
        )
    inside = sum(candidate.inside for candidate in path)
    slower = "; it is not faster than fp32 here, only smaller" if taken.speedup <= 1.0 else ""
    return (
        f"{taken.name}: the fastest of the {inside} of {len(path)} candidates inside the budget of"
        f" {budget_points:g} points ({ended}), {_against(taken)}, {taken.speedup:.2f} times as"
        f" fast{slower}"
    )
