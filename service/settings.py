"""The service's settings: the only module of `service` that reads the environment."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from models.errors import ConfigError
from models.package.manifest import LIMITS, ImageLimits
from models.settings import StoreSettings

PREFIX = str(StoreSettings.model_config["env_prefix"])
SETTINGS_FILE = str(StoreSettings.model_config["toml_file"])
LANE_BATCH, STAGE_BATCH = 8, 16
"""Default of `max_batch_size`. On a CPU, 16 are no faster than 8 and take 33 to 41 MiB more after a
burst (two lanes, MobileNetV3-small)."""
PATH_PREFIX = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]{1,64}){1,8}")
"""A plain path: no scheme, no `//`, no `..`, nothing that HTML or JSON would have to escape."""


class ServiceSettings(StoreSettings):
    """Read from `LOUPE_<NAME>`, then `loupe.toml` in the working directory, then the defaults here.

    Unknown names are refused.
    """

    model: str = ""
    """Models to serve, separated by commas: `name` (its production alias), `name@alias` or
    `name:version`; an alias is followed. `*`: every model of the store. Empty: the store's only
    one."""
    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` for every interface."""
    port: Annotated[int, Field(ge=0, le=65535)] = 3000
    """TCP port; 0: any that is free."""
    root_path: str = ""
    """Path under which a proxy serves the service, such as `/loupe`; empty: what its header
    `X-Forwarded-Prefix` says."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Worker processes that share the port."""

    follow_interval_s: Annotated[float, Field(ge=0.01, le=3600.0)] = 1.0
    """How often each worker looks whether an alias was moved."""
    canary_alias: str = ""
    """Alias whose version answers a share of the clients; empty: none."""
    canary_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the clients that the canary answers; one client always gets the same."""
    shadow_alias: str = ""
    """Alias whose version is compared with what was answered, off the client's path; empty:
    none."""
    shadow_share: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Share of the requests that the shadow sees."""
    drift_budget: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """Share of one core's time that each worker spends on measuring drift; 0: none."""
    drift_window_s: Annotated[int, Field(ge=60, le=30 * 86_400)] = 3600
    """How far back drift looks."""
    cache_bytes: Annotated[int, Field(ge=0)] = 0
    """Most bytes of answers that each worker keeps for images sent again; 0: none are kept."""
    tracing: str = ""
    """Address of an OTLP/HTTP collector that gets the spans, such as `http://127.0.0.1:4318`;
    empty: no tracing."""
    tracing_share: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Share of the requests that are traced where the client does not say."""

    threads: Annotated[int, Field(ge=0, le=256)] = 0
    """ONNX Runtime intra-op threads of each worker; 0: the CPU budget of the cgroup divided by the
    workers, but 1 with lanes and a model that answers an image in 10 ms of one core."""
    lanes: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads of each worker that take an image from its bytes to its answer; 0: on a CPU as many
    as the worker has cores, unless `decode_threads`, `max_in_flight` or `max_queue_delay_ms` ask
    for stages, as on a GPU: threads that decode, and batches gathered from them."""
    decode_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """In stages: threads that decode images in each worker; 0: one more than `threads`."""
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    """Execution provider; never replaced by another one silently."""
    max_batch_size: Annotated[int, Field(ge=0, le=1024)] = 0
    """Most images in one run of the model; 0: 8 with lanes, 16 in stages."""
    max_queue_delay_ms: Annotated[float, Field(ge=0.0, le=10_000.0)] = 0.0
    """In stages: longest wait for a batch to fill, below `deadline_ms`; 0: take what gathered while
    the last batch ran."""
    max_queue_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    """Most images waiting for one model in one worker; one more is refused with 503
    `queue_full`."""
    deadline_ms: Annotated[float, Field(gt=0.0, le=600_000.0)] = 10_000.0
    """Time from a request's arrival to its answer; later it gets 504 `deadline_exceeded`."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 64 * 1024 * 1024
    """Largest request body; counted while it streams in."""
    max_inflight_bytes: Annotated[int, Field(ge=1)] = 128 * 1024 * 1024
    """Most bytes of bodies that one worker holds at a time; one more request is refused with 503
    `too_busy`."""
    max_queue_bytes: Annotated[int, Field(ge=1)] = 256 * 1024 * 1024
    """Most bytes of images in hand for one model in one worker, as files, in stages as pixels too;
    one more is refused with 503 `queue_full`."""
    max_in_flight: Annotated[int, Field(ge=0, le=64)] = 0
    """In stages: batches that run at a time in one worker; 0: one. More pay where a run leaves a
    GPU idle."""
    decode_timeout_ms: Annotated[float, Field(gt=0.0, le=600_000.0)] = 5000.0
    """Longest decode of one image; longer gets 422 `decode_timeout`."""
    api_keys_file: str = ""
    """File of API keys, made by `loupe keys add`. Empty: no key is asked for."""
    metrics_access: Literal["open", "admin"] = "open"
    """`open`: anybody may read `/metrics`; `admin`: only a key with the scope `admin`."""
    inspect: Literal["", "off", "open", "admin"] = ""
    """Who may look inside the models (`/v1/features` and others): `off`: nobody; `open`: who may
    classify; `admin`: only a key with the scope `admin`. Empty: `open` if `loupe serve` listens on
    loopback only, else `off`."""
    rate_limit_per_s: Annotated[float, Field(ge=0.0, le=1_000_000.0)] = 0.0
    """Requests a second of one key, or of one address without keys, over all workers; more get 429
    `rate_limited`. 0: no limit."""
    rate_limit_burst: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Requests that may come at once before the rate counts; 0: those of one second, at least
    one."""
    cors_origins: str = ""
    """Origins whose pages may call the service, separated by commas, or `*`. Empty: none."""
    tls_certificate: str = ""
    """PEM file of the certificate chain; with `tls_key`. Empty: plain HTTP."""
    tls_key: str = ""
    """PEM file of the certificate's private key."""
    log_format: Literal["json", "text"] = "json"
    """`json`: one object a line; `text`: for people."""
    log_sample: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Part of the answered requests that get a line in the log; failed ones always do, of refusals
    (401, 403, 429, 503) twenty a second."""
    keep_alive_s: Annotated[int, Field(ge=1, le=3600)] = 75
    """How long a connection without a request is kept; longer than a load balancer keeps its own,
    mostly 60 s, or it answers 502."""
    drain_delay_s: Annotated[float, Field(ge=0.0, le=300.0)] = 0.0
    """After SIGTERM: time for which `/readyz` says 503 and requests are still answered, for a load
    balancer to notice."""
    drain_timeout_s: Annotated[int, Field(ge=1, le=3600)] = 30
    """Longest wait for accepted requests after SIGTERM."""

    max_images: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Most images in one request."""
    max_image_bytes: Annotated[int, Field(ge=1)] = 64 * 1024 * 1024
    """Largest encoded image among several in a body, and the largest that is fetched from a URL."""
    max_pixels: Annotated[int, Field(ge=1)] = LIMITS.max_pixels
    """Most pixels of one image, width times height; more get 413 `too_many_pixels`."""
    max_side: Annotated[int, Field(ge=1)] = LIMITS.max_side
    """Longest side of an image in pixels; longer ones get 413 `image_too_large`."""
    max_decode_bytes: Annotated[int, Field(ge=1)] = LIMITS.max_decode_bytes
    """Most memory for decoding one image, as estimated from its header; more gets 413
    `too_many_pixels`. Each lane may take as much."""
    url_hosts: str = ""
    """Hosts that images may be fetched from, with commas between them; empty: no URL is ever
    fetched."""
    url_timeout_ms: Annotated[float, Field(gt=0.0, le=60_000.0)] = 5000.0
    """Longest time to fetch one URL, all in all."""

    @property
    def limits(self) -> ImageLimits:
        """Of one image."""
        return ImageLimits(
            max_pixels=self.max_pixels,
            max_side=self.max_side,
            max_decode_bytes=self.max_decode_bytes,
        )

    @property
    def inspection(self) -> Literal["off", "open", "admin"]:
        """Who may look inside the models.

        Without a setting nobody may, unless `loupe serve` listens on loopback. Another starter has
        an address of its own, which is not `host`.
        """
        if self.inspect:
            return self.inspect
        return "open" if has_private_home() and is_loopback(self.host) else "off"

    @property
    def in_stages(self) -> bool:
        """Whether images go through decoder threads and a batcher instead of lanes."""
        return not self.lanes and bool(
            self.provider != "cpu"
            or self.decode_threads
            or self.max_in_flight
            or self.max_queue_delay_ms
        )

    @property
    def batch_limit(self) -> int:
        """Most images in one run of the model, as set or by default."""
        return self.max_batch_size or min(
            STAGE_BATCH if self.in_stages else LANE_BATCH, self.max_queue_size
        )

    @property
    def places_of_request(self) -> int:
        """Most images of one request in the queue at a time: a quarter of it, but a batch."""
        return max(self.batch_limit, self.max_queue_size // 4)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuse settings that contradict each other."""
        stages = ("decode_threads", "max_in_flight", "max_queue_delay_ms")
        of_stages = [name for name in stages if getattr(self, name)]
        faults = {
            f"root_path is {self.root_path!r}; expected a path such as /loupe, without a slash at"
            " its end": self.root_path and PATH_PREFIX.fullmatch(self.root_path) is None,
            f"cors_origins is {self.cors_origins!r}; expected origins such as https://example.com,"
            " with commas between them": not self.cors_origins.isprintable(),
            f"max_queue_size {self.max_queue_size} is smaller than max_batch_size"
            f" {self.max_batch_size}: no batch could ever fill": (
                self.max_queue_size < self.max_batch_size
            ),
            f"{' and '.join(of_stages)} are of stages, and lanes {self.lanes} asks for none: set"
            " one or the other": self.lanes and of_stages,
            f"max_inflight_bytes {self.max_inflight_bytes} is smaller than max_body_bytes"
            f" {self.max_body_bytes}: no such body could come": (
                self.max_inflight_bytes < self.max_body_bytes
            ),
            "tls_certificate and tls_key go together; one of them is missing": (
                bool(self.tls_certificate) != bool(self.tls_key)
            ),
            "metrics_access admin needs api_keys_file: without keys nobody could read the"
            " metrics": (self.metrics_access == "admin" and not self.api_keys_file),
            "inspect admin needs api_keys_file: without keys nobody could look inside": (
                self.inspect == "admin" and not self.api_keys_file
            ),
            f"max_queue_delay_ms {self.max_queue_delay_ms:g} is not below deadline_ms"
            f" {self.deadline_ms:g}: images would wait until their deadline": (
                self.max_queue_delay_ms >= self.deadline_ms
            ),
            f"canary_alias {self.canary_alias!r} with canary_share {self.canary_share:g}: set both,"
            " or neither": bool(self.canary_alias) != (self.canary_share > 0.0),
            f"tracing is {self.tracing!r}; expected the address of an OTLP/HTTP collector, such as"
            " http://127.0.0.1:4318": (
                self.tracing and not self.tracing.startswith(("http://", "https://"))
            ),
            "tracing needs the package opentelemetry-exporter-otlp-proto-http; install Loupe with"
            " its extra `tracing`": (self.tracing and find_spec("opentelemetry.exporter") is None),
        }
        for fault, found in faults.items():
            if found:
                raise ValueError(fault)
        return self


@cache
def service_settings() -> ServiceSettings:
    """The settings of this process, read once. Raises `ConfigError`."""
    return load_settings(os.environ)


def apply_options(options: Mapping[str, str]) -> None:
    """Put command-line *options*, by setting name, into the environment, for the workers too."""
    os.environ.update({PREFIX + name.upper(): value for name, value in options.items()})
    service_settings.cache_clear()


HOME_PREFIX = "loupe-serve-"
"""Begins the name of the folder that `loupe serve` gives BentoML."""


def has_private_home() -> bool:
    """Whether `loupe serve` started this process."""
    return Path(os.environ.get("BENTOML_HOME", "")).name.startswith(HOME_PREFIX)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches *host*, an address or `localhost`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


MEMORY_HABITS = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
}
"""Settings of glibc's allocator. By default it keeps eight heaps for each core, and one behind each
thread that decodes. It also raises both thresholds with each large block that is freed, until the
memory of the largest photos is never given back. The thresholds here are above the size of a usual
photo and of a batch of 16. Below that, each photo costs 250 page faults and half a millisecond.
Source: mallopt(3).
"""


def prepare_environment(home: str) -> None:
    """Set what BentoML and glibc read from the environment when they start.

    BentoML keeps its files and the workers' metrics in *home*, and sends no usage reports. glibc
    gives back memory that the workers no longer use; an operator's own values stay.
    """
    os.environ.update({"BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "True"})
    for name, value in MEMORY_HABITS.items():
        os.environ.setdefault(name, value)


def load_settings(environment: Mapping[str, str]) -> ServiceSettings:
    """The settings, with `LOUPE_*` checked against *environment*.

    Raises `ConfigError` naming the setting and what it may be.
    """
    _refuse_unknown(
        (name for name in environment if name.upper().startswith(PREFIX)),
        known=[PREFIX + field.upper() for field in ServiceSettings.model_fields],
    )
    _refuse_unknown(_names_in_file(), known=list(ServiceSettings.model_fields))
    try:
        return ServiceSettings()
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            # A contradiction between settings: the message names them as `loupe.toml` does.
            raise ConfigError(f"LOUPE_* or {SETTINGS_FILE}: {first['ctx']['error']}") from error
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigError(f"{name}: {first['msg']} (found {first['input']!r})") from error


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
            # An environment may spell a name in small letters: loupe_port.
            spelt = {one.casefold(): one for one in known}
            near = difflib.get_close_matches(name.casefold(), spelt, n=1)
            hint = f"Did you mean {spelt[near[0]]}?" if near else f"Known: {', '.join(known)}"
            raise ConfigError(f"unknown setting {name}. {hint}")


def metrics_folder() -> str | None:
    """Folder in which the workers of this server keep their metrics; None outside a server."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR")
