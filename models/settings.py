"""Settings of the model store: `LOUPE_*` environment variables or `loupe.toml` in the working directory, in this order.

The only module of `models` that reads the environment.
"""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource


class StoreSettings(BaseSettings):
    """Where models are kept."""

    # Names of the service's settings stand in the same file, so unknown ones are skipped here; the service's class, which knows all, refuses them.
    model_config = SettingsConfigDict(env_prefix="LOUPE_", toml_file="loupe.toml", frozen=True, extra="ignore")

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
        """Arguments win over the environment, the environment over `loupe.toml`; nothing else is read."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
