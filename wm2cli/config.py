"""Strict dataclasses from plain mappings (TOML, JSON): an unknown key is an error, with the nearest known one."""

from __future__ import annotations

import collections.abc
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, TypeVar

from wm2cli.errors import ConfigError

T = TypeVar("T")


def from_mapping(kind: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Builds a frozen dataclass from a mapping, checking names and types.

    Lists become tuples, nested mappings become nested dataclasses, integers are accepted for floats.

    Args:
        kind: The dataclass.
        values: Parsed TOML or JSON.
        where: Name of the enclosing table, for messages.

    Raises:
        ConfigError: Unknown or missing keys, or values of a wrong type; all are listed.
    """
    if not is_dataclass(kind):
        raise TypeError(f"{kind!r} is not a dataclass")
    known = {field.name: field for field in fields(kind)}
    hints = typing.get_type_hints(kind)
    problems: list[str] = []
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"
            problems.append(f"unknown key '{where}{key}'{meant}")
            continue
        try:
            given[key] = _convert(hints[key], value, f"{where}{key}")
        except ConfigError as error:
            problems += error.problems or (error.message,)
    problems += [
        f"missing key '{where}{name}'"
        for name, field in known.items()
        if name not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if problems:
        raise ConfigError(f"{kind.__name__} cannot be read", problems=problems)
    return kind(**given)


def to_mapping(value: Any) -> dict[str, Any]:
    """A dataclass as plain dicts, the inverse of `from_mapping` (tuples become lists in JSON)."""
    return asdict(value)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"'{where}' must be one of {', '.join(map(str, arguments))}, found {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"'{where}' must be a list, found {value!r}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"'{where}' must have {len(arguments)} values, found {len(value)}")
        return tuple(
            _convert(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is collections.abc.Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{where}' must be a table, found {value!r}")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{where}' must be a table, found {value!r}")
        return from_mapping(hint, value, where=f"{where}.")  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f"'{where}' must be {hint.__name__}, found {value!r}")
    return value
