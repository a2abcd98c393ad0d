"""The store keeps every promise while others write, processes die and disks refuse."""

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.atomic_files import locked, staging, storage_errors
from models.errors import ManifestInvalid, PackageTampered, StoreError, UnknownModel, UnknownVersion
from models.package.verify import verify_package
from models.store.history import HistoryEntry, previous_version, settle
from models.store.store import LOCK_FILE, ModelRef, Store
from tests.models.packages import build_package

CHECKOUT = Path(__file__).parents[3]

PUBLISHER = """
import sys
from pathlib import Path
from models.store.store import Store
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    ref = Store(Path(sys.argv[1])).publish(Path(sys.argv[2]), name="ants", why="race")
    print(ref.version, flush=True)
"""


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_package(tmp_path_factory.mktemp("packages") / "package")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def filled(store: Store, package: Path) -> Store:
    """A store whose model `ants` has versions 1 to 4, promoted in turn: production is 3, candidate
    4.
    """
    for _ in range(4):
        store.publish(package, name="ants")
    store.promote("ants", 2)
    store.promote("ants", 3)
    return store


def publisher(store: Store, package: Path, *, times: int) -> subprocess.Popen[str]:
    """A process that publishes *times* times once a line is written to it; it has said `ready` when
    this returns.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, store.root, package, str(times)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def start(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def assert_valid(store: Store, *, name: str = "ants") -> None:
    """Every visible version verifies and every alias leads to one."""
    for version in store.versions(name):
        verify_package(store.resolve(f"{name}:{version}").path)
    assert set(store.aliases(name)) == {"candidate", "production"}
    for alias in store.aliases(name):
        assert store.resolve(f"{name}@{alias}").version in store.versions(name)
    assert store.resolve(name).version == store.aliases(name)["production"]
    assert all(isinstance(entry, HistoryEntry) for entry in store.history(name))


def hidden(store: Store) -> list[str]:
    return sorted(
        path.name
        for path in (store.root / "ants").iterdir()
        if path.name.startswith(".") and path.name != LOCK_FILE
    )


def test_opening_a_store_makes_nothing(store):
    assert store.names() == []
    with pytest.raises(
        UnknownModel,
        match=(
            r"no model 'ants' in the store .*; it is empty: `loupe publish PACKAGE --name NAME`"
            r" puts one there"
        ),
    ):
        store.resolve("ants")
    assert not store.root.exists()


def test_the_first_version_is_candidate_and_production(store, package):
    ref = store.publish(package, name="ants")

    assert ref == ModelRef(name="ants", version=1, path=store.root / "ants" / "1")
    assert str(ref) == "ants:1"
    assert (
        store.resolve("ants") == store.resolve("ants@candidate") == store.resolve("ants:1") == ref
    )
    assert verify_package(ref.path).model == verify_package(package).model
    assert json.loads((store.root / "ants/aliases.json").read_text()) == {
        "candidate": 1,
        "production": 1,
    }
    assert hidden(store) == []


def test_a_later_version_is_candidate_only(store, package):
    store.publish(package, name="ants")
    store.publish(package, name="ants")
    assert store.aliases("ants") == {"candidate": 2, "production": 1}
    assert store.versions("ants") == [1, 2]
    assert store.names() == ["ants"]


def test_a_refused_package_leaves_no_trace(store, package, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(package, bad)
    (bad / "model.onnx").write_bytes(b"")
    with pytest.raises(PackageTampered, match="is truncated"):
        store.publish(bad, name="ants")
    with pytest.raises(ManifestInvalid, match="is not a model package"):
        store.publish(tmp_path / "absent", name="ants")
    assert not store.root.exists()


@pytest.mark.parametrize(
    "name", ["", "..", ".hidden", "a/b", "A", "12", "-x", "a" * 65, "a\n", "a@b", "a:1", "ä"]
)
def test_a_name_that_could_form_a_path_or_a_version_is_refused(store, package, name):
    with pytest.raises(
        StoreError,
        match=(
            r"model name .* cannot be used: expected lowercase letters, digits, '\.', '_' and '-'"
        ),
    ):
        store.publish(package, name=name)
    with pytest.raises(UnknownModel, match="no model"):
        store.versions(name)
    assert not store.root.exists()


def test_an_unknown_reference_is_answered_with_what_there_is(filled, package):
    filled.publish(package, name="bees")
    with pytest.raises(UnknownModel, match=r"no model 'wasps' in the store .*; it has ants, bees"):
        filled.resolve("wasps@production")
    what_there_is = "versions: 1, 2, 3, 4; aliases: candidate = 4, production = 3"
    for reference, what in [
        ("ants:9", "version '9'"),
        ("ants:01", "version '01'"),
        ("ants:", "version ''"),
        ("ants@beta", "alias 'beta'"),
    ]:
        with pytest.raises(UnknownVersion, match=f"model 'ants' has no {what}; {what_there_is}"):
            filled.resolve(reference)
    with pytest.raises(UnknownVersion, match=f"model 'ants' has no version '9'; {what_there_is}"):
        filled.promote("ants", 9)
    with pytest.raises(UnknownVersion, match=f"model 'ants' has no alias 'beta'; {what_there_is}"):
        filled.rollback("ants", alias="beta")


def test_an_alias_of_ones_own_can_be_promoted(filled):
    filled.promote("ants", 1, alias="baseline")
    assert filled.resolve("ants@baseline").version == 1
    with pytest.raises(StoreError, match="alias '7' cannot be used"):
        filled.promote("ants", 1, alias="7")


def test_history_says_who_when_and_why(store, package):
    store.publish(package, name="ants", why="first", who="ann")
    store.publish(package, name="ants", why="second", who="bob")
    store.promote("ants", 2, why="better", who="cyd")
    store.rollback("ants", why="worse", who="dee")

    entries = store.history("ants")
    assert [
        (entry.action, entry.versions, entry.who, entry.why, entry.alias) for entry in entries
    ] == [
        ("publish", (1,), "ann", "first", None),
        ("publish", (2,), "bob", "second", None),
        ("promote", (2,), "cyd", "better", "production"),
        ("rollback", (1,), "dee", "worse", "production"),
    ]
    assert [entry.when for entry in entries] == sorted(entry.when for entry in entries)
    assert all(entry.when.endswith("+00:00") for entry in entries)


def test_who_is_the_systems_user_unless_said(store, package, monkeypatch):
    monkeypatch.setenv("USER", "somebody-else")
    store.publish(package, name="ants")
    whoami = subprocess.run(
        ["id", "-un"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert store.history("ants")[0].who == whoami


def test_rollback_goes_back_one_promotion_at_a_time(filled):
    assert filled.rollback("ants").version == 2
    assert filled.rollback("ants").version == 1
    expected = (
        "production of 'ants' is version 1, and no earlier one is left to roll back to; versions:"
        " 1, 2, 3, 4; aliases:"
    )
    with pytest.raises(StoreError, match=expected):
        filled.rollback("ants")
    assert filled.resolve("ants").version == 1


def test_rollback_after_a_new_promotion_returns_to_the_version_before_it(filled):
    filled.rollback("ants")
    filled.promote("ants", 4)
    assert filled.rollback("ants").version == 2


def test_neither_promote_nor_rollback_goes_to_a_damaged_version(filled):
    (filled.root / "ants/4/report.html").write_text("changed")
    (filled.root / "ants/2/model.onnx").write_bytes(b"")
    with pytest.raises(PackageTampered, match=r"report\.html"):
        filled.promote("ants", 4)
    with pytest.raises(PackageTampered, match=r"model\.onnx"):
        filled.rollback("ants")
    assert filled.aliases("ants") == {"candidate": 4, "production": 3}


def test_gc_spares_aliased_versions_and_the_rollback_target(filled, package):
    for _ in range(3):
        filled.publish(package, name="ants")
    filled.promote("ants", 1, alias="baseline")

    assert filled.gc("ants", keep=1) == [
        4,
        5,
    ]  # 7 is newest and candidate, 6 was candidate before, 3 production, 2 before that, 1 baseline
    assert filled.versions("ants") == [1, 2, 3, 6, 7]
    assert filled.gc("ants", keep=0) == []
    assert filled.history("ants")[-1].versions == (4, 5)
    assert filled.rollback("ants").version == 2
    assert filled.resolve("ants@baseline").version == 1


def test_gc_keeps_the_newest(store, package):
    for version in range(1, 8):
        store.publish(package, name="ants")
        store.promote("ants", version)
    assert store.gc("ants") == [1, 2, 3, 4]
    assert store.versions("ants") == [5, 6, 7]
    assert hidden(store) == []
    with pytest.raises(
        StoreError, match="keep is -1, expected how many of the newest versions to keep: 0 or more"
    ):
        store.gc("ants", keep=-1)


def test_a_number_is_never_used_twice(store, package):
    for _ in range(4):
        store.publish(package, name="ants")
    store.promote("ants", 1, alias="candidate")
    store.promote("ants", 2, alias="candidate")
    assert store.gc("ants", keep=0) == [3, 4]
    assert store.publish(package, name="ants").version == 5


def test_a_damaged_file_of_the_store_is_named(filled):
    (filled.root / "ants/aliases.json").write_text('{"production": "3"}')
    with pytest.raises(
        StoreError,
        match=(
            r"aliases\.json is damaged: Input should be a valid integer\. Write it again, such as"
            r" \{\"production\": 4\}"
        ),
    ):
        filled.resolve("ants")
    (filled.root / "ants/aliases.json").write_text('{"production": 3}')
    (filled.root / "ants/history.jsonl").write_text("{\n")
    with pytest.raises(StoreError, match=r"history\.jsonl, line 1 is damaged: "):
        filled.history("ants")


def test_a_version_folder_that_is_a_link_is_no_version(filled, package):
    (filled.root / "ants/8").symlink_to(package)
    (filled.root / "ants/09").mkdir()
    assert filled.versions("ants") == [1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------
# killed between two writes


KILLED = """
import os, signal, sys
from pathlib import Path
import models.store.store
store, package = models.store.store.Store(Path(sys.argv[1])), Path(sys.argv[2])
def die(*_args, **_options):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(models.store.store, sys.argv[3], die)
exec(sys.argv[4])
"""


def kill_before(step: str, command: str, store: Store, package: Path) -> None:
    """Run *command* in a process that kills itself when it reaches the function *step* of
    `models.store.store`.
    """
    done = subprocess.run(
        [sys.executable, "-c", KILLED, store.root, package, step, command],
        check=False,
        cwd=CHECKOUT,
    )
    assert done.returncode == -signal.SIGKILL


def test_a_promotion_killed_before_its_alias_did_not_happen(filled, package):
    kill_before("_write_aliases", 'store.promote("ants", 4, why="never happened")', filled, package)

    assert filled.resolve("ants").version == 3
    assert "never happened" not in [entry.why for entry in filled.history("ants")]
    assert filled.rollback("ants").version == 2
    assert "never happened" not in (filled.root / "ants/history.jsonl").read_text()


def test_a_rollback_killed_before_its_alias_can_be_repeated(filled, package):
    kill_before("_write_aliases", 'store.rollback("ants")', filled, package)
    assert filled.resolve("ants").version == 3
    assert filled.rollback("ants").version == 2


def test_a_publish_killed_before_its_rename_did_not_happen(filled, package):
    kill_before(
        "rename_durably",
        'store.publish(package, name="ants", why="never happened")',
        filled,
        package,
    )
    assert_valid(filled)
    assert "never happened" not in [entry.why for entry in filled.history("ants")]
    assert filled.publish(package, name="ants").version == 5


def test_a_publish_killed_after_its_rename_is_finished_by_the_next_command(filled, package):
    kill_before(
        "_write_aliases", 'store.publish(package, name="ants", why="happened")', filled, package
    )
    assert_valid(filled)
    assert filled.history("ants")[-1].why == "happened"

    filled.promote("ants", 1)
    assert filled.aliases("ants") == {"candidate": 5, "production": 1}
    assert filled.rollback("ants").version == 3


def test_a_first_publish_killed_after_its_rename_is_production(store, package):
    kill_before("_write_aliases", 'store.publish(package, name="ants")', store, package)
    assert not (store.root / "ants/aliases.json").exists()
    assert_valid(store)
    assert store.publish(package, name="ants").version == 2
    assert store.aliases("ants") == {"candidate": 2, "production": 1}


def test_a_gc_killed_before_its_renames_can_be_repeated(store, package):
    for version in range(1, 5):
        store.publish(package, name="ants")
        store.promote("ants", version)
    kill_before("rename_durably", 'store.gc("ants", keep=1)', store, package)
    assert_valid(store)
    assert store.gc("ants", keep=1) == [1, 2]


def test_settling_leaves_alone_what_it_does_not_understand():
    """Aliases edited by hand agree neither with the last line nor with the one before: nothing is
    dropped.
    """
    entries = [
        HistoryEntry(
            when="1",
            who="a",
            why="",
            action="publish",
            versions=(1,),
            alias=None,
            aliases={"production": 1},
        ),
        HistoryEntry(
            when="2",
            who="a",
            why="",
            action="promote",
            versions=(2,),
            alias="production",
            aliases={"production": 2},
        ),
    ]
    assert settle(entries, {"production": 3}, versions=[1, 2, 3]) == (entries, {"production": 3})
    assert previous_version(entries, alias="production", current=3, versions=[1, 2, 3]) == 2
    assert previous_version(entries, alias="production", current=3, versions=[1, 3]) == 1


def test_a_publisher_killed_at_any_moment_leaves_a_valid_store(store, package):
    """Fifteen real processes, each killed at a random moment of its publishing."""
    rng = random.Random(0)
    Store(store.root).publish(package, name="ants")
    for _ in range(15):
        process = publisher(store, package, times=1000)
        with process:
            start(process)
            for _ in range(rng.randrange(1, 4)):
                process.stdout.readline()
            threading.Event().wait(
                rng.uniform(0, 0.03)
            )  # not for something to happen: the moment itself is what varies
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert_valid(store)

    ref = store.publish(package, name="ants")
    assert ref.version == len(store.versions("ants"))
    assert store.aliases("ants") == {"candidate": ref.version, "production": 1}
    assert hidden(store) == []
    published = [entry.versions[0] for entry in store.history("ants")]
    assert published == store.versions("ants")


def test_four_publishers_at_once_get_different_versions(store, package):
    processes = [publisher(store, package, times=3) for _ in range(4)]
    for process in processes:
        start(process)
    versions = [
        int(line)
        for process in processes
        for line in process.communicate(timeout=60)[0].splitlines()
    ]

    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(versions) == list(range(1, 13))
    assert store.versions("ants") == list(range(1, 13))
    assert store.aliases("ants") == {"candidate": 12, "production": 1}
    assert [entry.versions[0] for entry in store.history("ants")] == list(range(1, 13))
    assert hidden(store) == []


def test_a_reader_never_sees_half_a_version(store, package):
    store.publish(package, name="ants")
    process = publisher(store, package, times=30)
    seen = set()
    with process:
        start(process)
        while process.poll() is None:
            ref = store.resolve("ants@candidate")
            if ref.version not in seen:
                verify_package(ref.path)
                seen.add(ref.version)
    assert process.returncode == 0
    assert len(seen) > 1


def test_staging_of_the_living_is_spared_and_of_the_dead_is_cleared(tmp_path):
    lock = tmp_path / LOCK_FILE
    dead = tmp_path / ".staging-dead"
    dead.mkdir()
    (dead / "package").mkdir()
    with staging(tmp_path, lock=lock) as living:
        assert not dead.exists()
        with staging(tmp_path, lock=lock) as other:
            assert living.is_dir()
            assert other != living
        assert living.is_dir()
    assert not living.exists()


def test_only_one_holds_a_lock(tmp_path):
    with (
        (tmp_path / LOCK_FILE).open("w") as other,
        locked(tmp_path / LOCK_FILE),
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ------------------------------------------------------------------------------------------------
# disks that refuse


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("mounting a small file system needs root (CAP_SYS_ADMIN)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_leaves_the_store_valid(small_disk, package):
    store = Store(small_disk / "store")
    store.publish(package, name="ants")
    expected = (
        r"the disk is full; free some space and try again\. The store is still valid; `loupe models"
        r" gc NAME` removes old versions"
    )
    with pytest.raises(StoreError, match=expected):  # noqa: PT012 - which publish fills the disk depends on the kernel's page size
        for _ in range(64):
            store.publish(package, name="ants")
    assert_valid(store)
    assert hidden(store) == []

    store.gc("ants", keep=1)
    store.gc("ants", keep=0)
    assert store.publish(package, name="ants")
    assert_valid(store)


def test_a_disk_without_a_byte_left_names_the_store(small_disk, package):
    filler = small_disk / "filler"
    filler.touch()
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(2**20))
    with pytest.raises(StoreError, match="the disk is full"):
        Store(small_disk / "store").publish(package, name="ants")
    assert Store(small_disk / "store").names() == []


def test_gc_makes_room_on_a_disk_without_a_byte_left(small_disk, package):
    store = Store(small_disk / "store")
    for version in range(1, 4):
        store.publish(package, name="ants")
        store.promote("ants", version)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(bytes(2**20))

    assert store.gc("ants", keep=1) == [1]
    assert [(entry.action, entry.versions) for entry in store.history("ants")][-1] == ("gc", (1,))
    assert_valid(store)
    assert hidden(store) == []


def test_a_read_only_store_is_read_but_not_written(small_disk, package):
    store = Store(small_disk / "store")
    store.publish(package, name="ants")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert_valid(store)
    for write in (
        lambda: store.publish(package, name="ants"),
        lambda: store.publish(package, name="bees"),
        lambda: store.promote("ants", 1),
        lambda: store.gc("ants"),
    ):
        with pytest.raises(
            StoreError,
            match=(
                r"disk/store/.*: the file system is read-only; .*; --store or LOUPE_STORE names"
                r" another place"
            ),
        ):
            write()
    assert_valid(store)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("ENOSPC", "the disk is full"),
        ("EDQUOT", "this user's share of the disk is full"),
        ("EROFS", "the file system is read-only"),
        ("EACCES", "permission denied to user .*; run as the owner"),
        ("EIO", "the disk reports an error; .* The store is still valid"),
    ],
)
def test_what_a_disk_says_is_told_with_the_way_out(tmp_path, number, message):
    code = getattr(errno, number)
    with (
        pytest.raises(StoreError, match=f"{tmp_path}: .*{message}"),
        storage_errors(tmp_path, in_store=True),
    ):
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    "step", ["copy_package", "write_history", "rename_durably", "_write_aliases"]
)
def test_a_disk_that_fails_at_any_step_leaves_a_valid_store(filled, package, monkeypatch, step):
    def fail(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(f"models.store.store.{step}", fail)
        with pytest.raises(StoreError, match="the disk is full"):
            filled.publish(package, name="ants")
    assert_valid(filled)
    filled.publish(package, name="ants")
    assert_valid(filled)
    assert filled.aliases("ants")["candidate"] == filled.versions("ants")[-1]
    assert hidden(filled) == []
