"""How fast forecasts are scored: `wm2 evaluate` against the same scores written out as xarray expressions.

Daily forecasts of 14 days on 64 x 32 with 70 channels, in a Zarr store with one init and lead a chunk; truth and
climatology beside it. Both sides make RMSE, MAE, bias, ACC and activity by lead and channel for the four default
regions, for the forecast, persistence and climatology; `wm2 evaluate` makes its wind speeds, spectra and physical
checks besides. A plain read of every chunk is timed as well: nothing can be faster. Elapsed time and processor time of
all threads are told, since other programs lengthen the one more than the other.

The expressions hold everything at once. With `--plain-inits` they take only the first inits, which `wm2 evaluate` is
timed on as well; what they would take for all inits is then scaled, and labelled so.

    python benchmarks/evaluate.py                                          # a month of inits, daily leads
    python benchmarks/evaluate.py --inits 365 --plain-inits 16             # a whole year: 3 GB of forecasts
    python benchmarks/evaluate.py --inits 365 --step 6 --plain-inits 4     # every 6 h: 12 GB
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from wm2cli.evaluation.evaluate import Options, evaluate
from wm2cli.evaluation.regions import Regions
from wm2cli.evaluation.results import Evaluation
from wm2cli.grid import Grid
from wm2cli.schema import GRAVITY, LEVELS_13, VARIABLES, standard_height, standard_temperature

UPPER = ("z", "t", "u", "v", "q")
SURFACE = ("t2m", "d2m", "u10", "v10", "msl")
START = np.datetime64("2022-01-01T00")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inits", type=int, default=31)
    parser.add_argument("--step", type=int, default=24, help="hours between leads")
    parser.add_argument("--workers", type=int, default=None, help="threads; what wm2 takes by default")
    parser.add_argument("--degrees", type=float, default=5.625, help="resolution")
    parser.add_argument("--plain-inits", type=int, default=None, help="inits of the alternative; all by default")
    parser.add_argument("--folder", type=Path, default=None, help="where the data are written, and removed again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(json.dumps(measure(Path(folder), arguments), indent=2))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    leads = np.arange(arguments.step, 337, arguments.step)
    inits = START + np.arange(arguments.inits) * np.timedelta64(24, "h")
    times = START + np.arange(0, (arguments.inits + 14) * 24 + 1, arguments.step) * np.timedelta64(1, "h")
    grid = Grid.regular(arguments.degrees, "cells")
    write(folder, grid, inits, leads, times, arguments.step)
    os.sync()  # or what is written to the disk meanwhile would be timed as well
    say(f"{len(inits)} inits x {len(leads)} leads x 70 channels on {grid.describe()}")
    reading, _ = timed("reading every chunk", lambda: read_all(folder / "forecast.zarr"))
    ours, evaluation = timed("wm2 evaluate", lambda: score(folder, "forecast.zarr", arguments.workers))
    some = min(arguments.plain_inits or arguments.inits, arguments.inits)
    part = ours
    if some < arguments.inits:
        stored = xr.open_zarr(folder / "forecast.zarr", chunks=None, consolidated=False).isel(init_time=slice(some))
        one = {name: {"chunks": (1, 1, *array.shape[2:]), "compressors": None} for name, array in stored.items()}
        stored.drop_encoding().to_zarr(folder / "part.zarr", encoding=one, consolidated=False)
        part, evaluation = timed(f"wm2 evaluate, {some} inits",
                                 lambda: score(folder, "part.zarr", arguments.workers))  # fmt: skip
    loading, (truth, climatology) = timed("loading truth and climatology for the expressions", lambda: load(folder))
    theirs, plainly = timed(f"xarray expressions, {some} inits", lambda: plain(folder, grid, some, truth, climatology))
    for name in ("rmse", "mae", "bias", "acc", "activity"):
        ours_z = evaluation.table(name)[:, evaluation.labels.index("z500")]
        theirs_z = plainly["forecast"][name]["z"].sel(level=500).transpose("lead_time", "region").values
        np.testing.assert_allclose(ours_z, theirs_z, rtol=1e-6, atol=1e-6)
    # Truth and climatology are loaded once whatever the number of inits; the rest is linear in it.
    whole = {kind: loading[kind] + theirs[kind] * arguments.inits / some for kind in theirs}
    return {
        "inits": arguments.inits, "leads": len(leads), "channels": 70, "grid": grid.describe(),
        "workers": arguments.workers or "default", "reading": reading, "evaluate": ours,
        "same_inits": {
            "inits": some, "evaluate": part, "xarray": {kind: loading[kind] + theirs[kind] for kind in theirs},
            "ratio": {kind: round(part[kind] / (loading[kind] + theirs[kind]), 4) for kind in theirs},
        },
        "xarray_for_all": {
            "how": "measured" if some == arguments.inits else f"scaled from {some} inits, not measured",
            **{kind: round(value, 1) for kind, value in whole.items()},
        },
        "ratio_to_xarray_for_all": {kind: round(ours[kind] / whole[kind], 4) for kind in whole},
        "ratio_to_reading": {kind: round(ours[kind] / reading[kind], 2) for kind in reading},
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "machine": platform.machine(), "xarray": xr.__version__, "numpy": np.__version__,
    }  # fmt: skip


def score(folder: Path, name: str, workers: int | None) -> Evaluation:
    return evaluate(Options((folder / name,), truth=(str(folder / "truth.zarr"),),
                            climatology=folder / "climatology.zarr", workers=workers))  # fmt: skip


def load(folder: Path) -> tuple[xr.Dataset, xr.Dataset]:
    truth, climatology = (
        xr.open_zarr(folder / f"{name}.zarr", chunks=None, consolidated=False).load()
        for name in ("truth", "climatology")
    )
    return truth, climatology


def plain(folder: Path, grid: Grid, some: int, truth: xr.Dataset, climatology: xr.Dataset
          ) -> dict[str, dict[str, xr.Dataset]]:  # fmt: skip
    """The scores as a careful user of xarray writes them: everything loaded, expressions over whole arrays."""
    stored = xr.open_zarr(folder / "forecast.zarr", chunks=None, consolidated=False)
    forecast = stored.isel(init_time=slice(some)).load()
    valid = forecast.init_time + forecast.lead_time
    observed = truth.sel(time=valid).drop_vars("time")
    normal = climatology.sel(hour=valid.dt.hour, dayofyear=valid.dt.dayofyear).drop_vars(["hour", "dayofyear"])
    held = truth.sel(time=forecast.init_time).drop_vars("time")
    regions = Regions.on(grid)
    masks = np.stack(
        [(rows[:, None] * regions.masks[mask]) for rows, mask in zip(regions.rows, regions.which, strict=True)]
    )
    places = {"region": list(regions.names), "latitude": grid.lat, "longitude": grid.lon}
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


def write(folder: Path, grid: Grid, inits: Any, leads: Any, times: Any, step: int) -> None:
    """Random fields around the standard atmosphere, a chunk a time."""
    random = np.random.default_rng(1)
    axes: dict[str, Any] = {
        "level": ("level", list(LEVELS_13), {"units": "hPa"}),
        "latitude": grid.lat,
        "longitude": grid.lon,
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
            space = (13, *grid.shape) if name in UPPER else grid.shape
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


def timed(what: str, work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Elapsed and processor seconds of a piece of work, and what it makes."""
    started, used = time.perf_counter(), time.process_time()
    made = work()
    found = {"seconds": round(time.perf_counter() - started, 3), "cpu_seconds": round(time.process_time() - used, 3)}
    say(f"{what}: {found['seconds']:.2f} s, processor {found['cpu_seconds']:.2f} s")
    return found, made


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
