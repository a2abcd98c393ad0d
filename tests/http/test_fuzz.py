"""Requests with any bytes, headers and segments: each is answered or closed in time, by no fault of
ours, and the service is as before.
"""

import asyncio
import base64
import json
import random
import re
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.http.raw import answers
from tests.http.server import Server, serving

FAST, SLOW = 300, 10_000
AT_A_TIME = 48
HANG_S = 2.0
UNFINISHED_S = 0.4
"""After so long without a byte, the server waits for more: the client leaves, then the server."""
DOCUMENTED_5XX = {"queue_full", "too_busy", "deadline_exceeded"}
GROWTH_MB = 40

LINES = (
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"content-length : 3",
    b"Content-Length: 1e3",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding:\tchunked ",
    b" folded",
    b"\tfolded",
    b"X: \x00",
    b"X: \xff\xfe",
    b"Upgrade: h2c",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Connection: keep-alive",
    b"Connection: close, upgrade",
    b"Expect: 100-continue",
    b"Content-Type: multipart/form-data; boundary=x",
    b"Content-Type: application/json",
    b"Content-Type: ",
    b"Content-Encoding: gzip",
    b"Host: other",
    b"Host:",
    b":",
    b"X-Request-Id: " + b"a" * 300,
    b"X-Forwarded-For: 1.2.3.4, \xff",
    b"X-Forwarded-Proto: ws",
    b"Origin: null",
    b"Authorization: Bearer \xff",
    b"Cookie: " + b"c" * 9000,
    b"Range: bytes=0-",
    b"If-None-Match: *",
    b"Accept: \x7f",
    b"Trailer: X",
    b"TE: trailers",
    b"Inference-Header-Content-Length: 7",
    b"traceparent: 00-zz",
)
PIECES = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\x00",
    b" ",
    b"%00",
    b"%",
    b"../",
    b"//",
    b"?",
    b"#",
    b"0\r\n\r\n",
    b"FFFFFFFFF\r\n",
    b"0x1\r\n",
    b";a=b",
    b"\xff" * 9,
    b"GET /livez HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01",
    b"HTTP/1.0",
    b"HTTP/3",
    b"{",
    b"}",
)


def seeds(photo: bytes) -> list[bytes]:
    """Good requests of each kind."""
    form = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type:'
        b" image/png\r\n\r\n" + photo + b"\r\n--x--\r\n"
    )
    text = json.dumps({"images": [{"b64": base64.b64encode(photo).decode()}]}).encode()
    tensors = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "shape": [1],
                    "datatype": "BYTES",
                    "data": [base64.b64encode(photo).decode()],
                }
            ]
        }
    ).encode()
    bodies = [
        (b"POST /v1/classify", b"image/png", photo),
        (b"POST /v1/classify?top_k=2", b"application/octet-stream", photo),
        (
            b"POST /v1/classify?explain=true&embedding=true",
            b"multipart/form-data; boundary=x",
            form,
        ),
        (b"POST /v1/classify", b"application/json", text),
        (b"POST /classify", b"multipart/form-data; boundary=x", form),
        (b"POST /v2/models/zoo/infer", b"application/json", tensors),
        (b"PUT /predictions/zoo", b"image/png", photo),
        (b"POST /v2/repository/index", b"application/json", b"{}"),
    ]
    paths = [
        b"/livez",
        b"/readyz",
        b"/v1/models",
        b"/v1/models/zoo",
        b"/v2",
        b"/metrics",
        b"/schema.json",
        b"/openapi.json",
        b"/docs",
        b"/",
        b"/ping",
    ]
    heads = [
        b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % (method, path)
        for path in paths
        for method in (b"GET", b"OPTIONS", b"DELETE")
    ]
    start = (
        b"%b HTTP/1.1\r\nHost: x\r\nUser-Agent: fuzz\r\nContent-Type: %b\r\nConnection: close\r\n"
    )
    sized = [
        start % (line, kind) + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        for line, kind, body in bodies
    ]
    chunked = [
        start % (line, kind)
        + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        for line, kind, body in bodies
    ]
    return heads + 3 * sized + 3 * chunked


def mutated(rng: random.Random, good: list[bytes]) -> bytes:
    """One of *good*, changed up to four times."""
    request = rng.choice(good)
    for _ in range(rng.randint(0, 4)):
        kind = rng.randrange(8)
        # Half of all changes in the head: that is where requests begin and end.
        end = request.find(b"\r\n\r\n") + 4 if rng.random() < 0.5 else len(request)
        at = rng.randrange(max(1, end))
        if kind == 0:
            request = (
                request[:at] + rng.randbytes(rng.randint(1, 4)) + request[at + rng.randint(0, 4) :]
            )
        elif kind == 1:
            request = request[:at] + request[at + rng.randint(1, 40) :]
        elif kind == 2:
            request = request[:at] + rng.choice(PIECES) + request[at:]
        elif kind in (3, 4):
            lines = request.split(b"\r\n")
            lines.insert(rng.randrange(min(len(lines), 8)) + 1, rng.choice(LINES))
            request = b"\r\n".join(lines)
        elif kind == 5:
            request = request[: rng.randrange(len(request) + 1)]
        elif kind == 6:
            request += rng.choice(good)
        else:
            lines = request.split(b"\r\n")
            request = b"\r\n".join(lines[: rng.randrange(8)] * rng.randint(1, 40) + lines)
    return request


def segments(rng: random.Random, request: bytes) -> list[bytes]:
    """*request*, cut at up to five places, or into its bytes if it is short."""
    if len(request) < 400 and rng.random() < 0.1:
        return [request[at : at + 1] for at in range(len(request))]
    places = sorted(
        {0, *(rng.randrange(len(request) + 1) for _ in range(rng.randint(0, 5))), len(request)}
    )
    return [request[begin:end] for begin, end in pairwise(places)]


async def send(server: Server, pieces: list[bytes]) -> tuple[bytes, float]:
    """All that comes back, and the longest time for which the server kept the client waiting that
    had left or sent all.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    received, slowest = b"", 0.0
    with suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        with suppress(TimeoutError):
            while part := await asyncio.wait_for(
                reader.read(65536), UNFINISHED_S if not received else HANG_S
            ):
                received += part
        began = time.monotonic()
        with suppress(ConnectionError, OSError):
            writer.write_eof()
        received += await asyncio.wait_for(reader.read(), 10 * HANG_S)
        slowest = time.monotonic() - began
    writer.close()
    return received, slowest


def check(request: bytes, received: bytes, slowest: float) -> None:
    assert slowest < HANG_S, request
    if b"HEAD" in request:
        return
    for status, _, body in answers(received):
        assert status < 500 or json.loads(body)["code"] in DOCUMENTED_5XX, (status, request, body)


async def fuzz(server: Server, photo: bytes, *, count: int, seed: int) -> float:
    """Send *count* requests. The longest time that a probe took meanwhile."""
    rng, good = random.Random(seed), seeds(photo)
    waiting = [
        (request, segments(rng, request)) for request in (mutated(rng, good) for _ in range(count))
    ]
    probed = [0.0]

    async def client() -> None:
        while waiting:
            request, pieces = waiting.pop()
            check(request, *await send(server, pieces))

    async def probe() -> None:
        async with httpx.AsyncClient(
            base_url=server.url, trust_env=False, timeout=10 * HANG_S
        ) as watcher:
            while waiting:
                began = time.monotonic()
                assert (await watcher.get("/livez")).status_code == 200
                probed.append(time.monotonic() - began)
                await asyncio.sleep(0.1)

    await asyncio.gather(probe(), *(client() for _ in range(AT_A_TIME)))
    return max(probed)


def failures(log: str) -> list[str]:
    """Lines that tell of a fault of ours."""
    return [
        line
        for line in log.splitlines()
        if re.search(r"Traceback|internal_error| ERROR |Exception in", line)
    ]


def test_a_few_hundred_mutated_requests(server: Server, photo: bytes):
    before = len(failures(server.log))
    assert asyncio.run(fuzz(server, photo, count=FAST, seed=15)) < HANG_S
    assert failures(server.log)[before:] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_mutated_requests(tmp_path: Path, store: Path, photo: bytes):
    with serving(tmp_path, store=store, max_body_bytes=100_000) as server:
        (worker,) = server.workers()
        asyncio.run(fuzz(server, photo, count=FAST, seed=1))
        before = worker.memory_info().rss
        began = time.monotonic()
        probed = asyncio.run(fuzz(server, photo, count=SLOW, seed=2))
        grown_mb = (worker.memory_info().rss - before) / 2**20
        statuses = sorted({int(found) for found in re.findall(r" status=(\d+)", server.log)})
        print(  # noqa: T201 - the measurement, for a person
            f"{SLOW} in {time.monotonic() - began:.0f} s; slowest probe {probed:.3f} s; memory"
            f" {grown_mb:+.1f} MB; {statuses}"
        )
        assert probed < HANG_S
        assert failures(server.log) == []
        assert grown_mb < GROWTH_MB
        assert (
            httpx.post(f"{server.url}/v1/classify", content=photo, trust_env=False).status_code
            == 200
        )
        assert server.stop() == 0
