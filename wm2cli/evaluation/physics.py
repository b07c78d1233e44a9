"""Is a forecast physically sound? Checks that need no truth, and what is known of good models.

Constants and definitions are those of PhysMetrics (arXiv 2606.10642), so that its published figures can stand beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.evaluation.datasets import bounds_of, span, split_label
from wm2cli.grid import Grid
from wm2cli.schema import GRAVITY

Values = NDArray[np.floating[Any]]
Array = NDArray[np.float64]

RADIUS_M = 6.371e6
ROTATION = 7.2921e-5  # s-1
DRY_AIR = 287.05  # J kg-1 K-1
WATER_VAPOUR = 461.5  # J kg-1 K-1
LAPSE = 0.0065  # K m-1

REFERENCE: Mapping[str, Mapping[str, str]] = {
    "hydrostatic_rmse": {"IFS HRES": "223 / 216 / 219", "ERA5": "224 / 220 / 220", "GraphCast": "220 / 203 / 201"},
    "geostrophic_rmse": {"IFS HRES": "5.55 / 5.37 / 5.43", "ERA5": "5.26", "GraphCast": "5.01 / 5.67 / 7.35"},
    "dry_mass_drift": {"IFS HRES": "0.0004 / 0.0004 / 0.0003", "ERA5": "", "GraphCast": "0.009 / -0.003 / -0.003"},
    "effective_resolution_km": {"IFS HRES": "111", "ERA5": "", "GraphCast": "320 / 870 / 1127"},
}
REFERENCE_MODELS = ("IFS HRES", "ERA5", "GraphCast")
"""Published values at 12, 120 and 240 h, 366 inits of 2020 (PhysMetrics). Their grid is finer than most of ours."""


def hydrostatic_residual(upper: Mapping[str, Values], lower: Mapping[str, Values], upper_hpa: float, lower_hpa: float
                         ) -> Array:  # fmt: skip
    """Thickness of a layer minus the one its virtual temperature asks for, in m2 s-2.

    (z_upper - z_lower) - R_d T_v ln(p_lower / p_upper), T_v the mean of both levels.

    Args:
        upper, lower: `z`, `t` and, where known, `q` at the two levels, (H, W) each.
        upper_hpa, lower_hpa: The levels.
    """
    virtual = [_virtual(level["t"], level.get("q")) for level in (upper, lower)]
    thickness = np.subtract(upper["z"], lower["z"], dtype=np.float64)
    return np.asarray(thickness - DRY_AIR * (virtual[0] + virtual[1]) / 2 * np.log(lower_hpa / upper_hpa))


def geostrophic_wind(z: Values, grid: Grid) -> tuple[Array, Array]:
    """Wind in balance with the geopotential: u = -(1 / f a) dz/dphi, v = 1 / (f a cos phi) dz/dlambda.

    Centred differences, periodic in longitude. Undefined, so NaN, in the first and last row and where |phi| < 10.

    Args:
        z: (H, W) geopotential in m2 s-2.
        grid: Its grid.

    Returns:
        u and v in m s-1, (H, W) each.
    """
    phi, lam = np.deg2rad(grid.lat), 2 * np.pi / grid.lon.size
    field = np.asarray(z, np.float64)
    along = (np.roll(field, -1, axis=1) - np.roll(field, 1, axis=1)) / (2 * lam)
    across = np.full_like(field, np.nan)
    across[1:-1] = (field[2:] - field[:-2]) / (phi[2:] - phi[:-2])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        coriolis = np.where(np.abs(grid.lat) < 10.0, np.nan, 2 * ROTATION * np.sin(phi))[:, None] * RADIUS_M
        eastward, northward = -across / coriolis, along / (coriolis * np.cos(phi)[:, None])
    northward[~np.isfinite(across)] = np.nan
    return eastward, northward


def precipitable_water(q: Values, levels_hpa: Sequence[float]) -> Array:
    """(L, H, W) specific humidity in kg kg-1 -> (H, W) column of water vapour in kg m-2, by the trapezoid rule.

    On 13 levels the rule alone errs by about 1 %; levels below the ground count as well.
    """
    return np.asarray(np.trapezoid(np.asarray(q, np.float64), np.asarray(levels_hpa) * 100.0, axis=0) / GRAVITY)


def surface_pressure(msl: Values, height_m: Values, temperature: Values | float, lapse: float = LAPSE) -> Array:
    """Pressure in Pa at a height, from the one at sea level.

    Args:
        msl: Pressure at sea level in Pa.
        height_m: Height of the ground.
        temperature: At the ground, in K.
        lapse: How much the air below cools upwards, in K m-1.
    """
    height, air = np.asarray(height_m, np.float64), np.asarray(temperature, np.float64)
    # Thickness of the air in units of its scale height; the logarithm tends to height / air in isothermal air.
    depth = np.log1p(lapse * height / air) / lapse if lapse else height / air
    return np.asarray(msl * np.exp(-GRAVITY / DRY_AIR * depth))


def dry_mass(surface_pressure_pa: Values, water: Values, grid: Grid) -> float:
    """Mass in kg of the atmosphere without its water: sum of A (p_s / g - water).

    Args:
        surface_pressure_pa: (H, W).
        water: (H, W) precipitable water in kg m-2.
        grid: Its grid, whose cells have areas A on a sphere of radius `RADIUS_M`.
    """
    height, width = grid.shape
    area = grid.area_weights() * 4 * np.pi * RADIUS_M**2 / (height * width)
    column = np.asarray(surface_pressure_pa, np.float64) / GRAVITY - water
    return float((column * area[:, None]).sum())


def check_state(values: Values, labels: Sequence[str], grid: Grid, orography: Values | None = None) -> dict[str, float]:
    """The checks of one state.

    Args:
        values: (C, H, W) physical values.
        labels: C channels.
        grid: Their grid.
        orography: (H, W) height of the ground in m; without it there is no mass budget.

    Returns:
        By name: `values`, `not_finite`, `out_of_range` (numbers of values), `humidity_values`, `humidity_negative`,
        `humidity_lowest`, `height_inversions`, `hydrostatic_rmse` (850 to 500 hPa), `geostrophic_rmse` (500 hPa,
        |lat| > 10), `dry_mass` (kg). What the channels do not allow is left out.
    """
    places, levels = _places(tuple(labels))
    at = {name: values[number] for name, number in places.items()}
    least, most = span(values)
    made: dict[str, float] = {
        "values": float(values.size),
        "not_finite": float(values.size - np.count_nonzero(np.isfinite(values))),
        "out_of_range": float(_out_of_range(values, least, most, bounds_of(tuple(labels)))),
    }
    if levels["q"]:
        numbers = [places[f"q@{level:g}"] for level in levels["q"]]
        humidity, lowest = values[numbers], least[numbers]
        made["humidity_values"] = float(humidity.size)
        made["humidity_negative"] = float(np.count_nonzero(humidity < 0)) if (lowest < 0).any() else 0.0
        made["humidity_lowest"] = float(np.fmin.reduce(lowest))
    if len(levels["z"]) > 1:
        heights = values[[places[f"z@{level:g}"] for level in levels["z"]]]
        made["height_inversions"] = float(np.count_nonzero(heights[1:] >= heights[:-1]))
    weights = np.broadcast_to(grid.area_weights()[:, None], grid.shape)
    upper, lower = ({name: at[f"{name}@{level}"] for name in "ztq" if f"{name}@{level}" in at} for level in (500, 850))
    if {"z", "t"} <= set(upper) and {"z", "t"} <= set(lower):
        made["hydrostatic_rmse"] = _rms(hydrostatic_residual(upper, lower, 500.0, 850.0), weights)
    if {"z@500", "u@500", "v@500"} <= set(at):
        u, v = geostrophic_wind(at["z@500"], grid)
        made["geostrophic_rmse"] = _rms(np.hypot(at["u@500"] - u, at["v@500"] - v), weights)
    if orography is not None and {"msl", "t2m"} <= set(at) and levels["q"]:
        pressure = surface_pressure(at["msl"], orography, at["t2m"])
        made["dry_mass"] = dry_mass(pressure, precipitable_water(humidity, levels["q"]), grid)
    return made


def drift_per_day(leads_hours: Sequence[int], mass: Array) -> float:
    """Trend of a mass over the leads of a forecast, in % of its first value per day (least squares)."""
    good = np.isfinite(mass)
    if np.count_nonzero(good) < 2:
        return float("nan")
    days = np.asarray(leads_hours, np.float64)[good] / 24.0
    return float(np.polyfit(days - days[0], mass[good] / mass[good][0] * 100.0, 1)[0])


def _virtual(t: Values, q: Values | None) -> Array:
    temperature = np.asarray(t, np.float64)
    return temperature if q is None else np.asarray(temperature * (1 + (WATER_VAPOUR / DRY_AIR - 1) * q))


def _rms(values: Array, weights: Array) -> float:
    good = np.isfinite(values)
    if not good.all():
        values, weights = values[good], weights[good]
    if not values.size:
        return float("nan")
    return float(np.sqrt(np.vdot(weights, values**2) / weights.sum()))


def _out_of_range(values: Values, least: Values, most: Values, bounds: tuple[Array, Array]) -> int:
    low, high = bounds
    count = 0
    for number in np.flatnonzero((least < low) | (most > high)):
        count += int(np.count_nonzero((values[number] < low[number]) | (values[number] > high[number])))
    return count


@lru_cache(maxsize=16)
def _places(labels: tuple[str, ...]) -> tuple[dict[str, int], dict[str, list[float]]]:
    """Number of each channel by `z@500` or `t2m`, and the levels of z and of q in order."""
    known = [split_label(label) for label in labels]
    places = {found.name + ("" if level is None else f"@{level:g}"): number
              for number, (found, level) in enumerate(known)}  # fmt: skip
    levels = {wanted: sorted(level for found, level in known if found.name == wanted and level is not None)
              for wanted in ("z", "q")}  # fmt: skip
    return places, levels
