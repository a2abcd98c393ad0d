"""What a client may ask of an answer, by query parameters: `top_k`, `threshold`, `explain`,
`explain_class`, `embedding`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from models.errors import BadRequest, OutputUnavailable
from service.engine.classifier import Classifier

MAX_TOP_K = 1000
DEFAULT_TOP_K = 5
QUERY_OPTIONS = ("top_k", "threshold", "explain", "explain_class", "embedding", "model", "version")
SHARE = re.compile(r"(0?\.[0-9]{1,17}|[01](\.[0-9]{0,17})?)")
ExplanationPart = Literal["grid", "overlay"]
EXPLANATIONS: dict[str, tuple[ExplanationPart, ...]] = {
    "grid": ("grid",),
    "overlay": ("overlay",),
    "grid,overlay": ("grid", "overlay"),
    "overlay,grid": ("grid", "overlay"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What each image of a request is asked for."""

    top_k: int
    """Most classes in the answer."""
    threshold: float = 0.0
    """Least probability of a class in the answer, 0 to 1."""
    explain: tuple[ExplanationPart, ...] = ()
    """Parts of the heatmap that are wanted."""
    explain_class: int | None = None
    """Class of the heatmap; None: the likeliest."""
    embedding: bool = False
    """Whether the embedding is wanted."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs of the graph that the answer needs beside the probabilities."""
        return (*(("cam",) if self.explain else ()), *(("embedding",) if self.embedding else ()))


def read_options(parameters: Mapping[str, str], classifier: Classifier) -> Options:
    """The options in *parameters*.

    Raises `BadRequest` for a value, `OutputUnavailable` for what *classifier* cannot give.
    """
    labels = classifier.manifest.labels
    if not parameters:
        return _likeliest_only(min(DEFAULT_TOP_K, len(labels)))
    options = Options(
        top_k=whole_number(
            parameters, "top_k", default=min(DEFAULT_TOP_K, len(labels)), low=1, high=MAX_TOP_K
        ),
        threshold=_share(parameters, "threshold"),
        explain=_explain(parameters),
        explain_class=_class_index(parameters, labels),
        embedding=_flag(parameters, "embedding"),
    )
    if options.explain_class is not None and not options.explain:
        raise BadRequest(
            "explain_class is given without explain; add explain=grid or explain=overlay"
        )
    if options.outputs:
        _require_outputs(options.outputs, classifier)
    return options


@cache
def _likeliest_only(top_k: int) -> Options:
    return Options(top_k=top_k)


def whole_number(
    parameters: Mapping[str, str], name: str, *, default: int, low: int, high: int
) -> int:
    """Parameter *name*, *low* to *high*. Raises `BadRequest`."""
    text = parameters.get(name)
    if text is None:
        return default
    # isascii too: int() takes digits of every script.
    if not (
        text.isascii()
        and text.isdigit()
        and len(text) <= len(str(high))
        and low <= int(text) <= high
    ):
        raise BadRequest(f"{name} is {text[:40]!r}; expected a whole number of {low} to {high}")
    return int(text)


def _share(parameters: Mapping[str, str], name: str) -> float:
    text = parameters.get(name)
    if text is None:
        return 0.0
    if SHARE.fullmatch(text) is None or float(text) > 1.0:
        raise BadRequest(f"{name} is {text[:40]!r}; expected a number of 0 to 1, such as 0.5")
    return float(text)


def _flag(parameters: Mapping[str, str], name: str) -> bool:
    text = parameters.get(name, "false")
    if text not in ("true", "false"):
        raise BadRequest(f"{name} is {text[:40]!r}; expected true or false")
    return text == "true"


def _explain(parameters: Mapping[str, str]) -> tuple[ExplanationPart, ...]:
    text = parameters.get("explain")
    if text is None:
        return ()
    if text not in EXPLANATIONS:
        raise BadRequest(f"explain is {text[:40]!r}; expected grid, overlay, or grid,overlay")
    return EXPLANATIONS[text]


def _class_index(parameters: Mapping[str, str], labels: tuple[str, ...]) -> int | None:
    """`explain_class` as an index.

    A label wins over an index: a model of digits has labels that look like one.
    """
    text = parameters.get("explain_class")
    if text is None:
        return None
    if text in labels:
        return labels.index(text)
    if (
        text.isascii()
        and text.isdigit()
        and len(text) <= len(str(len(labels)))
        and int(text) < len(labels)
    ):
        return int(text)
    raise BadRequest(
        f"explain_class is {text[:40]!r}; expected a label of the model or an index of 0 to"
        f" {len(labels) - 1}: see /v1/models"
    )


def _require_outputs(names: tuple[str, ...], classifier: Classifier) -> None:
    known = [output.name for output in classifier.manifest.outputs]
    for name in names:
        if name not in known:
            raise OutputUnavailable(
                f"version {classifier.version} of {classifier.name} has no output {name}, only"
                f" {', '.join(known)}: export it with {name}"
            )
