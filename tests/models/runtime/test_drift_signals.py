"""The signals that drift is measured on: right on images that one can reason about, and a reference
that adds up.
"""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cosine

from models.runtime import drift_signals
from models.runtime.drift_signals import (
    DISTANCE_EDGES,
    SHARPNESS_EDGES,
    UNIT_EDGES,
    brightness,
    embedding_distance,
    histogram,
    reference,
    sharpness,
)

RNG = np.random.default_rng(0)


def flat(colour, size=(8, 8)):
    return np.broadcast_to(np.asarray(colour, np.uint8), (*size, 3))


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((0, 0, 0), 0.0),
        ((255, 255, 255), 1.0),
        ((255, 0, 0), 0.299),
        ((0, 255, 0), 0.587),
        ((0, 0, 255), 0.114),
        ((51, 102, 204), 0.3858),
    ],
)
def test_brightness_is_the_luma_of_bt_601(colour, expected):
    # float32 weights.
    assert brightness(flat(colour)) == pytest.approx(expected, abs=1e-5)


def test_sharpness_is_the_deviation_of_the_laplacian():
    pixels_HWC = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    luma_HW = pixels_HWC @ np.array([0.299, 0.587, 0.114]) / 255.0
    expected = ndimage.laplace(luma_HW)[1:-1, 1:-1].std()
    # float32 against float64.
    assert sharpness(pixels_HWC) == pytest.approx(expected, rel=1e-4)


def test_a_blurred_image_is_less_sharp_than_the_image():
    pixels_HWC = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    blurred_HWC = ndimage.gaussian_filter(pixels_HWC, sigma=(1, 1, 0))
    assert sharpness(blurred_HWC) < 0.2 * sharpness(pixels_HWC)


@pytest.mark.parametrize("size", [(8, 8), (2, 9), (1, 1)])
def test_one_colour_is_not_sharp_at_all(size):
    assert sharpness(flat((200, 30, 90), size)) == pytest.approx(0.0, abs=1e-6)


def test_distance_is_the_cosine_distance():
    embedding_ND = RNG.normal(size=(5, 7)).astype(np.float32)
    mean_D = RNG.normal(size=7).astype(np.float32)
    expected = [cosine(row, mean_D) for row in embedding_ND]
    np.testing.assert_allclose(embedding_distance(embedding_ND, mean_D), expected, atol=1e-6)


def test_distances_of_equal_opposite_and_empty_embeddings():
    mean_D = np.array([1.0, 2.0], np.float32)
    found = embedding_distance(np.array([[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]], np.float32), mean_D)
    np.testing.assert_allclose(found, [0.0, 2.0, 1.0], atol=1e-6)
    np.testing.assert_array_equal(
        embedding_distance(np.ones((2, 2), np.float32), np.zeros(2, np.float32)), [1.0, 1.0]
    )


def test_what_lies_outside_is_counted_at_the_ends():
    found = histogram([-5.0, 0.0, 0.4, 0.5, 1.0, 7.0], (0.0, 0.5, 1.0))
    assert found.edges == (0.0, 0.5, 1.0)
    assert found.counts == (3, 3)


@pytest.mark.parametrize("edges", [UNIT_EDGES, SHARPNESS_EDGES, DISTANCE_EDGES])
def test_edges_ascend_without_rounding_noise(edges):
    assert list(edges) == sorted(set(edges))
    assert all(len(str(edge)) <= 5 for edge in edges)


def test_the_reference_counts_every_image_in_every_signal():
    logits_NK = RNG.normal(size=(50, 4))
    probabilities_NK = (np.exp(logits_NK) / np.exp(logits_NK).sum(axis=1, keepdims=True)).astype(
        np.float32
    )
    embedding_ND = RNG.normal(size=(50, 6)).astype(np.float32)
    found = reference(
        probabilities_NK=probabilities_NK,
        embedding_ND=embedding_ND,
        brightness_N=RNG.random(50).tolist(),
        sharpness_N=(2 * RNG.random(50)).tolist(),
    )
    assert found.count == 50
    assert found.predicted == tuple(
        int((probabilities_NK.argmax(axis=1) == k).sum()) for k in range(4)
    )
    for signal in (found.confidence, found.brightness, found.sharpness, found.embedding_distance):
        assert sum(signal.counts) == 50
    np.testing.assert_allclose(found.embedding_mean, embedding_ND.mean(axis=0), atol=1e-6)
    assert found.sharpness.counts[-1] >= 10  # half of them are beyond 1


def test_a_class_that_is_never_predicted_is_counted_as_nought():
    found = reference(
        probabilities_NK=np.array([[0.9, 0.1, 0.0]], np.float32),
        embedding_ND=np.ones((1, 2), np.float32),
        brightness_N=[0.5],
        sharpness_N=[0.1],
    )
    assert found.predicted == (1, 0, 0)


def drawn(share_G: list[float], count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).multinomial(count, np.array(share_G) / sum(share_G)).tolist()


def test_the_index_is_that_of_the_formula_where_nothing_is_grouped():
    expected, found = [300, 500, 200], [500, 300, 200]
    p_G, q_G = (np.array(counts) + 0.5 for counts in (expected, found))
    p_G, q_G = p_G / p_G.sum(), q_G / q_G.sum()
    plain = float(np.sum((p_G - q_G) * np.log(p_G / q_G)))
    assert drift_signals.psi(expected, found) == pytest.approx(
        plain - 2 * (1 / 1000 + 1 / 1000), abs=1e-12
    )
    # Textbook: twice 0.2 * ln(5/3), by hand.
    assert plain == pytest.approx(0.2043, abs=1e-3)


@pytest.mark.parametrize("bins", [2, 13, 20, 1000])
def test_samples_of_one_distribution_raise_no_alarm(bins):
    """Also a thousand classes, of which a small sample can hit but a part."""
    share = np.random.default_rng(1).dirichlet(np.full(bins, 5.0)).tolist()
    reference = drawn(share, 500, seed=2)
    indices = [drift_signals.psi(reference, drawn(share, 200, seed=seed)) for seed in range(3, 53)]
    assert max(indices) < 0.25
    assert np.median(indices) < 0.05


@pytest.mark.parametrize("bins", [2, 13, 20, 1000])
def test_a_third_of_the_images_gone_to_one_bin_is_an_alarm(bins):
    share = np.random.default_rng(1).dirichlet(np.full(bins, 5.0))
    moved = 0.5 * share
    moved[0] += 0.5
    indices = [
        drift_signals.psi(
            drawn(share.tolist(), 500, seed=seed), drawn(moved.tolist(), 200, seed=seed + 100)
        )
        for seed in range(20)
    ]
    assert min(indices) > 0.25 or bins == 2


def test_bins_that_the_reference_never_saw_give_a_large_and_finite_index():
    assert 1.0 < drift_signals.psi([100, 0, 0, 0], [0, 0, 0, 100]) < 20.0
    assert drift_signals.psi([0, 0, 0, 100], [100, 0, 0, 0]) > 1.0
    assert drift_signals.psi([100, 0, 0, 0], [100, 0, 0, 0]) == 0.0
