"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Threads of torch that wait for each other must not use the cores of other processes, such as a
# server under test. On two busy cores this makes the tests of the loop four times as fast. OpenMP
# reads it once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Photos and weights next to the checkout, not in it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("this test needs the photos of ../shared/data, which is missing")
    return folder
