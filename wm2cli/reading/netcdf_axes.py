"""What the axes of a NetCDF file are: which is latitude, level, valid time, member, and with which values.

CF attributes decide first (`standard_name`, `units`), names second: files of the same quantity carry `time`
as the valid time (old CDS layout) or as the start of the forecast (cfgrib), `level` in hPa or as a model
level.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wm2cli.reading.fields import Time
from wm2cli.reading.units import spelled, to_hpa

Role = Literal[
    "lat", "lon", "level", "model_level", "height", "time", "reference", "step", "member", "version", "other"
]

_BY_STANDARD_NAME: Mapping[str, Role] = {
    "latitude": "lat", "longitude": "lon", "air_pressure": "level", "height": "height", "time": "time",
    "forecast_reference_time": "reference", "forecast_period": "step", "realization": "member",
}  # fmt: skip
_BY_NAME: Mapping[str, Role] = {
    "latitude": "lat", "lat": "lat", "longitude": "lon", "lon": "lon",
    "level": "level", "lev": "level", "levels": "level", "plev": "level", "pressure": "level",
    "pressure_level": "level", "isobaric": "level", "isobaricInhPa": "level", "isobaricInPa": "level",
    "model_level": "model_level", "hybrid": "model_level", "ml": "model_level",
    "height": "height", "heightAboveGround": "height",
    "time": "time", "valid_time": "time",
    "forecast_reference_time": "reference", "init_time": "reference",
    "step": "step", "lead_time": "step", "prediction_timedelta": "step",
    "number": "member", "member": "member", "realization": "member", "ensemble": "member",
    "expver": "version",
}  # fmt: skip
_UNITS_IN_NAME = {"isobaricInhPa": "hPa", "isobaricInPa": "Pa"}
_SECONDS = {
    "second": 1,
    "sec": 1,
    "s": 1,
    "minute": 60,
    "min": 60,
    "hour": 3600,
    "hr": 3600,
    "h": 3600,
    "day": 86400,
    "d": 86400,
    "nanosecond": 1e-9,
    "ns": 1e-9,
    "microsecond": 1e-6,
    "us": 1e-6,
    "millisecond": 1e-3,
    "ms": 1e-3,
}
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")


class AxisError(Exception):
    """Why an axis cannot be used, as the end of a sentence that begins with the variable that has it."""


@dataclass(frozen=True, eq=False)
class Coordinate:
    """A coordinate variable.

    Args:
        name: In the file.
        dims: Its dimensions; none for a scalar.
        values: As stored, packing undone; NaN where missing.
        attributes: From the file.
        role: What it means.
    """

    name: str
    dims: tuple[str, ...]
    values: NDArray[Any]
    attributes: Mapping[str, Any]
    role: Role

    def at(self, values: NDArray[Any], index: Mapping[str, int]) -> Any:
        """The entry of an array shaped like this coordinate, at a place along its dimensions."""
        return values[tuple(index[name] for name in self.dims)]


def role_of(name: str, attributes: Mapping[str, Any]) -> Role:
    """What a coordinate means, from its attributes, else from its name."""
    standard = str(attributes.get("standard_name", ""))
    units = spelled(str(attributes.get("units", "")))
    if standard.startswith(("atmosphere_hybrid", "atmosphere_sigma", "atmosphere_ln_pressure")):
        return "model_level"
    if standard in _BY_STANDARD_NAME:
        return _BY_STANDARD_NAME[standard]
    if re.fullmatch(r"degrees?[ _]?(north|N)", units):
        return "lat"
    if re.fullmatch(r"degrees?[ _]?(east|E)", units):
        return "lon"
    if to_hpa(units) is not None:
        return "level"
    return _BY_NAME.get(name, "other")


def latitudes_and_longitudes(lat: Coordinate, lon: Coordinate) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Degrees north and east as float64.

    Raises:
        AxisError: They are curvilinear, shorter than two points or have missing entries.
    """
    for axis in (lat, lon):
        if axis.values.ndim != 1:
            raise AxisError(f"is on a curvilinear grid ({axis.name} has {axis.values.ndim} dimensions)")
        if axis.values.size < 2:
            raise AxisError(f"has {axis.values.size} points along {axis.name}: no map but a point or a line")
        if not np.isfinite(axis.values.astype(np.float64)).all():
            raise AxisError(f"has missing entries in {axis.name}")
    return _degrees(lat.values), _degrees(lon.values)


def _degrees(values: NDArray[Any]) -> NDArray[np.float64]:
    """Degrees as float64; a float32 file holds 0.1 degrees as 0.10000000149, which is 0.1 again here."""
    wide = values.astype(np.float64)
    return np.round(wide, 4) if values.dtype == np.float32 and np.allclose(wide, np.round(wide, 4), atol=2e-5) else wide


def levels_hpa(axis: Coordinate) -> tuple[NDArray[np.float64], str | None]:
    """Pressures in hPa, and a note when the file does not say the unit.

    Raises:
        AxisError: The unit is not one of pressure, or is not given and the values do not tell.
    """
    text = axis.attributes.get("units", _UNITS_IN_NAME.get(axis.name))
    values = np.atleast_1d(axis.values).astype(np.float64)
    if text is None:
        if not (values.min() >= 0.01 and 100.0 <= values.max() <= 1100.0):
            raise AxisError(f"has the axis {axis.name} without units, {values.min():g} to {values.max():g}: hPa or Pa?")
        return values, f"{axis.name} has no units; {values.min():g} to {values.max():g} is taken as hPa"
    factor = to_hpa(str(text))
    if factor is None:
        raise AxisError(f"has the axis {axis.name} in '{text}', which is no unit of pressure")
    return np.round(values * factor, 6), None


def times(axis: Coordinate) -> NDArray[np.datetime64]:
    """Instants, shaped like the coordinate.

    Raises:
        AxisError: The units are not "<unit> since <date>", or the calendar is not the usual one.
    """
    units, calendar = (
        str(axis.attributes.get("units", "")),
        str(axis.attributes.get("calendar", "standard")).lower(),
    )
    match = re.fullmatch(r"\s*(\w+)\s+since\s+(.+?)\s*", units)
    if match is None or _unit_seconds(match[1]) is None:
        raise AxisError(f"has the time axis {axis.name} with the units '{units}', which are not understood")
    if calendar not in _CALENDARS:
        raise AxisError(f"has the time axis {axis.name} in the calendar '{calendar}'")
    origin = _origin(match[2], calendar)
    if origin is None:
        raise AxisError(f"has the time axis {axis.name} with the units '{units}', which are not understood")
    return origin + _durations(axis, _unit_seconds(match[1]) or 1.0)


def steps(axis: Coordinate) -> NDArray[np.timedelta64]:
    """Lead times, shaped like the coordinate.

    Raises:
        AxisError: The units are not known.
    """
    units = str(axis.attributes.get("units", ""))
    seconds = _unit_seconds(units)
    if seconds is None:
        raise AxisError(f"has lead times {axis.name} in '{units}', which is not understood")
    return _durations(axis, seconds)


def _durations(axis: Coordinate, seconds: float) -> NDArray[np.timedelta64]:
    wide = np.asarray(axis.values)
    if np.issubdtype(wide.dtype, np.integer) and seconds >= 1:
        return (wide.astype(np.int64) * int(seconds)).astype("timedelta64[s]")
    counted = wide.astype(np.float64) * seconds
    if not np.isfinite(counted).all():
        raise AxisError(f"has missing entries in {axis.name}")
    return np.round(counted).astype(np.int64).astype("timedelta64[s]")


def _unit_seconds(text: str) -> float | None:
    plain = text.strip().lower()
    return _SECONDS.get(plain, _SECONDS.get(plain.removesuffix("s")))


def _origin(text: str, calendar: str) -> Time | None:
    """The instant in "hours since 1900-01-01 00:00:00.0"; None when it is not understood or not UTC.

    The usual calendar is Julian before 15 October 1582, which matters for "hours since 1-1-1": two days.
    """
    import netCDF4

    match = re.fullmatch(
        r"(\d{1,4})-(\d{1,2})-(\d{1,2})(?:[T ]+(\d{1,2})(?::(\d{1,2})(?::(\d{1,2})(?:\.0*)?)?)?)?"
        r"\s*(?:Z|UTC|\+?0{1,2}:?0{2})?",
        text.strip(),
    )
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
    try:
        since = f"seconds since {year:04d}-{month:02d}-{day:02d} {hour:02d}:{minute:02d}:{second:02d}"
        found = netCDF4.num2date(np.array([0]), since, calendar, only_use_cftime_datetimes=True)
        seconds = int(np.rint(netCDF4.date2num(found, "seconds since 1970-01-01", calendar))[0])
    except ValueError:
        return None
    return np.datetime64(seconds, "s")
