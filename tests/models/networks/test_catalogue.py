"""Loading weights: torchvision's give torchvision's logits; our own; none; files that do not fit.

Letters used in shapes: N images, D embedding features, H and W pixels.
"""

import hashlib
import re
from urllib.error import URLError

import pytest
import torch
import torchvision.models as zoo
from safetensors.torch import load_file, save_file
from torch import nn

from models.errors import ConfigError
from models.networks import weights as loading
from models.networks.catalogue import build, entry, networks
from models.networks.network import IMAGENET_MEAN, IMAGENET_STD, ServedGraph
from models.networks.weights import LoadedWeights, cached, load_weights
from models.package.manifest import PreprocessSpec
from models.pixels.preprocess import to_pixels

LARGE = ("resnet101", "resnet152", "vgg", "densenet201", "convnext_small")
"""Networks with checkpoints of 70 MB and more, and a smaller sibling here, are slow tests."""
FILLED = [
    pytest.param(name, marks=pytest.mark.slow if name.startswith(LARGE) else ())
    for name in networks()
    if entry(name).weights is not None
]
PTH = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "googlenet",
    "densenet121",
    "efficientnet_b0",
)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other are what makes small batches slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference(name, num_classes=5, seed=0):
    """torchvision's own module, with batch statistics that are not the initial ones."""
    torch.manual_seed(seed)
    # As the published weights of GoogLeNet are used; the auxiliary classifiers are in their file
    # too.
    extra = {"init_weights": True, "transform_input": True} if name == "googlenet" else {}
    module = getattr(zoo, name)(num_classes=num_classes, **extra)
    for key, buffer in module.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    for key, parameter in module.named_parameters():
        # ConvNeXt's blocks begin at a millionth, where no mistake in them would show.
        if key.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.1, 0.3)
    return module.eval()


def logits(network):
    with torch.inference_mode():
        return network.eval()(IMAGES)


@pytest.mark.parametrize("name", FILLED)
def test_a_torchvision_checkpoint_gives_torchvisions_logits(name, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    check_checkpoint(name, path, save_file)


@pytest.mark.parametrize("name", PTH)
def test_a_torchvision_checkpoint_may_be_a_pth(name, tmp_path):
    check_checkpoint(name, tmp_path / "checkpoint.pth", torch.save)


def check_checkpoint(name, path, save):
    module = reference(name)
    save(module.state_dict(), path)
    network = build(name, num_classes=5)
    loaded = load_weights(network, name, str(path))

    assert loaded == LoadedWeights(
        "file", path.name, hashlib.sha256(path.read_bytes()).hexdigest(), head=True
    )
    expected = logits(module)
    # Pooling is a mean here and an adaptive pool there: another order of additions, relative to the
    # largest logit.
    torch.testing.assert_close(
        logits(network), expected, atol=1e-6 * max(1.0, float(expected.abs().max())), rtol=1e-5
    )


def test_densenets_names_from_before_they_lost_a_dot_load(tmp_path):
    """torchvision's default weights of every DenseNet still have them."""
    module = reference("densenet121")
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
        for key, value in module.state_dict().items()
    }
    assert "features.denseblock4.denselayer16.conv.2.weight" in old
    save_file(old, tmp_path / "old.safetensors")
    network = build("densenet121", num_classes=5)
    assert load_weights(network, "densenet121", str(tmp_path / "old.safetensors")).head
    torch.testing.assert_close(logits(network), logits(module), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["lenet5", "simple_cnn,norm=group"])
def test_where_torchvision_has_no_weights_the_answer_is_what_else_there_is(name, tmp_path):
    network = build(name, num_classes=2)
    with pytest.raises(
        ConfigError,
        match=(
            rf"^there are no published weights for {name}; train from scratch with weights none, or"
            r" name a weights file$"
        ),
    ):
        load_weights(network, name, "default")
    assert not cached(name)
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    again = build(name, num_classes=2)
    assert load_weights(again, name, str(tmp_path / "own.safetensors")).head
    assert torch.equal(logits(again), logits(network))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small"])
def test_other_classes_get_a_new_head_and_the_old_features(name, tmp_path):
    module = reference(name, num_classes=7)
    save_file(module.state_dict(), tmp_path / "seven.safetensors")
    network = build(name, num_classes=5)
    fresh = {key: value.clone() for key, value in network.head.linear.state_dict().items()}
    loaded = load_weights(network, name, str(tmp_path / "seven.safetensors"))

    assert not loaded.head
    assert all(
        torch.equal(network.head.linear.state_dict()[key], value) for key, value in fresh.items()
    )
    pooled = {}
    last = module.fc if name == "resnet18" else module.classifier
    last.register_forward_pre_hook(lambda _, inputs: pooled.update(embedding_ND=inputs[0]))
    logits(module)
    with torch.inference_mode():
        embedding_ND = network.eval().embed(IMAGES)[1]
    torch.testing.assert_close(embedding_ND, pooled["embedding_ND"], atol=1e-6, rtol=1e-5)
    if name == "mobilenet_v3_small":
        assert torch.equal(network.head.hidden.weight, module.classifier[0].weight)


def test_a_network_of_ours_is_filled_from_a_run_of_ours(tmp_path):
    first, second = (
        build("mobilenet_v3_small", num_classes=4),
        build("mobilenet_v3_small", num_classes=4),
    )
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    assert load_weights(second, "mobilenet_v3_small", str(tmp_path / "weights.safetensors")).head
    assert torch.equal(logits(first), logits(second))


def test_checkpoints_from_before_batches_were_counted_load(tmp_path):
    """torchvision's default weights of ResNet-18 and ResNet-34 have no `num_batches_tracked`."""
    module = reference("resnet18")
    old = {
        key: value
        for key, value in module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert len(old) == 102
    save_file(old, tmp_path / "old.safetensors")
    network = build("resnet18", num_classes=5)
    assert load_weights(network, "resnet18", str(tmp_path / "old.safetensors")).head
    torch.testing.assert_close(logits(network), logits(module), atol=1e-6, rtol=1e-5)


def test_weights_of_a_deeper_network_are_refused_with_the_keys_that_differ(tmp_path):
    save_file(reference("resnet34").state_dict(), tmp_path / "deep.safetensors")
    network = build("resnet18", num_classes=5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(
        ConfigError,
        match=r"^weights deep\.safetensors for resnet18 do not fit: \d+ not of this network "
        r"\(features\.layer1\.2\.bn1\.bias, features\.layer1\.2\.bn1\.num_batches_tracked,"
        r" features\.layer1\.2\.bn1\.running_mean and \d+ more\)$",
    ):
        load_weights(network, "resnet18", str(tmp_path / "deep.safetensors"))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_weights_of_another_family_are_refused_with_all_differences(tmp_path):
    save_file(reference("mobilenet_v3_large").state_dict(), tmp_path / "large.safetensors")
    with pytest.raises(
        ConfigError,
        match=(
            r"do not fit: \d+ missing \(.*\); \d+ not of this network \(.*\); \d+ of another shape"
            r" \(.*\)$"
        ),
    ):
        load_weights(
            build("mobilenet_v3_small", num_classes=5),
            "mobilenet_v3_small",
            str(tmp_path / "large.safetensors"),
        )


class _RunsCode:
    def __reduce__(self):
        return (print, ("code from the weights file ran",))


def test_a_pickle_with_code_inside_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"conv1.weight": _RunsCode()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError) as refused:
        load_weights(build("resnet18", num_classes=2), "resnet18", str(tmp_path / "evil.pth"))
    assert (
        str(refused.value)
        == f"weights file {tmp_path / 'evil.pth'} cannot be read: it holds more than tensors, or is"
        " damaged. Nothing is unpickled here: save `model.state_dict()` alone, best as"
        " .safetensors"
    )
    assert "ran" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "content", [{"weights": {"conv1.weight": torch.zeros(1)}, "epoch": 3}, [torch.zeros(1)]]
)
def test_what_holds_no_weights_is_refused_with_what_to_save(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(
        ConfigError,
        match=r"checkpoint\.pth holds no plain mapping of parameter names to tensors; save"
        r" `model\.state_dict\(\)` alone$",
    ):
        load_weights(build("resnet18", num_classes=2), "resnet18", str(tmp_path / "checkpoint.pth"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    (tmp_path / f"damaged{suffix}").write_bytes(b"damaged")
    with pytest.raises(
        ConfigError, match=rf"^weights file .*damaged{re.escape(suffix)} cannot be read: "
    ):
        load_weights(
            build("resnet18", num_classes=2), "resnet18", str(tmp_path / f"damaged{suffix}")
        )


def test_a_missing_file_is_answered_with_what_weights_may_be(tmp_path):
    with pytest.raises(
        ConfigError,
        match=(
            r"absent\.pth does not exist; expected `default`, `none`, a name such as IMAGENET1K_V1,"
            r" or a \.safetensors or \.pth file$"
        ),
    ):
        load_weights(build("resnet18", num_classes=2), "resnet18", str(tmp_path / "absent.pth"))


def test_no_weights_leave_the_network_as_it_was_built():
    network = build("resnet18", num_classes=2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert load_weights(network, "resnet18", "none") == LoadedWeights(
        "none", "random initialisation", None, head=False
    )
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_downloaded_weights_are_found_where_torch_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert not cached("resnet18")
    path = tmp_path / "hub/checkpoints" / entry("resnet18").weights.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    module = reference("resnet18", num_classes=1000)
    torch.save(module.state_dict(), path)

    assert cached("resnet18")
    assert not cached("resnet34")
    network = build("resnet18", num_classes=1000)
    loaded = load_weights(network, "resnet18", "default")
    assert (loaded.kind, loaded.identifier, loaded.head) == (
        "torchvision",
        "ResNet18_Weights.IMAGENET1K_V1",
        True,
    )
    torch.testing.assert_close(logits(network), logits(module), atol=1e-6, rtol=1e-5)


def test_other_weights_of_torchvisions_are_named_as_its_enum_names_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = (
        tmp_path / "hub/checkpoints" / zoo.MobileNet_V2_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    )
    path.parent.mkdir(parents=True)
    torch.save(reference("mobilenet_v2", num_classes=1000).state_dict(), path)
    loaded = load_weights(build("mobilenet_v2", num_classes=2), "mobilenet_v2", "IMAGENET1K_V1")
    assert (loaded.kind, loaded.identifier) == ("torchvision", "MobileNet_V2_Weights.IMAGENET1K_V1")
    assert str(entry("mobilenet_v2").weights) == "MobileNet_V2_Weights.IMAGENET1K_V2"


def test_weights_without_a_classifier_are_refused():
    """torchvision's file has NaN in its place."""
    expected = (
        r"^weights IMAGENET1K_FEATURES of vgg16 are of features alone, without the layers after"
        r" them; valid: IMAGENET1K_V1, DEFAULT$"
    )
    # Refused before the network is looked at, and a VGG takes seconds to make.
    with pytest.raises(ConfigError, match=expected):
        load_weights(build("lenet5", num_classes=2), "vgg16", "IMAGENET1K_FEATURES")


def test_weights_that_cannot_be_downloaded_are_answered_with_what_to_do(tmp_path, monkeypatch):
    def offline(url, path, *, hash_prefix):
        assert (url, hash_prefix) == (entry("mobilenet_v2").weights.url, "7ebf99e0")
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(loading.torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        ConfigError,
        match=(
            r"^weights of mobilenet_v2 cannot be downloaded from https://\S+: .*no route to"
            r" host.*\. Without a network, put the file at "
            rf"{re.escape(str(tmp_path))}/hub/checkpoints/\S+\.pth, name a weights file, or train"
            r" from scratch with weights none$"
        ),
    ):
        load_weights(build("mobilenet_v2", num_classes=2), "mobilenet_v2", "default")


def test_pretrained_weights_know_a_cat(shared_data):
    """A whole way of its own: file, names, normalisation and class order must all be right."""
    network = build("mobilenet_v2", num_classes=1000)
    assert load_weights(
        network, "mobilenet_v2", str(shared_data / "weights/mobilenet_v2-imagenet1k.safetensors")
    ).head
    pixels_HWC = to_pixels((shared_data / "photos/cat_1080p.jpg").read_bytes(), PreprocessSpec())
    graph = ServedGraph(network, mean=IMAGENET_MEAN, std=IMAGENET_STD, temperature=1.0).eval()
    with torch.inference_mode():
        best = int(graph(torch.from_numpy(pixels_HWC[None]))[1].argmax())
    assert "cat" in entry("mobilenet_v2").weights.meta["categories"][best]


def test_safetensors_round_trip_is_exact(tmp_path):
    state = build("resnet18", num_classes=2).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    assert all(
        torch.equal(value, state[key])
        for key, value in load_file(tmp_path / "a.safetensors").items()
    )
