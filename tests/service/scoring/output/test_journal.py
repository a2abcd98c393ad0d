"""The journal: whole records are kept, half-written ones are cut off."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from models.errors import ScoringError, StorageLost
from service.scoring.compute.unit import Record
from service.scoring.input.items import Fault, Item
from service.scoring.output.journal import Journal, decode, encode, read_records
from service.scoring.output.tally import Tally


def record(unit: int) -> Record:
    items = [(unit * 2, Item(f"{unit}/\udce4.jpg", extra=(("n", unit), ("t", None))))]
    failed = [(unit * 2 + 1, Item("bad.jpg"), Fault("not_found", "gone"))]
    arrays = {
        "top_index": np.array([[2, 1]], dtype=np.int32),
        "top_probability": np.array(
            [[0.75, np.nextafter(np.float32(0.1), np.float32(1))]], dtype=np.float32
        ),
        "embedding": np.zeros((1, 0), dtype=np.float32),
    }
    tally = Tally(
        scored=1,
        abstained=1,
        classes={2: 1},
        codes={"not_found": 1},
        signals={"confidence": [0, 1]},
        kinds={"n": "int", "t": ""},
    )
    return Record(unit, unit * 2, f"digest {unit}", items, failed, arrays, ["ab"], tally)


def same(one: Record, other: Record) -> bool:
    return encode(one) == encode(other)


def test_a_record_comes_back_as_it_was():
    back = decode(encode(record(3)))
    assert back.rows == record(3).rows
    assert back.failed == record(3).failed
    assert back.tally == record(3).tally
    assert {name: array.dtype for name, array in back.arrays.items()} == {
        "top_index": "int32",
        "top_probability": "float32",
        "embedding": "float32",
    }
    np.testing.assert_array_equal(
        back.arrays["top_probability"], record(3).arrays["top_probability"]
    )
    assert same(back, record(3))


def test_a_journal_cut_anywhere_holds_the_whole_records_before_the_cut(tmp_path):
    path = tmp_path / "journal.bin"
    ends = [0]
    journal = Journal(path)
    for unit in range(3):
        journal.append(record(unit))
        ends.append(path.stat().st_size)
    journal.close()
    whole = path.read_bytes()
    cuts = sorted(
        {*range(40), *(end + shift for end in ends for shift in (-1, 0, 1, 7, 13)), len(whole)}
    )
    for cut in cuts:
        if not 0 <= cut <= len(whole):
            continue
        path.write_bytes(whole[:cut])
        complete = sum(cut >= end for end in ends[1:])
        again = Journal(path)
        assert (again.units, again.tally.seen, again.digest) == (
            complete,
            2 * complete,
            f"digest {complete - 1}" if complete else "",
        )
        for unit in range(complete, 3):
            again.append(record(unit))
        again.close()
        assert path.read_bytes() == whole, f"cut at {cut}"


def test_a_record_of_which_the_disk_takes_only_a_part_is_not_recorded(tmp_path):
    """A disk that fills writes what fits and reports no error. So does a limited file size."""
    journal = Journal(tmp_path / "journal.bin")
    journal.append(record(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = journal.path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(StorageLost, match=r"journal.bin: the disk is full"):
            journal.append(record(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.close()
    assert journal.units == 1
    assert journal.path.stat().st_size == size + 10
    assert len(list(read_records(journal.path))) == 1


def test_a_flipped_bit_ends_the_journal_before_it(tmp_path):
    path = tmp_path / "journal.bin"
    journal = Journal(path)
    journal.append(record(0))
    size = path.stat().st_size
    journal.append(record(1))
    journal.close()
    content = bytearray(path.read_bytes())
    content[size + 40] ^= 1
    path.write_bytes(bytes(content))
    assert len(list(read_records(path))) == 1


def test_a_foreign_file_is_not_written_over(tmp_path):
    (tmp_path / "journal.bin").write_bytes(b"something else entirely")
    with pytest.raises(ScoringError, match=r"journal.bin is no journal; expected loupe journal 2"):
        Journal(tmp_path / "journal.bin")
    assert (tmp_path / "journal.bin").read_bytes() == b"something else entirely"


def test_a_journal_of_another_release_is_named_with_the_ways_out(tmp_path):
    whole = b"loupe journal 1\n" + encode(record(0))
    (tmp_path / "journal.bin").write_bytes(whole)
    message = (
        r"journal.bin is loupe journal 1, of another release; expected loupe journal 2. Finish the"
        r" job with the release that started it, or start again"
    )
    with pytest.raises(ScoringError, match=message):
        Journal(tmp_path / "journal.bin")
    assert (tmp_path / "journal.bin").read_bytes() == whole


def test_tallies_add_up_in_any_grouping():
    total = Tally()
    for unit in range(4):
        total.add(record(unit).tally)
    total.add(Tally(kinds={"n": "float", "t": "text", "new": "bool"}, signals={"other": [1]}))
    assert (total.scored, total.failed, total.seen, total.abstained) == (4, 4, 8, 4)
    assert total.signals == {"confidence": [0, 4], "other": [1]}
    assert total.kinds == {"n": "float", "t": "text", "new": "bool"}
