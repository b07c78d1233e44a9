"""The Global Forecast System of NOAA/NCEP: the fields at the start of a forecast (f000), by byte ranges.

f000 and not the analysis file, which lacks temperature and wind near the ground and clouds.
Sources: NCEP product inventories; the layout of `.idx` files as wgrib2 writes them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np

from wm2cli.schema import level_text
from wm2cli.settings import settings
from wm2cli.sources import Piece, Request, now
from wm2cli.sources.indexed import Archive, Entry, Place, Selection
from wm2cli.sources.labels import Label, grid_of, label_text

ROOTS = (
    "https://noaa-gfs-bdp-pds.s3.amazonaws.com/",
    "https://storage.googleapis.com/global-forecast-system/",
    "https://nomads.ncep.noaa.gov/pub/data/nccf/com/gfs/prod/",
)
"""Public archives in the order they are asked; the last keeps about ten days."""

V16_BEGIN = np.datetime64("2021-03-22T12", "s")
V17_EARLIEST = np.datetime64("2026-01-01T00", "s")
"""Before that, version 17 and its names cannot be; when it begins was not known in November 2026."""

_BEFORE_V16 = "gfs.{day}/{hour}/gfs.t{hour}z.pgrb2.{grid}.f000"
_V16 = "gfs.{day}/{hour}/atmos/gfs.t{hour}z.pgrb2.{grid}.f000"
_V17 = "gfs.{day}/{hour}/products/atmos/grib2/{grid}/gfs.t{hour}z.pres_a.{grid}.f000.grib2"

LEVELS = (0.01, 0.02, 0.04, 0.07, 0.1, 0.2, 0.4, 0.7, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 250,
          300, 350, 400, 450, 500, 550, 600, 650, 700, 750, 800, 850, 900, 925, 950, 975, 1000)  # fmt: skip
"""Levels in hPa of the main file since version 16; those between them lie in another one."""

_UPPER = {"z": "HGT", "t": "TMP", "u": "UGRD", "v": "VGRD", "q": "SPFH", "r": "RH"}
_SURFACE = {
    "t2m": ("TMP", "2 m above ground"),
    "d2m": ("DPT", "2 m above ground"),
    "u10": ("UGRD", "10 m above ground"),
    "v10": ("VGRD", "10 m above ground"),
    "u100": ("UGRD", "100 m above ground"),
    "v100": ("VGRD", "100 m above ground"),
    "msl": ("PRMSL", "mean sea level"),
    "tcc": ("TCDC", "entire atmosphere"),
}
_BYTES_A_POINT = 0.87  # of a message, in the mean over our fields (f000 of 2025-08-01)
_LINE = re.compile(r"(\d+)(?:\.\d+)?:(\d+):d=(\d{10}):([^:]+):([^:]+):([^:]*):.*")
_INSTANT = ("anl", "0 hour fcst")


class Gfs(Archive):
    """The source `gfs`."""

    name = "gfs"
    attribution = "NOAA/NCEP Global Forecast System (public domain)"
    offered = (*_UPPER, *_SURFACE)
    grids = ("0.25", "0.5", "1")
    delay_hours = 3.6
    soonest_hours = 3.0

    def plan(self, request: Request) -> tuple[Piece, ...]:
        """See `Source.plan`. Option `grid`: 0.25 (default), 0.5 or 1 degrees."""
        text, labels = self.asked(request)
        rows, columns = grid_of(text).shape
        size = round(rows * columns * _BYTES_A_POINT * len(labels))
        # Of each level z, t and u, v lie together, and q apart, or nearly so; at the ground pairs of winds.
        runs = round(0.63 * len(labels)) + 1
        return self.pieces(request, labels, text, size, runs)

    def places(self, time: np.datetime64, grid: str) -> tuple[Place, ...]:
        """Where f000 of a cycle may be: every archive, and in each the layouts that may hold at that time.

        Args:
            grid: As in file names: `0p25`.
        """
        day = str(time.astype("datetime64[D]")).replace("-", "")
        hour = f"{int((time - time.astype('datetime64[D]')) / np.timedelta64(1, 'h')):02d}"
        templates = [_V16] if time >= V16_BEGIN else [_BEFORE_V16]
        if abs(time - V16_BEGIN) <= np.timedelta64(1, "D"):
            templates = [*templates, _BEFORE_V16 if templates == [_V16] else _V16]
        if time >= V17_EARLIEST:
            templates.append(_V17)
        given = settings().roots.gfs
        roots = given or tuple(root for root in ROOTS if "nomads" not in root or now() - time < np.timedelta64(10, "D"))
        made = []
        for root in roots:
            for template in templates:
                url = f"{root.rstrip('/')}/{template.format(day=day, hour=hour, grid=grid)}"
                made.append(Place(root, url, f"{url}.idx"))
        return tuple(made)

    def select(self, text: str, labels: Sequence[Label], time: np.datetime64) -> Selection:
        """The messages of an index that hold fields at its start.

        Where specific humidity lacks on a level, relative humidity is taken. For a level that GFS has in another file,
        the nearest ones above and below are.

        Args:
            text: A `.idx` file.
            time: Of the forecast's start; every line has to be of it.

        Raises:
            ValueError: This is no index, it is cut off, or it is of another time.
        """
        lines = []
        for number, line in enumerate(text.split("\n"), 1):
            line = line.rstrip("\r")
            if not line:
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"line {number} is '{line[:60]}'")
            lines.append(match)
        if not lines:
            raise ValueError("it is empty")
        stamp = str(time.astype("datetime64[h]")).replace("-", "").replace("T", "")
        others = {match[3] for match in lines} - {stamp}
        if others:
            raise ValueError(f"it is of {min(others)}, not of {stamp}")
        starts = sorted({int(match[2]) for match in lines})
        if [int(match[2]) for match in lines] != sorted(int(match[2]) for match in lines):
            raise ValueError("its messages are not in order")
        following = dict(itertools.pairwise(starts))
        held: dict[tuple[str, str], list[int]] = {}
        for match in lines:
            if match[6] in _INSTANT:
                held.setdefault((match[4], match[5]), []).append(int(match[2]))
        entries: list[Entry] = []
        missing: list[str] = []
        replaced: list[Label] = []
        around = {level: _around(level) for _, level in labels if level is not None}
        wanted = dict.fromkeys(
            (name, near) for name, level in labels for near in ((None,) if level is None else around[level])
        )
        for label in wanted:
            found = held.get(_words(label), [])
            if not found and label[0] == "q":
                found = held.get(_words(("r", label[1])), [])
                replaced += [label] if found else []
            if not found:
                missing.append(label_text(label))
            for start in found:
                end = following.get(start)
                entries.append(Entry(label, start, None if end is None else end - start))
        notes = []
        if between := sorted(level for level, near in around.items() if near != (level,)):
            levels = " ".join(map(level_text, between))
            notes.append(f"gfs lacks the levels {levels} hPa: a forecast interpolates them linearly in ln p")
        if replaced:
            levels = " ".join(level_text(level) for _, level in replaced if level is not None)
            notes.append(f"gfs has no specific humidity at {levels} hPa: relative humidity was fetched")
        return Selection(tuple(entries), tuple(missing), tuple(notes))


def _around(level: float) -> tuple[float, ...]:
    """The level itself where GFS has it, else the nearest ones above and below."""
    if level in LEVELS:
        return (level,)
    above = [held for held in LEVELS if held < level][-1:]
    return (*above, *[held for held in LEVELS if held > level][:1])


def _words(label: Label) -> tuple[str, str]:
    """Parameter and level as an index names them."""
    name, level = label
    return _SURFACE[name] if level is None else (_UPPER[name], f"{level_text(level)} mb")
