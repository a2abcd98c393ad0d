"""A client for Loupe's own HTTP interface, sync and async. Needs httpx alone.

    with Client("http://127.0.0.1:3000") as client:
        print(client.classify(Path("photo.jpg")).top.label)

Connections are pooled. Temporary errors (503, 504, 429, a broken connection) are retried, after
the time that `Retry-After` says, at most `retries` times and within `patience_s`. All other errors
are raised as the class of `models.errors` with their `code`. Many threads, or many tasks, may share
a client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import httpx

from models.errors import LoupeError
from service.client.wire import (
    CLASSIFY,
    OCTETS,
    PASSING_ERRORS,
    Answer,
    Explanation,
    Image,
    Policy,
    Prediction,
    ServedModel,
    batches_of,
    body_of,
    encoded,
    form_of,
    headers_of,
    image_files,
    query_of,
    read_answer,
    read_results,
)

__all__ = ["Answer", "AsyncClient", "Client", "Explanation", "Prediction", "ServedModel"]

T = TypeVar("T")
R = TypeVar("R")


class Client:
    """Use as a context manager, or call `close`.

    *token* is an API key. *timeout_s* bounds each try, *patience_s* all tries of a request
    together; *retries* are tries after the first. *concurrency* is how many requests
    `classify_folder` and `classify_many` send at once.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        patience_s: float = 60.0,
        concurrency: int = 8,
    ) -> None:
        self._concurrency = concurrency
        self._policy = Policy(url, retries, patience_s)
        self._http = httpx.Client(
            base_url=url, timeout=timeout_s, headers=headers_of(token), limits=_limits(concurrency)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[ServedModel]:
        """What is served. Raises `LoupeError`."""
        body = self._ask("GET", "/v1/models")
        return [ServedModel(one["name"], one["version"]) for one in body["models"]]

    def classify(self, image: Image, **options: Any) -> Answer:
        """The answer for one image.

        *options* are the route's: `top_k`, `threshold`, `explain`, `explain_class`, `embedding`,
        `model`, `version`.

        Raises the class of `models.errors` that has the problem's `code`, or `ServiceUnreachable`.
        """
        body = self._ask(
            "POST", CLASSIFY, params=query_of(options), content=encoded(image), headers=OCTETS
        )
        return read_answer(body, body["model"])

    def classify_many(
        self, images: Sequence[Image], *, batch_size: int = 16, **options: Any
    ) -> list[Answer | LoupeError]:
        """An answer or error for each of *images*, in order; *batch_size* of them go in a request.

        Raises `LoupeError` if a whole request fails.
        """
        query = query_of(options)

        def ask(batch: Sequence[Image]) -> list[Answer | LoupeError]:
            return read_results(self._ask("POST", CLASSIFY, params=query, files=form_of(batch)))

        return [
            answer
            for _, answers in self._each(batches_of(images, batch_size), ask, ordered=True)
            for answer in answers
        ]

    def classify_folder(
        self, folder: Path, *, ordered: bool = True, **options: Any
    ) -> Iterator[tuple[Path, Answer | LoupeError]]:
        """Each image file in *folder* and below it, with its answer or error.

        At most `concurrency` requests run at once. With *ordered* the answers come by path,
        otherwise as they arrive. If the service is unreachable, each file gets that error.
        """

        def ask(path: Path) -> Answer | LoupeError:
            try:
                return self.classify(path, **options)
            except LoupeError as error:
                return error

        return self._each(image_files(folder), ask, ordered=ordered)

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        started_s, tried = time.monotonic(), 0
        while True:
            tried += 1
            try:
                return body_of(self._http.request(method, path, **request))
            except PASSING_ERRORS as error:
                pause_s = self._policy.pause_s(error, tried=tried, started_s=started_s)
            time.sleep(pause_s)

    def _each(
        self, items: Iterable[T], ask: Callable[[T], R], *, ordered: bool
    ) -> Iterator[tuple[T, R]]:
        """Each item with what *ask* gives for it, `concurrency` of them at once."""
        waiting: dict[Future[R], T] = {}
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="loupe-client") as threads:
            try:
                for item in items:
                    waiting[threads.submit(ask, item)] = item
                    if len(waiting) == self._concurrency:
                        yield from _taken(waiting, ordered=ordered)
                while waiting:
                    yield from _taken(waiting, ordered=ordered)
            finally:
                threads.shutdown(wait=True, cancel_futures=True)


class AsyncClient:
    """`Client` for asyncio: use as `async with`, or call `aclose`."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        patience_s: float = 60.0,
        concurrency: int = 8,
    ) -> None:
        self._concurrency = concurrency
        self._policy = Policy(url, retries, patience_s)
        self._http = httpx.AsyncClient(
            base_url=url, timeout=timeout_s, headers=headers_of(token), limits=_limits(concurrency)
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[ServedModel]:
        """As `Client.models`."""
        body = await self._ask("GET", "/v1/models")
        return [ServedModel(one["name"], one["version"]) for one in body["models"]]

    async def classify(self, image: Image, **options: Any) -> Answer:
        """As `Client.classify`."""
        body = await self._ask(
            "POST", CLASSIFY, params=query_of(options), content=await _read(image), headers=OCTETS
        )
        return read_answer(body, body["model"])

    async def classify_many(
        self, images: Sequence[Image], *, batch_size: int = 16, **options: Any
    ) -> list[Answer | LoupeError]:
        """As `Client.classify_many`."""
        query = query_of(options)

        async def ask(batch: Sequence[Image]) -> list[Answer | LoupeError]:
            encoded = [await _read(image) for image in batch]
            return read_results(
                await self._ask("POST", CLASSIFY, params=query, files=form_of(encoded))
            )

        return [
            answer
            async for _, answers in self._each(batches_of(images, batch_size), ask, ordered=True)
            for answer in answers
        ]

    async def classify_folder(
        self, folder: Path, *, ordered: bool = True, **options: Any
    ) -> AsyncIterator[tuple[Path, Answer | LoupeError]]:
        """As `Client.classify_folder`."""

        async def ask(path: Path) -> Answer | LoupeError:
            try:
                return await self.classify(path, **options)
            except LoupeError as error:
                return error

        async for found in self._each(image_files(folder), ask, ordered=ordered):
            yield found

    async def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        started_s, tried = time.monotonic(), 0
        while True:
            tried += 1
            try:
                return body_of(await self._http.request(method, path, **request))
            except PASSING_ERRORS as error:
                pause_s = self._policy.pause_s(error, tried=tried, started_s=started_s)
            await asyncio.sleep(pause_s)

    async def _each(
        self, items: Iterable[T], ask: Callable[[T], Coroutine[Any, Any, R]], *, ordered: bool
    ) -> AsyncIterator[tuple[T, R]]:
        waiting: dict[asyncio.Task[R], T] = {}
        try:
            for item in items:
                waiting[asyncio.create_task(ask(item))] = item
                if len(waiting) == self._concurrency:
                    for found in await _taken_async(waiting, ordered=ordered):
                        yield found
            while waiting:
                for found in await _taken_async(waiting, ordered=ordered):
                    yield found
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


def _taken(waiting: dict[Future[R], T], *, ordered: bool) -> list[tuple[T, R]]:
    """Take finished futures out of *waiting*, at least one; with *ordered* only the oldest."""
    done = (
        [next(iter(waiting))] if ordered else list(wait(waiting, return_when=FIRST_COMPLETED).done)
    )
    return [(waiting.pop(future), future.result()) for future in done]


async def _taken_async(waiting: dict[asyncio.Task[R], T], *, ordered: bool) -> list[tuple[T, R]]:
    oldest = next(iter(waiting))
    done, _ = await asyncio.wait(
        [oldest] if ordered else waiting, return_when=asyncio.FIRST_COMPLETED
    )
    return [(waiting.pop(task), task.result()) for task in done]


async def _read(image: Image) -> bytes:
    return image if isinstance(image, bytes) else await asyncio.to_thread(encoded, image)


def _limits(concurrency: int) -> httpx.Limits:
    return httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
