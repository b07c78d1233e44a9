"""Formulas of moist air, checked with numbers that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm2cli.analysis.levels import between, beyond, plan_levels
from wm2cli.analysis.thermodynamics import (
    DRY_AIR,
    RATIO,
    dewpoint,
    pressure_below,
    saturation,
    saturation_over_ice,
    saturation_over_water,
    specific_humidity,
    vapour_pressure,
)  # fmt: skip
from wm2cli.schema import GRAVITY, standard_height, standard_temperature


def array(*values: float) -> np.ndarray:
    return np.array(values)


def test_saturation_at_the_triple_point() -> None:
    for function in (saturation, saturation_over_water, saturation_over_ice):
        assert function(array(273.16))[0] == pytest.approx(611.21, abs=1e-9)


def test_saturation_by_hand() -> None:
    # 611.21 exp(17.502 (293.15 - 273.16) / (293.15 - 32.19)) = 611.21 exp(1.3406667)
    assert saturation(array(293.15))[0] == pytest.approx(611.21 * math.exp(17.502 * 19.99 / 260.96), rel=1e-12)
    assert saturation(array(293.15))[0] == pytest.approx(2335.8, abs=0.1)
    # Ice alone at -40 C; the literature has 12.84 Pa over ice and 18.9 Pa over water.
    assert saturation(array(233.15))[0] == pytest.approx(12.84, abs=0.1)
    assert saturation_over_water(array(233.15))[0] == pytest.approx(18.9, abs=0.3)


def test_the_blend_between_ice_and_water() -> None:
    middle = (250.16 + 273.16) / 2  # half way a quarter is water
    expected = 0.25 * saturation_over_water(array(middle)) + 0.75 * saturation_over_ice(array(middle))
    assert saturation(array(middle))[0] == pytest.approx(expected[0], rel=1e-12)
    assert saturation(array(250.16))[0] == saturation_over_ice(array(250.16))[0]


def test_specific_humidity_by_hand() -> None:
    e = 0.5 * 2335.8
    expected = 0.62198 * e / (1e5 - 0.37802 * e)
    assert specific_humidity(array(0.5), array(293.15), 1e5)[0] == pytest.approx(expected, rel=1e-4)
    assert pytest.approx(0.62198, abs=1e-5) == RATIO


@given(temperature=st.floats(200, 320), pressure=st.floats(5e4, 1.05e5), humidity=st.floats(0.01, 1.0))
def test_humidity_there_and_back(temperature: float, pressure: float, humidity: float) -> None:
    vapour = humidity * saturation_over_water(array(temperature))
    q = RATIO * vapour / (pressure - (1 - RATIO) * vapour)
    assert vapour_pressure(q, array(pressure))[0] == pytest.approx(vapour[0], rel=1e-9)
    dew = dewpoint(vapour)[0]
    assert dew <= temperature + 1e-6
    assert saturation_over_water(array(dew))[0] == pytest.approx(vapour[0], rel=1e-9)


def test_dewpoint_of_saturated_air_is_its_temperature() -> None:
    for temperature in (230.0, 260.0, 290.0):
        assert dewpoint(saturation_over_water(array(temperature)))[0] == pytest.approx(temperature, abs=1e-9)


def test_pressure_at_sea_level_in_the_standard_atmosphere() -> None:
    for level in (1013.25, 900.0, 700.0):
        height, temperature = standard_height(level), standard_temperature(level)
        found = pressure_below(level * 100, array(temperature), array(height))[0]
        assert found == pytest.approx(101325.0, rel=2e-5)
    below = pressure_below(1e5, array(288.15), array(-100.0))[0]  # ground below sea level
    assert below == pytest.approx(1e5 * math.exp(-GRAVITY * 100 / (DRY_AIR * 288.15)), rel=2e-4)


# Levels.


def test_plan_of_levels() -> None:
    plans = plan_levels((10, 50, 70, 500, 1000, 1010), (50.0, 100.0, 500.0, 1000.0))
    assert [(plan.how, plan.upper, plan.lower) for plan in plans] == [
        ("above", 50, 50),
        ("direct", 50, 50),
        ("between", 50, 100),
        ("direct", 500, 500),
        ("direct", 1000, 1000),
        ("below", 1000, 1000),
    ]
    assert plans[2].weight == pytest.approx(math.log(1.4) / math.log(2))


def test_interpolation_is_linear_in_the_logarithm_of_pressure() -> None:
    (plan,) = plan_levels((600,), (500.0, 700.0))
    upper, lower = np.full((2, 3), np.log(500), np.float32), np.full((2, 3), np.log(700), np.float32)
    np.testing.assert_allclose(between(upper, lower, plan.weight), np.log(600), rtol=1e-6)


def test_extrapolation_follows_the_standard_atmosphere() -> None:
    t = np.full((2, 3), standard_temperature(850), np.float32)
    z = np.full((2, 3), GRAVITY * standard_height(850), np.float32)
    (down,) = plan_levels((1000,), (500.0, 850.0))
    np.testing.assert_allclose(beyond("t", down, t, None), standard_temperature(1000), atol=0.01)
    np.testing.assert_allclose(beyond("z", down, z, t), GRAVITY * standard_height(1000), atol=1.0)
    # The standard atmosphere is isothermal from 226 to 55 hPa.
    t = np.full((2, 3), standard_temperature(100), np.float32)
    z = np.full((2, 3), GRAVITY * standard_height(100), np.float32)
    (up,) = plan_levels((70,), (100.0, 500.0))
    np.testing.assert_allclose(beyond("z", up, z, t), GRAVITY * standard_height(70), rtol=1e-4)
    np.testing.assert_array_equal(beyond("t", up, t, None), t)
    np.testing.assert_array_equal(beyond("u", up, t, None), t)
