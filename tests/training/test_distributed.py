"""Two real processes that torchrun starts train one run: as one process would, written once, and
resumed.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from models.errors import ConfigError, DataError, TrainingError
from tests.training.joint import DRAWN, EQUAL, EVEN, LOST, ODD, photos
from tests.training.photos import COLOURS, in_memory, write_photos
from tests.training.small_runs import TINY
from training.data.index import make_index, shared_index
from training.data.loader import train_loader
from training.data.quarantine import QUARANTINE_FILE
from training.distributed import ALONE, Processes, joined, share_of_batch
from training.fit.loop import preprocess_spec, train
from training.runs.run import open_run

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0
"""Two processes import torch, on a machine that others use."""


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """*arguments* run by torchrun on this machine, by gloo on loopback."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        *arguments,
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    out = tmp_path_factory.mktemp("joint")
    for split, first_seed in (("train", 0), ("val", 500)):
        write_photos(out / "photos" / split, dict.fromkeys(COLOURS, 4), first_seed=first_seed)
    done = torchrun("tests/training/joint.py", str(out))
    assert done.returncode == 0, done.stderr
    return out, done


def history(run):
    return [
        (line["epoch"], line["phase"], line["train_loss"], line["val_accuracy"])
        for line in run.metrics()
    ]


def test_two_processes_train_what_one_does(joint, tmp_path):
    """At equal global batch: the gradients of two halves average to that of the whole, and only
    additions are in another order.
    """
    together, alone = (
        open_run(joint[0] / "equal"),
        train(EQUAL, photos(train=EVEN), tmp_path / "alone"),
    )
    assert [line["val_accuracy"] for line in together.metrics()] == [
        line["val_accuracy"] for line in alone.metrics()
    ]
    losses = [line["train_loss"] for line in together.metrics()]
    assert len(losses) == 5
    assert losses == pytest.approx([line["train_loss"] for line in alone.metrics()], rel=1e-5)
    expected, found = alone.load_weights(), together.load_weights()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


def test_the_main_process_alone_writes_and_speaks(joint):
    out, done = joint
    assert len(list((out / "equal" / "tensorboard").iterdir())) == 1
    assert open_run(out / "equal").record.environment.processes == 2
    # An epoch that Ctrl-C ends is not spoken of.
    lines = [line for line in done.stderr.splitlines() if "validation loss" in line]
    assert len(lines) == 5 + 4 + (1 + 2) + 4 + 1
    assert done.stderr.count("on cpu in 2 processes") == 6
    assert not re.search("warning", done.stderr, re.IGNORECASE), done.stderr


def test_resuming_two_processes_equals_the_uninterrupted_run_bit_for_bit(joint):
    whole, resumed = (open_run(joint[0] / name) for name in ("whole", "resumed"))
    assert history(resumed) == history(whole)
    assert len(history(whole)) == 4
    expected, found = whole.load_weights(), resumed.load_weights()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_another_number_of_processes_does_not_resume(joint):
    expected = (
        r"the number of processes was 2 and is now 1\. Put that back, or choose another --out$"
    )
    with pytest.raises(TrainingError, match=expected):
        train(DRAWN, photos(train=ODD), joint[0] / "interrupted", resume=True)


def test_a_file_that_breaks_is_known_to_both_processes_and_listed_once(joint):
    """Only one of them has it in its share of a batch."""
    run = open_run(joint[0] / "broken")
    (line,) = map(json.loads, (run.path / QUARANTINE_FILE).read_text().splitlines())
    assert (line["epoch"], line["split"], line["name"]) == (
        3,
        "train",
        LOST.removeprefix("photos/"),
    )
    assert [line["broken"] for line in run.metrics()] == [0, 0, 1, 1]
    assert run.record.data.splits["train"] == {"blue": 4, "green": 4, "red": 3}


def test_processes_share_each_batch_and_no_image_is_seen_twice():
    examples = in_memory(train=7, held_out=1).splits["train"]
    config = dataclasses.replace(TINY, batch_size=8)
    spec = preprocess_spec(config)
    whole = [indices_N.tolist() for _, _, indices_N, _ in train_loader(examples, config, spec)]
    assert [len(batch) for batch in whole] == [8, 8, 5]
    shares = [
        [
            indices_N.tolist()
            for _, _, indices_N, _ in train_loader(
                examples, config, spec, processes=Processes(rank, 2)
            )
        ]
        for rank in (0, 1)
    ]
    for batch, first, second in zip(whole, *shares, strict=True):
        # Of five images one is left, so that both processes have as many.
        assert sorted(first + second) == sorted(batch[: len(batch) // 2 * 2])
        assert len(first) == len(second)


def test_no_share_has_a_single_image():
    examples = in_memory(train=6, held_out=1).splits["train"][:11]
    config = dataclasses.replace(TINY, batch_size=8)
    sizes = [
        [
            len(labels_N)
            for _, labels_N, _, _ in train_loader(
                examples, config, preprocess_spec(config), processes=Processes(r, 2)
            )
        ]
        for r in (0, 1)
    ]
    assert sizes == [[4], [4]]


@pytest.mark.parametrize(("batch_size", "valid"), [(9, 8), (2, 4), (7, 6)])
def test_a_batch_that_processes_cannot_share_is_refused(batch_size, valid):
    expected = (
        rf"^batch_size is {batch_size}, for 2 processes together; expected a multiple of 2, 4 or"
        rf" more: --set batch_size={valid}$"
    )
    with pytest.raises(ConfigError, match=expected):
        share_of_batch(batch_size, Processes(0, 2))
    assert share_of_batch(batch_size, ALONE) == batch_size


def told_by_the_main_process(dataset, spec, *, begun=()):
    """The index that process 1 has, of what process 0 has sent."""
    sent = []

    class Main(Processes):
        def shared(self, value):
            sent.append(value)
            return value

    class Other(Processes):
        def shared(self, value):
            return sent.pop(0)

    shared_index(dataset, spec, Main(count=2), most=0.2, begun=begun)
    return shared_index(dataset, spec, Other(rank=1, count=2), most=0.2, begun=begun)


def test_what_the_main_process_found_is_what_the_others_train_on():
    """Images that it could not read are left out, and those of a resumed run that are gone keep
    their places.
    """
    dataset = in_memory(train=2, held_out=1)
    broken = dataclasses.replace(dataset.splits["train"][3], encoded=b"junk")
    dataset = dataclasses.replace(
        dataset,
        splits={
            **dataset.splits,
            "train": (*dataset.splits["train"][:3], broken, *dataset.splits["train"][4:]),
        },
    )
    spec = preprocess_spec(TINY)
    begun = make_index(dataset, spec, most=0.2)
    assert told_by_the_main_process(dataset, spec) == begun
    assert [e.name for e in begun.dataset.splits["train"]] == [
        e.name for e in dataset.splits["train"] if e is not broken
    ]

    fewer = dataclasses.replace(
        dataset, splits={**dataset.splits, "train": dataset.splits["train"][1:]}
    )
    again = make_index(fewer, spec, most=0.2, begun=begun.entries)
    assert told_by_the_main_process(fewer, spec, begun=begun.entries) == again
    assert [example.name for example in again.dataset.splits["train"]] == [
        example.name for example in begun.dataset.splits["train"]
    ]
    with pytest.raises(DataError, match=r"^is no longer there$"):
        again.dataset.splits["train"][0].read()


@pytest.mark.slow
def test_an_error_is_said_once_and_ends_all(tmp_path):
    """The second process waits for the first at the moment of the error, and must neither hang nor
    show a traceback.
    """
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "in the way").touch()
    done = torchrun(
        "-m",
        "loupe",
        "train",
        "--data",
        "digits",
        "--recipe",
        "lenet5",
        "--smoke",
        "--out",
        str(tmp_path / "run"),
    )
    assert done.returncode != 0
    assert done.stdout == ""
    said = (
        f"error: run folder {tmp_path / 'run'} is not empty; choose another --out, continue it with"
        " --resume, or remove it\n"
    )
    assert done.stderr.count(said) == 1, done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    # torchrun shows a traceback of its own.
    assert str(ROOT / "loupe.py") not in done.stderr


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {
        "RANK": 1,
        "WORLD_SIZE": 2,
        "LOCAL_RANK": 1,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "localhost",
    }.items():
        monkeypatch.setenv(name, str(value))


def test_a_process_that_loses_another_says_so_and_not_what_the_network_library_says(
    second_of_two, monkeypatch
):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    expected = r"^process 1 of 2: another process of the run has ended; see what it said$"
    with pytest.raises(TrainingError, match=expected), joined():
        raise RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
            " [127.0.0.1]:1234"
        )
    with pytest.raises(RuntimeError, match=r"^shapes$"), joined():
        raise RuntimeError("shapes")


def test_more_processes_than_gpus_are_refused(second_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(
            ConfigError,
            match=(
                r"^torchrun started 2 processes on a machine with 1 GPUs; say --nproc-per-node 1$"
            ),
        ),
        joined(),
    ):
        pass


def test_a_process_that_nobody_started_with_others_is_alone():
    with joined() as processes:
        assert processes is ALONE
        assert processes.shared(b"x") == b"x"
        assert processes.collected(b"x") == [b"x"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_error_in_one_process_ends_both(tmp_path):
    """torchrun ends the other one, wherever it waits."""
    done = torchrun("tests/training/joint.py", str(tmp_path), "lose")
    assert done.returncode != 0
    assert "TrainingError: said by process 1" in done.stderr
    assert not (tmp_path / "lost" / "weights.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_reach_the_accuracy_of_one_by_the_command(tmp_path):
    """Batch normalisation, augmentation and all: the recipe as it is, at equal global batch."""
    common = [
        "-m",
        "loupe",
        "train",
        "--data",
        "digits",
        "--recipe",
        "lenet5",
        "--set",
        "epochs=15",
        "--no-tensorboard",
        "--out",
    ]
    for processes, name in ((1, "one"), (2, "two")):
        done = torchrun(*common, str(tmp_path / name), processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("next, `loupe export") == 1
    best = {
        name: max(line["val_accuracy"] for line in open_run(tmp_path / name).metrics())
        for name in ("one", "two")
    }
    # 359 images: two accuracies of 99 % differ by 0.015 in one of twenty pairs.
    assert best["two"] >= best["one"] - 0.015
    assert best["two"] >= 0.97


@pytest.mark.slow
def test_torchrun_in_a_project_with_its_own_models_folder_trains_with_ours(tmp_path):
    """The documented way. With `-m loupe`, Python would import their `models/`."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").write_text("raise RuntimeError('the wrong models')")
    write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 10))
    scripts = Path(sys.executable).parent
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--no-python", str(scripts / "loupe"), "train", "--data", "photos", "--out", "run"),
        *("--set", "network=lenet5", "--set", "weights=none", "--set", "epochs=1"),
        *("--set", "probe_epochs=0", "--set", "image_size=32", "--set", "resize_size=36"),
        *("--set", "batch_size=8", "--no-tensorboard"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert open_run(tmp_path / "run").record.environment.processes == 2
    # And the other way is the trap that the guide names.
    trap = [sys.executable, "-m", "loupe", "--version"]
    lost = subprocess.run(trap, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "the wrong models" in lost.stderr
