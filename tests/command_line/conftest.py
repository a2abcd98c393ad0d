"""The sound things that commands work on, and the process that runs the commands."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.command_line.commands import World, build_world
from tests.command_line.runner import Runner


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Iterator[World]:
    with socket.socket() as listener:
        yield build_world(tmp_path_factory.mktemp("world"), listener)


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Iterator[Runner]:
    """One child for each file of tests: BentoML keeps the first home that a process gave it."""
    with Runner(tmp_path_factory.mktemp("child")) as child:
        yield child
