"""The command line: the list of commands, and what becomes of their errors.

The module of a command is imported when it runs, so that `loupe --help` needs no torch. `run` is
the one place where an exception becomes a line on the terminal.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from models.errors import LoupeError
from models.messages import one_line, os_error_text

STOPPED = 128 + signal.SIGINT
FAULT = 70
"""Exit status of a fault of Loupe's own: `EX_SOFTWARE` of sysexits.h."""

SPECIAL = {
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
STREAMS = ("/dev/null", "/dev/stdin", "/dev/stdout", "/dev/stderr")
"""Devices that a command may be given on purpose."""

ADVICE = {
    ("builtins", "MemoryError"): (
        "not enough memory{detail}; lower the batch size, the number of workers or lanes, or the"
        " size of the images"
    ),
    ("builtins", "UnicodeError"): (
        "text in a file or name is not UTF-8{detail}; save the file as UTF-8, or rename it"
    ),
    ("_csv", "Error"): (
        "a table cannot be read as CSV{detail}; save it again as comma-separated UTF-8"
    ),
    ("torch", "OutOfMemoryError"): (
        "the GPU has not enough memory; lower the batch size (`--set batch_size=...`) or the image"
        " size"
    ),
} | {
    ("pyarrow", name): (
        "a table cannot be read or written{detail}; write it again with another tool"
    )
    for name in ("ArrowInvalid", "ArrowNotImplementedError", "ArrowTypeError", "ArrowKeyError")
}
"""(Package, name) of an exception -> message. Names, because libraries may not be installed."""

# name -> (module, attribute, first line of its help). With the line here, the list of commands
# imports none of them; a test compares it with the command's own.
COMMANDS = {
    "data": (
        "training.data.check.commands",
        "data",
        "What a data set holds, and what is wrong with it.",
    ),
    "train": ("training.commands", "train", "Train a network on labelled images and leave a run."),
    "evaluate": (
        "training.evaluate.commands",
        "evaluate",
        "Score a package on labelled images and write a report.",
    ),
    "export": (
        "training.commands",
        "export",
        "Turn a run into a model package, if it passes its gates.",
    ),
    "import": (
        "training.importing.commands",
        "import_",
        "Turn a model that was trained elsewhere into a verified package.",
    ),
    "retrain": (
        "training.commands",
        "retrain",
        "Train, evaluate, export and publish; promote only if not worse.",
    ),
    "networks": (
        "models.networks.commands",
        "networks",
        "List the networks that can be trained, or those that match PATTERN.",
    ),
    "inspect": (
        "training.inside.commands",
        "inspect",
        "What a network is, layer by layer, and what it sees.",
    ),
    "learn": (
        "training.inside.lessons.commands",
        "learn",
        "A tour of a network in eight short chapters, on your own photo.",
    ),
    "publish": (
        "models.store.commands",
        "publish",
        "Verify PACKAGE and put it into the store as the next version of a model.",
    ),
    "models": (
        "models.store.commands",
        "models",
        "The models in the store: their versions, aliases and history.",
    ),
    "predict": ("service.predict.commands", "predict", "Say what is in PHOTO, without a server."),
    "edge": (
        "training.edge.commands",
        "edge",
        "A package as a bundle for small machines and browsers.",
    ),
    "serve": ("service.commands", "serve", "Serve a model from the store over HTTP."),
    "keys": (
        "service.commands",
        "keys",
        "API keys: who may ask for predictions, and who is an operator.",
    ),
    "score": ("service.scoring.commands", "score", "Score many images, and account for every one."),
    "doctor": (
        "models.doctor.commands",
        "doctor",
        "What this machine can do, what is wrong with it, and how to fix it.",
    ),
    "bench": ("models.bench", "bench", "Benchmarks of a checkout: serving, decoding and more."),
    "demo": (
        "training.demo",
        "demo",
        "Train on handwritten digits, export, publish, serve and classify over HTTP.",
    ),
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
                f"`loupe {cmd_name}` needs {error.name}, which is not installed here; `make setup`"
                " installs everything"
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


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    # In a container Loupe is process 1, for which the kernel drops signals without a handler: a
    # stop during start-up would wait for its timeout.
    signal.signal(signal.SIGTERM, _terminate)
    status = run(sys.argv[1:])
    if status == STOPPED:
        # A second Ctrl-C stops threads that are still at work.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """The exit status of `loupe ARGUMENTS`. Whatever is raised ends as one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A label or file name that the terminal's encoding lacks is shown as an escape.
            stream.reconfigure(errors="backslashreplace")
    try:
        _refuse_special_files(arguments)
        cli.main(list(arguments), prog_name="loupe", standalone_mode=False)
        return _flushed(0)
    except SystemExit as end:
        return _say(end.code, 1) if isinstance(end.code, str) else _flushed(end.code or 0)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return STOPPED
    except BrokenPipeError:
        return _reader_gone()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _say(_usage(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last stop of every exception
        message = explanation(error)
        return _say(message, 1) if message is not None else _own_fault(error)


def explanation(error: BaseException) -> str | None:
    """What *error* tells a person who can fix it; None for a fault of Loupe's own."""
    if isinstance(error, LoupeError):
        return str(error)
    if isinstance(error, OSError):
        printing = error.filename is None and _was_printing(error)
        return os_error_text(error, "standard output" if printing else None)
    kinds = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__]
    known = next((ADVICE[kind] for kind in kinds if kind in ADVICE), None)
    return known and known.format(detail=f" ({error})" if str(error) else "")


def _was_printing(error: BaseException) -> bool:
    """Whether *error* was raised while text was printed, and not while a file was written."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    return str(last.f_globals.get("__name__")).startswith(("click.", "rich."))


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    message = error.format_message().removesuffix(".")
    return f"{message}. See `{context.command_path} --help`" if context is not None else message


def _say(message: str, status: int) -> int:
    with suppress(OSError):  # stderr is closed or full
        click.echo(f"error: {one_line(message.strip())}", err=True)
    return status


def _flushed(status: int) -> int:
    """*status*, once all output is written: a full disk behind stdout is an error too."""
    if sys.stdout is not None:  # None where the caller closed it, as in `loupe ... >&-`
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            return _reader_gone()
        except OSError as error:
            _drop_output()
            return _say(os_error_text(error, "standard output"), 1)
    return status


def _reader_gone() -> int:
    """Exit status of a command whose reader has closed the pipe, as in `loupe ... | head`."""
    _drop_output()
    return 128 + signal.SIGPIPE


def _drop_output() -> None:
    # Python flushes once more at exit, and would print an error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _own_fault(error: Exception) -> int:
    """Report a fault of Loupe itself, and write its traceback to a file."""
    what = f"a fault in Loupe itself ({type(error).__name__}: {str(error)[:300]}); please report it"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="loupe-fault-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return _say(what, FAULT)
    return _say(f"{what} with {file.name}, which says where it is", FAULT)


def _refuse_special_files(arguments: Sequence[str]) -> None:
    """Raise `ClickException` for a path to a named pipe, a socket or a device.

    A command would wait for it, or read from it, forever.
    """
    for argument in arguments:
        value = argument.partition("=")[2] if argument.startswith("--") else argument
        for path in (value, value.partition(":")[2]):  # `folder:PATH` and its like too
            if path in STREAMS or path.startswith("/dev/fd/"):
                continue
            # Most arguments are no paths, and some cannot be one.
            with suppress(OSError, ValueError):
                kind = SPECIAL.get(stat.S_IFMT(Path(path).stat().st_mode))
                if kind is not None:
                    raise click.ClickException(
                        f"{path} is a {kind}; expected a regular file or a folder"
                    )


def _terminate(signal_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    main()
