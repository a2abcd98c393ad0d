"""`/v2` as the stock client of Triton speaks it, over real sockets to two workers; and what it must
refuse.
"""

import base64
import json
import struct

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from models.pixels.preprocess import to_pixels
from tests.http.conftest import LABELS, make_photo
from tests.http.test_classify import ROUNDING

PHOTOS = [make_photo(seed) for seed in range(20)]
SIZE = 8


@pytest.fixture(scope="module")
def stock(server):
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


def pixels_NHWC(classifier, photos=PHOTOS) -> np.ndarray:
    return np.stack([to_pixels(photo, classifier.manifest.preprocess) for photo in photos])


def image_input(photos=PHOTOS) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(photos)], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, dtype=object))
    return tensor


def pixel_input(pixels: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return tensor


def test_the_stock_client_sees_a_live_server_with_a_ready_model(stock):
    assert stock.is_server_live()
    assert stock.is_server_ready()
    assert stock.is_model_ready("zoo")
    assert stock.is_model_ready("zoo", "1")
    assert not stock.is_model_ready("zoo", "9")
    assert not stock.is_model_ready("ants")
    assert stock.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    assert stock.get_model_repository_index() == [
        {"name": "zoo", "version": "1", "state": "READY", "reason": ""}
    ]


@pytest.mark.parametrize("version", ["", "1"])
def test_metadata_tells_the_inputs_and_outputs(stock, version):
    metadata = stock.get_model_metadata("zoo", version)
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == (
        "zoo",
        ["1"],
        "onnxruntime_onnx",
    )
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]},
    ]
    assert {one["name"]: one["shape"] for one in metadata["outputs"]} == {
        "logits": [-1, 7],
        "probabilities": [-1, 7],
        "embedding": [-1, 3],
        "cam": [-1, 7, SIZE, SIZE],
    }


def test_encoded_images_get_every_output_of_the_graph(stock, classifier):
    """More images than a batch holds, in binary form both ways."""
    result = stock.infer("zoo", [image_input()])
    names = [output["name"] for output in result.get_response()["outputs"]]
    assert names == ["logits", "probabilities", "embedding", "cam"]
    expected = classifier.model.run(pixels_NHWC(classifier), names)
    for name in names:
        np.testing.assert_allclose(
            result.as_numpy(name),
            expected[name],
            atol=ROUNDING * max(1.0, float(np.abs(expected[name]).max())),
        )


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_pixels_are_taken_as_they_are(stock, classifier, binary_in, binary_out):
    pixels = pixels_NHWC(classifier, PHOTOS[:3])
    outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary_out)]
    result = stock.infer(
        "zoo",
        [pixel_input(pixels, binary=binary_in)],
        outputs=outputs,
        request_id="mine",
        model_version="1",
    )
    assert result.get_response()["id"] == "mine"
    assert (result.get_response()["model_name"], result.get_response()["model_version"]) == (
        "zoo",
        "1",
    )
    np.testing.assert_allclose(
        result.as_numpy("probabilities"),
        classifier.model.run(pixels)["probabilities"],
        atol=ROUNDING,
    )


@pytest.mark.parametrize("binary", [True, False])
def test_the_classification_extension_names_the_likeliest(stock, classifier, binary):
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary, class_count=3)
        for name in ("probabilities", "logits")
    ]
    result = stock.infer("zoo", [image_input(PHOTOS[:2])], outputs=outputs)
    for photo, named in zip(PHOTOS, result.as_numpy("probabilities"), strict=False):
        (expected,) = classifier.classify([photo], top_k=3)
        rows = [(one if isinstance(one, str) else one.decode()).split(":") for one in named]
        assert [label for _, _, label in rows] == [
            prediction.label for prediction in expected.predictions
        ]
        assert [int(index) for _, index, _ in rows] == [
            prediction.index for prediction in expected.predictions
        ]
        # Six decimals are sent.
        assert [float(value) for value, _, _ in rows] == pytest.approx(
            [prediction.probability for prediction in expected.predictions], abs=1e-6
        )
    assert result.as_numpy("logits").shape == (2, 3)


def test_images_in_json_are_base64(client, classifier):
    data = [base64.b64encode(photo).decode() for photo in PHOTOS[:2]]
    body = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": data}],
        "outputs": [{"name": "probabilities"}],
    }
    response = client.post("/v2/models/zoo/infer", json=body)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    (output,) = response.json()["outputs"]
    expected = classifier.model.run(pixels_NHWC(classifier, PHOTOS[:2]))["probabilities"]
    assert (output["datatype"], output["shape"]) == ("FP32", [2, 7])
    np.testing.assert_allclose(np.reshape(output["data"], (2, 7)), expected, atol=ROUNDING)


def test_nested_data_is_taken_too(client, classifier):
    pixels = pixels_NHWC(classifier, PHOTOS[:1])
    body = pixels_of(data=pixels.tolist()) | {"outputs": [{"name": "logits"}]}
    (output,) = client.post("/v2/models/zoo/infer", json=body).json()["outputs"]
    np.testing.assert_allclose(
        [output["data"]], classifier.model.run(pixels, ["logits"])["logits"], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda stock: stock.infer("ants", [image_input()]),
            "model 'ants' is not served; served: zoo",
        ),
        (
            lambda stock: stock.infer("zoo", [image_input([PHOTOS[0], b"text"])]),
            "image 1: received 4 bytes that begin with b'text'",
        ),
        (
            lambda stock: stock.infer("zoo", [image_input([])]),
            "input image has no images; expected one or more",
        ),
        (lambda stock: stock.infer("zoo", [image_input([b""])]), "the body has no bytes"),
        (
            lambda stock: stock.infer("zoo", [image_input([PHOTOS[0]] * 65)]),
            "input image has 65 images; at most 64 are taken",
        ),
        (
            lambda stock: stock.infer("zoo", [image_input(), image_input()]),
            "the request has 2 inputs; expected one input: image BYTES",
        ),
        (
            lambda stock: stock.infer("zoo", [pixel_input(np.zeros((1, 9, 8, 3), np.uint8))]),
            "received input 'pixels' UINT8 [1, 9, 8, 3]; expected",
        ),
        (
            lambda stock: stock.infer(
                "zoo", [image_input()], outputs=[triton.InferRequestedOutput("heat")]
            ),
            "zoo has no output 'heat'; it has logits",
        ),
        (
            lambda stock: stock.infer(
                "zoo",
                [image_input()],
                outputs=[triton.InferRequestedOutput("embedding", class_count=2)],
            ),
            "output embedding cannot be ranked by the classification extension",
        ),
        (
            lambda stock: stock.infer("zoo", [image_input()], sequence_id=3),
            "parameters.sequence_id is 3; this service does not have this parameter",
        ),
        (
            lambda stock: stock.infer("zoo", [image_input()], request_compression_algorithm="gzip"),
            "content encoding 'gzip' is not taken",
        ),
        (lambda stock: stock.get_model_metadata("zoo", "9"), "version '9' of zoo is not served"),
        (lambda stock: stock.load_model("zoo"), "no route /v2/repository/models/zoo/load"),
    ],
)
def test_the_stock_client_is_told_what_is_wrong(stock, ask, message):
    with pytest.raises(InferenceServerException) as caught:
        ask(stock)
    assert caught.value.message().startswith(message)


def test_a_timeout_of_the_clients_own_is_kept(stock):
    with pytest.raises(InferenceServerException) as caught:
        stock.infer("zoo", [image_input()], timeout=1)
    assert caught.value.status() == "504"


IMAGE = {
    "name": "image",
    "datatype": "BYTES",
    "shape": [1],
    "data": [base64.b64encode(PHOTOS[0]).decode()],
}


def pixels_of(**changes: object) -> dict:
    return {
        "inputs": [
            {
                "name": "pixels",
                "datatype": "UINT8",
                "shape": [1, SIZE, SIZE, 3],
                "data": [0] * (SIZE * SIZE * 3),
            }
            | changes
        ]
    }


def binary(
    size: object, tail: bytes, *, shape: object = (1,), head: object = None, datatype: str = "BYTES"
) -> tuple[bytes, dict[str, str]]:
    """A request in binary form, whose header may lie about its length."""
    document = {
        "inputs": [
            {
                "name": "image",
                "datatype": datatype,
                "shape": shape,
                "parameters": {"binary_data_size": size},
            }
        ]
    }
    text = json.dumps(document).encode()
    return text + tail, {
        "inference-header-content-length": str(len(text) if head is None else head)
    }


ELEMENT = struct.pack("<I", len(PHOTOS[0])) + PHOTOS[0]

# name -> (body, headers, code, message)
BAD = {
    "no json": (b"{", {}, "malformed_body", "the body is not JSON: "),
    "nothing": (b"", {}, "malformed_body", "the body is not JSON: "),
    "a list": ([], {}, "malformed_body", "the document is []; expected a JSON object"),
    "no inputs": ({}, {}, "malformed_body", "inputs is missing"),
    "inputs of null": (
        {"inputs": None},
        {},
        "malformed_body",
        "inputs is None; expected a valid list",
    ),
    "an input of text": (
        {"inputs": ["image"]},
        {},
        "malformed_body",
        "inputs[0] is 'image'; expected a JSON object",
    ),
    "an empty list": (
        {"inputs": []},
        {},
        "bad_request",
        "the request has 0 inputs; expected one input: image BYTES [N], or pixels UINT8 [N,8,8,3]",
    ),
    "many inputs": (
        {"inputs": [IMAGE] * 33},
        {},
        "malformed_body",
        "inputs is [{...}, {...}, {...}, {...}, {...}, {...}, ...]; List should have at most 32",
    ),
    "no name": (
        {"inputs": [{"datatype": "BYTES"}]},
        {},
        "malformed_body",
        "inputs[0].name is missing",
    ),
    "floats": (
        pixels_of(datatype="FP32"),
        {},
        "malformed_body",
        "inputs[0].datatype is 'FP32'; expected 'BYTES' or 'UINT8'",
    ),
    "no shape": (
        pixels_of(shape=None),
        {},
        "malformed_body",
        "inputs[0].shape is None; expected a valid list",
    ),
    "a negative shape": (
        pixels_of(shape=[-1, 8, 8, 3]),
        {},
        "malformed_body",
        "inputs[0].shape[0] is -1; expected greater than or equal to 0",
    ),
    "a shape of true": (
        pixels_of(shape=[True, 8, 8, 3]),
        {},
        "malformed_body",
        "inputs[0].shape[0] is True; expected a valid integer",
    ),
    "a huge shape": (
        pixels_of(shape=[2**31 - 1] * 8),
        {},
        "malformed_body",
        "input 'pixels' has 192 elements; its shape [",
    ),
    "another shape": (
        pixels_of(shape=[1, 3, 8, 8]),
        {},
        "bad_request",
        "received input 'pixels' UINT8 [1, 3, 8, 8]; expected",
    ),
    "too few": (
        pixels_of(data=[0]),
        {},
        "malformed_body",
        "input 'pixels' has 1 elements; its shape [1, 8, 8, 3] needs 192",
    ),
    "256": (
        pixels_of(data=[256] * 192),
        {},
        "malformed_body",
        "input 'pixels' holds values other than whole numbers of 0 to 255",
    ),
    "1.5": (
        pixels_of(data=[1.5] * 192),
        {},
        "malformed_body",
        "input 'pixels' holds values other than whole numbers of 0 to 255",
    ),
    "true": (
        pixels_of(data=[True] * 192),
        {},
        "malformed_body",
        "input 'pixels' holds values other than whole numbers of 0 to 255",
    ),
    "ragged": (pixels_of(data=[[0] * 100, [0] * 92]), {}, "malformed_body", "input 'pixels' "),
    "text": (
        pixels_of(data="0"),
        {},
        "malformed_body",
        "inputs[0].data is '0'; expected a valid list",
    ),
    "no base64": (
        {"inputs": [IMAGE | {"data": ["?"]}]},
        {},
        "malformed_body",
        "input 'image'[0] is no base64",
    ),
    "no text": (
        {"inputs": [IMAGE | {"data": [3]}]},
        {},
        "malformed_body",
        "input 'image'[0] is 3; expected base64 text",
    ),
    "parameters of text": (
        {"inputs": [IMAGE], "parameters": "x"},
        {},
        "malformed_body",
        "parameters is 'x'; expected a JSON object",
    ),
    "a timeout of text": (
        {"inputs": [IMAGE], "parameters": {"timeout": "1"}},
        {},
        "malformed_body",
        "parameters.timeout is '1'; expected a valid integer",
    ),
    "binary of text": (
        {"inputs": [IMAGE], "parameters": {"binary_data_output": 1}},
        {},
        "malformed_body",
        "parameters.binary_data_output is 1; expected a valid boolean",
    ),
    "id of a number": (
        {"inputs": [IMAGE], "id": 3},
        {},
        "malformed_body",
        "id is 3; expected a valid string",
    ),
    "half a surrogate": (
        b'{"inputs": [], "id": "\\ud800"}',
        {},
        "malformed_body",
        "id is '\\ud800'; expected a valid string",
    ),
    "a long id": (
        {"inputs": [IMAGE], "id": "x" * 257},
        {},
        "malformed_body",
        "id is 'xxxxxxxxxxxx...xxxxxxxxxxxxx'; String should have at most 256 characters",
    ),
    "outputs of text": (
        {"inputs": [IMAGE], "outputs": "all"},
        {},
        "malformed_body",
        "outputs is 'all'; expected a valid list",
    ),
    "an output twice": (
        {"inputs": [IMAGE], "outputs": [{"name": "logits"}] * 2},
        {},
        "bad_request",
        "an output is asked for twice",
    ),
    "shared memory": (
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "BYTES",
                    "shape": [1],
                    "parameters": {"shared_memory_region": "a"},
                }
            ]
        },
        {},
        "malformed_body",
        "inputs[0].parameters.shared_memory_region is 'a'; this service does not have this",
    ),
    "both forms": (
        {"inputs": [IMAGE | {"parameters": {"binary_data_size": 0}}]},
        {},
        "malformed_body",
        "input 'image' has both data and binary_data_size",
    ),
    "a header of text": (
        *binary(len(ELEMENT), ELEMENT, head="x"),
        "malformed_body",
        "Inference-Header-Content-Length is 'x'; the body has",
    ),
    "a negative header": (
        *binary(len(ELEMENT), ELEMENT, head=-1),
        "malformed_body",
        "Inference-Header-Content-Length is '-1'; the body has",
    ),
    "a header too long": (
        *binary(len(ELEMENT), ELEMENT, head=99_999),
        "malformed_body",
        "Inference-Header-Content-Length is '99999'; the body has",
    ),
    "a header too short": (
        *binary(len(ELEMENT), ELEMENT, head=5),
        "malformed_body",
        "the body is not JSON",
    ),
    "a size too large": (
        *binary(len(ELEMENT) + 1, ELEMENT),
        "malformed_body",
        "input 'image' has binary_data_size ",
    ),
    "a size too small": (
        *binary(len(ELEMENT) - 1, ELEMENT),
        "malformed_body",
        "element 0 of input 'image' has ",
    ),
    "a size of text": (
        *binary("9", ELEMENT),
        "malformed_body",
        "inputs[0].parameters.binary_data_size is '9'; expected a valid integer",
    ),
    "a negative size": (
        *binary(-1, ELEMENT),
        "malformed_body",
        "inputs[0].parameters.binary_data_size is -1; expected greater than or equal to 0",
    ),
    "bytes behind": (
        *binary(len(ELEMENT), ELEMENT + b"x"),
        "malformed_body",
        f"{len(ELEMENT) + 1} bytes follow the JSON, but",
    ),
    "an element too long": (
        *binary(8, struct.pack("<I", 5) + b"abcd"),
        "malformed_body",
        "element 0 of input 'image' has 5 bytes by its length",
    ),
    "half a length": (
        *binary(3, b"abc"),
        "malformed_body",
        "input 'image' ends within the length of element 0",
    ),
    "an element too many": (
        *binary(8, bytes(8)),
        "malformed_body",
        "input 'image' has 2 elements; its shape [1] needs 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_request_gets_400_in_the_protocols_form(client, name):
    body, headers, code, message = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post("/v2/models/zoo/infer", content=content, headers=headers)
    answer = response.json()
    assert (response.status_code, response.headers["content-type"]) == (
        400,
        "application/json",
    ), answer
    assert set(answer) == {"error", "code"}
    assert answer["code"] == code, answer
    assert answer["error"].startswith(message), answer["error"]


def test_another_content_type_is_refused(client):
    response = client.post(
        "/v2/models/zoo/infer", content=b"x", headers={"content-type": "image/png"}
    )
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_content_type")


def test_labels_of_the_model_are_those_of_the_tests(classifier):
    assert classifier.manifest.labels == LABELS
