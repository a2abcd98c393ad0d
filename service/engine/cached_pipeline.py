"""The pipeline that requests meet: answers what it has answered before from the cache, and lets
others see what was answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from service.engine.cache import AnswerCache
from service.engine.classifier import Classification, Classifier
from service.engine.pipeline import Pipeline, Result
from service.engine.tickets import Payload, Timing
from service.observe.metrics import METRICS

Witness = Callable[[Classifier, bytes, Classification], None]
"""Is told the classifier, the encoded image and the answer. Must be quick: it stands between an answer and its client."""


class ServedPipeline(Pipeline):
    """A pipeline with a *cache* and *witnesses*. *limits* are the arguments of `Pipeline`."""

    def __init__(
        self,
        classifier: Classifier,
        *,
        cache: AnswerCache | None = None,
        witnesses: Sequence[Witness] = (),
        **limits: Any,
    ) -> None:
        super().__init__(classifier, **limits)
        self._cache = cache
        self._witnesses = tuple(witnesses)

    async def classify(
        self,
        encoded: Payload,
        *,
        top_k: int,
        deadline: float,
        outputs: Sequence[str] = (),
        **others: Any,
    ) -> Result:
        """As `Pipeline.classify`, with the arguments that it takes besides as *others*.

        Pixels are neither kept nor witnessed: there is no file.
        """
        if not isinstance(encoded, bytes):
            return await super().classify(
                encoded, top_k=top_k, deadline=deadline, outputs=outputs, **others
            )
        key = None
        if self._cache is not None and encoded:
            key = self._cache.key(
                encoded,
                model=self.classifier.name,
                version=self.classifier.version,
                outputs=outputs,
            )
            kept = self._cache.get(key)
            if kept is not None:
                classification = self.classifier.answer(kept["probabilities"], top_k=top_k)
                METRICS.predicted(self.classifier, classification)
                return self._seen(encoded, Result(classification, Timing(0.0, 0.0, 0.0, 0), kept))
        result = await super().classify(
            encoded, top_k=top_k, deadline=deadline, outputs=outputs, **others
        )
        if self._cache is not None and key is not None:
            self._cache.put(key, result.outputs)
        return self._seen(encoded, result)

    def _seen(self, encoded: bytes, result: Result) -> Result:
        for witness in self._witnesses:
            witness(self.classifier, encoded, result.classification)
        return result
