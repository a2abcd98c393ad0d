"""Right answers over real sockets."""

import io
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

from service.engine.classifier import Classification
from tests.http.conftest import LABELS, make_photo
from tests.http.server import ANSWER_PATIENCE_S

ROUNDING = 1e-6
"""float32 sums of some dozen terms; a batch may add them in another order."""


def assert_same(answer: dict, expected: Classification) -> None:
    assert [p["label"] for p in answer["predictions"]] == [p.label for p in expected.predictions]
    assert [p["index"] for p in answer["predictions"]] == [p.index for p in expected.predictions]
    assert [p["probability"] for p in answer["predictions"]] == pytest.approx(
        [p.probability for p in expected.predictions], abs=ROUNDING
    )
    assert answer["abstained"] is expected.abstained


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(stream, format=kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "content_type"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("WEBP", "image/webp"),
        ("PNG", "application/octet-stream"),
        ("PNG", "IMAGE/PNG; charset=binary"),
        # What curl --data-binary says of any body, and what a client says that knows nothing.
        ("JPEG", "application/x-www-form-urlencoded"),
        ("JPEG", None),
        # The bytes decide, not their name.
        ("PNG", "image/jpeg"),
    ],
)
def test_the_answer_is_the_classifiers(client, classifier, kind, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    response = client.post("/v1/classify", content=encoded(kind), headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    assert answer["model"] == {"name": "zoo", "version": 1}
    assert answer["request_id"] == response.headers["x-request-id"]
    assert set(answer) == {"model", "predictions", "abstained", "request_id", "timing_ms"}
    assert_same(answer, classifier.classify([encoded(kind)])[0])


def test_a_body_that_comes_in_pieces_is_one_image(client, classifier, photo):
    pieces = (photo[start : start + 7] for start in range(0, len(photo), 7))
    response = client.post("/v1/classify", content=pieces)
    assert response.request.headers["transfer-encoding"] == "chunked"
    assert_same(response.json(), classifier.classify([photo])[0])


def test_concurrent_requests_get_their_own_answers(server, classifier):
    """120 images on 16 connections: each answer belongs to its image and its request id."""
    photos = [make_photo(seed) for seed in range(120)]
    limits = httpx.Limits(max_connections=16)
    with (
        httpx.Client(
            base_url=server.url, timeout=ANSWER_PATIENCE_S, limits=limits, trust_env=False
        ) as client,
        ThreadPoolExecutor(16) as threads,
    ):

        def ask(index: int) -> httpx.Response:
            return client.post(
                "/v1/classify",
                params={"top_k": 7},
                content=photos[index],
                headers={"x-request-id": f"request-{index}"},
            )

        responses = list(threads.map(ask, range(len(photos))))
    assert [response.status_code for response in responses] == [200] * len(photos)
    assert [response.json()["request_id"] for response in responses] == [
        f"request-{index}" for index in range(len(photos))
    ]
    for response, image in zip(responses, photos, strict=True):
        assert_same(response.json(), classifier.classify([image], top_k=7)[0])


@pytest.mark.parametrize(
    ("top_k", "count"), [("1", 1), ("3", 3), ("7", 7), ("8", 7), ("1000", 7), ("007", 7)]
)
def test_top_k_is_how_many_classes_come_back(client, photo, top_k, count):
    predictions = client.post("/v1/classify", params={"top_k": top_k}, content=photo).json()[
        "predictions"
    ]
    assert len(predictions) == count
    assert [p["probability"] for p in predictions] == sorted(
        (p["probability"] for p in predictions), reverse=True
    )


def test_five_classes_come_back_unless_asked(client, photo):
    assert len(client.post("/v1/classify", content=photo).json()["predictions"]) == 5


def test_the_served_model_may_be_named(client, photo):
    response = client.post("/v1/classify", params={"model": "zoo", "version": "1"}, content=photo)
    assert response.json()["model"] == {"name": "zoo", "version": 1}


@pytest.mark.parametrize("given", ["mine", "a.B-c_9", "x" * 128])
def test_a_harmless_request_id_is_kept(client, photo, given):
    response = client.post("/v1/classify", content=photo, headers={"x-request-id": given})
    assert (response.headers["x-request-id"], response.json()["request_id"]) == (given, given)


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", 'a"b', "a<b", b"a\xffb"])
def test_any_other_request_id_is_replaced(client, photo, given):
    response = client.post("/v1/classify", content=photo, headers={"x-request-id": given})
    assert response.headers["x-request-id"] == response.json()["request_id"]
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


def test_the_stages_of_the_time_add_up_to_no_more_than_all_of_it(client, photo):
    timing = client.post("/v1/classify", content=photo).json()["timing_ms"]
    assert set(timing) == {"read", "decode", "queue", "inference", "total"}
    assert timing["total"] > 0.0
    # Each stage is rounded to a thousandth.
    assert sum(ms for stage, ms in timing.items() if stage != "total") <= timing["total"] + 0.005


def test_a_percent_encoded_path_is_the_same_path(client, classifier, photo):
    assert_same(
        client.post("/v1/%63lassify?top_k=%35", content=photo).json(),
        classifier.classify([photo])[0],
    )


def test_a_long_query_is_taken(client, photo):
    response = client.post("/v1/classify?" + "a=1&" * 3_500 + "top_k=2", content=photo)
    assert len(response.json()["predictions"]) == 2


def test_the_models_that_are_served_are_listed(client, classifier):
    assert client.get("/v1/models").json() == {"models": [{"name": "zoo", "version": 1}]}
    shown = client.get("/v1/models/zoo").json()
    assert (shown["name"], shown["version"], tuple(shown["labels"])) == ("zoo", 1, LABELS)
    assert "files" not in shown, "only the manifest's public part"


def test_the_playground_is_a_page(client):
    response = client.get("/")
    assert (response.status_code, response.headers["content-type"]) == (
        200,
        "text/html; charset=utf-8",
    )
    assert "page/app.js" in response.text


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/v1/models/zoo", "/metrics", "/livez", "/readyz"]
)
def test_head_is_get_without_the_body(client, path):
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")
