"""What the page does when the service says no, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.gate.keys import add_key
from tests.browser.photos import large_jpeg, write_photo
from tests.browser.test_playground import opened
from tests.http.server import Server, serving


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def key(key_file: Path) -> str:
    return add_key(key_file, name="browser", scopes=("predict",))


@pytest.fixture(scope="module")
def strict(browser, tmp_path_factory, zoo: Path, key: str, key_file: Path) -> Iterator[Server]:
    """It wants a key, shows no inside, holds one image in its queue, and takes small bodies."""
    settings = {
        "api_keys_file": key_file,
        "inspect": "off",
        "max_queue_size": 1,
        "lanes": 1,
        "max_body_bytes": 4_000_000,
    }
    with serving(tmp_path_factory.mktemp("strict"), store=zoo, **settings) as running:
        yield running


def enter(page, server: Server, key: str) -> None:
    page.goto(server.url)
    page.locator("#notice h2", has_text="An API key is needed").wait_for()
    page.fill("#key-field", key)
    page.keyboard.press("Enter")
    page.locator("#about", has_text="zoo version").wait_for()


def test_a_key_is_asked_for_and_kept_in_memory_alone(tolerant, strict, key):
    tolerant.goto(strict.url)
    tolerant.fill("#key-field", "wrong")
    tolerant.keyboard.press("Enter")
    tolerant.locator("#notice", has_text="The API key is not known").wait_for()
    tolerant.fill("#key-field", key)
    tolerant.keyboard.press("Enter")
    tolerant.locator("#about", has_text="zoo version").wait_for()
    assert tolerant.locator("#notice").is_hidden()
    stored = "[localStorage.length, sessionStorage.length, document.cookie]"
    assert tolerant.evaluate(stored) == [0, 0, ""]
    tolerant.reload()
    tolerant.locator("#notice h2", has_text="An API key is needed").wait_for()


def test_without_inspection_layers_and_pixels_are_hidden_in_one_sentence(
    tolerant, strict, key, tmp_path
):
    asked: list[str] = []
    tolerant.on("request", lambda request: asked.append(request.url))
    enter(tolerant, strict, key)
    assert tolerant.locator("[role=tab]:visible").all_inner_texts() == ["Answer"]
    assert tolerant.inner_text("#closed").count(".") == 1
    tolerant.set_input_files("#choose", write_photo(tmp_path / "photo.png"))
    tolerant.wait_for_selector("#heat:not([hidden])")
    assert not [url for url in asked if "/preprocess" in url or "/layers?" in url]


def test_a_full_queue_is_waited_for_until_every_photo_is_answered(tolerant, strict, key, tmp_path):
    statuses: list[int] = []
    tolerant.on("response", lambda answer: statuses.append(answer.status))
    files = [tmp_path / f"{number}.jpg" for number in range(6)]
    content = large_jpeg(2400, 1600)
    for file in files:
        file.write_bytes(content)
    enter(tolerant, strict, key)
    tolerant.set_input_files("#choose", files)
    tolerant.locator("#gallery .row", has_text="6 answered").wait_for()
    assert 503 in statuses, "the queue was full"
    assert tolerant.locator(".cards [data-state=done]").count() == 6


def test_too_large_a_file_is_told_with_what_to_do(tolerant, strict, key, tmp_path):
    enter(tolerant, strict, key)
    (tmp_path / "huge.jpg").write_bytes(b"\xff\xd8" + bytes(5_000_000))
    tolerant.set_input_files("#choose", tmp_path / "huge.jpg")
    tolerant.locator("#answer", has_text="Scale").wait_for()


def test_a_service_that_is_gone_is_told_and_asked_again(tolerant, server, tmp_path):
    opened(tolerant, server.url)
    tolerant.context.set_offline(True)
    tolerant.set_input_files("#choose", write_photo(tmp_path / "photo.png"))
    tolerant.locator("#answer h2", has_text="The service does not answer").wait_for()
    tolerant.context.set_offline(False)
    tolerant.click("#answer .again")
    tolerant.wait_for_selector("#answer .bars")
