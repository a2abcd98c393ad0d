"""The Python client against a real server, and against one that misbehaves as the test says."""

import asyncio
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.errors import (
    BadRequest,
    DataError,
    LoupeError,
    NotReady,
    QueueFull,
    RateLimited,
    ServiceUnreachable,
    UndecodableImage,
    UnknownModel,
)
from models.pixels.endings import ENDINGS
from service.client import Answer, AsyncClient, Client, ServedModel
from service.client.wire import image_files
from service.engine.classifier import Classification
from tests.http.conftest import make_photo
from tests.http.server import free_port
from tests.http.test_classify import ROUNDING

ROOT = Path(__file__).parents[2]
PHOTOS = [make_photo(seed) for seed in range(24)]
PATIENCE_S = 30.0


@pytest.fixture
def opened(server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """24 photos in two folders, a file that is none, and one that is not for us."""
    root = tmp_path_factory.mktemp("photos")
    for index, photo in enumerate(PHOTOS):
        path = root / ("a" if index % 2 else "b") / f"{index:02}.PNG"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photo)
    (root / "b" / "text.jpg").write_bytes(b"text")
    (root / "notes.txt").write_text("not an image")
    return root


def assert_answers(answer: object, expected: Classification) -> None:
    assert isinstance(answer, Answer), answer
    assert [one.label for one in answer.predictions] == [one.label for one in expected.predictions]
    assert [one.probability for one in answer.predictions] == pytest.approx(
        [one.probability for one in expected.predictions], abs=ROUNDING
    )


def test_one_image_is_classified(opened, classifier, folder):
    answer = opened.classify(folder / "b" / "00.PNG", top_k=3)
    assert_answers(answer, classifier.classify([PHOTOS[0]], top_k=3)[0])
    assert (answer.model, answer.version, answer.top.label) == (
        "zoo",
        1,
        answer.predictions[0].label,
    )
    assert (answer.explanation, answer.embedding) == (None, None)


def test_options_become_what_they_ask_for(opened):
    answer = opened.classify(
        PHOTOS[0], explain="grid,overlay", explain_class="gnu", embedding=True, threshold=0.0
    )
    assert answer.explanation is not None
    assert answer.explanation.label == "gnu"
    assert len(answer.explanation.grid) == 8
    assert answer.explanation.overlay_png.startswith(b"\x89PNG")
    assert len(answer.embedding) == 3


def test_models_are_listed(opened):
    assert opened.models() == [ServedModel("zoo", 1)]


def test_many_images_go_in_batches_and_come_back_in_order(opened, classifier):
    images = [*PHOTOS[:10], b"text", *PHOTOS[10:]]
    answers = opened.classify_many(images, batch_size=4)
    assert isinstance(answers[10], UndecodableImage)
    for answer, expected in zip(
        answers[:10] + answers[11:], classifier.classify(PHOTOS), strict=True
    ):
        assert_answers(answer, expected)
    assert opened.classify_many([]) == []


@pytest.mark.parametrize("ordered", [True, False])
def test_a_folder_streams(opened, classifier, folder, ordered):
    found = list(opened.classify_folder(folder, ordered=ordered))
    paths = [path for path, _ in found]
    assert sorted(paths) == [*sorted(folder.rglob("*.PNG")), folder / "b" / "text.jpg"]
    assert not ordered or paths == sorted(paths)
    for path, answer in found:
        if path.suffix == ".jpg":
            assert isinstance(answer, UndecodableImage)
        else:
            assert_answers(answer, classifier.classify([path.read_bytes()])[0])


def test_a_folder_gives_the_files_that_training_and_scoring_take_for_images(tmp_path):
    (tmp_path / "notes.txt").touch()
    for ending in ENDINGS:
        (tmp_path / f"x{ending.upper()}").touch()
    assert [path.suffix.lower() for path in image_files(tmp_path)] == sorted(ENDINGS)


def test_a_folder_may_be_left_in_the_middle(opened, folder):
    found = opened.classify_folder(folder)
    assert isinstance(next(found)[1], Answer)
    found.close()
    assert opened.models()


def test_asyncio_gets_the_same(server, classifier, folder):
    async def test() -> None:
        async with AsyncClient(server.url, concurrency=4) as client:
            assert await client.models() == [ServedModel("zoo", 1)]
            assert_answers(
                await client.classify(folder / "b" / "00.PNG"), classifier.classify([PHOTOS[0]])[0]
            )
            for answer, expected in zip(
                await client.classify_many(PHOTOS, batch_size=5),
                classifier.classify(PHOTOS),
                strict=True,
            ):
                assert_answers(answer, expected)
            found = [path async for path, _ in client.classify_folder(folder)]
            assert found == sorted(found)
            assert len(found) == len(PHOTOS) + 1
            assert (
                len([path async for path, _ in client.classify_folder(folder, ordered=False)])
                == len(PHOTOS) + 1
            )
            with pytest.raises(UnknownModel, match="model 'ants' is not served"):
                await client.classify(PHOTOS[0], model="ants")

    asyncio.run(test())


def test_problems_become_the_errors_of_the_tree(opened):
    with pytest.raises(UndecodableImage, match=r"received 4 bytes .* \(request [0-9a-f]{32}\)"):
        opened.classify(b"text")
    with pytest.raises(BadRequest, match="top_k is '0'"):
        opened.classify(PHOTOS[0], top_k=0)
    with pytest.raises(BadRequest, match="no option 'topk'; expected embedding, explain"):
        opened.classify(PHOTOS[0], topk=3)
    with pytest.raises(BadRequest, match="batch_size is 0; expected 1 or more"):
        opened.classify_many(PHOTOS, batch_size=0)
    with pytest.raises(DataError, match=r"nowhere.jpg cannot be read: No such file"):
        opened.classify(Path("nowhere.jpg"))
    with pytest.raises(DataError, match="nowhere is not a folder"):
        opened.classify_folder(Path("nowhere"))


def test_nobody_there_is_said_so():
    url = f"http://127.0.0.1:{free_port()}"
    with (
        Client(url, retries=1, patience_s=2.0) as client,
        pytest.raises(ServiceUnreachable, match=f"no answer from {url}"),
    ):
        client.models()


class Scripted(http.server.BaseHTTPRequestHandler):
    """Gives the next of `answers`; the last one forever."""

    protocol_version = "HTTP/1.1"
    answers: list[tuple[int, dict[str, str], bytes]]
    asked: list[float]
    tokens: list[str | None]

    def do_GET(self) -> None:
        self.asked.append(time.monotonic())
        self.tokens.append(self.headers["Authorization"])
        status, headers, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[tuple[str, type[Scripted]]]:
    handler = type("Handler", (Scripted,), {"answers": [], "asked": [], "tokens": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()
        thread.join(PATIENCE_S)


def refusal(status: int, code: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    problem = {
        "type": "",
        "title": "",
        "status": status,
        "detail": "words",
        "code": code,
        "request_id": "mine",
    }
    return (
        status,
        {name.replace("_", "-"): value for name, value in headers.items()},
        json.dumps(problem).encode(),
    )


GOOD = (200, {}, b'{"models": [{"name": "zoo", "version": 1}]}')


def test_what_passes_is_asked_again_after_the_time_that_the_service_says(scripted):
    url, handler = scripted
    handler.answers[:] = [refusal(503, "queue_full", Retry_After="1"), GOOD]
    with Client(url, token="secret") as client:
        assert client.models() == [ServedModel("zoo", 1)]
    first, second = handler.asked
    # Not earlier than asked; a quarter of the own first pause may be added, and the machine may be
    # busy.
    assert 1.0 <= second - first < PATIENCE_S
    assert handler.tokens == ["Bearer secret"] * 2


@pytest.mark.parametrize(
    "answer",
    [
        (0, {}, b""),
        refusal(504, "deadline_exceeded"),
        refusal(429, "too_many_requests"),
        (503, {}, b"<html>"),
    ],
)
def test_every_passing_failure_is_asked_again(scripted, answer):
    url, handler = scripted
    handler.answers[:] = [answer, GOOD]
    with Client(url) as client:
        assert client.models() == [ServedModel("zoo", 1)]
    assert len(handler.asked) == 2


def test_retries_are_bounded_in_number(scripted):
    url, handler = scripted
    handler.answers[:] = [refusal(503, "not_ready")]
    with Client(url, retries=2) as client, pytest.raises(NotReady, match=r"words \(request mine\)"):
        client.models()
    assert len(handler.asked) == 3


def test_retries_are_bounded_in_time(scripted):
    """An hour of waiting is more than the patience: it gives up at once, and tells."""
    url, handler = scripted
    handler.answers[:] = [refusal(503, "queue_full", Retry_After="3600")]
    with Client(url, patience_s=5.0) as client, pytest.raises(QueueFull) as caught:
        client.models()
    assert caught.value.retry_after_s == 3600.0
    assert len(handler.asked) == 1


def test_a_rate_limit_says_when_to_come_back(scripted):
    url, handler = scripted
    handler.answers[:] = [refusal(429, "rate_limited", Retry_After="7")]
    with Client(url, retries=0) as client, pytest.raises(RateLimited) as caught:
        client.models()
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(refusal(400, "bad_request"), BadRequest), (refusal(500, "internal_error"), LoupeError)],
)
def test_what_will_not_pass_is_not_asked_again(scripted, answer, kind):
    url, handler = scripted
    handler.answers[:] = [answer]
    with Client(url) as client, pytest.raises(kind, match="words"):
        client.models()
    assert len(handler.asked) == 1


def test_another_servers_page_is_not_taken_for_an_answer(scripted):
    url, handler = scripted
    handler.answers[:] = [(200, {}, b"<html>")]
    with (
        Client(url) as client,
        pytest.raises(ServiceUnreachable, match="is it Loupe that listens there"),
    ):
        client.models()


def test_asyncio_asks_again_too(scripted):
    url, handler = scripted
    handler.answers[:] = [(0, {}, b""), refusal(503, "queue_full", Retry_After="0"), GOOD]

    async def ask() -> list[ServedModel]:
        async with AsyncClient(url) as client:
            return await client.models()

    assert asyncio.run(ask()) == [ServedModel("zoo", 1)]
    assert len(handler.asked) == 3


def test_the_client_needs_httpx_alone():
    probe = (
        "import sys; import service.client; print(' '.join({name.partition('.')[0] for name in"
        " sys.modules}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "httpx" in loaded
    assert {
        "bentoml",
        "onnxruntime",
        "numpy",
        "PIL",
        "starlette",
        "pydantic",
        "prometheus_client",
        "onnx",
    } & set(loaded) == set()
