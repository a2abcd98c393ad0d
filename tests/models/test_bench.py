"""`loupe bench`: finds the scripts of the checkout and hands its arguments on."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

import models.bench
from models.bench import ROOT, bench, find_scripts
from models.errors import ConfigError


def test_every_script_is_listed_with_its_first_line():
    done = CliRunner().invoke(bench, [])
    assert done.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in done.output.splitlines())
    assert {"serve", "decode", "first_light", "open_package"} <= lines.keys()
    assert lines["serve"].startswith("Serving: Loupe against FastAPI")
    assert "record" not in lines  # shared code, not a benchmark


def test_arguments_go_to_the_script_as_they_are(tmp_path):
    asked = [sys.executable, "-m", "loupe", "bench", "serve", "overload", "--rounds", "0"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "argument --rounds: 0 is not above 0" in done.stderr


def test_help_of_a_benchmark_is_the_benchmarks_own():
    asked = [sys.executable, "-m", "loupe", "bench", "decode", "--help"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "Preprocessing against the plain way" in done.stdout


def test_an_unknown_benchmark_is_refused_with_those_that_there_are():
    with pytest.raises(
        ConfigError, match=r"this checkout has no benchmark 'sevre'; it has .*decode.*serve"
    ):
        bench.main(["sevre"], standalone_mode=False)


def test_outside_a_checkout_the_reason_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(models.bench, "ROOT", tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"there is no folder .*benchmarks: `loupe bench` runs the benchmarks of a checkout",
    ):
        bench.main([], standalone_mode=False)


def test_what_cannot_be_run_is_no_benchmark(tmp_path):
    (tmp_path / "benchmarks" / "many").mkdir(parents=True)
    (tmp_path / "benchmarks" / "shared.py").write_text('"""Shared."""\n')
    (tmp_path / "benchmarks" / "one.py").write_text(
        '"""One."""\nif __name__ == "__main__":\n    print(1)\n'
    )
    (tmp_path / "benchmarks" / "many" / "__main__.py").write_text('"""Many."""\n')
    assert list(find_scripts(tmp_path)) == ["many", "one"]
