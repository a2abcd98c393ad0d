"""The store from the command line: every command, as a person types it."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from models.errors import GoldenMismatch, PackageTampered, UnknownModel, UnknownVersion
from models.package.verify import verify_package
from models.store.commands import models, publish
from models.store.store import Store
from tests.models.packages import build_package, record_again

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return build_package(tmp_path / "package")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that LOUPE_STORE names, where all commands without --store work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOUPE_STORE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


@pytest.fixture
def filled(store: Store, package: Path) -> Store:
    """Model `ants` with versions 1 (production) and 2 (candidate)."""
    store.publish(package, name="ants", why="first [bold] try", who="ann")
    store.publish(package, name="ants", who="bob")
    return store


def loupe(*arguments: object) -> str:
    """What `loupe models` prints.

    Errors of the tree come through: rendering them is the top-level command's.
    """
    done = CliRunner().invoke(
        models, [str(argument) for argument in arguments], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_line_starts_without_the_libraries_that_commands_need():
    code = "import sys, models.store.commands; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    assert not {"onnx", "onnxruntime", "numpy", "pydantic", "rich", "bentoml", "torch"} & set(
        done.stdout.split()
    )


def test_publish_says_which_version_it_made(store, package):
    first = CliRunner().invoke(
        publish, [str(package), "--name", "ants", "--why", "better"], catch_exceptions=False
    )
    second = CliRunner().invoke(publish, [str(package), "--name", "ants"], catch_exceptions=False)
    assert first.stdout == "ants:1 published (candidate, production)\n"
    assert second.stdout == "ants:2 published (candidate)\n"
    assert store.history("ants")[0].why == "better"


def test_the_store_option_wins_over_the_setting(store, package, tmp_path):
    other = tmp_path / "other"
    CliRunner().invoke(
        publish, [str(package), "--name", "ants", "--store", str(other)], catch_exceptions=False
    )
    assert Store(other).names() == ["ants"]
    assert store.names() == []
    assert "ants" in loupe("list", "--store", other)


def test_an_empty_store_says_how_to_fill_it(store):
    assert (
        loupe("list")
        == f"The store {store.root} has no model; `loupe publish PACKAGE --name NAME` puts one"
        " there\n"
    )
    assert json.loads(loupe("list", "--json")) == []


def test_list_shows_versions_and_aliases(filled):
    assert json.loads(loupe("list", "--json")) == [
        {"name": "ants", "versions": [1, 2], "aliases": {"candidate": 2, "production": 1}}
    ]
    (line,) = [line for line in loupe("list").splitlines() if "ants" in line]
    assert line.split(maxsplit=1) == ["ants", line.split(maxsplit=1)[1]]
    assert "1, 2" in line
    assert "candidate = 2, production = 1" in line


def test_show_prints_what_the_model_is(filled):
    shown = json.loads(loupe("show", "ants@candidate", "--json"))
    assert (shown["name"], shown["version"], shown["manifest"]["labels"]) == (
        "ants",
        2,
        ["ant", "bee"],
    )
    assert "files" not in shown["manifest"]
    text = loupe("show", "ants")
    for part in (
        "ants:1 (production)",
        "tiny, 8 parameters, fp32",
        "2: ant, bee",
        "0.9000 (0.8200 to 0.9500, 95%)",
    ):
        assert part in text


def test_verify_answers_the_golden_images(filled, package):
    assert (
        loupe("verify", "ants") == "ants is sound: 7 files, 3 golden images answered as recorded\n"
    )
    assert json.loads(loupe("verify", package, "--json")) == {
        "path": str(package),
        "files": 7,
        "golden_images": 3,
    }


def test_verify_refuses_a_model_that_answers_otherwise(filled, package):
    golden = package / "golden/golden.json"
    raw = json.loads(golden.read_bytes())
    raw["images"][0]["probabilities"].reverse()
    golden.write_text(json.dumps(raw))
    record_again(package)
    assert verify_package(package)
    with pytest.raises(GoldenMismatch, match=r"golden image 0\.png differs by"):
        loupe("verify", package)


def test_verify_refuses_a_changed_file(filled):
    (filled.root / "ants/1/report.html").write_text("x")
    with pytest.raises(PackageTampered, match=r"report\.html is truncated"):
        loupe("verify", "ants")


def test_promote_and_rollback_move_production(filled):
    assert (
        loupe("promote", "ants", "--why", "more accurate", "--who", "cyd")
        == "ants:2 is production\n"
    )
    assert loupe("rollback", "ants", "--why", "slower") == "ants:1 is production again\n"
    assert loupe("promote", "ants", "2", "--alias", "canary") == "ants:2 is canary\n"
    assert filled.aliases("ants") == {"canary": 2, "candidate": 2, "production": 1}
    assert [entry.why for entry in filled.history("ants")[2:]] == ["more accurate", "slower", ""]
    with pytest.raises(UnknownVersion, match="model 'ants' has no version '7'"):
        loupe("promote", "ants", "7")


def test_history_is_printed_as_it_was_written(filled):
    entries = json.loads(loupe("history", "ants", "--json"))
    assert [(entry["action"], entry["versions"], entry["who"]) for entry in entries] == [
        ("publish", [1], "ann"),
        ("publish", [2], "bob"),
    ]
    assert "first [bold] try" in loupe("history", "ants")


def test_gc_says_what_it_removed(filled, package):
    for _ in range(3):
        filled.publish(package, name="ants")
    assert loupe("gc", "ants", "--keep", "1") == "removed versions 2, 3 of ants\n"
    assert loupe("gc", "ants") == "nothing to remove of ants\n"


def test_pack_and_unpack_carry_a_model_to_another_store(filled, tmp_path):
    packed = tmp_path / "ants.zip"
    assert loupe("pack", "ants:2", "--out", packed) == f"ants:2 packed as {packed}\n"
    assert (
        loupe("unpack", packed, "--store", tmp_path / "there")
        == "ants:1 published (candidate, production)\n"
    )
    assert (
        loupe("unpack", packed, "--store", tmp_path / "there", "--name", "bees")
        == "bees:1 published (candidate, production)\n"
    )
    assert (
        loupe("unpack", packed, "--out", tmp_path / "folder")
        == f"unpacked into {tmp_path / 'folder'}\n"
    )

    there = Store(tmp_path / "there")
    assert there.names() == ["ants", "bees"]
    assert there.history("ants")[0].why == "unpacked from ants.zip"
    assert (
        verify_package(tmp_path / "folder").model
        == verify_package(filled.resolve("ants:2").path).model
    )


def test_to_triton_names_the_file_it_wrote(filled):
    path = filled.root / "ants/config.pbtxt"
    assert (
        loupe("to-triton", "ants", "--max-batch-size", "4")
        == f"{path} lets Triton serve ants:1; write it again after a promotion\n"
    )
    assert "max_batch_size: 4" in path.read_text()


def test_to_bento_names_the_tag(filled, tmp_path, monkeypatch):
    """In a process of its own: BentoML reads the place of its store once, when it is imported."""
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bento"))
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "True")
    command = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from models.store.commands import models;"
        " models()"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, CHECKOUT, "to-bento", "ants:2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == "ants:2 is in BentoML's model store. To ship it in a bento, add it to"
        " `models` under [tool.bentoml.build] in pyproject.toml\n"
    )


@pytest.mark.parametrize(
    "command", ["show", "verify", "promote", "rollback", "history", "gc", "to-triton", "to-bento"]
)
def test_an_unknown_model_is_answered_with_the_known_ones(filled, command):
    with pytest.raises(UnknownModel, match=r"no model 'wasps' in the store .*; it has ants"):
        loupe(command, "wasps")


def test_every_command_has_a_help_text():
    assert sorted(models.commands) == [
        *("gc", "history", "list", "pack", "promote", "rollback", "schema", "show"),
        *("to-bento", "to-triton", "unpack", "verify"),
    ]
    for name, command in {**models.commands, "publish": publish}.items():
        assert command.help, name
        assert all(option.help for option in command.params if isinstance(option, click.Option)), (
            name
        )
