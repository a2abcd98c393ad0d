"""A package in a session on the CPU: opened only if it answers as it was recorded, and computing
only what it is asked for.

Providers, buckets and int8 siblings have tests of their own in `test_runtime_providers`.
"""

import json
import re
import statistics
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.errors import GoldenMismatch, ModelInvalid, PackageTampered, RuntimeUnavailable
from models.package.manifest import TensorSpec
from models.package.manifest_file import read_manifest, write_manifest
from models.runtime.providers import ANY_SIZE, PROVIDER_NAMES
from models.runtime.session import open_model, open_session
from tests.models.packages import build_package, edit_model, record_again

PIXELS_NHWC = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def package(tmp_path):
    return build_package(tmp_path / "package", labels=("ant", "bee", "cat"))


def test_an_opened_package_answers_by_name(package):
    model = open_model(package)
    found = model.run(PIXELS_NHWC, ["embedding", "probabilities", "logits"])
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        "embedding": ((5, 3), np.float32),
        "probabilities": ((5, 3), np.float32),
        "logits": ((5, 3), np.float32),
    }
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1.0, atol=1e-6)
    assert (model.manifest, model.path, model.provider) == (read_manifest(package), package, "cpu")


def test_probabilities_are_what_is_asked_for_by_default(package):
    assert list(open_model(package).run(PIXELS_NHWC)) == ["probabilities"]


def test_a_batch_gives_what_its_images_give_alone(package):
    model = open_model(package)
    alone = np.concatenate(
        [model.run(PIXELS_NHWC[index : index + 1])["probabilities"] for index in range(5)]
    )
    # Another batch may be added up in another order.
    np.testing.assert_allclose(model.run(PIXELS_NHWC)["probabilities"], alone, atol=1e-6)


def test_a_golden_image_that_is_answered_otherwise_is_named_with_the_difference(package):
    path = package / "golden/golden.json"
    raw = json.loads(path.read_text())
    first = raw["images"][1]["probabilities"]
    raw["images"][1]["probabilities"] = [first[2], first[0], first[1]]
    path.write_text(json.dumps(raw))
    record_again(package)
    difference = max(
        abs(a - b) for a, b in zip(first, raw["images"][1]["probabilities"], strict=True)
    )
    with pytest.raises(
        GoldenMismatch,
        match=(
            rf"^{re.escape(str(package))}: golden image 1\.png differs by {difference:.2e} from its"
            r" recorded probabilities "
            r"\(tolerance 1e-03, provider cpu\)\. "
        ),
    ):
        open_model(package)


def shift_bias(model, value):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    tensor.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32([value, 0, 0]), "bias")
    )


def test_weights_changed_together_with_their_hash_are_found_by_the_golden_images(package):
    edit_model(package, lambda model: shift_bias(model, 1.0))
    with pytest.raises(GoldenMismatch, match=r"golden image \d\.png differs by "):
        open_model(package)


def test_a_difference_within_the_tolerance_is_let_through(package):
    edit_model(package, lambda model: shift_bias(model, 1e-4))
    assert open_model(package).run(PIXELS_NHWC)["probabilities"].shape == (5, 3)


def test_weights_changed_without_their_hash_are_found_before_the_session(package):
    onnx_file = package / "model.onnx"
    onnx_file.write_bytes(onnx_file.read_bytes()[:-1] + b"\0")
    with pytest.raises(PackageTampered, match=r"model\.onnx was changed after export"):
        open_model(package)


def test_a_graph_that_onnx_runtime_cannot_load_is_refused_by_name():
    with pytest.raises(ModelInvalid, match=r"^here: ONNX Runtime cannot load model\.onnx: "):
        open_session(b"no graph", threads=1, provider="cpu", origin="here")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_absent_is_not_replaced(package, provider, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeUnavailable, match=f"provider {provider} was asked for"):
        open_model(package, provider=provider)


def test_every_provider_has_onnx_runtimes_name():
    import onnxruntime

    assert set(PROVIDER_NAMES.values()) <= set(onnxruntime.get_all_providers())


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_as_many_as_asked_and_do_not_spin(package, threads):
    model = open_model(package, threads=threads)
    options = model.sessions[ANY_SIZE].get_session_options()
    assert model.threads == options.intra_op_num_threads == threads
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def add_a_costly_output(package):
    """Output `cam`: forty products of 400x400 matrices, which no other output needs."""
    size, steps = 400, 40

    def grow(model: onnx.ModelProto) -> None:
        weight = np.eye(size, dtype=np.float32)
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(weight, "eye"),
                numpy_helper.from_array(np.array([0], np.int64), "first"),
                numpy_helper.from_array(np.zeros(1, np.float32), "nothing"),
            ]
        )
        # It starts from the image, so that it is not folded into a constant.
        nodes = [
            helper.make_node("ReduceMean", ["embedding"], ["centre"], keepdims=0),
            helper.make_node("Mul", ["centre", "nothing"], ["zero"]),
            helper.make_node("Add", ["eye", "zero"], ["step0"]),
            *(
                helper.make_node("MatMul", [f"step{index}", f"step{index}"], [f"step{index + 1}"])
                for index in range(steps)
            ),
            helper.make_node("Gather", [f"step{steps}", "first"], ["row"], axis=0),
            helper.make_node("ReduceMean", ["row"], ["one"], keepdims=0),
            helper.make_node("Mul", ["embedding", "one"], ["cam"]),
        ]
        model.graph.node.extend(nodes)
        model.graph.output.append(helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["N", 3]))

    manifest = read_manifest(package)
    write_manifest(
        package,
        manifest.model_copy(
            update={
                "outputs": (
                    *manifest.outputs,
                    TensorSpec(name="cam", dtype="float32", shape=("N", 3)),
                )
            }
        ),
    )
    edit_model(package, grow)


def test_fewer_outputs_cost_less(package):
    add_a_costly_output(package)
    model = open_model(package)

    def median_s(outputs):
        times = []
        for _ in range(7):
            started = time.perf_counter()
            model.run(PIXELS_NHWC, outputs)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    # The products are some thousand times the rest: a factor of ten is far from both, on any
    # machine and under any load.
    assert median_s(["probabilities", "cam"]) > 10 * median_s(["probabilities"])
