"""Parts of the globe that scores are averaged over: the field's named regions, boxes of one's own, and their land.

The names and bounds are those of WeatherBench 2 and WeatherBench-X. Weights are cell areas of the whole grid; a cell
belongs to a region when its centre lies in it, bounds included. With `_land` behind its name a region counts only the
land of its cells, each by its share of land, as in WeatherBench 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError, UsageError
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
    "northern-africa": ((5, 32.5), (-12.5, 37.5)),
    "southern-africa": ((-30, 5), (12.5, 37.5)),
    "south-america": ((-40, 5), (-75, -45)),
    "west-asia": ((15, 60), (42.5, 102.5)),
    "south-east-asia": ((-12.5, 25), (95, 125)),
}
"""Name -> bands of latitude (south, north) and at last the longitudes (west, east). NH and SH leave the tropics out."""

DEFAULT = ("global", "tropics", "northern-hemisphere", "southern-hemisphere")

LAND = "_land"
"""Behind the name of a region or a box: only its land."""

_SAME_DEGREE = 1e-4  # as Grid.same_as: coordinates may have been float32


@dataclass(frozen=True, eq=False)
class Part:
    """Regions that have their columns in common.

    Args:
        mine: (r,) their numbers.
        rows: (H, r) relative cell areas of their rows.
        columns: (w,) their columns, or None for all of them.
        land: (H, w) share of land of the cells, or None if the sea counts as well.
    """

    mine: NDArray[np.intp]
    rows: Array
    columns: NDArray[np.intp] | None
    land: Array | None


@dataclass(frozen=True, eq=False)
class Regions:
    """Area weights of R regions on a grid, kept as rows times columns, and as a map of land for those over land.

    Args:
        names: R names.
        rows: (R, H) relative cell area of the rows in the region, 0 outside; mean one over the whole grid.
        masks: (K, W) distinct sets of columns, 1 inside and 0 outside.
        which: (R,) the set of each region.
        over_land: (K,) whether only land counts in the set; nowhere by default.
        land: (H, W) share of land of the cells, where any set needs it.
    """

    names: tuple[str, ...]
    rows: Array
    masks: Array
    which: NDArray[np.intp]
    over_land: tuple[bool, ...] = ()
    land: Array | None = None

    @classmethod
    def on(cls, grid: Grid, wanted: Iterable[str] = DEFAULT, land: Array | None = None) -> Regions:
        """Weights of regions on a grid.

        Args:
            grid: H rows and W columns.
            wanted: Names in `NAMED`, or boxes `N/W/S/E` or `name=N/W/S/E` in degrees; west may exceed east. `_land`
                at the end counts only land.
            land: (H, W) share of land of the cells.

        Raises:
            UsageError: Unknown names, impossible boxes, or no cell inside; all are listed.
            DataError: Some are over land, and `land` is not there.
        """
        problems: list[str] = []
        names: list[str] = []
        rows: list[Array] = []
        sets: list[tuple[Array, bool]] = []
        which: list[int] = []
        area = grid.area_weights()
        for text in dict.fromkeys(wanted):
            try:
                name, bounds = _bounds(text.removesuffix(LAND))
            except UsageError as error:
                problems.append(error.message)
                continue
            *bands, (west, east) = bounds
            band = np.zeros(grid.lat.size, bool)
            for south, north in bands:
                band |= (grid.lat >= south - _SAME_DEGREE) & (grid.lat <= north + _SAME_DEGREE)
            span = 360.0 if abs(east - west) >= 360 else (east - west) % 360.0
            columns = ((grid.lon - west + _SAME_DEGREE) % 360.0 - _SAME_DEGREE <= span + _SAME_DEGREE).astype(float)
            over_land = text.endswith(LAND)
            inside = band[:, None] & (columns > 0)
            if not inside.any():
                problems.append(f"no cell of the grid ({grid.describe()}) lies in the region {text}")
                continue
            if over_land and land is not None and not land[inside].any():
                problems.append(f"there is no land in the region {text}")
                continue
            known = next((place for place, (mask, dry) in enumerate(sets)
                          if dry == over_land and np.array_equal(mask, columns)), None)  # fmt: skip
            if known is None:
                known = len(sets)
                sets.append((columns, over_land))
            names.append(name + (LAND if over_land else ""))
            rows.append(np.where(band, area, 0.0))
            which.append(known)
        problems += [f"two regions are called {name}" for name in sorted({n for n in names if names.count(n) > 1})]
        if problems:
            hint = f"regions: {', '.join(NAMED)}, or N/W/S/E in degrees; each also with {LAND}"
            raise UsageError("the regions are not possible", problems=problems, hint=hint)
        if not names:
            raise UsageError("no region is left to score", hint=f"regions: {', '.join(NAMED)}")
        if land is None and any(dry for _, dry in sets):
            lacking = ", ".join(name for name in names if name.endswith(LAND))
            hint = "--land-mask FILE: a file of `wm2 fetch --static`, a training store, or weights"
            raise DataError(f"no land-sea mask for {lacking}: truth and climatology have none", hint=hint)
        return cls(tuple(names), np.stack(rows), np.stack([mask for mask, _ in sets]), np.array(which),
                   tuple(dry for _, dry in sets), None if land is None else np.asarray(land, np.float64))  # fmt: skip

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The regions by the distinct set of columns they share."""
        made = []
        over_land = self.over_land or (False,) * len(self.masks)
        for number, (mask, dry) in enumerate(zip(self.masks, over_land, strict=True)):
            columns = None if mask.all() else np.flatnonzero(mask)
            land = self.land if dry else None
            if land is not None and columns is not None:
                land = np.ascontiguousarray(land[:, columns])
            mine = np.flatnonzero(self.which == number)
            made.append(Part(mine, np.ascontiguousarray(self.rows[mine].T), columns, land))
        return tuple(made)

    def sums(self, values: Array) -> Array:
        """(..., H, W) float64 -> (..., R): the area-weighted sum over each region."""
        made = np.empty((*values.shape[:-2], len(self.names)))
        for part in self.parts:
            inside = values if part.columns is None else values[..., part.columns]
            made[..., part.mine] = (inside if part.land is None else inside * part.land).sum(axis=-1) @ part.rows
        return made

    @cached_property
    def areas(self) -> Array:
        """(R,) sum of the weights of each region."""
        return self.sums(np.ones((self.rows.shape[1], self.masks.shape[1])))


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
