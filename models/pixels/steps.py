"""A record of what the preprocessing did with one image, written by the code that does it.

Nothing is recorded unless a caller asks: `to_pixels(encoded, spec, record=Record())`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image, ImageCms

if TYPE_CHECKING:  # in the edge bundle there is no pydantic
    from models.pixels.containers import Container

TURNED = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored and turned by 90 degrees anticlockwise",
    6: "turned by 90 degrees clockwise",
    7: "mirrored and turned by 90 degrees clockwise",
    8: "turned by 90 degrees anticlockwise",
}
"""EXIF orientation -> what makes the picture upright."""


@dataclass(frozen=True)
class Step:
    """One step, and the size after it."""

    step: str
    """`decode`, `orient`, `colour`, `resize`, `crop` or `border`."""
    size: tuple[int, int]
    """Width and height in pixels."""
    sentence: str
    scale: str | None = None
    """Of a reduced decode: `1/2`, `1/4` or `1/8`."""
    box: tuple[int, int, int, int] | None = None
    """Of a crop: left, top, right and bottom in the resized picture.

    Of a border: where the picture lies in the model's input."""


@dataclass
class Record:
    """What happened to one image, in order."""

    format: str = ""
    bytes: int = 0
    size: tuple[int, int] = (0, 0)
    """Width and height of the file's pixels as stored."""
    mode: str = ""
    """Pillow's mode of the decoded pixels, such as `RGB`, `L` or `CMYK`."""
    orientation: int = 1
    """EXIF's, 1 to 8; also where the package does not apply it."""
    colour_profile: str | None = None
    """Description in the file's ICC profile; None without a profile."""
    steps: list[Step] = field(default_factory=list)
    crop_in_photo: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """The model's input in the upright photo: left, top, right, bottom as shares of its sides.

    Below 0 or above 1 where the input has a border."""

    def opened(self, image_format: str, encoded_bytes: int, container: Container) -> None:
        """The header was read."""
        self.format, self.bytes = image_format, encoded_bytes
        self.size = (container.width, container.height)
        self.orientation = container.orientation
        self.colour_profile = None if container.profile is None else _description(container.profile)

    def decoded(self, image: Image.Image) -> None:
        """The pixels are there, as stored."""
        self.mode = image.mode
        reduced = self.format == "JPEG" and image.size != self.size
        scale = f"1/{round(self.size[0] / image.width)}" if reduced else None
        how = (
            f"at {scale} of its size, which is still larger than the resize needs"
            if scale
            else "at its full size"
        )
        self._add(
            "decode",
            image.size,
            f"The {self.format} file of {_px(self.size)} was decoded {how}: {_px(image.size)}.",
            scale=scale,
        )

    def coloured(
        self, before: Image.Image, after: Image.Image, *, by_profile: bool, laid: Sequence[int] = ()
    ) -> None:
        """The pixels are sRGB; *laid* is the colour under transparent ones, if there are any."""
        parts = []
        if by_profile:
            parts.append(f"converted from {self.colour_profile or 'its colour profile'} to sRGB")
        elif before.mode != "RGB":
            parts.append(f"converted from mode {before.mode} to RGB")
        if laid:
            parts.append(f"laid on the colour {tuple(laid)}, because they are transparent in part")
        if parts:
            sentence = f"The pixels were {' and '.join(parts)}."
        elif self.colour_profile is not None:
            sentence = (
                f"Nothing was converted: the pixels of {self.colour_profile!r} count as sRGB."
            )
        else:
            sentence = "Nothing was converted: without a colour profile, pixels count as sRGB."
        self._add("colour", after.size, sentence)

    def oriented(self, image: Image.Image, orientation: int) -> None:
        """The picture is upright."""
        if orientation in TURNED:
            turned = TURNED[orientation]
            sentence = f"The picture was {turned}, as its EXIF orientation {orientation} asks."
        elif self.orientation in TURNED:
            sentence = f"EXIF orientation {self.orientation} was ignored, as the package says."
        else:
            sentence = "The picture is stored upright."
        self._add("orient", image.size, sentence)

    def resized(self, size: tuple[int, int], *, resize: str, resample: str) -> None:
        """The picture has the package's size before the crop."""
        rule = {
            "shortest_side": f"so that its short side has {min(size)} pixels",
            "stretch": "to the model's input, whatever its proportions",
            "letterbox": "so that all of it fits into the model's input",
        }[resize]
        self._add("resize", size, f"It was resized {rule}: {_px(size)}, by {resample}.")

    def cropped(
        self, window: tuple[int, int, int, int], size: tuple[int, int], *, bordered: bool
    ) -> None:
        """*window* of the resized picture of *size* is the model's input."""
        left, top, right, bottom = window
        width, height = size
        self.crop_in_photo = (left / width, top / height, right / width, bottom / height)
        given = (right - left, bottom - top)
        if bordered:
            box = (-left, -top, width - left, height - top)
            sentence = f"A border fills what the picture leaves of the input's {_px(given)}."
            self._add("border", given, sentence, box=box)
            return
        share = min(1.0, given[0] * given[1] / (width * height))
        sentence = (
            "All of it is the model's input."
            if given == size
            else f"The middle {_px(given)} are the model's input: {share:.0%} of it."
        )
        self._add("crop", given, sentence, box=window)

    def _add(
        self,
        step: str,
        size: tuple[int, int],
        sentence: str,
        *,
        scale: str | None = None,
        box: tuple[int, int, int, int] | None = None,
    ) -> None:
        self.steps.append(Step(step, size, sentence, scale, box))


def _description(profile: bytes) -> str:
    """The profile's own name; `unreadable` for a damaged one, which is ignored."""
    with suppress(ImageCms.PyCMSError, OSError, ValueError):
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.getProfileDescription(opened).strip() or "unnamed"
    return "unreadable"


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels"
