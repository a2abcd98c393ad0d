"""Networks that torch's newer exporter, or no exporter, can take: which one made the file is on
record, and what stands in the way is named.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from models.errors import ExportError
from models.package.manifest import MODEL_FILE
from models.runtime.session import open_model
from tests.training.export.file_metadata import metadata_of
from training.commands import export as command
from training.export import export as exporting
from training.export import onnx_file
from training.export.export import export
from training.export.parity import PARITY_TOLERANCE


@torch.library.custom_op("loupe_tests::mirrored", mutates_args=())
def mirrored(features: torch.Tensor) -> torch.Tensor:
    """An operator that ONNX does not have."""
    return features.flip(-1)


@mirrored.register_fake
def _(features):
    return torch.empty_like(features)


def depends_on_values(features):
    """What an exporter that reasons about all inputs must refuse, and one that follows a single one
    can take.
    """
    return features if bool((features == features).all()) else -features


def behind_features(monkeypatch, change):
    """The export's network with *change* behind its features; its weights have the same names."""
    build = exporting.build

    def changed(name, **options):
        network = build(name, **options)
        features = network.features.forward
        network.features.forward = lambda images: change(features(images))
        return network

    monkeypatch.setattr(exporting, "build", changed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_where_the_first_exporter_fails_the_second_is_taken_and_recorded(
    exported, monkeypatch, tmp_path
):
    behind_features(monkeypatch, depends_on_values)
    manifest = export(exported.run, tmp_path / "package")
    assert manifest.parity.exporter == "torch.onnx legacy"
    assert manifest.parity.max_probability_difference <= PARITY_TOLERANCE
    assert (
        metadata_of((tmp_path / "package" / MODEL_FILE).read_bytes())["exporter"]
        == "torch.onnx legacy"
    )
    assert exported.manifest.parity.exporter == "torch.onnx dynamo"
    # The same network by two ways: only the order of additions differs.
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, size=(3, 32, 32, 3), dtype=np.uint8)
    outputs = ("logits", "probabilities", "embedding", "cam")
    expected, found = (
        open_model(folder).run(pixels_NHWC, outputs)
        for folder in (exported.package, tmp_path / "package")
    )
    for name in outputs:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.timeout(300)
def test_an_operator_that_no_exporter_knows_is_named_and_nothing_is_left_behind(
    exported, monkeypatch, tmp_path
):
    behind_features(monkeypatch, mirrored)
    with pytest.raises(
        ExportError,
        match=(
            r"^the network cannot be exported to ONNX opset 20 \(torch\.onnx dynamo: .*;"
            r" torch\.onnx legacy: .*\)"
        ),
    ) as caught:
        export(exported.run, tmp_path / "package")
    message = str(caught.value)
    assert message.count("loupe_tests") == 2, message
    assert message.count("mirrored") == 2, message
    assert message.endswith(
        "Replace the operator that is named, or write what it computes with operators that ONNX has"
    )
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_comes_out_wrong_from_the_first_exporter_is_made_by_the_second(
    exported, monkeypatch, tmp_path
):
    encoded = (exported.package / MODEL_FILE).read_bytes()
    wrong = onnx.ModelProto.FromString(encoded)
    bias = next(tensor for tensor in wrong.graph.initializer if list(tensor.dims) == [3])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.float32([9.0, 0.0, 0.0]), bias.name))
    made = {"torch.onnx dynamo": wrong.SerializeToString(), "torch.onnx legacy": encoded}
    monkeypatch.setattr(onnx_file, "to_onnx", lambda graph, spec, exporter: made[exporter])
    assert export(exported.run, tmp_path / "package").parity.exporter == "torch.onnx legacy"


def test_the_command_says_in_one_line_what_cannot_be_exported(exported, monkeypatch, tmp_path):
    def failing(graph, spec, exporter):
        raise torch.onnx.OnnxExporterError(
            f"{exporter} knows no aten::spin\nand much more about it"
        )

    monkeypatch.setattr(onnx_file, "to_onnx", failing)
    done = CliRunner().invoke(command, [str(exported.run.path), "--out", str(tmp_path / "package")])
    assert isinstance(done.exception, ExportError)
    reasons = [
        f"{exporter}: OnnxExporterError: {exporter} knows no aten::spin"
        for exporter in ("torch.onnx dynamo", "torch.onnx legacy")
    ]
    assert f"({'; '.join(reasons)})" in str(done.exception)


def test_a_package_does_not_tell_where_the_code_lay_that_made_it(exported):
    encoded = (exported.package / MODEL_FILE).read_bytes()
    model = onnx.ModelProto.FromString(encoded)
    assert len(model.graph.node) > 10
    assert not any(node.metadata_props for node in model.graph.node)
    assert b".py" not in encoded
    assert str(Path(__file__).parents[3]).encode() not in encoded
