"""Reading NetCDF: the layouts in the wild, axes in any order, units, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr
from weather import GROUND, LAT, LEVELS, LON, TIME, UPPER, weather, write_cds_new, write_cds_old

from wm2cli.errors import DataError
from wm2cli.grid import Grid
from wm2cli.reading.fields import Field, Inventory, SourceFile
from wm2cli.reading.netcdf import open_netcdf
from wm2cli.reading.netcdf_classic import classic_size
from wm2cli.reading.units import conversion, rate_factor, spelled, to_hpa
from wm2cli.schema import VARIABLES
from wm2cli.writing.canonical import write_fields

HOUR = np.timedelta64(1, "h")


def opened(path: Path) -> Inventory:
    return open_netcdf(SourceFile(path, path.name))


def assert_is_weather(field: Field, tolerance: float = 1e-6) -> None:
    expected = weather(field.variable, field.level)
    found = field.read()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.ptp(expected))


def make(
    path: Path, dims: Mapping[str, int], variables: Mapping[str, tuple[Sequence[str], Any, Mapping[str, Any]]]
) -> Path:
    """A NetCDF file from scratch."""
    with netCDF4.Dataset(path, "w") as file:
        for name, size in dims.items():
            file.createDimension(name, size)
        for name, (axes, values, attributes) in variables.items():
            values = np.asarray(values)
            fill = np.nan if values.dtype.kind == "f" else None
            made = file.createVariable(name, values.dtype, axes, fill_value=fill)
            made.setncatts(attributes)
            made[...] = values
    return path


AXES: dict[str, tuple[Sequence[str], Any, Mapping[str, Any]]] = {
    "latitude": (("latitude",), LAT, {"units": "degrees_north"}),
    "longitude": (("longitude",), LON, {"units": "degrees_east"}),
    "time": (("time",), [6], {"units": "hours since 2024-01-01"}),
}
SIZES = {"latitude": LAT.size, "longitude": LON.size, "time": 1}
FLAT = ("time", "latitude", "longitude")


def ground(tmp_path: Path, name: str, attributes: Mapping[str, Any], values: Any = None, **more: Any) -> Inventory:
    """A file with one field at the ground."""
    data = weather("t2m") if values is None else values
    return opened(
        make(
            tmp_path / "x.nc",
            SIZES | more.get("dims", {}),
            AXES | more.get("axes", {}) | {name: (more.get("order", FLAT), data[None], attributes)},
        )
    )


def test_the_old_layout(tmp_path: Path) -> None:
    inventory = opened(write_cds_old(tmp_path / "o.nc", (*UPPER, *GROUND), times=(TIME, TIME + HOUR)))
    assert inventory.times() == (TIME, TIME + HOUR)
    assert inventory.levels("t") == LEVELS
    assert not inventory.problems
    assert not inventory.ignored
    assert len(inventory.fields) == 2 * (len(UPPER) * len(LEVELS) + len(GROUND))
    for field in inventory.fields:
        span = (
            np.ptp([weather(field.variable, level) for level in LEVELS])
            if field.level
            else np.ptp(weather(field.variable))
        )
        assert np.abs(field.read() - weather(field.variable, field.level)).max() <= span / 64000 * 0.6


def test_the_new_layout(tmp_path: Path) -> None:
    inventory = opened(write_cds_new(tmp_path / "n.nc", (*UPPER, *GROUND), expver="0005"))
    assert inventory.times() == (TIME,)
    assert {field.version for field in inventory.fields} == {"0005"}
    assert {field.member for field in inventory.fields} == {None}
    for field in inventory.fields:
        assert_is_weather(field)


def test_reading_agrees_with_xarray(tmp_path: Path) -> None:
    path = write_cds_old(tmp_path / "o.nc", UPPER)
    with xr.open_dataset(path) as dataset:
        for field in opened(path).fields:
            theirs = dataset[field.variable].sel(time=TIME, level=field.level).values
            np.testing.assert_allclose(field.read(), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("writer", [write_cds_old, write_cds_new])
def test_the_order_of_axes_changes_no_bit(tmp_path: Path, writer: Any) -> None:
    more = {"packed": False} if writer is write_cds_old else {}
    plain = {field.label: field.read() for field in opened(writer(tmp_path / "a.nc", **more)).fields}
    turned = writer(tmp_path / "b.nc", levels=LEVELS[::-1], lat=LAT[::-1], lon=np.roll(LON, 30), **more)
    for field in opened(turned).fields:
        np.testing.assert_array_equal(field.read(), plain[field.label])
    west = writer(tmp_path / "c.nc", lon=LON - 180.0, **more)
    for field in opened(west).fields:
        np.testing.assert_allclose(field.read(), plain[field.label], rtol=1e-6, atol=1e-4)
        assert field.axes.lon.tolist() == LON.tolist()


def test_longitude_before_latitude_and_no_units_on_the_axes(tmp_path: Path) -> None:
    """As a file that was coarsened with a spectral model's tools and saved by xarray."""
    data = np.stack([weather("t", level)[::-1].T for level in LEVELS])
    path = make(tmp_path / "tl.nc", {"level": len(LEVELS), "longitude": LON.size, "latitude": LAT.size}, {
        "level": (("level",), np.array(LEVELS, "i4"), {}), "longitude": (("longitude",), LON, {}),
        "latitude": (("latitude",), LAT[::-1], {}), "time": ((), 30, {"units": "hours since 2024-01-01"}),
        "temperature": (("level", "longitude", "latitude"), data, {"units": "K", "coordinates": "time"}),
    })  # fmt: skip
    inventory = opened(path)
    assert inventory.times() == (np.datetime64("2024-01-02T06"),)
    for field in inventory.fields:
        assert_is_weather(field)
    assert inventory.notes == (
        "tl.nc: level has no units; 200 to 1000 is taken as hPa",
        "tl.nc: latitude has no units; taken as degrees by its name",
        "tl.nc: longitude has no units; taken as degrees by its name",
    )


def test_names_of_the_archives(tmp_path: Path) -> None:
    """ARCO-ERA5 and WeatherBench use the CDS's long names."""
    data = np.stack([weather("u", level) for level in LEVELS])[None]
    path = make(
        tmp_path / "wb.nc",
        SIZES | {"level": len(LEVELS)},
        AXES
        | {
            "level": (("level",), np.array(LEVELS), {"units": "hPa"}),
            "u_component_of_wind": (("time", "level", "latitude", "longitude"), data, {"units": "m s**-1"}),
            "2m_temperature": (FLAT, weather("t2m")[None], {"units": "K"}),
            "total_precipitation_6hr": (FLAT, weather("tp")[None], {"units": "m"}),
            "geopotential_at_surface": (("latitude", "longitude"), weather("orog") * 9.80665, {"units": "m**2 s**-2"}),
        },
    )
    inventory = opened(path)
    for field in inventory.fields:
        assert_is_weather(field)
    assert [field.window_hours for field in inventory.find("tp_6h")] == [6.0]
    assert inventory.find("tp") == ()
    assert inventory.find("orog")[0].valid_time is None


# Units.


@pytest.mark.parametrize(
    ("name", "unit", "factor", "offset"),
    [
        ("t2m", "degC", 1.0, -273.15),
        ("msl", "hPa", 0.01, 0.0),
        ("msl", "millibars", 0.01, 0.0),
        ("tcc", "%", 100.0, 0.0),
        ("sp", "mbar", 0.01, 0.0),
        ("u10", "m/s", 1.0, 0.0),
        ("tp", "mm", 1000.0, 0.0),
        ("tp", "kg m**-2", 1000.0, 0.0),
        ("ssr", "W m**-2", 1 / 3600, 0.0),
        ("orog", "m**2 s**-2", 9.80665, 0.0),
        ("r2m", "percent", 100.0, 0.0),
        ("q2m", "g/kg", 1000.0, 0.0),
    ],
)
def test_units_are_converted(tmp_path: Path, name: str, unit: str, factor: float, offset: float) -> None:
    inventory = ground(tmp_path, name, {"units": unit}, weather(name) * factor + offset)
    assert not inventory.problems
    assert_is_weather(inventory.fields[0], 2e-6)


def test_units_on_levels(tmp_path: Path) -> None:
    for name, unit, factor in (
        ("z", "gpm", 1 / 9.80665),
        ("z", "m", 1 / 9.80665),
        ("z", "dam", 0.1 / 9.80665),
        ("q", "g kg**-1", 1000.0),
        ("t", "celsius", 1.0),
        ("r", "%", 100.0),
    ):
        known = VARIABLES[name]
        names = {"z": "geopotential_height"}.get(name, name)
        values = weather(name, 500) * factor - (273.15 if unit == "celsius" else 0.0)
        path = make(tmp_path / "u.nc", SIZES | {"plev": 1}, AXES | {
            "plev": (("plev",), [50000.0], {"units": "Pa"}),
            names: (("time", "plev", "latitude", "longitude"), values[None, None], {"units": unit}),
        })  # fmt: skip
        (field,) = opened(path).fields
        assert (field.variable, field.level) == (known.name, 500.0)
        assert_is_weather(field, 2e-6)


def test_an_unknown_unit_is_a_problem_and_no_field(tmp_path: Path) -> None:
    inventory = ground(tmp_path, "t2m", {"units": "degF"})
    assert inventory.fields == ()
    assert inventory.problems["t2m"] == (
        "x.nc: t2m has the units 'degF', which are not known for 2 metre temperature (K)",
    )


def test_a_missing_unit_is_noted_or_refused(tmp_path: Path) -> None:
    inventory = ground(tmp_path, "t2m", {})
    assert len(inventory.fields) == 1
    assert inventory.notes == ("x.nc: t2m has no units; taken as K, and refused where its values are impossible in it",)
    assert ground(tmp_path, "tp", {}).problems["tp"] == ("x.nc: tp has no units, and its values do not tell them",)


def test_spellings() -> None:
    assert spelled("m**2 s**-2") == spelled("m^2 s^-2") == spelled("m2.s-2") == "m2 s-2"
    assert spelled(" kg  kg**-1 ") == "kg kg-1"
    assert to_hpa("millibars") == 1.0
    assert to_hpa("Pa") == 0.01
    assert to_hpa("m") is None
    assert conversion(VARIABLES["slt"], "(Code table 4.213)") == (1.0, 0.0)
    assert conversion(VARIABLES["lsm"], "(0 - 1)") == (1.0, 0.0)
    assert conversion(VARIABLES["orog"], "gpm") == (1.0, 0.0)
    assert conversion(VARIABLES["orog"], "dam") == (10.0, 0.0)
    assert conversion(VARIABLES["t"], "Pa") is None
    assert rate_factor(VARIABLES["tp"], "kg m-2 s-1", 6.0) == pytest.approx(21.6)
    assert rate_factor(VARIABLES["t2m"], "W m-2", 6.0) is None


# Times.


def test_start_and_lead_time(tmp_path: Path) -> None:
    """cfgrib's layout: `time` is the start, `step` the lead time, `valid_time` their sum."""
    start = {"units": "hours since 2024-01-01", "standard_name": "forecast_reference_time"}
    values = np.stack([weather("t2m")] * 2)
    path = make(tmp_path / "c.nc", {"step": 2, "latitude": LAT.size, "longitude": LON.size}, {
        "latitude": AXES["latitude"], "longitude": AXES["longitude"], "time": ((), 0, start),
        "step": (("step",), [6.0, 12.0], {"units": "hours", "standard_name": "forecast_period"}),
        "valid_time": (("step",), [6, 12], {"units": "hours since 2024-01-01", "standard_name": "time"}),
        "t2m": (("step", "latitude", "longitude"), values, {"units": "K"}),
    })  # fmt: skip
    first, second = opened(path).fields
    assert (first.valid_time, first.base_time) == (TIME, np.datetime64("2024-01-01T00"))
    assert second.valid_time == TIME + 6 * HOUR


def test_start_and_lead_time_without_their_sum(tmp_path: Path) -> None:
    """WeatherBench forecasts: `time` and `prediction_timedelta`, both dimensions."""
    dims = {"time": 2, "prediction_timedelta": 3, "latitude": LAT.size, "longitude": LON.size}
    values = np.broadcast_to(weather("t2m"), (2, 3, LAT.size, LON.size))
    path = make(tmp_path / "w.nc", dims, {
        "latitude": AXES["latitude"], "longitude": AXES["longitude"],
        "time": (("time",), [0, 12], {"units": "hours since 2024-01-01"}),
        "prediction_timedelta": (("prediction_timedelta",), [6, 12, 18], {"units": "hours"}),
        "2m_temperature": (("time", "prediction_timedelta", "latitude", "longitude"), values, {"units": "K"}),
    })  # fmt: skip
    fields = opened(path).fields
    start = np.datetime64("2024-01-01T00")
    assert [(field.base_time, field.valid_time) for field in fields[2:4]] == [
        (start, start + 18 * HOUR), (start + 12 * HOUR, start + 18 * HOUR),
    ]  # fmt: skip


def test_a_forecast_file_of_wm2_itself(tmp_path: Path) -> None:
    path = make(tmp_path / "f.nc", SIZES | {"time": 2}, AXES | {
        "time": (("time",), [6, 12], {"units": "hours since 2024-01-01", "standard_name": "time"}),
        "lead_time": (("time",), [6, 12], {"units": "hours", "standard_name": "forecast_period"}),
        "forecast_reference_time": ((), 0, {"units": "hours since 2024-01-01",
                                            "standard_name": "forecast_reference_time"}),
        "tp_6h": (FLAT, np.stack([weather("tp")] * 2), {"units": "m", "cell_methods": "time: sum"}),
    })  # fmt: skip
    first, second = opened(path).find("tp_6h")
    assert (first.base_time, first.valid_time) == (np.datetime64("2024-01-01T00"), TIME)
    assert second.valid_time == TIME + 6 * HOUR


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({}, "has the time axis time with the units '', which are not understood"),
        ({"units": "months since 1979-01-01"}, "units 'months since 1979-01-01', which are not understood"),
        ({"units": "hours since 2024-01-01 00:00 +02:00"}, "which are not understood"),
        ({"units": "hours since 2024-01-01", "calendar": "noleap"}, "in the calendar 'noleap'"),
    ],
)
def test_times_that_cannot_be_told(tmp_path: Path, attributes: Mapping[str, str], reason: str) -> None:
    inventory = ground(tmp_path, "t2m", {"units": "K"}, axes={"time": (("time",), [6], attributes)})
    assert inventory.fields == ()
    assert reason in inventory.problems["t2m"][0]


@pytest.mark.parametrize(
    ("value", "units"),
    [(1704088800, "seconds since 1970-01-01"), (1086966.0, "hours since 1900-01-01 00:00:0.0"),
     (45290.25, "days since 1900-01-01T00:00:00Z"), (366, "minutes since 2023-12-31 23:54"),
     (17733294, "hours since 1-1-1 00:00:0.0")],
)  # fmt: skip
def test_units_of_time(tmp_path: Path, value: float, units: str) -> None:
    inventory = ground(tmp_path, "t2m", {"units": "K"}, axes={"time": (("time",), [value], {"units": units})})
    assert inventory.times() == (TIME,)


def test_no_time_at_all(tmp_path: Path) -> None:
    axes = {name: AXES[name] for name in ("latitude", "longitude")}
    sizes = {name: SIZES[name] for name in ("latitude", "longitude")}
    flat = ("latitude", "longitude")
    inventory = opened(make(tmp_path / "s.nc", sizes, axes | {
        "lsm": (flat, weather("lsm"), {"units": "1"}), "t2m": (flat, weather("t2m"), {"units": "K"}),
    }))  # fmt: skip
    assert [field.variable for field in inventory.fields] == ["lsm"]
    assert inventory.problems["t2m"] == ("s.nc: t2m has no time",)
    assert inventory.times() == ()


# Statistics.


def test_how_values_stand_for_a_window(tmp_path: Path) -> None:
    accumulated = opened(write_cds_new(tmp_path / "a.nc", ("tp",), step_type="accum"))
    assert [(f.statistic, f.window_hours) for f in accumulated.fields] == [("sum", 1.0)]
    assert "does not say its window; taken as the 1 h before each time" in accumulated.notes[0]
    mean = ground(tmp_path, "tcc", {"units": "1", "cell_methods": "time: mean"}, weather("tcc"))
    assert mean.find("tcc") == ()
    assert np.isnan(mean.find("tcc", statistic="mean")[0].window_hours)
    daily = ground(tmp_path, "t2m", {"units": "K", "cell_methods": "time: standard_deviation"})
    assert "'time: standard_deviation', which is not understood" in daily.problems["t2m"][0]
    odd = opened(write_cds_new(tmp_path / "b.nc", ("t2m",), step_type="avgua"))
    assert "is given as 'avgua'" in odd.problems["t2m"][0]


def test_what_wm2_writes_says_its_windows(tmp_path: Path) -> None:
    grid = Grid.regular(22.5, "cells")
    fields = {name: np.zeros((1, *grid.shape), np.float32) for name in ("t2m", "lsp", "lsp_6h", "mx2t")}
    write_fields(tmp_path / "own.nc", times=np.array([TIME]), grid=grid, levels=(500.0,), attributes={}, fields=fields)
    inventory = opened(tmp_path / "own.nc")
    assert sorted((found.variable, found.statistic, found.window_hours) for found in inventory.fields) == [
        ("lsp", "sum", 1.0), ("lsp", "sum", 6.0), ("mx2t", "maximum", 1.0), ("t2m", "point", 0.0),
    ]  # fmt: skip
    assert not inventory.notes


# Members and versions.


def test_members_are_told_apart(tmp_path: Path) -> None:
    inventory = opened(write_cds_new(tmp_path / "m.nc", ("t2m",), members=(0, 1, 2)))
    assert [field.member for field in inventory.fields] == [0, 1, 2]


def test_final_and_preliminary_fields_are_never_summed(tmp_path: Path) -> None:
    times = (TIME, TIME + HOUR, TIME + 2 * HOUR)
    path = write_cds_old(tmp_path / "e.nc", ("t2m", "t"), times=times, versions=(1, 1, 5), packed=False)
    inventory = opened(path)
    assert [field.version for field in inventory.find("t2m")] == ["0001", "0001", "0005"]
    assert len(inventory.fields) == 3 * (1 + len(LEVELS))
    for field in inventory.fields:
        assert_is_weather(field)
    assert inventory.notes == (
        "e.nc: final and preliminary ERA5 are mixed along expver; for each time the one that has data was taken",
    )


def test_two_versions_of_one_time_are_refused(tmp_path: Path) -> None:
    path = write_cds_old(tmp_path / "e.nc", ("t2m",), versions=(1,), packed=False)
    with netCDF4.Dataset(path, "r+") as file:
        file["t2m"][0, 1] = weather("t2m") + 1
    assert "for the same time: which one is meant?" in opened(path).problems["t2m"][0]
    with netCDF4.Dataset(path, "r+") as file:
        file["t2m"][:] = np.nan
    assert "has times without data in every version" in opened(path).problems["t2m"][0]


# What is refused.


def test_missing_values_are_counted(tmp_path: Path) -> None:
    path = write_cds_old(tmp_path / "m.nc", ("t2m",))
    with netCDF4.Dataset(path, "r+") as file:
        file["t2m"][0, 3, 4:7] = np.ma.masked
    with pytest.raises(DataError, match=r"t2m has 3 missing values of 2664 \(m.nc t2m\[time=0\]\)"):
        opened(path).fields[0].read()


def test_model_levels_are_refused_by_name(tmp_path: Path) -> None:
    path = make(
        tmp_path / "ml.nc",
        SIZES | {"model_level": 2},
        AXES
        | {
            "model_level": (("model_level",), [74.0, 75.0], {"units": "1"}),
            "t": (
                ("time", "model_level", "latitude", "longitude"),
                np.stack([weather("t", 500)] * 2)[None],
                {"units": "K"},
            ),
        },
    )
    assert opened(path).problems["t"] == ("ml.nc: t is on model levels (model_level), not on pressure levels",)


def test_levels_without_units_must_be_plain(tmp_path: Path) -> None:
    values = np.stack([weather("t", 500)] * 2)[None]
    for levels, unit, reason in (
        ([50000.0, 85000.0], {}, "without units, 50000 to 85000: hPa or Pa?"),
        ([1.0, 2.0], {}, "hPa or Pa?"),
        ([100.0, 200.0], {"units": "km"}, "in 'km', which is no unit of pressure"),
    ):
        path = make(tmp_path / "l.nc", SIZES | {"level": 2}, AXES | {
            "level": (("level",), levels, unit),
            "t": (("time", "level", "latitude", "longitude"), values, {"units": "K"}),
        })  # fmt: skip
        assert reason in opened(path).problems["t"][0]


def test_a_field_on_levels_needs_its_level(tmp_path: Path) -> None:
    assert ground(tmp_path, "t", {"units": "K"}).problems["t"] == (
        "x.nc: t has no vertical axis: its pressure is not known",
    )
    scalar = ground(tmp_path, "t", {"units": "K"}, weather("t", 500), axes={"isobaricInhPa": ((), 500.0, {})})
    assert scalar.fields[0].level == 500.0


def test_a_geopotential_without_levels_is_the_ground(tmp_path: Path) -> None:
    """As the CDS's single-level data set has it."""
    inventory = ground(tmp_path, "z", {"units": "m**2 s**-2"}, weather("orog") * 9.80665)
    (field,) = inventory.fields
    assert field.variable == "orog"
    assert_is_weather(field, 2e-6)
    assert inventory.notes == ("x.nc: z is a geopotential without levels, taken as that of the surface",)


def test_other_grids_are_refused(tmp_path: Path) -> None:
    lat2, lon2 = np.meshgrid(LAT, LON, indexing="ij")
    curved = make(
        tmp_path / "c.nc",
        {"y": LAT.size, "x": LON.size, "time": 1},
        {
            "lat": (("y", "x"), lat2, {"units": "degrees_north"}),
            "lon": (("y", "x"), lon2, {"units": "degrees_east"}),
            "time": AXES["time"],
            "t2m": (("time", "y", "x"), weather("t2m")[None], {"units": "K"}),
        },
    )
    assert "has the dimension y, which is not understood" in opened(curved).problems["t2m"][0]
    twice = np.arange(0.0, 361.0, 5.0)
    wide = weather("t2m", None, LAT, twice)
    assert "name the same meridian twice" in ground(
        tmp_path, "t2m", {"units": "K"}, wide, dims={"longitude": twice.size},
        axes={"longitude": (("longitude",), twice, {"units": "degrees_east"})},
    ).problems["t2m"][0]  # fmt: skip
    bare = ground(tmp_path, "t2m", {"units": "K"}, dims={"ncells": LAT.size}, order=("time", "ncells", "longitude"))
    assert bare.fields == ()
    assert bare.problems["t2m"]


def test_a_point_is_no_map(tmp_path: Path) -> None:
    path = write_cds_old(tmp_path / "p.nc", ("t2m",), lat=LAT[3:4], lon=LON[3:4])
    assert opened(path).problems["t2m"] == ("p.nc: t2m has 1 points along latitude: no map but a point or a line",)


def test_an_axis_without_entries(tmp_path: Path) -> None:
    path = tmp_path / "z.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", None)
        for name, values in (("latitude", LAT), ("longitude", LON)):
            file.createDimension(name, values.size)
            file.createVariable(name, "f8", (name,))[:] = values
        time = file.createVariable("time", "f8", ("time",))
        time.units = "hours since 2024-01-01"
        file.createVariable("t2m", "f4", FLAT).units = "K"
    assert opened(path).problems["t2m"] == ("z.nc: t2m has no entries along time",)


def test_damaged_files_are_a_data_error(tmp_path: Path) -> None:
    whole = write_cds_new(tmp_path / "n.nc", ("t",)).read_bytes()
    for cut in (len(whole) // 2, 100):
        path = tmp_path / "cut.nc"
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut\.nc cannot be opened as NetCDF"):
            opened(path)
    old = write_cds_old(tmp_path / "o.nc", ("t",)).read_bytes()
    (tmp_path / "cut3.nc").write_bytes(old[: len(old) // 2])
    with pytest.raises(DataError, match=rf"cut3.nc has {len(old) // 2} bytes, its header asks for {len(old)}"):
        opened(tmp_path / "cut3.nc")


@pytest.mark.parametrize("kind", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"])
@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("c",), ("a", "b", "c")])
def test_the_size_a_classic_file_must_have(tmp_path: Path, kind: Any, names: Sequence[str]) -> None:
    """Record variables `a` and `b` of odd sizes, and `c` without records; netCDF-C reads zeros beyond the end."""
    path = tmp_path / "c.nc"
    with netCDF4.Dataset(path, "w", format=kind) as file:
        file.title = "odd"
        file.createDimension("time", None)
        file.createDimension("x", 5)
        for name in names:
            made = file.createVariable(name, "i2" if name != "c" else "f8", ("x",) if name == "c" else ("time", "x"))
            made.units = "K"
            made[:] = np.ones(5 if name == "c" else (3, 5))
    data = path.read_bytes()
    assert len(data) - 3 <= classic_size(data) <= len(data)
    for cut in range(200, len(data) - 3, 7):
        assert (classic_size(data[:cut]) or cut + 1) > cut


def test_a_classic_header_that_makes_no_sense_is_left_to_the_library() -> None:
    assert classic_size(b"CDF\x01" + b"\xff" * 60) is None
    assert classic_size(b"CDF\x02") is None


def test_what_is_not_ours_is_listed(tmp_path: Path) -> None:
    inventory = ground(tmp_path, "sst", {"units": "K", "long_name": "Sea surface temperature"})
    assert inventory.ignored == {"sst (Sea surface temperature)": 1}


def test_levels_in_one_chunk_are_unpacked_once(tmp_path: Path) -> None:
    """The cache of chunks is widened to what one map needs, else each level would unpack all."""
    path = tmp_path / "chunk.nc"
    lat, lon = np.linspace(90, -90, 361), np.arange(0, 360, 0.5)
    with netCDF4.Dataset(path, "w") as file:
        for name, values, unit in (("level", np.array(LEVELS * 2), "hPa"), ("latitude", lat, "degrees_north"),
                                   ("longitude", lon, "degrees_east")):  # fmt: skip
            file.createDimension(name, len(values))
            made = file.createVariable(name, "f8", (name,))
            made.units = unit
            made[:] = np.arange(1, 13) * 50 if name == "level" else values
        file.createVariable("time", "i8", ()).units = "hours since 2024-01-01"
        file["time"][...] = 6
        made = file.createVariable("t", "f4", ("level", "latitude", "longitude"), zlib=True, chunksizes=(12, 361, 720))
        made.units = "K"
        made[:] = 250.0
    inventory = opened(path)
    handle = inventory.fields[0].load.args[0]  # type: ignore[attr-defined]
    with inventory.reading():
        inventory.fields[0].read()
        assert handle.dataset["t"].get_var_chunk_cache()[0] >= 12 * 361 * 720 * 4
    assert handle.dataset is None


def test_a_file_is_open_only_while_it_is_read(tmp_path: Path) -> None:
    """HDF5 locks what it has open: another program could not write the file for as long as a forecast runs."""
    path = write_cds_new(tmp_path / "n.nc", ("t2m",))
    inventory = opened(path)
    netCDF4.Dataset(path, "a").close()
    inventory = opened(path)
    with inventory.reading(), inventory.reading():
        inventory.fields[0].read()
    inventory.fields[0].read()
    netCDF4.Dataset(path, "a").close()
