"""Whatever stands on the command line or lies where it points: one line that says what to do, and
never a traceback.

Each command is found by asking `loupe`, so a new one is tried too. Each of its parameters takes
each bad value in turn, while the others keep a value that works; then each file of a package, a
store, a run, a bundle and a file of keys is damaged in each way.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tests.command_line.bad_values import TEXTS, bad_files, odd_files
from tests.command_line.commands import World, leaf_commands, parameters, with_value, working
from tests.command_line.runner import Case, Runner, complaint, described

COMMANDS = 42
JUDGES = {("data", "check"), ("doctor",)}
"""Their status 1 is a verdict: what they found stands in the table, and not in an error."""
SUFFIXES = (".csv", ".jsonl", ".parquet", ".tar", ".zip", ".png", ".tar.gz")
LONG = {("predict", "root")}
"""Command and value that take long and are no mistake: it answers every photo of the machine."""
WITHOUT_PARAMETERS = {("models", "schema")}
ENDS_EARLY = {
    ("export",): 1,
    ("retrain",): 1,
    ("serve",): 1,
    ("keys", "remove"): 1,
    ("bench",): 1,
    # The package has no convolution.
    ("inspect", "filters"): 1,
    ("inspect", "convolution"): 1,
    ("learn",): 1,
    ("demo",): 1,
}


@pytest.fixture(scope="module")
def values(tmp_path_factory) -> dict[str, str]:
    """Every bad value by what is wrong with it, files and folders among them."""
    place = tmp_path_factory.mktemp("bad")
    made = odd_files(place / "odd") | bad_files(place / "files", suffixes=("", *SUFFIXES))
    # Root may create every folder, so a place that is only named must lie in this one too.
    urls = {"file URL": f"file://{place}/nonexistent/x"}
    return TEXTS | urls | {what: str(path) for what, path in made.items()}


def test_every_command_is_tried(world, tmp_path):
    assert set(working(world, tmp_path / "out")) == set(leaf_commands())
    assert len(leaf_commands()) == COMMANDS


def test_a_few_bad_values_for_every_parameter(world, runner, values, tmp_path):
    """Some of all: the values change from one parameter to the next, so that each is tried
    somewhere.
    """
    cases = _cases(world, values, tmp_path, every=60)
    assert len(cases) > 200
    _judge(runner, cases)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("words", leaf_commands(), ids="-".join)
def test_every_bad_value_for_every_parameter(words, world, runner, values, tmp_path):
    cases = [case for case in _cases(world, values, tmp_path, every=1) if case[0] == words]
    assert len(cases) > 50 or words in WITHOUT_PARAMETERS
    _judge(runner, cases)


def _cases(
    world: World, values: dict[str, str], place: Path, *, every: int
) -> list[tuple[tuple[str, ...], str, Case]]:
    found = []
    turn = 0
    for words, command in leaf_commands().items():
        for parameter in parameters(command):
            names = _fitting(parameter, values)
            for name in names[turn % every :: every]:
                if (words[0], name) in LONG:
                    continue
                folder = place / str(len(found))
                arguments = with_value(
                    command, working(world, folder / "out")[words], parameter, values[name]
                )
                environment = {
                    "BENTOML_HOME": str(place / "bentoml"),
                    "LOUPE_STORE": str(world.store),
                }
                if parameter.name == "port":
                    # One that is free would be served at forever.
                    folder.mkdir()
                    (folder / "loupe.toml").write_text("store = [")
                case = Case((*words, *arguments), folder, bad=values[name], environment=environment)
                found.append((words, f"{' '.join(words)} {parameter.name}: {name}", case))
            turn += 7
    return found


def _fitting(parameter: click.Parameter, values: dict[str, str]) -> list[str]:
    """Names of the values that *parameter* could take for something: no files for numbers, and no
    endings where they mean nothing.
    """
    if not isinstance(parameter.type, click.Path | click.types.StringParamType):
        return list(TEXTS)
    return [
        name
        for name, value in values.items()
        if parameter.name == "source" or not value.endswith(SUFFIXES)
    ]


def _judge(
    runner: Runner,
    cases: list[tuple[tuple[str, ...], str, Case]],
    *,
    prepare: Callable[[Case], None] = lambda case: None,
) -> None:
    faults = []
    for words, what, case in cases:
        case.folder.mkdir(exist_ok=True)
        prepare(case)
        done = runner.run(case)
        wrong = complaint(case, done, judged=(0, 1) if words in JUDGES else (0,))
        if wrong is not None:
            faults.append(described(what, case, done, wrong))
        subprocess.run(["chmod", "-Rf", "u+rwx", str(case.folder)], check=False)
        shutil.rmtree(case.folder, ignore_errors=True)
    assert not faults, f"{len(faults)} of {len(cases)} commands end badly:\n" + "\n".join(faults)


def test_the_arguments_work_but_for_the_bad_value(world, runner, tmp_path):
    """Otherwise no bad value would be looked at."""
    for words in leaf_commands():
        folder = tmp_path / "-".join(words)
        folder.mkdir()
        case = Case(
            (*words, *map(str, working(world, folder / "out")[words])),
            folder,
            environment={"BENTOML_HOME": str(folder)},
        )
        done = runner.run(case)
        assert done.status == ENDS_EARLY.get(words, 0), (words, done.err)
