"""The report of a package that was not evaluated: it says so, and what is known nevertheless."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic_core import to_jsonable_python

from training.evaluate.report.figures import SCHEMA, Subject


def write_bare_report(folder: Path, subject: Subject) -> None:
    """Write `report.html` and `report.json` without figures into *folder*."""
    content = {
        "schema": SCHEMA,
        "title": subject.title,
        "labels": subject.labels,
        "evaluation": None,
        "parity": subject.parity,
        "temperature": subject.temperature,
        "abstain_threshold": subject.abstain_threshold,
    }
    text = json.dumps(to_jsonable_python(content), indent=1) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["as"] = format
    page = environment.get_template("bare.template.html").render(subject=subject)
    (folder / "report.html").write_text(page, encoding="utf-8")
