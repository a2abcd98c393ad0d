"""The short way of a plain request and the general way answer alike, over real sockets: the one is only quicker."""

import json
import socket
import struct

import httpx
import pytest

from tests.http.conftest import MAX_BODY_BYTES, make_photo
from tests.http.server import Server, read_one, read_several

PHOTO = make_photo(3)
GENERAL = {"origin": "https://page.example"}
"""Sends a request the general way: for all the short one knows, CORS is meant. Without allowed origins it changes nothing."""

ASKED = {
    "a photo": ("", PHOTO, {"content-type": "image/png"}),
    "a photo of no type": ("", PHOTO, {}),
    "curl's type": ("", PHOTO, {"content-type": "application/x-www-form-urlencoded"}),
    "two classes": ("?top_k=2", PHOTO, {}),
    "more classes than there are": ("?top_k=1000", PHOTO, {}),
    "a model and a version": ("?model=zoo&version=1", PHOTO, {}),
    "the last of two counts": ("?top_k=3&top_k=1", PHOTO, {}),
    "a chunked photo": ("", [PHOTO[:50], PHOTO[50:]], {}),
    "no bytes": ("", b"", {}),
    "no image": ("", b"hello", {"content-type": "image/jpeg"}),
    "half an image": ("", PHOTO[:100], {}),
    "an unknown model": ("?model=ants", PHOTO, {}),
    "a version that is not served": ("?version=9", PHOTO, {}),
    "no number": ("?top_k=many", PHOTO, {}),
    "too large": ("", bytes(MAX_BODY_BYTES + 1), {}),
    "too large, chunked": ("", [bytes(MAX_BODY_BYTES), b"x"], {}),
    "an unknown option": ("?top=3", PHOTO, {}),
    "a threshold": ("?threshold=0.2", PHOTO, {}),
    "a compressed body": ("", PHOTO, {"content-encoding": "gzip"}),
}


def ask(client: httpx.Client, query: str, body: bytes | list[bytes], headers: dict[str, str]) -> tuple[int, list[tuple[str, str]], dict]:
    """Status, headers and JSON, without what differs between any two answers: the date, the time it took, and the length of that."""
    response = client.post(f"/v1/classify{query}", content=body if isinstance(body, bytes) else iter(body), headers=headers)
    answer = response.json()
    timing = answer.pop("timing_ms", {})
    assert set(timing) in (set(), {"read", "decode", "queue", "inference", "total"})
    assert int(response.headers["content-length"]) == len(response.content)
    return response.status_code, [pair for pair in response.headers.items() if pair[0] not in ("date", "content-length")], answer


@pytest.mark.parametrize("name", ASKED)
def test_both_ways_answer_alike(client, name):
    query, body, headers = ASKED[name]
    headers = {**headers, "x-request-id": "mine"}
    direct, general = ask(client, query, body, headers), ask(client, query, body, headers | GENERAL)
    assert direct == general
    assert dict(direct[1])["x-request-id"] == direct[2]["request_id"] == "mine"
    assert list(direct[2]) == list(general[2]), "the members come in one order"


def test_the_short_answer_is_written_as_the_general_one_is(client):
    """Byte for byte, but for the figures of the times."""
    bodies = [client.post("/v1/classify", content=PHOTO, headers={"x-request-id": "mine", **more}).content for more in ({}, GENERAL)]
    for body in bodies:
        assert body == json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode()
    assert bodies[0].partition(b'"timing_ms"')[0] == bodies[1].partition(b'"timing_ms"')[0]


def test_a_request_id_that_could_do_harm_is_replaced(client):
    response = client.post("/v1/classify", content=PHOTO, headers={"x-request-id": 'a"b'})
    assert len(response.json()["request_id"]) == 32
    assert response.headers["x-request-id"] == response.json()["request_id"]


def request(body: bytes, *more: str) -> bytes:
    lines = ["POST /v1/classify HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not count segments")
@pytest.mark.parametrize("more", [(), ("Origin: https://page.example",)], ids=["the short way", "the general way"])
@pytest.mark.parametrize("body", [PHOTO, b"hello"], ids=["an answer", "a problem"])
def test_head_and_body_come_in_one_packet(server: Server, body, more):
    """By the kernel's own count: two writes that come together would look like one to whoever reads."""
    with server.connect() as connection:
        for count in range(1, 21):
            connection.sendall(request(body, *more))
            assert read_one(connection)
            received = data_segments_in(connection)
            if not received:
                pytest.skip("this system does not count segments")
            assert received == count


def data_segments_in(connection: socket.socket) -> int:
    """TCP segments with data that *connection* received. Source: `struct tcp_info` of linux/tcp.h, tcpi_data_segs_in."""
    (count,) = struct.unpack_from("=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160), 152)
    return count


def test_requests_one_after_the_other_without_a_pause_are_answered_in_order(server: Server):
    with server.connect() as connection:
        connection.sendall(b"".join(request(make_photo(seed), f"X-Request-Id: r{seed}") for seed in range(5)))
        answers = read_several(connection, 5)
    assert [(status, json.loads(body)["request_id"]) for status, body in answers] == [(200, f"r{seed}") for seed in range(5)]


def test_a_client_that_has_said_all_and_closes_its_half_harms_nobody(server: Server, client):
    """uvicorn takes the end of what a client sends for its leaving. It gets its answer or none, and the next request is right."""
    with server.connect() as connection:
        connection.sendall(request(PHOTO))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert client.post("/v1/classify", content=PHOTO).status_code == 200


def test_a_body_refused_unread_does_not_spoil_its_connection(server: Server):
    """The refusal comes while the body is still on its way; what is left of it is not taken for a request."""
    with server.connect() as connection:
        connection.sendall(request(bytes(MAX_BODY_BYTES + 1)))
        status, body = read_one(connection)
        assert (status, json.loads(body)["code"]) == (413, "body_too_large")
        connection.sendall(request(PHOTO))
        assert read_one(connection)[0] == 200


def test_clients_that_never_finish_keep_nobody_waiting(server: Server, client):
    stalled = [server.connect() for _ in range(50)]
    try:
        for connection in stalled:
            connection.sendall(request(PHOTO)[:-10])
        assert client.post("/v1/classify", content=PHOTO).status_code == 200
    finally:
        for connection in stalled:
            connection.close()
