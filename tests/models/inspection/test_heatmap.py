"""Heatmaps: the scale, the peak, and what the overlay shows where."""

import io

import numpy as np
import pytest
from PIL import Image

from models.errors import OutputUnavailable
from models.inspection.heatmap import DIMMED, RAMP_RGB, STRONGEST_COVER, heatmap, overlay_png
from service.engine.classifier import Classifier
from service.http.options import read_options
from tests.models.packages import build_package


def test_a_heatmap_is_the_positive_part_by_its_peak():
    cam_Khw = np.array([[[-1.0, 0.0], [2.0, 4.0]], [[9.0, 9.0], [9.0, 9.0]]], dtype=np.float32)
    heat = heatmap(cam_Khw, 0)
    assert (heat.index, heat.peak) == (0, 4.0)
    assert heat.heat_hw.tolist() == [[0.0, 0.0], [0.5, 1.0]]


def test_where_nothing_speaks_for_a_class_all_is_zero():
    heat = heatmap(np.full((1, 2, 3), -2.0, dtype=np.float32), 0)
    assert heat.peak == 0.0
    assert heat.heat_hw.tolist() == [[0.0] * 3] * 2


def picture_of(
    heat_hw: list[list[float]], *, height: int, width: int, grey: int = 100
) -> np.ndarray:
    pixels_HWC = np.full((height, width, 3), grey, dtype=np.uint8)
    with Image.open(
        io.BytesIO(overlay_png(pixels_HWC, np.asarray(heat_hw, dtype=np.float32)))
    ) as overlay:
        assert overlay.format == "PNG"
        return np.asarray(overlay)


def test_the_overlay_dims_what_is_cold_and_colours_what_is_hot():
    """Upright and not mirrored: the hot cell is at the top right."""
    found_HWC = picture_of([[0.0, 1.0], [0.0, 0.0]], height=40, width=60)
    assert found_HWC.shape == (40, 60, 3)
    assert found_HWC[-1, 0].tolist() == [round(100 * DIMMED)] * 3
    hottest = [
        round(100 * (1 - STRONGEST_COVER) + channel * STRONGEST_COVER) for channel in RAMP_RGB[-1]
    ]
    assert found_HWC[0, -1].tolist() == hottest
    assert found_HWC[0, 0].tolist() == [round(100 * DIMMED)] * 3


def test_between_the_centres_of_cells_heat_is_linear():
    found_HWC = picture_of([[0.0, 1.0]], height=4, width=8, grey=0)
    red_W = found_HWC[0, :, 0].astype(int)
    assert (np.diff(red_W) >= 0).all()
    assert red_W[1] == 0 < red_W[2] < red_W[5] < red_W[6] == red_W[7]


def test_a_model_without_maps_says_so(tmp_path):
    opened = Classifier.open(build_package(tmp_path / "tiny"), threads=1)
    with pytest.raises(
        OutputUnavailable,
        match=(
            "version 0 of tiny has no output cam, only logits, probabilities, embedding: its"
            " network gives none"
        ),
    ):
        read_options({"explain": "grid"}, opened)
    assert read_options({"embedding": "true"}, opened).outputs == ("embedding",)
