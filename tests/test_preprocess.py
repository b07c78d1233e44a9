"""The preprocess command: values, statistics, windows, levels and grids by hand; resuming; every refusal."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from series import GRID, HOUR, LEVELS, moving, times, write_folder, write_month
from weather import LAT, LON, channels, weather, write_cds_new, write_cds_old, write_grib

from wm2cli.cli import run
from wm2cli.errors import ConfigError, DataError, UsageError, Wm2Error
from wm2cli.grid import Grid
from wm2cli.preprocess import Options, Result, choose_schema, plan, preprocess
from wm2cli.preprocessing import making
from wm2cli.preprocessing.ranges import parse_ranges
from wm2cli.preprocessing.statistics import Gatherer, Moments
from wm2cli.schema import VARIABLES, Schema
from wm2cli.state import Normalizer
from wm2cli.store import open_store, verify

NAMES = ("z", "t", "t2m", "tp_6h", "orog", "lsm")
OPTIONS = Options(variables=NAMES, levels=(500, 850), grid="input", train="2019-12-29/2020-01-03",
                  validation="2020-01-04/2020-01-05", test="2020-01-06T06/2020-01-07", workers=2)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten days in four files of three days each; the last is shorter."""
    return write_folder(tmp_path_factory.mktemp("inputs"))


def make(inputs: Path | str, out: Path, **changes: Any) -> Result:
    return preprocess(replace(OPTIONS, inputs=(str(inputs),), out=out, **changes))


def expected(when: NDArray[np.datetime64], schema: Schema, grid: Grid = GRID) -> NDArray[np.float32]:
    """(N, C, H, W) of the made-up weather."""
    fields: list[tuple[str, float | None]] = [(name, level) for name in schema.pressure for level in schema.levels]
    fields += [(name, None) for name in schema.surface]
    return np.stack([np.stack([moving(name, level, time, grid) for name, level in fields]) for time in when])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_folder_of_files_becomes_a_store(folder: Path, tmp_path: Path, dtype: str) -> None:
    result = make(folder, tmp_path / "store", dtype=dtype)
    store = open_store(result.store)
    verify(store)
    assert store.schema == Schema(("z", "t"), LEVELS, ("t2m", "tp_6h"), ("orog", "lsm"))
    np.testing.assert_array_equal(store.time, times("2019-12-29", "2020-01-08"))
    assert store.grid == GRID
    wanted = expected(store.time, store.schema)
    found = store.read(np.arange(store.time.size))
    if dtype == "float32":
        np.testing.assert_array_equal(found, wanted)
    else:
        std = np.array([store.normalizer["std"][name] for name in store.schema.channels])[:, None, None]
        np.testing.assert_array_less((np.abs(found - wanted) / std)[:, :5], 2e-3)
        np.testing.assert_allclose(found[:, 5], wanted[:, 5], rtol=5e-3)
    np.testing.assert_array_equal(store.static["lsm"], weather("lsm", None, GRID.lat, GRID.lon).astype(np.float32))
    assert [store.split_indices(name).size for name in ("train", "validation", "test")] == [24, 8, 7]
    assert result.splits == {"train": 24, "validation": 8, "test": 7}
    assert (store.kind, store.title, store.provenance["source"]) == ("simulated", "Made-up weather", "tests")
    assert [Path(file["name"]).name for file in store.provenance["files"]] == [
        "2019-12-29.nc", "2020-01-01.nc", "2020-01-04.nc", "2020-01-07.nc"]  # fmt: skip
    assert all(len(file["sha256"]) == 64 for file in store.provenance["files"])


def test_statistics_are_those_of_train_alone(folder: Path, tmp_path: Path) -> None:
    store = open_store(make(folder, tmp_path / "store").store)
    train = expected(times("2019-12-29", "2020-01-04"), store.schema).astype(np.float64)
    train[:, 5] = np.log(train[:, 5] + 1e-7)
    normalizer = Normalizer.from_dict(store.normalizer)  # type: ignore[arg-type]
    normalizer.check(store.schema)
    for number, name in enumerate(store.schema.channels):
        assert normalizer.mean[name] == pytest.approx(train[:, number].mean(), rel=1e-6)
        assert normalizer.std[name] == pytest.approx(train[:, number].std(), rel=1e-6)
        for hours in (6, 12, 24):
            change = train[hours // 6 :, number] - train[: -hours // 6, number]
            assert normalizer.difference_std[hours][name] == pytest.approx(change.std(), rel=1e-5)
    assert set(normalizer.difference_std) == {6, 12, 24}
    assert dict(normalizer.log_floor) == {"tp_6h": 1e-7}


def test_changes_across_a_gap_in_train_do_not_count(folder: Path, tmp_path: Path) -> None:
    split = "2019-12-29/2019-12-30,2020-01-02T06/2020-01-03"
    store = open_store(make(folder, tmp_path / "store", train=split, validation=None, test=None).store)
    fields = expected(store.time, store.schema).astype(np.float64)[:, 4]
    inside = np.zeros(store.time.size, bool)
    inside[[*range(8), *range(17, 24)]] = True
    np.testing.assert_array_equal(store.split_indices("train"), np.flatnonzero(inside))
    assert store.normalizer["mean"]["t2m"] == pytest.approx(fields[inside].mean(), rel=1e-7)
    for hours, lag in ((6, 1), (12, 2), (24, 4)):
        pairs = [fields[at] - fields[at - lag] for at in range(lag, store.time.size) if inside[at] and inside[at - lag]]
        assert store.normalizer["difference_std"][str(hours)]["t2m"] == pytest.approx(np.std(pairs), rel=1e-5)


def test_moments_do_not_lose_small_spreads_beside_large_means() -> None:
    generator = np.random.default_rng(0)
    values = (5e5 + generator.normal(0.0, 2.0, (40, 1, 16, 16))).astype(np.float32)
    whole = Moments.empty(1)
    for part in np.array_split(values, 7):
        whole = whole.merge(Moments.of(part))
    wide = values.astype(np.float64)
    assert whole.mean[0] == pytest.approx(wide.mean(), rel=1e-14)
    assert whole.std[0] == pytest.approx(wide.std(), rel=1e-12)
    naive = np.sqrt(np.mean(values**2) - np.mean(values) ** 2)  # float32 and the difference of large numbers
    assert naive != pytest.approx(wide.std(), rel=0.1)


def test_blocks_of_any_length_gather_the_same() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(30, 2, 3, 4)).astype(np.float32)
    counted = generator.random(30) < 0.8
    floor = np.full((2, 1, 1), np.nan, np.float32)
    for cuts in ([], [1, 2, 3, 9, 20], list(range(1, 30))):
        gatherer = Gatherer(floor, counted, (1, 4), 0)
        for first, stop in zip([0, *cuts], [*cuts, 30], strict=True):
            gatherer.add(first, values[first:stop])
        assert gatherer.sums.values.count == counted.sum() * 12
        np.testing.assert_allclose(gatherer.sums.values.mean, values[counted].mean(axis=(0, 2, 3)), atol=1e-6)
        for lag in (1, 4):
            ends = [at for at in range(lag, 30) if counted[at] and counted[at - lag]]
            changes = np.stack([values[at] - values[at - lag] for at in ends])
            np.testing.assert_allclose(gatherer.sums.changes[lag].std, changes.std(axis=(0, 2, 3)), rtol=1e-5)
            assert gatherer.sums.changes[lag].count == len(ends) * 12


def test_tasks_of_any_length_gather_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(folder, tmp_path / "whole")
    monkeypatch.setattr(making.Work, "_tasks", lambda self, blocks, least: [[block] for block in blocks])
    parted = make(folder, tmp_path / "parted")
    one, two = open_store(whole.store).normalizer, open_store(parted.store).normalizer
    for name in one["std"]:
        assert one["std"][name] == pytest.approx(two["std"][name], rel=1e-12)
        assert one["difference_std"]["24"][name] == pytest.approx(two["difference_std"]["24"][name], rel=1e-10)


def test_one_worker_and_many_make_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    results = [make(folder, tmp_path / str(workers), workers=workers) for workers in (1, 5)]
    assert results[0].fingerprint == results[1].fingerprint


def test_a_cluster_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        there = make(folder, tmp_path / "there", scheduler=cluster.scheduler_address)
    assert there.fingerprint == make(folder, tmp_path / "here").fingerprint


# Windows, levels, grids.


def hourly(tmp_path: Path, names: tuple[str, ...]) -> Path:
    for day in ("2020-01-01", "2020-01-02"):
        write_month(tmp_path / "in" / f"{day}.nc", times(day, str(np.datetime64(day) + 1), 1), names)
    return tmp_path / "in"


def test_six_hours_are_summed_from_hourly_windows(tmp_path: Path) -> None:
    inputs = hourly(tmp_path, ("tp", "mx2t", "mn2t", "ssr", "t2m"))
    result = make(inputs, tmp_path / "store", variables=("t2m", "tp_6h", "mx2t_6h", "mn2t_6h", "ssr_6h", "tp"),
                  levels=None, start=np.datetime64("2020-01-01T06"), train="2020-01-01/2020-01-02",
                  validation=None, test=None, dtype="float32")  # fmt: skip
    store = open_store(result.store)
    assert store.time[0] == np.datetime64("2020-01-01T06")
    assert store.schema.surface == ("t2m", "tp_6h", "mx2t_6h", "mn2t_6h", "ssr_6h", "tp")
    for place, time in enumerate(store.time):
        window = [time - hours * HOUR for hours in range(6)]
        found = store.read([place])[0]
        for channel, name, combine in ((1, "tp", np.sum), (2, "mx2t", np.max), (3, "mn2t", np.min), (4, "ssr", np.sum)):
            wanted = combine([moving(name, None, hour).astype(np.float64) for hour in window], axis=0)
            np.testing.assert_allclose(found[channel], wanted, rtol=1e-6)
        np.testing.assert_array_equal(found[5], moving("tp", None, time))
    assert "tp_6h: sum of 6 windows of 1 h" in result.notes
    assert "mx2t_6h: maximum of 6 windows of 1 h" in result.notes


def test_a_window_that_begins_before_the_inputs_is_refused(tmp_path: Path) -> None:
    inputs = hourly(tmp_path, ("tp", "t2m"))
    with pytest.raises(DataError) as error:
        make(inputs, tmp_path / "store", variables=("t2m", "tp_6h"), levels=None, train="2020-01-01/2020-01-02",
             validation=None, test=None)  # fmt: skip
    assert error.value.problems == (
        "tp_6h: 5 of 48 times of tp (sum over 1 h) are missing: 2019-12-31T19, 2019-12-31T20, 2019-12-31T21, "
        "2019-12-31T22, 2019-12-31T23",
    )
    assert "--start" in str(error.value.hint)


def test_levels_between_others_are_interpolated_and_noted(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", levels=(400, 500, 850))
    result = make(tmp_path / "in", tmp_path / "store", variables=("z", "t"), levels=(500, 700, 850), dtype="float32")
    store = open_store(result.store)
    weight = np.log(700 / 500) / np.log(850 / 500)
    for place, time in ((0, store.time[0]), (13, store.time[13])):
        upper, lower = moving("z", 500, time), moving("z", 850, time)
        np.testing.assert_allclose(store.read([place])[0, 1], upper + (lower - upper) * weight, rtol=1e-6)
    assert "z: 700 hPa interpolated linearly in ln p from 500 850 hPa" in result.notes
    with pytest.raises(DataError, match="z t: 925 hPa missing, beyond the levels there are"):
        make(tmp_path / "in", tmp_path / "other", variables=("z", "t"), levels=(850, 925))


def test_another_grid_is_regridded_conservatively(tmp_path: Path) -> None:
    fine = Grid.regular(15.0)
    write_folder(tmp_path / "in", stop="2020-01-01", grid=fine)
    result = make(tmp_path / "in", tmp_path / "store", grid="22.5:cells", train="2019-12-29/2019-12-31",
                  validation=None, test=None, dtype="float32")  # fmt: skip
    store = open_store(result.store)
    assert store.grid == GRID
    for channel, (name, level) in enumerate((("z", 500), ("z", 850), ("t", 500), ("t", 850), ("t2m", None))):
        wanted = fine.regrid_to(GRID, moving(name, level, store.time[5], fine))
        np.testing.assert_array_equal(store.read([5])[0, channel], wanted)
    wanted = fine.regrid_to(GRID, weather("orog", None, fine.lat, fine.lon).astype(np.float32))
    np.testing.assert_allclose(store.static["orog"], wanted, rtol=1e-6)
    assert any(note.startswith("regridded conservatively from 13x24") for note in result.notes)


def test_humidity_is_made_from_relative_humidity(tmp_path: Path) -> None:
    from wm2cli.analysis.thermodynamics import specific_humidity

    write_folder(tmp_path / "in", names=("t", "r", "t2m"))
    result = make(tmp_path / "in", tmp_path / "store", variables=("q", "t2m"), dtype="float32")
    store = open_store(result.store)
    time = store.time[7]
    wanted = specific_humidity(moving("r", 850, time), moving("t", 850, time), 85000.0)
    np.testing.assert_allclose(store.read([7])[0, 1], wanted, rtol=1e-5)
    assert any(note.startswith("q: from relative humidity at 500 850 hPa") for note in result.notes)


def test_what_others_determine_is_derived_when_asked(tmp_path: Path) -> None:
    def change(name: str, level: float | None, time: np.datetime64, values: NDArray[np.float32]) -> NDArray[Any]:
        return values * 0 + 9.80665 * 2000 if name == "z" and level == 850 else values

    write_folder(tmp_path / "in", names=("u", "z", "u10", "t2m"), change=change, levels=(500, 850))
    names = ("t2m", "u100", "orog")
    with pytest.raises(DataError) as error:
        make(tmp_path / "in", tmp_path / "store", variables=names, levels=None)
    assert error.value.problems == (
        "u100 (100 metre eastward wind) is missing; --derive makes it from u10, u on levels, z on levels, orog",
    )
    result = make(tmp_path / "in", tmp_path / "store", variables=names, levels=None, derive=True, dtype="float32")
    store = open_store(result.store)
    time = store.time[9]
    ground = weather("orog", None, GRID.lat, GRID.lon).astype(np.float32)
    low, high = moving("u10", None, time), moving("u", 850, time)  # everywhere more than 100 m above ground
    wanted = low + (high - low) * np.log(10.0) / np.log((2000.0 - ground) / 10.0)
    np.testing.assert_allclose(store.read([9])[0, 1], wanted, rtol=1e-4, atol=1e-4)
    assert any(note.startswith("u100 derived from u10, u on levels") for note in result.notes)


def test_packing_noise_is_set_to_the_physical_limit(tmp_path: Path) -> None:
    def change(name: str, level: float | None, time: np.datetime64, values: NDArray[np.float32]) -> NDArray[Any]:
        return values - values.min() - 1e-6 if name == "tp_6h" else values

    write_folder(tmp_path / "in", change=change)
    store = open_store(make(tmp_path / "in", tmp_path / "store", dtype="float32").store)
    assert store.read(np.arange(40))[:, 5].min() == 0.0


# Other containers.


@pytest.mark.parametrize("write", [write_cds_new, write_cds_old])
def test_files_of_the_climate_data_store(tmp_path: Path, write: Callable[..., Path]) -> None:
    when = times("2020-01-01", "2020-01-03")
    for number in (0, 4):
        some = list(when[number : number + 4])
        write(tmp_path / f"pl{number}.nc", ("z", "t"), times=some, levels=(500, 850))
        write(tmp_path / f"sfc{number}.nc", ("t2m", "msl"), times=some)
    result = make(tmp_path, tmp_path / "store", variables=("z", "t", "t2m", "msl"), train="2020-01-01/2020-01-02",
                  validation=None, test=None, dtype="float32")  # fmt: skip
    store = open_store(result.store)
    assert store.time.size == 8
    packed = write is write_cds_old
    for channel, (name, level) in enumerate((("z", 500), ("z", 850), ("t", 500), ("t", 850), ("t2m", None))):
        wanted = weather(name, level, LAT, LON)
        levels: tuple[float | None, ...] = (500, 850) if level else (None,)
        tolerance = np.ptp([weather(name, other, LAT, LON) for other in levels]) / 64000 if packed else 0.0
        np.testing.assert_allclose(store.read([3])[0, channel], wanted, rtol=1e-6, atol=tolerance)
    if not packed:
        assert store.kind == "reanalysis"
        assert any("Copernicus" in line for line in store.provenance["attribution"])


def test_grib_files(tmp_path: Path) -> None:
    when = times("2020-01-01", "2020-01-02")
    for time in when:
        fields = channels(Schema(("z", "t"), (500, 850), ("t2m",)))
        write_grib(tmp_path / f"{str(time)[:13]}.grib", fields, time=time)
    store = open_store(make(tmp_path, tmp_path / "store", variables=("z", "t", "t2m"), train="2020-01-01",
                            validation=None, test=None, dtype="float32").store)  # fmt: skip
    assert store.time.size == 4
    np.testing.assert_allclose(store.read([2])[0, 3], weather("t", 850), atol=1e-3)
    np.testing.assert_allclose(store.read([2])[0, 4], weather("t2m"), atol=1e-3)


def write_zarr(path: Path, version: int, when: NDArray[np.datetime64]) -> Path:
    """The layout of WeatherBench 2: long names, longitude before latitude, latitude from south to north."""
    group = zarr.create_group(path, zarr_format=version)  # type: ignore[arg-type]

    def put(name: str, values: NDArray[Any], dims: tuple[str, ...], attributes: dict[str, Any],
            chunks: tuple[int, ...]) -> None:  # fmt: skip
        named: dict[str, Any] = {"dimension_names": dims} if version == 3 else {}
        attributes = attributes if version == 3 else {**attributes, "_ARRAY_DIMENSIONS": list(dims)}
        group.create_array(name, data=values, chunks=chunks, attributes=attributes, **named)

    hours = (when - np.datetime64("1959-01-01T00", "s")) // HOUR
    put("time", hours.astype(np.int64), ("time",), {"units": "hours since 1959-01-01"}, (len(when),))
    put("level", np.array(LEVELS, np.int64), ("level",), {}, (2,))
    put("latitude", GRID.lat[::-1].copy(), ("latitude",), {"units": "degrees_north"}, (8,))
    put("longitude", GRID.lon, ("longitude",), {"units": "degrees_east"}, (16,))
    names = {"geopotential": "z", "temperature": "t", "2m_temperature": "t2m", "total_precipitation_6hr": "tp_6h"}
    for name, ours in names.items():
        upper = VARIABLES[ours].kind == "pressure"
        maps = np.stack([np.stack([moving(ours, level, time).T[:, ::-1] for level in (LEVELS if upper else (None,))])
                         for time in when])  # fmt: skip
        dims = ("time", *(("level",) if upper else ()), "longitude", "latitude")
        attributes = {"units": VARIABLES[ours].units.replace("m2 s-2", "m**2 s**-2"), "long_name": name}
        put(name, maps if upper else maps[:, 0], dims, attributes, (10, *(maps if upper else maps[:, 0]).shape[1:]))
    for ours in ("orog", "lsm"):
        values = weather(ours, None, GRID.lat, GRID.lon).astype(np.float32)
        scale, name, unit = (
            (9.80665, "geopotential_at_surface", "m**2 s**-2") if ours == "orog" else (1.0, "land_sea_mask", "1")
        )
        put(name, values.T[:, ::-1] * np.float32(scale), ("longitude", "latitude"), {"units": unit}, (16, 8))
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_a_zarr_store_in_the_layout_of_weatherbench(tmp_path: Path, version: int, folder: Path) -> None:
    path = write_zarr(tmp_path / "era5.zarr", version, times("2019-12-29", "2020-01-08", 3))
    result = make(path, tmp_path / "store", dtype="float32")
    store = open_store(result.store)
    other = open_store(make(folder, tmp_path / "other", dtype="float32").store)
    np.testing.assert_array_equal(store.time, other.time)
    np.testing.assert_array_equal(store.read(np.arange(40)), other.read(np.arange(40)))
    np.testing.assert_allclose(store.static["orog"], other.static["orog"], rtol=1e-6)
    assert store.kind == "reanalysis"


def test_chunks_of_many_times_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zarr(tmp_path / "era5.zarr", 3, times("2019-12-29", "2020-01-08", 3))  # ten times of 3 h in a chunk
    for budget, expected_blocks in ((10**6, [(0, 40)]), (10**4, [(at, at + 5) for at in range(0, 40, 5)])):
        monkeypatch.setattr("wm2cli.preprocessing.blocks._BLOCK_BYTES", budget)
        blocks: list[tuple[int, int]] = []
        original = making.cut_blocks
        monkeypatch.setattr(making, "cut_blocks", lambda made: blocks.extend(original(made)) or original(made))  # noqa: B023
        make(path, tmp_path / str(budget))
        monkeypatch.undo()
        assert blocks == expected_blocks


def test_a_zarr_store_over_http(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            pass

    path = write_zarr(tmp_path / "era5.zarr", 2, times("2019-12-29", "2020-01-08"))
    zarr.consolidate_metadata(path, zarr_format=2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/era5.zarr"
        far = make(url, tmp_path / "far", dtype="float32")
        near = make(path, tmp_path / "near", dtype="float32")
        np.testing.assert_array_equal(open_store(far.store).read([5, 30]), open_store(near.store).read([5, 30]))
        assert open_store(far.store).provenance["files"][0]["name"] == url
        with pytest.raises(Wm2Error) as error:
            make(url.replace("era5", "nothing"), tmp_path / "none")
        assert error.value.exit_code == 4
    finally:
        server.shutdown()


# Resuming.

_KILLED = """
import os, signal, sys
from pathlib import Path
from wm2cli.preprocess import Options, preprocess
from wm2cli.preprocessing.target import Target
record, calls = Target.record, []
def dying(self, places, hashes):
    record(self, places, hashes)
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Target.record = dying
import wm2cli.preprocessing.making as making
making.Work._tasks = lambda self, blocks, least: [[block] for block in blocks]
preprocess(Options(inputs=(sys.argv[1],), out=Path(sys.argv[2]), dtype=sys.argv[3], variables=("z", "t", "t2m", "tp_6h",
    "orog", "lsm"), levels=(500, 850), grid="input", train="2019-12-29/2020-01-03", validation="2020-01-04/2020-01-05",
    test="2020-01-06T06/2020-01-07", workers=1))
"""


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(folder: Path, tmp_path: Path, dtype: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    out = tmp_path / "store"
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(folder), str(out), dtype], check=False,
                            capture_output=True, text=True)  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(DataError, match="is not finished"):
        open_store(out)
    read: list[tuple[int, int]] = []
    original = making.read_block
    monkeypatch.setattr(making, "read_block", lambda made, *at: read.append(at) or original(made, *at))
    made = make(folder, out, dtype=dtype)
    again = [at for at in read if at[0] < 24]
    assert not again, "what was written before the kill was read once more"
    monkeypatch.undo()
    # The statistics of one task a block differ in the last bit from those of longer tasks.
    monkeypatch.setattr(making.Work, "_tasks", lambda self, blocks, least: [[block] for block in blocks])
    whole = make(folder, tmp_path / "whole", dtype=dtype)
    if dtype == "float16":
        assert made.fingerprint == whole.fingerprint
    chunks = sorted(path.relative_to(out) for path in (out / "fields" / "c").rglob("*") if path.is_file())
    assert len(chunks) == 40
    for chunk in chunks:
        assert (out / chunk).read_bytes() == (whole.store / chunk).read_bytes()


def test_a_finished_store_is_left_alone(folder: Path, tmp_path: Path) -> None:
    first = make(folder, tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in first.store.rglob("*")}
    second = make(folder, tmp_path / "store")
    assert second.fingerprint == first.fingerprint
    assert any("complete already" in note for note in second.notes)
    assert before == {path: path.stat().st_mtime_ns for path in first.store.rglob("*")}
    with pytest.raises(UsageError, match="exists already"):
        make(folder, tmp_path / "store", dtype="float32")
    assert make(folder, tmp_path / "store", dtype="float32", overwrite=True).fingerprint != first.fingerprint


def test_another_run_into_an_unfinished_store_is_refused(folder: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def stop(self: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(making.Work, "survey", stop)
        with pytest.raises(KeyboardInterrupt):
            make(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    with pytest.raises(UsageError) as error:
        make(folder, tmp_path / "store", dtype="float32", step=12)
    assert "step_hours: 6 then, 12 now" in error.value.problems
    assert "dtype: float16 then, float32 now" in error.value.problems
    assert make(folder, tmp_path / "store").times == 40


# Refusals.


def refusal(tmp_path: Path, **changes: Any) -> DataError:
    with pytest.raises(DataError) as error:
        make(tmp_path / "in", tmp_path / "store", **changes)
    assert not (tmp_path / "store").exists()
    return error.value


def spoil(only: str, name: str, make_of: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Callable[..., NDArray[Any]]:
    """Changes one variable for six days."""

    def change(variable: str, level: float | None, time: np.datetime64, values: NDArray[np.float32]) -> NDArray[Any]:
        there = np.datetime64(only) <= time < np.datetime64(only) + np.timedelta64(6, "D")
        return make_of(values) if variable == name and there else values

    return change


def test_everything_that_is_missing_is_listed_at_once(tmp_path: Path) -> None:
    whole = times("2019-12-29", "2020-01-08")
    write_month(tmp_path / "in" / "a.nc", whole[:12], ("z", "t", "t2m", "tp"), static=("orog",))
    write_month(tmp_path / "in" / "b.nc", whole[14:], ("z", "t", "t2m"), static=("orog",))
    error = refusal(tmp_path, variables=("z", "t", "q", "t2m", "v10", "tp_6h", "lsm"), levels=(500, 850, 1000))
    assert error.exit_code == 3
    assert error.problems == (
        "q (Specific humidity) is missing on all levels",
        "v10 (10 metre northward wind) is missing",
        "z t: 1000 hPa missing, beyond the levels there are (500 850 hPa)",
        "t2m: 2 of 40 times are missing: 2020-01-01T00, 2020-01-01T06",
        "tp_6h: 228 of 240 times of tp (sum over 1 h) are missing: 2019-12-28T19, 2019-12-28T20, 2019-12-28T21, ... "
        "2020-01-07T16, 2020-01-07T17, 2020-01-07T18 (228 times)",
        "lsm (Land-sea mask) is missing",
    )
    assert "--without q,v10,lsm" in str(error.hint)


def test_times_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "in")
    write_month(tmp_path / "in" / "again.nc", times("2019-12-30", "2019-12-31"), ("t2m",), static=())
    assert refusal(tmp_path).problems == ("t2m: 4 times are there twice, 2019-12-30T00 in 2019-12-29.nc and again.nc",)


def test_an_axis_with_a_time_twice_is_refused(tmp_path: Path) -> None:
    when = times("2019-12-29", "2020-01-08")
    when[5] = when[4]
    write_month(tmp_path / "in" / "a.nc", when)
    problems = refusal(tmp_path).problems
    assert "z500 z850 t500 t850 t2m tp_6h: 1 of 40 times are missing: 2019-12-30T06" in problems
    assert any("1 times are there twice, 2019-12-30T00 in a.nc" in line for line in problems)


@pytest.mark.parametrize(
    ("name", "make_of", "text"),
    [
        ("t2m", lambda values: np.where(values == values.max(), np.nan, values), "t2m has 1 missing"),
        ("t", lambda values: values - 273.15, "t500 spans .*wrong unit or corrupt"),
        ("z", lambda values: values / 9.80665, "z500 spans .*wrong unit or corrupt"),
        ("tp_6h", lambda values: values * 1000.0, "tp_6h has a mean of .* in the logarithm .*another unit"),
        ("tp_6h", lambda values: values / 1000.0, "tp_6h has a mean of .*another unit"),
        ("t2m", lambda values: values * 0.0 + 280.0, "t2m has a mean of .* and a spread of 0 .*another unit"),
        ("t2m", lambda values: np.full_like(values, np.inf), "t2m has 128 missing or infinite values of 128"),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_that_cannot_be_are_refused(tmp_path: Path, name: str, make_of: Any, text: str, dtype: str) -> None:
    write_folder(tmp_path / "in", change=spoil("2020-01-04", name, make_of), stop="2020-01-20")
    spoilt = ("2020-01-04.nc", "2020-01-07.nc")
    error = refusal(tmp_path, dtype=dtype)
    assert len(error.problems) == len(spoilt)
    for line, file in zip(error.problems, spoilt, strict=True):
        assert line.startswith(file)
        assert re.search(text, line)


def test_a_jump_is_taken_as_it_is_when_asked_for(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", change=spoil("2020-01-07", "tp_6h", lambda values: values * 1000.0))
    (line,) = refusal(tmp_path).problems
    assert f"taken as it is: {line}" in make(tmp_path / "in", tmp_path / "store", allow_jumps=True).notes


def test_a_file_in_other_units_is_converted_when_it_says_so(tmp_path: Path, folder: Path) -> None:
    write_folder(tmp_path / "in", stop="2020-01-04")
    write_folder(tmp_path / "in", start="2020-01-04", units={"t2m": "degC"},
                 change=lambda name, level, time, values: values - 273.15 if name == "t2m" else values)  # fmt: skip
    store = open_store(make(tmp_path / "in", tmp_path / "store", dtype="float32").store)
    wanted = expected(store.time, store.schema)
    np.testing.assert_allclose(store.read(np.arange(40)), wanted, atol=1e-4, rtol=1e-6)


def test_a_unit_that_is_not_known_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", units={"t2m": "furlong"})
    problems = refusal(tmp_path).problems
    assert problems[0] == "t2m (2 metre temperature) is missing"
    assert problems[1].startswith("2019-12-29.nc and 3 other files: t2m has the units 'furlong'")


def test_grids_that_differ_or_are_regional_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", stop="2020-01-04")
    write_folder(tmp_path / "in", start="2020-01-04", grid=Grid.regular(22.5))
    problems = refusal(tmp_path).problems
    assert "t t2m tp z in 2019-12-29.nc and 1 other files: on a grid of 8x16, latitude 78.75 to -78.75, " \
        "longitude 0 to 337.5; all must be on the same" in problems  # fmt: skip
    assert any(line.startswith("orog differs between") for line in problems)


def test_a_part_of_the_globe_is_refused(tmp_path: Path) -> None:
    write_cds_new(tmp_path / "in.nc", ("t2m",), times=list(times("2020-01-01", "2020-01-02")), lat=LAT[4:20])
    with pytest.raises(DataError) as error:
        make(tmp_path / "in.nc", tmp_path / "store", variables=("t2m",), train="2020-01-01", validation=None, test=None)
    assert "does not reach the poles: a regional file" in error.value.problems[0]


def test_several_ensemble_members_are_refused(tmp_path: Path) -> None:
    write_cds_new(tmp_path / "in.nc", ("t2m",), times=list(times("2020-01-01", "2020-01-02")), members=(0, 1, 2))
    with pytest.raises(DataError) as error:
        make(tmp_path / "in.nc", tmp_path / "store", variables=("t2m",), train="2020-01-01", validation=None, test=None)
    assert error.value.problems == ("t2m: there for 3 ensemble members (0 to 2); give one",)


def test_simulated_and_real_data_do_not_mix(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", stop="2020-01-04")
    write_folder(tmp_path / "in", start="2020-01-04", attributes={"title": "real"})
    error = refusal(tmp_path)
    assert error.problems == ("not stated: 2020-01-04.nc and 1 more", "simulated: 2019-12-29.nc and 1 more")
    shutil.rmtree(tmp_path / "in")
    write_folder(tmp_path / "in")
    assert "say that they are simulated, not reanalysis" in str(refusal(tmp_path, kind="reanalysis"))


def test_splits_must_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        make(folder, tmp_path / "store", train="2019-12-29/2020-01-04", validation="2020-01-04/2020-01-05T06",
             test="2020-01-06/2020-01-10")  # fmt: skip
    assert error.value.problems == (
        "train and validation overlap: 2020-01-04T00, ... 2020-01-04T18 (4 times)",
        "test: 2020-01-06T00 to 2020-01-10T23:59 is not covered by the times of the store "
        "(2019-12-29T00 to 2020-01-07T18)",
    )


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "in")
    path = tmp_path / "in" / "2020-01-04.nc"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "2020-01-04.nc cannot be opened as NetCDF" in str(refusal(tmp_path))
    path.write_bytes(b"")
    assert "2020-01-04.nc is empty" in str(refusal(tmp_path))


def test_a_channel_without_any_spread_is_refused(tmp_path: Path) -> None:
    write_folder(
        tmp_path / "in", change=lambda name, level, time, values: values * 0 + 280 if name == "t2m" else values
    )
    assert refusal(tmp_path).problems == ("t2m is the same everywhere and at all times of train",)


def test_inputs_that_are_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("nothing")
    assert refusal(tmp_path).problems == (f"the folder {tmp_path / 'in'} has no files with weather data (1 others)",)
    (tmp_path / "in" / "2020-01.nc").symlink_to(tmp_path / "gone.nc")
    assert refusal(tmp_path).problems == (str(tmp_path / "in" / "2020-01.nc"),)
    with pytest.raises(DataError, match="does not exist"):
        make(tmp_path / "nowhere", tmp_path / "store")


def test_impossible_options_are_listed_at_once() -> None:
    with pytest.raises(UsageError) as error:
        preprocess(Options(step=5, train="2020-13", dtype="float64", window=60, climatology=Path("a.txt")))  # type: ignore[arg-type]
    assert len(error.value.problems) == 8
    with pytest.raises(UsageError, match="--store"):
        preprocess(Options(store=Path("store")))


# Schemas, ranges, the command line.


def test_a_schema_comes_from_a_preset_or_a_file(tmp_path: Path) -> None:
    schema, grid = choose_schema(Options(schema="mini", without=("slt",)))
    assert grid == Grid.regular(5.625, "cells")
    assert schema.static == ("orog", "lsm")
    assert {"t2m", "mx2t", "lsp_6h"} < set(schema.surface)
    assert len(set(schema.channels)) == len(schema.channels) == 83
    path = tmp_path / "schema.toml"
    path.write_text('pressure = ["z"]\nlevels = [500]\nsurface = ["t2m"]\n')
    assert choose_schema(Options(schema=str(path))) == (Schema(("z",), (500,), ("t2m",)), None)
    assert choose_schema(Options(schema=str(path), grid="1.5:poles"))[1] == Grid.regular(1.5)
    path.write_text('presure = ["z"]\n')
    with pytest.raises(ConfigError):
        choose_schema(Options(schema=str(path)))
    with pytest.raises(UsageError, match="would not be there anyway"):
        choose_schema(Options(schema="mini", without=("tp",)))
    with pytest.raises(UsageError, match="is no grid"):
        choose_schema(Options(variables=("t2m",), grid="coarse"))


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2018", "2018-01-01T00:00:00", "2018-12-31T23:59:59"),
        ("2010/2017", "2010-01-01T00:00:00", "2017-12-31T23:59:59"),
        ("2018-02", "2018-02-01T00:00:00", "2018-02-28T23:59:59"),
        ("2018-02-03/2018-06-30T18", "2018-02-03T00:00:00", "2018-06-30T18:00:00"),
    ],
)
def test_ranges_hold_all_of_what_they_name(text: str, first: str, last: str) -> None:
    assert parse_ranges(text) == ((np.datetime64(first), np.datetime64(last)),)


@pytest.mark.parametrize("text", ["", "18", "2018/2017", "2018-13", "2018/", "2018,"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_ranges(text)


def test_a_plan_shows_what_would_be_made_and_makes_nothing(folder: Path, tmp_path: Path) -> None:
    planned = plan(replace(OPTIONS, inputs=(str(folder),), out=tmp_path / "store"))
    assert planned.times == 40
    assert planned.channels == ("z500", "z850", "t500", "t850", "t2m", "tp_6h")
    assert planned.bytes_uncompressed == 40 * 6 * 8 * 16 * 2
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["preprocess", str(folder), "--out", str(tmp_path / "store"), "--variables", ",".join(NAMES),
                 "--levels", "500,850", "--train", "2019-12-29/2020-01-03", "--validation", "2020-01-04"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["/somewhere/wm2", *arguments])
    assert run([*arguments, "--plan", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["times"] == 40
    assert run([*arguments, "--plan"]) == 0
    assert "40, 2019-12-29T00 to 2020-01-07T18 every 6 h" in capfd.readouterr().out
    assert run(arguments) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'store'}\n"
    assert open_store(tmp_path / "store").provenance["command_line"] == shlex.join(["wm2", *arguments])
    assert run([*arguments, "--dtype", "float32"]) == 2
    assert run([*arguments, "--test", "2020-01-04", "--overwrite"]) == 3
    captured = capfd.readouterr()
    assert "validation and test overlap" in captured.err
    assert captured.out == ""
    assert run([*arguments, "--kind", "wrong"]) == 2


def test_making_a_plan_loads_no_torch() -> None:
    code = "import sys, wm2cli.preprocess; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
