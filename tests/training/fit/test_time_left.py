"""One time left for the whole run, from what was measured in it."""

import pytest

from training.fit.time_left import FEATURES_TO_EPOCH, TimeLeft


def test_nothing_is_said_before_anything_was_measured():
    left = TimeLeft({"train": 3})
    assert (left.seconds, str(left)) == (None, "")


def test_features_tell_what_the_other_phase_may_take_until_its_first_epoch_does():
    left = TimeLeft({"probe": 30, "train": 2})
    left.features_done("probe", 20.0)
    assert left.seconds == pytest.approx(2 * 20.0 * FEATURES_TO_EPOCH)
    for _ in range(30):
        left.epoch_done("probe", 0.1)
    assert left.seconds == pytest.approx(2 * 20.0 * FEATURES_TO_EPOCH)
    left.epoch_done("train", 50.0)
    assert (left.seconds, str(left)) == (50.0, "  50 s left")
    left.epoch_done("train", 50.0)
    assert (left.seconds, str(left)) == (0.0, "")


def test_a_resumed_run_counts_only_the_epochs_that_are_left():
    left = TimeLeft({"train": 4})
    left.epoch_done("train", 600.0)
    assert str(left) == "  30 min left"
