"""Reads the bytes of an item: from a file, an archive, a bucket or a web server.

An item that cannot be read gets a fault. A storage that is gone ends the job. Threads read ahead
while earlier files are decoded.
"""

from __future__ import annotations

import itertools
import os
import threading
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

from models.errors import StorageLost
from models.messages import reason
from service.scoring.input.archives import BROKEN_ZIP
from service.scoring.input.items import Fault, Item
from service.scoring.input.places import (
    file_system,
    is_http,
    is_remote,
    local_path,
    open_place,
    scheme_of,
)
from service.scoring.input.storages import Storages

MAX_IMAGE_BYTES = 256 * 2**20
OPEN_ARCHIVES = 4
AHEAD = 32
"""Files of a unit that are read before they are needed."""
LOCAL_READERS, REMOTE_READERS = 4, 32
LOCAL_GROUP = 8
"""Local files that one task reads. A bucket answers slowly, so there each file is a task."""


class Reader:
    """Reads items. Thread-safe.

    *base* is what must exist while local items are read: the folder, table or archive of the input.
    """

    def __init__(self, base: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> None:
        self.base = base
        self._max_bytes = max_bytes
        self._storages = Storages()
        # An archive that drops out is closed when the last thread has done with it.
        self._archive = lru_cache(OPEN_ARCHIVES)(_open_zip)
        self._archive_lock = threading.Lock()

    def read(self, item: Item) -> bytes | Fault:
        """The encoded image of *item*. Raises `StorageLost` if the whole storage is gone."""
        if item.fault is not None:
            return item.fault
        # Networks lose a request now and then, even after the driver's own retries.
        for last in (not is_remote(item.url), True):
            try:
                return self._content(item)
            except Exception as error:  # noqa: BLE001 - drivers of file systems raise classes of their own
                fault = _fault(item, error)
                if fault.was_read:
                    return fault
                if last or fault.code != "unreadable":
                    return replace(fault, storage_error=self._storage_error(item, error))
        raise AssertionError  # pragma: no cover - the last try returns

    def _content(self, item: Item) -> bytes | Fault:
        size = item.size
        limit = self._max_bytes + 1 if size is None else min(size, self._max_bytes + 1)
        if item.member is not None:
            with self._archive_lock:
                archive = self._archive(item.url)
            with archive.open(archive.infolist()[item.member]) as stream:
                content = stream.read(limit)
        elif is_http(item.url):
            content = _read_http(item.url, limit)
        elif is_remote(item.url):
            content = _read_object(item, limit)
        else:
            content = _read_file(item, limit)
        if len(content) > self._max_bytes:
            return Fault(
                "file_too_large",
                f"{size or len(content)} bytes or more, expected at most {self._max_bytes};"
                " --max-image-bytes raises that",
                was_read=True,
            )
        if size is not None and len(content) < size:
            return Fault(
                "undecodable_image",
                f"the archive ends within it, after {len(content)} of {size} bytes: copy the"
                " complete archive",
                was_read=True,
            )
        # Remembered only here: a later check of the storage reads it again, so it must have an end.
        if is_remote(item.url) and content:
            self._storages.was_read(item.url)
        return content

    def _storage_error(self, item: Item, error: Exception) -> str:
        """Why the storage of *item* may be gone; empty if it is there.

        Raises `StorageLost` if it is gone for sure.
        """
        if is_remote(item.url):
            return self._storages.error_of(item.url, error)
        if not os.path.exists(local_path(self.base)):  # noqa: PTH110 - raises nothing, as `Path.exists` may
            raise StorageLost(
                f"{self.base} is gone: {item.path} could not be read ({error}). The job's state is"
                " kept: bring it back and continue with --resume"
            ) from error
        return ""


class ReadAhead:
    """Reads whole units with *reader*, in threads of its own."""

    def __init__(self, reader: Reader) -> None:
        self._read = reader.read
        self._local = ThreadPoolExecutor(LOCAL_READERS, thread_name_prefix="read")
        self._remote = ThreadPoolExecutor(REMOTE_READERS, thread_name_prefix="fetch")

    def of(self, items: Sequence[Item]) -> Iterator[bytes | Fault]:
        """The contents of *items* in order. Reading starts at once."""
        remote = any(is_remote(item.url) for item in items)
        threads, size = (self._remote, 1) if remote else (self._local, LOCAL_GROUP)
        groups = (items[at : at + size] for at in range(0, len(items), size))
        begun = (threads.submit(lambda some: [*map(self._read, some)], group) for group in groups)
        return _in_order(deque(itertools.islice(begun, AHEAD // size)), begun)

    def close(self) -> None:
        """Drop what has not begun. Does not wait."""
        for threads in (self._local, self._remote):
            threads.shutdown(wait=False, cancel_futures=True)


def _in_order(
    reading: deque[Future[list[bytes | Fault]]], rest: Iterator[Future[list[bytes | Fault]]]
) -> Iterator[bytes | Fault]:
    """The results of *reading* and *rest*, in order. One of *rest* begins for each that ends."""
    while reading:
        contents = reading.popleft().result()
        reading.extend(itertools.islice(rest, 1))
        yield from contents


def _read_file(item: Item, limit: int) -> bytes:
    # O_NONBLOCK: opening a pipe would wait for its writer forever.
    descriptor = os.open(local_path(item.url), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        if item.offset is not None:
            stream.seek(item.offset)
        content = stream.read(min(limit, os.fstat(descriptor).st_size + 1))
        while 0 < len(content) < limit and (more := stream.read(limit - len(content))):
            content += more
        return content


def _read_object(item: Item, limit: int) -> bytes:
    system = file_system(scheme_of(item.url))
    end: int | None = (item.offset or 0) + limit
    if item.size is None and int(system.size(item.url) or 0) < limit:
        end = None  # of an empty object S3 gives no range
    content: bytes = b"" if limit == 0 else system.cat_file(item.url, start=item.offset, end=end)
    return content


def _read_http(url: str, limit: int) -> bytes:
    # Streamed: what a server says of the size need not be so. A size of 1 spares the request
    # that asks for it.
    content = bytearray()
    with file_system(scheme_of(url)).open(url, "rb", block_size=0, size=1) as stream:
        while len(content) < limit and (block := stream.read(limit - len(content))):
            content += block
    return bytes(content)


def _open_zip(url: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(open_place(url) if is_remote(url) else local_path(url))


def _fault(item: Item, error: Exception) -> Fault:
    status = getattr(error, "status", None)  # of an HTTP server
    why = getattr(error, "strerror", None) or error
    if status == 410 or isinstance(error, FileNotFoundError | KeyError | NotADirectoryError):
        return Fault("not_found", f"{item.url} does not exist (any more)")
    if isinstance(error, IsADirectoryError):
        return Fault("is_a_directory", f"{item.url} is a directory")
    if status in (401, 403) or isinstance(error, PermissionError):
        return Fault("permission_denied", f"{item.url} may not be read: {why}")
    if item.member is not None and isinstance(error, BROKEN_ZIP):
        broken = f"{item.path} cannot be taken out of its archive: {error}"
        return Fault("damaged_archive", broken, was_read=True)
    if isinstance(error, OSError) and error.errno is not None and not is_remote(item.url):
        why = reason(error)
    return Fault("unreadable", f"{item.url} cannot be read: {why or type(error).__name__}")
