"""Features that follow from time and place alone: solar position, clear-sky beam, clock and season.

The solar formulas are the ones of the public WeatherMesh-3 inputs: declination and equation of time as in standard
solar engineering, and the clear-sky direct beam of Masters, Renewable and Efficient Electric Power Systems, section 4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import ConfigError
from wm2cli.grid import Grid

FORCINGS = (
    "radiation",
    "hour",
    "sin_altitude",
    "cos_altitude",
    "sin_hour",
    "cos_hour",
    "sin_year",
    "cos_year",
)
"""Names of the features `forcing_fields` can make."""


def solar_sine(time: np.datetime64, grid: Grid) -> NDArray[np.float64]:
    """Sine of the solar altitude, (H, W), negative at night.

    sin(altitude) = cos(lat) cos(declination) cos(hour angle) + sin(lat) sin(declination).
    """
    day, hour = _day_and_hour(time)
    declination = np.deg2rad(23.45) * np.sin(2 * np.pi * (day - 81) / 365)
    b = 2 * np.pi * (day - 81) / 364
    equation_of_time = 9.87 * np.sin(2 * b) - 7.53 * np.cos(b) - 1.5 * np.sin(b)  # minutes
    # Longitudes run to +-180 in the formula, so that the hour angle is continuous at the date line.
    solar_hours = (60 * hour + 4 * ((grid.lon + 180.0) % 360.0 - 180.0) + equation_of_time) / 60
    hour_angle = np.deg2rad(15.0 * (solar_hours - 12.0))
    lat = np.deg2rad(grid.lat)
    # The sum is separable in rows and columns: one outer product instead of a full grid of cosines.
    overhead = np.outer(np.cos(lat) * np.cos(declination), np.cos(hour_angle))
    return np.asarray(overhead + (np.sin(lat) * np.sin(declination))[:, None])


def clear_sky_beam(sine: NDArray[np.float64], day: int) -> NDArray[np.float64]:
    """Direct beam of a clear sky in W m-2, zero at night.

    Args:
        sine: Sine of the solar altitude, any shape.
        day: Day of the year, 1 for 1 January.
    """
    outside = 1160 + 75 * np.sin(2 * np.pi * (day - 275) / 365)
    depth = 0.174 + 0.035 * np.sin(2 * np.pi * (day - 100) / 365)
    by_day = sine > 0
    return np.where(by_day, outside * np.exp(-depth / np.where(by_day, sine, 1.0)), 0.0)


def forcing_fields(names: tuple[str, ...], time: np.datetime64, grid: Grid) -> NDArray[np.float32]:
    """Features at one instant, scaled to order one.

    Args:
        names: Any of `FORCINGS`, in the order wanted. `radiation` is (beam - 300) / 400; `hour` is the UTC hour / 24.
        time: Instant, UTC.
        grid: Grid of shape (H, W).

    Returns:
        (len(names), H, W) float32.

    Raises:
        ConfigError: A name is not known.
    """
    unknown = [name for name in names if name not in FORCINGS]
    if unknown:
        raise ConfigError(f"unknown forcings {', '.join(unknown)}", hint=f"known are {', '.join(FORCINGS)}")
    day, hour = _day_and_hour(time)
    sine = solar_sine(time, grid)
    year_angle, hour_angle = 2 * np.pi * (day - 1 + hour / 24) / 365.25, 2 * np.pi * hour / 24
    out = np.empty((len(names), *grid.shape), np.float32)
    for index, name in enumerate(names):
        match name:
            case "radiation":
                out[index] = (clear_sky_beam(sine, day) - 300.0) / 400.0
            case "hour":
                out[index] = hour / 24.0
            case "sin_altitude":
                out[index] = sine
            case "cos_altitude":
                out[index] = np.sqrt(np.clip(1.0 - sine**2, 0.0, None))
            case "sin_hour":
                out[index] = np.sin(hour_angle)
            case "cos_hour":
                out[index] = np.cos(hour_angle)
            case "sin_year":
                out[index] = np.sin(year_angle)
            case "cos_year":
                out[index] = np.cos(year_angle)
    return out


def _day_and_hour(time: np.datetime64) -> tuple[int, float]:
    """Day of the year from 1, and the UTC hour of the day."""
    day = time.astype("datetime64[D]")
    day_of_year = int((day - time.astype("datetime64[Y]").astype("datetime64[D]")).astype(int)) + 1
    hour = float((time.astype("datetime64[s]") - day.astype("datetime64[s]")).astype(int)) / 3600.0
    return day_of_year, hour
