"""The bundle's page in a real Chromium, from a plain static server."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from models.machine import cpu_class
from models.package.manifest import GOLDEN_FOLDER
from service.engine.classifier import Classifier
from tests.browser.chromium import READY_MS, failure, static_server
from tests.models.int8_packages import build_int8_package, spoil_golden
from training.edge.build import build

TRANSFER = """(target, [name, encoded, kind]) => {
  const transfer = new DataTransfer();
  const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
  transfer.items.add(new File([bytes], name, { type: 'image/png' }));
  target.dispatchEvent(kind === 'paste'
      ? new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true })
      : new DragEvent('drop', { dataTransfer: transfer, bubbles: true }));
}"""


INLINE_SCRIPT = """() => {
  const script = document.createElement('script');
  script.textContent = 'window.inlineRan = true';
  document.head.append(script);
  return typeof window.inlineRan;
}"""


def opened(page, address: str):
    page.goto(address)
    page.wait_for_selector("body[data-state=ready]", timeout=READY_MS)
    return page


def answers(page) -> dict[str, float]:
    """Label -> probability, as the page shows them, once it shows a finished answer."""
    page.locator("#note", has_text="ms on this device").wait_for()
    # In one step, because the camera's answers change.
    rows = page.evaluate(
        "[...document.querySelectorAll('#answers li')].map(row => [row.children[0].textContent,"
        " Number(row.children[2].ariaValueNow)])"
    )
    return dict(rows)


def photo(web: Path, number: int = 0) -> Path:
    return web / GOLDEN_FOLDER / f"{number}.png"


def expected(web: Path, number: int = 0) -> dict[str, float]:
    """What the service answers to golden image *number*."""
    with_model = web.parents[1] / "package"
    [answer] = Classifier.open(with_model).classify([photo(web, number).read_bytes()])
    return {prediction.label: prediction.probability for prediction in answer.predictions}


def test_every_way_to_give_a_photo_gets_the_answer_of_the_service(page, web_folder):
    expected_answers = expected(web_folder, 1)
    with static_server(web_folder) as address:
        opened(page, address)
        for way in ("choose", "drop", "paste", "sample"):
            page.locator("#answers").evaluate(
                "list => { list.replaceChildren(); document.getElementById('note').textContent ="
                " ''; }"
            )
            if way == "sample":
                page.click("#samples button >> nth=1")
            else:
                bring(page, photo(web_folder, 1), way)
            found = answers(page)
            assert list(found) == list(expected_answers), way
            # Both compute in fp32, with other kernels.
            assert list(found.values()) == pytest.approx(
                list(expected_answers.values()), abs=1e-5
            ), way


@pytest.mark.parametrize(
    ("way", "held"),
    [
        ("choose", "variants/fp32.onnx"),
        ("drop", "variants/fp32.onnx"),
        ("paste", "variants/fp32.onnx"),
        ("choose", "app.js"),
    ],
)
def test_a_photo_given_before_the_model_is_loaded_waits_for_it(page, web_folder, way, held):
    """Also before the script has run, when nothing handles a dropped or pasted photo."""
    routes = []

    def hold(route) -> None:
        routes.append(route)

    page.route(f"**/{held}", hold)
    with static_server(web_folder) as address:
        page.goto(address, wait_until="commit")
        if held == "app.js":
            page.set_input_files("input", photo(web_folder, 1))
        else:
            page.locator("#note", has_text="Loading the model (").wait_for()
            for number in (0, 1):
                bring(page, photo(web_folder, number), way)
            page.locator("#note", has_text="Your photo is next.").wait_for()
            assert page.is_visible("#photo"), "it is shown while it waits"
        assert page.get_attribute("body", "data-state") == "loading"
        (asked,) = routes
        asked.continue_()
        assert answers(page) == pytest.approx(expected(web_folder, 1), abs=1e-5), (
            "the last of several"
        )


def bring(page, file: Path, way: str) -> None:
    if way == "choose":
        page.set_input_files("input", file)
    else:
        page.locator("#drop").evaluate(
            TRANSFER, ["photo.png", base64.b64encode(file.read_bytes()).decode(), way]
        )


def test_a_part_that_cannot_be_loaded_is_named_at_once(browser, copied):
    (copied / "ort" / "ort.wasm.min.mjs").unlink()
    with static_server(copied) as address:
        assert failure(address, browser=browser).startswith("The model cannot be loaded: ")


def test_the_camera_is_classified_until_it_is_stopped(page, web_folder):
    with static_server(web_folder) as address:
        opened(page, address)
        page.click("#camera")
        page.wait_for_selector("body[data-view=camera]")
        assert sum(answers(page).values()) == pytest.approx(1.0, abs=1e-4)
        page.click("#camera")
        page.wait_for_selector("body[data-view=start]")
        assert page.evaluate(
            "document.getElementById('video').srcObject.getTracks().every(track => track.readyState"
            " === 'ended')"
        )


def test_a_file_that_is_not_an_image_gets_a_reason_instead_of_an_answer(page, web_folder):
    with static_server(web_folder) as address:
        opened(page, address)
        page.set_input_files("input", web_folder / "app.js")
        page.wait_for_selector("#note.bad")
        assert (
            page.inner_text("#note")
            == "This is no image. Expected JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC."
        )
        assert page.locator("#answers li").count() == 0


def test_nothing_is_loaded_from_elsewhere(page, web_folder):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with static_server(web_folder) as address:
        opened(page, address)
        page.click("#samples button >> nth=0")
        answers(page)
    assert len(asked) >= 10
    assert {urlparse(url).netloc for url in asked if not url.startswith(("blob:", "data:"))} == {
        urlparse(address).netloc
    }


def test_the_page_forbids_scripts_from_elsewhere_and_inline(browser, web_folder):
    context = browser.new_context()
    page = context.new_page()
    with static_server(web_folder) as address:
        opened(page, address)
        policy = page.get_attribute("meta[http-equiv]", "content")
        assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval';")
        assert "unsafe-inline" not in policy
        assert page.evaluate(INLINE_SCRIPT) == "undefined"
    context.close()


def test_without_a_network_the_page_still_works_after_the_first_visit(page, web_folder):
    with static_server(web_folder) as address:
        opened(page, address)
        page.evaluate("navigator.serviceWorker.ready.then(() => null)")
    page.reload()
    page.wait_for_selector("body[data-state=ready]", timeout=READY_MS)
    page.set_input_files("input", photo(web_folder))
    assert answers(page) == pytest.approx(expected(web_folder), abs=1e-5)


def test_the_self_test_passes_on_a_sound_bundle(page, web_folder):
    with static_server(web_folder) as address:
        opened(page, address)
        page.click("#selftest")
        page.wait_for_selector("#checks li")
        lines = page.inner_text("#checks").splitlines()
        assert page.locator("#checks .bad").count() == 0
        assert page.inner_text("#note") == "The self-test passed."
    files = json.loads((web_folder / "bundle.json").read_text())["files"]
    assert lines[0] == f"{len(files)} files as they were built"
    assert re.fullmatch(r"model fp32\.onnx: 3 golden images, largest difference \S+", lines[1])
    assert lines[2].startswith(
        "from the files, as this browser decodes them: 3 of 3 with the recorded label"
    )


def test_a_changed_file_fails_the_self_test_by_name(page, copied):
    style = copied / "style.css"
    style.write_text(style.read_text() + "\n/* changed */\n")
    with static_server(copied) as address:
        opened(page, address)
        page.click("#selftest")
        page.wait_for_selector("#checks .bad")
        assert page.inner_text("#checks .bad").startswith("style.css was changed: it has ")
        assert page.inner_text("#note") == "The self-test failed."


def test_fp32_replaces_int8_that_gives_other_answers_in_this_browser(
    page, ort_web_tarball, tmp_path
):
    foreign = next(name for name in ("arm64", "x86-64") if name != cpu_class())
    package = build_int8_package(tmp_path / "package", cpu_class=foreign)
    spoil_golden(package)
    build(package, tmp_path / "bundle.zip", targets=("web",), ort_web=ort_web_tarball)
    shutil.unpack_archive(tmp_path / "bundle.zip", tmp_path / "bundle")
    with static_server(tmp_path / "bundle" / "web") as address:
        opened(page, address)
        assert page.inner_text("#model").endswith(
            "int8.onnx computes other answers in this browser, so fp32.onnx answers."
        )
        page.click("#samples button >> nth=0")
        found = answers(page)
    image = json.loads((package / GOLDEN_FOLDER / "golden.json").read_text())["images"][0]
    assert max(found.values()) == pytest.approx(max(image["sibling_probabilities"]), abs=1e-5)


def test_the_page_fits_a_phone(page, web_folder, tmp_path):
    """Nothing is wider than 390 pixels, even with long labels."""
    with static_server(web_folder) as address:
        opened(page, address)
        page.set_input_files("input", photo(web_folder))
        answers(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.screenshot(path=tmp_path / "phone.png")
    with Image.open(tmp_path / "phone.png") as shot:
        assert len(np.unique(np.asarray(shot.convert("L")))) > 20, "the page is not blank"
