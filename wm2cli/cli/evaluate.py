"""`wm2 evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wm2cli.cli.arguments import collect, command_line, names, parse_leads, parse_levels
from wm2cli.cli.program import Json, app, emit, progress_bar, say
from wm2cli.errors import UsageError

if TYPE_CHECKING:
    from wm2cli.evaluation.results import Evaluation
    from wm2cli.sources import Progress


@app.command(
    epilog="""[bold]Examples[/bold]

wm2 evaluate forecast.nc --truth era5.nc --climatology climatology.nc

wm2 evaluate forecasts.zarr --truth store.zarr --climatology clim.nc --grid 1.5 --report report --out scores.csv

wm2 evaluate new.nc --against old.nc --truth era5.nc --json | jq .verdict

wm2 evaluate forecast.nc --truth era5.nc --fail-if 'rmse:z500@24h>60' --fail-if 'skill_persistence:t2m@3d<0.1'"""
)
def evaluate(
    forecasts: Annotated[
        list[Path],
        typer.Argument(
            help="Forecasts: NetCDF or GRIB files, Zarr stores, also in WeatherBench 2 layout.", show_default=False
        ),
    ],
    truth: Annotated[
        list[str] | None,
        typer.Option(
            help="What really happened: a store, a file, or a source to fetch it from. Forecasts from "
            "the bundled sample bring theirs.",
            show_default=False,
        ),
    ] = None,
    climatology: Annotated[
        Path | None,
        typer.Option(help="From wm2 preprocess --climatology; for ACC, activity and skill.", show_default=False),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="A second forecast to compare with; several files may be given.", show_default=False),
    ] = None,
    variables: Annotated[
        str | None, typer.Option(help="What to score: z,t2m or z500,t850.", show_default=False)
    ] = None,
    levels: Annotated[str | None, typer.Option(help="Levels in hPa: 500,850.", show_default=False)] = None,
    leads: Annotated[str | None, typer.Option(help="Leads in hours: 24,72,120.", show_default=False)] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            help="global, tropics, europe ... or a box N/W/S/E or NAME=N/W/S/E; with _land behind it only its land; "
            "several may be given.",
            show_default=False,
        ),
    ] = None,
    land_mask: Annotated[
        Path | None,
        typer.Option(
            help="Land-sea mask for regions over land: a file, a store or weights; the truth's by default.",
            show_default=False,
        ),
    ] = None,
    grid: Annotated[
        str, typer.Option(help="Grid of the scores: native, forecast, truth, or a spacing in degrees; conservative.")
    ] = "native",
    skip_missing: Annotated[
        bool, typer.Option("--skipna", help="Leave cells with missing values out, and count the others.")
    ] = False,
    acc: Annotated[
        str,
        typer.Option(help="ACC and RMSE in the table: pooled, or mean-of-times (WeatherBench 2's ACC)."),
    ] = "pooled",
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for a page with scorecard, curves, maps, spectra.", show_default=False),
    ] = None,
    out: Annotated[
        list[Path] | None, typer.Option(help="Scores as .csv or .json; several may be given.", show_default=False)
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit code 10 when a score crosses: 'rmse:z500@24h>60'; several may be given.", show_default=False
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads (default all cores; one on coarse grids).", show_default=False)
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask scheduler to run on.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    as_json: Json = False,
) -> None:
    """Score forecasts against what happened, persistence, climatology, or another forecast."""
    problems: list[str] = []
    pressures = collect(problems, parse_levels, levels)
    hours = collect(problems, parse_leads, leads)
    if acc not in ("pooled", "mean-of-times"):
        problems.append(f"--acc must be pooled or mean-of-times, found '{acc}'")
    for path in out or ():
        if path.suffix not in (".csv", ".json"):
            problems.append(f"--out {path}: the name must end in .csv or .json")
        elif path.exists() and not overwrite:
            problems.append(f"--out {path} exists already; --overwrite replaces it")
        elif not path.absolute().parent.is_dir():
            problems.append(f"--out {path}: its folder does not exist")
    if report is not None and report.exists() and not overwrite:
        problems.append(f"--report {report} exists already; --overwrite replaces it")
    from wm2cli.evaluation.thresholds import Threshold, crossed

    thresholds = tuple(collect(problems, Threshold.parse, text) for text in fail_if or ())
    if problems:
        raise UsageError("the command line is not possible", problems=problems)
    from wm2cli.evaluation import evaluate as command
    from wm2cli.evaluation.regions import DEFAULT

    chosen = command.Options(
        forecasts=tuple(forecasts), truth=tuple(truth or ()), climatology=climatology, against=tuple(against or ()),
        variables=names(variables), levels=pressures, leads_hours=hours, regions=tuple(region or DEFAULT),
        land_mask=land_mask, grid=grid, skip_missing=skip_missing, thresholds=thresholds, maps=report is not None,
        workers=workers, scheduler=scheduler, command_line=command_line(),
    )  # fmt: skip
    with progress_bar() as on_progress:
        result = command.evaluate(chosen, on_progress)
        lines = crossed(thresholds, result)
        _write(result, out or [], report, on_progress)
    for note in result.notes:
        say(f"note: {note}")
    for reason, pairs in result.unmatched.items():
        say(f"note: not scored, {reason}: {pairs}")
    for warning in result.warnings:
        say(f"warning: {warning}")
    if as_json:
        emit({**result.to_dict(), "crossed": lines})
    else:
        _show(result, "" if acc == "pooled" else "_mean_of_times")
        for path in [*(out or []), *([report / "index.html"] if report else [])]:
            print(path)
    if lines:
        from wm2cli.errors import ThresholdError

        raise ThresholdError("a threshold was crossed", problems=lines)


def _write(result: Evaluation, out: list[Path], report: Path | None, on_progress: Progress) -> None:
    import json

    from wm2cli.evaluation.results import replacing, write_csv

    for path in out:
        if path.suffix == ".csv":
            write_csv(result, path)
        else:
            with replacing(path) as partial:
                partial.write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    if report is not None:
        from wm2cli.evaluation.report import write_report

        write_report(result, report, on_progress)


def _show(result: Evaluation, convention: str) -> None:
    """The table for people: headline channels by lead."""
    import math

    from rich.console import Console
    from rich.table import Table

    from wm2cli.evaluation.results import display_units, lead_text, physics_rows

    console = Console()
    leads = result.headline_leads()
    columns = ("channel", "score", *map(lead_text, leads))

    def table(title: str, *headings: str) -> Table:
        made = Table(title=title, box=None, pad_edge=False, title_justify="left", title_style="bold")
        for number, heading in enumerate(headings):
            made.add_column(heading, justify="left" if number < 2 else "right", no_wrap=number < 2)
        return made

    scores = table(f"{result.regions[0]}, started {result.metadata['inits']}", *columns)
    names = [f"rmse{convention}", "bias", f"acc{convention}", "crps", "spread_skill", "seeps",
             *(f"skill_{name}" for name in result.baselines)]  # fmt: skip
    for label in result.headline_labels():
        factor, units = display_units(label)
        for row, name in enumerate(names):
            if name not in result.score_names:
                continue
            values = [result.value(name, label, lead) for lead in leads]
            if not any(map(math.isfinite, values)):
                continue
            plain = name.startswith(("rmse", "bias", "crps"))
            # As many decimals as the error has, so that a bias of nothing reads as nothing.
            size = max((abs(result.value("rmse", label, lead)) * factor for lead in leads), default=0.0)
            decimals = max(0, 3 - math.floor(math.log10(size))) if size > 0 else 3
            texts = [f"{value * factor:.{decimals}f}" if plain else f"{value:.3f}" for value in values]
            scores.add_row(label if row == 0 else "", f"{name}, {units}" if plain else name,
                           *("-" if text == "nan" else text for text in texts))  # fmt: skip
    console.print(scores)
    checks = table("physical checks", "", "", "first lead", "last lead", "truth", "IFS HRES")
    for found in physics_rows(result):
        checks.add_row(found["what"], found["units"], found["first"], found["last"], found["truth"],
                       found["IFS HRES"].split(" / ")[0])  # fmt: skip
    console.print(checks)
    console.print(result.verdict())
