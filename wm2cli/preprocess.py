"""The preprocess command: from raw series in files to a training store, with statistics, splits and provenance.

Float16 stores need the statistics before the first value is written, so the inputs are read twice: once to check every
value and to gather the statistics, once to write. Float32 stores are written at the first reading, and the statistics
are gathered from the store. Either way everything is cut into blocks of consecutive times, which bounds the memory.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import wm2cli
from wm2cli.config import from_mapping
from wm2cli.errors import ConfigError, UsageError
from wm2cli.grid import Grid
from wm2cli.preprocessing.climatology import write_climatology
from wm2cli.preprocessing.making import Work
from wm2cli.preprocessing.origin import describe_inputs
from wm2cli.preprocessing.plan import Plan, make_plan
from wm2cli.preprocessing.ranges import Range, parse_ranges
from wm2cli.preprocessing.target import Contents, Target, finished, refuse_existing
from wm2cli.reading.fields import time_text
from wm2cli.reading.series import Catalogue, hash_files, open_series
from wm2cli.schema import Schema, variable
from wm2cli.store import DTYPES, Dtype, Progress, Store, open_store

FORMAT = 1
"""Format number of the JSON documents of this command."""

STEPS = (1, 2, 3, 6, 12, 24)
"""Hours that may lie between the times of a store."""


@dataclass(frozen=True)
class Options:
    """Everything that `wm2 preprocess` can be told; the flags of the same names.

    Args:
        inputs: Files, folders, and Zarr stores (folders or URLs).
        out: Folder of the store.
        schema: Name of a preset, or a TOML file with `pressure`, `levels`, `surface` and `static`.
        variables, levels: In place of the schema's; levels in hPa.
        without: Variables of the schema to leave out.
        grid: What `Grid.parse` takes (`5.625`, `1.5`, `0.25:north`), or `input`; the preset's when None, else the
            inputs'.
        start, end: First and last time; those of the inputs when None.
        step: Hours between times.
        train, validation, test: Years, dates or times, as `preprocessing.ranges.parse_ranges` takes them.
        dtype: `float16` (normalised values) or `float32` (physical values).
        scheduler: Address of a dask scheduler.
        workers: Threads; the number of processor cores when None.
        climatology: File for the climatology over the times of `train`: NetCDF, or Zarr by its suffix.
        window: Days in the window of the climatology.
        store: Make only the climatology, from this store.
        kind: What the data are; found in the files, else `reanalysis`, when None.
        title: One line about the data; found in the files when None.
        derive: Also make variables that others only approximate.
        allow_jumps: Take values that jump between blocks of times as they are, and say so.
        overwrite: Replace what is there.
    """

    inputs: tuple[str, ...] = ()
    out: Path | None = None
    schema: str | None = None
    variables: tuple[str, ...] | None = None
    levels: tuple[float, ...] | None = None
    without: tuple[str, ...] = ()
    grid: str | None = None
    start: np.datetime64 | None = None
    end: np.datetime64 | None = None
    step: int = 6
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    dtype: Dtype = "float16"
    scheduler: str | None = None
    workers: int | None = None
    climatology: Path | None = None
    window: int = 61
    store: Path | None = None
    kind: Literal["reanalysis", "analysis", "simulated"] | None = None
    title: str | None = None
    derive: bool = False
    allow_jumps: bool = False
    overwrite: bool = False
    command_line: str = ""


@dataclass(frozen=True)
class Result:
    """What was made and what it took."""

    store: Path
    fingerprint: str
    times: int
    channels: int
    start: str
    end: str
    step_hours: int
    splits: Mapping[str, int]
    kind: str
    bytes: int
    climatology: Path | None
    seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {"format": FORMAT, **values, "splits": dict(self.splits), "notes": list(self.notes)}


@dataclass(frozen=True, eq=False)
class Prepared:
    """Inputs that were looked at, and the plan made of them."""

    catalogue: Catalogue
    plan: Plan


@dataclass(frozen=True)
class Planned:
    """What would be made."""

    store: Path
    channels: tuple[str, ...]
    start: str
    end: str
    times: int
    step_hours: int
    splits: Mapping[str, tuple[tuple[str, str], ...]]
    grid: str
    dtype: str
    bytes_uncompressed: int
    input_files: int
    kind: str
    title: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
        return {"format": FORMAT, **vars(self), "store": str(self.store), "notes": list(self.notes)}


def preprocess(options: Options, on_progress: Progress = lambda what, done, total: None) -> Result:
    """Makes a training store, or goes on with one; and a climatology, if asked for.

    Raises:
        UsageError: Impossible options, or something is there that was not to be replaced.
        DataError: The inputs lack something, or have impossible values; everything is listed.
        ConfigError: The schema cannot be read.
        ResourceError: Disk full, target not writable or locked by another run, the cluster failed.
    """
    started = time.monotonic()
    check_options(options)
    notes: tuple[str, ...] = ()
    if options.store is not None:
        store = open_store(options.store)
    else:
        store, notes = _make_store(options, on_progress)
    if options.climatology is not None:
        write_climatology(store, options.climatology, options.window, options.overwrite, on_progress)
    return Result(
        store=store.path, fingerprint=store.fingerprint, times=store.time.size, channels=len(store.schema.channels),
        start=time_text(store.time[0]), end=time_text(store.time[-1]), step_hours=store.step_hours,
        splits={name: int(store.split_indices(name).size) for name in store.splits}, kind=store.kind,
        bytes=sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file()),
        climatology=options.climatology, seconds=round(time.monotonic() - started, 3), notes=notes,
    )  # fmt: skip


def plan(options: Options, on_progress: Progress = lambda what, done, total: None) -> Planned:
    """What `preprocess` would make, from the headers of the inputs alone.

    Raises:
        UsageError, DataError, ConfigError: As `preprocess`, as far as headers tell.
    """
    check_options(options)
    if options.out is None:
        raise UsageError("--plan shows how a store would be made", hint="give --out")
    made = prepare(options, on_progress)
    found = describe_inputs(made.catalogue, options.kind, options.title)
    contents = _contents(options, made, {"kind": found.kind, "title": found.title}, ())
    splits = {name: tuple((time_text(first), time_text(last)) for first, last in ranges)
              for name, ranges in made.plan.splits.items()}  # fmt: skip
    return Planned(
        store=options.out, channels=made.plan.schema.channels, start=time_text(made.plan.time[0]),
        end=time_text(made.plan.time[-1]), times=made.plan.time.size, step_hours=options.step, splits=splits,
        grid=made.plan.grid.describe(), dtype=options.dtype, bytes_uncompressed=contents.bytes,
        input_files=len(made.catalogue.files), kind=found.kind, title=found.title,
        notes=(*made.plan.notes, *found.notes),
    )  # fmt: skip


def check_options(options: Options) -> None:
    """Refuses what cannot be, before any work is done.

    Raises:
        UsageError: All that is wrong with the options.
    """
    problems = []
    if options.store is None:
        if options.out is None:
            problems.append("--out is needed: the folder of the store")
        if not options.inputs:
            problems.append("there are no inputs: files, folders or Zarr stores")
        if options.train is None:
            problems.append("--train is needed: the years that the statistics are made over, such as 2010/2017")
        if options.schema is None and options.variables is None:
            problems.append("--schema or --variables is needed")
    elif options.inputs or options.out is not None:
        problems.append("--store makes a climatology of a store that is there, without inputs and --out")
    elif options.climatology is None:
        problems.append("--store needs --climatology: the file to write")
    if options.step not in STEPS:
        problems.append(f"--step must be one of {', '.join(map(str, STEPS))} hours, found {options.step}")
    if options.dtype not in DTYPES:
        problems.append(f"--dtype must be {' or '.join(DTYPES)}, found '{options.dtype}'")
    if options.window < 1 or options.window % 2 == 0 or options.window > 365:
        problems.append(f"--window must be an odd number of days from 1 to 365, found {options.window}")
    if options.climatology is not None and options.climatology.suffix not in (".nc", ".zarr"):
        problems.append(f"--climatology must end in .nc or .zarr, found {options.climatology}")
    for name in ("train", "validation", "test"):
        try:
            parse_ranges(getattr(options, name) or "2000")
        except ValueError as error:
            problems.append(f"--{name}: {error}")
    if problems:
        raise UsageError("the command line is not possible", problems=problems)
    if options.climatology is not None and options.climatology.exists() and not options.overwrite:
        raise UsageError(f"{options.climatology} exists already", hint="give --overwrite, or another --climatology")


def choose_schema(options: Options) -> tuple[Schema, Grid | None]:
    """The channels of the store, and its grid if the options name one (None: that of the inputs).

    Raises:
        UsageError: Unknown presets, variables or grids.
        ConfigError: The schema's file cannot be read, or is not possible.
    """
    schema, grid = Schema((), (), ()), None
    if options.schema is not None and options.schema.endswith(".toml"):
        try:
            with open(options.schema, "rb") as stream:
                schema = from_mapping(Schema, tomllib.load(stream))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{options.schema} cannot be read: {error}") from error
    elif options.schema is not None:
        from wm2cli.models.presets import preset

        named = preset(options.schema)
        grid = named.grid
        config = named.config
        parts = [config.schema_out, *config.inputs.values()]
        schema = Schema(
            tuple(dict.fromkeys(name for part in parts for name in part.pressure)),
            tuple(sorted({level for part in parts for level in part.levels})),
            tuple(dict.fromkeys(name for part in parts for name in part.surface)),
            tuple(dict.fromkeys(name for part in parts for name in part.static)),
        )
    return _changed_schema(options, replace(schema, forcing=())), _chosen_grid(options.grid, grid)


def _changed_schema(options: Options, schema: Schema) -> Schema:
    names = {"pressure": schema.pressure, "surface": schema.surface, "static": schema.static}
    if options.variables is not None:
        chosen = {kind: tuple(name for name in options.variables if variable(name).kind == kind) for kind in names}
        names = {**chosen, "static": chosen["static"] or names["static"]}
    everything = {name for group in names.values() for name in group}
    unknown = [name for name in options.without if name not in everything]
    if unknown:
        raise UsageError(f"--without names {', '.join(unknown)}, which would not be there anyway",
                         hint=f"there would be {' '.join(sorted(everything))}")  # fmt: skip
    kept = {kind: tuple(name for name in group if name not in options.without) for kind, group in names.items()}
    levels = options.levels or schema.levels
    if kept["pressure"] and not levels:
        raise UsageError("--levels is needed for variables on pressure levels", hint="--levels 500,850 in hPa")
    return Schema(kept["pressure"], tuple(sorted(levels)) if kept["pressure"] else (), kept["surface"], kept["static"])


def _chosen_grid(text: str | None, preset: Grid | None) -> Grid | None:
    if text is None or text == "input":
        return preset if text is None else None
    return Grid.parse(text)


def prepare(options: Options, on_progress: Progress) -> Prepared:
    """Looks at the inputs and plans the store.

    Raises:
        UsageError, DataError, ConfigError: As `preprocess`.
    """
    schema, grid = choose_schema(options)
    catalogue = open_series(options.inputs, on_progress)
    splits: dict[str, tuple[Range, ...]] = {
        name: parse_ranges(text) for name in ("train", "validation", "test") if (text := getattr(options, name))
    }
    made = make_plan(catalogue, schema, grid=grid, start=options.start, end=options.end, step_hours=options.step,
                     splits=splits, derive=options.derive)  # fmt: skip
    return Prepared(catalogue, made)


def _contents(options: Options, prepared: Prepared, provenance: Mapping[str, Any],
              hashes: Sequence[tuple[str, str]]) -> Contents:  # fmt: skip
    made = prepared.plan
    settings = {
        "wm2": wm2cli.__version__,
        "variables": [*made.schema.pressure, *made.schema.surface, *made.schema.static],
        "levels": [float(level) for level in made.schema.levels],
        "grid": made.grid.describe(),
        "start": time_text(made.time[0]),
        "end": time_text(made.time[-1]),
        "step_hours": made.step_hours,
        "splits": {name: [[str(first), str(last)] for first, last in ranges] for name, ranges in made.splits.items()},
        "dtype": options.dtype,
        "derive": options.derive,
        "inputs": [f"{Path(name).name} sha256={digest}" for name, digest in hashes],
    }
    return Contents(
        schema=made.schema, grid=made.grid, time=made.time, step_hours=made.step_hours, splits=made.splits,
        dtype=options.dtype, static=made.static, provenance=provenance, settings=settings,
    )  # fmt: skip


def _make_store(options: Options, on_progress: Progress) -> tuple[Store, tuple[str, ...]]:
    if options.out is None:
        raise ValueError("checked before")
    prepared = prepare(options, on_progress)
    made = prepared.plan
    hashes = hash_files(prepared.catalogue.files, on_progress)
    found = describe_inputs(prepared.catalogue, options.kind, options.title)
    notes = (*made.notes, *found.notes)
    provenance = {
        "kind": found.kind, "title": found.title, "source": found.source, "attribution": list(found.attribution),
        "files": [{"name": name, "sha256": digest} for name, digest in hashes],
        "processing": list(notes), "wm2": wm2cli.__version__,
        "command_line": options.command_line or "wm2cli.preprocess.preprocess()",
    }  # fmt: skip
    contents = _contents(options, prepared, provenance, hashes)
    if (there := finished(options.out, contents)) is not None:
        return there, (*notes, f"{options.out} was complete already; nothing was done to it")
    refuse_existing(options.out, options.overwrite)
    with Target(options.out, contents, overwrite=options.overwrite) as target:
        target.check_done(on_progress)
        work = Work(made, target, on_progress, scheduler=options.scheduler, workers=options.workers,
                    allow_jumps=options.allow_jumps)  # fmt: skip
        if options.dtype == "float16":
            if target.normalizer is None:
                target.set_normalizer(work.survey(stored=False))
            work.write()
        else:
            work.write()
            target.set_normalizer(work.survey(stored=True))
        return work.finish(), (*notes, *work.notes)
