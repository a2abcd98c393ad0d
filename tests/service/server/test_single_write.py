"""What is written leaves in order and whole, two writes at a time; nothing waits longer than until
the event loop comes round.
"""

import asyncio

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from service.server import single_write
from service.server.single_write import InPairs
from tests.service.held import drive, until


class Sent:
    """A transport that writes down what reaches it."""

    def __init__(self):
        self.sends = []
        self.closed = False

    def write(self, data):
        assert not self.closed
        self.sends.append([data])

    def writelines(self, lines):
        assert not self.closed
        self.sends.append(list(lines))

    def write_eof(self):
        self.sends.append([b"EOF"])

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def get_write_buffer_size(self):
        return 0

    @property
    def data(self):
        return b"".join(piece for pieces in self.sends for piece in pieces)


def test_head_and_body_leave_together_and_at_once():
    async def test():
        sent = Sent()
        pairs = InPairs(sent, asyncio.get_running_loop())
        pairs.write(b"head")
        assert sent.sends == []
        pairs.write(b"body")
        assert sent.sends == [[b"head", b"body"]]
        await asyncio.sleep(0)
        assert sent.data == b"headbody"

    drive(test)


def test_a_write_that_stays_alone_leaves_when_the_loop_comes_round():
    """Such as `100 Continue`, for which the client waits."""

    async def test():
        sent = Sent()
        pairs = InPairs(sent, asyncio.get_running_loop())
        pairs.write(b"100")
        await asyncio.sleep(0)
        assert sent.sends == [[b"100"]]

    drive(test)


def test_a_head_without_a_body_leaves_at_once():
    """As an answer of length 0: uvicorn writes its body all the same."""

    async def test():
        sent = Sent()
        pairs = InPairs(sent, asyncio.get_running_loop())
        pairs.write(b"head")
        pairs.write(b"")
        assert sent.sends == [[b"head"]]
        pairs.write(b"")
        await asyncio.sleep(0)
        assert sent.sends == [[b"head"]]

    drive(test)


@pytest.mark.parametrize("more", ["writelines", "write_eof"])
def test_what_is_held_leaves_before_what_goes_another_way(more):
    async def test():
        sent = Sent()
        pairs = InPairs(sent, asyncio.get_running_loop())
        pairs.write(b"first")
        if more == "writelines":
            pairs.writelines([b"second", b"third"])
        else:
            pairs.write_eof()
        await asyncio.sleep(0)
        assert sent.sends == [
            [b"first"],
            [b"second", b"third"] if more == "writelines" else [b"EOF"],
        ]

    drive(test)


@pytest.mark.parametrize("held", [True, False])
def test_whoever_writes_to_a_connection_that_is_gone_hears_of_it_at_once(held):
    """On uvloop and a real socket: once the connection is lost its transport refuses writes, and an
    error in a callback would reach nobody.
    """
    faults = []

    async def test():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        lost, protocols = asyncio.Event(), []

        class Server(asyncio.Protocol):
            def connection_made(self, transport):
                self.pairs = InPairs(transport, loop)
                protocols.append(self)

            def connection_lost(self, exc):
                lost.set()

        server = await loop.create_server(Server, "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await until(lambda: protocols)
            pairs = protocols[0].pairs
            if held:
                pairs.write(b"held while the client goes")
            writer.transport.abort()
            pairs._transport.abort()
            await lost.wait()
            with pytest.raises(RuntimeError, match="closed"):
                pairs.write(b"for nobody")
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test(), 10))
    assert faults == []


def test_what_is_held_leaves_before_the_connection_closes():
    async def test():
        sent = Sent()
        pairs = InPairs(sent, asyncio.get_running_loop())
        pairs.write(b"bye")
        pairs.close()
        assert (sent.data, sent.closed, pairs.is_closing()) == (b"bye", True, True)
        await asyncio.sleep(0)
        assert sent.data == b"bye"

    drive(test)


def test_a_closed_connection_does_not_wait_for_ever_for_its_client_to_read(monkeypatch):
    monkeypatch.setattr(single_write, "FLUSH_S", 0.01)
    aborted = asyncio.Event()

    class Clogged(Sent):
        def get_write_buffer_size(self):
            return 1

        def abort(self):
            aborted.set()

    async def test():
        InPairs(Clogged(), asyncio.get_running_loop()).close()
        await aborted.wait()

    drive(test)


@given(st.lists(st.one_of(st.binary(max_size=3), st.none())))
def test_whatever_is_written_arrives_in_order(steps):
    """None: the event loop comes round."""

    async def test():
        sent = Sent()
        pairs = InPairs(sent, asyncio.get_running_loop())
        for step in steps:
            if step is None:
                await asyncio.sleep(0)
            else:
                pairs.write(step)
        await asyncio.sleep(0)
        assert sent.data == b"".join(step for step in steps if step is not None)

    drive(test)
