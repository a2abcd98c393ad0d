"""`loupe inspect shapes`, run as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.training.small_runs import Exported
from training.inside.commands import inspect


def shapes(*arguments: str) -> Result:
    return CliRunner().invoke(inspect, ["shapes", *arguments])


def said(*arguments: str) -> str:
    """What the error says that ends the command."""
    result = shapes(*arguments)
    assert result.exit_code
    return str(result.exception) if not isinstance(result.exception, SystemExit) else result.output


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    for network in ("lenet5", "densenet121", "mobilenet_v3_large"):
        result = CliRunner(env={"COLUMNS": "80"}).invoke(inspect, ["shapes", network])
        assert result.exit_code == 0, result.output
        table = [line for line in result.output.splitlines() if "x" in line and "image" not in line]
        assert len(table) > 5
        assert max(map(len, table)) <= 80
        assert "…" not in "".join(line[30:] for line in table)


def test_a_file_and_a_wide_terminal_get_whole_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is copied from here into `--layer`."""
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "features.denseblock1.denselayer1.conv2"
    piped = shapes("densenet121").output
    assert name in piped
    assert "…" not in piped
    wide = CliRunner(env={"COLUMNS": "140"}).invoke(inspect, ["shapes", "densenet121"])
    assert name in wide.output
    narrow = CliRunner(env={"COLUMNS": "80"}).invoke(inspect, ["shapes", "densenet121"])
    assert name not in narrow.output
    assert name[-21:] in narrow.output


def test_a_network_a_run_and_a_package_have_the_same_convolutions(exported: Exported) -> None:
    documents = [
        json.loads(shapes(subject, "--json", *options).output)
        for subject, options in (
            ("resnet18", ("--input", "32")),
            (str(exported.run.path), ()),
            (str(exported.package), ()),
        )
    ]
    found = [
        sorted(
            (layer["name"], layer["shape"], layer["formula"], layer["multiply_adds"])
            for layer in document["layers"]
            if layer["kind"] == "convolution"
        )
        for document in documents
    ]
    assert len(found[0]) == 20
    assert found[0] == found[1] == found[2]
    assert documents[0]["totals"]["measured_ms"] is None
    assert documents[2]["totals"]["measured_ms"] > 0.0


def test_the_page_holds_every_layer_and_loads_nothing(exported: Exported, tmp_path: Path) -> None:
    file = tmp_path / "shapes.html"
    assert shapes(str(exported.package), "--out", str(file)).exit_code == 0
    text = file.read_text(encoding="utf-8")
    assert "features.layer4.1.conv2" in text
    assert "measured ms" in text
    assert text.count("<polygon") > 15
    assert "http" not in text
    assert "<script" not in text


def test_a_plan_is_checked_after_the_table_is_printed() -> None:
    assert (
        "The sizes are as planned: 224, 112, 56"
        in shapes("resnet18", "--expect", "224,112,56").output
    )
    message = said("vgg11", "--expect", "224,110")
    assert "size 2 of the plan is 110. max_pool2d_" in message
    assert "(224 - 2 + 2·0) / 2 + 1 = 112" in message


def test_a_name_that_is_nothing_lists_what_there_is(tmp_path: Path) -> None:
    message = said("resnet81")
    assert "Did you mean resnet18" in message
    assert "`loupe networks` lists them all" in message
    assert "neither a package" in said(str(tmp_path))


@pytest.mark.parametrize("size", ["0", "224x", "1x2x3", "-5", "9000", "big"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    assert "is no size; expected 224 or 224x320" in said("lenet5", f"--input={size}")


def test_sizes_that_a_subject_cannot_take_are_explained(exported: Exported) -> None:
    assert "takes images of 63 pixels a side or more" in said("alexnet", "--input", "40")
    message = said(str(exported.package), "--input", "64")
    assert "takes images of 32x32 only" in message
    assert "by name to see other sizes: resnet18" in message


def test_a_plan_that_is_none_is_refused() -> None:
    assert "expected 224,112,56,28" in said("lenet5", "--expect", "28;14")


@pytest.mark.parametrize("size", ["8192", "224x300", "300x224", "8192x16"])
def test_any_size_up_to_the_largest_is_worked_out(size: str) -> None:
    result = shapes("simple_cnn", f"--input={size}")
    assert result.exit_code == 0, result.exception


def test_a_run_is_seen_at_another_size(exported: Exported) -> None:
    document = json.loads(shapes(str(exported.run.path), "--input", "64x48", "--json").output)
    assert document["image_size"] == [64, 48]
    assert document["layers"][0]["shape"] == [64, 32, 24]
