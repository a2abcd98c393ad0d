"""Behind a real reverse proxy that serves Loupe under a path: by its header, by the setting, and
with a header that lies.
"""

from __future__ import annotations

import re

import httpx
import pytest

from service.gate.keys import add_key
from service.http.pages import PLAYGROUND
from tests.http.conftest import make_photo
from tests.http.proxy import proxied
from tests.http.server import ANSWER_PATIENCE_S, serving

PREFIX = "/apps/loupe"
ABSOLUTE = re.compile(r"""(?:href|src|action)\s*=\s*["']?/|fetch\(\s*["'`]/|url:\s*["'`]/""")
FORGED = [
    "//evil.example",
    "https://evil.example",
    '/"><script>alert(1)</script>',
    "/a/../b",
    "/x\\",
    "javascript:alert(1)",
]


def check(origin: str) -> None:
    """All that is served works under the prefix, and says its address where it has to."""
    with httpx.Client(
        base_url=f"{origin}{PREFIX}", timeout=ANSWER_PATIENCE_S, trust_env=False
    ) as client:
        for path in (
            "/",
            "/docs",
            "/docs/docs.js",
            "/page/app.js",
            "/docs/swagger-ui.css",
            "/v1/models",
            "/v1/models/zoo",
            "/metrics",
            "/readyz",
            "/livez",
            "/ping",
        ):
            assert client.get(path).status_code == 200, path
        document = client.get("/openapi.json")
        (address,) = document.json()["servers"]
        assert address == {"url": PREFIX}
        assert (document.headers["vary"], document.headers["cache-control"]) == (
            "x-forwarded-prefix",
            "no-store",
        )
        for path in ("/v1/classify", "/v1/classify/", "/predictions/zoo", "/classify"):
            assert client.post(path, content=make_photo(0)).status_code == 200, path
        moved = client.get("/docs/")
        assert str(moved.url.join(moved.headers["location"])) == f"{origin}{PREFIX}/docs"


def test_the_header_of_a_proxy_that_strips_the_prefix_is_believed(server):
    with proxied(server, prefix=PREFIX) as origin:
        check(origin)


@pytest.fixture(scope="module")
def rooted(tmp_path_factory, store):
    with serving(tmp_path_factory.mktemp("rooted"), store=store, root_path=PREFIX) as running:
        yield running


@pytest.mark.parametrize("strips", [True, False], ids=["stripped", "left"])
def test_the_setting_needs_no_header_and_takes_paths_with_and_without_the_prefix(rooted, strips):
    with proxied(rooted, prefix=PREFIX, strips=strips, announces=False) as origin:
        check(origin)


def test_the_setting_wins_over_what_anybody_says(rooted):
    document = httpx.get(
        f"{rooted.url}/openapi.json",
        headers={"X-Forwarded-Prefix": "/else"},
        trust_env=False,
        timeout=ANSWER_PATIENCE_S,
    )
    assert document.json()["servers"] == [{"url": PREFIX}]


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_prefix_reaches_no_answer(client, forged):
    for path in ("/", "/docs", "/docs/", "/openapi.json", "/v1/models", "/nowhere"):
        honest, answer = client.get(path), client.get(path, headers={"X-Forwarded-Prefix": forged})
        for one in (honest, answer):
            one.headers.pop("date")
            one.headers.pop("x-request-id")
        assert answer.headers == honest.headers
        assert re.sub(rb'"request_id":"\w+"', b"", answer.content) == re.sub(
            rb'"request_id":"\w+"', b"", honest.content
        )
    assert client.get("/openapi.json", headers={"X-Forwarded-Prefix": forged}).json()[
        "servers"
    ] == [{"url": "/"}]


def test_every_address_in_a_page_is_relative(client):
    files = [f"/page/{path.name}" for path in PLAYGROUND.iterdir() if path.suffix != ".html"]
    assert len(files) > 15
    for path in ("/", "/docs", "/docs/docs.js", *files):
        page = client.get(path)
        assert (page.status_code, ABSOLUTE.findall(page.text)) == (200, []), path
    assert (
        ABSOLUTE.findall('<a href="/docs"> <script src=/x> fetch(`/v1`) url: "/openapi.json"') != []
    )


def test_a_browser_that_has_the_current_page_is_told_so(client):
    for path in ("/", "/page/app.js"):
        first = client.get(path)
        again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_a_file_that_is_no_part_of_the_page_is_refused(client):
    for name in ("index.html", "..%2fapp.py", "secrets.txt"):
        assert client.get(f"/page/{name}").json()["code"] == "unknown_route"


def test_keys_are_asked_for_whatever_stands_around_the_path(tmp_path, store):
    """The path is read the same way by whoever checks the key and by whoever answers."""
    keys = tmp_path / "keys.json"
    add_key(keys, name="ada", scopes=("predict",))
    with serving(tmp_path, store=store, root_path=PREFIX, api_keys_file=keys) as running:
        for path in (
            "/v1/models",
            "/v1/models/",
            f"{PREFIX}/v1/models",
            f"{PREFIX}/v1/models/",
            f"{PREFIX}{PREFIX}/v1/models",
            "/%761/models/",
        ):
            answer = httpx.get(f"{running.url}{path}", trust_env=False, timeout=ANSWER_PATIENCE_S)
            assert answer.status_code == 401, path
        assert (
            httpx.get(
                f"{running.url}{PREFIX}/", trust_env=False, timeout=ANSWER_PATIENCE_S
            ).status_code
            == 200
        )
