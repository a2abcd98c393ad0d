"""Checks of what is installed: Python, ONNX Runtime's wheels, and releases with published holes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from models.doctor.check_result import CheckResult

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
"""First release without a published security hole that Loupe's use of the package reaches."""


@dataclass(frozen=True)
class Runtime:
    """The ONNX Runtime that imports here, whichever wheel it came from."""

    version: str
    providers: tuple[str, ...]
    cuda_version: str
    """CUDA that it was built for; empty for a CPU build."""


def check_python(found: Sequence[int]) -> CheckResult:
    """Python *found* against the oldest that Loupe supports."""
    text = ".".join(map(str, found))
    if tuple(found[:2]) < PYTHON_FLOOR:
        floor = ".".join(map(str, PYTHON_FLOOR))
        return CheckResult(
            "error",
            "python",
            f"Python {text}; Loupe needs {floor} or newer",
            f"make clean setup PYTHON=python{floor}",
        )
    return CheckResult("ok", "python", f"Python {text}")


def check_wheels(installed: Mapping[str, str], *, gpus: Sequence[str]) -> CheckResult:
    """Exactly one wheel of ONNX Runtime, as both have the folder `onnxruntime/`."""
    found = {name: installed[name] for name in (CPU_WHEEL, GPU_WHEEL) if name in installed}
    wheels = " and ".join(f"{name} {release}" for name, release in found.items())
    if len(found) == 1:
        return CheckResult("ok", "runtime wheels", wheels)
    if not found:
        return CheckResult(
            "error",
            "runtime wheels",
            "ONNX Runtime is not installed",
            f"make setup RUNTIME={'gpu' if gpus else 'cpu'}",
        )
    wanted = GPU_WHEEL if gpus else CPU_WHEEL
    return CheckResult(
        "error",
        "runtime wheels",
        f"both {wheels} are installed, into the same folder: which of them runs, and whether at"
        " all, is chance",
        f"python -m pip uninstall --yes {CPU_WHEEL} {GPU_WHEEL} && python -m pip install"
        f" --no-deps {wanted}=={found[wanted]}",
    )


def check_import(runtime: Runtime | str, *, wheel: str = CPU_WHEEL) -> CheckResult:
    """ONNX Runtime, installed from *wheel*, imports and has at least the CPU provider.

    A string is the reason why it does not import.
    """
    again = f"python -m pip install --force-reinstall --no-deps {wheel}"
    if isinstance(runtime, str):
        return CheckResult("error", "runtime", f"ONNX Runtime does not import: {runtime}", again)
    offered = ", ".join(runtime.providers)
    if "CPUExecutionProvider" not in runtime.providers:
        return CheckResult(
            "error",
            "runtime",
            f"ONNX Runtime {runtime.version} offers {offered or 'no provider'}",
            again,
        )
    built = f", built for CUDA {runtime.cuda_version}" if runtime.cuda_version else ""
    return CheckResult("ok", "runtime", f"ONNX Runtime {runtime.version}{built} offers {offered}")


def check_floors(installed: Mapping[str, str]) -> list[CheckResult]:
    """A finding for each installed release below its security floor, or one that all is well."""
    watched = [name for name in SECURITY_FLOORS if name in installed]
    findings = [
        CheckResult(
            "error",
            "security floors",
            f"{name} {installed[name]} has a published hole; {SECURITY_FLOORS[name]} is the first"
            " release without",
            f"python -m pip install '{name}>={SECURITY_FLOORS[name]}'",
        )
        for name in watched
        if release(installed[name]) < release(SECURITY_FLOORS[name])
    ]
    ok = f"{len(watched)} packages at or above the first release without a published hole"
    return findings or [CheckResult("ok", "security floors", ok)]


def release(text: str) -> tuple[int, ...]:
    """The numbers of version *text* without trailing zeros: `2.15.0+cu130` is (2, 15)."""
    numbers = re.match(r"[\d.]*", text).group()  # type: ignore[union-attr]  # matches anything
    return tuple(int(part) for part in re.sub(r"(\.0+)*\.?$", "", numbers).split(".") if part)


def installed_versions() -> dict[str, str]:
    """Version of each installed package that a check needs, from its metadata and no import."""
    found = {}
    for name in (CPU_WHEEL, GPU_WHEEL, *SECURITY_FLOORS):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
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
    except (ImportError, AttributeError, OSError) as error:
        # AttributeError: two wheels in one folder.
        return f"{type(error).__name__}: {error}"
