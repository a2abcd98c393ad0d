"""Settings of the model store: `LOUPE_*` environment variables or `loupe.toml` in the working
directory, in this order.

The only module of `models` that reads the environment.
"""

from __future__ import annotations

from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from models.errors import ConfigError
from models.messages import told
from models.runtime.providers import Provider


class StoreSettings(BaseSettings):
    """Where models are kept."""

    # Names of the service's settings stand in the same file, so unknown ones are skipped here; the
    # service's class, which knows all, refuses them.
    model_config = SettingsConfigDict(
        env_prefix="LOUPE_", toml_file="loupe.toml", frozen=True, extra="ignore"
    )

    store: Path = Path("artifacts/store")
    """Folder of the model store."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over `loupe.toml`; nothing else is
        read.
        """
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


S = TypeVar("S", bound=StoreSettings)


class RuntimeSettings(StoreSettings):
    """Those of the service's settings that `loupe doctor` holds against the machine; a test
    compares them with the service's own.
    """

    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Worker processes that share the port."""
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    """ONNX Runtime intra-op threads of each worker; 0: the CPU budget of the cgroup divided by the workers."""
    provider: Provider = "cpu"
    """Execution provider; never replaced by another one silently."""


def load_store_settings() -> StoreSettings:
    """The settings of the store as they are now.

    Raises `ConfigError` naming the one that makes no sense.
    """
    return _load(StoreSettings)


def load_runtime_settings() -> RuntimeSettings:
    """As `load_store_settings`, with what the service takes of the machine."""
    return _load(RuntimeSettings)


def _load(kind: type[S]) -> S:
    file = kind.model_config["toml_file"]
    try:
        return kind()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"{kind.model_config['env_prefix']}{'_'.join(map(str, first['loc'])).upper()}"
        raise ConfigError(f"{name}: {first['msg']} (found {first['input']!r})") from error
    except (TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not TOML: {error}; correct it, or remove it") from error
    except OSError as error:
        raise ConfigError(told(error, file)) from error
