"""The page's Layers: the network as a strip, feature maps, and receptive fields on the photo."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.photos import write_photo
from tests.browser.test_playground import opened


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_photo(tmp_path / "photo.png", size=(96, 96))


def field(page) -> list[float]:
    """Left, top, right and bottom of the receptive field that is drawn, as shares of the photo."""
    drawn = page.get_attribute("#marks .field", "d")
    left, top, right, bottom = drawn[1:-1].replace("H", ",").replace("V", ",").split(",")[:4]
    return [float(left), float(top), float(right), float(bottom)]


def test_the_strip_goes_from_large_maps_to_the_answer(page, server):
    """Layers need no photo."""
    opened(page, f"{server.url}/#view=layers")
    page.locator(".strip button").first.wait_for()
    assert page.locator(".strip b").all_inner_texts()[-3:] == ["16²", "8²", "answer"]
    page.click(".strip button >> nth=-2")
    page.click("[data-name='features.1']")
    page.locator("#layer h2", has_text="features.1 convolution").wait_for()
    facts = page.inner_text("#layer .facts")
    assert "(16 - 3 + 2·1) / 2" in facts
    assert "7 \N{MULTIPLICATION SIGN} 7 pixels, every 4" in facts
    assert page.inner_text("#maps").startswith("Choose a photo")


def test_a_cell_shows_what_it_sees_on_the_photo_by_pointer_and_by_keyboard(page, server, photo):
    opened(page, f"{server.url}/#view=layers&layer=features.1&channel=3")
    page.set_input_files("#choose", photo)
    page.wait_for_selector(".thumbs")
    assert page.locator(".thumbs button").count() == 16
    assert page.get_attribute(".thumbs button >> nth=3", "aria-pressed") == "true"
    page.focus(".map")
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowUp")
    # The first cell is centred on the first pixel: of its 7 pixels, 3 lie outside of the image.
    assert field(page) == pytest.approx([0, 0, 4 / 32, 4 / 32])
    page.keyboard.press("ArrowRight")
    assert field(page) == pytest.approx([1 / 32, 0, 8 / 32, 4 / 32])
    page.locator(".large figcaption", has_text="row 1, column 2").wait_for()
    page.keyboard.press("Tab")
    assert page.locator("#marks .field").count() == 0
    box = page.locator(".map").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + box["height"] * 0.99)
    assert field(page) == pytest.approx([25 / 32, 25 / 32, 1, 1])


def test_a_channel_is_chosen_by_arrows_and_stands_in_the_link(page, server, photo):
    opened(page, f"{server.url}/#view=layers&layer=features.0")
    page.set_input_files("#choose", photo)
    page.focus(".thumbs button >> nth=0")
    before = page.evaluate("document.querySelector('.map').toDataURL()")
    page.keyboard.press("ArrowRight")
    assert page.url.endswith("channel=1")
    assert page.evaluate("document.querySelector('.map').toDataURL()") != before


def test_after_pooling_there_are_numbers_instead_of_maps(page, server, photo):
    opened(page, f"{server.url}/#view=layers&layer=logits")
    page.set_input_files("#choose", photo)
    page.locator("#maps figcaption", has_text="4 numbers, from").wait_for()


def test_a_layer_of_another_version_is_told_to_be_gone(page, server):
    opened(page, f"{server.url}/#view=layers&layer=blocks.7")
    page.locator("#layer", has_text="This version has no layer blocks.7").wait_for()


def test_milliseconds_come_by_themselves(page, server):
    opened(page, f"{server.url}/#view=layers")
    page.locator("#totals", has_text="on one core").wait_for()
