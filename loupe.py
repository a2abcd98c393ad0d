"""The command line.

A thin group: each command's module is imported when it is asked for, so that `loupe --help` needs
no torch.

`run` is the one place where an exception becomes a line on the terminal.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from models.errors import LoupeError
from models.messages import one_line, told

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
"""Devices and pipes at which no command waits for ever by mistake."""

# name -> (module, attribute, first line of its help). The line stands here so that the list
# of commands imports none of them; a test compares it with the command's own.
COMMANDS = {
    "data": (
        "training.data.check.commands",
        "data",
        "What a data set holds, and what is wrong with it.",
    ),
    "train": ("training.commands", "train", "Train a network on labelled images and leave a run."),
    "evaluate": (
        "training.commands",
        "evaluate",
        "Score a package on labelled images and write a report.",
    ),
    "export": (
        "training.commands",
        "export",
        "Turn a run into a model package, if it passes its gates.",
    ),
    "retrain": (
        "training.commands",
        "retrain",
        "Train, evaluate, export and publish; promote only if not worse.",
    ),
    "inspect": (
        "training.inspect.commands",
        "inspect",
        "What a network is, layer by layer, and what it sees.",
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
        "What this machine can do, what is wrong with it, and the line that mends it.",
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
    # As a container's process 1 the kernel drops signals that have no handler, and a stop during
    # start-up would wait for its timeout.
    signal.signal(signal.SIGTERM, _terminate)
    status = run(sys.argv[1:])
    if status == STOPPED:
        # A second Ctrl-C while threads come to their end.
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
    """What *error* says to a person, if it comes of what was given or of the machine; None for a
    fault of Loupe's own.
    """
    match error:
        case LoupeError():
            return str(error)
        case OSError():
            return told(
                error, "standard output" if error.filename is None and _printing(error) else None
            )
        case MemoryError():
            return (
                f"not enough memory{_detail(error)}; lower the batch size, the number of workers or"
                " lanes, or the size of the images"
            )
        case UnicodeError():
            return (
                f"text in a file or name is not UTF-8{_detail(error)}; save the file as UTF-8, or"
                " rename it"
            )
        case csv.Error():
            return (
                f"a table cannot be read as CSV{_detail(error)}; save it again as comma-separated"
                " UTF-8"
            )
    return _of_a_library(error)


def _printing(error: BaseException) -> bool:
    """Whether *error* was raised while text was printed, and not while a file was written."""
    places = [
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    return bool(places) and places[-1].startswith(("click.", "rich."))


def _of_a_library(error: BaseException) -> str | None:
    """As `explanation`, for exceptions of libraries that need not be installed, and so are known by
    their names.
    """
    for kind in type(error).__mro__:
        match kind.__module__.partition(".")[0], kind.__name__:
            case (
                "pyarrow",
                "ArrowInvalid" | "ArrowNotImplementedError" | "ArrowTypeError" | "ArrowKeyError",
            ):
                return (
                    f"a table cannot be read or written{_detail(error)}; write it again with"
                    " another tool"
                )
            case "torch", "OutOfMemoryError":
                return (
                    "the GPU has not enough memory; lower the batch size (`--set batch_size=...`)"
                    " or the image size"
                )
    return None


def _detail(error: BaseException) -> str:
    return f" ({error})" if str(error) else ""


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    message = error.format_message().removesuffix(".")
    return f"{message}. See `{context.command_path} --help`" if context is not None else message


def _say(message: str, status: int) -> int:
    try:
        click.echo(f"error: {one_line(message.strip())}", err=True)
    except OSError:
        # stderr itself is closed or full: the exit status is all that can be said.
        return status
    return status


def _flushed(status: int) -> int:
    """*status*, once all output is out: a full disk behind stdout is an error too."""
    if sys.stdout is not None:  # None where the caller closed it, as in `loupe ... >&-`
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            return _reader_gone()
        except OSError as error:
            _drop_output()
            return _say(told(error, "standard output"), 1)
    return status


def _reader_gone() -> int:
    """The end, without a word, of a command whose output nobody reads any more, as in `loupe ... |
    head`.
    """
    _drop_output()
    return 128 + signal.SIGPIPE


def _drop_output() -> None:
    # Python flushes once more at its end, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _own_fault(error: Exception) -> int:
    """Say that Loupe is wrong, and keep what its makers need in a file."""
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
    """Raises `ClickException` for a path to a named pipe, a socket or a device, at which a command
    would wait or read for ever.
    """
    for argument in arguments:
        value = argument.partition("=")[2] if argument.startswith("--") else argument
        # `folder:PATH` and its like too.
        for path in (value, value.partition(":")[2]):
            if path not in STREAMS and not path.startswith("/dev/fd/"):
                _refuse_special_file(path)


def _refuse_special_file(path: str) -> None:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a word of the command line, most of which are no paths
    except (OSError, ValueError):
        return
    kind = SPECIAL.get(stat.S_IFMT(mode))
    if kind is not None:
        raise click.ClickException(f"{path} is a {kind}; expected a regular file or a folder")


def _terminate(signal_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    main()
