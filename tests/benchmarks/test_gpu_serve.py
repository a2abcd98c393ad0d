"""The GPU serving benchmark's CPU path, with two real services of a small network. Its speeds say nothing here."""

import json

import pytest

from benchmarks.gpu_serve import main, summarise
from tests.http.conftest import make_photo


@pytest.mark.slow
def test_both_services_are_measured_and_must_agree(tmp_path):
    photos = tmp_path / "data" / "imagenet-500"
    photos.mkdir(parents=True)
    for seed in range(4):
        (photos / f"{seed}.jpg").write_bytes(make_photo(seed))
    out = tmp_path / "out.json"
    wanted = ["--network", "mobilenet_v3_small", "--provider", "cpu", "--rounds", "2", "--seconds", "0.5", "--concurrency", "4"]
    main([*wanted, "--data", str(tmp_path / "data"), "--out", str(out)])
    report = json.loads(out.read_text())
    figures = report["networks"]["mobilenet_v3_small"]["summary"]["cpu"]
    assert figures["per_second"]["least"] > 0
    assert figures["not_answered"] == 0
    assert 0 < figures["loaded_p50_ms"]["median"] <= figures["loaded_p99_ms"]["median"]
    assert figures["times_cpu"]["median"] == 1.0
    assert report["command"].startswith("python -m benchmarks.gpu_serve --network mobilenet_v3_small")


def test_ratios_are_taken_within_a_round():
    def one(rate: float) -> dict[str, object]:
        latency = {"p50": 1.0, "p99": 2.0}
        return {"per_second": rate, "cpu_ms": 1.0, "counts": {"200": 9, "503": 1}, "alone_ms": latency, "loaded_ms": latency}

    summary = summarise([{"cpu": one(speed), "cuda": one(5 * speed)} for speed in (100.0, 50.0)])
    assert summary["cuda"]["times_cpu"] == {"median": 5.0, "least": 5.0, "greatest": 5.0}
    assert summary["cuda"]["not_answered"] == 2
