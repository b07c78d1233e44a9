"""The variables wm2 knows, and the channel order of a model.

`VARIABLES` is the one table of names, units, CF names, bounds and foreign spellings. Units are SI; a name that readers
use for a quantity in another unit carries its factor here and nowhere else.

Sources: ECMWF parameter database (paramId), CF standard name table, WMO GRIB2 code table 4.2 and the CDS variable names
of ERA5.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from wm2cli.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import xarray as xr

GRAVITY = 9.80665
"""Standard gravity in m s-2 (WMO, CGPM 1901): geopotential = GRAVITY x geopotential height."""

LOG_FLOOR_M = 1e-7
"""Added to precipitation in metres before the logarithm: a ten-thousandth of a millimetre counts as dry."""

Kind = Literal["pressure", "surface", "static"]
Statistic = Literal["point", "sum", "mean", "maximum", "minimum"]

_PRESSURE_LEVELS = ("isobaricInhPa", "isobaricInPa")
_GROUND = ("surface", "heightAboveGround")
_SEA = ("surface", "meanSea")
_COLUMN = ("surface", "entireAtmosphere", "atmosphere", "atmosphereSingleLayer")


@dataclass(frozen=True)
class GribKey:
    """How a GRIB message names a variable.

    Args:
        param_id: ECMWF parameter id, the same in edition 1 and 2.
        level_types: eccodes `typeOfLevel` values under which the id means this variable.
        level: Required level (metres above ground), or None when the type decides alone.
        scale: Factor from the message's unit to ours.
    """

    param_id: int
    level_types: tuple[str, ...]
    level: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Variable:
    """A quantity: its name in wm2, its unit, and what files call it.

    Args:
        name: CF-safe name, also the name in every file wm2 writes.
        kind: On pressure levels, one value per column, or constant in time.
        units: UDUNITS string of the values in wm2.
        low, high: Values outside are impossible and an error wherever they turn up.
        clip_low, clip_high: Physical limits; values between `low` and `clip_low` are packing noise and are set to it.
        keep_bits: Mantissa bits kept in files (relative precision 2**-keep_bits).
        statistic: How the value stands for the `window_hours` before its time.
        height_m: Height above ground, for near-surface variables.
        aliases: Names of the same quantity in NetCDF and Zarr files (CDS short and long names, ECMWF, NCEP).
        grib: Names of the same quantity in GRIB.
    """

    name: str
    kind: Kind
    long_name: str
    standard_name: str | None
    units: str
    low: float
    high: float
    keep_bits: int = 12
    clip_low: float = -math.inf
    clip_high: float = math.inf
    statistic: Statistic = "point"
    window_hours: int = 0
    height_m: float | None = None
    aliases: tuple[str, ...] = ()
    grib: tuple[GribKey, ...] = ()

    def plausible(self, level_hpa: float | None = None) -> tuple[float, float]:
        """Smallest and largest possible value, in `units`, at a level.

        Geopotential is bounded around the standard atmosphere so that heights given as geopotential are noticed.
        """
        if self.name == "z" and level_hpa is not None:
            centre = GRAVITY * standard_height(level_hpa)
            margin = 8000.0 + 0.15 * abs(centre)
            return centre - margin, centre + margin
        return self.low, self.high


def standard_height(level_hpa: float) -> float:
    """Geopotential height in metres of a pressure level in the ICAO standard atmosphere (ISO 2533), up to 47 km."""
    base_height, base_temperature, base_pressure = 0.0, 288.15, 1013.25
    for top, lapse in ((11000.0, -0.0065), (20000.0, 0.0), (32000.0, 0.001), (47000.0, 0.0028)):
        thickness = top - base_height
        if lapse == 0.0:
            top_pressure = base_pressure * math.exp(-GRAVITY * thickness / (287.05287 * base_temperature))
        else:
            ratio = 1.0 + lapse * thickness / base_temperature
            top_pressure = base_pressure * ratio ** (-GRAVITY / (287.05287 * lapse))
        if level_hpa >= top_pressure or top == 47000.0:
            break
        base_height, base_temperature, base_pressure = top, base_temperature + lapse * thickness, top_pressure
    if lapse == 0.0:
        return base_height - 287.05287 * base_temperature / GRAVITY * math.log(level_hpa / base_pressure)
    exponent = -287.05287 * lapse / GRAVITY
    return base_height + base_temperature / lapse * (math.pow(level_hpa / base_pressure, exponent) - 1.0)


def standard_temperature(level_hpa: float) -> float:
    """Temperature in K of a pressure level in the ICAO standard atmosphere (ISO 2533), up to 47 km."""
    height, base, temperature = standard_height(level_hpa), 0.0, 288.15
    for top, lapse in ((11000.0, -0.0065), (20000.0, 0.0), (32000.0, 0.001), (47000.0, 0.0028)):
        temperature += lapse * (min(height, top) - base)
        if height <= top:
            break
        base = top
    return temperature


def _pressure(name: str, param_id: int, long_name: str, standard_name: str, units: str, low: float, high: float,
              *aliases: str, **more: Any) -> Variable:  # fmt: skip
    more.setdefault("grib", (GribKey(param_id, _PRESSURE_LEVELS),))
    return Variable(name, "pressure", long_name, standard_name, units, low, high, aliases=(name, *aliases), **more)


def _surface(name: str, grib: tuple[GribKey, ...], long_name: str, standard_name: str | None, units: str, low: float,
             high: float, *aliases: str, **more: Any) -> Variable:  # fmt: skip
    return Variable(name, "surface", long_name, standard_name, units, low, high,
                    aliases=(name, *aliases), grib=grib, **more)  # fmt: skip


def _windows(variable: Variable) -> tuple[Variable, Variable]:
    """The variable over the last hour and over the last six hours (`_6h`)."""
    six = replace(variable, name=f"{variable.name}_6h", long_name=f"{variable.long_name}, 6 h", window_hours=6)
    return replace(variable, window_hours=1), six


_TABLE: tuple[Variable, ...] = (
    _pressure("z", 129, "Geopotential", "geopotential", "m2 s-2", -2e4, 8e5, "geopotential", "gh", "Z",
              "Z3", "zg", "hgt", "geopotential_height", keep_bits=17,
              grib=(GribKey(129, _PRESSURE_LEVELS), GribKey(156, _PRESSURE_LEVELS, scale=GRAVITY))),
    _pressure("t", 130, "Temperature", "air_temperature", "K", 100.0, 400.0, "temperature", "T", "ta", keep_bits=14),
    _pressure("u", 131, "Eastward wind", "eastward_wind", "m s-1", -250.0, 250.0, "u_component_of_wind", "U", "ua",
              keep_bits=11),
    _pressure("v", 132, "Northward wind", "northward_wind", "m s-1", -250.0, 250.0, "v_component_of_wind", "V", "va",
              keep_bits=11),
    _pressure("q", 133, "Specific humidity", "specific_humidity", "kg kg-1", -1e-3, 0.1, "specific_humidity",
              "Q", "SHUM", "hus", clip_low=0.0, keep_bits=12),
    _pressure("r", 157, "Relative humidity", "relative_humidity", "1", -0.5, 3.0, "relative_humidity", "R",
              "RELHUM", "hur",
              grib=(GribKey(157, _PRESSURE_LEVELS, scale=0.01),)),
    _surface("t2m", (GribKey(167, _GROUND),), "2 metre temperature", "air_temperature", "K", 150.0, 350.0,
             "2t", "2m_temperature", "VAR_2T", "TREFHT", "tas", keep_bits=14, height_m=2.0),
    _surface("d2m", (GribKey(168, _GROUND),), "2 metre dewpoint temperature", "dew_point_temperature", "K",
             130.0, 340.0, "2d", "2m_dewpoint_temperature", "VAR_2D", keep_bits=14, height_m=2.0),
    _surface("u10", (GribKey(165, _GROUND),), "10 metre eastward wind", "eastward_wind", "m s-1", -120.0, 120.0,
             "10u", "10m_u_component_of_wind", "VAR_10U", "uas", keep_bits=11, height_m=10.0),
    _surface("v10", (GribKey(166, _GROUND),), "10 metre northward wind", "northward_wind", "m s-1", -120.0, 120.0,
             "10v", "10m_v_component_of_wind", "VAR_10V", "vas", keep_bits=11, height_m=10.0),
    _surface("u100", (GribKey(228246, _GROUND), GribKey(131, ("heightAboveGround",), 100.0)),
             "100 metre eastward wind", "eastward_wind", "m s-1", -150.0, 150.0,
             "100u", "100m_u_component_of_wind", "VAR_100U", keep_bits=11, height_m=100.0),
    _surface("v100", (GribKey(228247, _GROUND), GribKey(132, ("heightAboveGround",), 100.0)),
             "100 metre northward wind", "northward_wind", "m s-1", -150.0, 150.0,
             "100v", "100m_v_component_of_wind", "VAR_100V", keep_bits=11, height_m=100.0),
    _surface("msl", (GribKey(151, _SEA), GribKey(260074, _SEA)), "Mean sea level pressure",
             "air_pressure_at_mean_sea_level", "Pa", 8e4, 1.15e5, "mean_sea_level_pressure", "MSL", "prmsl", "PSL",
             "psl", keep_bits=16),
    _surface("tcc", (GribKey(164, _COLUMN), GribKey(228164, _COLUMN, scale=0.01)), "Total cloud cover",
             "cloud_area_fraction", "1", -0.02, 1.02, "total_cloud_cover", "TCC", "clt", clip_low=0.0,
             clip_high=1.0, keep_bits=10),
    *_windows(_surface("mx2t", (GribKey(201, _GROUND), GribKey(3015, _GROUND)), "Maximum 2 metre temperature",
                       "air_temperature", "K", 150.0, 350.0, "maximum_2m_temperature_since_previous_post_processing",
                       keep_bits=14, height_m=2.0, statistic="maximum")),
    *_windows(_surface("mn2t", (GribKey(202, _GROUND), GribKey(3016, _GROUND)), "Minimum 2 metre temperature",
                       "air_temperature", "K", 150.0, 350.0, "minimum_2m_temperature_since_previous_post_processing",
                       keep_bits=14, height_m=2.0, statistic="minimum")),
    *_windows(_surface("lsp", (GribKey(142, ("surface",)),), "Large-scale precipitation",
                       "lwe_thickness_of_stratiform_precipitation_amount", "m", -1e-4, 5.0,
                       "large_scale_precipitation", clip_low=0.0, keep_bits=10, statistic="sum")),
    *_windows(_surface("cp", (GribKey(143, ("surface",)), GribKey(3063, ("surface",), scale=1e-3)),
                       "Convective precipitation", "lwe_thickness_of_convective_precipitation_amount", "m", -1e-4, 5.0,
                       "convective_precipitation", clip_low=0.0, keep_bits=10, statistic="sum")),
    *_windows(_surface("tp", (GribKey(228, ("surface",)), GribKey(228228, ("surface",), scale=1e-3)),
                       "Total precipitation", "lwe_thickness_of_precipitation_amount", "m", -1e-4, 5.0,
                       "total_precipitation", clip_low=0.0, keep_bits=10, statistic="sum")),
    *_windows(_surface("ssr", (GribKey(176, ("surface",)),), "Surface net shortwave radiation",
                       "integral_wrt_time_of_surface_net_downward_shortwave_flux", "J m-2", -1e5, 5e7,
                       "surface_net_solar_radiation", clip_low=0.0, keep_bits=12, statistic="sum")),
    # Only ever read, to derive what a model needs.
    _surface("sp", (GribKey(134, ("surface",)),), "Surface pressure", "surface_air_pressure", "Pa", 3e4, 1.15e5,
             "surface_pressure", "SP", "PS", "ps", keep_bits=16),
    _surface("r2m", (GribKey(260242, _GROUND, scale=0.01),), "2 metre relative humidity", "relative_humidity", "1",
             -0.5, 2.0, "2r", "r2", height_m=2.0),
    _surface("q2m", (GribKey(174096, _GROUND),), "2 metre specific humidity", "specific_humidity", "kg kg-1",
             -1e-3, 0.1, "2sh", "sh2", clip_low=0.0, height_m=2.0),
    Variable("orog", "static", "Orography", "surface_altitude", "m", -500.0, 9000.0, keep_bits=16,
             aliases=("orog", "geopotential_at_surface", "HGT_surface", "orography"),
             grib=(GribKey(228002, ("surface",)), GribKey(129, ("surface",), scale=1.0 / GRAVITY))),
    Variable("lsm", "static", "Land-sea mask", "land_area_fraction", "1", -0.01, 1.01, clip_low=0.0, clip_high=1.0,
             aliases=("lsm", "land_sea_mask"), grib=(GribKey(172, ("surface",)),)),
    Variable("slt", "static", "Soil type", "soil_type", "1", 0.0, 7.0, aliases=("slt", "soil_type"),
             grib=(GribKey(43, ("surface",)),)),
)  # fmt: skip

VARIABLES: Mapping[str, Variable] = {variable.name: variable for variable in _TABLE}

LEVELS_13 = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
"""WeatherBench levels in hPa."""
LEVELS_25 = (10, 30, 50, 70, 100, 150, 200, 250, 300, 350, 400, 450, 500, 550, 600, 650, 700, 750, 800, 850, 900, 925,
             950, 975, 1000)  # fmt: skip
"""WeatherMesh-2 levels in hPa."""
LEVELS_28 = tuple(sorted({*LEVELS_25, 125, 175, 875}))
"""WeatherMesh-3 levels in hPa."""
LEVELS_37 = (1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100, 125, 150, 175, 200, 225, 250, 300, 350, 400, 450, 500, 550, 600,
             650, 700, 750, 775, 800, 825, 850, 875, 900, 925, 950, 975, 1000)  # fmt: skip
"""ERA5 levels in hPa."""


def variable(name: str) -> Variable:
    """The variable of that name.

    Raises:
        UsageError: No such variable; names the nearest ones.
    """
    if name in VARIABLES:
        return VARIABLES[name]
    near = difflib.get_close_matches(name, VARIABLES, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"known variables: {', '.join(VARIABLES)}"
    raise UsageError(f"unknown variable '{name}'", hint=hint)


def log_floors(names: Iterable[str]) -> dict[str, float]:
    """The variables among some that are normalised as ln(value + floor), sums of precipitation, with their floors."""
    return {name: LOG_FLOOR_M for name in names if name.removesuffix("_6h") in ("lsp", "cp", "tp")}


def level_text(level_hpa: float) -> str:
    """A level as people write it: 500, 0.1."""
    return f"{level_hpa:g}"


def channel_label(name: str, level_hpa: float | None = None) -> str:
    """A channel as people write it: `z500`, `t2m`; `u100hPa`, since `u100` is the wind 100 m above the ground."""
    if level_hpa is None:
        return name
    label = f"{name}{level_text(level_hpa)}"
    return f"{label}hPa" if label in VARIABLES else label


@dataclass(frozen=True)
class Schema:
    """What a model reads or writes; the order as written is the channel order.

    Args:
        pressure: Names of variables on pressure levels.
        levels: Levels in hPa, from low pressure to high, the same for all pressure variables.
        surface: Names of variables with one value per column.
        static: Names of fields constant in time.
        forcing: Names of features of time and place (`wm2cli.forcings`).

    Raises:
        ConfigError: A name is unknown, of another kind or given twice, or levels are not increasing; all are listed.
    """

    pressure: tuple[str, ...]
    levels: tuple[float, ...]
    surface: tuple[str, ...]
    static: tuple[str, ...] = ()
    forcing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = [
            f"{kind} variable '{name}' is {'unknown' if name not in VARIABLES else VARIABLES[name].kind}"
            for kind, names in (("pressure", self.pressure), ("surface", self.surface), ("static", self.static))
            for name in names
            if name not in VARIABLES or VARIABLES[name].kind != kind
        ]
        everything = (*self.pressure, *self.surface, *self.static, *self.forcing)
        problems += [f"'{name}' is given twice" for name in sorted({n for n in everything if everything.count(n) > 1})]
        if any(low >= high for low, high in zip(self.levels, self.levels[1:], strict=False)):
            problems.append(f"levels must increase, found {list(self.levels)}")
        if any(level <= 0 for level in self.levels):
            problems.append(f"levels must be positive pressures in hPa, found {list(self.levels)}")
        if bool(self.pressure) != bool(self.levels):
            problems.append("pressure variables and levels must be given together")
        if problems:
            raise ConfigError("the schema is not possible", problems=problems)

    @property
    def channels(self) -> tuple[str, ...]:
        """Labels of all dynamic channels in order: `z50 ... q1000 t2m ...`."""
        upper = tuple(channel_label(name, level) for name in self.pressure for level in self.levels)
        return upper + self.surface

    @property
    def dynamic(self) -> Schema:
        """The part that changes with the weather: what an analysis has to bring."""
        return replace(self, static=(), forcing=())

    def issues_with(self, dataset: xr.Dataset) -> list[str]:
        """Everything in which a canonical data set falls short of this schema, one line each.

        Looked at: presence of variables and levels, units, dimensions, missing and impossible values.
        Args:
            dataset: Variables named as here, dims (time, level, latitude, longitude) or (time, latitude, longitude).
        """
        issues: list[str] = []
        have_levels = {float(level) for level in dataset["level"].values} if "level" in dataset else set()
        for name in (*self.pressure, *self.surface, *self.static):
            known = VARIABLES[name]
            if name not in dataset:
                issues.append(f"{name} ({known.long_name}) is missing")
                continue
            field = dataset[name]
            dims = {"pressure": ("time", "level", "latitude", "longitude"),
                    "surface": ("time", "latitude", "longitude"),
                    "static": ("latitude", "longitude")}[known.kind]  # fmt: skip
            if field.dims != dims:
                issues.append(f"{name} has dimensions {field.dims}, expected {dims}")
                continue
            if field.attrs.get("units") != known.units:
                issues.append(f"{name} has units '{field.attrs.get('units')}', expected '{known.units}'")
                continue
            if known.kind != "pressure":
                issues += value_issues(known, field.values)
                continue
            absent = [level_text(level) for level in self.levels if float(level) not in have_levels]
            if absent:
                issues.append(f"{name} lacks the levels {' '.join(absent)} hPa")
            for level in self.levels:
                if float(level) in have_levels:
                    issues += value_issues(known, field.sel(level=float(level)).values, level)
        return issues

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists for a JSON header."""
        return {name: list(getattr(self, name)) for name in ("pressure", "levels", "surface", "static", "forcing")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Iterable[Any]]) -> Schema:
        """The inverse of `to_dict`."""
        return cls(**{name: tuple(values[name]) for name in values})


def value_issues(known: Variable, values: Any, level_hpa: float | None = None) -> list[str]:
    """Missing and impossible values of one field, as lines for people.

    Args:
        known: The variable.
        values: numpy array of any shape in the variable's unit.
        level_hpa: Level, for variables on pressure levels.
    """
    import numpy as np

    label = channel_label(known.name, level_hpa)
    missing = int(np.size(values) - np.count_nonzero(np.isfinite(values)))
    if missing:
        return [f"{label} has {missing} missing or infinite values of {np.size(values)}"]
    low, high = known.plausible(level_hpa)
    least, most = float(np.min(values)), float(np.max(values))
    if least < low or most > high:
        return [f"{label} spans {least:.6g} to {most:.6g} {known.units}, possible are {low:.6g} to {high:.6g}: "
                f"wrong unit or corrupt"]  # fmt: skip
    return []
