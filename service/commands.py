"""`loupe serve` and `loupe keys`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from models.errors import ConfigError
from models.messages import one_line
from service.gate.keys import SCOPES, Scope, add_key, read_keys, remove_key
from service.settings import service_settings


@click.command()
@click.option(
    "--model",
    help="name, name@alias or name:version.  [default: LOUPE_MODEL, or the store's only model]",
)
@click.option(
    "--host",
    help="Address to listen on; 0.0.0.0 for every interface.  [default: LOUPE_HOST, or 127.0.0.1]",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="TCP port.  [default: LOUPE_PORT, or 3000]"
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Worker processes.  [default: LOUPE_WORKERS, or 1]",
)
@click.option(
    "--store",
    type=click.Path(file_okay=False),
    help="Folder of the model store.  [default: LOUPE_STORE, or artifacts/store]",
)
def serve(**options: str | int | None) -> None:
    """Serve a model from the store over HTTP.

    The model is verified before the port is opened. Everything else is set by LOUPE_* variables or
    loupe.toml: see docs/settings.md.
    """
    from service.server.launch import run_server

    given = {name: str(value) for name, value in options.items() if value is not None}
    sys.exit(run_server(given))


@click.group()
def keys() -> None:
    """API keys: who may ask for predictions, and who is an operator."""


_file = click.option(
    "--file",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of keys.  [default: LOUPE_API_KEYS_FILE]",
)


@keys.command("add")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    default=("predict",),
    help="May be given twice.  [default: predict]",
)
@_file
def add(name: str, scopes: tuple[Scope, ...], path: Path | None) -> None:
    """Make a key for NAME and print it, only this once: the file has only its hash."""
    click.echo(add_key(_keys_file(path), name=name, scopes=tuple(dict.fromkeys(scopes))))


@keys.command("list")
@_file
def list_keys(path: Path | None) -> None:
    """Names, scopes and dates of the keys."""
    for key in read_keys(_keys_file(path)):
        click.echo(one_line(f"{key.name:24} {','.join(key.scopes):16} {key.created}"))


@keys.command("remove")
@click.argument("name")
@_file
def remove(name: str, path: Path | None) -> None:
    """Remove the key of NAME. A running service refuses it within a second."""
    remove_key(_keys_file(path), name=name)


def _keys_file(path: Path | None) -> Path:
    given = service_settings().api_keys_file if path is None else path
    if not given or Path(given).name in ("", ".."):
        raise ConfigError("which file of keys? Say --file FILE, or set LOUPE_API_KEYS_FILE")
    return Path(given)
