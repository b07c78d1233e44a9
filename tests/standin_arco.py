"""A stand-in for ARCO-ERA5: a small Zarr group of format 2, as objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numcodecs
import numpy as np
import weather

from wm2cli.schema import LEVELS_37
from wm2cli.sources.era5 import NAMES

FIRST = np.datetime64("2024-01-01T00", "s")
HOURS = 24
STATIC = {"orog": "geopotential_at_surface", "lsm": "land_sea_mask", "slt": "soil_type"}
CODEC = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}


@cache
def chunk(name: str, levels: tuple[float, ...]) -> bytes:
    values = np.stack([weather.weather(name, level) for level in levels]) if levels else weather.weather(name)
    if name == "orog":
        values = values * 9.80665
    return pack(values[None] if name not in STATIC else values)


def pack(values: Any, dtype: str = "<f4") -> bytes:
    return bytes(numcodecs.get_codec(dict(CODEC)).encode(np.ascontiguousarray(values, dtype)))


def arco_objects(
    hours: Sequence[int] = (0, 6),
    levels: Sequence[float] = LEVELS_37,
    stop: str = "2024-01-01",
    early: str = "2024-01-01",
) -> dict[str, bytes]:
    """The group with chunks at some hours of its day; the axis of time goes on behind its end."""
    start = int((FIRST - np.datetime64("1900-01-01T00", "s")) / np.timedelta64(1, "h")) - 5
    count = HOURS + 40
    objects: dict[str, bytes] = {}
    metadata: dict[str, Any] = {
        ".zgroup": {"zarr_format": 2},
        ".zattrs": {"valid_time_start": "1940-01-01", "valid_time_stop": stop, "valid_time_stop_era5t": early},
    }

    def array(
        name: str, shape: Sequence[int], chunks: Sequence[int], dtype: str, dims: Sequence[str], **more: Any
    ) -> None:
        metadata[f"{name}/.zarray"] = {
            "zarr_format": 2, "shape": list(shape), "chunks": list(chunks), "dtype": dtype, "order": "C",
            "fill_value": "NaN" if "f" in dtype else None, "filters": None, "compressor": CODEC,
        }  # fmt: skip
        metadata[f"{name}/.zattrs"] = {"_ARRAY_DIMENSIONS": list(dims), **more}

    rows, columns = weather.LAT.size, weather.LON.size
    array("latitude", [rows], [rows], "<f4", ["latitude"])
    objects["latitude/0"] = pack(weather.LAT)
    array("longitude", [columns], [columns], "<f4", ["longitude"])
    objects["longitude/0"] = pack(weather.LON)
    array("level", [len(levels)], [len(levels)], "<i8", ["level"])
    objects["level/0"] = pack(np.array(levels), "<i8")
    array("time", [count], [16], "<i8", ["time"], units="hours since 1900-01-01", calendar="proleptic_gregorian")
    times = start + np.arange(count)
    for number in range(-(-count // 16)):
        part = np.zeros(16, np.int64)
        part[: times[16 * number : 16 * number + 16].size] = times[16 * number : 16 * number + 16]
        objects[f"time/{number}"] = pack(part, "<i8")
    for name in (*weather.UPPER, *weather.GROUND):
        upper = name in weather.UPPER
        middle = [len(levels)] if upper else []
        dims = ["time", *(["level"] if upper else []), "latitude", "longitude"]
        array(NAMES[name], [count, *middle, rows, columns], [1, *middle, rows, columns], "<f4", dims)
        for hour in hours:
            key = f"{NAMES[name]}/{hour + 5}{'.0' if upper else ''}.0.0"
            objects[key] = chunk(name, tuple(levels) if upper else ())
    for name, long_name in STATIC.items():
        array(long_name, [rows, columns], [rows, columns], "<f4", ["latitude", "longitude"])
        objects[f"{long_name}/0.0"] = chunk(name, ())
    objects[".zmetadata"] = json.dumps({"zarr_consolidated_format": 1, "metadata": metadata}).encode()
    return objects
