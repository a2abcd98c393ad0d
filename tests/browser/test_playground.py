"""The service's own pages in a real Chromium: photos, answers, heat maps, links."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import READY_MS
from tests.browser.photos import write_photo
from tests.http.proxy import proxied
from tests.http.server import Server

PREFIX = "/apps/loupe"
MOST_BYTES = 200_000
FIRST_PAINT_MS = 1000


@pytest.fixture(params=["under a path", "at the root"])
def address(request: pytest.FixtureRequest, server: Server) -> Iterator[str]:
    """Where the page is, without a slash at its end."""
    if request.param == "at the root":
        yield server.url
        return
    with proxied(server, prefix=PREFIX) as origin:
        yield f"{origin}{PREFIX}"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return [write_photo(tmp_path / f"{seed}.png", seed=seed) for seed in range(6)]


def opened(page, address: str) -> None:
    page.goto(address)
    page.locator("#about", has_text="zoo version").wait_for()


def answered(page, *files: Path) -> None:
    """*files* are chosen, and the first is answered and explained."""
    page.set_input_files("#choose", files)
    page.wait_for_selector("#answer .bars")
    page.wait_for_selector("#heat:not([hidden])")


def painted(page, condition: str) -> None:
    """Wait until *condition* holds. The page's policy forbids Playwright's own way, an `eval`."""
    end = time.monotonic() + READY_MS / 1000.0
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def test_a_photo_is_classified_and_explained_and_all_links_work(page, address, photos):
    opened(page, address)
    assert page.url == f"{address}/"
    answered(page, photos[0])
    assert page.locator("#answer .one").count() == 4
    assert page.locator("#answer h2").inner_text().split() == [
        *page.locator(".one .label").first.inner_text().split(),
        *page.locator(".one .value").first.inner_text().split(),
    ]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    links = page.eval_on_selector_all("nav a", "links => links.map(link => link.href)")
    assert [link.removeprefix(address) for link in links] == [
        "/docs",
        "/v1/models",
        "/metrics",
        "/readyz",
    ]
    assert [page.request.get(link).status for link in links] == [200] * 4


def test_the_api_page_asks_the_service_under_its_own_address(page, address):
    page.goto(f"{address}/docs/")
    page.locator(".info .title", has_text="Loupe").wait_for()
    assert page.url == f"{address}/docs"
    page.click("#operations-default-listModels .opblock-summary-control")
    page.click("#operations-default-listModels .try-out__btn")
    page.click("#operations-default-listModels .execute")
    page.locator(
        "#operations-default-listModels .live-responses-table .response-col_status", has_text="200"
    ).wait_for()
    assert (
        page.inner_text("#operations-default-listModels .request-url pre") == f"{address}/v1/models"
    )


def test_the_heat_map_lies_on_what_the_model_sees_of_the_upright_photo(page, server, tmp_path):
    """A photo that is stored lying: 120 x 80 are shown as 80 x 120, and the middle is the crop."""
    opened(page, server.url)
    answered(page, write_photo(tmp_path / "lying.jpg", orientation=6))
    photo = page.locator("#picture").bounding_box()
    assert photo["height"] / photo["width"] == pytest.approx(1.5, abs=0.02)
    painted(page, "document.querySelector('#heat').style.width.includes('%')")
    heat = page.locator("#heat").bounding_box()
    assert heat["width"] == pytest.approx(photo["width"], abs=1.5)
    assert heat["height"] == pytest.approx(photo["width"], abs=3), "the crop is square"
    assert heat["y"] - photo["y"] == pytest.approx((photo["height"] - heat["height"]) / 2, abs=3)


def test_any_class_can_be_explained_by_its_bar_or_by_its_name(page, server, photos):
    opened(page, server.url)
    answered(page, photos[0])
    pixels = "document.querySelector('#heat').toDataURL()"
    first, last = page.evaluate(pixels), page.locator(".one").nth(3)
    last.click()
    painted(page, f"{pixels} !== {first!r}")
    assert last.get_attribute("aria-pressed") == "true"
    page.fill("#class", "bee")
    page.press("#class", "Enter")
    page.locator("#heat-note", has_text="“bee”").wait_for()
    page.fill("#opacity", "0.2")
    assert page.evaluate("document.querySelector('#heat').style.opacity") == "0.2"
    page.fill("#class", "unicorn")
    page.press("#class", "Enter")
    assert page.evaluate("document.querySelector('#class').validationMessage") != ""


def test_an_unsure_model_says_so_before_anything_else(page, server, photos):
    opened(page, f"{server.url}/#version=2")
    answered(page, photos[0])
    assert page.inner_text("#answer h2") == "I am not sure"
    assert page.locator(".bar .mark").count() == 4, "the threshold is drawn on the bars"


def test_two_versions_stand_side_by_side(page, server, photos):
    opened(page, server.url)
    answered(page, photos[0])
    page.select_option("#against", "2")
    page.wait_for_selector(".versions .version:nth-child(2) .bars")
    assert page.locator(".versions .kicker").all_inner_texts() == ["zoo version 1", "zoo version 2"]
    assert page.url.endswith("#against=2")


def test_a_late_answer_for_another_version_changes_nothing(page, server, photos):
    """Version 1 is asked for and left: neither its description nor its answer may paint."""
    opened(page, f"{server.url}/#version=2")
    answered(page, photos[0])
    held = []

    def hold(route):
        held.append(route)

    page.route("**/v1/models/zoo?version=1", hold)
    with page.expect_request("**/v1/models/zoo?version=1"):
        page.select_option("#version", "1")
    with page.expect_response("**/v1/classify?*"):
        page.evaluate("location.hash = 'version=2'")
    page.locator("#answer h2", has_text="I am not sure").wait_for()
    with page.expect_response("**/v1/models/zoo?version=1"):
        held.pop().continue_()
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    assert page.input_value("#version") == "2"
    assert "version 2" in page.inner_text("#about")

    page.unroute("**/v1/models/zoo?version=1")
    page.route("**/v1/classify?*version=1*", hold)
    with page.expect_request("**/v1/classify?*version=1*"):
        page.select_option("#version", "1")
    page.route("**/v1/classify?*version=2*", hold)
    with page.expect_request("**/v1/classify?*version=2*"):
        page.select_option("#version", "2")
    with page.expect_response("**/v1/classify?*version=1*"):
        held.pop(0).continue_()
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    assert page.locator("#answer [role=alert], #answer .problem").count() == 0
    assert "undefined" not in page.inner_text("#answer")
    held.pop(0).continue_()
    page.locator("#answer h2", has_text="I am not sure").wait_for()


def test_a_label_of_200_letters_does_not_widen_a_phone(page, server, photos):
    def lengthen(route):
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace('"ant"', f'"{"a" * 200}"'))

    page.route("**/v1/**", lengthen)
    opened(page, server.url)
    answered(page, photos[0])
    page.fill("#class", "a" * 200)
    page.press("#class", "Enter")
    page.locator("#answer p", has_text="a" * 200).first.wait_for()
    page.wait_for_load_state("networkidle")
    page.unroute_all(behavior="wait")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_several_files_become_a_gallery_and_a_broken_one_fails_alone(
    tolerant, server, photos, tmp_path
):
    broken = tmp_path / '=1+1,"x".jpg'
    broken.write_bytes(b"no photo")
    cut = tmp_path / "cut.png"
    cut.write_bytes(photos[0].read_bytes()[:60])
    opened(tolerant, server.url)
    tolerant.set_input_files("#choose", [*photos[:3], broken, cut, *photos[3:]])
    tolerant.locator("#gallery .row", has_text="6 answered, 2 failed").wait_for()
    tolerant.click(".cards button[data-state=failed] >> nth=0")
    tolerant.locator("#answer h2", has_text="Undecodable image").wait_for()
    with tolerant.expect_download() as download:
        tolerant.click("text=Download CSV")
    assert download.value.suggested_filename == "loupe-zoo-1.csv"
    text = Path(download.value.path()).read_bytes().decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert text.count("\r\n") == 9
    assert [row["file"] for row in rows][:4] == ["0.png", "1.png", "2.png", '\'=1+1,"x".jpg']
    assert [bool(row["error"]) for row in rows] == [False] * 3 + [True] * 2 + [False] * 3
    assert 0 < float(rows[0]["probability"]) <= 1


def test_a_photo_can_be_dropped_and_pasted(page, server, photos):
    opened(page, server.url)
    for kind, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """async ([kind, field, bytes]) => {
              const data = new DataTransfer();
              const content = [new Uint8Array(bytes)];
              data.items.add(new File(content, `${kind}.png`, { type: 'image/png' }));
              const made = kind === 'drop' ? new DragEvent(kind, { [field]: data, bubbles: true })
                : new ClipboardEvent(kind, { [field]: data, bubbles: true });
              document.body.dispatchEvent(made);
            }""",
            [kind, field, list(photos[0].read_bytes())],
        )
        page.locator("#caption", has_text=f"{kind}.png").wait_for()
        page.wait_for_selector("#answer .bars")


def test_a_link_brings_the_view_back_but_not_the_photo(page, server, photos):
    opened(page, f"{server.url}/#model=zoo&version=2&class=bee&layer=gone&view=seen")
    assert page.input_value("#version") == "2"
    assert page.get_attribute("#tab-seen", "aria-selected") == "true"
    page.click("#tab-answer")
    answered(page, photos[0])
    page.locator("#heat-note", has_text="“bee”").wait_for()
    page.select_option("#version", "1")
    page.locator("#about", has_text="zoo version 1").wait_for()
    page.wait_for_selector("#answer .bars")
    assert "version=1" in page.url
    page.goto("about:blank")
    opened(page, f"{server.url}/#model=cats&version=9")
    page.locator("#about", has_text="a model cats and version 9, which is not served").wait_for()


def test_what_the_server_saw_is_shown_with_its_pixels(page, server, tmp_path):
    opened(page, server.url)
    answered(page, write_photo(tmp_path / "lying.jpg", orientation=6))
    page.click("#tab-seen")
    facts = page.inner_text("#seen .facts")
    assert "JPEG" in facts
    assert "120 \N{MULTIPLICATION SIGN} 80 pixels" in facts
    assert page.locator("#seen .steps li").count() >= 3
    assert page.evaluate("document.querySelector('.pixels').naturalWidth") == 32
    assert page.locator("#marks .veil").count() == 1, "what is cut off is shaded"


def test_a_photo_that_the_browser_cannot_show_is_shown_as_the_model_sees_it(page, server, tmp_path):
    opened(page, server.url)
    page.set_input_files("#choose", write_photo(tmp_path / "scan.tiff"))
    page.locator("#caption", has_text="the pixels that the model gets").wait_for()
    assert page.evaluate("document.querySelector('#picture').naturalWidth") == 32
    page.wait_for_selector("#answer .bars")


def test_the_page_is_small_and_paints_early(page, server):
    sizes = []
    page.on("response", lambda answer: sizes.append(len(answer.body())))
    page.goto(server.url)
    painted_ms = page.evaluate(
        """() => new Promise(done => new PerformanceObserver(list => {
          const found = list.getEntriesByName('first-contentful-paint')[0];
          if (found) done(found.startTime);
        }).observe({ type: 'paint', buffered: true }))"""
    )
    page.locator("#about", has_text="zoo version").wait_for()
    assert painted_ms < FIRST_PAINT_MS
    assert sum(sizes) < MOST_BYTES
    assert len(sizes) > 15, "the modules were counted"


def test_no_inline_script_runs_and_no_text_becomes_markup(page, server, photos):
    policy = page.request.get(server.url).headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    opened(page, server.url)
    answered(page, photos[0])
    assert page.locator("#answer b").count() == 0
    assert "<b>cow</b>" in page.inner_text("#answer")
