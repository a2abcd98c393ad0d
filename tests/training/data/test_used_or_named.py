"""The rule of every source: a file or folder below its root is used, or named with the reason.

Odd trees by hand, then ten thousand by chance.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import DataError
from tests.training.photos import photo, write_photos
from tests.training.small_runs import TINY
from training.data.layout.names import printable
from training.data.layout.tree import walk
from training.data.source import by_reason, list_source, load_dataset, usage
from training.data.sources.dataset import Unused
from training.fit.loop import train

FEW = {"blue": 3, "red": 3}
ROOT = Path(__file__).resolve().parents[3]


def unused(root):
    """Name -> reason of what lies in a tidy data set beside its images, of which all are used."""
    listing = list_source(str(root))
    assert sum(map(len, listing.splits.values())) >= 6
    assert listing.problems == ()
    return {entry.name: entry.reason for entry in listing.unused}


def test_links_are_followed(tmp_path):
    write_photos(tmp_path / "elsewhere", {"red": 3, "blue": 3})
    (tmp_path / "data").mkdir()
    (tmp_path / "data/one").symlink_to(tmp_path / "elsewhere/red")
    (tmp_path / "data/two").mkdir()
    for index in range(3):
        (tmp_path / f"data/two/{index}.png").symlink_to(
            tmp_path / f"elsewhere/blue/{index:03d}.png"
        )
    dataset = load_dataset(str(tmp_path / "data"))
    assert dataset.labels == ("one", "two")
    assert (sum(map(len, dataset.splits.values())), dataset.unused) == (6, ())


def test_links_in_circles_or_to_nowhere_are_named(tmp_path):
    write_photos(tmp_path, FEW)
    (tmp_path / "red/up").symlink_to(tmp_path)
    (tmp_path / "red/deep/er").mkdir(parents=True)
    (tmp_path / "red/deep/er/deep").symlink_to(tmp_path / "red/deep")
    (tmp_path / "red/deep/twice").symlink_to(tmp_path / "red/deep/er")
    (tmp_path / "red/gone.png").symlink_to("nowhere")
    (tmp_path / "red/self").symlink_to("self")
    assert unused(tmp_path) == {
        "red/deep/er/deep/": "linked to a folder above",
        "red/gone.png": "dangling",
        "red/self": "dangling",
        "red/deep/twice/": "linked to a folder that is read already",
        "red/up/": "linked to a folder above",
    }


def test_folders_that_are_linked_to_each_other_are_walked_in_no_time(tmp_path):
    """Ten folders with a link to each of the others have millions of paths."""
    for name in range(10):
        (tmp_path / f"{name}").mkdir()
        for other in range(10):
            (tmp_path / f"{name}/to{other}").symlink_to(tmp_path / f"{other}")
    assert len(walk(tmp_path).folders) < 20_000


def test_what_systems_leave_behind_is_named_as_such(tmp_path):
    write_photos(tmp_path, FEW)
    for name in ("._000.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png"):
        (tmp_path / "red" / name).write_bytes(b"x")
    (tmp_path / "__MACOSX/red").mkdir(parents=True)
    (tmp_path / "__MACOSX/red/000.png").write_bytes(b"x")
    assert by_reason(list_source(str(tmp_path)).unused) == {
        "left by macOS": ("__MACOSX/", "red/.DS_Store", "red/._000.png"),
        "hidden": ("red/.hidden.png",),
        "left by Windows": ("red/Thumbs.db", "red/desktop.ini"),
    }


def test_other_endings_empty_folders_and_pipes_are_named(tmp_path):
    write_photos(tmp_path, FEW)
    (tmp_path / "README").write_bytes(b"x")
    (tmp_path / "red/photo.CR2").write_bytes(b"x")
    (tmp_path / "red/later").mkdir()
    os.mkfifo(tmp_path / "red/pipe.png")
    assert unused(tmp_path) == {
        "README": "without an ending",
        "red/later/": "empty",
        "red/photo.CR2": ".cr2",
        "red/pipe.png": "not a regular file",
    }


@pytest.mark.parametrize(
    "ending", ["jpg", "JPEG", "jpe", "jfif", "png", "webp", "bmp", "tif", "TIFF", "gif"]
)
def test_endings_of_images_are_read_by_default(tmp_path, ending):
    write_photos(tmp_path, FEW)
    (tmp_path / f"red/more.{ending}").write_bytes(b"x")
    assert unused(tmp_path) == {}
    assert f"red/more.{ending}" in {
        example.name for example in list_source(str(tmp_path)).splits["all"]
    }


def test_endings_without_a_decoder_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "training.data.layout.tree.what_is_missing",
        lambda ending: "pip install it" if ending == ".heic" else None,
    )
    write_photos(tmp_path, FEW)
    (tmp_path / "red/IMG_1.HEIC").write_bytes(b"x")
    assert unused(tmp_path) == {"red/IMG_1.HEIC": ".heic (pip install it)"}


def test_names_that_are_no_text_work(tmp_path):
    write_photos(tmp_path, FEW)
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    for index, name in enumerate((b"\xff.png", b"a\nb.png", b"\x1b[31m.png", b"x" * 251 + b".png")):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(photo("green", index))
    dataset = load_dataset(str(tmp_path))
    assert dataset.labels == ("blue", "caf\\xe9", "red")
    names = {
        example.name
        for examples in dataset.splits.values()
        for example in examples
        if example.label == 1
    }
    assert names == {
        "caf\\xe9/\\xff.png",
        "caf\\xe9/a\\x0ab.png",
        "caf\\xe9/\\x1b[31m.png",
        f"caf\\xe9/{'x' * 251}.png",
    }
    assert all(example.read() for examples in dataset.splits.values() for example in examples)


def test_a_root_that_is_no_text_is_refused(tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    write_photos(root, FEW)
    with pytest.raises(DataError, match=r"\\xff is not UTF-8: rename it, or use a link to it$"):
        load_dataset(str(root))


@pytest.mark.parametrize(
    "source",
    [
        "x" * 5000,
        "folder:" + "x" * 5000,
        "a\0b",
        "tar:**x",
        "tar:",
        "csv:",
        "tar:{0..99999999999}",
        "csv:" + "x" * 5000,
    ],
)
def test_sources_that_nobody_has_are_one_line(source):
    with pytest.raises(DataError):
        load_dataset(source)


def test_folders_that_nobody_may_read_are_named(tmp_path, monkeypatch):
    """As root, which reads everything, the system's refusal is played."""
    write_photos(tmp_path, FEW)
    (tmp_path / "red/locked").mkdir()
    scan = os.scandir

    def refusing(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("os.scandir", refusing)
    assert unused(tmp_path) == {"red/locked/": "unreadable (Permission denied)"}
    monkeypatch.setattr("os.scandir", lambda path: refusing(tmp_path / "locked"))
    with pytest.raises(DataError, match=r"cannot be read: Permission denied$"):
        load_dataset(str(tmp_path))


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to become nobody"
)
def test_nobody_is_told_what_it_may_not_read(tmp_path):
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(0o755)
    write_photos(tmp_path / "data", FEW)
    (tmp_path / "data/red/locked").mkdir(mode=0o700)
    (tmp_path / "data/green").mkdir(mode=0o700)
    (tmp_path / "data/green/0.png").write_bytes(b"x")
    code = (
        "import sys, json; from training.data.layout.tree import walk; from pathlib import Path; "
    )
    code += "print(json.dumps({e.name: e.reason for e in walk(Path(sys.argv[1])).unused}))"
    command = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        sys.executable,
        "-c",
        code,
        str(tmp_path / "data"),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": "/tmp", "PYTHONPATH": str(ROOT)},
    )
    if "Permission denied" in done.stderr and "scandir" not in done.stderr:
        pytest.skip("nobody may not run this Python")
    assert json.loads(done.stdout) == {
        "green/": "unreadable (Permission denied)",
        "red/locked/": "unreadable (Permission denied)",
    }


def test_the_summary_counts_by_reason():
    entries = [Unused("a", ".tif"), Unused("b", "hidden"), Unused("c", ".tif")]
    assert (
        usage(1240, entries, unreadable=1)
        == "1,240 images used; 4 not read: 2 .tif, 1 hidden, 1 unreadable"
    )
    assert usage(1, []) == "1 image used"


def test_a_run_says_and_records_what_it_did_not_use(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", {"blue": 20, "green": 20, "red": 20})
    (photos / "red/notes.txt").write_text("x")
    (photos / "red/0.png").write_bytes(b"broken")
    (photos / "blue/copy.png").write_bytes((photos / "blue/000.png").read_bytes())
    dataset = load_dataset(str(photos))
    copies = {
        split
        for split, examples in dataset.splits.items()
        for e in examples
        if e.name in ("blue/000.png", "blue/copy.png")
    }
    run = train(TINY, dataset, tmp_path / "run")
    told = capsys.readouterr().err
    assert "61 images used; 2 not read: 1 .txt, 1 unreadable; see run.json" in told
    assert ("1 image has a copy in another split, such as blue/" in told) == (len(copies) == 2)
    assert run.record.unused == {".txt": ("red/notes.txt",)}
    assert json.loads((tmp_path / "run/run.json").read_text())["unused"] == {
        ".txt": ["red/notes.txt"]
    }


def test_copies_across_splits_are_a_warning_with_their_number(tmp_path, capsys):
    for at, split in enumerate(("train", "val")):
        write_photos(
            tmp_path / "photos" / split, {"blue": 6, "green": 6, "red": 6}, first_seed=100 * at
        )
    for index in range(2):
        (tmp_path / f"photos/val/red/copy{index}.png").write_bytes(
            (tmp_path / f"photos/train/red/00{index}.png").read_bytes()
        )
    train(TINY, load_dataset(str(tmp_path / "photos")), tmp_path / "run")
    told = (
        "2 images have copies in another split, such as train/red/000.png (train) and"
        " val/red/copy0.png (val); the figures will be too good"
    )
    assert told in capsys.readouterr().err


# Trees by chance

NAMES = st.sampled_from(
    [
        *(
            "train",
            "Train",
            "training",
            "val",
            "validation",
            "test",
            "Testing",
            "seg_train",
            "seg_test",
            "train_station",
            "dev",
        ),
        *(
            "a",
            "b",
            "A",
            "10",
            "2",
            "caf\udce9",
            "e\u0301",
            "\u00e9",
            " a",
            "x\ny",
            "\x1b[1m",
            "n" * 200,
            ".git",
            "__MACOSX",
            "a.png",
        ),
    ]
)
FILES = st.sampled_from(
    [
        "1.png",
        "2.JPG",
        "3.heic",
        "4.tiff",
        "notes.txt",
        "none",
        "._1.png",
        ".DS_Store",
        "Thumbs.db",
        "\udcff.png",
        "l\n.png",
        "a",
    ]
)
LEAVES = st.one_of(
    st.tuples(st.just("file"), FILES),
    st.tuples(
        st.just("link"),
        st.one_of(FILES, NAMES),
        st.sampled_from(["gone", ".", "..", "../..", "train", "../a", "a", "../val", "self"]),
    ),
    st.tuples(st.just("pipe"), FILES),
)
TREES = st.recursive(
    st.lists(LEAVES, max_size=4),
    lambda inner: st.lists(
        st.one_of(LEAVES, st.tuples(st.just("folder"), NAMES, inner)), max_size=5
    ),
    max_leaves=12,
)


def build(folder, nodes):
    for kind, name, *rest in nodes:
        path = folder / name
        if os.path.lexists(path):
            continue
        if kind == "file":
            path.write_bytes(b"x")
        elif kind == "link":
            path.symlink_to(path.name if rest[0] == "self" else rest[0])
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
            build(path, rest[0])


def lost(root):
    """The paths below *root*, links not followed, of which nothing is said."""
    listing = list_source(str(root))
    said = {example.name for examples in listing.splits.values() for example in examples} | {
        entry.name.rstrip("/") for entry in listing.unused
    }
    above = {name[:at] for name in said for at in range(len(name)) if name[at] == "/"}
    whole = {entry.name for entry in listing.unused if entry.name.endswith("/")}
    missed = []
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            shown = printable(os.path.relpath(f"{folder}/{name}", root))
            if (
                shown not in said
                and shown not in above
                and not any(shown.startswith(entry) for entry in whole)
            ):
                missed.append(shown)
    double = [
        name
        for name in said
        if name in {e.name for es in listing.splits.values() for e in es}
        and name in {u.name for u in listing.unused}
    ]
    return missed, double


def check_tree(nodes):
    sandbox = Path(tempfile.mkdtemp())
    # Links lead up to two folders above the root.
    root = sandbox / "above/photos"
    try:
        root.mkdir(parents=True)
        build(root, nodes)
        assert lost(root) == ([], [])
        said = "all is well"
        try:
            load_dataset(str(root))
        except DataError as error:
            said = str(error)
        assert said.isprintable()
    finally:
        shutil.rmtree(sandbox)


MANY = settings(
    deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)


@given(TREES)
@settings(MANY, max_examples=200)
def test_of_any_tree_all_is_used_or_named(nodes):
    check_tree(nodes)


@pytest.mark.slow
@pytest.mark.timeout(580)
@given(TREES)
@settings(MANY, max_examples=10_000)
def test_of_ten_thousand_trees_all_is_used_or_named(nodes):
    check_tree(nodes)
