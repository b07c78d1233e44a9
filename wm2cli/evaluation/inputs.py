"""Forecasts, truth and climatology, wherever they come from, as arrays of channels on one grid."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wm2cli.analysis.snapshot import Snapshot
from wm2cli.errors import DataError
from wm2cli.evaluation.datasets import Axis, Fields, Values, label_of, order_of, split_label, variable_of
from wm2cli.grid import Grid
from wm2cli.reading.fields import Inventory, plain_name, time_text
from wm2cli.reading.inputs import kind_of, open_files
from wm2cli.schema import VARIABLES, Schema, value_issues

if TYPE_CHECKING:
    from wm2cli.store import Store

_CACHE_BYTES = 512 * 2**20
"""Truth and climatology kept in memory: leads of following inits meet at the same valid times."""

SIMULATED_SOURCES = ("sample", "simulation", "idealized")


class Series(Protocol):
    """Fields of the globe by valid time: a truth.

    `channels` are labels such as `z500`, `grid` is theirs, `attributes` say where they come from.
    """

    label: str
    grid: Grid
    channels: tuple[str, ...]

    @property
    def attributes(self) -> Mapping[str, Any]: ...
    @property
    def notes(self) -> Sequence[str]: ...

    def has(self, time: np.datetime64) -> bool:
        """Whether there are fields for a valid time."""

    def read(self, time: np.datetime64, labels: Sequence[str]) -> Values:
        """(C, H, W) physical values at a valid time."""

    def static(self) -> Mapping[str, Values]:
        """Fields constant in time, (H, W), by name."""


def kind_of_weather(attributes: Mapping[str, Any]) -> str:
    """Whether fields are of the real atmosphere: `simulated`, `reanalysis`, `analysis`, or `unknown`."""
    stated = str(attributes.get("wm2_kind", attributes.get("kind", ""))).lower()
    if stated:
        return stated
    if str(attributes.get("initial_conditions_source", "")) in SIMULATED_SOURCES:
        return "simulated"
    return "unknown"


class Forecasts:
    """Forecasts from files, each with one init or many, by init and lead.

    Args:
        parts: What was opened; each has `channels`, `grid`, `attributes`, `members`, `pairs` and `read`.

    Raises:
        DataError: Different grids, numbers of members or no common channel, or an init that is there twice.
    """

    def __init__(self, parts: Sequence[_Forecast]) -> None:
        self.parts = tuple(parts)
        self.label = parts[0].label if len(parts) == 1 else f"{parts[0].label} and {len(parts) - 1} more"
        self.grid = parts[0].grid
        self.members = parts[0].members
        self.attributes = parts[0].attributes
        self.notes = list(dict.fromkeys(note for part in parts for note in part.notes))
        shared = [label for label in parts[0].channels if all(label in part.channels for part in parts)]
        self.channels = tuple(sorted(shared, key=order_of))
        problems = [f"{part.label} is on {part.grid.describe()}, {parts[0].label} on {self.grid.describe()}"
                    for part in parts if part.grid != self.grid]  # fmt: skip
        problems += [f"{part.label} has {part.members or 'no'} members, {parts[0].label} {self.members or 'none'}"
                     for part in parts if part.members != self.members]  # fmt: skip
        self.partial = sorted({label for part in parts for label in part.channels} - set(self.channels))
        if not self.channels:
            problems.append("they have no channel in common")
        self._where: dict[tuple[np.datetime64, int], _Forecast] = {}
        twice: dict[str, None] = {}
        for part in parts:
            for pair in part.pairs:
                if pair in self._where:
                    twice[f"{time_text(pair[0])} is there twice, in {self._where[pair].label} and {part.label}"] = None
                self._where[pair] = part
        problems += twice
        if problems:
            raise DataError("the forecasts do not go together", problems=problems[:20],
                            hint="evaluate them one by one, or compare two with --against")  # fmt: skip
        self.inits = tuple(sorted({init for init, _ in self._where}))
        self.leads = tuple(sorted({lead for _, lead in self._where}))

    def has(self, init: np.datetime64, lead: int) -> bool:
        """Whether there is such a pair."""
        return (init, lead) in self._where

    def read(self, init: np.datetime64, leads: Sequence[int], labels: Sequence[str]) -> Values:
        """(T, C, H, W) physical values, or (T, M, C, H, W) with members."""
        parts = [(self._where[init, lead], lead) for lead in leads]
        groups = [
            part.read(init, [lead for _, lead in some], labels)
            for part, some in itertools.groupby(parts, key=lambda pair: pair[0])
        ]
        return groups[0] if len(groups) == 1 else np.concatenate(groups)

    @property
    def kind(self) -> str:
        """See `kind_of_weather`; simulated if any part is."""
        kinds = [kind_of_weather(part.attributes) for part in self.parts]
        return "simulated" if "simulated" in kinds else kinds[0]


class _Forecast(Protocol):
    label: str
    grid: Grid
    channels: tuple[str, ...]
    members: int

    @property
    def attributes(self) -> Mapping[str, Any]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def pairs(self) -> Sequence[tuple[np.datetime64, int]]: ...
    def read(self, init: np.datetime64, leads: Sequence[int], labels: Sequence[str]) -> Values: ...


class DatasetForecast:
    """Forecasts in a NetCDF file or a Zarr store: one init with valid times, or inits by leads."""

    def __init__(self, path: Path) -> None:
        self._fields = Fields(path)
        self.label, self.grid, self.attributes = self._fields.label, self._fields.grid, self._fields.attributes
        self.channels, self.notes = tuple(self._fields.channels), self._fields.notes
        self.members = self._fields.size("member") if self._fields.has("member") else 0
        if self.members == 1:
            self.members = 0
        starts, leads = self._fields.starts_and_leads
        self.pairs = [(start, int(lead)) for start in starts for lead in leads]
        self._starts = {start: number for number, start in enumerate(starts)}
        self._leads = {int(lead): number for number, lead in enumerate(leads)}

    def read(self, init: np.datetime64, leads: Sequence[int], labels: Sequence[str]) -> Values:
        """(T, C, H, W), or (T, M, C, H, W) with members."""
        fields = self._fields
        numbers = [self._leads[lead] for lead in leads]
        first, last = min(numbers), max(numbers)
        select: dict[Axis, int | slice] = {"step" if fields.has("step") else "time": slice(first, last + 1)}
        roles: tuple[Axis, ...] = ("reference", "time")
        select |= {role: self._starts[init] for role in roles if role not in select and fields.has(role)}
        if fields.has("member"):
            select["member"] = slice(None) if self.members else 0
        values = fields.read(labels, select)  # (C, T, ...)
        if numbers != list(range(first, last + 1)):
            values = values[:, [number - first for number in numbers]]
        return np.moveaxis(values, 0, -3)


class DatasetSeries:
    """A truth in a NetCDF file or a Zarr store with an axis of valid times."""

    def __init__(self, path: Path) -> None:
        self._fields = Fields(path)
        self.label, self.grid, self.attributes = self._fields.label, self._fields.grid, self._fields.attributes
        self.channels, self.notes = tuple(self._fields.channels), list(self._fields.notes)
        if self._fields.scalar("reference") is not None:
            self.notes.append(f"{self.label} is itself a forecast: scores against it say how alike two forecasts are")
        if self._fields.has("member"):
            raise DataError(f"{path} has ensemble members: which one is the truth?", hint="give one analysis")
        times = self._fields.valid_times
        self._index = {time: number for number, time in enumerate(times)}
        if len(self._index) < len(times):
            raise DataError(f"{path} has {len(times) - len(self._index)} times twice")

    def has(self, time: np.datetime64) -> bool:
        """Whether there are fields for a valid time."""
        return time in self._index

    def read(self, time: np.datetime64, labels: Sequence[str]) -> Values:
        """(C, H, W) at a valid time."""
        return self._fields.read(labels, {"time": self._index[time]})

    def static(self) -> Mapping[str, Values]:
        """Fields constant in time."""
        return {name: self._fields.read_static(name) for name in self._fields.static}


class StoreSeries:
    """A truth in a training store (`wm2 preprocess`)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.label, self.grid = Path(store.path).name, store.grid
        schema = store.schema
        upper = [label_of(name, level) for name in schema.pressure for level in schema.levels]
        self.channels = (*upper, *schema.surface)
        self.attributes = {**store.provenance, "wm2_kind": store.kind, "fingerprint": store.fingerprint}
        self.notes: list[str] = []
        self._index = {time: number for number, time in enumerate(store.time.astype("datetime64[s]"))}
        self._number = {label: number for number, label in enumerate(self.channels)}

    def has(self, time: np.datetime64) -> bool:
        """Whether there are fields for a valid time."""
        return time in self._index

    def read(self, time: np.datetime64, labels: Sequence[str]) -> Values:
        """(C, H, W) at a valid time."""
        values: Values = self._store.read(np.array([self._index[time]]))[0]
        if tuple(labels) == self.channels:
            return values
        return np.asarray(values[[self._number[label] for label in labels]])

    def static(self) -> Mapping[str, Values]:
        """Fields constant in time."""
        return dict(self._store.static)


class InventorySeries:
    """A truth in GRIB or other files that `wm2cli.reading` opens; only analyses count."""

    def __init__(self, inventory: Inventory) -> None:
        analyses = tuple(item for item in inventory.fields if item.base_time in (None, item.valid_time))
        self._inventory = replace(inventory, fields=analyses)
        names = [file.label for file in inventory.files]
        self.label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        if not any(item.valid_time is not None for item in analyses):
            raise DataError(f"{self.label} has no analysis", problems=_lines(inventory),
                            hint="forecast fields are no truth; give analyses")  # fmt: skip
        self.grid, self.channels = _grid_and_channels(self._inventory)
        self.attributes: dict[str, Any] = {}
        self.notes = list(inventory.notes)
        left = len(inventory.fields) - len(analyses)
        if left:
            self.notes.append(f"{self.label}: {left} fields of forecasts were left aside, analyses are the truth")
        self._times = set(self._inventory.times())

    def has(self, time: np.datetime64) -> bool:
        """Whether there are fields for a valid time."""
        return time in self._times

    def read(self, time: np.datetime64, labels: Sequence[str]) -> Values:
        """(C, H, W) at a valid time."""
        return _read_inventory(self._inventory, time, labels, self.grid)

    def static(self) -> Mapping[str, Values]:
        """Fields constant in time."""
        return {}


class InventoryForecast:
    """Forecasts in GRIB or other files that `wm2cli.reading` opens."""

    def __init__(self, inventory: Inventory) -> None:
        names = [file.label for file in inventory.files]
        self.label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        groups: dict[tuple[np.datetime64, int], list[Any]] = {}
        for item in inventory.fields:
            if item.base_time is not None and item.valid_time is not None:
                hours = int((item.valid_time - item.base_time) / np.timedelta64(1, "h"))
                groups.setdefault((item.base_time.astype("datetime64[s]"), hours), []).append(item)
        if not groups:
            raise DataError(f"{self.label} is no forecast: no field says when its forecast began",
                            problems=_lines(inventory))  # fmt: skip
        self._inventory = {pair: replace(inventory, fields=tuple(items)) for pair, items in groups.items()}
        self.pairs = sorted(groups)
        found = [_grid_and_channels(part) for part in self._inventory.values()]
        self.grid = found[0][0]
        # What a forecast lacks at some leads (sums at its start) is verified at none.
        self.channels = tuple(label for label in found[-1][1] if all(label in labels for _, labels in found))
        if not self.channels:
            raise DataError(f"{self.label} has no field at all of its leads", problems=_lines(inventory))
        self.attributes: dict[str, Any] = {}
        self.notes = list(inventory.notes)
        self.members = 0

    def read(self, init: np.datetime64, leads: Sequence[int], labels: Sequence[str]) -> Values:
        """(T, C, H, W)."""
        valid = [init + np.timedelta64(lead, "h") for lead in leads]
        parts = [self._inventory[init, lead] for lead in leads]
        return np.stack([_read_inventory(part, time, labels, self.grid)
                         for part, time in zip(parts, valid, strict=True)])  # fmt: skip


class SourceSeries:
    """A truth that a source has: fetched for each valid time, in wm2's names and units, on the grid of the scores."""

    def __init__(self, name: str, grid: Grid, labels: Sequence[str]) -> None:
        from wm2cli.sources import cache_folder, open_source

        self._source = open_source(name)
        self._folder = cache_folder() / name
        self.label, self.grid, self.channels = name, grid, tuple(labels)
        kind = "simulated" if name in SIMULATED_SOURCES else "reanalysis" if name in ("era5", "arco") else "analysis"
        self.attributes: dict[str, Any] = {"source": name, "wm2_kind": kind}
        self.notes: list[str] = []

    def has(self, time: np.datetime64) -> bool:
        """Whether the source serves it is known when it is asked; it says itself what it lacks."""
        return True

    def read(self, time: np.datetime64, labels: Sequence[str]) -> Values:
        """(C, H, W) at a valid time, regridded conservatively by the one that prepares analyses."""
        from wm2cli.analysis.preparation import prepare
        from wm2cli.sources import Request

        pairs = [split_label(label) for label in labels]
        upper = tuple(dict.fromkeys(known.name for known, level in pairs if level is not None))
        levels = tuple(sorted({level for _, level in pairs if level is not None}))
        schema = Schema(upper, levels, tuple(known.name for known, level in pairs if level is None))
        pieces = self._source.plan(Request(time, schema=schema))
        inventory = self._source.open([self._source.fetch(piece, self._folder) for piece in pieces])
        made = prepare(inventory, schema, time, self.grid).dataset
        return np.stack([
            made[known.name].values[0] if level is None else made[known.name].sel(level=level).values[0]
            for known, level in pairs
        ])  # fmt: skip

    def static(self) -> Mapping[str, Values]:
        """None: statics are asked for by name."""
        return {}


class Climatology:
    """A climatology by hour and day of year, in WeatherBench 2 layout.

    Args:
        path: NetCDF file or Zarr store.

    Raises:
        DataError: It is none.
    """

    def __init__(self, path: Path) -> None:
        self._fields = Fields(path)
        fields = self._fields
        needed: tuple[Axis, ...] = ("hour", "dayofyear")
        lacking = [name for name in needed if not fields.has(name)]
        if lacking:
            raise DataError(f"{path} is no climatology: it has no axis {' and no axis '.join(lacking)}",
                            hint="wm2 preprocess --climatology makes one")  # fmt: skip
        self.label, self.grid, self.attributes = fields.label, fields.grid, fields.attributes
        self.channels, self.notes = tuple(fields.channels), fields.notes
        self._hours = {int(hour): number for number, hour in enumerate(fields.axis("hour"))}
        self._days = {int(day): number for number, day in enumerate(fields.axis("dayofyear"))}

    def has(self, time: np.datetime64) -> bool:
        """Whether there are fields for the hour and the day of a time."""
        hour, day = _hour_and_day(time)
        return hour in self._hours and day in self._days

    def read(self, time: np.datetime64, labels: Sequence[str]) -> Values:
        """(C, H, W) for a time of any year."""
        hour, day = _hour_and_day(time)
        return self._fields.read(labels, {"hour": self._hours[hour], "dayofyear": self._days[day]})

    def rain_classes(self, label: str, time: np.datetime64) -> tuple[Values, Values] | None:
        """What SEEPS asks of the climate: the fraction of dry cases, and the sum in m from which on rain is heavy.

        Returns:
            (H, W) each, or None where the climatology does not hold them for this channel.
        """
        mine: dict[str, str] = {}
        for name in map(str, self._fields.dataset.data_vars):
            plain, found, kind = name.rpartition("_seeps_")
            known = variable_of(plain) if found else None
            if known is not None and known.name == label:
                mine[kind] = name
        if not {"dry_fraction", "threshold"} <= set(mine):
            return None
        hour, day = _hour_and_day(time)
        place: dict[Axis, int] = {"hour": self._hours[hour], "dayofyear": self._days[day]}
        return self._fields.read_named(mine["dry_fraction"], place), self._fields.read_named(mine["threshold"], place)

    def static(self) -> Mapping[str, Values]:
        """Fields constant in time."""
        return {name: self._fields.read_static(name) for name in self._fields.static}


@dataclass
class OnGrid:
    """Fields of a series on the grid of the scores, with the latest kept in memory."""

    series: Series
    grid: Grid
    labels: tuple[str, ...]
    _kept: OrderedDict[np.datetime64, Values] = field(default_factory=OrderedDict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def read(self, time: np.datetime64) -> Values:
        """(C, H, W) at a valid time.

        Raises:
            DataError: Values that are impossible in the variable's unit.
        """
        with self._lock:
            if time in self._kept:
                self._kept.move_to_end(time)
                return self._kept[time]
        values = self.series.read(time, self.labels)
        check_plausible(values, self.labels, f"{self.series.label} at {time_text(time)}")
        values = on_grid(values, self.series.grid, self.grid)
        with self._lock:
            self._kept[time] = values
            while len(self._kept) > 1 and len(self._kept) * values.nbytes > _CACHE_BYTES:
                self._kept.popitem(last=False)
        return values

    def __getstate__(self) -> dict[str, Any]:
        # What travels to another process begins with an empty memory and a lock of its own.
        return {"series": self.series, "grid": self.grid, "labels": self.labels}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def on_grid(values: Values, source: Grid, target: Grid) -> Values:
    """Values on another grid, conservatively; as they are where both are the same."""
    return values if source == target else source.regrid_to(target, values)


def check_plausible(values: Values, labels: Sequence[str], where: str) -> None:
    """Refuses values that a variable cannot have in its unit; missing ones are looked at when scores are made.

    Raises:
        DataError: All channels concerned, with what they span.
    """
    flat = values.reshape(*values.shape[:-2], -1)
    with np.errstate(invalid="ignore"):
        least, most = np.fmin.reduce(flat, axis=-1), np.fmax.reduce(flat, axis=-1)
    problems = []
    for label, low, high in zip(labels, least, most, strict=True):
        known, level = split_label(label)
        if np.isfinite(low):
            problems += value_issues(known, np.array([low, high]), level)
    if problems:
        raise DataError(f"impossible values in {where}", problems=problems,
                        hint="check the unit that the file states")  # fmt: skip


def open_forecasts(paths: Sequence[Path]) -> Forecasts:
    """Forecasts from NetCDF files, Zarr stores and GRIB files.

    Raises:
        DataError: Some cannot be read, are no forecasts, or do not go together; all are listed.
    """
    parts: list[_Forecast] = []
    errors: list[DataError] = []
    grib = [path for path in paths if path.is_file() and _kind(path) != "netcdf"]
    for path in paths:
        try:
            if path not in grib:
                parts.append(DatasetForecast(path))
        except DataError as error:
            errors.append(error)
    try:
        if grib:
            parts.append(InventoryForecast(open_files(grib)))
    except DataError as error:
        errors.append(error)
    _raise_all(errors, f"{len(errors)} of {len(paths)} forecasts cannot be used")
    return Forecasts(parts)


def open_truth(path: Path) -> Series:
    """A truth from a training store, a Zarr store, a NetCDF file or GRIB.

    Raises:
        DataError: It cannot be read or has no valid times.
    """
    if _is_store(path):
        from wm2cli.store import open_store

        return StoreSeries(open_store(path))
    if path.is_file() and _kind(path) != "netcdf":
        return InventorySeries(open_files([path]))
    return DatasetSeries(path)


def _is_store(path: Path) -> bool:
    """Whether a folder is a training store: its header names a fingerprint and splits."""
    header = path / "zarr.json"
    if not header.is_file():
        return False
    import json

    try:
        attributes = json.loads(header.read_text()).get("attributes", {})
    except (OSError, ValueError):
        return False
    return {"schema", "normalizer"} <= set(attributes) or "complete" in attributes


def _kind(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return kind_of(path.name, stream.read(512))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _raise_all(errors: Sequence[DataError], message: str) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        problems = [line for error in errors for line in (error.message, *error.problems)]
        raise DataError(message, problems=problems, hint=errors[0].hint)


def _grid_and_channels(inventory: Inventory) -> tuple[Grid, tuple[str, ...]]:
    dynamic = [item for item in inventory.fields if item.valid_time is not None]
    label = inventory.files[0].label
    if len({item.member for item in dynamic}) > 1:
        raise DataError(f"{label} has several ensemble members", hint="give ensembles as NetCDF or Zarr")
    axes = dynamic[0].axes
    others = [item for item in dynamic if not item.axes.same_as(axes)]
    if others:
        raise DataError(f"{label} has fields on several grids",
                        problems=[f"{item.label}: {item.axes.describe()}" for item in others[:10]])  # fmt: skip
    try:
        grid = axes.grid()
    except DataError as error:
        raise DataError(f"{label}: {error.message}", problems=error.problems,
                        hint="scores need fields of the whole globe") from None  # fmt: skip
    labels: dict[str, None] = {}
    for item in dynamic:
        for name in (item.variable, f"{item.variable}_6h"):
            known = VARIABLES.get(name)
            fits = known is not None and item.statistic == known.statistic and item.window_hours == known.window_hours
            if fits and plain_name(name) == item.variable:
                labels[label_of(name, item.level)] = None
    return grid, tuple(labels)


def _read_inventory(inventory: Inventory, time: np.datetime64, labels: Sequence[str], grid: Grid) -> Values:
    snapshot = Snapshot(inventory, time)
    out = np.full((len(labels), *grid.shape), np.nan, np.float32)
    lacking = []
    for number, label in enumerate(labels):
        known, level = split_label(label)
        values = snapshot.read(known.name, level)
        if values is None:
            lacking.append(f"{label} is missing")
        else:
            out[number] = values
    problems = [*lacking, *snapshot.problems]
    if problems:
        raise DataError(f"the fields for {time_text(time)} in {inventory.files[0].label} cannot be used",
                        problems=problems)  # fmt: skip
    return out


def _lines(inventory: Inventory) -> list[str]:
    return [line for lines in inventory.problems.values() for line in lines]


def _hour_and_day(time: np.datetime64) -> tuple[int, int]:
    """The hour and the calendar's day of the year, 1 to 366."""
    day = time.astype("datetime64[D]")
    hours = int((time - day) / np.timedelta64(1, "h"))
    return hours, int((day - day.astype("datetime64[Y]")) / np.timedelta64(1, "D")) + 1
