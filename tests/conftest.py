"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Threads of torch that wait for each other must not keep the cores from others, such as a server
# under test: on two cores that others used as well, the tests of the loop took 194 s without and 48
# s with it. OpenMP reads it once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Photos and weights that lie beside the checkout, not in it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here: this test needs its photos")
    return folder
