"""Real files of weather services: each opens, or is refused for the reason expected.

`WM2_REAL_DATA` names their folder.

What a row of `EXPECTED` says: either the message of the error, or the fields, and what is told besides.
"""

from __future__ import annotations

import lzma
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cfgrib
import eccodes
import numpy as np
import pytest
import xarray as xr

from wm2cli.analysis.preparation import prepare, read_static
from wm2cli.errors import DataError
from wm2cli.grid import Grid
from wm2cli.preprocess import Options, preprocess
from wm2cli.reading.fields import Inventory, SourceFile
from wm2cli.reading.grib import _decode, _layout
from wm2cli.reading.inputs import open_files
from wm2cli.reading.messages import field_bytes, split
from wm2cli.schema import GRAVITY, LEVELS_13, LEVELS_25, LEVELS_37, Schema
from wm2cli.store import open_store

FOLDER = Path(os.environ.get("WM2_REAL_DATA") or "/nonexistent")
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="WM2_REAL_DATA does not name a folder")

GFS = "gfs_2p5deg_full_20111008T00_f072_complex.grib2"
GFS_TIME = np.datetime64("2011-10-11T00", "s")
GROUND = ("t2m", "d2m", "u10", "v10", "u100", "v100", "msl", "tcc")


@dataclass(frozen=True)
class Opens:
    """What an inventory holds: number of fields by variable, and parts of the lines told besides."""

    fields: dict[str, int]
    times: int = 1
    problems: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing: bool = False


EVERY = dict.fromkeys(("z", "t", "u", "v", "q"), 37)
POINT = "has 1 points along latitude"
TEXT = "is a text file, not GRIB or NetCDF"
XZ = "is compressed with xz"
IDX = "is the index of a GRIB file (.idx)"
JSON = "is JSON, such as the .index of ECMWF open data"
MONTHS = "has the time axis time with the units ''"

EXPECTED: dict[str, Opens | str] = {
    "MANIFEST.md": TEXT,
    "bad_empty.grib": "is empty (0 bytes)",
    "bad_era5_levels_corrupted.grib": "message 1 at byte 0 claims 1588 bytes, its sections need 22068",
    "cds_era5_pl_ztq_37lev_regional_20101017T14.grib": Opens({"z": 37, "t": 37, "q": 37}),
    "cds_era5_t2m_scalar_time_regional_20170101T12.grib": Opens({"t2m": 1}),
    "cds_new_layout_pressure_levels.ncdump-h.txt": TEXT,
    "cds_new_ml_t_q_ciwc_11lev_25deg_20190531.nc": Opens(
        {}, 0, ("t is on model levels (model_level)", "q is on model levels (model_level)"), ("ciwc",)
    ),
    "cds_new_sfc_u10_v10_24h_germany_20251104.nc": Opens({"u10": 24, "v10": 24}, 24),
    "cds_old_pl_rtuv_3lev_16h_regional_2021.nc": Opens({"r": 48, "t": 48, "u": 48, "v": 48}, 16),
    "cds_old_pl_zqtuv_13lev_onepoint_202201.nc": Opens({}, 0, (POINT,) * 5),
    "cds_old_sfc_onepoint_202201.nc": Opens({}, 0, (POINT,) * 4),
    "cds_old_sfc_u10_v10_t2m_sst_16h_regional_2021.nc": Opens({"u10": 16, "v10": 16, "t2m": 16}, 16, (), ("sst",)),
    "cds_old_wgust_0p25_global_20110801T00.nc": Opens({}, 0, (), ("i10fg",)),
    "climatology_land_temperature_monthly_t31.nc": Opens({}, 0, (), ("lst",)),
    "climatology_sst_monthly_t31.nc": Opens({}, 0, (), ("sst",)),
    "ecmwf_aifs_single_20250301T00_0h.index": JSON,
    "ecmwf_aifs_single_t500_0p25_20260310T12_0h.grib2": Opens({"t": 1}),
    "ecmwf_ifs_oper_0p25_20260524T00_0h.first5.index": JSON,
    "ecmwf_opendata_0p4_20240101T00_0h_first10.grib2": Opens(
        {"z": 5, "r": 3, "tp": 1}, 1, (), ("st on depthBelowLandLayer",)
    ),
    "ecmwf_opendata_0p4_20240101T00_0h_msg0_gh250.wgrib2-float32le.bin.xz": XZ,
    "ecmwf_soil_type_0p1_global.nc": Opens({"slt": 1}, 0, missing=True),
    "era5_eda_3deg_members_z_t_500_850_20170101-02.grib": Opens({"z": 80, "t": 80}, 4),
    "era5_surface_geopotential_0p25_global.nc": Opens({"orog": 1}, 0, (), (), ("a geopotential without levels",)),
    "era5_tl31_37lev_all_vars_1959010200.nc": Opens(
        EVERY, 1, (), ("sea_ice_cover", "sea_surface", "ice_water", "liquid_water"),
        ("level has no units; 1 to 1000 is taken as hPa", "latitude has no units", "longitude has no units"),
    ),
    "erainterim_1p5deg_37lev_t_20050123T00.nc": Opens({"t": 37}),
    "erainterim_1p5deg_37lev_u_20050123T00.nc": Opens({"u": 37}),
    "erainterim_1p5deg_37lev_v_20050123T00.nc": Opens({"v": 37}),
    "gdas_0p25_20230111T12_f000_VRATE.grib2": Opens({}, 0, (), ("VRATE on planetaryBoundaryLayer",)),
    "gdas_0p25_20230111T12_f000_VRATE.wgrib2-float32le.bin.xz": XZ,
    "gfs_0p25_20221014_t00z_f000.idx": IDX,
    "gfs_0p25_20221014_t06z_f021.idx": IDX,
    "gfs_0p25_gh500_20201026T00_f024_complex.grib2": Opens({"z": 1}),
    "gfs_0p25_gh500_20220210T00_f024_jpeg.grib2": Opens({"z": 1}),
    GFS: Opens(
        {"z": 26, "t": 26, "u": 26, "v": 26, "r": 25, "t2m": 1, "u10": 1, "v10": 1, "msl": 1, "tcc": 1, "mx2t": 1,
         "mn2t": 1, "cp": 1, "tp": 1, "sp": 1, "r2m": 1, "q2m": 1, "orog": 1, "lsm": 1},
        1, (), ("mslet on meanSea", "tcc on lowCloudLayer", "t on sigma", "v on tropopause"),
    ),
    "gfswave_atlocn_0p16_20230823T18_f001.grib2": Opens({}, 0, (), ("swh on surface", "u on surface", "v on surface")),
    "gfswave_atlocn_0p16_20230823T18_f001.grib2.idx": IDX,
    "ifs_10deg_6lev_4analyses_12h_20240603-04.grib": Opens(dict.fromkeys("ztuvr", 48), 8),
    "land_sea_mask_0p1_global.nc": Opens({"lsm": 1}, 0),
    "ncep_june_climatology_17lev_t42.nc": Opens({}, 0, (MONTHS,) * 9, ("OMEGA",)),
    "odd_hpa_and_pa.grib": Opens({"t": 3}, missing=True),
    "odd_missing_values_ecmwf.grib": Opens({"t2m": 2}, 2, missing=True),
    "odd_regular_ll_south_to_north.grib": Opens({}, 0, (), ("skt on surface",)),
}  # fmt: skip


def opened(*names: str) -> Inventory:
    return open_files([FOLDER / name for name in names])


def test_every_file_is_expected() -> None:
    if FOLDER.is_dir():
        assert sorted(path.name for path in FOLDER.iterdir()) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_opens_or_is_refused(name: str) -> None:
    expected = EXPECTED[name]
    if isinstance(expected, str):
        with pytest.raises(DataError) as caught:
            opened(name)
        assert name in caught.value.message
        assert expected in caught.value.message
        assert caught.value.hint
        return
    inventory = opened(name)
    found = {field.variable for field in inventory.fields}
    assert {
        variable: sum(field.variable == variable for field in inventory.fields) for variable in found
    } == expected.fields
    assert len(inventory.times()) == expected.times
    lines = [line for lines in inventory.problems.values() for line in lines]
    for told, parts in ((lines, expected.problems), (list(inventory.notes), expected.notes)):
        assert len(told) == len(parts), told
        assert all(any(part in line for line in told) for part in parts)
    assert all(any(part in line for line in inventory.ignored) for part in expected.ignored)
    some = inventory.fields[:: 7 if len(inventory.fields) > 10 else 1]
    values = [field.read(allow_missing=expected.missing) for field in some]
    assert any(np.isnan(field).any() for field in values) == expected.missing
    assert inventory.describe()


def wgrib2(name: str, shape: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(lzma.decompress((FOLDER / name).read_bytes()), "<f4").reshape(shape)


@pytest.mark.parametrize(
    ("name", "reference", "shape"),
    [
        ("ecmwf_opendata_0p4_20240101T00_0h_first10.grib2",
         "ecmwf_opendata_0p4_20240101T00_0h_msg0_gh250.wgrib2-float32le.bin.xz", (451, 900)),
        ("gdas_0p25_20230111T12_f000_VRATE.grib2",
         "gdas_0p25_20230111T12_f000_VRATE.wgrib2-float32le.bin.xz", (721, 1440)),
    ],
)  # fmt: skip
def test_decoding_equals_wgrib2_in_every_bit(name: str, reference: str, shape: tuple[int, int]) -> None:
    file = SourceFile(FOLDER / name, name)
    message = split(file)[0][0]
    handle = eccodes.codes_new_from_message(field_bytes(file, message))
    layout = _layout(handle)
    west = eccodes.codes_get(handle, "longitudeOfFirstGridPointInDegrees", ktype=float)
    eccodes.codes_release(handle)
    assert not isinstance(layout, str)
    columns = round(west / 360 * shape[1])
    expected = np.roll(wgrib2(reference, shape), columns, axis=1)
    np.testing.assert_array_equal(_decode(file, message, layout, 1.0, name), expected)


def test_all_344_fields_of_a_gfs_file() -> None:
    """Both wind components share a message: readers that count messages find 308 fields and no v at all."""
    file = SourceFile(FOLDER / GFS, GFS)
    messages, _ = split(file)
    assert messages[-1].number == 308
    assert len(messages) == 344
    inventory = opened(GFS)
    assert sum(inventory.ignored.values()) + len(inventory.fields) == 344
    with open(FOLDER / GFS, "rb") as stream:  # eccodes' own splitting as the oracle
        eccodes.codes_grib_multi_support_on()
        try:
            theirs = []
            while (handle := eccodes.codes_grib_new_from_file(stream)) is not None:
                if eccodes.codes_get(handle, "shortName") == "v":
                    theirs.append((eccodes.codes_get(handle, "typeOfLevel"), eccodes.codes_get_values(handle)))
                eccodes.codes_release(handle)
        finally:
            eccodes.codes_grib_multi_support_off()
    upper = [values for kind, values in theirs if kind == "isobaricInhPa"]
    mine = inventory.find("v")
    assert len(upper) == len(mine) == 26
    for values, field in zip(upper, mine, strict=True):
        np.testing.assert_array_equal(field.read(), values.reshape(73, 144).astype(np.float32))


def test_a_gfs_analysis_for_thirteen_levels() -> None:
    schema = Schema(("z", "t", "u", "v", "q"), LEVELS_13, GROUND)
    grid = Grid.regular(2.5)
    with pytest.raises(DataError) as caught:
        prepare(opened(GFS), schema, GFS_TIME, grid)
    assert caught.value.problems == (
        "d2m (2 metre dewpoint temperature) is missing; --derive makes it from r2m, t2m",
        "u100 (100 metre eastward wind) is missing; --derive makes it from u10, u on levels, z on levels, orog",
        "v100 (100 metre northward wind) is missing; --derive makes it from v10, v on levels, z on levels, orog",
        "tcc (Total cloud cover) is missing; --derive makes it from tcc mean",
    )
    analysis = prepare(opened(GFS), schema, GFS_TIME, grid, derive=True)
    assert schema.issues_with(analysis.dataset) == []
    made = analysis.dataset.isel(time=0)
    assert float((made["d2m"] - made["t2m"]).max()) < 0.5  # the dewpoint is over water, the humidity rounded to 0.1 %
    humid = opened(GFS).find("q2m")[0].read()
    pressure = opened(GFS).find("sp")[0].read()
    from_specific = np.array(humid * pressure / (0.62198 + 0.37802 * humid))
    dew = made["d2m"].values
    vapour = 611.21 * np.exp(17.502 * (dew - 273.16) / (dew - 32.19))
    warm = dew > 275.0  # where the services agree on what saturation is
    np.testing.assert_allclose(vapour[warm], from_specific[warm], rtol=0.03)
    speed = np.hypot(made["u100"], made["v100"]).mean() / np.hypot(made["u10"], made["v10"]).mean()
    assert 1.1 < float(speed) < 1.6
    notes = "\n".join(analysis.notes)
    for part in ("q: from relative humidity", "d2m derived", "u100 derived", "v100 derived", "tcc derived",
                 "the mean is over 6 h", "a 72 h forecast from 2011-10-08T00"):  # fmt: skip
        assert part in notes


def test_twenty_hectopascals_lack_humidity() -> None:
    """Relative humidity is on 25 of the 26 levels: the hole is named."""
    schema = Schema(("z", "t", "q"), (10, 20, 30, 500), ())
    with pytest.raises(DataError) as caught:
        prepare(opened(GFS), schema, GFS_TIME, Grid.regular(2.5))
    assert caught.value.problems == ("q: 20 hPa missing, which z t have",)
    notes = prepare(opened(GFS), schema, GFS_TIME, Grid.regular(2.5), derive=True).notes
    assert notes[0].startswith("q: 20 hPa missing although other variables have it; interpolated")


def test_era5_on_a_gaussian_grid_goes_to_another() -> None:
    schema = Schema(("z", "t", "u", "v", "q"), LEVELS_25, ())
    name = "era5_tl31_37lev_all_vars_1959010200.nc"
    time = np.datetime64("1959-01-02T00", "s")
    with xr.open_dataset(FOLDER / name) as theirs:
        grid = Grid(theirs["latitude"].values[::-1], theirs["longitude"].values)
        same = prepare(opened(name), schema, time, grid).dataset
        for short, long in (("z", "geopotential"), ("q", "specific_humidity"), ("v", "v_component_of_wind")):
            for level in (10, 500, 1000):
                expected = theirs[long].sel(level=level).transpose("latitude", "longitude").values[::-1]
                found = same[short].sel(level=level)[0].values
                np.testing.assert_array_equal(found, np.maximum(expected, 0) if short == "q" else expected)
    target = Grid.regular(5.625, rows="cells")
    moved = prepare(opened(name), schema, time, target)
    assert schema.issues_with(moved.dataset) == []
    assert moved.notes[0].startswith("regridded conservatively from 32x64")
    for label in ("t", "u"):
        mean = np.average(moved.dataset[label].values, axis=-2, weights=target.area_weights())
        was = np.average(same[label].values, axis=-2, weights=grid.area_weights())
        np.testing.assert_allclose(mean.mean(axis=-1), was.mean(axis=-1), rtol=1e-4, atol=1e-3)


def test_era_interim_from_three_files() -> None:
    names = [f"erainterim_1p5deg_37lev_{name}_20050123T00.nc" for name in "tuv"]
    schema = Schema(("t", "u", "v"), LEVELS_37, ())
    analysis = prepare(opened(*names), schema, np.datetime64("2005-01-23T00", "s"), Grid.regular(1.5))
    assert analysis.notes == ()
    assert [Path(name).name for name, _ in analysis.files] == names
    for name, variable in zip(names, "tuv", strict=True):
        with xr.open_dataset(FOLDER / name) as theirs:
            np.testing.assert_allclose(
                analysis.dataset[variable][0].values, theirs[variable].values, rtol=1e-6, atol=1e-5
            )


def test_four_ifs_analyses_in_one_file() -> None:
    name = "ifs_10deg_6lev_4analyses_12h_20240603-04.grib"
    schema = Schema(("z", "t", "u", "v", "q"), (300, 500, 600, 850, 1000), ("msl",))
    grid = Grid.regular(10)
    analysis = prepare(opened(name), schema, np.datetime64("2024-06-03T12", "s"), grid, derive=True)
    assert "z t u v q: 600 hPa interpolated linearly in ln p" in analysis.notes[0]
    assert not any("not an analysis" in note for note in analysis.notes)
    later = prepare(opened(name), schema, np.datetime64("2024-06-03T18", "s"), grid, derive=True)
    assert later.notes[-1] == "not an analysis: z t u v r are a 6 h forecast from 2024-06-03T12"
    theirs = cfgrib.open_dataset(str(FOLDER / name), indexpath="")
    expected = theirs["z"].sel(time="2024-06-03T12", isobaricInhPa=500).isel(step=0).values
    np.testing.assert_array_equal(analysis.dataset["z"].sel(level=500)[0].values, expected)
    pressure = analysis.dataset["msl"].values
    assert 9.4e4 < pressure.min() < pressure.max() < 1.06e5
    high = np.datetime64("2024-06-03T12", "s")
    with pytest.raises(DataError) as caught:
        prepare(opened(name), Schema(("t",), LEVELS_13, ()), high, grid)
    assert caught.value.problems == (
        "t: 50 100 150 200 250 hPa missing, beyond the levels there are (300 to 1000 hPa)",
    )


@pytest.mark.parametrize(
    ("name", "time", "variables", "problem"),
    [
        (
            "era5_eda_3deg_members_z_t_500_850_20170101-02.grib",
            "2017-01-01T00",
            ("z", "t"),
            "z is there for 10 ensemble",
        ),
        ("cds_era5_pl_ztq_37lev_regional_20101017T14.grib", "2010-10-17T14", ("z", "q"), "a regional file"),
        ("cds_old_pl_rtuv_3lev_16h_regional_2021.nc", "2021-02-15T10", ("t", "u"), "a regional file"),
        ("cds_new_ml_t_q_ciwc_11lev_25deg_20190531.nc", "2019-05-31T05", ("t", "q"), "t is on model levels"),
        ("ncep_june_climatology_17lev_t42.nc", "1979-06-01T00", ("t", "u"), MONTHS),
        ("odd_hpa_and_pa.grib", "2017-09-27T00", ("t",), "beyond the levels there are (0.01 to 1 hPa)"),
    ],
)
def test_what_cannot_start_a_forecast(name: str, time: str, variables: tuple[str, ...], problem: str) -> None:
    schema = Schema(variables, (500.0, 850.0), ())
    with pytest.raises(DataError) as caught:
        prepare(opened(name), schema, np.datetime64(time, "s"), Grid.regular(3))
    assert any(problem in line for line in caught.value.problems), caught.value.problems


def test_static_fields_of_era5() -> None:
    names = ("era5_surface_geopotential_0p25_global.nc", "ecmwf_soil_type_0p1_global.nc", "land_sea_mask_0p1_global.nc")
    found = read_static(opened(*names), Grid.regular(1.0, rows="north"))
    assert set(found.data_vars) == {"orog", "slt", "lsm"}
    at: Any = found.sel(latitude=28, longitude=87)  # Mount Everest is near
    assert 4000 < float(at["orog"]) < 6500
    assert float(at["lsm"]) == 1.0
    ocean: Any = found.sel(latitude=0, longitude=220)
    assert abs(float(ocean["orog"])) < 5
    assert float(ocean["lsm"]) == float(ocean["slt"]) == 0.0
    land = found["lsm"].mean("longitude").values @ Grid.regular(1.0, rows="north").area_weights() / 180
    assert 0.27 < land < 0.31
    with xr.open_dataset(FOLDER / names[0]) as theirs:
        same = read_static(opened(names[0]), Grid.regular(0.25))
        np.testing.assert_allclose(same["orog"].values, theirs["Z"][0].values / GRAVITY, rtol=1e-6, atol=1e-4)


def test_four_analyses_become_a_store(tmp_path: Path) -> None:
    path = FOLDER / "ifs_10deg_6lev_4analyses_12h_20240603-04.grib"
    options = Options(
        inputs=(str(path),), out=tmp_path / "store", variables=("z", "t", "q"), levels=(500, 600, 850), step=12,
        train="2024-06-03/2024-06-04", dtype="float32",
    )  # fmt: skip
    store = open_store(preprocess(options).store)
    assert store.time.size == 4
    messages = [message for message in open_files([path]).fields if message.valid_time == store.time[2]]
    for name, level in (("z", 500), ("t", 850)):
        (one,) = (message for message in messages if (message.variable, message.level) == (name, level))
        np.testing.assert_array_equal(store.read([2])[0, store.schema.channels.index(f"{name}{level}")], one.read())
    assert any("600 hPa interpolated linearly in ln p" in line for line in store.provenance["processing"])


def test_an_ensemble_does_not_become_a_store(tmp_path: Path) -> None:
    path = FOLDER / "era5_eda_3deg_members_z_t_500_850_20170101-02.grib"
    options = Options(inputs=(str(path),), out=tmp_path / "store", variables=("z", "t"), levels=(500, 850), step=12,
                      train="2017-01-01/2017-01-02")  # fmt: skip
    with pytest.raises(DataError) as error:
        preprocess(options)
    assert error.value.problems == ("z500 z850 t500 t850: there for 10 ensemble members (0 to 9); give one",)
