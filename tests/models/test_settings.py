"""Where the store is: argument, then environment, then `loupe.toml`, then the default."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from models.errors import ConfigError
from models.settings import StoreSettings, load_store_settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOUPE_STORE", raising=False)


def test_the_default_is_below_the_working_directory():
    assert StoreSettings().store == Path("artifacts/store")


def test_each_source_wins_over_the_one_below_it(tmp_path, monkeypatch):
    (tmp_path / "loupe.toml").write_text('store = "from-file"\nport = 3000\n')
    assert StoreSettings().store == Path("from-file")
    monkeypatch.setenv("LOUPE_STORE", "from-environment")
    assert StoreSettings().store == Path("from-environment")
    assert StoreSettings(store=Path("from-argument")).store == Path("from-argument")


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="Instance is frozen"):
        StoreSettings().store = Path("other")


@pytest.mark.parametrize(
    "content", [b"store = [", b"store = 17\n", b"\xff\xfe", b"store = " + b"[" * 100_000]
)
def test_a_file_of_settings_that_cannot_be_used_is_named(tmp_path, content):
    (tmp_path / "loupe.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"loupe\.toml|LOUPE_STORE"):
        load_store_settings()
