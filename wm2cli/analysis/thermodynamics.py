"""Moist air: saturation, humidity in its different measures, and the pressure at sea level.

Saturation is that of the IFS: IFS Documentation Cy47r3, Part IV (Physical Processes), equations 7.4 and 7.5,
with Tetens' formula over water and over ice and a quadratic blend between -23 and 0 degrees Celsius.

All functions take and return float32 or float64 arrays of one shape, SI units, and leave their arguments
alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.schema import GRAVITY

Array = NDArray[np.floating[Any]]

DRY_AIR = 287.0597
"""Gas constant of dry air in J kg-1 K-1 (IFS)."""
WATER_VAPOUR = 461.5250
"""Gas constant of water vapour in J kg-1 K-1 (IFS)."""
RATIO = DRY_AIR / WATER_VAPOUR
"""0.62198, ratio of the two."""
LAPSE = 0.0065
"""Temperature decrease with height in K m-1 (ICAO standard atmosphere)."""

_A1 = 611.21  # Pa
_TRIPLE, _ICE = 273.16, 250.16  # K
_WATER_A3, _WATER_A4 = 17.502, 32.19
_ICE_A3, _ICE_A4 = 22.587, -0.7


def saturation_over_water(temperature: Array) -> Array:
    """Saturation vapour pressure over water in Pa; 611.21 Pa at 273.16 K."""
    return _A1 * np.exp(_WATER_A3 * (temperature - _TRIPLE) / (temperature - _WATER_A4))


def saturation_over_ice(temperature: Array) -> Array:
    """Saturation vapour pressure over ice in Pa; 611.21 Pa at 273.16 K."""
    return _A1 * np.exp(_ICE_A3 * (temperature - _TRIPLE) / (temperature - _ICE_A4))


def saturation(temperature: Array) -> Array:
    """Saturation vapour pressure in Pa over mixed water and ice.

    The share of water is ((T - 250.16) / 23)^2 between 250.16 K and 273.16 K, 0 below and 1 above.
    """
    water = np.clip((temperature - _ICE) / (_TRIPLE - _ICE), 0.0, 1.0) ** 2
    return np.asarray(water * saturation_over_water(temperature) + (1.0 - water) * saturation_over_ice(temperature))


def specific_humidity(relative_humidity: Array, temperature: Array, pressure_pa: float | Array) -> Array:
    """Specific humidity in kg kg-1 from relative humidity (0 to 1) over mixed water and ice."""
    vapour = relative_humidity * saturation(temperature)
    return np.asarray(RATIO * vapour / (pressure_pa - (1.0 - RATIO) * vapour))


def vapour_pressure(specific: Array, pressure_pa: Array) -> Array:
    """Vapour pressure in Pa from specific humidity in kg kg-1."""
    return np.asarray(specific * pressure_pa / (RATIO + (1.0 - RATIO) * specific))


def dewpoint(vapour: Array) -> Array:
    """Dewpoint in K: the temperature at which a vapour pressure (Pa, above zero) saturates over water.

    ECMWF's 2 metre dewpoint is over water at every temperature.
    """
    logarithm = np.log(vapour / _A1)
    return np.asarray((_WATER_A3 * _TRIPLE - _WATER_A4 * logarithm) / (_WATER_A3 - logarithm))


def pressure_below(pressure_pa: float | Array, temperature: Array, height_m: Array) -> Array:
    """Pressure `height_m` metres below a place, in Pa, through air that warms downwards by 6.5 K km-1.

    p0 = p (1 + L h / T)^(g / (R L)), the hydrostatic equation with a constant lapse rate L; h may be
    negative.

    Args:
        pressure_pa, temperature: At the place.
        height_m: How far down.
    """
    return np.asarray(pressure_pa * (1.0 + LAPSE * height_m / temperature) ** (GRAVITY / (DRY_AIR * LAPSE)))
