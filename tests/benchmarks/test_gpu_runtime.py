"""The GPU benchmark on a CPU with a tiny package: it runs, compares and records.

Its speeds mean nothing here.
"""

import json

import numpy as np
import pytest

from benchmarks.gpu_runtime import main, summarise
from benchmarks.gpu_variants import to_fp16
from models.package.manifest import MODEL_FILE
from models.runtime.session import open_session
from tests.models.packages import build_package


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return build_package(tmp_path_factory.mktemp("package") / "tiny", labels=("ant", "bee", "fly"))


@pytest.fixture(scope="module")
def report(package, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "results" / "gpu.json"
    main(
        [
            "--package",
            str(package),
            "--batch",
            "3",
            "--rounds",
            "2",
            "--seconds",
            "0.002",
            "--threads",
            "1",
            "--out",
            str(out),
        ]
    )
    return json.loads(out.read_text())


def test_both_precisions_and_both_ways_are_measured_at_every_bucket(report):
    assert list(report["summary"]) == [
        "cpu fp32 copied",
        "cpu fp32 bound",
        "cpu fp16 copied",
        "cpu fp16 bound",
    ]
    for by_bucket in report["summary"].values():
        assert list(by_bucket) == ["1", "2", "3"]
        for figures in by_bucket.values():
            rate = figures["images_per_s"]
            assert 0 < rate["least"] <= rate["median"] <= rate["greatest"]
    assert len(report["images_per_s_by_round"]) == 2


def test_calls_with_changing_batch_sizes_are_measured(report):
    assert list(report["changing_ms"]) == ["cpu fp32", "cpu fp16"]
    assert all(
        0 < spent["least"] <= spent["median"] <= spent["greatest"]
        for spent in report["changing_ms"].values()
    )


def test_the_answers_are_compared_with_fp32_on_the_cpu(report):
    fp32, fp16 = report["answers"]["cpu fp32"], report["answers"]["cpu fp16"]
    assert fp32["max_probability_difference"] < 1e-6
    # Half precision keeps 11 bits, and logits here reach some units: further away than fp32, but
    # not another model.
    assert 1e-6 < fp16["max_probability_difference"] < 2e-2
    assert fp16["top1_agreement"] > 0.95


def test_a_missing_provider_is_named_with_the_reason(report):
    assert report["refused"].keys() == {"cuda fp32", "cuda fp16", "tensorrt fp32", "tensorrt fp16"}
    assert all("was asked for, but" in reason for reason in report["refused"].values())


def test_the_report_has_command_machine_and_versions(report):
    assert report["command"].startswith("python -m benchmarks.gpu_runtime --package")
    assert report["machine"]["cores"] >= 1
    assert {"python", "onnxruntime", "onnx", "numpy"} <= report["versions"].keys()


def test_the_fp16_graph_takes_and_gives_what_the_fp32_graph_does(package):
    session = open_session(
        to_fp16((package / MODEL_FILE).read_bytes()), threads=1, provider="cpu", origin="fp16"
    )
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert {output.type for output in session.get_outputs()} == {"tensor(float)"}
    assert session.run(["probabilities"], {"image": np.zeros((2, 8, 8, 3), np.uint8)})[0].shape == (
        2,
        3,
    )


def test_ratios_are_taken_within_a_round():
    """A machine that is half as fast in the second round changes the speeds and not the ratio."""
    rounds = [
        {"cpu fp32 copied": {"1": speed}, "cuda fp32 copied": {"1": 10 * speed}}
        for speed in (100.0, 50.0)
    ]
    figures = summarise(rounds)["cuda fp32 copied"]["1"]
    assert figures["times_cpu_fp32"] == {"median": 10.0, "least": 10.0, "greatest": 10.0}
    assert figures["images_per_s"]["median"] == 750.0
