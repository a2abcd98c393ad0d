"""What is found by trying: learning rates, and the batch size that fits into memory."""

import dataclasses
import io
import math

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from models.errors import ConfigError, TrainingError
from models.networks.catalogue import build
from tests.training.photos import COLOURS, in_memory, write_photos
from tests.training.small_runs import TINY
from training.commands import train as command
from training.config import replace_fields
from training.fit import auto_batch, lr_finder, probe
from training.fit.loop import train
from training.fit.lr_finder import HIGHEST, LOWEST, STEPS, Sweep, find_rates

CONFIG = dataclasses.replace(TINY, network="simple_cnn", batch_size=12, probe_epochs=5, epochs=2)


@pytest.fixture(scope="module")
def photos():
    return in_memory(train=8, held_out=2)


def test_a_sweep_rises_evenly_and_what_it_suggests_learns(photos, tmp_path):
    found = find_rates(CONFIG, photos)
    assert [sweep.field for sweep in found] == ["probe_learning_rate", "learning_rate"]
    for one in found:
        assert one.rates[0] == pytest.approx(LOWEST)
        assert 15 <= len(one.rates) == len(one.losses) <= STEPS
        steps = {
            round(math.log10(b / a), 6) for a, b in zip(one.rates, one.rates[1:], strict=False)
        }
        assert steps == {round(math.log10(HIGHEST / LOWEST) / (STEPS - 1), 6)}
        assert 1e-5 <= one.suggestion <= 0.1
    changes = {one.field: one.suggestion for one in found}
    run = train(dataclasses.replace(CONFIG, epochs=6, **changes), photos, tmp_path / "run")
    # The rates of the test's own configuration are not told to it.
    assert max(line["val_accuracy"] for line in run.metrics()) >= 5 / 6


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_least_loss():
    assert Sweep("learning_rate", [1e-4, 3.1e-3, 1e-1], [1.0, 0.5, 3.0]).suggestion == 3e-4


def test_a_sweep_ends_where_the_loss_breaks_and_does_not_raise(photos):
    """Decay that turns weights round and swells them once the rate passes 2e-4: the loss breaks,
    which here is an answer.
    """
    config = replace_fields(
        CONFIG, ["network=simple_cnn,norm=none,dropout=0.0", "probe_epochs=0", "weight_decay=1e4"]
    )
    (one,) = find_rates(config, photos)
    assert len(one.rates) < STEPS
    assert all(math.isfinite(loss) for loss in one.losses)


def test_the_command_shows_the_curves_and_what_to_set_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = str(write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 10)))
    fields = [
        "network=lenet5",
        "weights=none",
        "image_size=32",
        "resize_size=32",
        "probe_epochs=1",
        "batch_size=8",
    ]
    settings = [word for field in fields for word in ("--set", field)]
    done = CliRunner().invoke(
        command, ["--find-lr", "--data", source, *settings], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert "probe_learning_rate, and the loss there\n  1.0e-05  " in done.output
    assert "\na place to start from: --set probe_learning_rate=" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_the_features_of_the_probe_are_computed_once(photos, monkeypatch):
    """The sweep and the training of the head after it share them."""
    read = []
    batches = probe.readable_batches
    monkeypatch.setattr(
        probe,
        "readable_batches",
        lambda examples, *rest, **more: read.extend(examples) or batches(examples, *rest, **more),
    )
    find_rates(dataclasses.replace(CONFIG, epochs=0), photos)
    assert len(read) == len(photos.splits["train"]) + len(photos.splits["val"])


def test_a_sweep_under_torchrun_is_refused(photos, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match=r"^--find-lr runs in one process; start it without torchrun"
    ):
        find_rates(CONFIG, photos)


@pytest.mark.parametrize(
    ("limit", "most", "expected"),
    [(100, 1024, 64), (64, 1024, 64), (10_000, 1000, 512), (10_000, 1024, 1024), (3, 8, 2)],
)
def test_the_largest_power_of_two_that_fits_is_found(limit, most, expected):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    assert auto_batch.largest_power(fits, most=most) == expected
    # No batch is tried that is more than one doubling beyond.
    assert max(tried) <= 2 * expected


def test_memory_for_not_even_two_images_is_an_error():
    with pytest.raises(
        TrainingError,
        match=(
            r"^out of memory with 2 images; try a smaller network or image_size, or --set"
            r" precision=bf16$"
        ),
    ):
        auto_batch.largest_power(lambda size: False, most=64)


def test_on_a_cpu_nothing_is_probed_and_the_run_says_so_and_records_what_it_took(
    photos, tmp_path, monkeypatch
):
    stream = io.StringIO()
    monkeypatch.setattr(auto_batch, "CONSOLE", Console(file=stream, soft_wrap=True))
    config = dataclasses.replace(CONFIG, batch_size=0, epochs=1)
    run = train(config, photos, tmp_path / "run")
    assert (
        stream.getvalue() == "batch_size 0: on a CPU nothing is probed, batches of 24 are taken\n"
    )
    assert run.config.batch_size == 24
    assert train(config, photos, tmp_path / "run", resume=True).config.batch_size == 24


def test_what_is_tried_are_whole_steps_of_the_run_itself_and_leave_the_network_as_it_is(photos):
    """All but the memory: forward, backward, mixing, average and optimiser, on a copy."""
    network = build("simple_cnn", num_classes=3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    config = dataclasses.replace(
        CONFIG,
        batch_size=6,
        mixup=0.2,
        ema_decay=0.9,
        precision="bf16",
        channels_last=True,
        accumulate=4,
    )
    auto_batch.try_steps(config, network, photos.splits["train"], teacher=None)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_sweep_begins_as_a_run_does(photos, monkeypatch):
    """From a trained head, and with the teacher, the freezing and the precision of the run: they
    are phases of a run.
    """
    seen = []
    original = lr_finder.sweep
    monkeypatch.setattr(
        lr_finder,
        "sweep",
        lambda phase, *rest, **options: seen.append(phase) or original(phase, *rest, **options),
    )
    find_rates(dataclasses.replace(CONFIG, freeze="features", precision="bf16"), photos)
    assert [phase.name for phase in seen] == ["probe", "train"]
    assert not any(parameter.requires_grad for parameter in seen[1].network.features.parameters())
