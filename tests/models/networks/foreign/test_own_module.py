"""A network of one's own, by import path."""

import sys
import textwrap

import pytest
import torch

from models.errors import ConfigError
from models.networks.catalogue import build, entry
from models.networks.weights import load_weights

NETS = '''
import torch
from torch import nn

class Net(nn.Module):
    """A plain network: features, pooling, a hidden layer and a linear one."""
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.hidden = nn.Linear(8, 6)
        self.out = nn.Linear(6, num_classes)
    def forward(self, x):
        x = torch.relu(self.conv(x)).mean(dim=(2, 3))
        return self.out(torch.relu(self.hidden(x)))

class Mapped(Net):
    """With timm's two methods, which give maps too."""
    def forward_features(self, x):
        return torch.relu(self.conv(x))
    def forward_head(self, x, pre_logits=False):
        x = x.mean(dim=(2, 3))
        return x if pre_logits else self.last(x)
    def get_classifier(self):
        return self.last
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        del self.hidden, self.out
        self.last = nn.Linear(8, num_classes)
    def forward(self, x):
        return self.forward_head(self.forward_features(x))

class Fixed(Net):
    def __init__(self):
        super().__init__(10)

class Convolutional(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3)
    def forward(self, x):
        return self.conv(x).mean(dim=(2, 3))

class Wide(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes + 1)

class Deep(Net):
    def forward(self, x):
        return super().forward(nn.functional.max_pool2d(x, 64))

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x

class Empty(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.n = num_classes
    def forward(self, x):
        return x

def number(num_classes):
    return num_classes
'''


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module in the current folder, where the command `loupe` would not look by itself."""
    (tmp_path / "own_nets.py").write_text(textwrap.dedent(NETS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_nets", None)


def test_the_last_linear_layer_is_the_head_and_what_it_takes_the_embedding(nets):
    network = build("own_nets:Net", num_classes=4, image_size=32).eval()
    _, embedding_ND = network.embed(torch.rand(2, 3, 32, 32))
    assert embedding_ND.shape == (2, 6)
    assert network.head.embedding_size == 6
    assert not network.has_maps
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    assert entry("own_nets:Net").usual_size == 224


def test_with_the_methods_of_timm_there_are_maps(nets):
    network = build("own_nets:Mapped", num_classes=4, image_size=32).eval()
    assert network.has_maps
    features, embedding = network.embed(torch.rand(2, 3, 32, 32))
    assert network.class_activation(embedding, features).shape == (2, 4, 15, 15)


def test_its_own_state_dict_fills_it(nets):
    network = build("own_nets:Net", num_classes=4, image_size=32).eval()
    own_nets = sys.modules["own_nets"]
    torch.manual_seed(0)
    original = own_nets.Net(4).eval()
    torch.save(original.state_dict(), nets / "w.pth")
    assert load_weights(network, "own_nets:Net", str(nets / "w.pth")).head
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), original(pixels))
    with pytest.raises(ConfigError, match="there are no published weights for own_nets:Net"):
        load_weights(network, "own_nets:Net", "default")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_nests:Net", r"there is no module 'own_nests' in .* or among the installed packages"),
        ("own_nets:Nat", r"module own_nets has no Nat; its networks: Net, Mapped, Fixed"),
        ("own_nets:Fixed", r"cannot be made: .*num_classes.*; it is called with num_classes=K"),
        ("own_nets:number", r"makes a int; it is called with num_classes=K"),
        ("own_nets:Empty", r"has no parameters to train"),
        ("own_nets:Convolutional", r"does not end in a torch\.nn\.Linear"),
        ("own_nets:Wide", r"gives \[1, 5\] for one image; expected logits \[1, 4\]"),
        ("own_nets:Pair", r"gives a tuple in evaluation; expected one tensor"),
    ],
)
def test_what_it_must_be_is_said(nets, name, message):
    with pytest.raises(ConfigError, match=message):
        build(name, num_classes=4, image_size=32)


def test_an_image_that_it_does_not_take_is_said(nets):
    with pytest.raises(
        ConfigError, match=r"does not take images of 16x16 pixels: .*Choose another"
    ):
        build("own_nets:Deep", num_classes=4, image_size=16)
