"""Splits a network that somebody else wrote into a body and one linear layer, by trying it.

Names and attributes promise more than they hold, so what can be had of a head is found on noise.

Letters used in shapes: N images, K classes, C channels of the feature map, D embedding features, J
hidden features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from models.errors import ConfigError
from models.networks.foreign.body import BodyNetwork, Closed, Layout, Replaced, pooled
from models.networks.foreign.steps import BETWEEN, is_known, value
from models.networks.heads import LinearHead

CLOSE = 1e-4
"""Relative to the largest number: two ways of computing the same in fp32 differ by less."""


def split(module: nn.Module, *, num_classes: int, image_size: int, name: str) -> BodyNetwork:
    """*module*, which gives logits [N,K] for *num_classes*, as a body and a linear layer.

    It is tried on noise of *image_size* pixels, unless it lies on the `meta` device, where there
    are no numbers: then maps are not looked for. Raises `ConfigError`, which calls it *name*.
    """
    module.eval()
    device = next(module.parameters()).device
    images_N3HW = torch.rand(
        (1, 3, image_size, image_size), generator=_noise(device), device=device
    )
    with torch.no_grad():
        try:
            return _split(module, images_N3HW, num_classes, name)
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"network {name} does not take images of {image_size}x{image_size} pixels:"
                f" {first}. Choose another --set image_size"
            ) from error


def _noise(device: torch.device) -> torch.Generator | None:
    """A state of its own, so that what a run draws does not depend on the network."""
    return None if device.type == "meta" else torch.Generator(device).manual_seed(0)


def _split(module: Any, images_N3HW: Tensor, num_classes: int, name: str) -> BodyNetwork:
    logits_NK = _tensor(module(images_N3HW), name)
    if logits_NK.shape != (1, num_classes):
        raise ConfigError(
            f"network {name} gives {list(logits_NK.shape)} for one image; expected logits"
            f" [1, {num_classes}]"
        )
    if hasattr(module, "forward_features") and hasattr(module, "forward_head"):
        found = module.forward_features(images_N3HW)
        embedding_ND = module.forward_head(found, pre_logits=True).flatten(1)
        linear, replaced = _classifier(module, embedding_ND, logits_NK)
        # From here on the module ends where its features end.
        module.forward = module.forward_features
    else:
        linear, replaced, embedding_ND = _last_linear(module, images_N3HW, logits_NK, name)
        found = embedding_ND
    head = LinearHead(embedding_ND.shape[1], num_classes)
    if linear is not None:
        _copy(linear, head.linear)
    for part in (replaced.classifier, *replaced.others):
        if part is not None:
            module.set_submodule(part, nn.Identity())
    return BodyNetwork(module, head, closed=_closed(module, found), replaced=replaced)


def _tensor(found: object, name: str) -> Tensor:
    if isinstance(found, Tensor):
        return found
    raise ConfigError(
        f"network {name} gives a {type(found).__name__} in evaluation; expected one tensor of"
        " logits [N,K]"
    )


def _classifier(
    module: Any, embedding_ND: Tensor, logits_NK: Tensor
) -> tuple[nn.Module | None, Replaced]:
    """The layer that makes the logits of the embedding, and the names of what goes."""
    layers = module.get_classifier()
    layers = list(layers) if isinstance(layers, (list, tuple, nn.ModuleList)) else [layers]
    names = [
        name
        for layer in layers
        for name, found in module.named_modules()
        if found is layer and not isinstance(layer, nn.Identity)
    ]
    if len(layers) == 1 and names and _is_linear(layers[0]):
        weight, bias = layers[0].weight.flatten(1), layers[0].bias
        if embedding_ND.shape[1] == weight.shape[1] and _same(
            F.linear(embedding_ND, weight, bias), logits_NK
        ):
            return layers[0], Replaced(names[0])
    return None, Replaced(None, tuple(names))


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    )


def _last_linear(
    module: nn.Module, images_N3HW: Tensor, logits_NK: Tensor, name: str
) -> tuple[nn.Module, Replaced, Tensor]:
    """The linear layer whose output is the module's, its name, and what it was given."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(key: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[key] = (inputs[0], output)

        return hook

    layers = {key: part for key, part in module.named_modules() if isinstance(part, nn.Linear)}
    hooks = [part.register_forward_hook(remember(key)) for key, part in layers.items()]
    module(images_N3HW)
    for hook in hooks:
        hook.remove()
    for key, (given, output) in reversed(seen.items()):
        if given.ndim == 2 and output.shape == logits_NK.shape and _same(output, logits_NK):
            return layers[key], Replaced(key), given
    raise ConfigError(
        f"network {name} does not end in a torch.nn.Linear that makes its logits, and Loupe gives"
        " it a new one for other classes; expected such a layer last"
    )


def _copy(linear: Any, new: nn.Linear) -> None:  # Any: a linear layer, or a convolution of 1x1
    if linear.weight.device.type == "meta":
        return
    new.weight.copy_(linear.weight.flatten(1))
    if linear.bias is None:
        nn.init.zeros_(new.bias)
    else:
        new.bias.copy_(linear.bias)


def _closed(module: nn.Module, found: Tensor) -> Closed | None:
    """The closed form of what *module* makes of *found*; None: there is none."""
    if not isinstance(found, Tensor) or found.device.type == "meta":
        return None
    with _shaken(module):
        embedding_ND = pooled(module, found)
        for layout in _layouts(module, found):
            mean_NC = layout.map(found).mean(dim=(2, 3))
            for between in _sequences(module):
                if _gives(module, between, mean_NC, embedding_ND):
                    return Closed(layout, between)
    return None


@contextmanager
def _shaken(module: nn.Module) -> Iterator[None]:
    """*module* with other values in the layers that may be steps: new ones are often no-ops."""
    names = {name for sequence in BETWEEN for name in sequence}
    values = {
        f"{name}.{key}": tensor
        for name, part in module.named_modules()
        if name in names and is_known(part)
        for key, tensor in (*part.named_parameters(), *part.named_buffers())
        if tensor.is_floating_point()
    }
    kept = {key: tensor.clone() for key, tensor in values.items()}
    for key, tensor in values.items():
        noise = torch.rand(tensor.shape, generator=_noise(tensor.device), device=tensor.device)
        # A variance stays positive. The rest has both signs, so that no ReLU is a no-op.
        tensor.add_(noise if key.endswith("running_var") else 2.0 * noise - 1.0)
    try:
        yield
    finally:
        for key, tensor in values.items():
            tensor.copy_(kept[key])


def _layouts(module: nn.Module, found: Tensor) -> list[Layout]:
    if found.ndim == 4:
        return [Layout("NCHW"), Layout("NHWC")]
    if found.ndim != 3:
        return []
    prefix = int(getattr(module, "num_prefix_tokens", 0))
    cells = found.shape[1] - prefix
    if cells < 2:
        return []
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    side = math.isqrt(cells)
    if not grid or grid[0] * grid[1] != cells:
        grid = (side, side)
    return [Layout("NTC", prefix, tuple(grid))] if grid[0] * grid[1] == cells else []


def _sequences(module: nn.Module) -> Sequence[tuple[str, ...]]:
    """Modules that may lie between pooling and the linear layer, shortest first."""
    names = {name for name, part in module.named_modules() if is_known(part)}
    found = [tuple(name for name in one if name in names) for one in BETWEEN]
    return sorted(set(found), key=len)


def _gives(
    module: nn.Module, between: tuple[str, ...], mean_NC: Tensor, embedding_ND: Tensor
) -> bool:
    x_NJ = mean_NC
    for name in between:
        part = module.get_submodule(name)
        try:
            x_NJ = value(part, x_NJ)
        except RuntimeError:
            # It belongs elsewhere: its size is another.
            return False
    return _same(x_NJ, embedding_ND)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if one.device.type == "meta":
        return True
    return bool((one - other).abs().max() <= CLOSE * other.abs().max().clamp(min=CLOSE))
