"""Tells one unreadable object from a storage that is gone, without needing the right to list.

A byte of an object that was read before is read again. If that works, the storage is there.
Otherwise the bucket is listed. If nothing was read yet, the fault carries this error, and the job
waits for images that can be read (`service/scoring/compute`).
"""

from __future__ import annotations

import threading
from collections import defaultdict

from models.errors import StorageLost
from service.scoring.input.places import bucket_of, file_system, is_http, scheme_of
from service.scoring.input.walk import walk

WITNESSES = 4
"""Objects remembered for each storage. Some may be deleted in the meantime."""
NOT_FOR_THIS_ONE = {401, 403, 407, 408, 425, 429}
"""4xx statuses that a server may give to every request. The others are about one URL."""


class Storages:
    """Remembers what was read from which bucket. Thread-safe.

    All of HTTP is one storage, because of a thousand hosts some are always down.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read = defaultdict[str, dict[str, str]](dict)

    def was_read(self, url: str) -> None:
        """*url* was read just now."""
        key = bucket_of(url) if is_http(url) else url
        with self._lock:
            witnesses = self._read[_storage(url)]
            witnesses.pop(key, None)
            witnesses[key] = url
            for oldest in list(witnesses)[:-WITNESSES]:
                del witnesses[oldest]

    def error_of(self, url: str, error: Exception) -> str:
        """Why the storage of *url*, which gave *error*, may be gone; empty if it is there.

        Raises `StorageLost` if objects were read from it before, and none can be read now.
        """
        if is_http(url) and _is_about_the_url(error):
            return ""
        with self._lock:
            witnesses = list(reversed(self._read[_storage(url)].values()))
        if any(_is_readable(witness) for witness in witnesses):
            return ""
        lost = _listing_error(url)
        if lost is None:
            return ""
        reason = f"{_storage(url)} cannot be reached: {lost}"
        if witnesses:
            raise StorageLost(
                f"{reason}. What could be read before cannot be read now. The job's state is kept:"
                " correct that (address, credentials, the bucket itself) and continue with --resume"
            ) from error
        return reason


def _storage(url: str) -> str:
    return "http(s)" if is_http(url) else bucket_of(url)


def _is_about_the_url(error: Exception) -> bool:
    status = int(getattr(error, "status", 0) or 0)
    return isinstance(error, FileNotFoundError | ValueError) or (
        400 <= status < 500 and status not in NOT_FOR_THIS_ONE
    )


def _is_readable(url: str) -> bool:
    try:
        return bool(file_system(scheme_of(url)).cat_file(url, start=0, end=1))
    except Exception:  # noqa: BLE001 - drivers of file systems raise classes of their own
        return False


def _listing_error(url: str) -> BaseException | None:
    """The error of listing the bucket of *url*; None if it can be listed. HTTP cannot."""
    bucket = bucket_of(url)
    if is_http(url):
        return ConnectionError(f"neither {bucket} nor a server that answered before answers now")
    try:
        next(walk(bucket), None)
    except StorageLost as error:
        return error.__cause__
    except Exception as error:  # noqa: BLE001 - likewise
        return error
    return None
