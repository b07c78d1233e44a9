"""ERA5 from the Climate Data Store: two requests a time, one for pressure levels and one for single levels, in GRIB.

GRIB, because it comes as it is archived; NetCDF there is converted, and of a layout that changed before.
Sources: documentation of the Climate Data Store and of ERA5.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wm2cli.errors import DataError, NotYetError, UsageError
from wm2cli.reading.fields import Field, Inventory, time_text
from wm2cli.reading.inputs import open_files
from wm2cli.schema import level_text
from wm2cli.sources import Piece, Progress, Request, now, quiet
from wm2cli.sources.cache import keep, workspace
from wm2cli.sources.cds import Queue, TooLargeError, has_key
from wm2cli.sources.checks import check_fields
from wm2cli.sources.labels import Label, digest, grid_of, grid_text, label_text, labels_of
from wm2cli.transfer import Door, Meter, shown

__all__ = ["NAMES", "Era5", "has_key"]

PRESSURE, SINGLE = "reanalysis-era5-pressure-levels", "reanalysis-era5-single-levels"
BEGIN = np.datetime64("1940-01-01T00", "s")
STATIC_TIME = np.datetime64("2023-01-01T00", "s")
"""Any time serves for fields that are constant."""

NAMES: Mapping[str, str] = {
    "z": "geopotential", "t": "temperature", "u": "u_component_of_wind", "v": "v_component_of_wind",
    "q": "specific_humidity",
    "t2m": "2m_temperature", "d2m": "2m_dewpoint_temperature", "u10": "10m_u_component_of_wind",
    "v10": "10m_v_component_of_wind", "u100": "100m_u_component_of_wind", "v100": "100m_v_component_of_wind",
    "msl": "mean_sea_level_pressure", "tcc": "total_cloud_cover", "sp": "surface_pressure",
    "mx2t": "maximum_2m_temperature_since_previous_post_processing",
    "mn2t": "minimum_2m_temperature_since_previous_post_processing", "lsp": "large_scale_precipitation",
    "cp": "convective_precipitation", "tp": "total_precipitation", "ssr": "surface_net_solar_radiation",
}  # fmt: skip
"""Our names -> those of the Climate Data Store; sums and extremes are over the hour before."""

STATIC_NAMES = {"orog": "geopotential", "lsm": "land_sea_mask", "slt": "soil_type"}

_GRIDS = ("0.25",)
_BYTES_A_POINT = 2.0  # 16 bits
_PATIENCE_HOURS = 24.0


class Era5:
    """The source `era5`."""

    name = "era5"
    remote = True
    keeps = True
    attribution = (
        "Contains modified Copernicus Climate Change Service information (ERA5, doi:10.24381/cds.adbb2d47); neither "
        "the European Commission nor ECMWF is responsible for any use of it"
    )

    def plan(self, request: Request) -> tuple[Piece, ...]:
        """See `Source.plan`.

        Options: `timeout`, hours to wait for the queue (default 24); `grid`, degrees, only where another one than the
        0.25 of the archive is wanted: the Climate Data Store counts it against the size of a request.
        """
        request.refuse_options(self.name, ("timeout", "grid"))
        patience = _hours(request.options.get("timeout"))
        grid = request.options.get("grid")
        text = grid_text(grid or "0.25", self.name, _GRIDS)
        labels = labels_of(request, self.name, NAMES)
        off = [time for time in request.times if time < BEGIN or time.astype("datetime64[h]") != time]
        if off:
            raise UsageError("ERA5 has full hours since 1940",
                             problems=[f"there is none for {time_text(time)}" for time in off])  # fmt: skip
        more = {"grid": [grid, grid]} if grid is not None else {}
        rows, columns = grid_of(text).shape

        def piece(what: str, moment: str, asked: Sequence[Label], dataset: str, wanted: Mapping[str, Any]) -> Piece:
            key = f"era5/{text}/{moment}/{what}"
            name = f"era5_{text}_{moment.replace('-', '')}_{what}_{digest(asked)}.grib"
            return Piece(key, name, {
                "dataset": dataset, "time": moment, "grid": text, "fields": [list(label) for label in asked],
                "timeout": patience, "wanted": dict(wanted),
            }, tuple(map(label_text, asked)), round(rows * columns * _BYTES_A_POINT * len(asked)), 1)  # fmt: skip

        made = []
        for time in request.times:
            upper = [label for label in labels if label[1] is not None]
            lower = [label for label in labels if label[1] is None]
            if upper:
                levels = [level_text(level) for level in request.schema.levels]
                wanted = _wanted([NAMES[name] for name in request.schema.pressure], time) | {"pressure_level": levels}
                made.append(piece("levels", time_text(time), upper, PRESSURE, wanted | more))
            if lower:
                wanted = _wanted([NAMES[name] for name, _ in lower], time)
                made.append(piece("surface", time_text(time), lower, SINGLE, wanted | more))
        if request.schema.static:
            wanted = _wanted([STATIC_NAMES[name] for name in request.schema.static], STATIC_TIME)
            made.append(piece("static", "constant", [(name, None) for name in request.schema.static], SINGLE,
                              wanted | more))  # fmt: skip
        return tuple(made)

    def fetch(self, piece: Piece, folder: Path, on_progress: Progress = quiet) -> Path:
        """See `Source.fetch`."""
        asked = piece.request
        moment = None if asked["time"] == "constant" else np.datetime64(str(asked["time"]), "s")
        dataset = str(asked["dataset"])
        if moment is not None and moment > now():
            raise NotYetError(f"era5 for {time_text(moment)} lies in the future")
        queue = Queue(float(asked["timeout"]))
        on_progress(f"{dataset}: asking for the last date", 0, 1)
        last = queue.last_time(dataset) if moment is not None else None
        if last is not None and moment is not None and moment > _end(last):
            raise NotYetError(f"era5 for {time_text(moment)} is not there yet: it goes to {time_text(_end(last))}",
                              hint="ERA5 follows five days behind; --source gfs is there after hours")  # fmt: skip
        with workspace(piece, folder) as work:
            parts, urls = [], []
            for number, request in enumerate(_affordable(queue, dataset, asked["wanted"])):
                part, url = _one_request(queue, dataset, request, work / str(number), piece.key, on_progress)
                parts.append(part)
                urls.append(url)
            whole = _joined(parts, work / "whole")
            labels = [(str(name), level) for name, level in asked["fields"]]
            on_progress(f"checking {piece.key}", 0, 1)
            fields = check_fields(open_files([whole]), piece.filename, labels, moment, grid_of(str(asked["grid"])))
            return keep(piece, whole, folder / piece.filename, urls=urls, notes=_versions(fields))

    def open(self, paths: Sequence[Path]) -> Inventory:
        """See `wm2cli.reading.inputs.open_files`."""
        return open_files(paths)

    def latest(self, request: Request, now: np.datetime64) -> np.datetime64:
        """The last time at 00, 06, 12 or 18 UTC that the catalogue names."""
        del request
        queue = Queue(_PATIENCE_HOURS)
        ends = [end for end in (queue.last_time(dataset) for dataset in (PRESSURE, SINGLE)) if end is not None]
        if not ends:
            raise NotYetError("the Climate Data Store does not say which is the last date", hint="give --init a time")
        last = min(now, *(_end(end) for end in ends))
        return last - (last - np.datetime64("1970-01-01T00", "s")) % np.timedelta64(6, "h")


def _wanted(variables: Sequence[str], time: np.datetime64) -> dict[str, Any]:
    day = str(time.astype("datetime64[D]"))
    hour = int((time - time.astype("datetime64[D]")) / np.timedelta64(1, "h"))
    return {
        "product_type": ["reanalysis"],
        "variable": list(variables),
        "year": [day[:4]],
        "month": [day[5:7]],
        "day": [day[8:10]],
        "time": [f"{hour:02d}:00"],
        "data_format": "grib",
        "download_format": "unarchived",
    }


def _affordable(queue: Queue, dataset: str, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The request, or one a variable where it would cost too much."""
    try:
        queue.refuse_too_large(dataset, request)
    except TooLargeError:
        if len(request["variable"]) == 1:
            raise
        parts = [{**request, "variable": [name]} for name in request["variable"]]
        queue.refuse_too_large(dataset, parts[0])
        return parts
    return [dict(request)]


def _one_request(
    queue: Queue, dataset: str, request: Mapping[str, Any], part: Path, key: str, on_progress: Progress
) -> tuple[Path, str]:
    """The complete file for one request, and where it came from."""
    done, origin = part.with_suffix(".done"), part.with_suffix(".url")
    if not done.exists():
        url, size, job = queue.result(dataset, request, part.with_suffix(".job"), on_progress)
        meter = Meter(on_progress, f"fetching {key} (job {job})", size)
        with Door() as door:
            door.download(url, part, size, on_bytes=meter.add)
        origin.write_text(shown(url))
        part.replace(done)
    return done, origin.read_text()


def _joined(parts: Sequence[Path], whole: Path) -> Path:
    """One file of several; only GRIB can be joined."""
    if len(parts) == 1:
        return parts[0]
    with open(whole, "wb") as stream:
        for part in parts:
            with open(part, "rb") as source:
                if source.read(4) != b"GRIB":
                    raise DataError("the Climate Data Store sent something else than the GRIB that was asked for",
                                    hint="try again later, or --source arco")  # fmt: skip
                source.seek(0)
                shutil.copyfileobj(source, stream, 2**20)
    return whole


def _versions(fields: Sequence[Field]) -> list[str]:
    """Says so when some or all of it is preliminary."""
    early = [item for item in fields if item.version == "0005"]
    if not early:
        return []
    if len(early) == len(fields):
        return ["era5: preliminary ERA5T (expver 0005); the final ERA5 follows after two to three months"]
    names = " ".join(dict.fromkeys(item.variable for item in early))
    return [f"era5: {names} are preliminary ERA5T (expver 0005), the others are final"]


def _hours(text: str | None) -> float:
    try:
        hours = _PATIENCE_HOURS if text is None else float(text)
    except ValueError:
        hours = 0.0
    if not hours > 0:
        raise UsageError(f"--option timeout={text} is no number of hours")
    return hours


def _end(text: str) -> np.datetime64:
    """The last time of a catalogue entry; a plain day counts to its end."""
    end = np.datetime64(text, "s")
    return end + np.timedelta64(23, "h") if end.astype("datetime64[D]") == end else end
