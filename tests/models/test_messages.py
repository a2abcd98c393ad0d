"""Foreign text is one harmless line; a refusal of the system says which file and what to do."""

import errno
import os
from pathlib import Path

import pytest

from models.messages import label_lines, one_line, os_error_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "caf\u00e9 \U0001f469\u200d\U0001f680 \u304f\u3000\u3059",
            "caf\u00e9 \U0001f469\u200d\U0001f680 \u304f\u3000\u3059",
        ),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred\x9b0m", "\\x1b[31mred\\x9b0m"),
        ("gpj.\u202egnp\u2066", "gpj.\\u202egnp\\u2066"),
        ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\x85d"),
        ("caf\udce9", "caf\\udce9"),
        ("\0\x7f", "\\x00\\x7f"),
    ],
)
def test_text_is_one_line_that_a_terminal_only_shows(text, shown):
    assert one_line(text) == shown
    assert shown.splitlines() == [shown]


def test_a_label_is_one_line_whatever_it_holds():
    lines = label_lines(["ant", "honey\nbee", "cat\r\n\u2028fish", " \x1b[1mdog", "\udce9"])
    assert lines == "ant\nhoney bee\ncat fish\n\\x1b[1mdog\n\\udce9\n"
    assert len(lines.splitlines()) == 5


@pytest.mark.parametrize("number", sorted({*errno.errorcode} - {errno.EPERM, errno.EACCES}))
def test_every_error_of_the_system_names_the_file_and_says_what_to_do(number):
    said = os_error_text(OSError(number, os.strerror(number), "photos/x.jpg"))
    assert said.startswith("photos/x.jpg: ")
    assert ";" in said


def test_a_file_known_by_its_descriptor_alone_is_not_named():
    assert (
        os_error_text(OSError(errno.EISDIR, "Is a directory", 3))
        == "this is a folder where a file is expected; name a file"
    )
    assert (
        os_error_text(OSError(errno.EISDIR, "Is a directory", 3), Path("x"))
        == "x: this is a folder where a file is expected; name a file"
    )
