"""The network as a row of blocks, for a page and as a picture: space shrinks, channels grow.

Sizes are those of the drawing, in pixels, from the top left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image, ImageDraw

from models.inspection.layers import Layer
from training.inside.pictures import INK, MARGIN_PX, RAMP_RGB, SOFT, blank_sheet, font

WIDTH, HEIGHT = 960, 330
LABELS = 44
"""Height of the two lines below the blocks."""
TALLEST = 200.0
"""Height of the image's block."""
SLANT = 0.35
"""How far a block's side goes to the right and up, as a share of the map's width."""
LEAST = 2.0
SHARPER = 3
"""The picture is drawn so many times as large and made smaller: edges become smooth."""
IMAGE_RGB = (140, 148, 158)
HOW_DRAWN = (
    "Each block is a feature map. Height and depth are its size, to scale; its thickness grows with"
    " the square root of the channels. Maps of one size have one colour."
)
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One map of the drawing."""

    text: str
    """The layer's name and shape."""
    left: float
    middle: float
    """Height of its centre."""
    thickness: float
    tall: float
    deep: float
    rgb: tuple[int, int, int]
    below: tuple[str, str] | None
    """Size and channels, where the size is new."""
    label_left: float

    def faces(self) -> list[tuple[list[Point], tuple[int, int, int]]]:
        """The front, the top and the side, each with its colour."""
        left, right = self.left, self.left + self.thickness
        top, bottom = self.middle - self.tall / 2, self.middle + self.tall / 2
        back = self.deep * SLANT
        return [
            ([(left, top), (right, top), (right, bottom), (left, bottom)], _mixed(self.rgb, 0.0)),
            (
                [(left, top), (left + back, top - back), (right + back, top - back), (right, top)],
                _mixed(self.rgb, 0.45),
            ),
            (
                [
                    (right, top),
                    (right + back, top - back),
                    (right + back, bottom - back),
                    (right, bottom),
                ],
                _mixed(self.rgb, 0.2),
            ),
        ]


def funnel_svg(layers: Sequence[Layer], image_size: tuple[int, int]) -> str:
    """The blocks for a page. Pointing at one tells its layer."""
    parts = []
    for block in _blocks(layers, image_size):
        faces = "".join(
            f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}"'
            f' fill="rgb{rgb}"/>'
            for corners, rgb in block.faces()
        )
        parts.append(f"<g><title>{escape(block.text)}</title>{faces}</g>")
        if block.below:
            x, y = block.label_left, HEIGHT - LABELS + 6
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="36" height="3" fill="rgb{block.rgb}"/>'
                f'<text x="{x:.1f}" y="{y + 18}">{block.below[0]}</text>'
                f'<text x="{x:.1f}" y="{y + 34}">{block.below[1]}</text>'
            )
    maps = _maps(layers)
    heights = [image_size[0], *(layer.shape[1] for layer in maps)]
    return (
        f'<svg class="funnel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="Space shrinks from {heights[0]} to {heights[-1]} cells a side, channels grow'
        f' from 3 to {maps[-1].shape[0] if maps else 3}">{"".join(parts)}</svg>'
    )


def funnel_picture(
    layers: Sequence[Layer], image_size: tuple[int, int], *, title: str, lines: Sequence[str]
) -> Image.Image:
    """The blocks on a sheet with *title* and *lines*."""
    found, start = blank_sheet(WIDTH + 2 * MARGIN_PX, HEIGHT, title=title, lines=lines)
    large = Image.new("RGB", (WIDTH * SHARPER, HEIGHT * SHARPER), (255, 255, 255))
    draw = ImageDraw.Draw(large)
    blocks = list(_blocks(layers, image_size))
    for block in blocks:
        for corners, rgb in block.faces():
            draw.polygon(
                [(x * SHARPER, y * SHARPER) for x, y in corners], rgb, (255, 255, 255), width=1
            )
    found.paste(large.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), (MARGIN_PX, start))
    draw = ImageDraw.Draw(found)
    for block in blocks:
        if block.below:
            x, y = MARGIN_PX + block.label_left, start + HEIGHT - LABELS + 6
            draw.rectangle((x, y, x + 36, y + 2), block.rgb)
            draw.text((x, y + 6), block.below[0], INK, font(12))
            draw.text((x, y + 22), block.below[1], SOFT, font(12))
    return found


def _blocks(layers: Sequence[Layer], image_size: tuple[int, int]) -> Iterator[Block]:
    """From left to right, so that each covers what lies behind it."""
    maps = _maps(layers)
    shapes = [(3, *image_size), *(layer.shape for layer in maps)]
    names = ["image", *(layer.name for layer in maps)]
    sizes = list(dict.fromkeys(shape[1:] for shape in shapes))
    scale = TALLEST / max(image_size)
    behind = max(LEAST, image_size[1] * scale) * SLANT
    gap = min(6.0, 0.3 * WIDTH / len(shapes))
    room = WIDTH - behind - gap * len(shapes)
    thickness = min(6.0, room / sum(shape[0] ** 0.5 for shape in shapes))
    left, free = 0.0, 0.0
    for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        channels, height, width = shape
        new = index == 0 or shapes[index - 1][1:] != shape[1:]
        texts = (_size(height, width), f"{channels} ch") if new else None
        label_left = max(left, free)
        if texts:
            free = label_left + max(map(font(12).getlength, texts)) + 8
        yield Block(
            text=f"{name}: {'x'.join(map(str, shape))}",
            left=left,
            middle=(HEIGHT - LABELS + TALLEST * SLANT) / 2,
            thickness=max(LEAST, thickness * channels**0.5),
            tall=max(LEAST, height * scale),
            deep=max(LEAST, width * scale),
            rgb=IMAGE_RGB if index == 0 else _colour(sizes.index(shape[1:]), len(sizes)),
            below=texts,
            label_left=label_left,
        )
        left += thickness * channels**0.5 + gap


def _maps(layers: Sequence[Layer]) -> list[Layer]:
    """The layers whose map has another shape than the one before; no gates."""
    maps = [
        layer
        for layer in layers
        if len(layer.shape) == 3 and not (layer.field is not None and layer.field.whole)
    ]
    return [
        layer
        for previous, layer in zip([None, *maps], maps, strict=False)
        if previous is None or previous.shape != layer.shape
    ]


def _size(height: int, width: int) -> str:
    return f"{height} px" if height == width else f"{height}x{width} px"


def _colour(step: int, steps: int) -> tuple[int, int, int]:
    """Of the ramp without its lightest end, which is pale on white."""
    at = step / max(1, steps - 1) * (len(RAMP_RGB) - 2)
    low = min(int(at), len(RAMP_RGB) - 3)
    red, green, blue = (
        round(a + (b - a) * (at - low))
        for a, b in zip(RAMP_RGB[low], RAMP_RGB[low + 1], strict=True)
    )
    return red, green, blue


def _mixed(rgb: tuple[int, int, int], white: float) -> tuple[int, int, int]:
    red, green, blue = (round(part + (255 - part) * white) for part in rgb)
    return red, green, blue
