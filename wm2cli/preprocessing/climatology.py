"""The climatology of a training store: the mean of every hour and day of the year over the times of `train`.

As in WeatherBench 2: all years and the days around count together, with weights that fall linearly from the day itself
to zero at both ends of the window (61 days: 59 count); the window goes round the end of the year; the 366th day of an
ordinary year is its 365th again. The day of the year is the calendar's, so it is one ahead from March in leap years.
Of precipitation there are the classes of SEEPS as well (`rain`).
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wm2cli
from wm2cli.errors import DataError, ResourceError
from wm2cli.evaluation.seeps import DRY_BELOW_M, DRY_FRACTION, HEAVY_FROM
from wm2cli.preprocessing.rain import classes_by_day
from wm2cli.schema import VARIABLES
from wm2cli.store import Progress, Store
from wm2cli.writing.chunks import round_mantissa

Array = NDArray[np.float64]

DAYS = 366

_CACHE_BYTES = 512 * 2**20
_RAIN_BYTES = 1024 * 2**20
"""Of the precipitation held at once: of an hour in all years, if it is not more, and else of a window, band by band."""


def write_climatology(store: Store, path: Path, window_days: int, overwrite: bool = False,
                      on_progress: Progress = lambda what, done, total: None) -> None:  # fmt: skip
    """Writes the climatology in the layout of WeatherBench 2: (hour, dayofyear, level, latitude, longitude).

    Args:
        store: A training store.
        path: NetCDF-4 file, or a Zarr folder if it ends in `.zarr`; appears when it is complete.
        window_days: Odd number of days.
        overwrite: Replace what is there.

    Raises:
        DataError: A day of the year has no times in its window.
        ResourceError: It cannot be written.
    """
    days = _Days(store)
    if lacks := days.without(window_days):
        raise DataError(
            f"{store.path}: train has no times within {half_width(window_days) - 1} days of {len(lacks)} days of the "
            f"year, day {lacks[0]} among them", hint="a climatology needs a whole year at least; make the window longer"
        )  # fmt: skip
    part = path.with_name(f".{path.name}.part")
    _remove(part)
    try:
        with (_ZarrFile if path.suffix == ".zarr" else _NetcdfFile)(part, store, days, window_days) as file:
            for number, hour in enumerate(days.hours):
                for day, mean in enumerate(days.means(hour, window_days)):
                    file.write(number, day, mean.astype(np.float32))
                    on_progress("making the climatology", number * DAYS + day + 1, len(days.hours) * DAYS)
                _write_rain(file, days, number, window_days, on_progress)
        if overwrite:
            _remove(path)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            f"{path} could not be written: {error}", hint="check the folder and its free space"
        ) from error
    finally:
        _remove(part)


def _write_rain(file: _File, days: _Days, number: int, window_days: int, on_progress: Progress) -> None:
    """The classes of SEEPS at an hour, for every channel of precipitation that has them."""
    weights = [half_width(window_days) - abs(shift) for shift in range(-(window_days // 2), window_days // 2 + 1)]
    height, width = file.store.grid.shape
    for kept, channel in enumerate(days.rain):
        name = file.store.schema.channels[channel]
        limit = DRY_BELOW_M[VARIABLES[name].window_hours]
        for rows in file.bands:
            read = partial(days.rain_of, days.hours[number], kept, rows)
            for day, (dry, heavy) in enumerate(classes_by_day(read, weights, DAYS, limit)):
                for suffix, values in ((DRY_FRACTION, dry), (HEAVY_FROM, heavy)):
                    file.put(name + suffix, number, day, values.reshape(-1, width).astype(np.float32), rows)
                done = (number * height + rows.start) * DAYS + (day + 1) * (rows.stop - rows.start)
                on_progress(f"making the classes of {name}", done, len(days.hours) * height * DAYS)
    days.forget()


class _Days:
    """The times of `train` by hour and day of the year."""

    def __init__(self, store: Store) -> None:
        self._store = store
        places = store.split_indices("train")
        times = store.time[places]
        day_of_year, hour = calendar(times)
        years = times.astype("datetime64[Y]")
        self.hours = tuple(sorted({int(value) for value in hour}))
        self.years = (int(str(years.min())), int(str(years.max())))
        self._places: dict[tuple[int, int], list[int]] = {}
        for place, day, clock, year in zip(places.tolist(), day_of_year.tolist(), hour.tolist(), years, strict=True):
            self._places.setdefault((clock, day), []).append(place)
            if day == 365 and not _is_leap(int(str(year))):
                self._places.setdefault((clock, 366), []).append(place)
        names = store.schema.channels
        self.rain = tuple(number for number, name in enumerate(names)
                          if name.startswith("tp") and VARIABLES[name].window_hours in DRY_BELOW_M)  # fmt: skip
        self.most = max(map(len, self._places.values()))
        cells = int(np.prod(store.grid.shape))
        busiest = max(np.count_nonzero(hour == one) for one in self.hours)
        self._keeps = 4 * len(self.rain) * cells * busiest <= _RAIN_BYTES
        self._kept: dict[int, NDArray[np.float32]] = {}
        one = len(names) * cells * 8
        # With room for a window and two days every day is read once, else three or four times.
        self._sum = lru_cache(maxsize=max(1, _CACHE_BYTES // one))(self._read_sum)

    def rain_of(self, hour: int, number: int, rows: slice, day: int) -> NDArray[np.float32]:
        """(n, P) sums of one of the channels of precipitation in some rows, at an hour of a day in all years."""
        if day in self._kept:
            fields = self._kept[day][:, number, rows]
        else:
            channel, shape = self.rain[number], (rows.stop - rows.start, self._store.grid.lon.size)
            places = self._places.get((hour, day), ())
            fields = np.array([self._store.read([place])[0, channel, rows] for place in places]).reshape(-1, *shape)
        return fields.reshape(len(fields), -1)

    def forget(self) -> None:
        """An hour is done."""
        self._kept.clear()

    def count(self, hour: int, day: int) -> int:
        """Times of an hour on a day of the year, 1 to 366."""
        return len(self._places.get((hour, day), ()))

    def without(self, window_days: int) -> list[int]:
        """Days of the year that have no times in their window."""
        half = half_width(window_days)
        return [day for day in range(1, DAYS + 1)
                if any(not sum(self.count(hour, around(day, shift)) for shift in range(1 - half, half))
                       for hour in self.hours)]  # fmt: skip

    def means(self, hour: int, window_days: int) -> Any:
        """Yields (C, H, W) means of days 1 to 366.

        The weights of one day and the next differ by one everywhere, so the weighted sum moves on by the sum of the
        days to come less the sum of the days gone; few fields are held, whatever the grid and the window.
        """
        half = half_width(window_days)

        def total(shifts: range, day: int, weight: Callable[[int], int]) -> tuple[Array, int]:
            made, count = np.zeros((len(self._store.schema.channels), *self._store.grid.shape)), 0
            for shift in shifts:
                there = around(day, shift)
                if self.count(hour, there):
                    made += weight(shift) * self._sum(hour, there)
                    count += weight(shift) * self.count(hour, there)
            return made, count

        weighted, weights = total(range(1 - half, half), 1, lambda shift: half - abs(shift))
        ahead, number_ahead = total(range(1, half + 1), 1, lambda shift: 1)
        behind, number_behind = total(range(1 - half, 1), 1, lambda shift: 1)
        for day in range(1, DAYS + 1):
            yield weighted / weights
            weighted = weighted + ahead - behind
            weights += number_ahead - number_behind
            come, entering, gone = around(day, 1), around(day, half + 1), around(day, 1 - half)
            ahead = ahead + self._day(hour, entering) - self._day(hour, come)
            behind = behind + self._day(hour, come) - self._day(hour, gone)
            number_ahead += self.count(hour, entering) - self.count(hour, come)
            number_behind += self.count(hour, come) - self.count(hour, gone)

    def _day(self, hour: int, day: int) -> Array | float:
        return self._sum(hour, day) if self.count(hour, day) else 0.0

    def _read_sum(self, hour: int, day: int) -> Array:
        made = np.zeros((len(self._store.schema.channels), *self._store.grid.shape))
        rain = []
        for place in self._places[hour, day]:
            field = self._store.read([place])[0]
            made += field
            rain.append(field[list(self.rain)])
        if self.rain and self._keeps:
            self._kept[day] = np.stack(rain)
        return made


def half_width(window_days: int) -> int:
    """Days on either side at which the weight has fallen to zero; a window of one day holds that day."""
    return max(1, window_days // 2)


def around(day: int, shift: int) -> int:
    """The day of the year some days on, round the end of the year."""
    return (day - 1 + shift) % DAYS + 1


def calendar(times: NDArray[np.datetime64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Day of the year, from 1, and hour of the day."""
    days = times.astype("datetime64[D]")
    of_year = (days - times.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64) + 1
    return of_year, (times - days).astype("timedelta64[h]").astype(np.int64)


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


class _File(ABC):
    """What both containers have in common: names, axes and attributes."""

    def __init__(self, path: Path, store: Store, days: _Days, window_days: int) -> None:
        self.path = path
        self.store = store
        schema, hours = store.schema, days.hours
        level = {"units": "hPa", "standard_name": "air_pressure", "positive": "down"}
        self.axes: dict[str, tuple[NDArray[Any], dict[str, str]]] = {
            "hour": (np.array(hours, np.int64), {"long_name": "hour of the day, UTC"}),
            "dayofyear": (np.arange(1, DAYS + 1, dtype=np.int64), {"long_name": "day of the year"}),
            "level": (np.array(schema.levels, np.float64), level),
            "latitude": (store.grid.lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": (store.grid.lon, {"units": "degrees_east", "standard_name": "longitude"}),
        }
        if not schema.pressure:
            del self.axes["level"]
        self.variables: dict[str, tuple[slice, tuple[str, ...]]] = {}
        at = 0
        for name in schema.pressure:
            self.variables[name] = (
                slice(at, at + len(schema.levels)),
                ("hour", "dayofyear", "level", "latitude", "longitude"),
            )
            at += len(schema.levels)
        for name in schema.surface:
            self.variables[name] = (slice(at, at + 1), ("hour", "dayofyear", "latitude", "longitude"))
            at += 1
        self.rain = tuple(schema.channels[number] for number in days.rain)
        height, width = store.grid.shape
        samples = 4 * width * window_days * days.most
        step = max(1, min(height, _RAIN_BYTES // samples))
        self.bands = tuple(slice(first, min(first + step, height)) for first in range(0, height, step))
        ranges = store.splits["train"]
        self.attributes = {
            "Conventions": "CF-1.11",
            "title": f"Climatology of: {store.title}",
            "wm2_kind": store.kind,
            "source": str(store.provenance.get("source", "")),
            "attribution": "\n".join(map(str, store.provenance.get("attribution", ()))),
            "store_fingerprint": store.fingerprint,
            "years": f"{str(ranges[0][0])[:4]}-{str(ranges[-1][1])[:4]}",
            "times": ", ".join(f"{str(first)[:16]} to {str(last)[:16]}" for first, last in ranges),
            "window_days": str(window_days),
            "comment": "mean over all years and the days of the window, weights falling linearly to zero at its ends",
            "history": f"wm2 {wm2cli.__version__} preprocess --climatology",
        }

    def attributes_of(self, name: str) -> dict[str, str]:
        if name.endswith(DRY_FRACTION):
            return {"units": "1", "long_name": "fraction of dry cases, for SEEPS"}
        known = VARIABLES[name.removesuffix(HEAVY_FROM)]
        if name.endswith(HEAVY_FROM):
            return {"units": known.units, "long_name": "precipitation that is heavy from this sum on, for SEEPS"}
        named = {"standard_name": known.standard_name} if known.standard_name else {}
        precision = f"rounded to {known.keep_bits} bits of the mantissa"
        return {"units": known.units, "long_name": known.long_name, "comment": precision, **named}

    def write(self, hour: int, day: int, values: NDArray[np.float32]) -> None:
        """(C, H, W) of one hour and day, by their places on the axes; bits that the weather does not fill are zero."""
        for name, (channels, dims) in self.variables.items():
            rounded = round_mantissa(values[channels], VARIABLES[name].keep_bits)
            self.put(name, hour, day, rounded if "level" in dims else rounded[0])

    @abstractmethod
    def put(self, name: str, hour: int, day: int, values: NDArray[np.float32], rows: slice | None = None) -> None:
        """Writes one variable of one hour and day, or some rows of it."""

    def arrays(self) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
        """Name, axes and chunk of each variable."""
        for name, (_, dims) in self.variables.items():
            yield name, dims, (1, 1, *(self.axes[dim][0].size for dim in dims[2:]))
        for name in self.rain:
            dims = ("hour", "dayofyear", "latitude", "longitude")
            for suffix in (DRY_FRACTION, HEAVY_FROM):
                yield name + suffix, dims, (1, 1, self.bands[0].stop, self.axes["longitude"][0].size)


class _NetcdfFile(_File):
    def __enter__(self) -> _NetcdfFile:
        import netCDF4

        self._file = netCDF4.Dataset(self.path, "w", format="NETCDF4")
        for name, (values, attributes) in self.axes.items():
            self._file.createDimension(name, values.size)
            made = self._file.createVariable(name, values.dtype, (name,))
            made.setncatts(attributes)
            made[:] = values
        for name, dims, chunk in self.arrays():
            made = self._file.createVariable(name, "f4", dims, zlib=True, complevel=1, chunksizes=chunk)
            made.setncatts(self.attributes_of(name))
        self._file.setncatts(self.attributes)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def put(self, name: str, hour: int, day: int, values: NDArray[np.float32], rows: slice | None = None) -> None:
        self._file.variables[name][(hour, day) if rows is None else (hour, day, rows)] = values


class _ZarrFile(_File):
    def __enter__(self) -> _ZarrFile:
        import zarr
        from zarr.codecs import BloscCodec

        self._arrays: dict[str, Any] = {}
        group = zarr.create_group(self.path, zarr_format=3, attributes=dict(self.attributes))
        for name, (values, attributes) in self.axes.items():
            group.create_array(name, data=values, dimension_names=(name,), attributes=dict(attributes))
        for name, dims, chunk in self.arrays():
            self._arrays[name] = group.create_array(
                name, shape=tuple(self.axes[dim][0].size for dim in dims), chunks=chunk, dtype="float32",
                compressors=BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), dimension_names=dims,
                fill_value=np.nan, attributes=dict(self.attributes_of(name)),
            )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def put(self, name: str, hour: int, day: int, values: NDArray[np.float32], rows: slice | None = None) -> None:
        self._arrays[name][(hour, day) if rows is None else (hour, day, rows)] = values


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
