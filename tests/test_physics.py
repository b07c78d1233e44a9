"""Physical checks and spectra, against integrals and balances that are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from verification import GRID as SMALL

from wm2cli.evaluation.physics import (
    ROTATION,
    check_state,
    drift_per_day,
    dry_mass,
    geostrophic_wind,
    hydrostatic_residual,
    precipitable_water,
    surface_pressure,
)
from wm2cli.evaluation.spectra import (
    band_spectrum,
    circumference,
    effective_resolution_km,
    wavelengths_km,
    zonal_spectrum,
)
from wm2cli.grid import Grid
from wm2cli.schema import GRAVITY, LEVELS_13

GRID = Grid(78.75 - 22.5 * np.arange(8), 22.5 * np.arange(16))
PHI, LAM = np.deg2rad(GRID.lat)[:, None], np.deg2rad(GRID.lon)[None, :]


def isothermal(temperature: float, upper: float, lower: float) -> float:
    """The thickness that leaves no residual."""
    level = {"z": np.zeros((1, 1)), "t": np.full((1, 1), temperature)}
    return -float(hydrostatic_residual(level, level, upper, lower)[0, 0])


def test_thickness_of_isothermal_layers() -> None:
    assert isothermal(250.0, 500.0, 850.0) == pytest.approx(38079.209866849, rel=1e-12)
    assert isothermal(280.0, 925.0, 1000.0) == pytest.approx(6266.080934087, rel=1e-12)


def test_moist_air_is_thicker() -> None:
    upper, lower = ({"z": np.array([[z]]), "t": np.array([[280.0]]), "q": np.array([[0.01]])} for z in (38079.0, 0.0))
    dry = {name: value for name, value in upper.items() if name != "q"}, {"z": lower["z"], "t": lower["t"]}
    change = hydrostatic_residual(*dry, 500.0, 850.0) - hydrostatic_residual(upper, lower, 500.0, 850.0)
    assert change[0, 0] == pytest.approx(287.05 * 280 * 0.01 * (461.5 / 287.05 - 1) * np.log(850 / 500))


def test_solid_body_rotation_is_in_balance() -> None:
    z = np.broadcast_to(54000 - ROTATION * 6.371e6 * 20.0 * np.sin(PHI) ** 2, GRID.shape)
    u, v = geostrophic_wind(z, GRID)
    assert u[1:4, 0] == pytest.approx([10.00377891, 14.97171317, 17.66033981], abs=1e-7)
    assert u[4:7, 5] == pytest.approx([17.66033981, 14.97171317, 10.00377891], abs=1e-7)
    assert v[1:7] == pytest.approx(np.zeros((6, 16)), abs=1e-10)
    assert np.isnan(u[[0, -1]]).all()
    fine = Grid.regular(1.0)
    phi = np.deg2rad(fine.lat)[:, None]
    z = np.broadcast_to(54000 - ROTATION * 6.371e6 * 20.0 * np.sin(phi) ** 2, fine.shape)
    u, _ = geostrophic_wind(z, fine)
    outside = (np.abs(fine.lat) >= 10) & (np.abs(fine.lat) < 89.5)
    factor = np.sin(np.deg2rad(2.0)) / np.deg2rad(2.0)  # of centred differences
    assert u[outside, 7] == pytest.approx(20 * np.cos(phi[outside, 0]) * factor, rel=1e-9)
    assert np.isnan(u[np.abs(fine.lat) < 10]).all()


def test_meridional_wind_goes_round_the_globe() -> None:
    grid = Grid(np.array([67.5, 45.0, 22.5, 0.0, -22.5, -45.0, -67.5]), 22.5 * np.arange(16))
    z = np.broadcast_to(1000 * np.cos(np.deg2rad(grid.lon))[None], grid.shape)
    _, v = geostrophic_wind(z, grid)
    wanted = [0, -0.802711001, -1.483216530, -1.937915780, -2.097584930]
    assert v[1, :5] == pytest.approx(wanted, abs=1e-8)
    assert v[1, 1] / -0.823719680 == pytest.approx(0.9744953584, abs=1e-8)  # of the exact one: sin h / h


def test_mass_and_water() -> None:
    uniform = np.full(GRID.shape, 1e5)
    assert dry_mass(uniform, np.full(GRID.shape, 25.0), GRID) == pytest.approx(5.188458504906617e18, rel=1e-12)
    levels = np.array(LEVELS_13, float)
    q = 0.012 * (levels / 1000) ** 3
    water = precipitable_water(np.broadcast_to(q[:, None, None], (13, 2, 2)), LEVELS_13)
    assert water == pytest.approx(np.full((2, 2), 30.928136137), abs=1e-8)
    area = dry_mass(np.full(GRID.shape, GRAVITY), np.zeros(GRID.shape), GRID)
    assert area == pytest.approx(5.1006447191e14, rel=1e-10)
    # On many levels the rule tends to the integral, 1.1 % less.
    fine = np.linspace(50.0, 1000.0, 20001)
    column = np.broadcast_to((0.012 * (fine / 1000) ** 3)[:, None, None], (fine.size, 1, 1))
    assert precipitable_water(column, fine.tolist()) == pytest.approx(np.full((1, 1), 30.591295193), abs=1e-6)
    sea, height = np.array(101325.0), np.array(1500.0)
    assert surface_pressure(sea, height, 280.0) == pytest.approx(84641.822, abs=1e-3)
    assert surface_pressure(sea, height, 280.0, lapse=0.0) == pytest.approx(84378.624, abs=1e-3)
    assert surface_pressure(sea, height, 280.0, lapse=1e-9) == pytest.approx(84378.624, abs=1e-3)


def test_drift_is_a_trend_per_day() -> None:
    leads = [24, 48, 72, 96]
    mass = 5e18 * (1 + 1e-4 * np.arange(4))
    assert drift_per_day(leads, mass) == pytest.approx(0.01)
    assert np.isnan(drift_per_day([24], mass[:1]))


def test_checks_of_a_state_count_what_is_wrong() -> None:
    labels = ["z500", "z850", "t500", "t850", "q500", "u500", "v500"]
    state = np.empty((7, *SMALL.shape))
    state[:] = np.array([54000.0, 14000.0, 255.0, 280.0, 1e-3, 0.0, 0.0])[:, None, None]
    sound = check_state(state, labels, SMALL)
    assert (sound["not_finite"], sound["out_of_range"], sound["height_inversions"]) == (0, 0, 0)
    assert sound["humidity_lowest"] == 1e-3
    assert "dry_mass" not in sound
    state[4, 0, :3] = -1e-5
    state[2, 2, 2] = 700.0
    state[3, 3, 3] = np.nan
    state[1, 4, 4] = 60000.0
    broken = check_state(state, labels, SMALL)
    assert (broken["not_finite"], broken["out_of_range"], broken["humidity_negative"]) == (1, 2, 3)
    assert broken["humidity_lowest"] == -1e-5
    assert broken["height_inversions"] == 1
    assert broken["hydrostatic_rmse"] > sound["hydrostatic_rmse"]


def test_spectrum_of_waves() -> None:
    lat, lon = np.array([0.0, 60.0]), np.deg2rad(22.5 * np.arange(16))
    x = 3 + 2 * np.cos(2 * lon) + np.sin(5 * lon) + np.cos(8 * lon)
    spectrum = zonal_spectrum(np.stack([x, x]), lat)
    length = circumference(np.array([0.0]))[0]
    assert length == pytest.approx(40008182.4435, abs=1e-3)
    wanted = np.array([9, 0, 2, 0, 0, 0.5, 0, 0, 1.0])
    assert spectrum[0] / length == pytest.approx(wanted, abs=1e-12)
    assert spectrum[1] / length == pytest.approx(wanted / 2, abs=1e-12)
    assert np.array([1, 1 / 2, 1 / 8]) * length / 1000 == pytest.approx([40008.2, 20004.1, 5001.0], abs=0.05)
    assert spectrum[0].sum() / length + wanted[8] == pytest.approx(13.5)  # WeatherBench 2 counts the last one twice
    single = zonal_spectrum(np.stack([x, x]).astype(np.float32), lat)
    assert single[:, [0, 2, 5, 8]] == pytest.approx(spectrum[:, [0, 2, 5, 8]], rel=1e-6)
    assert spectrum[0].sum() / length == pytest.approx((x**2).mean())  # Parseval; 12.5
    odd = zonal_spectrum(x[None, :15], np.array([0.0]))
    assert odd.sum() / length == pytest.approx((x[:15] ** 2).mean())


def test_band_and_wavelengths() -> None:
    random = np.random.default_rng(1).normal(size=(2, *GRID.shape))
    inside = (np.abs(GRID.lat) > 30) & (np.abs(GRID.lat) < 60)
    spectra, weights = zonal_spectrum(random, GRID.lat)[:, inside], GRID.area_weights()[inside]
    assert band_spectrum(random, GRID) == pytest.approx(np.average(spectra, axis=1, weights=weights))
    waves = wavelengths_km(GRID)
    assert waves[0] == np.inf
    assert waves[1] == pytest.approx(40008.1824435 * np.cos(np.pi / 4))


def test_effective_resolution() -> None:
    waves = wavelengths_km(Grid.regular(1.5))
    truth = np.ones_like(waves)
    blurred = np.where(np.arange(waves.size) >= 30, 0.4, 1.0)
    assert effective_resolution_km(blurred, truth, waves) == pytest.approx(waves[30])
    assert np.isnan(effective_resolution_km(truth, truth, waves))
    dip = truth.copy()
    dip[40:44] = 0.1  # four wavenumbers are no end of the spectrum
    assert np.isnan(effective_resolution_km(dip, truth, waves))
