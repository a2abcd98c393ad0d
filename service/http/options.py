"""The query parameters of `/v1/classify`: how they are parsed, checked and described in OpenAPI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from models.errors import BadRequest, OutputUnavailable
from models.runtime.class_maps import map_of, whole_name
from service.engine.classifier import Classifier
from service.engine.tickets import PIXELS

MAX_TOP_K = 1000
NUMBER = re.compile(r"[0-9]{1,17}|[0-9]?\.[0-9]{1,17}|[0-9]\.")


def _scalar(text: str) -> object:
    """The number or boolean that *text* spells, otherwise *text*."""
    if NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    return {"true": True, "false": False}.get(text, text)


class Options(BaseModel):
    """What a client may ask for each image of a request.

    An error about a parameter says that its description was expected.
    """

    model_config = ConfigDict(frozen=True)

    top_k: Annotated[
        int,
        Field(
            strict=True,
            ge=1,
            le=MAX_TOP_K,
            description=f"a whole number of 1 to {MAX_TOP_K}: the most classes in the answer",
        ),
        BeforeValidator(_scalar),
    ] = 5
    threshold: Annotated[
        float,
        Field(
            strict=True,
            ge=0.0,
            le=1.0,
            description=(
                "a number of 0 to 1, such as 0.5: the least probability of a class in the answer"
            ),
        ),
        BeforeValidator(_scalar),
    ] = 0.0
    explain: Annotated[
        Literal["true", "grid", "overlay", "grid,overlay", "overlay,grid"] | SkipJsonSchema[None],
        Field(
            description=(
                "grid (or true), overlay, or grid,overlay: the heat map as numbers or as a picture"
            )
        ),
    ] = None
    explain_class: Annotated[
        str | SkipJsonSchema[int | None],
        Field(
            description=(
                "a label of the model or an index: the class of the heat map; without it, the"
                " likeliest. Needs `explain`"
            )
        ),
    ] = None
    """Text as the client sent it. `read_options` turns it into the index."""
    embedding: Annotated[
        bool,
        Field(strict=True, description="true or false: whether the answer has the pooled features"),
        BeforeValidator(_scalar),
    ] = False
    model: Annotated[str, Field(description="name of a served model")] = ""
    version: Annotated[str, Field(description="version of that model")] = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs of the graph that the answer needs besides the probabilities."""
        return (
            (self.map_output,) * bool(self.explain)
            + (PIXELS,) * ("overlay" in self.explain_parts)
            + ("embedding",) * self.embedding
        )

    @property
    def explain_parts(self) -> list[str]:
        """`grid`, `overlay`, both or none."""
        return ["grid"] if self.explain == "true" else (self.explain or "").split(",")

    @property
    def map_output(self) -> str:
        """The output with the class-activation map."""
        return map_of(self.explain_class if isinstance(self.explain_class, int) else None)


PARAMETERS: dict[str, dict[str, Any]] = {  # Any: JSON schema
    name: {
        key: value for key, value in schema.items() if key != "title" and value not in (None, "")
    }
    for name, schema in Options.model_json_schema()["properties"].items()
}
"""JSON schema of each parameter."""
DEFAULTS = Options()


def read_options(parameters: Mapping[str, str], classifier: Classifier) -> Options:
    """The options in *parameters*.

    Raises `BadRequest` for a value, `OutputUnavailable` for what *classifier* cannot give.
    """
    if not parameters:
        return DEFAULTS
    try:
        options = Options.model_validate(parameters)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise BadRequest(
            f"{name} is {parameters[name][:40]!r}; expected {PARAMETERS[name]['description']}"
        ) from None
    labels = classifier.manifest.labels
    if (chosen := parameters.get("explain_class")) is not None:
        if not options.explain:
            raise BadRequest(
                "explain_class is given without explain; add explain=grid or explain=overlay"
            )
        # A label wins over an index: the labels of a model for digits look like indices.
        index = labels.index(chosen) if chosen in labels else _scalar(chosen)
        if type(index) is not int or index >= len(labels):
            raise BadRequest(
                f"explain_class is {chosen[:40]!r}; expected a label of the model or an index of 0"
                f" to {len(labels) - 1}: see /v1/models"
            )
        options = options.model_copy(update={"explain_class": index})
    known = [output.name for output in classifier.manifest.outputs]
    for name in options.outputs:
        if (whole := whole_name(name)) not in (PIXELS, *known):
            raise OutputUnavailable(
                f"version {classifier.version} of {classifier.name} has no output {whole}, only"
                f" {', '.join(known)}: export it with {whole}"
            )
    return options
