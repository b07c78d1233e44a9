"""The Integrated Forecasting System of ECMWF: the open data at the start of a forecast, by byte ranges.

Open data have 13 levels (14 since May 2026); what lies between them is interpolated when a forecast is prepared, and
said so. Sources: ECMWF's documentation of the open data and of its `.index` files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from wm2cli.errors import UsageError
from wm2cli.reading.fields import time_text
from wm2cli.schema import level_text
from wm2cli.settings import settings
from wm2cli.sources import Piece, Request, now
from wm2cli.sources.indexed import Archive, Entry, Place, Selection
from wm2cli.sources.labels import Label, grid_of, label_text

ROOTS = (
    "https://ecmwf-forecasts.s3.eu-central-1.amazonaws.com/",
    "https://storage.googleapis.com/ecmwf-open-data/",
    "https://data.ecmwf.int/forecasts/",
)
"""Public archives in the order they are asked; the last keeps about four days."""

QUARTER_DEGREE = np.datetime64("2024-02-01T00", "s")
FOLDER_IFS = np.datetime64("2024-02-28T06", "s")
CYCLE_50 = np.datetime64("2026-05-12T06", "s")
"""From then on the runs of 06 and 18 UTC are in the stream `oper` as well, and there is a level at 10 hPa."""

_UPPER = {"z": ("gh", "z"), "t": ("t",), "u": ("u",), "v": ("v",), "q": ("q",)}
_SURFACE = {"t2m": "2t", "d2m": "2d", "u10": "10u", "v10": "10v", "u100": "100u", "v100": "100v", "msl": "msl",
            "tcc": "tcc"}  # fmt: skip
_LEVELS = 13
_BYTES_A_POINT = 0.65  # of a message, in the mean over the fields of 2025-03-01


class Ifs(Archive):
    """The source `ifs`."""

    name = "ifs"
    attribution = (
        "Contains ECMWF open data (https://www.ecmwf.int), CC-BY 4.0, changed; ECMWF accepts no liability for errors "
        "or omissions in the data or for their use"
    )
    offered = (*_UPPER, *_SURFACE)
    grids = ("0.25", "0.4")
    delay_hours = 8.0
    soonest_hours = 5.0

    def plan(self, request: Request) -> tuple[Piece, ...]:
        """See `Source.plan`. Option `grid`: 0.25 (default) or, before 2024-02-01, 0.4 degrees."""
        text, labels = self.asked(request)
        if text == "0p25" and (old := [time for time in request.times if time < QUARTER_DEGREE]):
            raise UsageError("ECMWF open data have 0.25 degrees since 2024-02-01",
                             problems=[f"there is none for {time_text(time)}" for time in old],
                             hint="take --option grid=0.4, or --source era5, arco or gfs")  # fmt: skip
        rows, columns = grid_of(text).shape
        there = {label for label in labels if label[1] is None}
        number = len(there) + len({name for name, level in labels if level is not None}) * _LEVELS
        size = round(rows * columns * _BYTES_A_POINT * min(number, len(labels)))
        return self.pieces(request, labels, text, size, min(number, len(labels)))

    def places(self, time: np.datetime64, grid: str) -> tuple[Place, ...]:
        """Where the first step of a cycle may be.

        Args:
            grid: As in file names: `0p25`.
        """
        day = str(time.astype("datetime64[D]")).replace("-", "")
        hour = int((time - time.astype("datetime64[D]")) / np.timedelta64(1, "h"))
        stream = "oper" if hour in (0, 12) or time >= CYCLE_50 else "scda"
        middle = f"ifs/{grid}" if time >= FOLDER_IFS else grid if time >= QUARTER_DEGREE else f"{grid}-beta"
        name = f"{day}{hour:02d}0000-0h-{stream}-fc"
        given = settings().roots.ifs
        roots = given or tuple(
            root for root in ROOTS if "data.ecmwf.int" not in root or now() - time < np.timedelta64(4, "D")
        )
        urls = [(root, f"{root.rstrip('/')}/{day}/{hour:02d}z/{middle}/{stream}/{name}") for root in roots]
        return tuple(Place(root, f"{url}.grib2", f"{url}.index") for root, url in urls)

    def select(self, text: str, labels: Sequence[Label], time: np.datetime64) -> Selection:
        """The messages of an index that hold fields at its start.

        Of a level that is not there the nearest ones above and below are taken.

        Args:
            text: An `.index` file.
            time: Of the forecast's start; every line has to be of it.

        Raises:
            ValueError: This is no index, it is cut off, or it is of another time.
        """
        found: dict[tuple[str, float | None], list[tuple[int, int]]] = {}
        number = 0
        for number, line in enumerate(filter(None, (line.strip() for line in text.split("\n"))), 1):
            try:
                row = json.loads(line)
                start, length = int(row["_offset"]), int(row["_length"])
                stamp = np.datetime64(f"{row['date'][:4]}-{row['date'][4:6]}-{row['date'][6:8]}T{row['time'][:2]}", "s")
                kind, name, step = row["levtype"], row["param"], str(row["step"])
                level = float(row["levelist"]) if kind == "pl" else None
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"line {number} is '{line[:60]}'") from error
            if stamp != time:
                raise ValueError(f"it is of {time_text(stamp)}, not of {time_text(time)}")
            if kind in ("pl", "sfc") and step == "0" and row.get("type", "fc") in ("fc", "an"):
                found.setdefault((name, level), []).append((start, length))
        if not number:
            raise ValueError("it is empty")
        entries: dict[tuple[Label, int], Entry] = {}
        missing: list[str] = []
        between: dict[float, None] = {}
        for label in labels:
            taken = _nearest(label, found)
            if taken is None:
                missing.append(label_text(label))
                continue
            for name, level in taken:
                if level != label[1] and label[1] is not None:
                    between[label[1]] = None
                for start, length in found[name, level]:
                    entries[(label[0], level), start] = Entry((label[0], level), start, length)
        notes = []
        if between:
            levels = " ".join(level_text(level) for level in sorted(between))
            notes.append(f"ifs open data lack the levels {levels} hPa: a forecast interpolates them linearly in ln p")
        return Selection(tuple(entries.values()), tuple(missing), tuple(notes))


def _nearest(
    label: Label, found: dict[tuple[str, float | None], list[tuple[int, int]]]
) -> list[tuple[str, float | None]] | None:
    """Keys of the messages for a field: its own, or those of the levels around it; None when there is nothing."""
    variable, level = label
    if level is None:
        key = (_SURFACE[variable], None)
        return [key] if key in found else None
    for name in _UPPER[variable]:
        levels = sorted(held for param, held in found if param == name and held is not None)
        if not levels:
            continue
        if level in levels:
            return [(name, level)]
        above = [held for held in levels if held < level][-1:]
        below = [held for held in levels if held > level][:1]
        return [(name, held) for held in (*above, *below)]
    return None
