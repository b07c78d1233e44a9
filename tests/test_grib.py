"""Reading GRIB: which variable a message is, its time, its units, and the order of its rows."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cfgrib
import eccodes
import numpy as np
import pytest
from weather import LAT, LEVELS, LON, TIME, channels, encode, encode_multi, weather, write_grib

from wm2cli.errors import DataError
from wm2cli.reading.fields import Inventory, SourceFile
from wm2cli.reading.grib import name_of, open_grib
from wm2cli.reading.messages import Memory, split

SIX_HOURS = np.timedelta64(6, "h")


def opened(tmp_path: Path, *messages: bytes) -> Inventory:
    path = tmp_path / "some.grib"
    path.write_bytes(b"".join(messages))
    return open_grib(SourceFile(path, path.name))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """To the precision of 24-bit packing and of float32."""
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= np.ptp(expected) * 2.0**-22 + np.abs(expected).max() * 2.0**-23


@pytest.mark.parametrize(
    ("style", "more"),
    [
        ("era5", {}),
        ("gfs", {}),
        ("gfs", {"packing": "grid_complex_spatial_differencing"}),
        ("gfs", {"packing": "grid_complex"}),
        ("era5", {"packing": "grid_second_order"}),
        ("ifs", {"packing": "grid_jpeg"}),
        ("ifs", {"packing": "grid_ieee"}),
        ("ifs", {"packing": "grid_ccsds", "from_lon": 180.0}),
        ("ifs", {"packing": "grid_ccsds"}),
    ],
)
def test_every_variable_of_every_centre(tmp_path: Path, style: str, more: dict[str, Any]) -> None:
    path = write_grib(tmp_path / "a.grib", style=style, **more)
    inventory = open_grib(SourceFile(path, "a.grib"))
    assert inventory.times() == (TIME,)
    assert not inventory.ignored
    assert not inventory.problems
    assert [(field.variable, field.level) for field in inventory.fields] == channels()
    for field in inventory.fields:
        assert field.axes.lat.tolist() == LAT.tolist()
        assert field.axes.lon.tolist() == LON.tolist()
        assert_close(field.read(), weather(field.variable, field.level))


ORDERS: list[dict[str, Any]] = [
    {"south_first": True}, {"from_lon": 180.0}, {"from_lon": 90.0, "south_first": True}, {"east_first": True},
    {"by_column": True}, {"by_column": True, "south_first": True, "from_lon": 5.0},
    {"east_first": True, "south_first": True, "from_lon": 180.0},
]  # fmt: skip


@pytest.mark.parametrize("style", ["era5", "ifs"])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(order))
def test_the_order_of_points_changes_no_bit(tmp_path: Path, style: Any, order: dict[str, Any]) -> None:
    plain = opened(tmp_path, encode("t", 500, style=style)).fields[0].read()
    field = opened(tmp_path, encode("t", 500, style=style, **order)).fields[0]
    np.testing.assert_array_equal(field.read(), plain)
    assert field.axes.lat.tolist() == LAT.tolist()
    assert field.axes.lon.tolist() == LON.tolist()


def test_rows_that_run_to_and_fro(tmp_path: Path) -> None:
    plain = opened(tmp_path, encode("t", 500, style="ifs")).fields[0].read()
    snake = opened(tmp_path, encode("t", 500, style="ifs", alternating=True)).fields[0].read()
    np.testing.assert_array_equal(snake, plain)


def test_decoding_agrees_with_cfgrib(tmp_path: Path) -> None:
    what = [(name, level) for name, level in channels() if level is not None]
    path = write_grib(tmp_path / "a.grib", what, style="era5")
    dataset = cfgrib.open_dataset(str(path), indexpath="")
    for field in open_grib(SourceFile(path, "a.grib")).fields:
        assert field.level is not None
        theirs = dataset[field.variable].sel(isobaricInhPa=field.level).values
        np.testing.assert_array_equal(field.read(), theirs.astype(np.float32))


def test_opening_decodes_nothing_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_grib(tmp_path / "a.grib", style="era5")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(eccodes, "codes_get_double_array", refuse)
    monkeypatch.setattr(eccodes, "codes_get_values", refuse)
    assert len(open_grib(SourceFile(path, "a.grib")).fields) == len(channels())
    assert os.listdir(tmp_path) == ["a.grib"]


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    path = write_grib(tmp_path / "a.grib", style="gfs", packing="grid_complex_spatial_differencing")
    fields = open_grib(SourceFile(path, "a.grib")).fields
    alone = [field.read() for field in fields]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(alone, pool.map(lambda field: field.read(), fields), strict=True):
            np.testing.assert_array_equal(one, other)


def test_both_winds_in_one_message(tmp_path: Path) -> None:
    data = encode_multi(tmp_path / "m", [encode("u", 500, style="gfs"), encode("v", 500, style="gfs")])
    found = opened(tmp_path, data, encode("t", 500, style="gfs")).fields
    assert [field.label for field in found] == ["u500", "v500", "t500"]
    assert [field.origin for field in found[:2]] == ["some.grib message 1 field 1", "some.grib message 1 field 2"]
    for field in found:
        assert_close(field.read(), weather(field.variable, 500))


def test_levels_in_pascal(tmp_path: Path) -> None:
    found = opened(tmp_path, encode("t", 0.5, weather("t", 100), style="ifs"), encode("t", 10, style="ifs"))
    assert found.levels("t") == (0.5, 10.0)


def test_a_constant_field_has_its_value_everywhere(tmp_path: Path) -> None:
    message = encode("tcc", None, np.full((LAT.size, LON.size), 0.25), style="era5")
    assert len(message) < 200
    values = opened(tmp_path, message).fields[0].read()
    assert values.shape == (LAT.size, LON.size)
    assert (values == 0.25).all()


@pytest.mark.parametrize("style", ["era5", "gfs", "ifs"])
def test_missing_points_are_counted(tmp_path: Path, style: Any) -> None:
    values = weather("t", 500)
    values[10, 20:23] = np.nan
    field = opened(tmp_path, encode("t", 500, values, style=style, from_lon=180.0)).fields[0]
    with pytest.raises(DataError, match=r"t500 has 3 missing values of 2664 \(some.grib message 1\)"):
        field.read()
    assert np.isnan(field.read(allow_missing=True)[10, 20:23]).all()
    assert np.count_nonzero(np.isnan(field.read(allow_missing=True))) == 3


def test_points_that_the_packing_itself_marks_as_missing(tmp_path: Path) -> None:
    """Complex packing with missing value management 1: the highest number of a group stands for no value."""
    message = bytearray(encode("t", 500, style="gfs", packing="grid_complex", bits=12))
    packing = next(part for part in split(Memory("", bytes(message)))[0][0].sections if part.number == 5)
    message[packing.offset + 22] = 1
    field = opened(tmp_path, bytes(message)).fields[0]
    with pytest.raises(DataError, match=r"t500 has [0-9]+ missing values of 2664"):
        field.read()


def test_gaussian_rows_are_read_from_their_number(tmp_path: Path) -> None:
    handle = eccodes.codes_grib_new_from_samples("regular_gg_pl_grib2")
    eccodes.codes_set(handle, "paramId", 130)
    size = eccodes.codes_get_size(handle, "values")
    rows = np.array(eccodes.codes_get_array(handle, "distinctLatitudes"))
    values = np.linspace(200, 300, size)
    eccodes.codes_set_values(handle, values)
    field = opened(tmp_path, eccodes.codes_get_message(handle)).fields[0]
    eccodes.codes_release(handle)
    np.testing.assert_allclose(field.axes.lat, rows, atol=1e-6)
    assert field.axes.shape == (rows.size, size // rows.size)
    assert field.axes.issues() == []
    assert np.abs(field.read().ravel() - values).max() < 0.01


@pytest.mark.parametrize("sample", ["reduced_gg_pl_32_grib2", "sh_pl_grib2", "reduced_gg_pl_32_grib1"])
def test_other_grids_are_refused_by_name(tmp_path: Path, sample: str) -> None:
    handle = eccodes.codes_grib_new_from_samples(sample)
    eccodes.codes_set(handle, "paramId", 130)
    kind = eccodes.codes_get(handle, "gridType")
    inventory = opened(tmp_path, eccodes.codes_get_message(handle))
    eccodes.codes_release(handle)
    assert inventory.fields == ()
    assert inventory.problems["t"] == (
        f"some.grib: t is on a grid of type {kind}; regular_ll and regular_gg can be read (1 messages)",
    )


def test_thirds_of_a_degree_go_round_the_globe(tmp_path: Path) -> None:
    """Edition 1 keeps thousandths of a degree, and a third is known no better."""
    lat, lon = np.linspace(90, -90, 10), np.arange(36) * 10.0
    message = encode("t", 500, weather("t", 500, lat, lon), lat=lat, lon=lon,
                     keys={"longitudeOfLastGridPoint": 350001})  # fmt: skip
    assert opened(tmp_path, message).fields[0].axes.lon.tolist() == lon.tolist()


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    lon = np.arange(0.0, 361.0, 5.0)
    inventory = opened(tmp_path, encode("t", 500, weather("t", 500, LAT, lon), lon=lon, style="ifs",
                                        keys={"longitudeOfLastGridPoint": 360000000}))  # fmt: skip
    assert "name the same meridian twice" in inventory.problems["t"][0]


# Times and windows.


def test_steps_lead_to_the_valid_time(tmp_path: Path) -> None:
    for style in ("era5", "gfs", "ifs"):
        field = opened(tmp_path, encode("t", 500, style=style, step=18)).fields[0]
        assert field.valid_time == TIME
        assert field.base_time == TIME - 3 * SIX_HOURS


def test_minutes_count(tmp_path: Path) -> None:
    field = opened(
        tmp_path,
        encode(
            "t",
            500,
            style="gfs",
            time=np.datetime64("2024-01-01T00:45", "s"),
            keys={
                "dataDate": 20240101,
                "dataTime": 0,
                "stepUnits": "m",
                "endStep": 45,
            },
        ),
    ).fields[0]
    assert field.valid_time == np.datetime64("2024-01-01T00:45")


def test_sums_have_their_window(tmp_path: Path) -> None:
    bucket = encode("tp", None, style="gfs", step=6, window=("sum", 6))
    hour = encode("tp", None, style="gfs", step=6, window=("sum", 1))
    total = encode("tp", None, style="gfs", step=18, window=("sum", 18))
    inventory = opened(tmp_path, bucket, hour, total)
    assert [field.window_hours for field in inventory.fields] == [6.0, 1.0, 18.0]
    assert {field.statistic for field in inventory.fields} == {"sum"}
    assert inventory.find("tp_6h") == inventory.fields[:1]
    assert inventory.find("tp") == inventory.fields[1:2]
    assert_close(inventory.fields[0].read(), weather("tp"))


def test_era5_sums_over_an_hour(tmp_path: Path) -> None:
    field = opened(tmp_path, encode("tp", None, style="era5", step=7, window=("sum", 1))).fields[0]
    assert (field.statistic, field.window_hours, field.valid_time) == ("sum", 1.0, TIME)


def test_extremes(tmp_path: Path) -> None:
    usual = encode("mx2t", None, style="gfs", step=6, window=("maximum", 6))
    old = encode("mn2t", None, style="gfs", step=6, window=("minimum", 6), keys={"typeOfStatisticalProcessing": 255})
    era5 = encode("mx2t", None, style="era5", step=7, window=("maximum", 1))
    inventory = opened(tmp_path, usual, old, era5)
    assert [(f.variable, f.statistic, f.window_hours) for f in inventory.fields] == [
        ("mx2t", "maximum", 6.0), ("mn2t", "minimum", 6.0), ("mx2t", "maximum", 1.0),
    ]  # fmt: skip
    assert [field.origin for field in inventory.find("mx2t")] == ["some.grib message 3"]


def test_a_mean_is_not_the_field_itself(tmp_path: Path) -> None:
    inventory = opened(tmp_path, encode("tcc", None, style="gfs", step=6, window=("mean", 6)))
    assert inventory.find("tcc") == ()
    (mean,) = inventory.find("tcc", statistic="mean")
    assert mean.window_hours == 6.0
    assert_close(mean.read(), weather("tcc"))


def test_a_window_without_its_statistic_is_refused(tmp_path: Path) -> None:
    message = encode("t2m", None, style="gfs", step=6, window=("mean", 6), keys={"typeOfStatisticalProcessing": 255})
    inventory = opened(tmp_path, message)
    assert inventory.fields == ()
    assert "is given as 'instant' over 6 h, which is not understood" in inventory.problems["t2m"][0]


# What is none of ours.


def test_look_alikes(tmp_path: Path) -> None:
    low_cloud = encode("tcc", None, style="gfs", keys={"typeOfFirstFixedSurface": 214})
    eighty = encode("u100", None, style="gfs", keys={"scaledValueOfFirstFixedSurface": 80})
    tropopause = encode("t2m", None, style="gfs", keys={"typeOfFirstFixedSurface": 7})
    eta = encode("mslet", None, weather("msl"), style="gfs")
    inventory = opened(tmp_path, low_cloud, eighty, tropopause, eta, encode("msl", None, style="gfs"))
    assert [field.variable for field in inventory.fields] == ["msl"]
    assert inventory.fields[0].origin == "some.grib message 5"
    assert inventory.ignored == {"tcc on lowCloudLayer": 1, "u on heightAboveGround": 1, "t on tropopause": 1,
                                 "mslet on meanSea": 1}  # fmt: skip


def test_names_by_number() -> None:
    def name(*key: Any) -> str | None:
        match = name_of(*key)
        return None if match is None else match[0].name

    assert name(129, "isobaricInhPa", 500) == "z"
    assert name(129, "surface", 0) == "orog"
    assert name(156, "isobaricInPa", 50) == "z"
    assert name(131, "heightAboveGround", 100) == "u100"
    assert name(131, "heightAboveGround", 80) is None
    assert name(228246, "surface", 0) == "u100"
    assert name(228, "surface", 0) == "tp"
    assert name(99999, "surface", 0) is None


def test_model_levels_are_refused_by_name(tmp_path: Path) -> None:
    message = encode("t", 500, style="ifs", keys={"typeOfLevel": "hybrid", "level": 60})
    inventory = opened(tmp_path, message, message)
    assert inventory.problems["t"] == ("some.grib: t is on model levels (hybrid), not on pressure levels (2 messages)",)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"type": "em"}, "is the mean or spread of an ensemble"),
        ({"type": "es"}, "is the mean or spread of an ensemble"),
        ({"stream": "moda"}, "is a monthly mean (stream moda)"),
    ],
)
def test_what_is_no_state_is_refused(tmp_path: Path, keys: dict[str, Any], reason: str) -> None:
    inventory = opened(tmp_path, encode("t", 500, style="era5", keys=keys))
    assert inventory.fields == ()
    assert reason in inventory.problems["t"][0]


def test_members_and_versions(tmp_path: Path) -> None:
    members = [encode("t", 500, style="era5", member=number) for number in (0, 3)]
    inventory = opened(tmp_path, *members, encode("t", 700, style="era5", keys={"experimentVersionNumber": "0005"}))
    assert [field.member for field in inventory.fields] == [0, 3, None]
    assert [field.version for field in inventory.fields] == ["0001", "0001", "0005"]


# Damage.


def test_damaged_data_are_a_data_error(tmp_path: Path) -> None:
    message = bytearray(encode("t", 500, style="ifs", packing="grid_ccsds"))
    packing = next(part for part in split(Memory("", bytes(message)))[0][0].sections if part.number == 5)
    message[packing.offset + 19] = 200
    field = opened(tmp_path, bytes(message)).fields[0]
    with pytest.raises(DataError, match=r"some\.grib message 1 has packing that cannot be \(200 bits a value"):
        field.read()


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    inventory = opened(tmp_path, encode("t", 500))
    (tmp_path / "some.grib").write_bytes(encode("t", 500) * 2)
    with pytest.raises(DataError, match=r"some.grib changed while it was being read"):
        inventory.fields[0].read()
    (tmp_path / "some.grib").unlink()
    with pytest.raises(DataError, match=r"cannot read some\.grib"):
        inventory.fields[0].read()


def test_inventory_of_many_levels(tmp_path: Path) -> None:
    inventory = opened(tmp_path, *(encode("t", level, weather("t", 500)) for level in LEVELS))
    assert inventory.levels("t", TIME) == tuple(map(float, LEVELS))
    assert inventory.levels("t", TIME + SIX_HOURS) == ()
