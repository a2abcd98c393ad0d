"""The files of onnxruntime-web for the page, fetched from npm at build time and checked by hash."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import onnxruntime

from models.errors import ExportError

VERSION = "1.30.0"
INTEGRITY = (
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3j"
    "L02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
"""npm's, of the tarball. `npm view onnxruntime-web@VERSION dist.integrity` prints it."""
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Of `package/dist/`: the build for the CPU only.

It runs single-threaded where the page is not cross-origin isolated.
"""
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
"""Of the onnxruntime wheel; npm's tarball has none."""
TIMEOUT_S = 300
_BY_HAND = (
    f"fetch it where npm is, with `npm pack onnxruntime-web@{VERSION}`, and pass the file with"
    " --ort-web"
)


def web_runtime(tarball: Path | None = None) -> dict[str, bytes]:
    """File name -> content, from *tarball* or, without one, from npm.

    Raises `ExportError` with what to do if it cannot be had or is another.
    """
    if tarball is None:
        packed, origin = npm_tarball(), "what npm gave"
    else:
        origin = str(tarball)
        try:
            packed = tarball.read_bytes()
        except OSError as error:
            raise ExportError(f"--ort-web {tarball} cannot be read: {error.strerror}") from error
    found = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()
    if found != INTEGRITY:
        raise ExportError(
            f"{origin} is not onnxruntime-web {VERSION}: its integrity is {found[:24]}..., expected"
            f" {INTEGRITY[:24]}...; {_BY_HAND}"
        )
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        members = {name: archive.extractfile(f"package/dist/{name}") for name in FILES}
        # The integrity hash fixes what is in the tarball.
        files = {name: member.read() for name, member in members.items() if member}
    notices = {name: Path(onnxruntime.__file__).with_name(name) for name in LICENCES}
    return files | {name: path.read_bytes() for name, path in notices.items() if path.is_file()}


def npm_tarball() -> bytes:
    """What npm gives for the pinned version, unchecked.

    Raises `ExportError` where npm is absent or fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError(
            f"--target web needs onnxruntime-web {VERSION}, and npm is not on the PATH to get it:"
            f" install npm, or {_BY_HAND}"
        )
    with tempfile.TemporaryDirectory(prefix="loupe-npm-") as place:
        asked = [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent", "--ignore-scripts"]
        asked += ["--pack-destination", place]
        try:
            done = subprocess.run(  # noqa: S603 - npm, with our own arguments
                asked, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ExportError(
                f"npm did not bring onnxruntime-web {VERSION} within {TIMEOUT_S} s; {_BY_HAND}"
            ) from error
        tarballs = list(Path(place).glob("*.tgz"))
        if done.returncode != 0 or len(tarballs) != 1:
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise ExportError(f"npm cannot get onnxruntime-web {VERSION} ({reason[0]}); {_BY_HAND}")
        return tarballs[0].read_bytes()
