"""Bad input gets a clear error and loses nothing.

Each row: what is sent, and the exact status, code and words that come back.
"""

import json

import httpx
import pytest

from tests.http.conftest import MAX_BODY_BYTES, make_photo
from tests.http.server import Server, read_one

PHOTO = make_photo(0)
ROUTES = "POST an image to /v1/classify; /docs lists every route"
NUMBER = "expected a whole number of 1 to 1000"

# name -> (method, path and query, body, content type, status, code, detail)
BAD = {
    "no bytes": (
        "POST",
        "/v1/classify",
        b"",
        "image/png",
        400,
        "empty_body",
        "the body has no bytes; send the image itself as the body",
    ),
    "plain text": (
        "POST",
        "/v1/classify",
        b"hello",
        "image/png",
        422,
        "undecodable_image",
        "received 5 bytes that begin with b",
    ),
    "zeros": (
        "POST",
        "/v1/classify",
        bytes(1000),
        "image/png",
        422,
        "undecodable_image",
        "received 1000 bytes that begin with b",
    ),
    "half a png": (
        "POST",
        "/v1/classify",
        PHOTO[: len(PHOTO) // 2],
        "image/png",
        422,
        "undecodable_image",
        "PNG of ",
    ),
    "a damaged png": (
        "POST",
        "/v1/classify",
        PHOTO[:60] + b"\xff" * 20 + PHOTO[80:],
        "image/png",
        422,
        "undecodable_image",
        "PNG",
    ),
    "an svg": (
        "POST",
        "/v1/classify",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        None,
        415,
        "unsupported_format",
        "received a SVG file",
    ),
    "xml": (
        "POST",
        "/v1/classify",
        b"<a/>",
        "application/xml",
        422,
        "undecodable_image",
        "received 4 bytes that begin with b'<a/>'",
    ),
    "a mail": (
        "POST",
        "/v1/classify",
        PHOTO,
        "multipart/mixed; boundary=x",
        415,
        "unsupported_content_type",
        "content type 'multipart/mixed' is not taken; send the image itself as the body, or a form",
    ),
    "a form without a boundary": (
        "POST",
        "/v1/classify",
        b"--x--",
        "multipart/form-data",
        415,
        "unsupported_content_type",
        "content type 'multipart/form-data' has no boundary",
    ),
    "another model": (
        "POST",
        "/v1/classify?model=ants",
        PHOTO,
        None,
        404,
        "unknown_model",
        "model 'ants' is not served; served: zoo",
    ),
    "no model": (
        "POST",
        "/v1/classify?model=",
        PHOTO,
        None,
        404,
        "unknown_model",
        "model '' is not served; served: zoo",
    ),
    "a model with a path": (
        "POST",
        "/v1/classify?model=../zoo",
        PHOTO,
        None,
        404,
        "unknown_model",
        "model '../zoo' is not served; served: zoo",
    ),
    "a model of any bytes": (
        "POST",
        "/v1/classify?model=%00%0a%ff",
        PHOTO,
        None,
        404,
        "unknown_model",
        "model '\\x00\\n\ufffd' is not served",
    ),
    "a long model": (
        "POST",
        f"/v1/classify?model={'m' * 9000}",
        PHOTO,
        None,
        404,
        "unknown_model",
        f"model '{'m' * 80}' is not served; served: zoo",
    ),
    "another version": (
        "POST",
        "/v1/classify?version=2",
        PHOTO,
        None,
        404,
        "unknown_model",
        "version '2' of zoo is not served; served: 1",
    ),
    "a version like 1": (
        "POST",
        "/v1/classify?version=01",
        PHOTO,
        None,
        404,
        "unknown_model",
        "version '01' of zoo is not served; served: 1",
    ),
    "top_k 0": (
        "POST",
        "/v1/classify?top_k=0",
        PHOTO,
        None,
        400,
        "bad_request",
        f"top_k is '0'; {NUMBER}",
    ),
    "top_k 1001": (
        "POST",
        "/v1/classify?top_k=1001",
        PHOTO,
        None,
        400,
        "bad_request",
        f"top_k is '1001'; {NUMBER}",
    ),
    "top_k -1": (
        "POST",
        "/v1/classify?top_k=-1",
        PHOTO,
        None,
        400,
        "bad_request",
        f"top_k is '-1'; {NUMBER}",
    ),
    "top_k +1": (
        "POST",
        "/v1/classify?top_k=%2B1",
        PHOTO,
        None,
        400,
        "bad_request",
        f"top_k is '+1'; {NUMBER}",
    ),
    "top_k 1.0": (
        "POST",
        "/v1/classify?top_k=1.0",
        PHOTO,
        None,
        400,
        "bad_request",
        f"top_k is '1.0'; {NUMBER}",
    ),
    "top_k empty": (
        "POST",
        "/v1/classify?top_k=",
        PHOTO,
        None,
        400,
        "bad_request",
        f"top_k is ''; {NUMBER}",
    ),
    "top_k in Arabic": (
        "POST",
        "/v1/classify?top_k=%D9%A3",
        PHOTO,
        None,
        400,
        "bad_request",
        f"top_k is '٣'; {NUMBER}",
    ),
    "top_k superscript": (
        "POST",
        "/v1/classify?top_k=%C2%B2",
        PHOTO,
        None,
        400,
        "bad_request",
        f"top_k is '²'; {NUMBER}",
    ),
    "top_k of 9000 digits": (
        "POST",
        f"/v1/classify?top_k={'9' * 9000}",
        PHOTO,
        None,
        400,
        "bad_request",
        f"top_k is '{'9' * 40}'; {NUMBER}",
    ),
    "too large": (
        "POST",
        "/v1/classify",
        bytes(MAX_BODY_BYTES + 1),
        None,
        413,
        "body_too_large",
        "the body has 100,001 bytes; at most 100,000 are taken",
    ),
    "no route": (
        "GET",
        "/v1/classifier",
        b"",
        None,
        404,
        "unknown_route",
        f"no route /v1/classifier; {ROUTES}",
    ),
    "two slashes": (
        "GET",
        "/v1//models",
        b"",
        None,
        404,
        "unknown_route",
        f"no route /v1//models; {ROUTES}",
    ),
    "a path of any bytes": (
        "GET",
        "/%00%1b%ff",
        b"",
        None,
        404,
        "unknown_route",
        "no route /\x00\x1b\ufffd; POST",
    ),
    "a long path": (
        "GET",
        f"/{'p' * 9000}",
        b"",
        None,
        404,
        "unknown_route",
        f"no route /{'p' * 199}; {ROUTES}",
    ),
    "up and away": (
        "GET",
        "/..%2f..%2fetc/passwd",
        b"",
        None,
        404,
        "unknown_route",
        f"no route /../../etc/passwd; {ROUTES}",
    ),
    "no such model page": (
        "GET",
        "/v1/models/ants",
        b"",
        None,
        404,
        "unknown_model",
        "model 'ants' is not served; served: zoo",
    ),
    "get instead of post": (
        "GET",
        "/v1/classify",
        b"",
        None,
        405,
        "method_not_allowed",
        "GET is not allowed for /v1/classify; allowed: POST",
    ),
    "options": (
        "OPTIONS",
        "/v1/classify",
        b"",
        None,
        405,
        "method_not_allowed",
        "OPTIONS is not allowed for /v1/classify; allowed: POST",
    ),
    "delete": (
        "DELETE",
        "/v1/models/zoo",
        b"",
        None,
        405,
        "method_not_allowed",
        "DELETE is not allowed for /v1/models/zoo; allowed: GET, HEAD",
    ),
    "post to a page": (
        "POST",
        "/",
        b"x",
        None,
        405,
        "method_not_allowed",
        "POST is not allowed for /; allowed: GET, HEAD",
    ),
    "post to a probe": (
        "POST",
        "/readyz",
        b"x",
        None,
        405,
        "method_not_allowed",
        "POST is not allowed for /readyz; allowed: GET, HEAD",
    ),
    "a method of others": (
        "PROPFIND",
        "/v1/classify",
        b"",
        None,
        405,
        "method_not_allowed",
        "PROPFIND is not allowed for /v1/classify",
    ),
    "a method on nothing": (
        "TRACE",
        "/nothing",
        b"",
        None,
        404,
        "unknown_route",
        f"no route /nothing; {ROUTES}",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_its_problem(client, name):
    method, path, body, content_type, status, code, detail = BAD[name]
    headers = {"x-request-id": "row-1"} | (
        {} if content_type is None else {"content-type": content_type}
    )
    response = client.request(method, path, content=body, headers=headers)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (problem["status"], problem["type"]) == (status, f"urn:loupe:problem:{code}")
    assert problem["detail"].startswith(detail)
    assert (response.headers["x-request-id"], problem["request_id"]) == ("row-1", "row-1")
    assert ("allow" in response.headers) is (status == 405)


def test_a_refused_method_says_which_are_allowed(client):
    assert client.options("/v1/classify").headers["allow"] == "POST"
    assert client.request("PROPFIND", "/v1/models/zoo").headers["allow"] == "GET, HEAD"


def test_head_of_a_route_for_post_is_refused_without_a_body(client):
    response = client.head("/v1/classify")
    assert (response.status_code, response.headers["allow"], response.content) == (405, "POST", b"")


def test_an_endless_body_is_refused_as_soon_as_it_is_too_large(server: Server):
    """The client never says that it is done."""
    chunk = b"%x\r\n%b\r\n" % (10_000, bytes(10_000))
    with server.connect() as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(11):
            connection.sendall(chunk)
        status, body = read_one(connection)
    problem = json.loads(body)
    assert (status, problem["code"]) == (413, "body_too_large")
    assert problem["detail"] == "the body has more than 100,000 bytes, the most that are taken"


def test_a_client_that_asks_first_never_sends_a_body_too_large(server: Server):
    answer = server.ask_raw(
        b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect:"
        b" 100-continue\r\nContent-Length: 100001\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 413 ")


CLASSIFY = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client's hello
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nNo colon\r\n\r\n",
        CLASSIFY + b"Content-Length: -5\r\n\r\n" + PHOTO,
        CLASSIFY + b"Content-Length: \xb2\r\n\r\n" + PHOTO,
        CLASSIFY + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + PHOTO,
        # Two lengths: a proxy before us might read another request out of this than we do.
        CLASSIFY + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        CLASSIFY + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CLASSIFY + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_gets_400_and_a_closed_connection(server: Server, request_bytes):
    assert server.ask_raw(request_bytes).startswith(b"HTTP/1.1 400 ")


def test_a_length_shorter_than_the_body_cuts_the_image(server: Server):
    answer = server.ask_raw(CLASSIFY + b"Content-Length: 10\r\n\r\n" + PHOTO)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"PNG of 10 bytes ends in the middle of a structure: send the complete file" in answer


def test_a_websocket_gets_the_answer_of_a_plain_request(server: Server):
    """The service upgrades to nothing, and a server may ignore the wish."""
    upgrade = (
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key:"
        b" dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with server.connect() as connection:
        connection.sendall(b"GET /v1/classify HTTP/1.1\r\nHost: x\r\n" + upgrade)
        assert read_one(connection)[0] == 405


def test_http_1_0_is_answered(server: Server):
    answer = server.ask_raw(
        b"POST /v1/classify HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(PHOTO), PHOTO)
    )
    assert b'"predictions":' in answer


def test_clients_that_leave_in_the_middle_of_a_body_cost_nothing(server: Server, client, photo):
    """Fifty of them, more than a queue of one worker would hold were their places kept."""
    before = client_left(client)
    for _ in range(50):
        with server.connect() as connection:
            connection.sendall(
                b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length:"
                b" 5000\r\n\r\n"
            )
            # The answer proves that the service took the request and waits for its body.
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(photo[:100])
    while client_left(client) < before + 50:
        assert server.process.poll() is None
    assert client.post("/v1/classify", content=photo).status_code == 200
    assert client.get("/readyz").status_code == 200


def client_left(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith('loupe_rejected_total{reason="client_left"}')
    )


def test_after_all_bad_input_the_service_is_well_and_its_log_has_no_traceback(
    server: Server, client, photo
):
    for method, path, body, content_type, status, *_ in BAD.values():
        headers = {} if content_type is None else {"content-type": content_type}
        assert client.request(method, path, content=body, headers=headers).status_code == status
    assert len(BAD) == 39
    assert client.post("/v1/classify", content=photo).status_code == 200
    assert client.get("/readyz").status_code == 200
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log
