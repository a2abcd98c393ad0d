"""The GPU serving benchmark on a CPU, with a real service of a small network.

Its speeds mean nothing here.
"""

import json

import pytest

from benchmarks.gpu_serve import check_agreement, main, summarise
from tests.http.conftest import make_photo


@pytest.mark.slow
def test_a_service_is_measured_at_saturation_alone_and_loaded(tmp_path):
    photos = tmp_path / "data" / "imagenet-500"
    photos.mkdir(parents=True)
    for seed in range(4):
        (photos / f"{seed}.jpg").write_bytes(make_photo(seed))
    out = tmp_path / "out.json"
    wanted = [
        "--network",
        "mobilenet_v3_small",
        "--provider",
        "cpu",
        "--rounds",
        "2",
        "--seconds",
        "0.5",
        "--concurrency",
        "4",
    ]
    main([*wanted, "--data", str(tmp_path / "data"), "--out", str(out)])
    report = json.loads(out.read_text())
    figures = report["networks"]["mobilenet_v3_small"]["summary"]["cpu"]
    assert figures["per_second"]["least"] > 0
    assert figures["not_answered"] == figures["loaded_not_answered"] == 0
    assert 0 < figures["loaded_p50_ms"]["median"] <= figures["loaded_p99_ms"]["median"]
    assert figures["times_cpu"]["median"] == 1.0
    assert report["command"].startswith(
        "python -m benchmarks.gpu_serve --network mobilenet_v3_small"
    )


def test_ratios_are_taken_within_a_round():
    def one(rate: float) -> dict[str, object]:
        latency = {"p50": 1.0, "p99": 2.0}
        counts = {"counts": {"200": 9, "503": 1}, "loaded_counts": {"0": 2, "200": 9, "504": 1}}
        return {
            "per_second": rate,
            "cpu_ms": 1.0,
            **counts,
            "alone_ms": latency,
            "loaded_ms": latency,
        }

    summary = summarise([{"cpu": one(speed), "cuda": one(5 * speed)} for speed in (100.0, 50.0)])
    assert summary["cuda"]["times_cpu"] == {"median": 5.0, "least": 5.0, "greatest": 5.0}
    assert (summary["cuda"]["not_answered"], summary["cuda"]["loaded_not_answered"]) == (2, 6)


def test_providers_must_agree_to_a_thousandth():
    cpu = [{3: 0.9, 1: 0.06}, {2: 0.5, 0: 0.4}]
    assert check_agreement(
        {"cpu": cpu, "cuda": [{3: 0.9004, 1: 0.06}, {2: 0.5, 0: 0.4}]}
    ) == pytest.approx(4e-4)
    # The last of the likeliest may be another class, of nearly the same probability.
    assert check_agreement(
        {"cpu": cpu, "cuda": [{3: 0.9, 5: 0.0601}, {2: 0.5, 0: 0.4}]}
    ) == pytest.approx(1e-4)
    with pytest.raises(
        SystemExit,
        match=r"cuda and cpu give photo 1 probabilities that differ by 0\.1, more than 0\.001",
    ):
        check_agreement({"cpu": cpu, "cuda": [{3: 0.9, 1: 0.06}, {2: 0.4, 0: 0.5}]})
