"""`wm2 plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wm2cli.cli.arguments import collect, parse_leads, parse_region, parse_time
from wm2cli.cli.program import Json, app, finish, progress_bar
from wm2cli.errors import UsageError


@app.command(
    epilog="""[bold]Examples[/bold]

wm2 plot forecast.nc --variable z500 --lead 120 --out map.png

wm2 plot forecast.nc --variable t2m --lead 24,72,120,240 --region 72/-25/34/45 --out europe.png

wm2 plot forecast.nc --variable msl --out storms.gif"""
)
def plot(
    forecast: Annotated[Path, typer.Argument(help="Forecast: NetCDF or GRIB file, or Zarr store.", show_default=False)],
    variable: Annotated[str, typer.Option(help="Channel: z500, t2m, tp_6h.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="Picture: .png, .svg or .pdf with a panel a lead, or .gif.", show_default=False)
    ],
    lead: Annotated[
        str | None,
        typer.Option(help="Leads in hours: 24,72,120 (default up to six; all in a .gif).", show_default=False),
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Start of the forecast, where there are several.", show_default=False)
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="Part to draw, N/W/S/E in degrees: 72/-25/34/45.", show_default=False)
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="File or store; draws forecast minus truth.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")] = False,
    as_json: Json = False,
) -> None:
    """Draw maps of a forecast, or of its error."""
    problems: list[str] = []
    hours = collect(problems, parse_leads, lead)
    start = None if init is None else collect(problems, parse_time, init)
    bounds = collect(problems, parse_region, region)
    if problems:
        raise UsageError("the command line is not possible", problems=problems)
    from wm2cli.evaluation import plot as command

    chosen = command.Options(forecast=forecast, channel=variable, out=out, leads_hours=hours, init=start, region=bounds,
                             truth=truth, overwrite=overwrite)  # fmt: skip
    with progress_bar() as on_progress:
        path = command.plot(chosen, on_progress)
    finish({"format": 1, "path": str(path)}, [path], as_json=as_json)
