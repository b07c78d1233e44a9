"""The horizontal grid: coordinates, area weights, and separable regridding.

Cell bounds are midpoints between neighbouring rows; the outer bounds are the poles (the convention of WeatherBench 2).
Regridding is one matrix an axis. The conservative one weighs source cells by their overlap with the target cell, in the
sine of latitude and in longitude, so that area integrals are kept exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import ConfigError, DataError, UsageError

Array = NDArray[np.float64]
Method = Literal["conservative", "bilinear"]

CELL_SPACINGS = (11.25, 5.625, 2.8125, 1.40625, 0.703125)
"""Spacings in degrees of the grids that WeatherBench and Stormer use with rows at cell centres."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A global latitude-longitude grid.

    Args:
        lat: (H,) degrees north, strictly decreasing.
        lon: (W,) degrees east, increasing in [0, 360), evenly spaced around the globe.

    Raises:
        DataError: The coordinates are not a global grid in this order; all reasons are listed.
    """

    lat: Array
    lon: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "lat", np.ascontiguousarray(self.lat, dtype=np.float64))
        object.__setattr__(self, "lon", np.ascontiguousarray(self.lon, dtype=np.float64))
        self.lat.flags.writeable = False
        self.lon.flags.writeable = False
        problems = grid_issues(self.lat, self.lon)
        if problems:
            raise DataError("not a global grid", problems=problems)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.same_as(other.lat, other.lon)

    def __hash__(self) -> int:
        return hash((self.lat.round(4).tobytes(), self.lon.round(4).tobytes()))

    def __repr__(self) -> str:
        return f"Grid({self.describe()})"

    @classmethod
    def regular(cls, spacing: float, rows: Literal["poles", "cells", "north"] = "poles") -> Grid:
        """A grid of equal spacing from 0 degrees east.

        Args:
            spacing: Degrees; must divide 180.
            rows: `poles` has rows on both poles (0.25 degrees: 721), `cells` has rows at cell centres (720, from
                89.875), `north` has the north pole but not the south pole (720, from 90; WeatherMesh).

        Raises:
            ConfigError: The spacing does not divide 180 degrees.
        """
        count = round(180.0 / spacing)
        if count < 1 or abs(count * spacing - 180.0) > 1e-9:
            raise ConfigError(f"a grid spacing must divide 180 degrees, found {spacing}")
        first = 90.0 - spacing / 2 if rows == "cells" else 90.0
        number = count + 1 if rows == "poles" else count
        lat, lon = first - spacing * np.arange(number), spacing * np.arange(2 * count)
        return cls(lat.astype(np.float64), lon.astype(np.float64))

    @classmethod
    def parse(cls, text: str) -> Grid:
        """A grid as people name it: `1.5` and `0.25` have rows on the poles, `5.625` has none, as in WeatherBench.

        Args:
            text: The spacing in degrees, or with the rows said: `1.5:cells`, `0.25:north`, `5.625:poles`.

        Raises:
            UsageError: It is no such grid.
        """
        number, _, rows = text.partition(":")
        try:
            spacing = float(number)
        except ValueError:
            raise UsageError(f"'{text}' is no grid", hint="a spacing such as 1.5, or with rows as 1.5:cells") from None
        if not 0.05 <= spacing <= 90 or abs(180 / spacing - round(180 / spacing)) > 1e-9:
            raise UsageError(f"a grid spacing must divide 180 degrees, found {number}")
        match rows or ("cells" if spacing in CELL_SPACINGS else "poles"):
            case "poles" | "cells" | "north" as found:
                return cls.regular(spacing, found)
        raise UsageError(f"'{text}' is no grid", hint="rows are poles, cells or north")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (H, W)."""
        return self.lat.size, self.lon.size

    def same_as(self, lat: Array, lon: Array) -> bool:
        """Whether these coordinates are this grid's, to a ten-thousandth of a degree (float32 files)."""
        return (
            self.lat.shape == np.shape(lat)
            and self.lon.shape == np.shape(lon)
            and np.allclose(self.lat, lat, rtol=0, atol=1e-4)
            and np.allclose(self.lon, lon, rtol=0, atol=1e-4)
        )

    def describe(self) -> str:
        """For people: `721x1440, 90 to -90, 0.25 degrees`."""
        height, width = self.shape
        return f"{height}x{width}, latitude {self.lat[0]:g} to {self.lat[-1]:g}, {360 / width:g} degrees"

    def area_weights(self) -> Array:
        """(H,) relative cell areas with mean one, from cell bounds (WeatherBench 2's definition); not to be changed."""
        return self._area_weights

    @cached_property
    def _area_weights(self) -> Array:
        sines = np.sin(np.deg2rad(lat_bounds(self.lat)))
        weights = sines[:-1] - sines[1:]
        weights = weights / weights.mean()
        weights.flags.writeable = False
        return np.asarray(weights)

    def regrid_to(self, other: Grid, values: NDArray[np.floating], method: Method = "conservative") -> NDArray[Any]:
        """Values on another grid.

        Args:
            other: Target grid with shape (H2, W2).
            values: (..., H, W), no missing values (a NaN spreads over every target cell it touches).
            method: `conservative` keeps area integrals; `bilinear` interpolates between cell centres.

        Returns:
            (..., H2, W2) float32, or float64 if the values are.
        """
        if values.shape[-2:] != self.shape:
            raise DataError(f"values have shape {values.shape[-2:]}, the grid has {self.shape}")
        rows, columns = _weights(self, other, method)
        flat = values.reshape(-1, *self.shape)
        out = np.empty((flat.shape[0], *other.shape), np.float64 if values.dtype == np.float64 else np.float32)
        for index, field in enumerate(flat):  # one field at a time: memory stays at one field whatever the count
            out[index] = columns.apply(rows.apply(field).T).T
        return out.reshape(*values.shape[:-2], *other.shape)


def grid_issues(lat: Array, lon: Array) -> list[str]:
    """Why coordinates are not a global grid in our order, one line each; empty when they are."""
    issues: list[str] = []
    if lat.ndim != 1 or lon.ndim != 1 or lat.size < 2 or lon.size < 2:
        return [f"latitude and longitude must be axes of at least 2 points, found {lat.shape} and {lon.shape}"]
    steps = np.diff(lat)
    if not (steps < 0).all():
        issues.append("latitude must decrease from north to south")
    if lat.max() > 90.0 + 1e-6 or lat.min() < -90.0 - 1e-6:
        issues.append(f"latitude spans {lat.min():g} to {lat.max():g}, outside -90 to 90")
    gap = float(np.abs(steps).max())
    if lat.max() + gap < 90.0 or lat.min() - gap > -90.0:
        issues.append(f"latitude {lat.min():g} to {lat.max():g} does not reach the poles: a regional file")
    if lon.min() < 0.0 or lon.max() >= 360.0:
        issues.append(f"longitude spans {lon.min():g} to {lon.max():g}, expected values in [0, 360)")
    across = np.diff(np.append(lon, lon[0] + 360.0))
    if not np.allclose(across, 360.0 / lon.size, rtol=0, atol=max(1e-3, 0.01 * 360.0 / lon.size)):
        issues.append(f"longitude {lon.min():g} to {lon.max():g} in {lon.size} columns does not go evenly round the "
                      "globe: a regional file")  # fmt: skip
    return issues


def lat_bounds(lat: Array) -> Array:
    """(H+1,) cell bounds in degrees north, from +90 to -90, for decreasing latitudes (H,)."""
    return np.concatenate([[90.0], (lat[:-1] + lat[1:]) / 2.0, [-90.0]])


@dataclass(frozen=True)
class _AxisWeights:
    """A weight matrix of one axis, split into cells that are copied and cells that are mixed.

    Between 721 and 720 rows nearly every cell is a copy, and a dense product would do a thousand times the work.
    """

    source: NDArray[np.intp]
    mixed: NDArray[np.intp]
    weights: Array

    @classmethod
    def of(cls, matrix: Array) -> _AxisWeights:
        mixed = np.flatnonzero(matrix.max(axis=1) < 1.0 - 1e-12)
        return cls(matrix.argmax(axis=1), mixed, matrix[mixed])

    def apply(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """(n, m) -> (n2, m), sums in float64."""
        if not self.mixed.size and np.array_equal(self.source, np.arange(values.shape[0])):
            return values
        if self.mixed.size == self.source.size:
            return np.asarray(self.weights @ values.astype(np.float64))
        out = values[self.source]
        # Only the source cells that a mixed one touches are converted and multiplied.
        touched = np.flatnonzero(self.weights.any(axis=0))
        out[self.mixed] = self.weights[:, touched] @ values[touched].astype(np.float64)
        return out


@lru_cache(maxsize=8)
def _weights(source: Grid, target: Grid, method: Method) -> tuple[_AxisWeights, _AxisWeights]:
    """Weights of rows and of columns; a copy of every cell where an axis stays as it is."""
    same_lat = source.lat.shape == target.lat.shape and np.allclose(source.lat, target.lat, rtol=0, atol=1e-4)
    same_lon = source.lon.shape == target.lon.shape and np.allclose(source.lon, target.lon, rtol=0, atol=1e-4)
    by_row, by_column = (
        (_overlap_rows, _overlap_columns) if method == "conservative" else (_linear_rows, _linear_columns)
    )
    rows = np.eye(source.lat.size) if same_lat else by_row(source.lat, target.lat)
    columns = np.eye(source.lon.size) if same_lon else by_column(source.lon, target.lon)
    return _AxisWeights.of(rows), _AxisWeights.of(columns)


def _overlap_rows(source: Array, target: Array) -> Array:
    source_sines = np.sin(np.deg2rad(lat_bounds(source)))
    target_sines = np.sin(np.deg2rad(lat_bounds(target)))
    top = np.minimum(source_sines[None, :-1], target_sines[:-1, None])
    bottom = np.maximum(source_sines[None, 1:], target_sines[1:, None])
    overlap = np.clip(top - bottom, 0.0, None)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True))


def _overlap_columns(source: Array, target: Array) -> Array:
    source_width, target_width = 360.0 / source.size, 360.0 / target.size
    distance = (source[None, :] - target[:, None] + 180.0) % 360.0 - 180.0
    reach = (source_width + target_width) / 2.0
    overlap = np.clip(np.minimum(reach - np.abs(distance), min(source_width, target_width)), 0.0, None)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True))


def _linear_rows(source: Array, target: Array) -> Array:
    identity = np.eye(source.size)
    # np.interp wants increasing points; beyond the outermost rows it holds the value, which is right at the poles.
    return np.stack([np.interp(target, source[::-1], column[::-1]) for column in identity], axis=1)


def _linear_columns(source: Array, target: Array) -> Array:
    identity = np.eye(source.size)
    return np.stack([np.interp(target, source, column, period=360.0) for column in identity], axis=1)
