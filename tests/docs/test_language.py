"""The guides are easy to read: short sentences, common words, tables that fit on a screen."""

from __future__ import annotations

import re

import pytest

from tests.docs.guides import GUIDES, ROOT, read

PAGES = [
    *GUIDES,
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
]
MOST_WORDS, MEAN_WORDS = 25, 13.0
WIDEST = 120
WIDE_TABLES = {"docs/settings.md"}
AVOIDED = {
    r"\banew\b": "again",
    r"\bbeside\b": "next to, with, together with",
    r"\bbehind it\b|\bbehind the last\b": "after",
    r"\bdoors?\b": "name the interface",
    r"\bgoes? on\b|\bgone on\b|\bgo on with\b": "continue",
    r"\bhave been had\b|\bbe had\b|\bcan be had\b": "available",
    r"\bheals?\b": "recover",
    r"\bin hand\b": "accepted",
    r"\bin whose\b|\bwhoever\b|\bwherever it stood\b": "anyone who",
    r"\bmends?\b|\bmended\b|\bmending\b": "repair, fix",
    r"\bof its own make\b|\bof a make\b": "say which",
    r"\bset aside\b|\bput aside\b|\baside\b": "left out",
    r"\bspoils?\b": "harms",
    r"\bstands? in the\b|\bstand in the\b": "is in the",
    r"\bthe likes?\b of\b": "such as",
    r"\btells? .{0,20}\btoo\b": "also logs",
    r"\bthe rest of it\b|\baffair\b|\bbid\b|\blest\b|\bthereof\b|\btherein\b": "use a common word",
    r"\bworth a look\b|\bis the way gone\b|\bwas gone\b": "say what happened",
}
"""Pattern -> what to write instead."""


def sentences(text: str) -> list[str]:
    """Sentences of a page without its code, tables and headings; code in a line is one word."""
    text = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"^(\||#).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "Code", text)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    found = [
        sentence
        for one in paragraphs
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(one.split()))
    ]
    return [sentence for sentence in found if words(sentence)]


def words(sentence: str) -> int:
    """How many words *sentence* has."""
    return len(re.findall(r"\S*\w\S*", sentence))


@pytest.mark.parametrize("page", PAGES)
def test_no_sentence_is_long(page):
    found = sentences(read(page))
    assert [one for one in found if words(one) > MOST_WORDS] == []
    assert sum(map(words, found)) / len(found) <= MEAN_WORDS


@pytest.mark.parametrize("page", PAGES)
def test_words_are_common(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", read(page), flags=re.DOTALL)
    odd = [
        f"{match[0]!r}: {better}"
        for pattern, better in AVOIDED.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    assert odd == []


@pytest.mark.parametrize("page", PAGES)
def test_lines_and_tables_fit_on_a_screen(page):
    wide, inside = [], False
    for number, line in enumerate(read(page).splitlines(), start=1):
        inside ^= line.startswith("```")
        table = line.startswith("|") and page in WIDE_TABLES
        if len(line) > WIDEST and not inside and not table:
            wide.append(f"{page}:{number}: {len(line)} columns")
    assert wide == []


def test_sentences_are_counted():
    text = "# A heading\n\nOne `two three` four. Five!\n\n| a | table |\n\n- six\n- seven\n"
    text += "\n```\ncode\n```\n"
    assert [words(one) for one in sentences(text)] == [3, 1, 1, 1]


def test_every_markdown_file_at_the_top_is_tested():
    tracked = {str(path.relative_to(ROOT)) for path in ROOT.glob("*.md")}
    assert tracked <= set(PAGES)
