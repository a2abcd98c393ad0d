"""A tiny model and photos for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.store.store import Store
from tests.models.packages import build_package
from tests.service.scoring.jobs import LABELS, SIZE, write_photos


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """A store with the model `tiny`."""
    folder = tmp_path_factory.mktemp("scoring")
    Store(folder / "store").publish(
        build_package(folder / "package", labels=LABELS, size=SIZE), name="tiny"
    )
    return folder / "store"


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of 200 photos in two folders."""
    return write_photos(tmp_path / "photos", 200)
