"""What `loupe inspect normalisation` says and shows.

Letters used in shapes: N images, C channels, h and w cells of a map, S sets.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.inside.lessons.normalisation import Compared, Normalised, below_zero, spreads
from training.inside.lessons.part import Part, section
from training.inside.lessons.window import Floats
from training.inside.page import page
from training.inside.pictures import DIVERGING_RGB, INK, SOFT, Sheet, coloured, drawn, figures

TILE_PX = 430
HISTOGRAM_PX = 200
IMAGES, CHANNELS = 4, 8
"""Rows and columns of the picture at most."""
SET_RGB, OTHER_RGB = (230, 159, 0), (221, 226, 232)
BEFORE_RGB, AFTER_RGB = (145, 155, 168), (0, 114, 178)
"""Orange and blue. Source: Okabe and Ito, "Color Universal Design"."""
BINS = 41


def parts(compared: Compared) -> list[Part]:
    """What is said, for the terminal and the page."""
    images, channels, height, width = compared.values_NChw.shape
    return [
        Part(
            title="What is averaged together",
            sentences=(
                (
                    "A normalisation subtracts a mean from each value and divides by a standard"
                    " deviation. The four kinds differ only in which values they average."
                ),
                (
                    f"These activations are {images} image{'s' if images > 1 else ''} x {channels}"
                    f" channels x {height}x{width} places."
                ),
                *_cautions(compared),
            ),
            columns=("kind", "a set is", "sets", "values each"),
            rows=[
                [item.kind, item.over, f"{item.sets:,}", f"{item.set_size:,}"]
                for item in compared.found
            ],
        ),
        Part(
            title="What each finds",
            columns=("kind", "means", "variances", "below 0 after"),
            rows=[
                ["before", *_range_before(compared.values_NChw), _share(compared.values_NChw)],
                *(
                    [
                        item.kind,
                        _range(item.mean_S),
                        _range(item.variance_S),
                        _share(item.values_NChw),
                    ]
                    for item in compared.found
                ),
            ],
            after=(
                (
                    "The row `before` has the mean and variance of all values. Values below 0 are"
                    " what a ReLU sets to 0."
                ),
            ),
        ),
        Part(
            title="What stays different afterwards",
            columns=("kind", "between channels", "between images"),
            rows=[
                ["before", *_spread(compared.values_NChw)],
                *([item.kind, *_spread(item.values_NChw)] for item in compared.found),
            ],
            after=(
                "These are standard deviations of the means. 0 means that the difference is gone.",
                (
                    "Batch normalisation makes channels alike and keeps images different. Layer"
                    " normalisation does the opposite. Instance normalisation removes both."
                ),
                (
                    "A trained layer then multiplies each channel by a learned scale and adds a"
                    " learned shift. They are left out here."
                ),
                (
                    "In use, batch normalisation takes mean and variance from training, not from"
                    " these images. Export folds it into the convolution before it."
                ),
            ),
        ),
    ]


def normalisation_sheet(compared: Compared) -> Sheet:
    """The sets of each kind over the real maps, and below each its histogram."""
    found = compared.found
    images, channels = compared.values_NChw.shape[:2]
    shown = f"{min(IMAGES, images)} of {images} images and {min(CHANNELS, channels)} of {channels}"
    return Sheet(
        title=compared.title,
        lines=(
            (
                f"Rows are images, columns are channels: {shown} channels. Values inside an orange"
                " frame are averaged together."
            ),
            (
                "Maps: blue is below 0, white 0, red above. Histograms of the framed values: grey"
                " before, blue after. No unit."
            ),
        ),
        tiles=[_tile(compared, item) for item in found],
        labels=[f"{item.kind}: {item.over}; {_moved(compared, item)}" for item in found],
        tile_px=TILE_PX,
        columns=2,
    )


def normalisation_picture(compared: Compared) -> Image.Image:
    """The sheet as one picture."""
    return drawn(normalisation_sheet(compared))


def normalisation_page(compared: Compared) -> str:
    """The page."""
    first, *others = parts(compared)
    picture = figures(normalisation_sheet(compared))
    return page(compared.title, [], [section(first, picture), *map(section, others)])


def _cautions(compared: Compared) -> list[str]:
    images, _, height, width = compared.values_NChw.shape
    told = []
    if "convolution" in compared.layer.kind:
        told.append(
            "If export has folded a batch normalisation into this layer, they are already after it."
        )
    if images == 1:
        told.append("With one image, batch and instance normalisation are the same. Give more.")
    if height * width == 1:
        told.append("A map has one value here, so instance normalisation leaves 0 of it.")
    return told


def _framed_set(compared: Compared, item: Normalised) -> int:
    """The set that the picture shows: that of the strongest of the maps that are drawn."""
    strength_NC = np.abs(compared.values_NChw[:IMAGES, : CHANNELS // 2]).mean(axis=(2, 3))
    image, channel = np.unravel_index(int(strength_NC.argmax()), strength_NC.shape)
    return int(item.sets_NC[image, channel])


def _tile(compared: Compared, item: Normalised) -> Image.Image:
    """The maps with the set's frames, and below them its histogram."""
    tile = Image.new("RGB", (TILE_PX, TILE_PX), (255, 255, 255))
    tile.paste(_sets(compared, item), (0, 0))
    tile.paste(_histogram(compared, item), (0, TILE_PX - HISTOGRAM_PX))
    return tile


def _sets(compared: Compared, item: Normalised) -> Image.Image:
    """The maps as a table, with frames around those of one set."""
    values_NChw = compared.values_NChw[:IMAGES, :CHANNELS]
    inside_NC = item.sets_NC[:IMAGES, :CHANNELS] == _framed_set(compared, item)
    reach = max(float(np.percentile(np.abs(values_NChw), 99.0)), 1e-12)
    cell = TILE_PX // CHANNELS
    height = cell * len(values_NChw)
    tile = Image.new("RGB", (TILE_PX, height), (255, 255, 255))
    draw = ImageDraw.Draw(tile)
    for row, column in np.ndindex(inside_NC.shape):
        left, top = column * cell, row * cell
        inside = bool(inside_NC[row, column])
        frame = SET_RGB if inside else OTHER_RGB
        draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=frame)
        small = coloured(values_NChw[row, column], -reach, reach, DIVERGING_RGB)
        edge = 4 if inside else 2
        side = cell - 1 - 2 * edge
        shrunk = small.resize((side, side), Image.Resampling.NEAREST)
        if not inside:
            shrunk = Image.blend(shrunk, Image.new("RGB", shrunk.size, (255, 255, 255)), 0.6)
        tile.paste(shrunk, (left + edge, top + edge))
    return tile


def _of_set(compared: Compared, item: Normalised) -> tuple[Floats, Floats]:
    """The values of the framed set, before and after."""
    inside_NC = item.sets_NC == _framed_set(compared, item)
    return compared.values_NChw[inside_NC].ravel(), item.values_NChw[inside_NC].ravel()


def _histogram(compared: Compared, item: Normalised) -> Image.Image:
    """How often each value occurs in the set, before and after, on one axis."""
    before, after = _of_set(compared, item)
    reach = float(max(np.percentile(np.abs(before), 99.5), np.percentile(np.abs(after), 99.5), 1.0))
    base, top = HISTOGRAM_PX - 25, 8
    tile = Image.new("RGB", (TILE_PX, HISTOGRAM_PX), (255, 255, 255))
    draw = ImageDraw.Draw(tile)
    for values, colour, filled in ((before, BEFORE_RGB, True), (after, AFTER_RGB, False)):
        counts, _ = np.histogram(np.clip(values, -reach, reach), BINS, (-reach, reach))
        heights = counts / counts.max() * (base - top)
        step = TILE_PX / BINS
        line = [(0.0, float(base))]
        for index, tall in enumerate(heights):
            line += [(index * step, base - tall), ((index + 1) * step, base - tall)]
        line.append((float(TILE_PX), float(base)))
        if filled:
            draw.polygon(line, fill=colour)
        else:
            draw.line(line, fill=colour, width=3)
    draw.line((0, base, TILE_PX, base), fill=INK)
    for share, anchor in ((-1.0, "la"), (0.0, "ma"), (1.0, "ra")):
        at = ((share + 1.0) / 2 * TILE_PX, base + 5)
        draw.text(at, f"{share * reach:.3g}", SOFT, ImageFont.load_default(14), anchor=anchor)
    return tile


def _moved(compared: Compared, item: Normalised) -> str:
    before, after = _of_set(compared, item)
    # Adding 0 turns -0 into 0.
    mean, variance = round(float(after.mean()), 6) + 0.0, round(float(after.var()), 3)
    return f"mean {before.mean():.3g} to {mean:g}, variance {before.var():.3g} to {variance:g}"


def _range(values_S: Floats) -> str:
    low, high = float(values_S.min()), float(values_S.max())
    return f"{low:.3g}" if len(values_S) == 1 else f"{low:.3g} to {high:.3g}"


def _range_before(values_NChw: Floats) -> tuple[str, str]:
    return f"{values_NChw.mean():.3g}", f"{values_NChw.var():.3g}"


def _share(values_NChw: Floats) -> str:
    return f"{below_zero(values_NChw):.0%}"


def _spread(values_NChw: Floats) -> tuple[str, str]:
    channels, images = (round(part, 12) for part in spreads(values_NChw))
    return f"{channels:.3g}", f"{images:.3g}"
