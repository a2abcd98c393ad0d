"""The graph of a package with every output, for those who ask for more than the answers need."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import onnxruntime as ort

Sessions = Mapping[int, ort.InferenceSession]
"""As `Model.sessions`."""


class WholeGraph:
    """The sessions of the graph with every output, opened by *opener* when the first output is
    asked for that the answers do not need.
    """

    def __init__(self, opener: Callable[[], Sessions]) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._sessions: Sessions | None = None

    def sessions(self) -> Sessions:
        """The sessions, opened by now.

        Raises `PackageError` if the package on the disk is no longer the one that was opened.
        """
        found = self._sessions
        if found is None:
            with self._lock:
                found = self._sessions = self._sessions or self._opener()
        return found
