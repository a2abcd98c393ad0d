"""`loupe serve`."""

from __future__ import annotations

import click


@click.command()
@click.option("--model", help="name, name@alias or name:version.  [default: LOUPE_MODEL, or the store's only model]")
@click.option("--host", help="Address to listen on; 0.0.0.0 for every interface.  [default: LOUPE_HOST, or 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port.  [default: LOUPE_PORT, or 3000]")
@click.option("--workers", type=click.IntRange(1, 256), help="Worker processes.  [default: LOUPE_WORKERS, or 1]")
@click.option("--store", type=click.Path(file_okay=False), help="Folder of the model store.  [default: LOUPE_STORE, or artifacts/store]")
def serve(**options: str | int | None) -> None:
    """Serve a model from the store over HTTP.

    The model is verified before the port is opened. Everything else is set by LOUPE_* variables or loupe.toml: see the README.
    """
    from service.server import run_server

    run_server({name: str(value) for name, value in options.items() if value is not None})
