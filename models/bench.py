"""`loupe bench`: runs the scripts in a checkout's `benchmarks/`. An installed Loupe has none."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import click

from models.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "benchmarks"
SPOKEN = {"serving": "serve"}
"""Script -> its name on the command line, where they differ."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(name: str | None, arguments: tuple[str, ...]) -> None:
    """Benchmarks of a checkout: serving, decoding and more.

    Without NAME, the list of them. ARGUMENTS go to the benchmark: `loupe bench serve --help` tells
    which it takes. Figures are printed and written to benchmarks/results as JSON.
    """
    scripts = find_scripts(ROOT)
    if name is None:
        for spoken, script in scripts.items():
            docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
            click.echo(f"{spoken:18} {(docstring or '').partition(chr(10))[0]}")
        return
    if name not in scripts:
        raise ConfigError(f"this checkout has no benchmark {name!r}; it has {', '.join(scripts)}")
    module = scripts[name].relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    # The scripts read their arguments from sys.argv, and import each other from the checkout.
    sys.argv = [f"loupe bench {name}", *arguments]
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    runpy.run_module(module.removesuffix(".__main__"), run_name="__main__", alter_sys=True)


def find_scripts(root: Path) -> dict[str, Path]:
    """The scripts in the folder `benchmarks` of *root*, by their names on the command line.

    Raises `ConfigError` if there is no such folder.
    """
    folder = root / FOLDER
    if not folder.is_dir():
        raise ConfigError(
            f"there is no folder {folder}: `loupe bench` runs the benchmarks of a checkout, and"
            " this Loupe is installed without one"
        )
    files = [
        path
        for path in folder.glob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    found = {path.stem: path for path in files} | {
        path.parent.name: path for path in folder.glob("*/__main__.py")
    }
    return dict(sorted((SPOKEN.get(name, name), path) for name, path in found.items()))
