"""Whether one object cannot be read or the storage that it lies in is gone, without the right to
list it.

An object that could be read before is read again, a byte of it: if that works, the storage is
there. A bucket that may be listed is asked that. If nothing was read yet there is nothing to
compare with: then the fault carries a doubt, which the job settles (`doubts.py`).
"""

from __future__ import annotations

import threading
from collections import defaultdict

from models.errors import StorageLost
from service.scoring.input.places import bucket_of, file_system, is_http, scheme_of
from service.scoring.input.walk import walk

WITNESSES = 4
"""Objects that are remembered of a storage: any of them may be deleted meanwhile."""
NOT_FOR_THIS_ONE = {401, 403, 407, 408, 425, 429}
"""Statuses of 4xx that a server may give to every request. The others are about the one URL."""


class Storages:
    """What was read from which bucket.

    All of HTTP is one storage: of a thousand hosts some are always down. Thread-safe.
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

    def doubt(self, url: str, error: Exception) -> str:
        """Why the storage of *url*, which gave *error*, may be gone; nothing if it is there.

        Raises `StorageLost` if something could be read from it before, and cannot be any more.
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
                " put that right (address, credentials, the bucket itself) and go on with --resume"
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
    """What happens when the bucket of *url* is listed; None if that works. HTTP has no list."""
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
