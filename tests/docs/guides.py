"""Reads the code blocks of the guides: which commands and programs they show, under which task."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
    "docker/README.md",
]
SHELL, PROGRAMS = "console", ("python", "java")
DATA = ("text", "json", "toml", "nginx", "crontab")
"""Languages of blocks that show a file or an answer."""


@dataclass(frozen=True)
class Step:
    """One command of a `console` block, or the program of a `python` or `java` block."""

    guide: str
    task: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.guide}, {self.task}: {self.text}"


def read(guide: str) -> str:
    """The text of *guide*."""
    return (ROOT / guide).read_text(encoding="utf-8")


def blocks(guide: str) -> list[tuple[str, str, str]]:
    """(heading, language, text) of every fenced block, in order."""
    found: list[tuple[str, str, str]] = []
    heading, language, lines = "", "", []
    inside = False
    for line in read(guide).splitlines():
        if line.startswith("```"):
            if inside:
                found.append((heading, language, "\n".join(lines)))
            inside, language, lines = not inside, line[3:].strip(), []
        elif inside:
            lines.append(line)
        elif match := re.match(r"#+ (.*)", line):
            heading = match[1]
    return found


def steps(guide: str) -> list[Step]:
    """Everything that a reader of *guide* would type, in order."""
    found = []
    for task, language, text in blocks(guide):
        if language == SHELL:
            joined = text.replace("\\\n", " ")
            commands = re.findall(r"^\$ (.*)$", joined, re.MULTILINE)
            plain = [re.sub(r"\s+", " ", re.sub(r"\s+# .*", "", one)) for one in commands]
            found += [Step(guide, task, language, one) for one in plain]
        elif language in PROGRAMS:
            found.append(Step(guide, task, language, text))
    return found
