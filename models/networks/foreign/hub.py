"""Files of timm's published weights: from the cache of the Hub's client, or downloaded into it."""

from __future__ import annotations

import importlib
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse

import torch

from models.errors import ConfigError

FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a repository of the Hub, in the order in which they are tried."""
CONNECT_S = 10.0


def checkpoint_of(found: Any, name: str) -> tuple[Path, str]:  # Any: timm's PretrainedCfg
    """The file of the weights *found* of the network *name*, and what to call it.

    Raises `ConfigError` if there is none, or none that can be had without a network.
    """
    if found.custom_load:
        raise ConfigError(
            f"the weights of {name} come in a format that only timm's own code reads; choose"
            " another network or tag, or name a weights file"
        )
    if found.hf_hub_id:
        repository = (
            f"{found.hf_hub_id}{found.architecture}"
            if found.hf_hub_id.endswith("/")
            else found.hf_hub_id
        )
        return _from_hub(repository, found.hf_hub_filename, name), repository
    if found.url:
        return _from_url(found.url, name), found.url
    raise ConfigError(
        f"timm has no weights for {name}; train from scratch with weights none, or name a weights"
        " file"
    )


def _from_hub(repository: str, file: str | None, name: str) -> Path:
    hub = importlib.import_module("huggingface_hub")
    candidates = (file,) if file else FILES
    for candidate in candidates:
        if isinstance(kept := hub.try_to_load_from_cache(repository, candidate), str):
            return Path(kept)
    try:
        present = [one for one in candidates if _exists(hub.hf_hub_url(repository, one))]
        return Path(hub.hf_hub_download(repository, (present or candidates)[0]))
    except Exception as error:  # the client raises its own, its transport's, and the system's
        raise _offline(name, f"the Hub's {repository}", error) from error


def _exists(url: str) -> bool:
    """Whether the Hub has *url*.

    Raises `OSError` at once where the Hub cannot be reached: its client tries for half a minute.
    """
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - made by the Hub's client
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_S):  # noqa: S310
            return True
    except HTTPError as error:
        # Whatever else is the matter, such as a licence to accept, the client says better.
        return error.code != HTTPStatus.NOT_FOUND


def _from_url(url: str, name: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except (OSError, RuntimeError) as error:
            raise _offline(name, url, error) from error
    return path


def _offline(name: str, source: str, error: Exception | None) -> ConfigError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConfigError(
        f"weights of {name} cannot be downloaded from {source}: {first}. Without a network, fetch"
        " them elsewhere and say --set weights=FILE (.safetensors or .pth), or train from scratch"
        " with --set weights=none"
    )
