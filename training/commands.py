"""`loupe train`, `export` and `retrain`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from models.atomic_files import storage_errors
from models.messages import one_line
from training.data.source_options import chosen, source_options
from training.options import (
    FOLDER,
    Number,
    Recorded,
    abstain_option,
    accuracy_budget_option,
    golden_option,
    mlflow_option,
    precision_option,
    recipe_option,
    run_source_option,
    set_option,
    smoke_option,
    tensorboard_option,
    time_budget_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from models.package.manifest import Precision
    from training.config import TrainConfig
    from training.runs.run import Run


@click.command(cls=Recorded)
@recipe_option
@run_source_option
@source_options
@click.option(
    "--out", type=FOLDER, help="Run folder to make.  [default: artifacts/runs/<time>-<network>]"
)
@set_option
@smoke_option
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the interrupted run in --out, with the same result.",
)
@click.option(
    "--find-lr",
    is_flag=True,
    help="Sweep the learning rates and say which to set, instead of training.",
)
@tensorboard_option
@mlflow_option
def train(
    recipe_name: str | None,
    source: str | None,
    splits: tuple[str, ...],
    path_column: str | None,
    label_column: str | None,
    out: Path | None,
    assignments: tuple[str, ...],
    smoke: bool,
    resume: bool,
    find_lr: bool,
    tensorboard: bool,
    mlflow: str | None,
) -> None:
    """Train a network on labelled images and leave a run.

    Several GPUs or hosts: start it with torchrun, as in `torchrun --nproc-per-node 2 --no-python
    loupe train ...`. batch_size is that of all processes together.
    """
    from training.data.index import read_index
    from training.data.source import AS_USUAL, list_again, load_dataset
    from training.fit.loop import train as train_run
    from training.runs.run import open_run
    from training.runs.tracking import Tracking
    from training.settings import TorchrunSettings
    from training.summary import of_run

    if not (out if resume else source):
        raise click.UsageError(
            "--resume needs --out RUN, the run to continue"
            if resume
            else "Missing option '--data'."
        )
    begun = open_run(out) if out and resume else None
    config = _config_of(begun, recipe_name, assignments, smoke=smoke)
    options = chosen(splits, path_column, label_column)
    source = source or (begun.record.data.source if begun else "")
    options = begun.record.options if begun and options == AS_USUAL else options
    images = read_index(begun.path) if begun else ()
    dataset = (
        list_again(source, images, begun.record.labels, options)
        if begun and images and not find_lr
        else load_dataset(source, seed=config.seed, options=options)
    )
    if find_lr:
        from training.fit.lr_finder import suggest

        click.echo(suggest(config, dataset))
        return
    tracking = Tracking(tensorboard=tensorboard, mlflow=mlflow)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = out or Path("artifacts/runs") / f"{stamp}-{config.network}"
    with storage_errors(folder):
        run = train_run(config, dataset, folder, resume=resume, tracking=tracking)
    if TorchrunSettings().rank == 0:
        _say_all(of_run(run))


@click.command(cls=Recorded)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=FOLDER, required=True, help="Package folder to make.")
@precision_option
@accuracy_budget_option
@time_budget_option
@click.option(
    "--calibration-split",
    default="train",
    show_default=True,
    help="Images that int8 is calibrated on; never those that judge it.",
)
@click.option(
    "--keep-fp32",
    is_flag=True,
    help="Where no int8 model is inside the budget, make a package in fp32 instead of failing.",
)
@abstain_option
@golden_option
def export(
    run: Path,
    out: Path,
    precision: Precision,
    accuracy_budget: float,
    time_budget: float,
    calibration_split: str,
    keep_fp32: bool,
    abstain_accuracy: float | None,
    golden: str | None,
) -> None:
    """Turn a run into a model package, if it passes its gates."""
    from training.export.export import export as export_run
    from training.export.int8.choose import Int8Options
    from training.export.int8.search_progress import show
    from training.runs.run import open_run
    from training.summary import of_package

    options = Int8Options(
        accuracy_budget_points=accuracy_budget,
        time_budget_s=time_budget,
        calibration_split=calibration_split,
        keep_fp32=keep_fp32,
    )
    begun = open_run(run)
    with storage_errors(out):
        manifest = export_run(
            begun,
            out,
            precision=precision,
            abstain_accuracy=abstain_accuracy,
            int8=options,
            golden=golden,
            watch=show,
        )
    _say_all(of_package(out, manifest))
    click.echo(
        f"largest difference from torch {manifest.parity.max_probability_difference:.1e} over"
        f" {manifest.parity.images} images"
    )
    _say(
        f"package {out} ({manifest.precision}): next, `loupe publish {quote(str(out))} --name NAME`"
    )


@click.command(cls=Recorded)
@click.option("--name", required=True, help="Model name in the store.")
@recipe_option
@run_source_option
@source_options
@set_option
@smoke_option
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the newest retraining of NAME that was interrupted, with the same result.",
)
@click.option(
    "--store",
    "store_folder",
    type=FOLDER,
    help="Folder of the model store.  [default: LOUPE_STORE, or artifacts/store]",
)
@click.option(
    "--artifacts",
    type=FOLDER,
    default=Path("artifacts"),
    show_default=True,
    help="Folder for runs and packages.",
)
@click.option(
    "--margin",
    type=Number(0.0, 1.0),
    default=0.01,
    show_default=True,
    help=(
        "Loss of accuracy against production that is let pass; the test must rule out a greater"
        " one."
    ),
)
@precision_option
@accuracy_budget_option
@time_budget_option
@abstain_option
def retrain(
    name: str,
    recipe_name: str | None,
    source: str | None,
    splits: tuple[str, ...],
    path_column: str | None,
    label_column: str | None,
    assignments: tuple[str, ...],
    smoke: bool,
    resume: bool,
    store_folder: Path | None,
    artifacts: Path,
    margin: float,
    precision: Precision,
    accuracy_budget: float,
    time_budget: float,
    abstain_accuracy: float | None,
) -> None:
    """Train, evaluate, export and publish; promote only if not worse."""
    from models.package.manifest_file import read_manifest
    from models.settings import load_store_settings
    from models.store.store import Store
    from training.data.source import AS_USUAL
    from training.export.int8.choose import Int8Options
    from training.retrain import interrupted
    from training.retrain import retrain as retrain_model
    from training.summary import of_verdict

    if not (source or resume):
        raise click.UsageError("Missing option '--data'.")
    begun = interrupted(name, artifacts) if resume else None
    options = chosen(splits, path_column, label_column)
    # A model that cannot be had in int8 is better published in fp32 than not at all.
    int8 = Int8Options(
        accuracy_budget_points=accuracy_budget, time_budget_s=time_budget, keep_fp32=True
    )
    with storage_errors(artifacts):
        verdict = retrain_model(
            _config_of(begun, recipe_name, assignments, smoke=smoke),
            source or (begun.record.data.source if begun else ""),
            name=name,
            store=Store(store_folder or load_store_settings().store),
            artifacts=artifacts,
            margin=margin,
            abstain_accuracy=abstain_accuracy,
            precision=precision,
            int8=int8,
            options=begun.record.options if begun and options == AS_USUAL else options,
            resumed=begun,
        )
    _say_all(of_verdict(verdict, read_manifest(verdict.ref.path)))


def _say(text: str) -> None:
    click.echo(one_line(text))


def _say_all(lines: Iterable[str]) -> None:
    for line in lines:
        _say(line)


def _config_of(
    begun: Run | None, recipe_name: str | None, assignments: tuple[str, ...], *, smoke: bool
) -> TrainConfig:
    """The config that the options mean; without any, that of the run *begun*."""
    from training.config import replace_fields
    from training.recipes import recipe
    from training.recipes import smoke as shrink

    if begun and not (recipe_name or assignments or smoke):
        return begun.config
    config = replace_fields(recipe(recipe_name or "finetune"), assignments)
    return shrink(config) if smoke else config
