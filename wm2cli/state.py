"""State and Normalizer: the only bridge between xarray and torch.

A `State` always holds physical values in the units of `wm2cli.schema`; what a network sees inside is never a State.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm2cli.errors import CheckpointError, DataError, UsageError
from wm2cli.grid import Grid
from wm2cli.schema import LOG_FLOOR_M as LOG_FLOOR_M
from wm2cli.schema import VARIABLES, Schema, channel_label, log_floors, standard_height, standard_temperature

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False)
class State:
    """B instants of the atmosphere in physical units.

    Args:
        schema: Which variables, in which order.
        grid: Grid of shape (H, W).
        time: (B,) datetime64[s], UTC.
        pressure: (B, V, L, H, W) float32.
        surface: (B, S, H, W) float32.

    Raises:
        DataError: Shapes, type or times do not agree with schema and grid.
    """

    schema: Schema
    grid: Grid
    time: NDArray[np.datetime64]
    pressure: Tensor
    surface: Tensor

    def __post_init__(self) -> None:
        batch, (height, width) = len(self.time), self.grid.shape
        wanted = {
            "pressure": (batch, len(self.schema.pressure), len(self.schema.levels), height, width),
            "surface": (batch, len(self.schema.surface), height, width),
        }
        problems = [
            f"{name} is {tuple(value.shape)} {value.dtype}, expected {shape} torch.float32"
            for name, shape in wanted.items()
            for value in (getattr(self, name),)
            if tuple(value.shape) != shape or value.dtype != torch.float32
        ]
        if problems:
            raise DataError("the state does not fit its schema and grid", problems=problems)

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset, schema: Schema, grid: Grid) -> State:
        """A state from a canonical data set; static fields are the checkpoint's and are not looked at.

        Raises:
            DataError: The data set falls short of the schema (all issues listed) or lies on another grid.
        """
        issues = schema.dynamic.issues_with(dataset)
        if not grid.same_as(dataset["latitude"].values, dataset["longitude"].values):
            issues.append(f"the data are on another grid than {grid.describe()}")
        if issues:
            raise DataError("the data do not fit the model", problems=issues)
        levels = [float(level) for level in schema.levels]
        upper = [dataset[name].sel(level=levels).values for name in schema.pressure]
        lower = [dataset[name].values for name in schema.surface]
        time = dataset["time"].values.astype("datetime64[s]")
        shape = (len(time), 0, *grid.shape)
        pressure = np.stack(upper, axis=1) if upper else np.empty((len(time), 0, 0, *grid.shape))
        surface = np.stack(lower, axis=1) if lower else np.empty(shape)
        return cls(schema, grid, time, torch.from_numpy(pressure.astype(np.float32)),
                   torch.from_numpy(surface.astype(np.float32)))  # fmt: skip

    def to(self, device: torch.device | str) -> State:
        """The same state with its values on a device."""
        return replace(self, pressure=self.pressure.to(device), surface=self.surface.to(device))

    def select(self, name: str, level_hpa: float | None = None) -> Tensor:
        """(B, H, W) values of one variable, at a level for pressure variables.

        Raises:
            UsageError: The state does not hold it.
        """
        if name in self.schema.surface:
            return self.surface[:, self.schema.surface.index(name)]
        if name not in self.schema.pressure or level_hpa not in self.schema.levels:
            raise UsageError(f"the state has no {name} at {level_hpa} hPa")
        return self.pressure[:, self.schema.pressure.index(name), self.schema.levels.index(level_hpa)]


@dataclass(frozen=True)
class Normalizer:
    """Mean and standard deviation of every channel, and of its change over a step.

    Args:
        mean, std: By channel label (`z500`, `t2m`).
        difference_std: By step length in hours, then by channel label; empty for untrained weights.
        log_floor: Variables normalised as ln(value + floor), by name (precipitation; the public WeatherMesh-3
            statistics imply it). Its inverse is median-like, so drier than the mean.
    """

    mean: Mapping[str, float]
    std: Mapping[str, float]
    difference_std: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    log_floor: Mapping[str, float] = field(default_factory=dict)

    def check(self, *schemas: Schema) -> None:
        """Refuses statistics that do not cover the schemas exactly.

        Raises:
            CheckpointError: Channels without statistics, statistics without channels, or a spread that is not positive.
        """
        needed = {channel for schema in schemas for channel in schema.channels}
        problems = [f"no statistics for {channel}" for channel in sorted(needed - (set(self.mean) & set(self.std)))]
        problems += [f"statistics for {name}, which is no channel" for name in sorted(set(self.mean) - needed)]
        problems += [f"standard deviation of {name} is {std}" for name, std in self.std.items() if not std > 0]
        if problems:
            raise CheckpointError("the statistics do not fit the schema", problems=problems)

    def columns(self, schema: Schema) -> dict[str, Tensor]:
        """Statistics as tensors shaped for broadcasting: pressure (V, L, 1, 1), surface (S, 1, 1)."""
        upper = (len(schema.pressure), len(schema.levels), 1, 1)
        count = len(schema.pressure) * len(schema.levels)

        def column(values: list[float]) -> tuple[Tensor, Tensor]:
            table = torch.tensor(values, dtype=torch.float32)
            return table[:count].view(upper), table[count:].view(-1, 1, 1)

        names = schema.channels
        pressure_mean, surface_mean = column([self.mean[name] for name in names])
        pressure_std, surface_std = column([self.std[name] for name in names])
        floors = torch.tensor([self.log_floor.get(name, 0.0) for name in schema.surface]).view(-1, 1, 1)
        lows, highs = ([getattr(VARIABLES[name], side) for name in (*schema.pressure, *schema.surface)]
                       for side in ("clip_low", "clip_high"))  # fmt: skip
        split = len(schema.pressure)
        return {
            "pressure_mean": pressure_mean,
            "pressure_std": pressure_std,
            "surface_mean": surface_mean,
            "surface_std": surface_std,
            "surface_floor": floors,
            "pressure_low": torch.tensor(lows[:split]).view(-1, 1, 1, 1),
            "pressure_high": torch.tensor(highs[:split]).view(-1, 1, 1, 1),
            "surface_low": torch.tensor(lows[split:]).view(-1, 1, 1),
            "surface_high": torch.tensor(highs[split:]).view(-1, 1, 1),
        }

    def to_dict(self) -> dict[str, object]:
        """Plain values for a JSON header."""
        return {
            "mean": dict(self.mean),
            "std": dict(self.std),
            "difference_std": {str(step): dict(values) for step, values in self.difference_std.items()},
            "log_floor": dict(self.log_floor),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, object]]) -> Normalizer:
        """The inverse of `to_dict`."""
        steps = {int(step): dict(stds) for step, stds in values["difference_std"].items()}  # type: ignore[call-overload]
        return cls(dict(values["mean"]), dict(values["std"]), steps, dict(values["log_floor"]))  # type: ignore[arg-type]

    @classmethod
    def nominal(cls, *schemas: Schema) -> Normalizer:
        """Round figures of Earth's climate, for weights that have seen no data.

        Upper air follows the ICAO standard atmosphere with typical spreads; the surface figures are the ones of the
        public WeatherMesh-3 constants. `wm2 train` replaces them by the statistics of its training data.
        """
        mean: dict[str, float] = {}
        std: dict[str, float] = {}
        floors: dict[str, float] = {}
        for schema in schemas:
            for name in schema.pressure:
                for level in schema.levels:
                    key = channel_label(name, level)
                    mean[key], std[key] = _nominal_upper(name, level)
            for name in schema.surface:
                mean[name], std[name] = _NOMINAL_SURFACE[name]
            floors |= log_floors(schema.surface)
        return cls(mean, std, {}, floors)


def _nominal_upper(name: str, level_hpa: float) -> tuple[float, float]:
    jet = float(np.exp(-((np.log(level_hpa / 200.0) / 0.9) ** 2)))  # winds are strongest at 200 hPa
    match name:
        case "z":
            return 9.80665 * standard_height(level_hpa), 1000.0 + 0.035 * 9.80665 * standard_height(level_hpa)
        case "t":
            return standard_temperature(level_hpa), 12.0
        case "u":
            return 2.0 + 12.0 * jet, 7.0 + 10.0 * jet
        case "v":
            return 0.0, 5.0 + 7.0 * jet
        case "q":
            return max(2e-6, 7e-3 * (level_hpa / 1000.0) ** 3), max(1e-6, 6e-3 * (level_hpa / 1000.0) ** 3)
        case _:
            raise CheckpointError(f"there are no nominal statistics for {name}")


_NOMINAL_SURFACE = {
    "t2m": (287.49, 15.39),
    "d2m": (282.44, 15.11),
    "u10": (-0.377, 5.51),
    "v10": (0.174, 4.57),
    "u100": (-0.186, 6.75),
    "v100": (-0.444, 5.70),
    "msl": (101139.96, 1124.12),
    "tcc": (0.0, 1.0),
    "mx2t": (287.91, 15.24),
    "mn2t": (287.64, 15.24),
    "mx2t_6h": (287.91, 15.24),
    "mn2t_6h": (287.64, 15.24),
    "lsp": (-13.33, 2.91),
    "cp": (-13.55, 3.02),
    "tp": (-13.0, 3.0),
    "lsp_6h": (-11.79, 3.34),
    "cp_6h": (-11.96, 3.52),
    "tp_6h": (-11.5, 3.4),
    "ssr": (3600 * 130.0, 3600 * 230.0),
    "ssr_6h": (6 * 3600 * 130.0, 6 * 3600 * 230.0),
}
