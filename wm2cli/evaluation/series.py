"""Truth and climatology, wherever they come from, by valid time, as arrays of channels on one grid."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from wm2cli.analysis.preparation import prepare
from wm2cli.analysis.snapshot import Snapshot
from wm2cli.analysis.statics import read_static
from wm2cli.errors import DataError
from wm2cli.evaluation.datasets import Axis, Fields, Values, bounds_of, label_of, span, split_label, variable_of
from wm2cli.evaluation.seeps import DRY_FRACTION, HEAVY_FROM
from wm2cli.fetch import Access, obtain
from wm2cli.grid import Grid
from wm2cli.reading.fields import Inventory, plain_name, time_text
from wm2cli.reading.inputs import kind_of, open_files
from wm2cli.schema import VARIABLES, Schema, value_issues
from wm2cli.sources import INITIAL_FIELDS, Request, open_source
from wm2cli.store import Store, open_store

_CACHE_BYTES = 512 * 2**20
"""Truth and climatology kept in memory: leads of following inits meet at the same valid times."""

_AHEAD_BYTES = 16 * 2**20
"""Read at once, if the following times are wanted as well."""

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

    def read(self, times: Sequence[np.datetime64], labels: Sequence[str]) -> Values:
        """(T, C, H, W) physical values at valid times."""

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

    def read(self, times: Sequence[np.datetime64], labels: Sequence[str]) -> Values:
        """(T, C, H, W) at valid times."""
        numbers = [self._index[time] for time in times]
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            together = self._fields.read(labels, {"time": slice(numbers[0], numbers[-1] + 1)})
            return np.moveaxis(together, 0, 1)
        return np.stack([self._fields.read(labels, {"time": number}) for number in numbers])

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

    def read(self, times: Sequence[np.datetime64], labels: Sequence[str]) -> Values:
        """(T, C, H, W) at valid times."""
        values: Values = self._store.read(np.array([self._index[time] for time in times]))
        if tuple(labels) == self.channels:
            return values
        return np.asarray(values[:, [self._number[label] for label in labels]])

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
            raise DataError(f"{self.label} has no analysis", problems=problem_lines(inventory),
                            hint="forecast fields are no truth; give analyses")  # fmt: skip
        self.grid, self.channels = grid_and_channels(self._inventory)
        self.attributes: dict[str, Any] = {}
        self.notes = list(inventory.notes)
        left = len(inventory.fields) - len(analyses)
        if left:
            self.notes.append(f"{self.label}: {left} fields of forecasts were left aside, analyses are the truth")
        self._times = set(self._inventory.times())

    def has(self, time: np.datetime64) -> bool:
        """Whether there are fields for a valid time."""
        return time in self._times

    def read(self, times: Sequence[np.datetime64], labels: Sequence[str]) -> Values:
        """(T, C, H, W) at valid times."""
        return np.stack([read_inventory(self._inventory, time, labels, self.grid) for time in times])

    def static(self) -> Mapping[str, Values]:
        """Orography and land-sea mask, as far as they are there."""
        fields = tuple(item for item in self._inventory.fields if item.variable in ("orog", "lsm"))
        if not fields:
            return {}
        made = read_static(replace(self._inventory, fields=fields, problems={}), self.grid)
        return {str(name): values.values for name, values in made.data_vars.items()}


class SourceSeries:
    """A truth that a source has: fetched for each valid time, in wm2's names and units, on the grid of the scores.

    Sources serve what forecasts start from; sums and extremes are not among that.
    """

    def __init__(self, name: str, grid: Grid, labels: Sequence[str]) -> None:
        self._source = name
        served = {*INITIAL_FIELDS.pressure, *INITIAL_FIELDS.surface}
        self.label, self.grid = name, grid
        self.channels = tuple(label for label in labels if split_label(label)[0].name in served)
        kind = "simulated" if name in SIMULATED_SOURCES else "reanalysis" if name in ("era5", "arco") else "analysis"
        self.attributes: dict[str, Any] = {"source": name, "wm2_kind": kind}
        self.notes: list[str] = []

    def has(self, time: np.datetime64) -> bool:
        """Whether the source serves it is known when it is asked; it says itself what it lacks."""
        return True

    def read(self, times: Sequence[np.datetime64], labels: Sequence[str]) -> Values:
        """(T, C, H, W) at valid times, regridded conservatively by the one that prepares analyses."""
        return np.stack([self._read_one(time, labels) for time in times])

    def _read_one(self, time: np.datetime64, labels: Sequence[str]) -> Values:
        pairs = [split_label(label) for label in labels]
        upper = tuple(dict.fromkeys(known.name for known, level in pairs if level is not None))
        levels = tuple(sorted({level for _, level in pairs if level is not None}))
        schema = Schema(upper, levels, tuple(known.name for known, level in pairs if level is None))
        got = obtain((self._source,), Request((time,), schema=schema), Access())
        made = prepare(open_source(got.source).open(got.paths), schema, time, self.grid).dataset
        return np.stack([
            made[known.name].values[0] if level is None else made[known.name].sel(level=level).values[0]
            for known, level in pairs
        ])  # fmt: skip

    def static(self) -> Mapping[str, Values]:
        """None: statics are asked for by name."""
        return {}


class SeveralSeries:
    """A truth in several files, a year each for example.

    Args:
        parts: What was opened.

    Raises:
        DataError: Different grids, or no common channel.
    """

    def __init__(self, parts: Sequence[Series]) -> None:
        self._parts = tuple(parts)
        self.label, self.grid = f"{parts[0].label} and {len(parts) - 1} more", parts[0].grid
        self.channels = tuple(label for label in parts[0].channels if all(label in part.channels for part in parts))
        self.attributes = parts[0].attributes
        self.notes = [note for part in parts for note in part.notes]
        problems = [f"{part.label} is on {part.grid.describe()}" for part in parts if part.grid != self.grid]
        if not self.channels:
            problems.append("they have no channel in common")
        if problems:
            raise DataError(f"the truths do not go together; {parts[0].label} is on {self.grid.describe()}",
                            problems=problems)  # fmt: skip

    def has(self, time: np.datetime64) -> bool:
        """Whether there are fields for a valid time."""
        return any(part.has(time) for part in self._parts)

    def read(self, times: Sequence[np.datetime64], labels: Sequence[str]) -> Values:
        """(T, C, H, W) at valid times, each from the first part that has it."""
        owners = [next(number for number, part in enumerate(self._parts) if part.has(time)) for time in times]
        runs = itertools.groupby(zip(owners, times, strict=True), key=lambda pair: pair[0])
        return np.concatenate([self._parts[number].read([time for _, time in some], labels) for number, some in runs])

    def static(self) -> Mapping[str, Values]:
        """Fields constant in time."""
        return {name: values for part in reversed(self._parts) for name, values in part.static().items()}


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
        names = set(map(str, fields.dataset.data_vars))
        plain = [name.removesuffix(DRY_FRACTION) for name in names if name.endswith(DRY_FRACTION)]
        self._rain = {known.name: (name + DRY_FRACTION, name + HEAVY_FROM) for name in sorted(plain)
                      if (known := variable_of(name)) is not None and name + HEAVY_FROM in names}  # fmt: skip
        self._mean_dry: dict[str, Values] = {}

    def has(self, time: np.datetime64) -> bool:
        """Whether there are fields for the hour and the day of a time."""
        hour, day = _hour_and_day(time)
        return hour in self._hours and day in self._days

    def read(self, times: Sequence[np.datetime64], labels: Sequence[str]) -> Values:
        """(T, C, H, W) for times of any year."""
        made: list[Values | None] = [None] * len(times)
        by_hour: dict[int, list[tuple[int, int]]] = {}
        for number, time in enumerate(times):
            hour, day = _hour_and_day(time)
            by_hour.setdefault(self._hours[hour], []).append((self._days[day], number))
        for at, some in by_hour.items():
            days = [day for day, _ in some]
            if days == list(range(days[0], days[0] + len(days))):
                found = self._fields.read(labels, {"hour": at, "dayofyear": slice(days[0], days[-1] + 1)})
                together: Sequence[Values] = list(np.moveaxis(found, 0, 1))
            else:
                together = [self._fields.read(labels, {"hour": at, "dayofyear": day}) for day in days]
            for (_, number), values in zip(some, together, strict=True):
                made[number] = values
        return np.stack([values for values in made if values is not None])

    def has_rain_classes(self, label: str) -> bool:
        """Whether it holds what SEEPS asks of the climate for a channel."""
        return label in self._rain

    def rain_classes(self, label: str, time: np.datetime64) -> tuple[Values, Values]:
        """What SEEPS asks of the climate: the fraction of dry cases, and the sum in m from which on rain is heavy.

        Returns:
            (H, W) each.
        """
        hour, day = _hour_and_day(time)
        place: dict[Axis, int] = {"hour": self._hours[hour], "dayofyear": self._days[day]}
        dry, heavy = (self._fields.read_named(name, place) for name in self._rain[label])
        return dry, heavy

    def mean_dry_fraction(self, label: str) -> Values:
        """(H, W) fraction of dry cases, the mean of all hours and days it holds."""
        if label not in self._mean_dry:
            self._mean_dry[label] = self._fields.mean_named(self._rain[label][0])
        return self._mean_dry[label]

    def static(self) -> Mapping[str, Values]:
        """Fields constant in time."""
        return {name: self._fields.read_static(name) for name in self._fields.static}


Winds: TypeAlias = tuple[tuple[int, int], ...]
"""Numbers of the channels that are the eastward and the northward part of S winds."""


@dataclass
class OnGrid:
    """Fields of a series on the grid of the scores, with the latest kept in memory.

    Args:
        series: Where they are.
        grid: Of the scores.
        labels: C channels.
        winds: S pairs of channels whose speed is wanted as well.
        times: All valid times that will be read, in order.
    """

    series: Series
    grid: Grid
    labels: tuple[str, ...]
    winds: Winds = ()
    times: tuple[np.datetime64, ...] = ()
    _kept: OrderedDict[np.datetime64, tuple[Values, Values]] = field(default_factory=OrderedDict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def read(self, time: np.datetime64) -> tuple[Values, Values]:
        """(C, H, W) at a valid time, and the (S, H, W) speeds of the winds.

        Raises:
            DataError: Values that are impossible in the variable's unit.
        """
        with self._lock:  # while it reads as well: others mostly want the same
            if time not in self._kept:
                self._read_from(time)
            self._kept.move_to_end(time)
            return self._kept[time]

    def _read_from(self, time: np.datetime64) -> None:
        """Reads a time and those that will be wanted next: one call for several costs little more than for one."""
        one = 4 * len(self.labels) * self.series.grid.lat.size * self.series.grid.lon.size
        first = bisect_left(self.times, time)
        block = [time, *itertools.takewhile(lambda other: other not in self._kept, self.times[first + 1 :])]
        block = block[: max(1, _AHEAD_BYTES // one)]
        for when, values in zip(block, self.series.read(block, self.labels), strict=True):
            check_plausible(values, self.labels, f"{self.series.label} at {time_text(when)}")
            self._kept[when] = with_speeds(values, self.winds, self.series.grid, self.grid)
        self._kept.move_to_end(time)
        size = sum(part.nbytes for part in self._kept[time])
        while len(self._kept) > 1 and len(self._kept) * size > _CACHE_BYTES:
            self._kept.popitem(last=False)

    def __getstate__(self) -> dict[str, Any]:
        # What travels to another process begins with an empty memory and a lock of its own.
        names = ("series", "grid", "labels", "winds", "times")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def with_speeds(values: Values, winds: Winds, source: Grid, target: Grid) -> tuple[Values, Values]:
    """Fields and the speeds of their winds on another grid.

    Speeds are taken before regridding, as in the data that others publish scores of: the speed of a mean wind is less
    than the mean speed.

    Args:
        values: (..., C, H, W).
        winds: S pairs of channels.
        source, target: Grid of the values, and of the result.

    Returns:
        (..., C, H2, W2) and (..., S, H2, W2).
    """
    eastward, northward = (values[..., [pair[part] for pair in winds], :, :] for part in (0, 1))
    speeds = np.sqrt(eastward**2 + northward**2)  # four times as fast as hypot, whose care no wind needs
    return on_grid(values, source, target), on_grid(speeds, source, target)


def on_grid(values: Values, source: Grid, target: Grid) -> Values:
    """Values on another grid, conservatively; as they are where both are the same."""
    return values if source == target else source.regrid_to(target, values)


def check_plausible(values: Values, labels: Sequence[str], where: str) -> None:
    """Refuses values that a variable cannot have in its unit; missing ones are looked at when scores are made.

    Raises:
        DataError: All channels concerned, with what they span.
    """
    least, most = span(values)
    low, high = bounds_of(tuple(labels))
    problems = []
    for number in np.flatnonzero((least < low) | (most > high)).tolist():
        known, level = split_label(labels[number])
        problems += value_issues(known, np.array([least[number], most[number]]), level)
    if problems:
        raise DataError(f"impossible values in {where}", problems=problems,
                        hint="check the unit that the file states")  # fmt: skip


def open_truth(paths: Sequence[Path]) -> Series:
    """A truth from a training store, Zarr stores, NetCDF or GRIB files; several go together as one.

    Raises:
        DataError: Some cannot be read, have no valid times, or do not go together; all are listed.
    """
    parts: list[Series] = []
    errors: list[DataError] = []
    grib = [path for path in paths if path.is_file() and file_kind(path) != "netcdf"]
    for path in paths:
        try:
            if not path.exists() or _is_store(path):
                parts.append(StoreSeries(open_store(path)))
            elif path not in grib:
                parts.append(DatasetSeries(path))
        except DataError as error:
            errors.append(error)
    try:
        if grib:
            parts.append(InventorySeries(open_files(grib)))
    except DataError as error:
        errors.append(error)
    raise_all(errors, f"{len(errors)} of {len(paths)} truths cannot be used")
    return parts[0] if len(parts) == 1 else SeveralSeries(parts)


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


def file_kind(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return kind_of(path.name, stream.read(512))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def raise_all(errors: Sequence[DataError], message: str) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        problems = [line for error in errors for line in (error.message, *error.problems)]
        raise DataError(message, problems=problems, hint=errors[0].hint)


def grid_and_channels(inventory: Inventory) -> tuple[Grid, tuple[str, ...]]:
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


def read_inventory(inventory: Inventory, time: np.datetime64, labels: Sequence[str], grid: Grid) -> Values:
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


def problem_lines(inventory: Inventory) -> list[str]:
    return [line for lines in inventory.problems.values() for line in lines]


def _hour_and_day(time: np.datetime64) -> tuple[int, int]:
    """The hour and the calendar's day of the year, 1 to 366."""
    day = time.astype("datetime64[D]")
    hours = int((time - day) / np.timedelta64(1, "h"))
    return hours, int((day - day.astype("datetime64[Y]")) / np.timedelta64(1, "D")) + 1
