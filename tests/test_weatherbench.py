"""The same files through WeatherBench 2's own code, where it is installed (it is on no package index)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from test_climatology import rainy_store
from verification import GRID, LONG, START, save, times, truth_at, weatherbench, write_climatology, write_truth

from wm2cli.evaluation.evaluate import Options, evaluate
from wm2cli.evaluation.spectra import zonal_spectrum
from wm2cli.grid import Grid
from wm2cli.preprocessing.climatology import write_climatology as make_climatology

jax = pytest.importorskip("jax")
derived_variables = pytest.importorskip("weatherbench2.derived_variables")
metrics = pytest.importorskip("weatherbench2.metrics")
regions = pytest.importorskip("weatherbench2.regions")
regridding = pytest.importorskip("weatherbench2.regridding")
utils = pytest.importorskip("weatherbench2.utils")

LEADS = (6, 12, 24)
NAMES = ("z", "t2m", "u10", "v10")
LAND = np.random.default_rng(5).random(GRID.shape).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Truth with a land-sea mask, climatology, forecasts and an ensemble."""
    made = tmp_path_factory.mktemp("weatherbench")
    write_truth(made / "truth.nc", change=lambda data: data.assign(
        lsm=(("latitude", "longitude"), LAND, {"units": "1"})))  # fmt: skip
    write_climatology(made / "climatology.nc")
    save(weatherbench(times(2, 24), LEADS), made / "forecast.zarr")
    save(weatherbench(times(1, 24), LEADS, members=4), made / "ensemble.zarr")
    return made


def theirs(path: Path) -> xr.Dataset:
    """A file with the names, the order of rows and the precision that their code is fed with here."""
    opened = xr.open_dataset(path) if path.suffix == ".nc" else xr.open_zarr(path, consolidated=False)
    with opened as found:
        made = found.load().rename({name: long for name, long in LONG.items() if name in found})
    return made.sortby("latitude").astype(np.float64)


def pairs(folder: Path, name: str) -> tuple[xr.Dataset, xr.Dataset]:
    """Forecasts by init and lead, and the truth at their valid times."""
    forecast = theirs(folder / name).rename(time="init_time", prediction_timedelta="lead_time")
    forecast = forecast.assign_coords(valid_time=forecast.init_time + forecast.lead_time)
    truth = theirs(folder / "truth.nc")[[LONG[name] for name in NAMES]].sel(time=forecast.valid_time)
    return forecast, truth.drop_vars("time")


def channel(scores: xr.Dataset, label: str) -> Any:
    """(T,) their scores of one of our channels."""
    names = {"wind10m": "10m_wind_vector", "speed10m": "10m_wind_speed", "z500": LONG["z"], "z850": LONG["z"]}
    found = scores[names.get(label, LONG.get(label, label))]
    return found.sel(level=float(label[1:])) if "level" in found.dims else found


def test_deterministic_scores(folder: Path) -> None:
    names = ("global", "tropics", "extra-tropics", "europe", "global_land", "tropics_land", "europe_land")
    found = evaluate(Options((folder / "forecast.zarr",), truth=(str(folder / "truth.nc"),), regions=names,
                             climatology=folder / "climatology.nc", workers=1))  # fmt: skip
    forecast, truth = pairs(folder, "forecast.zarr")
    land = theirs(folder / "truth.nc").lsm
    vector = metrics.WindVectorMSE(LONG["u10"], LONG["v10"], "10m_wind_vector")
    speed = derived_variables.WindSpeed(LONG["u10"], LONG["v10"])
    boxes = {
        "global": [], "tropics": [regions.SliceRegion(lat_slice=slice(-20, 20))],
        "extra-tropics": [regions.SliceRegion(lat_slice=[slice(None, -20), slice(20, None)])],
        "europe": [regions.SliceRegion(lat_slice=slice(35, 75), lon_slice=[slice(347.5, None), slice(0, 42.5)])],
    }  # fmt: skip
    for name in names:
        # Land before the box: the other way round their weights keep the longitudes outside of it.
        parts = [*([regions.LandRegion(land)] if name.endswith("_land") else []), *boxes[name.removesuffix("_land")]]
        region = regions.CombinedRegion(parts) if parts else None
        mse = metrics.MSE([vector]).compute(forecast, truth, region)
        speeds = [made.assign({"10m_wind_speed": speed.compute(made)}) for made in (forecast, truth)]
        made = {
            "mse": mse,
            "mae": metrics.MAE().compute(forecast, truth, region),
            "bias": metrics.Bias().compute(forecast, truth, region),
            "acc_mean_of_times": metrics.ACC(theirs(folder / "climatology.nc")).compute(forecast, truth, region),
        }
        for score, table in made.items():
            labels = ("z500", "z850", "t2m", "u10", *(("wind10m",) if score == "mse" else ()))
            for label in labels:
                ours = found.table(score)[:, found.labels.index(label), names.index(name)]
                np.testing.assert_allclose(
                    ours, channel(table, label), rtol=1e-10, atol=1e-10, err_msg=f"{score} {label}"
                )
        root = np.sqrt(channel(metrics.MSE().compute(*speeds, region), "speed10m"))
        ours = found.table("rmse")[:, found.labels.index("speed10m"), names.index(name)]
        np.testing.assert_allclose(ours, root, rtol=1e-6)  # speeds of float32 fields are float32


def test_crps(folder: Path) -> None:
    found = evaluate(Options((folder / "ensemble.zarr",), truth=(str(folder / "truth.nc"),), workers=1))
    forecast, truth = pairs(folder, "ensemble.zarr")
    made = metrics.CRPS(ensemble_dim="number").compute(forecast, truth)
    for label in ("z500", "t2m", "v10"):
        ours = found.table("crps")[:, found.labels.index(label), 0]
        np.testing.assert_allclose(ours, channel(made, label), rtol=1e-9)


def test_seeps(tmp_path: Path) -> None:
    store = rainy_store(tmp_path / "store", GRID)
    make_climatology(store, tmp_path / "climatology.nc", 61)
    when = store.time[400:404].astype("datetime64[ns]")
    random = np.random.default_rng(1)
    axes = {"latitude": GRID.lat, "longitude": GRID.lon}
    dims = ("time", "latitude", "longitude")
    truth = store.read(np.arange(400, 404))[:, 0]
    save(xr.Dataset({"tp_6h": (dims, truth, {"units": "m"})}, {"time": when, **axes}), tmp_path / "truth.nc")
    drawn = random.permuted(truth[2:].reshape(2, -1), axis=1).reshape(2, 1, *GRID.shape)
    steps = {"time": when[1:3], "prediction_timedelta": np.array([24], "m8[h]").astype("m8[ns]")}
    name = "total_precipitation_6hr"
    rain = (("time", "prediction_timedelta", "latitude", "longitude"), drawn, {"units": "m"})
    forecast = xr.Dataset({name: rain}, {**steps, **axes})
    save(forecast, tmp_path / "forecast.nc")
    found = evaluate(Options((tmp_path / "forecast.nc",), truth=(str(tmp_path / "truth.nc"),), workers=1,
                             climatology=tmp_path / "climatology.nc", regions=("global", "tropics")))  # fmt: skip
    climatology = xr.open_dataset(tmp_path / "climatology.nc").sortby("latitude")
    climatology = climatology.rename(
        {f"tp_6h_seeps_{part}": f"{name}_seeps_{part}" for part in ("threshold", "dry_fraction")}
    )
    ours = forecast.sortby("latitude").rename(time="init_time", prediction_timedelta="lead_time")
    ours = ours.assign_coords(valid_time=ours.init_time + ours.lead_time)
    happened = xr.open_dataset(tmp_path / "truth.nc").sortby("latitude").rename(tp_6h=name)
    happened = happened.sel(time=ours.valid_time).drop_vars("time").assign_coords(valid_time=ours.valid_time)
    theirs_ = metrics.SEEPS(climatology, dry_threshold_mm=0.1, precip_name=name)
    for place, region in enumerate((None, regions.SliceRegion(lat_slice=slice(-20, 20)))):
        wanted = float(theirs_.compute(ours, happened, region)[name][0])
        assert found.table("seeps_mean_dry_fraction")[0, 0, place] == pytest.approx(wanted, rel=1e-6)
    # The fraction of the date is another one; so is the score, a little.
    assert found.table("seeps")[0, 0, 0] == pytest.approx(found.table("seeps_mean_dry_fraction")[0, 0, 0], rel=0.2)
    obs = xr.Dataset({"tp_6h": (dims, store.read(np.arange(store.time.size))[:, 0].astype(float))},
                     {"time": store.time.astype("datetime64[ns]"), **axes})  # fmt: skip
    obs = obs.assign_coords(time=obs.time - np.timedelta64(12, "h"))  # one hour of the day, as if it were midnight
    mean = utils.compute_hourly_stat(obs, 61, slice("2019", "2020"), 24).tp_6h[0]
    stored = xr.open_dataset(tmp_path / "climatology.nc").tp_6h[0]
    np.testing.assert_allclose(stored, mean.transpose("dayofyear", ...), rtol=2.0**-10)  # bits kept


def test_spectra() -> None:
    field = truth_at("z", 500.0, START)
    made = xr.Dataset({"z": (("latitude", "longitude"), field)}, {"latitude": GRID.lat, "longitude": GRID.lon})
    wanted = derived_variables.ZonalEnergySpectrum("z").compute(made).transpose("latitude", ...).values
    wanted[:, -1] /= 2  # the highest wavenumber of an even number of columns has no partner
    np.testing.assert_allclose(zonal_spectrum(field, GRID.lat), wanted, rtol=1e-10, atol=1e-6)


def test_regridding() -> None:
    for source, target in ((Grid.regular(11.25, "cells"), GRID), (Grid.regular(10.0), Grid.regular(22.5, "cells")),
                           (Grid.regular(15.0), Grid.regular(30.0))):  # fmt: skip
        field = np.random.default_rng(2).normal(size=source.shape)
        ends = [regridding.Grid.from_degrees(grid.lon, grid.lat[::-1]) for grid in (source, target)]
        with jax.enable_x64(True):  # in float32, the default, their weights alone are wrong by some 1e-6
            wanted = np.asarray(regridding.ConservativeRegridder(*ends).regrid_array(field.T[:, ::-1]))
        np.testing.assert_allclose(source.regrid_to(target, field), wanted.T[::-1], rtol=1e-12, atol=1e-12)
