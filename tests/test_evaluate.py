"""`wm2 evaluate` on files: agreement with plain numpy, invariances, matching, bad inputs, outputs, exit codes."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from verification import (
    GRID,
    GROUND,
    LEVELS,
    START,
    UPPER,
    climatology_at,
    forecast_at,
    save,
    times,
    truth_at,
    weatherbench,
    write_climatology,
    write_forecast,
    write_truth,
)

from wm2cli import checkpoint
from wm2cli.cli import run
from wm2cli.errors import DataError, UsageError
from wm2cli.evaluation import published
from wm2cli.evaluation.evaluate import Options, evaluate
from wm2cli.evaluation.land import read_land
from wm2cli.evaluation.provenance import bundled_truth
from wm2cli.evaluation.results import Evaluation
from wm2cli.evaluation.thresholds import Threshold
from wm2cli.grid import Grid
from wm2cli.schema import GRAVITY, Schema
from wm2cli.store import Coding, channel_table, fingerprint_of

WEIGHTS = np.broadcast_to(GRID.area_weights()[:, None], GRID.shape)
HOUR = np.timedelta64(1, "h")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Truth, climatology, one forecast, and forecasts of three days in WeatherBench layout."""
    made = tmp_path_factory.mktemp("evaluation")
    write_truth(made / "truth.nc")
    write_climatology(made / "climatology.nc")
    write_forecast(made / "forecast.nc")
    save(weatherbench(times(2, 24), (6, 12, 24)), made / "many.zarr")
    return made


def options(folder: Path, *forecasts: str, **more: Any) -> Options:
    """An evaluation of files in the folder."""
    how = {"truth": (str(folder / "truth.nc"),), "climatology": folder / "climatology.nc", "workers": 1} | more
    return Options(tuple(folder / name for name in forecasts), **how)


def same(one: Evaluation, two: Evaluation, **tolerance: float) -> None:
    """Equal scores of all systems."""
    assert one.labels == two.labels
    assert one.leads == two.leads
    for system, made in one.scores.items():
        for name, table in made.items():
            if tolerance:
                np.testing.assert_allclose(table, two.scores[system][name], **tolerance, equal_nan=True)
            else:
                np.testing.assert_array_equal(table, two.scores[system][name])


@pytest.mark.parametrize(("label", "name", "level"), [("z500", "z", 500.0), ("q850", "q", 850.0), ("t2m", "t2m", None)])
def test_one_forecast_agrees_with_plain_numpy(folder: Path, label: str, name: str, level: float | None) -> None:
    found = evaluate(options(folder, "forecast.nc"))
    for lead in (6, 12, 24):
        forecast, truth = forecast_at(name, level, START, lead), truth_at(name, level, START + lead * HOUR)
        error = forecast - truth
        rmse = np.sqrt(np.average(error**2, weights=WEIGHTS))
        assert found.value("rmse", label, lead) == pytest.approx(rmse, rel=2e-4)
        start = np.sqrt(np.average((truth_at(name, level, START) - truth) ** 2, weights=WEIGHTS))
        assert found.value("rmse", label, lead, system="persistence") == pytest.approx(start, rel=2e-4)
        assert found.value("skill_persistence", label, lead) == pytest.approx(0.5, abs=2e-4)
    tropics = np.abs(GRID.lat) <= 20
    rmse = np.sqrt(np.average((error**2)[tropics], weights=WEIGHTS[tropics]))
    assert found.value("rmse", label, 24, "tropics") == pytest.approx(rmse, rel=2e-4)


def test_climatology_is_that_of_the_day_and_the_hour(folder: Path) -> None:
    found = evaluate(options(folder, "many.zarr"))
    stored = xr.open_dataset(folder / "climatology.nc")
    squares, products, aheads = [], [], []
    for init in times(2, 24):
        valid = init + 12 * HOUR
        day = {"2024-02-27": 58, "2024-02-28": 59, "2024-02-29": 60}[str(valid)[:10]]
        climate = stored["t2m"].sel(hour=12, dayofyear=day).values
        truth, forecast = truth_at("t2m", None, valid), forecast_at("t2m", None, init, 12)
        squares.append(np.average((climate - truth) ** 2, weights=WEIGHTS))
        products.append(np.average((forecast - climate) * (truth - climate), weights=WEIGHTS))
        aheads.append(np.average((forecast - climate) ** 2, weights=WEIGHTS))
    assert found.value("mse", "t2m", 12, system="climatology") == pytest.approx(np.mean(squares), rel=1e-4)
    acc = np.mean(products) / np.sqrt(np.mean(aheads) * np.mean(squares))
    assert found.value("acc", "t2m", 12) == pytest.approx(acc, rel=1e-4)
    assert found.value("activity", "t2m", 12) == pytest.approx(np.sqrt(np.mean(aheads)), rel=1e-4)
    identity = (found.value("activity", "t2m", 12) ** 2 + found.value("activity_truth", "t2m", 12) ** 2
                - 2 * found.value("acc", "t2m", 12) * found.value("activity", "t2m", 12)
                * found.value("activity_truth", "t2m", 12))  # fmt: skip
    assert identity == pytest.approx(found.value("mse", "t2m", 12), rel=1e-9)
    assert climatology_at("t2m", None).std() > 0.1


def test_wind_vectors(folder: Path) -> None:
    found = evaluate(options(folder, "forecast.nc", climatology=None))
    for wind, parts in (("wind850", ("u850", "v850")), ("wind10m", ("u10", "v10"))):
        both = sum(found.value("mse", part, 24) for part in parts)
        assert found.value("rmse", wind, 24) == pytest.approx(np.sqrt(both))
    assert "acc" in found.scores["forecast"]
    assert np.isnan(found.table("acc")).all()


def test_wind_speeds(folder: Path, tmp_path: Path) -> None:
    found = evaluate(options(folder, "forecast.nc"))

    def speed(field: Any, level: float | None, *when: Any) -> Any:
        names = ("u", "v") if level else ("u10", "v10")
        return np.hypot(*(field(name, level, *when) for name in names))

    for label, level in (("speed850", 850.0), ("speed10m", None)):
        error = speed(forecast_at, level, START, 24) - speed(truth_at, level, START + 24 * HOUR)
        assert found.value("rmse", label, 24) == pytest.approx(np.sqrt(np.average(error**2, weights=WEIGHTS)), rel=1e-4)
        assert found.value("bias", label, 24) == pytest.approx(np.average(error, weights=WEIGHTS), rel=1e-3)
        held = speed(truth_at, level, START) - speed(truth_at, level, START + 24 * HOUR)
        persistence = np.sqrt(np.average(held**2, weights=WEIGHTS))
        assert found.value("rmse", label, 24, system="persistence") == pytest.approx(persistence, rel=1e-4)
        # The speed of a climatological wind is not the climate of its speed: there is none to compare with.
        assert np.isnan(found.value("rmse", label, 24, system="climatology"))
        assert np.isnan(found.value("acc", label, 24))
    # A difference of speeds is never more than that of the vectors.
    for label in (label for label in found.labels if label.startswith("speed")):
        vector = found.table("rmse")[:, found.labels.index(label.replace("speed", "wind"))]
        assert (found.table("rmse")[:, found.labels.index(label)] <= vector).all()
    rows = [row for row in found.rows() if row["channel"] == "speed850" and row["score"] == "rmse"]
    assert {(row["variable"], row["level_hpa"], row["units"]) for row in rows} == {("wind_speed", 850.0, "m s-1")}


def test_speeds_are_taken_before_regridding(folder: Path, tmp_path: Path) -> None:
    fine = Grid.regular(11.25, "cells")
    write_truth(tmp_path / "fine.nc", grid=fine)
    found = evaluate(options(folder, "forecast.nc", truth=(str(tmp_path / "fine.nc"),), climatology=None,
                             grid="forecast", variables=("u10", "v10")))  # fmt: skip
    truth = fine.regrid_to(GRID, np.hypot(*(truth_at(name, None, START + 24 * HOUR, fine) for name in ("u10", "v10"))))
    error = np.hypot(*(forecast_at(name, None, START, 24) for name in ("u10", "v10"))) - truth
    rmse = np.sqrt(np.average(error**2, weights=WEIGHTS))
    assert found.value("rmse", "speed10m", 24) == pytest.approx(rmse, rel=1e-4)


def test_an_ensemble_has_the_mean_of_its_speeds(folder: Path, tmp_path: Path) -> None:
    save(weatherbench([START], (12,), members=3, names=("u10", "v10")), tmp_path / "ensemble.zarr")
    found = evaluate(options(folder, str(tmp_path / "ensemble.zarr"), climatology=None))
    one = xr.open_zarr(tmp_path / "ensemble.zarr", consolidated=False, decode_timedelta=True).isel(time=0)
    winds = [one[f"10m_{part}_component_of_wind"].isel(prediction_timedelta=0) for part in "uv"]
    speeds = np.hypot(*(wind.transpose("number", "latitude", "longitude").values[:, ::-1] for wind in winds))
    truth = np.hypot(*(truth_at(name, None, START + 12 * HOUR) for name in ("u10", "v10")))
    error = speeds.astype(float).mean(axis=0) - truth
    rmse = np.sqrt(np.average(error**2, weights=WEIGHTS))
    assert found.value("rmse", "speed10m", 12) == pytest.approx(rmse, rel=1e-4)
    apart = np.abs(speeds[:, None] - speeds[None]).astype(float).sum(axis=(0, 1)) / (2 * 3 * 2)
    crps = np.average(np.abs(speeds - truth).mean(axis=0) - apart, weights=WEIGHTS)
    assert found.value("crps", "speed10m", 12) == pytest.approx(crps, rel=1e-4)


LAND = (np.random.default_rng(5).random(GRID.shape) * 1.5 - 0.25).clip(0, 1).astype(np.float32)
"""Shares of land, some of them none and some all."""


def _with_land(made: xr.Dataset) -> xr.Dataset:
    return made.assign(lsm=(("latitude", "longitude"), LAND, {"units": "1", "standard_name": "land_area_fraction"}))


def test_land_counts_by_its_share(folder: Path, tmp_path: Path) -> None:
    write_truth(tmp_path / "truth.nc", change=_with_land)
    regions = ("global", "global_land", "tropics_land", "europe_land", "box=60/10/-60/200_land", "tropics")
    found = evaluate(options(folder, "forecast.nc", truth=(str(tmp_path / "truth.nc"),), regions=regions))
    assert found.regions == (*regions[:4], "box_land", "tropics")
    assert found.metadata["land_mask"] == "truth.nc"
    error = forecast_at("t2m", None, START, 24) - truth_at("t2m", None, START + 24 * HOUR)
    tropics = (np.abs(GRID.lat) <= 20)[:, None] & np.ones(16, bool)
    europe = ((GRID.lat >= 35) & (GRID.lat <= 75))[:, None] & ((GRID.lon >= 347.5) | (GRID.lon <= 42.5))[None]
    box = (np.abs(GRID.lat) <= 60)[:, None] & ((GRID.lon >= 10) & (GRID.lon <= 200))[None]
    everywhere = np.ones(GRID.shape, bool)
    for name, inside in (("global", everywhere), ("tropics", tropics), ("europe", europe), ("box", box)):
        weights = WEIGHTS * LAND * inside
        rmse = np.sqrt(np.average(error**2, weights=weights))
        assert found.value("rmse", "t2m", 24, f"{name}_land") == pytest.approx(rmse, rel=2e-4)
        mae = np.average(np.abs(error), weights=weights)
        assert found.value("mae", "t2m", 24, f"{name}_land") == pytest.approx(mae, rel=2e-4)
        identity = (found.value("activity", "t2m", 24, f"{name}_land") ** 2
                    + found.value("activity_truth", "t2m", 24, f"{name}_land") ** 2
                    - 2 * found.value("acc", "t2m", 24, f"{name}_land")
                    * found.value("activity", "t2m", 24, f"{name}_land")
                    * found.value("activity_truth", "t2m", 24, f"{name}_land"))  # fmt: skip
        assert identity == pytest.approx(rmse**2, rel=4e-4)
    plain = evaluate(options(folder, "forecast.nc", regions=("global", "tropics")))
    for name in ("global", "tropics"):
        assert found.value("rmse", "t2m", 24, name) == plain.value("rmse", "t2m", 24, name)
    all_land = evaluate(options(folder, "forecast.nc", regions=("tropics", "tropics_land"), truth=(
        str(write_truth(tmp_path / "dry.nc", change=lambda made: _with_land(made).assign(
            lsm=xr.ones_like(made.t2m[0], dtype=np.float32).assign_attrs(units="1")))),)))  # fmt: skip
    np.testing.assert_allclose(all_land.table("rmse")[..., 1], all_land.table("rmse")[..., 0], rtol=1e-13)


def test_land_comes_from_where_it_is(folder: Path, tmp_path: Path, weights: Path) -> None:
    import stores

    fine = Grid.regular(11.25, "cells")
    shares = np.random.default_rng(6).random(fine.shape).astype(np.float32)
    axes = {"latitude": ("latitude", fine.lat, {"units": "degrees_north"}),
            "longitude": ("longitude", fine.lon, {"units": "degrees_east"})}  # fmt: skip
    mask = xr.Dataset({"lsm": (("latitude", "longitude"), shares, {"units": "(0 - 1)"})}, axes)
    mask["lsm"].attrs |= {"units": "1", "standard_name": "land_area_fraction"}
    save(mask, tmp_path / "static.nc")
    np.testing.assert_allclose(read_land(tmp_path / "static.nc", GRID), fine.regrid_to(GRID, shares), rtol=1e-6)
    store = stores.make_store(tmp_path / "store", days=4)
    np.testing.assert_array_equal(read_land(tmp_path / "store", GRID), store.static["lsm"])
    loaded = checkpoint.load(weights)
    own = Grid(np.asarray(loaded.model.grid.lat), np.asarray(loaded.model.grid.lon))
    np.testing.assert_allclose(read_land(weights, own), loaded.static["lsm"].numpy().clip(0, 1), atol=1e-7)
    found = evaluate(options(folder, "forecast.nc", regions=("global_land",), land_mask=tmp_path / "static.nc"))
    assert found.metadata["land_mask"] == "static.nc"


def test_without_a_mask_land_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(folder / "forecast.nc"), "--truth", str(folder / "truth.nc")]
    assert run([*words, "--region", "europe_land", "--region", "tropics_land"]) == 3
    told = capsys.readouterr().err
    assert "no land-sea mask for europe_land, tropics_land" in told
    assert "--land-mask FILE" in told
    assert run([*words, "--region", "europ_land"]) == 2
    assert "did you mean europe" in capsys.readouterr().err
    assert run([*words, "--region", "europe", "--land-mask", str(folder / "truth.nc")]) == 2
    assert "no region is over land" in capsys.readouterr().err
    assert run([*words, "--region", "europe_land", "--land-mask", str(folder / "climatology.nc")]) == 3
    assert "no static fields" in capsys.readouterr().err
    (tmp_path / "cut.safetensors").write_bytes(b"12345")
    assert run([*words, "--region", "europe_land", "--land-mask", str(tmp_path / "cut.safetensors")]) == 6
    capsys.readouterr()
    write_truth(tmp_path / "wet.nc", change=lambda made: _with_land(made).assign(lsm=_with_land(made).lsm * 0))
    with pytest.raises(UsageError, match="not possible") as caught:
        evaluate(options(folder, "forecast.nc", truth=(str(tmp_path / "wet.nc"),), regions=("tropics_land",)))
    assert caught.value.problems == ("there is no land in the region tropics_land",)


def test_the_same_whatever_the_workers_and_the_files(folder: Path, tmp_path: Path) -> None:
    whole = evaluate(options(folder, "many.zarr"))
    same(whole, evaluate(options(folder, "many.zarr", workers=3)))
    for number, init in enumerate(times(2, 24)):
        save(weatherbench([init], (6, 12, 24)), tmp_path / f"{number}.nc")
    parts = evaluate(options(folder, *(str(tmp_path / f"{number}.nc") for number in (2, 0, 1))))
    same(whole, parts)
    assert parts.metadata["inits"] == whole.metadata["inits"]


@pytest.mark.slow
def test_the_same_on_a_cluster(folder: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        found = evaluate(options(folder, "many.zarr", scheduler=cluster.scheduler_address))
    same(evaluate(options(folder, "many.zarr")), found)


def test_the_same_whatever_the_layout(folder: Path, tmp_path: Path) -> None:
    whole = evaluate(options(folder, "many.zarr"))
    turned = (
        weatherbench(times(2, 24), (6, 12, 24)).isel(latitude=slice(None, None, -1)).roll(longitude=3, roll_coords=True)
    )
    turned = turned.transpose("prediction_timedelta", "latitude", "time", "level", "longitude")
    save(turned, tmp_path / "turned.nc")
    west = turned.assign_coords(longitude=(turned.longitude + 180) % 360 - 180)
    save(west.sortby("longitude"), tmp_path / "west.zarr")
    for name in ("turned.nc", "west.zarr"):
        same(whole, evaluate(options(folder, str(tmp_path / name))))


def test_units_are_brought_into_ours(folder: Path, tmp_path: Path) -> None:
    made = weatherbench(times(2, 24), (6, 12, 24))
    made["geopotential"] = (made["geopotential"] / GRAVITY).astype(np.float32).assign_attrs(units="gpm")
    made["2m_temperature"] = (made["2m_temperature"] - 273.15).assign_attrs(units="degC")
    save(made, tmp_path / "other.nc")
    whole = evaluate(options(folder, "many.zarr"))
    same(whole, evaluate(options(folder, str(tmp_path / "other.nc"))), rtol=2e-3, atol=5e-3)


def test_a_training_store_is_a_truth(folder: Path, tmp_path: Path) -> None:
    import zarr

    schema = Schema(UPPER, LEVELS, GROUND)
    when = times(4)
    fields = np.stack([
        np.stack([truth_at(name, level, time) for name in UPPER for level in LEVELS]
                 + [truth_at(name, None, time) for name in GROUND])
        for time in when
    ]).astype(np.float32)  # fmt: skip
    path = tmp_path / "store.zarr"
    group = zarr.create_group(path, zarr_format=3)
    group.create_array("fields", data=fields, chunks=(1, *fields.shape[1:]))
    group.create_array("time", data=when.astype("datetime64[s]").astype(np.int64))
    group.create_array("latitude", data=GRID.lat)
    group.create_array("longitude", data=GRID.lon)
    group.create_array("static", data=np.zeros((0, *GRID.shape), np.float32))
    normalizer = {"mean": dict.fromkeys(schema.channels, 0.0), "std": dict.fromkeys(schema.channels, 1.0),
                  "difference_std": {}, "log_floor": {}}  # fmt: skip
    assert Coding.of("float32", schema.channels, normalizer).dtype == "float32"
    table = channel_table(schema, "float32", normalizer)
    group.attrs.update({
        "format": 1, "complete": True, "schema": schema.to_dict(), "step_hours": 6, "normalizer": normalizer,
        "splits": {"train": [["2024-02-27T00", "2024-02-28T00"]]},
        "provenance": {"kind": "simulated", "title": "made up"},
        "fingerprint": fingerprint_of(table, GRID, when, np.zeros((when.size, 32), np.uint8)),
    })  # fmt: skip
    found = evaluate(options(folder, "forecast.nc", truth=(str(path),)))
    same(evaluate(options(folder, "forecast.nc")), found)
    assert found.metadata["truth_kind"] == "simulated"
    assert any("simulated weather" in line for line in found.warnings)
    assert any("not comparable" in line for line in found.warnings)


def test_other_grids_are_refused_or_regridded_on_both_sides(folder: Path, tmp_path: Path) -> None:
    fine = Grid.regular(11.25, "cells")
    write_truth(tmp_path / "fine.nc", grid=fine)
    how = {"truth": (str(tmp_path / "fine.nc"),), "climatology": None}
    with pytest.raises(DataError, match="different grids") as caught:
        evaluate(options(folder, "forecast.nc", **how))
    assert len(caught.value.problems) == 2
    assert "--grid" in str(caught.value.hint)
    found = evaluate(options(folder, "forecast.nc", grid="forecast", **how))
    truth = fine.regrid_to(GRID, truth_at("t2m", None, START + 24 * HOUR, fine))
    error = forecast_at("t2m", None, START, 24) - truth
    assert found.value("rmse", "t2m", 24) == pytest.approx(np.sqrt(np.average(error**2, weights=WEIGHTS)), rel=1e-4)
    coarse = evaluate(options(folder, "forecast.nc", grid="45", **how))
    assert coarse.grid == Grid.regular(45.0)
    assert evaluate(options(folder, "forecast.nc", grid="truth", **how)).grid == fine
    with pytest.raises(UsageError, match="must divide 180"):
        evaluate(options(folder, "forecast.nc", grid="7", **how))


def test_pairs_without_truth_are_listed(folder: Path, tmp_path: Path) -> None:
    write_truth(tmp_path / "short.nc", days=1)
    found = evaluate(options(folder, "many.zarr", truth=(str(tmp_path / "short.nc"),)))
    assert found.count.tolist() == [1, 1, 1]
    (text,) = found.unmatched.values()
    assert "2024-02-28T00 + 6, 12, 24 h" in text
    assert "(6 pairs)" in text


def test_without_the_start_there_is_no_persistence(folder: Path, tmp_path: Path) -> None:
    write_truth(tmp_path / "late.nc", change=lambda made: made.isel(time=slice(1, None)))
    found = evaluate(options(folder, "forecast.nc", truth=(str(tmp_path / "late.nc"),)))
    assert "persistence" not in found.scores
    assert any("lacks the inits 2024-02-27T00" in note for note in found.notes)


def test_a_second_forecast_and_its_significance(folder: Path, tmp_path: Path) -> None:
    days = times(60, 24)
    made = weatherbench(days, (24,), names=("t2m",), skill=0.5)
    worse = weatherbench(days, (24,), names=("t2m",), skill=0.4)
    worse["2m_temperature"] = worse["2m_temperature"] + np.float32(0.01)
    save(made, tmp_path / "good.zarr")
    save(worse.isel(time=slice(1, None)), tmp_path / "worse.zarr")
    write_truth(tmp_path / "truth.nc", days=61, step=24, upper=(), ground=("t2m",))
    found = evaluate(options(tmp_path, "good.zarr", against=(tmp_path / "worse.zarr",), climatology=None))
    assert found.value("skill_against", "t2m", 24) == pytest.approx(1 - 0.5 / 0.6, abs=1e-3)
    assert found.count.tolist() == [60]
    assert "lacks the pair" in next(iter(found.unmatched))
    comparison = found.comparisons["against"]
    assert comparison.blocks[0, 0] == 6
    assert comparison.significant[0, 0]
    difference = found.scores["forecast"]["mse"] - found.scores["against"]["mse"]
    assert comparison.mean[0, 0] == pytest.approx(difference[0, 0, 0])
    assert comparison.low[0, 0] < comparison.mean[0, 0] < comparison.high[0, 0] < 0


def test_ensembles(folder: Path, tmp_path: Path) -> None:
    save(weatherbench(times(2, 24), (6, 12), members=4), tmp_path / "ensemble.zarr")
    found = evaluate(options(folder, str(tmp_path / "ensemble.zarr")))
    assert found.metadata["members"] == 4
    inits = times(2, 24)
    crps = []
    for init in inits:
        one = xr.open_zarr(tmp_path / "ensemble.zarr", consolidated=False, decode_timedelta=True).sel(time=init)
        values = one["2m_temperature"].sel(prediction_timedelta=12 * HOUR).transpose("number", "latitude", "longitude")
        members, truth = values.values[:, ::-1].astype(float), truth_at("t2m", None, init + 12 * HOUR)
        apart = np.abs(members[:, None] - members[None]).sum(axis=(0, 1)) / (2 * 4 * 3)
        crps.append(np.average(np.abs(members - truth).mean(axis=0) - apart, weights=WEIGHTS))
    assert found.value("crps", "t2m", 12) == pytest.approx(np.mean(crps), rel=1e-4)
    assert found.value("spread", "t2m", 12) > 0


def test_precipitation_is_scored_by_seeps(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    when = times(3, 6)
    rain = {time: np.where(random.random(GRID.shape) < 0.4, 0.0, random.exponential(4e-3, GRID.shape)) for time in when}
    space = ("latitude", "longitude")
    coordinates = {"latitude": GRID.lat, "longitude": GRID.lon}
    units = {"units": "m"}
    truth = np.stack([rain[time] for time in when]).astype(np.float32)
    made = xr.Dataset(
        {"tp_6h": (("time", *space), truth, units)}, {"time": when.astype("datetime64[ns]"), **coordinates}
    )
    save(made, tmp_path / "truth.nc")
    inits, leads = when[[0, 4]], np.array([6, 12])
    drawn = random.permuted(truth[: len(inits) * len(leads)].reshape(2, 2, -1), axis=-1).reshape(2, 2, *GRID.shape)
    steps = {"time": inits.astype("datetime64[ns]"), "prediction_timedelta": leads * HOUR.astype("timedelta64[ns]")}
    save(xr.Dataset({"total_precipitation_6hr": (("time", "prediction_timedelta", *space), drawn, units)},
                    {**steps, **coordinates}), tmp_path / "forecast.nc")  # fmt: skip
    dry, heavy = np.full(GRID.shape, 0.4), np.full(GRID.shape, 4e-3 * np.log(3))
    dry[0] = 0.95  # hardly ever wet: left out
    names = {"total_precipitation_6hr": np.full(GRID.shape, 2e-3), "total_precipitation_6hr_seeps_dry_fraction": dry,
             "total_precipitation_6hr_seeps_threshold": heavy}  # fmt: skip
    dims = ("hour", "dayofyear", *space)
    climatology = {name: (dims, np.broadcast_to(values, (4, 366, *GRID.shape)).astype(np.float32), units)
                   for name, values in names.items()}  # fmt: skip
    axes = {"hour": [0, 6, 12, 18], "dayofyear": np.arange(1, 367), **coordinates}
    save(xr.Dataset(climatology, axes), tmp_path / "climatology.nc")
    found = evaluate(options(tmp_path, "forecast.nc", regions=("global", "tropics")))
    assert found.labels == ("tp_6h",)
    matrix = 0.5 * np.array([[0, 1 / 0.6, 4 / 0.6], [2.5, 0, 3 / 0.6], [2.5 + 1.25, 1.25, 0]])
    total, weight = 0.0, 0.0
    for number, init in enumerate(inits):
        classes = [np.digitize(values, [1e-4, 4e-3 * np.log(3)])
                   for values in (drawn[number, 1], rain[init + 12 * HOUR])]  # fmt: skip
        total += (matrix[classes[0], classes[1]] * WEIGHTS)[1:].sum()
        weight += WEIGHTS[1:].sum()
    assert found.value("seeps", "tp_6h", 12) == pytest.approx(total / weight, rel=1e-6)
    # The climate is the same all the year here, so its mean is that of the date.
    assert found.value("seeps_mean_dry_fraction", "tp_6h", 12) == pytest.approx(total / weight, rel=1e-6)
    assert 0.6 < found.value("seeps", "tp_6h", 12) < 1.4  # drawn by chance, worth about 1
    assert found.value("seeps", "tp_6h", 12, system="persistence") > 0
    coarse = evaluate(options(tmp_path, "forecast.nc", grid="45"))
    assert "seeps" not in coarse.scores["forecast"]
    assert any("no SEEPS" in note for note in coarse.notes)


def test_missing_cells(folder: Path, tmp_path: Path) -> None:
    def hole(made: xr.Dataset) -> xr.Dataset:
        made["t2m"].values[4, 2, 3] = np.nan  # 24 h after the start
        return made

    write_truth(tmp_path / "holed.nc", change=hole)
    with pytest.raises(DataError, match=r"2024-02-27T00 \+ 24 h: missing") as caught:
        evaluate(options(folder, "forecast.nc", truth=(str(tmp_path / "holed.nc"),)))
    assert any("truth: 1 of" in line for line in caught.value.problems)
    found = evaluate(options(folder, "forecast.nc", truth=(str(tmp_path / "holed.nc"),), skip_missing=True))
    error = forecast_at("t2m", None, START, 24) - truth_at("t2m", None, START + 24 * HOUR)
    weights = WEIGHTS.copy()
    weights[2, 3] = 0
    assert found.value("rmse", "t2m", 24) == pytest.approx(np.sqrt(np.average(error**2, weights=weights)), rel=1e-4)
    assert "left out" in found.metadata["rules"]


@pytest.mark.filterwarnings("error")
def test_a_field_that_is_infinite_everywhere_is_shown(folder: Path, tmp_path: Path) -> None:
    """It is no field in another unit, which would be refused."""
    with xr.open_dataset(folder / "forecast.nc") as data:
        made = data.load()
    made["t2m"].values[0] = np.inf
    save(made, tmp_path / "forecast.nc")
    found = evaluate(options(tmp_path, "forecast.nc", truth=(str(folder / "truth.nc"),), climatology=None,
                             skip_missing=True))  # fmt: skip
    cells = made["t2m"].values[0].size
    assert found.checks["not_finite"][0] == cells
    assert np.isnan(found.value("rmse", "t2m", found.leads[0]))
    assert np.isfinite(found.value("rmse", "t2m", found.leads[-1]))


def _without_steps(made: xr.Dataset) -> xr.Dataset:
    return made.assign_coords(time=made.time + np.timedelta64(3, "h"))


BAD: list[tuple[str, Any, list[str], int, str]] = [
    ("truth.nc", _without_steps, [], 3, "not one valid time is in the truth"),
    ("truth.nc", lambda made: made.isel(longitude=slice(0, 5)), [], 3, "a regional file"),
    (
        "truth.nc",
        lambda made: made.assign(z=made.z.assign_attrs(units="furlong")),
        ["--variables", "z500"],
        3,
        "no z500",
    ),
    ("truth.nc", lambda made: made.assign(t2m=made.t2m - 273.15), [], 3, "impossible values in bad.nc at 2024-02-27T"),
    ("truth.nc", lambda made: made.sel(level=[850.0]), ["--variables", "z"], 3, "the truth has no z500"),
    ("truth.nc", lambda made: made.rename(z="gpx")[["gpx"]], [], 3, "has no field that can be verified"),
    ("truth.nc", lambda made: made.rename(latitude="y").assign_coords(y=range(8)), [], 3, "no axis of latitude"),
    ("truth.nc", lambda made: made.isel(time=0, drop=True), [], 3, "has no time axis"),
    ("truth.nc", lambda made: made[["t2m"]], ["--variables", "q"], 3, "the truth has no q500"),
]


@pytest.mark.parametrize(("name", "change", "words", "code", "message"), BAD, ids=[entry[-1] for entry in BAD])
def test_bad_truths(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, change: Any,
                    words: list[str], code: int, message: str) -> None:  # fmt: skip
    with xr.open_dataset(folder / name) as made:
        save(change(made.load()), tmp_path / "bad.nc")
    assert run(["evaluate", str(folder / "forecast.nc"), "--truth", str(tmp_path / "bad.nc"), *words]) == code
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.out == ""


WRONG = [
    (["absent.nc", "--truth", "truth.nc"], 3, "absent.nc does not exist"),
    (["truth.nc", "--truth", "truth.nc"], 3, "is no forecast"),
    (["climatology.nc", "--truth", "truth.nc"], 3, "is no forecast"),
    (["forecast.nc"], 2, "there is no truth to compare forecast.nc with"),
    (["forecast.nc", "--truth", "era6"], 3, "there is no truth at era6"),
    (["forecast.nc", "--truth", "many.zarr"], 3, "is a forecast"),
    (["forecast.nc", "--truth", "truth.nc", "--climatology", "truth.nc"], 3, "is no climatology"),
    (["forecast.nc", "--truth", "truth.nc", "--leads", "6,7"], 3, "no lead of 7 h"),
    (["forecast.nc", "--truth", "truth.nc", "--leads", "day"], 2, "not leads in hours"),
    (["forecast.nc", "--truth", "truth.nc", "--region", "europ"], 2, "did you mean europe"),
    (["forecast.nc", "--truth", "truth.nc", "--variables", "rain"], 2, "unknown variable 'rain'"),
    (["forecast.nc", "--truth", "truth.nc", "--levels", "300"], 3, "no level 300 hPa"),
    (["forecast.nc", "--truth", "truth.nc", "--grid", "fine"], 2, "'fine' is no grid"),
    (["forecast.nc", "--truth", "truth.nc", "--fail-if", "rmse z500 60"], 2, "is no threshold"),
    (["forecast.nc", "--truth", "truth.nc", "--fail-if", "rmse:z501>6"], 2, "no channel z501 is evaluated"),
    (["forecast.nc", "--truth", "truth.nc", "--fail-if", "skill_climatology:z500>6"], 2, "no score skill_climatology"),
    (["forecast.nc", "--truth", "truth.nc", "--out", "scores.txt"], 2, "must end in .csv or .json"),
    (["forecast.nc", "--truth", "truth.nc", "--out", "no/such/scores.csv"], 2, "its folder does not exist"),
    (["forecast.nc", "--truth", "truth.nc", "--acc", "centred"], 2, "must be pooled or mean-of-times"),
    (["forecast.nc", "forecast.nc", "--truth", "truth.nc"], 3, "is there twice"),
    (["forecast.nc", "many.zarr", "--truth", "truth.nc"], 3, "is there twice"),
]


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[" ".join(words) for words, _, _ in WRONG])
def test_wrong_command_lines(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                             words: list[str], code: int, message: str) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    assert run(["evaluate", *words]) == code
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.out == ""


def test_outputs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(folder / "many.zarr"), "--truth", str(folder / "truth.nc"),
             "--climatology", str(folder / "climatology.nc"),
             "--out", str(tmp_path / "s.csv"), "--out", str(tmp_path / "s.json")]  # fmt: skip
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == 1
    assert document["leads_hours"] == [6, 12, 24]
    rmse = document["scores"]["forecast"]["rmse"]["z500"]["global"]
    assert document["crossed"] == []
    assert json.loads((tmp_path / "s.json").read_text())["scores"] == document["scores"]
    lines = (tmp_path / "s.csv").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert any(line.startswith("# truth: truth.nc") for line in comments)
    rows = list(csv.DictReader(lines[len(comments) :]))
    (row,) = [row for row in rows if (row["system"], row["score"], row["channel"], row["lead_hours"], row["region"])
              == ("forecast", "rmse", "z500", "24", "global")]  # fmt: skip
    assert float(row["value"]) == rmse[2]
    assert (row["variable"], row["level_hpa"], row["units"], row["pairs"]) == ("z", "500.0", "m2 s-2", "3")
    assert run(words) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert run([*words, "--overwrite"]) == 0
    streams = capsys.readouterr()
    assert streams.out.splitlines()[-2:] == [str(tmp_path / "s.csv"), str(tmp_path / "s.json")]
    assert "z500 RMSE" in streams.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.json"]


def test_thresholds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(folder / "forecast.nc"), "--truth", str(folder / "truth.nc"), "--json"]
    held = ["--fail-if", "rmse:z500@24h>6000", "--fail-if", "skill_persistence:t2m@1d/tropics<0.1"]
    assert run([*words, *held]) == 0
    capsys.readouterr()
    assert run([*words, *held, "--fail-if", "rmse:z500>1"]) == 10
    streams = capsys.readouterr()
    assert json.loads(streams.out)["crossed"] == [line.removeprefix("  - ") for line in streams.err.splitlines()
                                                  if line.startswith("  - ")]  # fmt: skip
    assert streams.err.count("rmse:z500>1: rmse of z500 at") == 3
    # What is undefined must not pass: there is no climatology, so no anomaly correlation.
    assert run([*words, "--fail-if", "acc:z500@24h<0.6"]) == 10
    assert "is undefined" in capsys.readouterr().err


def test_wrong_thresholds_are_refused_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    def never(*anything: Any) -> None:
        raise RuntimeError("this would take hours")

    monkeypatch.setattr("wm2cli.evaluation.evaluate.score", never)
    words = ["evaluate", str(folder / "forecast.nc"), "--truth", str(folder / "truth.nc")]
    wrong = ["rsme:z500>1", "rmse:z501@24h>1", "rmse:z500@25h>1", "rmse:z500@24h/tropic>1", "rmse:wind80>1"]
    right = ["rmse:wind850@1d>1", "bias:speed10m/tropics>1", "skill_persistence:z500<0"]
    assert run([*words, *(part for text in [*wrong, *right] for part in ("--fail-if", text))]) == 2
    told = capsys.readouterr().err
    assert [line.removeprefix("  - ") for line in told.splitlines() if line.startswith("  - ")] == [
        "'rsme:z500>1': no score rsme is evaluated; did you mean rmse?",
        "'rmse:z501@24h>1': no channel z501 is evaluated; did you mean z850 or z500?",
        "'rmse:z500@25h>1': no lead of 25 h is evaluated; there are 6 h, 12 h, 24 h",
        "'rmse:z500@24h/tropic>1': no region tropic is evaluated; did you mean tropics?",
        "'rmse:wind80>1': no channel wind80 is evaluated; did you mean wind850 or wind500?",
    ]
    assert run([*words, *(part for text in right for part in ("--fail-if", text))]) == 1
    assert "this would take hours" in capsys.readouterr().err


def test_threshold_texts() -> None:
    found = Threshold.parse(" skill_persistence:u100hPa@1.5d/n=50/0/40/10 < -1e-2 ")
    assert (found.score, found.label, found.lead_hours, found.region) == (
        "skill_persistence",
        "u100hPa",
        36,
        "n=50/0/40/10",
    )
    assert (found.above, found.bound) == (False, -0.01)
    for text in ("rmse:z500", "rmse:z500@24>6", "rmse>60", "rmse:z500@1.3d>1", ""):
        with pytest.raises(UsageError):
            Threshold.parse(text)


def test_a_forecast_of_the_sample_brings_its_truth(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    write_forecast(tmp_path / "forecast.nc", attributes={"initial_conditions_source": "sample"})
    write_truth(tmp_path / "truth.nc", attributes={"wm2_kind": "simulated"})
    there: dict[np.datetime64, Path] = {}
    monkeypatch.setattr("wm2cli.bundled.sample_truth", there.get)
    monkeypatch.setattr("wm2cli.bundled.sample_climatology", lambda: folder / "climatology.nc")
    assert run(["evaluate", str(tmp_path / "forecast.nc")]) == 2
    assert "no truth" in capsys.readouterr().err
    there[START.astype("datetime64[s]")] = tmp_path / "truth.nc"
    assert run(["evaluate", str(tmp_path / "forecast.nc"), "--json"]) == 0
    streams = capsys.readouterr()
    assert "bundled ones of the sample" in streams.err
    assert "warning: simulated weather" in streams.err
    document = json.loads(streams.out)
    assert document["metadata"]["forecast_kind"] == "simulated"
    assert document["metadata"]["climatology"] == "climatology.nc"
    assert bundled_truth({"initial_conditions_source": "gfs"}, [START]) is None
    assert bundled_truth({"initial_conditions_source": "sample"}, [START, START + HOUR]) is None


def test_a_truth_in_several_files(folder: Path, tmp_path: Path) -> None:
    for number, part in enumerate((slice(0, 6), slice(6, None))):
        write_truth(tmp_path / f"{number}.nc", change=lambda made, part=part: made.isel(time=part))
    found = evaluate(options(folder, "many.zarr", truth=tuple(str(tmp_path / f"{number}.nc") for number in (1, 0))))
    same(evaluate(options(folder, "many.zarr")), found)
    assert found.metadata["truth"] == "1.nc and 1 more"


def test_sources_serve_as_truth(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WM2_CACHE", str(tmp_path))
    found = evaluate(options(folder, "forecast.nc", truth=("idealized",), climatology=None, leads_hours=(6,),
                             variables=("z500", "t2m")))  # fmt: skip
    assert found.metadata["truth"] == "idealized"
    assert found.value("rmse", "z500", 6, system="persistence") == 0  # one state, the same for every time
    assert found.value("rmse", "z500", 6) > 0


def test_warnings_name_what_is_not_comparable(folder: Path, tmp_path: Path) -> None:
    write_forecast(tmp_path / "gfs.nc", attributes={"initial_conditions_source": "gfs", "weights_trained": "no"})
    write_forecast(tmp_path / "ifs.nc", attributes={"initial_conditions_source": "ifs"})
    write_truth(tmp_path / "truth.nc", attributes={"source": "ERA5"})
    found = evaluate(options(tmp_path, "gfs.nc", against=(tmp_path / "ifs.nc",), climatology=None))
    text = "\n".join(found.warnings)
    assert "started from gfs, verified against era5" in text
    assert "started from gfs and from ifs" in text
    assert "untrained" in text


def test_published_scores_only_where_comparable() -> None:
    assert published.why_not_comparable(Grid.regular(1.5), "2022", ("reanalysis", "reanalysis"), "global") == []
    reasons = published.why_not_comparable(GRID, "2024", ("simulated", "unknown"), "tropics")
    assert len(reasons) == 4
    found = {(curve.model, curve.truth): curve for curve in published.curves("rmse", "z500")}
    assert found["IFS HRES", "ERA5"].values == (46.9, 138.9, 307.9, 522.8, 811.0)
    assert found["GenCast oper mean", "ERA5"].leads_hours == (24, 72, 120, 168, 240, 336)
    assert published.curves("rmse", "q700")[0].values[0] == pytest.approx(0.537e-3)
    assert published.curves("acc", "t850")
    speeds = {(curve.model, curve.truth): curve for curve in published.curves("rmse", "speed10m")}
    assert speeds["IFS HRES", "ERA5"].values == (0.75, 1.28, 1.92, 2.5, 3.02)
    assert speeds["Pangu oper", "IFS analysis"].leads_hours == (24, 72, 120, 240)
    assert {curve.truth for curve in published.curves("rmse", "t2m", published.truth_of("truth.nc ERA5"))} == {"ERA5"}
    assert published.truth_of("made up") is None
    assert published.curves("rmse", "tcc") == ()


FOLDER = Path(os.environ.get("WM2_REAL_DATA") or "/nonexistent")


@pytest.mark.skipif(not FOLDER.is_dir(), reason="WM2_REAL_DATA does not name a folder")
def test_ifs_analyses_as_persistence_forecasts_of_each_other(tmp_path: Path) -> None:
    import eccodes

    path = FOLDER / "ifs_10deg_6lev_4analyses_12h_20240603-04.grib"
    fields: dict[tuple[str, int, str], Any] = {}
    with open(path, "rb") as stream:
        while (message := eccodes.codes_grib_new_from_file(stream)) is not None:
            if eccodes.codes_get(message, "step") == 0:
                time = f"{eccodes.codes_get(message, 'dataDate')}T{eccodes.codes_get(message, 'dataTime') // 100:02d}"
                key = (eccodes.codes_get(message, "shortName"), eccodes.codes_get(message, "level"), time)
                fields[key] = eccodes.codes_get_values(message).reshape(19, 36)
            eccodes.codes_release(message)
    when = ["20240603T00", "20240603T12", "20240604T00", "20240604T12"]
    inits = np.array(["2024-06-03T00", "2024-06-03T12", "2024-06-04T00", "2024-06-04T12"], "datetime64[ns]")
    names = {"z": "geopotential", "t": "temperature", "u": "u_component_of_wind", "v": "v_component_of_wind"}
    data = {}
    for short, long in names.items():
        start = np.stack([np.stack([fields[short, level, time] for level in (500, 850)]) for time in when[:1]])
        held = np.repeat(start[:, None], 3, axis=1).astype(np.float32)
        data[long] = (("time", "prediction_timedelta", "level", "latitude", "longitude"), held)
    leads = np.array([12, 24, 36], "timedelta64[h]").astype("timedelta64[ns]")
    lat, lon = np.arange(90.0, -91, -10), np.arange(0.0, 360, 10)
    axes = {"time": inits[:1], "prediction_timedelta": leads, "level": [500, 850], "latitude": lat, "longitude": lon}
    save(xr.Dataset(data, axes), tmp_path / "held.nc")
    found = evaluate(Options((tmp_path / "held.nc",), truth=(str(path),), workers=1))
    bounds = np.deg2rad([90, *np.arange(85.0, -86, -10), -90])
    weights = np.repeat((np.sin(bounds[:-1]) - np.sin(bounds[1:]))[:, None], 36, axis=1)
    for short in names:
        for level in (500, 850):
            for lead, time in zip((12, 24, 36), when[1:], strict=True):
                error = fields[short, level, when[0]] - fields[short, level, time]
                rmse = np.sqrt((error**2 * weights).sum() / weights.sum())
                for system in ("forecast", "persistence"):
                    assert found.value("rmse", f"{short}{level}", lead, system=system) == pytest.approx(rmse, rel=1e-5)
                bias = (error * weights).sum() / weights.sum()
                assert found.value("bias", f"{short}{level}", lead) == pytest.approx(bias, abs=1e-3)
    # The file's own remark: z500 drifts 28 m in 12 h and 64 m in 36 h, not weighted by area.
    assert found.value("rmse", "z500", 36) / GRAVITY == pytest.approx(64, rel=0.25)
    # The forecasts in the same file, six hours long, verified against nothing at their valid times.
    with pytest.raises(DataError, match="not one valid time"):
        evaluate(Options((path,), truth=(str(path),), leads_hours=(6,), workers=1))
    zero = evaluate(Options((path,), truth=(str(path),), leads_hours=(0,), workers=1))
    assert (zero.table("rmse")[:, : len(zero.labels)] == 0).all()
