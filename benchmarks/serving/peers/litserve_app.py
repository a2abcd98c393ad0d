"""LitServe with batching as in its documentation: two workers, each runs one batch at a time.

    python -m benchmarks.serving.peers.litserve_app PORT

Photos come as base64 in JSON, as in its own benchmark. Forms with files fail in LitServe 0.2.19
with Starlette 1.10, whose `UploadFile` cannot be pickled on its way to a worker.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from typing import Any

import litserve
import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.peers.pipeline import answer, open_session, probabilities, to_pixels


class Classifier(litserve.LitAPI):
    """One worker's model."""

    def setup(self, device: str) -> None:
        """Open the session in the worker."""
        self.session = open_session(threads=1)

    # Without an annotation LitServe hands over the JSON as it is; with one FastAPI would check it
    # first.
    def decode_request(self, request) -> NDArray[np.uint8]:  # type: ignore[no-untyped-def]
        """Pixels of the field `image`."""
        return to_pixels(base64.b64decode(request["image"]))

    def batch(self, inputs: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """One array of all."""
        return np.stack(inputs)

    def predict(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities of the batch."""
        return probabilities(self.session, batch)

    def unbatch(self, output: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """A row for each photo."""
        return list(output)

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, Any]:
        """The answer to one request."""
        return answer(output)


if __name__ == "__main__":
    server = litserve.LitServer(
        Classifier(max_batch_size=8, batch_timeout=0.005),
        accelerator="cpu",
        devices=1,
        workers_per_device=2,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
