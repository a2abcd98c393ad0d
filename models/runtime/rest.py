"""The rest of a split graph in small sessions: embeddings, and maps of all classes or of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.runtime.answer_graph import ANSWER, SplitGraph, typed
from models.runtime.class_maps import CLASSES, MAPS, classes_of, for_classes, rows_of
from models.runtime.providers import session_options
from models.runtime.weights import Weights, fold_constants, share_weights, take_weights

if TYPE_CHECKING:  # imported where it is used
    from onnx import ModelProto

Values = Mapping[str, NDArray[Any]]


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


def open_rest(split: SplitGraph, answer: ort.InferenceSession, *, threads: int) -> Rest | None:
    """The rest of *split* in sessions that share its weights; None if there is none.

    *answer* is the session that answers: it knows the types of its inner values. The rest runs on
    the CPU, wherever the network runs: it is small, and only explanations need it.
    """
    if split.rest is None:
        return None
    types = {value.name: value.type for value in (*answer.get_inputs(), *answer.get_outputs())}
    model = typed(split.rest, {name: types[name] for name in split.inner})
    fold_constants(model)
    weights = take_weights(model)
    of_class = for_classes(model)
    return Rest(
        _open(model, weights, threads),
        split.inner,
        None if of_class is None else _open(of_class, weights, threads),
    )


def _open(model: ModelProto, weights: Weights, threads: int) -> ort.InferenceSession:
    options = session_options(threads, provider="cpu")
    share_weights(options, model, weights)
    # A packed copy would hold the weights twice.
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
