"""`loupe inspect embedding`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from training.inside.options import (
    json_option,
    out_option,
    photos_option,
    store_option,
    subject_argument,
    weights_option,
)
from training.inside.output import tell_unreadable, write_result


@click.command()
@subject_argument
@photos_option(required=True)
@click.option(
    "--method",
    type=click.Choice(["pca", "tsne"]),
    default="pca",
    show_default=True,
    help="How the two dimensions are found; tsne parts the groups better and takes longer.",
)
@weights_option
@out_option
@json_option
@store_option
def embedding(
    subject: str,
    source: str,
    method: str,
    weights: str | None,
    out: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """A map of the photos of SOURCE, with mistakes and outliers marked.

    Photos that look alike to the model lie close together. SUBJECT is as in `loupe inspect shapes`.
    On a page (--out map.html) each point shows its photo.
    """
    from training.data.source import list_source
    from training.inside.data_map.page import map_page
    from training.inside.data_map.picture import map_picture
    from training.inside.data_map.points import data_map
    from training.inside.data_map.words import as_json as document
    from training.inside.data_map.words import listed, sentences
    from training.inside.subject import open_subject

    listing = list_source(source)
    photos = [example for split in listing.splits.values() for example in split]
    found = data_map(
        open_subject(subject, store=store, weights=weights),
        listing.place,
        photos,
        listing.labels,
        "tsne" if method == "tsne" else "pca",
    )
    tell_unreadable(found.unreadable)
    if as_json:
        click.echo(json.dumps(document(found), ensure_ascii=False, indent=1))
    else:
        for line in [*sentences(found), *listed(found)]:
            click.echo(line)
    if out is not None or not as_json:
        write_result(
            out or Path("embedding.png"), lambda: map_picture(found), lambda: map_page(found)
        )
