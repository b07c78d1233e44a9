"""The spellings of units that files use, and what turns each into ours.

One explicit table; a spelling that is not in it is reported to the user and never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from wm2cli.schema import GRAVITY, Variable

Conversion = tuple[float, float]
"""Factor and offset: ours = factor x theirs + offset."""

_ONE: Conversion = (1.0, 0.0)


def _entries(spellings: Mapping[str, Conversion]) -> dict[str, Conversion]:
    return {single: conversion for many, conversion in spellings.items() for single in many.split(" | ")}


_METRES = "m | meter | meters | metre | metres | gpm | geopotential meters | geopotential metres"
_PRESSURE = _entries({
    "Pa | pascal | pascals | Pascal": _ONE,
    "hPa | mb | mbar | millibar | millibars | hectopascal | hectopascals": (100.0, 0.0),
})  # fmt: skip
_GEOPOTENTIAL = _entries({
    "m2 s-2 | m2/s2 | J kg-1 | J/kg": _ONE,
    _METRES: (GRAVITY, 0.0),
    "dam | gpdm | gpdam": (10.0 * GRAVITY, 0.0),
})  # fmt: skip
_FRACTION = _entries({
    "1 | (0 - 1) | 0 - 1 | 0-1 | fraction | Fraction | proportion | Proportion | dimensionless": _ONE,
    "% | percent | per cent": (0.01, 0.0),
})  # fmt: skip
_TABLE: dict[str, dict[str, Conversion]] = {
    "K": _entries(
        {
            "K | kelvin | Kelvin | degK | deg K | degrees K | degree_Kelvin": _ONE,
            "degC | deg C | C | celsius | Celsius | degrees C | degree_Celsius | degrees_celsius | °C": (1.0, 273.15),
        }
    ),
    "m s-1": _entries({"m s-1 | m/s | m sec-1 | m/sec | meters per second | metres per second": _ONE}),
    "Pa": _PRESSURE,
    "kg kg-1": _entries({"kg kg-1 | kg/kg | 1 | dimensionless": _ONE, "g kg-1 | g/kg": (1e-3, 0.0)}),
    "1": _FRACTION,
    "m2 s-2": _GEOPOTENTIAL,
    "m": _entries(
        {
            "m | m of water equivalent | m of water | meter | meters | metre | metres": _ONE,
            "mm | kg m-2 | kg/m2 | mm of water equivalent": (1e-3, 0.0),
        }
    ),
    "J m-2": _entries({"J m-2 | J/m2": _ONE}),
}
_RATES: dict[str, dict[str, float]] = {
    "m": {"kg m-2 s-1": 1e-3, "kg/m2/s": 1e-3, "mm s-1": 1e-3, "mm/s": 1e-3, "m s-1": 1.0},
    "J m-2": {"W m-2": 1.0, "W/m2": 1.0, "J m-2 s-1": 1.0},
}
_CODES = frozenset({"1", "~", "dimensionless", "code", "category", "index"})


def spelled(text: str) -> str:
    """A unit in the one spelling the table uses: `m**2 s**-2` and `m^2.s^-2` are `m2 s-2`."""
    plain = text.strip().replace("**", "").replace("^", "")
    plain = re.sub(r"(?<=[A-Za-z0-9])[.*·](?=[A-Za-z])", " ", plain)
    return re.sub(r"\s+", " ", plain)


def conversion(known: Variable, text: str) -> Conversion | None:
    """What turns values in a unit into the variable's own, or None when the unit is not known for it."""
    unit = spelled(text)
    if known.name == "slt":
        return _ONE if unit in _CODES or unit.lower().startswith("(code table") else None
    if known.name == "orog":
        found = _GEOPOTENTIAL.get(unit)
        return None if found is None else (found[0] / GRAVITY if found[0] == 1.0 else round(found[0] / GRAVITY), 0.0)
    return _TABLE[known.units].get(unit)


def rate_factor(known: Variable, text: str, window_hours: float) -> float | None:
    """Factor from a mean rate over a window to the sum over it, or None when the unit is no rate of the variable."""
    factor = _RATES.get(known.units, {}).get(spelled(text)) if known.statistic == "sum" else None
    return None if factor is None else factor * window_hours * 3600.0


def to_hpa(text: str) -> float | None:
    """Factor from a unit of pressure to hPa, or None when it is none."""
    found = _PRESSURE.get(spelled(text))
    return None if found is None else found[0] / 100.0
