"""`loupe data check`: every kind of dirt in real files is found and named, what is clean is left in
peace; and the dirt of real data sets.
"""

import base64
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageFilter

from models.errors import DataError
from tests.training.photos import photo, write_photos
from training.data.check.commands import data
from training.data.check.duplicates import HASH_DISTANCE_MAX, near_pairs
from training.data.check.inspection import inspect, inspect_all, perceptual_hash
from training.data.check.survey import as_json, examine, page, survey
from training.data.source import Example, list_source
from training.data.sources.rows import EXPECTED

EXIF_ORIENTATION = 274


def scene(seed, *, width=320, height=256):
    """A picture with shapes of all sizes, so that its hash means something; another seed is another
    picture.
    """
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 8, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(scale=12.0, size=(height, width, 3))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def encoded(image, image_format="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def clean(root, *, each=10):
    """Two classes of *each* scenes in train and val, with nothing wrong."""
    for at, (split, label) in enumerate(
        (split, label) for split in ("train", "val") for label in ("cat", "dog")
    ):
        folder = root / split / label
        folder.mkdir(parents=True)
        for index in range(each):
            (folder / f"{index:02d}.jpg").write_bytes(encoded(scene(100 * at + index), quality=90))
    return root


@pytest.fixture(scope="module")
def tidy(tmp_path_factory):
    return clean(tmp_path_factory.mktemp("tidy"))


@pytest.fixture
def folder(tidy, tmp_path):
    """A copy of the clean folder, to be spoilt."""
    root = tmp_path / "photos"
    for path in tidy.rglob("*.jpg"):
        (root / path.relative_to(tidy)).parent.mkdir(parents=True, exist_ok=True)
        (root / path.relative_to(tidy)).write_bytes(path.read_bytes())
    return root


def found(source):
    """(level, check) -> (message, groups of names, notes) of everything in *source*."""
    result = survey(str(source))
    return {
        (finding.level, finding.check): (
            finding.message,
            [[result.seen[place].example.name for place in group] for group in finding.groups],
            list(finding.notes),
        )
        for finding in result.findings
    }


def test_a_clean_folder_has_no_findings(folder):
    assert survey(str(folder)).findings == ()


def test_a_photo_in_both_splits_is_an_error(folder):
    (folder / "val/cat/copy.jpg").write_bytes((folder / "train/cat/03.jpg").read_bytes())
    assert found(folder) == {
        ("error", "duplicates across splits"): (
            "1 image in two splits or more",
            [["train/cat/03.jpg", "val/cat/copy.jpg"]],
            [],
        )
    }


def test_a_photo_under_two_labels_is_an_error(folder):
    (folder / "val/dog/copy.jpg").write_bytes((folder / "train/cat/03.jpg").read_bytes())
    assert found(folder) == {
        ("error", "conflicting labels"): (
            "1 image under two labels or more",
            [["train/cat/03.jpg", "val/dog/copy.jpg"]],
            [],
        )
    }


def test_copies_in_one_split_are_a_warning_and_told_as_one_group(folder):
    for name in ("a", "b"):
        (folder / f"train/cat/{name}.jpg").write_bytes((folder / "train/cat/03.jpg").read_bytes())
    _, groups, _ = found(folder)["warning", "duplicates"]
    assert groups == [["train/cat/03.jpg", "train/cat/a.jpg", "train/cat/b.jpg"]]
    assert len(found(folder)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda image: encoded(image, quality=20),
        lambda image: encoded(image.resize((160, 128))),
        lambda image: encoded(image.crop((6, 5, 314, 251)), "PNG"),
        lambda image: encoded(image.point(lambda value: min(255, int(value * 1.2)))),
        lambda image: encoded(image.convert("L")),
    ],
    ids=["compressed", "scaled", "cropped", "brighter", "grey"],
)
def test_a_changed_copy_in_the_other_split_is_found(folder, change):
    (folder / "val/cat/near.jpg").write_bytes(change(scene(3)))
    message, groups, notes = found(folder)["warning", "near-duplicates across splits"]
    assert (message, groups) == (
        "1 pair that look alike in different splits",
        [["train/cat/03.jpg", "val/cat/near.jpg"]],
    )
    assert int(re.fullmatch(r"(\d+) of 64 bits differ", notes[0]).group(1)) <= HASH_DISTANCE_MAX


def test_near_copies_within_a_split_are_a_remark_unless_their_labels_differ(folder):
    (folder / "train/cat/near.jpg").write_bytes(encoded(scene(4), quality=30))
    (folder / "train/dog/near.jpg").write_bytes(encoded(scene(5), quality=30))
    told = found(folder)
    assert told["info", "near-duplicates"][1] == [["train/cat/04.jpg", "train/cat/near.jpg"]]
    assert told["warning", "near-duplicates under two labels"][1] == [
        ["train/cat/05.jpg", "train/dog/near.jpg"]
    ]


def test_near_copies_in_data_that_is_still_to_be_split_are_a_warning(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for index in range(10):
            (tmp_path / label / f"{index}.jpg").write_bytes(
                encoded(scene(index + 10 * (label == "dog")))
            )
    (tmp_path / "cat/near.jpg").write_bytes(encoded(scene(4), quality=30))
    assert found(tmp_path)["warning", "near-duplicates"][1] == [["cat/4.jpg", "cat/near.jpg"]]


def test_files_that_cannot_be_read_are_errors_with_the_reason(folder):
    whole = (folder / "train/cat/00.jpg").read_bytes()
    (folder / "train/cat/cut.jpg").write_bytes(whole[:-1])
    (folder / "train/cat/empty.jpg").write_bytes(b"")
    (folder / "train/cat/text.jpg").write_bytes(b"<html>404 Not Found</html>")
    (folder / "train/cat/new.jpg").write_bytes(b"\xff\x0a" + bytes(100))
    (folder / "train/cat/bomb.png").write_bytes(encoded(Image.new("1", (14_142, 14_142)), "PNG"))
    told = found(folder)
    assert told["error", "undecodable"][:2] == (
        "2 images damaged or cut short",
        [["train/cat/cut.jpg"], ["train/cat/text.jpg"]],
    )
    assert "send the complete file" in told["error", "undecodable"][2][0], (
        "a JPEG that lacks its last byte"
    )
    assert told["error", "empty file"] == (
        "1 image with 0 bytes",
        [["train/cat/empty.jpg"]],
        ["received 0 bytes, expected an image file (JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC)"],
    )
    assert (
        told["error", "format"][0]
        == "1 image of a format that is not read (JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC are)"
    )
    assert (
        told["error", "huge"][0]
        == "1 image above 250 megapixels, 65535 pixels a side or 768 MiB to decode"
    )
    assert told["warning", "extension"] == (
        "1 file whose content is not what the name says",
        [["train/cat/new.jpg"]],
        ["is JPEG XL"],
    )


def test_an_extension_that_lies_is_named(folder):
    (folder / "train/dog/x.jpeg").write_bytes(encoded(scene(900), "PNG"))
    told = found(folder)
    assert told["warning", "extension"][1:] == ([["train/dog/x.jpeg"]], ["is PNG"])
    assert told["info", "mixed extensions"][:2] == (
        "names end differently: 40 .jpg, 1 .jpeg",
        [["train/dog/x.jpeg"]],
    )


def test_files_that_nobody_reads_are_named(folder):
    (folder / "val/dog/photo.bmp.bak").write_bytes(encoded(scene(1), "BMP"))
    (folder / "train/stray.jpg").write_bytes(encoded(scene(2)))
    (folder / "notes.txt").write_text("notes")
    (folder / "val/dog/.hidden.gif").write_bytes(b"GIF89a")
    told = {
        finding.message: (finding.level, finding.files) for finding in survey(str(folder)).findings
    }
    assert told == {
        "not read: 1 .bak: val/dog/photo.bmp.bak (BMP)": (
            "warning",
            ("val/dog/photo.bmp.bak (BMP)",),
        ),
        "not read: 1 outside of any class folder: train/stray.jpg (JPEG)": (
            "warning",
            ("train/stray.jpg (JPEG)",),
        ),
        "not read: 1 .txt: notes.txt": ("info", ("notes.txt",)),
        "not read: 1 hidden: val/dog/.hidden.gif": ("info", ("val/dog/.hidden.gif",)),
    }


def test_sizes_and_shapes(folder):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    (folder / "train/cat/tiny.jpg").write_bytes(encoded(scene(901, width=40, height=31)))
    (folder / "train/cat/strip.jpg").write_bytes(encoded(scene(902, width=1001, height=250)))
    (folder / "train/cat/small.jpg").write_bytes(encoded(scene(903, width=300, height=223)))
    (folder / "train/cat/large.jpg").write_bytes(
        encoded(scene(904, width=500, height=134).resize((4097, 1100), Image.Resampling.NEAREST))
    )
    (folder / "train/cat/turned.jpg").write_bytes(encoded(scene(905), exif=exif))
    assert {key: (groups, notes) for key, (_, groups, notes) in found(folder).items()} == {
        ("warning", "tiny"): ([["train/cat/tiny.jpg"]], ["40x31"]),
        ("warning", "aspect ratio"): ([["train/cat/strip.jpg"]], ["1001x250"]),
        ("info", "small"): ([["train/cat/small.jpg"]], ["300x223"]),
        ("info", "large"): ([["train/cat/large.jpg"]], ["4097x1100"]),
        ("info", "EXIF-rotated"): ([["train/cat/turned.jpg"]], ["256x320"]),
    }


def test_blank_dark_bright_and_blurred(folder):
    (folder / "val/cat/blank.jpg").write_bytes(encoded(Image.new("RGB", (300, 300), (9, 99, 200))))
    (folder / "val/cat/black.jpg").write_bytes(encoded(Image.new("RGB", (300, 300))))
    (folder / "val/cat/dark.jpg").write_bytes(encoded(scene(906).point(lambda value: value // 12)))
    (folder / "val/cat/bright.jpg").write_bytes(
        encoded(scene(907).point(lambda value: 240 + value // 17))
    )
    (folder / "val/cat/blurred.jpg").write_bytes(
        encoded(scene(908).filter(ImageFilter.GaussianBlur(4)), quality=95)
    )
    told = found(folder)
    assert told["warning", "blank"][:2] == (
        "2 images of one flat colour",
        [["val/cat/black.jpg"], ["val/cat/blank.jpg"]],
    )
    assert told["info", "dark"][1] == [["val/cat/dark.jpg"]]
    assert told["info", "bright"][1] == [["val/cat/bright.jpg"]]
    assert ["val/cat/blurred.jpg"] in told["info", "blurred"][1]
    assert not any("near" in check for _, check in told), "what is blank resembles everything"


def test_classes_that_are_empty_small_or_out_of_proportion(tmp_path):
    write_photos(tmp_path / "train", {"red": 30, "blue": 2, "green": 0})
    write_photos(tmp_path / "val", {"red": 10, "blue": 10}, first_seed=500)
    told = {(level, message) for (level, _), (message, _, _) in found(tmp_path).items()} | {
        (finding.level, finding.message) for finding in survey(str(tmp_path)).findings
    }
    assert told >= {
        ("error", "1 class without a readable image in train: green"),
        ("error", "1 class without a readable image in val: green"),
        ("warning", "1 class with fewer than 10 images in train: blue (2)"),
        ("warning", "red has 15.0 times the images of blue in train (30 and 2)"),
    }


def test_what_training_refuses_is_an_error_in_the_same_words(tmp_path):
    write_photos(tmp_path / "train", {"red": 10, "blue": 10})
    write_photos(tmp_path / "val", {"red": 10, "blue": 10, "green": 1}, first_seed=500)
    text = (
        f"{tmp_path / 'val'} has classes that the training data has not: green; known: blue, red."
        " To leave this folder out: --split train=train"
    )
    assert found(tmp_path)["error", "layout"][0] == text
    write_photos(tmp_path / "judge/test", {"red": 10, "blue": 10})
    assert found(tmp_path / "judge")["warning", "layout"][0] == "there is no train folder"


def test_a_table_is_checked_with_its_broken_rows(tmp_path):
    for index in range(10):
        (tmp_path / f"{index}.png").write_bytes(photo("red", index))
    rows = [f"{index}.png,{'ab'[index % 2]}" for index in range(10)]
    (tmp_path / "t.csv").write_text(
        "\n".join(["path,label", *rows, "gone.png,a", "3.png,a", "4.png,"])
    )
    told = found(f"csv:{tmp_path}/t.csv")
    messages = [
        finding.message
        for finding in survey(f"csv:{tmp_path}/t.csv").findings
        if finding.check == "layout"
    ]
    assert messages == [
        f"{tmp_path}/t.csv has no label in 1 row: 14",
        (
            f"{tmp_path}/t.csv names files that do not exist in 1 row: 12 (gone.png); paths are"
            f" relative to {tmp_path}"
        ),
    ]
    assert told["error", "conflicting labels"][1] == [["3.png", "3.png"]]


def test_a_file_that_goes_away_between_listing_and_reading_is_an_error(tmp_path):
    seen = inspect(Example("gone.jpg", 0, path=tmp_path / "gone.jpg"), split="train")
    assert (seen.fault, seen.reason, seen.picture) == (
        "missing",
        f"{tmp_path / 'gone.jpg'}: there is no such file or folder; check the path",
        None,
    )


def test_the_search_for_pairs_ends_somewhere():
    same = [
        Example(f"{index}.jpg", 0, encoded=encoded(scene(1), quality=50 + index))
        for index in range(30)
    ]
    seen = inspect_all([("train", example) for example in same])
    assert len(near_pairs(seen)) == 30 * 29 // 2
    assert len(near_pairs(seen, pairs_max=7)) == 7
    assert near_pairs([]) == []


def test_the_hash_is_of_the_lowest_frequencies():
    """The reference is the DCT-II by its definition."""
    pixels = np.asarray(scene(7).convert("L").resize((32, 32)))
    n = np.arange(32)
    expected = np.array(
        [
            [
                (
                    pixels
                    * np.outer(
                        np.cos(np.pi * (2 * n + 1) * row / 64),
                        np.cos(np.pi * (2 * n + 1) * column / 64),
                    )
                ).sum()
                for column in range(8)
            ]
            for row in range(8)
        ]
    ).ravel()
    bits = expected > np.median(expected)
    assert f"{perceptual_hash(pixels):064b}" == "".join("01"[int(bit)] for bit in bits)


def test_scans_of_digits_are_not_taken_for_copies():
    """They resemble each other far more than photos do."""
    told = found("digits")
    assert set(told) == {("info", "small")}


def test_the_dirt_of_hymenoptera_is_found(shared_data):
    result = survey(str(shared_data / "hymenoptera"))
    assert {(finding.level, finding.check, finding.message) for finding in result.findings} >= {
        ("info", "mixed extensions", "names end differently: 396 .jpg, 1 .jpeg, 1 .gif"),
        ("info", "small", "8 images with a side under 224 pixels"),
    }
    assert result.counts() == {"train": {"ants": 124, "bees": 121}, "val": {"ants": 70, "bees": 83}}
    assert result.listing.unused == ()


def test_five_hundred_different_photos_have_no_near_duplicates(shared_data, tmp_path):
    """124,750 pairs, no false alarm; and each of fifty, made smaller and worse, is found."""
    table = tmp_path / "t.csv"
    with (
        (shared_data / "imagenet-500/labels.csv").open(encoding="utf-8") as rows,
        table.open("w", encoding="utf-8") as out,
    ):
        paths = [shared_data / "imagenet-500" / row["file"] for row in csv.DictReader(rows)]
        out.write(
            "path,label\n" + "".join(f"{path},{index % 2}\n" for index, path in enumerate(paths))
        )
    items = [("all", example) for example in list_source(f"csv:{table}").splits["all"]]
    assert len(items) == 500
    seen = inspect_all(items)
    assert near_pairs(seen) == []
    copies = []
    for path in paths[::10]:
        with Image.open(path) as image:
            worse = encoded(
                image.convert("RGB").resize(
                    (max(80, image.width // 2), max(80, image.height // 2))
                ),
                quality=30,
            )
        copies.append(("all", Example(f"copy of {path.name}", 0, encoded=worse)))
    pairs = near_pairs([*seen, *inspect_all(copies)])
    assert [(pair.first, pair.second) for pair in sorted(pairs, key=lambda pair: pair.first)] == [
        (10 * index, 500 + index) for index in range(50)
    ]


def run(*arguments):
    return CliRunner().invoke(data, ["check", *map(str, arguments)])


def test_the_command_prints_a_table_and_exits_by_what_it_found(folder):
    done = run(folder)
    assert done.exit_code == 0
    assert done.output == f"folder:{folder}: 40 images, 2 classes\nNothing was found.\n"

    (folder / "train/cat/a.jpg").write_bytes((folder / "train/cat/03.jpg").read_bytes())
    done = run(folder)
    assert done.exit_code == 0
    assert (
        "  warning, duplicates: keep one copy; data that is still to be split puts copies on both"
        " sides\n" in done.output
    )
    assert "    train/cat/03.jpg = train/cat/a.jpg\n" in done.output
    assert run(folder, "--strict").exit_code == 1

    (folder / "val/cat/b.jpg").write_bytes((folder / "train/cat/04.jpg").read_bytes())
    assert run(folder).exit_code == 1


def test_json_names_every_image_of_every_finding(folder, tmp_path):
    (folder / "val/cat/copy.jpg").write_bytes((folder / "train/cat/03.jpg").read_bytes())
    out = tmp_path / "new/check.json"
    assert run(folder, "--json", out).exit_code == 1
    told = json.loads(out.read_text())
    assert told == as_json(survey(str(folder)), status=1)
    assert (told["status"], told["images"], told["levels"]) == (
        1,
        41,
        {"error": 1, "warning": 0, "info": 0},
    )
    (group,) = told["findings"][0]["groups"]
    assert [(image["name"], image["split"], image["label"]) for image in group["images"]] == [
        ("train/cat/03.jpg", "train", "cat"),
        ("val/cat/copy.jpg", "val", "cat"),
    ]


def test_the_page_stands_alone_and_shows_copies_side_by_side(folder, tmp_path):
    (folder / "val/cat/<b>&.jpg").write_bytes((folder / "train/cat/03.jpg").read_bytes())
    (folder / "val/cat/cut.jpg").write_bytes((folder / "train/cat/05.jpg").read_bytes()[:3000])
    out = tmp_path / "check.html"
    assert run(folder, "--html", out).exit_code == 1
    text = out.read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert "val/cat/&lt;b&gt;&amp;.jpg" in text
    assert "<b>&.jpg" not in text
    assert text.count("cannot be shown") == 1
    (pair,) = re.findall(r'<div class="group many">.*?</div></div>', text)
    images = [
        Image.open(io.BytesIO(base64.b64decode(piece)))
        for piece in re.findall(r"base64,([^\"]+)", pair)
    ]
    assert [image.size for image in images] == [(200, 160), (200, 160)]


def test_the_page_of_very_many_findings_stays_small(tmp_path):
    for index in range(40):
        for label in ("a", "b"):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / f"{index}.jpg").write_bytes(encoded(scene(1000 + index)))
    text = page(survey(str(tmp_path)))
    assert text.count("<figure>") == 24
    assert "and 28 more: they stand in the JSON" in text


def test_a_page_that_cannot_be_written_is_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("")
    done = run(folder, "--html", tmp_path / "file/check.html")
    assert isinstance(done.exception, DataError)
    assert (
        str(done.exception)
        == f"cannot write {tmp_path / 'file/check.html'}: this exists already; choose another name,"
        " or remove it"
    )


def test_a_source_that_is_not_there_is_one_line(tmp_path):
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "loupe", "data", "check", "csv:absent.csv"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    expected = f"error: absent.csv: No such file or directory; {EXPECTED}\n"
    assert done.stderr == expected


def test_findings_come_in_the_order_of_their_weight(folder):
    (folder / "notes.txt").write_text("notes")
    (folder / "train/cat/a.jpg").write_bytes((folder / "train/cat/03.jpg").read_bytes())
    (folder / "val/dog/empty.jpg").write_bytes(b"")
    listing = list_source(str(folder))
    seen = inspect_all(
        [(split, example) for split, examples in listing.splits.items() for example in examples]
    )
    assert [finding.level for finding in examine(listing, seen)] == ["error", "warning", "info"]
