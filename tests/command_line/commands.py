"""Every command of `loupe`, found by asking it, and a command line for each that would work."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

import loupe
from tests.models.packages import build_package
from tests.training.importing.foreign_models import convolutional, saved, write_labels
from tests.training.photos import COLOURS, write_photos
from training.edge.build import build

FIELDS = (
    "network=resnet18",
    "weights=none",
    "image_size=32",
    "resize_size=32",
    "epochs=1",
    "probe_epochs=0",
)
TINY = tuple(word for field in FIELDS for word in ("--set", field))
LABELS = tuple(COLOURS)


@dataclass(frozen=True)
class World:
    """Things that commands work on, all of them sound."""

    folder: Path
    store: Path
    package: Path
    packed: Path
    photos: Path
    table: Path
    bundle: Path
    keys: Path
    run: Path
    """A run whose training did not finish, so that its export stops at once."""
    port: int
    """A port that somebody else listens at."""


def leaf_commands() -> dict[tuple[str, ...], click.Command]:
    """Every command that does something, by the words that call it."""
    return dict(_leaves(loupe.cli, ()))


def _leaves(
    command: click.Command, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield words, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from _leaves(found, (*words, name))


def build_world(folder: Path, listener: socket.socket) -> World:
    """The world in *folder*, made; *listener* holds its port."""
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    package = build_package(folder / "package", labels=LABELS, size=32)
    photos = write_photos(folder / "photos", dict.fromkeys(COLOURS, 8))
    table = folder / "photos.csv"
    rows = [
        f"photos/{path.parent.name}/{path.name},{path.parent.name}\n"
        for path in sorted(photos.rglob("*.png"))
    ]
    table.write_text("path,label\n" + "".join(rows))
    world = World(
        folder=folder,
        store=folder / "store",
        package=package,
        packed=folder / "ants.zip",
        photos=photos,
        table=table,
        bundle=build(package, folder / "bundle.zip", targets=("python",)).path,
        keys=folder / "keys.json",
        run=folder / "run",
        port=listener.getsockname()[1],
    )
    for words in (
        ("publish", package, "--name", "ants", "--store", world.store),
        ("publish", package, "--name", "ants", "--store", world.store),
        ("models", "pack", "ants", "--out", world.packed, "--store", world.store),
        ("keys", "add", "ann", "--file", world.keys),
        ("train", "--data", photos, "--out", world.run, *TINY),
    ):
        assert loupe.run([str(word) for word in words]) == 0, words
    (world.run / "weights.safetensors").unlink()
    saved(convolutional(classes=len(LABELS)), folder / "foreign.onnx")
    write_labels(folder, LABELS)
    return world


def working(world: World, out: Path) -> dict[tuple[str, ...], list[object]]:
    """For each command the arguments with which it works, or nearly: one that would serve or train
    for long ends early.

    *out* does not exist, and takes what the command makes.
    """
    store = ("--store", world.store)
    photo = next(world.photos.rglob("*.png"))
    return {
        ("data", "check"): [world.photos],
        ("train",): ["--data", world.photos, "--out", out, "--no-tensorboard", *TINY],
        ("evaluate",): [world.package, "--data", world.photos, "--out", out],
        ("export",): [world.run, "--out", out],
        ("import",): [
            *(world.folder / "foreign.onnx", "--labels", world.folder / "labels.txt"),
            *("--preprocess", "unit", "--data", world.photos, "--out", out),
        ],
        ("retrain",): [
            "--name",
            "ants",
            "--data",
            world.folder / "no-photos",
            "--artifacts",
            out,
            *store,
            *TINY,
        ],
        ("publish",): [world.package, "--name", "ants", "--store", out],
        ("models", "list"): [*store],
        ("models", "show"): ["ants", *store],
        ("models", "verify"): ["ants", *store],
        ("models", "promote"): ["ants", "2", *store],
        ("models", "rollback"): ["ants", *store],
        ("models", "history"): ["ants", *store],
        ("models", "gc"): ["ants", "--keep", "9", *store],
        ("models", "pack"): ["ants", "--out", out, *store],
        ("models", "unpack"): [world.packed, "--out", out],
        ("models", "to-bento"): ["ants", *store],
        ("models", "to-triton"): ["ants", *store],
        ("models", "schema"): [],
        ("inspect", "shapes"): [world.package, "--out", f"{out}.html", *store],
        ("inspect", "features"): [
            *(world.package, photo, "--layer", "normalised", "--out", f"{out}.png"),
            *store,
        ],
        ("inspect", "filters"): [world.package, "--out", f"{out}.png", *store],
        ("inspect", "explain"): [world.package, photo, "--out", f"{out}.png", *store],
        ("inspect", "patches"): [
            *(world.package, "--data", world.photos, "--layer", "normalised"),
            *("--out", f"{out}.png"),
            *store,
        ],
        ("inspect", "compare"): [
            *(world.package, world.package, "--image", photo, "--out", f"{out}.html"),
            *store,
        ],
        ("inspect", "embedding"): [
            *(world.package, "--data", world.photos, "--out", f"{out}.png"),
            *store,
        ],
        ("inspect", "gradients"): [world.package, photo, "--out", f"{out}.png", *store],
        ("inspect", "convolution"): [world.package, photo, "--out", f"{out}.png", *store],
        ("inspect", "normalisation"): [
            *(world.package, photo, "--layer", "normalised", "--out", f"{out}.png"),
            *store,
        ],
        ("learn",): [photo, "--model", world.package, "--out", f"{out}.html", *store],
        ("edge", "build"): [world.package, "--out", out, "--target", "python"],
        ("edge", "bench"): [world.bundle, "--seconds", "0"],
        ("serve",): ["--model", "ants", "--port", world.port, *store],
        ("keys", "add"): ["bob", "--file", out],
        ("keys", "list"): ["--file", world.keys],
        ("keys", "remove"): ["nobody", "--file", world.keys],
        ("predict",): [photo, "--model", world.package, *store],
        ("score",): [world.photos, "--model", world.package, "--out", f"{out}.jsonl"],
        ("networks",): ["lenet5"],
        ("doctor",): [*store],
        ("bench",): ["nosuch"],
        ("demo",): ["--port", world.port],
    }


def with_value(
    command: click.Command, arguments: list[object], parameter: click.Parameter, value: str
) -> list[str]:
    """*arguments* with *value* for *parameter*, in the place of what is given for it."""
    flags = {
        flag: option
        for option in command.params
        if isinstance(option, click.Option)
        for flag in option.opts
    }
    options: list[str] = []
    positional: list[str] = []
    rest = list(map(str, arguments))
    while rest:
        word = rest.pop(0)
        if word not in flags:
            positional.append(word)
            continue
        given = [word] if flags[word].is_flag else [word, rest.pop(0)]
        if flags[word] is not parameter or parameter.multiple:
            options += given
    if isinstance(parameter, click.Option):
        return [*options, f"{parameter.opts[-1]}={value}", "--", *positional]
    place = [one for one in command.params if isinstance(one, click.Argument)].index(parameter)
    positional[place : place + 1] = [value]
    return [*options, "--", *positional]


def parameters(command: click.Command) -> list[click.Parameter]:
    """Those of *command* that take a value."""
    return [
        one
        for one in command.params
        if not (isinstance(one, click.Option) and (one.is_flag or one.count))
    ]
