"""`loupe score`."""

from __future__ import annotations

import hashlib
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.messages import one_line
from models.table_columns import PATH_NAMES

if TYPE_CHECKING:
    from service.scoring.job import Engine, Job

SHOWN_CLASSES = 10


@click.command()
@click.argument("source", metavar="INPUT")
@click.option(
    "--model",
    required=True,
    metavar="NAME[@ALIAS|:VERSION]",
    help="Model in the store, or a package folder.",
)
@click.option(
    "--out",
    required=True,
    metavar="OUT",
    help=(
        "x.parquet, x.csv, x.jsonl, or without an ending a folder of Parquet files; or such a URL."
    ),
)
@click.option(
    "--columns",
    default="abstained,top_k,model",
    show_default=True,
    help="Of top_k, probabilities, embedding, abstained, model, sha256.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Classes in the column top_k.",
)
@click.option(
    "--path-column",
    metavar="NAME",
    help=f"Column of a table that holds the paths.  [default: {' or '.join(PATH_NAMES)}]",
)
@click.option(
    "--carry", metavar="A,B", help="Columns of a table to copy to the output.  [default: all]"
)
@click.option("--partition-by", metavar="COLUMN", help="Make a folder COLUMN=VALUE for each value.")
@click.option(
    "--max-failures",
    metavar="N|SHARE",
    help="End with status 3 if more images fail: 100, 0.01 or 1%.  [default: no limit]",
)
@click.option(
    "--resume", is_flag=True, help="Resume an interrupted job, or start it if there is none."
)
@click.option("--overwrite", is_flag=True, help="Start again, and replace OUT at the end.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the job's state.  [default: OUT.job]",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Score part I of N of the input, I from 0, so that N jobs share it.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Threads of this process, or a Ray cluster.",
)
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="A running Ray cluster.  [default: one on this machine, for this job]",
)
@click.option(
    "--lanes",
    type=click.IntRange(min=0),
    default=0,
    help="Threads that decode and run the model.  [default: the cores of the cgroup]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 64),
    default=16,
    show_default=True,
    help="Images in one run of the model.",
)
@click.option(
    "--max-image-bytes",
    type=click.IntRange(min=1),
    default=256 * 2**20,
    show_default=True,
    help="A larger file fails.",
)
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt"]),
    default="cpu",
    show_default=True,
    help="Execution provider.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    help="Model store.  [default: LOUPE_STORE, or artifacts/store]",
)
def score(**options: Any) -> None:  # Any: click's values, typed again by `_prepare`
    """Score many images, and account for every one.

    INPUT is a folder, an image, a glob, a table with a path column (.csv, .tsv, .jsonl, .parquet),
    tar shards, a zip, or a URL of these.

    Every image gets a row in OUT, or with the reason in the dead-letter file, `.failed.jsonl`.

    Exit status: 0 done, 1 refused or no image could be scored, 2 usage, 3 more failures than
    --max-failures, 4 a disk or bucket failed (fix it and --resume), 130 or 143 stopped.
    """
    from models.errors import ConfigError, ScoringError

    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume continues and --overwrite starts again: choose one")
    try:
        with ExitStack() as stack:
            job, engine = _prepare(options, stack)
            summary = job.run(engine, resume=options["resume"], overwrite=options["overwrite"])
    except ScoringError as error:
        click.echo(f"error: {one_line(str(error))}", err=True)
        sys.exit(error.exit_status)
    except (
        UnicodeEncodeError
    ) as error:  # pragma: no cover - a path that is no UTF-8, on a terminal that cannot show it
        raise ConfigError(
            f"this terminal cannot show a path of the input: {error}. Set"
            " PYTHONIOENCODING=utf-8:backslashreplace"
        ) from error
    _show(job, summary)
    if summary["images"] and not summary["scored"]:
        click.echo(
            f"error: none of {summary['images']:,} images could be scored;"
            f" {one_line(job.failed_file)} says why",
            err=True,
        )
        sys.exit(ScoringError.exit_status)


def _prepare(options: dict[str, Any], stack: ExitStack) -> tuple[Job, Engine]:
    """The job and its engine; *stack* closes what the engine needs.

    Options are checked before the model opens, because opening takes long.
    """
    from models.errors import ConfigError
    from models.package.manifest import MANIFEST_FILE
    from models.settings import load_store_settings
    from service.engine.classifier import Classifier
    from service.scoring.compute.unit import ScoringOptions
    from service.scoring.input.inputs import open_input
    from service.scoring.job import Job, local_engine
    from service.scoring.output.columns import parse_columns
    from service.scoring.output.outputs import format_of
    from service.scoring.plan import Plan, parse_failure_limit, parse_shard, state_folder

    out, columns = options["out"], parse_columns(options["columns"])
    format_of(out, partition_by=options["partition_by"])
    limit, shard = parse_failure_limit(options["max_failures"]), parse_shard(options["shard"])
    carry = options["carry"]
    if carry is not None:
        carry = tuple(name.strip() for name in carry.split(",") if name.strip())
    source = open_input(options["source"], path_column=options["path_column"], carry=carry)
    store = options["store"] or load_store_settings().store
    cluster = None
    if options["engine"] == "ray":
        from service.scoring.compute.cluster import Cluster

        # It starts now, while the model opens.
        cluster = stack.enter_context(Cluster(options["ray_address"]))
    classifier = Classifier.open(
        options["model"],
        store=store,
        threads=1,
        provider=options["provider"],
        max_batch_size=options["batch_size"],
    )
    if cluster is not None and not cluster.is_own:
        cluster.ray.result()
    manifest = (classifier.model.path / MANIFEST_FILE).read_bytes()
    plan = Plan(
        input=options["source"],
        path_column=options["path_column"] or "path",
        carry=carry,
        model=f"{classifier.name}:{classifier.version}",
        package=hashlib.sha256(manifest).hexdigest(),
        precision=classifier.model.precision,
        columns=columns,
        top_k=options["top_k"],
        batch_size=options["batch_size"],
        shard=shard,
        max_image_bytes=options["max_image_bytes"],
    )
    if "embedding" in columns and classifier.manifest.architecture.embedding_size is None:
        raise ConfigError(
            f"{plan.model} has no output embedding, so it cannot be a column; leave `embedding` out"
            " of --columns"
        )
    job = Job(
        plan=plan,
        source=source,
        classifier=classifier,
        out=out,
        state=state_folder(out, options["state"]),
        limit=limit,
        partition_by=options["partition_by"],
    )
    chosen = {name: name in columns for name in ("probabilities", "embedding", "sha256")}
    scoring = ScoringOptions(top_k=options["top_k"], batch_size=options["batch_size"], **chosen)
    if cluster is None:
        return job, local_engine(job, options=scoring, lanes=options["lanes"])
    return job, cluster.engine(job, options=scoring)


def _show(job: Job, summary: dict[str, Any]) -> None:
    """Print what the job found; the summary file has all of it."""
    from service.scoring.input.inputs import skipped_text

    rate = (summary["images"] - summary["resumed_at"]) / max(summary["seconds"], 1e-9)
    resumed = f" ({summary['resumed_at']:,} of them before)" if summary["resumed_at"] else ""
    click.echo(
        f"{summary['scored']:,} of {summary['images']:,} images{resumed} scored by"
        f" {summary['model']} in {summary['seconds']:.1f} s, {rate:,.0f} images/s"
    )
    codes = ", ".join(f"{code} {count:,}" for code, count in summary["failures"].items())
    labels = [f"{label} {count:,}" for label, count in summary["classes"].items()]
    more = [f"and {len(labels) - SHOWN_CLASSES} more"] if len(labels) > SHOWN_CLASSES else []
    lines = [
        ("failed", codes and f"{summary['failed']:,}: {codes}; see {job.failed_file}"),
        ("skipped", skipped_text(summary.get("not_images", {}))),
        ("abstained", f"{summary['abstained']:,}" if summary["abstained"] else ""),
        ("classes", ", ".join(labels[:SHOWN_CLASSES] + more) or "none"),
        *(
            ("column", f"{name} of the input is called {new}")
            for name, new in summary.get("renamed", {}).items()
        ),
        ("drift", _drift_text(summary["drift"])),
        ("output", job.out),
        ("summary", job.summary_file),
    ]
    for name, text in lines:
        if text:
            click.echo(one_line(f"{name:11}{text}"))


def _drift_text(drift: dict[str, Any] | None) -> str:
    if drift is None:
        return "not measured: the model was imported without images to compare with"
    shifted = ", ".join(
        f"{signal} (PSI {found['psi']:.2f})" for signal, found in drift.items() if found["shifted"]
    )
    return f"{shifted or 'none'}, against the images that the model was judged on"
