"""Small files are read whole or refused: nothing waits, and nothing is read forever."""

import os

import pytest

from models.files import LIMIT_BYTES, parse_json, read_file, read_text


def test_a_file_is_read_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes("é".encode())
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link") == "é".encode()
    assert read_text(tmp_path / "link") == "é"


@pytest.mark.timeout(10)
def test_what_gives_no_end_is_refused_and_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(LIMIT_BYTES + 1)
    for name in ("pipe", "device", "huge", ".", "missing"):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the file name is looked at
            read_file(tmp_path / name)
        assert caught.value.filename in (str(tmp_path / name), tmp_path / name)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "{", b"\xff\xfe{", "9" * 5000, ""]
)
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)
