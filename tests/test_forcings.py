"""Solar and clock features against numbers one can check on paper."""

from __future__ import annotations

import numpy as np
import pytest

from wm2cli.errors import ConfigError
from wm2cli.forcings import FORCINGS, clear_sky_beam, forcing_fields, solar_sine
from wm2cli.grid import Grid

GRID = Grid.regular(1.0)


def test_the_sun_stands_over_the_declination_at_local_noon() -> None:
    """On day 172 (21 June) the declination is 23.45 sin(2 pi 91/365) = 23.45 degrees; noon is near 0 degrees east."""
    sine = solar_sine(np.datetime64("2023-06-21T12"), GRID)
    row, column = np.unravel_index(int(sine.argmax()), sine.shape)
    assert GRID.lat[row] == pytest.approx(23.45, abs=0.5)
    assert min(GRID.lon[column], 360 - GRID.lon[column]) <= 1.0
    assert sine.max() == pytest.approx(1.0, abs=1e-3)


def test_polar_night_and_polar_day() -> None:
    sine = solar_sine(np.datetime64("2023-12-21T06"), GRID)
    assert (sine[GRID.lat > 67.5] < 0).all()
    assert (sine[GRID.lat < -67.5] > 0).all()


def test_midnight_is_opposite_to_noon() -> None:
    noon, midnight = (solar_sine(np.datetime64(f"2023-03-22T{hour}"), GRID) for hour in ("12", "00"))
    np.testing.assert_allclose(np.roll(noon, 180, axis=1), midnight, atol=2e-2)


def test_clear_sky_beam_by_hand() -> None:
    """Day 81, overhead sun: (1160 + 75 sin(2 pi (-194)/365)) exp(-(0.174 + 0.035 sin(2 pi (-19)/365))) W m-2."""
    expected = (1160 + 75 * np.sin(2 * np.pi * -194 / 365)) * np.exp(-(0.174 + 0.035 * np.sin(2 * np.pi * -19 / 365)))
    assert clear_sky_beam(np.array([1.0, 0.0, -0.5]), 81).tolist() == pytest.approx([expected, 0.0, 0.0])
    assert 950 < expected < 1050


def test_features_are_scaled_and_ordered_as_asked() -> None:
    fields = forcing_fields(("hour", "sin_hour", "sin_altitude", "cos_altitude"), np.datetime64("2024-01-01T06"), GRID)
    assert fields.shape == (4, *GRID.shape)
    assert fields.dtype == np.float32
    assert (fields[0] == 0.25).all()
    assert fields[1] == pytest.approx(1.0)
    np.testing.assert_allclose(fields[2] ** 2 + fields[3] ** 2, 1.0, atol=1e-5)


def test_season_moves_on_smoothly_over_new_year() -> None:
    names = ("sin_year", "cos_year")
    old, new = (forcing_fields(names, np.datetime64(t), GRID)[:, 0, 0] for t in ("2023-12-31T23", "2024-01-01T00"))
    np.testing.assert_allclose(old, new, atol=0.01)


def test_all_features_are_finite_everywhere() -> None:
    assert np.isfinite(forcing_fields(FORCINGS, np.datetime64("2024-02-29T13:30"), GRID)).all()


def test_unknown_features_are_refused() -> None:
    with pytest.raises(ConfigError, match="moon"):
        forcing_fields(("moon",), np.datetime64("2024-01-01"), GRID)
