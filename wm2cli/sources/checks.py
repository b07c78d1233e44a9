"""What was fetched is looked through before it gets its name: the right fields, time and grid, with possible values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from wm2cli.errors import DataError
from wm2cli.grid import Grid
from wm2cli.machine import cores
from wm2cli.reading.fields import Field, Inventory, time_text
from wm2cli.schema import VARIABLES, value_issues
from wm2cli.sources.labels import Label, label_text

MEANS: Mapping[str, tuple[float, float]] = {
    "t2m": (250.0, 310.0), "d2m": (240.0, 305.0), "msl": (9.8e4, 1.03e5), "tcc": (0.1, 0.95),
}  # fmt: skip
"""Between these lies the plain mean over all points, whatever the weather: it tells wrong units within the bounds."""


def check_fields(
    inventory: Inventory, label: str, labels: Sequence[Label], time: np.datetime64 | None, grid: Grid | None = None
) -> tuple[Field, ...]:
    """Makes sure that files hold these fields for this time, on one global grid, with possible values.

    Args:
        inventory: Of the files.
        label: What to call them in messages.
        labels: The fields.
        time: Of the analysis; None for fields that are constant in time.
        grid: The one it must be; any global grid when None.

    Returns:
        The fields.

    Raises:
        DataError: Everything that is wrong.
    """
    problems = [line for lines in inventory.problems.values() for line in lines]
    fields: list[Field] = []
    for wanted in labels:
        fields += _fields_of(inventory, wanted, time, problems)
    axes = fields[0].axes if fields else None
    if axes is not None:
        problems += axes.issues()
        if grid is not None and not axes.same_as_grid(grid):
            problems.append(f"the grid is {axes.describe()}, expected {grid.describe()}")
        problems += [f"{item.label} is on {item.axes.describe()}, others on {axes.describe()}"
                     for item in fields if not item.axes.same_as(axes)]  # fmt: skip
    with inventory.reading(), ThreadPoolExecutor(max_workers=min(4, cores())) as pool:
        for lines in pool.map(_value_problems, fields):
            problems += lines
    if problems:
        raise DataError(f"{label} is not what was asked for", problems=problems,
                        hint="try again later, or another --source")  # fmt: skip
    return tuple(fields)


def _fields_of(inventory: Inventory, label: Label, time: np.datetime64 | None, problems: list[str]) -> list[Field]:
    name, level = label
    found = inventory.find(name, level)
    if not found and name == "q":
        found = inventory.find("r", level)
    point = VARIABLES[name].statistic == "point"
    bases = (time, None) if point else tuple(item.base_time for item in found)
    right = [item for item in found if time is None or (item.valid_time == time and item.base_time in bases)]
    if not right:
        others = ", ".join(sorted({f"{time_text(item.base_time)} for {time_text(item.valid_time)}" for item in found
                                   if item.base_time is not None and item.valid_time is not None}))  # fmt: skip
        problems.append(f"{label_text(label)} is not there" + (f"; it is there from {others}" if others else ""))
        return []
    if len(right) > 1:
        first = right[0].read(allow_missing=True)
        if not all(np.array_equal(first, item.read(allow_missing=True), equal_nan=True) for item in right[1:]):
            problems.append(f"{label_text(label)} is there {len(right)} times, with different values")
    return right[:1]


def _value_problems(item: Field) -> list[str]:
    if item.variable == "slt":
        return []  # missing over the sea by design; it is looked at where it is used
    try:
        values = item.read(allow_missing=True)
    except DataError as error:
        return [str(error)]
    issues = value_issues(VARIABLES[item.variable], values, item.level)
    if not issues and item.variable in MEANS:
        low, high = MEANS[item.variable]
        mean = float(values.mean(dtype=np.float64))
        if not low <= mean <= high:
            issues.append(f"{item.label} is {mean:.6g} in the mean, possible are {low:g} to {high:g}: wrong unit")
    return issues
