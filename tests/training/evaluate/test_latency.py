"""Latency: what was timed, how often, and that it is labelled; figures themselves depend on the
machine.
"""

from models.machine import cpu_class, threads_per_worker
from models.package.manifest import MODEL_FILE, PreprocessSpec
from tests.training.colours import colour_package
from tests.training.photos import COLOURS, photo
from training.data.source import Example
from training.evaluate import latency as timing
from training.evaluate.latency import MOST_RUNS, latency

EXAMPLES = [Example(name=colour, label=0, encoded=photo(colour, 1)) for colour in COLOURS]
SPEC = PreprocessSpec(resize_size=8, crop=(8, 8))


def test_preprocessing_and_model_are_timed_apart_with_one_thread_and_with_all(tmp_path):
    found = latency(
        (colour_package(tmp_path / "package") / MODEL_FILE).read_bytes(), EXAMPLES, SPEC
    )
    everything = threads_per_worker(1)
    assert [(each.what, each.threads) for each in found.timings] == [
        ("preprocess", 1),
        *(("model", n) for n in sorted({1, everything})),
    ]
    assert all(0.0 < each.p50_ms <= each.p99_ms for each in found.timings)
    assert all(1 <= each.runs <= MOST_RUNS for each in found.timings)
    assert (found.cpu_class, found.threads) == (cpu_class(), everything)
    assert found.cpu


def test_a_slow_model_is_not_run_longer_than_its_share_of_time(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    found = timing._timed("model", 1, lambda: None)
    assert (found.runs, found.p50_ms) == (1, 1000.0)


def test_a_machine_that_does_not_name_its_cpu_is_called_by_its_class(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "CPU_INFO", tmp_path / "none")
    assert timing._cpu_name() == cpu_class()
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU: fast\n")
    monkeypatch.setattr(timing, "CPU_INFO", tmp_path / "cpuinfo")
    assert timing._cpu_name() == "Some CPU: fast"
