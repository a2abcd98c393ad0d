"""Runs the commands of a guide as its reader would, in a folder of their own.

`loupe` commands run in this process, because importing torch for each takes seconds. `loupe serve`
is a real server on a free port. Everything else goes to bash.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path

import torch
import torchvision

import loupe
from models.store.store import Store
from tests.docs.guides import ROOT, Step
from tests.http.server import Server, environment, serving
from tests.models.packages import build_package
from tests.training.importing.foreign_models import (
    convolutional,
    of_ultralytics,
    saved,
    torchserve_archive,
    write_labels,
)
from tests.training.photos import photo as training_photo

LABELS = ("ants", "bees")
COLOURS = dict(zip(LABELS, ("red", "blue"), strict=True))
PATIENCE_S = 60
QUICK = {
    "train": [
        "--set=network=lenet5", "--set=weights=none", "--set=image_size=32", "--set=resize_size=36",
        "--set=probe_epochs=0", "--set=epochs=1", "--set=batch_size=8", "--set=decode_workers=0",
        "--set=precision=fp32", "--set=compile=false", "--no-tensorboard",
    ],
    "export": ["--time-budget=0", "--keep-fp32"],
}  # fmt: skip
"""Options added to a command, so that it takes a second."""
QUICK["retrain"] = [*QUICK["train"][:-1], *QUICK["export"][:-1]]


class Workplace:
    """A folder with everything that the guides use: photos, a run, a package, a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: Server | None = None
        self.running = ExitStack()
        self.variables: dict[str, str] = {}

    def run(self, step: Step) -> None:
        """Run *step*. Raises `AssertionError` with what it printed if it fails."""
        text = self.with_port(step.text)
        if step.language == "python":
            (self.folder / "program.py").write_text(text, encoding="utf-8")
            self.shell(f"PYTHONPATH={ROOT} python program.py")
        elif step.language == "java":
            name = re.search(r"class (\w+)", text)[1]
            (self.folder / f"{name}.java").write_text(text, encoding="utf-8")
        else:
            for command in as_loupe(text):
                self.command(command)

    def command(self, text: str) -> None:
        """Run one line of a terminal."""
        words = [] if re.search(r"[|;<>`*]|\$\(|&&", text) else shlex.split(text)
        settings = dict(word.split("=", 1) for word in take_settings(words))
        arguments = [os.path.expandvars(word) for word in words]
        if arguments[:1] != ["loupe"]:
            self.shell(text)
        elif arguments[1] == "serve":
            self.serve(arguments[2:], settings)
        else:
            self.loupe(arguments[1:], settings)

    def loupe(self, arguments: list[str], settings: dict[str, str]) -> None:
        """Run `loupe ARGUMENTS` in this process, with the options of `QUICK`."""
        printed = io.StringIO()
        before = dict(os.environ)
        os.environ.update(settings)
        try:
            with (
                contextlib.chdir(self.folder),
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
            ):
                added = [] if "--resume" in arguments else QUICK.get(arguments[0], [])
                status = loupe.run([*arguments, *added])
        finally:
            os.environ.clear()
            os.environ.update(before)
        assert status == 0, printed.getvalue()
        if arguments[:2] == ["keys", "add"]:
            self.variables.setdefault("KEY", printed.getvalue().split()[0])

    def serve(self, arguments: list[str], settings: dict[str, str]) -> None:
        """Start `loupe serve` instead of the previous server."""
        self.running.close()
        named = {name.removeprefix("LOUPE_").lower(): value for name, value in settings.items()}
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        workers = int(options.pop("--workers", "1"))
        options.pop("--port", None)
        named |= {name.removeprefix("--"): value for name, value in options.items()}
        # Server.wait_ready uses plain HTTP.
        plain = "tls_certificate" not in named
        store = self.folder / "artifacts/store"
        self.server = self.running.enter_context(
            serving(self.folder, store=store, workers=workers, ready=plain, **named)
        )
        self.server.wait_logged(" ready: ")

    def shell(self, text: str) -> None:
        """Run a line in bash, with our `loupe` and `python` first on the path."""
        variables = environment(self.folder)
        path = f"{Path(sys.executable).parent}:{variables['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text.replace("curl ", "curl --fail-with-body -sS ")],
            cwd=self.folder,
            env=variables | self.variables | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def with_port(self, text: str) -> str:
        """*text* with the server's own port in place of 3000."""
        if ":3000" not in text:
            return text
        if self.server is None:
            self.serve([], {"LOUPE_MODEL": "digits,insects"})
            assert self.server is not None
        return text.replace(":3000", f":{self.server.port}")


def take_settings(words: list[str]) -> list[str]:
    """Remove the assignments at the beginning of *words*, and return them."""
    count = next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), 0)
    taken, words[:] = words[:count], words[count:]
    return taken


def as_loupe(text: str) -> list[str]:
    """*text*, or for a `make` command the `loupe` commands that it runs."""
    if not text.startswith("make "):
        return [text]
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *shlex.split(text)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"^\.venv/bin/(loupe .*)$", done.stdout, re.MULTILINE)
    assert found, f"{text} runs no loupe command:\n{done.stdout}"
    return found


def other_layouts(folder: Path) -> None:
    """Write the photos again: as tables, as a shard, and under other names of splits."""
    files = sorted((folder / "photos").glob("*/*/*.jpg"))
    rows = [(str(file.relative_to(folder)), *file.parts[-3:-1]) for file in files]
    for name, columns in (
        ("photos.csv", "path,split,label"),
        ("species.csv", "photo,split,species"),
    ):
        lines = [columns, *map(",".join, rows)]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards/0.tar", "w") as shard:
        shard.add(folder / "photos", arcname=".")
    shutil.copytree(folder / "photos/train", folder / "lessons/Lernen")
    shutil.copytree(folder / "photos/val", folder / "lessons/Pruefen")
    for label, vehicle in zip(LABELS, ("train", "tram"), strict=True):
        shutil.copytree(folder / "photos/train" / label, folder / "vehicles" / vehicle)


def foreign_models(folder: Path) -> None:
    """Write models as other tools write them, for the guide to `loupe import`."""
    saved(convolutional(classes=2, size=64), folder / "model.onnx")
    write_labels(folder, LABELS)
    (folder / "repository/ants/1").mkdir(parents=True)
    saved(convolutional(classes=2, size=64), folder / "repository/ants/1/model.onnx")
    (folder / "repository/ants/config.pbtxt").write_text(
        'platform: "onnxruntime_onnx"\noutput [{ name: "scores" label_filename: "labels.txt" }]\n'
    )
    shutil.copy(folder / "labels.txt", folder / "repository/ants/labels.txt")
    shutil.copy(folder / "labels.txt", folder / "ants.txt")
    saved(of_ultralytics(size=64, labels=LABELS), folder / "best-cls.onnx")
    torch.save(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), folder / "ants.pth")
    torchserve_archive(folder / "ants.mar", (folder / "ants.pth").read_bytes(), "ants.pth", LABELS)


def fill(folder: Path) -> None:
    """Write what every guide expects into *folder*, except a run."""
    for split, count, first in (("train", 12, 0), ("val", 6, 100)):
        for label, colour in COLOURS.items():
            (folder / "photos" / split / label).mkdir(parents=True)
            for index in range(count):
                file = folder / "photos" / split / label / f"{index}.jpg"
                file.write_bytes(training_photo(colour, first + index, image_format="JPEG"))
    other_layouts(folder)
    picture = training_photo("red", 1000, image_format="JPEG")
    for name in ("photo.jpg", "one.jpg", "two.jpg"):
        (folder / name).write_bytes(picture)
    (folder / "photo.png").write_bytes(training_photo("red", 1000))
    foreign_models(folder)
    store = Store(folder / "artifacts/store")
    for name, versions, labels in (
        ("insects", 3, LABELS),
        ("birds", 1, ("crow", "duck")),
        ("digits", 1, tuple("0123456789")),
    ):
        for seed in range(versions):
            package = folder / f"made/{name}-{seed}"
            store.publish(build_package(package, labels=labels, seed=seed, cam=True), name=name)
