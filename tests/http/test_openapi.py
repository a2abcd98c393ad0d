"""The OpenAPI document is true: its paths are the routes, its codes those of the tree, and
schemathesis finds no answer that it does not describe.
"""

import subprocess
import sys

import openapi_spec_validator
import pytest

from models import errors
from service.http.app import ROUTES
from service.http.openapi import openapi_document
from tests.http.server import Server, environment

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,unsupported_method"
)


def test_the_document_is_valid():
    openapi_spec_validator.validate(openapi_document())


def test_its_paths_are_the_routes():
    described = {
        (path, method.upper())
        for path, item in openapi_document()["paths"].items()
        for method in item
    }
    assert described == {
        (path, method) for path, methods, _ in ROUTES for method in methods.split()
    }


def test_it_names_every_code_that_a_body_can_earn():
    text = str(openapi_document()["paths"]["/v1/classify"])
    image_errors = [
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ImageError)
    ]
    assert len(set(image_errors)) >= 6
    assert [code for code in image_errors if code not in text] == []


def test_it_is_served_and_its_page_loads_nothing_from_elsewhere(client):
    assert client.get("/openapi.json").json() == openapi_document()
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text
    for name, kind in {
        "swagger-ui.css": "text/css",
        "swagger-ui-bundle.js": "text/javascript",
        "docs.js": "text/javascript",
    }.items():
        file = client.get(f"/docs/{name}")
        assert (file.status_code, file.headers["content-type"].partition(";")[0]) == (200, kind)
        assert f'"docs/{name}"' in page.text, "relative, so that a proxy may put a prefix before it"
    assert client.get("/docs/index.css").json()["code"] == "unknown_route"
    assert client.get("/docs/..%2f..%2fetc%2fpasswd").json()["code"] == "unknown_route"


def run_schemathesis(server: Server, tmp_path, *, examples: int, seconds: int) -> None:
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{server.url}/openapi.json",
        "--checks",
        CHECKS,
        "--phases",
        "fuzzing",
    ]
    options = [
        "--max-examples",
        str(examples),
        "--seed",
        "1",
        "--request-timeout",
        "30",
        "--no-color",
        "--exclude-path-regex",
        "^/docs",
    ]
    done = subprocess.run(
        [*command, *options],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Traceback" not in server.log


def test_schemathesis_finds_no_answer_that_is_not_described(server: Server, tmp_path):
    run_schemathesis(server, tmp_path, examples=4, seconds=100)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_schemathesis_finds_none_in_many_more_requests(server: Server, tmp_path):
    run_schemathesis(server, tmp_path, examples=300, seconds=1100)
