"""Variables that others determine, made time by time with the formulas that forecasts use (`analysis.derivations`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wm2cli.analysis.snapshot import Snapshot
from wm2cli.reading.fields import Field, Inventory
from wm2cli.reading.series import Series
from wm2cli.schema import value_issues

if TYPE_CHECKING:
    from wm2cli.preprocessing.plan import Column, Plan


def field_of(series: Series, level: float | None, place: int, time: np.datetime64) -> Field:
    """One map of a series as a field, not read yet."""
    return Field(
        variable=series.variable, level=level, valid_time=time, base_time=time, statistic=series.statistic,
        window_hours=series.window_hours, member=None, version=series.version, axes=series.axes, origin=series.origin,
        file=series.file, load=partial(_load, series, level, place),
    )  # fmt: skip


def examples(every: Iterable[Series], statics: Sequence[Field], time: np.datetime64) -> Snapshot:
    """One field of each kind that series have, as if all were there at a time: enough to see what can be derived."""
    found: dict[object, Field] = {}
    for series in every:
        for level in series.levels or (None,):
            key = (series.variable, level, series.statistic, series.window_hours)
            found.setdefault(key, field_of(series, level, 0, time))
    return Snapshot(Inventory((*found.values(), *statics)), time)


def derive(plan: Plan, column: Column, first: int, stop: int) -> tuple[NDArray[np.float32], list[tuple[int, str]]]:
    """A variable that is derived.

    Returns:
        (n, 1, H, W) on the grid of the inputs, and what is wrong: place on the time axis and text.
    """
    if column.derivation is None:
        raise ValueError(f"{column.known.name} is not derived")
    out = np.zeros((stop - first, 1, *plan.source.shape), np.float32)
    wrong: list[tuple[int, str]] = []
    for place in range(first, stop):
        time = plan.time[place]
        fields = []
        for origin in column.origins:
            series = plan.series[int(origin.track.series[place, 0])]
            fields.append(field_of(series, origin.level, int(origin.track.places[place, 0]), time))
        snapshot = Snapshot(Inventory((*fields, *plan.ground)), time)
        values = column.derivation.make(snapshot, plan.source)
        issues = list(snapshot.problems)
        if values is not None:
            out[place - first, 0] = values
            issues += [f"{issue} (made from other fields)" for issue in value_issues(column.known, values)]
        wrong += [(place, issue) for issue in issues]
    return out, wrong


def _load(series: Series, level: float | None, place: int) -> NDArray[np.float32]:
    return np.asarray(series.read(np.array([place]), () if level is None else (level,))[0, 0])
