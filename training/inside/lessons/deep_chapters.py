"""Chapters 5 to 8 of the tour: feature maps, receptive fields, evidence, and training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp
from shlex import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.inspection.feature_maps import feature_maps, session_with_outputs
from models.inspection.layers import Layer
from models.inspection.plan import spatial_sizes
from training.inside.evidence import ANSWER, Explained, explain, explain_sheet, sentences
from training.inside.lessons.chapters import Pupil
from training.inside.lessons.part import Chapter, Part
from training.inside.lessons.training_step import TrainingStep, training_step
from training.inside.maps import Maps, features, features_sheet, seen_by_one_cell
from training.inside.pictures import Sheet
from training.inside.subject import InspectedNetwork
from training.inside.top_patches import box_of, cut

DEPTHS = 3
"""Layers that the tour stops at."""
MAPS = 8
"""Pictures of each."""
PATCHES = 4
ANSWERS = 3
SHOWN = 10
"""Layers in the table of gradients."""


def depths(subject: InspectedNetwork) -> list[Layer]:
    """An early, a middle and a late layer: the last ones before the map shrinks."""
    first = next(index for index, layer in enumerate(subject.layers) if layer.kernel)
    sizes = {
        layer.shape[1]: layer
        for layer in subject.layers[first:]
        if len(layer.shape) == 3 and layer.field and not layer.field.whole and layer.shape[1] > 1
    }
    known = {size for size, _ in spatial_sizes(subject.layers, subject.image_size[0])}
    last = [layer for size, layer in sizes.items() if size in known]
    places = np.linspace(0, len(last) - 1, min(DEPTHS, len(last))).round().astype(int)
    return [last[place] for place in places]


def looked_at(pupil: Pupil) -> list[Maps]:
    """The feature maps of the layers of `depths`."""
    return [features(pupil.subject, pupil.image, layer.name) for layer in depths(pupil.subject)]


def maps_chapter(pupil: Pupil, found: Sequence[Maps]) -> Chapter:
    """What layers answer, from shallow to deep."""
    last = found[-1]
    return Chapter(
        part=Part(
            title="Feature maps: from edges to parts",
            sentences=(
                (
                    "Each filter makes a map: where in the photo is what it looks for? Early maps"
                    " look like drawings of your photo. Late maps are small: each cell says that a"
                    " part is there, and no longer how it looks."
                ),
                (
                    "Between convolutions stands an activation. ReLU, for example, keeps what is"
                    " above 0 and sets all else to 0. Without it, two convolutions in a row would"
                    " do no more than one."
                ),
            ),
            columns=("layer", "maps", "cells", "at or below 0"),
            rows=[
                [
                    maps.layer.name,
                    str(len(maps.values_Chw)),
                    "x".join(map(str, maps.values_Chw.shape[1:])),
                    f"{(maps.values_Chw <= 0.0).mean():.0%}",
                ]
                for maps in found
            ],
        ),
        sheets=[features_sheet(pupil.subject, maps, most=MAPS) for maps in found],
        question=f"How many of the {len(last.values_Chw)} maps of {last.layer.name} find nothing?",
        answer=(
            f"{last.dead} of them are nowhere above 0 in your photo. What they look for is not in"
            " it, or they look for nothing."
            if last.dead
            else "None: each of them is above 0 somewhere in your photo."
        ),
        commands=[
            f"inspect features {pupil.arguments} --layer {quote(maps.layer.name)}"
            for maps in found[1:]
        ],
    )


def fields_chapter(pupil: Pupil, found: Sequence[Maps]) -> Chapter:
    """How much of the photo a cell sees, and which patches excite filters."""
    height, width = pupil.subject.image_size
    whole = next((layer for layer in pupil.subject.layers if _sees_all(layer, height, width)), None)
    return Chapter(
        part=Part(
            title="Receptive fields: how much one cell sees",
            sentences=(
                (
                    "A cell of the first map sees as many pixels as the kernel is large. The next"
                    " layer reads several such cells, so its cells see more of the photo."
                ),
                (
                    "The last column is measured on your photo: the square that holds 95 % of what"
                    " moves the middle cell. It is usually smaller than the field."
                ),
            ),
            columns=("layer", "sees, pixels", "moved by, pixels"),
            rows=[[maps.layer.name, _side(maps.layer), _moved(maps)] for maps in found],
            after=(
                (
                    "The page shows, for each layer, the patches of your photo that excite its"
                    " strongest filters most."
                ),
            ),
        ),
        sheets=[_fields_sheet(found), *map(_patches_sheet, found)],
        question=f"From which layer on can a cell see the whole photo of {height}x{width} pixels?",
        answer=(
            f"From {whole.name} ({whole.kind}) on."
            if whole is not None
            else "From none: no layer's cells see all of it."
        ),
        commands=[
            (
                f"inspect patches {pupil.model} --data PHOTOS --layer {quote(found[-1].layer.name)}"
                f" --filter {found[-1].strongest[0]}"
            )
        ],
    )


def evidence_chapter(pupil: Pupil) -> Chapter:
    """What the answer is, and what it rests on."""
    subject = pupil.subject
    explained = explain(subject, pupil.image, None)
    best = min(explained.found, key=lambda item: item.deletion.score)
    beats = best.deletion.score < explained.random[0]
    return Chapter(
        part=Part(
            title="Evidence: why this answer",
            sentences=(
                (
                    f"The network knows {len(subject.labels)} classes and must choose among them,"
                    " whatever the photo shows. Its probabilities add up to 1."
                ),
            ),
            columns=("class", "probability"),
            rows=_answers(subject, explained),
            after=(
                (
                    "Three methods mark what the answer rests on. Each is measured: blur what it"
                    " marks, and see how fast the probability falls (deletion)."
                ),
                *sentences(explained),
            ),
        ),
        # What the sheet says stands below it already.
        sheets=[replace(explain_sheet(subject, explained), lines=())],
        question="Which map explains this answer best, by deletion?",
        answer=(
            f"{best.method.capitalize()}, with {best.deletion.score:.3f}. A random map has"
            f" {explained.random[0]:.3f}"
            + ("." if beats else ", which is as good: trust none of these maps.")
        ),
        commands=[f"inspect explain {pupil.arguments}"],
    )


def training_chapter(pupil: Pupil) -> Chapter:
    """What training changes, and what is often frozen."""
    step, why_not = training_step(pupil.subject, pupil.first.values.pixels_HWC)
    layers = [layer for layer in pupil.subject.layers if layer.parameters]
    total = sum(layer.parameters for layer in layers)
    last = next(layer for layer in reversed(layers) if layer.multiply_adds)
    return Chapter(
        part=Part(
            title="Training: what changes, and what is frozen",
            sentences=(
                (
                    "Training compares the answer with the right label. The loss says how wrong it"
                    " is, and its gradient says for each weight which way is better."
                ),
                (
                    "Early layers find edges, which every photo has. When there are few photos they"
                    " are often frozen: kept as they are, while later layers learn. `loupe train`"
                    " calls this `freeze`."
                ),
                *(_pull_sentences(pupil, step) if step else [why_not]),
            ),
            columns=("layer", "parameters", "gradient / weights") if step else (),
            rows=_pulls(step) if step else (),
            after=(
                (
                    "The last column divides the size (norm) of the gradient by that of the"
                    " weights. Some layers between are left out."
                ),
            )
            if step
            else (),
        ),
        question=f"All layers but {last.name} are frozen. What share of the parameters is trained?",
        answer=f"{last.parameters:,} of {total:,}: {100 * last.parameters / total:.2g} %.",
        commands=["train --data PHOTOS --recipe linear_probe --out RUN"],
    )


def _fields_sheet(found: Sequence[Maps]) -> Sheet:
    shown = [(maps, tile) for maps in found for _, tile in seen_by_one_cell(maps)]
    return Sheet(
        title="",
        lines=(
            (
                "The photo as the middle cell of each map sees it. The frame is the receptive"
                " field; the light inside is what really moves the cell."
            ),
        )
        if shown
        else (),
        tiles=[tile for _, tile in shown],
        labels=[maps.layer.name for maps, _ in shown],
        tile_px=200,
    )


def _patches_sheet(maps: Maps) -> Sheet:
    """The patch of the photo that excites each of the strongest filters most."""
    tiles, labels = [], []
    for channel in maps.strongest[:PATCHES]:
        map_hw = maps.values_Chw[channel]
        row, column = (int(part) for part in divmod(int(map_hw.argmax()), map_hw.shape[1]))
        box = box_of(maps.layer, row, column, maps.pixels_HWC.shape)
        tiles.append(cut(Image.fromarray(maps.pixels_HWC), box))
        labels.append(f"filter {channel}: {map_hw[row, column]:.3g}")
    return Sheet(
        title="",
        lines=(f"What excites the strongest filters of {maps.layer.name} most in your photo.",),
        tiles=tiles,
        labels=labels,
        tile_px=140,
    )


def _sees_all(layer: Layer, height: int, width: int) -> bool:
    """Whether the middle cell of the layer's map sees every pixel."""
    if layer.field is None or len(layer.shape) != 3:
        return False
    region = layer.field.region(layer.shape[1] // 2, layer.shape[2] // 2)
    if region is None:
        return True
    left, top, right, bottom = region
    return left <= 0 and top <= 0 and right >= width and bottom >= height


def _side(layer: Layer) -> str:
    region = layer.field.region(0, 0) if layer.field else None
    return "all" if region is None else f"{region[3] - region[1]:g}x{region[2] - region[0]:g}"


def _moved(maps: Maps) -> str:
    return (
        "unknown"
        if maps.effective is None
        else f"{maps.effective.side_px}x{maps.effective.side_px}"
    )


def _answers(subject: InspectedNetwork, explained: Explained) -> list[list[str]]:
    probabilities_K = _probabilities(subject, explained.pixels_HWC)
    best = np.argsort(-probabilities_K)[:ANSWERS]
    return [[subject.labels[index], f"{probabilities_K[index]:.1%}"] for index in best]


def _probabilities(subject: InspectedNetwork, pixels_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    assert subject.model is not None
    session = session_with_outputs(subject.model, [ANSWER])
    [probabilities_NK] = feature_maps(session, pixels_HWC[np.newaxis])
    found_K: NDArray[np.float32] = probabilities_NK[0]
    return found_K


def _pull_sentences(pupil: Pupil, step: TrainingStep) -> list[str]:
    """The loss, and why it does not follow from the answer of a calibrated model."""
    before = f"{exp(-step.loss):.1%}"
    answered = f"{_probabilities(pupil.subject, pupil.first.values.pixels_HWC)[step.index]:.1%}"
    calibrated = (
        f"That is the loss of a probability of {before}. The model answers {answered}: its"
        " calibration divides the scores by a temperature, and training does without it."
    )
    return [
        (
            f"Say that the right label of your photo were {step.label!r}, the second answer. The"
            f" loss would be {step.loss:.3g}."
        ),
        *([calibrated] if before != answered else []),
        "It would pull at the layers like this:",
    ]


def _pulls(step: TrainingStep) -> list[list[str]]:
    places = np.linspace(0, len(step.pulls) - 1, min(SHOWN, len(step.pulls))).round().astype(int)
    return [
        [layer.name, f"{layer.parameters:,}", f"{pull:.3g}"]
        for layer, pull in (step.pulls[place] for place in places)
    ]
