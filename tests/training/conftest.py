"""One real run and its package, made once: every test that only looks at them shares them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.training.photos import COLOURS, write_photos
from tests.training.small_runs import TINY, Exported
from training.data.source import load_dataset
from training.export.export import export
from training.fit.loop import train


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other are what makes small networks slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("trained")
    photos = write_photos(root / "photos", dict.fromkeys(COLOURS, 30))
    # What an unpacked archive from macOS holds, and one damaged photo in ninety.
    (photos / "red/._000.png").write_bytes(b"AppleDouble")
    (photos / "red/damaged.png").write_bytes((photos / "red/000.png").read_bytes()[:500])
    run = train(TINY, load_dataset(str(photos), seed=TINY.seed), root / "run")
    manifest = export(run, root / "package")
    return Exported(run, photos, root / "package", manifest)
