"""Makes the bundled sample from months of a simulated world, and the manifest of this folder.

    wm2 fetch --init 2024-01-01T00/2025-02-01T00/6h --source simulation --option seed=3 --option begins=2022-12-01 \
        --out world3
    wm2 preprocess --store STORE --climatology climatology.zarr       (the training store of the bundled weights)
    python weights/make_sample.py --world world3 --climatology climatology.zarr

Initial states keep all fields at the precision of forecasts; truth and climatology keep what is scored, at a precision
well below any forecast's error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import netCDF4
import numpy as np
import xarray as xr

from wm2cli.grid import Grid
from wm2cli.schema import VARIABLES
from wm2cli.writing.canonical import write_fields

HERE = Path(__file__).parent
INITS = ("2024-01-01T00", "2024-03-15T00", "2024-06-01T00", "2024-08-15T00", "2024-11-01T00")
VERIFIED = ("2024-01-01T00", "2024-06-01T00")
"""Initial times whose truth comes along, every six hours for 15 days."""
PRESSURE, LEVELS, SURFACE = ("z", "t", "u", "v", "q"), (500, 850), ("t2m", "u10", "v10", "msl")
STATE_SURFACE = ("t2m", "d2m", "u10", "v10", "u100", "v100", "msl", "tcc")
BITS = {"z": 14, "t": 11, "u": 6, "v": 6, "q": 6, "t2m": 11, "u10": 6, "v10": 6, "msl": 14}
"""Mantissa bits of truth and climatology: 2 m2 s-2 of geopotential, 0.06 K, 0.8 % of wind and humidity, 3 Pa."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", type=Path, required=True, help="folder of the simulated months")
    parser.add_argument("--climatology", type=Path, required=True, help="climatology of the training years")
    arguments = parser.parse_args()
    files = sorted(arguments.world.glob("*.nc"))
    with netCDF4.Dataset(files[0]) as first:
        attributes = {name: first.getncattr(name) for name in first.ncattrs() if name not in ("history", "Conventions")}
        levels = [float(level) for level in first["level"][:]]
        grid = Grid(np.array(first["latitude"][:]), np.array(first["longitude"][:]))
        static = {name: np.array(first[name][:]) for name in ("orog", "lsm")}
    target = HERE / "sample"
    target.mkdir(exist_ok=True)
    for init in INITS:
        times = np.array([init], "datetime64[s]")
        fields = read(files, times, (*PRESSURE, *STATE_SURFACE), None)
        write_fields(target / f"{init}.nc", times=times, grid=grid, levels=levels, fields={**fields, **static},
                     attributes=attributes, rounded=True)  # fmt: skip
    times = np.concatenate([
        np.datetime64(init, "s") + np.arange(0, 15 * 24 + 1, 6).astype("timedelta64[h]") for init in VERIFIED
    ])  # fmt: skip
    fields = read(files, times, (*PRESSURE, *SURFACE), LEVELS)
    write_fields(target / "truth.nc", times=times, grid=grid, levels=LEVELS, fields={**fields, **static},
                 attributes=attributes, rounded=True, keep_bits=BITS)  # fmt: skip
    climatology(arguments.climatology, times, target / "climatology.nc")
    manifest()


def read(files: list[Path], times: np.ndarray, names: tuple[str, ...], levels: tuple[int, ...] | None
         ) -> dict[str, np.ndarray]:  # fmt: skip
    """Fields at some times, all of which must be there."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    seen: list[np.datetime64] = []
    for path in files:
        with netCDF4.Dataset(path) as data:
            data.set_auto_mask(False)
            here = np.array(data["time"][:], "int64").astype("datetime64[s]")
            places = np.flatnonzero(np.isin(here, times))
            if not places.size:
                continue
            seen += list(here[places])
            height = np.isin(data["level"][:], levels) if levels else slice(None)
            for name in names:
                values = data[name][places]
                found[name].append(values[:, height] if VARIABLES[name].kind == "pressure" else values)
    if not np.array_equal(np.array(seen), times):
        raise SystemExit(f"the world lacks {sorted(set(times) - set(seen))[:3]} ...")
    return {name: np.concatenate(parts) for name, parts in found.items()}


def climatology(source: Path, times: np.ndarray, target: Path) -> None:
    """The days of the year that the truth has, of the scored fields."""
    days = np.unique((times.astype("datetime64[D]") - times.astype("datetime64[Y]")).astype(int) + 1)
    whole = xr.open_zarr(source, consolidated=False) if source.suffix == ".zarr" else xr.open_dataset(source)
    part = whole[[*PRESSURE, *SURFACE]].sel(dayofyear=days, level=list(LEVELS)).load()
    encoding = {
        name: {"zlib": True, "complevel": 9, "shuffle": True, "significant_digits": BITS[name],
               "quantize_mode": "BitRound", "dtype": "float32", "_FillValue": None,
               "chunksizes": (1, 1, *part[name].shape[2:])}
        for name in part.data_vars
    }  # fmt: skip
    part.to_netcdf(target, encoding=encoding)


def manifest() -> None:
    """Writes `manifest.toml` anew from the files that are here."""
    simulated = "simulated weather (jcm 3.0.0, SPEEDY physics, T31 L8), not observations"
    kinds = {f"{init}.nc": ("state", [init]) for init in INITS}
    kinds |= {"truth.nc": ("truth", list(VERIFIED)), "climatology.nc": ("climatology", [])}
    rows = [(HERE / "wm2-mini.safetensors", "wm2-mini", "weights", [], f"trained on {simulated}")]
    rows += [
        (HERE / "sample" / name, f"sample/{name}", kind, times, simulated) for name, (kind, times) in kinds.items()
    ]
    lines = ["# What comes with wm2; made by make_sample.py.\n"]
    for path, name, kind, times, origin in rows:
        if not path.exists():
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(
            f'[[files]]\nname = "{name}"\nkind = "{kind}"\nfile = "{path.relative_to(HERE)}"\nsha256 = "{digest}"\n'
            f'bytes = {path.stat().st_size}\nlicence = "MIT"\norigin = "{origin}"\n'
            + (f"times = {json.dumps(times)}\n" if times else "")
        )
    (HERE / "manifest.toml").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
