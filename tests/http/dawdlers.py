"""Clients that connect and give nothing, or little: `python -m tests.http.dawdlers PORT SILENT
SLOW_HEADS SLOW_BODIES`.
"""

from __future__ import annotations

import asyncio
import sys

KINDS = (
    (b"", b"", 30.0),
    (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n", 2.0),
    (b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n", b"x", 2.0),
)
"""What each kind sends first, and then again and again, after how many seconds."""
SPREAD_S = 3.0


async def keep_coming(
    port: int, opening: bytes, drip: bytes, *, pause_s: float, after_s: float
) -> None:
    """A client that sends *opening* and then a little, forever, and connects again when it is
    thrown out.
    """
    await asyncio.sleep(after_s)
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(pause_s)
            continue
        try:
            writer.write(opening)
            leaving = asyncio.create_task(reader.read())
            while not leaving.done():
                await asyncio.wait([leaving], timeout=pause_s)
                writer.write(drip)
                await writer.drain()
        except OSError:
            pass
        finally:
            leaving.cancel()
            writer.close()


async def main(port: int, *counts: int) -> None:
    """Be all of them, until killed."""
    crowd = [
        asyncio.create_task(
            keep_coming(port, *kind[:2], pause_s=kind[2], after_s=SPREAD_S * number / count)
        )
        for kind, count in zip(KINDS, counts, strict=True)
        for number in range(count)
    ]
    await asyncio.sleep(SPREAD_S + 1.0)
    sys.stdout.write("all connected\n")
    sys.stdout.flush()
    await asyncio.gather(*crowd)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
