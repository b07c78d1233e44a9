"""Canonical NetCDF: fields under the names and units of `wm2cli.schema`, as sources write them for every reader."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wm2cli
from wm2cli.errors import ResourceError
from wm2cli.grid import Grid
from wm2cli.schema import VARIABLES
from wm2cli.writing.chunks import MANTISSA_BITS, round_mantissa


def write_fields(
    path: Path,
    *,
    times: NDArray[np.datetime64],
    grid: Grid,
    levels: Sequence[float],
    fields: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, str],
    rounded: bool = False,
    keep_bits: Mapping[str, int] | None = None,
) -> None:
    """Writes fields to one NetCDF-4 file that has its name only when it is complete; an existing file is replaced.

    Args:
        path: The file; its folder is made when needed.
        times: (T,) instants, UTC.
        grid: Grid of shape (H, W).
        levels: (L,) hPa, increasing.
        fields: By name: pressure variables (T, L, H, W), surface variables (T, H, W), static ones (H, W).
        attributes: Global attributes beside conventions and history.
        rounded: Keep each variable's bits (`Variable.keep_bits`) and deflate.
        keep_bits: Other mantissa bits for some variables.

    Raises:
        ResourceError: The file cannot be written.
    """
    partial = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(partial, times, grid, levels, fields, attributes, rounded, keep_bits or {})
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # netCDF4 raises both
        raise ResourceError(
            f"cannot write {path}: {error}", hint="free some space, or choose a folder you may write"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _write(
    path: Path, times: NDArray[np.datetime64], grid: Grid, levels: Sequence[float], fields: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, str], rounded: bool, keep_bits: Mapping[str, int],
) -> None:  # fmt: skip
    import netCDF4

    seconds = times.astype("datetime64[s]").astype(np.int64)
    axes: dict[str, tuple[Any, dict[str, str]]] = {
        "time": (seconds, {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}),
        "level": (np.asarray(levels, np.float64), {"units": "hPa", "standard_name": "air_pressure",
                                                   "positive": "down"}),
        "latitude": (np.array(grid.lat), {"units": "degrees_north"}),
        "longitude": (np.array(grid.lon), {"units": "degrees_east"}),
    }  # fmt: skip
    dims = {"pressure": ("time", "level", "latitude", "longitude"), "surface": ("time", "latitude", "longitude"),
            "static": ("latitude", "longitude")}  # fmt: skip
    with netCDF4.Dataset(path, "w") as dataset:
        dataset.setncatts({"Conventions": "CF-1.11", **attributes, "history": f"written by wm2 {wm2cli.__version__}"})
        for name, (values, described) in axes.items():
            dataset.createDimension(name, len(values))
            axis = dataset.createVariable(name, "i8" if name == "time" else "f8", (name,))
            axis.setncatts({"standard_name": name, **described})
            axis[:] = values
        for name, values in fields.items():
            known = VARIABLES[name]
            shape = dims[known.kind]
            chunks = tuple(1 if dim == "time" else len(axes[dim][0]) for dim in shape)
            packed: dict[str, Any] = (
                {"zlib": True, "complevel": 1, "shuffle": True, "chunksizes": chunks} if rounded else {}
            )
            made = dataset.createVariable(name, "f4", shape, fill_value=False, **packed)
            made.setncatts({"units": known.units, "long_name": known.long_name})
            if known.standard_name:
                made.standard_name = known.standard_name
            if known.statistic != "point":
                # Bounds would say it, but one time axis cannot have those of 1 h and of 6 h.
                made.cell_methods = f"time: {known.statistic} (comment: of the {known.window_hours} h before)"
            bits = keep_bits.get(name, min(known.keep_bits, MANTISSA_BITS)) if rounded else MANTISSA_BITS
            made[...] = round_mantissa(np.asarray(values, np.float32), bits)
