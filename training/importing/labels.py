"""Labels from a file, in the order of the model's outputs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.errors import ConfigError
from models.files import read_file
from models.messages import os_error_text

MEANING = (
    "one label a line, a JSON list, or a JSON object of index to label, in the order of the"
    " model's outputs"
)


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels in *path*: text with one in each line, or JSON. Raises `ConfigError`."""
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"labels {path} are not UTF-8; expected {MEANING}") from error
    except OSError as error:
        raise ConfigError(f"labels {os_error_text(error, path)}; expected {MEANING}") from error
    if path.suffix == ".json" or text.lstrip()[:1] in ("{", "["):
        return _of_json(text, origin=str(path))
    labels = tuple(line.strip() for line in text.splitlines())
    while labels and not labels[-1]:
        labels = labels[:-1]
    return unique(labels, origin=str(path))


def _of_json(text: str, *, origin: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"labels {origin} are not JSON: {error}; expected {MEANING}") from error
    if isinstance(found, Mapping):
        return of_mapping(found, origin=origin)
    if not isinstance(found, list):
        raise ConfigError(f"labels {origin} hold {type(found).__name__}; expected {MEANING}")
    return unique([_word(entry) for entry in found], origin=origin)


def of_mapping(found: Mapping[Any, Any], *, origin: str) -> tuple[str, ...]:
    """The labels of {index: label}, as TorchServe, Hugging Face and Ultralytics write them.

    Raises `ConfigError` for a gap. {label: index}, as Keras has it, is turned round.
    """
    if found and all(isinstance(value, int) for value in found.values()):
        found = {value: key for key, value in found.items()}
    try:
        by_index = {int(index): _word(label) for index, label in found.items()}
    except ValueError as error:
        raise ConfigError(
            f"labels {origin}: {error}; expected an object of index to label"
        ) from error
    if sorted(by_index) != list(range(len(by_index))):
        missing = next(index for index in range(len(by_index)) if index not in by_index)
        raise ConfigError(
            f"labels {origin} have no index {missing}; expected 0 to {len(by_index) - 1}, each once"
        )
    return unique([by_index[index] for index in range(len(by_index))], origin=origin)


def unique(labels: Sequence[str], *, origin: str) -> tuple[str, ...]:
    """*labels*, where those that occur twice have their index behind them.

    ImageNet has two classes called crane. Raises `ConfigError` for fewer than two, and empty ones.
    """
    if len(labels) < 2:
        raise ConfigError(
            f"labels {origin} hold {len(labels)} label{'' if len(labels) == 1 else 's'}; expected"
            f" two or more: {MEANING}"
        )
    if "" in labels:
        raise ConfigError(
            f"labels {origin} have no name for index {list(labels).index('')}; expected {MEANING}"
        )
    counted = Counter(labels)
    return tuple(
        f"{label} ({index})" if counted[label] > 1 else label for index, label in enumerate(labels)
    )


def _word(entry: Any) -> str:  # Any: JSON
    """A label; of [WordNet id, name], as TorchServe's examples have it, the name."""
    if isinstance(entry, list) and entry:
        return str(entry[-1]).strip()
    return str(entry).strip()
