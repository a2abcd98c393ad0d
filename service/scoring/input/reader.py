"""An item's bytes, or why there are none; and the difference between one image that is gone and a
storage that is gone.
"""

from __future__ import annotations

import os
import threading
import zipfile
from collections import OrderedDict
from dataclasses import replace

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


class Reader:
    """Reads items. Thread-safe.

    *base* is what must be there for as long as local items are read: the folder, table or archive
    of the input.
    """

    def __init__(self, base: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> None:
        self.base = base
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._storages = Storages()
        self._archives: OrderedDict[str, zipfile.ZipFile] = OrderedDict()

    def read(self, item: Item) -> bytes | Fault:
        """The encoded image of *item*. Raises `StorageLost` if not only this one cannot be read."""
        if item.fault is not None:
            return item.fault
        # A second try is for what a network loses now and then; drivers have tried by themselves
        # before.
        for last in (not is_remote(item.url), True):
            try:
                content = self._bytes(item)
            except Exception as error:  # noqa: BLE001 - drivers of file systems raise classes of their own
                fault = _fault(item, error)
                if fault.was_read:
                    return fault
                if last or fault.code != "unreadable":
                    return replace(fault, doubt=self._doubt(item, error))
            else:
                if is_remote(item.url) and content and not isinstance(content, Fault):
                    self._storages.was_read(item.url)
                return content
        raise AssertionError  # pragma: no cover - the last try returns

    def _bytes(self, item: Item) -> bytes | Fault:
        if item.size is not None and item.size > self._max_bytes:
            return self._too_large(item.size)
        if item.member is not None:
            content = self._member(item.url, item.member)
        elif is_http(item.url):
            content = self._http(item.url)
        elif is_remote(item.url):
            content = self._remote(item)
        else:
            content = self._local(item)
        if len(content) > self._max_bytes:
            return self._too_large(len(content))
        if item.size is not None and len(content) < item.size:
            reason = (
                f"the archive ends within it, after {len(content)} of {item.size} bytes: copy the"
                " complete archive"
            )
            return Fault("undecodable_image", reason, was_read=True)
        return content

    def _local(self, item: Item) -> bytes:
        # O_NONBLOCK: opening a pipe would wait for its writer for ever.
        descriptor = os.open(local_path(item.url), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            if item.offset is not None:
                stream.seek(item.offset)
            wanted = self._max_bytes + 1 if item.size is None else item.size
            expected = min(wanted, os.fstat(descriptor).st_size + 1)
            content = stream.read(expected)
            while 0 < len(content) < wanted and (more := stream.read(wanted - len(content))):
                content += more
            return content

    def _remote(self, item: Item) -> bytes:
        start = item.offset or 0
        end = None if item.size is None else start + item.size
        if end == start:
            return b""
        system = file_system(scheme_of(item.url))
        if end is None and int(system.size(item.url) or 0) > self._max_bytes:
            end = self._max_bytes + 1
        content: bytes = system.cat_file(item.url, start=item.offset, end=end)
        return content

    def _http(self, url: str) -> bytes:
        # Streamed: what a server says of the size need not be so. A size of 1 spares the request
        # that asks for it.
        blocks, size = [], 0
        with file_system(scheme_of(url)).open(url, "rb", block_size=0, size=1) as stream:
            while size <= self._max_bytes and (block := stream.read(self._max_bytes + 1 - size)):
                blocks.append(block)
                size += len(block)
        return b"".join(blocks)

    def _member(self, url: str, member: int) -> bytes:
        archive = self._archive(url)
        with archive.open(archive.infolist()[member]) as stream:
            return stream.read(self._max_bytes + 1)

    def _archive(self, url: str) -> zipfile.ZipFile:
        with self._lock:
            archive = self._archives.get(url)
            if archive is None:
                archive = self._archives[url] = zipfile.ZipFile(
                    open_place(url) if is_remote(url) else local_path(url)
                )
                # Those pushed out are closed when the last thread lets go of them.
                while len(self._archives) > OPEN_ARCHIVES:
                    self._archives.popitem(last=False)
            self._archives.move_to_end(url)
            return archive

    def _too_large(self, size: int) -> Fault:
        return Fault(
            "file_too_large",
            f"{size} bytes or more, expected at most {self._max_bytes}; --max-image-bytes raises"
            " that",
            was_read=True,
        )

    def _doubt(self, item: Item, error: Exception) -> str:
        """Why what *item* lies in may be gone; nothing if it is there.

        Raises `StorageLost` if it is gone for sure.
        """
        if is_remote(item.url):
            return self._storages.doubt(item.url, error)
        if not os.path.exists(local_path(self.base)):  # noqa: PTH110 - raises nothing, as `Path.exists` may
            raise StorageLost(
                f"{self.base} is gone: {item.path} could not be read ({error}). The job's state is"
                " kept: bring it back and go on with --resume"
            ) from error
        return ""


def _fault(item: Item, error: Exception) -> Fault:
    match getattr(error, "status", None):  # of an HTTP server
        case 401 | 403:
            return Fault("permission_denied", f"{item.url} may not be read: {error}")
        case 410:
            return Fault("not_found", f"{item.url} does not exist any more: {error}")
    match error:
        case FileNotFoundError() | KeyError() | NotADirectoryError():
            return Fault("not_found", f"{item.url} does not exist (any more)")
        case IsADirectoryError():
            return Fault("is_a_directory", f"{item.url} is a directory")
        case PermissionError():
            return Fault(
                "permission_denied", f"{item.url} may not be read: {error.strerror or error}"
            )
        case _ if item.member is not None and isinstance(error, BROKEN_ZIP):
            return Fault(
                "damaged_archive",
                f"{item.path} cannot be taken out of its archive: {error}",
                was_read=True,
            )
        case OSError(errno=int()) if not is_remote(item.url):
            return Fault("unreadable", f"{item.url} cannot be read: {reason(error)}")
        case _:
            return Fault(
                "unreadable",
                f"{item.url} cannot be read:"
                f" {getattr(error, 'strerror', None) or error or type(error).__name__}",
            )
