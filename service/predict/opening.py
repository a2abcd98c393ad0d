"""The model that `loupe predict` asks: a stored one, a package, or an edge bundle."""

from __future__ import annotations

import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

from models.errors import ConfigError, PackageError, UnknownModel
from models.machine import threads_per_worker
from models.package.edge_bundle import is_bundle, read_bundle
from models.package.manifest import MANIFEST_FILE
from models.runtime.session import open_model
from models.store.store import Store
from models.store.transfer import unpack_package
from service.engine.classifier import Classifier


def open_classifier(reference: str | None, *, store: Path, stack: ExitStack) -> Classifier:
    """The classifier that *reference* names; without one, the only model in *store*.

    *reference* is a name, `name@alias`, `name:version`, a package folder, what `loupe models pack`
    wrote, or an edge bundle. *stack* keeps an unpacked package. Raises `ConfigError`, `StoreError`,
    `UnknownModel` or `PackageError`.
    """
    if reference is None:
        return Classifier.open(_only_model(store), store=store)
    path = Path(reference)
    if is_bundle(path):
        model = open_model(read_bundle(path), threads=threads_per_worker(1))
        return Classifier(model, name=path.stem, version=0)
    if path.is_file() and zipfile.is_zipfile(path):
        return _unpacked(path, stack)
    if path.is_file() or (path.is_dir() and not (path / MANIFEST_FILE).is_file()):
        raise PackageError(
            f"{reference} is no model: expected a package folder (with {MANIFEST_FILE}), an edge"
            " bundle, or a file of `loupe models pack`"
        )
    return Classifier.open(reference, store=store)


def _only_model(store: Path) -> str:
    names = Store(store).names()
    if not names:
        raise UnknownModel(
            f"the store {store} has no model; `loupe retrain --data PHOTOS --name NAME` makes one,"
            " or name a package or an edge bundle with --model"
        )
    if len(names) > 1:
        raise ConfigError(
            f"the store {store} has several models ({', '.join(names)}); say which with --model"
        )
    return names[0]


def _unpacked(packed: Path, stack: ExitStack) -> Classifier:
    place = stack.enter_context(tempfile.TemporaryDirectory(prefix="loupe-"))
    folder = Path(place) / "package"
    name = unpack_package(packed, folder)
    model = open_model(folder, threads=threads_per_worker(1))
    return Classifier(model, name=name, version=0)
