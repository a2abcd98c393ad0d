"""Each file of a package, a store, a run, a bundle, a file of keys, a folder of photos or the
settings, damaged in each way.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.command_line.bad_values import contents
from tests.command_line.commands import TINY, World
from tests.command_line.damage import damage, ways
from tests.command_line.runner import Case, Runner, complaint, described
from tests.models.packages import record_again

JUDGES = ("doctor", "data")
EVERY = 127
"""Of the cases, one in so many is tried at each run of the tests, and all in the slow ones."""


def _things(world: World, copy: Path) -> dict[str, tuple[Path, list[list[object]]]]:
    """What can be damaged: the thing, and the commands that read its copy *copy*."""
    out = copy.parent / "out"
    store = ["--store", copy]
    return {
        "package": (
            world.package,
            [
                ["models", "verify", copy],
                ["score", world.photos, "--model", copy, "--out", f"{out}.csv"],
                ["publish", copy, "--name", "x", "--store", out],
            ],
        ),
        "package for training": (
            world.package,
            [
                ["evaluate", copy, "--data", world.photos, "--out", out],
                ["edge", "build", copy, "--out", out, "--target", "python"],
            ],
        ),
        "store": (
            world.store,
            [
                *[
                    ["models", name, "ants", *store]
                    for name in (
                        "show",
                        "verify",
                        "history",
                        "promote",
                        "rollback",
                        "gc",
                        "to-triton",
                    )
                ],
                ["models", "list", *store],
                ["models", "pack", "ants", "--out", out, *store],
                ["publish", world.package, "--name", "ants", *store],
                ["serve", "--model", "ants", "--port", world.port, *store],
                ["score", world.photos, "--model", "ants", "--out", f"{out}.csv", *store],
                ["doctor", *store],
            ],
        ),
        "run": (
            world.run,
            [
                ["export", copy, "--out", out],
                ["train", "--resume", "--out", copy, "--data", world.photos],
            ],
        ),
        "bundle": (world.bundle, [["edge", "bench", copy, "--seconds", "0"]]),
        "keys": (
            world.keys,
            [
                ["keys", "list", "--file", copy],
                ["keys", "add", "bob", "--file", copy],
                ["keys", "remove", "ann", "--file", copy],
            ],
        ),
        "photos": (
            world.photos,
            [
                ["data", "check", copy, "--html", out],
                ["evaluate", world.package, "--data", copy, "--out", out],
                ["score", copy, "--model", world.package, "--out", f"{out}.csv"],
                ["train", "--data", copy, "--out", out, "--set", "max_unreadable_share=0", *TINY],
            ],
        ),
    }


def _cases(world: World, place: Path) -> Iterator[tuple[str, Path, Path, str, Sequence[object]]]:
    """(what, the thing, the file in it, the damage, the command)."""
    for name, (thing, _) in _things(world, place / "copy").items():
        files = _files(thing, name)
        for way in ways():
            for file in files:
                for command in _things(world, place / "copy")[name][1]:
                    yield f"{name}: {file} {way}", thing, file, way, command


def _files(thing: Path, name: str) -> list[Path]:
    if name == "bundle":
        return [
            Path("bundle.json"),
            Path("manifest.json"),
            Path("variants/fp32.onnx"),
            Path("models/pixels/preprocess.py"),
            Path("golden"),
        ]
    if thing.is_file():
        return [Path()]
    if name == "photos":
        return [Path("blue/000.png"), Path("blue")]
    skipped = {"tensorboard", "2", "1.png", "2.png"}
    found = [path.relative_to(thing) for path in sorted(thing.rglob("*"))]
    return [path for path in found if not skipped & set(path.parts)]


def test_some_damage_to_every_kind_of_file(world, runner, tmp_path):
    _judge(runner, world, tmp_path, every=EVERY)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "kind", ["package", "package for training", "store", "run", "bundle", "keys", "photos"]
)
def test_every_damage_to_every_file(kind, world, runner, tmp_path):
    _judge(runner, world, tmp_path, every=1, kind=kind)


def _judge(runner: Runner, world: World, place: Path, *, every: int, kind: str = "") -> None:
    faults = []
    tried = 0
    for number, (what, thing, file, way, command) in enumerate(_cases(world, place)):
        if number % every or not what.startswith(f"{kind}:" if kind else ""):
            continue
        tried += 1
        recordable = thing == world.package and file.name != "manifest.json" and way in contents()
        for again in (False, True) if recordable else (False,):
            copy = place / "copy"
            _copied(thing, copy)
            damage(copy / file, way)
            if again:
                # As a bad exporter would: the manifest says that this is right.
                record_again(copy)
            case = Case(tuple(map(str, command)), place)
            done = runner.run(case)
            wrong = complaint(case, done, judged=(0, 1) if command[0] in JUDGES else (0,))
            if wrong is not None:
                faults.append(
                    described(f"{what}{', recorded again' if again else ''}", case, done, wrong)
                )
            for left in place.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    assert tried > 20
    assert not faults, f"{len(faults)} of {tried} commands end badly:\n" + "\n".join(faults)


def _copied(thing: Path, copy: Path) -> None:
    if thing.suffix == ".zip":
        shutil.unpack_archive(thing, copy)
    elif thing.is_dir():
        shutil.copytree(thing, copy)
    else:
        shutil.copyfile(thing, copy)
