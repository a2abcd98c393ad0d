"""What is written leaves in order and whole, when the event loop comes round."""

import asyncio

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from service.server.single_write import JoinedWrites
from tests.service.held import drive, until


class Sent:
    """A transport that writes down what reaches it."""

    def __init__(self):
        self.sends = []
        self.closed = False

    def writelines(self, lines):
        assert not self.closed
        self.sends.append(list(lines))

    def write_eof(self):
        self.sends.append([b"EOF"])

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    @property
    def data(self):
        return b"".join(piece for pieces in self.sends for piece in pieces)


def test_head_and_body_leave_together():
    async def test():
        sent = Sent()
        joined = JoinedWrites(sent, asyncio.get_running_loop())
        joined.write(b"head")
        joined.write(b"body")
        assert sent.sends == []
        await asyncio.sleep(0)
        assert sent.sends == [[b"head", b"body"]]

    drive(test)


def test_a_write_that_stays_alone_leaves_when_the_loop_comes_round():
    """Such as `100 Continue`, for which the client waits."""

    async def test():
        sent = Sent()
        joined = JoinedWrites(sent, asyncio.get_running_loop())
        joined.write(b"100")
        await asyncio.sleep(0)
        joined.write(b"200")
        await asyncio.sleep(0)
        assert sent.sends == [[b"100"], [b"200"]]

    drive(test)


@pytest.mark.parametrize("end", ["write_eof", "close"])
def test_what_is_held_leaves_before_the_end(end):
    async def test():
        sent = Sent()
        joined = JoinedWrites(sent, asyncio.get_running_loop())
        joined.write(b"bye")
        getattr(joined, end)()
        assert (sent.sends[0], sent.closed) == ([b"bye"], end == "close")
        await asyncio.sleep(0)
        assert len(sent.sends) == (1 if end == "close" else 2)

    drive(test)


def test_what_is_held_for_a_connection_that_is_gone_is_dropped_without_an_error():
    """On uvloop and a real socket, where an error in a callback would reach nobody."""
    faults = []

    async def test():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        lost, protocols = asyncio.Event(), []

        class Server(asyncio.Protocol):
            def connection_made(self, transport):
                self.joined = JoinedWrites(transport, loop)
                protocols.append(self)

            def connection_lost(self, exc):
                lost.set()

        server = await loop.create_server(Server, "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await until(lambda: protocols)
            joined = protocols[0].joined
            joined.write(b"held while the client goes")
            writer.transport.abort()
            joined.abort()
            await lost.wait()
            joined.write(b"for nobody")
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test(), 10))
    assert faults == []


@given(st.lists(st.one_of(st.binary(max_size=3), st.none())))
def test_whatever_is_written_arrives_in_order(steps):
    """None: the event loop comes round."""

    async def test():
        sent = Sent()
        joined = JoinedWrites(sent, asyncio.get_running_loop())
        for step in steps:
            if step is None:
                await asyncio.sleep(0)
            else:
                joined.write(step)
        await asyncio.sleep(0)
        assert sent.data == b"".join(step for step in steps if step is not None)

    drive(test)
