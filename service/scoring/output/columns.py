"""The columns of the output and their values, for every format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from models.errors import ConfigError
from service.scoring.compute.unit import Record
from service.scoring.input.items import distinct, json_text

CHOICES = ("top_k", "probabilities", "embedding", "abstained", "model", "sha256")
LISTS = ("probabilities", "embedding")
ALWAYS = ("row", "path", "prediction", "probability")


@dataclass(frozen=True)
class OutputColumns:
    """The output's columns: `row`, `path`, the input's, `prediction`, `probability`, *chosen*."""

    chosen: tuple[str, ...]
    kinds: Mapping[str, str]
    """The input's columns -> `Tally.kinds`."""
    labels: tuple[str, ...]
    model: str
    abstain_threshold: float

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All column names."""
        return (*ALWAYS[:2], *self.extra_names, *ALWAYS[2:], *self.chosen)

    @cached_property
    def extra_names(self) -> list[str]:
        """Unique names for the input's columns."""
        return distinct(self.kinds, taken=(*ALWAYS, *self.chosen))

    @property
    def renamed(self) -> dict[str, str]:
        """Columns of the input that have another name in the output -> that name."""
        pairs = zip(self.kinds, self.extra_names, strict=True)
        return {name: new for name, new in pairs if new != name}


def parse_columns(text: str) -> tuple[str, ...]:
    """The columns chosen by *text*, `a,b`. Raises `ConfigError` for a name that is none of them."""
    chosen = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in chosen:
        if name not in CHOICES:
            raise ConfigError(
                f"--columns {name!r} is none of {', '.join(CHOICES)} ({', '.join(ALWAYS)} are"
                " always there)"
            )
    return chosen


def rows_of(records: Iterable[Record], columns: OutputColumns) -> Iterator[tuple[Any, ...]]:
    """The values of *columns* for each image of *records*."""
    for record in records:
        yield from zip(*columns_of(record, columns).values(), strict=True)


def columns_of(record: Record, columns: OutputColumns) -> dict[str, list[Any]]:
    """The values of each of *columns* for the images of *record*."""
    index_Nk, probability_Nk = record.arrays["top_index"], record.arrays["top_probability"]
    extras = [dict(item.extra) for _, item in record.rows]
    values: dict[str, list[Any]] = {
        "row": [row for row, _ in record.rows],
        "path": [item.path for _, item in record.rows],
        "prediction": [columns.labels[index] for index in index_Nk[:, 0].tolist()],
        "probability": list(probability_Nk[:, 0]),
        "top_k": [
            [
                {"label": columns.labels[index], "index": index, "probability": probability}
                for index, probability in zip(indices, probabilities, strict=True)
            ]
            for indices, probabilities in zip(index_Nk.tolist(), probability_Nk, strict=True)
        ],
        "abstained": (probability_Nk[:, 0] < np.float32(columns.abstain_threshold)).tolist(),
        "model": [columns.model] * len(record.rows),
        "sha256": record.sha256,
    }
    for name in LISTS:
        values[name] = list(record.arrays.get(name, ()))
    for (name, kind), new in zip(columns.kinds.items(), columns.extra_names, strict=True):
        values[new] = [_as_kind(extra.get(name), kind) for extra in extras]
    return {name: values[name] for name in columns.names}


def _as_kind(value: Any, kind: str) -> Any:  # Any: a scalar of JSON
    if value is None:
        return None
    if kind == "text":
        return value if isinstance(value, str) else json_text(value)
    return float(value) if kind == "float" else value
