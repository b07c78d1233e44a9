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


def collect(problems: list[str], parse: Callable[[Any], Any], text: str | None) -> Any:
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
