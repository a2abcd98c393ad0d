"""Mutated images give pixels or our own error, in time, and no memory is kept."""

from __future__ import annotations

import itertools
import random

import pytest

from benchmarks.decode_fuzz import Outcome, mutated, resident_bytes, seeds, try_images
from models.pixels.preprocess import to_pixels
from tests.models.pixels.test_preprocess import EVERY_FORMAT


def test_every_seed_is_a_whole_image_and_mutations_are_the_same_for_the_same_seed():
    files = seeds()
    assert len(files) >= 30
    assert {to_pixels(encoded, EVERY_FORMAT).shape for encoded in files.values()} == {(224, 224, 3)}
    first, again = (list(itertools.islice(mutated(files, random.Random(7)), 50)) for _ in range(2))
    assert first == again


def test_mutated_images_give_pixels_or_our_own_errors():
    outcome = Outcome()
    try_images(mutated(seeds(), random.Random(1)), 1_500, outcome)
    assert (outcome.wrong, outcome.slow, outcome.images) == ([], 0, 1_500)
    assert {"pixels", "undecodable_image", "image_too_large"} <= outcome.codes.keys()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixty_thousand_mutated_images_leave_memory_as_it_was():
    """The first block fills caches and free lists of the allocator; later ones keep nothing."""
    outcome, images = Outcome(), mutated(seeds(), random.Random(2))
    try_images(images, 20_000, outcome)
    before = resident_bytes()
    try_images(images, 40_000, outcome)
    assert (outcome.wrong, outcome.slow, outcome.images) == ([], 0, 60_000)
    assert resident_bytes() - before < 16 << 20
