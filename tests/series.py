"""Made-up weather over many times: fields that move and change, and files of them as `wm2 fetch` leaves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
from numpy.typing import NDArray
from weather import weather

from wm2cli.grid import Grid
from wm2cli.schema import VARIABLES

GRID = Grid.regular(22.5, "cells")
LEVELS = (500.0, 850.0)
HOUR = np.timedelta64(3600, "s")
EPOCH = np.datetime64("2019-12-25T00", "s")


def times(start: str, stop: str, step_hours: int = 6) -> NDArray[np.datetime64]:
    """From `start` to before `stop`."""
    return np.arange(np.datetime64(start, "s"), np.datetime64(stop, "s"), step_hours * HOUR)


def moving(name: str, level: float | None, time: np.datetime64, grid: Grid = GRID) -> NDArray[np.float32]:
    """(H, W) of `weather` that has moved a degree an hour to the east and swells with a period of five days."""
    hours = int((time - EPOCH) / HOUR)
    base = weather(name.removesuffix("_6h"), level, grid.lat, (grid.lon - hours) % 360.0)
    swell = 1.0 + 0.05 * np.sin(2 * np.pi * hours / 120.0)
    mean = base.mean()
    return np.asarray(mean + (base - mean) * swell, np.float32)


def write_month(
    path: Path,
    when: Sequence[np.datetime64] | NDArray[np.datetime64],
    names: Sequence[str] = ("z", "t", "t2m", "tp_6h"),
    *,
    levels: Sequence[float] = LEVELS,
    static: Sequence[str] = ("orog", "lsm"),
    grid: Grid = GRID,
    units: Mapping[str, str] | None = None,
    change: Callable[[str, float | None, np.datetime64, NDArray[np.float32]], NDArray[Any]] | None = None,
    attributes: Mapping[str, str] | None = None,
) -> Path:
    """A canonical file: dims (time, level, latitude, longitude), one chunk a time.

    Args:
        change: Makes other values of (name, level, time, values).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with netCDF4.Dataset(path, "w") as file:
        for axis, values, attrs in (
            ("time", np.asarray(when, "datetime64[s]").astype(np.int64) // 3600,
             {"units": "hours since 1970-01-01", "standard_name": "time"}),
            ("level", np.asarray(levels), {"units": "hPa", "standard_name": "air_pressure"}),
            ("latitude", grid.lat, {"units": "degrees_north"}),
            ("longitude", grid.lon, {"units": "degrees_east"}),
        ):  # fmt: skip
            file.createDimension(axis, len(values))
            made = file.createVariable(axis, np.asarray(values).dtype, (axis,))
            made.setncatts(attrs)
            made[:] = values
        for name in (*names, *static):
            known = VARIABLES[name]
            dims: tuple[str, ...] = ("latitude", "longitude")
            if known.kind != "static":
                dims = ("time", *(("level",) if known.kind == "pressure" else ()), *dims)
            chunks = tuple(1 if dim == "time" else file.dimensions[dim].size for dim in dims)
            made = file.createVariable(name, "f4", dims, zlib=True, complevel=1, chunksizes=chunks)
            made.units = (units or {}).get(name, known.units)
            if known.statistic != "point":
                made.cell_methods = f"time: {known.statistic}"
            if known.kind == "static":
                made[:] = weather(name, None, grid.lat, grid.lon)
                continue
            for number, time in enumerate(when):
                maps = []
                for level in levels if known.kind == "pressure" else (None,):
                    values = moving(name, level, time, grid)
                    maps.append(values if change is None else change(name, level, time, values))
                made[number] = np.stack(maps) if known.kind == "pressure" else maps[0]
        file.setncatts({"title": "Made-up weather", "wm2_kind": "simulated", "source": "tests"}
                       if attributes is None else attributes)  # fmt: skip
    return path


def write_folder(folder: Path, start: str = "2019-12-29", stop: str = "2020-01-08", days: int = 3, **how: Any) -> Path:
    """A folder with a file for every few days."""
    whole = times(start, stop)
    for number in range(0, whole.size, 4 * days):
        part = whole[number : number + 4 * days]
        write_month(folder / f"{str(part[0])[:10]}.nc", part, **how)
    return folder
