"""Fields that do not change in time: orography, land-sea mask and soil type, brought to a model's grid."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wm2cli.analysis.snapshot import Snapshot
from wm2cli.errors import DataError
from wm2cli.grid import Grid
from wm2cli.reading.fields import Field, Inventory, Values
from wm2cli.schema import VARIABLES, value_issues

NAMES = tuple(name for name, known in VARIABLES.items() if known.kind == "static")

_LOWEST_GROUND = 1000.0  # m: some ground of the globe lies below; a geopotential of the free air has none


def read_static(inventory: Inventory, grid: Grid) -> xr.Dataset:
    """The static fields that files hold, on a grid.

    Heights and masks are regridded conservatively. Of classes (soil type) a cell takes the one that covers
    most of it; missing soil, as over the sea, is class 0.

    Args:
        inventory: Of files with any of orography (or surface geopotential), land-sea mask, soil type.
        grid: Target.

    Returns:
        Variables `orog` (m), `lsm` (0 to 1), `slt` (0 to 7), as many as there are, dims (latitude,
        longitude), float32; each with the attribute `origin`, the whole with the attribute `notes`, one a
        line.

    Raises:
        DataError: There are none, or they are regional, have missing or impossible values; everything at
            once.
    """
    with inventory.reading():
        return _read_static(inventory, grid)


def _read_static(inventory: Inventory, grid: Grid) -> xr.Dataset:
    snapshot = Snapshot(inventory, np.datetime64("NaT"))
    found = {name: snapshot.pick(name) for name in NAMES}
    present = {name: field for name, field in found.items() if field is not None}
    lines = [line for name in NAMES for line in inventory.problems.get(name, ())]
    if not present:
        raise DataError(
            "no static fields in the input",
            problems=lines,
            hint=f"give files with {', '.join(VARIABLES[name].long_name.lower() for name in NAMES)}",
        )
    made: dict[str, Values] = {}
    for name, field in present.items():
        issues = field.axes.issues()
        if issues:
            lines += [f"{name} is on {field.axes.describe()}: {issue}" for issue in issues]
            continue
        values = _read(snapshot, field)
        if values is not None:
            made[name] = _on_grid(snapshot, field, values, grid)
    problems = [*lines, *snapshot.problems]
    if problems:
        raise DataError("the static fields cannot be used", problems=problems)
    dataset = xr.Dataset(
        {
            name: (
                ("latitude", "longitude"),
                values,
                {
                    "units": VARIABLES[name].units,
                    "long_name": VARIABLES[name].long_name,
                    "origin": present[name].origin,
                },
            )
            for name, values in made.items()
        },
        {"latitude": grid.lat, "longitude": grid.lon},
    )
    dataset.attrs["notes"] = "\n".join(snapshot.account())
    return dataset


def _read(snapshot: Snapshot, field: Field) -> Values | None:
    if field.variable != "slt":
        values = snapshot.read_field(field)
        if field.variable == "orog" and values is not None and float(values.min()) > _LOWEST_GROUND:
            snapshot.problems[
                f"orog is nowhere below {float(values.min()):.0f} m ({field.origin}): that is no ground"
            ] = None
        return values
    try:
        values = field.read(allow_missing=True)
    except DataError as error:
        snapshot.problems[str(error)] = None
        return None
    missing = np.isnan(values)
    if missing.any():
        snapshot.notes[
            f"slt: {int(missing.sum())} of {values.size} points without soil are class 0 ({field.origin})"
        ] = None
        values = np.where(missing, np.float32(0), values)
    if (values != np.round(values)).any():
        snapshot.problems[f"slt has values that are no classes ({field.origin})"] = None
    snapshot.problems.update(
        dict.fromkeys(f"{issue} ({field.origin})" for issue in value_issues(VARIABLES["slt"], values))
    )
    return values


def _on_grid(snapshot: Snapshot, field: Field, values: Values, grid: Grid) -> Values:
    source = field.axes.grid()
    if source == grid:
        return values
    how = "to the class that covers most of a cell" if field.variable == "slt" else "conservatively"
    snapshot.notes[f"{field.variable}: regridded {how}, from {source.describe()} to {grid.describe()}"] = None
    if field.variable != "slt":
        return source.regrid_to(grid, values)
    best: NDArray[np.float32] = np.full(grid.shape, -1.0, np.float32)
    classes = np.zeros(grid.shape, np.float32)
    for number in np.unique(values):  # one class at a time; of equal shares the lower class wins
        share = source.regrid_to(grid, (values == number).astype(np.float32))
        classes[share > best + 1e-6] = number
        best = np.maximum(best, share)
    return classes
