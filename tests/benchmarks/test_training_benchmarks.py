"""The training benchmarks run and record what they promise.

They are tiny, so their speeds mean nothing here.
"""

import json

import pytest

from benchmarks import gpu_train, loop_overhead, train_lenet5, train_processes
from tests.training.photos import COLOURS, write_photos

TINY = ["--network", "lenet5", "--batch", "4", "--size", "32", "--rounds", "2", "--seconds", "0.02"]


def test_the_gpu_benchmark_measures_every_variant_and_takes_ratios_within_a_round(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        gpu_train,
        "VARIANTS",
        {name: change for name, change in gpu_train.VARIANTS.items() if name.endswith("eager")},
    )
    gpu_train.main([*TINY, "--out", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    found = report["networks"]["lenet5"]
    assert (
        found["images_per_s"].keys() == found["first_step_s"].keys() == {"fp32 eager", "bf16 eager"}
    )
    ratios = [one["bf16 eager"] / one["fp32 eager"] for one in found["rounds"]]
    assert found["ratios"]["bf16 eager / fp32 eager"] == {
        "median": sum(ratios) / 2,
        "least": min(ratios),
        "greatest": max(ratios),
    }
    assert (len(ratios), found["refused"]) == (2, {})
    assert report["command"].startswith("python -m benchmarks.gpu_train --network lenet5")
    assert {"torch", "torchvision", "cuda", "cudnn"} == report["versions"].keys()
    assert "bf16 eager / fp32 eager" in capsys.readouterr().out


def test_a_variant_that_cannot_run_is_named_and_the_others_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(
        gpu_train, "VARIANTS", {"fp32 eager": {}, "bf16 eager": {"precision": "fp4"}}
    )
    gpu_train.main([*TINY, "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())["networks"]["lenet5"]
    assert found["refused"] == {
        "bf16 eager": "ConfigError: precision is fp4; expected fp32 or bf16 or fp16"
    }
    assert (list(found["images_per_s"]), found["ratios"]) == (["fp32 eager"], {})


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # of the compiler's own making
def test_the_gpu_benchmark_compiles(tmp_path):
    gpu_train.main([*TINY, "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())["networks"]["lenet5"]
    assert (len(found["ratios"]), found["refused"]) == (4, {})


@pytest.mark.slow
def test_our_loop_and_a_bare_one_are_measured_in_turn(tmp_path):
    photos = write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 6))
    small = [
        "--network",
        "lenet5",
        "--size",
        "32",
        "--images",
        "16",
        "--batch",
        "8",
        "--rounds",
        "3",
    ]
    loop_overhead.main(["--data", str(photos), *small, "--out", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    ratios = sorted(one["ours"] / one["bare"] for one in report["rounds"])
    assert report["ratio"] == {"median": ratios[1], "least": ratios[0], "greatest": ratios[2]}
    assert (report["images"], len(ratios)) == (16, 3)
    assert ratios[0] > 0.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lenet5_is_judged_by_its_package(tmp_path):
    train_lenet5.main(["--seeds", "1", "--set", "epochs=5", "--out", str(tmp_path / "out.json")])
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert run["images"] == 359
    assert 0.8 < run["low"] < run["accuracy"] < run["high"] <= 1.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_process_and_two_are_measured_at_equal_batch(tmp_path):
    train_processes.main(["--seeds", "1", "--set", "epochs=2", "--out", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    assert [run["processes"] for run in report["runs"]] == [1, 2]
    assert all(accuracy > 0.3 for accuracy in report["mean_accuracy"].values())
