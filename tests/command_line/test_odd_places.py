"""Sound things under odd names, on disks that are full or read-only, and terminals that end: each
command works, or says why not.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType

import pytest

import loupe
from tests.command_line.commands import World, leaf_commands, working
from tests.command_line.runner import CHECKOUT, Case, Runner, complaint, described
from tests.command_line.test_errors_on_commands import ENDS_EARLY

JUDGES = {("doctor",)}
EXPECTED = (
    "is not UTF-8, and this command records it as text",
    "is not UTF-8: rename it, or use a link to it",
    "the name is too long",
    "BentoML does not take ants:1: Item 'ants:1' already exists",
)
"""What a command may say of these names; and of a model that BentoML has from the name before."""
NAMES = {
    "line break and terminal escape": "a\nb\x1b[31mred",
    "bytes that are no UTF-8": "caf\udce9",
    "blanks, quotes and a dollar": ' it\'s "$(id)" ',
    "dash": "-rf",
    "colon": "folder:x",
    "glob": "[a]*?",
    "percent and braces": "%s{0}[bold]",
    "emoji": "\U0001f41d",
    "247 bytes": "n" * 247,
}


def test_things_under_a_name_that_is_no_text(world, runner, tmp_path):
    _all_commands_under("a\nb\x1b[31m\udce9", world, runner, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, id=what) for what, name in NAMES.items()])
def test_things_under_an_odd_name(name, world, runner, tmp_path):
    _all_commands_under(name, world, runner, tmp_path)


def _all_commands_under(name: str, world: World, runner: Runner, tmp_path: Path) -> None:
    moved = _moved(world, tmp_path / name)
    faults = []
    for words in leaf_commands():
        folder = tmp_path / "-".join(words)
        folder.mkdir()
        arguments = (*words, *map(str, working(moved, folder / name)[words]))
        case = Case(arguments, folder, environment={"BENTOML_HOME": str(folder)})
        done = runner.run(case)
        wrong = complaint(case, done, judged=(0, 1) if words in JUDGES else (0,))
        if (
            wrong is None
            and words not in JUDGES
            and done.status != ENDS_EARLY.get(words, 0)
            and not any(one in done.err for one in EXPECTED)
        ):
            wrong = "the name is no reason to fail"
        if wrong is not None:
            faults.append(described(" ".join(words), case, done, wrong))
    assert not faults, "\n".join(faults)


def _moved(world: World, folder: Path) -> World:
    shutil.copytree(world.folder, folder)
    places = {field.name: getattr(world, field.name) for field in fields(world)}
    return replace(
        world,
        **{
            name: folder / path.relative_to(world.folder)
            for name, path in places.items()
            if isinstance(path, Path)
        },
    )


@pytest.fixture
def mounted(tmp_path) -> Iterator[Path]:
    """A disk of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=777", "tmpfs", disk],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("mounting a small file system needs root (CAP_SYS_ADMIN)")
    yield disk
    subprocess.run(["umount", disk], check=True)


WRITERS = [
    words
    for words, arguments in working(World(*[Path()] * 9, 1), Path("OUT")).items()
    if any("OUT" in str(word) for word in arguments)
]


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_disk_that_takes_nothing(state, mounted, world, runner, tmp_path):
    if state == "full":
        with suppress(OSError), (mounted / "filler").open("wb", buffering=0) as stream:
            while stream.write(b"x" * 4096):
                pass
    else:
        subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    faults = []
    assert len(WRITERS) > 8
    for words in WRITERS:
        case = Case((*words, *map(str, working(world, mounted / "-".join(words))[words])), tmp_path)
        done = runner.run(case)
        wrong = complaint(case, done, judged=())
        if (
            wrong is None
            and words not in ENDS_EARLY
            and not (
                str(mounted) in done.err
                and (state in done.err.lower() or "disk is full" in done.err)
            )
        ):
            wrong = f"it does not say that the disk {mounted} is {state}"
        if wrong is not None:
            faults.append(described(" ".join(words), case, done, wrong))
    assert not faults, "\n".join(faults)


def _loupe(
    *arguments: str, stdout: object = subprocess.PIPE, env: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loupe", *arguments]
    environment = dict(os.environ) | {"PYTHONPATH": str(CHECKOUT)} | env
    return subprocess.run(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )


def test_a_full_disk_behind_stdout():
    with Path("/dev/full").open("wb") as full:
        done = _loupe("models", "schema", stdout=full)
    assert (done.returncode, done.stderr) == (
        1,
        "error: standard output: the disk is full; free some space and try again\n",
    )


def test_a_reader_that_has_enough():
    reader, writer = os.pipe()
    os.close(reader)
    done = _loupe("models", "schema", stdout=writer)
    os.close(writer)
    assert (done.returncode in (1, 141), done.stderr) == (True, "")


def test_closed_streams(tmp_path):
    for closing, status in ((">&-", 0), (">&- 2>&-", 0), ("<&-", 0)):
        done = subprocess.run(
            ["bash", "-c", f'"{sys.executable}" -m loupe models schema {closing}'],
            cwd=tmp_path,
            env=dict(os.environ) | {"PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (status, ""), closing


def test_a_terminal_that_knows_only_ascii(world, tmp_path):
    moved = _moved(world, tmp_path / "\U0001f41d")
    terminal = {
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    done = _loupe("models", "verify", str(moved.package), env=terminal)
    assert (done.returncode, done.stderr, done.stdout.isascii()) == (0, "", True)
    assert "package is sound" in done.stdout


def test_ctrl_c_is_one_line_and_status_130(tmp_path):
    waiting = (
        "import os, models.doctor.commands as doctor; doctor.examine = lambda store: os.read(0, 1)"
    )
    command = [
        sys.executable,
        "-c",
        f"{waiting}; import loupe; print('.', flush=True); loupe.main()",
        "doctor",
    ]
    environment = dict(os.environ) | {"PYTHONPATH": str(CHECKOUT)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, env=environment, **pipes) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == ".\n"
        _until_it_reads(child.pid)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (130, "\nstopped\n")


def _until_it_reads(pid: int) -> None:
    """Until process *pid* waits in a pipe."""
    wait = threading.Event()
    for _ in range(600):
        if (
            "pipe" in Path(f"/proc/{pid}/wchan").read_text()
            or "pipe" in Path(f"/proc/{pid}/stack").read_text()
        ):
            return
        wait.wait(0.05)
    raise AssertionError("it never waited")


class _Unforeseen(Exception):
    pass


@pytest.fixture
def failing(monkeypatch):
    """`loupe models schema` raises what this is called with."""

    def fail(error: BaseException) -> int:
        def raise_it(_value: object) -> None:
            raise error

        monkeypatch.setattr("models.store.commands._print_json", raise_it)
        return loupe.run(["models", "schema"])

    return fail


def test_a_fault_of_our_own_is_one_line_and_its_traceback_is_kept(
    failing, capfd, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert failing(_Unforeseen("why\nno")) == loupe.FAULT
    (kept,) = tmp_path.iterdir()
    assert (
        capfd.readouterr().err
        == f"error: a fault in Loupe itself (_Unforeseen: why\\nno); please report it with {kept},"
        " which says where it is\n"
    )
    assert "Traceback" in kept.read_text()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            FileNotFoundError(2, "No such file", "a\nb"),
            "error: a\\nb: there is no such file or folder; check the path\n",
        ),
        (
            OSError(24, "Too many open files", "x"),
            (
                "error: x: too many files are open; raise the limit with `ulimit -n 65536` and try"
                " again\n"
            ),
        ),
        (
            MemoryError(),
            (
                "error: not enough memory; lower the batch size, the number of workers or lanes, or"
                " the size of the images\n"
            ),
        ),
    ],
)
def test_what_the_system_refuses_names_the_file_and_the_way_out(error, told, failing, capfd):
    assert failing(error) == 1
    assert capfd.readouterr().err == told
