"""Records as rows: the output's columns, whichever file they go to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from models.errors import ConfigError
from service.scoring.compute.unit import Record
from service.scoring.input.values import distinct, json_text

CHOICES = ("top_k", "probabilities", "embedding", "abstained", "model", "sha256")
DEFAULT_COLUMNS = ("abstained", "top_k", "model")
ALWAYS = ("row", "path", "prediction", "probability")


@dataclass(frozen=True)
class Layout:
    """The columns of an output, in order: `row`, `path`, those of the input, `prediction`,
    `probability`, those chosen.
    """

    columns: tuple[str, ...]
    extra: tuple[tuple[str, str], ...]
    """(name in the input, kind) of the input's columns."""
    labels: tuple[str, ...]
    model: str
    abstain_threshold: float

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All column names."""
        return (*ALWAYS[:2], *self.extra_names, *ALWAYS[2:], *self.columns)

    @cached_property
    def extra_names(self) -> list[str]:
        """Names of the input's columns in the output, none of them like another column's."""
        return distinct((name for name, _ in self.extra), taken=(*ALWAYS, *self.columns))

    @property
    def renamed(self) -> dict[str, str]:
        """Columns of the input that are called otherwise in the output -> how."""
        return {
            name: new
            for (name, _), new in zip(self.extra, self.extra_names, strict=True)
            if new != name
        }


def parse_columns(text: str) -> tuple[str, ...]:
    """The chosen columns of *text*, `a,b`. Raises `ConfigError` naming those that there are."""
    chosen = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in chosen:
        if name not in CHOICES:
            raise ConfigError(
                f"--columns {name!r} is none of {', '.join(CHOICES)} ({', '.join(ALWAYS)} are"
                " always there)"
            )
    return chosen


def columns_of(record: Record, layout: Layout) -> dict[str, list[Any]]:
    """The values of each of the layout's columns for the images of *record*."""
    index_Nk, probability_Nk = record.arrays["top_index"], record.arrays["top_probability"]
    extras = [dict(item.extra) for _, item in record.rows]
    columns: dict[str, list[Any]] = {
        "row": [row for row, _ in record.rows],
        "path": [item.path for _, item in record.rows],
    }
    for (name, kind), new in zip(layout.extra, layout.extra_names, strict=True):
        columns[new] = [_as_kind(extra.get(name), kind) for extra in extras]
    columns["prediction"] = [layout.labels[index] for index in index_Nk[:, 0].tolist()]
    columns["probability"] = list(probability_Nk[:, 0])
    for name in layout.columns:
        columns[name] = list(_chosen(name, record, layout))
    return columns


def _chosen(name: str, record: Record, layout: Layout) -> Iterator[Any]:
    index_Nk, probability_Nk = record.arrays["top_index"], record.arrays["top_probability"]
    match name:
        case "top_k":
            for indices, probabilities in zip(index_Nk.tolist(), probability_Nk, strict=True):
                yield [
                    {"label": layout.labels[index], "index": index, "probability": probability}
                    for index, probability in zip(indices, probabilities, strict=True)
                ]
        case "abstained":
            yield from (probability_Nk[:, 0] < np.float32(layout.abstain_threshold)).tolist()
        case "model":
            yield from [layout.model] * len(record.rows)
        case "sha256":
            yield from record.sha256
        case _:
            yield from record.arrays[name]


def _as_kind(value: Any, kind: str) -> Any:  # Any: a scalar of JSON
    if value is None:
        return None
    if kind == "text":
        return value if isinstance(value, str) else json_text(value)
    return float(value) if kind == "float" else value
