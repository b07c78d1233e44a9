"""SEEPS, the stable equitable error in probability space of precipitation (Rodwell et al. 2010, doi:10.1002/qj.656).

Precipitation is dry, light or heavy by the climate of its place; errors cost what they would cost a forecast that knows
only the climate. 0 is perfect; always the same category, or a draw from the climate, is worth 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]
Array = NDArray[np.float64]

DRY_BELOW_M = {6: 0.1e-3, 24: 0.25e-3}
"""Dry up to this sum in m, by the length of the window in hours."""

DRY_FRACTION, HEAVY_FROM = "_seeps_dry_fraction", "_seeps_threshold"
"""Behind the name of a variable in a climatology of WeatherBench 2: the fraction of dry cases, and the sum in m from
which on precipitation is heavy, two thirds of the wet cases being lighter."""

USEFUL_DRY_FRACTION = (0.1, 0.85)
"""Places that are nearly never or nearly always dry are left out."""


def error_matrix(dry: Array) -> Array:
    """Cost of each forecast (row) when each category (column) was observed: dry, light, heavy.

    Args:
        dry: (...) climatological fraction of dry cases.

    Returns:
        (..., 3, 3).
    """
    zero = np.zeros_like(dry)
    wet = 1.0 / (1.0 - dry)
    rows = [[zero, wet, 4 * wet], [1 / dry, zero, 3 * wet], [1 / dry + 3 / (2 + dry), 3 / (2 + dry), zero]]
    return np.asarray(0.5 * np.stack([np.stack(row, axis=-1) for row in rows], axis=-2))


def seeps(forecast: Values, truth: Values, dry: Array, heavy: Array, threshold: float) -> Array:
    """The score at each place.

    Args:
        forecast, truth: (...) sums of precipitation.
        dry: (...) climatological fraction of dry cases; outside of `USEFUL_DRY_FRACTION` the score is NaN.
        heavy: (...) the sum from which on precipitation is heavy, in the unit of `forecast`; where it is NaN, the
            climate knowing no wet case, only dry can be told from not dry, and the score of anything else is NaN.
        threshold: Dry up to here, in the same unit.

    Returns:
        (...).
    """
    useful = (dry >= USEFUL_DRY_FRACTION[0]) & (dry <= USEFUL_DRY_FRACTION[1])
    matrix = error_matrix(np.where(useful, dry, 0.5))
    place = [np.where(values <= threshold, 0, np.where(values < heavy, 1, 2)) for values in (forecast, truth)]
    flat = matrix.reshape(*matrix.shape[:-2], 9)
    found = np.take_along_axis(flat, (3 * place[0] + place[1])[..., None], axis=-1)[..., 0]
    told = np.isfinite(heavy) | ((forecast <= threshold) & (truth <= threshold))
    valid = useful & told & np.isfinite(forecast) & np.isfinite(truth)
    return np.asarray(np.where(valid, found, np.nan))
