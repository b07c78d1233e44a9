"""What a forecast file says: dimensions, coordinates and attributes after CF-1.11
(https://cfconventions.org).

One file holds one forecast. Its time axis is the valid time, so that every tool can show it; the start and
the lead time stand beside it as coordinates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli import __version__
from wm2cli.schema import Variable
from wm2cli.writing.chunks import MANTISSA_BITS, chunk_shape

EARTH_RADIUS = 6371229.0
"""Metres. The sphere that IFS and GFS name in their headers (WMO GRIB2 code table 3.2, entry 6)."""

_UPPER = ("time", "level", "latitude", "longitude")


@dataclass(frozen=True)
class Block:
    """The part of one variable at one time that fills one chunk; at the edges of the grid it is smaller.

    Args:
        variable: The variable.
        number: Its place among the pressure variables, or among the surface variables.
        levels: Its levels; the first alone for a surface variable.
        rows: Its rows in the file.
        columns: Its columns in the file.
        chunk: Shape of a whole chunk, one time included.
    """

    variable: Variable
    number: int
    levels: slice
    rows: slice
    columns: slice
    chunk: tuple[int, ...]

    @property
    def origin(self) -> tuple[int, ...]:
        """Where it begins in the variable, the time left out."""
        corner = (self.rows.start, self.columns.start)
        return (self.levels.start, *corner) if self.variable.kind == "pressure" else corner


@dataclass(frozen=True, eq=False)
class Layout:
    """All that is known of a forecast file before its values.

    Args:
        pressure: Variables on pressure levels.
        levels: Levels in hPa.
        surface: Variables with one value per column.
        lat: (h,) degrees north.
        lon: (w,) degrees east.
        init: Start of the forecast, UTC.
        leads_hours: Lead times in hours, increasing.
        attributes: Global attributes of the caller.
        lossless: Whether values keep all their bits.
        compression_level: 0 to 9.
        paths: How many rollouts each lead time is the mean of; None leaves it unsaid.

    Raises:
        ValueError: The parts don't make a file.
    """

    pressure: tuple[Variable, ...]
    levels: tuple[float, ...]
    surface: tuple[Variable, ...]
    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    init: np.datetime64
    leads_hours: tuple[int, ...]
    attributes: Mapping[str, str | int | float]
    lossless: bool = False
    compression_level: int = 1
    paths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for what, numbers in (("lead times", self.leads_hours), ("levels", self.levels)):
            if any(low >= high for low, high in itertools.pairwise(numbers)):
                raise ValueError(f"{what} must increase, found {list(numbers)}")
        kinds = {v.kind for v in self.pressure} <= {"pressure"} and {v.kind for v in self.surface} <= {"surface"}
        if not kinds or len({v.name for v in self.variables}) != len(self.variables):
            raise ValueError("a variable is given twice, or is no variable on pressure levels or no surface variable")
        if not self.variables or not self.leads_hours or bool(self.pressure) != bool(self.levels):
            raise ValueError("a forecast file needs lead times, variables, and levels for those on pressure levels")
        if self.paths is not None and len(self.paths) != len(self.leads_hours):
            raise ValueError(f"{len(self.paths)} numbers of paths were given for {len(self.leads_hours)} lead times")
        if np.isnat(self.init):
            raise ValueError("a forecast file needs a start time")
        if not 0 <= self.compression_level <= 9:
            raise ValueError(f"a compression level is 0 to 9, found {self.compression_level}")

    @property
    def variables(self) -> tuple[Variable, ...]:
        """All variables, those on pressure levels first."""
        return self.pressure + self.surface

    @cached_property
    def upper_chunk(self) -> tuple[int, int, int, int]:
        """Chunk of variables on pressure levels: times, levels, rows, columns."""
        return (1, *chunk_shape(max(1, len(self.levels)), self.lat.size, self.lon.size))

    @cached_property
    def surface_chunk(self) -> tuple[int, int, int]:
        """Chunk of surface variables: times, rows, columns."""
        return (1, *chunk_shape(1, self.lat.size, self.lon.size)[1:])

    def keep_bits(self, variable: Variable) -> int:
        """Mantissa bits kept of a variable's values."""
        return MANTISSA_BITS if self.lossless else variable.keep_bits

    def blocks(self) -> Iterator[Block]:
        """The blocks of one time, in the order in which they are written."""
        for variables, count, chunk in (
            (self.pressure, len(self.levels), self.upper_chunk),
            (self.surface, 1, self.surface_chunk),
        ):
            levels = _slices(count, chunk[1] if len(chunk) == 4 else 1)
            rows, columns = _slices(self.lat.size, chunk[-2]), _slices(self.lon.size, chunk[-1])
            for number, variable in enumerate(variables):
                for place in itertools.product(levels, rows, columns):
                    yield Block(variable, number, *place, chunk)

    def define(self, dataset: Any) -> None:
        """Write coordinates and attributes into an open, empty netCDF4 data set, and define the fields."""
        dataset.setncatts(self._global_attributes())
        self._define_times(dataset)
        if self.pressure:
            attributes = {"standard_name": "air_pressure", "long_name": "pressure level", "units": "hPa"}
            _coordinate(dataset, "level", self.levels, {**attributes, "positive": "down", "axis": "Z"})
        for name, values, units, axis in (
            ("latitude", self.lat, "degrees_north", "Y"),
            ("longitude", self.lon, "degrees_east", "X"),
        ):
            _coordinate(
                dataset,
                name,
                values,
                {"standard_name": name, "long_name": name, "units": units, "axis": axis},
            )
        for height in sorted({v.height_m for v in self.variables if v.height_m is not None}):
            attributes = {"standard_name": "height", "long_name": "height above the ground", "units": "m"}
            _variable(dataset, _height_name(height), "f8", height, {**attributes, "positive": "up", "axis": "Z"})
        _variable(
            dataset,
            "crs",
            "i4",
            0,
            {
                "grid_mapping_name": "latitude_longitude",
                "long_name": "spherical earth",
                "units": "1",
                "earth_radius": EARTH_RADIUS,
                "longitude_of_prime_meridian": 0.0,
            },
        )
        if not self.lossless:
            how = {
                "long_name": "rounding of the fields that name this variable",
                "units": "1",
                "algorithm": "bitround",
                "implementation": f"wm2 version {__version__}",
            }
            _variable(dataset, "quantization_info", "i4", 0, how)
        for variable in self.variables:
            upper = variable.kind == "pressure"
            packing = {"compression": "zlib", "complevel": self.compression_level, "shuffle": True}
            # No fill value: every value is written, and a file in which one is missing never gets its name.
            field = dataset.createVariable(
                variable.name,
                "f4",
                _UPPER if upper else (_UPPER[0], *_UPPER[2:]),
                chunksizes=self.upper_chunk if upper else self.surface_chunk,
                endian="little",
                fill_value=False,
                **(packing if self.compression_level else {}),
            )
            field.setncatts(self._field_attributes(variable))

    def _define_times(self, dataset: Any) -> None:
        # The calendar of numpy. 32-bit hours are exact, and read by more tools than 64-bit integers are.
        clock = {
            "units": f"hours since {_date(self.init):%Y-%m-%d %H:%M:%S}",
            "calendar": "proleptic_gregorian",
            "units_metadata": "leap_seconds: none",
        }
        time = {"standard_name": "time", "long_name": "valid time", "axis": "T", **clock}
        if self._windows:
            dataset.createDimension("bnds", 2)
        if "time" in self._windows.values():
            time["bounds"] = "time_bnds"
        _coordinate(dataset, "time", self.leads_hours, time, "i4")
        for hours, name in self._windows.items():
            if name != "time":
                described = f"end of the {hours} h before the valid time"
                attributes = {
                    "standard_name": "time",
                    "long_name": described,
                    "bounds": f"{name}_bnds",
                    **clock,
                }
                _variable(dataset, name, "i4", self.leads_hours, attributes, ("time",))
            bounds = [(lead - hours, lead) for lead in self.leads_hours]
            _variable(dataset, f"{name}_bnds", "i4", bounds, {}, ("time", "bnds"))
        lead_time = {
            "standard_name": "forecast_period",
            "long_name": "time since the start of the forecast",
            "units": "hours",
            "dtype": "timedelta64[ns]",  # tells xarray, since 2026, a duration from a number of hours
        }
        _variable(dataset, "lead_time", "i4", self.leads_hours, lead_time, ("time",))
        if self.paths is not None:
            described = "number of rollouts whose mean the forecast is"
            _variable(dataset, "paths", "i4", self.paths, {"long_name": described, "units": "1"}, ("time",))
        start = {"standard_name": "forecast_reference_time", "long_name": "start of the forecast", **clock}
        _variable(dataset, "forecast_reference_time", "i4", 0, start)

    @cached_property
    def _windows(self) -> dict[int, str]:
        """The time coordinate whose bounds are the windows of sums and extremes, by their length in hours.

        A coordinate has one set of bounds. It is `time` as long as all windows are of one length; where
        several meet, each has a coordinate of its own beside it.
        """
        hours = sorted({variable.window_hours for variable in self.variables} - {0})
        return {hours[0]: "time"} if len(hours) == 1 else {length: f"time_{length}h" for length in hours}

    def _field_attributes(self, variable: Variable) -> dict[str, Any]:
        attributes: dict[str, Any] = {"long_name": variable.long_name, "units": variable.units}
        if variable.standard_name:
            attributes["standard_name"] = variable.standard_name
        if variable.units == "K":
            attributes["units_metadata"] = "temperature: on_scale"
        coordinates = ["lead_time", "forecast_reference_time", *(["paths"] if self.paths is not None else [])]
        attributes["cell_methods"] = f"time: {variable.statistic}"
        window = self._windows.get(variable.window_hours, "time")
        if window != "time":
            coordinates.append(window)
            attributes["cell_methods"] += f" (over the {variable.window_hours} h of {window}_bnds)"
        if variable.height_m is not None:
            coordinates.append(_height_name(variable.height_m))
        attributes |= {"coordinates": " ".join(coordinates), "grid_mapping": "crs"}
        keep_bits = self.keep_bits(variable)
        if keep_bits < MANTISSA_BITS:
            # CF says how to describe rounding from version 1.12 on (section 8.4); older readers ignore it.
            attributes["quantization"] = "quantization_info"
            attributes["quantization_nsb"] = np.int32(keep_bits)
        return attributes

    def _global_attributes(self) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        attributes: dict[str, Any] = {
            "Conventions": "CF-1.11",
            "title": f"Weather forecast started from {_date(self.init):%Y-%m-%dT%H:%M}Z",
            "history": f"{now} {self.attributes.get('command_line', f'written by wm2 {__version__}')}",
            "date_created": now,
        }
        attributes |= {name: _plain(value) for name, value in self.attributes.items() if name != "Conventions"}
        return attributes


def _plain(value: str | int | float) -> Any:
    """An attribute in a type that every reader knows."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) < 2**31:
        return np.int32(value)
    return value


def _slices(size: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]


def _coordinate(dataset: Any, name: str, values: Any, attributes: Mapping[str, Any], kind: str = "f8") -> None:
    dataset.createDimension(name, len(values))
    _variable(dataset, name, kind, values, attributes, (name,))


def _variable(
    dataset: Any,
    name: str,
    kind: str,
    values: Any,
    attributes: Mapping[str, Any],
    dimensions: tuple[str, ...] = (),
) -> None:
    variable = dataset.createVariable(name, kind, dimensions, fill_value=False)
    variable.setncatts(attributes)
    variable[...] = values


def _date(instant: np.datetime64) -> datetime:
    """A date to be formatted; to the second."""
    return datetime.fromisoformat(str(instant.astype("datetime64[s]")))


def _height_name(height_m: float) -> str:
    return f"height_{height_m:g}m"
