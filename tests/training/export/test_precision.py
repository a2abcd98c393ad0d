"""fp16 and int8 packages of a real run: what they hold, and that they answer as the run does.

Letters used in shapes: N images, K classes.
"""

import dataclasses
import json
import re

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from models.errors import DataError, ExportError
from models.machine import cpu_class
from models.package.manifest import MODEL_FILE, SIBLING_FILE
from models.package.manifest_file import read_manifest
from models.runtime.answer_graph import answering_part
from models.runtime.session import open_model
from tests.training.export.file_metadata import metadata_of
from training.commands import export as command
from training.data.index import make_index
from training.data.loader import evaluation_batches
from training.data.source import load_dataset
from training.export import onnx_file
from training.export import precision as making
from training.export.export import export
from training.export.int8.choose import Int8Options
from training.export.parity import PARITY_TOLERANCE

OUTPUTS = ("logits", "probabilities", "embedding", "cam")


@pytest.fixture(scope="module", autouse=True)
def exported_once(exported):
    """What torch's exporter takes ten seconds for has been made before: the same run, the same
    graph.
    """
    encoded = (exported.package / MODEL_FILE).read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "to_onnx", lambda graph, spec, exporter: encoded)
        yield


@pytest.fixture(scope="module")
def pixels_NHWC(exported):
    dataset = make_index(
        load_dataset(str(exported.photos), seed=exported.run.config.seed),
        exported.manifest.preprocess,
        most=0.05,
    ).dataset
    return np.concatenate(
        list(evaluation_batches(dataset.splits["test"], exported.manifest.preprocess, 32))
    )


@pytest.fixture(scope="module")
def expected(exported, pixels_NHWC):
    return open_model(exported.package).run(pixels_NHWC, OUTPUTS)


@pytest.fixture(scope="module")
def int8(exported, tmp_path_factory):
    """Through the command, as a user has it."""
    out = tmp_path_factory.mktemp("int8") / "package"
    done = CliRunner().invoke(
        command,
        [str(exported.run.path), "--out", str(out), "--precision", "int8", "--time-budget", "0"],
    )
    assert done.exit_code == 0, done.output
    return out, done


@pytest.fixture(scope="module")
def fp16(exported, tmp_path_factory):
    out = tmp_path_factory.mktemp("fp16") / "package"
    export(exported.run, out, precision="fp16")
    return out


def test_an_int8_package_carries_its_fp32_sibling_and_names_its_cpu_class(exported, int8):
    out, _ = int8
    manifest = read_manifest(out)
    assert (manifest.precision, manifest.cpu_class) == ("int8", cpu_class())
    assert manifest.files[SIBLING_FILE].bytes > 3.5 * manifest.files[MODEL_FILE].bytes
    model = open_model(out)
    assert (model.precision, model.fallback) == ("int8", None)


def test_int8_answers_as_the_run_does(int8, expected, pixels_NHWC):
    found = open_model(int8[0]).run(pixels_NHWC, OUTPUTS)
    assert (found["probabilities"].argmax(axis=1) == expected["probabilities"].argmax(axis=1)).all()
    for name in OUTPUTS:
        scale = float(np.abs(expected[name]).max())
        # Eight bits through eighteen layers: a tenth of the largest number. A wrong graph is wrong
        # by all of it.
        np.testing.assert_allclose(found[name], expected[name], atol=0.1 * scale, err_msg=name)


def test_no_weight_is_in_an_int8_file_twice(int8, exported):
    model = onnx.load(int8[0] / MODEL_FILE)
    heavy = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) >= 8192]
    assert {tensor.data_type for tensor in heavy if len(tensor.dims) > 1} <= {
        onnx.TensorProto.INT8,
        onnx.TensorProto.UINT8,
    }
    weights = sum(int(np.prod(tensor.dims)) for tensor in heavy if len(tensor.dims) > 1)
    assert weights <= exported.manifest.architecture.num_parameters


def test_the_way_to_int8_is_in_the_report_and_on_the_terminal(int8):
    out, done = int8
    report = json.loads((out / "report.json").read_text())["quantisation"]
    assert report["path"][0]["name"] == "fp32"
    taken = [row for row in report["path"] if row["taken"]]
    assert [row["name"] for row in taken] == [report["taken"]]
    assert taken[0]["inside"]
    assert taken[0]["loss_points"] <= 1.0
    assert taken[0]["megabytes"] < 12.0
    assert taken[0]["ms"] > 0.0
    assert (
        report["calibration_images"],
        report["judging_images"],
        report["budget_points"],
        report["cpu_class"],
    ) == (54, 18, 1.0, cpu_class())
    assert "the time budget ended the search" in report["reason"]
    assert re.search(
        rf"^{re.escape(report['taken'])}\n  accuracy 100\.00%, [-+]0\.00 points against fp32; ",
        done.stderr,
        re.MULTILINE,
    )
    assert f"made in int8: {report['reason']}\n" in done.stdout
    assert "The way to int8" in (out / "report.html").read_text()


def test_an_fp16_package_takes_pixels_and_gives_float32(exported, fp16, expected, pixels_NHWC):
    manifest = read_manifest(fp16)
    assert (manifest.precision, manifest.cpu_class, manifest.input.dtype) == ("fp16", None, "uint8")
    assert {spec.dtype for spec in manifest.outputs} == {"float32"}
    assert manifest.files[MODEL_FILE].bytes < 0.51 * exported.manifest.files[MODEL_FILE].bytes
    found = open_model(fp16).run(pixels_NHWC, OUTPUTS)
    for name in OUTPUTS:
        scale = float(np.abs(expected[name]).max())
        # Eleven bits through eighteen layers.
        np.testing.assert_allclose(found[name], expected[name], atol=0.01 * scale, err_msg=name)
        assert found[name].dtype == np.float32


def test_in_fp16_logits_still_fall_out_on_the_way_to_the_answer(fp16):
    assert answering_part((fp16 / MODEL_FILE).read_bytes())[1] == {"logits", "probabilities"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_file_explains_itself_without_the_manifest(exported, fp16, int8, precision):
    folder = {"fp32": exported.package, "fp16": fp16, "int8": int8[0]}[precision]
    found = metadata_of((folder / MODEL_FILE).read_bytes())
    assert json.loads(found["labels"]) == ["blue", "green", "red"]
    assert json.loads(found["preprocess"]) == exported.manifest.preprocess.model_dump(mode="json")
    assert (found["network"], found["precision"]) == ("resnet18", precision)
    assert float(found["temperature"]) == exported.manifest.temperature
    assert json.loads(found["packages"])["onnx"] == onnx.__version__


@pytest.mark.slow
def test_a_budget_that_nothing_meets_is_an_error_or_keeps_fp32_if_asked(
    exported, tmp_path, monkeypatch
):
    monkeypatch.setattr("training.export.int8.candidate.scores", _wrong)
    options = Int8Options(time_budget_s=0.0)
    expected = (
        r"^int8 gate: fp32 is kept: none of 1 int8 candidates is inside the accuracy budget of 1"
        r" points \(the time budget ended the search\); "
        r"the best loses \d+\.\d\d points \(min-max, .*\)\. Raise --accuracy-budget or"
        r" --time-budget, "
        r"or export with --keep-fp32 or --precision fp32$"
    )
    with pytest.raises(ExportError, match=expected):
        export(exported.run, tmp_path / "package", precision="int8", int8=options)
    assert list(tmp_path.iterdir()) == []
    manifest = export(
        exported.run,
        tmp_path / "package",
        precision="int8",
        int8=Int8Options(time_budget_s=0.0, keep_fp32=True),
    )
    assert manifest.precision == "fp32"
    assert SIBLING_FILE not in manifest.files
    assert json.loads((tmp_path / "package/report.json").read_text())["quantisation"][
        "reason"
    ].startswith("fp32 is kept: ")


@pytest.mark.slow
def test_int8_that_fails_on_held_out_images_alone_is_an_error_or_keeps_fp32_if_asked(
    exported, tmp_path, monkeypatch
):
    search = making.find_int8

    def lucky(*arguments):
        """The real search, whose choice is right on the images that judge candidates and says
        `blue` to all others.
        """
        found = search(*arguments)
        model = onnx.ModelProto.FromString(found.taken.encoded)
        bias = next(
            tensor
            for tensor in model.graph.initializer
            if tensor.data_type == onnx.TensorProto.INT32 and list(tensor.dims) == [3]
        )
        bias.CopyFrom(onnx.numpy_helper.from_array(np.int32([2**30, 0, 0]), bias.name))
        return dataclasses.replace(
            found, taken=dataclasses.replace(found.taken, encoded=model.SerializeToString())
        )

    monkeypatch.setattr(making, "find_int8", lucky)
    gate = (
        r"accuracy gate: of 18 images the exported model answers 6 right and torch 18: 66\.67"
        r" points are lost, more than 1; "
        r"worst image: (green|red)/\d+\.png"
    )
    advice = "raise --accuracy-budget, or export with --keep-fp32 or --precision fp32"
    with pytest.raises(
        ExportError,
        match=(
            rf"^{gate}\. Candidates are judged on other images, where it was inside the budget:"
            rf" {advice}$"
        ),
    ):
        export(
            exported.run,
            tmp_path / "package",
            precision="int8",
            int8=Int8Options(time_budget_s=0.0),
        )
    assert list(tmp_path.iterdir()) == []

    manifest = export(
        exported.run,
        tmp_path / "package",
        precision="int8",
        int8=Int8Options(time_budget_s=0.0, keep_fp32=True),
    )
    assert (manifest.precision, manifest.cpu_class) == ("fp32", None)
    assert (
        manifest.evaluation.metrics["top1"].value
        == exported.manifest.evaluation.metrics["top1"].value
    )
    assert (
        manifest.parity.max_probability_difference <= manifest.parity.tolerance == PARITY_TOLERANCE
    )
    assert SIBLING_FILE not in manifest.files
    report = json.loads((tmp_path / "package/report.json").read_text())["quantisation"]
    kept = (
        r"^fp32 is kept: the search ended at min-max, .*, 0\.00 points below fp32 on the images"
        rf" that judge candidates, but {gate}$"
    )
    assert re.match(kept, report["reason"])
    assert report["taken"] is None
    assert not any(row["taken"] for row in report["path"])
    assert open_model(tmp_path / "package").precision == "fp32"


def _wrong(encoded, pixels_NHWC):
    """An int8 model that has learnt nothing."""
    import onnxruntime as ort

    session = ort.InferenceSession(encoded, providers=["CPUExecutionProvider"])
    found_NK = session.run(["logits"], {"image": pixels_NHWC})[0]
    return -found_NK if b"QuantizeLinear" in encoded else found_NK


def test_the_split_that_judges_cannot_calibrate(exported, tmp_path):
    with pytest.raises(
        DataError, match=r"^calibration split is 'holiday'; .* has train, val, test$"
    ):
        export(
            exported.run,
            tmp_path / "package",
            precision="int8",
            int8=Int8Options(calibration_split="holiday"),
        )
    assert list(tmp_path.iterdir()) == []
