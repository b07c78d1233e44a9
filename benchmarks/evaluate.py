"""How fast forecasts are scored: `wm2 evaluate` against the same scores written out as xarray expressions.

Daily forecasts of 14 days on 64 x 32 with 70 channels, in a Zarr store with one init and lead a chunk; truth and
climatology beside it. Both sides make RMSE, MAE, bias, ACC and activity by lead and channel for the four default
regions, for the forecast, persistence and climatology; `wm2 evaluate` makes its spectra and physical checks besides. A
plain read of every chunk is timed as well: nothing can be faster.

    python benchmarks/evaluate.py                       # a month of inits, daily leads; about a minute
    python benchmarks/evaluate.py --inits 365 --step 6  # the whole year every 6 h: 12 GB of forecasts
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from wm2cli.evaluation.evaluate import Options, evaluate
from wm2cli.evaluation.regions import Regions
from wm2cli.grid import Grid
from wm2cli.schema import GRAVITY, LEVELS_13, VARIABLES, standard_height, standard_temperature

GRID = Grid.regular(5.625, "cells")
UPPER = ("z", "t", "u", "v", "q")
SURFACE = ("t2m", "d2m", "u10", "v10", "msl")
START = np.datetime64("2022-01-01T00")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inits", type=int, default=31)
    parser.add_argument("--step", type=int, default=24, help="hours between leads")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--plain-inits", type=int, default=None, help="inits of the alternative, scaled to all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), arguments), indent=2))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    leads = np.arange(arguments.step, 337, arguments.step)
    inits = START + np.arange(arguments.inits) * np.timedelta64(24, "h")
    times = START + np.arange(0, (arguments.inits + 14) * 24 + 1, arguments.step) * np.timedelta64(1, "h")
    write(folder, inits, leads, times, arguments.step)
    say(f"{len(inits)} inits x {len(leads)} leads x 70 channels on {GRID.describe()}")
    reading = timed(lambda: read_all(folder / "forecast.zarr"))
    say(f"reading every chunk: {reading:.2f} s")
    chosen = Options((folder / "forecast.zarr",), truth=(str(folder / "truth.zarr"),),
                     climatology=folder / "climatology.zarr", workers=arguments.workers)  # fmt: skip
    found: dict[str, Any] = {}
    ours = timed(lambda: found.update(evaluation=evaluate(chosen)))
    say(f"wm2 evaluate: {ours:.2f} s")
    some = min(arguments.plain_inits or arguments.inits, arguments.inits)
    plainly: dict[str, Any] = {}
    theirs = timed(lambda: plainly.update(scores=plain(folder, some))) * arguments.inits / some
    say(f"xarray expressions: {theirs:.2f} s" + (f" (from {some} inits)" if some < arguments.inits else ""))
    if some == arguments.inits:
        for name in ("rmse", "mae", "bias", "acc", "activity"):
            ours_z = found["evaluation"].table(name)[:, found["evaluation"].labels.index("z500")]
            theirs_z = plainly["scores"]["forecast"][name]["z"].sel(level=500).transpose("lead_time", "region").values
            np.testing.assert_allclose(ours_z, theirs_z, rtol=1e-6, atol=1e-6)
    return {
        "inits": arguments.inits, "leads": len(leads), "channels": 70, "grid": GRID.describe(),
        "workers": arguments.workers, "read_seconds": round(reading, 3), "evaluate_seconds": round(ours, 3),
        "xarray_seconds": round(theirs, 3), "xarray_inits": some, "ratio_to_xarray": round(ours / theirs, 4),
        "ratio_to_reading": round(ours / reading, 3), "machine": platform.machine(), "xarray": xr.__version__,
        "numpy": np.__version__,
    }  # fmt: skip


def plain(folder: Path, some: int) -> dict[str, dict[str, xr.Dataset]]:
    """The scores as a careful user of xarray writes them: everything loaded, expressions over whole arrays."""
    forecast = xr.open_zarr(folder / "forecast.zarr", chunks=None).isel(init_time=slice(some)).load()
    truth = xr.open_zarr(folder / "truth.zarr", chunks=None).load()
    climatology = xr.open_zarr(folder / "climatology.zarr", chunks=None).load()
    valid = forecast.init_time + forecast.lead_time
    observed = truth.sel(time=valid).drop_vars("time")
    normal = climatology.sel(hour=valid.dt.hour, dayofyear=valid.dt.dayofyear).drop_vars(["hour", "dayofyear"])
    held = truth.sel(time=forecast.init_time).drop_vars("time")
    regions = Regions.on(GRID)
    masks = np.stack(
        [(rows[:, None] * regions.masks[mask]) for rows, mask in zip(regions.rows, regions.which, strict=True)]
    )
    places = {"region": list(regions.names), "latitude": GRID.lat, "longitude": GRID.lon}
    weights = xr.DataArray(masks, places, ("region", "latitude", "longitude"))
    made = {}
    for system, values in (("forecast", forecast), ("persistence", held), ("climatology", normal)):
        made[system] = scores(
            values.astype(np.float64), observed.astype(np.float64), normal.astype(np.float64), weights
        )
    return made


def scores(values: xr.Dataset, truth: xr.Dataset, normal: xr.Dataset, weights: xr.DataArray) -> dict[str, xr.Dataset]:
    """Each score in one expression."""

    def mean(field: xr.Dataset) -> xr.Dataset:
        return field.weighted(weights).mean(("latitude", "longitude")).mean("init_time")

    ahead, observed = values - normal, truth - normal
    return {
        "rmse": np.sqrt(mean((values - truth) ** 2)), "mae": mean(abs(values - truth)), "bias": mean(values - truth),
        "acc": mean(ahead * observed) / np.sqrt(mean(ahead**2) * mean(observed**2)),
        "activity": np.sqrt(mean(ahead**2)),
    }  # fmt: skip


def write(folder: Path, inits: Any, leads: Any, times: Any, step: int) -> None:
    """Random fields around the standard atmosphere, a chunk a time."""
    random = np.random.default_rng(1)
    axes: dict[str, Any] = {
        "level": ("level", list(LEVELS_13), {"units": "hPa"}),
        "latitude": GRID.lat,
        "longitude": GRID.lon,
    }
    leading = {
        "truth": {"time": times},
        "forecast": {"init_time": inits, "lead_time": leads.astype("timedelta64[h]").astype("timedelta64[ns]")},
        "climatology": {"hour": np.arange(0, 24, min(24, step)), "dayofyear": np.arange(1, 367)},
    }
    for kind, first in leading.items():
        coordinates = {name: np.asarray(v, "datetime64[ns]") if v.dtype.kind == "M" else v for name, v in first.items()}
        xr.Dataset(coords={**coordinates, **axes}).to_zarr(folder / f"{kind}.zarr", mode="w", consolidated=False)
        group = zarr.open_group(folder / f"{kind}.zarr")
        shape = tuple(len(values) for values in first.values())
        for name in (*UPPER, *SURFACE):
            space = (13, *GRID.shape) if name in UPPER else GRID.shape
            dims = (*first, *(("level",) if name in UPPER else ()), "latitude", "longitude")
            array = group.create_array(
                name, shape=(*shape, *space), chunks=(*(1,) * len(shape), *space), dtype="float32",
                dimension_names=dims, compressors=None, attributes={"units": VARIABLES[name].units},
            )  # fmt: skip
            centre, spread = climate(name)
            pattern = random.normal(size=(64, *space)).astype(np.float32)
            for place in range(shape[0]):
                numbers = place * math.prod(shape[1:]) + np.arange(math.prod(shape[1:]))
                field = pattern[numbers % 64] + (0 if kind == "truth" else 0.5 * pattern[(numbers * 7 + 3) % 64])
                array[place] = (centre + spread * field).reshape(array.shape[1:])
        zarr.consolidate_metadata(folder / f"{kind}.zarr")


def climate(name: str) -> tuple[Any, Any]:
    """Mean and spread of a variable, by level for those on levels."""
    levels = np.array(LEVELS_13, float)[:, None, None]
    match name:
        case "z":
            return GRAVITY * np.vectorize(standard_height)(levels), 800.0
        case "t":
            return np.vectorize(standard_temperature)(levels), 6.0
        case "q":
            return 5e-3 * (levels / 1000) ** 3, 5e-4 * (levels / 1000) ** 3
        case "t2m" | "d2m":
            return 285.0, 8.0
        case "msl":
            return 101000.0, 800.0
        case _:
            return 0.0, 8.0


def read_all(path: Path) -> None:
    group = zarr.open_group(path, mode="r")
    for name in (*UPPER, *SURFACE):
        array = group[name]
        for number in range(array.shape[0]):
            np.asarray(array[number])


def timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
