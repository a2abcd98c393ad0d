"""API keys: what is written down, who is known, and what is refused."""

import asyncio
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from loupe import cli
from models.errors import ConfigError, NotReady
from service.gate import admission
from service.gate import keys as module
from service.gate.keys import READ_AGAIN_S, TRUST_UNREAD_S, KeyRing, add_key, read_keys, remove_key


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_known_by_itself_alone_and_its_file_does_not_hold_it(file):
    secret = add_key(file, name="app", scopes=("predict",))
    assert secret.startswith("loupe_")
    assert len(secret) > 40
    assert secret not in file.read_text(encoding="utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ring = KeyRing(file)
    assert ring.owner(secret).name == "app"
    for near in (secret[:-1], secret + "x", secret.upper(), "", "\udcff"):
        assert ring.owner(near) is None


def test_each_key_leads_to_its_own_name_and_a_removed_one_to_nobody(file, monkeypatch):
    monkeypatch.setattr(module, "READ_AGAIN_S", 0.0)
    secrets = {
        name: add_key(file, name=name, scopes=("predict", "admin")) for name in ("a", "b", "c")
    }
    ring = KeyRing(file)
    assert [ring.owner(secret).name for secret in secrets.values()] == ["a", "b", "c"]
    remove_key(file, name="b")
    assert [key.name for key in read_keys(file)] == ["a", "c"]
    assert ring.owner(secrets["b"]) is None
    assert ring.owner(secrets["c"]).scopes == ("predict", "admin")


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    stands = Clock()
    monkeypatch.setattr(module.time, "monotonic", stands)
    return stands


@pytest.fixture
def errors_logged(monkeypatch, caplog) -> Callable[[], list[str]]:
    monkeypatch.setattr(logging.getLogger("loupe"), "propagate", True)
    return lambda: [
        record.getMessage() for record in caplog.records if record.levelno == logging.ERROR
    ]


def spoil(file: Path) -> None:
    file.write_text("{", encoding="utf-8")


def put_a_folder_there(file: Path) -> None:
    file.unlink()
    file.mkdir()


def put_a_pipe_there(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def nest_deeply(file: Path) -> None:
    file.write_text("[" * 200_000, encoding="utf-8")


@pytest.mark.parametrize(
    "harm", [spoil, Path.unlink, put_a_folder_there, put_a_pipe_there, nest_deeply]
)
def test_a_file_that_cannot_be_read_is_bridged_for_a_bounded_time_and_no_longer(
    file, clock, errors_logged, harm
):
    secret = add_key(file, name="app", scopes=("predict",))
    seen: list[bool] = []
    ring = KeyRing(file, watch=seen.append)
    good = file.read_bytes()
    clock.now_s += READ_AGAIN_S
    assert ring.owner(secret).name == "app"
    harm(file)
    for _ in range(int(TRUST_UNREAD_S)):
        clock.now_s += READ_AGAIN_S
        assert ring.owner(secret).name == "app"
    (bridged,) = errors_logged()
    assert str(file) in bridged
    assert bridged.endswith(". The keys read last are trusted for 60 s at most")
    for _ in range(5):
        clock.now_s += READ_AGAIN_S
        with pytest.raises(
            NotReady,
            match="cannot read its API keys and trusts none until it can; its log has the reason",
        ):
            ring.owner(secret)
    assert len(errors_logged()) == 2
    assert errors_logged()[1].endswith(". No key is trusted until then")
    assert (seen[:2], seen[-1]) == ([False, False], True)
    # Put right, it counts again at the next look.
    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
    file.write_bytes(good)
    clock.now_s += READ_AGAIN_S
    assert ring.owner(secret).name == "app"
    assert seen[-1] is False


def test_a_service_that_nobody_asked_for_long_does_not_trust_keys_that_it_cannot_read(file, clock):
    secret = add_key(file, name="app", scopes=("predict",))
    ring = KeyRing(file)
    file.unlink()
    clock.now_s += 3600.0
    with pytest.raises(NotReady):
        ring.owner(secret)


def test_the_file_is_not_read_again_while_it_stays_as_it_is(file, clock, monkeypatch):
    secret = add_key(file, name="app", scopes=("predict",))
    ring = KeyRing(file)
    monkeypatch.setattr(module, "_parse", None)
    clock.now_s += 3600.0
    assert ring.owner(secret).name == "app"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize(
    ("owner", "mode"), [((12345, 23456), 0o640), ((0, 23456), 0o440), ((12345, 0), 0o600)]
)
def test_a_change_keeps_owner_group_and_mode(file, owner, mode):
    add_key(file, name="app", scopes=("predict",))
    os.chown(file, *owner)
    file.chmod(mode)
    add_key(file, name="other", scopes=("predict",))
    remove_key(file, name="app")
    state = file.stat()
    assert ((state.st_uid, state.st_gid), stat.S_IMODE(state.st_mode)) == (owner, mode)
    assert [key.name for key in read_keys(file)] == ["other"]
    # So that the owner can change the file too.
    lock = (file.parent / ".keys.json.lock").stat()
    assert (lock.st_uid, lock.st_gid) == owner
    assert sorted(path.name for path in file.parent.iterdir()) == [".keys.json.lock", "keys.json"]


@contextmanager
def as_another_user(folder: Path) -> Iterator[int]:
    """Inside, this process acts as another user, whose number it gives and to whom *folder* is
    given.
    """
    other = 12345
    for one in [folder, *folder.parents]:
        if one.is_relative_to(Path(tempfile.gettempdir()) / "pytest-of-root"):
            one.chmod(0o755)
    os.chown(folder, other, other)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(other)
    os.seteuid(other)
    try:
        yield other
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_the_service_of_another_user_refuses_a_key_that_root_removed(file, clock):
    secret = add_key(file, name="app", scopes=("predict",))
    with as_another_user(file.parent) as other:
        os.seteuid(0)
        os.chown(file, other, other)
        os.seteuid(other)
        ring = KeyRing(file)
        assert ring.owner(secret).name == "app"
        os.seteuid(0)
        assert (
            CliRunner().invoke(cli, ["keys", "remove", "app", "--file", str(file)]).exit_code == 0
        )
        os.seteuid(other)
        clock.now_s += READ_AGAIN_S
        assert ring.owner(secret) is None
        # And this user can change the file too, though root was there.
        add_key(file, name="mine", scopes=("predict",))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_file_that_may_not_be_read_any_more_is_not_trusted_for_ever(file, clock):
    """Its time of change stays the same."""
    secret = add_key(file, name="app", scopes=("predict",))
    file.chmod(0o644)
    with as_another_user(file.parent):
        ring = KeyRing(file)
        os.seteuid(0)
        file.chmod(0o600)
        os.seteuid(12345)
        clock.now_s += READ_AGAIN_S
        assert ring.owner(secret).name == "app"
        clock.now_s += TRUST_UNREAD_S
        with pytest.raises(NotReady):
            ring.owner(secret)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_where_the_owner_cannot_be_kept_nothing_changes(file):
    add_key(file, name="app", scopes=("predict",))
    file.chmod(0o644)
    (file.parent / ".keys.json.lock").unlink()
    before, state = file.read_bytes(), file.stat()
    message = (
        r"belongs to uid 0 and gid 0, and .* may not keep it so \(.*\); nothing was changed: run"
        r" the command as that user or as root$"
    )
    with as_another_user(file.parent), pytest.raises(ConfigError, match=message):
        remove_key(file, name="app")
    assert (file.read_bytes(), file.stat()) == (before, state)
    assert sorted(path.name for path in file.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_folder_that_is_not_there_is_named_and_not_called_a_store(tmp_path):
    with pytest.raises(
        ConfigError,
        match=(
            r"none/\.keys\.json\.lock: there is no such file or folder; check the path; the keys"
            r" are as they were$"
        ),
    ):
        add_key(tmp_path / "none" / "keys.json", name="app", scopes=("predict",))


def test_an_editors_byte_order_mark_is_passed_over(file):
    add_key(file, name="app", scopes=("predict",))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert [key.name for key in read_keys(file)] == ["app"]


def test_a_link_to_the_file_stays_a_link(file, tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(file)
    add_key(link, name="app", scopes=("predict",))
    add_key(link, name="other", scopes=("predict",))
    assert link.is_symlink()
    assert [key.name for key in read_keys(file)] == ["app", "other"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"keys": 1}',
        '{"keys": [{"name": "a"}]}',
        '{"keys": [{"nom": "a", "scopes": []}]}',
        "\x00",
    ],
)
def test_what_is_no_file_of_keys_is_refused(file, content):
    file.write_text(content, encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"is not a file of API keys: .*`loupe keys add` makes another$"
    ):
        read_keys(file)


@pytest.mark.parametrize(
    ("field", "value"), [("scopes", ["root"]), ("sha256", "abcd"), ("name", 7)]
)
def test_a_key_with_an_unknown_scope_or_hash_is_refused(file, field, value):
    add_key(file, name="app", scopes=("predict",))
    document = json.loads(file.read_text(encoding="utf-8"))
    document["keys"][0][field] = value
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(
        ConfigError,
        match=(
            rf"is not a file of API keys: keys\[0\]\.{field}.* is .*; .*(expected|String should"
            r" match)"
        ),
    ):
        read_keys(file)


def test_the_commands_add_list_and_remove(file):
    run = CliRunner()
    added = run.invoke(
        cli, ["keys", "add", "app", "--scope", "admin", "--scope", "predict", "--file", str(file)]
    )
    assert KeyRing(file).owner(added.output.strip()).scopes == ("admin", "predict")
    listed = run.invoke(cli, ["keys", "list", "--file", str(file)]).output
    assert listed.split()[:2] == ["app", "admin,predict"]
    again = run.invoke(cli, ["keys", "add", "app", "--file", str(file)])
    assert (
        str(again.exception)
        == f"{file} has a key of 'app' already; `loupe keys remove app` takes it away"
    )
    assert run.invoke(cli, ["keys", "remove", "app", "--file", str(file)]).exit_code == 0
    assert (
        str(run.invoke(cli, ["keys", "remove", "app", "--file", str(file)]).exception)
        == f"{file} has no key of 'app'; it has none"
    )
    assert str(run.invoke(cli, ["keys", "add", "../x", "--file", str(file)]).exception).startswith(
        "key name '../x' cannot be used: expected "
    )


def test_without_a_file_the_command_says_how_to_name_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOUPE_API_KEYS_FILE", raising=False)
    module_settings = pytest.importorskip("service.settings")
    module_settings.service_settings.cache_clear()
    assert (
        str(CliRunner().invoke(cli, ["keys", "list"]).exception)
        == "which file of keys? Say --file FILE, or set LOUPE_API_KEYS_FILE"
    )
    module_settings.service_settings.cache_clear()


def test_a_quiet_service_trusts_its_keys_as_long_as_a_busy_one(file, clock):
    """The file is looked at on a timer, not only when somebody asks."""
    told: list[bool] = []
    secret = add_key(file, name="app", scopes=("predict",))
    ring = KeyRing(file, watch=told.append)
    for _ in range(int(2 * TRUST_UNREAD_S)):
        clock.now_s += READ_AGAIN_S
        ring.refresh()
    file.write_text("{")
    clock.now_s += READ_AGAIN_S
    ring.refresh()
    assert told[-1], "the metric says so before anybody asks"
    owner = ring.owner(secret)
    assert owner is not None
    assert owner.name == "app"


def test_a_gate_looks_at_its_keys_while_nobody_asks(file, monkeypatch):
    add_key(file, name="app", scopes=("predict",))
    ring = KeyRing(file)
    gate = admission.Gate(keys=ring, max_inflight_bytes=1)
    monkeypatch.setattr(admission, "READ_AGAIN_S", 0.001)

    async def test() -> None:
        looked = asyncio.Event()
        monkeypatch.setattr(ring, "refresh", looked.set)
        task = asyncio.create_task(gate.watch_keys())
        async with asyncio.timeout(10.0):
            for _ in range(3):
                await looked.wait()
                looked.clear()
        task.cancel()

    asyncio.run(test())
