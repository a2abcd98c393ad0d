"""Requests as bytes on a socket, cut as a test wants, and all the answers that come back."""

from __future__ import annotations

import http.client
import io
import socket
from collections.abc import Iterable
from contextlib import suppress

from tests.http.server import Server

Answer = tuple[int, http.client.HTTPMessage, bytes]


def cuts(data: bytes) -> dict[str, list[bytes]]:
    """*data* in one segment, in two (head and rest), and byte by byte."""
    end = data.find(b"\r\n\r\n") + 4
    return {
        "one": [data],
        "two": [data[:end], data[end:]],
        "bytes": [data[at : at + 1] for at in range(len(data))],
    }


def exchange(server: Server, segments: Iterable[bytes]) -> list[Answer]:
    """What the server answers to *segments* until it closes the connection."""
    return answers(received_for(server, segments))


def received_for(server: Server, segments: Iterable[bytes]) -> bytes:
    """What the server sends for *segments* until it closes the connection."""
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A refusal may come, and the connection close, before all is sent.
        with suppress(BrokenPipeError, ConnectionResetError):
            for segment in segments:
                connection.sendall(segment)
        received = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part
    return received


def answers(received: bytes) -> list[Answer]:
    """The answers in *received*, which holds nothing else."""
    stream, found = io.BytesIO(received), []
    while line := stream.readline():
        version, status, *_ = line.split()
        assert version == b"HTTP/1.1", f"no answer begins here: {line!r}"
        headers = http.client.parse_headers(stream)
        if int(status) == 100:
            continue
        body = stream.read(int(headers["content-length"]))
        assert len(body) == int(headers["content-length"])
        found.append((int(status), headers, body))
    return found
