"""The parts of the serving benchmark, and all of it in a slow test.

Its speeds mean nothing here.
"""

import base64
import json
import mmap
import os
import subprocess
import sys
import time
from email import message_from_bytes
from email.policy import HTTP
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.record import ROOT
from benchmarks.serving import comparison
from benchmarks.serving.__main__ import main
from benchmarks.serving.comparison import OURS, WANTED, check_agreement, summarise
from benchmarks.serving.contenders import LOOP, PEERS, Measured
from benchmarks.serving.load import ask
from benchmarks.serving.pauses import pauses
from benchmarks.serving.peers import pipeline
from benchmarks.serving.photos import numbered, post, post_form, post_json, read_photos
from benchmarks.serving.processes import awake, cpu_s, end, family, held, pause
from benchmarks.serving.soak import judge, mixture
from models.package.manifest import MODEL_FILE, PreprocessSpec
from models.pixels.geometry import fit
from models.store.store import Store
from tests.http.conftest import make_photo
from tests.http.server import serving
from tests.models.packages import build_package


def measured(per_second, cpu_ms=5.0, counts=None):
    return Measured(per_second, cpu_ms, counts or {}, 100.0)


def test_ratios_are_taken_within_a_round():
    """A machine that is half as fast in the second round changes the speeds and not the ratio."""
    rounds = [
        {
            LOOP: measured(200.0 * speed),
            OURS: measured(180.0 * speed, cpu_ms=6.0, counts={"200": 9, "503": 2}),
        }
        for speed in (1.0, 0.5)
    ]
    summary = summarise(rounds)
    assert summary[LOOP]["ours"] == {"median": 0.9, "least": 0.9, "greatest": 0.9}
    assert summary[LOOP]["ours_cpu"]["median"] == pytest.approx(5.0 / 6.0)
    assert summary[LOOP]["per_second"] == {"median": 150.0, "least": 100.0, "greatest": 200.0}
    assert summary[OURS]["not_answered"] == 4
    assert summary[LOOP]["not_answered"] == 0


def test_each_demand_names_a_contender():
    assert WANTED.keys() == {LOOP, *PEERS}


class Answering:
    def __init__(self, name, classes):
        self.name, self.classes = name, classes

    def top1(self, count):
        return self.classes[:count]


def test_servers_that_disagree_are_not_compared():
    first, same, other = (
        Answering("first", [1, 2, 3]),
        Answering("same", [1, 2, 3]),
        Answering("other", [1, 5, 3]),
    )
    assert check_agreement([first, same], 3) == 3
    with pytest.raises(
        SystemExit, match="other and first give other classes to 1 photos, such as number 1"
    ):
        check_agreement([first, same, other], 3)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (301, 227), (227, 900)])
def test_the_peers_see_the_pixels_that_ours_sees(size):
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    )
    assert np.array_equal(pipeline.fit(image.copy()), fit(image, PreprocessSpec(crop=(224, 224))))


def test_a_form_and_a_json_object_carry_the_photo_unchanged():
    photo = bytes(range(256)) * 3
    head, _, body = post_form("/classify", photo, port=1).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    form = message_from_bytes(head.split(b"\r\n", 1)[1] + b"\r\n\r\n" + body, policy=HTTP)
    [part] = form.iter_parts()
    assert part.get_param("name", header="content-disposition") == "image"
    assert part.get_payload(decode=True) == photo
    _, _, body = post_json("/predict", photo, port=1).partition(b"\r\n\r\n")
    assert base64.b64decode(json.loads(body)["image"]) == photo


def test_a_folder_without_photos_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"no photos in .*imagenet-500; say with --data"):
        read_photos(tmp_path)


def test_the_memory_of_a_process_comes_from_the_kernel():
    process = psutil.Process()
    before = held(process)
    # Not from the allocator, which may have it already.
    with mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as keep:
        for _ in range(64):
            keep.write(bytes(2**20))
        after = held(process)
    for name in ("rss_mib", "pss_mib", "private_mib"):
        assert getattr(after, name) - getattr(before, name) == pytest.approx(64, abs=2), name
    with Path(os.devnull).open():
        assert held(process).files == before.files + 1
    assert before.threads == process.num_threads()


@pytest.mark.slow
def test_paused_processes_use_no_cpu_and_continue_later():
    child = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'while True:"
        " print(1, flush=True)']).wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", child], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout.read(4) == b"1\n1\n"
        pause(process.pid)
        both = family(process.pid)
        assert len(both) == 2
        stopped = cpu_s(both)
        assert [one.status() for one in both] == [psutil.STATUS_STOPPED] * 2
        assert cpu_s(both) == stopped
        with awake(process.pid):
            process.stdout.read(1 << 20)  # more than a pipe holds: the grandchild must have run
    finally:
        process.stdout.close()
        end(process.pid)
        process.wait()
    assert not any(one.is_running() for one in both)


def test_growth_is_judged_for_each_worker_after_the_warm_up():
    def one(rss_mib, wrong=0):
        workers = [
            {"rss_mib": rss, "pss_mib": 1.0, "private_mib": 1.0, "files": 20, "threads": 8}
            for rss in (100.0, rss_mib)
        ]
        return {"workers": workers, "wrong": {"500": wrong} if wrong else {}}

    warming = [one(rss) for rss in (10.0, 50.0, 90.0, 99.0)]
    steady = judge([*warming, *[one(100.0)] * 12], same_workers=True, tracebacks=0)
    assert all(demand["holds"] for demand in steady["verdict"])
    growing = judge(
        [*warming, *[one(100.0 + number) for number in range(12)]], same_workers=False, tracebacks=1
    )
    assert growing["growth"][0]["rss_mib"] == 0.0
    # Thirds of the twelve: 101 in the middle of the first, 110 of the last.
    assert growing["growth"][1]["rss_mib"] == pytest.approx(110 / 101 - 1)
    assert [demand["holds"] for demand in growing["verdict"]] == [False, True, True, False, False]


@pytest.mark.slow
def test_each_request_of_the_mixture_gets_its_status(tmp_path):
    store = tmp_path / "store"
    Store(store).publish(build_package(tmp_path / "package"), name="tiny")
    with serving(tmp_path, store=store) as server:
        photos = numbered([photo_request(server.port, seed) for seed in range(3)])
        mixed, expected = mixture(photos, port=server.port)
        answers = ask(server.port, mixed)
    assert [status for status, _ in answers] == [expected[request.index] for request in mixed]
    assert len(mixed) == 3 + 3 * 3 + 15


def photo_request(port, seed):
    return post("/v1/classify", make_photo(seed), port=port, content_type="image/png")


def test_the_loop_without_a_server_measures_on_demand(tmp_path):
    package = build_package(tmp_path / "package")
    (tmp_path / "imagenet-500").mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, size=(20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "imagenet-500" / f"{number}.jpg")
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving.loop",
        str(package / MODEL_FILE),
        str(package),
        str(tmp_path),
        "--processes",
        "1",
    ]
    done = subprocess.run(
        command,
        input="0.1\n0.2\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    ready, *rates = done.stdout.splitlines()
    assert ready == "ready"
    assert len(rates) == 2
    assert all(json.loads(rate)["per_second"] > 0 for rate in rates)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--rounds", "0"], "0 is not above 0"), (["train"], "invalid choice: 'train'")],
)
def test_invalid_arguments_are_refused(arguments, complaint, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert complaint in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_comparison_runs_with_every_contender(shared_data, tmp_path, capsys):
    out = tmp_path / "report.json"
    main(
        [
            "--data",
            str(shared_data),
            "--photos",
            "30",
            "--checked",
            "30",
            "--rounds",
            "2",
            "--seconds",
            "1",
            "--out",
            str(out),
        ]
    )
    report = json.loads(out.read_text())
    assert report["summary"].keys() == {LOOP, "Loupe, 1 worker", OURS, *PEERS}
    assert report["same_top1"]["photos"] == 30
    assert all(figures["per_second"]["least"] > 0 for figures in report["summary"].values())
    assert comparison.OURS in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", ["latency", "overload", "reload", "memory", "soak"])
def test_every_scenario_gives_its_verdict(scenario, shared_data, tmp_path, capsys):
    out = tmp_path / "report.json"
    main(
        [
            scenario,
            "--data",
            str(shared_data),
            "--photos",
            "30",
            "--rounds",
            "1",
            "--seconds",
            "2",
            "--slice",
            "1",
            "--out",
            str(out),
        ]
    )
    report = json.loads(out.read_text())
    assert report["verdict"]
    assert all(demand["what"] in capsys.readouterr().out for demand in report["verdict"][:1])


def test_a_pause_of_the_machine_is_detected():
    with pauses() as since_last:
        observer = next(
            child
            for child in psutil.Process().children()
            if "benchmarks.serving.pauses" in child.cmdline()
        )
        observer.suspend()
        time.sleep(0.3)
        observer.resume()
        paused = since_last()
        quiet = since_last()
    assert 280.0 <= paused["longest_pause_ms"] < 10_000.0
    assert quiet["longest_pause_ms"] < paused["longest_pause_ms"]
    assert paused["stolen_s"] >= 0.0
    assert not observer.is_running()
