"""`loupe import`: the package answers as the model did, whatever the model wants and gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy.special import expit, softmax

from models.errors import ConfigError, ExportError, ImportRefused
from models.package.manifest_file import read_manifest
from models.runtime.session import Model, open_model
from tests.training.importing.foreign_models import (
    LABELS,
    SIZE,
    asked,
    convolutional,
    made,
    saved,
)
from training.importing.declared import USUAL, Declared
from training.importing.images import NONE
from training.importing.package import Imported, import_model, understood
from training.importing.sources.find import foreign_model

PIXELS = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
TOLERANCE = 1e-5
"""Of a probability: the package normalises in float32, the test in float64."""
MEAN, STD = np.array(USUAL["imagenet"].mean), np.array(USUAL["imagenet"].std)


def imported(
    model: onnx.ModelProto,
    folder: Path,
    *,
    labels: tuple[str, ...] = LABELS,
    declared: Declared = USUAL["imagenet"],
) -> tuple[Imported, Model]:
    """The package of *model*, opened."""
    path = saved(model, folder / "foreign.onnx")
    found = understood(foreign_model(path, network=None), labels, declared)
    result = import_model(found, NONE, folder / "package")
    return result, open_model(folder / "package")


def probabilities(model: Model) -> np.ndarray:
    return model.run(PIXELS)["probabilities"]


def normalised(pixels: np.ndarray = PIXELS) -> np.ndarray:
    """float32 [N,3,H,W] as torchvision's users make it."""
    return ((pixels / 255.0 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 4, "batch"])
def test_torch_logits_become_probabilities_for_any_batch(tmp_path, batch):
    model = convolutional(batch=batch)
    _, package = imported(model, tmp_path)
    free = convolutional(batch="batch")
    expected = softmax(asked(free, normalised()), axis=1)
    np.testing.assert_allclose(probabilities(package), expected, atol=TOLERANCE)


def test_channels_last_in_bgr_with_means_alone_is_what_caffe_wants(tmp_path):
    declared = USUAL["caffe"]
    model = convolutional(layout="nhwc", ending="Softmax")
    # Its kernels are not made for pixels of 0 to 255: smaller ones keep the answers apart.
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) / 100.0, "kernel"))
    result, package = imported(model, tmp_path, declared=declared)
    inputs = (PIXELS[..., ::-1] - np.array(declared.mean)).astype(np.float32)
    assert result.gives_probabilities
    np.testing.assert_allclose(probabilities(package), asked(model, inputs), atol=TOLERANCE)
    mean = package.manifest.architecture.mean
    assert mean == pytest.approx((123.68 / 255, 116.779 / 255, 103.939 / 255))


def test_a_softmax_in_the_graph_is_not_applied_twice(tmp_path):
    plain, soft = convolutional(), convolutional(ending="Softmax")
    _, package = imported(soft, tmp_path)
    found = package.run(PIXELS, ("logits", "probabilities"))
    np.testing.assert_allclose(found["logits"], asked(plain, normalised()), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], asked(soft, normalised()), atol=TOLERANCE)


def test_probabilities_that_no_softmax_made_are_kept(tmp_path):
    """Exp and a division: a softmax that its graph does not name."""
    model = convolutional()
    graph = model.graph
    graph.node[-1].output[0] = "logits"
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    graph.node.extend(
        [
            helper.make_node("Exp", ["logits"], ["exp"]),
            helper.make_node("ReduceSum", ["exp", "axis"], ["sum"]),
            helper.make_node("Div", ["exp", "sum"], ["scores"]),
        ]
    )
    result, package = imported(model, tmp_path)
    assert result.gives_probabilities
    np.testing.assert_allclose(probabilities(package), asked(model, normalised()), atol=TOLERANCE)
    assert result.why_no_maps == "its head has Log before the last layer"


@pytest.mark.parametrize("ending", ["Sigmoid", ""])
def test_one_score_for_two_classes_is_the_probability_of_the_second(tmp_path, ending):
    """A beginner's network for two classes ends in one sigmoid."""
    model = convolutional(classes=1, ending=ending)
    _, package = imported(model, tmp_path, labels=("no", "yes"))
    yes = asked(convolutional(classes=1), normalised())[:, 0]
    np.testing.assert_allclose(probabilities(package)[:, 1], expit(yes), atol=TOLERANCE)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_grey_networks_get_pillows_grey(tmp_path, layout):
    model = convolutional(colours=1, layout=layout)
    _, package = imported(model, tmp_path, declared=USUAL["unit"])
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in PIXELS])
    inputs = (grey[:, np.newaxis] if layout == "nchw" else grey[..., np.newaxis]) / 255.0
    expected = softmax(asked(model, inputs.astype(np.float32)), axis=1)
    np.testing.assert_allclose(probabilities(package), expected, atol=TOLERANCE)


def test_a_network_that_takes_bytes_needs_nothing_declared(tmp_path):
    model = convolutional(dtype=TensorProto.UINT8)
    _, package = imported(model, tmp_path, declared=Declared())
    expected = softmax(asked(model, PIXELS.transpose(0, 3, 1, 2)), axis=1)
    np.testing.assert_allclose(probabilities(package), expected, atol=TOLERANCE)


def test_half_precision_is_recorded_and_kept(tmp_path):
    model = convolutional(dtype=TensorProto.FLOAT16)
    _, package = imported(model, tmp_path)
    assert package.manifest.precision == "fp16"
    expected = softmax(asked(model, normalised().astype(np.float16)).astype(np.float32), axis=1)
    np.testing.assert_allclose(probabilities(package), expected, atol=2e-2)


@pytest.mark.parametrize("opset", [9, 13, 20])
def test_old_and_new_opsets_are_kept(tmp_path, opset):
    _, package = imported(convolutional(opset=opset), tmp_path)
    assert package.manifest.opset == opset


def test_weights_in_a_file_beside_the_graph_are_taken_in(tmp_path):
    model = convolutional()
    path = tmp_path / "foreign.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="w.data", size_threshold=0)
    expected = softmax(asked(convolutional(), normalised()), axis=1)
    found = understood(foreign_model(path, network=None), LABELS, USUAL["imagenet"])
    import_model(found, NONE, tmp_path / "package")
    package = open_model(tmp_path / "package")
    np.testing.assert_allclose(probabilities(package), expected, atol=TOLERANCE)


def test_a_batch_of_one_that_is_written_into_a_reshape_is_freed(tmp_path):
    model = convolutional(batch=1)
    flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
    flatten.op_type = "Reshape"
    del flatten.attribute[:]
    flatten.input.append("shape")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 5]), "shape"))
    _, package = imported(model, tmp_path)
    expected = softmax(asked(model, normalised()), axis=1)
    np.testing.assert_allclose(probabilities(package), expected, atol=TOLERANCE)


def test_a_batch_that_cannot_be_freed_is_refused(tmp_path):
    """A class token of one image, to which the features of each are joined."""
    model = convolutional(batch=1)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 5), np.float32), "token"))
    gemm = graph.node[-1]
    gemm.input[0] = "joined"
    graph.node.insert(
        len(graph.node) - 1, helper.make_node("Concat", ["flat", "token"], ["both"], axis=1)
    )
    graph.initializer.append(numpy_helper.from_array(np.eye(10, 5, dtype=np.float32), "narrow"))
    graph.node.insert(
        len(graph.node) - 1, helper.make_node("MatMul", ["both", "narrow"], ["joined"])
    )
    with pytest.raises(ImportRefused, match=r"exported for 1 image at a time.*dynamic batch"):
        imported(model, tmp_path)


def test_names_that_a_package_needs_for_itself_may_be_taken(tmp_path):
    model = convolutional()
    for node in model.graph.node:
        node.input[:] = ["logits" if name == "features" else name for name in node.input]
        node.output[:] = ["logits" if name == "features" else name for name in node.output]
        node.output[:] = ["probabilities" if name == "scores" else name for name in node.output]
    model.graph.output[0].name = "probabilities"
    _, package = imported(model, tmp_path)
    expected = softmax(asked(convolutional(), normalised()), axis=1)
    np.testing.assert_allclose(probabilities(package), expected, atol=TOLERANCE)


def test_maps_sum_to_the_logits_without_their_bias(tmp_path):
    """The head is a mean and a matrix, so the evidence of all cells is the whole evidence."""
    result, package = imported(convolutional(), tmp_path)
    found = package.run(PIXELS, ("logits", "cam", "embedding"))
    model = onnx.load(str(tmp_path / "foreign.onnx"))
    shift = next(t for t in model.graph.initializer if t.name == "shift")
    np.testing.assert_allclose(
        found["cam"].sum(axis=(2, 3)),
        found["logits"] - numpy_helper.to_array(shift),
        rtol=1e-3,
        atol=1e-4,
    )
    assert found["cam"].shape == (5, 3, SIZE // 2, SIZE // 2)
    assert found["embedding"].shape == (5, 5)
    assert (result.why_no_embedding, result.why_no_maps) == ("", "")


def test_maps_through_a_hidden_layer_are_directional_derivatives(tmp_path):
    """As Loupe's own: the derivative of the logit as a cell's features are spread over the map."""
    _, package = imported(convolutional(hidden=True), tmp_path)
    found = package.run(PIXELS[:1], ("cam", "embedding", "logits"))
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(str(tmp_path / "foreign.onnx")).graph.initializer
    }
    before = weights["first"] @ found["embedding"][0] + weights["first_shift"]
    jacobian = weights["weight"] @ (weights["first"] * (before > 0)[:, np.newaxis])
    np.testing.assert_allclose(
        found["cam"][0].sum(axis=(1, 2)), jacobian @ found["embedding"][0], rtol=1e-3, atol=1e-3
    )


def test_without_pooling_there_are_no_maps_and_the_embedding_is_what_the_last_layer_takes(tmp_path):
    model = convolutional()
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type = "GlobalMaxPool"
    result, package = imported(model, tmp_path)
    assert result.why_no_maps == "its head has GlobalMaxPool before the last layer"
    assert {output.name for output in package.manifest.outputs} == {
        "logits",
        "probabilities",
        "embedding",
    }


def test_without_a_linear_layer_there_is_no_embedding_and_the_manifest_says_so(tmp_path):
    model = convolutional(classes=5)
    del model.graph.node[-1]
    model.graph.node[-1].output[0] = "scores"
    result, package = imported(model, tmp_path, labels=("a", "b", "c", "d", "e"))
    assert result.why_no_maps == "no linear layer follows its pooling"
    assert package.manifest.architecture.embedding_size in (None, 5)


def test_a_package_that_nobody_judged_says_so(tmp_path):
    imported(convolutional(), tmp_path)
    manifest = read_manifest(tmp_path / "package")
    assert manifest.evaluation is None
    assert manifest.reference is None
    assert manifest.lineage.weights == "imported"
    page = (tmp_path / "package" / "report.html").read_text(encoding="utf-8")
    assert "not evaluated" in page


def test_only_an_imported_package_may_lack_its_evaluation(tmp_path):
    imported(convolutional(), tmp_path)
    manifest = read_manifest(tmp_path / "package")
    lineage = manifest.lineage.model_copy(update={"weights": "file"})
    with pytest.raises(ValueError, match="only an imported model"):
        type(manifest).model_validate(manifest.model_copy(update={"lineage": lineage}).model_dump())


def test_a_package_is_never_overwritten(tmp_path):
    imported(convolutional(), tmp_path)
    found = understood(
        foreign_model(tmp_path / "foreign.onnx", network=None), LABELS, USUAL["imagenet"]
    )
    with pytest.raises(ExportError, match="exists already"):
        import_model(found, NONE, tmp_path / "package")


def test_a_source_that_answers_otherwise_than_its_graph_is_refused_and_leaves_nothing(tmp_path):
    """The proof is against the source's own runtime, and not against the graph alone."""
    from dataclasses import replace

    path = saved(convolutional(), tmp_path / "foreign.onnx")
    other = replace(
        foreign_model(path, network=None),
        runtime="its own runtime",
        answers=lambda inputs: np.zeros((len(inputs), 3), dtype=np.float32),
    )
    found = understood(other, LABELS, USUAL["imagenet"])
    with pytest.raises(ExportError, match="differs from its own runtime's by"):
        import_model(found, NONE, tmp_path / "package")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["foreign.onnx"]


def two_inputs() -> onnx.ModelProto:
    model = convolutional()
    model.graph.input.append(helper.make_tensor_value_info("sizes", TensorProto.FLOAT, ["N", 2]))
    return model


def detector() -> onnx.ModelProto:
    boxes = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 100, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 100]),
    ]
    nodes = [
        helper.make_node("Reshape", ["pixels", "shape"], ["boxes"]),
        helper.make_node("Reshape", ["pixels", "other"], ["scores"]),
    ]
    shapes = [
        numpy_helper.from_array(np.array(sizes), name)
        for name, sizes in (("shape", [-1, 100, 4]), ("other", [-1, 100]))
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    return made(helper.make_graph(nodes, "detector", [pixels], boxes, shapes))


def custom_operator() -> onnx.ModelProto:
    model = convolutional()
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    return model


@pytest.mark.parametrize(
    ("model", "declared", "message"),
    [
        (two_inputs(), Declared(), r"has 2 inputs \(pixels, sizes\); expected one image"),
        (detector(), USUAL["unit"], "looks like a detector"),
        (custom_operator(), USUAL["unit"], r"outside the ONNX standard \(com\.example\.Relu\)"),
        (convolutional(classes=4), USUAL["unit"], "there are 3 labels.*answers with 4 classes"),
        (
            convolutional(classes=4),
            USUAL["unit"],
            "first class `background`, so add that line",
        ),
        (
            convolutional(),
            Declared(size=224).over(USUAL["unit"]),
            "takes images of 16x16 pixels, and --preprocess says 224x224",
        ),
        (
            convolutional(),
            Declared(layout="nhwc").over(USUAL["unit"]),
            r"layout=nhwc, but input pixels has shape \[\?, 3, 16, 16\]",
        ),
        (convolutional(size="side"), USUAL["unit"], "images of any size; say which"),
        (convolutional(ending="Sigmoid"), USUAL["unit"], "a sigmoid for each of 3 classes"),
        (convolutional(colours=4), USUAL["unit"], "neither 3 nor 1 channels"),
    ],
)
def test_what_is_no_classifier_is_refused_in_one_sentence_with_the_way_out(
    tmp_path, model, declared, message
):
    with pytest.raises(ImportRefused, match=message):
        imported(model, tmp_path, declared=declared)


def test_without_a_word_about_its_pixels_the_usual_ways_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"imagenet, half, unit, raw, caffe.*--find-preprocess"):
        imported(convolutional(), tmp_path, declared=Declared())


def test_a_location_outside_the_models_folder_is_refused(tmp_path):
    (tmp_path / "inner").mkdir()
    model = convolutional()
    path = tmp_path / "inner" / "foreign.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="w.data", size_threshold=0)
    crafted = onnx.load(str(path), load_external_data=False)
    for entry in crafted.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../../etc/passwd"
    path.write_bytes(crafted.SerializeToString())
    with pytest.raises(ImportRefused, match=r"outside the model's folder"):
        foreign_model(path, network=None)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = saved(convolutional(), tmp_path / "foreign.onnx")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImportRefused, match="not a whole ONNX file"):
        foreign_model(path, network=None)
