"""Parts of the globe that scores are averaged over: the field's named regions, and boxes of one's own.

The names and bounds are those of WeatherBench 2. Weights are cell areas of the whole grid; a cell belongs to a region
when its centre lies in it, bounds included.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import UsageError
from wm2cli.grid import Grid

Array = NDArray[np.float64]

NAMED: dict[str, tuple[tuple[float, float], ...]] = {
    "global": ((-90, 90), (0, 360)),
    "tropics": ((-20, 20), (0, 360)),
    "extra-tropics": ((20, 90), (-90, -20), (0, 360)),
    "northern-hemisphere": ((20, 90), (0, 360)),
    "southern-hemisphere": ((-90, -20), (0, 360)),
    "europe": ((35, 75), (-12.5, 42.5)),
    "north-america": ((25, 60), (-120, -75)),
    "north-atlantic": ((25, 65), (-70, -10)),
    "north-pacific": ((25, 60), (145, -130)),
    "east-asia": ((25, 60), (102.5, 150)),
    "ausnz": ((-45, -12.5), (120, 175)),
    "arctic": ((60, 90), (0, 360)),
    "antarctic": ((-90, -60), (0, 360)),
}
"""Name -> bands of latitude (south, north) and at last the longitudes (west, east). NH and SH leave the tropics out."""

DEFAULT = ("global", "tropics", "northern-hemisphere", "southern-hemisphere")

_SAME_DEGREE = 1e-4  # as Grid.same_as: coordinates may have been float32


@dataclass(frozen=True, eq=False)
class Regions:
    """Area weights of R regions on a grid, kept as rows times columns.

    Args:
        names: R names.
        rows: (R, H) relative cell area of the rows in the region, 0 outside; mean one over the whole grid.
        masks: (K, W) distinct sets of columns, 1 inside and 0 outside.
        which: (R,) the set of each region.
    """

    names: tuple[str, ...]
    rows: Array
    masks: Array
    which: NDArray[np.intp]

    @classmethod
    def on(cls, grid: Grid, wanted: Iterable[str] = DEFAULT) -> Regions:
        """Weights of regions on a grid.

        Args:
            grid: H rows and W columns.
            wanted: Names in `NAMED`, or boxes `N/W/S/E` or `name=N/W/S/E` in degrees; west may exceed east.

        Raises:
            UsageError: Unknown names, impossible boxes, or no cell inside; all are listed.
        """
        problems: list[str] = []
        names: list[str] = []
        rows: list[Array] = []
        masks: list[Array] = []
        which: list[int] = []
        area = grid.area_weights()
        for text in dict.fromkeys(wanted):
            try:
                name, bounds = _bounds(text)
            except UsageError as error:
                problems.append(error.message)
                continue
            *bands, (west, east) = bounds
            band = np.zeros(grid.lat.size, bool)
            for south, north in bands:
                band |= (grid.lat >= south - _SAME_DEGREE) & (grid.lat <= north + _SAME_DEGREE)
            span = 360.0 if abs(east - west) >= 360 else (east - west) % 360.0
            columns = ((grid.lon - west + _SAME_DEGREE) % 360.0 - _SAME_DEGREE <= span + _SAME_DEGREE).astype(float)
            if not band.any() or not columns.any():
                problems.append(f"no cell of the grid ({grid.describe()}) lies in the region {text}")
                continue
            known = next((place for place, mask in enumerate(masks) if np.array_equal(mask, columns)), None)
            if known is None:
                known = len(masks)
                masks.append(columns)
            names.append(name)
            rows.append(np.where(band, area, 0.0))
            which.append(known)
        problems += [f"two regions are called {name}" for name in sorted({n for n in names if names.count(n) > 1})]
        if problems:
            raise UsageError("the regions are not possible", problems=problems,
                             hint=f"regions: {', '.join(NAMED)}, or N/W/S/E in degrees")  # fmt: skip
        if not names:
            raise UsageError("no region is left to score", hint=f"regions: {', '.join(NAMED)}")
        return cls(tuple(names), np.stack(rows), np.stack(masks), np.array(which))

    @cached_property
    def columns(self) -> tuple[NDArray[np.intp] | None, ...]:
        """The columns of each distinct set; None where they are all of them."""
        return tuple(None if mask.all() else np.flatnonzero(mask) for mask in self.masks)

    def sums(self, values: Array) -> Array:
        """(..., H, W) float64 -> (..., R): the area-weighted sum over each region."""
        by_row = values @ self.masks.T  # (..., H, K)
        return np.asarray(np.einsum("...hr,rh->...r", by_row[..., self.which], self.rows))

    def areas(self) -> Array:
        """(R,) sum of the weights of each region."""
        return np.asarray(self.rows.sum(axis=1) * self.masks.sum(axis=1)[self.which])


def _bounds(text: str) -> tuple[str, tuple[tuple[float, float], ...]]:
    """The name and the bounds of a region as in `NAMED`."""
    if text in NAMED:
        return text, NAMED[text]
    name, _, box = text.rpartition("=")
    try:
        north, west, south, east = (float(part) for part in box.split("/"))
    except ValueError:
        near = difflib.get_close_matches(text, NAMED, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"'{text}' is no region{meant}") from None
    if not (-90 <= south < north <= 90 and -360 <= west <= 360 and -360 <= east <= 360 and abs(east - west) <= 360):
        raise UsageError(f"'{text}' is no box: north above south in -90 to 90, west and east in -360 to 360")
    return name or box, ((south, north), (west, east))
