"""Every command and program of the guides is run, or is in a list with the reason."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import loupe
from tests.docs.guides import DATA, GUIDES, PROGRAMS, SHELL, Step, blocks, steps
from tests.docs.workplace import Workplace, as_loupe, fill, take_settings
from tests.http.server import Server

NOT_RUN = {
    r"^make (demo|test|setup|image)$": "sets up a machine; see tests/training/test_demo.py",
    r"^make (edge|bench|check|test-slow|format)\b": "takes minutes; its loupe commands are run",
    r"^(docker|buildah|debootstrap|ln -s|base=|box=)|docker compose": "needs a container tool",
    r"^kubectl|^torchrun .*--nnodes": "needs a cluster",
    r"^torchrun|--engine ray": "starts processes for a minute; see test_distributed.py"
    " and test_cluster.py",
    r"s3://|gs://|https://images": "needs a bucket or a public host; see test_buckets.py",
    r"^(dpkg|mkdir arm|for |PYTHONHOME)|pip (download|install)": "downloads packages",
    r"npm |--ort-web|--target web|edge build artifacts/packages/first --out first.zip$": "downloads"
    " onnxruntime-web; tests/training/edge/test_edge.py builds the page",
    r"torchvision:": "downloads a data set",
    r"retrain .*--resume": "needs one that was killed; see tests/training/test_retrain.py",
    r"^yolo |vit-ants|\.keras|timm:|tf2onnx|/lite0": "needs another library; see"
    " tests/training/importing/test_other_libraries.py",
    r"model_best\.pth\.tar": "needs a checkpoint of timm's own training",
    r"^make faults": "takes minutes, and kills what it starts",
    r"to-bento|^bentoml": "writes to BentoML's store; tests/http/test_bento.py has one of its own",
    r"^loupe learn photo.jpg$": "needs the demo's model; see tests/training/inside/lessons",
    r"http.server|^tensorboard|\bcrontab\b": "runs until it is stopped",
    r"LOUPE_PROVIDER=(cuda|tensorrt)|--provider cuda|precision=bf16|batch_size=0": "needs a GPU",
    r"LOUPE_TRACING=": "needs a collector; tests/http/test_tracing.py has one",
}
"""Pattern of commands that no test runs here -> the reason."""
SLOW = (
    r"edge bench|bench\.py|selftest\.py|run\.py|zipfile|precision (int8|fp16)|--mlflow|find-lr"
    r"|--network|java|import bentoml|tritonclient|recipe edge|https://127"
)
"""Pattern of commands that only the slow tier runs, as it runs every `loupe serve`."""
ALL = [step for guide in GUIDES for step in steps(guide)]
WITH_STEPS = sorted({step.guide for step in ALL})


def reason(step: Step) -> str | None:
    """Why *step* is not run; None if it is."""
    if step.text.startswith("java ") and not has_jdk():
        return "needs a JDK"
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, step.text)), None)


@functools.cache
def has_jdk() -> bool:
    """Whether `java FILE.java` works here: a JRE alone has no compiler."""
    java = shutil.which("java")
    listed = java and subprocess.run([java, "--list-modules"], capture_output=True, check=False)
    return bool(listed) and b"jdk.compiler" in listed.stdout


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a store, a run and its package, to be copied for each guide."""
    folder = tmp_path_factory.mktemp("furnished")
    fill(folder)
    place = Workplace(folder)
    place.loupe(["train", "--data=photos", "--out=artifacts/runs/first"], {})
    place.loupe(["export", "artifacts/runs/first", "--out=artifacts/packages/first"], {})
    return folder


@pytest.fixture(scope="session")
def server(furnished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of all guides, unless they start their own."""
    place = Workplace(tmp_path_factory.mktemp("server"))
    shutil.copytree(furnished / "artifacts", place.folder / "artifacts")
    with place.running:
        place.serve([], {"LOUPE_MODEL": "digits,insects,insects@candidate,birds"})
        assert place.server is not None
        yield place.server


def workplace(guide: str, furnished: Path, folder: Path) -> Workplace:
    """A copy of the furnished folder in *folder*, without the files that *guide* makes itself."""
    shutil.copytree(furnished, folder)
    for made in ("runs/first", "packages/first"):
        if any(f"--out artifacts/{made}" in step.text for step in steps(guide)):
            shutil.rmtree(folder / "artifacts" / made)
    if guide == "docs/scoring.md":  # It repairs a broken photo.
        (folder / "photos/val/ants/broken.jpg").write_bytes(b"\xff\xd8")
    return Workplace(folder)


@pytest.mark.parametrize("guide", WITH_STEPS)
def test_every_quick_command_of_a_guide_works(guide, furnished, server, tmp_path):
    place = workplace(guide, furnished, tmp_path / "work")
    place.server = server
    run_steps(
        place,
        [step for step in steps(guide) if not re.search(rf"{SLOW}|loupe serve", step.text)],
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("guide", WITH_STEPS)
def test_every_command_of_a_guide_works(guide, furnished, tmp_path):
    place = workplace(guide, furnished, tmp_path / "work")
    with place.running:
        run_steps(place, steps(guide))


def run_steps(place: Workplace, chosen: list[Step]) -> None:
    """Run the *chosen* steps in their order, apart from those of `NOT_RUN`."""
    for step in chosen:
        if reason(step):
            continue
        try:
            place.run(step)
        except BaseException as error:
            error.add_note(str(step))
            raise


def test_the_guides_have_commands_for_every_use():
    assert len(ALL) >= 120
    assert len([step for step in ALL if reason(step) is None]) >= 90


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_every_exception_is_needed_by_a_guide(pattern):
    assert any(re.search(pattern, step.text) for step in ALL)


def test_every_block_is_a_command_a_program_or_data():
    odd = [
        f"{guide}, {heading}: {language!r}"
        for guide in GUIDES
        for heading, language, _ in blocks(guide)
        if language not in (SHELL, *PROGRAMS, *DATA)
    ]
    assert odd == []


@pytest.mark.parametrize(
    "step", [step for step in ALL if re.search(r"\bloupe |^make ", step.text)], ids=str
)
def test_every_loupe_command_has_the_options_that_the_guide_gives_it(step):
    if re.match(
        r"make (demo|test|setup|image|edge|bench|check|faults|test-slow|format)\b", step.text
    ):
        return
    for text in as_loupe(step.text):
        for part in re.findall(r"(?:^|[;&|(] ?|-m |[A-Z]+=\S+ )loupe ([^;&|)]+)", text):
            words = shlex.split(part, comments=True)
            take_settings(words)
            command: click.Command = loupe.cli
            context = click.Context(command)
            while isinstance(command, click.Group):
                found = command.get_command(context, words.pop(0))
                assert found is not None
                command = found
            known = {option for one in command.params for option in one.opts + one.secondary_opts}
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert command.name == "bench" or given - known - {"--help"} == set()
