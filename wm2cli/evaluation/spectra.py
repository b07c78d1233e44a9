"""Zonal energy spectra, and the scale below which a forecast is smoother than the truth.

Along a latitude circle of circumference C, F_k = (1/W) sum_l x_l exp(-2 pi i k l / W), and the energy density is
S_0 = C |F_0|^2, S_k = 2 C |F_k|^2. The term of the highest wavenumber, W/2 when W is even, stands for itself alone and
is counted once, so that the sum over k is C times the mean square. Radius and density are those of WeatherBench 2.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.grid import Grid

Array = NDArray[np.float64]

EARTH_RADIUS_M = 6_367_500.0
"""Of the circumferences (WeatherBench 2)."""

BAND = (30.0, 60.0)
"""Degrees of latitude, north and south, that spectra are averaged over."""

BLURRED = 0.5
"""Share of the truth's energy below which a scale counts as not resolved (PhysMetrics, arXiv 2606.10642)."""


def circumference(lat: Array) -> Array:
    """Length in m of the circles at latitudes (H,)."""
    return np.asarray(2 * np.pi * EARTH_RADIUS_M * np.cos(np.deg2rad(lat)))


def zonal_spectrum(values: NDArray[np.floating[Any]], lat: Array) -> Array:
    """Energy density by zonal wavenumber.

    Args:
        values: (..., H, W).
        lat: (H,) degrees north.

    Returns:
        (..., H, W // 2 + 1) in the square of the values' unit times m, for wavenumbers 0, 1, 2 ...
    """
    width = values.shape[-1]
    with np.errstate(invalid="ignore"):  # what is not finite has no spectrum, and is told by the checks
        power = np.abs(np.fft.rfft(np.asarray(values, np.float64), axis=-1) / width) ** 2
    doubled = slice(1, -1 if width % 2 == 0 else None)
    power[..., doubled] *= 2.0
    return np.asarray(power * circumference(lat)[:, None])


def band_spectrum(values: NDArray[np.floating[Any]], grid: Grid) -> Array:
    """(..., H, W) -> (..., W // 2 + 1): area-weighted mean of `zonal_spectrum` over both mid-latitudes."""
    rows, weights = _band(grid)
    spectra = zonal_spectrum(values[..., rows, :], grid.lat[rows])
    return np.asarray(np.einsum("...hk,h->...k", spectra, weights))


@lru_cache(maxsize=4)
def _band(grid: Grid) -> tuple[NDArray[np.intp], Array]:
    rows = np.flatnonzero((np.abs(grid.lat) >= BAND[0]) & (np.abs(grid.lat) <= BAND[1]))
    weights = grid.area_weights()[rows]
    return rows, np.asarray(weights / weights.sum())


def wavelengths_km(grid: Grid) -> Array:
    """(W // 2 + 1,) wavelength of each wavenumber at 45 degrees; infinite for wavenumber 0."""
    numbers = np.arange(grid.lon.size // 2 + 1)
    with np.errstate(divide="ignore"):
        return np.asarray(circumference(np.array([45.0]))[0] / 1000.0 / numbers)


def effective_resolution_km(forecast: Array, truth: Array, wavelengths: Array) -> float:
    """The longest wavelength from which on the forecast lacks half of the truth's energy.

    Looked for below 4000 km; five wavenumbers in a row must lack it.

    Args:
        forecast, truth: (K,) spectra.
        wavelengths: (K,) in km, falling.

    Returns:
        km, or NaN when the forecast keeps its energy down to the grid.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        lacking = (forecast / truth < BLURRED) & (wavelengths <= 4000.0)
    for first in range(lacking.size - 4):
        if lacking[first : first + 5].all():
            return float(wavelengths[first])
    return float("nan")
