"""Forecasts from files, by init and lead, as arrays of channels on one grid."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wm2cli.errors import DataError
from wm2cli.evaluation.datasets import Axis, Fields, Values, order_of
from wm2cli.evaluation.series import (
    file_kind,
    grid_and_channels,
    kind_of_weather,
    problem_lines,
    raise_all,
    read_inventory,
)
from wm2cli.grid import Grid
from wm2cli.reading.fields import Inventory, time_text
from wm2cli.reading.inputs import open_files
from wm2cli.sources import Progress, quiet


class Forecasts:
    """Forecasts from files, each with one init or many, by init and lead.

    Args:
        parts: What was opened; each has `channels`, `grid`, `attributes`, `members`, `pairs` and `read`.

    Raises:
        DataError: Different grids, numbers of members or no common channel, or an init that is there twice.
    """

    def __init__(self, parts: Sequence[_Forecast]) -> None:
        self.parts = tuple(parts)
        self.label = parts[0].label if len(parts) == 1 else f"{parts[0].label} and {len(parts) - 1} more"
        self.grid = parts[0].grid
        self.members = parts[0].members
        self.attributes = parts[0].attributes
        self.notes = list(dict.fromkeys(note for part in parts for note in part.notes))
        shared = [label for label in parts[0].channels if all(label in part.channels for part in parts)]
        self.channels = tuple(sorted(shared, key=order_of))
        problems = [f"{part.label} is on {part.grid.describe()}, {parts[0].label} on {self.grid.describe()}"
                    for part in parts if part.grid != self.grid]  # fmt: skip
        problems += [f"{part.label} has {part.members or 'no'} members, {parts[0].label} {self.members or 'none'}"
                     for part in parts if part.members != self.members]  # fmt: skip
        self.partial = sorted({label for part in parts for label in part.channels} - set(self.channels))
        if not self.channels:
            problems.append("they have no channel in common")
        self._where: dict[tuple[np.datetime64, int], _Forecast] = {}
        twice: dict[str, None] = {}
        for part in parts:
            for pair in part.pairs:
                if pair in self._where:
                    twice[f"{time_text(pair[0])} is there twice, in {self._where[pair].label} and {part.label}"] = None
                self._where[pair] = part
        problems += twice
        if problems:
            raise DataError("the forecasts do not go together", problems=problems[:20],
                            hint="evaluate them one by one, or compare two with --against")  # fmt: skip
        self.inits = tuple(sorted({init for init, _ in self._where}))
        self.leads = tuple(sorted({lead for _, lead in self._where}))

    def has(self, init: np.datetime64, lead: int) -> bool:
        """Whether there is such a pair."""
        return (init, lead) in self._where

    def read(self, init: np.datetime64, leads: Sequence[int], labels: Sequence[str]) -> Values:
        """(T, C, H, W) physical values, or (T, M, C, H, W) with members."""
        parts = [(self._where[init, lead], lead) for lead in leads]
        groups = [
            part.read(init, [lead for _, lead in some], labels)
            for part, some in itertools.groupby(parts, key=lambda pair: pair[0])
        ]
        return groups[0] if len(groups) == 1 else np.concatenate(groups)

    @property
    def kind(self) -> str:
        """See `kind_of_weather`; simulated if any part is."""
        kinds = [kind_of_weather(part.attributes) for part in self.parts]
        return "simulated" if "simulated" in kinds else kinds[0]


class _Forecast(Protocol):
    label: str
    grid: Grid
    channels: tuple[str, ...]
    members: int

    @property
    def attributes(self) -> Mapping[str, Any]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def pairs(self) -> Sequence[tuple[np.datetime64, int]]: ...
    def read(self, init: np.datetime64, leads: Sequence[int], labels: Sequence[str]) -> Values: ...


class DatasetForecast:
    """Forecasts in a NetCDF file or a Zarr store: one init with valid times, or inits by leads."""

    def __init__(self, path: Path) -> None:
        self._fields = Fields(path)
        self.label, self.grid, self.attributes = self._fields.label, self._fields.grid, self._fields.attributes
        self.channels, self.notes = tuple(self._fields.channels), self._fields.notes
        self.members = self._fields.size("member") if self._fields.has("member") else 0
        if self.members == 1:
            self.members = 0
        starts, leads = self._fields.starts_and_leads
        self.pairs = [(start, int(lead)) for start in starts for lead in leads]
        self._starts = {start: number for number, start in enumerate(starts)}
        self._leads = {int(lead): number for number, lead in enumerate(leads)}

    def read(self, init: np.datetime64, leads: Sequence[int], labels: Sequence[str]) -> Values:
        """(T, C, H, W), or (T, M, C, H, W) with members."""
        fields = self._fields
        numbers = [self._leads[lead] for lead in leads]
        first, last = min(numbers), max(numbers)
        select: dict[Axis, int | slice] = {"step" if fields.has("step") else "time": slice(first, last + 1)}
        roles: tuple[Axis, ...] = ("reference", "time")
        select |= {role: self._starts[init] for role in roles if role not in select and fields.has(role)}
        if fields.has("member"):
            select["member"] = slice(None) if self.members else 0
        values = fields.read(labels, select)  # (C, T, ...)
        if numbers != list(range(first, last + 1)):
            values = values[:, [number - first for number in numbers]]
        return np.moveaxis(values, 0, -3)


class InventoryForecast:
    """Forecasts in GRIB or other files that `wm2cli.reading` opens."""

    def __init__(self, inventory: Inventory) -> None:
        names = [file.label for file in inventory.files]
        self.label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        groups: dict[tuple[np.datetime64, int], list[Any]] = {}
        for item in inventory.fields:
            if item.base_time is not None and item.valid_time is not None:
                hours = int((item.valid_time - item.base_time) / np.timedelta64(1, "h"))
                groups.setdefault((item.base_time.astype("datetime64[s]"), hours), []).append(item)
        if not groups:
            raise DataError(f"{self.label} is no forecast: no field says when its forecast began",
                            problems=problem_lines(inventory))  # fmt: skip
        self._inventory = {pair: replace(inventory, fields=tuple(items)) for pair, items in groups.items()}
        self.pairs = sorted(groups)
        found = [grid_and_channels(part) for part in self._inventory.values()]
        self.grid = found[0][0]
        # What a forecast lacks at some leads (sums at its start) is verified at none.
        self.channels = tuple(label for label in found[-1][1] if all(label in labels for _, labels in found))
        if not self.channels:
            raise DataError(f"{self.label} has no field at all of its leads", problems=problem_lines(inventory))
        self.attributes: dict[str, Any] = {}
        self.notes = list(inventory.notes)
        self.members = 0

    def read(self, init: np.datetime64, leads: Sequence[int], labels: Sequence[str]) -> Values:
        """(T, C, H, W)."""
        valid = [init + np.timedelta64(lead, "h") for lead in leads]
        parts = [self._inventory[init, lead] for lead in leads]
        return np.stack([read_inventory(part, time, labels, self.grid)
                         for part, time in zip(parts, valid, strict=True)])  # fmt: skip


def open_forecasts(paths: Sequence[Path], on_progress: Progress = quiet) -> Forecasts:
    """Forecasts from NetCDF files, Zarr stores and GRIB files; only headers are read.

    Raises:
        DataError: Some cannot be read, are no forecasts, or do not go together; all are listed.
    """
    parts: list[_Forecast] = []
    errors: list[DataError] = []
    grib = [path for path in paths if path.is_file() and file_kind(path) != "netcdf"]
    for done, path in enumerate(paths):
        on_progress("opening", done, len(paths))
        try:
            if path not in grib:
                parts.append(DatasetForecast(path))
        except DataError as error:
            errors.append(error)
    try:
        if grib:
            parts.append(InventoryForecast(open_files(grib)))
    except DataError as error:
        errors.append(error)
    raise_all(errors, f"{len(errors)} of {len(paths)} forecasts cannot be used")
    return Forecasts(parts)
