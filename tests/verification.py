"""Small forecasts, truths and climatologies in files, for the tests of `wm2 evaluate` and `wm2 plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from weather import weather

from wm2cli.grid import Grid
from wm2cli.schema import VARIABLES
from wm2cli.writing import ForecastWriter

Array = NDArray[np.floating[Any]]

GRID = Grid.regular(22.5, "cells")
LEVELS = (500.0, 850.0)
UPPER = ("z", "t", "u", "v", "q")
GROUND = ("t2m", "u10", "v10", "msl")
START = np.datetime64("2024-02-27T00", "s")
"""Two days before a leap day, so that calendars show."""


def truth_at(name: str, level: float | None, time: np.datetime64, grid: Grid = GRID) -> Array:
    """(H, W) truth: another pattern each day, moved eastward within it."""
    hours = (time - START) / np.timedelta64(1, "h")
    day, rest = divmod(hours, 24)
    now, then = (weather(name, level, grid.lat, grid.lon, day=float(number)) for number in (day, day + 1))
    return np.asarray(now + (then - now) * rest / 24)


def forecast_at(name: str, level: float | None, init: np.datetime64, lead: int, grid: Grid = GRID, skill: float = 0.5
                ) -> Array:  # fmt: skip
    """(H, W) forecast: the truth of the start mixed with the truth of the valid time, so better than persistence."""
    start, end = truth_at(name, level, init, grid), truth_at(name, level, init + np.timedelta64(lead, "h"), grid)
    return np.asarray(start + skill * (end - start))


def times(days: int, step: int = 6, start: np.datetime64 = START) -> NDArray[np.datetime64]:
    """Regular times from a start."""
    return start + np.arange(0, 24 * days + 1, step) * np.timedelta64(1, "h")


def write_truth(path: Path, days: int = 4, grid: Grid = GRID, *, step: int = 6, upper: Sequence[str] = UPPER,
                ground: Sequence[str] = GROUND, levels: Sequence[float] = LEVELS,
                attributes: Mapping[str, Any] | None = None, change: Any = None) -> Path:  # fmt: skip
    """A truth with our names; `change` edits the data set before it is written."""
    made = dataset(
        times(days, step), lambda name, level, time: truth_at(name, level, time, grid), grid, upper, ground, levels
    )
    made.attrs.update(attributes or {})
    return save(made if change is None else change(made), path)


def write_climatology(path: Path, grid: Grid = GRID, hours: Sequence[int] = (0, 6, 12, 18)) -> Path:
    """A climatology that changes with the hour and the day, for every day of the year the tests use."""
    days = list(range(1, 367))
    data: dict[str, Any] = {}
    for name in (*UPPER, *GROUND):
        fields = [climatology_at(name, level, grid) for level in (LEVELS if name in UPPER else (None,))]
        drift = np.add.outer(np.arange(len(hours)), np.arange(366) % 5)[..., None, None, None]
        scale = np.std(fields[0]) * 0.01
        values = (np.stack(fields) + scale * drift).astype(np.float32)
        dims = ("hour", "dayofyear", "level", "latitude", "longitude")
        units = {"units": VARIABLES[name].units}
        if name in GROUND:
            data[name] = ((*dims[:2], *dims[3:]), values[:, :, 0], units)
        else:
            data[name] = (dims, values, units)
    axes = {"hour": list(hours), "dayofyear": days, "level": ("level", list(LEVELS), {"units": "hPa"}),
            "latitude": grid.lat, "longitude": grid.lon}  # fmt: skip
    return save(xr.Dataset(data, axes, {"years": "1990-2019", "kind": "reanalysis"}), path)


def climatology_at(name: str, level: float | None, grid: Grid = GRID) -> Array:
    """The part of the climatology that does not change."""
    return np.asarray(weather(name, level, grid.lat, grid.lon, day=-1.0))


def write_forecast(path: Path, init: np.datetime64 = START, leads: Sequence[int] = (6, 12, 24), grid: Grid = GRID, *,
                   skill: float = 0.5, attributes: Mapping[str, Any] | None = None) -> Path:  # fmt: skip
    """What `wm2 forecast` writes, without rounding."""
    with ForecastWriter(path, pressure=UPPER, levels=LEVELS, surface=GROUND, grid=grid, init=init, leads_hours=leads,
                        attributes=attributes, lossless=True) as writer:  # fmt: skip
        for lead in leads:
            upper = np.stack([np.stack([forecast_at(name, level, init, lead, grid, skill) for level in LEVELS])
                              for name in UPPER])  # fmt: skip
            lower = np.stack([forecast_at(name, None, init, lead, grid, skill) for name in GROUND])
            writer.write(lead, upper.astype(np.float32), lower.astype(np.float32))
    return path


LONG = {"z": "geopotential", "t": "temperature", "u": "u_component_of_wind", "v": "v_component_of_wind",
        "q": "specific_humidity", "t2m": "2m_temperature", "u10": "10m_u_component_of_wind",
        "v10": "10m_v_component_of_wind", "msl": "mean_sea_level_pressure"}  # fmt: skip


def weatherbench(inits: Sequence[np.datetime64], leads: Sequence[int], grid: Grid = GRID, *, members: int = 0,
                 skill: float = 0.5, names: Sequence[str] = ("z", "t2m", "u10", "v10")) -> xr.Dataset:  # fmt: skip
    """Forecasts as WeatherBench 2 keeps them: latitude ascending, longitude before latitude, long names, no units."""
    data: dict[str, Any] = {}
    for name in names:
        upper = name in UPPER
        fields = np.stack([
            np.stack([
                np.stack([forecast_at(name, level, init, lead, grid, skill).T[:, ::-1]
                          for level in (LEVELS if upper else (None,))])
                for lead in leads
            ])
            for init in inits
        ]).astype(np.float32)  # fmt: skip
        dims = ["time", "prediction_timedelta", "level", "longitude", "latitude"]
        if not upper:
            fields, dims = fields[:, :, 0], [*dims[:2], *dims[3:]]
        if members:
            spread = np.arange(members) - (members - 1) / 2
            shape = (members, *(1,) * fields.ndim)
            fields = fields[None] + (spread * np.std(fields) * 0.02).reshape(shape).astype(np.float32)
            dims = ["number", *dims]
        data[LONG[name]] = (dims, fields)
    steps = np.array(leads, "timedelta64[h]").astype("timedelta64[ns]")
    axes = {
        "time": np.array(inits, "datetime64[ns]"), "prediction_timedelta": steps,
        "level": list(LEVELS), "longitude": grid.lon, "latitude": grid.lat[::-1],
    }  # fmt: skip
    if members:
        axes["number"] = list(range(members))
    return xr.Dataset(data, axes)


def dataset(when: NDArray[np.datetime64], field: Any, grid: Grid, upper: Sequence[str], ground: Sequence[str],
            levels: Sequence[float]) -> xr.Dataset:  # fmt: skip
    """A canonical data set from a function of name, level and time."""
    data: dict[str, Any] = {}
    for name in (*upper, *ground):
        each = tuple(levels) if name in upper else (None,)
        values = np.stack([np.stack([field(name, level, time) for level in each]) for time in when]).astype(np.float32)
        dims = ("time", "level", "latitude", "longitude")
        units = {"units": VARIABLES[name].units}
        data[name] = (dims, values, units) if name in upper else ((dims[0], *dims[2:]), values[:, 0], units)
    axes = {"time": when.astype("datetime64[ns]"), "latitude": ("latitude", grid.lat, {"units": "degrees_north"}),
            "longitude": ("longitude", grid.lon, {"units": "degrees_east"}),
            "level": ("level", list(levels), {"units": "hPa"})}  # fmt: skip
    return xr.Dataset(data, axes)


def save(made: xr.Dataset, path: Path) -> Path:
    """To NetCDF or Zarr, by the suffix."""
    if path.suffix == ".zarr":
        made.to_zarr(path, mode="w", consolidated=False)
    else:
        made.to_netcdf(path)
    return path
