"""`loupe networks`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from models.messages import print_table

COLUMNS = ("network", "params", "mult-adds", "size", "CPU ms", "licence")


@click.command()
@click.argument("pattern", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def networks(pattern: str | None, as_json: bool) -> None:
    """List the networks that can be trained, or those that match PATTERN.

    PATTERN is a part of a name, or has wildcards, as 'timm:convnext*'. Without one, timm's are left
    out: there are more than a thousand. Parameters and multiply-adds are for 1,000 classes and the
    size of the weights. They are counted where at most 30 networks match. CPU ms is the CPU time of
    one image, where it was measured. The licence is that of the published weights.
    """
    from models.networks.listing import COUNTED, list_networks, record, rows

    found = list_networks(pattern)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    print_table(COLUMNS, rows(found))
    if pattern is None:
        click.echo("timm's networks: loupe networks 'timm:*'")
    if any(one.parameters is None for one in found) and len(found) > COUNTED:
        click.echo(f"Empty cells are counted where at most {COUNTED} networks match.")
    if any(one.cpu_ms is not None for one in found):
        click.echo(f"CPU ms: {record()['note']}")
