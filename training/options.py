"""Options that several commands of training share, and what their values may be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click


class Number(click.FloatRange):
    """A range, and what is in it: NaN is in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:  # Any: as click has it
        """The number *value*."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not a number", param, ctx)
        return found


SOURCE_HELP = "digits, folder:PATH, csv:PATH, tar:PATTERN, torchvision:NAME[:ROOT], or a path."
source_option = click.option("--data", "source", required=True, metavar="SOURCE", help=SOURCE_HELP)
run_source_option = click.option(
    "--data",
    "source",
    metavar="SOURCE",
    help=f"{SOURCE_HELP}  [required; with --resume, that of the run]",
)
recipe_option = click.option(
    "--recipe",
    "recipe_name",
    help="Recipe of training/recipes.py.  [default: finetune; with --resume, that of the run]",
)
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field, as in network=resnet18; may be repeated.",
)
smoke_option = click.option(
    "--smoke",
    is_flag=True,
    help="A run of under a minute that proves the way; its model is worth nothing.",
)
abstain_option = click.option(
    "--abstain-accuracy",
    type=Number(0.0, 1.0, min_open=True),
    metavar="SHARE",
    help=(
        "Abstain below the confidence at which this share of the answered validation images is"
        " right, such as 0.99.  [default: never abstain]"
    ),
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16 is for GPUs, int8 for CPUs.",
)
accuracy_budget_option = click.option(
    "--accuracy-budget",
    type=Number(0.0, 100.0),
    default=1.0,
    show_default=True,
    metavar="POINTS",
    help="Accuracy that int8 may lose against fp32, in percentage points.",
)
time_budget_option = click.option(
    "--time-budget",
    type=Number(0.0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="After this the search for int8 tries no more.",
)
golden_option = click.option(
    "--golden",
    metavar="FOLDER",
    help=(
        "Images that the package carries to prove itself, or `made` for artificial ones.  [default:"
        " four held-out images, without metadata]"
    ),
)
tensorboard_option = click.option(
    "--tensorboard/--no-tensorboard",
    default=True,
    show_default=True,
    help="Write events for TensorBoard into the run folder.",
)
mlflow_option = click.option(
    "--mlflow",
    metavar="URI",
    help=(
        "Also log to MLflow: a server's http://..., or a folder as file:mlruns; needs the"
        " extra `mlflow`."
    ),
)
FOLDER = click.Path(path_type=Path, file_okay=False)


class Recorded(click.Command):
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
