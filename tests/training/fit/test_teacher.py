"""Knowledge distillation: the teacher sees what the student sees, and its answers are learnt.

Letters used in shapes: N images, K classes.
"""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from models.errors import ConfigError, PackageTampered, TrainingError
from models.package.manifest import MODEL_FILE
from models.runtime.session import open_model
from tests.training.colours import colour_package
from tests.training.photos import COLOURS, in_memory
from tests.training.small_runs import TINY
from training.config import replace_fields
from training.data.loader import as_pixels, evaluation_batches, network_input, normalised
from training.distributed import ALONE
from training.fit.loop import preprocess_spec, train
from training.fit.teacher import Teacher, open_teacher
from training.recipes import recipe

CONFIG = dataclasses.replace(
    TINY, network="simple_cnn", batch_size=12, epochs=8, learning_rate=5e-3
)


@pytest.fixture(scope="module")
def photos():
    return in_memory(train=16, held_out=6)


@pytest.fixture(scope="module")
def liar(tmp_path_factory):
    """A package that calls red green and green red, always: what nobody learns from labels."""
    return colour_package(
        tmp_path_factory.mktemp("teacher") / "liar", answers=("blue", "red", "green")
    )


def test_pixels_come_back_from_normalised_images():
    """Exactly: rounding repairs what fp32 loses."""
    pixels_NHWC = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(
        as_pixels(network_input(pixels_NHWC, torch.device("cpu"))), pixels_NHWC
    )


def test_the_loss_is_that_of_hinton_at_its_share():
    logits_NK, teacher_NK = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.0, 3.0, 1.0]])
    teacher = Teacher(None, share=0.25, temperature=2.0)
    teacher.logits = lambda images_N3HW: teacher_NK
    p, q = torch.softmax(teacher_NK / 2.0, dim=1), torch.softmax(logits_NK / 2.0, dim=1)
    expected = 0.75 * 0.9 + 0.25 * 4.0 * float((p * (p / q).log()).sum())
    assert float(
        teacher.mixed(torch.tensor(0.9), logits_NK, torch.zeros(1, 3, 4, 4))
    ) == pytest.approx(expected, rel=1e-5)


def test_the_teacher_answers_as_its_package_does_at_its_own_size(liar, photos):
    teacher = open_teacher(dataclasses.replace(CONFIG, teacher=str(liar)), tuple(COLOURS), ALONE)
    (own_NHWC,) = evaluation_batches(photos.splits["val"], teacher.model.manifest.preprocess, 32)
    images_N3HW = normalised(torch.from_numpy(own_NHWC).permute(0, 3, 1, 2))
    expected_NK = open_model(liar).run(own_NHWC, ("logits",))["logits"]
    np.testing.assert_allclose(teacher.logits(images_N3HW).numpy(), expected_NK, atol=1e-5)
    (large_NHWC,) = evaluation_batches(photos.splits["val"], preprocess_spec(CONFIG), 32)
    larger_NK = teacher.logits(network_input(large_NHWC, torch.device("cpu")))
    assert larger_NK.argmax(dim=1).tolist() == expected_NK.argmax(axis=1).tolist()


def test_the_student_learns_what_the_teacher_says_and_not_the_labels(liar, photos, tmp_path):
    """A teacher with all of the loss that confuses two of three classes: the student then gets
    those two wrong, and the third right.
    """
    taught = train(
        dataclasses.replace(CONFIG, teacher=str(liar), distillation=1.0),
        photos,
        tmp_path / "taught",
    )
    untaught = train(CONFIG, photos, tmp_path / "untaught")
    assert taught.metrics()[-1]["val_accuracy"] == pytest.approx(1 / 3, abs=0.12)
    assert untaught.metrics()[-1]["val_accuracy"] >= 0.85
    assert taught.record.teacher_sha256 == open_model(liar).manifest.files[MODEL_FILE].sha256
    assert taught.record.lineage(taught).teacher_sha256 == taught.record.teacher_sha256
    assert untaught.record.lineage(untaught).teacher_sha256 is None


def test_a_teacher_with_other_classes_or_none_is_refused_before_a_run_is_made(photos, tmp_path):
    other = colour_package(tmp_path / "other", labels=("blue", "green", "yellow"))
    with pytest.raises(
        ConfigError,
        match=(
            r"answers with blue, green, yellow; expected the classes of the data: blue, green, red$"
        ),
    ):
        train(dataclasses.replace(CONFIG, teacher=str(other)), photos, tmp_path / "run")
    with pytest.raises(
        ConfigError,
        match=(
            r"^teacher is /nowhere, which is not a folder; expected the folder of a model package"
        ),
    ):
        train(dataclasses.replace(CONFIG, teacher="/nowhere"), photos, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_teacher_is_refused(liar, photos, tmp_path):
    damaged = shutil.copytree(liar, tmp_path / "damaged")
    (damaged / MODEL_FILE).write_bytes((liar / MODEL_FILE).read_bytes() + b"\0")
    with pytest.raises(PackageTampered):
        train(dataclasses.replace(CONFIG, teacher=str(damaged)), photos, tmp_path / "run")


def test_another_teacher_at_the_same_place_does_not_resume(photos, tmp_path):
    place = colour_package(tmp_path / "teacher")
    config = dataclasses.replace(CONFIG, epochs=1, teacher=str(place))
    train(config, photos, tmp_path / "run")
    shutil.rmtree(place)
    colour_package(place, answers=("red", "green", "blue"))
    with pytest.raises(
        TrainingError,
        match=(
            r"begun differently: the SHA-256 of the teacher was [0-9a-f]{64} and is now"
            r" [0-9a-f]{64}\."
        ),
    ):
        train(config, photos, tmp_path / "run", resume=True)


def test_the_edge_recipe_wants_its_teacher_named(photos, tmp_path):
    config = replace_fields(
        recipe("edge"),
        ["weights=none", "image_size=32", "resize_size=32", "probe_epochs=0", "epochs=1"],
    )
    with pytest.raises(
        ConfigError,
        match=(
            r"^teacher is not set, and this recipe learns from one; expected --set teacher=PACKAGE"
        ),
    ):
        train(config, photos, tmp_path / "run")
    run = train(
        dataclasses.replace(config, teacher=str(colour_package(tmp_path / "teacher"))),
        photos,
        tmp_path / "run",
    )
    assert run.finished


def test_a_probe_alone_has_no_use_for_a_teacher():
    with pytest.raises(
        ConfigError,
        match=(
            r"^epochs is 0; expected 1 or more with a teacher: the probe learns from labels alone$"
        ),
    ):
        dataclasses.replace(CONFIG, probe_epochs=3, epochs=0, teacher="somewhere")
