"""`loupe predict`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import click

from models.messages import one_line


@click.command()
@click.argument("photos", nargs=-1, required=True, metavar="PHOTO...")
@click.option(
    "--model",
    metavar="NAME[@ALIAS|:VERSION]",
    help=(
        "Model in the store, a package folder, or the zip of a package or edge bundle."
        "  [default: the store's only model]"
    ),
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Classes for each photo.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Write a heat map of the evidence beside each photo, as photo.jpg.heat.png.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the heat maps there instead; needs --explain.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each photo.")
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the model store.  [default: LOUPE_STORE, or artifacts/store]",
)
def predict(
    photos: tuple[str, ...],
    model: str | None,
    top_k: int,
    explain: bool,
    out: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """Say what is in PHOTO, without a server.

    PHOTO is a file, a folder, an http(s) URL, or `-` for standard input; several may be given. A
    photo that cannot be used fails alone. Heat maps of a folder go into FOLDER.heat.

    Exit status: 0 all photos answered, 1 some were not, or the model is refused, 2 usage.
    """
    from models.settings import load_store_settings
    from service.predict.answers import JsonLines, Predictor, Summary, Table
    from service.predict.opening import open_classifier
    from service.predict.photos import photos_of

    if out is not None and not explain:
        raise click.UsageError("--out is the folder of heat maps; say --explain too")
    with ExitStack() as stack:
        classifier = open_classifier(model, store=store or load_store_settings().store, stack=stack)
        predictor = Predictor(classifier, top_k=top_k, explain=explain, out=out)
        table = Table(abstain_threshold=classifier.manifest.abstain_threshold)
        output = JsonLines(classifier) if as_json else table
        summary = Summary()
        for photo in photos_of(photos):
            answer = predictor.answer(photo)
            summary.add(answer)
            output.show(answer)
    if not as_json and (text := summary.text()):
        click.echo(one_line(text))
    if summary.failed:
        sys.exit(1)
