"""The Open Inference Protocol's request and answer, as bytes and as values.

Knows no HTTP and no model. OpenAPI describes requests by the classes here.

A body is JSON, or JSON of a declared length followed by the bytes of the tensors, in the order in
which the JSON names them. A BYTES tensor in binary form is, for each element, a little-endian
uint32 length and that many bytes. In JSON each element is base64 text, because an encoded image is
not text. Source: the protocol's "binary tensor data extension".
"""

from __future__ import annotations

import json
import math
import reprlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from models.errors import MalformedBody
from service.http.body.base64_text import decode_base64
from service.validation import first_fault

BYTES = "BYTES"
UINT8 = "UINT8"
FP32 = "FP32"
LENGTH = struct.Struct("<I")
MAX_TENSORS = 32


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable text")
    return text


def _absent(value: object) -> None:
    if value is not None:
        raise ValueError("this service does not have this parameter")


Text = Annotated[str, AfterValidator(_printable)]
Values = list[bytes] | NDArray[np.uint8]
"""The elements of a BYTES tensor, or the array of a UINT8 tensor."""
WholeNumber = Annotated[int, Field(ge=0, lt=1 << 53)]
Side = Annotated[int, Field(ge=0, lt=1 << 31)]
Unsupported = Annotated[None, BeforeValidator(_absent)]


class Strict(BaseModel):
    """A JSON object whose members are not converted: text is no number."""

    model_config = ConfigDict(strict=True)


class Parameters(Strict):
    """Parameters of a request, an input or an output. Unknown ones are ignored."""

    binary_data_size: WholeNumber | None = None
    """Of an input: its bytes behind the JSON."""
    binary_data: bool | None = None
    """Of an output: whether it is sent behind the JSON. None: as `binary_data_output` says."""
    binary_data_output: bool = False
    """Of a request: `binary_data` of each output that does not say."""
    classification: WholeNumber = 0
    """Of an output: how many classes to name instead of sending the tensor. 0: the tensor."""
    timeout: WholeNumber = 0
    """Of a request: its deadline in microseconds. 0: none."""
    sequence_id: Unsupported = None
    shared_memory_region: Unsupported = None


class InputTensor(Strict):
    """One tensor of a request."""

    name: Text
    datatype: Literal["BYTES", "UINT8"]
    shape: Annotated[list[Side], Field(max_length=8)]
    parameters: Parameters = Parameters()
    data: list[Any] | None = None
    """BYTES: base64 text. UINT8: numbers, flat or nested. None: the bytes follow the JSON."""


class RequestedOutput(Strict):
    """One tensor that the client asks for."""

    name: Text
    parameters: Parameters = Parameters()


class InferRequest(Strict):
    """A request of the Open Inference Protocol."""

    id: Annotated[str, Field(max_length=256), AfterValidator(_printable)] | None = None
    parameters: Parameters = Parameters()
    inputs: Annotated[list[InputTensor], Field(max_length=MAX_TENSORS)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=MAX_TENSORS)] = []
    """Empty: every output of the model."""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of an answer: FP32 values, or BYTES elements with their shape."""

    name: str
    values: NDArray[np.float32] | NDArray[np.object_]
    binary: bool


def parse_request(document: object, tail: bytes) -> tuple[InferRequest, list[Values]]:
    """The request in the JSON value *document*, and the values of its inputs.

    *tail* holds the bytes behind the JSON. Raises `MalformedBody` naming the place.
    """
    try:
        request = InferRequest.model_validate(document)
    except ValidationError as error:
        raise MalformedBody(first_fault(error)) from None
    values, used = [], 0
    for tensor in request.inputs:
        values.append(_values(tensor, tail, used))
        used += tensor.parameters.binary_data_size or 0
    if used != len(tail):
        raise MalformedBody(
            f"{len(tail):,} bytes follow the JSON, but the inputs' binary_data_size add up to"
            f" {used:,}"
        )
    return request, values


def encode_answer(
    head: dict[str, object], outputs: Sequence[OutputTensor]
) -> tuple[bytes, int | None]:
    """The body with *head* and *outputs*, and the length of its JSON if binary tensors follow."""
    described, tail = [], b""
    for output in outputs:
        numbers = output.values.dtype == np.float32
        entry: dict[str, object] = {
            "name": output.name,
            "datatype": FP32 if numbers else BYTES,
            "shape": list(output.values.shape),
        }
        if output.binary:
            raw = output.values.astype("<f4").tobytes() if numbers else _joined(output.values)
            entry["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            elements: list[Any] = output.values.ravel().tolist()  # Any: numbers or bytes
            entry["data"] = elements if numbers else [text.decode("utf-8") for text in elements]
        described.append(entry)
    header = json.dumps(
        head | {"outputs": described}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode("utf-8")
    return header + tail, len(header) if any(output.binary for output in outputs) else None


def _joined(values: NDArray[Any]) -> bytes:  # Any: bytes
    return b"".join(LENGTH.pack(len(element)) + element for element in values.flat)


def _values(tensor: InputTensor, tail: bytes, at: int) -> Values:
    """The values of *tensor*, from the JSON or from the bytes of *tail* that begin at *at*."""
    place, size = f"input {tensor.name[:40]!r}", tensor.parameters.binary_data_size
    if tensor.data is not None and size is not None:
        raise MalformedBody(f"{place} has both data and binary_data_size; expected one of them")
    if tensor.data is None and size is None:
        raise MalformedBody(f"{place} has no data; expected a list, or binary_data_size")
    values: Values
    if tensor.data is not None:
        values = (
            [_base64(text, f"{place}[{index}]") for index, text in enumerate(tensor.data)]
            if tensor.datatype == BYTES
            else _whole_bytes(tensor.data, place)
        )
    elif size is not None and at + size > len(tail):
        raise MalformedBody(
            f"{place} has binary_data_size {size:,}, but only {len(tail) - at:,} bytes are left"
            " behind the JSON"
        )
    else:
        raw = tail[at : at + (size or 0)]
        values = _elements(raw, place) if tensor.datatype == BYTES else np.frombuffer(raw, np.uint8)
    expected = math.prod(tensor.shape)
    if len(values) != expected:
        raise MalformedBody(
            f"{place} has {len(values):,} elements; its shape {tensor.shape} needs {expected:,}"
        )
    return values.reshape(tensor.shape) if isinstance(values, np.ndarray) else values


def _whole_bytes(data: list[Any], place: str) -> NDArray[np.uint8]:
    """*data*, flat or nested, as one flat array."""
    try:
        # Through objects: otherwise NumPy would wrap 256 to 0 and cut 1.5 to 1.
        flat = np.asarray(data, dtype=object).ravel().tolist()
    except ValueError as error:
        raise MalformedBody(
            f"{place} is nested unevenly; expected lists of equal length, or a flat list"
        ) from error
    if not all(type(value) is int and 0 <= value <= 255 for value in flat):
        raise MalformedBody(
            f"{place} holds values other than whole numbers of 0 to 255, as {UINT8} has them"
        )
    return np.asarray(flat, dtype=np.uint8)


def _base64(text: object, place: str) -> bytes:
    if not isinstance(text, str):
        raise MalformedBody(
            f"{place} is {reprlib.repr(text)}; expected base64 text, or send the tensor with"
            " binary_data_size"
        )
    try:
        return decode_base64(text)
    except ValueError as error:
        raise MalformedBody(
            f"{place} is no base64 ({error}); an encoded image is not text: send base64, or binary"
            " data"
        ) from error


def _elements(raw: bytes, place: str) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        if at + LENGTH.size > len(raw):
            raise MalformedBody(f"{place} ends within the length of element {len(elements)}")
        (size,) = LENGTH.unpack_from(raw, at)
        at += LENGTH.size
        if at + size > len(raw):
            raise MalformedBody(
                f"element {len(elements)} of {place} has {size:,} bytes by its length, but only"
                f" {len(raw) - at:,} are left"
            )
        elements.append(raw[at : at + size])
        at += size
    return elements
