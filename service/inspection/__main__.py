"""The inspecting process: requests from stdin, answers to stdout, one at a time.

A request is a line of JSON and the bytes of an image, an answer a line of JSON and a document.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

NICENESS = 19
"""The lowest priority: it gets what classification leaves."""
OOM_SCORE = "1000"
"""If memory runs out, the kernel ends this process and not the worker. Source: proc(5)."""


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes stdin
    _step_back()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What a library prints must not mix with answers.
    os.dup2(2, 1)
    from service.inspection.documents import Inspection

    inspection = Inspection()
    while line := requests.readline():
        request = json.loads(line)
        image = requests.read(request["image_bytes"])
        _answer(inspection, request, image, answers)


def _answer(inspection: object, request: object, image: bytes, answers: BinaryIO) -> None:
    from models.errors import LoupeError
    from service.inspection.documents import Inspection

    assert isinstance(inspection, Inspection)
    assert isinstance(request, dict)
    head: dict[str, object] = {}
    try:
        body = inspection.answer(request, image)
    except LoupeError as error:
        head, body = {"error": type(error).__name__}, str(error).encode()
    except Exception:  # noqa: BLE001 - the worker logs it, and the next request is answered
        head, body = {"error": "LoupeError"}, traceback.format_exc().encode()
    answers.write(json.dumps({**head, "bytes": len(body)}).encode() + b"\n" + body)
    answers.flush()


def _step_back() -> None:
    """Let everything else go first."""
    if sys.platform == "linux":
        os.nice(NICENESS)
        try:
            Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
        except OSError:
            return  # No more than a wish: some containers forbid it.


if __name__ == "__main__":
    main()
