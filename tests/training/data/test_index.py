"""Images that break during a run: the run continues without them, says so, and ends when they
are too many.
"""

import dataclasses
import errno
import json
import re
import tarfile

import pytest
import torch

from models.errors import DataError, TrainingError
from models.messages import ADVICE
from models.pixels.preprocess import to_pixels
from tests.training.photos import COLOURS, in_memory, write_photos
from tests.training.small_runs import TINY
from training.data import index
from training.data.index import IMAGES_FILE, make_index, read_index
from training.data.loader import stand_ins, train_loader
from training.data.quarantine import QUARANTINE_FILE, Quarantine
from training.data.source import Example, load_dataset
from training.export.export import export
from training.fit import loop
from training.fit.checkpoint import save_checkpoint
from training.fit.loop import preprocess_spec, train
from training.runs.run import WEIGHTS_FILE, open_run

CONFIG = dataclasses.replace(TINY, network="simple_cnn", probe_epochs=2, epochs=2, batch_size=8)
FORK = "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
"""Python 3.12 and later warn about what the DataLoader of torch does."""


@pytest.fixture
def photos(tmp_path):
    """Files of each colour: 12 to train on, 6 to validate on; 54 in all, of which 2 may break."""
    for split, count, seed in (("train", 12, 0), ("val", 6, 500)):
        write_photos(tmp_path / "photos" / split, dict.fromkeys(COLOURS, count), first_seed=seed)
    return tmp_path / "photos"


def history(run):
    return [
        (line["epoch"], line["train_loss"], line["val_accuracy"], line["broken"])
        for line in run.metrics()
    ]


def listed(folder):
    return [json.loads(line) for line in (folder / QUARANTINE_FILE).read_text().splitlines()]


def after(monkeypatch, saved, act):
    """Call *act* as soon as *saved* checkpoints are written."""
    save, count = loop.save_checkpoint, iter(range(1, 100))

    def save_and_act(*arguments):
        save(*arguments)
        if next(count) == saved:
            act()

    monkeypatch.setattr(loop, "save_checkpoint", save_and_act)


def stop():
    raise KeyboardInterrupt


def break_two(photos):
    (photos / "train/red/003.png").unlink()
    (photos / "val/blue/001.png").write_bytes((photos / "val/blue/001.png").read_bytes()[:300])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.filterwarnings(FORK))])
def test_a_run_goes_on_without_files_that_break_in_it_and_lists_them(
    photos, tmp_path, monkeypatch, workers
):
    after(monkeypatch, 2, lambda: break_two(photos))
    run = train(
        dataclasses.replace(CONFIG, decode_workers=workers),
        load_dataset(str(photos)),
        tmp_path / "run",
    )

    first, second = listed(run.path)
    gone = {
        "epoch": 3,
        "split": "train",
        "name": "train/red/003.png",
        "reason": f"{photos / 'train/red/003.png'}: {ADVICE[errno.ENOENT]}",
    }
    assert first == gone
    assert (second["epoch"], second["split"], second["name"]) == (3, "val", "val/blue/001.png")
    assert [line["broken"] for line in run.metrics()] == [0, 0, 2, 2]
    # An accuracy of what can be read: 17 images.
    assert run.metrics()[-1]["val_accuracy"] * 17 == pytest.approx(
        round(run.metrics()[-1]["val_accuracy"] * 17)
    )
    assert run.record.data.splits["val"] == {"blue": 5, "green": 6, "red": 6}
    assert set(run.record.unreadable) == {"train/red/003.png", "val/blue/001.png"}
    assert open_run(run.path).record == run.record


def test_a_run_with_broken_files_is_exported(photos, tmp_path, monkeypatch):
    after(monkeypatch, 2, lambda: break_two(photos))
    run = train(CONFIG, load_dataset(str(photos)), tmp_path / "run")
    assert export(run, tmp_path / "package").evaluation.count == 17


def test_features_of_broken_images_are_not_trained_on(photos, tmp_path, monkeypatch):
    """The files vanish between the check and the first epoch."""
    fit = loop.fit

    def break_first(phase, *arguments, **options):
        if phase.name == "probe":
            break_two(photos)
        return fit(phase, *arguments, **options)

    monkeypatch.setattr(loop, "fit", break_first)
    run = train(CONFIG, load_dataset(str(photos)), tmp_path / "run")
    assert [(line["epoch"], line["split"]) for line in listed(run.path)] == [
        (0, "train"),
        (0, "val"),
    ]
    assert [line["broken"] for line in run.metrics()] == [2, 2, 2, 2]


def test_the_next_image_that_can_be_read_stands_in(photos):
    broken = Quarantine("photos", images=10, most=0.9)
    examples = load_dataset(str(photos)).splits["train"][:5]
    for name in (examples[2].path, examples[3].path, examples[4].path):
        name.unlink()
    config = dataclasses.replace(CONFIG, batch_size=5)
    ((images_N3HW, labels_N, places_N, found),) = train_loader(
        examples, config, preprocess_spec(config), quarantine=broken
    )
    assert images_N3HW.shape == (5, 3, 32, 32)
    assert sorted(places_N.tolist()) == [0, 0, 0, 0, 1]
    assert set(found) == {2, 3, 4}
    assert labels_N.tolist() == [0] * 5
    assert stand_ins(torch.tensor([False, True, False, True, False])).tolist() == [1, 1, 3, 3, 1]
    with pytest.raises(DataError, match=r"^none of the training images can be read any longer$"):
        stand_ins(torch.tensor([False, False]))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.filterwarnings(FORK))])
def test_too_many_broken_files_end_the_run_and_once_they_are_back_it_goes_on(
    photos, tmp_path, monkeypatch, workers
):
    config = dataclasses.replace(CONFIG, decode_workers=workers)
    whole = train(config, load_dataset(str(photos)), tmp_path / "whole")
    kept = {path: path.read_bytes() for path in sorted((photos / "train/red").iterdir())[:3]}
    after(monkeypatch, 3, lambda: [path.unlink() for path in kept])
    said = (
        r"photos: 3 of 54 images cannot be read, 0 before training and 3 since, such as"
        r" train/red/00\d\.png: .*: there is no such file .*\. "
        r"Up to 5\.0% would be left out \(max_unreadable_share\)\. Put them back, and continue"
        r" with `loupe train --resume`: all complete epochs are saved$"
    )
    with pytest.raises(DataError, match=said):
        train(config, load_dataset(str(photos)), tmp_path / "run")
    monkeypatch.undo()
    assert len(listed(tmp_path / "run")) == 3
    assert not (tmp_path / "run" / WEIGHTS_FILE).exists()

    for path, content in kept.items():
        path.write_bytes(content)
    run = train(config, load_dataset(str(photos)), tmp_path / "run", resume=True)
    assert history(run) == history(whole)


def test_a_run_with_broken_files_resumes_bit_for_bit(photos, tmp_path, monkeypatch):
    after(monkeypatch, 2, lambda: break_two(photos))
    kept = {path: path.read_bytes() for path in photos.rglob("*.png")}
    whole = train(CONFIG, load_dataset(str(photos)), tmp_path / "whole")
    monkeypatch.undo()
    for path, content in kept.items():
        path.write_bytes(content)

    after(monkeypatch, 2, lambda: break_two(photos))
    after(monkeypatch, 3, stop)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, load_dataset(str(photos)), tmp_path / "run")
    monkeypatch.undo()
    run = train(CONFIG, load_dataset(str(photos)), tmp_path / "run", resume=True)
    assert history(run) == history(whole)
    assert all(
        torch.equal(value, run.load_weights()[key]) for key, value in whole.load_weights().items()
    )
    assert len(listed(run.path)) == 2
    assert run.record == open_run(run.path).record
    assert run.record.data == whole.record.data


def test_a_source_that_is_cut_by_seed_is_cut_as_it_was(tmp_path, monkeypatch):
    """Without the index, a missing file would move others to another split."""
    folder = write_photos(tmp_path / "photos", dict.fromkeys(COLOURS, 18))
    after(monkeypatch, 1, stop)
    dataset = load_dataset(str(folder))
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, dataset, tmp_path / "run")
    monkeypatch.undo()
    missing = dataset.splits["train"][0]
    missing.path.unlink()
    begun, now = read_index(tmp_path / "run"), load_dataset(str(folder))
    found = make_index(now, preprocess_spec(CONFIG), most=0.05, begun=begun)
    assert {
        split: [e.name for e in examples] for split, examples in found.dataset.splits.items()
    } == {split: [e.name for e in examples] for split, examples in dataset.splits.items()}
    assert list(found.broken) == [("train", missing.name)]
    run = train(CONFIG, now, tmp_path / "run", resume=True)
    assert [line["epoch"] for line in listed(run.path)] == [0]
    # Judged on the images that were held out, and on none that it was trained on.
    manifest = export(run, tmp_path / "package")
    assert manifest.evaluation.count == len(dataset.splits[dataset.held_out])
    assert manifest.data == run.record.data


def test_an_image_that_is_other_is_broken_and_one_that_is_new_is_ignored():
    dataset, spec = in_memory(train=8, held_out=2), preprocess_spec(CONFIG)
    begun = make_index(dataset, spec, most=0.05)
    assert make_index(dataset, spec, most=0.05, begun=begun.entries) == begun
    first, *others = dataset.splits["train"]
    other = dataclasses.replace(first, encoded=others[0].encoded)
    new = dataclasses.replace(first, name="new.png")

    def now(*examples):
        return dataclasses.replace(dataset, splits={**dataset.splits, "train": examples})

    assert make_index(now(new, first, *others), spec, most=0.05, begun=begun.entries) == begun
    changed = make_index(now(other, *others), spec, most=0.05, begun=begun.entries)
    assert changed.broken == {
        ("train", first.name): "has another class or other content than it had"
    }
    assert changed.fingerprint() == begun.fingerprint()
    with pytest.raises(
        DataError,
        match=(
            rf"^memory: 2 of the 36 images of the run are gone, .*, such as {first.name}: is no"
            r" longer"
        ),
    ):
        make_index(now(*others[1:]), spec, most=0.05, begun=begun.entries)


@pytest.fixture
def decoded(monkeypatch):
    """The size of each image that an index decodes."""
    sizes = []

    def counted(encoded, spec):
        sizes.append(len(encoded))
        return to_pixels(encoded, spec)

    monkeypatch.setattr(index, "to_pixels", counted)
    return sizes


def test_images_are_decoded_once_while_their_files_stay(photos, tmp_path, monkeypatch, decoded):
    """When the run begins, and neither when it resumes nor when it is exported."""
    after(monkeypatch, 1, stop)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, load_dataset(str(photos)), tmp_path / "run")
    monkeypatch.setattr(loop, "save_checkpoint", save_checkpoint)
    assert len(decoded) == 54
    run = train(CONFIG, load_dataset(str(photos)), tmp_path / "run", resume=True)
    export(run, tmp_path / "package")
    assert len(decoded) == 54


def test_only_new_bytes_are_decoded_again(photos, decoded, monkeypatch):
    dataset, spec = load_dataset(str(photos)), preprocess_spec(CONFIG)
    begun = make_index(dataset, spec, most=0.0)
    touched, changed, *_ = dataset.splits["train"]
    touched.path.write_bytes(touched.read())
    changed.path.write_bytes(dataset.splits["val"][0].read())
    read = []
    monkeypatch.setattr(
        Example, "read", lambda self: read.append(self.name) or self.path.read_bytes()
    )
    decoded.clear()
    again = make_index(dataset, spec, most=0.1, begun=begun.entries)
    assert list(again.broken) == [("train", changed.name)]
    assert sorted(read) == sorted([touched.name, changed.name])
    assert decoded == [changed.path.stat().st_size]


def test_shards_tables_and_images_in_memory_are_decoded_once(photos, tmp_path, decoded):
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(photos, arcname=".")
    rows = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    datasets = [load_dataset(f"tar:{tmp_path}/all.tar"), load_dataset(f"csv:{tmp_path}/table.csv")]
    for dataset in (*datasets, in_memory(train=2, held_out=1)):
        decoded.clear()
        first = make_index(dataset, preprocess_spec(CONFIG), most=0.0)
        assert len(decoded) == len(first.entries)
        assert make_index(dataset, preprocess_spec(CONFIG), most=0.0, begun=first.entries) == first
        assert len(decoded) == len(first.entries)


def test_a_run_of_an_older_release_resumes(photos, tmp_path, monkeypatch, decoded):
    """Its index has no sizes and times: images are read, and not decoded where the bytes stayed."""
    whole = train(CONFIG, load_dataset(str(photos)), tmp_path / "whole")
    after(monkeypatch, 1, stop)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, load_dataset(str(photos)), tmp_path / "run")
    monkeypatch.setattr(loop, "save_checkpoint", save_checkpoint)
    file = tmp_path / "run" / IMAGES_FILE
    lines = [json.loads(line)[:4] for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    decoded.clear()
    run = train(CONFIG, load_dataset(str(photos)), tmp_path / "run", resume=True)
    assert history(run) == history(whole)
    assert decoded == []


def test_a_damaged_index_is_named(tmp_path):
    assert read_index(tmp_path) == ()
    (tmp_path / IMAGES_FILE).write_text("[1]\n")
    with pytest.raises(
        TrainingError,
        match=(
            rf"^{re.escape(str(tmp_path / IMAGES_FILE))} is damaged: .*; remove .* and train again$"
        ),
    ):
        read_index(tmp_path)
