"""From a model package to the edge bundle: one zip, checked before it gets its name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import onnxruntime
from PIL import Image

import models
from models.errors import ConfigError, ExportError, GoldenMismatch
from models.machine import cpu_class
from models.messages import label_lines
from models.package.edge_bundle import INDEX_FILE
from models.package.manifest import GOLDEN_FOLDER, MANIFEST_FILE, Manifest
from models.package.verify import VerifiedPackage, verify_package, write_golden
from models.pixels.preprocess import to_pixels
from training.edge.archive import write_zip
from training.edge.ort_web import VERSION as ORT_WEB_VERSION
from training.edge.ort_web import web_runtime
from training.edge.readme import readme
from training.edge.variants import answering_networks, to_ort
from training.export.metadata import without_metadata

TARGETS = ("python", "web", "ort")
BUNDLE_VERSION = 1
RUNNER = Path(__file__).parent / "bundle"
PREPROCESSING = ("__init__.py", "errors.py", "machine.py", "pixels/**/*.py")
"""The modules of `models` that turn files into pixels and name the CPU class.

They are copied unchanged, so that there is no second preprocessing.
"""


@dataclass(frozen=True)
class Built:
    """A bundle that was written."""

    path: Path
    variants: dict[str, int]
    """Name -> bytes of the model file."""
    warnings: tuple[str, ...]
    """Of the self-test, about int8 on a CPU class that it was not validated on."""


def build(
    package: Path, out: Path, *, targets: Sequence[str] = TARGETS, ort_web: Path | None = None
) -> Built:
    """The bundle of the package in folder *package*, as the new zip *out*.

    *ort_web* is npm's tarball of onnxruntime-web; by default npm fetches it. Raises `PackageError`
    for a package that may not be used, `GoldenMismatch` if a variant does not give the recorded
    answers here, `ConfigError` for an unknown target, `ExportError` for the rest.
    """
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown or not targets:
        raise ConfigError(
            f"unknown target {', '.join(unknown) or '(none)'}. Valid, with commas between:"
            f" {','.join(TARGETS)}"
        )
    if out.exists():
        raise ExportError(
            f"{out} exists already; a bundle is never overwritten: choose another --out, or"
            " remove it"
        )
    verified = _without_metadata(verify_package(package))
    networks = answering_networks(verified)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=out.parent) as place:
        folder = Path(place)
        contents: dict[str, bytes] = {}
        for precision, model in networks.items():
            if "python" in targets:
                contents[f"{precision}.onnx"] = model
            if "ort" in targets:
                contents[f"{precision}.ort"] = to_ort(model, origin=f"{package}, {precision}")
        _copy_runner(folder, verified.manifest)
        if "web" in targets:
            _write_web(folder / "web", verified, networks, runtime=web_runtime(ort_web))
        _write_described(folder, verified, contents)
        _write_index(folder, verified.manifest, contents, targets=targets)
        warnings = _self_test(folder, verified.manifest)
        write_zip(folder, out)
    return Built(out, {name: len(content) for name, content in contents.items()}, warnings)


def _write_described(folder: Path, package: VerifiedPackage, variants: Mapping[str, bytes]) -> None:
    """The manifest, the golden images, and the *variants* by file name."""
    shutil.copyfile(package.path / MANIFEST_FILE, folder / MANIFEST_FILE)
    write_golden(folder, package.golden, tolerance=package.golden_tolerance)
    (folder / "variants").mkdir()
    for name, content in variants.items():
        (folder / "variants" / name).write_bytes(content)


def _write_index(
    folder: Path, manifest: Manifest, variants: Iterable[str], *, targets: Sequence[str]
) -> None:
    """`bundle.json`, with the hashes of all other files in *folder*, and a README for people."""
    names = list(variants)
    index: dict[str, Any] = {
        "bundle_version": BUNDLE_VERSION,
        "network": manifest.architecture.network,
        "precision": manifest.precision,
        "cpu_class": manifest.cpu_class,
        "targets": [target for target in TARGETS if target in targets],
        "variants": {name: f"variants/{name}" for name in names},
        "default": next(iter(names), None),
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime_web": ORT_WEB_VERSION,
    }
    if folder.name != "web":
        (folder / "README.md").write_text(readme(manifest, index), encoding="utf-8")
    index["files"] = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _copy_runner(folder: Path, manifest: Manifest) -> None:
    for script in RUNNER.glob("*.py"):
        shutil.copyfile(script, folder / script.name)
    source = Path(models.__file__).parent
    for path in chain.from_iterable(map(source.glob, PREPROCESSING)):
        target = folder / "models" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (folder / "labels.txt").write_text(label_lines(manifest.labels), encoding="utf-8")


def _without_metadata(package: VerifiedPackage) -> VerifiedPackage:
    """*package* with golden images without metadata.

    Bundles are made public, and a package of an older version may have metadata in
    them. Raises `ExportError` for an image that cannot be freed of it.
    """
    images = []
    for image in package.golden:
        encoded = without_metadata(image.encoded, package.manifest.preprocess)
        if encoded is None:
            raise ExportError(
                f"golden image {image.file} of {package.path} cannot be freed of its metadata"
                " without changing a pixel; export the run again with --golden FOLDER"
            )
        images.append(image.model_copy(update={"encoded": encoded}))
    return dataclasses.replace(package, golden=tuple(images))


def _write_web(
    web: Path,
    package: VerifiedPackage,
    networks: Mapping[str, bytes],
    *,
    runtime: Mapping[str, bytes],
) -> None:
    """The folder *web*, made and filled: a static page that needs no other file.

    *runtime* holds onnxruntime-web's files.
    """
    shutil.copytree(RUNNER / "web", web)
    (web / "ort").mkdir()
    for name, content in runtime.items():
        (web / "ort" / name).write_bytes(content)
    variants = {f"{precision}.onnx": model for precision, model in networks.items()}
    _write_described(web, package, variants)
    for image in package.golden:
        # The pixels too, without loss: the page then distinguishes a browser that computes
        # otherwise from one that decodes otherwise.
        pixels_HWC = to_pixels(image.encoded, package.manifest.preprocess)
        Image.fromarray(pixels_HWC).save(web / GOLDEN_FOLDER / f"{image.file}.pixels.png")
    _write_index(web, package.manifest, variants, targets=("web",))


def _self_test(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """The warnings of the bundle's own self-test about int8 on a CPU that it was not validated on.

    Raises `GoldenMismatch` for any other failure.
    """
    asked = [sys.executable, "-B", str(folder / "selftest.py")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 - our own script, just written
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    foreign = cpu_class() != manifest.cpu_class and all(
        line.split()[1].startswith("int8.") for line in failed
    )
    if done.returncode != 0 and not (failed and foreign):
        raise GoldenMismatch(
            f"the bundle does not pass its own self-test, and was not written: {'; '.join(lines)}"
        )
    return (*failed, *(line for line in lines if line.startswith("note")))
