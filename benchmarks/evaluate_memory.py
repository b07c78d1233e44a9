"""How much memory `wm2 evaluate` takes at 0.25 degrees: with one init, and with several times as many.

Six channels on 721 x 1440, three leads a day apart, truth and climatology beside them, one thread. Each case runs in a
process of its own, whose peak is what the system counted. What is read of truth and climatology is kept for the next
inits up to a limit, so the first few inits still add to the peak; later ones must not.

    python benchmarks/evaluate_memory.py                     # 1, 12 and 24 inits; 3 GB of disk, some minutes
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from wm2cli.evaluation.evaluate import Options, evaluate
from wm2cli.grid import Grid
from wm2cli.schema import GRAVITY, VARIABLES, standard_height, standard_temperature

GRID = Grid.regular(0.25)
START = np.datetime64("2022-01-01T00")
DAY = np.timedelta64(24, "h")
LEVELS = np.array([500.0, 850.0])
CENTRES: dict[str, tuple[Any, float]] = {
    "z": (GRAVITY * np.vectorize(standard_height)(LEVELS)[:, None, None], 800.0),
    "t": (np.vectorize(standard_temperature)(LEVELS)[:, None, None], 6.0), "u10": (0.0, 8.0), "v10": (0.0, 8.0),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inits", type=int, nargs="+", default=[1, 12, 24])
    parser.add_argument("--leads", type=int, default=3, help="days")
    parser.add_argument("--folder", type=Path, default=None, help="where the data are written, and removed again")
    parser.add_argument("--score", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.score is not None:
        print(json.dumps(score(arguments.score)))
        return
    cases = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write(folder / "truth.zarr", {"time": START + np.arange(max(arguments.inits) + arguments.leads) * DAY})
        write(folder / "climatology.zarr", {"hour": np.array([0]), "dayofyear": np.arange(1, 367)},
              days=max(arguments.inits) + arguments.leads)  # fmt: skip
        for inits in arguments.inits:
            leads = (np.arange(1, arguments.leads + 1) * DAY).astype("timedelta64[ns]")
            write(folder / "forecast.zarr", {"init_time": START + np.arange(inits) * DAY, "lead_time": leads})
            words = [sys.executable, __file__, "--score", str(folder)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            cases.append({"inits": inits, **json.loads(done.stdout)})
            print(f"{inits} inits: {cases[-1]}", file=sys.stderr)
    print(json.dumps({"grid": GRID.describe(), "channels": 6, "leads": arguments.leads, "cases": cases,
                      "machine": platform.machine()}, indent=2))  # fmt: skip


def score(folder: Path) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = time.process_time()
    evaluate(Options((folder / "forecast.zarr",), truth=(str(folder / "truth.zarr"),),
                     climatology=folder / "climatology.zarr", workers=1))  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_mib": round(peak / 1024), "before_mib": round(before / 1024),
            "cpu_seconds": round(time.process_time() - used, 1)}  # fmt: skip


def write(path: Path, leading: dict[str, Any], days: int | None = None) -> None:
    """Random fields, a chunk a time; only some days of a climatology, since the others are never read."""
    random = np.random.default_rng(1)
    coordinates = {name: np.asarray(v, "datetime64[ns]") if v.dtype.kind == "M" else v for name, v in leading.items()}
    axes = {"level": ("level", LEVELS, {"units": "hPa"}), "latitude": GRID.lat, "longitude": GRID.lon}
    xr.Dataset(coords={**coordinates, **axes}).to_zarr(path, mode="w", consolidated=False)
    group = zarr.open_group(path)
    shape = tuple(len(values) for values in leading.values())
    pattern = random.normal(size=(3, *GRID.shape)).astype(np.float32)
    for number, (name, (centre, spread)) in enumerate(CENTRES.items()):
        space = (*np.shape(centre)[:1], *GRID.shape)
        names = (*leading, *(("level",) if np.ndim(centre) else ()), "latitude", "longitude")
        array = group.create_array(
            name, shape=(*shape, *space), chunks=(*(1,) * len(shape), *space), dtype="float32", dimension_names=names,
            compressors=None, attributes={"units": VARIABLES[name].units},
        )  # fmt: skip
        for place in list(np.ndindex(shape))[:days]:
            field = pattern[sum(place) % 3] + 0.5 * pattern[(number + 2 * sum(place)) % 3]
            array[place] = (centre + np.float32(spread) * field).astype(np.float32)


if __name__ == "__main__":
    main()
