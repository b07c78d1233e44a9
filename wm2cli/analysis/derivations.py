"""Fields that a source lacks and that others determine: one table of what from what, by which formula.

Everything here is an approximation to the field itself, so it is used only when asked for and is always
named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wm2cli.analysis.snapshot import Snapshot
from wm2cli.analysis.thermodynamics import dewpoint, pressure_below, saturation_over_water, vapour_pressure
from wm2cli.grid import Grid
from wm2cli.reading.fields import Field, Values
from wm2cli.schema import GRAVITY

_LEAST_HUMIDITY = 1e-3
"""Relative humidity of 0.1 %: with none at all there is no dewpoint."""
_LOW, _HIGH = 10.0, 100.0  # metres


@dataclass(frozen=True)
class Derivation:
    """How one surface variable follows from others.

    Args:
        target: Variable made.
        needs: Variables at the ground; `u*` on all levels there are; `z1000` on one; `orog` from files or
            given; `tcc mean` as a mean over the hours before.
        formula: For the note, as text.
        make: The function; returns (H, W) in the target's unit, or None when something could not be read.
    """

    target: str
    needs: tuple[str, ...]
    formula: str
    make: Callable[[Snapshot, Grid], Values | None]

    def lacks(self, snapshot: Snapshot) -> list[str]:
        """Which needs are not there."""
        return [need for need in self.needs if not _has(snapshot, need)]

    def fields(self, snapshot: Snapshot) -> list[Field]:
        """Fields it may read, without the orography, which may lie on another grid."""
        found: list[Field | None] = []
        for need in self.needs:
            if need.endswith("*"):
                found += [snapshot.pick(need[:-1], level) for level in snapshot.levels(need[:-1])]
            elif need.endswith("1000"):
                found.append(snapshot.pick(need[:-4], 1000.0))
            elif need.endswith(" mean"):
                found.append(snapshot.pick(need.removesuffix(" mean"), statistic="mean"))
            elif need != "orog":
                found.append(snapshot.pick(need))
        return [item for item in found if item is not None]


def _has(snapshot: Snapshot, need: str) -> bool:
    if need == "orog":
        return snapshot.has_orography()
    if need.endswith("*"):
        return bool(snapshot.levels(need[:-1]))
    if need.endswith("1000"):
        return 1000.0 in snapshot.levels(need[:-4])
    if need.endswith(" mean"):
        return snapshot.pick(need.removesuffix(" mean"), statistic="mean") is not None
    return snapshot.pick(need) is not None


def _dewpoint_from_relative(snapshot: Snapshot, grid: Grid) -> Values | None:
    del grid
    humidity, temperature = snapshot.read("r2m"), snapshot.read("t2m")
    if humidity is None or temperature is None:
        return None
    humidity = snapshot.clip("r2m", humidity, _LEAST_HUMIDITY, np.inf)
    return dewpoint(humidity * saturation_over_water(temperature)).astype(np.float32)


def _dewpoint_from_specific(snapshot: Snapshot, grid: Grid) -> Values | None:
    del grid
    humidity, pressure = snapshot.read("q2m"), snapshot.read("sp")
    if humidity is None or pressure is None:
        return None
    humidity = snapshot.clip("q2m", humidity, 1e-8, np.inf)
    return dewpoint(vapour_pressure(humidity, pressure)).astype(np.float32)


def _wind_at_100_m(component: str) -> Callable[[Snapshot, Grid], Values | None]:
    def make(snapshot: Snapshot, grid: Grid) -> Values | None:
        low, ground = snapshot.read(f"{component}10"), snapshot.orography(grid)
        if low is None or ground is None:
            return None
        made = np.full(grid.shape, np.nan, np.float32)
        highest = 0.0
        both = sorted(set(snapshot.levels(component)) & set(snapshot.levels("z")), reverse=True)
        for level in both:  # upwards, until every place has found its lowest level above 100 m
            geopotential, wind = snapshot.read("z", level), snapshot.read(component, level)
            if geopotential is None or wind is None:
                return None
            height = geopotential / np.float32(GRAVITY) - ground
            take = np.isnan(made) & (height > _HIGH - 0.01)
            if take.any():
                highest = max(highest, float(height[take].max()))
                share = np.log(_HIGH / _LOW) / np.log(height[take] / _LOW)
                made[take] = low[take] + (wind[take] - low[take]) * share
            if not np.isnan(made).any():
                break
        snapshot.notes[
            f"{component}100: the lowest levels that are 100 m above ground lie up to {highest:.0f} m above it"
        ] = None
        return made

    return make


def _pressure_from_ground(snapshot: Snapshot, grid: Grid) -> Values | None:
    pressure, temperature, ground = snapshot.read("sp"), snapshot.read("t2m"), snapshot.orography(grid)
    if pressure is None or temperature is None or ground is None:
        return None
    return pressure_below(pressure, temperature, ground).astype(np.float32)


def _pressure_from_1000_hpa(snapshot: Snapshot, grid: Grid) -> Values | None:
    del grid
    geopotential, temperature = snapshot.read("z", 1000.0), snapshot.read("t", 1000.0)
    if geopotential is None or temperature is None:
        return None
    return pressure_below(1e5, temperature, geopotential / np.float32(GRAVITY)).astype(np.float32)


def _mean_cloud(snapshot: Snapshot, grid: Grid) -> Values | None:
    del grid
    found = snapshot.pick("tcc", statistic="mean")
    if found is None:
        return None
    snapshot.notes[f"tcc: the mean is over {found.window_hours:g} h"] = None
    return snapshot.read_field(found)


_LOGARITHMIC = (
    "x100 = x10 + (x - x10) ln(100/10) / ln(h/10), from 10 m and the lowest pressure level h >= 100 m above ground"
)

DERIVATIONS: tuple[Derivation, ...] = (
    Derivation(
        "d2m",
        ("r2m", "t2m"),
        "dewpoint over water of the vapour pressure r2m es(t2m), IFS Cy47r3 IV eq. 7.5",
        _dewpoint_from_relative,
    ),
    Derivation(
        "d2m",
        ("q2m", "sp"),
        "dewpoint over water of the vapour pressure q sp / (0.622 + 0.378 q), IFS Cy47r3 IV eq. 7.5",
        _dewpoint_from_specific,
    ),
    Derivation("u100", ("u10", "u*", "z*", "orog"), _LOGARITHMIC, _wind_at_100_m("u")),
    Derivation("v100", ("v10", "v*", "z*", "orog"), _LOGARITHMIC, _wind_at_100_m("v")),
    Derivation(
        "msl", ("sp", "t2m", "orog"), "msl = sp (1 + L orog / t2m)^(g / (R L)), L = 6.5 K/km", _pressure_from_ground
    ),
    Derivation(
        "msl",
        ("z1000", "t1000"),
        "msl = 1000 hPa (1 + L h / t1000)^(g / (R L)), h = z1000 / g, L = 6.5 K/km",
        _pressure_from_1000_hpa,
    ),
    Derivation("tcc", ("tcc mean",), "the mean over the hours before stands for the instant", _mean_cloud),
)


def derivations_of(target: str) -> tuple[Derivation, ...]:
    """Ways to make a variable, best first."""
    return tuple(way for way in DERIVATIONS if way.target == target)
