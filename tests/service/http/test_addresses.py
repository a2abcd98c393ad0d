"""The prefix that a proxy announces: only a plain path reaches anything that is answered."""

import pytest
from starlette.requests import Request

from models.errors import ConfigError
from service.http.addresses import make_local, public_prefix
from service.settings import load_settings

BAD = [
    "loupe",
    "//evil.example",
    "/loupe//x",
    "https://evil.example",
    "/a/../b",
    "/..",
    "/.",
    "/a b",
    '/a"b',
    "/<script>",
    "/a'b",
    "/a?b",
    "/a#b",
    "/a:b",
    "/a%2f",
    "/a\\b",
    "/é",
    "/" + "a" * 65,
    "/a" * 9,
    "/a, /b",
    "/a;b",
    "/a\x00b",
]


def request(prefix: str) -> Request:
    return Request({"type": "http", "headers": [(b"x-forwarded-prefix", prefix.encode("utf-8"))]})


@pytest.mark.parametrize("prefix", BAD)
def test_what_is_no_plain_path_counts_as_no_prefix(prefix):
    assert public_prefix(request(prefix), root_path="") == ""
    assert public_prefix(request(prefix), root_path="/set") == "/set"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/loupe", "/loupe"),
        ("/loupe/", "/loupe"),
        ("/a/b.c/d-e_f~", "/a/b.c/d-e_f~"),
        ("", ""),
        ("/", ""),
    ],
)
def test_a_plain_path_is_the_prefix_unless_one_is_set(given, expected):
    assert public_prefix(request(given), root_path="") == expected
    assert public_prefix(request(given), root_path="/set") == "/set"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/loupe/v1/classify", "/v1/classify"),
        ("/loupe", "/"),
        ("/loupe/", "/"),
        ("/loupes/v1", "/loupes/v1"),
        ("/v1/models/", "/v1/models"),
        ("/", "/"),
        ("//", "/"),
        ("/docs/", "/docs/"),
        ("/loupe/docs/", "/docs/"),
        ("/v1/loupe/x", "/v1/loupe/x"),
    ],
)
def test_paths_are_read_without_the_prefix_and_without_a_slash_at_the_end(path, expected):
    scope = {"path": path}
    make_local(scope, root_path="/loupe")
    assert scope["path"] == expected


@pytest.mark.parametrize("value", [one for one in BAD if "\x00" not in one] + ["/loupe/"])
def test_a_root_path_that_is_no_plain_path_is_refused(monkeypatch, tmp_path, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOUPE_ROOT_PATH", value)
    with pytest.raises(
        ConfigError, match="expected a path such as /loupe, without a slash at its end"
    ):
        load_settings({"LOUPE_ROOT_PATH": value})
