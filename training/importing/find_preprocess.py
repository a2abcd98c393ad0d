"""Which preprocessing a model was trained with, found by trying the usual ones on labelled images.

Letters used in shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

import numpy as np
from numpy.typing import NDArray

from models.package.manifest import Interval
from training.data.loader import evaluation_batches, limited
from training.data.predict import BATCH
from training.data.source import Example
from training.evaluate.metrics import wilson
from training.importing.declared import USUAL, Declared
from training.importing.foreign import Foreign
from training.importing.package import Understood, understood
from training.importing.proof import model_input, source_scores
from training.importing.signature import Signature
from training.progress import steps

MOST_IMAGES = 200
"""More would hardly change the order, and each is answered some fifteen times."""
SWAPPED = {"rgb": "bgr", "bgr": "rgb"}
FILTERS = ("bilinear", "bicubic")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One preprocessing, and how often the model is right with it."""

    words: tuple[str, ...]
    """The values of --preprocess."""
    found: Understood
    top1: Interval


def tried(
    foreign: Foreign, labels: tuple[str, ...] | None, said: Declared, examples: Sequence[Example]
) -> list[str]:
    """A table of the usual preprocessings by accuracy, best first, and what to do next.

    First normalisations and channel orders are tried, then the ways to resize with the best. What
    is *said* stays. Raises as `understood` does.
    """
    shown = limited(examples, MOST_IMAGES)
    pixels = [(name, USUAL[name]) for name in USUAL]
    swapped = [
        (f"{name} channels={order}", Declared.model_validate({"channels": order}).over(usual))
        for name, usual in pixels
        if (order := SWAPPED[usual.channels or "rgb"])
    ]
    first = _all_tried(foreign, labels, said, [*pixels, *swapped], shown)
    best = max(first, key=lambda trial: trial.top1.value)
    second = _all_tried(foreign, labels, said, _geometries(best), shown)
    return _table([*first, *second], images=len(shown))


def _geometries(best: Trial) -> list[tuple[str, Declared]]:
    """The ways to resize with the normalisation of *best*, which was tried with the usual one."""
    text = " ".join(best.words)
    name, _, order = text.partition(" channels=")
    pixels = USUAL[name]
    if order:
        pixels = Declared.model_validate({"channels": order}).over(pixels)
    side = min(best.found.spec.crop)
    ways = [
        (f"{text} resize={resize}{extra} filter={kind}", resize, size, kind)
        for resize, extra, size in (
            ("shortest_side", "", None),
            ("shortest_side", f" resize_size={side}", side),
            ("stretch", "", None),
            ("letterbox", "", None),
        )
        for kind in FILTERS
    ]
    return [
        (
            words,
            Declared.model_validate({"resize": resize, "resize_size": size, "filter": kind}).over(
                pixels
            ),
        )
        for words, resize, size, kind in ways
        if (resize, size, kind) != ("shortest_side", None, FILTERS[0])
    ]


def _all_tried(
    foreign: Foreign,
    labels: tuple[str, ...] | None,
    said: Declared,
    candidates: Sequence[tuple[str, Declared]],
    examples: Sequence[Example],
) -> list[Trial]:
    trials = []
    for words, declared in steps(candidates, total=len(candidates), title="try", images=1):
        found = understood(foreign, labels, said.over(declared))
        if found.signature.channels == 1 and "channels=" in words:
            continue
        right = _right(found, examples)
        trials.append(Trial(words=tuple(words.split()), found=found, top1=right))
    return trials


def _right(found: Understood, examples: Sequence[Example]) -> Interval:
    scores, hits = source_scores(found.foreign, found.signature), 0
    labels_N = np.array([example.label for example in examples])
    for start, pixels_NHWC in zip(
        range(0, len(examples), BATCH), evaluation_batches(examples, found.spec, BATCH), strict=True
    ):
        answers_N = _answers(
            found.signature, scores(model_input(pixels_NHWC, found.signature, found.how))
        )
        hits += int((answers_N == labels_N[start : start + len(answers_N)]).sum())
    return wilson(hits, len(examples))


def _answers(signature: Signature, scores_NK: NDArray[np.float32]) -> NDArray[np.intp]:
    """The likeliest class; a single score says yes above one half, or above 0 if it is a logit."""
    if signature.classes > 1:
        return np.asarray(scores_NK.argmax(axis=1))
    limit = 0.5 if scores_NK.min() >= 0.0 and scores_NK.max() <= 1.0 else 0.0
    return np.asarray(scores_NK[:, 0] > limit).astype(np.intp)


def _table(trials: Sequence[Trial], *, images: int) -> list[str]:
    ordered = sorted(trials, key=lambda trial: -trial.top1.value)
    best = ordered[0]
    lines = [
        f"{trial.top1.value:7.2%}  {trial.top1.low:6.1%} to {trial.top1.high:6.1%}  "
        f"{' '.join(trial.words)}"
        for trial in ordered
    ]
    close = sum(trial.top1.high >= best.top1.low for trial in ordered) - 1
    doubt = f"; {close} others lie within its interval" if close else ""
    chosen = " ".join(f"--preprocess {quote(word)}" for word in best.words)
    return [
        f"right on {images} images, with 95 % intervals",
        *lines,
        f"best: {chosen}{doubt}",
    ]
