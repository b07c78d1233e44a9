"""The program around the commands: options, streams, progress, errors and exit codes.

stdout carries results for programs (paths, or one JSON document with --json); everything for people goes to stderr.
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from wm2cli import __version__
from wm2cli.errors import Wm2Error
from wm2cli.machine import size_text

app = typer.Typer(
    name="wm2",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train and run global AI weather models: WeatherMesh-2 from any analysis to a 14-day forecast in NetCDF.",
    epilog="Exit codes: 0 done, 2 usage, 3 input data, 4 remote, 5 not published yet, 6 weights, 7 device, memory or "
    "disk, 8 impossible values, 9 configuration, 10 threshold crossed, 130/143 interrupted.",
)

INTERRUPTED = "interrupted: nothing was left half-written"


class Terminated(BaseException):
    """SIGTERM: everything is cleaned up on the way out, as for Ctrl-C."""


def main() -> NoReturn:
    """Entry point: runs a command and turns what it raises into messages and exit codes."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code.

    Args:
        arguments: What follows `wm2`.
    """
    debug = "--debug" in arguments or os.environ.get("WM2_DEBUG", "") not in ("", "0")
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        result = typer.main.get_command(app).main(arguments, prog_name="wm2", standalone_mode=False)
        # Without its standalone mode Typer returns the code of an exit, 130 for Ctrl-C among them.
        if result == 130:
            say(INTERRUPTED)
        return result if isinstance(result, int) else 0
    except Wm2Error as error:
        if debug:
            traceback.print_exc()
        report(error)
        return error.exit_code
    except typer.TyperException as error:
        # Raised as well when no argument was given, after the help was shown and without a message.
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if message and "Usage:" not in message:
            say(f"error: {message}")
            context = getattr(error, "ctx", None)
            say(f"hint: {context.command_path if context else 'wm2'} --help shows what can be given")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        say(INTERRUPTED)
        return 130
    except Terminated:
        say("terminated: nothing was left half-written")
        return 143
    except Exception as error:
        if debug:
            traceback.print_exc()
        say(f"error: this is a bug in wm2: {type(error).__name__}: {error}")
        say("hint: run it again with --debug and report what it prints")
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def report(error: Wm2Error) -> None:
    """An error for people: what was wrong, every finding, what to do next."""
    say(f"error: {error.message}")
    for problem in error.problems:
        say(f"  - {problem}")
    if error.hint:
        say(f"hint: {error.hint}")


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr)


def emit(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2))


def finish(document: Mapping[str, Any], paths: Iterable[object], *, as_json: bool, notes: Iterable[str] = (),
           warnings: Iterable[str] = ()) -> None:  # fmt: skip
    """How a command ends: notes and warnings on stderr; on stdout the document, or the paths of what was written."""
    for note in notes:
        say(f"note: {note}")
    for warning in warnings:
        say(f"warning: {warning}")
    if as_json:
        emit(document)
        return
    for path in paths:
        print(path)


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """A table of names and what belongs to them, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, text)
    Console().print(table)


def size(count: float | None) -> str:
    """Bytes for people, if they are known: `5.57 GB`."""
    return "unknown" if count is None else size_text(count)


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def _version(value: bool) -> None:
    if value:
        print(f"wm2 {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors. Also WM2_DEBUG=1.")] = False,
) -> None:
    """Options before the command."""


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Progress on stderr while the block runs; nothing when stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def update(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield update
