"""The picture and the page of `loupe inspect gradients` for one photo."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.inside.bars import Bar, bars_picture, bars_svg, scale_of
from training.inside.flow.backward import Flow, PoolingFlow
from training.inside.flow.units import Survey
from training.inside.page import Section, page
from training.inside.pictures import (
    DIVERGING_RGB,
    GROUND,
    RAMP_RGB,
    coloured,
    cut,
    grid,
    image_tag,
    png,
)

FLOW_COLUMNS = ("layer", "kind", "gradient at the output", "gradient at the weights")
UNIT_COLUMNS = ("layer", "units", "zeros on the photo", "units silent on it", "dead on all photos")
TILE_PX = 168
POOLINGS_DRAWN = (
    "Of each pooling the channel where most comes back: the map that it reads, the gradient that"
    " arrives at its output, and the gradient that it passes back. Blue is below 0, white 0, red"
    " above. Max pooling gives all to the winner of each window, average pooling gives everyone a"
    " share."
)
HOW_DRAWN = (
    "Blue: length of the gradient of the loss with respect to a layer's output. Orange: with"
    " respect to its weights. Layers run from the image to the answer."
)


def sentences(flow: Flow, survey: Survey) -> list[str]:
    """The loss, how even the flow is, dead ReLUs, and what poolings pass back."""
    norms = [item.output_norm for item in flow.layers if item.output_norm > 0.0]
    weighted = [item for item in flow.layers if item.weight_norm is not None] or flow.layers
    first, last = weighted[0], weighted[-1]
    calibrated = (
        f"The model answers {flow.answered:.1%}: its calibration divides the scores by a"
        " temperature. The loss does without it, as in training."
    )
    differs = f"{flow.answered:.1%}" != f"{flow.probability:.1%}"
    lines = [
        f"Cross-entropy for {flow.label} ({flow.probability:.1%}): {flow.loss:.3g} nats.",
        *([calibrated] if differs else []),
        (
            f"The gradient's length is {last.output_norm:.2g} at {last.layer} and"
            f" {first.output_norm:.2g} at {first.layer}; the largest is {max(norms):.2g} and the"
            f" smallest {min(norms):.2g}."
        ),
        *_about_relus(survey),
    ]
    return [*lines, *(_about_pooling(item) for item in flow.poolings)]


def flow_picture(title: str, flow: Flow, survey: Survey) -> Image.Image:
    """The flow by layer; below it what each pooling passes back."""
    bars = _bars(flow)
    upper = bars_picture(
        bars, scale_of(bars), title=title, lines=[*sentences(flow, survey), HOW_DRAWN]
    )
    return _stacked(upper, poolings_picture(flow)) if flow.poolings else upper


def poolings_picture(flow: Flow) -> Image.Image:
    """For each pooling: its input, the gradient that arrives, and what it passes back."""
    tiles, labels = [], []
    blank = Image.new("RGB", (1, 1), GROUND)
    for row, item in enumerate(flow.poolings):
        high, low = float(item.input_hw.max()), min(0.0, float(item.input_hw.min()))
        tiles += [
            blank if row else Image.fromarray(flow.pixels_HWC),
            coloured(item.input_hw, low, high, RAMP_RGB),
            _signed(item.arrives_hw),
            _signed(item.passed_hw),
        ]
        labels += [
            "" if row else "input of the network",
            cut(f"{item.layer}, channel {item.channel}", TILE_PX),
            f"arrives, ±{np.abs(item.arrives_hw).max():.1g}",
            f"passed back, ±{np.abs(item.passed_hw).max():.1g}",
        ]
    return grid(
        tiles,
        labels,
        title="What each pooling passes back",
        lines=(POOLINGS_DRAWN,),
        columns=4,
        tile_px=TILE_PX,
    )


def flow_page(title: str, flow: Flow, survey: Survey) -> str:
    """The page with bars, poolings, ReLUs and all figures."""
    bars = _bars(flow)
    sections = [
        Section(
            title="What flows back, layer by layer",
            picture=bars_svg(bars, scale_of(bars), label="Length of the gradient by layer"),
            caption=HOW_DRAWN,
        )
    ]
    if flow.poolings:
        picture = image_tag(png(poolings_picture(flow)), "What each pooling passes back")
        sections.append(Section(title="Poolings", picture=picture))
    if survey.units:
        sections.append(
            Section(
                title="ReLUs that give 0",
                text="A unit is a channel of a map, or one value. A dead unit learns nothing.",
                columns=UNIT_COLUMNS,
                rows=[
                    [
                        item.layer,
                        str(item.units),
                        f"{item.zero_share:.1%}",
                        str(item.silent),
                        "" if item.dead is None else str(item.dead),
                    ]
                    for item in survey.units
                ],
            )
        )
    rows = [
        [
            item.layer,
            item.kind,
            f"{item.output_norm:.3e}",
            "" if item.weight_norm is None else f"{item.weight_norm:.3e}",
        ]
        for item in flow.layers
    ]
    sections.append(Section(title="Figures", columns=FLOW_COLUMNS, rows=rows))
    return page(title, sentences(flow, survey), sections)


def flow_json(title: str, flow: Flow, survey: Survey) -> dict[str, Any]:
    """Everything but the maps of the poolings."""
    return {
        "title": title,
        "label": flow.label,
        "probability": flow.probability,
        "loss": flow.loss,
        "layers": [asdict(item) for item in flow.layers],
        "relus": [asdict(item) for item in survey.units],
        "photos": survey.photos,
        "unreadable": list(survey.unreadable),
        "poolings": [
            {
                "layer": item.layer,
                "kind": item.kind,
                "channel": item.channel,
                "share_of_cells": item.share,
            }
            for item in flow.poolings
        ],
    }


def _about_relus(survey: Survey) -> list[str]:
    if not survey.units:
        return ["The graph has no ReLU, so none can be dead."]
    worst = max(survey.units, key=lambda item: item.zero_share)
    silent, units = sum(item.silent for item in survey.units), sum(i.units for i in survey.units)
    lines = [
        (
            f"On this photo {silent} of {units} ReLU units are silent everywhere; most zeros:"
            f" {worst.zero_share:.0%} in {worst.layer}."
        )
    ]
    if survey.photos:
        dead = sum(item.dead or 0 for item in survey.units)
        lines.append(f"{dead} of {units} units are dead: 0 on all {survey.photos} photos.")
    return lines


def _about_pooling(item: PoolingFlow) -> str:
    return (
        f"{item.layer} ({item.kind}) passes the gradient to {item.share:.1%} of the cells it reads."
    )


def _bars(flow: Flow) -> list[Bar]:
    """Layers with weights, and poolings. The table has all layers."""
    return [
        Bar(name=item.layer, value=item.output_norm, second=item.weight_norm)
        for item in flow.layers
        if item.weight_norm is not None or "pooling" in item.kind
    ]


def _signed(values_hw: NDArray[np.float32]) -> Image.Image:
    reach = max(float(np.abs(values_hw).max()), 1e-30)
    return coloured(values_hw / reach, -1.0, 1.0, DIVERGING_RGB)


def _stacked(upper: Image.Image, lower: Image.Image) -> Image.Image:
    width = max(upper.width, lower.width)
    whole = Image.new("RGB", (width, upper.height + lower.height), GROUND)
    whole.info["title"] = upper.info["title"]
    whole.paste(upper, (0, 0))
    whole.paste(lower, (0, upper.height))
    ImageDraw.Draw(whole).line((16, upper.height, width - 16, upper.height), (221, 226, 232))
    return whole
