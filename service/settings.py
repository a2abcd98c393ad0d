"""The service's settings: the only module of `service` that reads the environment."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from models.errors import ConfigError
from models.settings import StoreSettings

PREFIX = str(StoreSettings.model_config["env_prefix"])
SETTINGS_FILE = str(StoreSettings.model_config["toml_file"])


class ServiceSettings(StoreSettings):
    """Environment variables `LOUPE_<NAME>`, then `loupe.toml` in the working directory, then these defaults. Unknown names are refused."""

    model: str = ""
    """Model to serve: `name` (its production alias), `name@alias` or `name:version`. Empty: the store's only model."""
    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` for every interface."""
    port: Annotated[int, Field(ge=0, le=65535)] = 3000
    """TCP port; 0: any that is free."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Worker processes that share the port."""
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    """ONNX Runtime intra-op threads of each worker; 0: the CPU budget of the cgroup divided by the workers."""
    decode_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads that decode images in each worker; 0: one more than `threads`."""
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    """Execution provider; never replaced by another one silently."""
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    """Most images in one run of the model."""
    max_queue_delay_ms: Annotated[float, Field(ge=0.0, le=10_000.0)] = 0.0
    """Longest wait for a batch to fill, below `deadline_ms`; 0: take what gathered while the last batch ran."""
    max_queue_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    """Most images waiting in one worker; one more is refused with 503 `queue_full`."""
    deadline_ms: Annotated[float, Field(gt=0.0, le=600_000.0)] = 10_000.0
    """Time from a request's arrival to its answer; later it gets 504 `deadline_exceeded`."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 10 * 1024 * 1024
    """Largest request body; counted while it streams in."""
    drain_timeout_s: Annotated[int, Field(ge=1, le=3600)] = 30
    """Longest wait for accepted requests after SIGTERM."""

    max_images: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Most images in one request."""
    max_image_bytes: Annotated[int, Field(ge=1)] = 10 * 1024 * 1024
    """Largest encoded image among several in a body, and the largest that is fetched from a URL."""
    url_hosts: str = ""
    """Hosts that images may be fetched from, with commas between them; empty: no URL is ever fetched."""
    url_timeout_ms: Annotated[float, Field(gt=0.0, le=60_000.0)] = 5000.0
    """Longest time to fetch one URL, all in all."""

    @model_validator(mode="after")
    def _queue_holds_a_batch(self) -> Self:
        if self.max_queue_size < self.max_batch_size:
            raise ValueError(f"max_queue_size {self.max_queue_size} is smaller than max_batch_size {self.max_batch_size}: no batch could ever fill")
        return self

    @model_validator(mode="after")
    def _batch_fills_in_time(self) -> Self:
        if self.max_queue_delay_ms >= self.deadline_ms:
            raise ValueError(
                f"max_queue_delay_ms {self.max_queue_delay_ms:g} is not below deadline_ms {self.deadline_ms:g}: images would wait out their time"
            )
        return self


@cache
def service_settings() -> ServiceSettings:
    """The settings of this process, read once. Raises `ConfigError`."""
    return load_settings(os.environ)


def apply_options(options: Mapping[str, str]) -> None:
    """Put command-line *options*, by setting name, into the environment: the worker processes must see them too."""
    os.environ.update({PREFIX + name.upper(): value for name, value in options.items()})
    service_settings.cache_clear()


def private_home(folder: str) -> None:
    """Give BentoML *folder* for its files and its workers' metrics, and switch its usage reports off. Before it is imported."""
    os.environ.update({"BENTOML_HOME": folder, "BENTOML_DO_NOT_TRACK": "True"})


def load_settings(environment: Mapping[str, str]) -> ServiceSettings:
    """The settings, with `LOUPE_*` checked against *environment*. Raises `ConfigError` naming the setting and what it may be."""
    _refuse_unknown(
        (name for name in environment if name.upper().startswith(PREFIX)), known=[PREFIX + field.upper() for field in ServiceSettings.model_fields]
    )
    _refuse_unknown(_names_in_file(), known=list(ServiceSettings.model_fields))
    try:
        return ServiceSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper() if first["loc"] else "settings"
        raise ConfigError(f"{name}: {first['msg']} (found {first['input']!r})" if first["loc"] else first["msg"]) from error


def _names_in_file() -> list[str]:
    path = Path(SETTINGS_FILE)
    if not path.is_file():
        return []
    try:
        return list(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{SETTINGS_FILE}: not TOML: {error}") from error


def _refuse_unknown(names: Iterable[str], *, known: list[str]) -> None:
    for name in names:
        if name not in known:
            # In any case of letters: an environment may hold loupe_port.
            spelt = {one.casefold(): one for one in known}
            near = difflib.get_close_matches(name.casefold(), spelt, n=1)
            hint = f"Did you mean {spelt[near[0]]}?" if near else f"Known: {', '.join(known)}"
            raise ConfigError(f"unknown setting {name}. {hint}")


def metrics_folder() -> str | None:
    """Folder in which the workers of this server keep their metrics; None outside a server."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR")
