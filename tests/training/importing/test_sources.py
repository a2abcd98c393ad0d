"""Where models come from: each kind is recognised, and what it says about itself is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models as vision

from models.errors import ConfigError, ImportRefused
from tests.training.importing.foreign_models import (
    SIZE,
    convolutional,
    of_ultralytics,
    saved,
    torchserve_archive,
    write_labels,
)
from training.importing.declared import USUAL, normalisation, preprocess_spec
from training.importing.images import NONE
from training.importing.package import import_model, understood
from training.importing.sources.find import foreign_model
from training.importing.sources.huggingface import _declared
from training.importing.sources.torch_weights import read_state


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A small torchvision network for three classes, as state dict."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "ants.pth"
    torch.save(vision.squeezenet1_1(num_classes=3).state_dict(), path)
    return path


@pytest.mark.slow
def test_weights_of_torchvision_answer_as_torch_does(tmp_path):
    module = vision.resnet18(num_classes=3)
    path = tmp_path / "resnet18.safetensors"
    save_file(module.state_dict(), path)
    foreign = foreign_model(path, network="resnet18")
    assert foreign.declared.resize_size == 256
    assert foreign.declared.mean == USUAL["imagenet"].mean
    result = import_model(
        understood(foreign, ("a", "b", "c"), foreign.declared), NONE, tmp_path / "package"
    )
    assert result.manifest.parity.max_probability_difference < 1e-4
    assert [output.name for output in result.manifest.outputs] == [
        "logits",
        "probabilities",
        "embedding",
        "cam",
    ]


def test_the_moving_average_of_a_checkpoint_is_taken_as_training_takes_it(tmp_path):
    states = {"state_dict": torch.zeros(2), "state_dict_ema": torch.ones(2)}
    kept = {name: {"weight": weight} for name, weight in states.items()}
    torch.save(kept, tmp_path / "checkpoint.pth")
    content = (tmp_path / "checkpoint.pth").read_bytes()
    assert read_state(content, origin="checkpoint.pth")["weight"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod."])
def test_checkpoints_of_training_scripts_are_opened(tmp_path, key, prefix):
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 3, key: {f"{prefix}fc.bias": torch.zeros(3)}}, path)
    assert list(read_state(path.read_bytes(), origin=str(path))) == ["fc.bias"]


class Runs:
    """A pickle that would run code."""

    def __reduce__(self):
        return print, ("it ran",)


def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, capsys):
    path = tmp_path / "bad.pth"
    torch.save(Runs(), path)
    with pytest.raises(ImportRefused, match=r"nothing is unpickled here.*state_dict"):
        foreign_model(path, network="resnet18")
    assert "it ran" not in capsys.readouterr().out


def test_weights_alone_need_the_networks_name(weights):
    with pytest.raises(ConfigError, match="say whose with --network"):
        foreign_model(weights, network=None)


def test_an_unknown_network_is_told_the_nearest_names(weights):
    with pytest.raises(ConfigError, match=r"unknown network 'resnet20'\. Did you mean resnet50"):
        foreign_model(weights, network="resnet20")


def test_weights_of_another_network_are_refused_with_the_names_that_differ(weights):
    with pytest.raises(ImportRefused, match=r"do not fit: \d+ missing .* Is it another network"):
        foreign_model(weights, network="resnet18")


def ultralytics(folder: Path, **facts: str) -> Path:
    return saved(of_ultralytics(**facts), folder / "best.onnx")


def test_an_export_of_ultralytics_brings_names_size_and_preprocessing(tmp_path):
    foreign = foreign_model(ultralytics(tmp_path), network=None)
    assert foreign.labels == ("ant", "bee", "wasp")
    found = understood(foreign, None, foreign.declared)
    assert (found.spec.resize, found.spec.resize_size, found.spec.crop) == (
        "shortest_side",
        SIZE,
        (SIZE, SIZE),
    )
    assert set(found.how.subtract) == {0.0}
    assert import_model(found, NONE, tmp_path / "package").gives_probabilities


def test_a_detector_of_ultralytics_is_refused_by_its_task(tmp_path):
    with pytest.raises(ImportRefused, match=r"for the task detect.*-cls"):
        foreign_model(ultralytics(tmp_path, task="detect"), network=None)


def archive(folder: Path, content: bytes, name: str, **options: str) -> Path:
    return torchserve_archive(folder / "ants.mar", content, name, **options)


def test_an_archive_of_torchserve_brings_labels_and_what_its_handler_does(tmp_path):
    content = convolutional(size="side").SerializeToString()
    foreign = foreign_model(archive(tmp_path, content, "model.onnx"), network=None)
    assert foreign.labels == ("ant", "bee", "wasp")
    assert "is not run" in foreign.notes[0]
    spec = preprocess_spec(foreign.declared)
    assert (spec.resize_size, spec.crop) == (256, (224, 224))
    assert normalisation(foreign.declared, channels=3) == normalisation(
        USUAL["imagenet"], channels=3
    )


def test_a_handler_of_ones_own_is_named_and_not_run(tmp_path):
    content = convolutional().SerializeToString()
    path = archive(tmp_path, content, "model.onnx", handler="mine.py")
    foreign = foreign_model(path, network=None)
    assert foreign.notes[0].startswith("handler mine.py is not run: it would have prepared")


def test_code_that_builds_a_network_is_not_run_and_its_name_is_asked_for(tmp_path, weights):
    path = archive(tmp_path, weights.read_bytes(), "ants.pth")
    with pytest.raises(ConfigError, match=r"net\.py in .* is never run; .*--network resnet18"):
        foreign_model(path, network=None)


def test_a_name_in_an_archive_is_no_path(tmp_path):
    content = convolutional().SerializeToString()
    foreign_model(archive(tmp_path, content, "../../escaped.onnx"), network=None)
    assert not list(tmp_path.parent.glob("escaped*"))


def test_an_entry_of_triton_brings_its_newest_version_and_its_labels(tmp_path):
    folder = tmp_path / "ants"
    for version in ("1", "2", "10"):
        (folder / version).mkdir(parents=True)
        saved(convolutional(), folder / version / "model.onnx")
    write_labels(folder)
    (folder / "config.pbtxt").write_text(
        'platform: "onnxruntime_onnx"\noutput [ { name: "scores" label_filename: "labels.txt" } ]'
    )
    foreign = foreign_model(folder, network=None)
    assert foreign.name == "ants/10/model.onnx"
    assert foreign.labels == ("ant", "bee", "wasp")


def test_other_platforms_of_triton_are_refused(tmp_path):
    (tmp_path / "config.pbtxt").write_text('platform: "tensorrt_plan"')
    with pytest.raises(ImportRefused, match="for tensorrt_plan; Loupe imports those in ONNX"):
        foreign_model(tmp_path, network=None)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (
            {"size": {"height": 224, "width": 224}, "resample": 2},
            {"resize": "stretch", "crop": (224, 224), "filter": "bilinear"},
        ),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            {"resize": "shortest_side", "resize_size": 256, "crop": (224, 224)},
        ),
        (
            {"size": {"shortest_edge": 384}, "crop_pct": 0.875},
            {"resize": "stretch", "crop": (384, 384)},
        ),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
            },
            {"resize": "shortest_side", "resize_size": 256, "crop": (224, 224)},
        ),
        (
            {
                "size": {"height": 256, "width": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
            },
            {"resize": "stretch", "stretch_size": 256, "crop": (224, 224)},
        ),
    ],
)
def test_hugging_faces_preprocessors_are_understood(tmp_path, how, expected):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **how})
    )
    declared = _declared(tmp_path, {})
    spec = preprocess_spec(declared).model_dump()
    assert {name: spec[name] for name in expected} == expected
    found = normalisation(declared, channels=3)
    assert found.multiply == pytest.approx((2.0 / 255.0,) * 3)
    assert found.subtract == pytest.approx((1.0,) * 3)


def test_folders_of_hugging_face_without_safetensors_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    with pytest.raises(ImportRefused, match=r"no model\.safetensors; nothing is unpickled"):
        foreign_model(tmp_path, network=None)


def test_networks_that_are_no_classifiers_are_refused_by_their_name(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"]}')
    with pytest.raises(ImportRefused, match="holds ViTModel, expected an image classifier"):
        foreign_model(tmp_path, network=None)


def test_a_saved_model_is_told_two_ways(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ImportRefused, match=r"save the model as \.keras, or convert it"):
        foreign_model(tmp_path, network=None)


def test_what_is_no_model_is_told_what_is(tmp_path):
    saved(convolutional(), tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=r"did you mean .*net\.onnx\?; expected an \.onnx file"):
        foreign_model(tmp_path, network=None)
