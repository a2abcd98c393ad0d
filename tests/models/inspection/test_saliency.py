"""Maps of evidence on models whose evidence is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.inspection.saliency import agreement, deletion, insertion, occlusion, spread

SIDE = 56


def stripes() -> NDArray[np.uint8]:
    """Black and white columns: a blur takes them away."""
    pixels_HWC = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels_HWC[:, ::2] = 255
    return pixels_HWC


def sees_top_left(pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Class 1 is as likely as there are stripes in the quarter at the top left."""
    quarter_NHW = pixels_NHWC[:, : SIDE // 2, : SIDE // 2, 0].astype(np.float32)
    likely_N = np.abs(np.diff(quarter_NHW, axis=2)).mean(axis=(1, 2)) / 255.0
    return np.stack([1.0 - likely_N, likely_N], axis=1).astype(np.float32)


def test_occlusion_finds_the_quarter_that_the_model_looks_at() -> None:
    heat_hw = occlusion(sees_top_left, stripes(), 1)
    assert heat_hw.shape == (14, 14)
    inside, outside = heat_hw[:5, :5].mean(), heat_hw[9:, 9:].mean()
    assert inside > 0.02
    assert abs(outside) < 1e-6
    # The other class loses what this one gains.
    assert np.allclose(occlusion(sees_top_left, stripes(), 0), -heat_hw, atol=1e-5)


def test_a_true_map_beats_a_random_one_and_the_opposite_in_both_scores() -> None:
    true_hw = np.zeros((4, 4), np.float32)
    true_hw[:2, :2] = 1.0
    random_hw = np.random.default_rng(1).random((14, 14), dtype=np.float32)
    deleted = [
        deletion(sees_top_left, stripes(), m, 1).score for m in (true_hw, random_hw, -true_hw)
    ]
    inserted = [
        insertion(sees_top_left, stripes(), m, 1).score for m in (true_hw, random_hw, -true_hw)
    ]
    assert deleted[0] < deleted[1] < deleted[2]
    assert inserted[0] > inserted[1] > inserted[2]
    curve = deletion(sees_top_left, stripes(), true_hw, 1).probabilities
    assert curve[0] == pytest.approx(1.0)
    assert curve[-1] < 0.05


def test_equal_maps_agree_wholly_and_opposite_ones_not_at_all() -> None:
    heat_hw = np.random.default_rng(2).random((7, 7), dtype=np.float32)
    assert agreement(heat_hw, heat_hw) == pytest.approx(1.0)
    assert agreement(heat_hw, -heat_hw) == pytest.approx(-1.0)
    fine_hw = np.repeat(np.repeat(heat_hw, 2, axis=0), 2, axis=1)
    assert agreement(heat_hw, fine_hw) == pytest.approx(1.0)


def test_a_map_is_spread_linearly_between_the_centres_of_cells() -> None:
    spread_HW = spread(np.array([[0.0, 1.0]], np.float32), 2, 8)
    # Centres lie at pixels 2 and 6, edges are constant.
    assert np.allclose(spread_HW[0], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1], atol=1e-6)
