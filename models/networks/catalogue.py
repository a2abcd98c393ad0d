"""The networks that Loupe trains, by name, each split into features and a head."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from models.errors import ConfigError
from models.networks import plain, zoo
from models.networks.foreign import from_timm, own_module
from models.networks.foreign.from_timm import TIMM
from models.networks.foreign.split import split
from models.networks.inputs import Inputs, inputs_of_timm, inputs_of_torchvision
from models.networks.network import Network
from models.networks.options import SIMPLE_CNN, SimpleCnnConfig, simple_cnn_config, split_name
from models.networks.vision import WeightsEnum, vision


@dataclass(frozen=True)
class Entry:
    """How a network is made, and how torchvision's weights fit it."""

    make: Callable[[int, int], Network]
    """The network for a number of classes and an image size, with random weights."""
    weights: WeightsEnum | None = None
    """torchvision's best published weights, for pixels normalised as ImageNet's; or None."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Pattern in torchvision's parameter names -> its replacement in ours; the first match wins."""
    timm: Any = None  # Any: timm's PretrainedCfg
    """timm's published weights and what they need; None for all other networks."""
    dropped: str | None = None
    """Pattern of torchvision's parameter names that have no place in ours."""
    smallest_size: int = 16
    """Least height and width of an image, in pixels."""
    size_without_weights: int = 224

    @property
    def published(self) -> bool:
        """Whether there are weights to download."""
        return self.weights is not None or from_timm.has_weights(self.timm)

    def inputs(self, weights: str = "default") -> Inputs:
        """What *weights*, as in `TrainConfig`, were trained on.

        A file is taken for one like the published weights, for want of better.
        """
        if self.timm is not None:
            return inputs_of_timm(self.timm)
        if self.weights is None or weights == "none":
            return Inputs(image_size=self.size_without_weights)
        members = type(self.weights).__members__
        return inputs_of_torchvision(members.get(weights, self.weights))

    @property
    def usual_size(self) -> int:
        """Height and width of the images that the published weights were trained on, in pixels."""
        return self.inputs().image_size


def networks() -> tuple[str, ...]:
    """The names of the networks that the guides tell of, in order."""
    return tuple(_CATALOGUE)


def more_networks() -> tuple[str, ...]:
    """The names of the rest of torchvision's networks, in order."""
    return tuple(_MORE)


def entry(name: str) -> Entry:
    """The network called *name*, with its options if it has any.

    Raises `ConfigError` with what is valid.
    """
    if name.startswith(TIMM):
        return Entry(partial(from_timm.build, name), timm=from_timm.config(name))
    if own_module.is_path(name):
        return Entry(partial(own_module.build, name))
    base, options = split_name(name)
    known = _CATALOGUE | _MORE
    if base not in known:
        raise ConfigError(_unknown(base))
    return _simple_cnn(simple_cnn_config(options)) if options else known[base]


def build(name: str, *, num_classes: int, image_size: int | None = None) -> Network:
    """The network *name* with random weights and a head for *num_classes*.

    Raises `ConfigError` for an unknown name or option, and for an *image_size* in pixels that
    leaves no feature map.
    """
    found = entry(name)
    if image_size is not None and image_size < found.smallest_size:
        raise ConfigError(
            f"image_size is {image_size}; network {name} takes images of {found.smallest_size}"
            " pixels a side or more"
        )
    return found.make(num_classes, image_size or found.usual_size)


def _unknown(name: str) -> str:
    """What to say of a *name* that is none of ours: it may be timm's."""
    near = difflib.get_close_matches(name, [*_CATALOGUE, *_MORE], n=3)
    if not near and from_timm.knows(name):
        near = [f"{TIMM}{name}"]
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return (
        f"unknown network {name!r}.{hint} `loupe networks` lists them all; {TIMM}NAME is one of"
        " timm's, and my_package.nets:Net one of your own"
    )


def _any_size(make: Callable[[int], Network]) -> Callable[[int, int], Network]:
    """*make* for a network that is the same for every image size."""

    def made(num_classes: int, image_size: int) -> Network:
        del image_size
        return make(num_classes)

    return made


def _simple_cnn(config: SimpleCnnConfig) -> Entry:
    return Entry(_any_size(partial(plain.simple_cnn, config)), smallest_size=config.smallest_size)


def _family(
    split: Callable[[Any, int], Network],
    names: str,
    renames: Mapping[str, str],
    options: Mapping[str, bool] | None = None,
    **facts: Any,
) -> dict[str, Entry]:
    """An entry for each of *names*, which torchvision makes with *options* and *split* splits."""

    def make(name: str, num_classes: int) -> Network:
        return split(vision.get_model(name, **(options or {})), num_classes)

    return {
        name: Entry(
            _any_size(partial(make, name)),
            vision.get_model_weights(name)["DEFAULT"],
            renames,
            **facts,
        )
        for name in names.split()
    }


def _whole(names: str) -> dict[str, Entry]:
    """An entry for each of *names*, of which only the last linear layer is known."""

    def make(name: str, num_classes: int, image_size: int) -> Network:
        options = {"image_size": image_size} if name.startswith("vit") else {}
        module = vision.get_model(name, num_classes=num_classes, **options)
        return split(module, num_classes=num_classes, image_size=image_size, name=name)

    return {
        name: Entry(partial(make, name), vision.get_model_weights(name)["DEFAULT"])
        for name in names.split()
    }


_CATALOGUE = {
    **_family(
        zoo.resnet,
        "resnet18 resnet34 resnet50 resnet101 resnet152",
        {r"^fc\.": "head.linear.", r"^": "features."},
    ),
    **_family(zoo.mobilenet_v2, "mobilenet_v2", {r"^classifier\.1\.": "head.linear."}),
    **_family(
        zoo.mobilenet_v3,
        "mobilenet_v3_small mobilenet_v3_large",
        {r"^classifier\.0\.": "head.hidden.", r"^classifier\.3\.": "head.linear."},
    ),
    "lenet5": Entry(_any_size(plain.lenet5), size_without_weights=28),
    **_family(
        zoo.alexnet,
        "alexnet",
        {
            r"^classifier\.1\.": "head.hidden.0.",
            r"^classifier\.4\.": "head.hidden.1.",
            r"^classifier\.6\.": "head.linear.",
        },
        smallest_size=63,
    ),
    **_family(
        zoo.vgg,
        "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
        {
            r"^classifier\.0\.": "head.hidden.0.",
            r"^classifier\.3\.": "head.hidden.1.",
            r"^classifier\.6\.": "head.linear.",
        },
        smallest_size=32,
    ),
    # Without a choice of init_weights torchvision warns.
    **_family(
        zoo.googlenet,
        "googlenet",
        {r"^fc\.": "head.linear.", r"^": "features."},
        {"aux_logits": False, "init_weights": True},
        dropped=r"^aux[12]\.",
    ),
    # torchvision's published weights have one dot more: `denselayer1.norm.1.weight`.
    **_family(
        zoo.densenet,
        "densenet121 densenet169 densenet201",
        {r"^classifier\.": "head.linear.", r"(?<=\.)(norm|conv)\.([12])(?=\.)": r"\1\2"},
        smallest_size=29,
    ),
    **_family(
        zoo.efficientnet,
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3",
        {r"^classifier\.1\.": "head.linear."},
    ),
    **_family(
        zoo.convnext,
        "convnext_tiny convnext_small",
        {r"^classifier\.0\.": "head.norm.", r"^classifier\.2\.": "head.linear."},
        smallest_size=32,
    ),
    SIMPLE_CNN: _simple_cnn(SimpleCnnConfig()),
}

_MORE = {
    **_family(
        zoo.resnet,
        "resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2",
        _CATALOGUE["resnet18"].renames,
    ),
    **_family(zoo.densenet, "densenet161", _CATALOGUE["densenet121"].renames, smallest_size=29),
    **_family(
        zoo.efficientnet,
        "efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_s"
        " efficientnet_v2_m efficientnet_v2_l",
        _CATALOGUE["efficientnet_b0"].renames,
    ),
    **_family(
        zoo.convnext,
        "convnext_base convnext_large",
        _CATALOGUE["convnext_tiny"].renames,
        smallest_size=32,
    ),
    **_family(
        zoo.regnet,
        "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf"
        " regnet_x_32gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf"
        " regnet_y_16gf regnet_y_32gf regnet_y_128gf",
        {r"^fc\.": "head.linear.", r"^": "features."},
    ),
    **_family(
        zoo.shufflenet,
        "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
        {r"^fc\.": "head.linear.", r"^": "features."},
    ),
    **_family(
        zoo.mnasnet,
        "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
        {r"^classifier\.1\.": "head.linear.", r"^layers\.": "features."},
    ),
    **_family(
        zoo.inception,
        "inception_v3",
        {r"^fc\.": "head.linear.", r"^": "features."},
        {"aux_logits": False, "init_weights": True},
        dropped=r"^AuxLogits\.",
        smallest_size=75,
    ),
    **_family(
        zoo.swin,
        "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b",
        {r"^head\.": "head.linear.", r"^": "features."},
        smallest_size=32,
    ),
    **_whole("vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14 maxvit_t"),
}
"""The rest of torchvision's. SqueezeNet is left out: it has no linear layer to train anew."""
