"""The log: what libraries say, and a place that is full."""

import io
import json
import logging
import os
import warnings
from collections.abc import Iterator

import pytest

from service.observe.logs import LIBRARIES, JsonLines, LogLines, start_log


@pytest.fixture
def untouched() -> Iterator[None]:
    """Loggers as they were, afterwards."""
    loggers = [logging.getLogger(name) for name in (None, "loupe", "uvicorn.access", *LIBRARIES)]
    before = [(one.handlers[:], one.propagate, one.level, one.disabled) for one in loggers]
    yield
    logging.captureWarnings(capture=False)
    for one, (handlers, propagate, level, disabled) in zip(loggers, before, strict=True):
        one.handlers, one.propagate, one.disabled = handlers, propagate, disabled
        one.setLevel(level)


@pytest.mark.usefixtures("untouched")
def test_what_libraries_log_and_warn_of_is_json_too():
    logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler())
    logging.getLogger("loupe").disabled = True
    reader, writer = os.pipe()
    start_log(style="json", stream=writer)
    for name in ("loupe", "uvicorn.error", "bentoml", "asyncio", "another.library"):
        logging.getLogger(name).error("said by %s\nin two lines", name)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    assert len(records) == 6
    assert records[1]["message"] == "said by uvicorn.error\nin two lines"
    assert "DeprecationWarning: old" in records[5]["message"]


class Disk(io.StringIO):
    """A file on a disk that may be full."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_disk_loses_lines_and_the_log_says_how_many(capsys):
    disk = Disk()
    handler = LogLines(disk)
    handler.setFormatter(JsonLines())
    log = logging.getLogger("test of a full disk")
    log.handlers, log.propagate = [handler], False
    log.setLevel("INFO")
    log.info("before")
    disk.full = True
    for _ in range(3):
        log.info("lost")
    disk.full = False
    log.info("after")
    messages = [json.loads(line)["message"] for line in disk.getvalue().splitlines() if line]
    assert messages == ["before", "3 lines of the log could not be written", "after"]
    assert capsys.readouterr().err == "", "no traceback to where there is no room either"
