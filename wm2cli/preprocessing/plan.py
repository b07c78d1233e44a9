"""What a training store is made from: for every channel and time the place in the inputs, or all that is wrong.

Everything here is found out from headers. Sources of rules: ECMWF's convention that a sum, mean or extreme of ERA5
stands for the hours before its valid time; WeatherBench 2, which sums six of them for `total_precipitation_6hr`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wm2cli.analysis.derivations import Derivation, derivations_of
from wm2cli.analysis.levels import LevelPlan, levels_text, plan_levels
from wm2cli.analysis.preparation import needs_text
from wm2cli.analysis.statics import read_static
from wm2cli.errors import DataError
from wm2cli.grid import Grid
from wm2cli.preprocessing.derived import examples
from wm2cli.preprocessing.ranges import Range
from wm2cli.reading.fields import Field, Inventory, one_grid, plain_name, time_text, times_text
from wm2cli.reading.series import Catalogue, Series
from wm2cli.schema import VARIABLES, Schema, Variable, channel_label

Instants = NDArray[np.datetime64]

_HOUR = np.timedelta64(3600, "s")
_DAY = np.timedelta64(86400, "s")
_MOST_LINES = 60


@dataclass(frozen=True, eq=False)
class Track:
    """Where the values of one variable (at one level) are, for every time of the store.

    Args:
        series: (T, k) numbers of series; k fields in a row make one value of a window, else k is 1.
        places: (T, k) places in them.
    """

    series: NDArray[np.int32]
    places: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Origin:
    """One level of a variable in the inputs.

    Args:
        variable: Name of what is read.
        level: hPa, None for variables without levels.
        track: Where it is.
        temperature: Where the temperature is, if `track` is relative humidity that specific humidity is made from.
    """

    variable: str
    level: float | None
    track: Track
    temperature: Track | None = None


@dataclass(frozen=True, eq=False)
class Column:
    """One variable of the store.

    Args:
        known: The variable.
        channels: Its place among the channels.
        origins: Levels read; one for variables without levels.
        levels: How each level of the store comes from these; empty for variables without levels.
        combine: What makes one value of the k fields of its window.
        derivation: How it follows from the origins, if it is not there itself.
    """

    known: Variable
    channels: slice
    origins: tuple[Origin, ...]
    levels: tuple[LevelPlan, ...]
    combine: Literal["sum", "maximum", "minimum"] | None = None
    derivation: Derivation | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """A store that can be made.

    Args:
        schema: Variables in channel order.
        time: (T,) datetime64[s].
        step_hours: Hours between times.
        splits: Ranges of time by name, first and last time on the axis.
        source, grid: Grid of the inputs and of the store.
        series: What the tracks number.
        columns: One for each variable of the schema that changes in time.
        static: (H, W) float32 by name, on `grid`.
        ground: The orography of the inputs, if there is any, for variables that are derived.
        notes: All that is done to the fields beyond copying them, and what the user should know of the inputs.
    """

    schema: Schema
    time: Instants
    step_hours: int
    splits: Mapping[str, tuple[Range, ...]]
    source: Grid
    grid: Grid
    series: tuple[Series, ...]
    columns: tuple[Column, ...]
    static: Mapping[str, NDArray[np.float32]]
    ground: tuple[Field, ...]
    notes: tuple[str, ...]

    def origin_of(self, channel: int, place: int) -> str:
        """Where the values of a channel at a time come from, for messages."""
        column = next(item for item in self.columns if item.channels.start <= channel < item.channels.stop)
        number = 0
        if column.levels:
            wanted = column.levels[channel - column.channels.start]
            number = [origin.level for origin in column.origins].index(wanted.upper)
        return self.series[int(column.origins[number].track.series[place, 0])].origin

    @cached_property
    def tracks(self) -> tuple[Track, ...]:
        """All tracks, each once."""
        every = [track for column in self.columns for origin in column.origins
                 for track in (origin.track, origin.temperature) if track is not None]  # fmt: skip
        return tuple({id(track): track for track in every}.values())

    def holders(self, first: int, stop: int) -> list[AbstractContextManager[object]]:
        """What keeps the files of some times open while they are read."""
        numbers = {int(number) for track in self.tracks for number in np.unique(track.series[first:stop])}
        return list({id(self.series[number].holder): self.series[number].holder for number in sorted(numbers)}.values())

    def cuts(self) -> NDArray[np.int64]:
        """Places on the time axis at which any variable goes over to another file, 0 and T among them."""
        return self._edges([track.series for track in self.tracks])

    def chunk_cuts(self) -> NDArray[np.int64]:
        """The same, with the places at which the deepest variable goes over to another chunk of its file."""
        column = max(self.columns, key=lambda item: len(item.origins))
        track = column.origins[0].track
        sizes = np.array([series.chunk for series in self.series])[track.series]
        return self._edges([*(other.series for other in self.tracks), track.places[:, -1:] // sizes[:, -1:]])

    def _edges(self, tables: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
        changes = np.zeros(self.time.size + 1, bool)
        changes[[0, -1]] = True
        for table in tables:
            changes[1:-1] |= (np.diff(table, axis=0) != 0).any(axis=1)
        return np.flatnonzero(changes)


def make_plan(
    catalogue: Catalogue,
    schema: Schema,
    *,
    grid: Grid | None,
    start: np.datetime64 | None,
    end: np.datetime64 | None,
    step_hours: int,
    splits: Mapping[str, tuple[Range, ...]],
    derive: bool = False,
) -> Plan:
    """Finds a place in the inputs for every channel and time.

    Args:
        catalogue: Of the inputs.
        schema: Variables and levels wanted.
        grid: Of the store; that of the inputs when None.
        start, end: First and last time; those of the inputs when None.
        step_hours: Hours between times.
        splits: Ranges of time by name, both ends included; they may reach beyond the axis by less than a day.
        derive: Also make variables that others only approximate (`analysis.derivations`).

    Raises:
        DataError: Variables, levels or times are missing, there twice, of several members, on several grids or on none
            that covers the globe; or splits overlap or are not covered. All of it is listed.
    """
    return _Planner(catalogue, schema, grid, step_hours, splits, derive).run(start, end)


class _Planner:
    def __init__(self, catalogue: Catalogue, schema: Schema, grid: Grid | None, step_hours: int,
                 splits: Mapping[str, tuple[Range, ...]], derive: bool) -> None:  # fmt: skip
        self.catalogue = catalogue
        self.schema = schema
        self.grid = grid
        self.step_hours = step_hours
        self.splits = splits
        self.derive = derive
        self.numbers = {id(series): number for number, series in enumerate(catalogue.series)}
        self.problems: list[str] = []
        self.hints: dict[str, None] = {}
        self.notes: list[str] = []
        self.used: dict[int, Series] = {}
        self.lines: dict[str, list[str]] = {}
        self.tracks: dict[tuple[tuple[int, ...], int], Track | None] = {}
        self.by_name: dict[str, list[Series]] = {}
        for series in catalogue.series:
            self.by_name.setdefault(series.variable, []).append(series)

    def run(self, start: np.datetime64 | None, end: np.datetime64 | None) -> Plan:
        self.time = self._axis(start, end)
        columns: list[Column] = []
        if self.time.size:
            at = 0
            for name in self.schema.pressure:
                columns += self._column(name, at)
                at += len(self.schema.levels)
            for name in self.schema.surface:
                columns += self._surface(name, at)
                at += 1
        self.problems += [f"{' '.join(dict.fromkeys(names))}: {text}" for text, names in self.lines.items()]
        splits = self._check_splits()
        source = self._source_grid()
        target = self.grid or source
        static = self._static(target)
        if self.problems or source is None or target is None:
            raise self._error()
        if source != target:
            self.notes.append(f"regridded conservatively from {source.describe()} to {target.describe()}")
        self._notes_on_inputs()
        return Plan(
            self.schema, self.time, self.step_hours, splits, source, target, self.catalogue.series, tuple(columns),
            static, self._ground(), tuple(dict.fromkeys(self.notes)),
        )  # fmt: skip

    # Time.

    def _axis(self, start: np.datetime64 | None, end: np.datetime64 | None) -> Instants:
        """The times of the store; empty, with the problem noted, when there are none."""
        step = self.step_hours * _HOUR
        names = {plain_name(name) for name in (*self.schema.pressure, *self.schema.surface)}
        spans = [series.times for name in names for series in self.by_name.get(name, []) if series.times.size]
        if not spans:
            return np.array([], "datetime64[s]")
        zero = np.datetime64(0, "s")
        first, last = min(times.min() for times in spans), max(times.max() for times in spans)
        if start is None:
            start = zero + -(-(first - zero) // step) * step
        if end is None:
            end = zero + ((last - zero) // step) * step
        if end < start:
            self.problems.append(f"no times: {time_text(start)} to {time_text(end)} every {self.step_hours} h")
            return np.array([], "datetime64[s]")
        return np.arange(start, end + _HOUR // 3600, step).astype("datetime64[s]")

    def _check_splits(self) -> dict[str, tuple[Range, ...]]:
        """The splits by their first and last times on the axis."""
        made: dict[str, tuple[Range, ...]] = {}
        taken: dict[str, NDArray[np.bool_]] = {}
        if not self.time.size:
            return made
        axis = f"{time_text(self.time[0])} to {time_text(self.time[-1])}"
        for name, ranges in self.splits.items():
            inside = np.zeros(self.time.size, bool)
            clipped: list[Range] = []
            for first, last in ranges:
                places = np.flatnonzero((self.time >= first) & (self.time <= last))
                text = f"{time_text(first)} to {time_text(last)}"
                if not places.size:
                    self.problems.append(f"{name}: no time of the store ({axis}) is in {text}")
                    continue
                begin, stop = self.time[places[0]], self.time[places[-1]]
                if begin - first >= _DAY or last - stop >= _DAY:
                    self.problems.append(f"{name}: {text} is not covered by the times of the store ({axis})")
                elif begin - first >= self.step_hours * _HOUR or last - stop >= self.step_hours * _HOUR:
                    self.notes.append(f"{name}: {text} is there from {time_text(begin)} to {time_text(stop)}")
                if inside[places].any():
                    self.problems.append(f"{name}: its own ranges overlap in {text}")
                inside[places] = True
                clipped.append((begin, stop))
            for other, there in taken.items():
                if (inside & there).any():
                    both = self.time[inside & there]
                    self.problems.append(f"{other} and {name} overlap: {times_text(both, 2)}")
            taken[name] = inside
            made[name] = tuple(clipped)
        return made

    # Variables.

    def _column(self, name: str, at: int) -> list[Column]:
        candidates = self._candidates(name, "point", 0.0)
        levels = {level for series in candidates for level in series.levels}
        made = self._humidity_levels() - levels if name == "q" else set()
        have = tuple(sorted(levels | made))
        if not have:
            self._missing(name, f"{name} ({VARIABLES[name].long_name}) is missing on all levels")
            return []
        plans = plan_levels(map(float, self.schema.levels), have)
        outside = [plan.level for plan in plans if plan.how in ("above", "below")]
        if outside:
            self._line(f"{levels_text(outside)} missing, beyond the levels there are ({levels_text(have)})", name)
            return []
        between = [plan.level for plan in plans if plan.how == "between"]
        needed = sorted({level for plan in plans for level in (plan.upper, plan.lower)})
        if between:
            self.notes.append(
                f"{name}: {levels_text(between)} interpolated linearly in ln p from {levels_text(needed)}"
            )
        if made & set(needed):
            dry = levels_text(made & set(needed))
            self.notes.append(f"q: from relative humidity at {dry} (IFS Cy47r3 Part IV eq. 7.4 and 7.5)")
        origins = []
        for level in needed:
            label = channel_label(name, level)
            if level in levels:
                origins.append(Origin(name, level, self._track(candidates, level, 1, label)))
            else:
                humidity = self._track(self._candidates("r", "point", 0.0), level, 1, label)
                warmth = self._track(self._candidates("t", "point", 0.0), level, 1, label)
                origins.append(Origin("r", level, humidity, warmth))
        return [Column(VARIABLES[name], slice(at, at + len(plans)), tuple(origins), tuple(plans))]

    def _humidity_levels(self) -> set[float]:
        """Levels on which specific humidity can be made from relative humidity."""
        r, t = ({level for series in self._candidates(name, "point", 0.0) for level in series.levels} for name in "rt")
        return r & t

    def _surface(self, name: str, at: int) -> list[Column]:
        known = VARIABLES[name]
        window = float(known.window_hours)
        candidates, count = self._candidates(name, known.statistic, window), 1
        if not candidates and known.statistic in ("sum", "maximum", "minimum"):
            shorter = sorted({series.window_hours for series in self.by_name.get(plain_name(name), [])
                              if series.statistic == known.statistic and 0 < series.window_hours < window
                              and window % series.window_hours == 0})  # fmt: skip
            if shorter:
                count = round(window / shorter[-1])
                candidates = self._candidates(name, known.statistic, shorter[-1])
                self.notes.append(f"{name}: {known.statistic} of {count} windows of {shorter[-1]:g} h")
        if not candidates and known.statistic == "point":
            return self._derived(name, at)
        if not candidates:
            there = sorted({series.key for series in self.by_name.get(plain_name(name), [])})
            also = f"; there is: {', '.join(there)}" if there else ""
            self._missing(name, f"{name} ({known.long_name}) is missing{also}")
            return []
        combine: Any = known.statistic if count > 1 else None
        track = self._track(candidates, None, count, name)
        return [Column(known, slice(at, at + 1), (Origin(name, None, track),), (), combine)]

    def _derived(self, name: str, at: int) -> list[Column]:
        """A variable that is not there: made from others, if that was asked for and is possible."""
        known, ways = VARIABLES[name], derivations_of(name)
        there = examples(self.catalogue.series, self._ground(), self.time[0])
        possible = next((way for way in ways if not way.lacks(there)), None)
        text = f"{name} ({known.long_name}) is missing"
        if possible is None:
            for way in ways:
                text += f"; could be derived from {needs_text(way.needs)} if {needs_text(way.lacks(there))} were there"
            self._missing(name, text)
            return []
        if not self.derive:
            self._missing(name, f"{text}; --derive makes it from {needs_text(possible.needs)}")
            self.hints["--derive makes what others determine"] = None
            return []
        origins = []
        for field in possible.fields(there):
            series = self._candidates(field.variable, field.statistic, field.window_hours)
            label = channel_label(field.variable, field.level)
            origins.append(Origin(field.variable, field.level, self._track(series, field.level, 1, label)))
        self.notes.append(f"{name} derived from {needs_text(possible.needs)}: {possible.formula}")
        return [Column(known, slice(at, at + 1), tuple(origins), (), derivation=possible)]

    def _ground(self) -> tuple[Field, ...]:
        return tuple(field for field in self.catalogue.statics if field.variable == "orog")[:1]

    def _candidates(self, name: str, statistic: str, window: float) -> list[Series]:
        return [series for series in self.by_name.get(plain_name(name), [])
                if series.statistic == statistic and series.window_hours == window]  # fmt: skip

    def _missing(self, name: str, text: str) -> None:
        self.problems.append(text)
        self.problems += condensed(self.catalogue.problems.get(plain_name(name), ()))

    def _line(self, text: str, label: str) -> None:
        """Gathers the variables that the same is to be said of."""
        self.lines.setdefault(text, []).append(label)

    def _track(self, candidates: Sequence[Series], level: float | None, count: int, label: str) -> Track:
        """Where each time is; with problems noted where it is nowhere or in several places."""
        chosen = [series for series in candidates if level is None or level in series.levels]
        numbers = np.array([self.numbers[id(series)] for series in chosen], np.int32)
        members = sorted({series.member for series in chosen if series.member is not None})
        if len(members) > 1:
            self._line(f"there for {len(members)} ensemble members ({members[0]} to {members[-1]}); give one", label)
            chosen = [series for series in chosen if series.member == members[0]]
            numbers = np.array([self.numbers[id(series)] for series in chosen], np.int32)
        self.used |= {int(number): series for number, series in zip(numbers, chosen, strict=True)}
        window = chosen[0].window_hours
        back = np.arange(count - 1, -1, -1) * round(window * 3600) * np.timedelta64(1, "s")
        wanted = self.time[:, None] - back
        times = np.concatenate([series.times for series in chosen])
        owner = np.repeat(numbers, [series.times.size for series in chosen])
        places = np.concatenate([np.arange(series.times.size) for series in chosen])
        forecast = np.concatenate([series.forecast for series in chosen])
        # An analysis goes before a forecast for the same time.
        order = np.lexsort((owner, forecast if window == 0 else np.zeros_like(forecast), times))
        times, owner, places, forecast = times[order], owner[order], places[order], forecast[order]
        at = np.searchsorted(times, wanted.ravel())
        there = (at < times.size) & (times[np.minimum(at, times.size - 1)] == wanted.ravel())
        absent = np.unique(wanted.ravel()[~there])
        if absent.size:
            what = f" of {chosen[0].key}" if count > 1 else ""
            self._line(
                f"{absent.size} of {np.unique(wanted).size} times{what} are missing: {times_text(absent)}", label
            )
            self.hints["--start and --end choose the times"] = None
        again = there & (at + 1 < times.size) & (times[np.minimum(at + 1, times.size - 1)] == wanted.ravel())
        next_one = np.minimum(at + 1, times.size - 1)
        if window == 0:
            again &= forecast[np.minimum(at, times.size - 1)] == forecast[next_one]
        if again.any():
            first = int(np.flatnonzero(again)[0])
            pair = (int(owner[at[first]]), int(owner[next_one[first]]))
            files = " and ".join(dict.fromkeys(self.catalogue.series[number].file.label for number in pair))
            self._line(f"{np.unique(wanted.ravel()[again]).size} times are there twice, "
                       f"{time_text(wanted.ravel()[first])} in {files}", label)  # fmt: skip
        at = np.where(there, at, 0)
        key = (tuple(int(number) for number in numbers), count)
        if key not in self.tracks:  # the levels of a file share one, and are then read together
            shape = wanted.shape
            self.tracks[key] = Track(owner[at].reshape(shape).astype(np.int32), places[at].reshape(shape))
            late = int(np.count_nonzero(forecast[at])) if window == 0 else 0
            if late:
                self.notes.append(f"{chosen[0].variable}: {late} times are forecasts, not analyses")
        return self.tracks[key]  # type: ignore[return-value]

    # Grid and static fields.

    def _source_grid(self) -> Grid | None:
        """The one grid that all series lie on; None with the problems noted when there is none."""
        grid, issues = one_grid(((series.axes, series) for series in self.used.values()), _whose)
        self.problems += issues
        return grid

    def _static(self, grid: Grid | None) -> dict[str, NDArray[np.float32]]:
        """The static fields on a grid; without one only their problems are noted."""
        chosen: list[Field] = []
        lacks = []
        for name in self.schema.static:
            found = [field for field in self.catalogue.statics if field.variable == name]
            if not found:
                lacks.append(name)
                continue
            try:
                first = found[0].read(allow_missing=True)
                other = next((field for field in found[1:] if not field.axes.same_as(found[0].axes) or not
                              np.array_equal(first, field.read(allow_missing=True), equal_nan=True)), None)  # fmt: skip
            except DataError as error:
                self.problems += [error.message, *error.problems]
                continue
            if other is not None:
                self.problems.append(f"{name} differs between {found[0].file.label} and {other.file.label}")
            chosen.append(found[0])
        for name in lacks:
            self._missing(name, f"{name} ({VARIABLES[name].long_name}) is missing")
        if not chosen or grid is None:
            return {}
        try:
            dataset: xr.Dataset = read_static(Inventory(tuple(chosen)), grid)
        except DataError as error:
            self.problems += [*error.problems] or [error.message]
            return {}
        self.notes += [line for line in str(dataset.attrs["notes"]).splitlines() if line]
        return {str(name): np.asarray(dataset[name].values, np.float32) for name in dataset.data_vars}

    # What to say.

    def _notes_on_inputs(self) -> None:
        used = {id(series.file): series.file for series in self.used.values()}
        labels = {file.label for file in used.values()}
        self.notes += condensed(note for note in self.catalogue.notes if note.split(": ")[0] in labels)
        preliminary = sorted({series.variable for series in self.used.values() if "0005" in (series.version or "")})
        if preliminary:
            self.notes.append(f"preliminary ERA5T (expver 0005) among: {' '.join(preliminary)}")
        members = sorted({series.member for series in self.used.values() if series.member is not None})
        self.notes += [f"ensemble member {member}" for member in members]

    def _error(self) -> DataError:
        problems = list(dict.fromkeys(self.problems))
        if not problems:
            there = sorted({series.key for series in self.catalogue.series})
            problems = [f"there is: {', '.join(there) or 'nothing that is known'}"]
        names = (*self.schema.pressure, *self.schema.surface, *self.schema.static)
        absent = [name for name in names if any(line.startswith(f"{name} (") for line in problems)]
        if absent:
            self.hints[f"add inputs with what is missing, or leave it out with --without {','.join(absent)}"] = None
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        return DataError(f"{count} with the inputs", problems=shortened(problems), hint="; ".join(self.hints) or None)


def condensed(lines: Iterable[str]) -> list[str]:
    """Lines that begin with a file's name, those that are said of several files as one."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        label, colon, text = line.partition(": ")
        groups.setdefault(text if colon else line, []).append(label)
    return [f"{labels[0]}{f' and {len(labels) - 1} other files' if labels[1:] else ''}: {text}" if labels[0] != text
            else text for text, labels in groups.items()]  # fmt: skip


def shortened(lines: Sequence[str]) -> list[str]:
    """The first lines of a long list, and how many there are beyond them."""
    if len(lines) <= _MOST_LINES:
        return list(lines)
    return [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more"]


def _whose(items: Sequence[Series]) -> str:
    """Variables and files of series for people: `t u z in a.nc and 11 other files`."""
    names = " ".join(sorted({series.variable for series in items}))
    files = list(dict.fromkeys(series.file.label for series in items))
    return f"{names} in {files[0]}{f' and {len(files) - 1} other files' if files[1:] else ''}"
