"""The invariants: who imports whom, who reads the environment, and that nothing unpickles."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import loupe

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "service", "training")
TORCH_ALLOWED = "models.networks"
SETTINGS_MODULES = {"models.settings", "service.settings", "training.settings"}
WRITES_ONLY = {
    "models": "os.environ.setdefault",
    "service.scoring.compute.cluster": "os.environ.setdefault",
}
"""Module -> how it may change the environment without reading it.

It switches off the usage reports of ONNX Runtime and Ray.
"""
HARMLESS = {"pickle.UnpicklingError"}
"""An exception that callers of `torch.load` catch."""
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FILES_AT_LEAST = {"models": 27, "service": 13, "training": 16}
"""Fewer files mean that a scan looks in the wrong place."""


def modules(package: str) -> dict[str, Path]:
    """Module name -> file, of all modules in *package* and below it."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / package).rglob("*.py")
    }
    assert len(files) >= FILES_AT_LEAST[package], f"only {len(files)} files in {package}"
    return files


ALL = {name: path for package in PACKAGES for name, path in modules(package).items()} | {
    "loupe": ROOT / "loupe.py"
}


def tree(name: str) -> ast.Module:
    return ast.parse(ALL[name].read_text(encoding="utf-8"), filename=name)


def imports(name: str) -> set[str]:
    """Full names of everything that module *name* imports, anywhere in it.

    That includes imports in functions, for type checking, and by `import_module`.
    """
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                assert node.level == 1, f"{name}: relative import over {node.level} levels"
                parent = name if ALL[name].name == "__init__.py" else name.rpartition(".")[0]
                base = f"{parent}.{base}".rstrip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and called(node) in {
            "importlib.import_module",
            "import_module",
            "__import__",
        }:
            found |= {
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            }
    return found


def called(call: ast.Call) -> str:
    """The name of what *call* calls, as it is written: `torch.load`."""
    return ast.unparse(call.func)


def top(names: set[str]) -> set[str]:
    """The packages of *names*."""
    return {name.partition(".")[0] for name in names}


def loaded_after(code: str) -> set[str]:
    """Names of all modules in a fresh interpreter after *code* has run."""
    probe = f"import sys\n{code}\nsys.stdout.write('\\n' + ' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.rpartition("\n")[2].split())


def heavy(loaded: set[str]) -> set[str]:
    return {"torch", "torchvision"} & loaded


def test_importing_service_imports_no_torch():
    loaded = loaded_after("import service")
    assert "service" in loaded
    assert heavy(loaded) == set()


def test_no_module_of_service_and_models_imports_torch_but_the_architectures():
    light = [
        name
        for name in [*modules("models"), *modules("service")]
        if name != TORCH_ALLOWED and not name.startswith(f"{TORCH_ALLOWED}.")
    ]
    assert len(light) >= 35
    loaded = loaded_after("\n".join(f"import {name}" for name in sorted(light)))
    assert set(light) <= loaded
    assert heavy(loaded) == set()


def test_the_architectures_are_where_torch_is():
    """The exception is needed; otherwise the rule above would test nothing."""
    assert any(
        "torch" in top(imports(name))
        for name in modules("models")
        if name.startswith(TORCH_ALLOWED)
    )
    assert heavy(loaded_after("import models.networks.network")) >= {"torch"}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("service", {"training", "tests", "benchmarks", "torch", "torchvision"}),
        ("training", {"service", "tests", "benchmarks"}),
        ("models", {"service", "training", "tests", "benchmarks"}),
    ],
)
def test_dependencies_point_one_way(package, forbidden):
    wrong = {
        name: sorted(found)
        for name in modules(package)
        if (found := top(imports(name)) & forbidden)
    }
    assert wrong == {}


def environment_users() -> Iterator[tuple[str, int]]:
    """(module, line) of all access to the environment, except the allowed writes."""
    words = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for name in ALL:
        nodes = list(ast.walk(tree(name)))
        calls = [
            node
            for node in nodes
            if isinstance(node, ast.Call) and called(node) == WRITES_ONLY.get(name)
        ]
        written = [node for call in calls for node in ast.walk(call.func)]
        for node in nodes:
            attribute = (
                isinstance(node, ast.Attribute) and node.attr in words and node not in written
            )
            imported = (
                isinstance(node, ast.ImportFrom)
                and node.module == "os"
                and any(alias.name in words for alias in node.names)
            )
            if attribute or imported:
                yield name, node.lineno


def test_only_the_settings_modules_touch_the_environment():
    found = list(environment_users())
    assert {name for name, _ in found} >= {"service.settings"}, "the scan sees what is there"
    assert [f"{name}:{line}" for name, line in found if name not in SETTINGS_MODULES] == []


def test_settings_classes_stand_in_the_settings_modules():
    """pydantic-settings reads the environment too."""
    assert {name for name in ALL if "pydantic_settings" in top(imports(name))} <= SETTINGS_MODULES


def test_nothing_unpickles():
    assert {
        name: sorted(found) for name in ALL if (found := top(imports(name) - HARMLESS) & UNPICKLERS)
    } == {}
    unsafe = {}
    for name in ALL:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Call) and called(node).endswith(("np.load", "numpy.load")):
                unsafe |= {
                    f"{name}:{node.lineno}": word.arg
                    for word in node.keywords
                    if word.arg == "allow_pickle"
                }
    assert unsafe == {}


def test_torch_loads_weights_only():
    calls = [
        (name, node)
        for name in ALL
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call) and called(node) == "torch.load"
    ]
    assert len(calls) >= 1, "a .pth that the user gives is read somewhere"
    for name, call in calls:
        (value,) = [word.value for word in call.keywords if word.arg == "weights_only"] or [None]
        assert isinstance(value, ast.Constant), f"{name}:{call.lineno}"
        assert value.value is True, f"{name}:{call.lineno}"
    assert {name for name in ALL if "torch.load" in imports(name)} == set(), (
        "`from torch import load` would hide from this test"
    )


def test_only_preprocess_turns_encoded_images_into_pixels():
    """Only one preprocessing: no other module of `models` and `service` opens or resizes images."""
    openers = {"Image.open", "PIL.Image.open", "Image.frombytes", "Image.frombuffer"}
    found = {
        name
        for name in [*modules("models"), *modules("service")]
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call)
        and (called(node) in openers or called(node).endswith(".resize"))
    }
    # A heat map is enlarged too, and it is no photo.
    assert found <= {
        "models.pixels.geometry",
        "models.inspection.saliency",
    }


@pytest.mark.parametrize("name", loupe.COMMANDS)
def test_the_list_of_commands_repeats_the_help_of_each_command(name):
    module, attribute, line = loupe.COMMANDS[name]
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert (command.help or "").strip().splitlines()[0] == line


def test_help_lists_every_command_and_imports_nothing_heavy():
    loaded = loaded_after("import loupe\nloupe.cli.main(['--help'], standalone_mode=False)")
    assert "loupe" in loaded
    assert {
        "torch",
        "torchvision",
        "onnxruntime",
        "onnx",
        "numpy",
        "bentoml",
        "PIL",
        "pydantic",
    } & loaded == set()
    done = subprocess.run(
        [sys.executable, "-m", "loupe", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stderr == ""
    for name, (_, _, line) in loupe.COMMANDS.items():
        # Wide enough for the longest line would be wider than a terminal: the list may be wrapped.
        assert f"  {name} " in done.stdout
        assert line.split(maxsplit=1)[0] in done.stdout


@pytest.mark.parametrize(
    "name",
    [name for name, (module, _, _) in loupe.COMMANDS.items() if not module.startswith("training.")],
)
def test_the_help_of_a_command_that_serves_needs_no_torch(name):
    loaded = loaded_after(
        f"import loupe\nloupe.cli.main([{name!r}, '--help'], standalone_mode=False)"
    )
    assert heavy(loaded) == set()


MODULES_IN_A_ROOM = 15


def room(name: str) -> str:
    """`service/http` for `service.http.body.images`; `service` for a module at its top."""
    parts = name.split(".")
    inside = len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir()
    return "/".join(parts[:2]) if inside else parts[0]


def module_of(imported: str) -> str:
    """The module that contains the full name *imported*."""
    while imported and imported not in ALL:
        imported = imported.rpartition(".")[0]
    return imported


def test_rooms_import_what_the_table_of_the_architecture_says_and_nothing_else():
    """Within their own package; every room may import the top of its package."""
    found: dict[str, set[str]] = {room(name): set() for name in ALL if "/" in room(name)}
    for name in ALL:
        for other in {room(module_of(one)) for one in imports(name)} - {room(name)}:
            if "/" in other and "/" in room(name) and top({other.replace("/", ".")}) == top({name}):
                found[room(name)].add(other.partition("/")[2])
    table = (
        (ROOT / "ARCHITECTURE.md")
        .read_text(encoding="utf-8")
        .partition("## Rooms")[2]
        .partition("\n## ")[0]
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    said = {
        name.strip("`"): {one.strip(" `") for one in others.split(",")} - {"-"}
        for name, others in rows
    }
    assert len(said) >= 20
    assert said == found


def test_no_room_has_too_many_modules_and_each_says_what_it_is_for():
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    modules_in = {
        folder: [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        for folder in folders
    }
    assert {
        str(folder): len(found)
        for folder, found in modules_in.items()
        if len(found) > MODULES_IN_A_ROOM
    } == {}
    rooms = [folder / "__init__.py" for folder in folders if "bundle" not in folder.parts]
    assert [
        str(path)
        for path in rooms
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ] == []
