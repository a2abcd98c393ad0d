"""The page for everybody: screen readers (axe-core), keyboard only, a phone's width, dark."""

from __future__ import annotations

import shutil
import subprocess
import tarfile

import pytest

from tests.browser.photos import write_photo
from tests.browser.test_playground import answered, opened

AXE = "axe-core@4.14.1"
NPM_PATIENCE_S = 60
RUN = """async () => (await axe.run(document, { resultTypes: ['violations'] })).violations
  .filter(one => ['serious', 'critical'].includes(one.impact))
  .map(one => `${one.id}: ${one.nodes.map(node => node.target.join(' ')).join(', ')}`)"""


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's source, fetched from npm once."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on the PATH: it brings axe-core")
    place = tmp_path_factory.mktemp("axe")
    command = ["npm", "pack", AXE, "--silent", "--ignore-scripts", "--pack-destination", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=NPM_PATIENCE_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm's registry cannot be reached: {error}")
    [packed] = place.glob("*.tgz")
    with tarfile.open(packed) as archive:
        source = archive.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_view(browser, server, axe, tmp_path, scheme):
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    files = [write_photo(tmp_path / f"{seed}.png", seed=seed) for seed in range(2)]
    found: dict[str, list[str]] = {}

    def look(view: str) -> None:
        page.evaluate(axe)
        found[view] = page.evaluate(RUN)

    opened(page, f"{server.url}/#version=2&against=1")
    look("empty")
    answered(page, *files, broken)
    page.locator("#gallery .row", has_text="1 failed").wait_for()
    look("answer")
    page.click("#tab-seen")
    page.wait_for_selector("#seen .steps")
    look("seen")
    page.click("#tab-layers")
    page.click(".strip button >> nth=-3")
    page.click("[data-name='features.0']")
    page.wait_for_selector(".thumbs")
    look("layers")
    page.click("#tab-answer")
    page.click(".cards [data-state=failed]")
    page.click("#key")
    look("failed")
    context.close()
    assert found == {view: [] for view in ("empty", "answer", "seen", "layers", "failed")}


def test_everything_can_be_done_by_keyboard(page, server, tmp_path):
    """Tab and arrows alone lead from the photo to a layer's cell and to the gallery."""
    opened(page, server.url)
    answered(page, *(write_photo(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)))

    def tab_to(selector: str, limit: int = 40) -> None:
        for _ in range(limit):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    page.focus("#copy")
    tab_to("#tab-answer")
    tab_to(".one[aria-pressed=false]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".one[aria-pressed=true]:focus")
    tab_to(".cards button")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator("#caption", has_text="1.png").wait_for()
    page.focus("#tab-answer")
    page.keyboard.press("End")
    assert page.get_attribute("#tab-layers", "aria-selected") == "true"
    page.wait_for_selector(".strip button")
    tab_to(".strip button")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    tab_to(".rows button")
    page.keyboard.press("Enter")
    page.wait_for_selector(".thumbs")
    tab_to(".map")
    assert page.locator("#marks .field").count() == 1
    tab_to(".thumbs button")


def test_every_view_fits_a_phone_in_light_and_dark(browser, server, tmp_path):
    file = write_photo(tmp_path / f"{'a_long_name_' * 12}.jpg", size=(90, 400))
    for scheme in ("light", "dark"):
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": 390, "height": 844}, reduced_motion="reduce"
        )
        page = context.new_page()
        opened(page, server.url)
        answered(page, file, write_photo(tmp_path / "second.png"))
        for tab in ("answer", "seen", "layers"):
            page.click(f"#tab-{tab}")
            page.wait_for_selector({"answer": ".bars", "seen": ".steps", "layers": ".strip"}[tab])
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, (scheme, tab)
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(22, 23, 25)") == (scheme == "dark")
        context.close()
