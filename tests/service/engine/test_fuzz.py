"""Whatever comes as a request to classify, the answer is one image's or a problem with a code,
never a failure of ours, and the next is right.
"""

import asyncio
import json
import logging
import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.decode_fuzz import mutated, seeds
from service.engine.classifier import Classifier
from service.engine.pipeline import Pipeline
from service.http.app import Application
from service.http.body.fetching import Fetcher
from service.settings import ServiceSettings
from tests.models.packages import build_package
from tests.service.held import PATIENCE_S

EXAMPLES = 150
BOUNDARY = b"edge"


class OneModel:
    """A worker with one pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.settings = ServiceSettings(max_body_bytes=4000, max_image_bytes=3000, max_images=4)
        self.fetcher = Fetcher(frozenset(), max_bytes=3000, timeout_s=1.0)
        self._pipeline = pipeline

    def pipeline(
        self, model: str | None = None, version: str | None = None, *, client: str = ""
    ) -> Pipeline:
        return self._pipeline


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Classifier:
    return Classifier.open(build_package(tmp_path_factory.mktemp("fuzz") / "tiny"), threads=1)


@pytest.fixture(scope="module")
def photo(opened: Classifier) -> bytes:
    return (opened.model.path / "golden" / "0.png").read_bytes()


def damaged(photo: bytes) -> st.SearchStrategy[bytes]:
    """*photo*, cut short, with some bytes replaced, or with something behind it."""
    cut = st.integers(0, len(photo)).map(lambda end: photo[:end])
    changed = st.tuples(st.integers(0, len(photo) - 1), st.binary(min_size=1, max_size=8)).map(
        lambda change: photo[: change[0]] + change[1] + photo[change[0] + len(change[1]) :]
    )
    return st.one_of(
        st.just(photo), cut, changed, st.binary(max_size=60).map(lambda more: photo + more)
    )


@cache
def small_files() -> dict[str, bytes]:
    """Of every format, those that a body of this test may hold."""
    return {name: encoded for name, encoded in seeds().items() if len(encoded) < 3000}


def of_any_format(seed: int) -> bytes:
    """A mutated image of any format that the service reads."""
    return next(mutated(small_files(), random.Random(seed)))


def bodies(photo: bytes) -> st.SearchStrategy[bytes]:
    """Anything that might be in a body, now and then too long."""
    image = damaged(photo) | st.integers(0, 2**32).map(of_any_format)
    form = image.map(
        lambda one: (
            b"--edge\r\nContent-Disposition: form-data; name=image\r\n\r\n" + one + b"\r\n--edge--"
        )
    )
    document = st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=True) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["images", "b64", "url"]) | st.text(max_size=5), inner, max_size=3
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
    return st.one_of(image, form, document, st.binary(max_size=200), st.just(bytes(4001)))


TYPES = st.sampled_from(
    [
        b"image/jpeg",
        b"image/png",
        b"IMAGE/PNG; q=1",
        b"application/json",
        b"multipart/form-data; boundary=" + BOUNDARY,
        b"multipart/form-data",
        b"text/html",
        b"",
    ]
) | st.binary(max_size=12)
QUERY = st.lists(
    st.tuples(
        st.sampled_from(
            [b"top_k", b"threshold", b"explain", b"embedding", b"explain_class", b"other"]
        ),
        st.sampled_from([b"1", b"0", b"grid", b"true", b"%ff", b""]),
    ),
    max_size=3,
).map(lambda pairs: b"&".join(name + b"=" + value for name, value in pairs)) | st.binary(
    max_size=12
)
MORE = st.lists(
    st.tuples(
        st.sampled_from(
            [
                b"content-length",
                b"content-encoding",
                b"origin",
                b"x-request-id",
                b"authorization",
                b"x-api-key",
            ]
        ),
        st.binary(max_size=12),
    ),
    max_size=3,
)


async def ask(
    app, *, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes, pieces: int
) -> tuple[int, dict]:
    size = max(1, -(-len(body) // pieces))
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    sent: list[dict] = []

    async def receive() -> dict:
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify",
        "query_string": query,
        "headers": headers,
    }
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def test_anything_gets_an_answer_or_a_problem_and_the_next_request_is_right(
    opened, photo, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("loupe"), "propagate", True)
    (expected,) = opened.classify([photo])
    seen: set[int] = set()

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(query=QUERY, kind=TYPES, more=MORE, body=bodies(photo), pieces=st.integers(1, 4))
    def check(
        query: bytes, kind: bytes, more: list[tuple[bytes, bytes]], body: bytes, pieces: int
    ) -> None:
        async def test() -> None:
            pipeline = Pipeline(
                opened, decode_threads=1, max_batch_size=4, max_queue_delay_s=0.0, max_queue_size=8
            )
            async with asyncio.timeout(PATIENCE_S), pipeline:
                app = Application(OneModel(pipeline))
                status, answer = await ask(
                    app,
                    query=query,
                    headers=[(b"content-type", kind), *more],
                    body=body,
                    pieces=pieces,
                )
                seen.add(status)
                if status == 200:
                    assert "predictions" in answer or "results" in answer
                else:
                    assert 400 <= status < 500, answer
                    assert answer["code"] in answer["type"]
                status, answer = await ask(app, query=b"", headers=[], body=photo, pieces=1)
                assert status == 200
                assert [one["label"] for one in answer["predictions"]] == [
                    one.label for one in expected.predictions
                ]

        asyncio.run(test())

    check()
    assert {200, 400, 415, 422} <= seen
    assert [record for record in caplog.records if record.exc_info] == []
