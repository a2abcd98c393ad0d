"""Fixtures for tests that drive a real Chromium.

They live only in this folder, because Playwright runs its event loop in this thread. No other test
could run one at the same time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import ExportError
from models.store.store import Store
from tests.browser.chromium import executable, launched, static_server
from tests.http.server import Server, serving
from tests.models.conv_packages import build_conv_package
from tests.models.packages import build_package
from training.edge import ort_web
from training.edge.build import RUNNER, build

LABELS = ("ant", "bee", "<b>cow</b>", "a dog with a name that is too long for a telephone")


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium, started once."""
    if executable() is None:
        pytest.skip("no Chromium on the PATH: these tests drive a real browser")
    pytest.importorskip(
        "playwright", reason="playwright is not installed: these tests drive a real browser"
    )
    with launched() as started:
        yield started


@pytest.fixture(scope="package")
def ort_web_tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-web's tarball, fetched from npm once."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on the PATH: it brings onnxruntime-web")
    try:
        packed = ort_web.npm_tarball()
    except ExportError as error:
        pytest.skip(f"npm's registry cannot be reached: {error}")
    tarball = tmp_path_factory.mktemp("npm") / "onnxruntime-web.tgz"
    tarball.write_bytes(packed)
    return tarball


@pytest.fixture(scope="package")
def web_folder(ort_web_tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`web/` of the bundle of a tiny package; copy it before changing anything."""
    place = tmp_path_factory.mktemp("web")
    build(
        build_package(place / "package", size=64),
        place / "bundle.zip",
        targets=("web",),
        ort_web=ort_web_tarball,
    )
    shutil.unpack_archive(place / "bundle.zip", place / "bundle")
    return place / "bundle" / "web"


@pytest.fixture(scope="package")
def scripts(browser: Any) -> Iterator[Any]:
    """A page from which the bundle's JavaScript modules can be imported, without a model."""
    with static_server(RUNNER / "web") as address:
        page = browser.new_page()
        page.goto(f"{address}/style.css")
        yield page
        page.close()


@pytest.fixture(scope="package")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with model `zoo`: version 1 always answers, version 2 is never sure."""
    folder = tmp_path_factory.mktemp("zoo")
    for version, threshold in ((1, 0.0), (2, 1.0)):
        package = build_conv_package(
            folder / str(version), labels=LABELS, seed=version, abstain_threshold=threshold
        )
        Store(folder / "store").publish(package, name="zoo")
    return folder / "store"


@pytest.fixture(scope="package")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory, zoo: Path) -> Iterator[Server]:
    """A service with both versions. Who asks on loopback may look inside."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, store=zoo, model="zoo:1,zoo:2") as running:
        yield running


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A phone's page with its own profile; any error in the browser's log fails the test."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, permissions=["camera"])
    page = context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "console",
        lambda message: said.append(message.text) if message.type in ("error", "warning") else None,
    )
    yield page
    context.close()
    assert said == []


@pytest.fixture
def tolerant(browser: Any) -> Iterator[Any]:
    """A phone's page whose log may name refused requests."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    context.close()
    assert failures == []


@pytest.fixture
def copied(web_folder, tmp_path) -> Path:
    """A copy of the page's folder that a test may change."""
    return shutil.copytree(web_folder, tmp_path / "web")
