"""When the bundle's page does not start: it says why, and what to do."""

from __future__ import annotations

import pytest

from tests.browser.chromium import another_browser, failure, static_server


def test_a_changed_model_is_refused(browser, copied):
    model = copied / "variants" / "fp32.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with static_server(copied) as address:
        assert failure(address, browser=browser).startswith(
            "variants/fp32.onnx was changed: it has "
        )


@pytest.mark.parametrize("name", ["variants/fp32.onnx", "manifest.json", "golden/0.png.pixels.png"])
def test_a_missing_file_is_named(browser, copied, name):
    (copied / name).unlink()
    with static_server(copied) as address:
        assert (
            failure(address, browser=browser)
            == f"{name} is missing on the server (status 404). Copy web/ to the server again."
        )


def test_an_unknown_variant_is_refused_with_the_valid_ones(browser, web_folder):
    with static_server(web_folder) as address:
        assert (
            failure(f"{address}/?variant=int8.onnx", browser=browser)
            == "There is no variant int8.onnx. Valid: fp32.onnx."
        )


def test_a_browser_without_wasm_simd_gets_a_message(browser, web_folder):
    """A CPU without SSE4.1 gives V8 no SIMD; a flag simulates one.

    It has its own process, because flags hold for a whole browser.
    """
    with (
        another_browser(browser, "--js-flags=--no-enable-sse4-1") as other,
        static_server(web_folder) as address,
    ):
        assert failure(address, browser=other).startswith(
            "This browser has no WebAssembly SIMD, which the model needs. Use Chrome or Edge 91,"
        )
