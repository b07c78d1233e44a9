"""The inventory at one time: which field is meant, its values checked, and a record of what was used.

Whatever is found wrong is collected, so that the user hears of everything at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from wm2cli.errors import DataError
from wm2cli.grid import Grid
from wm2cli.reading.fields import Field, Inventory, SourceFile, Time, Values, plain_name, time_text
from wm2cli.schema import VARIABLES, Statistic, channel_label, value_issues


@dataclass
class _Clipped:
    worst: float
    count: int = 0
    labels: list[str] = field(default_factory=list)


class Snapshot:
    """All fields of an inventory that are valid at one time.

    Args:
        inventory: Of the input files.
        time: Valid time.
        static: Fields constant in time on some global grid, taken where the files have none.
    """

    def __init__(self, inventory: Inventory, time: Time, static: xr.Dataset | None = None) -> None:
        self.inventory = inventory
        self.time = time
        self.problems: dict[str, None] = {}
        self.notes: dict[str, None] = {}
        self.used: dict[int, Field] = {}
        self._static = static
        self._chosen: dict[tuple[str, float | None, Statistic | None], Field | None] = {}
        self._clipped: dict[tuple[str, float], _Clipped] = {}
        self._lock = threading.Lock()

    def pick(self, name: str, level: float | None = None, statistic: Statistic | None = None) -> Field | None:
        """The one field of a variable, or None when there is none; says so when there are several that
        differ.

        Analyses go before forecasts for the same time. Fields that are equal in every bit count as one.

        Args:
            name: Variable.
            level: hPa, for variables on pressure levels.
            statistic: See `Inventory.find`; of several windows the shortest is meant.
        """
        key = (name, level, statistic)
        if key not in self._chosen:
            self._chosen[key] = self._choose(name, level, statistic)
        return self._chosen[key]

    def levels(self, name: str) -> tuple[float, ...]:
        """Levels in hPa that a variable is there on, from low pressure to high."""
        return self.inventory.levels(name, self.time)

    def read(self, name: str, level: float | None = None, statistic: Statistic | None = None) -> Values | None:
        """Values of a field; problems with them are collected.

        Returns:
            (H, W) float32 within the variable's physical limits, possibly with NaN when that is one of the
            problems; None when there is no such field or it cannot be decoded.
        """
        found = self.pick(name, level, statistic)
        return None if found is None else self.read_field(found)

    def read_field(self, found: Field) -> Values | None:
        """The same for a field that was picked before."""
        known = VARIABLES[found.variable]
        try:
            values = found.read(allow_missing=True)
        except DataError as error:
            self._problem(str(error))
            return None
        self.used[id(found)] = found
        issues = value_issues(known, values, found.level)
        for issue in issues:
            self._problem(f"{issue} ({found.origin})")
        return values if issues else self.clip(found.variable, values, known.clip_low, known.clip_high, found.label)

    def clip(self, name: str, values: Values, low: float, high: float, label: str | None = None) -> Values:
        """Values within limits; how many were set to one, and how far off they were, becomes a note."""
        for limit, beyond in ((low, values < low), (high, values > high)):
            count = int(np.count_nonzero(beyond)) if np.isfinite(limit) else 0
            if count:
                off = float(values.min() if limit == low else values.max())
                values = (
                    np.maximum(values, np.float32(limit)) if limit == low else np.minimum(values, np.float32(limit))
                )
                with self._lock:
                    record = self._clipped.setdefault((name, limit), _Clipped(limit))
                    record.count += count
                    record.worst = off if abs(off - limit) > abs(record.worst - limit) else record.worst
                    record.labels.append(label or name)
        return values

    def orography(self, grid: Grid) -> Values | None:
        """Height of the ground in m on the grid of the data, from the files or from the static fields given."""
        found = self.pick("orog")
        if found is not None:
            values, source = self.read_field(found), found.axes.grid()
        elif self._static is not None and "orog" in self._static:
            given = self._static["orog"]
            values, source = (
                np.asarray(given.values, np.float32),
                Grid(given["latitude"].values, given["longitude"].values),
            )
        else:
            return None
        if values is None or source == grid:
            return values
        self.notes["orography for derived fields was regridded to the grid of the data"] = None
        return source.regrid_to(grid, values)

    def has_orography(self) -> bool:
        """Whether `orography` will find one."""
        return self.pick("orog") is not None or (self._static is not None and "orog" in self._static)

    def elsewhere(self, name: str) -> str:
        """What there is of a variable although not as wanted, as the end of a line; empty when nothing is."""
        there = [item for item in self.inventory.fields if item.variable == plain_name(name)]
        now = [item for item in there if item.valid_time in (self.time, None)]
        if now:
            kinds = {f"{item.statistic} over {item.window_hours:g} h" for item in now if item.statistic != "point"}
            return f"; there is: {', '.join(sorted(kinds))}" if kinds else ""
        if there:
            times = sorted({item.valid_time for item in there if item.valid_time is not None})
            return f"; it is there for {time_text(times[0])}" + (
                f" and {len(times) - 1} other times" if times[1:] else ""
            )
        return ""

    def files(self) -> tuple[SourceFile, ...]:
        """Files that fields were read from, each once."""
        return tuple({id(found.file): found.file for found in self.used.values()}.values())

    def account(self) -> list[str]:
        """Notes on everything that was read: what was clipped, and whether it is an analysis at all."""
        notes = [*self.inventory.notes, *self.notes]
        for (name, limit), record in sorted(self._clipped.items()):  # threads found them in any order
            where = record.labels[0] if len(record.labels) == 1 else f"{name} ({len(record.labels)} fields)"
            notes.append(f"{where}: {record.count} values beyond {limit:g} set to it (up to {record.worst:.4g})")
        used = sorted(self.used.values(), key=lambda found: (list(VARIABLES).index(found.variable), found.level or 0.0))
        forecasts: dict[tuple[Time, Time], list[Field]] = {}
        for found in used:
            known = VARIABLES[found.variable]
            if found.base_time is None or found.valid_time is None or known.kind == "static":
                continue
            if found.base_time != found.valid_time:
                forecasts.setdefault((found.base_time, found.valid_time), []).append(found)
        for (base, valid), items in forecasts.items():
            hours = (valid - base) / np.timedelta64(1, "h")
            notes.append(f"not an analysis: {names_text(items)} are a {hours:g} h forecast from {time_text(base)}")
        preliminary = [found for found in used if found.version == "0005"]
        if preliminary:
            notes.append(f"preliminary ERA5T (expver 0005): {names_text(preliminary)}")
        members = sorted({found.member for found in used if found.member is not None})
        notes += [
            f"ensemble member {member}: {names_text(item for item in used if item.member == member)}"
            for member in members
        ]
        return list(dict.fromkeys(notes))

    def _problem(self, text: str) -> None:
        with self._lock:
            self.problems[text] = None

    def _choose(self, name: str, level: float | None, statistic: Statistic | None) -> Field | None:
        known = VARIABLES[name]
        moment = None if known.kind == "static" else self.time
        found = self.inventory.find(name, level, moment, statistic)
        if statistic is not None and found:
            shortest = min(item.window_hours for item in found)
            found = tuple(item for item in found if item.window_hours == shortest)
        analyses = tuple(item for item in found if item.base_time == item.valid_time)
        if analyses and len(analyses) < len(found):
            self.notes[f"{name}: forecasts for the same time were left aside, the analysis was taken"] = None
            found = analyses
        if known.kind == "static" and len({item.valid_time for item in found}) > 1:
            self.notes[f"{name} is there for several times; it is taken as constant, from {found[0].origin}"] = None
            found = found[:1]
        if len(found) < 2:
            return found[0] if found else None
        members = sorted({item.member for item in found if item.member is not None})
        label = channel_label(name, level)
        if len(members) > 1:
            self._problem(
                f"{name} is there for {len(members)} ensemble members ({members[0]} to {members[-1]}); "
                "give a file with one"
            )
            return found[0]
        places = ", ".join(_place(item) for item in found)
        if self._all_equal(found):
            self.notes[f"{label} is there {len(found)} times with equal values ({places}); the first was taken"] = None
        else:
            self._problem(f"{label} is there {len(found)} times with different values: {places}")
        return found[0]

    def _all_equal(self, found: tuple[Field, ...]) -> bool:
        first = found[0]
        if not all(first.axes.same_as(other.axes) for other in found[1:]):
            return False
        try:
            values = first.read(allow_missing=True)
            return all(np.array_equal(values, other.read(allow_missing=True), equal_nan=True) for other in found[1:])
        except DataError as error:
            self._problem(str(error))
            return False


def names_text(fields: Iterable[Field]) -> str:
    """Variables of some fields for people, each once."""
    return " ".join(dict.fromkeys(found.variable for found in fields))


def _place(found: Field) -> str:
    """Where a field is and what it is from."""
    if found.base_time is None or found.valid_time is None:
        return found.origin
    hours = (found.valid_time - found.base_time) / np.timedelta64(1, "h")
    return f"{found.origin} (from {time_text(found.base_time)} + {hours:g} h)"
