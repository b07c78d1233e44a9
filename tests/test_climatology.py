"""The climatology: against the plain definition, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from wm2cli.cli import run
from wm2cli.errors import DataError, UsageError
from wm2cli.evaluation.series import Climatology
from wm2cli.grid import Grid
from wm2cli.preprocess import Options, preprocess
from wm2cli.preprocessing.climatology import _Days, around, write_climatology
from wm2cli.preprocessing.rain import weighted_quantile
from wm2cli.preprocessing.target import Contents, Target, write_times
from wm2cli.schema import Schema
from wm2cli.store import Store

GRID = Grid.regular(90.0, "cells")
SCHEMA = Schema(("t",), (500, 850), ("t2m",))


def fields(time: NDArray[np.datetime64]) -> NDArray[np.float32]:
    """(T, C, H, W): a season, a trend and noise."""
    generator = np.random.default_rng(3)
    days = (time - np.datetime64("2018-01-01")).astype("timedelta64[h]").astype(float) / 24.0
    wave = 260.0 + 20.0 * np.sin(2 * np.pi * days / 365.25) + 0.01 * days
    noise = generator.normal(0.0, 3.0, (time.size, len(SCHEMA.channels), *GRID.shape))
    return (wave[:, None, None, None] + noise).astype(np.float32)


def make_store(path: Path, first: str, last: str, train: tuple[tuple[str, str], ...], step: int = 12) -> Store:
    time = np.arange(np.datetime64(first, "s"), np.datetime64(last, "s"), np.timedelta64(step, "h"))
    names = SCHEMA.channels
    ones = dict.fromkeys(names, 1.0)
    splits = {"train": tuple((np.datetime64(a, "s"), np.datetime64(b, "s")) for a, b in train)}
    contents = Contents(SCHEMA, GRID, time, step, splits, "float32", {}, {"kind": "simulated", "title": "seasons"}, {})
    with Target(path, contents) as target:
        target.set_normalizer({"mean": ones, "std": ones, "difference_std": {}, "log_floor": {}})
        target.record(np.arange(time.size), write_times(target.part, np.arange(time.size), fields(time), target.coding))
        return target.finish()


@lru_cache
def plainly(store: Store, window_days: int) -> NDArray[np.float64]:
    """(hours, 366, C, H, W) by the definition, slowly: years of 366 days, all years and days of a window count."""
    half = max(1, window_days // 2)
    values: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    for place in store.split_indices("train"):
        when: datetime = store.time[place].astype(datetime)
        day, field = when.timetuple().tm_yday, store.read([place])[0].astype(np.float64)
        values.setdefault((when.hour, day), []).append(field)
        leap = datetime(when.year, 12, 31).timetuple().tm_yday == 366
        if day == 365 and not leap:
            values.setdefault((when.hour, 366), []).append(field)
    hours = sorted({hour for hour, _ in values})
    made = np.zeros((len(hours), 366, len(SCHEMA.channels), *GRID.shape))
    for number, hour in enumerate(hours):
        for day in range(1, 367):
            total, weights = np.zeros(made.shape[2:]), 0.0
            for shift in range(-half, half + 1):
                weight = (half - abs(shift)) / half
                for field in values.get((hour, (day - 1 + shift) % 366 + 1), []):
                    total += weight * field
                    weights += weight
            made[number, day - 1] = total / weights
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two ordinary years and a leap year, of which two halves of years count as well."""
    return make_store(tmp_path_factory.mktemp("store") / "store", "2018-05-01", "2021-01-01",
                      (("2018-06-01", "2020-03-31T12"), ("2020-05-01", "2020-12-31T12")), step=24)  # fmt: skip


@pytest.mark.parametrize(("window", "suffix"), [(61, ".nc"), (15, ".zarr")])
def test_it_is_the_mean_that_the_definition_says(store: Store, tmp_path: Path, window: int, suffix: str) -> None:
    path = tmp_path / f"clim{suffix}"
    write_climatology(store, path, window)
    wanted = plainly(store, window)
    opened = xr.open_dataset(path) if suffix == ".nc" else xr.open_zarr(path, consolidated=False)
    with opened as found:
        assert found["t"].dims == ("hour", "dayofyear", "level", "latitude", "longitude")
        assert found["t2m"].dims == ("hour", "dayofyear", "latitude", "longitude")
        np.testing.assert_array_equal(found["hour"], [0])
        np.testing.assert_array_equal(found["dayofyear"], np.arange(1, 367))
        np.testing.assert_array_equal(found["level"], [500, 850])
        np.testing.assert_allclose(found["t"], wanted[:, :, :2], rtol=3.1e-5)  # 14 bits are kept: 2**-15
        np.testing.assert_allclose(found["t2m"], wanted[:, :, 2], rtol=3.1e-5)
        assert found["t2m"].attrs["units"] == "K"
        assert found.attrs["wm2_kind"] == "simulated"
        assert found.attrs["window_days"] == "61" if window == 61 else True
        assert found.attrs["years"] == "2018-2020"
        assert found.attrs["store_fingerprint"] == store.fingerprint


def test_the_sum_that_moves_along_does_not_drift(store: Store) -> None:
    days = _Days(store)
    for window in (61, 1):
        wanted = plainly(store, window)
        for number, hour in enumerate(days.hours):
            np.testing.assert_allclose(list(days.means(hour, window)), wanted[number], rtol=1e-12)


def test_the_weights_are_those_of_weatherbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that is one on a single day shows them: 61, of which 59 count, 1/30 at the centre."""
    alone = np.datetime64("2019-01-10T00")
    monkeypatch.setattr("test_climatology.fields", lambda time: np.broadcast_to(
        (time == alone).astype(np.float32)[:, None, None, None], (time.size, 3, *GRID.shape)
    ).copy())  # fmt: skip
    one = make_store(tmp_path / "one", "2019-01-01", "2020-01-01", (("2019-01-01", "2019-12-31"),), step=24)
    shown = np.array([mean[0, 0, 0] for mean in _Days(one).means(0, 61)])
    assert np.count_nonzero(np.abs(shown) > 1e-12) == 59
    found = {shift: shown[around(10, shift) - 1] for shift in (0, 1, -1, 29, -29, 30, -30)}
    wanted = {0: 1 / 30, 1: 0.0322222222222, 29: 0.0011111111111, 30: 0.0}
    assert found == pytest.approx({shift: wanted[abs(shift)] for shift in found}, abs=1e-12)
    assert shown.sum() == pytest.approx(1.0)


def test_one_value_alone_spreads_with_those_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single warm day of two years shows as a triangle of 59 days with half the height 1/30."""
    monkeypatch.setattr("test_climatology.fields", lambda time: np.broadcast_to(
        (time == np.datetime64("2019-01-10T00")).astype(np.float32)[:, None, None, None], (time.size, 3, *GRID.shape)
    ).copy())  # fmt: skip
    one = make_store(tmp_path / "one", "2019-01-01", "2021-01-01", (("2019-01-01", "2020-12-31T12"),))
    write_climatology(one, tmp_path / "clim.nc", 61)
    with xr.open_dataset(tmp_path / "clim.nc") as found:
        values = found["t2m"].values[:, :, 0, 0]
    assert values[1].max() == pytest.approx(0.0, abs=1e-9)
    shown = np.flatnonzero(values[0] > 1e-6) + 1
    assert shown.size == 59
    assert set(shown) == {*range(1, 40), *range(347, 367)}, "round the end of the year"
    assert values[0, 9] == pytest.approx(1 / 30 / 2, rel=2.0**-15)
    assert values[0, 9 + 15] == pytest.approx(1 / 30 / 2 / 2, rel=2.0**-15)


def rainy_store(path: Path, grid: Grid = GRID) -> Store:
    """A leap year and an ordinary one of rain at noon; nearly always dry at the first place, always at the second."""
    time = np.arange(np.datetime64("2019-01-01T12", "s"), np.datetime64("2021-01-01", "s"), np.timedelta64(24, "h"))
    generator = np.random.default_rng(8)
    rain = np.where(generator.random((time.size, 1, *grid.shape)) < 0.4, 0, generator.exponential(3e-3, size=(
        time.size, 1, *grid.shape))).astype(np.float32)  # fmt: skip
    rain[:, 0, 0, 0] *= generator.random(time.size) < 0.02
    rain[:, 0, 0, 1] = 0
    rain[::5, 0, 1, 1] = np.float32(0.1e-3)  # on the limit: dry
    schema = Schema((), (), ("tp_6h",))
    splits = {"train": ((time[0], time[-1]),)}
    contents = Contents(schema, grid, time, 24, splits, "float32", {}, {"kind": "simulated", "title": "rain"}, {})
    with Target(path, contents) as target:
        normalizer = {"mean": {"tp_6h": 0.0}, "std": {"tp_6h": 1.0}, "difference_std": {}, "log_floor": {}}
        target.set_normalizer(normalizer)
        target.record(np.arange(time.size), write_times(target.part, np.arange(time.size), rain, target.coding))
        return target.finish()


def rain_plainly(store: Store, window_days: int) -> xr.Dataset:
    """The classes of SEEPS with xarray: years by days of the year, padded, a rolling window, weights."""
    axes = {"time": store.time.astype("datetime64[ns]")}
    every = xr.DataArray(store.read(np.arange(store.time.size))[:, 0].astype(float), axes, ("time", "row", "column"))
    years = [every[every.time.dt.year == year] for year in (2019, 2020)]
    by_day = [one.assign_coords(time=one.time.dt.dayofyear).rename(time="dayofyear") for one in years]
    stacked = xr.concat(by_day, "year", join="outer")
    stacked = stacked.fillna(stacked.sel(dayofyear=365))
    half = window_days // 2
    rolled = stacked.pad(dayofyear=half, mode="wrap").rolling(dayofyear=window_days, center=True).construct("window")
    rolled = rolled.isel(dayofyear=slice(half, -half))
    weights = xr.DataArray(1 - np.abs(np.arange(-half, half + 1)) / half, dims="window")
    limit = np.float32(0.1e-3)
    heavy = rolled.where(rolled > limit).weighted(weights).quantile(2 / 3, dim=("window", "year"))
    return xr.Dataset({"dry": (rolled <= limit).mean(("window", "year")), "heavy": heavy}).transpose("dayofyear", ...)


@pytest.mark.parametrize(
    ("window", "suffix", "memory"), [(61, ".nc", 2**20), pytest.param(15, ".zarr", 1, marks=pytest.mark.slow)]
)
def test_classes_of_rain_are_those_of_weatherbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int,
                                                   suffix: str, memory: int) -> None:  # fmt: skip
    store = rainy_store(tmp_path / "store")
    # With no memory they are made a row at a time, as on large grids.
    monkeypatch.setattr("wm2cli.preprocessing.climatology._RAIN_BYTES", memory)
    path = tmp_path / f"clim{suffix}"
    write_climatology(store, path, window)
    wanted = rain_plainly(store, window)
    opened = xr.open_dataset(path) if suffix == ".nc" else xr.open_zarr(path, consolidated=False)
    with opened as found:
        assert found["tp_6h_seeps_threshold"].dims == ("hour", "dayofyear", "latitude", "longitude")
        assert found["tp_6h_seeps_threshold"].attrs["units"] == "m"
        np.testing.assert_array_equal(found["hour"], [12])
        np.testing.assert_allclose(found["tp_6h_seeps_dry_fraction"][0], wanted["dry"], rtol=1e-6)
        np.testing.assert_allclose(found["tp_6h_seeps_threshold"][0], wanted["heavy"], rtol=1e-6)
        assert np.isnan(found["tp_6h_seeps_threshold"][0, :, 0, 1]).all()
        assert (found["tp_6h_seeps_dry_fraction"][0, :, 0, 1] == 1).all()
    climatology = Climatology(path)
    assert climatology.channels == ("tp_6h",)
    assert climatology.has_rain_classes("tp_6h")
    dry, heavy = climatology.rain_classes("tp_6h", np.datetime64("2023-03-01T12", "s"))
    np.testing.assert_allclose(dry, wanted["dry"].sel(dayofyear=60), rtol=1e-6)
    np.testing.assert_allclose(heavy, wanted["heavy"].sel(dayofyear=60), rtol=1e-6)
    np.testing.assert_allclose(climatology.mean_dry_fraction("tp_6h"), wanted["dry"].mean("dayofyear"), rtol=1e-6)


def test_weighted_quantiles() -> None:
    values = np.random.default_rng(4).gamma(1.0, 2.0, (5, 40)).astype(np.float32)
    plain = values.astype(np.float64)

    def found(weights: Sequence[int], share: float = 2 / 3) -> NDArray[np.float64]:
        return weighted_quantile(values, np.broadcast_to(np.array(weights, np.int32), (5, 40)), share)

    np.testing.assert_allclose(found([1] * 40), np.quantile(plain, 2 / 3, axis=1), rtol=1e-12)
    np.testing.assert_allclose(found([3] * 12 + [0] * 28), np.quantile(plain[:, :12], 2 / 3, axis=1), rtol=1e-12)
    np.testing.assert_allclose(found([0] * 7 + [182] + [0] * 32, 0.9), plain[:, 7], rtol=1e-12)
    assert np.isnan(found([0] * 40)).all()
    rising = np.arange(1, 41)
    theirs = xr.DataArray(plain, dims=("place", "sample")).weighted(xr.DataArray(rising, dims="sample"))
    np.testing.assert_allclose(found(rising.tolist(), 0.3), theirs.quantile(0.3, dim="sample"), rtol=1e-12)


def test_days_without_data_are_refused(tmp_path: Path) -> None:
    # From 29 days before the first of January to 29 after the 181st day there are some: 211 to 337 are without.
    short = make_store(tmp_path / "short", "2018-01-01", "2018-07-01", (("2018-01-01", "2018-06-30T12"),))
    with pytest.raises(DataError, match="no times within 29 days of 127 days of the year, day 211 among them"):
        write_climatology(short, tmp_path / "clim.nc", 61)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".short.lock", "short"]


def test_nothing_is_left_of_an_interrupted_one(store: Store, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_climatology(store, tmp_path / "clim.nc", 61, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_command_makes_it_from_a_store(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clim.nc"
    assert run(["preprocess", "--store", str(store.path), "--climatology", str(path), "--window", "9"]) == 0
    assert capfd.readouterr().out == f"{path}\n"
    with xr.open_dataset(path) as found:
        assert found.attrs["window_days"] == "9"
    assert run(["preprocess", "--store", str(store.path), "--climatology", str(path)]) == 2
    assert "exists already" in capfd.readouterr().err
    arguments = ["preprocess", "--store", str(store.path), "--climatology", str(path), "--overwrite", "--json"]
    assert run(arguments) == 0
    assert json.loads(capfd.readouterr().out)["climatology"] == str(path)
    with pytest.raises(UsageError, match="not possible"):
        preprocess(Options(store=store.path))
