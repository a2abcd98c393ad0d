"""`loupe doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from models.doctor import examine, exit_status
from models.doctor.check_result import CheckResult
from models.messages import one_line, print_table

COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


@click.command()
@click.option(
    "--store",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder of the model store.  [default: LOUPE_STORE, or artifacts/store]",
)
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(store: Path | None, strict: bool, as_json: bool) -> None:
    """What this machine can do, what is wrong with it, and how to fix it.

    Exit status: 0 if nothing is wrong, 1 if there is an error (with --strict: or a warning).
    """
    findings = examine(store)
    status = exit_status(findings, strict=strict)
    if as_json:
        click.echo(
            json.dumps(
                {"status": status, "findings": [asdict(finding) for finding in findings]}, indent=1
            )
        )
    else:
        _print_findings(findings)
    # With standalone_mode=False, click's own exit would become a return value.
    raise SystemExit(status)


def _print_findings(findings: Sequence[CheckResult]) -> None:
    """Print a table of all findings, then the fixes, one on a line, so that they can be copied."""
    rows = [(finding.level, finding.check, finding.message) for finding in findings]
    print_table(("", "check", "found"), rows, colours=COLOURS)
    bad = [finding for finding in findings if finding.level != "ok"]
    click.echo("To fix:" if bad else "Nothing is wrong.")
    for finding in bad:
        click.echo(one_line(f"  {finding.level} in {finding.check}: {finding.fix}"))
