"""The climatology: against the plain definition, and what it says of itself."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from wm2cli.cli import run
from wm2cli.errors import DataError, UsageError
from wm2cli.grid import Grid
from wm2cli.preprocess import Options, preprocess
from wm2cli.preprocessing.climatology import _Days, around, write_climatology
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
