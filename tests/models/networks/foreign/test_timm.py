"""timm's networks: found by name, split as they are, filled from files in timm's layout."""

import importlib
import pickle
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file

from models.errors import ConfigError
from models.networks.catalogue import build, entry
from models.networks.foreign import from_timm, hub
from models.networks.foreign.body import BodyNetwork, pooled
from models.networks.inputs import Inputs
from models.networks.weights import load_weights, whole_network

QUICK = ("test_resnet", "test_efficientnet", "test_convnext", "test_vit", "mobilenetv4_conv_small")
WITHOUT_MAPS = ("test_vit",)
"""They answer from a class token or the like."""


def lively(name: str, *, num_classes: int = 3) -> BodyNetwork:
    """The network with statistics and gains that training would leave: new ones hide mistakes."""
    torch.manual_seed(0)
    network = build(f"timm:{name}", num_classes=num_classes).eval()
    assert isinstance(network, BodyNetwork)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1 and value.is_floating_point():
                value.add_(torch.empty_like(value).uniform_(-0.3, 0.3))
    return network


def picture(name: str) -> torch.Tensor:
    size = entry(f"timm:{name}").usual_size
    return torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", QUICK)
def test_the_answers_are_those_of_timm_itself(name):
    torch.manual_seed(0)
    original = timm.create_model(name, num_classes=5).eval()
    network = build(f"timm:{name}", num_classes=5).eval()
    assert isinstance(network, BodyNetwork)
    network.load_state_dict(network.renamed(original.state_dict()))
    with torch.no_grad():
        expected, found = original(picture(name)), network(picture(name))
    # The head is the same layer of the same numbers; only a convolution may round otherwise.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", QUICK)
def test_maps_are_grad_cam_by_autograd_or_are_not_offered(name):
    network = lively(name)
    assert network.has_maps == (name not in WITHOUT_MAPS)
    if not network.has_maps:
        return
    with torch.no_grad():
        found = network.features(picture(name))
        features_NChw, embedding_ND = network.embed(picture(name))
        maps_NKhw = network.class_activation(embedding_ND, features_NChw)
    found.requires_grad_()
    logits_NK = network.head(pooled(network.features, found))
    for k in range(logits_NK.shape[1]):
        (gradient,) = torch.autograd.grad(logits_NK[:, k].sum(), found, retain_graph=True)
        assert network.closed is not None
        weight_NC11 = network.closed.layout.map(gradient).mean(dim=(2, 3), keepdim=True)
        expected_Nhw = (weight_NC11 * features_NChw).sum(dim=1)
        # Sums in another order, relative to the largest cell.
        atol = 1e-4 * float(expected_Nhw.abs().max())
        torch.testing.assert_close(maps_NKhw[:, k], expected_Nhw, rtol=1e-4, atol=atol)


def test_building_a_network_draws_no_more_than_timm_does():
    """So that what a run draws does not depend on how the head was looked for."""
    torch.manual_seed(0)
    build("timm:test_resnet", num_classes=3)
    after = torch.rand(1)
    torch.manual_seed(0)
    build("timm:test_resnet", num_classes=3)
    assert torch.equal(torch.rand(1), after)


def test_weights_bring_their_preprocessing():
    assert entry("timm:tf_efficientnet_lite0").inputs() == Inputs(
        image_size=224,
        crop_share=0.875,
        filter="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    squashed = entry("timm:eva02_base_patch14_448").inputs()
    assert (squashed.resize, squashed.mean) == ("stretch", (0.48145466, 0.4578275, 0.40821073))
    assert entry("timm:convnext_tiny").inputs().resize_size(224) == 235
    assert entry("timm:resnet50.a1_in1k").inputs().filter == "bicubic"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet5O", r"timm has no network 'resnet5O'; did you mean timm:resnet50, "),
        ("timm:convnext-tiny", r"did you mean timm:convnext_tiny, "),
        ("timm:qqqqqq", r"'qqqqqq'; `loupe networks timm:\*` lists them"),
        (
            "timm:resnet50.a9_in1k",
            r"resnet50 has no weights 'a9_in1k'; valid: timm:resnet50\.ra_in1k",
        ),
        ("vit_tiny_patch16_224", r"Did you mean timm:vit_tiny_patch16_224\?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(ConfigError, match=message):
        entry(name)


def test_without_timm_the_command_that_installs_it_is_said(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"timm is not installed: pip install 'loupe-vision\["):
        entry("timm:resnet50")
    assert not from_timm.knows("resnet50")


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(1)
    return timm.create_model("test_resnet", num_classes=7).state_dict()


def filled(path, *, num_classes=7):
    network = build("timm:test_resnet", num_classes=num_classes)
    return network, load_weights(network, "timm:test_resnet", str(path))


def test_files_in_the_layout_of_timm_are_read_with_and_without_their_head(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    # As training scripts leave it: wrapped, by a parallel module, with counters beside it.
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": state[key] for key in state}}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    for name in ("w.safetensors", "w.pth", "wrapped.pth"):
        network, loaded = filled(tmp_path / name)
        assert (loaded.kind, loaded.identifier, loaded.head) == ("file", name, True)
        assert torch.equal(network.head.linear.weight, state["fc.weight"])
        assert torch.equal(network.state_dict()["features.conv1.0.weight"], state["conv1.0.weight"])
    assert not filled(tmp_path / "w.pth", num_classes=2)[1].head
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    save_file(headless, tmp_path / "headless.safetensors")
    assert not filled(tmp_path / "headless.safetensors")[1].head


def test_files_that_do_not_fit_or_hold_code_are_refused(state, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"weights for timm:test_resnet do not fit: "):
        filled(tmp_path / "other.safetensors")
    torch.save({"state_dict": state, "args": SimpleNamespace(lr=1)}, tmp_path / "code.pth")
    with pytest.raises(ConfigError, match=r"Nothing is unpickled here: save `model\.state_dict"):
        filled(tmp_path / "code.pth")
    (tmp_path / "worse.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(ConfigError, match="cannot be read"):
        filled(tmp_path / "worse.pth")


def test_a_transformer_takes_another_size_and_its_positions_are_resampled(tmp_path):
    original = timm.create_model("test_vit", num_classes=4)
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    network = build("timm:test_vit", num_classes=4, image_size=192).eval()
    path = str(tmp_path / "w.safetensors")
    assert load_weights(network, "timm:test_vit", path, image_size=192).head
    assert network(torch.zeros(1, 3, 192, 192)).shape == (1, 4)
    with pytest.raises(ConfigError, match=r"timm:test_vit .*100x100"):
        build("timm:test_vit", num_classes=4, image_size=100)


def test_a_network_keeps_its_own_classes(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    network, inputs = whole_network("timm:test_resnet", str(tmp_path / "w.safetensors"))
    assert network.head.linear.out_features == 7
    assert inputs == entry("timm:test_resnet").inputs()
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    save_file(headless, tmp_path / "headless.safetensors")
    with pytest.raises(ConfigError, match="no classification layer that timm:test_resnet could"):
        whole_network("timm:test_resnet", str(tmp_path / "headless.safetensors"))


def test_without_a_network_the_way_out_is_said_at_once(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(hub.urllib.request, "urlopen", unreachable)
    # timm's smallest networks are in nobody's cache.
    network = build("timm:test_byobnet", num_classes=2)
    with pytest.raises(ConfigError, match=r"no route to host.*--set weights=FILE"):
        load_weights(network, "timm:test_byobnet", "default")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    old = SimpleNamespace(custom_load=False, hf_hub_id=None, url="https://example.org/a.pth")
    with pytest.raises(ConfigError, match=r"https://example\.org/a\.pth: .*no route"):
        hub.checkpoint_of(old, "timm:old")


def test_a_file_of_the_hub_is_taken_from_the_cache_or_fetched_once(monkeypatch, state, tmp_path):
    import huggingface_hub

    save_file(state | {"fc.weight": torch.zeros(1000, 512)}, tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub, "_exists", lambda url: url.endswith("pytorch_model.bin"))
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *names: asked.append(names) or str(tmp_path / "model.safetensors"),
    )
    path, origin = hub.checkpoint_of(entry("timm:test_resnet").timm, "timm:test_resnet")
    assert path == tmp_path / "model.safetensors"
    assert asked == [(origin, "pytorch_model.bin")]
    assert origin == "timm/test_resnet.r160_in1k"
