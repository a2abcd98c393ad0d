"""The edge bundle: what it holds, that it runs alone, and that damage is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import loupe
from models.errors import ConfigError, ExportError, GoldenMismatch, PackageTampered
from models.machine import cpu_class
from models.package.manifest import TensorSpec
from models.package.manifest_file import read_manifest, write_manifest
from service.engine.classifier import Classifier
from tests.models.int8_packages import build_int8_package, spoil_golden
from tests.models.packages import build_package, edit_model, record_again
from tests.models.pixels.test_preprocess import png_chunk
from training.edge import ort_web
from training.edge.build import build
from training.edge.measure import measure

SIDE = 32
FOREIGN = next(name for name in ("arm64", "x86-64") if name != cpu_class())


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return build_package(tmp_path_factory.mktemp("package") / "package", size=SIDE)


@pytest.fixture(scope="module")
def zipped(package, tmp_path_factory) -> Path:
    return build(
        package, tmp_path_factory.mktemp("bundle") / "bundle.zip", targets=("python", "ort")
    ).path


def test_a_bundle_of_a_package_with_metadata_in_its_golden_images_has_none(package, tmp_path):
    """Packages of older versions have unchanged photos; a bundle is put on a public page."""
    old = Path(shutil.copytree(package, tmp_path / "old"))
    golden = old / "golden" / "1.png"
    content = golden.read_bytes()
    golden.write_bytes(content[:33] + png_chunk(b"tEXt", b"GPS\0SECRET") + content[33:] + b"SECRET")
    record_again(old)
    built = build(old, tmp_path / "bundle.zip", targets=("python",)).path
    with zipfile.ZipFile(built) as archive:
        assert [name for name in archive.namelist() if b"SECRET" in archive.read(name)] == []
        assert archive.read("golden/1.png") == content


@pytest.fixture
def bundle(zipped, tmp_path) -> Path:
    """The bundle unpacked, for a test to use or spoil."""
    shutil.unpack_archive(zipped, tmp_path / "bundle")
    return tmp_path / "bundle"


def script(bundle: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script of *bundle* as on a device: elsewhere, without this checkout's environment."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LOUPE"))
    }
    asked = [sys.executable, str(bundle / name), *map(str, arguments)]
    return subprocess.run(
        asked, capture_output=True, text=True, check=False, cwd=bundle.parent, env=environment
    )


def test_the_runner_answers_as_the_service_does(package, bundle):
    photo = bundle / "golden" / "0.png"
    [answer] = Classifier.open(package).classify([photo.read_bytes()])
    done = script(bundle, "run.py", photo)
    assert (done.returncode, done.stderr) == (0, "")
    expected = [
        f"{prediction.probability:7.2%}  {prediction.label}".strip()
        for prediction in answer.predictions
    ]
    assert [line.strip() for line in done.stdout.splitlines()] == [str(photo), *expected]


def test_the_runner_loads_nothing_but_numpy_pillow_and_onnxruntime_and_the_bundles_own_modules(
    bundle,
):
    probe = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.argv = [sys.argv[1] + '/run.py',"
        " sys.argv[2]]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit as"
        " end: assert not end.code\nprint(*sys.modules); print(sys.modules['models'].__file__)"
    )
    asked = [sys.executable, "-c", probe, str(bundle), str(bundle / "golden" / "0.png")]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=bundle.parent)
    *_, modules, origin = done.stdout.splitlines()
    foreign = {name.partition(".")[0] for name in modules.split()} - set(sys.stdlib_module_names)
    # Names with an underscore are the interpreter's start-up files, of an editable installation for
    # one.
    assert {name for name in foreign if not name.startswith("_")} == {
        "numpy",
        "PIL",
        "onnxruntime",
        "models",
    }
    assert Path(origin).is_relative_to(bundle)


def test_the_runner_says_which_photo_cannot_be_read_and_answers_the_others(bundle):
    done = script(bundle, "run.py", bundle / "README.md", bundle / "golden" / "0.png")
    assert done.returncode == 1
    assert "README.md: received" in done.stderr
    assert "which is no image; expected JPEG, PNG, WEBP" in done.stderr
    assert "0.png" in done.stdout


def test_the_runner_lists_the_variants_when_asked_for_another(bundle):
    done = script(bundle, "run.py", "--variant", "fp16.onnx", bundle / "golden" / "0.png")
    assert done.returncode == 2
    assert "this bundle has no variant fp16.onnx. Valid: fp32.onnx, fp32.ort" in done.stderr


def test_the_runner_and_the_benchmark_name_a_file_that_is_missing_or_changed(bundle):
    photo = bundle / "golden" / "0.png"
    sound = (bundle / "variants" / "fp32.onnx").read_bytes()
    again = "unpack the bundle again, into an empty folder"

    def refused(text):
        done = script(bundle, "run.py", photo)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith(f"run.py: error: {text}; {again}\n")

    (bundle / "variants" / "fp32.onnx").write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    refused("variants/fp32.onnx of this bundle is changed")
    (bundle / "variants" / "fp32.onnx").unlink()
    refused("variants/fp32.onnx of this bundle is missing")
    done = script(bundle, "bench.py", "--seconds", "0")
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        f"variants/fp32.onnx is missing; {again}\n",
    )
    (bundle / "variants" / "fp32.onnx").write_bytes(sound)
    (bundle / "manifest.json").unlink()
    refused("manifest.json of this bundle is missing")
    (bundle / "bundle.json").write_text("{")
    done = script(bundle, "run.py", photo)
    assert done.returncode == 2
    assert "error: bundle.json cannot be read (Expecting property name" in done.stderr


def test_the_self_test_passes_on_a_sound_bundle(bundle):
    done = script(bundle, "selftest.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("3 golden images, largest difference of a probability") == 2
    assert done.stdout.endswith("self-test passed\n")


def test_the_self_test_names_a_missing_and_a_changed_file_and_runs_neither(bundle):
    (bundle / "models" / "pixels" / "preprocess.py").write_text("raise SystemExit('this ran')\n")
    (bundle / "variants" / "fp32.ort").unlink()
    done = script(bundle, "selftest.py")
    assert done.returncode == 1
    assert (
        "FAIL  models/pixels/preprocess.py was changed: it has 29 bytes, was built with"
        in done.stdout
    )
    assert "FAIL  variants/fp32.ort is missing" in done.stdout
    assert "unpack the bundle again" in done.stdout
    assert "this ran" not in done.stdout + done.stderr


def test_the_self_test_says_so_when_its_list_is_damaged(bundle):
    (bundle / "bundle.json").write_text("{")
    done = script(bundle, "selftest.py")
    assert done.returncode == 1
    assert "bundle.json cannot be read" in done.stdout


def test_the_benchmark_measures_every_variant_in_a_process_of_its_own(bundle):
    done = script(bundle, "bench.py", "--seconds", "0", "--json")
    assert done.stderr == ""
    figures = json.loads(done.stdout)
    assert [row["variant"] for row in figures] == ["fp32.onnx", "fp32.ort"]
    for row in figures:
        assert row["bytes"] == (bundle / "variants" / row["variant"]).stat().st_size
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["images_per_s"] > 0
        assert row["runs"] >= 20
        assert row["peak_memory_mib"] > 20, "an interpreter with numpy and ONNX Runtime holds more"


def test_the_same_package_gives_the_same_zip(package, tmp_path):
    one, other = (
        build(package, tmp_path / f"{name}.zip", targets=("python",)).path
        for name in ("one", "other")
    )
    assert one.read_bytes() == other.read_bytes()


def test_an_int8_package_brings_both_precisions_in_both_formats(tmp_path):
    package = build_int8_package(tmp_path / "package", cpu_class=cpu_class())
    built = build(package, tmp_path / "bundle.zip", targets=("python", "ort"))
    assert list(built.variants) == ["int8.onnx", "int8.ort", "fp32.onnx", "fp32.ort"]
    assert built.warnings == ()
    assert json.loads(_read(built.path, "bundle.json"))["default"] == "int8.onnx"


def test_a_variant_that_does_not_give_the_recorded_answers_stops_the_build(tmp_path):
    package = build_int8_package(tmp_path / "package", cpu_class=cpu_class())
    spoil_golden(package)
    with pytest.raises(
        GoldenMismatch,
        match=r"does not pass its own self-test, and was not written: .*; FAIL  int8\.onnx",
    ):
        build(package, tmp_path / "bundle.zip", targets=("python",))
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_int8_for_another_kind_of_cpu_is_built_and_fp32_answers_where_int8_fails(tmp_path):
    package = build_int8_package(tmp_path / "package", cpu_class=FOREIGN)
    spoil_golden(package)
    built = build(package, tmp_path / "bundle.zip", targets=("python",))
    [warning] = built.warnings
    assert re.fullmatch(
        rf"note  int8\.onnx .*: int8 was validated on {FOREIGN}, and computes something else on"
        rf" this {cpu_class()}; fp32 answers here",
        warning,
    )
    shutil.unpack_archive(built.path, tmp_path / "bundle")
    photo = tmp_path / "bundle" / "golden" / "0.png"
    chosen, asked = (
        script(tmp_path / "bundle", "run.py", *variant, photo).stdout
        for variant in ((), ("--variant", "fp32.onnx"))
    )
    assert chosen == asked
    assert chosen != script(tmp_path / "bundle", "run.py", "--variant", "int8.onnx", photo).stdout
    tested = script(tmp_path / "bundle", "selftest.py")
    assert (tested.returncode, tested.stdout.splitlines()[-1]) == (0, "self-test passed")


def test_int8_for_another_kind_of_cpu_is_used_where_it_gives_the_recorded_answers(tmp_path):
    built = build(
        build_int8_package(tmp_path / "package", cpu_class=FOREIGN),
        tmp_path / "bundle.zip",
        targets=("python",),
    )
    assert built.warnings == ()
    shutil.unpack_archive(built.path, tmp_path / "bundle")
    photo = tmp_path / "bundle" / "golden" / "0.png"
    chosen, asked = (
        script(tmp_path / "bundle", "run.py", *variant, photo).stdout
        for variant in ((), ("--variant", "int8.onnx"))
    )
    assert chosen == asked


def test_int8_without_fp32_that_fails_on_this_cpu_is_built_with_a_warning_and_fails_its_self_test(
    tmp_path,
):
    package = build_int8_package(tmp_path / "package", cpu_class=FOREIGN, sibling=False)
    spoil_golden(package)
    built = build(package, tmp_path / "bundle.zip", targets=("python",))
    assert [line.split()[:2] for line in built.warnings] == [["FAIL", "int8.onnx"]]
    shutil.unpack_archive(built.path, tmp_path / "bundle")
    tested = script(tmp_path / "bundle", "selftest.py")
    assert tested.returncode == 1
    assert f"self-test failed: int8 was validated on {FOREIGN}" in tested.stdout


def test_an_fp32_network_that_fails_stops_the_build_on_any_cpu(tmp_path):
    package = build_int8_package(tmp_path / "package", cpu_class=FOREIGN)
    spoil_golden(package, sibling=True)
    with pytest.raises(GoldenMismatch, match=r"FAIL  fp32\.onnx"):
        build(package, tmp_path / "bundle.zip", targets=("python",))


def test_the_model_in_the_bundle_computes_the_answer_alone(tmp_path):
    package = build_package(tmp_path / "package", size=SIDE)
    manifest = read_manifest(package)
    maps = TensorSpec(name="cam", dtype="float32", shape=("N", 4))
    write_manifest(package, manifest.model_copy(update={"outputs": (*manifest.outputs, maps)}))
    edit_model(package, _add_maps)
    built = build(package, tmp_path / "bundle.zip", targets=("python", "ort"))
    model = onnx.load_model_from_string(_read(built.path, "variants/fp32.onnx"))
    assert "cam" not in [output.name for output in model.graph.output]
    assert "cam_weight" not in [tensor.name for tensor in model.graph.initializer]
    assert b"cam_weight" not in _read(built.path, "variants/fp32.ort")


def _add_maps(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        numpy_helper.from_array(np.ones((3, 4), np.float32), "cam_weight")
    )
    model.graph.node.append(helper.make_node("MatMul", ["embedding", "cam_weight"], ["cam"]))
    model.graph.output.append(helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["N", 4]))


def test_edge_bench_measures_a_bundle_and_a_package_alike(package, zipped):
    for place in (zipped, package):
        assert [row["variant"] for row in measure(place, threads=1, seconds=0.0)] == [
            "fp32.onnx",
            "fp32.ort",
        ]


def test_edge_bench_refuses_a_bundle_with_a_file_changed_or_cut_short(bundle, zipped, tmp_path):
    (bundle / "labels.txt").write_text("other\n")
    with pytest.raises(
        PackageTampered,
        match=r"bundle is not as it was built: labels\.txt was changed: .*Copy the bundle again",
    ):
        measure(bundle, threads=1, seconds=0.0)
    short = tmp_path / "short.zip"
    short.write_bytes(zipped.read_bytes()[:-100])
    with pytest.raises(
        PackageTampered, match=r"short\.zip is not a valid zip \(.*\); copy the bundle again"
    ):
        measure(short, threads=1, seconds=0.0)


def test_the_commands_build_and_measure(package, tmp_path):
    out = tmp_path / "bundle.zip"
    built = CliRunner().invoke(
        loupe.cli,
        ["edge", "build", str(package), "--target", "python", "--out", str(out)],
        catch_exceptions=False,
    )
    assert built.exit_code == 0
    assert f"bundle {out}, " in built.output
    measured = CliRunner().invoke(
        loupe.cli, ["edge", "bench", str(out), "--seconds", "0"], catch_exceptions=False
    )
    assert measured.exit_code == 0
    assert measured.output.splitlines()[0].split()[:3] == ["variant", "size", "MB"]
    assert measured.output.splitlines()[1].startswith("fp32.onnx")


def test_a_bundle_is_never_overwritten(package, tmp_path):
    (tmp_path / "bundle.zip").write_text("mine")
    with pytest.raises(
        ExportError,
        match=(
            r"bundle\.zip exists already; a bundle is never overwritten: choose another --out, or"
            r" remove it"
        ),
    ):
        build(package, tmp_path / "bundle.zip", targets=("python",))


def test_an_unknown_target_is_refused_with_the_valid_ones(package, tmp_path):
    with pytest.raises(
        ConfigError, match=r"unknown target android\. Valid, with commas between: python,web,ort"
    ):
        build(package, tmp_path / "bundle.zip", targets=("python", "android"))


def test_a_changed_package_is_not_built(package, tmp_path):
    copy = shutil.copytree(package, tmp_path / "package")
    (copy / "report.json").write_text("{ }\n")
    with pytest.raises(PackageTampered, match=r"report\.json"):
        build(copy, tmp_path / "bundle.zip", targets=("python",))
    record_again(copy)
    build(copy, tmp_path / "bundle.zip", targets=("python",))


def test_without_npm_the_web_target_says_how_to_bring_the_file(package, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = (
        r"needs onnxruntime-web 1\..*, and npm is not on the PATH to get it: install npm, or fetch"
        r" it where npm is, .*--ort-web$"
    )
    with pytest.raises(ExportError, match=expected):
        build(package, tmp_path / "bundle.zip", targets=("web",))
    assert list(tmp_path.iterdir()) == []


def test_npm_that_fails_is_quoted(tmp_path, monkeypatch):
    """A program of that name that ends as npm does without a network."""
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ExportError,
        match=(
            r"npm cannot get onnxruntime-web \S+ \(npm error code ENOTFOUND\); fetch it where"
            r" npm is"
        ),
    ):
        ort_web.npm_tarball()


def test_another_tarball_than_the_pinned_one_is_refused(package, tmp_path):
    tarball = tmp_path / "onnxruntime-web.tgz"
    tarball.write_bytes(b"something else")
    with pytest.raises(
        ExportError,
        match=(
            r"onnxruntime-web\.tgz is not onnxruntime-web 1\.\S+: its integrity is"
            r" sha512-\S+\.\.\., expected sha512-"
        ),
    ):
        build(package, tmp_path / "bundle.zip", targets=("web",), ort_web=tarball)
    asked = [
        "edge",
        "build",
        str(package),
        "--target",
        "python",
        "--ort-web",
        str(tarball),
        "--out",
        str(tmp_path / "b.zip"),
    ]
    with pytest.raises(
        ConfigError, match=r"--ort-web is for --target web, but the target is python"
    ):
        CliRunner().invoke(loupe.cli, asked, catch_exceptions=False)


def _read(archive: Path, name: str) -> bytes:
    with zipfile.ZipFile(archive) as opened:
        return opened.read(name)


def test_a_label_with_a_line_break_is_one_line(tmp_path):
    labelled = build_package(
        tmp_path / "package", labels=["ant", "honey\nbee", "\x1b[31mwasp"], size=SIDE
    )
    written = build(labelled, tmp_path / "bundle.zip", targets=("python",)).path
    with zipfile.ZipFile(written) as archive:
        assert archive.read("labels.txt").decode().split("\n") == [
            "ant",
            "honey bee",
            "\\x1b[31mwasp",
            "",
        ]
