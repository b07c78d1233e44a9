"""The share of land of the cells of a grid, for scores over land: from wherever there is a land-sea mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.analysis.statics import read_static
from wm2cli.errors import CheckpointError, DataError
from wm2cli.evaluation.series import Series, on_grid, open_truth
from wm2cli.grid import Grid
from wm2cli.reading.inputs import open_files
from wm2cli.schema import VARIABLES, value_issues

Values = NDArray[np.floating[Any]]
Array = NDArray[np.float64]

_HINT = "give a file of `wm2 fetch --static`, a training store, or weights that have one"


def land_of(several: tuple[Series | None, ...], grid: Grid) -> tuple[Array, str] | None:
    """(H, W) share of land from the first of some series that has a land-sea mask, and its label; None if none has.

    Args:
        several: Truth and climatology, in the order they are asked.
        grid: Of the scores.

    Raises:
        DataError: A mask is no mask.
    """
    for series in several:
        found = {} if series is None else series.static()
        if series is not None and "lsm" in found:
            return _checked(on_grid(np.asarray(found["lsm"]), series.grid, grid), series.label), series.label
    return None


def read_land(path: Path, grid: Grid) -> Array:
    """(H, W) share of land from a file, brought to a grid conservatively.

    Args:
        path: NetCDF or GRIB file, Zarr store, training store, or weights.
        grid: Of the scores.

    Raises:
        DataError: It has no land-sea mask, or not one of the globe.
        CheckpointError: Weights that cannot be read.
    """
    values: Values | None = None
    if path.suffix == ".safetensors":
        values = _of_weights(path, grid)
    elif path.is_dir():
        found = land_of((open_truth([path]),), grid)
        values = None if found is None else found[0]
    else:
        made = read_static(open_files([path]), grid)
        values = made["lsm"].values if "lsm" in made else None
    if values is None:
        raise DataError(f"{path} has no land-sea mask", hint=_HINT)
    return _checked(values, path.name)


def _of_weights(path: Path, grid: Grid) -> Values | None:
    # Without torch, and without the network: only the mask and its axes are read.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            if "static.lsm" not in names:
                return None
            source = Grid(file.get_tensor("grid.lat"), file.get_tensor("grid.lon"))
            return on_grid(np.asarray(file.get_tensor("static.lsm")), source, grid)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint=_HINT) from error


def _checked(values: Values, label: str) -> Array:
    problems = value_issues(VARIABLES["lsm"], values)
    if problems:
        raise DataError(f"the land-sea mask of {label} is none", problems=problems, hint=_HINT)
    return np.clip(values.astype(np.float64), 0.0, 1.0)
