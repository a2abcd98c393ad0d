"""`POST /v1/classify` with forms, JSON documents and options, over real sockets to two workers."""

import base64
import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from models.pixels.preprocess import to_pixels
from models.store.store import Store
from tests.http.conftest import LABELS, make_photo
from tests.http.server import ANSWER_PATIENCE_S, serving
from tests.http.test_classify import ROUNDING, assert_same
from tests.models.packages import build_package

PHOTOS = [make_photo(seed) for seed in range(40)]


def as_form(*images: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [
        ("image", (f"{index}.png", encoded, "image/png")) for index, encoded in enumerate(images)
    ]


def as_json(*images: bytes) -> dict:
    return {"images": [{"b64": base64.b64encode(encoded).decode()} for encoded in images]}


def test_an_image_in_a_form_gets_the_flat_answer(client, classifier):
    answer = client.post("/v1/classify", files=as_form(PHOTOS[0])).json()
    assert set(answer) == {"model", "predictions", "abstained", "request_id", "timing_ms"}
    assert_same(answer, classifier.classify([PHOTOS[0]])[0])


def test_an_image_in_json_gets_the_flat_answer(client, classifier):
    answer = client.post("/v1/classify", json=as_json(PHOTOS[0])).json()
    assert set(answer) == {"model", "predictions", "abstained", "request_id", "timing_ms"}
    assert_same(answer, classifier.classify([PHOTOS[0]])[0])


@pytest.mark.parametrize("form", ["multipart", "json"])
def test_several_images_are_answered_in_their_order(client, classifier, form):
    """More than fit into a batch."""
    sent = {"files": as_form(*PHOTOS)} if form == "multipart" else {"json": as_json(*PHOTOS)}
    answer = client.post("/v1/classify", params={"top_k": 7}, **sent).json()
    assert set(answer) == {"model", "results", "request_id", "timing_ms"}
    for result, expected in zip(
        answer["results"], classifier.classify(PHOTOS, top_k=7), strict=True
    ):
        assert_same(result, expected)


@pytest.mark.parametrize("form", ["multipart", "json"])
def test_a_bad_image_among_good_ones_fails_alone(client, classifier, form):
    images = [PHOTOS[0], b"nothing of the kind", PHOTOS[1], PHOTOS[2][:70]]
    sent = {"files": as_form(*images)} if form == "multipart" else {"json": as_json(*images)}
    response = client.post("/v1/classify", **sent)
    first, text, second, cut = response.json()["results"]
    assert response.status_code == 200
    assert_same(first, classifier.classify([PHOTOS[0]])[0])
    assert_same(second, classifier.classify([PHOTOS[1]])[0])
    assert set(text) == {"error"}
    assert set(text["error"]) == {"type", "title", "status", "detail", "code"}
    assert (text["error"]["code"], text["error"]["status"]) == ("undecodable_image", 422)
    assert cut["error"]["code"] == "undecodable_image"


def test_base64_that_is_none_fails_alone(client):
    document = as_json(PHOTOS[0])
    document["images"] += [
        {"b64": "!!!"},
        {"b64": ""},
        {"b64": "data:image/png,AAAA"},
        {"b64": "AAAAA"},
        {"b64": "AA\u00e4A"},
    ]
    _, damaged, empty, data_url, cut, letters = client.post("/v1/classify", json=document).json()[
        "results"
    ]
    assert damaged["error"]["detail"].startswith("images[1] is no base64 (")
    assert (empty["error"]["code"], empty["error"]["detail"]) == (
        "empty_body",
        "images[2] has no bytes; expected an encoded image",
    )
    assert data_url["error"]["detail"] == "images[3] is no base64 (the data URL has no `;base64,`)"
    assert (
        cut["error"]["detail"]
        == "images[4] is no base64 (5 characters are one too many or too few)"
    )
    assert letters["error"]["detail"] == "images[5] is no base64 (character 2 is '\u00e4')"


def test_one_image_that_fails_is_the_whole_requests_failure(client):
    response = client.post("/v1/classify", json={"images": [{"b64": "!!!"}]})
    assert (response.status_code, response.json()["code"]) == (422, "undecodable_image")


def test_urls_are_refused_unless_hosts_are_allowed(client):
    response = client.post("/v1/classify", json={"images": [{"url": "https://127.0.0.1/a.png"}]})
    assert (response.status_code, response.json()["code"]) == (403, "url_refused")
    assert response.json()["detail"].startswith(
        "this service fetches no URLs; send the image itself, or set LOUPE_URL_HOSTS"
    )
    mixed = as_json(PHOTOS[0])
    mixed["images"].append({"url": "http://169.254.169.254/latest/meta-data"})
    good, refused = client.post("/v1/classify", json=mixed).json()["results"]
    assert good["predictions"]
    assert refused["error"]["code"] == "url_refused"


def test_only_classes_above_the_threshold_come_back(client, photo):
    everything = client.post("/v1/classify", params={"top_k": 7}, content=photo).json()[
        "predictions"
    ]
    threshold = everything[1]["probability"]
    some = client.post(
        "/v1/classify", params={"top_k": 7, "threshold": f"{threshold:.12f}"}, content=photo
    ).json()
    assert some["predictions"] == [
        one for one in everything if one["probability"] >= round(threshold, 12)
    ]
    assert (
        client.post("/v1/classify", params={"threshold": "1"}, content=photo).json()["predictions"]
        == []
    )


def test_the_embedding_is_the_graphs(client, classifier, photo):
    answer = client.post("/v1/classify", params={"embedding": "true"}, content=photo).json()
    pixels_HWC = to_pixels(photo, classifier.manifest.preprocess)
    expected_D = classifier.model.run(pixels_HWC[np.newaxis], ["embedding"])["embedding"][0]
    assert answer["embedding"] == pytest.approx(expected_D.tolist(), abs=ROUNDING)
    assert_same(answer, classifier.classify([photo])[0])


def test_the_grid_is_grad_cam_of_the_likeliest_class_scaled_to_its_peak(client, classifier, photo):
    answer = client.post("/v1/classify", params={"explain": "grid"}, content=photo).json()
    explanation, top = answer["explanation"], answer["predictions"][0]
    assert (explanation["label"], explanation["index"], explanation["method"]) == (
        top["label"],
        top["index"],
        "grad-cam",
    )
    pixels_HWC = to_pixels(photo, classifier.manifest.preprocess)
    cam_hw = classifier.model.run(pixels_HWC[np.newaxis], ["cam"])["cam"][0, top["index"]]
    assert explanation["peak"] == pytest.approx(float(cam_hw.max()), abs=ROUNDING)
    # Four decimals are sent.
    np.testing.assert_allclose(
        np.asarray(explanation["grid"]) * explanation["peak"],
        np.maximum(cam_hw, 0),
        atol=1e-4 * explanation["peak"],
    )
    assert "overlay_png" not in explanation


@pytest.mark.parametrize("chosen", ["gnu", "6"])
def test_another_class_may_be_explained(client, photo, chosen):
    explanation = client.post(
        "/v1/classify", params={"explain": "grid,overlay", "explain_class": chosen}, content=photo
    ).json()["explanation"]
    assert (explanation["label"], explanation["index"]) == ("gnu", LABELS.index("gnu"))
    assert set(explanation) == {"method", "label", "index", "peak", "grid", "overlay_png"}


def test_the_overlay_is_a_picture_of_the_models_input(client, classifier, photo):
    explanation = client.post("/v1/classify", params={"explain": "overlay"}, content=photo).json()[
        "explanation"
    ]
    assert "grid" not in explanation
    with Image.open(io.BytesIO(base64.b64decode(explanation["overlay_png"]))) as overlay:
        assert (overlay.format, overlay.size) == ("PNG", classifier.manifest.preprocess.crop[::-1])


def test_options_hold_for_each_of_several_images(client):
    results = client.post(
        "/v1/classify",
        params={"explain": "grid", "embedding": "true", "top_k": 2},
        files=as_form(*PHOTOS[:3]),
    ).json()["results"]
    assert [set(result) for result in results] == [
        {"predictions", "abstained", "explanation", "embedding"}
    ] * 3
    assert [len(result["predictions"]) for result in results] == [2] * 3


FORM = {"content-type": "multipart/form-data; boundary=x"}
JSON = {"content-type": "application/json"}
DISPOSITION = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n'
MANY = json.dumps({"images": [{"b64": "AAAA"}] * 65}).encode()
MANY_PARTS = b"".join(b"--x\r\n" + DISPOSITION + b"\r\na\r\n" for _ in range(65)) + b"--x--\r\n"

# name -> (query, body, headers, status, code, detail)
BAD = {
    "not json": ("", b"{", JSON, 400, "malformed_body", "the body is not JSON: "),
    "json without bytes": ("", b"", JSON, 400, "empty_body", "the body has no bytes"),
    "json of bytes": (
        "",
        b'"\xff"',
        JSON,
        400,
        "malformed_body",
        "the JSON is not UTF-8: byte 1 is 0xff",
    ),
    "json without end": (
        "",
        b"[" * 90_000,
        JSON,
        400,
        "malformed_body",
        "the JSON is nested too deeply",
    ),
    "json with NaN": (
        "",
        b'{"images": NaN}',
        JSON,
        400,
        "malformed_body",
        "the body is not JSON: NaN is not a number in JSON",
    ),
    "json of a long number": (
        "",
        b"9" * 9000,
        JSON,
        400,
        "malformed_body",
        "the body is not JSON: ",
    ),
    "a json list": (
        "",
        b"[]",
        JSON,
        400,
        "malformed_body",
        "expected a JSON object with the list `images`",
    ),
    "json null": (
        "",
        b"null",
        JSON,
        400,
        "malformed_body",
        "expected a JSON object with the list `images`",
    ),
    "more than images": (
        "",
        b'{"images": [], "top_k": 3}',
        JSON,
        400,
        "malformed_body",
        "expected a JSON object with the list `images`",
    ),
    "images is no list": (
        "",
        b'{"images": {}}',
        JSON,
        400,
        "malformed_body",
        "expected a JSON object with the list `images`",
    ),
    "no images": ("", b'{"images": []}', JSON, 400, "empty_body", "the list `images` is empty"),
    "image is text": (
        "",
        b'{"images": ["AAAA"]}',
        JSON,
        400,
        "malformed_body",
        "images[0] is 'AAAA'; expected an object as",
    ),
    "image of both": (
        "",
        b'{"images": [{"b64": "", "url": ""}]}',
        JSON,
        400,
        "malformed_body",
        "images[0] is {",
    ),
    "image is a number": (
        "",
        b'{"images": [{"b64": 3}]}',
        JSON,
        400,
        "malformed_body",
        "images[0] is {'b64': 3}",
    ),
    "half a surrogate": (
        "",
        b'{"images": ["\\ud800"]}',
        JSON,
        400,
        "malformed_body",
        "images[0] is '\\ud800'",
    ),
    "65 images": (
        "",
        MANY,
        JSON,
        413,
        "too_many_images",
        "the request has 65 images; at most 64 are taken in one: send several",
    ),
    "65 parts": (
        "",
        MANY_PARTS,
        FORM,
        413,
        "too_many_images",
        "the request has 65 images; at most 64 are taken in one: send several",
    ),
    "parts without end": (
        "",
        MANY_PARTS[:-7] * 2,
        FORM,
        413,
        "too_many_images",
        "the form has more than 80 parts",
    ),
    "a form without bytes": (
        "",
        b"",
        FORM,
        400,
        "malformed_body",
        "the multipart body ends before its closing boundary, after 0 whole parts",
    ),
    "a form without parts": (
        "",
        b"--x--\r\n",
        FORM,
        400,
        "empty_body",
        "expected images in fields called image, file, data, images or images[]",
    ),
    "half a form": (
        "",
        b"--x\r\n" + DISPOSITION + b"\r\nabc",
        FORM,
        400,
        "malformed_body",
        "the multipart body ends before its closing boundary",
    ),
    "another boundary": (
        "",
        b"--y\r\n" + DISPOSITION + b"\r\nabc\r\n--y--",
        FORM,
        400,
        "malformed_body",
        "the multipart body is damaged",
    ),
    "a part without a name": (
        "",
        b"--x\r\nA: b\r\n\r\nabc\r\n--x--",
        FORM,
        400,
        "malformed_body",
        "part 1 of the form has no header",
    ),
    "a part of another name": (
        "",
        b"--x\r\nContent-Disposition: form-data; name=photo\r\n\r\nabc\r\n--x--",
        FORM,
        400,
        "bad_request",
        (
            "expected images in fields called image, file, data, images or images[], or one file in"
            " any field; received 'photo' (text): `curl -F"
        ),
    ),
    "an encoded part": (
        "",
        b"--x\r\n" + DISPOSITION + b"Content-Transfer-Encoding: base64\r\n\r\nabc\r\n--x--",
        FORM,
        400,
        "malformed_body",
        "part 1 of the form has the transfer encoding 'base64'",
    ),
    "a part with many headers": (
        "",
        b"--x\r\n" + b"A: b\r\n" * 50 + b"\r\nabc\r\n--x--",
        FORM,
        400,
        "malformed_body",
        "the multipart body is dama",
    ),
    "a part with a long header": (
        "",
        b"--x\r\nA: " + b"b" * 9000,
        FORM,
        400,
        "malformed_body",
        "the multipart body is damaged",
    ),
    "a long boundary": (
        "",
        b"",
        {"content-type": f"multipart/form-data; boundary={'b' * 999}"},
        400,
        "malformed_body",
        "the boundary of the form",
    ),
    "a compressed body": (
        "",
        PHOTOS[0],
        {"content-encoding": "gzip"},
        415,
        "unsupported_content_type",
        "content encoding 'gzip' is not taken; send the body as it is",
    ),
    "threshold 2": (
        "?threshold=2",
        PHOTOS[0],
        {},
        400,
        "bad_request",
        "threshold is '2'; expected a number of 0 to 1, such as 0.5",
    ),
    "threshold 1.5": (
        "?threshold=1.5",
        PHOTOS[0],
        {},
        400,
        "bad_request",
        "threshold is '1.5'; expected",
    ),
    "threshold nan": (
        "?threshold=nan",
        PHOTOS[0],
        {},
        400,
        "bad_request",
        "threshold is 'nan'; expected",
    ),
    "threshold -0.1": (
        "?threshold=-0.1",
        PHOTOS[0],
        {},
        400,
        "bad_request",
        "threshold is '-0.1'; expected",
    ),
    "threshold 1e-3": (
        "?threshold=1e-3",
        PHOTOS[0],
        {},
        400,
        "bad_request",
        "threshold is '1e-3'; expected",
    ),
    "embedding 1": (
        "?embedding=1",
        PHOTOS[0],
        {},
        400,
        "bad_request",
        "embedding is '1'; expected true or false",
    ),
    "explain yes": (
        "?explain=yes",
        PHOTOS[0],
        {},
        400,
        "bad_request",
        "explain is 'yes'; expected ",
    ),
    "a class alone": (
        "?explain_class=ant",
        PHOTOS[0],
        {},
        400,
        "bad_request",
        "explain_class is given without explain; add explain=grid",
    ),
    "no such class": (
        "?explain=grid&explain_class=7",
        PHOTOS[0],
        {},
        400,
        "bad_request",
        "explain_class is '7'; expected a label of the model or",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies_and_options_get_their_problem(client, name):
    query, body, headers, status, code, detail = BAD[name]
    response = client.post(f"/v1/classify{query}", content=body, headers=headers)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["detail"].startswith(detail), problem["detail"]


def test_after_all_of_them_the_next_good_request_is_right(server, client, classifier, photo):
    for query, body, headers, status, *_ in BAD.values():
        assert (
            client.post(f"/v1/classify{query}", content=body, headers=headers).status_code == status
        )
    assert_same(client.post("/v1/classify", content=photo).json(), classifier.classify([photo])[0])
    assert len(server.workers()) == 2
    assert "Traceback" not in server.log


def test_a_model_without_class_activation_explains_nothing_and_says_so(tmp_path):
    Store(tmp_path / "store").publish(
        build_package(tmp_path / "package", labels=LABELS), name="blind"
    )
    with (
        serving(tmp_path, store=tmp_path / "store") as server,
        httpx.Client(base_url=server.url, timeout=ANSWER_PATIENCE_S, trust_env=False) as client,
    ):
        response = client.post("/v1/classify", params={"explain": "grid"}, content=PHOTOS[0])
        assert (response.status_code, response.json()["code"]) == (422, "output_unavailable")
        assert (
            response.json()["detail"]
            == "version 1 of blind has no output cam, only logits, probabilities, embedding: its"
            " network gives none; docs/training.md tells which do"
        )
        assert client.post("/v1/classify", content=PHOTOS[0]).status_code == 200
