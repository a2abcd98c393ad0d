"""`loupe doctor`."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from models.doctor.check_result import CheckResult
from models.doctor.hardware import (
    check_cpu_class,
    check_disk,
    check_gpu,
    check_memory,
    check_threads,
    free_bytes,
    list_gpus,
    memory_limit_bytes,
    missing_cuda_libraries,
)
from models.doctor.software import (
    CPU_WHEEL,
    GPU_WHEEL,
    Runtime,
    check_floors,
    check_import,
    check_python,
    check_wheels,
    installed_versions,
    load_runtime,
)
from models.doctor.storage import check_store
from models.errors import ConfigError
from models.machine import cpu_budget, cpu_class
from models.messages import one_line, print_table
from models.settings import RuntimeSettings, load_settings

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


def examine(store: Path | None = None) -> list[CheckResult]:
    """All findings, in reading order.

    *store* is the folder to look at; None for the one that the settings name.
    """
    findings, settings = _settings()
    installed = installed_versions()
    gpus = list_gpus()
    runtime = load_runtime()
    root = store if store is not None else settings.store
    temporary = Path(tempfile.gettempdir())
    return [
        *findings,
        check_python(sys.version_info[:3]),
        check_wheels(installed, gpus=gpus),
        check_import(runtime, wheel=GPU_WHEEL if GPU_WHEEL in installed else CPU_WHEEL),
        *check_floors(installed),
        check_gpu(
            gpus,
            runtime=runtime if isinstance(runtime, Runtime) else None,
            missing=missing_cuda_libraries(getattr(runtime, "cuda_version", "")),
            wanted=settings.provider,
        ),
        check_cpu_class(cpu_class(), machine=platform.machine()),
        check_threads(workers=settings.workers, threads=settings.threads, budget=cpu_budget()),
        check_memory(limit_bytes=memory_limit_bytes(), workers=settings.workers),
        check_disk("store", root, free_bytes(root)),
        check_disk("temporary files", temporary, free_bytes(temporary)),
        *check_store(root, here=cpu_class()),
    ]


def exit_status(findings: Sequence[CheckResult], *, strict: bool = False) -> int:
    """0 if nothing is wrong, 1 if there is an error; with *strict* a warning counts as one."""
    bad = {"error", "warning"} if strict else {"error"}
    return int(any(finding.level in bad for finding in findings))


def _settings() -> tuple[list[CheckResult], RuntimeSettings]:
    try:
        return [], load_settings(RuntimeSettings)
    except ConfigError as error:
        fix = "correct the LOUPE_* variable or the line of loupe.toml that the message names"
        return [
            CheckResult(
                "error", "settings", f"{error}; the defaults are used for what follows", fix
            )
        ], RuntimeSettings.model_construct()
