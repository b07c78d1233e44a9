"""`wm2 forecast`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wm2cli.cli.arguments import (
    collect,
    command_line,
    names,
    parse_duration,
    parse_leads,
    parse_levels,
    parse_options,
    parse_region,
    parse_time,
)
from wm2cli.cli.program import Json, app, emit, facts, finish, progress_bar, size
from wm2cli.errors import UsageError


@app.command(
    epilog="""[bold]Examples[/bold]

wm2 forecast --init 2024-01-01T00 --days 14

wm2 forecast --init latest --source gfs,ifs --wait 3h --max-age 12h

wm2 forecast --init 2024-01-01T00 --days 14 --input analysis.grib --weights wm2-mini.safetensors

wm2 forecast --init 2024-01-01T00 --hours 48 --step 1 --input pl.nc --input sfc.nc --variables t2m --region 72/-25/34/45

wm2 forecast --init 2024-01-01T00 --leads 24,72,120 --weights stormer.safetensors --paths paths.json

wm2 forecast --init 2024-01-01T00 --source idealized --weights mini.safetensors --allow-untrained --plan --json"""
)
def forecast(
    init: Annotated[
        str, typer.Option(help="Valid time of the initial fields, UTC: 2024-01-01T00, or latest.", show_default=False)
    ],
    days: Annotated[float | None, typer.Option(help="Length in days (default 14).", show_default=False)] = None,
    hours: Annotated[int | None, typer.Option(help="Length in hours, instead of --days.", show_default=False)] = None,
    step: Annotated[
        int | None,
        typer.Option(
            help="Hours between outputs: 1, 3, 6 (default), 12 or 24; below 6 the 1 h processor runs.",
            show_default=False,
        ),
    ] = None,
    leads: Annotated[
        str | None,
        typer.Option(help="Lead times in hours, instead of --days and --step: 24,72,120.", show_default=False),
    ] = None,
    paths: Annotated[
        str | None,
        typer.Option(
            help="Steps to each lead time: homogeneous (the mean over all step lengths, Stormer's default), longest "
            "(first, WeatherMesh-2's), 6, 12, 24, or a .json file of wm2 paths.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            help="Where the analysis comes from: gfs, ifs, era5, arco, file, idealized; several are tried in order: "
            "gfs,ifs; auto takes the files given, or chooses by date."
        ),
    ] = "auto",
    option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for the source; several may be given.", show_default=False)
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for what is fetched.", envvar="WM2_CACHE", show_default=False)
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what was fetched before.", envvar="WM2_OFFLINE")
    ] = False,
    wait: Annotated[
        str | None, typer.Option(help="Wait so long for what is not published yet: 3h, 90m.", show_default=False)
    ] = None,
    max_age: Annotated[
        str | None, typer.Option(help="Exit code 5 when the analysis is older: 12h, 2d.", show_default=False)
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="GRIB or NetCDF file of the analysis; several may be given. NAME=PATH gives it to "
            "one of several encoders, and their latents are blended.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Checkpoint, or a name of wm2 weights list.", envvar="WM2_WEIGHTS", show_default=False),
    ] = None,
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
    if leads is not None and (days, hours, step) != (None, None, None):
        raise UsageError("--leads stands for --days, --hours and --step", hint="give it alone")
    length = hours if hours is not None else 24 * (14.0 if days is None else days)
    problems: list[str] = []
    if length != int(length):
        problems.append(f"--days {days:g} is not a whole number of hours")
    if precision not in ("auto", "fp32", "bf16"):
        problems.append(f"--precision must be auto, fp32 or bf16, found '{precision}'")
    instant = None if init == "latest" else collect(problems, parse_time, init)
    source_options = collect(problems, parse_options, option)
    patience = collect(problems, parse_duration, wait)
    oldest = collect(problems, parse_duration, max_age)
    bounds = collect(problems, parse_region, region)
    pressures = collect(problems, parse_levels, levels)
    times = collect(problems, parse_leads, leads)
    if problems:
        raise UsageError("the command line is not possible", problems=problems)
    from wm2cli import forecast as command
    from wm2cli.fetch import Access

    chosen = command.Options(
        init=instant, hours=int(length), step=6 if step is None else step, leads=times, paths=paths, source=source,
        source_options=source_options,
        access=Access(cache, None, offline, patience or 0.0, oldest), inputs=tuple(inputs or ()),
        weights=weights, out=out, variables=names(variables), levels=pressures, region=bounds, device=device,
        precision=precision,  # type: ignore[arg-type]
        encoder=encoder, threads=threads, derive=derive, extrapolate=extrapolate, overwrite=overwrite,
        allow_untrained=allow_untrained, lossless=lossless, command_line=command_line(),
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
    finish(result.to_dict(), [result.path], as_json=as_json, notes=result.notes, warnings=result.warnings)


def _show_plan(document: dict[str, Any]) -> None:
    held, runs, writes = document["weights"], document["runs"], document["writes"]
    rows = []
    for read in document["reads"]:
        how = "" if read["cached"] else f", to be fetched in about {read['requests']} requests" * bool(read["requests"])
        fields = f"{read['fields']} fields, " if read["fields"] else ""
        rows.append(("read", f"{read['piece']} ({fields}{size(read['bytes'])}{how}) by encoder {read['encoder']}"))
    trained = "" if held["trained"] else ", untrained"
    steps = ", ".join(f"{number} x {hours} h" for hours, number in runs["advances"].items())
    held_states = f"; {runs['latents_held']} latents and {runs['means_held']} means held" * bool(runs["means_held"])
    on_gpu = f", {size(runs['device_bytes'])} on the GPU" if runs["device_bytes"] else ""
    facts([
        *rows,
        ("", f"brought to {runs['grid']}; conservatively, where they are on another grid"),
        ("weights", f"{held['path']} ({held['name']}{trained}, {held['parameters']:,} parameters, "
                    f"{size(held['bytes'])})"),
        ("run", f"on {runs['device']} in {runs['precision']}: {runs['encodes']} encode, {steps}, "
                f"{runs['decodes']} decode"),
        ("paths", f"{runs['paths']}: {runs['evaluations']} steps{held_states}"),
        ("", f"{runs['operations'] / 1e12:.3g} TFLOP, roughly {runs['seconds']:.2g} s"),
        ("memory", f"roughly {size(runs['host_bytes'])}{on_gpu}"),
        ("write", f"{writes['path']}: {writes['times']} times to {writes['last_lead_hours']} h, "
                  f"{writes['rows']} x {writes['columns']} points"),
        ("", f"{' '.join(writes['variables'])} on {' '.join(f'{level:g}' for level in writes['levels_hpa'])} hPa"),
        ("", f"about {size(writes['bytes_expected'])} ({size(writes['bytes_uncompressed'])} uncompressed), "
             f"{size(writes['bytes_free'])} free"),
    ])  # fmt: skip
