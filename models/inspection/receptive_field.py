"""Receptive fields: which pixels of the image one cell of a feature map can see.

Source: Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks",
Distill 2019. Branches that meet again are joined to the smallest field that holds both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """The receptive fields along one axis of the image, in pixels."""

    size: float
    """Pixels that one cell sees."""
    jump: float
    """Distance between the centres of neighbouring cells."""
    start: float
    """Centre of the first cell's field. The first pixel's centre is 0.5."""

    def windowed(self, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
        """After a convolution or pooling with this window."""
        reach = dilation * (kernel - 1)
        return Axis(
            self.size + reach * self.jump,
            self.jump * stride,
            self.start + (reach / 2 - padding) * self.jump,
        )

    def binned(self, cells: int, bins: int) -> Axis:
        """After averaging *cells* to *bins* as adaptive pooling does.

        The bins differ in size unless *cells* is a multiple of *bins*; this is the largest size and
        the mean distance.
        """
        largest = max(
            -(-(index + 1) * cells // bins) - index * cells // bins for index in range(bins)
        )
        first = -(-cells // bins)
        return Axis(
            self.size + (largest - 1) * self.jump,
            self.jump * cells / bins,
            self.start + (first - 1) / 2 * self.jump,
        )

    def joined(self, other: Axis) -> Axis:
        """The smallest field that holds this one and *other*, which has the same jump."""
        low = min(self.start - self.size / 2, other.start - other.size / 2)
        high = max(self.start + self.size / 2, other.start + other.size / 2)
        return Axis(high - low, self.jump, (low + high) / 2)


@dataclass(frozen=True)
class Field:
    """What the cells of one feature map see."""

    rows: Axis | None
    """Down the image; None: every cell sees the whole image."""
    columns: Axis | None
    global_context: bool = False
    """A gate (squeeze-and-excitation) or a normalisation that sees the whole image scales the map.

    The field is what a cell sees apart from that scale."""
    spatial: tuple[int, int] = (2, 3)
    """The axes of the map that run down and across the image."""

    @property
    def whole(self) -> bool:
        """Every cell sees the whole image."""
        return self.rows is None

    def region(self, row: int, column: int) -> tuple[float, float, float, float] | None:
        """Left, top, right and bottom of what the cell sees, in pixels; None: everything.

        Parts of it may lie outside the image, in the padding.
        """
        if self.rows is None or self.columns is None:
            return None
        y, x = (
            axis.start + axis.jump * cell
            for axis, cell in ((self.rows, row), (self.columns, column))
        )
        return (
            x - self.columns.size / 2,
            y - self.rows.size / 2,
            x + self.columns.size / 2,
            y + self.rows.size / 2,
        )


WHOLE = Field(None, None)
