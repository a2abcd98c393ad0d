"""The int8 benchmark on ImageNet's network reaches its targets with the first candidate.

Its speeds mean nothing here.
"""

import argparse

import pytest

from benchmarks import int8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_int8_of_imagenets_mobilenet_keeps_its_accuracy_where_plain_settings_lose_it(shared_data):
    report = int8._imagenet(argparse.Namespace(data=shared_data, seconds=0.0, rounds=3, runs=3))
    float_row, first = report["search"]["path"]
    assert (float_row["name"], float_row["accuracy"]) == (
        "fp32",
        report["fp32"]["accuracy"]["value"],
    )
    assert report["search"]["taken"] == first["name"]
    assert (report["search"]["calibration_images"], report["search"]["judging_images"]) == (
        128,
        250,
    )
    assert report["fp32"]["accuracy"]["value"] > 0.75
    assert first["loss_points"] <= 1.0
    assert report["int8"]["bytes"] <= 4_200_000
    assert (
        0.0
        < report["int8"]["speedup"]["least"]
        <= report["int8"]["speedup"]["median"]
        <= report["int8"]["speedup"]["greatest"]
    )
    per_channel, per_tensor = report["plain_onnxruntime"]
    assert per_tensor["loss_points"] > per_channel["loss_points"]
    assert per_tensor["loss_points"] > 20.0
