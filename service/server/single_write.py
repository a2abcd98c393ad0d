"""An answer from memory leaves in one packet.

uvicorn writes head and body one by one: two system calls, two packets, two wake-ups of the client.
Measured with answers of 300 bytes on a loopback, one packet takes a third less time in the kernel
here, and a third less of all time in the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

FLUSH_S = 30.0
"""How long a closed connection may keep what its client does not take."""


class InPairs:
    """A transport that holds a write back until the next one, which goes with it, or until the
    event loop comes round. All else is *transport*'s.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._is_closing = transport.is_closing
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send *data*, sooner or later, after what came before.

        Raises what *transport* raises once the connection is gone.
        """
        if self._is_closing():
            # So that whoever writes hears of it, and stops.
            self._transport.write(data)
        elif not self._held:
            self._held = data
            self._loop.call_soon(self._send_held)
        elif data:
            held, self._held = self._held, b""
            self._transport.writelines((held, data))
        else:
            self._send_held()

    def writelines(self, lines: Iterable[bytes]) -> None:
        """Send *lines* after what came before."""
        self._send_held()
        self._transport.writelines(lines)

    def write_eof(self) -> None:
        """Send what is held, and say that no more comes."""
        self._send_held()
        self._transport.write_eof()

    def close(self) -> None:
        """Send what is held, and close once it is sent, or after `FLUSH_S`."""
        self._send_held()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._loop.call_later(FLUSH_S, self._transport.abort)

    def _send_held(self) -> None:
        held, self._held = self._held, b""
        if held and not self._is_closing():
            self._transport.write(held)
