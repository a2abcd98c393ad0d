"""`loupe publish` and `loupe models ...`: the store from the command line.

What a command needs is imported when it runs, so that `--help` is quick. `loupe.py` prints the
errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from models.errors import RuntimeUnavailable
from models.messages import one_line, print_table

if TYPE_CHECKING:
    from models.package.manifest import Manifest
    from models.store.store import ModelRef, Store


def _open_store(_context: click.Context, _parameter: click.Parameter, folder: Path | None) -> Store:
    from models.settings import load_store_settings
    from models.store.store import Store

    return Store(folder if folder is not None else load_store_settings().store)


_store = click.option(
    "--store",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    callback=_open_store,
    help="Folder of the model store.  [default: LOUPE_STORE, or artifacts/store]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_why = click.option("--why", default="", metavar="TEXT", help="Reason, for the history.")
_who = click.option(
    "--who", metavar="NAME", help="Who does it, for the history.  [default: this process's user]"
)
_alias = click.option("--alias", default="production", show_default=True, help="The alias to move.")
_reference = click.argument("reference", metavar="NAME[:VERSION|@ALIAS]")


@click.command()
@click.argument("package", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", required=True, help="Name of the model in the store.")
@_why
@_who
@_store
def publish(package: Path, name: str, why: str, who: str | None, store: Store) -> None:
    """Verify PACKAGE and put it into the store as the next version of a model.

    The alias `candidate` moves to it; the first version becomes `production` too.
    """
    ref = store.publish(package, name=name, why=why, who=who)
    click.echo(f"{ref} published{_aliases_of(store, ref)}")


@click.group()
def models() -> None:
    """The models in the store: their versions, aliases and history."""


@models.command("list")
@_json
@_store
def list_models(as_json: bool, store: Store) -> None:
    """All models with their versions and aliases."""
    found = [(name, store.versions(name), store.aliases(name)) for name in store.names()]
    if as_json:
        _print_json(
            [
                {"name": name, "versions": versions, "aliases": aliases}
                for name, versions, aliases in found
            ]
        )
    elif not found:
        _say(
            f"The store {store.root} has no model; `loupe publish PACKAGE --name NAME` puts one"
            " there"
        )
    else:
        rows = [
            (
                name,
                _joined(versions),
                _joined(f"{alias} = {version}" for alias, version in aliases.items()),
            )
            for name, versions, aliases in found
        ]
        print_table(("model", "versions", "aliases"), rows)


@models.command()
@_reference
@_json
@_store
def show(reference: str, as_json: bool, store: Store) -> None:
    """What a model is and how good: the public part of its manifest."""
    from models.package.manifest_file import read_manifest

    ref = store.resolve(reference)
    manifest = read_manifest(ref.path)
    if as_json:
        _print_json(
            {
                "name": ref.name,
                "version": ref.version,
                "path": str(ref.path),
                "manifest": manifest.public(),
            }
        )
        return
    rows = [
        ("model", f"{ref}{_aliases_of(store, ref)}"),
        ("path", str(ref.path)),
        *_summary(manifest),
    ]
    print_table(("", ""), rows)


@models.command()
@click.argument("target", metavar="NAME[:VERSION|@ALIAS]|PATH")
@_json
@_store
def verify(target: str, as_json: bool, store: Store) -> None:
    """Check every file, the graph and the golden images of a model.

    A PATH has a `/` in it, and names a package outside the store.
    """
    from models.package.verify import verify_package

    path = Path(target) if "/" in target else store.resolve(target).path
    verified = verify_package(path)
    try:
        from models.runtime.session import open_model
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(
            f"the golden images need ONNX Runtime, and {error.name} is not installed; install"
            " loupe-vision[cpu]"
        ) from error
    fallback = open_model(verified).fallback
    if as_json:
        found = {
            "path": str(path),
            "files": len(verified.manifest.files),
            "golden_images": len(verified.golden),
        }
        _print_json(found if fallback is None else {**found, "fallback": fallback})
        return
    _say(
        f"{target} is sound: {len(verified.manifest.files)} files, {len(verified.golden)} golden"
        " images answered as recorded"
    )
    if fallback is not None:
        _say(f"Here its fp32 sibling answers: {fallback}")


@models.command()
@click.argument("name")
@click.argument("version", type=int, required=False)
@_alias
@_why
@_who
@_store
def promote(
    name: str, version: int | None, alias: str, why: str, who: str | None, store: Store
) -> None:
    """Move an alias to VERSION of model NAME.

    The alias is `production` by default, and the version is that of `candidate`.
    """
    wanted = version if version is not None else store.resolve(f"{name}@candidate").version
    click.echo(f"{store.promote(name, wanted, alias=alias, why=why, who=who)} is {alias}")


@models.command()
@click.argument("name")
@_alias
@_why
@_who
@_store
def rollback(name: str, alias: str, why: str, who: str | None, store: Store) -> None:
    """Move an alias of model NAME back to the version that it had before."""
    click.echo(f"{store.rollback(name, alias=alias, why=why, who=who)} is {alias} again")


@models.command()
@click.argument("name")
@_json
@_store
def history(name: str, as_json: bool, store: Store) -> None:
    """Who did what to model NAME, when and why."""
    entries = store.history(name)
    if as_json:
        _print_json([entry.model_dump(mode="json") for entry in entries])
        return
    rows = [
        (entry.when, entry.who, entry.action, _joined(entry.versions), entry.alias or "", entry.why)
        for entry in entries
    ]
    print_table(("when", "who", "action", "versions", "alias", "why"), rows)


@models.command()
@click.argument("name")
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How many of the newest versions to keep.",
)
@_why
@_who
@_store
def gc(name: str, keep: int, why: str, who: str | None, store: Store) -> None:
    """Remove old versions of model NAME.

    Versions with an alias are kept, and versions that a rollback would go to.
    """
    removed = store.gc(name, keep=keep, why=why, who=who)
    click.echo(
        f"removed versions {_joined(removed)} of {name}"
        if removed
        else f"nothing to remove of {name}"
    )


@models.command()
@_reference
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write.",
)
@_store
def pack(reference: str, out: Path, store: Store) -> None:
    """Write a model as one file (a zip), for another machine's `unpack`."""
    from models.store.transfer import pack_package

    ref = store.resolve(reference)
    pack_package(ref.path, out, name=ref.name)
    _say(f"{ref} packed as {out}")


@models.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--name", help="Name of the model in the store.  [default: the one that it was packed under]"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Unpack into this new folder and leave the store alone.",
)
@_why
@_who
@_store
def unpack(
    file: Path, name: str | None, out: Path | None, why: str, who: str | None, store: Store
) -> None:
    """Publish what `pack` wrote, after the same checks as any package."""
    from models.store.transfer import unpack_package

    if out is not None:
        unpack_package(file, out)
        _say(f"unpacked into {out}")
        return
    with TemporaryDirectory(prefix="loupe-") as place:
        packed_name = unpack_package(file, Path(place) / "package")
        ref = store.publish(
            Path(place) / "package",
            name=name or packed_name,
            why=why or f"unpacked from {file.name}",
            who=who,
        )
    click.echo(f"{ref} published{_aliases_of(store, ref)}")


@models.command("to-bento")
@_reference
@_store
def to_bento(reference: str, store: Store) -> None:
    """Copy a model into BentoML's model store, for `bentoml build` and BentoCloud."""
    from models.store.interchange import export_to_bento

    tag = export_to_bento(store.resolve(reference))
    click.echo(
        f"{tag} is in BentoML's model store. To ship it in a bento, add it to `models` under"
        " [tool.bentoml.build] in pyproject.toml"
    )


@models.command("to-triton")
@_reference
@click.option(
    "--max-batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Largest batch that Triton makes.",
)
@_store
def to_triton(reference: str, max_batch_size: int, store: Store) -> None:
    """Write Triton's config.pbtxt for this version.

    `tritonserver --model-repository` on the store then serves it.
    """
    from models.store.interchange import write_triton

    ref = store.resolve(reference)
    config = write_triton(ref, max_batch_size=max_batch_size)
    _say(f"{config} lets Triton serve {ref}; write it again after a promotion")


def _summary(manifest: Manifest) -> list[tuple[str, str]]:
    labels = manifest.labels
    evaluation = manifest.evaluation
    scores = [
        (name, f"{it.value:.4f} ({it.low:.4f} to {it.high:.4f}, {it.confidence:.0%})")
        for name, it in (evaluation.metrics if evaluation else {}).items()
    ]
    judged = (
        f"{evaluation.count} images of {evaluation.data} ({evaluation.split})"
        if evaluation
        else "not evaluated: imported without labelled images, see docs/import.md"
    )
    return [
        (
            "network",
            (
                f"{manifest.architecture.network}, {manifest.architecture.num_parameters:,}"
                f" parameters, {manifest.precision}"
            ),
        ),
        ("labels", f"{len(labels)}: {_joined(labels[:5])}{', ...' if len(labels) > 5 else ''}"),
        ("input", f"{manifest.input.dtype} {list(manifest.input.shape)}"),
        ("outputs", _joined(output.name for output in manifest.outputs)),
        ("evaluated on", judged),
        *scores,
        ("created", manifest.provenance.created),
    ]


def _aliases_of(store: Store, ref: ModelRef) -> str:
    """` (candidate, production)`, or nothing for a version without an alias."""
    aliases = store.aliases(ref.name).items()
    meant = _joined(alias for alias, version in aliases if version == ref.version)
    return f" ({meant})" if meant else ""


def _joined(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _say(text: str) -> None:
    click.echo(one_line(text))


def _print_json(value: Any) -> None:  # Any: whatever JSON can hold
    click.echo(json.dumps(value, indent=1))


@models.command()
def schema() -> None:
    """The JSON schema of manifest.json."""
    from models.package.manifest import Manifest

    _print_json(Manifest.model_json_schema())
