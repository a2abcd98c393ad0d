"""Archives as people and attackers make them: every image in them has an answer or a reason, and
nothing is written anywhere.
"""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from models.errors import DataError
from service.scoring.input.inputs import open_input
from service.scoring.input.items import Fault
from service.scoring.input.reader import Reader
from tests.service.scoring.jobs import failures, lines, photo, score

MEBIBYTE = 2**20


def found(place: Path, *, max_bytes: int = MEBIBYTE) -> list[tuple[str, bytes | Fault]]:
    """(name in the archive, content or fault) of each row."""
    source = open_input(str(place))
    reader = Reader(source.base, max_bytes=max_bytes)
    return [(item.path.removeprefix(f"{place}/"), reader.read(item)) for item in source.items()]


def codes(place: Path, **options: int) -> dict[str, str | None]:
    return {
        name: content.code if isinstance(content, Fault) else None
        for name, content in found(place, **options)
    }


def test_a_member_twice_in_a_zip_is_two_images(tmp_path, store):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a.png", photo(1))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", photo(2))
    assert found(tmp_path / "in.zip") == [("a.png", photo(1)), ("a.png", photo(2))]
    assert (
        score(
            tmp_path / "in.zip", tmp_path / "out.jsonl", "--columns", "sha256", store=store
        ).exit_code
        == 0
    )
    rows = lines(tmp_path / "out.jsonl")
    assert [row["row"] for row in rows] == [0, 1]
    assert len({row["sha256"] for row in rows}) == 2


def test_an_encrypted_member_and_an_unknown_compression_are_dead_letters(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name in ("locked.png", "odd.png", "ok.png"):
            archive.writestr(name, photo(1))
    content = bytearray((tmp_path / "in.zip").read_bytes())
    for signature, flags, method in ((b"PK\1\2", 8, 10), (b"PK\3\4", 6, 8)):
        first = content.index(signature)
        second = content.index(signature, first + 4)
        content[first + flags] |= 1
        struct.pack_into("<H", content, second + method, 97)
    (tmp_path / "in.zip").write_bytes(bytes(content))
    assert codes(tmp_path / "in.zip") == {
        "locked.png": "damaged_archive",
        "odd.png": "damaged_archive",
        "ok.png": None,
    }
    reasons = [
        content.reason for _, content in found(tmp_path / "in.zip") if isinstance(content, Fault)
    ]
    assert "password required" in reasons[0]


def test_a_zip_bomb_costs_no_more_than_the_limit(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(300 * MEBIBYTE))
        archive.writestr("ok.png", photo(1))
    assert (tmp_path / "in.zip").stat().st_size < MEBIBYTE
    assert codes(tmp_path / "in.zip") == {"bomb.png": "file_too_large", "ok.png": None}


NAMES = (
    "../up.png",
    "/absolute.png",
    "a/../../b.png",
    "ä/ü.png",
    "x" * 300 + ".png",
    "new\nline.png",
)


def test_names_that_lead_elsewhere_are_names_and_nothing_more(tmp_path, store):
    with (
        zipfile.ZipFile(tmp_path / "in.zip", "w") as archive,
        tarfile.open(tmp_path / "in.tar", "w") as shard,
    ):
        for name in NAMES:
            archive.writestr(name, photo(1))
            member = tarfile.TarInfo(name)
            member.size = len(photo(1))
            shard.addfile(member, io.BytesIO(photo(1)))
    before = {path.name for path in tmp_path.parent.iterdir()}
    for kind in ("zip", "tar"):
        assert [content for _, content in found(tmp_path / f"in.{kind}")] == [photo(1)] * len(NAMES)
        assert (
            score(tmp_path / f"in.{kind}", tmp_path / f"{kind}.jsonl", store=store).exit_code == 0
        )
        assert [row["path"] for row in lines(tmp_path / f"{kind}.jsonl")] == [
            f"{tmp_path}/in.{kind}/{name}" for name in NAMES
        ]
    assert {path.name for path in tmp_path.parent.iterdir()} == before


def test_links_devices_and_pipes_of_a_tar_are_named_if_they_are_called_as_images(tmp_path):
    kinds = {
        "hard.png": tarfile.LNKTYPE,
        "soft.png": tarfile.SYMTYPE,
        "device.png": tarfile.CHRTYPE,
        "block.png": tarfile.BLKTYPE,
        "pipe.png": tarfile.FIFOTYPE,
        "notes.txt": tarfile.LNKTYPE,
        "folder.png": tarfile.DIRTYPE,
    }
    with tarfile.open(tmp_path / "in.tar", "w") as shard:
        member = tarfile.TarInfo("ok.png")
        member.size = len(photo(1))
        shard.addfile(member, io.BytesIO(photo(1)))
        for name, kind in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd" if name == "soft.png" else "ok.png"
            shard.addfile(member)
    expected = dict.fromkeys(
        ("hard.png", "soft.png", "device.png", "block.png", "pipe.png"), "unreadable"
    )
    assert codes(tmp_path / "in.tar") == {"ok.png": None, **expected}
    reasons = {
        name: content.reason
        for name, content in found(tmp_path / "in.tar")
        if isinstance(content, Fault)
    }
    assert "hard.png of" in reasons["hard.png"]
    assert (
        "is a link to ok.png; pack files (tar --dereference --hard-dereference)"
        in reasons["hard.png"]
    )


def test_a_shard_that_is_none_costs_itself_alone(tmp_path, store):
    for number in range(4):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
            member = tarfile.TarInfo("a.png")
            member.size = len(photo(number))
            shard.addfile(member, io.BytesIO(photo(number)))
    (tmp_path / "1.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "2.tar").write_bytes(b"")
    done = score(tmp_path / "*.tar", tmp_path / "out.jsonl", store=store)
    assert done.exit_code == 0, done.output
    assert [row["path"] for row in lines(tmp_path / "out.jsonl")] == [
        f"{tmp_path}/0.tar/a.png",
        f"{tmp_path}/3.tar/a.png",
    ]
    assert {path: code for path, (code, _) in failures(tmp_path / "out.jsonl").items()} == {
        f"{tmp_path}/1.tar": "damaged_archive",
        f"{tmp_path}/2.tar": "damaged_archive",
    }


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_damaged_archive_gives_rows_or_is_refused(tmp_path, kind):
    """500 archives with a few bytes changed or cut off: no other error, and no row without a
    content or a reason.
    """
    place = tmp_path / f"in.{kind}"
    with (
        zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        tarfile.open(tmp_path / "in.tar", "w", format=tarfile.PAX_FORMAT) as shard,
    ):
        for number in range(4):
            archive.writestr(f"ä{number}.png", photo(number))
            member = tarfile.TarInfo("ä" * 60 + f"{number}.png")
            member.size = len(photo(number))
            shard.addfile(member, io.BytesIO(photo(number)))
    whole = place.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        place.write_bytes(bytes(content[: rng.choice((len(content), rng.randrange(len(content))))]))
        try:
            assert all(isinstance(content, bytes | Fault) for _, content in found(place))
        except DataError:
            refused += 1
    assert refused < 500


def test_folders_nested_a_thousand_deep_are_walked(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    (tmp_path / "e.png").write_bytes(photo(1))
    try:
        assert codes(tmp_path) == {"e.png": None}
    finally:
        # Python's own rmtree, which pytest uses, cannot.
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)
