"""What `loupe inspect convolution --backward` says."""

from __future__ import annotations

from collections.abc import Sequence

from training.inside.lessons.backward import Backward, Term
from training.inside.lessons.convolution import Lesson, arriving_here, passed_back
from training.inside.lessons.numbers import Matrix, short
from training.inside.lessons.part import Part
from training.inside.lessons.pooling import PooledPatch


def backward_parts(found: Lesson) -> list[Part]:
    """What is shown of the way back; nothing if it was not asked for."""
    if found.arriving is None:
        return []
    if found.back is None:
        return [_pooling_back(found, found.arriving.label)]
    back = found.back
    parts = [_arriving(back), _kernel(found, back), _input(found, back)]
    return [*parts, *([pooled_part(found.pooled)] if found.pooled else [])]


def pooled_part(pooled: PooledPatch) -> Part:
    """What max and average pooling of a patch give and pass back."""
    height, width = pooled.values_hw.shape
    return Part(
        title="What pooling would pass back",
        sentences=(
            (
                f"Here are {height}x{width} values of this filter's map, from row {pooled.row} and"
                f" column {pooled.column}. Pooling 2x2 makes {height // 2}x{width // 2} of them."
                " Say that a gradient of 1 arrives at each pooled value."
            ),
            "Max pooling passes it to one winner. Average pooling gives each value a quarter.",
        ),
        matrices=[
            [
                Matrix(title="values", values_hw=pooled.values_hw),
                Matrix(title="max pooling", values_hw=pooled.maxima_hw),
                Matrix(title="average", values_hw=pooled.means_hw),
            ],
            [
                Matrix(title="max passes back", values_hw=pooled.max_back_hw),
                Matrix(title="average passes back", values_hw=pooled.mean_back_hw),
            ],
        ],
    )


def _arriving(back: Backward) -> Part:
    return Part(
        title=f"Backwards: what moves the score of {back.label!r}",
        sentences=(
            f"The score (logit) of the answer {back.label!r} is {short(back.score)}.",
            (
                "A gradient says how fast it grows with a number inside the network. Training does"
                " the same with a loss."
            ),
            _arrives(back.arriving),
        ),
    )


def _arrives(gradient: float) -> str:
    if gradient:
        return f"At this output value a gradient of {short(gradient)} arrives."
    return (
        "At this output value arrives 0. What follows passes nothing back from here: a ReLU that is"
        " shut, for example, or a maximum that another place has won."
    )


def _pooling_back(found: Lesson, label: str) -> Part:
    """What a pooling layer passes back from the window's value."""
    share = (
        "The winner gets all of it, the others nothing."
        if found.values.kind == "max pooling"
        else "Each value that was averaged gets an equal share."
    )
    outside_hw = ~found.window.inside_hw
    return Part(
        title=f"Backwards: what moves the score of {label!r}",
        sentences=(_arrives(arriving_here(found)), share),
        matrices=[
            [
                Matrix(title="patch", values_hw=found.window.patch_Ihw[0], outside_hw=outside_hw),
                Matrix(title="passed back", values_hw=passed_back(found), outside_hw=outside_hw),
            ]
        ],
    )


def _kernel(found: Lesson, back: Backward) -> Part:
    channel, row, column = back.weight
    part = found.window.channels.index(channel)
    bias = (
        "The gradient of the bias is the sum of the map of gradients that arrive:"
        f" {short(back.bias)}."
    )
    return Part(
        title="The kernel's gradient: a sum over every place where it was used",
        sentences=(
            (
                f"The weight at row {row}, column {column} for input channel {channel} was used for"
                f" {back.places:,} output values. Each adds its gradient times the input that the"
                " weight met there."
            ),
        ),
        matrices=[
            [
                Matrix(
                    title=f"gradient of the kernel, channel {channel}",
                    values_hw=back.kernel_Ihw[part],
                )
            ]
        ],
        columns=("output row, column", "gradient", "input", "product"),
        rows=_weight_rows(back, float(back.kernel_Ihw[part, row, column])),
        after=(bias,),
    )


def _weight_rows(back: Backward, total: float) -> list[list[str]]:
    rows = [_row(term) for term in back.weight_terms]
    more = back.places - len(rows)
    rest = total - sum(term.product for term in back.weight_terms)
    other = [[f"{more:,} other places", "", "", short(rest)]] if more else []
    return [*rows, *other, ["sum", "", "", short(total)]]


def _input(found: Lesson, back: Backward) -> Part:
    channel, row, column = back.received
    mine = sum(term.product for term in back.input_terms)
    terms = sorted(back.input_terms, key=lambda term: (term.row, term.column))
    return Part(
        title="What the input gets: a sum over the windows that covered it",
        sentences=(
            (
                f"The input value at channel {channel}, row {row}, column {column} lies in"
                f" {len(terms)} window{'s' if len(terms) > 1 else ''} of this filter. Each adds its"
                " gradient times the weight that met the value."
            ),
        ),
        columns=("output row, column", "gradient", "weight", "product"),
        rows=[*_shortened(terms), ["sum", "", "", short(mine)]],
        after=(
            (f"With all filters that read this channel it gets {short(back.input_all)}."),
            (
                "Checked with torch's own gradients of this layer: the largest difference is"
                f" {back.difference:.0e} of the largest gradient."
            ),
        ),
    )


def _shortened(terms: Sequence[Term], most: int = 9) -> list[list[str]]:
    rows = [_row(term) for term in terms[:most]]
    rest = sum(term.product for term in terms[most:])
    more = [[f"{len(terms) - most} other windows", "", "", short(rest)]]
    return [*rows, *(more if len(terms) > most else [])]


def _row(term: Term) -> list[str]:
    return [
        f"{term.row}, {term.column}",
        f"{short(term.arriving)}",
        f"{short(term.factor)}",
        f"{short(term.product)}",
    ]
