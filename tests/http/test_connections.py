"""Requests and answers on the connection: packets, pipelines, half-closed and refused bodies."""

import json
import socket
import struct

import pytest

from tests.http.conftest import MAX_BODY_BYTES, make_photo
from tests.http.server import Server, read_one, read_several

PHOTO = make_photo(3)


def test_a_request_id_that_could_do_harm_is_replaced(client):
    response = client.post("/v1/classify", content=PHOTO, headers={"x-request-id": 'a"b'})
    assert len(response.json()["request_id"]) == 32
    assert response.headers["x-request-id"] == response.json()["request_id"]


def request(body: bytes, *more: str) -> bytes:
    lines = ["POST /v1/classify HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not count segments")
@pytest.mark.parametrize("body", [PHOTO, b"hello"], ids=["an answer", "a problem"])
def test_head_and_body_come_in_one_packet(server: Server, body):
    """By the kernel's own count: two writes that come together would look like one to whoever
    reads.
    """
    with server.connect() as connection:
        for count in range(1, 21):
            connection.sendall(request(body))
            assert read_one(connection)
            received = data_segments_in(connection)
            if not received:
                pytest.skip("this system does not count segments")
            assert received == count


def data_segments_in(connection: socket.socket) -> int:
    """TCP segments with data that *connection* received.

    Source: `struct tcp_info` of linux/tcp.h, tcpi_data_segs_in.
    """
    (count,) = struct.unpack_from(
        "=I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160), 152
    )
    return count


def test_requests_one_after_the_other_without_a_pause_are_answered_in_order(server: Server):
    with server.connect() as connection:
        connection.sendall(
            b"".join(request(make_photo(seed), f"X-Request-Id: r{seed}") for seed in range(5))
        )
        answers = read_several(connection, 5)
    assert [(status, json.loads(body)["request_id"]) for status, body in answers] == [
        (200, f"r{seed}") for seed in range(5)
    ]


def test_a_client_that_has_said_all_and_closes_its_half_harms_nobody(server: Server, client):
    """uvicorn takes the end of what a client sends for its leaving.

    It gets its answer or none, and the next request is right.
    """
    with server.connect() as connection:
        connection.sendall(request(PHOTO))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert client.post("/v1/classify", content=PHOTO).status_code == 200


def test_a_body_refused_unread_does_not_spoil_its_connection(server: Server):
    """The refusal comes while the body is still on its way; what is left of it is not taken for a
    request.
    """
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
