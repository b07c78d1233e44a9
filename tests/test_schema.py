"""The table of variables and what a schema finds wrong."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from wm2cli.errors import ConfigError, UsageError
from wm2cli.schema import (
    LEVELS_13,
    LEVELS_25,
    LEVELS_28,
    LEVELS_37,
    VARIABLES,
    Schema,
    standard_height,
    standard_temperature,
    value_issues,
    variable,
)

WM2_OUTPUT_ONLY = {"mx2t", "mn2t", "lsp", "cp", "tp", "ssr"}


def test_the_table_holds_every_variable_of_weathermesh2() -> None:
    assert {"z", "t", "u", "v", "q", "t2m", "d2m", "u10", "v10", "u100", "v100", "msl", "tcc"} <= set(VARIABLES)
    assert set(VARIABLES) >= WM2_OUTPUT_ONLY
    assert all(VARIABLES[name].window_hours == 1 for name in WM2_OUTPUT_ONLY)
    assert all(VARIABLES[f"{name}_6h"].window_hours == 6 for name in WM2_OUTPUT_ONLY)


def test_names_are_cf_safe_and_aliases_do_not_collide() -> None:
    assert all(name[0].isalpha() and name.isidentifier() for name in VARIABLES)
    owners: dict[str, set[str]] = {}
    for known in VARIABLES.values():
        for alias in known.aliases:
            owners.setdefault(alias, set()).add(known.name.removesuffix("_6h"))
    assert {alias: names for alias, names in owners.items() if len(names) > 1} == {}


def test_grib_keys_do_not_collide() -> None:
    owners: dict[object, set[str]] = {}
    for known in VARIABLES.values():
        for key in known.grib:
            for kind in key.level_types:
                owners.setdefault((key.param_id, kind, key.level), set()).add(known.name.removesuffix("_6h"))
    assert {key: names for key, names in owners.items() if len(names) > 1} == {}


def test_level_sets() -> None:
    assert [len(levels) for levels in (LEVELS_13, LEVELS_25, LEVELS_28, LEVELS_37)] == [13, 25, 28, 37]
    # The vertical slots of the public WeatherMesh-3, four levels each.
    assert LEVELS_28[:8] == (10, 30, 50, 70, 100, 125, 150, 175)
    assert set(LEVELS_13) <= set(LEVELS_25) <= set(LEVELS_28) <= set(LEVELS_37)


@pytest.mark.parametrize(
    ("level", "height", "temperature"),
    # ICAO standard atmosphere (ISO 2533), geopotential metres and kelvin at these pressures.
    [
        (1013.25, 0.0, 288.15),
        (500, 5574.4, 251.92),
        (226.32, 11000.0, 216.65),
        (54.749, 20000.0, 216.65),
        (8.6802, 32000.0, 228.65),
    ],
)
def test_standard_atmosphere(level: float, height: float, temperature: float) -> None:
    assert standard_height(level) == pytest.approx(height, abs=0.5)
    assert standard_temperature(level) == pytest.approx(temperature, abs=0.01)


def test_channels_are_variable_major() -> None:
    schema = Schema(("z", "t"), (500.0, 850.0), ("t2m", "msl"))
    assert schema.channels == ("z500", "z850", "t500", "t850", "t2m", "msl")


def test_a_schema_lists_everything_wrong_with_itself() -> None:
    with pytest.raises(ConfigError) as caught:
        Schema(("z", "t2m", "rain"), (850.0, 500.0), ("msl", "msl"))
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for part in ("'t2m' is surface", "'rain' is unknown", "'msl' is given twice", "levels must increase"):
        assert part in text


def test_schema_round_trip() -> None:
    schema = Schema(("z",), (0.5, 500.0), ("t2m",), ("orog",), ("hour",))
    assert Schema.from_dict(schema.to_dict()) == schema


def test_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        variable("t2n")
    assert "t2m" in (caught.value.hint or "")


def dataset() -> xr.Dataset:
    """Half a schema: z at one of two levels, in its unit; t2m in Celsius; msl with a hole; tcc is not there."""
    axes = {
        "time": [np.datetime64("2024-01-01", "ns")],
        "level": [500.0],
        "latitude": [45.0, -45.0],
        "longitude": [0.0, 180.0],
    }
    upper, lower = ("time", "level", "latitude", "longitude"), ("time", "latitude", "longitude")
    return xr.Dataset(
        {
            "z": (upper, np.full((1, 1, 2, 2), 5500.0), {"units": "m2 s-2"}),
            "t2m": (lower, np.full((1, 2, 2), 15.0), {"units": "degC"}),
            "msl": (lower, np.array([[[1e5, np.nan], [1e5, 1e5]]]), {"units": "Pa"}),
        },
        axes,
    )


def test_issues_with_lists_every_problem_at_once() -> None:
    schema = Schema(("z",), (500.0, 850.0), ("t2m", "msl", "tcc"))
    issues = schema.issues_with(dataset())
    assert issues == [
        "z lacks the levels 850 hPa",
        "z500 spans 5500 to 5500 m2 s-2, possible are 38466.5 to 70866.5: wrong unit or corrupt",
        "t2m has units 'degC', expected 'K'",
        "msl has 1 missing or infinite values of 4",
        "tcc (Total cloud cover) is missing",
    ]


@pytest.mark.parametrize(
    ("name", "level", "wrong"),
    [("z", 300, 9000.0), ("t", 850, 15.0), ("q", 1000, 12.0), ("msl", None, 1013.0), ("tcc", None, 87.0)],
)
def test_values_in_a_wrong_unit_are_noticed(name: str, level: float | None, wrong: float) -> None:
    """Height for geopotential, Celsius, g/kg, hPa and percent."""
    assert value_issues(VARIABLES[name], np.full((2, 2), wrong), level)


def test_no_two_channels_have_one_name() -> None:
    schema = Schema(("u", "v"), (100, 1000), ("u10", "u100", "v100"))
    # `u100` is the wind at 100 m: as statistics by label the one at 100 hPa would take its place.
    assert schema.channels == ("u100hPa", "u1000", "v100hPa", "v1000", "u10", "u100", "v100")
