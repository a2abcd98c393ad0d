"""From a model package to the edge bundle: one zip, checked before it gets its name."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from PIL import Image

import models
from models.errors import ConfigError, ExportError, GoldenMismatch
from models.machine import cpu_class
from models.messages import label_lines
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
INDEX_FILE = "bundle.json"
BUNDLE_VERSION = 1
RUNNER = Path(__file__).parent / "bundle"
PREPROCESSING = ("__init__.py", "errors.py", "machine.py", "pixels/**/*.py")
"""The part of `models` that turns files into pixels, and the CPU class: the very modules, so that there is no second preprocessing."""


@dataclass(frozen=True)
class Built:
    """A bundle that was written."""

    path: Path
    variants: dict[str, int]
    """Name -> bytes of the model file."""
    doubts: tuple[str, ...]
    """What the self-test says of an int8 variant here, if this CPU is not of the class that int8 was validated on."""


def build(
    package: Path, out: Path, *, targets: Sequence[str] = TARGETS, ort_web: Path | None = None
) -> Built:
    """The bundle of the package in folder *package*, as the new zip *out*.

    *ort_web* is npm's tarball of onnxruntime-web; without, npm brings it. Raises `PackageError` for
    a package that may not be used, `GoldenMismatch` if a variant does not give the recorded answers
    here, `ConfigError` for an unknown target, `ExportError` for the rest.
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
        variants = _write_variants(folder, networks, targets, origin=str(package))
        default = next(iter(variants), None)
        _copy_runner(folder, verified)
        if "web" in targets:
            write_web(folder / "web", verified, networks, runtime=web_runtime(ort_web))
        index = _index(verified.manifest, targets=targets, variants=variants, default=default)
        (folder / "README.md").write_text(readme(verified.manifest, index), encoding="utf-8")
        write_index(folder, index)
        doubts = _self_test(folder, verified.manifest)
        sizes = {name: (folder / file).stat().st_size for name, file in variants.items()}
        write_zip(folder, out)
    return Built(out, sizes, doubts)


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Write *index* into *folder*, with the hashes of all other files that are there by now."""
    paths = sorted(
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    records = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in files.items()
    }
    (folder / INDEX_FILE).write_text(
        json.dumps({**index, "files": records}, indent=1) + "\n", encoding="utf-8"
    )


def _write_variants(
    folder: Path, networks: Mapping[str, bytes], targets: Sequence[str], *, origin: str
) -> dict[str, str]:
    """Variant -> file, the package's own precision first."""
    variants = {}
    (folder / "variants").mkdir()
    for precision, model in networks.items():
        contents = {}
        if "python" in targets:
            contents["onnx"] = model
        if "ort" in targets:
            contents["ort"] = to_ort(model, origin=f"{origin}, {precision}")
        for suffix, content in contents.items():
            name = f"{precision}.{suffix}"
            variants[name] = f"variants/{name}"
            (folder / variants[name]).write_bytes(content)
    return variants


def _copy_runner(folder: Path, package: VerifiedPackage) -> None:
    for script in RUNNER.glob("*.py"):
        shutil.copyfile(script, folder / script.name)
    source = Path(models.__file__).parent
    for pattern in PREPROCESSING:
        for path in source.glob(pattern):
            target = folder / "models" / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    _copy_described(folder, package)
    (folder / "labels.txt").write_text(label_lines(package.manifest.labels), encoding="utf-8")


def _copy_described(folder: Path, package: VerifiedPackage) -> None:
    """What the manifest says, and the golden images.

    Bundles are made public: a package of an older version may have metadata in them.
    """
    shutil.copyfile(package.path / MANIFEST_FILE, folder / MANIFEST_FILE)
    write_golden(folder, package.golden, tolerance=package.golden_tolerance)


def _without_metadata(package: VerifiedPackage) -> VerifiedPackage:
    """*package* with golden images that are pictures alone.

    Raises `ExportError` where one cannot be had without.
    """
    images = []
    for image in package.golden:
        alone = without_metadata(image.encoded, package.manifest.preprocess)
        if alone is None:
            raise ExportError(
                f"golden image {image.file} of {package.path} cannot be freed of its metadata"
                " without changing a pixel; export the run again with --golden FOLDER"
            )
        images.append(image.model_copy(update={"encoded": alone}))
    return dataclasses.replace(package, golden=tuple(images))


def write_web(
    web: Path,
    package: VerifiedPackage,
    networks: Mapping[str, bytes],
    *,
    runtime: Mapping[str, bytes],
) -> None:
    """The folder *web*, made and filled: a static page that stands alone.

    *runtime* holds onnxruntime-web's files.
    """
    shutil.copytree(RUNNER / "web", web)
    _copy_described(web, package)
    (web / "ort").mkdir()
    for name, content in runtime.items():
        (web / "ort" / name).write_bytes(content)
    (web / "variants").mkdir()
    for precision, model in networks.items():
        (web / "variants" / f"{precision}.onnx").write_bytes(model)
    for image in package.golden:
        # The pixels too, without loss: so the page can tell a browser that computes otherwise from
        # one that decodes otherwise.
        stream = io.BytesIO()
        Image.fromarray(to_pixels(image.encoded, package.manifest.preprocess)).save(
            stream, format="PNG"
        )
        (web / GOLDEN_FOLDER / f"{image.file}.pixels.png").write_bytes(stream.getvalue())
    variants = {f"{precision}.onnx": f"variants/{precision}.onnx" for precision in networks}
    write_index(
        web,
        _index(package.manifest, targets=("web",), variants=variants, default=next(iter(variants))),
    )


def _index(
    manifest: Manifest, *, targets: Sequence[str], variants: Mapping[str, str], default: str | None
) -> dict[str, Any]:
    return {
        "bundle_version": BUNDLE_VERSION,
        "network": manifest.architecture.network,
        "precision": manifest.precision,
        "cpu_class": manifest.cpu_class,
        "targets": [target for target in TARGETS if target in targets],
        "variants": dict(variants),
        "default": default,
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime_web": ORT_WEB_VERSION,
    }


def _self_test(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """What the bundle's own self-test says against int8 on a CPU that it was not validated for.

    Raises `GoldenMismatch` for any other failure.
    """
    asked = [sys.executable, "-B", str(folder / "selftest.py")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 - our own script, just written
    said = done.stdout.strip() or done.stderr.strip()
    failed = [line for line in said.splitlines() if line.startswith("FAIL")]
    foreign = cpu_class() != manifest.cpu_class and all(
        line.split()[1].startswith("int8.") for line in failed
    )
    if done.returncode != 0 and not (failed and foreign):
        raise GoldenMismatch(
            "the bundle does not pass its own self-test, and was not written:"
            f" {'; '.join(said.splitlines())}"
        )
    return (*failed, *(line for line in said.splitlines() if line.startswith("note")))
