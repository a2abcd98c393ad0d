"""One connection on a real socket and uvloop: how long it may wait, how many there may be, and what
comes behind a request.
"""

import asyncio
import json
import logging
import resource
import socket
import ssl
from contextlib import asynccontextmanager

import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from service.server import connection as connection_module
from service.server.connection import Connection, Loop
from service.server.connection_limit import MOST, OWN, ConnectionLimit, connection_limit
from tests.http.test_admission import certificate
from tests.service.held import until

PATIENCE_S = 10.0
SOON_S = 0.15
HELLO = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(scope, receive, send):
    """Answers with path and length of the body; `/early` before it reads any; `/slow` when it is
    told to; `/large` with a megabyte.
    """
    path, size, more = scope["path"], 0, True
    while more and path != "/early":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    if path == "/slow":
        await scope["state"]["go_on"].wait()
    body = b"x" * 10**6 if path == "/large" else f"{scope['method']} {path} {size}".encode()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"%d" % len(body))],
        }
    )
    await send({"type": "http.response.body", "body": body})


class Served:
    """A listening server, and its clients."""

    def __init__(self, port, state, go_on):
        self.port, self.state, self.go_on = port, state, go_on
        self.writers = []

    async def connect(self, *segments, **options):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        self.writers.append(writer)
        for segment in segments:
            writer.write(segment)
            await writer.drain()
        return reader, writer

    async def all_of(self, *segments):
        """What comes back until the server closes."""
        reader, _ = await self.connect(*segments)
        return await asyncio.wait_for(reader.read(), PATIENCE_S)


@asynccontextmanager
async def served(*, most=100, at_all=200, keep_alive_s=PATIENCE_S):
    loop = asyncio.get_running_loop()
    go_on, state = asyncio.Event(), ServerState()
    config = uvicorn.Config(
        app=echo, log_config=None, timeout_keep_alive=keep_alive_s, lifespan="off"
    )
    config.load()
    limit = ConnectionLimit(most, at_all=at_all)

    def protocol():
        return Connection(
            limit=limit, config=config, server_state=state, app_state={"go_on": go_on}, _loop=loop
        )

    server = await loop.create_server(protocol, "127.0.0.1", 0)
    clients = Served(server.sockets[0].getsockname()[1], state, go_on)
    try:
        yield clients
    finally:
        go_on.set()
        for writer in clients.writers:
            writer.close()
        server.close()
        await until(lambda: not (state.connections or state.tasks))
        assert limit._open == set()
        assert limit._idle == {}


def drive(test):
    """Run the coroutine *test* on uvloop; what fails in a callback fails it."""
    faults = []

    async def watched():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        await asyncio.wait_for(test(), 2 * PATIENCE_S)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watched())
    assert faults == []


def code(answer):
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    return int(answer[9:12]), json.loads(answer.partition(b"\r\n\r\n")[2])["code"]


async def next_answer(reader):
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return await reader.readexactly(size)


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    for name in ("HEAD_TIMEOUT_S", "UNREAD_BODY_TIMEOUT_S", "LINGER_S", "STALLED_S"):
        monkeypatch.setattr(connection_module, name, SOON_S)


def test_a_silent_connection_is_closed_without_a_word():
    async def test():
        async with served() as server:
            assert await server.all_of() == b""

    drive(test)


@pytest.mark.parametrize(
    "beginning", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"\r", b"\r\nGET / HTTP/1.1\r\n"]
)
def test_a_head_that_does_not_end_in_time_is_refused(beginning):
    async def test():
        async with served() as server:
            assert code(await server.all_of(beginning)) == (408, "request_timeout")

    drive(test)


def test_a_head_that_comes_bit_by_bit_has_no_more_time_than_another():
    """Bytes that keep coming do not push the end back."""

    async def test():
        async with served() as server:
            reader, writer = await server.connect(b"GET / HTTP/1.1\r\nX: ")
            reading = asyncio.create_task(reader.read())
            while not reading.done():
                writer.write(b"x")
                await asyncio.sleep(SOON_S / 20)
            assert code(await reading) == (408, "request_timeout")

    drive(test)


def test_a_later_head_has_its_time_from_its_first_byte():
    async def test():
        async with served() as server:
            reader, writer = await server.connect(HELLO)
            await next_answer(reader)
            await asyncio.sleep(2 * SOON_S)
            writer.write(HELLO)
            assert await next_answer(reader) == b"GET /hello 0"
            writer.write(b"GET /")
            assert code(await asyncio.wait_for(reader.read(), PATIENCE_S)) == (
                408,
                "request_timeout",
            )

    drive(test)


def test_an_empty_line_keeps_no_connection_alive():
    async def test():
        async with served() as server:
            reader, writer = await server.connect(HELLO + b"\r\n\r\n")
            await next_answer(reader)
            writer.write(b"\r\n")
            assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""

    drive(test)


def test_an_idle_connection_is_closed_after_its_time():
    async def test():
        async with served(keep_alive_s=SOON_S) as server:
            assert (await server.all_of(HELLO)).endswith(b"GET /hello 0")

    drive(test)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX-Big: " + b"x" * 50_000,
        b"GET /" + b"x" * 50_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n",
    ],
    ids=["field", "target", "fields"],
)
def test_a_head_is_bounded_in_bytes_and_fields(head):
    async def test():
        async with served() as server:
            assert code(await server.all_of(head)) == (431, "head_too_large")

    drive(test)


def test_a_head_of_just_under_16_kib_is_read_byte_by_byte():
    """In time that grows with its length and not with its square."""

    async def test():
        async with served() as server:
            head = (b"GET /hello HTTP/1.1\r\nHost: x\r\nX-Big: ").ljust(
                16_300, b"x"
            ) + b"\r\nConnection: close\r\n\r\n"
            reader, writer = await server.connect()
            # All in one go, and again a byte at a time: by the protocol itself, since a kernel puts
            # bytes together.
            writer.write(head)
            assert (await asyncio.wait_for(reader.read(), PATIENCE_S)).endswith(b"GET /hello 0")
            reader, writer = await server.connect()
            await until(lambda: len(server.state.connections) == 1)
            (protocol,) = server.state.connections
            for at in range(len(head)):
                protocol.data_received(head[at : at + 1])
            assert (await asyncio.wait_for(reader.read(), PATIENCE_S)).endswith(b"GET /hello 0")

    drive(test)


def test_what_comes_behind_a_refusal_is_dropped():
    async def test():
        async with served() as server:
            reader, writer = await server.connect(
                b"GET / HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n" + HELLO
            )
            writer.write(HELLO * 1000)
            assert code(await asyncio.wait_for(reader.read(), PATIENCE_S)) == (
                400,
                "malformed_request",
            )

    drive(test)


def test_requests_behind_one_that_is_being_answered_wait_in_bounds():
    async def test():
        async with served() as server:
            reader, writer = await server.connect(HELLO.replace(b"hello", b"slow"))
            await until(lambda: bool(server.state.tasks))
            (protocol,) = server.state.connections
            # Eight megabytes: more than the kernel takes.
            writer.write(HELLO * 250_000)
            await until(lambda: protocol._full)
            await asyncio.sleep(SOON_S)
            assert len(protocol._unread) < 600_000
            server.go_on.set()
            assert await next_answer(reader) == b"GET /slow 0"
            for _ in range(2000):
                assert await next_answer(reader) == b"GET /hello 0"
            writer.transport.abort()

    drive(test)


def test_a_body_that_was_answered_before_it_came_is_read_and_the_connection_goes_on():
    async def test():
        async with served() as server:
            early = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n"
            reader, writer = await server.connect(early + b"GET")
            assert await next_answer(reader) == b"POST /early 0"
            writer.write(b" / " + HELLO)
            assert await next_answer(reader) == b"GET /hello 0"
            await asyncio.sleep(2 * SOON_S)
            writer.write(HELLO)
            assert await next_answer(reader) == b"GET /hello 0"

    drive(test)


@pytest.mark.parametrize("more", [b"", b"5\r\nhello\r\n", b"0x\r\n"])
def test_a_body_that_was_answered_and_never_ends_is_given_up(more):
    """No second answer comes, not even a refusal: it would be that of the next request."""

    async def test():
        async with served() as server:
            reader, writer = await server.connect(
                b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            assert await next_answer(reader) == b"POST /early 0"
            writer.write(more)
            assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""

    drive(test)


def test_a_client_that_takes_nothing_of_its_answer_is_let_go():
    async def test():
        async with served() as server:
            narrow = socket.socket()
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            narrow.setblocking(False)
            await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", server.port))
            await asyncio.get_running_loop().sock_sendall(
                narrow, HELLO.replace(b"hello", b"large") * 20
            )
            await until(lambda: bool(server.state.connections))
            await until(lambda: not (server.state.connections))
            narrow.close()

    drive(test)


def test_a_new_connection_takes_the_place_of_the_one_that_waits_longest(monkeypatch, caplog):
    monkeypatch.setattr(connection_module, "HEAD_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(logging.getLogger("loupe"), "propagate", True)

    async def test():
        async with served(most=4, at_all=6) as server:
            silent = [await server.connect() for _ in range(3)]
            kept, writer = await server.connect(HELLO)
            await next_answer(kept)
            assert (await server.all_of(HELLO.replace(b"1.1", b"1.0"))).endswith(b"GET /hello 0")
            assert await silent[0][0].read() == b""
            assert not any(reader.at_eof() for reader, _ in silent[1:])
            writer.write(HELLO)
            assert await next_answer(kept) == b"GET /hello 0"

    drive(test)
    assert caplog.text.count("raise it (ulimit -n)") == 1


def test_where_all_connections_are_at_work_only_probes_get_in():
    async def test():
        async with served(most=3, at_all=5) as server:
            at_work = [await server.connect(HELLO.replace(b"hello", b"slow")) for _ in range(3)]
            await until(lambda: len(server.state.tasks) == 3)
            assert code(await server.all_of(HELLO)) == (503, "too_busy")
            assert (await server.all_of(b"GET /livez HTTP/1.0\r\n\r\n")).endswith(b"GET /livez 0")
            server.go_on.set()
            for reader, _ in at_work:
                assert await next_answer(reader) == b"GET /slow 0"
            assert (await server.all_of(HELLO.replace(b"1.1", b"1.0"))).endswith(b"GET /hello 0")

    drive(test)


def test_beyond_the_reserve_for_probes_a_connection_is_closed():
    async def test():
        async with served(most=1, at_all=2) as server:
            for _ in range(2):
                await server.connect(
                    b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
                )
                await server.connect(
                    b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
                )
            await until(lambda: not (len(server.state.connections) > 2))
            assert await server.all_of() == b""

    drive(test)


def test_the_soft_limit_is_raised_to_the_hard_one_and_connections_get_their_share():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        limit = connection_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert limit._most == min((hard - OWN) * 3 // 4, MOST)
        assert limit._most < limit._at_all < hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_with_few_descriptors_a_worker_keeps_those_that_it_needs_itself(monkeypatch):
    """Without them, connections are accepted and closed before they are read."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    limit = connection_limit()
    assert 8 <= limit._most < limit._at_all <= 64 - OWN


def test_a_handshake_that_does_not_come_is_given_up(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))

    async def test():
        loop = asyncio.get_running_loop()
        async with await loop.create_server(
            asyncio.Protocol, "127.0.0.1", 0, ssl=context
        ) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
            writer.close()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(test())
