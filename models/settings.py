"""Settings of the model store: `LOUPE_*` variables, or `loupe.toml` in the working directory.

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
from models.messages import os_error_text
from models.runtime.providers import Provider


class StoreSettings(BaseSettings):
    """Where models are kept."""

    # The same file has the service's settings, whose class refuses unknown names.
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
        """Arguments win over the environment, and the environment over `loupe.toml`."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


S = TypeVar("S", bound=StoreSettings)


class RuntimeSettings(StoreSettings):
    """The service's settings that `loupe doctor` compares with the machine.

    A test compares them with the service's own.
    """

    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Worker processes that share the port."""
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Intra-op threads of each worker; 0: the CPU budget of the cgroup divided by the workers."""
    provider: Provider = "cpu"
    """Execution provider. There is no fallback to another one."""


def load_store_settings() -> StoreSettings:
    """The settings of the store as they are now.

    Raises `ConfigError` that names the invalid one.
    """
    return load_settings(StoreSettings)


def load_settings(kind: type[S]) -> S:
    """The settings of *kind* as they are now. Raises as `load_store_settings`."""
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
        raise ConfigError(os_error_text(error, file)) from error
