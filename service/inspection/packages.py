"""Which networks a package holds, and which of them a client asks for."""

from __future__ import annotations

from models.errors import BadRequest
from models.package.manifest import MODEL_FILE, SIBLING_FILE, Manifest


def files_of(manifest: Manifest) -> dict[str, str]:
    """Precision -> file of each network in the package, the package's own first."""
    sibling = {"fp32": SIBLING_FILE} if SIBLING_FILE in manifest.files else {}
    return {str(manifest.precision): MODEL_FILE} | sibling


def precision_of(asked: str, manifest: Manifest, *, answering: str) -> str:
    """The precision *asked* for; without one, the *answering* one.

    Raises `BadRequest` if the package has no network of that precision.
    """
    known = files_of(manifest)
    if asked and asked not in known:
        raise BadRequest(
            f"precision is {asked[:40]!r}; expected one that the package has: {', '.join(known)}"
        )
    return asked or answering
