"""Reading GRIB: from messages to fields in wm2's names, units and row order.

Variables are told apart by their ECMWF parameter id and kind of level, which eccodes derives for both
editions and for every centre; short names change between its versions. Messages are decoded from memory, one
at a time, in whichever thread asks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import eccodes
import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError
from wm2cli.reading.fields import (
    Axes,
    Field,
    Inventory,
    SourceFile,
    Time,
    Values,
    canonical_axes,
    canonical_order,
    plain_name,
)
from wm2cli.reading.messages import Message, field_bytes, header_bytes, split
from wm2cli.schema import VARIABLES, GribKey, Statistic, Variable

_MISSING = 3.0e38  # no field of ours reaches it
_STATISTICS: dict[str, Statistic] = {
    "instant": "point", "accum": "sum", "avg": "mean", "max": "maximum", "min": "minimum",
}  # fmt: skip
_STEP_SECONDS = {"s": 1, "m": 60, "": 3600, "h": 3600, "D": 86400}
_MONTHLY_STREAMS = ("moda", "mnth", "edmo", "edmm", "ewmm", "wamo", "mofc", "mofm", "monr")
_MOST_POINTS = 2**29  # 2 GiB a field; damaged headers claim more
_DAMAGED = "the file is damaged: get it again"
_GROUP_WIDTHS = ("numberOfBitsUsedForTheGroupWidths", "numberOfBitsForScaledGroupLengths")
_WIDEST = 32  # bits
_MODEL_LEVELS = ("hybrid", "hybridLayer", "hybridPressure")


def _keys_by_id() -> dict[int, list[tuple[str, GribKey]]]:
    found: dict[int, list[tuple[str, GribKey]]] = {}
    for known in VARIABLES.values():
        if plain_name(known.name) == known.name:
            for key in known.grib:
                found.setdefault(key.param_id, []).append((known.name, key))
    return found


_KEYS = _keys_by_id()


def name_of(param_id: int, level_type: str, level: float) -> tuple[Variable, GribKey] | None:
    """The variable that a GRIB message with these keys holds, and the key that says so; None when it is none
    of ours.

    Args:
        param_id: ECMWF parameter id.
        level_type: eccodes `typeOfLevel`.
        level: Value of the level in that type's unit.
    """
    for name, key in _KEYS.get(param_id, ()):
        if level_type in key.level_types and (key.level is None or abs(key.level - level) < 1e-6):
            return VARIABLES[name], key
    return None


def open_grib(file: SourceFile) -> Inventory:
    """The fields of a GRIB file, from its headers alone.

    Raises:
        DataError: The file is cut short or damaged.
    """
    messages, notes = split(file)
    layouts: dict[bytes, _Layout | str] = {}
    fields: list[Field] = []
    ignored: Counter[str] = Counter()
    problems: dict[str, Counter[str]] = {}
    for message in messages:
        header, grid = header_bytes(file, message)
        try:
            handle = eccodes.codes_new_from_message(header)
        except eccodes.CodesInternalError as error:
            ignored[f"{file.label}: headers that eccodes cannot read ({error})"] += 1
            continue
        try:
            found = _identify(handle)
            if isinstance(found, str):
                ignored[found] += 1
                continue
            if grid not in layouts:
                layouts[grid] = _layout(handle)
            fields.append(_field(handle, file, message, found, layouts[grid]))
        except _UnusableError as error:
            problems.setdefault(error.variable, Counter())[str(error)] += 1
        except eccodes.CodesInternalError as error:
            ignored[f"{file.label}: {message.text} has headers that eccodes cannot read ({error})"] += 1
        finally:
            eccodes.codes_release(handle)
    lines = {name: tuple(f"{file.label}: {text} ({count} messages)" for text, count in texts.items())
             for name, texts in problems.items()}  # fmt: skip
    return Inventory(tuple(fields), (file,), dict(ignored), lines, tuple(notes))


class _UnusableError(Exception):
    """A field of one of our variables that cannot be used, and why."""

    def __init__(self, variable: str, reason: str) -> None:
        super().__init__(f"{variable} {reason}")
        self.variable = variable


@dataclass(frozen=True)
class _Identity:
    known: Variable
    level: float | None
    scale: float


def _identify(handle: int) -> _Identity | str:
    """Which variable a message holds, or what to call it when it is none of ours."""
    param_id = _integer(handle, "paramId", 0)
    level_type = _text(handle, "typeOfLevel")
    level = _number(handle, "level")
    match = name_of(param_id, level_type, level)
    if match is None:
        entries = _KEYS.get(param_id, ())
        if level_type in _MODEL_LEVELS and entries and VARIABLES[entries[0][0]].kind == "pressure":
            raise _UnusableError(entries[0][0], f"is on model levels ({level_type}), not on pressure levels")
        name = _text(handle, "shortName")
        return f"{name if name != 'unknown' else f'parameter {_numbers(handle)}'} on {level_type}"
    known, key = match
    if known.kind != "pressure":
        return _Identity(known, None, key.scale)
    return _Identity(known, round(level / 100.0 if level_type == "isobaricInPa" else level, 6), key.scale)


def _field(handle: int, file: SourceFile, message: Message, what: _Identity, layout: _Layout | str) -> Field:
    known = what.known
    if isinstance(layout, str):
        raise _UnusableError(known.name, layout)
    _refuse_products(handle, known.name)
    base, valid, window = _times(handle, known.name)
    kind = _text(handle, "stepType")
    statistic = _STATISTICS.get(kind)
    if statistic == "point" and window > 0:
        # NCEP leaves the kind of statistics out where the parameter itself says it (TMAX, TMIN).
        statistic = known.statistic if known.statistic in ("maximum", "minimum") else None
    if statistic is None:
        raise _UnusableError(known.name, f"is given as '{kind}' over {window:g} h, which is not understood")
    origin = f"{file.label} {message.text}"
    return Field(
        variable=known.name,
        level=what.level,
        valid_time=valid,
        base_time=base,
        statistic=statistic,
        window_hours=window if statistic != "point" else 0.0,
        member=_member(handle),
        version=_text(handle, "experimentVersionNumber") or None if _text(handle, "class") == "ea" else None,
        axes=layout.axes,
        origin=origin,
        file=file,
        load=partial(_decode, file, message, layout, what.scale, origin),
    )


def _refuse_products(handle: int, name: str) -> None:
    """Refuses means and spreads that go under the name of the quantity itself."""
    stream = _text(handle, "stream")
    if stream in _MONTHLY_STREAMS:
        raise _UnusableError(name, f"is a monthly mean (stream {stream}), not the state at a time")
    kind = _text(handle, "dataType")
    if kind in ("em", "es") or _integer(handle, "derivedForecast", -1) >= 0:
        raise _UnusableError(name, "is the mean or spread of an ensemble, not a state of the atmosphere")


def _times(handle: int, name: str) -> tuple[Time, Time, float]:
    """Start of the forecast, valid time (the end of a window), and length of the window in hours."""
    date, clock = _integer(handle, "dataDate"), _integer(handle, "dataTime")
    text = f"{date // 10000:04d}-{date // 100 % 100:02d}-{date % 100:02d}T{clock // 100:02d}:{clock % 100:02d}:00"
    try:
        base = np.datetime64(text, "s")
    except ValueError:
        raise _UnusableError(name, f"has the impossible date {date} {clock:04d}") from None
    steps = _text(handle, "stepRange")
    match = re.fullmatch(r"(-?\d+)([a-zA-Z]?)(?:-(\d+)([a-zA-Z]?))?", steps)
    if match is None or {match[2], match[4] or ""} - _STEP_SECONDS.keys():
        raise _UnusableError(name, f"has the step '{steps}', which is not understood")
    end_unit = (match[4] if match[3] else match[2]) or ""
    start = int(match[1]) * _STEP_SECONDS[match[2] or end_unit]
    end = int(match[3]) * _STEP_SECONDS[end_unit] if match[3] else start
    return base, base + np.timedelta64(end, "s"), (end - start) / 3600.0


def _member(handle: int) -> int | None:
    """Ensemble member; None for a field that belongs to no ensemble."""
    number = _integer(handle, "number", -1)
    if number < 0:
        return None
    # GRIB1 of ECMWF has a member number in every local section; the size of the ensemble tells whether there is one.
    if _integer(handle, "edition") == 1 and _integer(handle, "numberOfForecastsInEnsemble", 0) <= 0:
        return None
    return number


@dataclass(frozen=True, eq=False)
class _Layout:
    """How the values of a message lie, and what brings them into canonical order.

    Args:
        axes: The grid in canonical order.
        by_column: Values run along meridians first.
        alternating: Every second row (column) runs backwards.
        reverse: The first row runs from east to west.
        flip: Rows run from south to north.
        roll: Shift for `np.roll` along longitude.
    """

    axes: Axes
    by_column: bool
    alternating: bool
    reverse: bool
    flip: bool
    roll: int

    @property
    def size(self) -> int:
        """Number of points."""
        return self.axes.lat.size * self.axes.lon.size

    def arrange(self, values: NDArray[np.float64]) -> Values:
        """(H * W,) as packed -> (H, W) float32 in canonical order."""
        height, width = self.axes.shape
        table = values.reshape((width, height) if self.by_column else (height, width))
        if self.alternating:
            table[1::2] = table[1::2, ::-1].copy()
        table = table.T if self.by_column else table
        return canonical_order(table, self.flip, self.roll, reverse=self.reverse)


def _layout(handle: int) -> _Layout | str:
    """How a message's grid lies, or why it cannot be used."""
    kind = _text(handle, "gridType")
    if kind not in ("regular_ll", "regular_gg"):
        return f"is on a grid of type {kind}; regular_ll and regular_gg can be read"
    columns, rows = _integer(handle, "Ni"), _integer(handle, "Nj")
    first, last, west, east = (
        _number(handle, f"{axis}Of{end}GridPointInDegrees")
        for axis in ("latitude", "longitude")
        for end in ("First", "Last")
    )
    north_up = bool(_integer(handle, "jScansPositively"))
    reverse = bool(_integer(handle, "iScansNegatively"))
    points = _integer(handle, "numberOfDataPoints")
    if rows < 2 or columns < 2 or rows * columns != points:
        return f"is on a grid of {rows}x{columns} points with {points} in all"
    if points > _MOST_POINTS:
        return f"is on a grid of {points} points, more than can be held"
    if (last > first) != north_up:
        return f"has latitudes {first:g} to {last:g} against its scanning mode"
    if kind == "regular_ll":
        lat = np.linspace(first, last, rows)
    else:
        lat = np.array(list(eccodes.codes_get_gaussian_latitudes(_integer(handle, "N"))))
        lat = lat[(lat <= max(first, last) + 2e-3) & (lat >= min(first, last) - 2e-3)]
        lat = lat[::-1] if north_up else lat
        if lat.size != rows:
            return f"has {rows} rows, which are not the Gaussian latitudes from {first:g} to {last:g}"
    lon = _longitudes(*((east, west) if reverse else (west, east)), columns)
    try:
        axes, flip, roll = canonical_axes(lat, lon)
    except DataError as error:
        return f"has a grid that cannot be used: {error.message}"
    by_column = bool(_integer(handle, "jPointsAreConsecutive"))
    return _Layout(axes, by_column, bool(_integer(handle, "alternativeRowScanning", 0)), reverse, flip, roll)


def _longitudes(west: float, east: float, count: int) -> NDArray[np.float64]:
    """Longitudes from west to east; evenly round the globe when the header's precision allows it."""
    if east <= west:
        east += 360.0
    spacing = 360.0 / count
    # Edition 1 keeps thousandths of a degree: a third of a degree is only known to that.
    if abs(west + (count - 1) * spacing - east) <= 1.01e-3:
        return west + spacing * np.arange(count, dtype=np.float64)
    return np.linspace(west, east, count)


def _decode(file: SourceFile, message: Message, layout: _Layout, scale: float, origin: str) -> Values:
    """Values of one message: (H, W) float32, canonical order, NaN where missing."""
    try:
        handle = eccodes.codes_new_from_message(field_bytes(file, message))
        try:
            eccodes.codes_set(handle, "missingValue", _MISSING)
            size = eccodes.codes_get_size(handle, "values")
            if size != layout.size:  # asked before it is unpacked: damaged headers may ask for any amount of memory
                raise DataError(f"{origin} has {size} values for a grid of {layout.size} points", hint=_DAMAGED)
            _check_packing(handle, origin)
            # In float64: of some packings eccodes computes float32 values in float32, which is one bit off.
            values = eccodes.codes_get_double_array(handle, "values")
            missing = values == _MISSING if values.max() == _MISSING else None
            if scale != 1.0:
                values *= scale
            if missing is not None:
                values[missing] = np.nan
            # Before the message is let go: memory freed on the way goes back to the system and is cleared again.
            return layout.arrange(values)
        finally:
            eccodes.codes_release(handle)
    except eccodes.CodesInternalError as error:
        raise DataError(f"{origin} cannot be decoded: {error}", hint=_DAMAGED) from error


def _check_packing(handle: int, origin: str) -> None:
    """Refuses packing that cannot be: eccodes would read beyond the data, or end the program."""
    width = _integer(handle, "bitsPerValue", 0)
    widths = [_integer(handle, key, 0) for key in _GROUP_WIDTHS]
    groups = _integer(handle, "numberOfGroupsOfDataValues", 0)
    held = _integer(handle, "section7Length", 0)
    impossible = (
        max(width, _integer(handle, "referenceForGroupWidths", 0), *widths) > _WIDEST
        or groups > _integer(handle, "numberOfValues")
        or (groups > 0 and groups * (width + sum(widths)) // 8 > held)
    )
    if impossible:
        raise DataError(f"{origin} has packing that cannot be ({width} bits a value, {groups} groups)", hint=_DAMAGED)


def _numbers(handle: int) -> str:
    """Parameter numbers, for messages that eccodes has no name for."""
    if _integer(handle, "edition") == 1:
        return f"{_integer(handle, 'table2Version')}.{_integer(handle, 'indicatorOfParameter')}"
    return ".".join(str(_integer(handle, key)) for key in ("discipline", "parameterCategory", "parameterNumber"))


def _get(reader: Callable[[int, str], Any], handle: int, key: str, default: Any) -> Any:
    try:
        return reader(handle, key)
    except eccodes.KeyValueNotFoundError:
        if default is None:
            raise
        return default


def _integer(handle: int, key: str, default: int | None = None) -> int:
    return int(_get(eccodes.codes_get_long, handle, key, default))


def _number(handle: int, key: str) -> float:
    return float(_get(eccodes.codes_get_double, handle, key, None))


def _text(handle: int, key: str) -> str:
    """A key as text; empty when the message has no such key."""
    return str(_get(eccodes.codes_get_string, handle, key, ""))
