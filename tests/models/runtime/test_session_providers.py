"""Which provider and which precision answers: nothing falls back unsaid, batches fill buckets, int8
runs where it was validated.
"""

import dataclasses
import logging
import stat

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import models.runtime.providers
import models.runtime.session
from models.errors import (
    GoldenMismatch,
    ManifestInvalid,
    ModelInvalid,
    PackageTampered,
    RuntimeUnavailable,
)
from models.machine import cpu_class
from models.package.manifest import MODEL_FILE, SIBLING_FILE, TensorSpec
from models.package.verify import verify_package
from models.runtime.providers import (
    ANY_SIZE,
    GpuOptions,
    batch_buckets,
    cuda_options,
    engine_folder,
    provider_list,
    require_provider,
    tensorrt_options,
)
from models.runtime.session import check_golden, open_model, open_session
from models.store.commands import models as models_command
from models.store.store import Store
from service.engine.classifier import Classifier
from service.observe.metrics import METRICS, MODEL_FALLBACK, MODEL_INFO
from tests.models.int8_packages import build_int8_package, spoil_golden
from tests.models.packages import build_package, record_again

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
ELSEWHERE = "x86-64-avx2" if cpu_class() != "x86-64-avx2" else "x86-64-avx512"


@pytest.fixture
def package(tmp_path):
    return build_package(tmp_path / "package")


@pytest.fixture
def encoded(package):
    return (package / MODEL_FILE).read_bytes()


class FakeSession:
    """What `require_provider` asks of a session: who is registered, and who got nodes."""

    def __init__(self, providers, owners=()):
        self._providers, self._owners = providers, owners

    def get_providers(self):
        return self._providers

    def get_provider_graph_assignment_info(self):
        return [dataclasses.make_dataclass("Part", ["ep_name"])(owner) for owner in self._owners]


class WatchedSession:
    """A real session that remembers its batch sizes, and may answer one of them wrongly."""

    def __init__(self, session, *, wrong_at=None):
        self.session, self.wrong_at, self.sizes = session, wrong_at, []
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def run(self, outputs, feed, options):
        size = len(feed["image"])
        self.sizes.append(size)
        values = self.session.run(outputs, feed, options)
        return [value[..., ::-1] for value in values] if size == self.wrong_at else values


@pytest.fixture
def gpu_build(monkeypatch):
    """An ONNX Runtime that offers CUDA, as the GPU wheel does on any machine."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])


# ---- providers ----


def test_a_provider_that_this_build_lacks_is_refused_with_the_way_out(encoded):
    with pytest.raises(
        RuntimeUnavailable,
        match=(
            r"provider cuda was asked for, but this onnxruntime .* offers"
            r" .*CPUExecutionProvider.*RUNTIME=gpu"
        ),
    ):
        open_session(encoded, threads=1, provider="cuda", origin="model")


def test_a_session_that_fell_back_to_the_cpu_is_refused(encoded, gpu_build, monkeypatch):
    """What ONNX Runtime does when a CUDA library is missing: a session, and a line in the log."""
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda model, options, providers, **rest: real(model, options, providers=[CPU], **rest),
    )
    with pytest.raises(
        RuntimeUnavailable,
        match=(
            r"model: provider cuda was asked for, but ONNX Runtime fell back to"
            r" CPUExecutionProvider.*doctor"
        ),
    ):
        open_session(encoded, threads=1, provider="cuda", origin="model")


def test_a_gpu_that_got_no_part_of_the_graph_is_refused():
    with pytest.raises(
        RuntimeUnavailable,
        match="loaded, but took no part of the graph, which would run on CPUExecutionProvider",
    ):
        require_provider(FakeSession([CUDA, CPU], owners=[CPU, CPU]), "cuda", origin="model")


def test_a_gpu_may_leave_single_nodes_to_the_cpu():
    require_provider(FakeSession([CUDA, CPU], owners=[CUDA, CPU]), "cuda", origin="model")
    require_provider(
        FakeSession([TENSORRT, CUDA, CPU], owners=[TENSORRT]), "tensorrt", origin="model"
    )


def test_tensorrt_that_became_cuda_is_refused():
    with pytest.raises(
        RuntimeUnavailable,
        match=r"tensorrt was asked for, but .* fell back to CUDAExecutionProvider",
    ):
        require_provider(FakeSession([CUDA, CPU], owners=[CUDA]), "tensorrt", origin="model")


def test_a_gpu_where_the_cpu_was_asked_for_is_refused():
    with pytest.raises(RuntimeUnavailable, match="provider cpu was asked for, but"):
        require_provider(FakeSession([CUDA, CPU]), "cpu", origin="model")


def test_a_real_session_on_the_cpu_passes(encoded):
    assert open_session(encoded, threads=1, provider="cpu", origin="model").get_providers() == [CPU]


def test_the_python_wrapper_may_not_replace_the_provider_after_an_error(encoded):
    """By default it would answer a failed run on the GPU with a new session on the CPU."""
    assert (
        open_session(encoded, threads=1, provider="cpu", origin="model")._enable_fallback is False
    )


def test_a_gpu_that_fails_is_the_machines_fault_and_a_bad_graph_the_models(gpu_build, monkeypatch):
    def fail(*_, **__):
        raise Fail("CUDA failure 100: no CUDA-capable device is detected")

    with pytest.raises(ModelInvalid, match="model: ONNX Runtime cannot load"):
        open_session(b"no model", threads=1, provider="cpu", origin="model")
    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(
        RuntimeUnavailable,
        match=r"provider cuda cannot be used: .*no CUDA-capable device.*loupe doctor",
    ):
        open_session(b"no model", threads=1, provider="cuda", origin="model")


def test_onnx_runtime_records_who_computes_what(encoded):
    """The interface that `require_provider` asks on a GPU, as this release has it."""
    options = models.runtime.providers.session_options(1, provider="cuda")
    session = ort.InferenceSession(encoded, options, providers=[CPU])
    assert {part.ep_name for part in session.get_provider_graph_assignment_info()} == {CPU}


def test_cuda_is_asked_for_without_its_costly_defaults():
    assert cuda_options(GpuOptions()) == {
        "device_id": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
    }
    assert cuda_options(GpuOptions(device=1, memory_limit_bytes=2**30))["gpu_mem_limit"] == str(
        2**30
    )


def test_tensorrt_prepares_for_the_buckets_and_leaves_the_rest_to_cuda(tmp_path):
    gpu = GpuOptions(engine_cache=tmp_path)
    shapes_NHWC = [(8, 224, 224, 3), (1, 224, 224, 3), (4, 224, 224, 3)]
    (name, options), (second, _) = provider_list(
        "tensorrt", gpu=gpu, model=b"a", input_name="image", shapes_NHWC=shapes_NHWC
    )
    assert (name, second) == (TENSORRT, CUDA)
    assert options["trt_profile_min_shapes"] == "image:1x224x224x3"
    assert (
        options["trt_profile_opt_shapes"]
        == options["trt_profile_max_shapes"]
        == "image:8x224x224x3"
    )
    assert options["trt_engine_cache_path"] == str(
        engine_folder(tmp_path, model=b"a", shapes_NHWC=shapes_NHWC)
    )
    assert not [
        key
        for key in tensorrt_options(gpu, model=b"a", input_name="image", shapes_NHWC=[])
        if "profile" in key
    ]


def test_models_of_the_same_structure_do_not_share_an_engine(tmp_path):
    """ONNX Runtime's own name for an engine does not depend on the weights."""
    one = engine_folder(tmp_path, model=b"weights 1", shapes_NHWC=[(1, 8, 8, 3)])
    assert one == engine_folder(tmp_path, model=b"weights 1", shapes_NHWC=[(1, 8, 8, 3)])
    assert len({one, engine_folder(tmp_path, model=b"weights 2", shapes_NHWC=[(1, 8, 8, 3)])}) == 2
    assert len({one, engine_folder(tmp_path, model=b"weights 1", shapes_NHWC=[(2, 8, 8, 3)])}) == 2
    assert stat.S_IMODE(one.stat().st_mode) == 0o700


def test_an_engine_cache_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        RuntimeUnavailable,
        match=(
            r"TensorRT cannot keep its engines in .*: Not a directory. Make .*file/cache writable"
        ),
    ):
        engine_folder(tmp_path / "file" / "cache", model=b"a", shapes_NHWC=[])


# ---- buckets ----


@pytest.mark.parametrize(
    ("largest", "buckets"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (12, (1, 2, 4, 8, 12)),
        (16, (1, 2, 4, 8, 16)),
        (17, (1, 2, 4, 8, 16, 17)),
    ],
)
def test_buckets_double_up_to_the_largest_batch(largest, buckets):
    assert batch_buckets(largest) == buckets


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [2]), (2, [2]), (3, [4]), (4, [4]), (5, [4, 2]), (11, [4, 4, 4])]
)
def test_a_batch_is_padded_to_the_next_bucket_and_cut_again(package, count, sizes):
    plain = open_model(package)
    watched = WatchedSession(plain.sessions[ANY_SIZE])
    padded = dataclasses.replace(plain, sessions={ANY_SIZE: watched}, buckets=(2, 4))
    pixels_NHWC = np.random.default_rng(1).integers(0, 256, size=(count, 8, 8, 3), dtype=np.uint8)
    outputs = ("probabilities", "embedding")
    found, expected = padded.run(pixels_NHWC, outputs), plain.run(pixels_NHWC, outputs)
    assert watched.sizes == sizes
    for name in outputs:
        assert found[name].shape == expected[name].shape
        # Another batch size may sum in another order: the last bit of a float32.
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_an_output_that_is_the_same_for_every_image_is_not_cut(package):
    model = open_model(package)
    weights_KD = np.ones((2, 3), np.float32)
    session = dataclasses.make_dataclass("S", [])()
    session.run = lambda outputs, *_: [weights_KD]
    outputs = (*model.manifest.outputs, TensorSpec(name="cam", dtype="float32", shape=(2, 3)))
    padded = dataclasses.replace(
        model,
        sessions={ANY_SIZE: session},
        buckets=(4,),
        manifest=model.manifest.model_copy(update={"outputs": outputs}),
    )
    for count in (1, 9):
        assert padded.run(np.zeros((count, 8, 8, 3), np.uint8), ["cam"])["cam"].shape == (2, 3)


def test_on_a_gpu_every_bucket_is_warmed_and_answers_the_golden_images(package, monkeypatch):
    sessions = watched_sessions(monkeypatch)
    model = open_model(package, provider="tensorrt", warm_batches=(1, 4))
    ((session, shapes_NHWC),) = sessions
    assert model.buckets == (1, 2, 4)
    assert shapes_NHWC == [(1, 8, 8, 3), (2, 8, 8, 3), (4, 8, 8, 3)]
    assert session.sizes == [1, 2, 4, *[1, 2, 4] * 3]


def test_on_cuda_no_session_ever_meets_a_second_batch_size(tmp_path, monkeypatch):
    """It would plan every convolution again, for seconds: at the start, in the golden check and for
    any request.
    """
    package = build_package(tmp_path / "package", cam=True)
    pixels_NHWC = np.random.default_rng(1).integers(0, 256, size=(11, 8, 8, 3), dtype=np.uint8)
    expected = open_model(package).run(pixels_NHWC, ("probabilities", "cam"))
    sessions = watched_sessions(monkeypatch)
    model = open_model(package, provider="cuda", warm_batches=(1, 4))
    assert [shapes_NHWC for _, shapes_NHWC in sessions] == [[(size, 8, 8, 3)] for size in (1, 2, 4)]
    assert [session.sizes for session, _ in sessions] == [[size] * 4 for size in (1, 2, 4)]
    for outputs in (("probabilities",), ("probabilities", "cam")):
        for count in (1, 3, 2, 11, 1):
            found = model.run(pixels_NHWC[:count], outputs)
            for name in outputs:
                np.testing.assert_allclose(found[name], expected[name][:count], atol=1e-6)
    assert [set(session.sizes) for session, _ in sessions] == [{1}, {2}, {4}]
    assert len(sessions) == 3, "the rest has one session for every size"


def test_the_sizes_that_batches_are_padded_to_can_be_chosen(package, monkeypatch):
    sessions = watched_sessions(monkeypatch)
    model = open_model(package, provider="cuda", warm_batches=(4,), buckets=(4,))
    model.run(np.zeros((6, 8, 8, 3), np.uint8))
    ((session, shapes_NHWC),) = sessions
    assert shapes_NHWC == [(4, 8, 8, 3)]
    assert set(session.sizes) == {4}


def watched_sessions(monkeypatch):
    """The sessions that are opened from now on, on the CPU whatever is asked for, each with the
    batches that it was to prepare for.
    """
    sessions = []

    def on_the_cpu(model, *, shapes_NHWC, **_):
        sessions.append((WatchedSession(ort.InferenceSession(model, providers=[CPU])), shapes_NHWC))
        return sessions[-1][0]

    monkeypatch.setattr(models.runtime.session, "open_session", on_the_cpu)
    return sessions


def test_on_the_cpu_a_batch_is_run_as_it_comes(package):
    assert open_model(package, warm_batches=(1, 4)).buckets == ()


def test_a_wrong_answer_in_one_bucket_is_found(package):
    verified = verify_package(package)
    model = open_model(verified)
    broken = dataclasses.replace(
        model,
        sessions={ANY_SIZE: WatchedSession(model.sessions[ANY_SIZE], wrong_at=4)},
        buckets=(1, 2, 4),
    )
    with pytest.raises(GoldenMismatch, match=r"golden image 0.png differs by"):
        check_golden(broken, verified)


# ---- int8 ----


def answers_like(model, package, file):
    """Whether *model* gives the answers of the graph in *file*."""
    pixels_NHWC = np.random.default_rng(3).integers(0, 256, size=(2, 8, 8, 3), dtype=np.uint8)
    expected_NK = ort.InferenceSession((package / file).read_bytes(), providers=[CPU]).run(
        ["probabilities"], {"image": pixels_NHWC}
    )[0]
    return bool(np.allclose(model.run(pixels_NHWC)["probabilities"], expected_NK, atol=1e-6))


def test_int8_answers_on_its_own_cpu_class(tmp_path, caplog):
    package = build_int8_package(tmp_path / "package", cpu_class=cpu_class())
    model = open_model(package)
    assert answers_like(model, package, MODEL_FILE)
    assert not answers_like(model, package, SIBLING_FILE)
    assert (model.fallback, model.precision) == (None, "int8")
    assert not caplog.records


def test_the_sibling_answers_on_another_cpu_class_with_a_warning(tmp_path, caplog):
    package = build_int8_package(tmp_path / "package", cpu_class=ELSEWHERE)
    model = open_model(package, threads=1, warm_batches=(1, 2))
    assert answers_like(model, package, SIBLING_FILE)
    assert model.precision == "fp32"
    assert (
        model.fallback
        == f"int8 was validated on CPU class {ELSEWHERE}, and this machine is {cpu_class()}"
    )
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("loupe", logging.WARNING)
    assert (
        record.getMessage()
        == f"{package}: model.fp32.onnx answers instead of model.onnx: {model.fallback}"
    )


def test_the_sibling_answers_where_the_golden_images_of_int8_fail(tmp_path, caplog):
    package = build_int8_package(tmp_path / "package", cpu_class=cpu_class())
    spoil_golden(package)
    model = open_model(package)
    assert answers_like(model, package, SIBLING_FILE)
    assert "golden image 0.png differs by" in model.fallback
    assert len(caplog.records) == 1


def test_int8_without_a_sibling_runs_elsewhere_if_its_golden_images_pass(tmp_path, caplog):
    model = open_model(build_int8_package(tmp_path / "package", cpu_class=ELSEWHERE, sibling=False))
    assert (model.fallback, model.precision) == (None, "int8")
    assert f"validated on CPU class {ELSEWHERE}" in caplog.text
    assert "its golden images pass here, so int8 is used" in caplog.text


def test_int8_without_a_sibling_is_refused_elsewhere_if_they_fail(tmp_path):
    package = build_int8_package(tmp_path / "package", cpu_class=ELSEWHERE, sibling=False)
    spoil_golden(package)
    with pytest.raises(
        GoldenMismatch,
        match=(
            rf"validated on CPU class {ELSEWHERE}, and this machine is .*has no model.fp32.onnx to"
            r" use instead"
        ),
    ):
        open_model(package)


def test_a_sibling_that_fails_its_golden_images_is_refused_too(tmp_path):
    package = build_int8_package(tmp_path / "package", cpu_class=ELSEWHERE)
    spoil_golden(package, sibling=True)
    with pytest.raises(GoldenMismatch, match=r"golden image 0.png"):
        open_model(package)


def test_whoever_judges_a_package_gets_int8_itself(tmp_path):
    package = build_int8_package(tmp_path / "package", cpu_class=ELSEWHERE)
    assert answers_like(open_model(package, allow_fallback=False), package, MODEL_FILE)
    spoil_golden(package)
    with pytest.raises(GoldenMismatch):
        open_model(package, allow_fallback=False)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_the_metrics_say_which_precision_answers(tmp_path, elsewhere):
    package = build_int8_package(
        tmp_path / "package", cpu_class=ELSEWHERE if elsewhere else cpu_class()
    )
    name = f"int8-{elsewhere}"
    METRICS.serving(name, [Classifier(open_model(package), name=name, version=3)])
    assert MODEL_FALLBACK.labels(name, "3")._value.get() == float(elsewhere)
    assert MODEL_INFO.labels(name, "3", "fp32" if elsewhere else "int8", "cpu")._value.get() == 1.0


def test_the_sibling_goes_through_the_store(tmp_path):
    ref = Store(tmp_path / "store").publish(
        build_int8_package(tmp_path / "package", cpu_class=ELSEWHERE), name="ants"
    )
    assert open_model(ref.path).precision == "fp32"


def test_verify_says_that_the_sibling_answers_here(tmp_path):
    from click.testing import CliRunner

    package = build_int8_package(tmp_path / "package", cpu_class=ELSEWHERE)
    done = CliRunner().invoke(models_command, ["verify", str(package)], catch_exceptions=False)
    assert (
        f"Here its fp32 sibling answers: int8 was validated on CPU class {ELSEWHERE}" in done.stdout
    )


def test_a_sibling_in_an_fp32_package_is_refused(package):
    (package / SIBLING_FILE).write_bytes((package / MODEL_FILE).read_bytes())
    record_again(package)
    with pytest.raises(ManifestInvalid, match=r"carries model.fp32.onnx, but is fp32 itself"):
        verify_package(package)


def test_a_sibling_without_golden_answers_is_refused(tmp_path):
    package = build_int8_package(tmp_path / "package", cpu_class=ELSEWHERE, sibling=False)
    (package / SIBLING_FILE).write_bytes((package / MODEL_FILE).read_bytes())
    record_again(package)
    with pytest.raises(
        ManifestInvalid, match=r"has model.fp32.onnx without answers for 0.png, 1.png, 2.png"
    ):
        verify_package(package)


def test_golden_answers_of_a_missing_sibling_are_refused(tmp_path):
    package = build_int8_package(tmp_path / "package", cpu_class=ELSEWHERE)
    (package / SIBLING_FILE).unlink()
    record_again(package)
    with pytest.raises(
        ManifestInvalid, match=r"has answers of model.fp32.onnx without that file for 0.png"
    ):
        verify_package(package)


def test_a_changed_sibling_is_refused(tmp_path):
    package = build_int8_package(tmp_path / "package", cpu_class=ELSEWHERE)
    content = bytearray((package / SIBLING_FILE).read_bytes())
    content[-1] ^= 1
    (package / SIBLING_FILE).write_bytes(content)
    with pytest.raises(PackageTampered, match=r"model.fp32.onnx was changed after export"):
        verify_package(package)


def test_a_sibling_with_another_signature_is_refused(tmp_path):
    package = build_int8_package(tmp_path / "package", cpu_class=ELSEWHERE)
    model = onnx.load_model(package / SIBLING_FILE)
    model.graph.output[1].name = "logits"
    model.graph.output[0].name = "centred"
    (package / SIBLING_FILE).write_bytes(model.SerializeToString())
    record_again(package)
    with pytest.raises(ModelInvalid, match=r"model.fp32.onnx"):
        verify_package(package)
