"""`wm2 preprocess`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wm2cli.cli.arguments import collect, command_line, names, parse_levels, parse_time
from wm2cli.cli.program import Json, app, emit, facts, finish, progress_bar, size
from wm2cli.errors import UsageError


@app.command(
    epilog="""[bold]Examples[/bold]

wm2 preprocess cache/simulation --out store --schema mini --without slt --train 2010/2017 --validation 2018 --test 2019

wm2 preprocess era5/*.nc --out era5-1deg --schema small --train 1990/2017 --validation 2018/2019 --plan

wm2 preprocess gs://bucket/era5.zarr --out wm --schema wm2 --dtype float32 --start 2018-01-01T06 --train 2018

wm2 preprocess --store store --climatology climatology.nc"""
)
def preprocess(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="NetCDF and GRIB files, ZIP archives, folders of them, Zarr stores (folders or URLs).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the store to make.", show_default=False)] = None,
    schema: Annotated[
        str | None, typer.Option(help="Channels: a preset (mini, small, wm2, ...) or a TOML file.", show_default=False)
    ] = None,
    variables: Annotated[
        str | None, typer.Option(help="Variables in place of the schema's: z,t,t2m.", show_default=False)
    ] = None,
    levels: Annotated[
        str | None, typer.Option(help="Levels in hPa in place of the schema's: 500,850.", show_default=False)
    ] = None,
    without: Annotated[
        str | None, typer.Option(help="Variables of the schema to leave out: slt,tp.", show_default=False)
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            help="5.625 (no rows on the poles), 1.5, 0.25:north, or input; default the preset's, else input.",
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="First time, UTC; default that of the inputs.", show_default=False)
    ] = None,
    end: Annotated[str | None, typer.Option(help="Last time.", show_default=False)] = None,
    step: Annotated[int, typer.Option(help="Hours between times: 1, 2, 3, 6, 12 or 24.")] = 6,
    train: Annotated[
        str | None,
        typer.Option(help="Years, dates or times; statistics are made over these: 2010/2017.", show_default=False),
    ] = None,
    validation: Annotated[str | None, typer.Option(help="The same for validation: 2018.", show_default=False)] = None,
    test: Annotated[
        str | None, typer.Option(help="The same for tests: 2019-01-01/2019-06-30.", show_default=False)
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float16: normalised values; float32: physical values, the inputs are read once.")
    ] = "float16",
    climatology: Annotated[
        Path | None,
        typer.Option(help="Also write the climatology over train: file.nc or file.zarr.", show_default=False),
    ] = None,
    window: Annotated[int, typer.Option(help="Days in the window of the climatology.")] = 61,
    store: Annotated[
        Path | None, typer.Option(help="Only make the climatology, from this store.", show_default=False)
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask scheduler, to work on its cluster.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads (default one a core).", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="reanalysis, analysis or simulated, where the inputs do not say it.", show_default=False),
    ] = None,
    title: Annotated[str | None, typer.Option(help="One line about the data.", show_default=False)] = None,
    derive: Annotated[
        bool, typer.Option("--derive", help="Derive missing variables where a documented formula exists.")
    ] = False,
    allow_jumps: Annotated[
        bool, typer.Option("--allow-jumps", help="Take values that jump from file to file as they are.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what would be made, and what is wrong, from headers.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a training store from files or Zarr archives; a killed run goes on where it stopped."""
    problems: list[str] = []
    first, last = (None if text is None else collect(problems, parse_time, text) for text in (start, end))
    pressures = collect(problems, parse_levels, levels)
    if kind not in (None, "reanalysis", "analysis", "simulated"):
        problems.append(f"--kind must be reanalysis, analysis or simulated, found '{kind}'")
    if problems:
        raise UsageError("the command line is not possible", problems=problems)
    from wm2cli import preprocess as command

    chosen = command.Options(
        inputs=tuple(inputs or ()), out=out, schema=schema, variables=names(variables), levels=pressures,
        without=names(without) or (), grid=grid, start=first, end=last, step=step, train=train, validation=validation,
        test=test, dtype=dtype, scheduler=scheduler, workers=workers, climatology=climatology, window=window,  # type: ignore[arg-type]
        store=store, kind=kind, title=title, derive=derive, allow_jumps=allow_jumps, overwrite=overwrite,  # type: ignore[arg-type]
        command_line=command_line(),
    )  # fmt: skip
    if plan:
        with progress_bar() as on_progress:
            planned = command.plan(chosen, on_progress)
        if as_json:
            emit(planned.to_dict())
        else:
            _show_plan(planned.to_dict())
        return
    with progress_bar() as on_progress:
        result = command.preprocess(chosen, on_progress)
    paths = [*([result.store] if store is None else []), *([result.climatology] if result.climatology else [])]
    finish(result.to_dict(), paths, as_json=as_json, notes=result.notes)


def _show_plan(document: dict[str, Any]) -> None:
    facts([
        ("read", f"{document['input_files']} files: {document['title']} ({document['kind']})"),
        ("write", f"{document['store']} in {document['dtype']}, {size(document['bytes_uncompressed'])} uncompressed"),
        ("times", f"{document['times']}, {document['start']} to {document['end']} "
                  f"every {document['step_hours']} h"),
        *((name, ", ".join(f"{first} to {last}" for first, last in ranges))
          for name, ranges in document["splits"].items()),
        ("grid", document["grid"]),
        ("channels", f"{len(document['channels'])}: {' '.join(document['channels'])}"),
        *(("note", note) for note in document["notes"]),
    ])  # fmt: skip
