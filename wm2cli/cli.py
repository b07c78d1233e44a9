"""The `wm2` command: parse, call one function, print what it returns.

stdout carries results for programs (paths, or one JSON document with --json); everything for people goes to stderr.
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from wm2cli import __version__
from wm2cli.errors import UsageError, Wm2Error

if TYPE_CHECKING:
    import numpy as np

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
weights_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Make checkpoints and look into them.")
app.add_typer(weights_app, name="weights")


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


def emit(document: dict[str, Any]) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2))


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


@app.command(
    epilog="""[bold]Examples[/bold]

wm2 forecast --init 2024-01-01T00 --days 14 --source file --input analysis.grib --weights wm2-mini.safetensors

wm2 forecast --init 2024-01-01T00 --hours 48 --step 1 --input pl.nc --input sfc.nc --variables t2m --region 72/-25/34/45

wm2 forecast --init 2024-01-01T00 --source idealized --weights mini.safetensors --allow-untrained --plan --json"""
)
def forecast(
    init: Annotated[
        str, typer.Option(help="Valid time of the initial fields, UTC: 2024-01-01T00.", show_default=False)
    ],
    days: Annotated[float | None, typer.Option(help="Length in days (default 14).", show_default=False)] = None,
    hours: Annotated[int | None, typer.Option(help="Length in hours, instead of --days.", show_default=False)] = None,
    step: Annotated[
        int, typer.Option(help="Hours between outputs: 1, 3, 6, 12 or 24; below 6 the 1 h processor runs.")
    ] = 6,
    source: Annotated[str, typer.Option(help="Where the analysis comes from: file, idealized.")] = "file",
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="GRIB or NetCDF file of the analysis; several may be given. NAME=PATH gives it to "
            "one of several encoders, and their latents are blended.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint.", envvar="WM2_WEIGHTS", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="NetCDF file (default wm2_<init>.nc).", show_default=False)] = None,
    variables: Annotated[str | None, typer.Option(help="Variables to write: z,t,t2m.", show_default=False)] = None,
    levels: Annotated[str | None, typer.Option(help="Levels to write in hPa: 500,850.", show_default=False)] = None,
    region: Annotated[
        str | None, typer.Option(help="Part to write, N/W/S/E in degrees: 72/-25/34/45.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", envvar="WM2_DEVICE")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.", envvar="WM2_PRECISION")] = "auto",
    encoder: Annotated[
        str | None, typer.Option(help="Encoder that reads the analysis (default the first).", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", envvar="WM2_THREADS", show_default=False)
    ] = None,
    derive: Annotated[
        bool,
        typer.Option(
            "--derive",
            help="Derive missing surface fields where a documented formula exists; each is named in the file.",
        ),
    ] = False,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Extrapolate beyond the analysis's levels.")
    ] = False,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Write all bits instead of each variable's precision.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    allow_untrained: Annotated[
        bool, typer.Option("--allow-untrained", help="Run weights that have seen no data.")
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only show what would be read, run and written; exit code 7 if it would not fit."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a forecast from an analysis and write it to one NetCDF file."""
    if days is not None and hours is not None:
        raise UsageError("--days and --hours exclude each other", hint="give one of them")
    length = hours if hours is not None else 24 * (14.0 if days is None else days)
    problems: list[str] = []
    if length != int(length):
        problems.append(f"--days {days:g} is not a whole number of hours")
    if precision not in ("auto", "fp32", "bf16"):
        problems.append(f"--precision must be auto, fp32 or bf16, found '{precision}'")
    instant = _collect(problems, parse_time, init)
    bounds = _collect(problems, parse_region, region)
    pressures = _collect(problems, parse_levels, levels)
    if problems:
        raise UsageError("the command line is not possible", problems=problems)
    from wm2cli import forecast as command

    chosen = command.Options(
        init=instant, hours=int(length), step=step, source=source, inputs=tuple(inputs or ()), weights=weights, out=out,
        variables=_names(variables), levels=pressures, region=bounds, device=device, precision=precision,  # type: ignore[arg-type]
        encoder=encoder, threads=threads, derive=derive, extrapolate=extrapolate, overwrite=overwrite,
        allow_untrained=allow_untrained, lossless=lossless, command_line=_command_line(),
    )  # fmt: skip
    if plan:
        from wm2cli import planning

        planned = planning.plan(chosen)
        if as_json:
            emit(planned.to_dict())
        else:
            _show_plan(planned.to_dict())
        if planned.problems:
            from wm2cli.errors import ResourceError

            raise ResourceError("the forecast would not work here", problems=planned.problems)
        return
    with progress_bar() as on_progress:
        result = command.forecast(chosen, on_progress)
    for note in result.notes:
        say(f"note: {note}")
    for warning in result.warnings:
        say(f"warning: {warning}")
    if as_json:
        emit(result.to_dict())
    else:
        print(result.path)


@app.command(
    epilog="[bold]Examples[/bold]\n\nwm2 doctor\n\nwm2 doctor --json | jq '.findings[] | select(.status != \"ok\")'"
)
def doctor(as_json: Json = False) -> None:
    """Look at this machine: what wm2 needs, what is missing, and the command that mends it."""
    from wm2cli import doctor as command

    findings = command.doctor()
    if as_json:
        emit(command.to_dict(findings))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for column in ("", "what", "found", "how to mend it"):
            table.add_column(column, overflow="fold")
        marks = {"ok": "[green]ok[/green]", "missing": "[yellow]--[/yellow]", "broken": "[red]!![/red]"}
        for finding in findings:
            table.add_row(marks[finding.status], finding.name, finding.found, finding.mend)
        Console().print(table)
    broken = [finding for finding in findings if finding.status == "broken"]
    if broken:
        from wm2cli.errors import ResourceError

        raise ResourceError(
            "wm2 cannot work here", problems=[f"{item.name}: {item.found}; {item.mend}" for item in broken]
        )


@weights_app.command(
    "init",
    epilog="[bold]Examples[/bold]\n\nwm2 weights init --preset mini --seed 1 --out mini.safetensors\n\n"
    "wm2 weights init --preset wm2 --static orography.nc --static lsm.grib --out wm2.safetensors",
)
def weights_init(
    preset: Annotated[str, typer.Option(help="wm2, wm3, small, mini or tiny.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same weights.")] = 0,
    static: Annotated[
        list[Path] | None,
        typer.Option(help="File with orography, land-sea mask or soil type, on any global grid; several may be given."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Write an untrained checkpoint."""
    from wm2cli import weights as command

    with progress_bar() as on_progress:
        on_progress(f"making {out}", 0, 1)
        written = command.init(preset, seed, out, static=static or (), overwrite=overwrite)
    say(f"note: {written.parameters:,} untrained parameters")
    if as_json:
        emit(
            {
                "format": command.FORMAT,
                "path": str(written.path),
                "parameters": written.parameters,
                "sha256": written.sha256,
            }
        )
    else:
        print(written.path)


@weights_app.command(
    "info",
    epilog="[bold]Examples[/bold]\n\nwm2 weights info mini.safetensors\n\n"
    "wm2 weights info mini.safetensors --json | jq .grid",
)
def weights_info(
    file: Annotated[Path, typer.Argument(help="Checkpoint.")],
    as_json: Json = False,
) -> None:
    """Show what a checkpoint holds: model, grid, variables, statistics, static fields, origin."""
    from wm2cli import weights as command

    document = command.info(file)
    if as_json:
        emit(document)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _flat(document):
        table.add_row(name, value)
    Console().print(table)


def parse_time(text: str) -> np.datetime64:
    """A UTC instant from ISO 8601: `2024-01-01T00`, `2024-01-01T00:00`, `2024-01-01T00Z`, `2024-01-01`.

    Raises:
        UsageError: Not such a time, or in another zone.
    """
    import numpy as np

    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}(T\d{2}(:?\d{2})?Z?)?", text):
        raise UsageError(f"'{text}' is not a time as 2024-01-01T00 (UTC)")
    day, _, clock = text.rstrip("Z").partition("T")
    clock = f"{clock[:2]}:{clock[2:].lstrip(':') or '00'}" if clock else "00:00"
    try:
        return np.datetime64(f"{day}T{clock}", "s")
    except ValueError:
        raise UsageError(f"'{text}' is not a date of the calendar") from None


def parse_region(text: str | None) -> tuple[float, float, float, float] | None:
    """North, west, south, east from `N/W/S/E`.

    Raises:
        UsageError: Not four numbers.
    """
    if text is None:
        return None
    try:
        north, west, south, east = (float(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"'{text}' is not a region as N/W/S/E in degrees: 72/-25/34/45") from None
    return north, west, south, east


def parse_levels(text: str | None) -> tuple[float, ...] | None:
    """Levels in hPa from `500,850`.

    Raises:
        UsageError: Not numbers.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"'{text}' are not levels in hPa as 500,850") from None


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


def _collect(problems: list[str], parse: Callable[[Any], Any], text: str | None) -> Any:
    try:
        return parse(text)
    except UsageError as error:
        problems.append(error.message)
        return None


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _command_line() -> str:
    # The program's path says where it is installed, which is nobody's business in a file that is passed on.
    return shlex.join(["wm2", *sys.argv[1:]])


def _flat(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in document.items():
        if isinstance(value, dict):
            if value:
                yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
        else:
            yield prefix + name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _show_plan(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def size(count: float | None) -> str:
        return "unknown" if count is None else f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"

    for read in document["reads"]:
        table.add_row("read", f"{read['piece']} ({size(read['bytes'])}) by encoder {read['encoder']}")
    held, runs, writes = document["weights"], document["runs"], document["writes"]
    trained = "" if held["trained"] else ", untrained"
    table.add_row(
        "weights", f"{held['path']} ({held['name']}{trained}, {held['parameters']:,} parameters, {size(held['bytes'])})"
    )
    steps = ", ".join(f"{number} x {hours} h" for hours, number in runs["advances"].items())
    table.add_row(
        "run",
        f"on {runs['device']} in {runs['precision']}: {runs['encodes']} encode, {steps}, {runs['decodes']} decode",
    )
    table.add_row("", f"{runs['operations'] / 1e12:.3g} TFLOP, roughly {runs['seconds']:.2g} s")
    memory = f"roughly {size(runs['host_bytes'])}" + (
        f", {size(runs['device_bytes'])} on the GPU" if runs["device_bytes"] else ""
    )
    table.add_row("memory", memory)
    table.add_row("write", f"{writes['path']}: {writes['times']} times to {writes['last_lead_hours']} h, "
                  f"{writes['rows']} x {writes['columns']} points")  # fmt: skip
    table.add_row(
        "", f"{' '.join(writes['variables'])} on {' '.join(f'{level:g}' for level in writes['levels_hpa'])} hPa"
    )
    table.add_row("", f"about {size(writes['bytes_expected'])} ({size(writes['bytes_uncompressed'])} uncompressed), "
                  f"{size(writes['bytes_free'])} free")  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
