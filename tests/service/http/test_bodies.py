"""Whatever bytes come, a body is read right or refused as the caller's fault: forms, JSON and
tensors, with arbitrary input.
"""

import contextlib
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import (
    BodyTooLarge,
    MalformedBody,
    RequestError,
    TooManyImages,
    UnsupportedContentType,
)
from service.http.body.images import images_of_json
from service.http.body.multipart import FormReader, Part
from service.http.body.reading import parse_json
from service.protocols.tensors import OutputTensor, encode_answer, parse_request
from service.settings import ServiceSettings

BOUNDED = settings(max_examples=50, deadline=None)
"""No deadline: the machine may be busy."""
CONTENT_TYPE = "multipart/form-data; boundary=limit"
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
MEMBERS = (
    "inputs outputs parameters id name datatype shape data binary_data_size binary_data"
    " classification timeout"
)
NAMES = st.sampled_from(MEMBERS.split())
WORDS = st.sampled_from(
    [
        "image",
        "pixels",
        "BYTES",
        "UINT8",
        0,
        1,
        3,
        -1,
        True,
        None,
        "AAAA",
        [1],
        [],
        {},
        [1, 2, 2, 3],
    ]
)
ALMOST = st.recursive(
    WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=20,
)
"""Documents that look like requests of the Open Inference Protocol."""


def read_form(
    chunks: list[bytes],
    *,
    max_images: int = 4,
    max_part_bytes: int = 1000,
    content_type: str = CONTENT_TYPE,
) -> list[Part]:
    reader = FormReader(content_type, max_images=max_images, max_part_bytes=max_part_bytes)
    for chunk in chunks:
        reader.feed(chunk)
    return reader.parts()


def form(parts: list[tuple[str, bytes]]) -> bytes:
    written = [
        b'--limit\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        % (name.encode(), content)
        for name, content in parts
    ]
    return b"".join(written) + b"--limit--\r\n"


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


PARAMETER = r"; ?(boundary|filename\*?)\*?0?=[-'%\"a-zA-Z0-9]{0,20}"
PARTS = st.lists(
    st.tuples(st.sampled_from(["image", "top_k", "ü"]), st.binary(max_size=60)),
    min_size=1,
    max_size=5,
)


@BOUNDED
@given(PARTS, st.lists(st.integers(0), max_size=9))
def test_a_form_is_read_right_however_it_is_cut(parts, cuts):
    parts = [(name, content) for name, content in parts if b"--limit" not in content]
    if parts:
        assert [
            (part.name, part.content) for part in read_form(in_pieces(form(parts), cuts))
        ] == parts


@BOUNDED
@given(st.lists(st.binary(max_size=80), max_size=4))
def test_no_bytes_break_the_reader_of_forms(chunks):
    with contextlib.suppress(RequestError):
        read_form(chunks)


@BOUNDED
@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255))
def test_no_damage_to_a_form_breaks_its_reader(content, at, value):
    damaged = bytearray(form([("image", content), ("image", b"x")]))
    damaged[at % len(damaged)] = value
    with contextlib.suppress(RequestError):
        read_form([bytes(damaged)])


@BOUNDED
@given(
    st.text(st.characters(max_codepoint=255), max_size=60)
    | st.from_regex(PARAMETER, fullmatch=True)
)
def test_no_content_type_breaks_the_reader_of_forms(parameters):
    with contextlib.suppress(RequestError):
        read_form([b"x"], content_type=f"multipart/form-data{parameters}")


def test_limits_of_a_form_hold_while_it_streams():
    with pytest.raises(
        BodyTooLarge, match="part 2 of the form has more than 10 bytes, the most for one image"
    ):
        read_form([form([("image", b"x" * 10), ("image", b"x" * 11)])], max_part_bytes=10)
    reader = FormReader(CONTENT_TYPE, max_images=1, max_part_bytes=10)
    parts = form([("image", b"")] * 18)
    with pytest.raises(TooManyImages, match="the form has more than 17 parts; at most 1 images"):
        reader.feed(parts)
    with pytest.raises(UnsupportedContentType, match="has no boundary"):
        FormReader("multipart/form-data", max_images=1, max_part_bytes=1)


def test_what_follows_the_last_boundary_says_nothing():
    assert len(read_form([form([("image", b"x")]), b"epilogue", b"--limit\r\n"])) == 1


@BOUNDED
@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader_of_json(data):
    try:
        parse_json(data)
    except MalformedBody as error:
        str(error).encode("utf-8")


@BOUNDED
@given(
    JSON_VALUES
    | st.fixed_dictionaries(
        {"images": JSON_VALUES | st.lists(st.fixed_dictionaries({"b64": st.text()}), max_size=3)}
    )
)
def test_no_document_breaks_the_reader_of_images(document):
    try:
        sources = images_of_json(json.dumps(document).encode(), ServiceSettings())
    except RequestError as error:
        # The message must be fit for an answer: half a surrogate is not.
        str(error).encode("utf-8")
    else:
        assert all(isinstance(source, RequestError | bytes) for source in sources)


@BOUNDED
@given(
    JSON_VALUES
    | ALMOST
    | st.fixed_dictionaries({"inputs": st.lists(st.dictionaries(NAMES, ALMOST), max_size=3)}),
    st.binary(max_size=40),
)
def test_no_document_breaks_the_reader_of_tensors(document, tail):
    try:
        request, values = parse_request(document, tail)
    except MalformedBody as error:
        str(error).encode("utf-8")
    else:
        assert [
            np.size(data) if tensor.datatype == "UINT8" else len(data)
            for tensor, data in zip(request.inputs, values, strict=True)
        ] == [math.prod(tensor.shape) for tensor in request.inputs]


@BOUNDED
@given(st.lists(st.binary(max_size=20), max_size=5), st.integers(0, 200), st.integers(0, 255))
def test_binary_elements_are_read_right_and_no_damage_breaks_the_reader(elements, at, value):
    raw = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [len(elements)],
        "parameters": {"binary_data_size": len(raw)},
    }
    _, (read,) = parse_request({"inputs": [tensor]}, raw)
    assert read == elements
    if raw:
        damaged = bytearray(raw)
        damaged[at % len(raw)] = value
        with contextlib.suppress(MalformedBody):
            parse_request({"inputs": [tensor]}, bytes(damaged))


@BOUNDED
@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_an_answer_says_where_its_json_ends(rows, binary):
    values = np.asarray(rows, dtype=np.float32)
    content, length = encode_answer({"model_name": "zoo"}, [OutputTensor("logits", values, binary)])
    document = json.loads(content[:length])
    (output,) = document["outputs"]
    assert (output["shape"], output["datatype"]) == ([len(rows), 2], "FP32")
    found = (
        np.frombuffer(content[length:], dtype="<f4")
        if binary
        else np.asarray(output["data"], dtype=np.float32)
    )
    np.testing.assert_array_equal(found.reshape(values.shape), values)
    assert (length is None) is not binary
