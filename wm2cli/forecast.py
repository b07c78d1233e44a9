"""The forecast command: from an analysis in files to a NetCDF file with the forecast.

A forecast is encoded once, advanced along a tree of steps in which shared beginnings are computed once, and decoded at
the lead times asked for; where several paths lead there, the mean of their states is taken. States come out of a
generator one at a time and go to a writer in another thread, so memory does not depend on the length of the forecast.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import wm2cli
from wm2cli import checkpoint, weights
from wm2cli.analysis import Analysis, prepare
from wm2cli.checkpoint import Checkpoint, Header
from wm2cli.devices import Precision, autocast, describe, resolve_device, resolve_precision
from wm2cli.errors import CheckpointError, RemoteError, ResourceError, UsageError, ValuesError
from wm2cli.fetch import Access, Obtained, ladder_of, obtain
from wm2cli.grid import Grid
from wm2cli.paths import Choice, choose
from wm2cli.rollout import rollout
from wm2cli.schema import VARIABLES, Schema, level_text, variable
from wm2cli.sources import OFFLINE_SOURCE, Progress, Request, open_source, quiet
from wm2cli.state import State
from wm2cli.writing import Crop, FileSize, ForecastWriter, check_space, crop, estimate_bytes

FORMAT = 1
"""Format number of the JSON documents of this command."""

UNTRAINED = "untrained weights: the fields in this file are no forecast of any weather"
SIMULATED = "weights trained on simulated weather: no operational skill, do not use this for real decisions"
SIMULATED_START = "the initial state is simulated weather, not an analysis of any real day"


@dataclass(frozen=True)
class Options:
    """Everything that `wm2 forecast` can be told; the flags of the same names.

    Args:
        init: Valid time of the initial fields, UTC; None is the latest there is.
        hours: Length of the forecast.
        step: Output interval in hours.
        leads: Lead times in hours, increasing, instead of these two.
        paths: How the lead times are reached, see `wm2cli.paths.choose`; the model's usual way when None.
        source: Where the analysis comes from (`wm2cli.sources.SOURCES`), several to be tried in order, or `auto`.
        source_options: See `wm2cli.sources.Request`.
        access: How the analysis is got.
        inputs: Files of the analysis; `NAME=PATH` gives a file to one of several encoders.
        weights: Checkpoint; `WM2_WEIGHTS` or the bundled default when None.
        out: NetCDF file; `wm2_<init>.nc` in the current folder when None.
        variables, levels: What to write; everything when None. Levels in hPa.
        region: North, west, south, east in degrees, or None for the globe.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        precision: Of the network; fields are float32 in any case. `auto` is bf16 on GPUs that have it, else fp32.
        encoder: Which encoder reads the analysis; the checkpoint's first when None.
        threads: CPU threads; torch's choice when None.
        derive, extrapolate: See `wm2cli.analysis.prepare`.
        overwrite: Replace an existing output.
        allow_untrained: Run weights that have seen no data.
        lossless: Write all bits of every value.
        command_line: Goes into the file.
    """

    init: np.datetime64 | None
    hours: int
    step: int = 6
    leads: tuple[int, ...] | None = None
    paths: str | None = None
    source: str = "auto"
    source_options: Mapping[str, str] = field(default_factory=dict)
    access: Access = field(default_factory=Access)
    inputs: tuple[str, ...] = ()
    weights: str | None = None
    out: Path | None = None
    variables: tuple[str, ...] | None = None
    levels: tuple[float, ...] | None = None
    region: tuple[float, float, float, float] | None = None
    device: str = "auto"
    precision: Precision = "auto"
    encoder: str | None = None
    threads: int | None = None
    derive: bool = False
    extrapolate: bool = False
    overwrite: bool = False
    allow_untrained: bool = False
    lossless: bool = False
    command_line: str = ""

    @property
    def target(self) -> Path:
        """The output file."""
        return self.out or Path(f"wm2_{np.datetime_as_string(self.start, unit='h').replace('-', '')}.nc")

    @property
    def start(self) -> np.datetime64:
        """The valid time of the initial fields.

        Raises:
            UsageError: It is not known yet which is the latest.
        """
        if self.init is None:
            raise UsageError("what is latest is only known by asking the network", hint="give --init a time")
        return self.init


@dataclass(frozen=True)
class Selection:
    """What of a decoded state is written, as indices into its channels, and the part of the grid."""

    pressure: tuple[str, ...]
    levels: tuple[float, ...]
    surface: tuple[str, ...]
    crop: Crop

    def of(self, state: State) -> tuple[Tensor, Tensor]:
        """(V, L, h, w) and (S, h, w) of a state with one instant, still on its device."""
        schema, device = state.schema, state.pressure.device
        columns = torch.as_tensor(self.crop.columns, device=device)
        names = torch.as_tensor([schema.pressure.index(name) for name in self.pressure], device=device)
        levels = torch.as_tensor([schema.levels.index(level) for level in self.levels], device=device)
        below = torch.as_tensor([schema.surface.index(name) for name in self.surface], device=device)
        upper = state.pressure[0, :, :, self.crop.rows].index_select(0, names).index_select(1, levels)
        lower = state.surface[0, :, self.crop.rows].index_select(0, below)
        return upper.index_select(-1, columns), lower.index_select(-1, columns)


@dataclass(frozen=True)
class Result:
    """What a forecast wrote and what it took."""

    path: Path
    init: str
    leads_hours: tuple[int, ...]
    bytes: int
    sha256_weights: str
    weights: str
    trained: bool
    paths: str
    device: str
    precision: str
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
        return {"format": FORMAT, **{name: plain(value) for name, value in vars(self).items()}}


def forecast(options: Options, on_progress: Progress = quiet) -> Result:
    """Runs a forecast and writes it.

    Raises:
        RemoteError: A remote refused or failed.
        NotYetError: The analysis is not published yet, or too old.
        UsageError: Impossible lead times, unknown variables, an existing output.
        DataError: The analysis lacks something or is not what it should be; everything is listed.
        CheckpointError: The weights are missing, damaged, or untrained without `allow_untrained`.
        ResourceError: No such device, not enough memory or disk, the output cannot be written.
        ValuesError: The model made NaN, infinite or impossible values.
    """
    started = time.monotonic()
    leads = lead_times(options)
    if options.init is not None or options.out is not None:
        refuse_existing(options)
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    on_progress("loading weights", 0, 1)
    loaded = checkpoint.load(weights.resolve(options.weights, options.access.cache), device)
    model = loaded.model
    refuse_untrained(loaded.header.trained, options)
    paths = choose(options.paths, model, leads, lambda: loaded.sha256)
    chosen = select(options, model.schema_out, model.grid)
    groups = encoder_inputs(options, model.inputs)
    size = file_size(options, chosen, len(leads))
    if options.init is not None:
        check_space(options.target, size.expected)
    obtained = obtain_files(options, groups, model.inputs, on_progress)
    if options.init is None:
        options = replace(options, init=next(iter(obtained.values())).times[0])
        refuse_existing(options)
        check_space(options.target, size.expected)
    analyses = read_analyses(options, loaded, obtained, on_progress)
    states = {name: State.from_dataset(made.dataset, model.inputs[name], model.grid).to(device)
              for name, made in analyses.items()}  # fmt: skip
    precision = resolve_precision(options.precision, device)
    read = time.monotonic()
    attributes = provenance(options, loaded, paths, obtained, analyses, device, precision)
    notes = tuple(note for got in obtained.values() for note in got.notes)
    notes = tuple(dict.fromkeys((*notes, *(note for made in analyses.values() for note in made.notes))))
    writer = ForecastWriter(
        options.target, pressure=chosen.pressure, levels=chosen.levels, surface=chosen.surface, grid=model.grid,
        init=options.start, leads_hours=leads, attributes=attributes, region=options.region, lossless=options.lossless,
        overwrite=options.overwrite, paths=paths.members if paths.listed else None,
    )  # fmt: skip
    try:
        with torch.inference_mode(), autocast(precision, device), writer:
            on_progress("forecasting", 0, len(leads))
            for done, (lead, state) in enumerate(rollout(model, model.encode(states), paths.route), 1):
                check_values(state, lead)
                upper, lower = chosen.of(state)
                writer.write(lead, upper.float().cpu().numpy(), lower.float().cpu().numpy(), cropped=True)
                on_progress("forecasting", done, len(leads))
            on_progress("finishing the file", 0, 1)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(f"out of memory on {device}", hint="`wm2 forecast --plan` tells what is needed; try "
                            "--device cpu, --precision bf16, or smaller weights") from error  # fmt: skip
    ended = time.monotonic()
    warnings = cautions(loaded.header, [got.source for got in obtained.values()])
    return Result(
        path=options.target, init=np.datetime_as_string(options.start, unit="m"), leads_hours=leads,
        bytes=options.target.stat().st_size, sha256_weights=loaded.sha256, weights=loaded.header.name,
        trained=loaded.header.trained, paths=paths.description, device=str(device), precision=precision,
        seconds={"read": round(read - started, 3), "run_and_write": round(ended - read, 3)},
        notes=notes, warnings=warnings,
    )  # fmt: skip


def lead_times(options: Options) -> tuple[int, ...]:
    """The lead times to write, in hours.

    Raises:
        UsageError: Some are not later than zero, or the forecast is not a multiple of the step.
    """
    problems = []
    if options.leads is not None:
        problems += [f"{lead} h is no lead time" for lead in options.leads if lead < 1]
        if not options.leads or list(options.leads) != sorted(set(options.leads)):
            problems.append(f"lead times must be some and increase, found {list(options.leads)}")
        if problems:
            raise UsageError("the lead times are not possible", problems=problems)
        return options.leads
    if options.hours <= 0:
        problems.append(f"the forecast must be longer than zero, found {options.hours} h")
    if options.step not in (1, 3, 6, 12, 24):
        problems.append(f"--step must be 1, 3, 6, 12 or 24 hours, found {options.step}")
    elif options.hours % options.step:
        problems.append(f"{options.hours} h is not a multiple of the step of {options.step} h")
    if problems:
        raise UsageError("the lead times are not possible", problems=problems)
    return tuple(range(options.step, options.hours + 1, options.step))


def select(options: Options, schema: Schema, grid: Grid) -> Selection:
    """What to write of the model's output.

    Sums and extremes exist over one hour and over six; without a choice the ones are written that fit the lead times:
    six hours where all are multiples of that, else one hour.

    Raises:
        UsageError: Variables or levels the model does not make, all of them named; or an impossible region.
    """
    names = options.variables
    if names is None:
        window = 1 if math.gcd(*lead_times(options)) % 6 else 6
        fits = [name for name in schema.surface if VARIABLES[name].window_hours in (0, window)]
        names = (*schema.pressure, *fits)
    problems: list[str] = []
    for name in names:
        if name not in (*schema.pressure, *schema.surface):
            try:
                problems.append(f"the model does not make {name} ({variable(name).long_name})")
            except UsageError as error:
                problems.append(f"{error.message}; {error.hint}")
    levels = schema.levels if options.levels is None else options.levels
    problems += [f"the model has no level {level_text(level)} hPa" for level in levels if level not in schema.levels]
    if problems:
        have = f"{' '.join((*schema.pressure, *schema.surface))} on {' '.join(map(level_text, schema.levels))} hPa"
        raise UsageError("not all that was asked for can be written", problems=problems, hint=f"the model makes {have}")
    pressure = tuple(name for name in schema.pressure if name in names)
    surface = tuple(name for name in schema.surface if name in names)
    return Selection(pressure, tuple(sorted(map(float, set(levels)))) if pressure else (), surface,
                     crop(grid, options.region))  # fmt: skip


def encoder_inputs(options: Options, inputs: Mapping[str, Schema]) -> dict[str, tuple[str, ...]]:
    """The files for each encoder.

    `NAME=PATH` names an encoder; plain paths belong to `options.encoder`, or to the first one.

    Raises:
        UsageError: No such encoder, or plain and named files together.
    """
    plain = options.encoder or next(iter(inputs))
    groups: dict[str, tuple[str, ...]] = {}
    for text in options.inputs:
        name, found, path = text.partition("=")
        if not found or name not in inputs:
            name, path = plain, text
        groups[name] = (*groups.get(name, ()), path)
    groups = groups or {plain: ()}
    unknown = [name for name in groups if name not in inputs]
    if unknown:
        raise UsageError(f"the weights have no encoder '{unknown[0]}'", hint=f"they have {', '.join(inputs)}")
    return groups


def obtain_files(options: Options, groups: Mapping[str, tuple[str, ...]], inputs: Mapping[str, Schema],
                 on_progress: Progress) -> dict[str, Obtained]:  # fmt: skip
    """The files of the analysis for each encoder, fetched where they are not here.

    Raises:
        RemoteError: A remote refused or failed; says how to go on without a network.
        NotYetError: Not published yet, or too old.
        DataError: What came is not what was asked for.
        UsageError: No such source, or it cannot serve such a request.
        ResourceError: The cache cannot be written, or the disk is full.
    """
    made: dict[str, Obtained] = {}
    init = options.init
    for name, paths in groups.items():
        ladder, note = ladder_of(options.source, init, files=bool(paths))
        request = Request(() if init is None else (init,), tuple(Path(path).expanduser() for path in paths),
                          inputs[name].dynamic, options.source_options)  # fmt: skip
        try:
            got = obtain(ladder, request, options.access, on_progress)
        except RemoteError as error:
            offline = f"without a network, --source {OFFLINE_SOURCE} shows how wm2 works"
            error.hint = f"{error.hint}; {offline}" if error.hint else offline
            raise
        made[name] = replace(got, notes=((note,) if note else ()) + got.notes)
        init = got.times[0]
    return made


def read_analyses(options: Options, loaded: Checkpoint, obtained: Mapping[str, Obtained],
                  on_progress: Progress) -> dict[str, Analysis]:  # fmt: skip
    """One analysis for each encoder, on the model's grid and levels.

    Raises:
        DataError: What the files lack and what is wrong with them, everything at once.
    """
    import xarray as xr

    model = loaded.model
    axes = {"latitude": model.grid.lat, "longitude": model.grid.lon}
    static = xr.Dataset(
        {name: (("latitude", "longitude"), values.numpy(), {"units": VARIABLES[name].units})
         for name, values in loaded.static.items()}, axes,
    )  # fmt: skip
    made = {}
    for done, (name, got) in enumerate(obtained.items()):
        on_progress("reading the analysis", done, len(obtained))
        made[name] = prepare(
            open_source(got.source).open(got.paths), model.inputs[name].dynamic, options.start, model.grid,
            derive=options.derive, extrapolate=options.extrapolate, static=static if static.data_vars else None,
        )  # fmt: skip
    return made


def check_values(state: State, lead_hours: int) -> None:
    """Refuses NaN, infinite and impossible values.

    Raises:
        ValuesError: The channels concerned, with what they span.
    """
    schema = state.schema
    names = schema.channels
    both = (state.pressure.flatten(1, 2), state.surface)
    # One copy to the host for all channels: asking a GPU channel by channel would stall it some hundred times.
    least = torch.cat([part.amin(dim=(0, 2, 3)) for part in both]).tolist()
    most = torch.cat([part.amax(dim=(0, 2, 3)) for part in both]).tolist()
    limits = [VARIABLES[name].plausible(level) for name in schema.pressure for level in schema.levels]
    limits += [VARIABLES[name].plausible() for name in schema.surface]
    problems = [
        f"{name} spans {low:.6g} to {high:.6g}, possible are {lowest:.6g} to {highest:.6g}"
        for name, low, high, (lowest, highest) in zip(names, least, most, limits, strict=True)
        if not (lowest <= low and high <= highest)  # NaN fails every comparison
    ]
    if problems:
        raise ValuesError(f"the forecast has impossible values at {lead_hours} h", problems=problems,
                          hint="check the initial fields; trained weights on sound input do not do this")  # fmt: skip


def provenance(options: Options, loaded: Checkpoint, paths: Choice, obtained: Mapping[str, Obtained],
               analyses: Mapping[str, Analysis], device: torch.device,
               precision: str) -> dict[str, str | int | float]:  # fmt: skip
    """Global attributes: everything needed to tell how a file came about."""
    header = loaded.header
    training = str(header.training.get("data", "not stated")) if header.trained else "none: untrained weights"
    files = [f"{name}: {path} sha256={digest}" for name, made in analyses.items() for path, digest in made.files]
    notes = [f"{name}: {note}" for name, made in analyses.items() for note in made.notes]
    urls = [url for got in obtained.values() for url in got.urls]
    thanks = [open_source(got.source).attribution for got in obtained.values()]
    start = np.datetime_as_string(options.start, unit="m")
    attributes: dict[str, str | int | float] = {
        "title": f"{'Forecast' if header.trained else 'Untrained network run'} by {header.model} from {start}Z",
        "source": f"wm2 {wm2cli.__version__}, {header.model}, weights {header.name}",
        "model": header.model,
        "weights_name": header.name,
        "weights_sha256": loaded.sha256,
        "weights_trained": "yes" if header.trained else "no",
        "weights_training_data": training,
        "weights_licence": header.licence,
        "initial_conditions_source": ", ".join(dict.fromkeys(got.source for got in obtained.values())),
        "initial_conditions_files": "\n".join(files),
        "initial_conditions_processing": "\n".join(notes) or "none",
        "encoders": ", ".join(analyses),
        "paths_description": paths.description,
        "device": describe(device),
        "precision": precision,
        "software": f"wm2 {wm2cli.__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}",
        "command_line": options.command_line or "wm2cli.forecast.forecast()",
    }
    if paths.listed:
        attributes["paths_by_lead_time"] = paths.text
    if urls:
        attributes["initial_conditions_urls"] = "\n".join(dict.fromkeys(urls))
    if any(thanks):
        attributes["acknowledgement"] = "\n".join(dict.fromkeys(filter(None, thanks)))
    if warnings := cautions(header, [got.source for got in obtained.values()]):
        attributes["warning"] = "\n".join(warnings)
        if SIMULATED in warnings or SIMULATED_START in warnings:
            attributes["wm2_kind"] = "simulated"
    return attributes


def cautions(header: Header, names: Sequence[str]) -> tuple[str, ...]:
    """What must be said wherever a forecast of these weights from these sources is shown."""
    said = [] if header.trained else [UNTRAINED]
    if header.training.get("kind") == "simulated":
        said.append(SIMULATED)
    if set(names) & {"sample", "simulation"}:
        said.append(SIMULATED_START)
    return tuple(said)


def refuse_existing(options: Options) -> None:
    """Refuses to replace an output that was not to be replaced, before any work is done."""
    if options.target.exists() and not options.overwrite:
        raise UsageError(f"{options.target} exists already", hint="give --overwrite to replace it, or another --out")


def refuse_untrained(trained: bool, options: Options) -> None:
    """Refuses weights that have seen no data, unless they were asked for."""
    if not trained and not options.allow_untrained:
        raise CheckpointError(
            "these weights are untrained: what they make is no forecast",
            hint="use trained weights, or give --allow-untrained to run the network all the same",
        )


def file_size(options: Options, chosen: Selection, times: int) -> FileSize:
    """Bytes of the file that would be written."""
    return estimate_bytes(pressure=chosen.pressure, levels=chosen.levels, surface=chosen.surface,
                          shape=chosen.crop.shape, times=times, lossless=options.lossless)  # fmt: skip


def plain(value: Any) -> Any:
    """Values as JSON knows them."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
