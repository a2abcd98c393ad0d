from __future__ import annotations

import gc
import shutil
import sys
import weakref

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.package.manifest import MODEL_FILE, TensorSpec
from models.package.manifest_file import read_manifest, write_manifest
from models.package.verify import verify_package
from models.runtime.answer_graph import answering_part, split_graph
from models.runtime.class_maps import map_of, rows_of
from models.runtime.providers import ANY_SIZE
from models.runtime.rest import open_rest
from models.runtime.session import open_model, open_session
from tests.models.packages import build_package, edit_model

PIXELS_NHWC = np.random.default_rng(0).integers(0, 256, size=(3, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def package(tmp_path):
    return build_package(tmp_path / "package")


def add_cam(package):
    """Gives the graph an output `cam` [N,4] of the embedding and a weight of its own."""

    def grow(model):
        model.graph.initializer.append(
            numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "cam_weight")
        )
        model.graph.node.append(helper.make_node("MatMul", ["embedding", "cam_weight"], ["cam"]))
        model.graph.output.append(helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["N", 4]))

    manifest = read_manifest(package)
    write_manifest(
        package,
        manifest.model_copy(
            update={
                "outputs": (
                    *manifest.outputs,
                    TensorSpec(name="cam", dtype="float32", shape=("N", 4)),
                )
            }
        ),
    )
    edit_model(package, grow)


def test_a_graph_with_nothing_else_in_it_stays_as_it_is(package):
    encoded = (package / MODEL_FILE).read_bytes()
    part, names = answering_part(encoded)
    assert part is encoded
    assert names == {"logits", "probabilities", "embedding"}


def test_what_the_probabilities_do_not_need_is_cut_off_with_its_weights(package):
    add_cam(package)
    part, names = answering_part((package / MODEL_FILE).read_bytes())
    graph = onnx.load_from_string(part).graph
    assert names == {"logits", "probabilities", "embedding"}
    assert [value.name for value in graph.output] == ["logits", "probabilities", "embedding"]
    assert "cam_weight" not in {tensor.name for tensor in graph.initializer}
    assert "cam" not in {name for node in graph.node for name in node.output}
    onnx.checker.check_model(onnx.load_from_string(part), full_check=True)


def test_the_part_answers_as_the_whole(package):
    before = open_model(package).run(PIXELS_NHWC, ("logits", "probabilities", "embedding"))
    add_cam(package)
    after = open_model(package).run(PIXELS_NHWC, ("logits", "probabilities", "embedding"))
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_the_rest_is_there_when_it_is_asked_for(package):
    add_cam(package)
    model = open_model(package)
    outputs = model.run(PIXELS_NHWC, ("cam", "embedding", "probabilities"))
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(outputs["cam"], outputs["embedding"] @ weight, rtol=1e-5)
    np.testing.assert_array_equal(outputs["probabilities"], model.run(PIXELS_NHWC)["probabilities"])


def test_the_rest_needs_no_file_and_no_second_copy_of_the_network(package):
    add_cam(package)
    model = open_model(package)
    shutil.rmtree(package)
    assert model.rest is not None
    assert [value.name for value in model.rest.session.get_inputs()] == ["embedding"]
    assert model.run(PIXELS_NHWC, ("cam",))["cam"].shape == (3, 4)


def test_both_parts_compute_the_bits_of_the_whole_graph(tmp_path):
    package = build_package(tmp_path / "maps", labels=("ant", "bee", "cat"), cam=True)
    names = ("cam", "embedding", "probabilities", "logits")
    whole = ort.InferenceSession((package / MODEL_FILE).read_bytes())
    expected = dict(zip(names, whole.run(names, {"image": PIXELS_NHWC}), strict=True))
    found = open_model(package).run(PIXELS_NHWC, names)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_what_no_image_changes_is_in_both_parts_and_crosses_nothing():
    """Both parts turn a weight: it has no row for each image, so that no batch may carry it."""
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["weight"], ["turned"]),
            helper.make_node("MatMul", ["image", "turned"], ["probabilities"]),
            helper.make_node("Exp", ["probabilities"], ["inner"]),
            helper.make_node("MatMul", ["inner", "turned"], ["cam"]),
        ],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 2])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2])
            for name in ("probabilities", "cam")
        ],
        [numpy_helper.from_array(np.eye(2, dtype=np.float32) * 3, "weight")],
    )
    split = split_graph(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    )
    assert split.inner == ("probabilities",)
    rest = onnx.load_from_string(split.rest).graph
    assert [node.op_type for node in rest.node] == ["Transpose", "Exp", "MatMul"]


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "alexnet"])
def test_the_map_of_one_class_is_that_row_of_all_maps(network):
    """Every family of heads: the short way gives the same."""
    pytest.importorskip("torch")
    encoded = exported_network(network)
    split = split_graph(encoded)
    answer = open_session(split.answer, threads=1, provider="cpu", origin="answer")
    rest = open_rest(split, answer, threads=1)
    assert rest is not None
    assert rest.of_class is not None, "the short way"
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    given = {"image": pixels_NHWC}
    names = sorted({"probabilities", *split.inner} - given.keys())
    given |= dict(zip(names, answer.run(names, given), strict=True))
    found = rest.run(["cam", map_of(2), map_of(None)], given)
    likeliest = given["probabilities"].argmax(axis=1)
    # The sums are taken in another order.
    tolerance = 1e-5 * float(np.abs(found["cam"]).max())
    np.testing.assert_allclose(found[map_of(2)], found["cam"][:, 2:3], atol=tolerance)
    np.testing.assert_allclose(
        found[map_of(None)], rows_of(found["cam"], likeliest), atol=tolerance
    )


def exported_network(name):
    """The served graph of the catalogue's network *name*, five classes, 64x64 pixels."""
    import torch

    from models.networks.catalogue import build
    from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, ServedGraph
    from models.package.manifest import PreprocessSpec
    from training.export.onnx_file import to_onnx

    torch.manual_seed(0)
    network = build(name, num_classes=5, image_size=64).eval()
    graph = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0).eval()
    return to_onnx(graph, PreprocessSpec(resize_size=64, crop=(64, 64)))


def test_the_map_of_one_class_is_cut_from_all_where_the_head_is_another(tmp_path):
    """A graph from elsewhere: its maps do not end in a 1x1 convolution."""
    package = build_package(tmp_path / "maps", labels=("ant", "bee", "cat"), cam=True)
    model = open_model(package)
    assert model.rest is not None
    assert model.rest.of_class is None
    found = model.run(PIXELS_NHWC, ("cam", "probabilities", map_of(None), map_of(1)))
    likeliest = found["probabilities"].argmax(axis=1)
    np.testing.assert_array_equal(found[map_of(None)], rows_of(found["cam"], likeliest))
    np.testing.assert_array_equal(found[map_of(1)], found["cam"][:, 1:2])


def test_values_that_inner_graphs_take_from_outside_are_kept(package):
    """The branches of an If read `logits` although the node does not list it."""

    def branch(model):
        for name in ("then", "else"):
            output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
            node = helper.make_node("Softmax", ["logits"], [f"{name}_out"], axis=1)
            model.graph.node.append(helper.make_node("Identity", ["yes"], [f"{name}_unused"]))
            branches[name] = helper.make_graph([node], name, [], [output])
        model.graph.initializer.append(numpy_helper.from_array(np.array(1, dtype=bool), "yes"))
        del model.graph.node[5]
        model.graph.node.append(
            helper.make_node(
                "If",
                ["yes"],
                ["probabilities"],
                then_branch=branches["then"],
                else_branch=branches["else"],
            )
        )

    branches: dict[str, onnx.GraphProto] = {}
    edit_model(package, branch)
    add_cam(package)
    before = open_model(build_package(package.parent / "plain")).run(PIXELS_NHWC)["probabilities"]
    np.testing.assert_allclose(
        open_model(package).run(PIXELS_NHWC)["probabilities"], before, rtol=1e-6
    )


def test_an_open_model_does_not_hold_the_files_bytes(package):
    """They are as large as the weights, and every worker would hold them beside its session."""
    add_cam(package)
    verified = verify_package(package)
    before = sys.getrefcount(verified.model)
    model = open_model(verified)
    after = sys.getrefcount(verified.model)
    assert after == before
    assert model.rest is not None
    # onnxruntime has an attribute for them in every session; it must not come back under another
    # name.
    assert [
        name
        for name, value in vars(model.sessions[ANY_SIZE]).items()
        if isinstance(value, bytes) and value
    ] == []


def test_a_model_that_nobody_holds_is_gone_at_once(package):
    """Not when the garbage collector comes by: a service that swaps versions would hold several of
    them until then.
    """
    add_cam(package)
    gc.disable()
    try:
        model = open_model(package)
        assert model.rest is not None
        session = weakref.ref(model.sessions[ANY_SIZE])
        del model
        assert session() is None
    finally:
        gc.enable()
