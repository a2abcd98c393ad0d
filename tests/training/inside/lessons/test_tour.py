"""`loupe learn`: its chapters, its page, and how it is read and left."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from models.errors import BadRequest
from models.store.store import Store
from tests.models.packages import build_package
from tests.training.inside.lessons.graphs import photo, subject
from tests.training.small_runs import Exported
from training.demo import NAME
from training.inside.lessons.commands import learn
from training.inside.lessons.part import Chapter, Part, chapter_text
from training.inside.lessons.tour import DEMO, Choice, choose, play, tour, tour_page

TITLES = ("Pixels", "One convolution", "Filters", "Stride", "Feature", "Receptive", "Evid", "Train")


@pytest.fixture(scope="module")
def chapters(exported: Exported) -> tuple[Choice, list[Chapter]]:
    image = next((exported.photos / "red").glob("[0-9]*.png"))
    choice = choose(image, str(exported.package), store=exported.package.parent / "none")
    return choice, list(tour(choice))


def test_eight_chapters_each_with_a_question_and_its_answer(
    chapters: tuple[Choice, list[Chapter]],
) -> None:
    _, found = chapters
    assert len(found) == len(TITLES)
    for chapter, start in zip(found, TITLES, strict=True):
        assert chapter.part.title.startswith(start)
        assert chapter.question.endswith("?")
        assert chapter.answer.endswith(".")
        assert chapter.commands
    answers = [chapter.answer for chapter in found]
    assert answers[0] == "32 x 32 x 3 = 3,072."
    # ResNet-18: 64 filters of 7x7, stride 2, padding 3.
    assert answers[3] == "(64 - 7 + 6) / 2 + 1, rounded down: 32 rows instead of 16."
    assert re.fullmatch(r"1,539 of [\d,]+: [\d.]+ %\.", answers[7])


def test_every_command_that_a_chapter_names_exists(
    chapters: tuple[Choice, list[Chapter]],
) -> None:
    import loupe

    for chapter in chapters[1]:
        for command in chapter.commands:
            words = command.split()
            depth = 2 if words[0] == "inspect" else 1
            result = CliRunner().invoke(loupe.cli, [*words[:depth], "--help"])
            options = {word for word in words if word.startswith("--")}
            assert result.exit_code == 0, command
            assert all(option in result.output for option in options), command


def test_the_page_is_whole_and_needs_no_script(chapters: tuple[Choice, list[Chapter]]) -> None:
    text = tour_page(*chapters)
    assert text.count("<details>") == len(TITLES)
    assert text.count("<h2>") == len(TITLES)
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert all(re.search(r'alt="[^"]', tag) for tag in re.findall(r"<img[^>]*>", text))
    assert len(text) < 3_000_000


def read(found: list[Chapter], lines: list[str]) -> Iterator[str]:
    """The prompts that a learner sees who types *lines* and then closes the input."""
    rest = iter(lines)
    prompts = []

    def wait(prompt: str) -> str:
        prompts.append(prompt)
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    play(found, wait=wait)
    yield from prompts


def small(count: int) -> list[Chapter]:
    part = Part(title="A title")
    return [Chapter(part=part, question="Why?", answer="So.", commands=[])] * count


def test_enter_goes_through_and_q_or_the_end_of_input_leaves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(list(read(small(3), [""] * 9))) == 5
    assert capsys.readouterr().out.count("Answer: So.") == 3
    assert len(list(read(small(3), ["", " Q "]))) == 2
    assert capsys.readouterr().out.count("Answer: So.") == 1
    assert len(list(read(small(3), []))) == 1
    assert "Answer" not in capsys.readouterr().out


def test_without_a_terminal_all_is_printed_at_once(exported: Exported, tmp_path: Path) -> None:
    image = next((exported.photos / "red").glob("[0-9]*.png"))
    out = tmp_path / "tour.html"
    result = run(image, "--model", exported.package, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("Question: ") == result.stdout.count("Answer: ") == len(TITLES)
    assert "Enter shows" not in result.stdout
    long = [line for line in result.stdout.splitlines() if len(line) > 80]
    # Titles and commands have paths in them.
    assert all(line.startswith(("Inside ", "  loupe ")) for line in long)
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_missing_folder_is_named_before_any_work(tmp_path: Path) -> None:
    result = run("--out", tmp_path / "none" / "a.html")
    assert result.exit_code == 2
    assert "there is no folder" in result.output


def run(*arguments: object) -> Result:
    return CliRunner().invoke(learn, [str(argument) for argument in arguments])


def test_the_model_of_the_demo_is_shown_with_an_image_that_it_kept(
    exported: Exported, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    store.publish(exported.package, name=DEMO, why="test")
    choice = choose(None, None, store=store.root)
    assert choice.model == DEMO == NAME
    assert choice.photo.parent.name == "golden"
    assert choice.notes == (
        "You gave no photo, so an example is shown. `loupe learn PHOTO` takes yours.",
    )


@pytest.mark.slow
def test_without_a_model_a_network_without_training_is_shown(tmp_path: Path) -> None:
    choice = choose(None, None, store=tmp_path / "store")
    assert "has no model 'digits'. `loupe demo` makes it" in choice.notes[0]
    assert (choice.model, choice.weights) == ("mobilenet_v3_small", "none")
    assert choice.photo.is_file()
    found = list(tour(choice))
    assert len(found) == len(TITLES)
    assert "depthwise" in " ".join(found[3].part.after)


def test_a_network_without_a_convolution_has_no_tour(tmp_path: Path) -> None:
    package = build_package(tmp_path / "package")
    choice = choose(None, str(package), store=tmp_path / "store")
    with pytest.raises(BadRequest, match="has no convolution, and so no tour; choose another --mo"):
        list(tour(choice))


def test_names_with_odd_characters_are_quoted_and_escaped(tmp_path: Path) -> None:
    """In commands for the shell, in the terminal, and in the page."""
    network = replace(subject(kernel_shape=[3, 3]), labels=("<script>", "b\x1b[2J", "c"))
    folder = tmp_path / "my photos"
    folder.mkdir()
    choice = Choice(subject=network, model="a; b", photo=photo(folder))
    found = list(tour(choice))
    text = "\n".join(line for chapter in found for line in chapter_text(1, chapter))
    assert f"loupe inspect explain 'a; b' '{choice.photo}'" in text
    assert "\x1b" not in text
    assert "<script" not in tour_page(choice, found)


def test_a_graph_from_elsewhere_has_a_tour_too(tmp_path: Path) -> None:
    """One small convolution, no class activation, classes without much of a name."""
    network = subject(kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    choice = Choice(subject=network, model="a", photo=photo(tmp_path))
    assert len(tour_page(choice, list(tour(choice)))) > 10_000


@pytest.mark.slow
def test_a_learner_in_a_terminal_reads_and_leaves(exported: Exported, tmp_path: Path) -> None:
    """A real terminal: Enter, then q; and Ctrl-C, which ends like in every command."""
    image = next((exported.photos / "red").glob("[0-9]*.png"))
    command = [
        *(sys.executable, "-m", "loupe", "learn", str(image), "--model", str(exported.package)),
        *("--out", str(tmp_path / "a.html")),
    ]
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=os.environ | {"TERM": "dumb", "COLUMNS": "80"},
    )
    os.close(theirs)
    try:
        _until(ours, "Enter shows the answer, q ends the tour: ")
        os.write(ours, b"\n")
        seen = _until(ours, "Enter goes to the next chapter: ")
        assert "Answer: 32 x 32 x 3 = 3,072." in seen
        os.write(ours, b"\n")
        _until(ours, "Enter shows the answer, q ends the tour: ")
        child.send_signal(signal.SIGINT)
        assert "stopped" in _until(ours, "stopped")
        assert child.wait(20) == 130
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def _until(terminal: int, text: str) -> str:
    """What the terminal shows until *text*, which must come."""
    seen = ""
    while text not in seen:
        try:
            seen += os.read(terminal, 4096).decode(errors="replace")
        except OSError:
            raise AssertionError(f"the terminal closed before {text!r}: {seen}") from None
    return seen
