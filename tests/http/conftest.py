"""One server with two workers for all tests that do not stop it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.store.store import Store
from service.engine.classifier import Classifier
from tests.http.server import ANSWER_PATIENCE_S, Server, serving
from tests.models.packages import build_package, encode_png

LABELS = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu")
MAX_BODY_BYTES = 100_000
WORKERS = 2


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with model `zoo` in versions 1 (production) and 2."""
    folder = tmp_path_factory.mktemp("store")
    for seed in (0, 1):
        package = build_package(
            tmp_path_factory.mktemp("packages") / str(seed), labels=LABELS, seed=seed, cam=True
        )
        Store(folder).publish(package, name="zoo")
    return folder


@pytest.fixture(scope="session")
def classifier(store: Path) -> Classifier:
    """What the server must answer."""
    return Classifier.open("zoo", store=store, threads=1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Server]:
    """`loupe serve` with two workers; its log must be free of tracebacks when all tests are done
    with it.
    """
    with serving(
        tmp_path_factory.mktemp("server"),
        store=store,
        workers=WORKERS,
        max_body_bytes=MAX_BODY_BYTES,
    ) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=ANSWER_PATIENCE_S, trust_env=False) as opened:
        yield opened


@pytest.fixture(scope="session")
def photo() -> bytes:
    """An image that any test may send."""
    return make_photo(0)


def make_photo(seed: int) -> bytes:
    """A PNG of 11 x 9 random pixels, which must be resized and cropped."""
    return encode_png(np.random.default_rng(seed).integers(0, 256, size=(9, 11, 3), dtype=np.uint8))
