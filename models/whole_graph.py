"""The graph of a package with every output, for those who ask for more than the answers need."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import onnxruntime as ort


class WholeGraph:
    """Sessions of the graph with every output, one for each of *sizes*, opened by *opener* when a batch of that size first asks for one.

    A size is a key of `Model.sessions`.
    """

    def __init__(self, opener: Callable[[int], ort.InferenceSession], sizes: Sequence[int]) -> None:
        self._opener = opener
        self._sizes = tuple(sizes)
        self._lock = threading.Lock()
        self._sessions: dict[int, ort.InferenceSession] = {}

    def session(self, size: int) -> ort.InferenceSession:
        """The session for *size*. Raises `PackageError` if the package on the disk is no longer the one that was opened."""
        with self._lock:
            if size not in self._sessions:
                self._sessions[size] = self._opener(size)
            return self._sessions[size]

    def open_all(self) -> None:
        """Open every session now, while the package is there. Raises as `session`."""
        for size in self._sizes:
            self.session(size)
