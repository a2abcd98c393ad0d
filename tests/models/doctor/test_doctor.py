"""The doctor: each check from facts to findings, and the command with its exit status."""

import fcntl
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import models.doctor
from models.doctor.check_result import CheckResult
from models.doctor.commands import doctor, examine, exit_status
from models.doctor.hardware import (
    MIB,
    check_cpu_class,
    check_disk,
    check_gpu,
    check_memory,
    check_threads,
    cuda_libraries,
    free_bytes,
    list_gpus,
    memory_limit_bytes,
    missing_cuda_libraries,
)
from models.doctor.software import (
    SECURITY_FLOORS,
    Runtime,
    check_floors,
    check_import,
    check_python,
    check_wheels,
    installed_versions,
    release,
)
from models.doctor.storage import check_store
from models.errors import ConfigError
from models.machine import cpu_class
from models.package.manifest import MODEL_FILE
from models.settings import RuntimeSettings, load_settings
from models.store.store import Store
from service.settings import ServiceSettings
from tests.models.int8_packages import build_int8_package
from tests.models.packages import build_package

CHECKOUT = Path(__file__).parents[3]
CPU_BUILD = Runtime(version="1.31.1", providers=("CPUExecutionProvider",), cuda_version="")
GPU_BUILD = Runtime(
    version="1.31.1",
    providers=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    cuda_version="13.0",
)
GPU = "GPU 0: NVIDIA H200"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A working directory without loupe.toml, an environment without LOUPE_*, a store below."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LOUPE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def store(tmp_path):
    """Model `ants` with versions 1 (production) and 2 (candidate), in the default store."""
    store = Store(tmp_path / "artifacts" / "store")
    package = build_package(tmp_path / "package")
    store.publish(package, name="ants")
    store.publish(package, name="ants")
    return store


def only(findings):
    (finding,) = findings
    return finding


# ---- software ----


def test_an_old_python_is_an_error():
    assert check_python((3, 11, 7)).level == "ok"
    finding = check_python((3, 10, 1))
    assert (finding.level, finding.message) == ("error", "Python 3.10.1; Loupe needs 3.11 or newer")


def test_one_wheel_of_onnx_runtime_is_right():
    assert check_wheels({"onnxruntime": "1.31.1", "onnx": "1.23"}, gpus=[]) == CheckResult(
        "ok", "runtime wheels", "onnxruntime 1.31.1"
    )


@pytest.mark.parametrize(
    ("gpus", "kept"), [([], "onnxruntime==1.31.1"), ([GPU], "onnxruntime-gpu==1.30.0")]
)
def test_both_wheels_are_an_error_and_the_one_that_fits_is_kept(gpus, kept):
    finding = check_wheels({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"}, gpus=gpus)
    assert finding.level == "error"
    assert "both onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0 are installed" in finding.message
    assert finding.fix.startswith("python -m pip uninstall --yes onnxruntime onnxruntime-gpu && ")
    assert finding.fix.endswith(kept)


def test_no_wheel_is_an_error():
    assert check_wheels({}, gpus=[GPU]).fix == "make setup RUNTIME=gpu"


def test_a_runtime_that_does_not_import_is_an_error():
    finding = check_import(
        "ImportError: libonnxruntime.so: cannot open shared object file", wheel="onnxruntime-gpu"
    )
    assert (finding.level, finding.fix) == (
        "error",
        "python -m pip install --force-reinstall --no-deps onnxruntime-gpu",
    )
    assert "cannot open shared object file" in finding.message
    assert check_import(Runtime("1.31.1", (), "")).level == "error"
    assert check_import(GPU_BUILD).message.startswith(
        "ONNX Runtime 1.31.1, built for CUDA 13.0 offers TensorrtExecutionProvider, CUDA"
    )


def test_a_release_below_its_security_floor_is_an_error():
    old = {"bentoml": "1.4.38", "torch": "2.9.1+cpu", "pillow": "12.3.0", "starlette": "1.0.1"}
    findings = check_floors(old)
    assert [(finding.level, finding.fix) for finding in findings] == [
        ("error", "python -m pip install 'bentoml>=1.4.39'"),
        ("error", "python -m pip install 'torch>=2.10'"),
    ]
    assert (
        only(
            check_floors(
                {name: floor for name, floor in SECURITY_FLOORS.items() if name != "torch"}
            )
        ).level
        == "ok"
    )


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.9", "1.10"),
        ("2.9.1+cu130", "2.10"),
        ("6.33.4", "6.33.5"),
        ("0.0.26", "0.0.27"),
        ("12.2.9", "12.3"),
    ],
)
def test_releases_are_compared_as_numbers(older, newer):
    assert release(older) < release(newer)
    assert release("12.3.0") == release("12.3")


def test_the_floors_are_those_that_the_project_declares():
    """A floor in pyproject.toml may be higher than the security floor; what no one declares is
    pinned in the locks.
    """
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    declared = dict(
        re.match(r"([a-z-]+)>=([\d.]+)", line).groups()
        for line in (
            *project["dependencies"],
            *project["optional-dependencies"]["serve"],
            *project["optional-dependencies"]["train"],
        )
    )
    locks = [
        dict(re.findall(r"^([a-z-]+)==([\d.]+)", path.read_text(), re.MULTILINE))
        for path in (CHECKOUT / "requirements").glob("*.txt")
    ]
    assert len(locks) == 5
    assert {
        name for name, floor in SECURITY_FLOORS.items() if declared.get(name) == floor
    } == SECURITY_FLOORS.keys() - {"torch"}
    assert release(declared["torch"]) >= release(SECURITY_FLOORS["torch"])
    for name, floor in SECURITY_FLOORS.items():
        pins = [lock[name] for lock in locks if name in lock]
        assert pins, name
        assert all(release(pin) >= release(floor) for pin in pins), name


# ---- hardware ----


@pytest.mark.parametrize(
    ("gpus", "runtime", "missing", "wanted", "level", "part"),
    [
        ([], CPU_BUILD, [], "cpu", "ok", "no GPU answers"),
        ([GPU], GPU_BUILD, [], "cuda", "ok", GPU),
        ([GPU], None, [], "cpu", "ok", GPU),
        ([GPU], CPU_BUILD, [], "cpu", "warning", "idle, because this ONNX Runtime is a CPU build"),
        (
            [GPU],
            CPU_BUILD,
            [],
            "cuda",
            "error",
            "LOUPE_PROVIDER is cuda, but ONNX Runtime offers CPUExecutionProvider",
        ),
        ([], GPU_BUILD, [], "tensorrt", "error", "LOUPE_PROVIDER is tensorrt, but no GPU answers"),
        ([GPU], GPU_BUILD, ["libcudnn.so.9"], "cpu", "warning", "cannot load libcudnn.so.9"),
        ([GPU], GPU_BUILD, ["libcudnn.so.9"], "cuda", "error", "cannot load libcudnn.so.9"),
    ],
)
def test_a_gpu_is_held_against_the_runtime_and_the_settings(
    gpus, runtime, missing, wanted, level, part
):
    finding = check_gpu(gpus, runtime=runtime, missing=missing, wanted=wanted)
    assert finding.level == level
    assert part in finding.message
    assert bool(finding.fix) == (level != "ok")


def test_missing_cuda_libraries_are_named():
    def load(name):
        if "cudnn" in name or "cufft" in name:
            raise OSError(name)

    assert missing_cuda_libraries("13.0", load=load) == ["libcufft.so.12", "libcudnn.so.9"]
    assert missing_cuda_libraries("12.8", load=load) == ["libcufft.so.11", "libcudnn.so.9"]


@pytest.mark.parametrize("major", ["12", "13"])
def test_the_cuda_libraries_are_those_that_onnx_runtime_preloads(major, monkeypatch):
    import onnxruntime as ort

    monkeypatch.setattr(ort, "cuda_version", f"{major}.0")
    assert set(cuda_libraries(int(major))) == {
        path[-1] for path in ort._get_nvidia_dll_paths(is_windows=False)
    }


def test_gpus_are_listed_by_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    assert list_gpus() == [GPU]
    tool.write_text(
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the"
        " driver'\nexit 9\n"
    )
    assert list_gpus() == []


def test_the_cpu_class_says_what_int8_means():
    assert "without VNNI" in check_cpu_class("x86-64-avx2", machine="x86_64").message
    for found, machine in (
        ("x86-64-avx512-vnni", "x86_64"),
        ("x86-64-amx", "x86_64"),
        ("arm64", "aarch64"),
    ):
        assert "run as int8" in check_cpu_class(found, machine=machine).message


@pytest.mark.parametrize(
    ("workers", "threads", "budget", "level", "fix"),
    [
        (1, 0, 2.0, "ok", ""),
        (2, 1, 2.0, "ok", ""),
        (1, 0, 0.5, "ok", ""),
        (2, 4, 4.0, "warning", "LOUPE_THREADS=0"),
        (8, 0, 2.5, "warning", "LOUPE_WORKERS=2 LOUPE_THREADS=0"),
    ],
)
def test_threads_are_held_against_the_cpu_budget(workers, threads, budget, level, fix):
    finding = check_threads(workers=workers, threads=threads, budget=budget)
    assert (finding.level, finding.fix) == (level, fix)
    assert f"a budget of {budget:g} CPUs" in finding.message


def test_a_small_memory_limit_is_a_warning():
    assert check_memory(limit_bytes=None, workers=4).level == "ok"
    assert check_memory(limit_bytes=2048 * MIB, workers=4).level == "ok"
    finding = check_memory(limit_bytes=600 * MIB, workers=4)
    assert (finding.level, finding.fix) == (
        "warning",
        "raise the memory limit of the container to 1536 MiB, or LOUPE_WORKERS=1",
    )


@pytest.mark.parametrize(
    ("file", "content", "limit"),
    [
        ("memory.max", "max\n", None),
        ("memory.max", "1073741824\n", 2**30),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("memory/memory.limit_in_bytes", "1073741824\n", 2**30),
        ("other", "1\n", None),
    ],
)
def test_the_memory_limit_is_the_cgroups(tmp_path, file, content, limit):
    (tmp_path / "cgroup" / file).parent.mkdir(parents=True)
    (tmp_path / "cgroup" / file).write_text(content)
    assert memory_limit_bytes(cgroup=tmp_path / "cgroup") == limit


@pytest.mark.parametrize(("free_mib", "level"), [(4096, "ok"), (500, "warning"), (10, "error")])
def test_a_full_disk_is_found(free_mib, level):
    assert check_disk("store", Path("/somewhere"), free_mib * MIB).level == level


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path):
    assert abs(free_bytes(tmp_path / "not" / "there") - free_bytes(tmp_path)) < 100 * MIB


# ---- store ----


def test_a_sound_store(store):
    assert only(check_store(store.root, here=cpu_class())) == CheckResult(
        "ok", "store", f"{store.root}: sound are ants:1, ants:2"
    )


def test_an_empty_store_is_a_warning(tmp_path):
    assert only(check_store(tmp_path / "nowhere", here=cpu_class())).level == "warning"


def test_a_changed_package_is_an_error(store):
    with (store.root / "ants" / "2" / MODEL_FILE).open("ab") as stream:
        stream.write(b"x")
    finding = only(check_store(store.root, here=cpu_class()))
    assert finding.level == "error"
    assert finding.message.startswith("ants:2 may not be served: ")
    assert "model.onnx is changed" in finding.message


def test_an_alias_without_its_version_is_an_error(store):
    (store.root / "ants" / "aliases.json").write_text('{"production": 7, "candidate": 2}')
    finding = only(check_store(store.root, here=cpu_class()))
    assert (finding.message, finding.fix) == (
        "alias production of ants means version 7, which does not exist",
        "loupe models promote ants 2 --alias production",
    )


@pytest.mark.parametrize("file", ["aliases.json", "history.jsonl"])
def test_damaged_records_are_an_error(store, file):
    with (store.root / "ants" / file).open("a") as stream:
        stream.write("{half a li")
    finding = only(check_store(store.root, here=cpu_class()))
    assert finding.level == "error"
    assert file in finding.message
    assert "damaged" in finding.message


def test_what_a_killed_command_left_is_a_warning_and_what_a_live_one_holds_is_not(store):
    place = store.root / "ants" / ".staging-abc"
    place.mkdir()
    finding = only(check_store(store.root, here=cpu_class()))
    assert (finding.level, finding.fix) == ("warning", "loupe models gc ants --keep 1000")
    with (place / "alive").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert only(check_store(store.root, here=cpu_class())).level == "ok"
    assert only(check_store(store.root, here=cpu_class())).level == "warning"
    assert store.gc("ants", keep=1000) == []
    assert only(check_store(store.root, here=cpu_class())).level == "ok"


@pytest.mark.parametrize(
    ("sibling", "part"),
    [
        (True, "its fp32 sibling is served instead"),
        (False, "it is refused unless its golden images pass"),
    ],
)
def test_an_int8_version_of_another_cpu_class_is_a_warning(tmp_path, sibling, part):
    store = Store(tmp_path / "store")
    store.publish(
        build_int8_package(tmp_path / "int8", cpu_class="x86-64-amx", sibling=sibling), name="ants"
    )
    finding = only(check_store(store.root, here="arm64"))
    assert finding.level == "warning"
    assert (
        f"ants:1 is int8, validated on x86-64-amx, and this machine is arm64: {part}"
        in finding.message
    )
    assert only(check_store(store.root, here="x86-64-amx")).level == "ok"


# ---- settings ----


def test_the_settings_are_the_services_own(monkeypatch):
    """Same names, same defaults, same bounds; `models` may not import `service`."""
    assert len(RuntimeSettings.model_fields) == 4
    for name, field in RuntimeSettings.model_fields.items():
        theirs = ServiceSettings.model_fields[name]
        assert (field.default, field.annotation, field.metadata) == (
            theirs.default,
            theirs.annotation,
            theirs.metadata,
        ), name
    monkeypatch.setenv("LOUPE_WORKERS", "3")
    assert load_settings(RuntimeSettings).workers == 3


def test_a_setting_that_makes_no_sense_is_an_error_and_the_rest_is_still_examined(
    store, monkeypatch
):
    monkeypatch.setenv("LOUPE_WORKERS", "many")
    with pytest.raises(ConfigError, match=r"LOUPE_WORKERS: .*valid integer.*found 'many'"):
        load_settings(RuntimeSettings)
    findings = examine()
    assert findings[0].level == "error"
    assert "LOUPE_WORKERS" in findings[0].message
    assert {"runtime", "threads", "store"} <= {finding.check for finding in findings}


def test_a_damaged_settings_file_is_an_error(tmp_path):
    (tmp_path / "loupe.toml").write_text("workers = \n")
    with pytest.raises(ConfigError, match=r"loupe.toml: not TOML"):
        load_settings(RuntimeSettings)


# ---- the command ----


def test_the_exit_status_counts_errors_and_with_strict_warnings():
    ok, warning, error = (CheckResult(level, "x", "y") for level in ("ok", "warning", "error"))
    assert [exit_status(findings) for findings in ([ok], [ok, warning], [ok, error])] == [0, 0, 1]
    assert [
        exit_status(findings, strict=True) for findings in ([ok], [ok, warning], [ok, error])
    ] == [0, 1, 1]


def test_every_finding_that_is_not_ok_says_how_to_mend_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LOUPE_PROVIDER", "cuda")
    monkeypatch.setenv("LOUPE_THREADS", "256")
    bad = [finding for finding in examine(tmp_path / "nowhere") if finding.level != "ok"]
    assert len(bad) >= 3
    assert all(finding.fix for finding in bad)


def test_this_environment_has_no_error(store):
    assert [finding for finding in examine() if finding.level == "error"] == []
    assert "onnx" in installed_versions()


def test_the_report_names_what_is_wrong_and_the_lines_that_mend_it(monkeypatch):
    findings = [
        CheckResult("ok", "python", "Python 3.11"),
        CheckResult("error", "gpu", "no [bold] GPU", "make setup RUNTIME=gpu"),
    ]
    monkeypatch.setattr("models.doctor.commands.examine", lambda store: findings)
    done = CliRunner().invoke(doctor, [], catch_exceptions=False)
    assert done.exit_code == 1
    assert "no [bold] GPU" in done.stdout
    assert done.stdout.endswith("To fix:\n  error in gpu: make setup RUNTIME=gpu\n")
    monkeypatch.setattr("models.doctor.commands.examine", lambda store: findings[:1])
    done = CliRunner().invoke(doctor, [], catch_exceptions=False)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "Nothing is wrong.")


@pytest.mark.parametrize(("provider", "status"), [("cpu", 0), ("tensorrt", 1)])
def test_scripts_get_json_and_an_exit_status(store, provider, status, tmp_path):
    environment = {**os.environ, "LOUPE_PROVIDER": provider, "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, CHECKOUT / "loupe.py", "doctor", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, "")
    report = json.loads(done.stdout)
    assert report["status"] == status
    assert {"level", "check", "message", "fix"} == report["findings"][0].keys()
    assert len(report["findings"]) >= 10


def test_the_doctor_imports_neither_torch_nor_bentoml(store):
    code = "import sys; from models.doctor.commands import examine; examine(); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert not {"torch", "torchvision", "bentoml", "service"} & set(done.stdout.split())
    assert models.doctor.__name__ in done.stdout.split()
