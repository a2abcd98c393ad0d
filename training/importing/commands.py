"""`loupe import`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from models.atomic_files import storage_errors
from models.messages import one_line
from training.data.source_options import chosen, source_options
from training.options import Recorded

if TYPE_CHECKING:
    from training.importing.package import Imported, Understood

_FOLDER = click.Path(path_type=Path, file_okay=False)
_EXISTING = click.Path(path_type=Path, exists=True)


@click.command("import", cls=Recorded)
@click.argument("model", type=_EXISTING)
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=(
        "Labels in the order of the model's outputs: one a line, or JSON.  [default: the model's"
        " own, where it has them]"
    ),
)
@click.option(
    "--preprocess",
    "declared",
    multiple=True,
    metavar="NAME|FIELD=VALUE|FILE",
    help=(
        "How the model wants its images: imagenet, half, unit, raw or caffe, a field such as"
        " size=224 or channels=bgr, or a TOML file; may be repeated.  [default: what the model"
        " says]"
    ),
)
@click.option("--network", metavar="NAME", help="torchvision's name of the network, for weights.")
@click.option("--images", type=_FOLDER, help="Photos without labels, to compare answers on.")
@click.option(
    "--data",
    "source",
    metavar="SOURCE",
    help="Labelled images, as `loupe evaluate` takes them: they give accuracy as well.",
)
@source_options
@click.option("--out", type=_FOLDER, help="Package folder to make.")
@click.option(
    "--find-preprocess",
    is_flag=True,
    help="Try the usual preprocessings on --data and show the accuracy of each, instead.",
)
def import_(
    model: Path,
    labels_file: Path | None,
    declared: tuple[str, ...],
    network: str | None,
    images: Path | None,
    source: str | None,
    splits: tuple[str, ...],
    path_column: str | None,
    label_column: str | None,
    out: Path | None,
    find_preprocess: bool,
) -> None:
    """Turn a model that was trained elsewhere into a verified package.

    MODEL is an .onnx file; weights of torchvision or timm (.pth, .safetensors) with --network; a
    folder of Hugging Face; a .mar of TorchServe; a .keras file; or a folder of Triton.
    """
    from training.importing.declared import Declared, read_declared
    from training.importing.find_preprocess import tried
    from training.importing.images import NONE, labelled, unlabelled
    from training.importing.labels import read_labels
    from training.importing.package import import_model, understood
    from training.importing.sources.find import foreign_model

    if images and source:
        raise click.UsageError("--images and --data exclude each other; --data has images too")
    if find_preprocess and not source:
        raise click.UsageError("--find-preprocess needs --data, images with their labels")
    if not (out or find_preprocess):
        raise click.UsageError("Missing option '--out'.")
    said = read_declared(declared)
    labels = read_labels(labels_file) if labels_file else None
    foreign = foreign_model(model, network=network)
    options = chosen(splits, path_column, label_column)
    guess = Declared(range="0..1") if find_preprocess else Declared()
    found = understood(foreign, labels, said.over(guess))
    for line in [] if find_preprocess else _described(found):
        _say(line)
    given = NONE
    if source:
        given = labelled(source, found.labels, options, found.spec, foreign.name)
    elif images:
        given = unlabelled(images, found.spec)
    if find_preprocess:
        for line in tried(foreign, labels, said, given.examples):
            _say(line)
        return
    assert out is not None
    with storage_errors(out):
        imported = import_model(found, given, out)
    for line in _told(found, imported, out):
        _say(line)


def _described(found: Understood) -> list[str]:
    """What was understood of the model, before anything is computed."""
    signature, spec, foreign = found.signature, found.spec, found.foreign
    border = "" if spec.resize != "letterbox" else f" on {list(spec.pad_colour)}"
    geometry = {
        "shortest_side": f"short side to {spec.resize_size}, centre",
        "stretch": f"stretch to {spec.stretch_size}, centre" if spec.stretch_size else "stretch to",
        "letterbox": "fit whole into",
    }[spec.resize]
    return [
        (
            f"model      {foreign.name}: {foreign.kind}, input {signature.layout.upper()}"
            f" {signature.dtype}, {len(found.labels)} classes"
        ),
        f"image      {geometry} {spec.crop[0]}x{spec.crop[1]}{border}, {spec.filter}",
        f"pixels     {found.how.in_words()}",
        *(f"note       {note}" for note in foreign.notes),
    ]


def _told(found: Understood, imported: Imported, out: Path) -> list[str]:
    """What became of it, and what to do next."""
    manifest, parity = imported.manifest, imported.manifest.parity
    sizes = {output.name: output.shape for output in manifest.outputs}
    kind = "probabilities" if imported.gives_probabilities else "logits, softmax added"
    embedding = f"{sizes['embedding'][1]} features" if "embedding" in sizes else "none"
    maps = "x".join(map(str, sizes["cam"][2:])) if "cam" in sizes else "none"
    judged = "not evaluated: labelled images (--data) would say how often it is right"
    if manifest.evaluation is not None:
        top1 = manifest.evaluation.metrics["top1"]
        judged = (
            f"{top1.value:.2%} ({top1.low:.2%} to {top1.high:.2%}) on"
            f" {manifest.evaluation.count} images of {manifest.evaluation.data}"
        )
    return [
        f"answers    {kind}",
        f"embedding  {embedding}{_because(imported.why_no_embedding)}",
        f"heat maps  {maps}{_because(imported.why_no_maps)}",
        (
            f"proof      at most {parity.max_probability_difference:.1e} from"
            f" {found.foreign.runtime} on {parity.images} image{'' if parity.images == 1 else 's'}"
            f"{'' if manifest.data else ' that were made; --images FOLDER takes photos'}"
        ),
        f"accuracy   {judged}",
        f"package    {out}: next, `loupe publish {quote(str(out))} --name NAME`",
    ]


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _say(text: str) -> None:
    click.echo(one_line(text))
