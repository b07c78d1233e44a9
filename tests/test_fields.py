"""The inventory: finding fields, times, duplicates, and what is told of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weather import GROUND, LAT, LEVELS, LON, SCHEMA, TIME, encode, weather, write_grib

from wm2cli.errors import DataError
from wm2cli.reading.fields import (
    Axes,
    Inventory,
    SourceFile,
    canonical_axes,
    canonical_order,
    plain_name,
    time_text,
    times_text,
)
from wm2cli.reading.grib import open_grib

HOUR = np.timedelta64(1, "h")


def inventory(tmp_path: Path, *messages: bytes) -> Inventory:
    path = tmp_path / "some.grib"
    path.write_bytes(b"".join(messages))
    return open_grib(SourceFile(path, "some.grib"))


def test_finding_by_name_level_and_time(tmp_path: Path) -> None:
    made = inventory(tmp_path, encode("t", 500), encode("t", 850), encode("t", 500, time=TIME + HOUR), encode("t2m"))
    assert [field.label for field in made.find("t")] == ["t500", "t850", "t500"]
    assert len(made.find("t", 500)) == 2
    assert len(made.find("t", 500, TIME)) == 1
    assert made.find("t", 700) == ()
    assert made.find("u") == ()
    assert made.find("t2m", time=TIME)[0].level is None
    assert made.times() == (TIME, TIME + HOUR)
    assert made.levels("t") == (500.0, 850.0)


def test_statics_have_no_say_in_the_times(tmp_path: Path) -> None:
    made = inventory(tmp_path, encode("t", 500), encode("lsm", time=TIME + HOUR))
    assert made.times() == (TIME,)


def test_duplicates(tmp_path: Path) -> None:
    made = inventory(tmp_path, encode("t", 500), encode("u", 500), encode("t", 500), encode("t", 500, step=6))
    assert [[field.origin for field in group] for group in made.duplicates()] == [
        ["some.grib message 1", "some.grib message 3"]
    ]


def test_describing(tmp_path: Path) -> None:
    made = inventory(
        tmp_path, encode("t", 500), encode("t", 850), encode("tcc", style="gfs", step=6, window=("mean", 6)),
        encode("mslet", values=weather("msl"), style="gfs"), encode("u", 500, member=2),
    )  # fmt: skip
    assert made.describe().splitlines() == [
        "4 fields in 1 file",
        "times: 2024-01-01T06",
        "t (Temperature) at 2 levels: 500 850 hPa: 2 fields",
        "u (Eastward wind) at 1 level: 500 hPa, member 2: 1 field",
        "tcc (Total cloud cover) mean over 6 h: 1 field",
        "not used: mslet on meanSea (1)",
    ]


def test_merging(tmp_path: Path) -> None:
    one = write_grib(tmp_path / "a.grib", [(name, None) for name in GROUND])
    two = write_grib(tmp_path / "b.grib", [("t", level) for level in LEVELS])
    made = Inventory.merge(open_grib(SourceFile(path, path.name)) for path in (one, two))
    assert len(made.fields) == len(GROUND) + len(LEVELS)
    assert [file.label for file in made.files] == ["a.grib", "b.grib"]
    assert Inventory.merge([]).fields == ()
    assert len(SCHEMA.channels) > len(made.fields)


def test_files_know_their_hash(tmp_path: Path) -> None:
    path = write_grib(tmp_path / "a.grib", [("t", 500)])
    file = SourceFile(path, "a.grib")
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file.size == path.stat().st_size
    assert file.read(0, 4) == b"GRIB"
    assert file.read(file.size - 4, 100) == b"7777"
    with pytest.raises(DataError, match="cannot read b: No such file"):
        SourceFile(tmp_path / "b", "b")


@given(
    rows=st.integers(2, 20),
    columns=st.integers(2, 30),
    south=st.booleans(),
    first=st.integers(0, 29),
    centred=st.booleans(),
)
def test_any_order_comes_out_the_same(rows: int, columns: int, south: bool, first: int, centred: bool) -> None:
    lat, lon = np.linspace(90, -90, rows), np.arange(columns) * 360 / columns
    values = np.arange(rows * columns).reshape(rows, columns)
    shuffled = np.roll(values, -first, axis=1)[:: -1 if south else 1]
    given_lon = np.roll((lon + 180) % 360 - 180 if centred else lon, -first)
    axes, flip, roll = canonical_axes(lat[:: -1 if south else 1], given_lon)
    np.testing.assert_allclose(axes.lat, lat)
    np.testing.assert_allclose(axes.lon, lon, atol=1e-5)
    np.testing.assert_array_equal(canonical_order(shuffled, flip, roll), values)


@pytest.mark.parametrize(
    ("lat", "lon", "message"),
    [
        ([90, 0, 10], LON, "latitudes are not in order"),
        (LAT, [0, 10, 5], "longitudes are not in order from west to east"),
        (LAT, LON[::-1], "longitudes are not in order from west to east"),
        (LAT, np.append(LON, 360), "longitudes 0 to 360 name the same meridian twice"),
    ],
)
def test_axes_out_of_order(lat: list[float], lon: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        canonical_axes(np.array(lat, float), np.array(lon, float))


def test_axes_for_people() -> None:
    assert Axes(LAT, LON).describe() == "37x72, latitude 90 to -90, longitude 0 to 355"
    axes, _, _ = canonical_axes(np.array([60.0, 50.0]), np.array([-10.0, 0.0, 10.0]))
    assert axes.describe() == "2x3, latitude 60 to 50, longitude -10 to 10"
    assert axes.issues()
    assert Axes(LAT, LON).same_as(Axes(LAT + 1e-5, LON))
    assert not Axes(LAT, LON).same_as(Axes(LAT, LON + 1))


def test_names_and_times_for_people() -> None:
    assert plain_name("tp_6h") == plain_name("tp") == "tp"
    assert time_text(TIME) == "2024-01-01T06"
    assert time_text(np.datetime64("2024-01-01T06:30", "s")) == "2024-01-01T06:30"
    days = [TIME + 24 * HOUR * day for day in range(9)]
    assert times_text(days[:2]) == "2024-01-01T06, 2024-01-02T06"
    assert times_text(days) == (
        "2024-01-01T06, 2024-01-02T06, 2024-01-03T06, ... 2024-01-07T06, 2024-01-08T06, 2024-01-09T06 (9 times)"
    )
