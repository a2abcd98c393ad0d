from __future__ import annotations

import gc
import sys
import threading
import weakref

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import models.runtime.session
from models.errors import PackageTampered
from models.package.manifest import MODEL_FILE, TensorSpec
from models.package.manifest_file import read_manifest, write_manifest
from models.package.verify import verify_package
from models.runtime.answer_graph import answering_part
from models.runtime.providers import ANY_SIZE
from models.runtime.session import open_model
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


def test_the_whole_graph_is_opened_once_for_all_threads(package, monkeypatch):
    add_cam(package)
    model = open_model(package)
    opened = []
    monkeypatch.setattr(
        models.runtime.session,
        "verify_package",
        lambda path: opened.append(path) or verify_package(path),
    )
    threads = [threading.Thread(target=model.run, args=(PIXELS_NHWC, ("cam",))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(opened) == 1


def test_a_package_that_was_replaced_meanwhile_is_not_mixed_in(package, tmp_path):
    add_cam(package)
    model = open_model(package)
    package.rename(tmp_path / "moved")
    add_cam(build_package(package, seed=1))
    with pytest.raises(
        PackageTampered, match="was replaced by another package while it was in use"
    ):
        model.run(PIXELS_NHWC, ("cam",))
    assert model.run(PIXELS_NHWC)["probabilities"].shape == (3, 2)


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
    assert model.whole is not None
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
        assert model.whole is not None
        session = weakref.ref(model.sessions[ANY_SIZE])
        del model
        assert session() is None
    finally:
        gc.enable()
