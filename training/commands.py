"""`loupe train`, `evaluate`, `export` and `retrain`."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from models.atomic_files import storage_errors
from models.messages import one_line
from training.data.source_options import SPLIT_HELP, chosen, columns, source_options

if TYPE_CHECKING:
    from models.package.manifest import Evaluation, Precision
    from training.config import TrainConfig


class _Number(click.FloatRange):
    """A range, and what is in it: NaN is in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:  # Any: as click has it
        """The number *value*."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not a number", param, ctx)
        return found


_SOURCE_HELP = "digits, folder:PATH, csv:PATH, tar:PATTERN, torchvision:NAME[:ROOT], or a path."
_source = click.option("--data", "source", required=True, metavar="SOURCE", help=_SOURCE_HELP)
_recipe = click.option(
    "--recipe",
    "recipe_name",
    default="finetune",
    show_default=True,
    help="Recipe of training/recipes.py.",
)
_set = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field, as in network=resnet18; may be repeated.",
)
_smoke = click.option(
    "--smoke",
    is_flag=True,
    help="A run of under a minute that proves the way; its model is worth nothing.",
)
_abstain = click.option(
    "--abstain-accuracy",
    type=_Number(0.0, 1.0, min_open=True),
    metavar="SHARE",
    help=(
        "Abstain below the confidence at which this share of the answered validation images is"
        " right, such as 0.99.  [default: never abstain]"
    ),
)
_precision = click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16 is for GPUs, int8 for CPUs.",
)
_accuracy_budget = click.option(
    "--accuracy-budget",
    type=_Number(0.0, 100.0),
    default=1.0,
    show_default=True,
    metavar="POINTS",
    help="Accuracy that int8 may lose against fp32, in percentage points.",
)
_time_budget = click.option(
    "--time-budget",
    type=_Number(0.0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="After this the search for int8 tries no more.",
)
_golden = click.option(
    "--golden",
    metavar="FOLDER",
    help=(
        "Images that the package carries to prove itself, or `made` for artificial ones.  [default:"
        " four held-out images, without metadata]"
    ),
)
_tensorboard = click.option(
    "--tensorboard/--no-tensorboard",
    default=True,
    show_default=True,
    help="Write events for TensorBoard into the run folder.",
)
_mlflow = click.option(
    "--mlflow",
    metavar="URI",
    help=(
        "Also log to MLflow: a server's http://..., or a folder as file:mlruns; needs the"
        " extra `mlflow`."
    ),
)
_FOLDER = click.Path(path_type=Path, file_okay=False)


class _Recorded(click.Command):
    """A command whose paths are recorded in runs, manifests and reports, which are UTF-8."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, once every argument is UTF-8."""
        for word in args:
            try:
                word.encode()
            except UnicodeEncodeError:
                raise click.UsageError(
                    f"{word} is not UTF-8, and this command records it as text; rename the file or"
                    " folder.",
                    ctx,
                ) from None
        return super().parse_args(ctx, args)


@click.command(cls=_Recorded)
@click.option(
    "--recipe",
    "recipe_name",
    help="Recipe of training/recipes.py.  [default: finetune; with --resume, that of the run]",
)
@click.option(
    "--data",
    "source",
    metavar="SOURCE",
    help=f"{_SOURCE_HELP}  [required; with --resume, that of the run]",
)
@source_options
@click.option(
    "--out", type=_FOLDER, help="Run folder to make.  [default: artifacts/runs/<time>-<network>]"
)
@_set
@_smoke
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
@_tensorboard
@_mlflow
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

    Several GPUs or hosts: start it with torchrun, as in `torchrun --nproc-per-node 2 -m loupe train
    ...`. batch_size is that of all processes together.
    """
    from training.data.index import read_index
    from training.data.source import AS_USUAL, list_again, load_dataset
    from training.fit.loop import train as train_run
    from training.runs.run import open_run
    from training.runs.tracking import Tracking
    from training.settings import TorchrunSettings

    if not (out if resume else source):
        raise click.UsageError(
            "--resume needs --out RUN, the run to continue"
            if resume
            else "Missing option '--data'."
        )
    begun = open_run(out) if out and resume else None
    config = (
        begun.config
        if begun and not (recipe_name or assignments or smoke)
        else _config(recipe_name or "finetune", assignments, smoke=smoke)
    )
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
    name = config.network.replace(":", "-")  # other systems allow no colon in a path
    folder = out or Path("artifacts/runs") / f"{stamp}-{name}"
    with storage_errors(folder):
        run = train_run(config, dataset, folder, resume=resume, tracking=tracking)
    if TorchrunSettings().rank == 0:
        _say(f"run {run.path}: next, `loupe export {quote(str(run.path))} --out PACKAGE`")


@click.command(cls=_Recorded)
@click.argument("package", type=click.Path(path_type=Path, exists=True, file_okay=False))
@_source
@click.option(
    "--out",
    type=_FOLDER,
    required=True,
    help="Folder for report.html and report.json; made if need be.",
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="held-out|all|SPLIT=NAME,...",
    help=(
        f"Images to judge on: held-out or all.  [default: held-out]  {SPLIT_HELP} May be repeated."
    ),
)
@columns
def evaluate(
    package: Path,
    source: str,
    out: Path,
    splits: tuple[str, ...],
    path_column: str | None,
    label_column: str | None,
) -> None:
    """Score a package on labelled images and write a report."""
    from training.evaluate.judge import judge

    options = chosen(
        tuple(split for split in splits if split not in ("held-out", "all")),
        path_column,
        label_column,
    )
    with storage_errors(out):
        figures = judge(package, source, out, whole="all" in splits, options=options)
    _say(_figures(figures))
    _say(f"report {out / 'report.html'}")


@click.command(cls=_Recorded)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=_FOLDER, required=True, help="Package folder to make.")
@_precision
@_accuracy_budget
@_time_budget
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
@_abstain
@_golden
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
    from training.export.int8.search_progress import SearchProgress
    from training.runs.run import open_run

    options = Int8Options(
        accuracy_budget_points=accuracy_budget,
        time_budget_s=time_budget,
        calibration_split=calibration_split,
        keep_fp32=keep_fp32,
    )
    progress = SearchProgress()
    begun = open_run(run)
    with storage_errors(out):
        manifest = export_run(
            begun,
            out,
            precision=precision,
            abstain_accuracy=abstain_accuracy,
            int8=options,
            golden=golden,
            watch=progress.show,
        )
    if precision == "int8":
        click.echo(
            json.loads((out / "report.json").read_text(encoding="utf-8"))["quantisation"]["reason"]
        )
    _say(_figures(manifest.evaluation))
    if abstain_accuracy is not None:
        click.echo(f"abstains below a confidence of {manifest.abstain_threshold:.3f}")
    click.echo(
        f"largest difference from torch {manifest.parity.max_probability_difference:.1e} over"
        f" {manifest.parity.images} images"
    )
    _say(
        f"package {out} ({manifest.precision}): next, `loupe publish {quote(str(out))} --name NAME`"
    )


@click.command(cls=_Recorded)
@click.option("--name", required=True, help="Model name in the store.")
@_recipe
@_source
@source_options
@_set
@_smoke
@click.option(
    "--store",
    "store_folder",
    type=_FOLDER,
    help="Folder of the model store.  [default: LOUPE_STORE, or artifacts/store]",
)
@click.option(
    "--artifacts",
    type=_FOLDER,
    default=Path("artifacts"),
    show_default=True,
    help="Folder for runs and packages.",
)
@click.option(
    "--margin",
    type=_Number(0.0, 1.0),
    default=0.01,
    show_default=True,
    help=(
        "Loss of accuracy against production that is let pass; the test must rule out a greater"
        " one."
    ),
)
@_precision
@_accuracy_budget
@_time_budget
@_abstain
def retrain(
    name: str,
    recipe_name: str,
    source: str,
    splits: tuple[str, ...],
    path_column: str | None,
    label_column: str | None,
    assignments: tuple[str, ...],
    smoke: bool,
    store_folder: Path | None,
    artifacts: Path,
    margin: float,
    precision: Precision,
    accuracy_budget: float,
    time_budget: float,
    abstain_accuracy: float | None,
) -> None:
    """Train, evaluate, export and publish; promote only if not worse."""
    from models.settings import load_store_settings
    from models.store.store import Store
    from training.export.int8.choose import Int8Options
    from training.retrain import retrain as retrain_model

    store = Store(store_folder or load_store_settings().store)
    config = _config(recipe_name, assignments, smoke=smoke)
    # A model that cannot be had in int8 is better published in fp32 than not at all.
    int8 = Int8Options(
        accuracy_budget_points=accuracy_budget, time_budget_s=time_budget, keep_fp32=True
    )
    with storage_errors(artifacts):
        verdict = retrain_model(
            config,
            source,
            name=name,
            store=store,
            artifacts=artifacts,
            margin=margin,
            abstain_accuracy=abstain_accuracy,
            precision=precision,
            int8=int8,
            options=chosen(splits, path_column, label_column),
        )
    _say(f"{verdict.ref.name} version {verdict.ref.version} published: {verdict.ref.path}")
    _say(f"{'promoted to production' if verdict.promoted else 'not promoted'}: {verdict.reason}")
    _say(f"verdict {verdict.path}")


def _say(text: str) -> None:
    click.echo(one_line(text))


def _config(recipe_name: str, assignments: tuple[str, ...], *, smoke: bool) -> TrainConfig:
    from training.config import replace_fields
    from training.recipes import recipe
    from training.recipes import smoke as shrink

    config = replace_fields(recipe(recipe_name), assignments)
    return shrink(config) if smoke else config


def _figures(evaluation: Evaluation) -> str:
    top1 = evaluation.metrics["top1"]
    return (
        f"accuracy {top1.value:.2%} ({top1.low:.2%} to {top1.high:.2%}) on {evaluation.count}"
        f" {evaluation.split} images of {evaluation.data}"
    )
