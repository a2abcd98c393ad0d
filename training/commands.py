"""`loupe train`, `evaluate`, `export` and `retrain`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from models.manifest import Evaluation
    from training.config import TrainConfig

_source = click.option("--data", "source", required=True, metavar="SOURCE", help="digits, folder:PATH, or a path.")
_recipe = click.option("--recipe", "recipe_name", default="finetune", show_default=True, help="Recipe of training/recipes.py.")
_set = click.option("--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe; may be repeated.")
_smoke = click.option("--smoke", is_flag=True, help="A run of under a minute that proves the way; its model is worth nothing.")
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@_recipe
@_source
@click.option("--out", type=_FOLDER, help="Run folder to make.  [default: artifacts/runs/<time>-<network>]")
@_set
@_smoke
def train(recipe_name: str, source: str, out: Path | None, assignments: tuple[str, ...], smoke: bool) -> None:
    """Train a network on labelled images and leave a run."""
    from training.data import load_dataset
    from training.loop import train as train_run

    config = _config(recipe_name, assignments, smoke=smoke)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run = train_run(config, load_dataset(source, seed=config.seed), out or Path("artifacts/runs") / f"{stamp}-{config.network}")
    click.echo(f"run {run.path}: next, `loupe export {run.path} --out PACKAGE`")


@click.command()
@click.argument("package", type=click.Path(path_type=Path, exists=True, file_okay=False))
@_source
@click.option("--out", type=_FOLDER, required=True, help="Folder for report.html and report.json; made if need be.")
def evaluate(package: Path, source: str, out: Path) -> None:
    """Score a package on labelled images and write a report."""
    from training.judge import judge

    figures = judge(package, source, out)
    click.echo(_figures(figures))
    click.echo(f"report {out / 'report.html'}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=_FOLDER, required=True, help="Package folder to make.")
def export(run: Path, out: Path) -> None:
    """Turn a run into a model package, if it passes its gates."""
    from training.export import export as export_run
    from training.run import open_run

    manifest = export_run(open_run(run), out)
    click.echo(_figures(manifest.evaluation))
    click.echo(f"largest difference from torch {manifest.parity.max_probability_difference:.1e} over {manifest.parity.images} images")
    click.echo(f"package {out}: next, `loupe publish {out} --name NAME`")


@click.command()
@click.option("--name", required=True, help="Model name in the store.")
@_recipe
@_source
@_set
@_smoke
@click.option("--store", "store_folder", type=_FOLDER, help="Folder of the model store.  [default: LOUPE_STORE, or artifacts/store]")
@click.option("--artifacts", type=_FOLDER, default=Path("artifacts"), show_default=True, help="Folder for runs and packages.")
def retrain(name: str, recipe_name: str, source: str, assignments: tuple[str, ...], smoke: bool, store_folder: Path | None, artifacts: Path) -> None:
    """Train, evaluate, export and publish; promote only if not worse."""
    from models.settings import StoreSettings
    from models.store import Store
    from training.retrain import retrain as retrain_model

    store = Store(store_folder or StoreSettings().store)
    verdict = retrain_model(_config(recipe_name, assignments, smoke=smoke), source, name=name, store=store, artifacts=artifacts)
    click.echo(f"{verdict.ref.name} version {verdict.ref.version} published: {verdict.ref.path}")
    click.echo(f"{'promoted to production' if verdict.promoted else 'not promoted'}: {verdict.reason}")


def _config(recipe_name: str, assignments: tuple[str, ...], *, smoke: bool) -> TrainConfig:
    from training.config import replace_fields
    from training.recipes import recipe
    from training.recipes import smoke as shrink

    config = replace_fields(recipe(recipe_name), assignments)
    return shrink(config) if smoke else config


def _figures(evaluation: Evaluation) -> str:
    top1 = evaluation.metrics["top1"]
    return f"accuracy {top1.value:.2%} ({top1.low:.2%} to {top1.high:.2%}) on {evaluation.count} {evaluation.split} images of {evaluation.data}"
