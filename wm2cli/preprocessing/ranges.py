"""Ranges of time as people write them: years, months, days, instants."""

from __future__ import annotations

import re

import numpy as np

Range = tuple[np.datetime64, np.datetime64]
"""First and last second, both included."""


def parse_ranges(text: str) -> tuple[Range, ...]:
    """Ranges of time from `2010/2017`, `2018`, `2018-01-01/2018-06-30T18`, or several of them with commas.

    A year, month or day stands for all of it, so that the end of a range is its last second.

    Raises:
        ValueError: Not such ranges.
    """
    made = []
    for part in text.split(","):
        first, slash, last = part.strip().partition("/")
        begin, stop = _bound(first)[0], _bound(last if slash else first)[1]
        if stop < begin:
            raise ValueError(f"'{part}' ends before it begins")
        made.append((begin, stop))
    return tuple(made)


def _bound(text: str) -> Range:
    """First and last second of what a text names."""
    if not re.fullmatch(r"\d{4}(-\d{2}(-\d{2}(T\d{2}(:\d{2})?Z?)?)?)?", text.strip()):
        raise ValueError(f"'{text}' is no year, date or time as 2018, 2018-01, 2018-01-01 or 2018-01-01T06")
    named = np.datetime64(text.strip().rstrip("Z"))
    if named.dtype in (np.dtype("datetime64[h]"), np.dtype("datetime64[m]")):
        return named.astype("datetime64[s]"), named.astype("datetime64[s]")
    return named.astype("datetime64[s]"), (named + 1).astype("datetime64[s]") - np.timedelta64(1, "s")
