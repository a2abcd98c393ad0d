"""The rest of a split graph in small sessions: embeddings, and maps of all classes or of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.runtime.answer_graph import ANSWER, SplitGraph, typed
from models.runtime.class_maps import CLASSES, MAPS, classes_of, for_classes, rows_of

Values = Mapping[str, NDArray[Any]]
Open = Callable[[bytes], ort.InferenceSession]


@dataclass(frozen=True)
class Rest:
    """Goes on from inner values of the session that answers."""

    session: ort.InferenceSession
    inner: tuple[str, ...]
    """Names of what it reads."""
    of_class: ort.InferenceSession | None
    """Gives the map of one class of each image; None: `session` gives the maps of all."""

    def run(self, outputs: Sequence[str], given: Values) -> dict[str, NDArray[np.float32]]:
        """The *outputs*, by name. *given* has the inner values and the probabilities."""
        classes = {name: classes_of(name, given[ANSWER]) for name in outputs}
        names = [name for name, classes_N in classes.items() if classes_N is None]
        found = self._run(self.session, names, given)
        for name, classes_N in classes.items():
            if classes_N is not None:
                found[name] = self._map_of(classes_N, given)
        return found

    def _map_of(self, classes_N: NDArray[np.int64], given: Values) -> NDArray[np.float32]:
        if self.of_class is None:
            return rows_of(self._run(self.session, [MAPS], given)[MAPS], classes_N)
        return self._run(self.of_class, [MAPS], {**given, CLASSES: classes_N})[MAPS]

    @staticmethod
    def _run(
        session: ort.InferenceSession, names: Sequence[str], given: Values
    ) -> dict[str, NDArray[np.float32]]:
        if not names:
            return {}
        read = {value.name: given[value.name] for value in session.get_inputs()}
        return dict(zip(names, session.run(list(names), read), strict=True))


def open_rest(split: SplitGraph, answer: ort.InferenceSession, open_: Open) -> Rest | None:
    """The rest of *split* in sessions that *open_* makes; None if there is none.

    *answer* is the session that answers: it knows the types of its inner values.
    """
    if split.rest is None:
        return None
    types = {value.name: value.type for value in (*answer.get_inputs(), *answer.get_outputs())}
    graph = typed(split.rest, {name: types[name] for name in split.inner})
    of_class = for_classes(graph)
    return Rest(open_(graph), split.inner, None if of_class is None else open_(of_class))
