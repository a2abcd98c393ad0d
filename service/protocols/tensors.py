"""The Open Inference Protocol's request and answer, as bytes and as values.

Knows no HTTP and no model.

A body is JSON, or JSON of a declared length with the tensors' bytes behind it, in the order in
which they are named. A BYTES tensor in binary form is, for each element, a little-endian uint32
length and as many bytes; in JSON form each element is base64 text, because an encoded image is no
text. Source: the protocol's "binary tensor data extension".
"""

from __future__ import annotations

import json
import reprlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import MalformedBody
from service.http.body.base64_text import decode_base64

BYTES = "BYTES"
UINT8 = "UINT8"
FP32 = "FP32"
LENGTH = struct.Struct("<I")
MAX_TENSORS = 32
MAX_ID_CHARACTERS = 256
UNSUPPORTED = ("sequence_id", "shared_memory_region")

JsonObject = Mapping[str, Any]
"""Any: what a client sends, until it is checked."""


@dataclass(frozen=True)
class InputTensor:
    """One tensor of a request."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[bytes] | NDArray[np.uint8]
    """BYTES: its elements in order. UINT8: an array of *shape*."""


@dataclass(frozen=True)
class RequestedOutput:
    """One tensor that is asked for."""

    name: str
    binary: bool
    classes: int
    """Number of classes to name instead of the tensor itself; 0: the tensor."""


@dataclass(frozen=True)
class InferRequest:
    """A request whose form is right; what is in it is the caller's to judge."""

    id: str | None
    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...]
    """Empty: all that the model has."""
    binary_by_default: bool
    timeout_s: float | None
    """The client's own bound, from the parameter `timeout` in microseconds."""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of an answer: FP32 values, or BYTES elements with their shape."""

    name: str
    values: NDArray[np.float32] | NDArray[np.object_]
    binary: bool


def parse_request(document: object, tail: bytes) -> InferRequest:
    """The request in the JSON value *document*, with the bytes behind it.

    Raises `MalformedBody` naming the place.
    """
    request = _object(document, "the body")
    parameters = _parameters(request, "the request")
    binary_by_default = _boolean(parameters, "binary_data_output", "the request", default=False)
    inputs, used = [], 0
    for index, item in enumerate(_list(request, "inputs")):
        tensor, used = _input(_object(item, f"inputs[{index}]"), tail, used)
        inputs.append(tensor)
    if used != len(tail):
        raise MalformedBody(
            f"{len(tail):,} bytes follow the JSON, but the inputs' binary_data_size add up to"
            f" {used:,}"
        )
    outputs = [
        _output(_object(item, f"outputs[{index}]"), binary_by_default=binary_by_default)
        for index, item in enumerate(_list(request, "outputs") if "outputs" in request else [])
    ]
    timeout_us = _whole(parameters, "timeout", "the request") if "timeout" in parameters else 0
    return InferRequest(
        _id(request), tuple(inputs), tuple(outputs), binary_by_default, timeout_us / 1e6 or None
    )


def encode_answer(
    head: dict[str, object], outputs: Sequence[OutputTensor]
) -> tuple[bytes, int | None]:
    """The body with *outputs* behind the members of *head*, and the length of its JSON if tensors'
    bytes follow it.
    """
    described, tail = [], b""
    for output in outputs:
        entry: dict[str, object] = {
            "name": output.name,
            "datatype": _datatype(output),
            "shape": list(output.values.shape),
        }
        if output.binary:
            raw = _raw(output)
            entry["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            entry["data"] = [
                one.decode("utf-8") if isinstance(one, bytes) else float(one)
                for one in output.values.ravel().tolist()
            ]
        described.append(entry)
    header = json.dumps(
        head | {"outputs": described}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode("utf-8")
    return (
        (header + tail, len(header)) if any(output.binary for output in outputs) else (header, None)
    )


def _input(item: JsonObject, tail: bytes, used: int) -> tuple[InputTensor, int]:
    """The tensor that *item* describes, whose binary data begin at *used* in *tail*, and where they
    end.
    """
    name, datatype = _text(item, "name", "an input"), _text(item, "datatype", "an input")
    place = f"input {name[:40]!r}"
    shape = _shape(item, place)
    parameters = _parameters(item, place)
    if datatype not in (BYTES, UINT8):
        raise MalformedBody(
            f"{place} is of datatype {datatype[:20]!r}; expected {BYTES} or {UINT8}"
        )
    if "binary_data_size" not in parameters:
        return (
            InputTensor(
                name, datatype, shape, _from_json(_list(item, "data"), datatype, shape, place)
            ),
            used,
        )
    if "data" in item:
        raise MalformedBody(f"{place} has both data and binary_data_size; expected one of them")
    size = _whole(parameters, "binary_data_size", place)
    if used + size > len(tail):
        raise MalformedBody(
            f"{place} has binary_data_size {size:,}, but only {len(tail) - used:,} bytes are left"
            " behind the JSON"
        )
    raw = tail[used : used + size]
    return (
        InputTensor(
            name,
            datatype,
            shape,
            _elements(raw, shape, place) if datatype == BYTES else _array(raw, shape, place),
        ),
        used + size,
    )


def _from_json(
    data: list[Any], datatype: str, shape: tuple[int, ...], place: str
) -> list[bytes] | NDArray[np.uint8]:
    if datatype == BYTES:
        _require_count(len(data), shape, place)
        return [_base64(text, f"{place}[{index}]") for index, text in enumerate(data)]
    try:
        # The protocol lets data be flat or nested. Through objects: NumPy would wrap 256 to 0 and
        # cut 1.5 to 1.
        flat = np.asarray(data, dtype=object).ravel().tolist()
    except ValueError as error:
        raise MalformedBody(
            f"{place} is nested unevenly; expected {list(shape)}, or a flat list"
        ) from error
    _require_count(len(flat), shape, place)
    if not all(type(value) is int and 0 <= value <= 255 for value in flat):
        raise MalformedBody(
            f"{place} holds values that are no whole numbers of 0 to 255, as {UINT8} has them"
        )
    return np.asarray(flat, dtype=np.uint8).reshape(shape)


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
            f"{place} is no base64 ({error}); an encoded image is no text: send base64, or binary"
            " data"
        ) from error


def _elements(raw: bytes, shape: tuple[int, ...], place: str) -> list[bytes]:
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
    _require_count(len(elements), shape, place)
    return elements


def _array(raw: bytes, shape: tuple[int, ...], place: str) -> NDArray[np.uint8]:
    _require_count(len(raw), shape, place)
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def _require_count(count: int, shape: tuple[int, ...], place: str) -> None:
    expected = 1
    for side in shape:
        expected *= side
    if count != expected:
        raise MalformedBody(
            f"{place} has {count:,} elements; its shape {list(shape)} needs {expected:,}"
        )


def _output(item: JsonObject, *, binary_by_default: bool) -> RequestedOutput:
    name = _text(item, "name", "an output")
    place = f"output {name[:40]!r}"
    parameters = _parameters(item, place)
    binary = _boolean(parameters, "binary_data", place, default=binary_by_default)
    return RequestedOutput(
        name,
        binary,
        _whole(parameters, "classification", place) if "classification" in parameters else 0,
    )


def _shape(item: JsonObject, place: str) -> tuple[int, ...]:
    shape = _list(item, "shape")
    if len(shape) > 8 or not all(type(side) is int and 0 <= side < 1 << 31 for side in shape):
        raise MalformedBody(
            f"{place} has shape {reprlib.repr(shape)}; expected a short list of whole numbers"
        )
    return tuple(shape)


def _parameters(item: JsonObject, place: str) -> JsonObject:
    parameters = _object(item.get("parameters", {}), f"parameters of {place}")
    for name in UNSUPPORTED:
        if name in parameters:
            raise MalformedBody(
                f"{place} has the parameter {name}, which this service does not have"
            )
    return parameters


def _id(request: JsonObject) -> str | None:
    if "id" not in request:
        return None
    text = _text(request, "id", "the request")
    if len(text) > MAX_ID_CHARACTERS:
        raise MalformedBody(f"id has {len(text)} characters; at most {MAX_ID_CHARACTERS} are taken")
    return text


def _object(value: object, place: str) -> JsonObject:
    if not isinstance(value, dict):
        raise MalformedBody(f"{place} is {reprlib.repr(value)}; expected a JSON object")
    return value


def _list(item: JsonObject, name: str) -> list[Any]:
    value = item.get(name)
    if not isinstance(value, list):
        raise MalformedBody(
            f"{name} is {reprlib.repr(value) if name in item else 'missing'}; expected a list"
        )
    if name in ("inputs", "outputs") and len(value) > MAX_TENSORS:
        raise MalformedBody(f"{name} has {len(value)} entries; at most {MAX_TENSORS} are taken")
    return value


def _text(item: JsonObject, name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value.isprintable():
        raise MalformedBody(
            f"{name} of {place} is {reprlib.repr(value) if name in item else 'missing'}; expected"
            " text"
        )
    return value


def _whole(parameters: JsonObject, name: str, place: str) -> int:
    value = parameters[name]
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise MalformedBody(
            f"{name} of {place} is {reprlib.repr(value)}; expected a whole number of 0 or more"
        )
    return value


def _boolean(parameters: JsonObject, name: str, place: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise MalformedBody(f"{name} of {place} is {reprlib.repr(value)}; expected true or false")
    return value


def _datatype(output: OutputTensor) -> str:
    return FP32 if output.values.dtype == np.float32 else BYTES


def _raw(output: OutputTensor) -> bytes:
    if output.values.dtype == np.float32:
        return output.values.astype("<f4", copy=False).tobytes()
    elements: list[bytes] = output.values.ravel().tolist()  # type: ignore[assignment]
    return b"".join(LENGTH.pack(len(element)) + element for element in elements)
