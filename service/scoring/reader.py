"""An item's bytes, or why there are none; and the difference between one image that is gone and a storage that is gone."""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

from models.errors import StorageLost
from service.scoring.items import Fault, Item
from service.scoring.places import bucket_of, file_system, is_remote, local_path, open_place, scheme_of

MAX_IMAGE_BYTES = 256 * 2**20
OPEN_ARCHIVES = 4


class Reader:
    """Reads items. Thread-safe.

    *base* is what must be there for as long as local items are read: the folder, table or archive of the input.
    """

    def __init__(self, base: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> None:
        self.base = base
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._archives: OrderedDict[str, zipfile.ZipFile] = OrderedDict()

    def read(self, item: Item) -> bytes | Fault:
        """The encoded image of *item*. Raises `StorageLost` if not only this one cannot be read."""
        if item.fault is not None:
            return item.fault
        # A second try is for what a network loses now and then; drivers have tried by themselves before.
        for last in (not is_remote(item.url), True):
            try:
                return self._bytes(item)
            except Exception as error:  # noqa: BLE001 - drivers of file systems raise classes of their own
                self._require_storage(item, error)
                fault = _fault(item, error)
                if last or fault.code != "unreadable":
                    break
        return fault

    def _bytes(self, item: Item) -> bytes | Fault:
        if item.size is not None and item.size > self._max_bytes:
            return self._too_large(item.size)
        if item.member is not None:
            content = self._member(item.url, item.member)
        elif is_remote(item.url):
            content = self._remote(item)
        else:
            content = self._local(item)
        if len(content) > self._max_bytes:
            return self._too_large(len(content))
        if item.size is not None and len(content) < item.size:
            return Fault("undecodable_image", f"the archive ends within it, after {len(content)} of {item.size} bytes: copy the complete archive")
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

    def _member(self, url: str, member: str) -> bytes:
        with self._archive(url).open(member) as stream:
            return stream.read(self._max_bytes + 1)

    def _archive(self, url: str) -> zipfile.ZipFile:
        with self._lock:
            archive = self._archives.get(url)
            if archive is None:
                archive = self._archives[url] = zipfile.ZipFile(open_place(url) if is_remote(url) else local_path(url))
                # Those pushed out are closed when the last thread lets go of them.
                while len(self._archives) > OPEN_ARCHIVES:
                    self._archives.popitem(last=False)
            self._archives.move_to_end(url)
            return archive

    def _too_large(self, size: int) -> Fault:
        return Fault("file_too_large", f"{size} bytes or more, expected at most {self._max_bytes}; --max-image-bytes raises that")

    def _require_storage(self, item: Item, error: Exception) -> None:
        """Raise `StorageLost` unless what *item* lies in is still there."""
        if not is_remote(item.url):
            if not Path(local_path(self.base)).exists():
                raise StorageLost(
                    f"{self.base} is gone: {item.path} could not be read ({error}). The job's state is kept: bring it back and go on with --resume"
                ) from error
            return
        bucket = bucket_of(item.url)
        try:
            _look_into(bucket)
        except Exception as lost:
            raise StorageLost(
                f"{bucket} cannot be reached: {lost}. The job's state is kept: put that right (address, credentials, the bucket itself) "
                "and go on with --resume"
            ) from lost


def _look_into(bucket: str) -> None:
    """Raise what the driver raises unless *bucket* is there and may be listed."""
    scheme, _, name = bucket.partition("://")
    if scheme in {"s3", "s3a"}:
        # One request, however large the bucket is.
        file_system(scheme).call_s3("list_objects_v2", Bucket=name, MaxKeys=1)
    else:
        file_system(scheme).ls(bucket, detail=False)


def _fault(item: Item, error: Exception) -> Fault:
    match error:
        case FileNotFoundError() | KeyError() | NotADirectoryError():
            return Fault("not_found", f"{item.url} does not exist (any more)")
        case IsADirectoryError():
            return Fault("is_a_directory", f"{item.url} is a directory")
        case PermissionError():
            return Fault("permission_denied", f"{item.url} may not be read: {error.strerror or error}")
        case zipfile.BadZipFile() | zlib.error() | EOFError() | NotImplementedError() | RuntimeError():
            return Fault("damaged_archive", f"{item.member or item.path} cannot be taken out of {item.url}: {error}")
        case _:
            return Fault("unreadable", f"{item.url} cannot be read: {getattr(error, 'strerror', None) or error or type(error).__name__}")
