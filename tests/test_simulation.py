"""The source `simulation`: months of a world, resumable; and the world itself where its packages are installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest

from wm2cli.errors import ResourceError, UsageError
from wm2cli.reading.series import open_series
from wm2cli.sources import Request, speedy
from wm2cli.sources.simulation import Simulation

SURFACE = ("t2m", "d2m", "u10", "v10", "u100", "v100", "msl", "tcc", "lsp_6h", "cp_6h", "ssr_6h", "mx2t_6h", "mn2t_6h")
TYPICAL = {"z": 5e4, "t": 260.0, "q": 1e-3, "msl": 1e5, "t2m": 280.0, "d2m": 275.0, "tcc": 0.5, "ssr_6h": 1e6}


class FakeWorld:
    """Days follow from the day before, as in the real one, so that a wrong restart shows."""

    days_run = 0

    def __init__(self, seed: int, begins: np.datetime64, cache: Path | None = None) -> None:
        self.time, self.state = begins.astype("datetime64[h]"), float(seed)

    @property
    def static(self) -> dict[str, Any]:
        return {name: np.zeros(speedy.GRID.shape, np.float32) for name in ("orog", "lsm")}

    def skip_day(self) -> None:
        self.time, self.state = self.time + np.timedelta64(1, "D"), (self.state * 1.7 + 0.3) % 1.0
        type(self).days_run += 1

    def day(self, every: int) -> dict[str, Any]:
        self.skip_day()
        count, shape = 24 // every, speedy.GRID.shape
        low = {name: np.full((count, *shape), TYPICAL.get(name, 0.0) * (1 + 0.01 * self.state)) for name in SURFACE}
        up = {name: np.full((count, 13, *shape), TYPICAL.get(name, 1.0) * (1 + 0.01 * self.state)) for name in "ztuvq"}
        return {**up, **low}

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:  # a ZIP archive, as the real one's
            np.savez(stream, state=self.state)

    def load(self, path: Path, time: np.datetime64) -> None:
        self.time, self.state = time, float(np.load(path)["state"])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorld]:
    monkeypatch.setattr(speedy, "World", FakeWorld)
    monkeypatch.setattr(speedy, "versions", lambda: dict.fromkeys(("jcm", "dinosaur", "jax", "jaxlib"), "0"))
    monkeypatch.setattr(FakeWorld, "days_run", 0)
    return FakeWorld


def times(*texts: str) -> tuple[np.datetime64, ...]:
    return tuple(np.datetime64(text, "s") for text in texts)


def fetch(folder: Path, months: list[str], seed: int = 1) -> list[Path]:
    source = Simulation()
    wanted = times(*(f"{month}-15T00" for month in months))
    options = {"seed": str(seed), "begins": "2009-01-01"}
    return [source.fetch(piece, folder) for piece in source.plan(Request(wanted, options=options))]


def temperature(path: Path) -> Any:
    with netCDF4.Dataset(path) as data:
        return data["t"][:, 0, 0, 0].data.copy()


def test_a_time_belongs_to_the_month_that_it_ends() -> None:
    pieces = Simulation().plan(Request(times("2010-01-01T06", "2010-02-01T00", "2010-03-01T06"),
                                       options={"begins": "2009-01-01"}))  # fmt: skip
    assert [piece.request["month"] for piece in pieces] == ["2010-01", "2010-03"]
    assert pieces[0].filename == "seed1_2009-01-01_6h_2010-01.nc"


def test_the_world_begins_a_year_before_the_first_month_when_nothing_is_said() -> None:
    (piece,) = Simulation().plan(Request(times("2024-06-10T00")))
    assert piece.request["begins"] == "2023-06-02"  # 2024 is a leap year


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": "one"}, "seed must be a whole number"),
        ({"seed": "-1"}, "seed must be at least 0"),
        ({"hours": "3"}, "hours must be 1 or 6"),
        ({"begins": "soon"}, "begins must be a date"),
        ({"begins": "2010-01-01"}, "has not settled"),
        ({"sed": "1"}, "sed"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Simulation().plan(Request(times("2010-06-01T06"), options=options))
    assert said in str(caught.value)


def test_times_between_the_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot make this") as caught:
        Simulation().plan(Request(times("2010-06-01T03")))
    assert "no multiple of 6 h" in str(caught.value)


def test_months_one_by_one_equal_months_in_one_go(tmp_path: Path, fake: type[FakeWorld]) -> None:
    together = fetch(tmp_path / "a", ["2010-01", "2010-02", "2010-03"])
    apart = [fetch(tmp_path / "b", [month])[0] for month in ("2010-01", "2010-02", "2010-03")]
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_array_equal(temperature(one), temperature(other))
    assert len(set(np.concatenate([temperature(path) for path in together]))) > 60  # the days differ


def test_a_later_month_alone_makes_those_on_the_way(tmp_path: Path, fake: type[FakeWorld]) -> None:
    fetch(tmp_path, ["2010-03"])
    assert sorted(path.name for path in tmp_path.glob("*.nc")) == [
        f"seed1_2009-01-01_6h_2010-0{month}.nc" for month in (1, 2, 3)
    ]
    before = fake.days_run
    fetch(tmp_path, ["2010-04"])
    assert fake.days_run - before == 30  # goes on from the state at the end of March


def test_what_was_fetched_is_read_as_a_folder(tmp_path: Path, fake: type[FakeWorld]) -> None:
    """The states from which a world goes on lie in the same folder, and are no weather."""
    fetch(tmp_path, ["2010-01"])
    assert len(list(tmp_path.rglob("*.state"))) == 2
    assert "t2m" in {series.variable for series in open_series([tmp_path]).series}


def test_two_seeds_are_two_worlds(tmp_path: Path, fake: type[FakeWorld]) -> None:
    (one,), (other,) = fetch(tmp_path, ["2010-01"], 1), fetch(tmp_path, ["2010-01"], 2)
    assert not np.array_equal(temperature(one), temperature(other))


def test_the_file_says_what_it_is(tmp_path: Path, fake: type[FakeWorld]) -> None:
    (path,) = fetch(tmp_path, ["2010-02"])
    with netCDF4.Dataset(path) as data:
        assert data.wm2_kind == "simulated"
        assert "not observations" in data.title
        assert "seed 1" in data.wm2_world
        hours = data["time"][:].data // 3600
        assert (len(hours), hours[1] - hours[0]) == (28 * 4, 6)
        assert data["t"].units == "K"
        assert data["lsp_6h"].cell_methods == "time: sum (comment: of the 6 h before)"


def test_what_was_made_is_found_again(tmp_path: Path, fake: type[FakeWorld]) -> None:
    from wm2cli.fetch import Access, Options
    from wm2cli.fetch import fetch as command

    options = Options(times("2010-01-15T00"), "simulation", Access(cache=tmp_path),
                      options={"seed": "4", "begins": "2009-01-01"})  # fmt: skip
    first = command(options)
    before = fake.days_run
    again = command(options)
    assert fake.days_run == before
    assert first.paths == again.paths
    assert again.obtained[0].pieces[0].cached


def test_without_its_packages_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jax", "jcm", "jcm.forcing"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ResourceError) as caught:
        fetch(tmp_path, ["2010-01"])
    assert caught.value.hint == "pip install 'wm2cli[simulation]'"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jcm") is None, reason="needs wm2cli[simulation]")
def test_the_real_world_goes_on_bit_for_bit(tmp_path: Path) -> None:
    world = speedy.World(1, np.datetime64("2009-01-01"))
    world.day(6)
    world.save(tmp_path / "a.state")
    expected = world.day(6)
    other = speedy.World(2, np.datetime64("2009-01-01"))
    assert not np.array_equal(other.day(6)["t"], expected["t"])
    other.load(tmp_path / "a.state", np.datetime64("2009-01-02T00"))
    found = other.day(6)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert 250 < float(expected["t2m"].mean()) < 310
    assert float(expected["q"].min()) >= 0.0
    # Hydrostatic between 500 and 400 hPa: dz = R T dlnp, T linear in ln p.
    z, t = expected["z"], expected["t"]
    thickness = speedy.GAS_CONSTANT * 0.5 * (t[:, 6] + t[:, 7]) * np.log(500 / 400)
    assert np.abs(z[:, 6] - z[:, 7] - thickness).mean() / 9.80665 < 3.0  # metres
