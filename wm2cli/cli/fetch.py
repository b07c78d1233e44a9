"""`wm2 fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wm2cli.cli.arguments import collect, names, parse_duration, parse_levels, parse_options, parse_times
from wm2cli.cli.program import Json, app, emit, finish, progress_bar, say, size
from wm2cli.errors import UsageError


@app.command(
    epilog="""[bold]Examples[/bold]

wm2 fetch --init 2024-01-01T00

wm2 fetch --init latest --source gfs,ifs --wait 3h --max-age 12h

wm2 fetch --init 2023-01-01T00/2023-01-31T18/6h --source era5 --out january --plan --json

wm2 fetch --static --source arco

wm2 fetch --prune --keep 20"""
)
def fetch(
    init: Annotated[
        list[str] | None,
        typer.Option(
            help="Valid time, UTC: 2024-01-01T00; latest; several, separated by commas; or a range START/END/STEP, "
            "both ends included: 2024-01-01T00/2024-01-31T18/6h.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(help="gfs, ifs, era5, arco, ...; several are tried in order: gfs,ifs; auto chooses by date."),
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder, instead of the cache.", show_default=False)] = None,
    cache: Annotated[Path | None, typer.Option(help="Cache folder.", envvar="WM2_CACHE", show_default=False)] = None,
    variables: Annotated[
        str | None,
        typer.Option(help="Variables: z,t,t2m (default those WeatherMesh-2 starts from).", show_default=False),
    ] = None,
    levels: Annotated[
        str | None, typer.Option(help="Levels in hPa: 500,850 (default the 25 of WeatherMesh-2).", show_default=False)
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", help="Also orography, land-sea mask and soil type, from ERA5.")
    ] = False,
    option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for the source; several may be given.", show_default=False)
    ] = None,
    wait: Annotated[
        str | None, typer.Option(help="Wait so long for what is not published yet: 3h, 90m.", show_default=False)
    ] = None,
    max_age: Annotated[
        str | None, typer.Option(help="Exit code 5 when it is older: 12h, 2d.", show_default=False)
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what is there; say what is missing.", envvar="WM2_OFFLINE")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show requests, bytes and what is there; no network is touched.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Keep the cache small: what was not used for longest goes first.")
    ] = False,
    keep: Annotated[float, typer.Option(min=0, help="GB that --prune leaves.")] = 20.0,
    as_json: Json = False,
) -> None:
    """Fetch analyses from GFS, IFS or ERA5, and keep them for forecasts."""
    from wm2cli import fetch as command

    problems: list[str] = []
    times = collect(problems, parse_times, init)
    pressures = collect(problems, parse_levels, levels)
    hours = collect(problems, parse_duration, wait)
    most = collect(problems, parse_duration, max_age)
    options = collect(problems, parse_options, option)
    if prune and (init or static):
        problems.append("--prune stands alone, without --init and --static")
    if not (init or static or prune):
        problems.append("nothing to do: give --init, --static or --prune")
    if problems:
        raise UsageError("the command line is not possible", problems=problems, hint="wm2 fetch --help")
    access = command.Access(cache=cache, out=out, offline=offline, wait_hours=hours or 0.0, max_age_hours=most)
    if prune:
        done = command.tidy(access, int(keep * 1e9))
        say(f"note: {len(done.removed)} files with {size(done.bytes_removed)} removed, {size(done.bytes_left)} left")
        if as_json:
            emit({"format": command.FORMAT, "removed": [str(path) for path in done.removed],
                  "bytes_removed": done.bytes_removed, "bytes_left": done.bytes_left})  # fmt: skip
        return
    chosen = command.Options(
        times=times or (), source=source, access=access, schema=command.wanted(names(variables), pressures),
        static=static, options=options or {},
    )  # fmt: skip
    if plan:
        planned = command.plan(chosen)
        if as_json:
            emit(planned.to_dict())
        else:
            _show_plan(planned.to_dict())
        return
    with progress_bar() as on_progress:
        result = command.fetch(chosen, on_progress)
    finish(result.to_dict(), result.paths, as_json=as_json, notes=result.notes)


def _show_plan(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("source", "piece", "requests", "size", ""):
        table.add_column(column, justify="right" if column in ("requests", "size") else "left", overflow="fold")
    for piece in document["pieces"]:
        where = "here" if piece["cached"] else "to fetch"
        requests = "0" if piece["cached"] else str(piece["requests"])
        table.add_row(piece["source"], piece["key"], requests, size(piece["bytes"]), where)
    Console().print(table)
    for note in document["notes"]:
        say(f"note: {note}")
    number = len(document["pieces"])
    say(f"{document['cached']} of {number} pieces are there; about {document['requests']} requests and "
        f"{size(document['bytes'])} to fetch")  # fmt: skip
