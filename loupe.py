"""The command line. A thin group: each command's module is imported when the command is asked for, so that `loupe --help` needs no torch."""

from __future__ import annotations

import importlib
import signal
import sys

import click

from models.errors import LoupeError

# name -> (module, attribute, first line of its help). The line stands here so that the list
# of commands imports none of them; a test compares it with the command's own.
COMMANDS = {
    "data": ("training.check.commands", "data", "What a data set holds, and what is wrong with it."),
    "train": ("training.commands", "train", "Train a network on labelled images and leave a run."),
    "evaluate": ("training.commands", "evaluate", "Score a package on labelled images and write a report."),
    "export": ("training.commands", "export", "Turn a run into a model package, if it passes its gates."),
    "retrain": ("training.commands", "retrain", "Train, evaluate, export and publish; promote only if not worse."),
    "publish": ("models.commands", "publish", "Verify PACKAGE and put it into the store as the next version of a model."),
    "models": ("models.commands", "models", "The models in the store: their versions, aliases and history."),
    "edge": ("training.edge.commands", "edge", "A package as a bundle for small machines and browsers."),
    "serve": ("service.commands", "serve", "Serve a model from the store over HTTP."),
    "keys": ("service.commands", "keys", "API keys: who may ask for predictions, and who is an operator."),
    "score": ("service.scoring.commands", "score", "Score many images, and account for every one."),
    "doctor": ("models.doctor.commands", "doctor", "What this machine can do, what is wrong with it, and the line that mends it."),
    "bench": ("models.bench", "bench", "Benchmarks of a checkout: serving, decoding and more."),
    "demo": ("training.demo", "demo", "Train on handwritten digits, export, publish, serve and classify over HTTP."),
}


class LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of a model's life."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported. None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"`loupe {cmd_name}` needs {error.name}, which is not installed here; `make setup` installs everything"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="loupe-vision", prog_name="loupe")
def cli() -> None:
    """Loupe: from a folder of photos to a served image classifier."""


def main() -> None:
    """Run the command line; errors of Loupe's own tree are one line and exit status 1."""
    # As a container's process 1 the kernel drops signals that have no handler, and a stop during start-up would wait for its timeout.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        cli.main(prog_name="loupe", standalone_mode=False)
    except LoupeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nstopped", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
