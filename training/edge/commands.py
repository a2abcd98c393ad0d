"""`loupe edge build` and `loupe edge bench`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from models.atomic_files import storage_errors
from models.errors import ConfigError
from models.messages import one_line

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def edge() -> None:
    """A package as a bundle for small machines and browsers."""


@edge.command()
@click.argument("package", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=_FILE, required=True, help="Zip file to make.")
@click.option(
    "--target",
    default="python,web,ort",
    show_default=True,
    metavar="LIST",
    help="What it is for: python, web, ort, with commas between.",
)
@click.option(
    "--ort-web",
    type=_FILE,
    metavar="FILE",
    help="npm's tarball of onnxruntime-web, where npm is not.  [default: `npm pack` brings it]",
)
def build(package: Path, out: Path, target: str, ort_web: Path | None) -> None:
    """Write PACKAGE as one zip: models, runner, web page, self-test, benchmark."""
    from training.edge.build import build as build_bundle

    if ort_web is not None and "web" not in target.split(","):
        raise ConfigError(f"--ort-web is for --target web, but the target is {target}")
    targets = [name.strip() for name in target.split(",") if name.strip()]
    with storage_errors(out):
        built = build_bundle(package, out, targets=targets, ort_web=ort_web)
    for name, size in built.variants.items():
        click.echo(f"{name:12} {size / 1e6:6.2f} MB")
    for line in built.warnings:
        click.echo(one_line(f"not validated on this CPU: {line[4:].strip()}"), err=True)
    size_mb = out.stat().st_size / 1e6
    click.echo(
        one_line(
            f"bundle {out}, {size_mb:.1f} MB: next, `loupe edge bench {quote(str(out))}`; on the"
            " device, unpack it and run selftest.py"
        )
    )


@edge.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True), metavar="BUNDLE_OR_PACKAGE")
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Threads of the model.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.0, 600.0),
    default=3.0,
    show_default=True,
    help="For each of the two measurements of a variant.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(bundle: Path, threads: int, seconds: float, as_json: bool) -> None:
    """Latency, images/s, memory and size of every variant, each in a process of its own."""
    import json

    from training.edge.bundle.bench import table
    from training.edge.measure import measure

    figures = measure(bundle, threads=threads, seconds=seconds)
    click.echo(json.dumps(figures, indent=1) if as_json else table(figures))
