"""The server's temporary folder: none is left behind, and none of a live server is removed."""

import fcntl
import os
import shutil
import stat
from pathlib import Path

import pytest

from models.errors import ConfigError
from service.server import home as module
from service.server.home import LOCK, clean, private_home
from service.settings import HOME_PREFIX as PREFIX


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(folder))
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path / "none")
    return folder


def test_it_is_private_and_goes_at_the_end(temporary):
    with private_home() as home:
        assert home.path.parent == temporary
        assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
        assert {path.name for path in home.path.iterdir()} == {"metrics", "tmp", LOCK}
    assert list(temporary.iterdir()) == []


def left(temporary: Path, *, locked: bool = True, age_s: float = 0.0) -> Path:
    """What a server left that was killed."""
    folder = temporary / f"{PREFIX}{len(list(temporary.iterdir()))}"
    folder.mkdir()
    (folder / "file").touch()
    if locked:
        (folder / LOCK).touch()
    then = folder.stat().st_mtime - age_s
    os.utime(folder, (then, then))
    return folder


def test_what_killed_servers_left_is_removed(temporary):
    dead = [left(temporary), left(temporary, locked=False, age_s=3600.0)]
    (temporary / "another").mkdir()
    with private_home() as home:
        assert [path for path in dead if path.exists()] == []
        assert set(temporary.iterdir()) == {temporary / "another", home.path}


def test_what_a_server_uses_or_just_makes_stays(temporary):
    used, new = left(temporary), left(temporary, locked=False)
    with (used / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clean(temporary)
    assert used.exists()
    assert new.exists()


def test_a_link_that_only_looks_like_a_folder_of_ours_is_not_followed(temporary, tmp_path):
    target = tmp_path / "precious"
    target.mkdir()
    (target / LOCK).touch()
    (temporary / f"{PREFIX}x").symlink_to(target)
    clean(temporary)
    assert (target / LOCK).exists()


def test_a_full_temporary_folder_is_replaced_by_shared_memory(temporary, tmp_path, monkeypatch):
    shared = tmp_path / "shm"
    shared.mkdir()
    monkeypatch.setattr(module, "SHARED_MEMORY", shared)
    shutil.rmtree(temporary)
    with private_home() as home:
        assert home.path.parent == shared


def test_without_any_room_the_error_says_where_it_looked(temporary, tmp_path):
    shutil.rmtree(temporary)
    with pytest.raises(ConfigError) as caught, private_home():
        pass
    assert str(caught.value) == (
        f"no folder for temporary files can be used ({temporary}: No such file or directory;"
        f" {tmp_path / 'none'}: No such file or directory); make room there, or name another one in"
        " TMPDIR"
    )
