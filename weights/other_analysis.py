"""Makes the analysis of another centre from months of a simulated world, to train a second encoder on.

    python weights/other_analysis.py years/*_6h_2018-*.nc years/*_6h_2019-0[1-3].nc --out other

The same weather on a grid of 3.75 degrees with pole rows, without 3 of the 13 levels, and with what analyses differ in:
temperatures 1 K too high, heights 100 m2 s-2 too low, winds 5 % too weak, humidity 10 % too high, 2 m temperatures
2 K too low over land.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import netCDF4
import numpy as np

from wm2cli.grid import Grid
from wm2cli.writing.canonical import write_fields

GRID = Grid.regular(3.75, "poles")
MISSING = (150, 600, 925)
"""hPa."""
UPPER, SURFACE = ("z", "t", "u", "v", "q"), ("t2m", "d2m", "u10", "v10", "u100", "v100", "msl", "tcc")
FACTORS = {"u": 0.95, "v": 0.95, "u10": 0.95, "v10": 0.95, "u100": 0.95, "v100": 0.95, "q": 1.1}
OFFSETS = {"z": -100.0, "t": 1.0}
T2M_OVER_LAND = -2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="months of a world")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in arguments.files:
        convert(path, arguments.out / path.name)
        print(arguments.out / path.name, flush=True)


def convert(source: Path, target: Path) -> None:
    """One month."""
    with netCDF4.Dataset(source) as data:
        data.set_auto_mask(False)
        grid = Grid(np.array(data["latitude"][:]), np.array(data["longitude"][:]))
        kept = ~np.isin(data["level"][:], MISSING)
        fields = {name: grid.regrid_to(GRID, data[name][:][:, kept], "bilinear") for name in UPPER}
        fields |= {name: grid.regrid_to(GRID, data[name][:], "bilinear") for name in SURFACE}
        static = {name: grid.regrid_to(GRID, data[name][:], "bilinear") for name in ("orog", "lsm")}
        times = np.array(data["time"][:], "int64").astype("datetime64[s]")
        levels = [float(level) for level in data["level"][kept]]
        attributes = {name: data.getncattr(name) for name in data.ncattrs() if name not in ("history", "Conventions")}
    for name, factor in FACTORS.items():
        fields[name] = fields[name] * factor
    for name, offset in OFFSETS.items():
        fields[name] = fields[name] + offset
    fields["t2m"] = fields["t2m"] + T2M_OVER_LAND * (static["lsm"] > 0.5)
    attributes["title"] = "Simulated atmosphere with the errors of an imagined analysis, not observations"
    write_fields(target, times=times, grid=GRID, levels=levels, fields={**fields, **static}, attributes=attributes,
                 rounded=True)  # fmt: skip


if __name__ == "__main__":
    main()
