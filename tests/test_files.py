"""Forecast files: what they say, that values survive, and that a file is complete or not there."""

# ruff: noqa: PT012 - it is leaving the block, not one statement in it, that raises

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wm2cli.errors import ResourceError, UsageError
from wm2cli.grid import Grid
from wm2cli.schema import VARIABLES
from wm2cli.writing import chunks
from wm2cli.writing.chunks import ChunkFile, chunk_shape, deflate, round_mantissa
from wm2cli.writing.forecast_file import ForecastWriter, check_space, crop, estimate_bytes

ROOT = Path(__file__).parent.parent
INIT = np.datetime64("2024-02-28T18", "s")
GRID = Grid.regular(5.0)
PLAIN: dict[str, Any] = {"pressure": ("z", "q"), "levels": (500, 850, 1000), "surface": ("t2m", "tp_6h")}


def state(grid: Grid = GRID, upper: tuple[int, int] = (2, 3), lower: int = 2, seed: int = 0) -> tuple[Any, Any]:
    """Random arrays of one time."""
    random = np.random.default_rng(seed)
    pressure = random.normal(280, 30, (*upper, *grid.shape)).astype(np.float32)
    return pressure, random.normal(0, 1e-3, (lower, *grid.shape)).astype(np.float32)


def writer(path: Path, leads: tuple[int, ...] = (6, 12), **more: Any) -> ForecastWriter:
    return ForecastWriter(path, **{**PLAIN, "grid": GRID, "init": INIT, "leads_hours": leads, **more})


def write(path: Path, leads: tuple[int, ...] = (6, 12), **more: Any) -> Path:
    """Write a whole file."""
    with writer(path, leads, **more) as out:
        for lead in leads:
            out.write(lead, *state(seed=lead))
    return path


# --- bit rounding ---


def test_rounding_by_hand() -> None:
    # Two mantissa bits keep 1, 1.25, 1.5, 1.75, 2, 2.5, ...; ties go to the even last bit.
    values = np.float32([1.1, 1.125, 1.2, 1.375, 1.624, 1.875, 1.9, -1.1, -1.375, 2.25, 0.0, -0.0])
    expected = np.float32([1.0, 1.0, 1.25, 1.5, 1.5, 2.0, 2.0, -1.0, -1.5, 2.0, 0.0, -0.0])
    rounded = round_mantissa(values, 2)
    assert rounded.tobytes() == expected.tobytes()


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=st.floats(width=32)),
    st.integers(1, 23),
)
def test_rounding_is_nearest_even_within_its_bound(values: Any, keep_bits: int) -> None:
    before = values.tobytes()
    rounded = round_mantissa(values, keep_bits)
    assert values.tobytes() == before
    special = ~np.isfinite(values)
    assert rounded[special].tobytes() == values[special].tobytes()
    x, r = values[~special].astype(np.float64), rounded[~special].astype(np.float64)
    exponent = np.maximum(np.frexp(x)[1] - 1, -126)
    unit = np.ldexp(1.0, exponent - keep_bits)
    expected = np.rint(x / unit) * unit  # numpy rounds half to even
    largest = float(np.finfo(np.float32).max)
    np.testing.assert_array_equal(r, np.where(np.abs(expected) > largest, np.copysign(np.inf, x), expected))
    inside = np.isfinite(r)
    assert (np.abs(r - x)[inside] <= 2.0 ** -(keep_bits + 1) * np.ldexp(1.0, exponent)[inside]).all()


def test_rounding_refuses_other_bits() -> None:
    for keep_bits in (0, 24, -1):
        with pytest.raises(ValueError, match="keep_bits"):
            round_mantissa(np.zeros(1, np.float32), keep_bits)


# --- chunks ---


def test_chunk_shapes() -> None:
    assert chunk_shape(25, 721, 1440) == (1, 181, 360)
    assert chunk_shape(28, 720, 1440) == (1, 180, 360)
    assert chunk_shape(13, 32, 64) == (13, 32, 64)
    assert chunk_shape(13, 128, 256) == (2, 128, 256)
    assert chunk_shape(1, 1, 1) == (1, 1, 1)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 2000), st.integers(1, 4000))
def test_chunks_are_never_huge_nor_larger_than_the_variable(levels: int, height: int, width: int) -> None:
    deep, high, wide = chunk_shape(levels, height, width)
    assert 1 <= deep <= levels
    assert 1 <= high <= height
    assert 1 <= wide <= width
    assert deep * high * wide <= max(2.5 * chunks.CHUNK_VALUES, 1)


@pytest.mark.parametrize("level", [0, 1, 4])
def test_chunks_at_the_edge_and_filters(tmp_path: Path, level: int) -> None:
    grid = Grid.regular(0.5)  # four chunks to a map, the lower ones cut off by the edge
    pressure, surface = state(grid)
    with writer(tmp_path / "a.nc", (6,), grid=grid, compression_level=level, lossless=True) as out:
        out.write(6, pressure, surface)
    with xr.open_dataset(tmp_path / "a.nc") as made:
        np.testing.assert_array_equal(made["z"].values[0], pressure[0])
        np.testing.assert_array_equal(made["t2m"].values[0], surface[0])
        assert made["z"].encoding["zlib"] == (level > 0)
        assert made["z"].encoding["chunksizes"] == (1, 1, 181, 360)


def test_a_chunk_at_the_edge_is_padded_with_zeros() -> None:
    assert deflate(np.float32([[1, 2]]), (2, 2), 0) == np.array([1, 2, 0, 0], "<f4").tobytes()


# --- regions ---


def test_the_globe_is_every_point() -> None:
    whole = crop(GRID, None)
    assert whole.shape == GRID.shape
    np.testing.assert_array_equal(whole.lon, GRID.lon)


@pytest.mark.parametrize(
    ("region", "lat", "lon"),
    [
        ((60, -10, 50, 5), [60, 55, 50], [-10, -5, 0, 5]),  # across Greenwich
        ((60, 350, 50, 5), [60, 55, 50], [-10, -5, 0, 5]),  # the same
        ((12, 170, 0, -170), [10, 5, 0], [170, 175, 180, 185, 190]),  # across the date line
        ((12, 170, 0, 190), [10, 5, 0], [170, 175, 180, 185, 190]),
        ((0, -180, 0, -170), [0], [-180, -175, -170]),
        ((-80, 12, -90, 18), [-80, -85, -90], [15]),
        ((4, 0, -4, 0), [0], [0]),
        ((1, 355, -1, 360), [0], [355, 360]),
        ((1, 190, -1, 5), [0], list(range(-170, 10, 5))),
        ((1, 10, -1, 5), [0], list(range(10, 370, 5))),  # nearly round, and no better way to say it
    ],
)
def test_regions_by_hand(region: Any, lat: list[float], lon: list[float]) -> None:
    part = crop(GRID, region)
    np.testing.assert_allclose(part.lat, lat)
    np.testing.assert_allclose(part.lon, lon)
    np.testing.assert_allclose(GRID.lat[part.rows], lat)
    np.testing.assert_allclose((GRID.lon[part.columns] - lon) % 360, 0)


@pytest.mark.parametrize(
    ("west", "east", "first"), [(-180, 180, -180), (0, 360, 0), (-10, 350, -10), (180, -180, -180)]
)
def test_a_span_of_360_degrees_is_the_whole_circle(west: float, east: float, first: float) -> None:
    part = crop(GRID, (90, west, -90, east))
    assert part.shape == GRID.shape
    assert part.lon[0] == first
    assert sorted(part.columns) == list(range(72))


@settings(deadline=None)
@given(st.floats(-360, 360), st.floats(0, 360), st.sampled_from([1.0, 2.5, 11.25]))
def test_a_region_holds_the_centres_inside_and_no_others(west: float, span: float, spacing: float) -> None:
    grid = Grid.regular(spacing)
    east = west + span if west + span <= 360 else west + span - 360
    tolerance = 2e-4
    try:
        part = crop(grid, (45, west, -45, east))
    except UsageError:
        part = None
    distance = (grid.lon - west) % 360
    width = 360.0 if abs(east - west) == 360 else (east - west) % 360
    surely = np.flatnonzero((distance < width - tolerance) & (distance < 360 - tolerance))
    if part is None:
        assert not surely.size
        return
    assert set(surely) <= set(part.columns.tolist())
    outside = (distance > width + tolerance) & (distance < 360 - tolerance)
    assert not outside[part.columns].any()
    assert (np.diff(part.lon) > 0).all()
    assert part.lon[-1] - part.lon[0] < 360
    assert -180 - tolerance <= part.lon[0] <= 360
    assert part.lon[-1] <= 360 or part.lon[0] < 180
    np.testing.assert_allclose((part.lon - grid.lon[part.columns] + 1) % 360, 1)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((10, 0, 20, 5), "not below south"),
        ((91, 0, 20, 5), "north 91"),
        ((50, -400, 20, 5), "west -400"),
        ((50, -200, 20, 200), "360 apart"),
        ((math.nan, 0, 20, 5), "north nan"),
        ((50, 0, 20, math.nan), "east nan"),
        ((4, 1, 1, 4), "no grid point"),
    ],
)
def test_impossible_regions(region: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        crop(GRID, region)
    with pytest.raises(UsageError, match=message):
        writer(tmp_path / "a.nc", region=region)


def test_a_region_is_written_as_cut_before_or_by_the_writer(tmp_path: Path) -> None:
    region = (60.0, -20.0, 30.0, 30.0)
    pressure, surface = state()
    with writer(tmp_path / "a.nc", (6,), region=region) as out:
        out.write(6, pressure, surface)
        part = out.crop
    with writer(tmp_path / "b.nc", (6,), region=region) as out:
        rows = pressure[..., part.rows, :], surface[..., part.rows, :]
        out.write(6, rows[0][..., part.columns], rows[1][..., part.columns], cropped=True)
    with xr.open_dataset(tmp_path / "a.nc") as one, xr.open_dataset(tmp_path / "b.nc") as other:
        for name in ("z", "t2m"):
            np.testing.assert_array_equal(one[name].values, other[name].values)
        np.testing.assert_allclose(one.longitude, np.arange(-20, 31, 5))
        expected = pressure[0, 1, GRID.lat.tolist().index(45), GRID.lon.tolist().index(350)]
        assert one.z.sel(level=850, latitude=45, longitude=-10).item() == pytest.approx(expected, rel=2e-6)


# --- what the file says ---


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    attributes = {
        "model": "wm2",
        "command_line": "wm2 forecast --init 2024-02-28T18",
        "seed": 3,
        "note": "Zürich",
    }
    return write(tmp_path_factory.mktemp("written") / "forecast.nc", attributes=attributes)


def test_it_opens_in_xarray_as_it_is(written: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "In a future version", FutureWarning)  # xarray before June 2025
        dataset = xr.open_dataset(written)
    with dataset:
        assert dataset.z.dims == ("time", "level", "latitude", "longitude")
        assert dataset.t2m.dims == ("time", "latitude", "longitude")
        expected = INIT + np.array([6, 12], "timedelta64[h]")
        np.testing.assert_array_equal(dataset.time.values, expected.astype(dataset.time.dtype))
        assert dataset.lead_time.dtype.kind == "m"
        np.testing.assert_array_equal(dataset.lead_time.values, np.array([6, 12], "timedelta64[h]"))
        assert dataset.forecast_reference_time.values == INIT
        assert {"lead_time", "forecast_reference_time", "height_2m"} <= set(dataset.coords)
        assert dataset.height_2m.item() == 2
        np.testing.assert_array_equal(dataset.level.values, [500, 850, 1000])
        assert dataset.level.attrs["units"] == "hPa"
        assert dataset.level.attrs["positive"] == "down"
        np.testing.assert_array_equal(dataset.latitude.values, GRID.lat)
        np.testing.assert_array_equal(dataset.longitude.values, GRID.lon)
        np.testing.assert_array_equal(dataset.time_bnds.values[:, 1], dataset.time.values)
        np.testing.assert_array_equal(dataset.time_bnds.values[:, 0], dataset.time.values - np.timedelta64(6, "h"))
        assert dataset.z.dtype == np.float32


def test_every_field_says_what_it_is(written: Path) -> None:
    with xr.open_dataset(written) as dataset:
        for name in ("z", "q", "t2m", "tp_6h"):
            attributes, known = dataset[name].attrs, VARIABLES[name]
            assert attributes["units"] == known.units
            assert attributes["long_name"] == known.long_name
            assert attributes["standard_name"] == known.standard_name
            assert attributes["quantization_nsb"] == known.keep_bits
        assert dataset.z.attrs["cell_methods"] == "time: point"
        assert dataset.tp_6h.attrs["cell_methods"] == "time: sum"
        assert "height_2m" in dataset.t2m.encoding["coordinates"]
        assert "height_2m" not in dataset.tp_6h.encoding["coordinates"]


def test_global_attributes(written: Path) -> None:
    with xr.open_dataset(written) as dataset:
        attributes = dataset.attrs
        assert attributes["Conventions"] == "CF-1.11"
        assert attributes["model"] == "wm2"
        assert attributes["seed"] == 3
        assert attributes["note"] == "Zürich"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", attributes["date_created"])
        assert attributes["history"] == f"{attributes['date_created']} wm2 forecast --init 2024-02-28T18"
        assert "2024-02-28T18:00Z" in attributes["title"]


def test_callers_attributes_win_except_for_conventions(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc", attributes={"title": "mine", "Conventions": "none", "flag": True, "big": 2**40})
    with xr.open_dataset(path) as dataset:
        assert dataset.attrs["title"] == "mine"
        assert dataset.attrs["Conventions"] == "CF-1.11"
        assert dataset.attrs["flag"] == "true"
        assert dataset.attrs["big"] == 2**40


def test_windows_of_two_lengths_have_a_time_coordinate_each(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with writer(path, (1, 2), surface=("tp", "tp_6h")) as out:
        out.write(1, *state())
        out.write(2, *state())
    with xr.open_dataset(path, decode_coords="all") as dataset:
        assert "bounds" not in dataset.time.attrs | dataset.time.encoding
        for name, hours in (("tp", 1), ("tp_6h", 6)):
            coordinate = f"time_{hours}h"
            assert coordinate in dataset[name].coords
            np.testing.assert_array_equal(dataset[coordinate].values, dataset.time.values)
            low, high = dataset[f"{coordinate}_bnds"].values.T
            np.testing.assert_array_equal(high, dataset.time.values)
            np.testing.assert_array_equal(high - low, np.timedelta64(hours, "h"))
        assert "time_1h" not in dataset.z.encoding["coordinates"]
        assert "time_6h" not in dataset.tp.encoding["coordinates"]


def all_variables() -> dict[str, Any]:
    of = {kind: tuple(v.name for v in VARIABLES.values() if v.kind == kind) for kind in ("pressure", "surface")}
    return {"pressure": of["pressure"], "levels": (0.1, 500, 1000), "surface": of["surface"]}


CONTENTS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "everything": all_variables(),
    "regional, lossless": {**PLAIN, "region": (60.0, -20.0, 30.0, 30.0), "lossless": True},
    "means of paths": {**PLAIN, "paths": (1, 3)},
    "pressure only": {"pressure": ("t",), "levels": (850,), "surface": ()},
    "surface only": {"pressure": (), "levels": (), "surface": ("u100", "mx2t", "msl")},
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the compliance checker says of each content.

    It runs in a process of its own: together with xarray in one process its libraries crash at exit.
    """
    pytest.importorskip("compliance_checker")
    folder = tmp_path_factory.mktemp("compliance")
    for number, options in enumerate(CONTENTS.values()):
        upper, lower = (len(options["pressure"]), len(options["levels"])), len(options["surface"])
        attributes = {"institution": "x", "model": "y"}
        with writer(folder / f"{number}.nc", (6, 12), attributes=attributes, **options) as out:
            for lead in (6, 12):
                out.write(lead, *state(upper=upper, lower=lower))
    code = """
        import json, socket, sys
        def refuse(*_):
            sys.exit("the checker went to the network")
        socket.socket.connect = refuse
        from compliance_checker.runner import CheckSuite, ComplianceChecker
        CheckSuite.load_all_available_checkers()
        for number in range(int(sys.argv[1])):
            report = {"output_filename": f"{number}.json", "output_format": "json"}
            ComplianceChecker.run_checker(f"{number}.nc", ["cf:1.11"], 0, "strict", **report)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(len(CONTENTS))],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return {
        name: json.loads((folder / f"{number}.json").read_text())["cf:1.11"] for number, name in enumerate(CONTENTS)
    }


@pytest.mark.parametrize("content", CONTENTS)
def test_the_compliance_checker_finds_nothing(content: str, reports: dict[str, Any]) -> None:
    report = reports[content]
    assert report["scored_points"] == report["possible_points"] > 100
    problems = [
        message
        for priority in ("high", "medium", "low")
        for check in report[f"{priority}_priorities"]
        for message in check["msgs"]
    ]
    assert problems == []


@pytest.mark.skipif(shutil.which("cdo") is None, reason="needs cdo")
def test_cdo_reads_it(written: Path) -> None:
    def cdo(*arguments: str) -> str:
        done = subprocess.run(["cdo", "-s", *arguments], capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    assert cdo("showtimestamp", str(written)).split() == ["2024-02-29T00:00:00", "2024-02-29T06:00:00"]
    assert cdo("showlevel", "-selname,z", str(written)).split() == ["500", "850", "1000"]
    assert cdo("showname", str(written)).split() == ["z", "q", "t2m", "tp_6h"]
    description = cdo("sinfon", str(written))
    points = ("points=2664 (72x37)", "circular", "latitude_longitude")
    for text in ("pressure", "lonlat", *points, "Bounds = true", "RefTime =  2024-02-28 18:00:00"):
        assert text in description
    box = ("-selindexbox,11,12,21,22", "-selname,z", "-sellevel,850", "-seltimestep,2", str(written))
    values = np.float32(cdo("outputf,%.9g", *box).split())
    with xr.open_dataset(written) as dataset:
        np.testing.assert_array_equal(values, dataset.z.values[1, 1, 20:22, 10:12].ravel())


@pytest.mark.skipif(shutil.which("ncdump") is None, reason="needs ncdump")
def test_the_netcdf_tools_read_every_value(written: Path) -> None:
    done = subprocess.run(["ncdump", "-v", "t2m", str(written)], capture_output=True, text=True, check=True, timeout=60)
    values = re.findall(r"-?\d[\d.e+-]*", done.stdout.split("t2m =")[1])
    with xr.open_dataset(written) as dataset:
        np.testing.assert_allclose(np.float32(values), dataset.t2m.values.ravel(), rtol=1e-6)


# --- values ---


def test_values_are_rounded_as_stated(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc")
    with xr.open_dataset(path) as dataset:
        for index, lead in enumerate((6, 12)):
            pressure, surface = state(seed=lead)
            for name, values in (
                ("z", pressure[0]),
                ("q", pressure[1]),
                ("t2m", surface[0]),
                ("tp_6h", surface[1]),
            ):
                expected = round_mantissa(values, VARIABLES[name].keep_bits)
                np.testing.assert_array_equal(dataset[name].values[index], expected)


def test_lossless_keeps_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    pressure, surface = state()
    pressure[0, 0, 0, :4] = [np.nan, np.inf, -0.0, 1e-42]
    with writer(path, (6,), lossless=True) as out:
        out.write(6, pressure, surface)
    with xr.open_dataset(path) as dataset:
        assert dataset.z.values[0].tobytes() == pressure[0].tobytes()
        assert dataset.tp_6h.values[0].tobytes() == surface[1].tobytes()
        assert "quantization" not in dataset.z.attrs


def test_times_may_come_in_any_order_and_arrays_may_be_views(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with writer(path, (6, 12, 18)) as out:
        for lead in (18, 6, 12):
            pressure, surface = state(seed=lead)
            out.write(lead, np.asfortranarray(pressure), surface[::-1][::-1])
    with xr.open_dataset(path) as dataset:
        for index, lead in enumerate((6, 12, 18)):
            np.testing.assert_array_equal(dataset.z.values[index], round_mantissa(state(seed=lead)[0][0], 17))


@pytest.mark.parametrize("name", ["with space.nc", "a#mode=zarr,file.nc", "grüße.nc", "[x]y?.nc", "s3:b.nc", "noext"])
def test_awkward_names(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "f#mode=bytes" / "b c"
    folder.mkdir(parents=True)
    path = write(folder / name)
    assert os.listdir(folder) == [name]
    with open(path, "rb") as file:
        assert file.read(4) == b"\x89HDF"


def test_a_relative_name_is_where_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with writer(Path("a.nc"), (6,)) as out:
        os.chdir("/")
        out.write(6, *state())
    assert os.listdir(tmp_path) == ["a.nc"]


# --- what the caller promises ---


def test_a_missing_time_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"without the lead times \[12\]"), writer(tmp_path / "a.nc") as out:
        out.write(6, *state())
    assert os.listdir(tmp_path) == []


def test_what_was_not_promised_is_refused(tmp_path: Path) -> None:
    pressure, surface = state()
    bad = [
        ((7, pressure, surface), "lead time 7"),
        ((6, pressure[:1], surface), "shape"),
        ((6, pressure, surface[..., :-1]), "shape"),
        ((6, pressure.astype(np.float64), surface), "float64"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message), writer(tmp_path / "a.nc") as out:
            out.write(*arguments)
    with pytest.raises(ValueError, match="lead time 6"), writer(tmp_path / "a.nc") as out:
        out.write(6, pressure, surface)
        out.write(6, pressure, surface)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="inside of"):
        writer(tmp_path / "a.nc").write(6, pressure, surface)
    with writer(tmp_path / "a.nc", (6,), overwrite=True) as out:
        out.write(6, pressure, surface)
    with pytest.raises(ValueError, match="once"), out:
        pass


@pytest.mark.parametrize(
    "options",
    [
        {"leads": ()},
        {"leads": (12, 6)},
        {"leads": (6, 6)},
        {"levels": ()},
        {"pressure": (), "levels": (), "surface": ()},
        {"init": np.datetime64("NaT")},
        {"compression_level": 10},
        {"levels": (500, 500, 850)},
        {"pressure": ("z", "z")},
        {"surface": ("t2m", "z")},
        {"surface": ("t2m", "orog")},
    ],
)
def test_impossible_layouts(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"increase|needs|compression|twice"):
        writer(tmp_path / "a.nc", **options)


def test_an_unknown_variable_is_the_users_problem(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="t2n"):
        writer(tmp_path / "a.nc", surface=("t2n",))


# --- complete or not there ---


@pytest.mark.parametrize("problem", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_an_exception_leaves_nothing(problem: type[BaseException], times: int, tmp_path: Path) -> None:
    with pytest.raises(problem), writer(tmp_path / "a.nc") as out:
        for lead in (6, 12)[:times]:
            out.write(lead, *state())
        raise problem
    assert os.listdir(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("forecast")]
    write(tmp_path / "a.nc")


def test_an_exception_stops_promptly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = ChunkFile.write, 0

    def slow(self: ChunkFile, *arguments: Any) -> None:
        nonlocal count
        count += 1
        time.sleep(0.05)
        original(self, *arguments)

    monkeypatch.setattr(ChunkFile, "write", slow)
    started = time.monotonic()
    surface = ("t2m", "d2m", "u10", "v10", "u100", "v100", "msl", "tcc", "sp", "r2m", "q2m", "ssr")
    with (
        pytest.raises(KeyboardInterrupt),
        writer(tmp_path / "a.nc", (6, 12, 18), surface=surface, threads=1) as out,
    ):
        for lead in (6, 12, 18):
            out.write(lead, *state(lower=12))
        while not count:
            time.sleep(0.001)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 1.0  # all of it would take 2.1 s
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "problem", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("NetCDF: HDF error")]
)
def test_a_failed_write_surfaces_at_the_next_call(
    problem: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    if isinstance(problem, RuntimeError):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=512))

    def fail(*_: Any) -> None:
        raise problem

    monkeypatch.setattr(ChunkFile, "write", fail)
    leads = tuple(range(1, 50))
    calls = 0
    with (
        pytest.raises(ResourceError, match="disk is full") as raised,
        writer(tmp_path / "a.nc", leads) as out,
    ):
        for lead in leads:
            out.write(lead, *state())
            calls += 1
    assert calls < 20
    assert raised.value.exit_code == 7
    assert raised.value.__cause__ is problem
    assert re.search(r"\d+ bytes .* free in " + re.escape(str(tmp_path)), raised.value.message)
    assert str(tmp_path / "a.nc") in raised.value.message
    assert os.listdir(tmp_path) == []


def test_other_write_errors_are_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("NetCDF: HDF error")

    monkeypatch.setattr(ChunkFile, "write", fail)
    with pytest.raises(ResourceError, match="HDF error"):
        write(tmp_path / "a.nc")
    assert os.listdir(tmp_path) == []


def test_a_bug_in_the_thread_stays_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(chunks, "deflate", fail)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "a.nc")
    assert os.listdir(tmp_path) == []


def test_a_failed_close_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = ChunkFile
    original, failures = kind.close, [RuntimeError("NetCDF: HDF error")]

    def fail_once(self: Any) -> None:
        if failures:
            raise failures.pop()
        original(self)

    monkeypatch.setattr(kind, "close", fail_once)
    with pytest.raises(ResourceError):
        write(tmp_path / "a.nc")
    assert not failures
    assert os.listdir(tmp_path) == []
    write(tmp_path / "a.nc")


def test_data_that_does_not_reach_the_disk_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceError, match="disk is full"):
        write(tmp_path / "a.nc")
    assert os.listdir(tmp_path) == []


def test_the_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        steps.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        steps.append(f"replace {source.name} {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write(tmp_path / "a.nc")
    assert steps == ["sync .a.nc.part", "replace .a.nc.part a.nc", f"sync {tmp_path.name}"]


SCRIPT = f"""
    import os, sys, shutil, time
    import numpy as np
    from wm2cli.writing import chunks
    from wm2cli.errors import Wm2Error
    from wm2cli.writing.forecast_file import ForecastWriter
    from wm2cli.grid import Grid
    grid = Grid.regular(5.0)
    random = np.random.default_rng(0)
    pressure = random.normal(size=(2, 3, *grid.shape)).astype(np.float32)
    surface = random.normal(size=(2, *grid.shape)).astype(np.float32)
    options = dict(pressure=("z", "q"), levels=(500, 850, 1000), surface=("t2m", "tp_6h"), grid=grid,
                   init=np.datetime64("{INIT}"), lossless=True)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT) + textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_file_and_does_not_hinder_the_next(number: int, tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    run = start(
        """
        with ForecastWriter(sys.argv[1], leads_hours=range(10000), **options) as out:
            for lead in range(10000):
                out.write(lead, pressure, surface)
                print(lead, flush=True)
                time.sleep(0.01)
        """,
        str(path),
    )
    for _ in range(5):
        assert run.stdout is not None
        assert run.stdout.readline()
    assert not path.exists()
    assert sorted(os.listdir(tmp_path)) == [".a.nc.lock", ".a.nc.part"]
    with pytest.raises(ResourceError, match=rf"another run is writing .*a.nc: process {run.pid}") as raised:
        write(path)
    assert raised.value.exit_code == 7
    run.send_signal(number)
    _, messages = run.communicate(timeout=30)
    assert run.returncode == -number, messages
    assert not path.exists()
    if number == signal.SIGINT:
        assert os.listdir(tmp_path) == []
    write(path)
    assert os.listdir(tmp_path) == ["a.nc"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("when", ["define", "write", "close"])
def test_a_full_disk(when: str, small_disk: Path) -> None:
    # In a process of its own, to see that it ends as it should: HDF5 tries to write again on the way out.
    run = start(
        """
        path, when = sys.argv[1:]
        folder = os.path.dirname(path)
        filler = os.path.join(folder, "filler")
        def fill():
            with open(filler, "wb", buffering=0) as file:
                try:
                    while file.write(bytes(1024)):
                        pass
                except OSError:
                    pass
        kind = chunks.ChunkFile
        close = kind.close
        def fill_and_close(self):
            if when == "close" and not os.path.exists(filler):
                fill()
            close(self)
        kind.close = fill_and_close
        if when == "define":
            fill()
        times = 20 if when == "write" else 100
        if when == "close":  # many small chunks: the index of chunks is what HDF5 holds back
            grid = Grid.regular(30.0)
            pressure, surface = pressure[..., :7, :12], surface[..., :7, :12]
            options.update(grid=grid)
        try:
            with ForecastWriter(path, leads_hours=range(times), **options) as out:
                for lead in range(times):
                    out.write(lead, pressure, surface)
            print("written")
        except Wm2Error as error:
            print(error.exit_code, error)
        print("in the thread" if when != "define" and out._failure else "elsewhere")
        if os.path.exists(filler):
            os.remove(filler)
        print(os.listdir(folder), shutil.disk_usage(folder).free)
        when = ""
        with ForecastWriter(path, leads_hours=[6], **options) as out:
            out.write(6, pressure, surface)
        print(os.listdir(folder))
        """,
        str(small_disk / "a.nc"), when,
    )  # fmt: skip
    output, messages = run.communicate(timeout=30)
    assert run.returncode == 0, messages
    first, where, second, third = output.splitlines()
    assert re.match(rf"7 the disk is full: {small_disk}/a.nc could not be written; \d+ bytes", first), output
    assert where == ("in the thread" if when == "write" else "elsewhere")
    free = int(second.removeprefix("[] "))
    assert free > 350_000
    assert third == "['a.nc']"
    assert messages == ""


# --- the target ---


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists already") as raised:
        writer(path)
    assert raised.value.exit_code == 2
    assert "--overwrite" in (raised.value.hint or "")
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["a.nc"]


def test_overwriting_keeps_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    path.write_text("precious")
    with pytest.raises(KeyboardInterrupt), writer(path, overwrite=True) as out:
        out.write(6, *state())
        raise KeyboardInterrupt
    assert path.read_text() == "precious"
    with writer(path, (6,), overwrite=True) as out:
        out.write(6, *state())
        assert path.read_text() == "precious"
    with xr.open_dataset(path) as dataset:
        assert dataset.sizes["time"] == 1
    assert os.listdir(tmp_path) == ["a.nc"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with pytest.raises(UsageError, match="exists already"), writer(path, (6,)) as out:
        out.write(6, *state())
        path.write_text("precious")
    assert path.read_text() == "precious"
    out = writer(tmp_path / "b.nc", (6,))
    (tmp_path / "b.nc").write_text("precious")
    with pytest.raises(UsageError, match="exists already"), out:
        pass
    assert sorted(os.listdir(tmp_path)) == ["a.nc", "b.nc"]


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "latest.nc").symlink_to(tmp_path / "data" / "a.nc")
    write(tmp_path / "latest.nc")
    assert os.listdir(tmp_path / "data") == ["a.nc"]
    assert (tmp_path / "latest.nc").is_symlink()


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    for path in (Path("/dev/null"), tmp_path, Path("/"), Path("")):
        with pytest.raises(UsageError, match="not a regular file"):
            writer(path, overwrite=True)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="does not exist") as raised:
        writer(tmp_path / "not" / "there" / "a.nc")
    assert raised.value.exit_code == 7
    assert str(tmp_path / "not" / "there") in raised.value.message
    assert raised.value.hint == f"mkdir -p {tmp_path / 'not' / 'there'}"


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write everywhere; for a while be someone who may not."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_that_is_not_writable() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)  # noqa: S103
        with (
            ordinary_user(),
            pytest.raises(ResourceError, match="Permission denied") as raised,
            writer(Path(folder) / "a.nc"),
        ):
            pass
        assert raised.value.exit_code == 7
        assert f"{folder}/a.nc" in raised.value.message
        assert "disk is full" not in raised.value.message
        os.chmod(folder, 0o000)
        with ordinary_user(), pytest.raises(ResourceError), writer(Path(folder) / "a.nc"):
            pass
        os.chmod(folder, 0o700)
        assert os.listdir(folder) == []


def test_a_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="too long"), writer(tmp_path / ("a" * 252 + ".nc")):
        pass


def test_one_run_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with writer(path, (6,)) as out:
        with (
            pytest.raises(ResourceError, match=f"another run is writing .*: process {os.getpid()}"),
            writer(path),
        ):
            pass
        out.write(6, *state())
        write(tmp_path / "b.nc")  # another name is another matter
    assert sorted(os.listdir(tmp_path)) == ["a.nc", "b.nc"]


def test_what_a_dead_run_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".a.nc.lock").write_text("1")
    (tmp_path / ".a.nc.part").write_text("half a file")
    write(tmp_path / "a.nc")
    assert os.listdir(tmp_path) == ["a.nc"]


def test_a_lock_whose_file_was_removed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, flock, calls = tmp_path / ".a.nc.lock", fcntl.flock, 0

    def remove_once(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            lock.unlink()  # as the run before does between our opening and our locking
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_once)
    with writer(tmp_path / "a.nc", (6,)) as out:
        assert calls == 2
        assert lock.exists()
        out.write(6, *state())
    assert os.listdir(tmp_path) == ["a.nc"]


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    write(tmp_path / "a.nc")
    assert os.listdir(tmp_path) == ["a.nc"]
    assert "no locks" in caplog.text


# --- memory, speed, neighbours ---


def test_memory_does_not_grow_with_the_number_of_times(tmp_path: Path) -> None:
    run = start(
        """
        import resource
        grid = Grid.regular(1.0)
        options.update(grid=grid, threads=2)
        def peak(times):
            with ForecastWriter(sys.argv[1], leads_hours=range(times), overwrite=True, **options) as out:
                for lead in range(times):
                    pressure = np.full((2, 3, *grid.shape), lead, np.float32)
                    out.write(lead, pressure, np.full((2, *grid.shape), lead, np.float32))
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(peak(8), peak(56))
        """,
        str(tmp_path / "a.nc"),
    )  # fmt: skip
    output, messages = run.communicate(timeout=60)
    assert run.returncode == 0, messages
    short, long = map(float, output.split())
    one_state = 8 * 181 * 360 * 4 / 2**20  # 2 MiB; keeping all would take 95 MiB more
    assert long - short < 4 * one_state


def test_the_caller_waits_when_two_times_are_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, original = threading.Event(), ChunkFile.write

    def wait(self: ChunkFile, *arguments: Any) -> None:
        gate.wait(10)
        original(self, *arguments)

    monkeypatch.setattr(ChunkFile, "write", wait)
    with writer(tmp_path / "a.nc", (1, 2, 3, 4, 5)) as out:
        written: list[int] = []

        def produce() -> None:
            for lead in (1, 2, 3, 4, 5):
                out.write(lead, *state())
                written.append(lead)

        producer = threading.Thread(target=produce)
        producer.start()
        time.sleep(0.3)
        assert len(written) == 3  # one in work, two in the queue
        gate.set()
        producer.join(10)
        assert len(written) == 5


def test_xarray_may_read_while_a_file_is_written(tmp_path: Path, written: Path) -> None:
    leads = tuple(range(1, 60))
    with xr.open_dataset(written, cache=False) as source:
        expected = source.z.values
        with writer(tmp_path / "a.nc", leads) as out:
            for lead in leads:
                out.write(lead, *state())
                np.testing.assert_array_equal(source.z.values, expected)
    with xr.open_dataset(tmp_path / "a.nc") as dataset:
        np.testing.assert_array_equal(dataset.z.values[-1], round_mantissa(state()[0][0], 17))


def test_estimated_and_real_size(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc", lossless=True, compression_level=0)
    size = estimate_bytes(**PLAIN, shape=GRID.shape, times=2)
    values = 2 * (2 * 3 + 2) * 37 * 72 * 4
    assert size.uncompressed == pytest.approx(values, abs=250_000)
    assert path.stat().st_size == pytest.approx(values, abs=250_000)
    whole = estimate_bytes(pressure=("z",) * 5, levels=(1,) * 25, surface=("t2m",) * 13, shape=(721, 1440), times=56)
    assert whole.uncompressed == pytest.approx(32.1e9, rel=0.01)
    assert whole.expected == pytest.approx(32.1e9 / 2.5, rel=0.01)
    exact = estimate_bytes(**PLAIN, shape=(721, 1440), times=9, lossless=True)
    assert exact.uncompressed > exact.expected > estimate_bytes(**PLAIN, shape=(721, 1440), times=9).expected


def test_space_is_checked_where_the_file_will_be(tmp_path: Path) -> None:
    assert check_space(tmp_path / "not" / "yet" / "a.nc", 1000) > 1000
    with pytest.raises(ResourceError, match=r"needs about 1e\+06 TB") as raised:
        check_space(tmp_path / "a.nc", 10**18)
    assert str(tmp_path) in raised.value.message
    assert raised.value.exit_code == 7


def test_importing_is_cheap() -> None:
    code = "import sys, wm2cli.writing.forecast_file; print({'torch', 'netCDF4', 'xarray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)  # fmt: skip
    assert done.stdout.strip() == "set()"
