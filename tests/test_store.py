"""The training store: what goes in comes out, what is damaged is noticed, what is unfinished is not opened."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from weather import weather

from wm2cli.errors import DataError, ResourceError, UsageError
from wm2cli.grid import Grid
from wm2cli.preprocessing.target import Contents, Target, write_times
from wm2cli.schema import Schema
from wm2cli.store import Dtype, Store, open_store, verify

GRID = Grid.regular(22.5, "cells")
SCHEMA = Schema(("z", "t"), (500, 850), ("t2m", "tp_6h"), ("orog", "lsm"))
TIME = np.datetime64("2019-12-30T00", "s") + np.arange(12) * np.timedelta64(6, "h")
SPLITS = {"train": ((TIME[0], TIME[7]),), "validation": ((TIME[9], TIME[11]),)}


def fields() -> NDArray[np.float32]:
    """(T, C, H, W): weather that moves round the globe; rain falls in half of the places."""
    names: list[tuple[str, float | None]] = [("z", 500), ("z", 850), ("t", 500), ("t", 850), ("t2m", None)]
    maps = [weather(name, level, GRID.lat, GRID.lon) for name, level in names]
    rain = np.maximum(weather("tp", None, GRID.lat, GRID.lon) - 2e-3, 0.0)
    now = np.stack([*maps, rain])
    return np.stack([np.roll(now, step, axis=-1) for step in range(TIME.size)]).astype(np.float32)


def normalizer(values: NDArray[np.float32]) -> dict[str, Any]:
    wide = values[:8].astype(np.float64)
    wide[:, 5] = np.log(wide[:, 5] + 1e-7)
    mean, std = wide.mean(axis=(0, 2, 3)), wide.std(axis=(0, 2, 3))
    return {"mean": dict(zip(SCHEMA.channels, mean.tolist(), strict=True)),
            "std": dict(zip(SCHEMA.channels, std.tolist(), strict=True)),
            "difference_std": {"6": dict.fromkeys(SCHEMA.channels, 1.0)}, "log_floor": {"tp_6h": 1e-7}}  # fmt: skip


def contents(dtype: Dtype = "float16", **changes: Any) -> Contents:
    static = {name: weather(name, None, GRID.lat, GRID.lon).astype(np.float32) for name in SCHEMA.static}
    given: dict[str, Any] = {
        "schema": SCHEMA, "grid": GRID, "time": TIME, "step_hours": 6, "splits": SPLITS, "dtype": dtype,
        "static": static, "provenance": {"kind": "simulated", "title": "made up"}, "settings": {"dtype": dtype},
    }  # fmt: skip
    return Contents(**(given | changes))


def make(path: Path, dtype: Dtype = "float16") -> Store:
    values = fields()
    with Target(path, contents(dtype)) as target:
        target.set_normalizer(normalizer(values))
        for start in range(0, TIME.size, 5):
            places = np.arange(start, min(start + 5, TIME.size))
            target.record(places, write_times(target.part, places, values[places], target.coding))
        return target.finish()


@pytest.fixture(params=["float16", "float32"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return make(tmp_path / "store", request.param)


def test_what_goes_in_comes_out(store: Store) -> None:
    found, expected = store.read(np.arange(TIME.size)), fields()
    assert found.dtype == np.float32
    if store.dtype == "float32":
        np.testing.assert_array_equal(found, expected)
    else:
        std = np.array([store.normalizer["std"][name] for name in SCHEMA.channels])[:, None, None]
        np.testing.assert_array_less(np.abs(found - expected)[:, :5] / std[:5], 2e-3)  # 4 std: half a 2^-8, at most
        wet = expected[:, 5] > 1e-5
        np.testing.assert_allclose(found[:, 5][wet], expected[:, 5][wet], rtol=0.02)
        assert found[:, 5].min() >= 0.0
        assert found[:, 5][~wet].max() < 2e-5


def test_axes_splits_and_static_fields_come_out(store: Store) -> None:
    assert store.grid == GRID
    assert store.schema == SCHEMA
    assert store.kind == "simulated"
    np.testing.assert_array_equal(store.time, TIME)
    np.testing.assert_array_equal(store.split_indices("train"), np.arange(8))
    np.testing.assert_array_equal(store.split_indices("validation"), [9, 10, 11])
    np.testing.assert_array_equal(store.static["lsm"], weather("lsm", None, GRID.lat, GRID.lon).astype(np.float32))
    with pytest.raises(UsageError, match="no split 'test'"):
        store.split_indices("test")


def test_any_order_of_places_is_read(store: Store) -> None:
    everything = store.read(np.arange(TIME.size))
    for places in ([7, 2, 2, 11], [3], [4, 5, 6], []):
        np.testing.assert_array_equal(store.read(places), everything[places])
    with pytest.raises(IndexError):
        store.read([12])


def test_times_are_found_and_absent_ones_named(store: Store) -> None:
    np.testing.assert_array_equal(store.index(TIME[[3, 1]].astype("datetime64[ns]")), [3, 1])
    with pytest.raises(DataError, match="lacks 2 of 3 times: 2019-12-29T18:00, 2019-12-30T03:00"):
        store.index(["2019-12-29T18", "2019-12-30T03", "2019-12-30T06"])


def test_many_threads_read_at_once(store: Store) -> None:
    everything = store.read(np.arange(TIME.size))
    with ThreadPoolExecutor(8) as pool:
        for place, found in zip(range(200), pool.map(lambda place: store.read([place % 12]), range(200)), strict=True):
            np.testing.assert_array_equal(found[0], everything[place % 12])


def test_a_pickled_store_reads_the_same(store: Store) -> None:
    other = pickle.loads(pickle.dumps(store))  # noqa: S301
    np.testing.assert_array_equal(other.read([1]), store.read([1]))
    assert other.fingerprint == store.fingerprint


def test_the_fingerprint_follows_the_values(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    values = fields()
    values[3, 4, 2, 1] += 1.0
    with Target(tmp_path / "three", contents()) as target:
        target.set_normalizer(normalizer(fields()))
        target.record(np.arange(12), write_times(target.part, np.arange(12), values, target.coding))
        assert target.finish().fingerprint != one.fingerprint


def test_damage_is_noticed(store: Store) -> None:
    verify(store)
    chunk = store.path / "fields" / "c" / "4" / "0" / "0" / "0"
    lost = chunk.read_bytes()
    chunk.unlink()
    with pytest.raises(DataError, match="lost 1 times: 2019-12-31T00:00"):
        store.read([3, 4])
    chunk.write_bytes((store.path / "fields" / "c" / "5" / "0" / "0" / "0").read_bytes())
    with pytest.raises(DataError) as error:
        verify(store)
    assert error.value.problems == ("2019-12-31T00:00 is not what was written",)
    chunk.write_bytes(lost[: len(lost) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        store.read([4])


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no training store"):
        open_store(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="not a training store"):
        open_store(tmp_path / "folder")
    with Target(tmp_path / "begun", contents()):
        pass
    with pytest.raises(DataError, match=r"begun is not finished: .*begun.part is there"):
        open_store(tmp_path / "begun")
    with pytest.raises(DataError, match="not finished"):
        open_store(tmp_path / "begun.part")
    made = make(tmp_path / "made")
    table = made.path / "zarr.json"
    table.write_text(table.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(DataError, match="has the format 7, this wm2 reads 1"):
        open_store(made.path)


def test_an_existing_store_is_not_replaced_unasked(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with pytest.raises(UsageError, match="exists already"):
        Target(tmp_path / "store", contents())


def test_other_settings_do_not_go_on_where_a_run_stopped(tmp_path: Path) -> None:
    with Target(tmp_path / "store", contents(settings={"step": 6, "dtype": "float16"})):
        pass
    with pytest.raises(UsageError) as error, Target(tmp_path / "store", contents(settings={"step": 1})):
        pass
    assert error.value.problems == ("step: 6 then, 1 now", "dtype: float16 then, None now")
    with Target(tmp_path / "store", contents(settings={"step": 1}), overwrite=True) as target:
        assert not target.done.any()


def test_what_is_damaged_is_written_again_when_resuming(tmp_path: Path) -> None:
    values = fields()
    with Target(tmp_path / "store", contents()) as target:
        target.set_normalizer(normalizer(values))
        target.record(np.arange(6), write_times(target.part, np.arange(6), values[:6], target.coding))
    chunks = target.part / "fields" / "c"
    (chunks / "2" / "0" / "0" / "0").unlink()
    (chunks / "3" / "0" / "0" / "0").write_bytes(b"rubbish")
    with Target(tmp_path / "store", contents()) as target:
        assert target.normalizer == normalizer(values)
        np.testing.assert_array_equal(np.flatnonzero(target.done), np.arange(6))
        target.check_done()
        np.testing.assert_array_equal(np.flatnonzero(target.done), [0, 1, 4, 5])
        for places in (np.arange(2, 4), np.arange(6, 12)):
            target.record(places, write_times(target.part, places, values[places], target.coding))
        assert target.finish().fingerprint == make(tmp_path / "other").fingerprint


def test_a_second_run_is_kept_out(tmp_path: Path) -> None:
    with (
        Target(tmp_path / "store", contents()),
        pytest.raises(ResourceError, match="another run is writing"),
        Target(tmp_path / "store", contents()),
    ):
        pass


def test_reading_a_store_loads_no_torch() -> None:
    code = "import sys, wm2cli.store, wm2cli.preprocessing.target; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_near_store_reads_by_threads_once_it_has_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr
    from zarr.storage import LocalStore

    from wm2cli.reading.near_store import NearStore

    values = np.arange(64.0)
    zarr.create_array(tmp_path / "a", shape=(64,), chunks=(1,), dtype="f8")[:32] = values[:32]
    threads: list[int] = []
    to_thread = asyncio.to_thread

    async def count(function: Any, *rest: Any) -> Any:
        if function.__name__ == "_get":
            threads.append(1)
        return await to_thread(function, *rest)

    # A clock of its own: on a busy machine every chunk may be slow.
    now, wait, near = 0.0, 1e-4, LocalStore.get_sync

    def get_sync(self: LocalStore, *rest: Any, **named: Any) -> Any:
        nonlocal now
        now += wait
        return near(self, *rest, **named)

    monkeypatch.setattr(asyncio, "to_thread", count)
    monkeypatch.setattr("wm2cli.reading.near_store.perf_counter", lambda: now)
    monkeypatch.setattr(LocalStore, "get_sync", get_sync)
    store = NearStore(tmp_path / "a")
    array: Any = zarr.open_array(store, mode="r")
    expected = np.where(values < 32, values, 0.0)  # a chunk that is not there holds the fill value
    np.testing.assert_array_equal(array[:], expected)
    assert not threads
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array))[:], expected)  # noqa: S301
    assert not threads
    wait = 2e-3
    np.testing.assert_array_equal(array[:], expected)
    assert 32 < len(threads) < 64
    np.testing.assert_array_equal(array[:8], expected[:8])
    with pytest.raises(ValueError, match="read-only"):
        array[:] = 1.0
