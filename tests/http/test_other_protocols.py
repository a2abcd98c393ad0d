"""TorchServe's interface and BentoML's client, over real sockets to two workers."""

import asyncio
import warnings
from types import ModuleType

import pytest

from tests.http.conftest import make_photo
from tests.http.test_classify import ROUNDING, assert_same


def expected(classifier, photo: bytes) -> dict[str, float]:
    (answer,) = classifier.classify([photo], top_k=5)
    return {one.label: pytest.approx(one.probability, abs=ROUNDING) for one in answer.predictions}


@pytest.mark.parametrize("path", ["/predictions/zoo", "/predictions/zoo/1"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_predictions_are_the_five_likeliest_labels(client, classifier, photo, path, method):
    """PUT too: TorchServe's own examples say `curl -T`."""
    response = client.request(method, path, content=photo)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == expected(classifier, photo)
    assert list(response.json()) == list(expected(classifier, photo)), "the likeliest comes first"


def test_a_form_with_data_is_taken(client, classifier, photo):
    assert client.post("/predictions/zoo", files={"data": photo}).json() == expected(
        classifier, photo
    )


def test_ping_says_healthy(client):
    assert client.get("/ping").json() == {"status": "Healthy"}


@pytest.mark.parametrize(
    ("path", "sent", "status", "code", "message"),
    [
        (
            "/predictions/ants",
            {"content": b"x"},
            404,
            "unknown_model",
            "model 'ants' is not served; served: zoo",
        ),
        (
            "/predictions/zoo/1.0",
            {"content": b"x"},
            404,
            "unknown_model",
            "version '1.0' of zoo is not served; served: 1",
        ),
        ("/predictions/zoo", {"content": b""}, 400, "empty_body", "the body has no bytes"),
        ("/predictions/zoo", {"content": b"text"}, 422, "undecodable_image", "received 4 bytes"),
        (
            "/predictions/zoo",
            {"files": {"a": b"x", "b": b"y"}},
            400,
            "bad_request",
            "expected images in fields called image, file, data, images or",
        ),
        (
            "/predictions/zoo",
            {"files": [("data", b"x"), ("data", b"y")]},
            413,
            "too_many_images",
            "the request has 2 images; at most 1 are taken",
        ),
        (
            "/predictions/zoo",
            {"json": {"data": "x"}},
            422,
            "undecodable_image",
            "the field 'data' is no base64 (1 characters are one too many",
        ),
        ("/predictions/zoo", {"json": [1]}, 400, "malformed_body", "expected a JSON object"),
        (
            "/predictions/zoo/1/2",
            {"content": b"x"},
            404,
            "unknown_route",
            "no route /predictions/zoo/1/2",
        ),
    ],
)
def test_refusals_have_torchserves_members(client, path, sent, status, code, message):
    response = client.post(path, **sent)
    answer = response.json()
    assert set(answer) == {"code", "type", "message"}
    assert (response.status_code, answer["code"], answer["type"]) == (status, status, code)
    assert answer["message"].startswith(message)


@pytest.fixture(scope="module")
def bentoml() -> ModuleType:
    """Imported here, where what its own dependencies warn of is not our failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bentoml

        # It imports the rest of itself when a name is first used.
        assert bentoml.SyncHTTPClient
        assert bentoml.AsyncHTTPClient
        assert bentoml.exceptions
    return bentoml


@pytest.fixture(scope="module")
def stock(bentoml, server):
    with bentoml.SyncHTTPClient(server.url) as opened:
        yield opened
    # It leaves this to the garbage collector, which warns.
    opened._temp_dir.cleanup()


def test_the_stock_client_finds_classify_and_is_answered(stock, classifier, photo, tmp_path):
    file = tmp_path / "photo.png"
    file.write_bytes(photo)
    answer = stock.classify(image=file)
    assert_same(answer, classifier.classify([photo])[0])
    assert answer["model"] == {"name": "zoo", "version": 1}


def test_the_stock_clients_options_are_taken(bentoml, stock, photo, tmp_path):
    file = tmp_path / "photo.png"
    file.write_bytes(photo)
    assert len(stock.classify(image=file, top_k=2)["predictions"]) == 2
    assert stock.classify(image=file, threshold=1.0)["predictions"] == []
    assert stock.classify(image=file, model="zoo", version="1")["model"] == {
        "name": "zoo",
        "version": 1,
    }
    with pytest.raises(
        bentoml.exceptions.BentoMLException, match="model 'ants' is not served; served: zoo"
    ):
        stock.classify(image=file, model="ants")


def test_the_stock_client_for_asyncio_is_answered(bentoml, server, classifier, tmp_path):
    photos = [make_photo(seed) for seed in range(6)]
    for index, photo in enumerate(photos):
        (tmp_path / f"{index}.png").write_bytes(photo)

    async def ask() -> list[dict]:
        async with bentoml.AsyncHTTPClient(server.url) as client:
            # One by one: a call of this client closes the files of all others that are on the way.
            answers = [await client.classify(image=tmp_path / f"{index}.png") for index in range(6)]
        client._temp_dir.cleanup()
        return answers

    for answer, expectation in zip(asyncio.run(ask()), classifier.classify(photos), strict=True):
        assert_same(answer, expectation)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.png", "https://example.com/a.png"])
def test_a_url_in_place_of_the_file_is_refused_and_not_fetched(bentoml, stock, client, url):
    """BentoML's own endpoints would fetch it.

    The client sends a form without a file; others may send a part.
    """
    with pytest.raises(bentoml.exceptions.BentoMLException, match="URLs are not fetched here"):
        stock.classify(image=url)
    response = client.post("/classify", files={"image": (None, url.encode())})
    assert (response.status_code, response.json()["code"]) == (403, "url_refused")


@pytest.mark.parametrize(
    ("files", "status", "code", "detail"),
    [
        (
            {"top_k": (None, b"3")},
            400,
            "empty_body",
            "expected images in fields called image, file, data, images or images[]",
        ),
        (
            [("image", b"x"), ("image", b"y")],
            413,
            "too_many_images",
            "the request has 2 images; at most 1 are taken in one",
        ),
        ({"image": b"x", "top_k": (None, b"{")}, 400, "malformed_body", "the body is not JSON"),
        (
            {"image": b"x", "top_k": (None, b"[3]")},
            400,
            "malformed_body",
            "the part 'top_k' is not JSON text or a number",
        ),
        ({"image": b"x", "top_k": (None, b"0")}, 400, "bad_request", "top_k is '0'"),
        (
            {"image": b"x", "colour": (None, b"3")},
            400,
            "bad_request",
            "the form has a part called 'colour'; expected image, top_k",
        ),
        ({"image": b"x"}, 422, "undecodable_image", "received 1 bytes"),
    ],
)
def test_bad_forms_get_their_problem(client, files, status, code, detail):
    response = client.post("/classify", files=files)
    assert (response.status_code, response.json()["code"]) == (status, code), response.json()
    assert response.json()["detail"].startswith(detail)
