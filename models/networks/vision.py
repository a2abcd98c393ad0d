"""torchvision's models, without torch's compiler, which would double the time of their import."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

COMPILER = "torch._dynamo.utils"
"""torchvision takes one check from it, for a detection operation that no classifier has."""
CHECK = "is_compile_supported"


@contextmanager
def _without_compiler() -> Iterator[None]:
    """While it lasts, importing `COMPILER` gives a stand-in that imports it on first use."""
    if COMPILER in sys.modules:
        yield
        return
    stand_in = ModuleType(COMPILER)

    def real(name: str) -> object:
        # `inspect` asks every module for `__file__`.
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)

    def check(device: object) -> object:
        function = real(CHECK)
        assert callable(function)
        return function(device)

    stand_in.__dict__.update({"__getattr__": real, CHECK: check})
    sys.modules[COMPILER] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]


with _without_compiler():
    from torchvision import models as vision
    from torchvision.models import WeightsEnum
    from torchvision.ops.misc import SqueezeExcitation

__all__ = ["SqueezeExcitation", "WeightsEnum", "vision"]
