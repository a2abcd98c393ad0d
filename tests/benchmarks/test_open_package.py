"""The benchmark of opening a package: what it measures, on a tiny one.

Its times mean nothing here.
"""

import json

import pytest

import benchmarks.open_package
from benchmarks.open_package import main, measure
from tests.models.packages import build_package


@pytest.fixture
def package(tmp_path):
    return build_package(tmp_path / "tiny")


def test_the_steps_of_opening_are_timed(package):
    found = measure(package, threads=1, batch=2)
    assert found.keys() == {"import_s", "verify_s", "open_s", "open_again_s", "peak_memory_mib"}
    assert 0 < found["verify_s"] < found["open_s"]
    assert found["peak_memory_mib"] > 10


def test_a_run_is_a_fresh_process_that_prints_its_figures(package, capsys):
    main(["--child", "--package", str(package), "--threads", "1", "--batch", "1"])
    assert json.loads(capsys.readouterr().out)["open_s"] > 0


def test_the_report_holds_medians_and_spread(package, tmp_path, monkeypatch, capsys):
    seconds = iter(range(7))
    monkeypatch.setattr(
        benchmarks.open_package, "_fresh", lambda package, options: {"open_s": float(next(seconds))}
    )
    main(["--package", str(package), "--runs", "7", "--out", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["summary"] == {"open_s": {"median": 3.0, "least": 0.0, "greatest": 6.0}}
    assert len(report["runs"]) == 7
    assert report["machine"]["cores"] >= 1


def test_too_few_runs_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--runs", "3"])
    assert "fewer than 7" in capsys.readouterr().err
