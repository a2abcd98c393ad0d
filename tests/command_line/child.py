"""A process that runs one command line after another and reports each: status, stdout, stderr.

It reads a JSON object a line from stdin, and writes one a line to the descriptor that its only
argument names. stdout and stderr are files, opened to append, which it empties before each command.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import IO

import loupe

MEMORY_BYTES = 4 * 2**30
"""More than any of these commands needs, and less than would trouble the machine."""


def main() -> None:
    """Serve until stdin ends."""
    reports: IO[str] = os.fdopen(int(sys.argv[1]), "w", encoding="ascii")
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    before = dict(os.environ)
    # A command that reads standard input must not read the next order.
    orders, sys.stdin = sys.stdin, Path(os.devnull).open(encoding="ascii")  # noqa: SIM115
    for line in orders:
        case = json.loads(line)
        for descriptor in (1, 2):
            os.ftruncate(descriptor, 0)
        os.environ.clear()
        os.environ.update(before | case["environment"])
        os.chdir(case["folder"])
        status = loupe.run(case["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        _forget()
        reports.write(json.dumps({"status": status}) + "\n")
        reports.flush()


def _forget() -> None:
    """What a process keeps of its settings, which are read once."""
    settings = sys.modules.get("service.settings")
    if settings is not None:
        settings.service_settings.cache_clear()


if __name__ == "__main__":
    main()
