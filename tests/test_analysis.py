"""From files to the fields a model starts from: equal bits where nothing is to be done, a note where
something is, and one error that lists everything where it cannot be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr
from weather import (
    GROUND,
    LAT,
    LEVELS,
    LON,
    SCHEMA,
    TIME,
    UPPER,
    channels,
    encode,
    weather,
    write_cds_new,
    write_cds_old,
    write_grib,
)

from wm2cli.analysis.preparation import Analysis, prepare, read_static
from wm2cli.analysis.thermodynamics import (
    dewpoint,
    pressure_below,
    saturation_over_water,
    specific_humidity,
    vapour_pressure,
)
from wm2cli.errors import DataError
from wm2cli.grid import Grid
from wm2cli.reading.inputs import open_files
from wm2cli.reading.messages import Memory, split
from wm2cli.schema import GRAVITY, Schema

GRID = Grid(LAT, LON)
HOUR = np.timedelta64(1, "h")
UPPER_AIR = Schema(UPPER, LEVELS, ())


def made(tmp_path: Path, *messages: bytes, schema: Schema = SCHEMA, grid: Grid = GRID, **options: Any) -> Analysis:
    """What `prepare` makes of a file with these messages."""
    path = tmp_path / "some.grib"
    path.write_bytes(b"".join(messages))
    return prepare(open_files([path]), schema, TIME, grid, **options)


def refused(tmp_path: Path, *messages: bytes, **options: Any) -> DataError:
    """The error it makes of them."""
    with pytest.raises(DataError) as caught:
        made(tmp_path, *messages, **options)
    assert caught.value.exit_code == 3
    return caught.value


def messages(what: Iterable[tuple[str, float | None]], **how: Any) -> list[bytes]:
    return [encode(name, level, **how) for name, level in what]


def without(*labels: str) -> list[tuple[str, float | None]]:
    """All channels but some."""
    return [
        (n, level)
        for n, level in channels()
        if f"{n}{'' if level is None else level}" not in labels and n not in labels
    ]


def field(analysis: Analysis, name: str, level: float | None = None) -> np.ndarray:
    """(H, W) of the result."""
    values = analysis.dataset[name][0]
    return np.asarray((values if level is None else values.sel(level=level)).values)


def assert_is_weather(analysis: Analysis, what: Iterable[tuple[str, float | None]], tolerance: float) -> None:
    """All fields are what they should be, to a share of their own span."""
    for name, level in what:
        expected = weather(name, level)
        off = np.abs(field(analysis, name, level) - expected).max()
        assert off <= tolerance * np.ptp(expected) + 1e-6 * np.abs(expected).max(), (name, level, off)


# What is simply there.


@pytest.mark.parametrize(
    ("style", "more"),
    [("era5", {}), ("gfs", {}), ("ifs", {"from_lon": 180.0, "packing": "grid_ccsds"}), ("gfs", {"south_first": True})],
)
def test_a_complete_analysis(tmp_path: Path, style: Any, more: dict[str, Any]) -> None:
    analysis = made(tmp_path, *messages(channels(), style=style, **more))
    assert SCHEMA.issues_with(analysis.dataset) == []
    assert analysis.notes == ()
    assert analysis.files[0][0].endswith("some.grib")
    assert len(analysis.files[0][1]) == 64
    assert analysis.dataset["z"].dims == ("time", "level", "latitude", "longitude")
    assert analysis.dataset["z"].dtype == np.float32
    assert analysis.dataset["time"].values[0] == TIME
    assert analysis.dataset["latitude"].values.tolist() == LAT.tolist()
    assert_is_weather(analysis, channels(), 1e-6)


def test_the_order_of_everything_changes_no_bit(tmp_path: Path) -> None:
    plain = made(tmp_path, *messages(channels(), style="ifs"))
    mixed = [
        encode(name, level, style="ifs", from_lon=180.0 if number % 2 else 0.0, south_first=number % 3 == 0)
        for number, (name, level) in enumerate(reversed(channels()))
    ]
    xr.testing.assert_identical(made(tmp_path, *mixed).dataset, plain.dataset)


def test_upper_air_and_ground_from_different_files(tmp_path: Path) -> None:
    upper = write_cds_new(tmp_path / "u.nc", UPPER)
    ground = write_grib(tmp_path / "g.grib", [(name, None) for name in GROUND])
    analysis = prepare(open_files([upper, ground]), SCHEMA, TIME, GRID)
    assert [Path(name).name for name, _ in analysis.files] == ["u.nc", "g.grib"]
    assert_is_weather(analysis, channels(), 1e-6)


def test_only_files_that_were_read_are_named(tmp_path: Path) -> None:
    upper = write_cds_new(tmp_path / "u.nc", UPPER)
    other = write_grib(tmp_path / "g.grib", [("t2m", None)])
    analysis = prepare(open_files([upper, other]), UPPER_AIR, TIME, GRID)
    assert [Path(name).name for name, _ in analysis.files] == ["u.nc"]


def test_one_time_of_many(tmp_path: Path) -> None:
    times = [TIME - HOUR, TIME, TIME + HOUR]
    path = write_cds_old(tmp_path / "o.nc", (*UPPER, *GROUND), times=times, packed=False)
    assert_is_weather(prepare(open_files([path]), SCHEMA, TIME, GRID), channels(), 1e-6)


def test_windowed_fields_need_their_window(tmp_path: Path) -> None:
    schema = Schema((), (), ("t2m", "tp_6h"))
    six, one = (encode("tp", None, style="gfs", step=6, window=("sum", hours)) for hours in (6, 1))
    t2m = encode("t2m", None, style="gfs", step=6)
    assert_is_weather(made(tmp_path, t2m, six, one, schema=replace(schema, surface=("t2m",))), [("t2m", None)], 1e-6)
    np.testing.assert_allclose(field(made(tmp_path, t2m, six, one, schema=schema), "tp_6h"), weather("tp"), rtol=1e-3)
    error = refused(tmp_path, t2m, one, schema=schema)
    assert error.problems == ("tp_6h (Total precipitation, 6 h) is missing; there is: sum over 1 h",)


# Notes.


def test_forecasts_are_no_analysis(tmp_path: Path) -> None:
    notes = made(tmp_path, *messages(channels(), step=12)).notes
    assert notes == (f"not an analysis: {' '.join((*UPPER, *GROUND))} are a 12 h forecast from 2023-12-31T18",)


def test_the_analysis_goes_before_forecasts(tmp_path: Path) -> None:
    schema = Schema(("t",), (500,), ())
    late = encode("t", 500, weather("t", 500) + 3, step=6)
    analysis = made(tmp_path, late, encode("t", 500), schema=schema)
    assert_is_weather(analysis, [("t", 500)], 1e-6)
    assert analysis.notes == ("t: forecasts for the same time were left aside, the analysis was taken",)


def test_preliminary_era5_and_members_are_noted(tmp_path: Path) -> None:
    schema = Schema(("t", "u"), (500,), ())
    two = encode("t", 500, keys={"experimentVersionNumber": "0005"}), encode("u", 500, member=4)
    assert made(tmp_path, *two, schema=schema).notes == (
        "preliminary ERA5T (expver 0005): t",
        "ensemble member 4: u",
    )
    path = write_cds_new(tmp_path / "n.nc", ("t",), expver="0005")
    notes = prepare(open_files([path]), Schema(("t",), LEVELS, ()), TIME, GRID).notes
    assert notes == ("preliminary ERA5T (expver 0005): t",)


def test_packing_noise_is_clipped_and_counted(tmp_path: Path) -> None:
    q, tcc = weather("q", 500), weather("tcc")
    q[3, 4:6], tcc[0, 0], tcc[1, 1] = -1e-6, 1.001, -0.001
    analysis = made(tmp_path, *messages(without("q500", "tcc")), encode("q", 500, q), encode("tcc", None, tcc))
    assert field(analysis, "q").min() == 0.0
    assert field(analysis, "tcc").max() == 1.0
    assert analysis.notes == (
        "q500: 2 values beyond 0 set to it (up to -1e-06)",
        "tcc: 1 values beyond 0 set to it (up to -0.001)",
        "tcc: 1 values beyond 1 set to it (up to 1.001)",
    )


def test_equal_fields_count_as_one(tmp_path: Path) -> None:
    analysis = made(tmp_path, *messages(channels()), encode("t", 500))
    assert len(analysis.notes) == 1
    assert analysis.notes[0].startswith("t500 is there 2 times with equal values (some.grib message ")


# Levels.


def test_levels_between_are_interpolated(tmp_path: Path) -> None:
    schema = Schema(("z", "t"), (400, 500, 600), ())
    analysis = made(tmp_path, *messages([(n, level) for n in "zt" for level in (300, 500, 700)]), schema=schema)
    share = np.log(600 / 500) / np.log(700 / 500)
    for name in "zt":
        expected = weather(name, 500) * (1 - share) + weather(name, 700) * share
        np.testing.assert_allclose(field(analysis, name, 600), expected, rtol=1e-6)
        np.testing.assert_allclose(field(analysis, name, 500), weather(name, 500), rtol=1e-6)
    assert analysis.notes == ("z t: 400 600 hPa interpolated linearly in ln p from 300 500 700 hPa",)


def test_levels_beyond_are_refused_unless_asked_for(tmp_path: Path) -> None:
    schema = Schema(("z", "t", "u"), (100, 500, 1000), ())
    data = messages([(n, level) for n in "ztu" for level in (200, 500, 850)])
    error = refused(tmp_path, *data, schema=schema)
    assert error.problems == ("z t u: 100 1000 hPa missing, beyond the levels there are (200 to 850 hPa)",)
    assert error.hint == "--extrapolate goes beyond the levels there are"
    analysis = made(tmp_path, *data, schema=schema, extrapolate=True)
    assert analysis.notes == ("z t u: 100 1000 hPa extrapolated from 200 850 hPa",)
    np.testing.assert_array_equal(
        field(analysis, "u", 100), np.float32(weather("u", 200)) * 0 + field(analysis, "u", 100)
    )
    np.testing.assert_allclose(field(analysis, "u", 1000), weather("u", 850), atol=1e-4)
    warmer = weather("t", 850) * (1000 / 850) ** (287.0597 * 0.0065 / GRAVITY)
    np.testing.assert_allclose(field(analysis, "t", 1000), warmer, rtol=1e-6)
    lower = weather("z", 850) - (warmer - weather("t", 850)) * GRAVITY / 0.0065
    np.testing.assert_allclose(field(analysis, "z", 1000), lower, atol=1.0)


def test_extrapolating_geopotential_needs_temperature(tmp_path: Path) -> None:
    schema = Schema(("z",), (500, 1000), ())
    error = refused(tmp_path, *messages([("z", 500), ("z", 850)]), schema=schema, extrapolate=True)
    assert error.problems == ("z cannot be extrapolated to 1000 hPa without t at 850 hPa",)


def test_one_level_of_one_variable_missing(tmp_path: Path) -> None:
    data = messages(without("t500"))
    error = refused(tmp_path, *data)
    assert error.problems == ("t: 500 hPa missing, which z u v q have",)
    assert error.hint == "--derive fills holes from the levels around them"
    assert made(tmp_path, *data, derive=True).notes == (
        "t: 500 hPa missing although other variables have it; interpolated linearly in ln p from the levels around",
    )


# Humidity.


def test_specific_humidity_from_relative(tmp_path: Path) -> None:
    r = weather("r", 300)
    r[4, 5] = -0.02
    data = [*messages(without("q300", "q700")), encode("r", 300, r, style="ifs"), encode("r", 700, style="ifs")]
    analysis = made(tmp_path, *data)
    np.testing.assert_allclose(
        field(analysis, "q", 700), specific_humidity(weather("r", 700), weather("t", 700), 7e4), rtol=2e-5
    )
    assert field(analysis, "q", 300)[4, 5] == 0.0
    np.testing.assert_allclose(field(analysis, "q", 500), weather("q", 500), rtol=1e-5)
    assert analysis.notes[0].startswith("q: from relative humidity at 300 700 hPa: q = 0.622 e / (p - 0.378 e)")
    assert "IFS Cy47r3 Part IV" in analysis.notes[0]
    assert analysis.notes[1:] == ("r300: 1 values beyond 0 set to it (up to -0.02)",)


def test_relative_humidity_needs_temperature(tmp_path: Path) -> None:
    schema = Schema(("q",), (500,), ())
    error = refused(tmp_path, encode("r", 500), encode("t", 700), schema=schema)
    assert error.problems == ("q (Specific humidity) is missing on all levels",)


# Derived fields.


def test_what_can_be_derived_is_said(tmp_path: Path) -> None:
    data = messages(
        [*without("d2m", "u100", "v100", "msl", "tcc"), ("r2m", None), ("orog", None), ("sp", None)], style="gfs"
    )
    error = refused(tmp_path, *data, encode("tcc", None, style="gfs", step=6, window=("mean", 6)))
    assert error.problems == (
        "d2m (2 metre dewpoint temperature) is missing; --derive makes it from r2m, t2m",
        "u100 (100 metre eastward wind) is missing; --derive makes it from u10, u on levels, z on levels, orog",
        "v100 (100 metre northward wind) is missing; --derive makes it from v10, v on levels, z on levels, orog",
        "msl (Mean sea level pressure) is missing; --derive makes it from sp, t2m, orog",
        "tcc (Total cloud cover) is missing; --derive makes it from tcc mean",
    )
    assert error.hint == "--derive makes what others determine"


def test_what_lacks_for_a_derivation_is_said(tmp_path: Path) -> None:
    error = refused(tmp_path, *messages(without("d2m")), derive=True)
    assert error.problems == (
        "d2m (2 metre dewpoint temperature) is missing; could be derived from r2m, t2m if r2m were there; "
        "could be derived from q2m, sp if q2m, sp were there",
    )


def test_dewpoint(tmp_path: Path) -> None:
    schema = Schema((), (), ("t2m", "d2m"))
    r2m = weather("r2m")
    r2m[2, 3] = 0.0
    analysis = made(tmp_path, encode("t2m"), encode("r2m", None, r2m, style="gfs"), schema=schema, derive=True)
    expected = dewpoint(np.maximum(r2m, 1e-3) * saturation_over_water(weather("t2m")))
    np.testing.assert_allclose(field(analysis, "d2m"), expected, atol=2e-3)
    assert analysis.notes[0].startswith("d2m derived from r2m, t2m: dewpoint over water")
    assert "r2m: 1 values beyond 0.001 set to it (up to 0)" in analysis.notes
    other = made(
        tmp_path, *messages([("t2m", None), ("q2m", None), ("sp", None)], style="gfs"), schema=schema, derive=True
    )
    expected = dewpoint(vapour_pressure(weather("q2m"), weather("sp")))
    np.testing.assert_allclose(field(other, "d2m"), expected, atol=2e-3)


def ground_and_levels(wind: float, height: float) -> list[bytes]:
    """Wind 4 m/s at 10 m; two levels, `height` and 500 m above the ground at 50 m, wind as given at the lower."""
    flat = np.ones((LAT.size, LON.size))
    return [
        encode("u10", None, 4 * flat), encode("orog", None, 50 * flat, style="ifs"),
        encode("z", 1000, GRAVITY * (50 + height) * flat), encode("z", 950, GRAVITY * 550 * flat),
        encode("u", 1000, wind * flat), encode("u", 950, 20 * flat),
    ]  # fmt: skip


def test_wind_at_100_metres_is_logarithmic(tmp_path: Path) -> None:
    schema = Schema((), (), ("u100",))
    for wind, height, expected in (
        (9.0, 100.0, 9.0),  # the level is at 100 m
        (10.0, 1000.0 / 10, 10.0),
        (8.0, 400.0, 4 + 4 * np.log(10) / np.log(40)),
        (8.0, 60.0, 4 + 16 * np.log(10) / np.log(50)),  # the lower level is below 100 m: the other one counts
        (8.0, -30.0, 4 + 16 * np.log(10) / np.log(50)),  # and also when it is under the ground
    ):
        analysis = made(tmp_path, *ground_and_levels(wind, height), schema=schema, derive=True)
        np.testing.assert_allclose(field(analysis, "u100"), expected, rtol=1e-4)


def test_orography_can_come_from_elsewhere(tmp_path: Path) -> None:
    schema = Schema((), (), ("u100",))
    data = [message for number, message in enumerate(ground_and_levels(8.0, 400.0)) if number != 1]
    assert "if orog were there" in refused(tmp_path, *data, schema=schema, derive=True).problems[0]
    coarse = Grid.regular(10)
    static = xr.Dataset({"orog": (("latitude", "longitude"), np.full(coarse.shape, 50.0))},
                        {"latitude": coarse.lat, "longitude": coarse.lon})  # fmt: skip
    analysis = made(tmp_path, *data, schema=schema, derive=True, static=static)
    np.testing.assert_allclose(field(analysis, "u100"), 4 + 4 * np.log(10) / np.log(40), rtol=1e-4)
    assert "orography for derived fields was regridded to the grid of the data" in analysis.notes


def test_no_level_above_100_metres(tmp_path: Path) -> None:
    flat = np.ones((LAT.size, LON.size))
    data = [
        encode("u10", None, flat),
        encode("orog", None, 50 * flat, style="ifs"),
        encode("z", 1000, GRAVITY * 90 * flat),
        encode("u", 1000, flat),
    ]
    error = refused(tmp_path, *data, schema=Schema((), (), ("u100",)), derive=True)
    assert error.problems == ("u100 has 2664 missing or infinite values of 2664 (made from other fields)",)


def test_pressure_at_sea_level(tmp_path: Path) -> None:
    schema = Schema((), (), ("msl",))
    sp = weather("sp") * 0.95
    ground = made(
        tmp_path, encode("sp", None, sp), encode("t2m"), encode("orog", style="ifs"), schema=schema, derive=True
    )
    np.testing.assert_allclose(field(ground, "msl"), pressure_below(sp, weather("t2m"), weather("orog")), rtol=1e-6)
    level = made(tmp_path, encode("z", 1000), encode("t", 1000), schema=schema, derive=True)
    expected = pressure_below(1e5, weather("t", 1000), weather("z", 1000) / GRAVITY)
    np.testing.assert_allclose(field(level, "msl"), expected, rtol=1e-6)
    assert "msl derived from z1000, t1000" in level.notes[0]


def test_cloud_from_its_mean(tmp_path: Path) -> None:
    schema = Schema((), (), ("t2m", "tcc"))
    windows = [
        encode("tcc", None, weather("tcc") / hours, style="gfs", step=12, window=("mean", hours)) for hours in (12, 6)
    ]
    analysis = made(tmp_path, encode("t2m"), *windows, schema=schema, derive=True)
    np.testing.assert_allclose(field(analysis, "tcc"), weather("tcc") / 6, atol=1e-6)
    assert "tcc: the mean is over 6 h" in analysis.notes


# Grids.


def test_another_grid_is_regridded_and_noted(tmp_path: Path) -> None:
    target = Grid.regular(10)
    analysis = made(tmp_path, *messages(channels(), style="ifs"), grid=target)
    assert analysis.dataset["t2m"].shape == (1, *target.shape)
    expected = GRID.regrid_to(target, np.float32(weather("t", 500)))
    np.testing.assert_allclose(field(analysis, "t", 500), expected, atol=1e-3)
    assert analysis.notes == (f"regridded conservatively from {GRID.describe()} to {target.describe()}",)
    assert SCHEMA.issues_with(analysis.dataset) == []


def test_a_regional_file_is_refused(tmp_path: Path) -> None:
    lat, lon = np.linspace(60, 30, 13), np.arange(0, 41, 2.5)
    data = [encode("t", level, weather("t", level, lat, lon), lat=lat, lon=lon) for level in LEVELS]
    error = refused(tmp_path, *data, schema=Schema(("t",), LEVELS, ()))
    assert len(error.problems) == 1
    assert error.problems[0].startswith("t on 13x17, latitude 60 to 30, longitude 0 to 40: latitude 30 to 60 does not")
    assert "a regional file" in error.problems[0]


def test_fields_on_different_grids_are_refused(tmp_path: Path) -> None:
    lat, lon = np.linspace(90, -90, 19), np.arange(0, 360, 10.0)
    coarse = encode("t2m", None, weather("t2m", None, lat, lon), lat=lat, lon=lon)
    error = refused(tmp_path, *messages(without("t2m")), coarse)
    assert error.problems[0].endswith(
        "on a grid of 37x72, latitude 90 to -90, longitude 0 to 355; all must be on the same"
    )
    assert error.problems[1].startswith("t2m: on a grid of 19x36")


# What is wrong, all of it at once.


def test_a_time_that_is_not_there(tmp_path: Path) -> None:
    error = refused(tmp_path, *messages(channels(), time=TIME + HOUR), *messages(channels(), time=TIME + 2 * HOUR))
    assert error.message == "no fields for 2024-01-01T06 in some.grib"
    assert error.problems == ("there are: 2024-01-01T07, 2024-01-01T08",)
    assert error.hint is not None
    assert "--init" in error.hint


def test_a_variable_that_is_there_for_another_time(tmp_path: Path) -> None:
    error = refused(
        tmp_path, *messages(without("t2m")), encode("t2m", time=TIME + HOUR), encode("t2m", time=TIME + 2 * HOUR)
    )
    assert error.problems == ("t2m (2 metre temperature) is missing; it is there for 2024-01-01T07 and 1 other times",)


def test_nothing_that_is_known(tmp_path: Path) -> None:
    error = refused(tmp_path, encode("mslet", values=weather("msl"), style="gfs"))
    assert error.message == "no usable fields in some.grib"
    assert error.problems == ("not used: mslet on meanSea",)
    only_static = refused(tmp_path, encode("lsm"))
    assert only_static.message == "no usable fields in some.grib"


def test_missing_values_are_counted(tmp_path: Path) -> None:
    t, t2m = weather("t", 500), weather("t2m")
    t[0, :3] = t2m[5, 5] = np.nan
    error = refused(tmp_path, *messages(without("t500", "t2m")), encode("t", 500, t), encode("t2m", None, t2m))
    assert sorted(error.problems) == [
        "t2m has 1 missing or infinite values of 2664 (some.grib message 38)",
        "t500 has 3 missing or infinite values of 2664 (some.grib message 37)",
    ]


def test_wrong_units_show_in_the_values(tmp_path: Path) -> None:
    heights = encode("z", 500, weather("z", 500) / GRAVITY)
    celsius = encode("t2m", None, weather("t2m") - 273.15)
    percent = encode("tcc", None, 100 * weather("tcc"))
    error = refused(tmp_path, *messages(without("z500", "t2m", "tcc")), heights, celsius, percent)
    assert len(error.problems) == 3
    assert all("wrong unit or corrupt" in line for line in error.problems)


def test_ambiguous_fields_are_refused(tmp_path: Path) -> None:
    error = refused(
        tmp_path, *messages(without("t500")), encode("t", 500, step=6), encode("t", 500, weather("t", 500) + 1, step=12)
    )
    assert error.problems == (
        "t500 is there 2 times with different values: some.grib message 38 (from 2024-01-01T00 + 6 h), "
        "some.grib message 39 (from 2023-12-31T18 + 12 h)",
    )


def test_several_members_are_refused(tmp_path: Path) -> None:
    data = [encode("t", level, member=member) for level in LEVELS for member in range(3)]
    error = refused(tmp_path, *data, schema=Schema(("t",), LEVELS, ()))
    assert error.problems == ("t is there for 3 ensemble members (0 to 2); give a file with one",)


def test_reasons_why_a_variable_could_not_be_used_are_given(tmp_path: Path) -> None:
    path = write_cds_old(tmp_path / "o.nc", (*UPPER, *GROUND), units={"t2m": "degF", "q": "lb/lb"})
    with pytest.raises(DataError) as caught:
        prepare(open_files([path]), SCHEMA, TIME, GRID)
    assert caught.value.problems == (
        "q (Specific humidity) is missing on all levels",
        "o.nc: q has the units 'lb/lb', which are not known for specific humidity (kg kg-1)",
        "t2m (2 metre temperature) is missing",
        "o.nc: t2m has the units 'degF', which are not known for 2 metre temperature (K)",
    )


def test_everything_at_once(tmp_path: Path) -> None:
    u10 = weather("u10")
    u10[0, 0] = np.nan
    data = [*messages(without("t500", "v", "d2m", "u10", "msl")), encode("u10", None, u10),
            encode("msl", None, weather("msl") / 100)]  # fmt: skip
    error = refused(tmp_path, *data)
    assert error.message == "5 problems with the fields for 2024-01-01T06 in some.grib"
    text = "\n".join(error.problems)
    for part in (
        "v (Northward wind) is missing on all levels",
        "t: 500 hPa missing",
        "d2m (2 metre dewpoint temperature)",
        "u10 has 1 missing",
        "msl spans 9",
    ):
        assert part in text


def test_a_field_that_cannot_be_decoded(tmp_path: Path) -> None:
    broken = bytearray(encode("t", 500, style="ifs", packing="grid_ccsds"))
    packing = next(part for part in split(Memory("", bytes(broken)))[0][0].sections if part.number == 5)
    broken[packing.offset + 19] = 200
    error = refused(tmp_path, *messages(without("t500")), bytes(broken))
    assert error.problems == ("some.grib message 38 has packing that cannot be (200 bits a value, 0 groups)",)


# Static fields.


def test_static_fields_of_a_schema(tmp_path: Path) -> None:
    schema = replace(SCHEMA, static=("orog", "lsm"))
    error = refused(tmp_path, *messages(channels()), schema=schema)
    assert error.problems[0] == "orog (Orography) is missing; it comes with weights or with --static"
    flat = np.zeros(GRID.shape, np.float32)
    static = xr.Dataset(dict.fromkeys(("orog", "lsm"), (("latitude", "longitude"), flat)),
                        {"latitude": LAT, "longitude": LON})  # fmt: skip
    analysis = made(tmp_path, *messages(channels()), schema=schema, static=static)
    assert schema.issues_with(analysis.dataset) == []
    other = static.assign_coords(longitude=LON + 1)
    assert "lies on another grid" in refused(tmp_path, *messages(channels()), schema=schema, static=other).problems[0]
    own = made(tmp_path, *messages(channels()), encode("orog", style="ifs"), encode("lsm"), schema=schema)
    np.testing.assert_allclose(own.dataset["lsm"].values, weather("lsm"), atol=1e-6)
    assert "lsm is from some.grib message 40" in own.notes


def test_static_fields_on_another_grid(tmp_path: Path) -> None:
    path = tmp_path / "s.grib"
    path.write_bytes(encode("orog", style="ifs") + encode("lsm") + encode("slt"))
    same = read_static(open_files([path]), GRID)
    assert set(same.data_vars) == {"orog", "lsm", "slt"}
    np.testing.assert_array_equal(same["slt"].values, weather("slt"))
    assert same["orog"].attrs["origin"] == "s.grib message 1"
    assert same.attrs["notes"] == ""
    target = Grid.regular(10, rows="cells")
    coarse = read_static(open_files([path]), target)
    np.testing.assert_allclose(coarse["orog"].values, GRID.regrid_to(target, np.float32(weather("orog"))), atol=1e-3)
    assert set(np.unique(coarse["slt"].values)) <= set(range(8))
    assert "slt: regridded to the class that covers most of a cell" in coarse.attrs["notes"]


def test_the_class_that_covers_most(tmp_path: Path) -> None:
    """Two columns of 1 and one of 7 in every cell: the mean would be 3, a soil that is not there."""
    lon = np.arange(36) * 10.0
    lat = np.linspace(90, -90, 19)
    values = np.where(np.arange(36) % 3 == 2, 7.0, 1.0) * np.ones((19, 1))
    path = tmp_path / "s.grib"
    path.write_bytes(encode("slt", None, values, lat=lat, lon=lon))
    target = Grid(lat, np.arange(12) * 30.0 + 10.0)
    assert (read_static(open_files([path]), target)["slt"].values == 1.0).all()


def test_missing_soil_is_sea(tmp_path: Path) -> None:
    soil = weather("slt")
    soil[:10] = np.nan
    path = tmp_path / "s.grib"
    path.write_bytes(encode("slt", None, soil))
    found = read_static(open_files([path]), GRID)
    assert (found["slt"].values[:10] == 0).all()
    assert f"slt: {10 * LON.size} of {soil.size} points without soil are class 0" in found.attrs["notes"]


def test_rows_without_the_poles_and_no_time(tmp_path: Path) -> None:
    lat = np.arange(85.0, -86.0, -5.0).astype(np.float32)
    path = tmp_path / "mask.nc"
    with netCDF4.Dataset(path, "w") as file:
        for name, values, units in (("lat", lat, "degrees_north"), ("lon", LON.astype(np.float32), "degrees_east")):
            file.createDimension(name, values.size)
            made_axis = file.createVariable(name, "f4", (name,))
            made_axis.units = units
            made_axis[:] = values
        mask = file.createVariable("lsm", "u1", ("lat", "lon"))
        mask.units = "1"
        mask[:] = weather("lsm", None, lat.astype(float)) > 0.5
    found = read_static(open_files([path]), Grid.regular(10))["lsm"].values
    assert found.shape == (19, 36)
    assert found.min() == 0.0
    assert found.max() == 1.0
    assert ((found > 0.1) & (found < 0.9)).any()


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (encode("orog", None, weather("orog") + 5000, style="ifs"), "that is no ground"),
        (encode("lsm", None, weather("lsm") * 100), "lsm spans"),
        (encode("slt", None, weather("slt") + 0.5), "values that are no classes"),
        (encode("orog", None, weather("orog", None, LAT[:10], LON), lat=LAT[:10], style="ifs"), "a regional file"),
    ],
)
def test_static_fields_that_cannot_be(tmp_path: Path, message: bytes, problem: str) -> None:
    path = tmp_path / "s.grib"
    path.write_bytes(message)
    with pytest.raises(DataError, match="the static fields cannot be used") as caught:
        read_static(open_files([path]), GRID)
    assert problem in "\n".join(caught.value.problems)


def test_no_static_fields(tmp_path: Path) -> None:
    path = write_grib(tmp_path / "a.grib", [("t", 500)])
    with pytest.raises(DataError, match="no static fields in the input"):
        read_static(open_files([path]), GRID)
