"""Checks of what is installed: Python, ONNX Runtime's wheels, and releases with published holes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from models.doctor.finding import Finding

PYTHON_FLOOR = (3, 11)
CPU_WHEEL, GPU_WHEEL = "onnxruntime", "onnxruntime-gpu"
SECURITY_FLOORS: Mapping[str, str] = {
    "bentoml": "1.4.39",
    "onnx": "1.21",
    "pillow": "12.3",
    "protobuf": "6.33.5",
    "python-multipart": "0.0.27",
    "starlette": "1.0.1",
    "torch": "2.10",
}
"""First release without a published hole that Loupe's use of the package reaches. What is not installed needs none."""


@dataclass(frozen=True)
class Runtime:
    """The ONNX Runtime that imports here, whichever wheel it came from."""

    version: str
    providers: tuple[str, ...]
    cuda_version: str
    """CUDA that it was built for; empty for a CPU build."""


def check_python(found: Sequence[int]) -> Finding:
    """Python *found* against the oldest that Loupe supports."""
    text = ".".join(map(str, found))
    if tuple(found[:2]) < PYTHON_FLOOR:
        floor = ".".join(map(str, PYTHON_FLOOR))
        return Finding(
            "error",
            "python",
            f"Python {text}; Loupe needs {floor} or newer",
            f"make clean setup PYTHON=python{floor}",
        )
    return Finding("ok", "python", f"Python {text}")


def check_wheels(installed: Mapping[str, str], *, gpus: Sequence[str]) -> Finding:
    """Exactly one wheel of ONNX Runtime: both own the folder `onnxruntime/`, and the one installed
    last wins, file by file.
    """
    found = {name: installed[name] for name in (CPU_WHEEL, GPU_WHEEL) if name in installed}
    wanted = GPU_WHEEL if gpus else CPU_WHEEL
    match len(found):
        case 0:
            return Finding(
                "error",
                "runtime wheels",
                "ONNX Runtime is not installed",
                f"make setup RUNTIME={'gpu' if gpus else 'cpu'}",
            )
        case 1:
            ((name, release),) = found.items()
            return Finding("ok", "runtime wheels", f"{name} {release}")
        case _:
            both = " and ".join(f"{name} {release}" for name, release in found.items())
            return Finding(
                "error",
                "runtime wheels",
                f"both {both} are installed, into the same folder: which of them runs, and whether"
                " at all, is chance",
                f"python -m pip uninstall --yes {CPU_WHEEL} {GPU_WHEEL} && python -m pip install"
                f" --no-deps {wanted}=={found[wanted]}",
            )


def check_import(runtime: Runtime | str, *, wheel: str = CPU_WHEEL) -> Finding:
    """ONNX Runtime, installed from *wheel*, imports and has at least the CPU provider.

    A string is the reason why it does not import.
    """
    again = f"python -m pip install --force-reinstall --no-deps {wheel}"
    if isinstance(runtime, str):
        return Finding("error", "runtime", f"ONNX Runtime does not import: {runtime}", again)
    offered = ", ".join(runtime.providers)
    if "CPUExecutionProvider" not in runtime.providers:
        return Finding(
            "error",
            "runtime",
            f"ONNX Runtime {runtime.version} offers {offered or 'no provider'}",
            again,
        )
    built = f", built for CUDA {runtime.cuda_version}" if runtime.cuda_version else ""
    return Finding("ok", "runtime", f"ONNX Runtime {runtime.version}{built} offers {offered}")


def check_floors(installed: Mapping[str, str]) -> list[Finding]:
    """A finding for each installed release below its security floor, or one that says that there is
    none.
    """
    old = [
        name
        for name, floor in SECURITY_FLOORS.items()
        if name in installed and release(installed[name]) < release(floor)
    ]
    if not old:
        count = sum(name in installed for name in SECURITY_FLOORS)
        return [
            Finding(
                "ok",
                "security floors",
                f"{count} packages at or above the first release without a published hole",
            )
        ]
    return [
        Finding(
            "error",
            "security floors",
            f"{name} {installed[name]} has a published hole; {SECURITY_FLOORS[name]} is the first"
            " release without",
            f"python -m pip install '{name}>={SECURITY_FLOORS[name]}'",
        )
        for name in old
    ]


def release(text: str) -> tuple[int, ...]:
    """The numbers of version *text*, for comparison: `2.15.0+cu130` is (2, 15).

    Trailing zeros mean nothing.
    """
    found = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in found.group().split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def installed_versions() -> dict[str, str]:
    """Version of each installed package that a check asks about, from its metadata: nothing is
    imported.
    """
    found = {}
    for name in (CPU_WHEEL, GPU_WHEEL, *SECURITY_FLOORS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load_runtime() -> Runtime | str:
    """The ONNX Runtime of this Python, or the reason why it does not import."""
    try:
        import onnxruntime as ort

        return Runtime(
            version=ort.__version__,
            providers=tuple(ort.get_available_providers()),
            cuda_version=ort.cuda_version or "",
        )
    except (
        ImportError,
        AttributeError,
        OSError,
    ) as error:  # AttributeError: two wheels in one folder
        return f"{type(error).__name__}: {error}"
