"""Nobody's request is part of another one's: whatever is sent, and however it is cut, each request
is read whole or refused, never both.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.http.raw import cuts, exchange, received_for
from tests.http.server import ANSWER_PATIENCE_S, Server
from tests.service.server.test_framing import REFUSED_CHUNKS, REFUSED_HEADS

SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CUTS = ("one", "two", "bytes")
JAVA_CLIENT = Path(__file__).with_name("JavaClient.java")


def post(photo: bytes, *fields: bytes, close: bool = True) -> bytes:
    lines = [
        b"POST /v1/classify HTTP/1.1",
        b"Host: x",
        b"Content-Length: %d" % len(photo),
        *fields,
        *[b"Connection: close"] * close,
    ]
    return b"\r\n".join([*lines, b"", photo])


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0", b"anything, else"])
def test_an_upgrade_is_ignored_and_the_body_read(
    server: Server, photo: bytes, upgrade: bytes, cut: str
):
    request = post(
        photo,
        b"Connection: Upgrade, HTTP2-Settings",
        b"Upgrade: " + upgrade,
        b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
    )
    ((status, _, body),) = exchange(server, cuts(request)[cut])
    assert status == 200
    assert json.loads(body)["predictions"]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("method", [b"POST", b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"])
def test_a_body_behind_an_upgrade_is_no_request_of_its_own(server: Server, method: bytes, cut: str):
    head = (
        b"%b /v1/classify HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade:"
        b" h2c\r\nContent-Length: %d\r\n\r\n"
    )
    segments = cuts(head % (method, len(SMUGGLED)) + SMUGGLED)[cut]
    received = received_for(server, segments)
    # The connection may close before the body is sent, and the refusal may be lost with it.
    assert received.count(b"HTTP/1.1 ") <= 1
    assert b'"zoo"' not in received


@pytest.mark.parametrize("name", REFUSED_HEADS)
def test_what_could_be_read_in_two_ways_is_refused_and_what_lies_behind_is_not_answered(
    server: Server, name: str
):
    for cut, segments in cuts(REFUSED_HEADS[name] + SMUGGLED).items():
        found = exchange(server, segments)
        assert [status for status, _, _ in found] == [400], (name, cut)
        _, headers, body = found[0]
        assert json.loads(body)["code"] == "malformed_request"
        assert headers["connection"] == "close"
        assert headers["x-request-id"] == json.loads(body)["request_id"]


@pytest.mark.parametrize("name", REFUSED_CHUNKS)
def test_odd_chunks_are_refused_and_what_lies_behind_is_not_answered(server: Server, name: str):
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for cut, segments in cuts(head + REFUSED_CHUNKS[name] + SMUGGLED).items():
        found = exchange(server, segments)
        assert [(status, json.loads(body)["code"]) for status, _, body in found] == [
            (400, "malformed_request")
        ], (name, cut)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("method", [b"GET", b"DELETE"])
def test_a_body_on_a_method_that_has_none_is_read_and_not_answered(
    server: Server, method: bytes, cut: str
):
    head = b"%b /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (
        method,
        len(SMUGGLED),
    )
    first, last = exchange(
        server,
        cuts(head + SMUGGLED + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[cut],
    )
    assert first[0] == (200 if method == b"GET" else 405)
    assert last[0] == 200
    assert b'"zoo"' not in last[2]


@pytest.mark.parametrize("cut", CUTS)
def test_requests_behind_one_another_are_answered_in_order(server: Server, photo: bytes, cut: str):
    first = post(photo, close=False)
    chunked = (
        b"POST http://elsewhere/v1/classify?top_k=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:"
        b" chunked\r\n\r\n"
    )
    chunked += b"%x;a=b\r\n%b\r\n0\r\nContent-Type: text/plain\r\n\r\n" % (len(photo), photo)
    found = exchange(
        server,
        cuts(
            first
            + b"\r\n"
            + chunked
            + first
            + b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
            + SMUGGLED
        )[cut],
    )
    assert [status for status, _, _ in found] == [200, 200, 200, 404, 200]
    assert [len(json.loads(body)["predictions"]) for _, _, body in found[:3]] == [5, 1, 5]
    assert b'"zoo"' in found[4][2]


@pytest.mark.parametrize("cut", CUTS)
def test_a_request_behind_a_refused_one_is_answered_only_behind_its_whole_body(
    server: Server, cut: str
):
    too_long = b"GET /none HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n" + SMUGGLED.ljust(300)
    found = exchange(server, cuts(too_long + SMUGGLED)[cut])
    assert [status for status, _, _ in found] == [404, 200]


def test_a_trailer_is_no_header(server: Server, photo: bytes):
    """It comes when admission and content type are decided."""
    head = (
        b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection:"
        b" close\r\n\r\n"
    )
    ((status, headers, _),) = exchange(
        server, [head, b"%x\r\n%b\r\n0\r\nX-Request-Id: mine\r\n\r\n" % (len(photo), photo)]
    )
    assert status == 200
    assert headers["x-request-id"] != "mine"


def test_curl_that_asks_for_http_2_gets_its_answer(server: Server, photo: bytes, tmp_path: Path):
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    (tmp_path / "photo").write_bytes(photo)
    command = [
        curl,
        "--silent",
        "--show-error",
        "--http2",
        "--data-binary",
        f"@{tmp_path / 'photo'}",
        f"{server.url}/v1/classify",
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=ANSWER_PATIENCE_S)
    assert json.loads(done.stdout)["predictions"]


@pytest.mark.slow
def test_a_java_client_gets_its_answers(server: Server, photo: bytes, tmp_path: Path):
    """java.net.http.HttpClient asks for h2c with every first request of a connection."""
    java = shutil.which("java")
    if java is None:
        pytest.skip("java is not installed; Debian's default-jdk-headless has it")
    (tmp_path / "photo").write_bytes(photo)
    command = [java, str(JAVA_CLIENT), f"{server.url}/v1/classify", str(tmp_path / "photo")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    lines = done.stdout.splitlines()
    assert len(lines) == 8, done.stdout
    assert all(line.startswith("200 ") and '"predictions"' in line for line in lines), done.stdout
