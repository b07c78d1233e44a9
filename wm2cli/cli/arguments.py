"""Values on the command line: text in, checked values out."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wm2cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


def parse_time(text: str) -> np.datetime64:
    """A UTC instant from ISO 8601: `2024-01-01T00`, `2024-01-01T00:00`, `2024-01-01T00Z`, `2024-01-01`.

    Raises:
        UsageError: Not such a time, or in another zone.
    """
    import numpy as np

    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}(T\d{2}(:?\d{2})?Z?)?", text):
        raise UsageError(f"'{text}' is not a time as 2024-01-01T00 (UTC)")
    day, _, clock = text.rstrip("Z").partition("T")
    clock = f"{clock[:2]}:{clock[2:].lstrip(':') or '00'}" if clock else "00:00"
    try:
        return np.datetime64(f"{day}T{clock}", "s")
    except ValueError:
        raise UsageError(f"'{text}' is not a date of the calendar") from None


def parse_region(text: str | None) -> tuple[float, float, float, float] | None:
    """North, west, south, east from `N/W/S/E`.

    Raises:
        UsageError: Not four numbers.
    """
    if text is None:
        return None
    try:
        north, west, south, east = (float(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"'{text}' is not a region as N/W/S/E in degrees: 72/-25/34/45") from None
    return north, west, south, east


def parse_levels(text: str | None) -> tuple[float, ...] | None:
    """Levels in hPa from `500,850`.

    Raises:
        UsageError: Not numbers.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"'{text}' are not levels in hPa as 500,850") from None


def parse_leads(text: str | None) -> tuple[int, ...] | None:
    """Lead times in hours from `24,72,120`, in order.

    Raises:
        UsageError: Not whole numbers.
    """
    if text is None:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise UsageError(f"'{text}' are not leads in hours as 24,72,120") from None


def parse_times(texts: list[str] | None) -> tuple[np.datetime64 | None, ...]:
    """UTC instants from times, `latest` (None), lists with commas and ranges `START/END/STEP`, ends included.

    Raises:
        UsageError: Not such times, or a range that is none.
    """
    import numpy as np

    made: list[np.datetime64 | None] = []
    for text in (part.strip() for given in texts or () for part in given.split(",")):
        if text == "latest":
            made.append(None)
        elif "/" not in text:
            made.append(parse_time(text))
        else:
            parts = text.split("/")
            if len(parts) != 3:
                raise UsageError(f"'{text}' is not a range as 2024-01-01T00/2024-01-31T18/6h")
            start, end = parse_time(parts[0]), parse_time(parts[1])
            step = np.timedelta64(round((parse_duration(parts[2]) or 0.0) * 3600), "s")
            if step <= np.timedelta64(0, "s") or end < start:
                raise UsageError(f"'{text}' is not a range: its end lies before its start, or its step is zero")
            made += list(np.arange(start, end + np.timedelta64(1, "s"), step))
    return tuple(dict.fromkeys(made))


def parse_duration(text: str | None) -> float | None:
    """Hours from `3h`, `90m`, `2d`.

    Raises:
        UsageError: Not such a duration.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(m|min|h|d)", text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a duration as 3h, 90m or 2d")
    return float(match[1]) * {"m": 1 / 60, "min": 1 / 60, "h": 1.0, "d": 24.0}[match[2]]


def parse_options(texts: list[str] | None) -> dict[str, str]:
    """`KEY=VALUE` as a mapping.

    Raises:
        UsageError: No such pair, or a key given twice.
    """
    made: dict[str, str] = {}
    for text in texts or ():
        key, found, value = text.partition("=")
        if not found or not key or key in made:
            raise UsageError(f"--option '{text}' is not KEY=VALUE" if key not in made else f"--option {key} twice")
        made[key] = value
    return made


def collect(problems: list[str], parse: Callable[[Any], Any], text: Any) -> Any:
    try:
        return parse(text)
    except UsageError as error:
        problems.append(error.message)
        return None


def names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def command_line() -> str:
    # The program's path says where it is installed, which is nobody's business in a file that is passed on.
    return shlex.join(["wm2", *sys.argv[1:]])
