"""BentoML's own commands on this project: `bentoml build`, and `bentoml serve` of the bento."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tests.http.server import ANSWER_PATIENCE_S, Server, environment, free_port, loupe

CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE_S = 100.0
SHIPPED = ("models", "service", "loupe.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.mark.slow
def test_a_bento_brings_the_model_that_it_names_and_serves_it(
    tmp_path: Path, store: Path, photo: bytes
):
    project = tmp_path / "project"
    project.mkdir()
    for name in (*SHIPPED, "requirements"):
        source = CHECKOUT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, project / name)
    settings = project / "pyproject.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(
        text.replace("[tool.bentoml.build]\n", '[tool.bentoml.build]\nmodels = ["zoo:2"]\n', 1),
        encoding="utf-8",
    )
    home = {"BENTOML_HOME": str(tmp_path / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    inherited = environment(tmp_path) | home
    run(loupe("models", "to-bento", "zoo:2", "--store", store), inherited, CHECKOUT)
    run([sys.executable, "-m", "bentoml", "build", "."], inherited, project)
    (bento,) = (tmp_path / "home" / "bentos" / "loupe").glob("*/")
    described = yaml.safe_load((bento / "bento.yaml").read_text(encoding="utf-8"))
    assert [str(one["tag"]) for one in described["models"]] == ["zoo:2"]
    sources = {path.name for path in (bento / "src").iterdir()}
    assert sources == {*SHIPPED, "bentofile.yaml"}
    locked = (CHECKOUT / "requirements" / "serve-cpu.txt").read_text(encoding="utf-8")
    installed = (bento / "env" / "python" / "requirements.txt").read_text(encoding="utf-8")
    hashes = re.findall(r"--hash=\S+", locked)
    assert len(hashes) > 1000
    assert set(hashes) <= set(re.findall(r"--hash=\S+", installed))
    assert (bento / "env" / "docker" / "Dockerfile").is_file()
    serve_and_ask(bento, tmp_path, inherited, photo)


def serve_and_ask(bento: Path, folder: Path, inherited: dict[str, str], photo: bytes) -> None:
    """Where neither the checkout nor a store is."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    port, log = free_port(), folder / "bento.log"
    command = [sys.executable, "-m", "bentoml", "serve", str(bento), "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=elsewhere, env=inherited, stdout=stream, stderr=subprocess.STDOUT
        )
    server = Server(process, port, log)
    try:
        server.wait_ready(1)
        answer = httpx.post(
            f"{server.url}/v1/classify",
            content=photo,
            timeout=ANSWER_PATIENCE_S,
            trust_env=False,
        ).json()
        assert answer["model"] == {"name": "zoo", "version": 2}
        assert server.stop() == 0
    finally:
        if process.poll() is None:
            server.reap()


def run(command: list[str], inherited: dict[str, str], folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env=inherited | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
