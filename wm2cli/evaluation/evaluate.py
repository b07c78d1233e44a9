"""`wm2 evaluate`: how good is a forecast?

The way of an evaluation: open -> match pairs -> one grid -> pooled sums over all pairs -> scores, comparisons, checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError, UsageError
from wm2cli.evaluation import provenance
from wm2cli.evaluation.accumulator import Accumulator, vector_rmse
from wm2cli.evaluation.datasets import Values, split_label
from wm2cli.evaluation.forecasts import Forecasts, open_forecasts
from wm2cli.evaluation.land import land_of, read_land
from wm2cli.evaluation.matching import Matches, describe_pairs, match, match_channels
from wm2cli.evaluation.physics import drift_per_day
from wm2cli.evaluation.regions import DEFAULT, LAND, Regions
from wm2cli.evaluation.results import (
    BASELINES,
    HEADLINE,
    NAMED_LEADS_HOURS,
    Evaluation,
    all_labels,
    wind_labels,
    wind_parts,
)
from wm2cli.evaluation.scoring import BLOCK_BYTES, SEEPS, Tally, Work, score
from wm2cli.evaluation.seeps import DRY_BELOW_M
from wm2cli.evaluation.series import Climatology, OnGrid, Series, SourceSeries, on_grid, open_truth
from wm2cli.evaluation.significance import block_bootstrap
from wm2cli.evaluation.spectra import effective_resolution_km, wavelengths_km
from wm2cli.evaluation.thresholds import Scope, Threshold, check
from wm2cli.grid import Grid
from wm2cli.machine import cores, host_memory
from wm2cli.sources import SOURCES, Progress

Array = NDArray[np.float64]

_WORTH_THREADS = 4 * 2**20
"""Bytes of a forecast's fields at one time from which on threads are worth while. Below that they mostly wait for the
interpreter: of 70 channels on 5.625 degrees (0.6 MB) two threads score fewer a second than one, on 1.5 degrees (8 MB)
as many (`benchmarks/evaluate.py --workers`)."""


@dataclass(frozen=True)
class Options:
    """What to evaluate, and how.

    Args:
        forecasts: NetCDF files, Zarr stores or GRIB files.
        truth: Paths of files that go together or of a store, or the name of a source; without any, the truth bundled
            with the sample is taken.
        climatology: NetCDF file or Zarr store by hour and day of year.
        against: A second forecast.
        variables, levels, leads_hours: What to score; everything in common by default.
        regions: Names or boxes.
        land_mask: Where the land-sea mask of regions over land is, if not in truth or climatology.
        grid: `native`, `forecast`, `truth`, or what `Grid.parse` takes.
        skip_missing: Leave out cells with missing values.
        thresholds: What will be asked of the scores; refused before any work if it names what is not evaluated.
        maps: Keep maps of error and bias, for a report.
        workers: Threads; by default as many as there are cores, and one on coarse grids, where that is faster.
        scheduler: Address of a dask scheduler.
        command_line: For the metadata.
    """

    forecasts: tuple[Path, ...]
    truth: tuple[str, ...] = ()
    climatology: Path | None = None
    against: tuple[Path, ...] = ()
    variables: tuple[str, ...] | None = None
    levels: tuple[float, ...] | None = None
    leads_hours: tuple[int, ...] | None = None
    regions: tuple[str, ...] = DEFAULT
    land_mask: Path | None = None
    grid: str = "native"
    skip_missing: bool = False
    thresholds: tuple[Threshold, ...] = ()
    maps: bool = False
    workers: int | None = None
    scheduler: str | None = None
    command_line: str = ""


def evaluate(options: Options, on_progress: Progress = lambda what, done, total: None) -> Evaluation:
    """Scores forecasts against a truth and against baselines.

    Raises:
        UsageError: Unknown variables, regions, grids or sources.
        DataError: Something is missing, on another grid, in another unit, or no pair can be verified; all is listed.
        RemoteError: The truth's source refused or failed.
    """
    forecasts = open_forecasts(options.forecasts, on_progress)
    against = open_forecasts(options.against, on_progress) if options.against else None
    notes: list[str] = []
    truth_names, climatology_path = _choose_truth(options, forecasts, notes)
    climatology = None if climatology_path is None else Climatology(climatology_path)
    truth = _open_truth(truth_names, options, forecasts)
    others = {"truth": truth.channels}
    if climatology is not None:
        others["climatology"] = climatology.channels
    if against is not None:
        others["other forecast"] = against.channels
    labels, left = match_channels(forecasts, others, options.variables, options.levels)
    matches = match(forecasts, truth, climatology, against, labels, options.leads_hours)
    if forecasts.partial:
        left.append(f"not scored, because not every forecast file has them: {' '.join(forecasts.partial)}")
    grid = choose_grid(options.grid, forecasts, truth, climatology, against)
    land, land_mask = _land(options, truth, climatology, grid)
    regions = Regions.on(grid, options.regions, land)
    winds = tuple((labels.index(one), labels.index(two)) for one, two in map(wind_parts, wind_labels(labels)))
    valid = matches.valid_times
    starts = tuple(matches.pairs) if matches.persistence else ()
    work = Work(
        matches=matches, forecasts=forecasts, against=against, grid=grid, regions=regions, winds=winds,
        truth=OnGrid(truth, grid, labels, winds, tuple(sorted({*valid, *starts}))),
        climatology=None if climatology is None else OnGrid(climatology, grid, labels, times=valid),
        skip_missing=options.skip_missing, spectra=_spectral(labels),
        maps=_mapped(matches) if options.maps else ((), ()),
        rain=_rainy(labels, climatology) if climatology is not None and climatology.grid == grid else (),
        orography=_orography(truth, climatology, grid),
    )  # fmt: skip
    if climatology is not None and climatology.grid != grid and _rainy(labels, climatology):
        left.append("no SEEPS: its classes are on another grid than the scores, and cannot be regridded")
    check(options.thresholds, _scope(work))
    tally = score(work, options.workers or _workers(work), on_progress, options.scheduler)
    metadata = provenance.metadata(
        forecasts, truth, climatology, against, matches, grid, regions.names, skip_missing=options.skip_missing,
        command_line=options.command_line,
    )  # fmt: skip
    if land_mask:
        metadata["land_mask"] = land_mask
    problems = [*forecasts.notes, *truth.notes, *(climatology.notes if climatology else ())]
    return _result(
        work, tally, metadata,
        warnings=tuple(provenance.warnings_of(forecasts, truth, climatology, against)),
        notes=tuple(dict.fromkeys([*notes, *left, *matches.notes, *problems])),
    )  # fmt: skip


def choose_grid(text: str, forecasts: Forecasts, truth: Series, climatology: Climatology | None,
                against: Forecasts | None) -> Grid:  # fmt: skip
    """The grid of the scores.

    Raises:
        UsageError: It is no grid.
        DataError: `native`, and the grids differ.
    """
    there: dict[str, Any] = {
        "forecast": forecasts,
        "truth": truth,
        "climatology": climatology,
        "other forecast": against,
    }
    grids: dict[str, Grid] = {name: one.grid for name, one in there.items() if one is not None}
    if text in ("forecast", "truth"):
        return grids[text]
    if text == "native":
        if any(grid != grids["forecast"] for grid in grids.values()):
            raise DataError(
                "forecast and truth are on different grids",
                problems=[f"{name}: {grid.describe()}" for name, grid in grids.items()],
                hint="--grid 1.5, --grid forecast or --grid truth regrids all of them conservatively",
            )
        return grids["forecast"]
    return Grid.parse(text)


def _choose_truth(options: Options, forecasts: Forecasts, notes: list[str]) -> tuple[tuple[str, ...], Path | None]:
    """The truth that was given, or the one bundled with the sample.

    Raises:
        UsageError: None was given and the forecast is not from the sample.
    """
    if options.truth:
        return options.truth, options.climatology
    found = provenance.bundled_truth(forecasts.attributes, forecasts.inits)
    if found is None:
        raise UsageError(
            f"there is no truth to compare {forecasts.label} with",
            hint=f"--truth FILE, or --truth SOURCE to fetch it; sources: {', '.join(_sources())}",
        )
    notes.append("truth and climatology are the bundled ones of the sample: simulated weather")
    return tuple(map(str, found.truth)), options.climatology or found.climatology


def _open_truth(names: tuple[str, ...], options: Options, forecasts: Forecasts) -> Series:
    if len(names) == 1 and names[0] in _sources():
        target = forecasts.grid
        if options.grid not in ("native", "forecast", "truth"):
            target = Grid.parse(options.grid)
        return SourceSeries(names[0], target, forecasts.channels)
    paths = [Path(name).expanduser() for name in names]
    absent = [path for path in paths if not path.exists() and not path.with_name(f"{path.name}.part").exists()]
    if absent:
        raise DataError(f"there is no truth at {', '.join(map(str, absent))}: no such file, and no source of that name",
                        hint=f"sources: {', '.join(_sources())}")  # fmt: skip
    return open_truth(paths)


def _sources() -> list[str]:
    return [name for name in SOURCES if name != "file"]


def _workers(work: Work) -> int:
    """One thread a core, but no more than memory and inits allow, and one alone where several would be slower."""
    height, width = work.forecasts.grid.shape
    one = 4 * len(work.matches.labels) * height * width * max(1, work.forecasts.members)
    if one < _WORTH_THREADS:
        return 1
    # A block of the forecast, the same regridded, and truth, climatology and persistence of a time.
    held = 2 * max(one, BLOCK_BYTES) + 4 * one
    return max(1, min(cores(), len(work.matches.pairs), host_memory() // 2 // held))


def _spectral(labels: Sequence[str]) -> tuple[int, ...]:
    """Channels whose spectra are kept: the headline ones and the winds in them."""
    wanted = {*HEADLINE, "u850", "v850", "u10", "v10", "u250"}
    chosen = tuple(number for number, label in enumerate(labels) if label in wanted)
    return chosen or tuple(range(min(4, len(labels))))


def _rainy(labels: Sequence[str], climatology: Climatology) -> tuple[int, ...]:
    """Channels that the climatology has the classes of SEEPS for."""
    known = [label for label in labels if climatology.has_rain_classes(label)]
    return tuple(labels.index(label) for label in known if split_label(label)[0].window_hours in DRY_BELOW_M)


def _mapped(matches: Matches) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and leads that maps are kept of."""
    channels = [number for label in HEADLINE for number, one in enumerate(matches.labels) if one == label]
    leads = [lead for lead in NAMED_LEADS_HOURS if lead in matches.leads] or [matches.leads[-1]]
    return tuple(channels[:4] or range(min(2, len(matches.labels)))), tuple(leads[:4])


def _land(options: Options, truth: Series, climatology: Climatology | None, grid: Grid) -> tuple[Array | None, str]:
    """The share of land and where it comes from, if a region asks for it.

    Raises:
        UsageError: A mask was given and no region asks for it.
    """
    if not any(name.endswith(LAND) for name in options.regions):
        if options.land_mask is not None:
            raise UsageError("--land-mask is of no use: no region is over land", hint=f"--region global{LAND}")
        return None, ""
    if options.land_mask is not None:
        return read_land(options.land_mask, grid), options.land_mask.name
    return land_of((truth, climatology), grid) or (None, "")


def _orography(truth: Series, climatology: Climatology | None, grid: Grid) -> Values | None:
    for series in (truth, climatology):
        if series is not None:
            found = series.static()
            if "orog" in found:
                return on_grid(np.asarray(found["orog"]), series.grid, grid)
    return None


def _scope(work: Work) -> Scope:
    """The names of everything that will be in the result."""
    scores = Accumulator(work.regions, 1, 1, work.forecasts.members).scores()
    names = [*scores, *(SEEPS if work.rain else ()),
             *(f"skill_{name}" for name in BASELINES if name in work.systems)]  # fmt: skip
    return Scope(tuple(names), all_labels(work.matches.labels), work.matches.leads, work.regions.names)


def _result(work: Work, tally: Tally, metadata: dict[str, Any], *, warnings: tuple[str, ...],
            notes: tuple[str, ...]) -> Evaluation:  # fmt: skip
    labels, leads = work.matches.labels, work.matches.leads
    winds = wind_labels(labels)
    scores = {}
    for name, made in tally.accumulators.items():
        tables = made.scores()
        if name in tally.seeps:
            with np.errstate(invalid="ignore"):
                found = tally.seeps[name][..., 0] / tally.seeps[name][..., 1]
            tables |= {score: found[number] for number, score in enumerate(SEEPS)}
        scores[name] = _with_winds(tables, tally.speeds[name].scores() if name in tally.speeds else {}, labels, winds)
    inits = np.array(tally.inits)
    errors = {name: np.stack(tables) for name, tables in tally.mse.items()}
    comparisons = {
        name: block_bootstrap(errors["forecast"] - table, inits) for name, table in errors.items() if name != "forecast"
    }
    spectra = _spectra(work, tally)
    return Evaluation(
        labels=all_labels(labels), leads=leads, regions=work.regions.names, scores=scores,
        count=tally.accumulators["forecast"].count, comparisons=comparisons, spectra=spectra, maps=_maps(work, tally),
        checks=_checks(work, tally, scores["forecast"], spectra), metadata=metadata, grid=work.grid,
        warnings=warnings, notes=notes,
        unmatched={reason: describe_pairs(pairs) for reason, pairs in work.matches.unmatched.items()},
    )  # fmt: skip


def _with_winds(scores: dict[str, Array], speeds: dict[str, Array], labels: Sequence[str],
                winds: Sequence[str]) -> dict[str, Array]:  # fmt: skip
    """Scores with the winds as more channels: the vectors, of which only the square error is defined, and the speeds.

    Args:
        scores: Name -> (T, C, R).
        speeds: The same of the speeds (T, S, R); nothing for climatologies.
        labels: C channels.
        winds: S wind vectors.
    """
    if not winds:
        return scores
    pairs = [tuple(labels.index(part) for part in wind_parts(wind)) for wind in winds]
    mse = scores["mse"]
    vector = np.stack([mse[:, one] + mse[:, two] for one, two in pairs], axis=1)
    root = np.stack([vector_rmse(mse[:, one], mse[:, two]) for one, two in pairs], axis=1)
    more, nothing = {"mse": vector, "rmse": root}, np.full_like(vector, np.nan)
    return {name: np.concatenate([table, more.get(name, nothing), speeds.get(name, nothing)], axis=1)
            for name, table in scores.items()}  # fmt: skip


def _spectra(work: Work, tally: Tally) -> dict[str, Any]:
    with np.errstate(invalid="ignore"):
        means = {name: table / tally.spectra_count[:, None, None] for name, table in tally.spectra.items()}
    waves = wavelengths_km(work.grid)
    ours, truth = means["forecast"], means["truth"]
    resolved = [[effective_resolution_km(ours[t, s], truth[t, s], waves) for s in range(ours.shape[1])]
                for t in range(ours.shape[0])]  # fmt: skip
    return {"labels": tuple(work.matches.labels[number] for number in work.spectra), "wavelengths_km": waves, **means,
            "effective_resolution_km": np.array(resolved)}  # fmt: skip


def _maps(work: Work, tally: Tally) -> dict[str, Any]:
    numbers, leads = work.maps
    if not leads or tally.maps is None:
        return {}
    count = tally.maps_count[:, None, None, None]
    return {"labels": tuple(work.matches.labels[number] for number in numbers), "leads": leads,
            "bias": tally.maps[0] / count, "rmse": np.sqrt(tally.maps[1] / count), "lat": work.grid.lat,
            "lon": work.grid.lon}  # fmt: skip


def _checks(work: Work, tally: Tally, scores: dict[str, Array], spectra: dict[str, Any]) -> dict[str, Array]:
    """The checks of all inits by lead: sums of counts, roots of mean squares, the lowest of lowest values."""
    names = dict.fromkeys(name for made in tally.checks for name in made)
    tables = {name: np.stack([made.get(name, np.full(len(work.matches.leads), np.nan)) for made in tally.checks])
              for name in names}  # fmt: skip
    made: dict[str, Array] = {}
    for prefix in ("", "truth_"):
        for name in ("values", "not_finite", "out_of_range", "height_inversions"):
            if prefix + name in tables:
                made[prefix + name] = np.nansum(tables[prefix + name], axis=0)
        for name in ("hydrostatic_rmse", "geostrophic_rmse"):
            if prefix + name in tables:
                made[prefix + name] = np.sqrt(_mean(tables[prefix + name] ** 2))
        if prefix + "humidity_values" in tables:
            share = tables[prefix + "humidity_negative"] / tables[prefix + "humidity_values"]
            made[prefix + "humidity_negative_share"] = _mean(share)
            made[prefix + "humidity_lowest"] = np.fmin.reduce(tables[prefix + "humidity_lowest"], axis=0)
        if prefix + "dry_mass" in tables:
            drifts = [drift_per_day(work.matches.leads, mass) for mass in tables[prefix + "dry_mass"]]
            good = [drift for drift in drifts if np.isfinite(drift)]
            made[prefix + "dry_mass_drift"] = np.array([np.mean(good) if good else np.nan])
    if work.climatology is not None:
        first = next(
            (number for label in HEADLINE for number, one in enumerate(work.matches.labels) if one == label), 0
        )
        made["activity_ratio"] = scores["activity"][:, first, 0] / scores["activity_truth"][:, first, 0]
    if spectra["labels"]:
        first = _first_headline(spectra["labels"])
        made["effective_resolution_km"] = spectra["effective_resolution_km"][:, first]
    return made


def _mean(table: Array) -> Array:
    """(N, T) -> (T,): mean over the inits that have the lead; NaN where none has."""
    valid = np.isfinite(table)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(valid, table, 0.0).sum(axis=0) / valid.sum(axis=0))


def _first_headline(labels: Sequence[str]) -> int:
    """Place of the channel that people look at first."""
    return next((labels.index(label) for label in HEADLINE if label in labels), 0)
