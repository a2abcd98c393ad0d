"""`/v2`: the Open Inference Protocol, version 2, as Triton, KServe and their clients speak it.

A model has two inputs, of which a request brings one: `image` BYTES [N], encoded files that are
preprocessed here, or `pixels` UINT8 [N,H,W,3], which were preprocessed already. Its outputs are the
graph's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.errors import (
    BadRequest,
    MalformedBody,
    RequestError,
    TooManyImages,
    UnsupportedContentType,
)
from models.package.manifest import TensorSpec
from service.engine.classifier import Classifier
from service.engine.pipeline import Pipeline, Result
from service.http.body.reading import (
    content_type,
    parse_json,
    read_body,
    unless_client_leaves,
)
from service.observe.logs import client_of
from service.observe.metrics import METRICS
from service.protocols.tensors import (
    BYTES,
    FP32,
    UINT8,
    InferRequest,
    OutputTensor,
    RequestedOutput,
    Values,
    encode_answer,
    parse_request,
)
from service.rollout.worker import Worker

HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data", "classification"]
NOT_TENSORS = ("image/", "multipart/")
PLATFORM = "onnxruntime_onnx"
RANKED = ("probabilities", "logits")
"""Outputs that the classification extension can rank."""
DISTRIBUTION = "loupe-vision"


async def server_metadata(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v2`: name, version, extensions."""
    try:
        installed = version(DISTRIBUTION)
    except PackageNotFoundError:
        installed = "unknown"
    return JSONResponse({"name": "loupe", "version": installed, "extensions": EXTENSIONS})


async def live(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v2/health/live`: it answers."""
    return JSONResponse({"live": True})


async def ready(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v2/health/ready`: models take requests. Raises `NotReady`."""
    worker.served()
    return JSONResponse({"ready": True})


async def model_ready(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v2/models/{name}[/versions/{version}]/ready`. Raises `NotReady` or `UnknownModel`."""
    classifier = _pipeline(request, worker).classifier
    return JSONResponse({"name": classifier.name, "ready": True})


async def model_metadata(request: Request, worker: Worker, request_id: str) -> Response:
    """`GET /v2/models/{name}[/versions/{version}]`: inputs and outputs."""
    classifier = _pipeline(request, worker).classifier
    height, width = classifier.manifest.preprocess.crop
    body = {
        "name": classifier.name,
        "versions": sorted(
            {str(one.version) for one in worker.served() if one.name == classifier.name}
            | {str(classifier.version)}
        ),
        "platform": PLATFORM,
        "inputs": [
            {"name": "image", "datatype": BYTES, "shape": [-1]},
            {"name": "pixels", "datatype": UINT8, "shape": [-1, height, width, 3]},
        ],
        "outputs": [
            {
                "name": one.name,
                "datatype": FP32,
                "shape": [-1, *(side if isinstance(side, int) else -1 for side in one.shape[1:])],
            }
            for one in _outputs(classifier)
        ],
    }
    return JSONResponse(body)


async def repository_index(request: Request, worker: Worker, request_id: str) -> Response:
    """`POST /v2/repository/index`: the models that take requests."""
    return JSONResponse(
        [
            {"name": one.name, "version": str(one.version), "state": "READY", "reason": ""}
            for one in worker.served()
        ]
    )


async def infer(request: Request, worker: Worker, request_id: str) -> Response:
    """`POST /v2/models/{name}[/versions/{version}]/infer`.

    One image that cannot be used fails the request, which says which one it is.
    """
    arrived = time.monotonic()
    pipeline, settings = _pipeline(request, worker), worker.settings
    classifier, client = pipeline.classifier, client_of(request.scope)
    deadline = arrived + settings.deadline_ms / 1000.0
    given = content_type(request)
    # The binary form has no type of its own: clients send any, or none.
    if given.startswith(NOT_TENSORS):
        raise UnsupportedContentType(
            f"content type {given[:80]!r} is not taken; expected application/json or"
            " application/octet-stream"
        )
    pipeline.admit(deadline=deadline, client=client)
    body = await read_body(request, limit=settings.max_body_bytes, deadline=deadline)
    METRICS.stage("read", time.monotonic() - arrived)
    asked, values = _parse(request, body)
    images = _images(asked, values, classifier, max_images=settings.max_images)
    outputs = _requested(asked, classifier)
    if asked.parameters.timeout:
        deadline = min(deadline, arrived + asked.parameters.timeout / 1e6)
    classified = _classify_all(
        pipeline,
        images,
        outputs=tuple(output.name for output in outputs),
        places=settings.places_of_request,
        deadline=deadline,
        client=client,
    )
    results = await unless_client_leaves(request.receive, classified)
    answered = time.monotonic()
    head: dict[str, object] = {
        "model_name": classifier.name,
        "model_version": str(classifier.version),
    }
    head |= {"id": asked.id} if asked.id is not None else {}
    tensors = [
        _tensor(
            output,
            results,
            classifier.manifest.labels,
            binary=asked.parameters.binary_data_output,
        )
        for output in outputs
    ]
    content, header_length = encode_answer(head, tensors)
    headers = {} if header_length is None else {HEADER_LENGTH: str(header_length)}
    media_type = "application/json" if header_length is None else "application/octet-stream"
    METRICS.stage("respond", time.monotonic() - answered)
    return Response(content, headers=headers, media_type=media_type)


def _pipeline(request: Request, worker: Worker) -> Pipeline:
    return worker.pipeline(
        request.path_params["name"],
        request.path_params.get("version"),
        client=client_of(request.scope),
    )


def _outputs(classifier: Classifier) -> list[TensorSpec]:
    """The graph's outputs that have a row for each image."""
    return [output for output in classifier.manifest.outputs if output.shape[:1] == ("N",)]


def _parse(request: Request, body: bytes) -> tuple[InferRequest, list[Values]]:
    """The request in *body*, whose JSON is as long as the header says, or all of it."""
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return parse_request(parse_json(body), b"")
    if not (
        text.isascii()
        and text.isdigit()
        and len(text) <= len(str(len(body)))
        and int(text) <= len(body)
    ):
        raise MalformedBody(f"{HEADER_LENGTH} is {text[:40]!r}; the body has {len(body):,} bytes")
    return parse_request(parse_json(body[: int(text)]), body[int(text) :])


def _images(
    asked: InferRequest, values: list[Values], classifier: Classifier, *, max_images: int
) -> Sequence[bytes | NDArray[np.uint8]]:
    """The images of the request's one input. Raises `BadRequest` or `TooManyImages`."""
    height, width = classifier.manifest.preprocess.crop
    expected = f"expected one input: image {BYTES} [N], or pixels {UINT8} [N,{height},{width},3]"
    if len(asked.inputs) != 1:
        raise BadRequest(f"the request has {len(asked.inputs)} inputs; {expected}")
    (tensor,) = asked.inputs
    kinds = {("image", BYTES): [], ("pixels", UINT8): [height, width, 3]}
    if not tensor.shape or tensor.shape[1:] != kinds.get((tensor.name, tensor.datatype)):
        raise BadRequest(
            f"received input {tensor.name[:40]!r} {tensor.datatype} {tensor.shape}; {expected}"
        )
    count = tensor.shape[0]
    if count == 0:
        raise BadRequest(f"input {tensor.name} has no images; expected one or more")
    if count > max_images:
        raise TooManyImages(
            f"input {tensor.name} has {count} images; at most {max_images} are taken in one request"
        )
    return list(values[0])


def _requested(asked: InferRequest, classifier: Classifier) -> list[RequestedOutput]:
    """The outputs asked for, or all of the model. Raises `BadRequest`."""
    known = [output.name for output in _outputs(classifier)]
    requested = asked.outputs or [RequestedOutput(name=name) for name in known]
    if len({output.name for output in requested}) < len(requested):
        raise BadRequest("an output is asked for twice")
    for output in requested:
        if output.name not in known:
            raise BadRequest(
                f"{classifier.name} has no output {output.name[:40]!r}; it has {', '.join(known)}"
            )
        if output.parameters.classification and output.name not in RANKED:
            raise BadRequest(
                f"output {output.name} cannot be ranked by the classification extension;"
                f" {' and '.join(RANKED)} can"
            )
    return requested


async def _classify_all(
    pipeline: Pipeline,
    images: Sequence[bytes | NDArray[np.uint8]],
    *,
    outputs: tuple[str, ...],
    places: int,
    deadline: float,
    client: str,
) -> list[Result]:
    """One result for each image, in order, with at most *places* in the queue at a time.

    Raises the first failure. If an image caused it, the message has the image's number.
    """
    free, several = asyncio.Semaphore(places), len(images) > 1

    async def classify(index: int, image: bytes | NDArray[np.uint8]) -> Result:
        try:
            async with free:
                return await pipeline.classify(
                    image, top_k=1, deadline=deadline, outputs=outputs, client=client, bulk=several
                )
        except RequestError as error:
            if not several:
                raise
            raise type(error)(f"image {index}: {error}") from error

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(classify(*one)) for one in enumerate(images)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _tensor(
    output: RequestedOutput, results: Sequence[Result], labels: Sequence[str], *, binary: bool
) -> OutputTensor:
    """The values of *output*, or the classes with the highest values, as `value:index:label`."""
    values = np.stack([result.outputs[output.name] for result in results]).astype(
        np.float32, copy=False
    )
    if output.parameters.binary_data is not None:
        binary = output.parameters.binary_data
    if not output.parameters.classification:
        return OutputTensor(output.name, values, binary)
    order_NK = np.argsort(-values, axis=1, kind="stable")[:, : output.parameters.classification]
    named = [
        [f"{row[index]:f}:{index}:{labels[index]}".encode() for index in order]
        for row, order in zip(values, order_NK, strict=True)
    ]
    return OutputTensor(output.name, np.asarray(named, dtype=object), binary)
