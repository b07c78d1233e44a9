"""ARCO-ERA5: the public copy of ERA5 as one Zarr group, without an account.

A chunk holds all 37 levels of a variable at one time, so a state costs about 0.8 GB before compression, whatever
part of it is wanted. Chunks are plain objects over HTTP; what is kept is a NetCDF file with the fields asked for. In
Zarr an absent chunk means missing values; here it is an error, and so is any missing value.
Sources: google-research/arco-era5; the Zarr format 2 specification.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wm2cli
from wm2cli.errors import DataError, NotYetError, RemoteError, UsageError
from wm2cli.reading.fields import Inventory, canonical_axes, canonical_order, time_text
from wm2cli.reading.inputs import open_files
from wm2cli.schema import VARIABLES
from wm2cli.settings import settings
from wm2cli.sources import Piece, Progress, Request, now, quiet
from wm2cli.sources.cache import keep, workspace
from wm2cli.sources.checks import check_fields
from wm2cli.sources.era5 import BEGIN, NAMES
from wm2cli.sources.labels import Label, digest, label_text, labels_of
from wm2cli.transfer import AbsentError, Door, Meter, shown

ROOT = "https://storage.googleapis.com/gcp-public-data-arco-era5/ar/full_37-1h-0p25deg-chunk-1.zarr-v3"  # format 2, too

_STATIC = {"orog": "geopotential_at_surface", "lsm": "land_sea_mask", "slt": "soil_type"}
_OFFERED = tuple(name for name in NAMES if VARIABLES[name].statistic == "point")
_LEVEL_CHUNK, _SURFACE_CHUNK = 90e6, 3e6  # bytes of an average compressed chunk, by guess
_LOOK_BACK = 40  # times, six hours apart
_EPOCH = np.datetime64("1900-01-01T00", "s")

Values = NDArray[Any]


class Arco:
    """The source `arco`."""

    name = "arco"
    remote = True
    keeps = True
    attribution = (
        "Contains modified Copernicus Climate Change Service information (ERA5, by way of ARCO-ERA5, Google); neither "
        "the European Commission nor ECMWF is responsible for any use of it"
    )

    def plan(self, request: Request) -> tuple[Piece, ...]:
        """See `Source.plan`."""
        request.refuse_options(self.name, ())
        labels = labels_of(request, self.name, _OFFERED)
        off = [time for time in request.times if time < BEGIN or time.astype("datetime64[h]") != time]
        if off:
            raise UsageError("ERA5 has full hours since 1940",
                             problems=[f"there is none for {time_text(time)}" for time in off])  # fmt: skip
        made = []
        if labels:
            upper, lower = len(request.schema.pressure), len(request.schema.surface)
            for time in request.times:
                text = time_text(time)
                made.append(Piece(
                    f"arco/{text}", f"arco_{text.replace('-', '')}_{digest(labels)}.nc",
                    {"time": text, "fields": [list(label) for label in labels]}, tuple(map(label_text, labels)),
                    round(upper * _LEVEL_CHUNK + lower * _SURFACE_CHUNK), upper + lower + 6,
                ))  # fmt: skip
        if request.schema.static:
            fixed: list[Label] = [(name, None) for name in request.schema.static]
            made.append(Piece(
                "arco/constant", f"arco_constant_{digest(fixed)}.nc",
                {"time": "constant", "fields": [list(label) for label in fixed]}, tuple(map(label_text, fixed)),
                round(len(fixed) * _SURFACE_CHUNK), len(fixed) + 3,
            ))  # fmt: skip
        return tuple(made)

    def fetch(self, piece: Piece, folder: Path, on_progress: Progress = quiet) -> Path:
        """See `Source.fetch`."""
        text = str(piece.request["time"])
        time = None if text == "constant" else np.datetime64(text, "s")
        if time is not None and time > now():
            raise NotYetError(f"arco for {text} lies in the future")
        labels = [(str(name), level) for name, level in piece.request["fields"]]
        with workspace(piece, folder) as work:
            with Door() as door:
                on_progress("reading what ARCO-ERA5 holds", 0, 1)
                group = _Group(door, settings().roots.arco or ROOT)
                notes = group.refuse_time(time) if time is not None else []
                index = group.index_of(time) if time is not None else 0
                whole = work / "whole.nc"
                meter = Meter(on_progress, f"fetching {piece.key}", piece.size or 0)
                _write(whole, group, labels, index, time, work, meter)
            on_progress(f"checking {piece.key}", 0, 1)
            check_fields(open_files([whole]), piece.filename, labels, time)
            return keep(piece, whole, folder / piece.filename, urls=[shown(group.root)], notes=notes)

    def open(self, paths: Sequence[Path]) -> Inventory:
        """See `wm2cli.reading.inputs.open_files`."""
        return open_files(paths)

    def latest(self, request: Request, now: np.datetime64) -> np.datetime64:
        """The last time at 00, 06, 12 or 18 UTC that the archive says it has, and that is not empty."""
        names = tuple(dict.fromkeys(NAMES[name] for name, _ in labels_of(request, self.name, _OFFERED)))
        with Door() as door:
            group = _Group(door, settings().roots.arco or ROOT)
            _, last = group.ends
            if last is None:
                raise NotYetError("ARCO-ERA5 does not say which is its last date", hint="give --init a time")
            last = min(last, now)
            last -= (last - np.datetime64("1970-01-01T00", "s")) % np.timedelta64(6, "h")
            for back in range(_LOOK_BACK):
                time = last - back * np.timedelta64(6, "h")
                if all(group.has(group.array(name), group.index_of(time)) for name in names):
                    return time
        raise NotYetError(f"ARCO-ERA5 has nothing for the {_LOOK_BACK // 4} days before {time_text(last)}")


@dataclass(frozen=True)
class _Array:
    """An array of the group, from its metadata."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float
    compressor: Mapping[str, Any] | None
    separator: str
    dims: tuple[str, ...]
    attributes: Mapping[str, Any]


class _Group:
    """A consolidated Zarr group of format 2.

    Raises:
        RemoteError: It is not there, or not such a group.
    """

    def __init__(self, door: Door, root: str) -> None:
        self.door, self.root = door, root.rstrip("/")
        url = f"{self.root}/.zmetadata"
        try:
            self._metadata = json.loads(door.get(url).data)["metadata"]
            self.attributes: Mapping[str, Any] = self._metadata.get(".zattrs", {})
        except AbsentError as error:
            raise RemoteError(f"there is no ARCO-ERA5 at {shown(url)}",
                              hint="check `roots.arco` in the settings, or WM2_ARCO_ROOT") from error  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RemoteError(f"{shown(url)}: is no metadata of a Zarr group ({error})",
                              hint="try again later, or --source era5") from error  # fmt: skip

    @property
    def ends(self) -> tuple[np.datetime64 | None, np.datetime64 | None]:
        """The last time of the final ERA5, and the last one at all."""
        found = [_stop(self.attributes.get(name)) for name in ("valid_time_stop", "valid_time_stop_era5t")]
        known = [end for end in found if end is not None]
        return found[0], max(known) if known else None

    def refuse_time(self, time: np.datetime64) -> list[str]:
        """Notes about a time.

        Raises:
            NotYetError: It lies behind the last one.
        """
        final, last = self.ends
        if last is not None and time > last:
            raise NotYetError(f"arco for {time_text(time)} is not there yet: it goes to {time_text(last)}",
                              hint="newer states: --source gfs, or --source era5 with a key")  # fmt: skip
        if final is not None and time > final:
            return ["arco: preliminary ERA5T; the final ERA5 follows after two to three months"]
        return []

    def array(self, name: str) -> _Array:
        """What is known of an array.

        Raises:
            RemoteError: There is none, or one that cannot be read.
        """
        try:
            found, attributes = self._metadata[f"{name}/.zarray"], self._metadata.get(f"{name}/.zattrs", {})
            if found.get("filters") or found.get("order", "C") != "C" or found["zarr_format"] != 2:
                raise ValueError("a layout that is not known")
            fill = found["fill_value"]
            return _Array(
                name, tuple(found["shape"]), tuple(found["chunks"]), np.dtype(found["dtype"]),
                np.nan if fill in (None, "NaN") else float(fill), found["compressor"],
                found.get("dimension_separator", "."), tuple(attributes["_ARRAY_DIMENSIONS"]), attributes,
            )  # fmt: skip
        except (KeyError, ValueError, TypeError) as error:
            raise RemoteError(f"{shown(self.root)}: {name} cannot be read ({error})",
                              hint="try again later, or --source era5") from error  # fmt: skip

    def chunk(self, array: _Array, key: str, work: Path | None = None, meter: Meter | None = None) -> Values:
        """A chunk, unpacked; large ones by way of a file in `work`, so that they can be continued.

        Raises:
            DataError: It is absent, or damaged.
        """
        import numcodecs

        url = f"{self.root}/{array.name}/{key}"
        try:
            raw = self._object(url, work, array.name, meter)
        except AbsentError as error:
            raise DataError(f"{shown(url)}: is not there, so {array.name} would be missing", hint="another time, or "
                            "--source era5") from error  # fmt: skip
        try:
            plain = numcodecs.get_codec(dict(array.compressor)).decode(raw) if array.compressor else raw
            return np.frombuffer(plain, array.dtype).reshape(array.chunks)
        except (ValueError, RuntimeError, TypeError) as error:
            raise DataError(f"{shown(url)}: is damaged ({error})", hint="try again later, or --source era5") from error

    def has(self, array: _Array, index: int) -> bool:
        """Whether there is a chunk at a time."""
        try:
            self.door.get(f"{self.root}/{array.name}/{_key(array, index)}", 0, 1)
        except AbsentError:
            return False
        return True

    def _object(self, url: str, work: Path | None, name: str, meter: Meter | None) -> bytes:
        if work is None or meter is None:
            return self.door.get(url).data
        done = work / f"{name}.done"
        if done.exists():
            data = done.read_bytes()
            meter.add(len(data), fetched=False)
            return data
        part = work / name
        self.door.download(url, part, None, on_bytes=meter.add)
        part.replace(done)
        return done.read_bytes()

    def values(self, name: str) -> Values:
        """A short axis as a whole."""
        array = self.array(name)
        parts = [self.chunk(array, str(number)) for number in range(-(-array.shape[0] // array.chunks[0]))]
        return np.concatenate(parts)[: array.shape[0]]

    def index_of(self, time: np.datetime64) -> int:
        """Where a time lies along the axis of time, which is made of full hours.

        Raises:
            DataError: The axis says otherwise.
        """
        array = self.array("time")
        units = str(array.attributes.get("units", ""))
        if not units.startswith("hours since 1900-01-01"):
            raise DataError(f"{shown(self.root)}: counts time in '{units}', which is not understood")
        hours = int((time - _EPOCH) / np.timedelta64(1, "h"))
        first = self.chunk(array, "0")
        step = max(1, int(first[1] - first[0])) if first.size > 1 and array.shape[0] > 1 else 1
        index = (hours - int(first[0])) // step
        if 0 <= index < array.shape[0]:
            block = self.chunk(array, str(index // array.chunks[0]))
            if int(block[index % array.chunks[0]]) == hours:
                return index
        raise DataError(f"{shown(self.root)}: has no {time_text(time)} on its axis of time")


def _write(
    path: Path,
    group: _Group,
    labels: Sequence[Label],
    index: int,
    time: np.datetime64 | None,
    work: Path,
    meter: Meter,
) -> None:
    """The fields as NetCDF, without compression: what is packed here is unpacked at once."""
    import netCDF4

    lat, lon = group.values("latitude").astype(np.float64), group.values("longitude").astype(np.float64)
    axes, flip, roll = canonical_axes(lat, lon)
    levels = sorted({level for _, level in labels if level is not None})
    have = [float(level) for level in group.values("level")] if levels else []
    if lacks := [level for level in levels if level not in have]:
        raise DataError(f"arco lacks the levels {' '.join(f'{level:g}' for level in lacks)} hPa",
                        hint="ask for others with --levels")  # fmt: skip
    with netCDF4.Dataset(path, "w") as dataset:
        dataset.setncatts({"Conventions": "CF-1.11", "history": f"fetched by wm2 {wm2cli.__version__}"})
        coordinates: list[tuple[str, Any, dict[str, str]]] = [
            ("latitude", axes.lat, {"units": "degrees_north"}), ("longitude", axes.lon, {"units": "degrees_east"}),
        ]  # fmt: skip
        if levels:
            coordinates.append(("level", levels, {"units": "hPa", "positive": "down"}))
        if time is not None:
            seconds = int(time.astype("datetime64[s]").astype(np.int64))
            coordinates.append(("time", [seconds], {"units": "seconds since 1970-01-01", "standard_name": "time"}))
        for name, values, attributes in coordinates:
            dataset.createDimension(name, len(values))
            axis = dataset.createVariable(name, "i8" if name == "time" else "f8", (name,))
            axis.setncatts(attributes)
            axis[:] = values
        for name, fields in _fields(group, labels, index, work, meter):
            known = VARIABLES[name]
            upper = known.kind == "pressure"
            dims = (*(("time",) if time is not None else ()), *(("level",) if upper else ()), "latitude", "longitude")
            made = dataset.createVariable(name, "f4", dims, fill_value=np.float32(np.nan))
            made.setncatts({"units": known.units, "long_name": known.long_name})
            turned = [canonical_order(field, flip, roll) for field in fields]
            if name == "orog":
                turned = [field / np.float32(9.80665) for field in turned]
            data = np.stack(turned) if upper else turned[0]
            made[...] = data[None] if time is not None else data


def _fields(
    group: _Group, labels: Sequence[Label], index: int, work: Path, meter: Meter
) -> Iterator[tuple[str, list[Values]]]:
    """Variable by variable, (latitude, longitude) a level wanted; one chunk in memory at a time."""
    for name in dict.fromkeys(name for name, _ in labels):
        array = group.array(_STATIC.get(name) or NAMES[name])
        wanted = [level for label, level in labels if label == name and level is not None]
        want = ("latitude", "longitude")
        dims = want if name in _STATIC else ("time", *(("level",) if wanted else ()), *want)
        if array.dims != dims or any(c != n for c, n, dim in zip(array.chunks, array.shape, dims, strict=True)
                                     if dim != "time") or (array.chunks[0] != 1 and "time" in dims):  # fmt: skip
            raise DataError(f"{array.name} has the layout {array.dims} in chunks {array.chunks}, which is not that of "
                            "ARCO-ERA5", hint="check `roots.arco` in the settings, or WM2_ARCO_ROOT")  # fmt: skip
        block = group.chunk(array, _key(array, index), work, meter)
        if name not in _STATIC:
            block = block[0]
        if wanted:
            have = [float(level) for level in group.values("level")]
            yield name, [block[have.index(level)] for level in wanted]
        else:
            yield name, [block]


def _key(array: _Array, index: int) -> str:
    """The chunk of an array at a time; other axes are in one chunk."""
    return array.separator.join(str(index if dim == "time" else 0) for dim in array.dims)


def _stop(text: Any) -> np.datetime64 | None:
    """The last full hour of an attribute with a date, or with a date and time."""
    try:
        end = np.datetime64(str(text).strip().rstrip("Z"), "s")
    except ValueError:
        return None
    if np.isnat(end):
        return None
    return end + np.timedelta64(23, "h") if len(str(text).strip()) == 10 else end
