"""The photos that every contender classifies, and the requests that carry them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from benchmarks.serving.load import HOST, Request

BOUNDARY = b"----loupe-benchmark-boundary"


def read_photos(data: Path, *, limit: int | None = None) -> list[bytes]:
    """The JPEG files of `imagenet-500` in folder *data*, at most *limit*.

    Raises `SystemExit` if there are none.
    """
    folder = data / "imagenet-500"
    files = sorted(folder.glob("*.jpg"))[:limit]
    if not files:
        raise SystemExit(
            f"no photos in {folder}; say with --data which folder holds imagenet-500, a folder of"
            " JPEG files"
        )
    return [file.read_bytes() for file in files]


def post(path: str, photo: bytes, *, port: int, content_type: str = "image/jpeg") -> bytes:
    """The request that sends *photo* as its body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type:"
        f" {content_type}\r\nContent-Length: {len(photo)}\r\n\r\n"
    )
    return head.encode("ascii") + photo


def post_form(path: str, photo: bytes, *, port: int) -> bytes:
    """The request that sends *photo* as the part `image` of a form."""
    part = (
        b'--%s\r\nContent-Disposition: form-data; name="image";'
        b' filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' % BOUNDARY
    )
    body = part + photo + b"\r\n--%s--\r\n" % BOUNDARY
    return post(
        path,
        body,
        port=port,
        content_type=f"multipart/form-data; boundary={BOUNDARY.decode('ascii')}",
    )


def post_json(path: str, photo: bytes, *, port: int) -> bytes:
    """The request that sends *photo* as base64 in the field `image` of a JSON object."""
    return post(
        path,
        json.dumps({"image": base64.b64encode(photo).decode("ascii")}).encode("ascii"),
        port=port,
        content_type="application/json",
    )


def numbered(wires: list[bytes]) -> list[Request]:
    """*wires* with their positions."""
    return [Request(index, wire) for index, wire in enumerate(wires)]
