"""`loupe inspect gradients`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from training.inside.options import (
    class_option,
    json_option,
    out_option,
    photos_option,
    store_option,
    subject_argument,
    weights_option,
)
from training.inside.output import tell_unreadable, write_picture, write_result

if TYPE_CHECKING:
    from training.inside.flow.training import History

DEFAULT = Path("gradients.png")


@click.command()
@subject_argument
@click.argument(
    "image", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False
)
@class_option
@photos_option(required=False)
@weights_option
@out_option
@json_option
@store_option
def gradients(
    subject: str,
    image: Path | None,
    label: str | None,
    source: str | None,
    weights: str | None,
    out: Path | None,
    as_json: bool,
    store: Path | None,
) -> None:
    """What flows back from the loss: for IMAGE, or for a RUN over its training.

    SUBJECT is as in `loupe inspect shapes`. With IMAGE: the gradient layer by layer, ReLUs that
    give 0, and what each pooling passes back. --data counts the ReLUs that are 0 on all photos of
    SOURCE. A RUN without IMAGE: the gradients that its training recorded, epoch by epoch.
    """
    if image is None:
        _over_training(_history(subject), out, as_json=as_json)
        return
    from training.data.source import list_source
    from training.inside.flow.backward import flow_back
    from training.inside.flow.picture import flow_json, flow_page, flow_picture, sentences
    from training.inside.flow.units import survey
    from training.inside.subject import open_subject

    listing = None if source is None else list_source(source)
    splits = {} if listing is None else listing.splits
    found = open_subject(subject, store=store, weights=weights)
    flow = flow_back(found, image, label)
    units = survey(found, flow.pixels_HWC, [one for split in splits.values() for one in split])
    title = f"What flows back in {found.title}"
    tell_unreadable(units.unreadable)
    if as_json:
        click.echo(json.dumps(flow_json(title, flow, units), ensure_ascii=False, indent=1))
    else:
        for sentence in sentences(flow, units):
            click.echo(sentence)
    if out is not None or not as_json:
        write_result(
            out or DEFAULT,
            lambda: flow_picture(title, flow, units),
            lambda: flow_page(title, flow, units),
        )


def _history(subject: str) -> History:
    from training.inside.flow.training import history
    from training.runs.run import RECORD_FILE, open_run

    if not (Path(subject) / RECORD_FILE).is_file():
        raise click.UsageError(
            "give a photo as IMAGE. Without one, SUBJECT must be the folder of a run, whose"
            " gradients over training are shown"
        )
    return history(open_run(Path(subject)))


def _over_training(found: History, out: Path | None, *, as_json: bool) -> None:
    from training.inside.flow.training import history_json, history_picture, sentences

    if as_json:
        click.echo(json.dumps(history_json(found), ensure_ascii=False))
    else:
        for sentence in sentences(found):
            click.echo(sentence)
    if out is not None or not as_json:
        write_picture(out or DEFAULT, history_picture(found))
