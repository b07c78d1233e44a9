"""Made-up weather and files of it: every (variable, level) is a smooth field without any symmetry, so that a
flipped, shifted or exchanged field shows."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import eccodes
import netCDF4
import numpy as np
from numpy.typing import NDArray

from wm2cli.schema import GRAVITY, VARIABLES, Schema, standard_height, standard_temperature

Array = NDArray[np.float64]
Style = Literal["era5", "gfs", "ifs"]

TIME = np.datetime64("2024-01-01T06:00", "s")
LAT = np.linspace(90.0, -90.0, 37)
LON = np.arange(0.0, 360.0, 5.0)
LEVELS = (200, 300, 500, 700, 850, 1000)
UPPER = ("z", "t", "u", "v", "q")
GROUND = ("t2m", "d2m", "u10", "v10", "u100", "v100", "msl", "tcc")
SCHEMA = Schema(UPPER, LEVELS, GROUND)

_NUMBERS = {  # mean and amplitude of what does not depend on the level
    "u": (0, 20),
    "v": (0, 20),
    "r": (0.6, 0.3),
    "t2m": (285, 15),
    "d2m": (278, 12),
    "u10": (0, 8),
    "v10": (0, 8),
    "u100": (0, 11),
    "v100": (0, 11),
    "msl": (101000, 2000),
    "tcc": (0.5, 0.4),
    "mx2t": (288, 15),
    "mn2t": (282, 15),
    "lsp": (1e-3, 8e-4),
    "cp": (1e-3, 8e-4),
    "tp": (2e-3, 1.5e-3),
    "ssr": (1e6, 8e5),
    "sp": (98000, 3000),
    "r2m": (0.6, 0.3),
    "q2m": (6e-3, 4e-3),
    "orog": (500, 400),
    "lsm": (0.5, 0.4),
}


def weather(name: str, level: float | None = None, lat: Array = LAT, lon: Array = LON, day: float = 0.0) -> Array:
    """(H, W) in wm2's unit; the same function of place on every grid."""
    seed = zlib.crc32(f"{name} {None if level is None else float(level)} {day}".encode())
    one, two, three = ((seed >> shift) % 256 / 256 * 6.28 for shift in (0, 8, 16))
    phi, lam = np.deg2rad(lat)[:, None], np.deg2rad(lon)[None, :]
    pattern = 0.5 * np.sin(phi) + 0.1 * np.sin(3 * phi + three)
    pattern = pattern + np.cos(phi) * (0.25 * np.sin(lam + one) + 0.15 * np.cos(2 * lam + two))
    if name == "z" and level is not None:
        return np.asarray(GRAVITY * (standard_height(level) + 120 * pattern))
    if name == "t" and level is not None:
        return standard_temperature(level) + 12 * pattern
    if name == "q" and level is not None:
        return 8e-3 * (level / 1000) ** 3 * (1 + 0.9 * pattern)
    if name == "slt":
        return np.asarray(np.clip(np.round(3.5 + 4 * pattern), 0, 7))
    mean, amplitude = _NUMBERS[name]
    return np.asarray(mean + amplitude * pattern)


_GFS = {  # discipline, category, number, kind of surface, factor from our unit to the message's
    "z": (0, 3, 5, 100, 1 / GRAVITY),
    "t": (0, 0, 0, 100, 1),
    "u": (0, 2, 2, 100, 1),
    "v": (0, 2, 3, 100, 1),
    "q": (0, 1, 0, 100, 1),
    "r": (0, 1, 1, 100, 100),
    "t2m": (0, 0, 0, 103, 1),
    "d2m": (0, 0, 6, 103, 1),
    "r2m": (0, 1, 1, 103, 100),
    "q2m": (0, 1, 0, 103, 1),
    "u10": (0, 2, 2, 103, 1),
    "v10": (0, 2, 3, 103, 1),
    "u100": (0, 2, 2, 103, 1),
    "v100": (0, 2, 3, 103, 1),
    "msl": (0, 3, 1, 101, 1),
    "mslet": (0, 3, 192, 101, 1),
    "tcc": (0, 6, 1, 10, 100),
    "sp": (0, 3, 0, 1, 1),
    "orog": (0, 3, 5, 1, 1),
    "lsm": (2, 0, 0, 1, 1),
    "tp": (0, 1, 8, 1, 1000),
    "cp": (0, 1, 10, 1, 1000),
    "mx2t": (0, 0, 4, 103, 1),
    "mn2t": (0, 0, 5, 103, 1),
}
_HEIGHTS = {
    "t2m": 2,
    "d2m": 2,
    "r2m": 2,
    "q2m": 2,
    "u10": 10,
    "v10": 10,
    "u100": 100,
    "v100": 100,
    "mx2t": 2,
    "mn2t": 2,
}
_STATISTICS = {"mean": 0, "sum": 1, "maximum": 2, "minimum": 3}


def encode(
    name: str,
    level: float | None = None,
    values: Array | None = None,
    *,
    style: Style = "era5",
    lat: Array = LAT,
    lon: Array = LON,
    time: np.datetime64 = TIME,
    step: int = 0,
    window: tuple[str, int] | None = None,
    south_first: bool = False,
    from_lon: float = 0.0,
    east_first: bool = False,
    by_column: bool = False,
    alternating: bool = False,
    packing: str | None = None,
    bits: int = 24,
    member: int | None = None,
    keys: Mapping[str, Any] | None = None,
) -> bytes:
    """One message.

    Args:
        name, level: Variable; `values` are its `weather` unless given; NaN become missing.
        style: ERA5 from the CDS (edition 1), GFS, or IFS open data (edition 2).
        time: Valid time; the forecast begins `step` hours before.
        window: Statistic and hours before `time`.
        south_first, from_lon, east_first, by_column, alternating: How the rows lie in the message.
        keys: More eccodes keys, set last but for the values.
    """
    field = weather(name, level, lat, lon) if values is None else values
    sample = f"regular_ll_{'pl' if level is not None else 'sfc'}_grib{1 if style == 'era5' else 2}"
    handle = eccodes.codes_grib_new_from_samples(sample)
    shift = int(np.argmin(np.abs(lon - from_lon)))
    table, west = np.roll(field, -shift, axis=1), float(lon[shift])
    east = west + float(lon[1] - lon[0]) * (lon.size - 1)
    rows = lat
    if south_first:
        table, rows = table[::-1], lat[::-1]
    if east_first:
        table, west, east = table[:, ::-1], east, west
    table = table.T if by_column else table
    table = np.array(table)
    if alternating:
        table[1::2] = table[1::2, ::-1]
    wrap = (lambda degrees: degrees % 360) if style != "era5" else (lambda degrees: (degrees + 180) % 360 - 180)
    base = time - np.timedelta64(step, "h")
    text = str(base.astype("datetime64[m]")).replace("-", "").replace(":", "")
    plain: dict[str, Any] = {
        "centre": "kwbc" if style == "gfs" else "ecmf",
        "Ni": lon.size,
        "Nj": lat.size,
        "latitudeOfFirstGridPointInDegrees": float(rows[0]),
        "latitudeOfLastGridPointInDegrees": float(rows[-1]),
        "longitudeOfFirstGridPointInDegrees": wrap(west),
        "longitudeOfLastGridPointInDegrees": wrap(east),
        "iDirectionIncrementInDegrees": float(lon[1] - lon[0]),
        "jDirectionIncrementInDegrees": float(abs(lat[1] - lat[0])),
        "iScansNegatively": int(east_first),
        "jScansPositively": int(south_first),
        "jPointsAreConsecutive": int(by_column),
        "dataDate": int(text[:8]),
        "dataTime": int(text[9:13]),
    }
    if alternating:
        plain["alternativeRowScanning"] = 1
    factor = 1.0
    if style == "gfs":
        discipline, category, number, surface, factor = _GFS[name]
        if window is not None:
            plain["productDefinitionTemplateNumber"] = 8
        plain |= {
            "discipline": discipline,
            "parameterCategory": category,
            "parameterNumber": number,
            "typeOfFirstFixedSurface": surface,
            "scaleFactorOfFirstFixedSurface": 0,
            "scaledValueOfFirstFixedSurface": _HEIGHTS.get(name, 0) if level is None else round(level * 100),
        }
    else:
        gpm = style == "ifs" and name == "z"
        key = next((key for key in VARIABLES[name].grib if not gpm or key.param_id == 156), None)
        param, factor = (key.param_id, 1.0 / key.scale) if key is not None else (int(name), 1.0)
        if style == "era5":
            plain |= {"setLocalDefinition": 1, "experimentVersionNumber": "0001", "class": "ea"}
        plain |= {"paramId": param}
        if level is not None:
            exact = level == int(level)
            plain |= {
                "typeOfLevel": "isobaricInhPa" if exact else "isobaricInPa",
                "level": level if exact else level * 100,
            }
    if window is None:
        plain["stepRange"] = str(step)
    else:
        if style == "gfs":
            plain["typeOfStatisticalProcessing"] = _STATISTICS[window[0]]
        elif style == "era5":
            plain["timeRangeIndicator"] = {"sum": 4, "mean": 3}.get(window[0], 2)
        plain["stepRange"] = f"{step - window[1]}-{step}"
    if member is not None:
        plain |= {"localDefinitionNumber": 1, "stream": "enda", "numberOfForecastsInEnsemble": 10,
                  "perturbationNumber": member}  # fmt: skip
    plain |= {"bitsPerValue": bits}
    if packing is not None:
        plain["packingType"] = packing
    for key_name, value in {**plain, **(keys or {})}.items():
        eccodes.codes_set(handle, key_name, value)
    flat = (table * factor).ravel()
    if np.isnan(flat).any():
        eccodes.codes_set(handle, "bitmapPresent", 1)
        eccodes.codes_set(handle, "missingValue", -9e9)
        flat = np.where(np.isnan(flat), -9e9, flat)
    eccodes.codes_set_values(handle, flat)
    try:
        return bytes(eccodes.codes_get_message(handle))
    finally:
        eccodes.codes_release(handle)


def encode_multi(path: Path, messages: Sequence[bytes]) -> bytes:
    """Fields of edition 2 in one message, from section 4 on, as NCEP packs both wind components."""
    multi = eccodes.codes_grib_multi_new()
    for message in messages:
        handle = eccodes.codes_new_from_message(message)
        eccodes.codes_grib_multi_append(handle, 4, multi)
        eccodes.codes_release(handle)
    with open(path, "wb") as stream:
        eccodes.codes_grib_multi_write(multi, stream)
    eccodes.codes_grib_multi_release(multi)
    return path.read_bytes()


def channels(schema: Schema = SCHEMA) -> list[tuple[str, float | None]]:
    """(variable, level) of every field of a schema."""
    upper: list[tuple[str, float | None]] = [(name, level) for name in schema.pressure for level in schema.levels]
    return upper + [(name, None) for name in schema.surface]


def write_grib(path: Path, what: Iterable[tuple[str, float | None]] = tuple(channels()), **how: Any) -> Path:
    """A file of `weather` fields, one message each."""
    path.write_bytes(b"".join(encode(name, level, **how) for name, level in what))
    return path


_CDS_UNITS = {
    "K": "K",
    "m s-1": "m s**-1",
    "Pa": "Pa",
    "kg kg-1": "kg kg**-1",
    "1": "(0 - 1)",
    "m2 s-2": "m**2 s**-2",
    "m": "m",
    "J m-2": "J m**-2",
}


def write_cds_old(
    path: Path,
    names: Sequence[str] = UPPER,
    *,
    levels: Sequence[float] = LEVELS,
    times: Sequence[np.datetime64] = (TIME,),
    lat: Array = LAT,
    lon: Array = LON,
    packed: bool = True,
    units: Mapping[str, str] | None = None,
    factor: Mapping[str, float] | None = None,
    versions: Sequence[int] = (),
) -> Path:
    """The layout of the Climate Data Store before 2024: NetCDF-3, int16, `time`, `level` in millibars.

    Args:
        units: Other units by name; with `factor`, values are multiplied by it.
        versions: One of 1 and 5 for each time: then `expver` is a dimension and the other one is missing.
    """
    with netCDF4.Dataset(path, "w", format="NETCDF3_64BIT_OFFSET") as file:
        file.createDimension("time", len(times))
        file.createDimension("latitude", lat.size)
        file.createDimension("longitude", lon.size)
        axes: list[tuple[str, Any, str, dict[str, str]]] = [
            ("longitude", lon, "f4", {"units": "degrees_east"}),
            ("latitude", lat, "f4", {"units": "degrees_north"}),
        ]
        if any(VARIABLES[name].kind == "pressure" for name in names):
            file.createDimension("level", len(levels))
            axes.append(("level", levels, "i4", {"units": "millibars", "long_name": "pressure_level"}))
        if versions:
            file.createDimension("expver", 2)
            axes.append(("expver", [1, 5], "i4", {"long_name": "expver"}))
        hours = [int((time - np.datetime64("1900-01-01T00", "s")) / np.timedelta64(1, "h")) for time in times]
        axes.append(("time", hours, "i4", {"units": "hours since 1900-01-01 00:00:00.0", "calendar": "gregorian"}))
        for name, values, kind, attributes in axes:
            made = file.createVariable(name, kind, (name,))
            made.setncatts(attributes)
            made[:] = values
        for name in names:
            upper = VARIABLES[name].kind == "pressure"
            data = np.stack(
                [
                    np.stack([weather(name, level, lat, lon) for level in levels])
                    if upper
                    else weather(name, None, lat, lon)
                    for _ in times
                ]
            ) * (factor or {}).get(name, 1.0)
            dims = ("time", *(("expver",) if versions else ()), *(("level",) if upper else ()), "latitude", "longitude")
            if versions:
                both = np.full((len(times), 2, *data.shape[1:]), np.nan)
                for place, version in enumerate(versions):
                    both[place, (1, 5).index(version)] = data[place]
                data = both
            made = file.createVariable(name, "i2" if packed else "f4", dims, fill_value=-32767 if packed else np.nan)
            attributes = {"units": (units or {}).get(name, _CDS_UNITS[VARIABLES[name].units])}
            if attributes["units"] == "none":
                attributes = {}
            if packed:
                low, high = float(np.nanmin(data)), float(np.nanmax(data))
                made.setncatts({"scale_factor": (high - low) / 64000, "add_offset": (high + low) / 2,
                                "missing_value": np.int16(-32767)})  # fmt: skip
            made.setncatts(attributes)
            made[:] = np.ma.masked_invalid(data)
    return path


def write_cds_new(
    path: Path,
    names: Sequence[str] = UPPER,
    *,
    levels: Sequence[float] = LEVELS,
    times: Sequence[np.datetime64] = (TIME,),
    lat: Array = LAT,
    lon: Array = LON,
    expver: str = "0001",
    step_type: str = "instant",
    members: Sequence[int] = (),
) -> Path:
    """The layout since 2024: NetCDF-4, float32, `valid_time`, `pressure_level`, text `expver`, scalar `number`."""
    with netCDF4.Dataset(path, "w") as file:
        upper_file = any(VARIABLES[name].kind == "pressure" for name in names)
        file.createDimension("valid_time", len(times))
        if members:
            file.createDimension("number", len(members))
        if upper_file:
            file.createDimension("pressure_level", len(levels))
            made = file.createVariable("pressure_level", "f8", ("pressure_level",), fill_value=np.nan)
            made.setncatts({"units": "hPa", "standard_name": "air_pressure", "positive": "down"})
            made[:] = levels
        made = file.createVariable("number", "i8", ("number",) if members else ())
        made.setncatts({"standard_name": "realization", "units": "1"})
        made[...] = members or 0
        made = file.createVariable("valid_time", "i8", ("valid_time",))
        made.setncatts(
            {"standard_name": "time", "units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
        )
        made[:] = np.array(times, "datetime64[s]").astype(np.int64)
        for axis, values, unit in (("latitude", lat, "degrees_north"), ("longitude", lon, "degrees_east")):
            file.createDimension(axis, values.size)
            made = file.createVariable(axis, "f8", (axis,), fill_value=np.nan)
            made.setncatts({"units": unit, "standard_name": axis})
            made[:] = values
        made = file.createVariable("expver", str, ("valid_time",))
        made[:] = np.array([expver] * len(times), object)
        for name in names:
            upper = VARIABLES[name].kind == "pressure"
            dims = (
                *(("number",) if members else ()),
                "valid_time",
                *(("pressure_level",) if upper else ()),
                "latitude",
                "longitude",
            )
            made = file.createVariable(name, "f4", dims, zlib=True, fill_value=np.nan)
            made.setncatts(
                {
                    "units": _CDS_UNITS[VARIABLES[name].units],
                    "GRIB_stepType": step_type,
                    "GRIB_typeOfLevel": "isobaricInhPa" if upper else "surface",
                    "GRIB_paramId": VARIABLES[name].grib[0].param_id,
                    "coordinates": "number valid_time isobaricInhPa latitude longitude expver",
                }
            )
            one = (
                np.stack([weather(name, level, lat, lon) for level in levels])
                if upper
                else weather(name, None, lat, lon)
            )
            made[:] = np.broadcast_to(one, [file.dimensions[dim].size for dim in dims])
    return path
