"""What a phase trains: the head on features computed once, stages at their own rates, and what
stays frozen; and how it fails.
"""

import dataclasses
from collections import Counter

import pytest
import torch
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

from models.errors import ConfigError, TrainingError
from models.networks.catalogue import build
from models.networks.inputs import IMAGENET_MEAN
from tests.training.photos import in_memory
from tests.training.small_runs import TINY
from training.data.loader import erased, evaluation_batches, sampler, train_loader
from training.data.source import Dataset
from training.fit import probe
from training.fit.failures import memory_advice
from training.fit.finetune import Finetune
from training.fit.loop import preprocess_spec, train
from training.fit.optimisation import (
    Learner,
    decayed_groups,
    frozen_modules,
    parameter_groups,
    set_training,
)
from training.fit.phase import class_weights

SMALL = dataclasses.replace(TINY, batch_size=12)


@pytest.fixture(scope="module")
def photos() -> Dataset:
    return in_memory(train=8, held_out=2)


def test_a_probe_reads_each_image_once_and_changes_the_head_alone(photos, tmp_path, monkeypatch):
    read = []
    batches = probe.readable_batches
    monkeypatch.setattr(
        probe,
        "readable_batches",
        lambda examples, *rest, **more: read.extend(examples) or batches(examples, *rest, **more),
    )
    config = dataclasses.replace(SMALL, probe_epochs=20, epochs=0, probe_learning_rate=1e-2)
    run = train(config, photos, tmp_path / "run")

    assert Counter(example.name for example in read) == Counter(
        e.name for split in ("train", "val") for e in photos.splits[split]
    )
    epochs = run.metrics()
    assert [line["phase"] for line in epochs] == ["probe"] * 20
    assert epochs[-1]["train_loss"] < 0.5 * epochs[0]["train_loss"]
    torch.manual_seed(config.seed)
    start, trained = build("resnet18", num_classes=3).state_dict(), run.load_weights()
    assert {key for key in start if not torch.equal(start[key], trained[key])} == {
        "head.linear.weight",
        "head.linear.bias",
    }


def test_cached_features_are_those_of_the_images_as_evaluation_sees_them_and_mirrored(photos):
    network = build("resnet18", num_classes=3).eval()
    phase = probe.Probe(
        network,
        photos.splits["train"],
        photos.splits["val"],
        dataclasses.replace(SMALL, probe_epochs=1),
    )
    (train_NVD, read_N), (val_NVD, _) = phase.features
    assert read_N.all()
    assert (train_NVD.shape, val_NVD.shape) == ((24, 2, 512), (6, 1, 512))
    (pixels_NHWC,) = evaluation_batches(photos.splits["train"], preprocess_spec(SMALL), 24)
    images_N3HW = probe.network_input(pixels_NHWC, torch.device("cpu"))
    with torch.no_grad():
        for view, images in enumerate((images_N3HW, images_N3HW.flip(3))):
            # Batches of another size may add in another order.
            torch.testing.assert_close(
                train_NVD[:, view], network.embed(images)[1], rtol=1e-4, atol=1e-5
            )


def test_training_starts_from_the_best_head_of_the_probe_and_the_best_of_both_is_kept(
    photos, tmp_path
):
    # A rate that ruins the network at once: only the probe can be the best.
    config = dataclasses.replace(
        SMALL,
        probe_epochs=12,
        probe_learning_rate=1e-2,
        epochs=1,
        learning_rate=10.0,
        clip_norm=0.0,
    )
    run = train(config, photos, tmp_path / "run")
    both = [(line["phase"], line["val_accuracy"]) for line in run.metrics()]
    assert max(accuracy for phase, accuracy in both if phase == "probe") > both[-1][1]
    alone = train(dataclasses.replace(config, epochs=0), photos, tmp_path / "alone")
    kept, expected = run.load_weights(), alone.load_weights()
    assert [key for key in expected if not torch.equal(kept[key], expected[key])] == []


def test_rates_fall_from_stage_to_stage():
    network = build("resnet18", num_classes=3)
    groups = parameter_groups(
        network, dataclasses.replace(SMALL, layer_decay=0.5, learning_rate=0.8)
    )
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rate_of) == len(list(network.parameters()))
    stages = {
        "head": 0.8,
        "features.layer4": 0.4,
        "features.layer3": 0.2,
        "features.layer1": 0.05,
        "features.bn1": 0.025,
        "features.conv1": 0.0125,
    }
    for prefix, expected in stages.items():
        assert {
            round(rate_of[id(parameter)], 9)
            for parameter in network.get_submodule(prefix).parameters()
        } == {expected}
    assert all(
        (group["weight_decay"] > 0) == (parameter.ndim >= 2)
        for group in groups
        for parameter in group["params"]
    )


def test_named_stages_stay_bit_equal_with_their_statistics(photos, tmp_path):
    config = dataclasses.replace(SMALL, freeze="conv1..layer1,layer3", weight_decay=0.1)
    trained = train(config, photos, tmp_path / "run").load_weights()
    torch.manual_seed(config.seed)
    start = build("resnet18", num_classes=3).state_dict()
    changed = {
        key.split(".")[1]
        for key in start
        if key.startswith("features.") and not torch.equal(start[key], trained[key])
    }
    assert changed == {"layer2", "layer4"}


@pytest.mark.parametrize("freeze", ["layer9", "layer1..layer9", "layer2..layer1", ""])
def test_a_stage_that_there_is_not_is_answered_with_those_that_there_are(freeze):
    with pytest.raises(
        ConfigError,
        match=(
            r"is not a part of the network; expected none, features, or some of conv1, bn1, relu,"
            r" maxpool, layer1"
        ),
    ):
        frozen_modules(build("resnet18", num_classes=3), freeze)


def test_statistics_may_be_frozen_while_weights_are_not():
    network = build("resnet18", num_classes=3)
    set_training(network, [], freeze_statistics=True)
    assert not any(
        module.training for module in network.modules() if isinstance(module, nn.BatchNorm2d)
    )
    assert network.head.training


def linear_learner(config, *, batches, epochs=1):
    module = nn.Linear(4, 2)
    nn.init.constant_(module.weight, 0.5)
    nn.init.zeros_(module.bias)
    return module, Learner(
        module,
        decayed_groups(module.parameters(), config.learning_rate, 0.0),
        config,
        batches=batches,
        epochs=epochs,
    )


def test_accumulated_batches_make_the_step_of_one_large_batch():
    config = dataclasses.replace(
        SMALL, optimiser="sgd", learning_rate=0.1, warmup_share=0.0, clip_norm=0.0
    )
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
    large, learner = linear_learner(config, batches=1)
    learner.learn(large(inputs).square().mean(), batch=0)
    small, learner = linear_learner(dataclasses.replace(config, accumulate=5), batches=3)
    for batch, chunk in enumerate(inputs.split(2)):
        learner.learn(small(chunk).square().mean(), batch=batch)
    assert learner.steps == 1
    torch.testing.assert_close(small.weight, large.weight)
    assert not torch.equal(small.weight, torch.full((2, 4), 0.5))


def test_clipping_bounds_the_step():
    config = dataclasses.replace(
        SMALL, optimiser="sgd", learning_rate=1.0, warmup_share=0.0, clip_norm=0.01
    )
    module, learner = linear_learner(config, batches=1)
    learner.learn(1e6 * module(torch.ones(1, 4)).sum(), batch=0)
    moved = torch.cat([(module.weight - 0.5).flatten(), module.bias.flatten()]).detach().norm()
    # Nesterov's first step is 1 + momentum times the gradient.
    assert float(moved) == pytest.approx(0.019, rel=1e-3)


def test_the_average_follows_the_weights_with_a_decay_that_grows():
    module, learner = linear_learner(
        dataclasses.replace(SMALL, ema_decay=0.5, optimiser="sgd", learning_rate=0.1), batches=8
    )
    expected = None
    for batch in range(8):
        learner.learn(module(torch.ones(1, 4)).sum(), batch=batch)
        decay = min(0.5, (1 + batch) / (10 + batch))
        expected = (
            module.weight.detach().clone()
            if expected is None
            else decay * expected + (1 - decay) * module.weight.detach()
        )
    torch.testing.assert_close(learner.judged.weight.detach(), expected)


def test_balanced_sampling_draws_rare_classes_as_often():
    crooked = in_memory(train=20, held_out=1).splits["train"][:22]
    assert Counter(example.label for example in crooked) == {0: 20, 1: 2}
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(
        crooked[index].label
        for _ in range(50)
        for index in sampler(crooked, balanced=True, generator=generator)
    )
    # 1,100 draws: six standard deviations are 0.09.
    assert drawn[0] / drawn.total() == pytest.approx(0.5, abs=0.09)


def test_class_weights_have_a_mean_of_1_over_the_images():
    examples = in_memory(train=20, held_out=1).splits["train"][18:45]
    weights = class_weights(examples, 3)
    assert weights.tolist() == pytest.approx([27 / 6, 27 / 60, 27 / 15])
    assert sum(float(weights[example.label]) for example in examples) / 27 == pytest.approx(1.0)


def test_erasing_paints_the_mean_colour(photos):
    config = dataclasses.replace(
        SMALL, crop_scale_min=1.0, horizontal_flip=False, erasing=1.0, batch_size=24
    )
    ((images_N3HW, _, _, _),) = train_loader(
        photos.splits["train"], config, preprocess_spec(config)
    )
    painted = (
        (images_N3HW == torch.tensor(erased(IMAGENET_MEAN), dtype=torch.uint8).view(1, 3, 1, 1))
        .all(dim=1)
        .flatten(1)
        .float()
        .mean(dim=1)
    )
    # torchvision erases 2 to 33 % of an image; two pixels in a million have that colour by chance.
    assert 0.015 < float(painted.min()) < float(painted.max()) < 0.37


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup": 0.2, "cutmix": 1.0, "class_weights": True, "label_smoothing": 0.1},
        {"augment": "rand", "precision": "bf16", "channels_last": True},
    ],
)
def test_every_option_trains(photos, tmp_path, changes):
    config = dataclasses.replace(SMALL, epochs=6, learning_rate=2e-3, **changes)
    epochs = train(config, photos, tmp_path / "run").metrics()
    assert max(line["val_accuracy"] for line in epochs) >= 4 / 6


def test_training_ends_early_when_it_no_longer_gets_better(photos, tmp_path):
    config = dataclasses.replace(SMALL, epochs=9, learning_rate=1e-9, patience=2, freeze="features")
    epochs = train(config, photos, tmp_path / "run").metrics()
    assert len(epochs) == 3


@pytest.mark.parametrize(
    ("error", "batch_size", "advice"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            12,
            (
                "try --set batch_size=6 --set accumulate=2, which makes steps of as many images, or"
                " --set prec"
            ),
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            12,
            "try --set batch_size=6",
        ),
        (MemoryError(), 2, "try a smaller network, or --set image_size=16"),
    ],
)
def test_running_out_of_memory_says_what_to_set(
    photos, tmp_path, monkeypatch, error, batch_size, advice
):
    def exhausted(*_):
        raise error

    monkeypatch.setattr(Finetune, "loss", exhausted)
    expected = f"^out of memory on .* with batches of {batch_size} images of 32x32 pixels; {advice}"
    with pytest.raises(TrainingError, match=expected):
        train(dataclasses.replace(SMALL, batch_size=batch_size), photos, tmp_path / "run")


def test_a_compiler_that_is_missing_is_an_error_that_says_what_to_set():
    config = dataclasses.replace(SMALL, compile=True)
    expected = (
        r"^the network cannot be compiled here: No working C\+\+ compiler found in .*; train with"
        r" --set compile=false$"
    )
    with pytest.raises(TrainingError, match=expected), memory_advice(config, torch.device("cpu")):
        raise InvalidCxxCompiler


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own making
def test_a_compiled_network_trains_as_the_plain_one(photos, tmp_path):
    """The first epoch; later ones add up how differently the compiler rounds."""
    config = dataclasses.replace(SMALL, network="lenet5", epochs=2)
    plain, compiled = (
        train(dataclasses.replace(config, compile=value), photos, tmp_path / str(value))
        for value in (False, True)
    )
    assert compiled.metrics()[0]["train_loss"] == pytest.approx(
        plain.metrics()[0]["train_loss"], rel=1e-4
    )
    assert compiled.load_weights().keys() == plain.load_weights().keys()


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match=r"^shapes$"), memory_advice(SMALL, torch.device("cpu")):
        raise RuntimeError("shapes")
