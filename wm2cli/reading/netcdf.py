"""Reading NetCDF: from variables with axes to fields in wm2's names, units and row order.

Read are the layouts of the Climate Data Store before and after 2024, of cfgrib, of ARCO-ERA5 and
WeatherBench, and what else names its axes so that they can be told apart. Values are turned by the name of
their dimensions, never by their position, and one field is read at a time.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError
from wm2cli.reading.fields import (
    Axes,
    Field,
    Inventory,
    SourceFile,
    Values,
    canonical_axes,
    canonical_order,
    plain_name,
)
from wm2cli.reading.grib import name_of
from wm2cli.reading.netcdf_axes import (
    AxisError,
    Coordinate,
    Role,
    latitudes_and_longitudes,
    levels_hpa,
    role_of,
    steps,
    times,
)  # fmt: skip
from wm2cli.reading.netcdf_file import LOCK, Handle, check_size, filled
from wm2cli.reading.units import conversion, rate_factor
from wm2cli.schema import VARIABLES, Statistic, Variable

_STEP_TYPES: Mapping[str, Statistic] = {
    "instant": "point", "accum": "sum", "avg": "mean", "max": "maximum", "min": "minimum",
}  # fmt: skip
_CELL_METHODS: Mapping[str, Statistic] = {
    "point": "point", "sum": "sum", "mean": "mean", "maximum": "maximum", "minimum": "minimum",
}  # fmt: skip
_SAID_WINDOW = re.compile(r"\bcomment: of the (\d+) h before\b")
"""As `wm2cli.writing.canonical` says it; an `interval` would be that between samples (CF-1.11, section 7.3.2)."""
_ALONG = ("time", "reference", "step", "member", "version", "level")
"""Roles of the dimensions that a field is one place along."""


def _names() -> dict[str, str]:
    found: dict[str, str] = {}
    for known in VARIABLES.values():
        for alias in (known.name, *known.aliases):
            found.setdefault(alias, plain_name(known.name))
    return found


_NAMES = _names()


def open_netcdf(file: SourceFile) -> Inventory:
    """The fields of a NetCDF file; only coordinates are read.

    Raises:
        DataError: The file is not NetCDF, or damaged.
    """
    check_size(file)
    with Handle(file) as handle, LOCK:
        return Reader(handle).inventory()


class _UnusableError(Exception):
    """Why a variable cannot be used, as the end of a sentence that begins with it."""


@dataclass(frozen=True, eq=False)
class Layout:
    """How the maps of a variable lie in its dimensions of latitude and longitude, and what brings them into order."""

    axes: Axes
    dims: tuple[str, str]
    lon_first: bool
    flip: bool
    roll: int

    def arrange(self, values: NDArray[Any]) -> Values:
        """Two-dimensional values as stored -> (H, W) float32 in canonical order."""
        return canonical_order(values.T if self.lon_first else values, self.flip, self.roll)

    def arrange_all(self, values: NDArray[Any]) -> Values:
        """(n, L, two dimensions as stored) -> (n, L, H, W) float32 in canonical order."""
        maps = np.swapaxes(values, -1, -2) if self.lon_first else values
        if not self.flip and not self.roll:
            return np.ascontiguousarray(maps, np.float32)
        return np.ascontiguousarray(np.roll(maps[..., :: -1 if self.flip else 1, :], self.roll, axis=-1), np.float32)


@dataclass(frozen=True, eq=False)
class Block:
    """One variable as it lies in a file: all its fields together.

    Args:
        name: In the file.
        known: The variable of ours; of windowed pairs always the plain one.
        dims: Its dimensions, in order.
        along: Length of each dimension that its fields are places along (time, level, member, ...).
        level: Axis or scalar with the pressures, and these in hPa; None for fields without levels.
        layout: How its maps lie.
        statistic, window_hours: As in `Field`.
        scale, offset: Ours = scale x theirs + offset.
        valid, base: Coordinate with the valid times and with the starts, and these times.
        member, version: Coordinates with them.
        choice: Tells whether a place is the one with data, in files that mix final and preliminary data.
    """

    name: str
    known: Variable
    dims: tuple[str, ...]
    along: Mapping[str, int]
    level: tuple[Coordinate, NDArray[np.float64]] | None
    layout: Layout
    statistic: Statistic
    window_hours: float
    scale: float
    offset: float
    valid: tuple[Coordinate, NDArray[Any]] | None
    base: tuple[Coordinate, NDArray[Any]] | None
    member: Coordinate | None
    version: Coordinate | None
    choice: Any

    def member_at(self, index: Mapping[str, int]) -> int | None:
        """Ensemble member at a place; None outside an ensemble."""
        if self.member is None:
            return None
        number = int(self.member.at(self.member.values, index))
        # The new CDS layout puts number = 0 beside every field.
        return None if not self.member.dims and number == 0 else number


class Reader:
    """Goes through one open file; lives only while its inventory is made."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.file = handle.file
        self.dataset = handle.dataset
        self.coordinates: dict[str, Coordinate] = {}
        self.layouts: dict[tuple[str, str], tuple[Axes, bool, int]] = {}
        self.notes: dict[str, None] = {}
        for name, variable in self.dataset.variables.items():
            attributes = _attributes(variable)
            role = role_of(name, attributes)
            if (role != "other" or variable.dimensions == (name,)) and variable.ndim <= 2 and name not in _NAMES:
                self.coordinates[name] = Coordinate(name, variable.dimensions, filled(variable[...]), attributes, role)

    def inventory(self) -> Inventory:
        """Every variable of ours as fields."""
        blocks, ignored, problems = self.blocks()
        fields = tuple(found for block in blocks for found in self.fields(block))
        return Inventory(fields, (self.file,), ignored, problems, tuple(self.notes), (self.handle,))

    def blocks(self) -> tuple[list[Block], dict[str, int], dict[str, tuple[str, ...]]]:
        """Every variable of ours as it lies in the file; what is none of ours; and what cannot be used."""
        blocks: list[Block] = []
        ignored: Counter[str] = Counter()
        problems: dict[str, tuple[str, ...]] = {}
        for name, variable in self.dataset.variables.items():
            if name in self.coordinates:
                continue
            attributes = _attributes(variable)
            known, window = self._known(name, attributes)
            if known is None:
                if variable.ndim >= 2:
                    ignored[f"{name} ({attributes.get('long_name', 'no long name')})"] += 1
                continue
            try:
                blocks.append(self._block(name, variable, attributes, known, window))
            except (_UnusableError, AxisError) as error:
                problems[known.name] = (*problems.get(known.name, ()), f"{self.file.label}: {name} {error}")
        for group in self.dataset.groups:
            ignored[f"everything in the group {group} of {self.file.label}"] += 1
        return blocks, dict(ignored), problems

    def _known(self, name: str, attributes: Mapping[str, Any]) -> tuple[Variable | None, float | None]:
        """Which variable of ours this is, and the window in its name (`tp_6h`, `total_precipitation_6hr`)."""
        if "GRIB_paramId" in attributes and "GRIB_typeOfLevel" in attributes:
            kind = str(attributes["GRIB_typeOfLevel"])
            height = self.coordinates.get(kind)
            level = float(height.values.flat[0]) if height is not None and height.values.size == 1 else 0.0
            match = name_of(int(attributes["GRIB_paramId"]), kind, level)
            if match is not None:
                return match[0], None
        if name in _NAMES and name in VARIABLES:
            known = VARIABLES[name]
            return VARIABLES[_NAMES[name]], float(known.window_hours) if known.window_hours > 1 else None
        suffix = re.fullmatch(r"(.+)_(\d+)hr?", name)
        plain, window = (suffix[1], float(suffix[2])) if suffix and suffix[1] in _NAMES else (name, None)
        return (VARIABLES[_NAMES[plain]], window) if plain in _NAMES else (None, None)

    def _block(
        self, name: str, variable: Any, attributes: Mapping[str, Any], known: Variable, window: float | None
    ) -> Block:
        roles = self._roles(name, variable)
        level, known = self._level(name, variable, attributes, known, roles)
        layout = self._layout(variable, roles)
        statistic, window = self._statistic(name, attributes, known, window)
        scale, offset = self._conversion(name, attributes, known, window or 0.0)
        if statistic == "mean" and known.statistic == "sum":
            statistic = "sum"  # a mean rate, which `scale` makes the sum over its window
        valid, base = self._times(variable, roles, known)
        along = [dim for dim in variable.dimensions if roles[dim] not in ("lat", "lon")]
        empty = [dim for dim in along if self.dataset.dimensions[dim].size == 0]
        if empty:
            raise _UnusableError(f"has no entries along {empty[0]}")
        return Block(
            name=name,
            known=known,
            dims=tuple(variable.dimensions),
            along={dim: int(self.dataset.dimensions[dim].size) for dim in along},
            level=level,
            layout=layout,
            statistic=statistic,
            window_hours=0.0 if statistic == "point" else math.nan if window is None else window,
            scale=scale,
            offset=offset,
            valid=valid,
            base=base,
            member=self._one("member", variable),
            version=self._one("version", variable),
            choice=self._versions(name, variable, along, roles),
        )

    def fields(self, block: Block) -> Iterator[Field]:
        """The two-dimensional fields of a variable."""
        for places in itertools.product(*map(range, block.along.values())):
            index = dict(zip(block.along, places, strict=True))
            if block.choice is not None and not block.choice(index):
                continue
            position = tuple(index.get(dim, slice(None)) for dim in block.dims)
            origin = f"{self.file.label} {block.name}" + "".join(f"[{dim}={place}]" for dim, place in index.items())
            valid, base, version = block.valid, block.base, block.version
            yield Field(
                variable=block.known.name,
                level=None if block.level is None else float(block.level[0].at(block.level[1], index)),
                valid_time=None if valid is None else valid[0].at(valid[1], index),
                base_time=None if base is None else base[0].at(base[1], index),
                statistic=block.statistic,
                window_hours=block.window_hours,
                member=block.member_at(index),
                version=None if version is None else version_text(version.at(version.values, index)),
                axes=block.layout.axes,
                origin=origin,
                file=self.file,
                load=partial(_load, self.handle, block.name, position, block.layout, block.scale, block.offset),
            )

    def _roles(self, name: str, variable: Any) -> dict[str, Role]:
        """What each dimension of a variable is."""
        roles: dict[str, Role] = {}
        for dim in variable.dimensions:
            found = self.coordinates.get(dim)
            roles[dim] = found.role if found is not None else role_of(dim, {})
            if roles[dim] in ("lat", "lon") and found is None:
                raise _UnusableError(f"has a dimension {dim} without values")
            if roles[dim] == "model_level":
                raise _UnusableError(f"is on model levels ({dim}), not on pressure levels")
            if roles[dim] not in ("lat", "lon", *_ALONG) and self.dataset.dimensions[dim].size != 1:
                raise _UnusableError(f"has the dimension {dim}, which is not understood")
        for role in ("lat", "lon"):
            if list(roles.values()).count(role) != 1:
                kind = "latitude" if role == "lat" else "longitude"
                raise _UnusableError(f"has no single axis of {kind} (dimensions {', '.join(variable.dimensions)})")
        return roles

    def _level(
        self,
        name: str,
        variable: Any,
        attributes: Mapping[str, Any],
        known: Variable,
        roles: Mapping[str, Role],
    ) -> tuple[tuple[Coordinate, NDArray[np.float64]] | None, Variable]:
        """Pressure levels along an axis or as a scalar, and the variable, which the lack of a level may decide."""
        axes = [dim for dim, role in roles.items() if role == "level"]
        if known.kind != "pressure":
            if axes:
                raise _UnusableError(f"is known as a field without levels but has the axis {axes[0]}")
            return None, known
        kind = str(attributes.get("GRIB_typeOfLevel", "surface"))
        candidates = [self.coordinates[dim] for dim in axes if dim in self.coordinates]
        if axes and not candidates:
            raise _UnusableError(f"has a dimension {axes[0]} without values")
        candidates += [found for found in self._scalars(variable) if found.role in ("level", "model_level")]
        if len(candidates) > 1:
            raise _UnusableError(f"has several vertical axes: {', '.join(axis.name for axis in candidates)}")
        if not candidates:
            if known.name == "z" and kind == "surface":
                self.notes[
                    f"{self.file.label}: {name} is a geopotential without levels, taken as that of the surface"
                ] = None
                return None, VARIABLES["orog"]
            raise _UnusableError("has no vertical axis: its pressure is not known")
        if candidates[0].role == "model_level":
            raise _UnusableError(f"is on model levels ({candidates[0].name}), not on pressure levels")
        values, note = levels_hpa(candidates[0])
        if note is not None:
            self.notes[f"{self.file.label}: {note}"] = None
        return (candidates[0], values.reshape(candidates[0].values.shape)), known

    def _scalars(self, variable: Any) -> list[Coordinate]:
        """Coordinates that belong to a variable although it has no dimension of their name."""
        return [
            found
            for found in self.coordinates.values()
            if found.name not in variable.dimensions and set(found.dims) <= set(variable.dimensions)
        ]

    def _layout(self, variable: Any, roles: Mapping[str, Role]) -> Layout:
        lat, lon = (next(dim for dim, role in roles.items() if role == wanted) for wanted in ("lat", "lon"))
        if (lat, lon) not in self.layouts:
            for dim in (lat, lon):
                if "units" not in self.coordinates[dim].attributes:
                    self.notes[f"{self.file.label}: {dim} has no units; taken as degrees by its name"] = None
            try:
                self.layouts[lat, lon] = canonical_axes(
                    *latitudes_and_longitudes(self.coordinates[lat], self.coordinates[lon])
                )
            except DataError as error:
                raise _UnusableError(f"has a grid that cannot be used: {error.message}") from None
        axes, flip, roll = self.layouts[lat, lon]
        return Layout(axes, (lat, lon), variable.dimensions.index(lon) < variable.dimensions.index(lat), flip, roll)

    def _statistic(
        self, name: str, attributes: Mapping[str, Any], known: Variable, window: float | None
    ) -> tuple[Statistic, float | None]:
        """How the values stand for a time before their own, and for how many hours; None where not known."""
        statistic = known.statistic
        step_type, methods = attributes.get("GRIB_stepType"), str(attributes.get("cell_methods", ""))
        in_time = re.search(r"\b(?:valid_)?time:\s*(\w+)", methods)
        if step_type is not None and step_type not in _STEP_TYPES:
            raise _UnusableError(f"is given as '{step_type}', which is not understood")
        if in_time is not None and in_time[1] not in _CELL_METHODS:
            raise _UnusableError(f"is given as '{in_time[0]}', which is not understood")
        if step_type is not None:
            statistic = _STEP_TYPES[step_type]
        elif in_time is not None:
            statistic = _CELL_METHODS[in_time[1]]
        if window is None and (said := _SAID_WINDOW.search(methods)):
            window = float(said[1])
        if statistic != "point" and window is None and known.statistic != "point":
            window = float(known.window_hours)
            self.notes[
                f"{self.file.label}: {name} does not say its window; taken as the {window:g} h before each "
                "time, as in hourly ERA5"
            ] = None
        return statistic, window

    def _conversion(
        self, name: str, attributes: Mapping[str, Any], known: Variable, window: float
    ) -> tuple[float, float]:
        text = attributes.get("units")
        if text is None:
            if known.statistic == "sum":
                raise _UnusableError("has no units, and its values do not tell them")
            self.notes[
                f"{self.file.label}: {name} has no units; taken as {known.units}, and refused where its values "
                "are impossible in it"
            ] = None
            return 1.0, 0.0
        found = conversion(known, str(text))
        if found is not None:
            return found
        rate = rate_factor(known, str(text), window)
        if rate is None:
            raise _UnusableError(f"has the units '{text}', which are not known for {known.long_name.lower()} "
                                 f"({known.units})")  # fmt: skip
        return rate, 0.0

    def _times(
        self, variable: Any, roles: Mapping[str, Role], known: Variable
    ) -> tuple[tuple[Coordinate, NDArray[Any]] | None, tuple[Coordinate, NDArray[Any]] | None]:
        """Valid and base times with the coordinate that carries each; None where the file has none."""
        mine = [self.coordinates[dim] for dim in variable.dimensions if dim in self.coordinates]
        mine += self._scalars(variable)
        by_role = {role: [axis for axis in mine if axis.role == role] for role in ("time", "reference", "step")}
        step = by_role["step"][0] if by_role["step"] else None
        # `valid_time` says it outright; a plain `time` beside a lead time is the start in some layouts.
        outright = [axis for axis in by_role["time"] if axis.name == "valid_time"]
        plain = [axis for axis in by_role["time"] if axis.name != "valid_time"]
        reference = by_role["reference"] or (
            plain if outright or (step is not None and step.dims != plain[0].dims if plain else False) else []
        )
        base = (reference[0], times(reference[0])) if reference else None
        direct = outright or [axis for axis in plain if axis not in reference]
        if direct:
            return (direct[0], times(direct[0])), base
        if base is not None and step is not None:
            joined = tuple(dict.fromkeys((*base[0].dims, *step.dims)))
            total = _spread(base[0], base[1], joined) + _spread(step, steps(step), joined)
            return (Coordinate("time", joined, total, {}, "time"), total), base
        if known.kind != "static" and base is None:
            raise _UnusableError("has no time")
        return None, base

    def _one(self, role: Role, variable: Any) -> Coordinate | None:
        mine = [self.coordinates[dim] for dim in variable.dimensions if dim in self.coordinates]
        return next((axis for axis in [*mine, *self._scalars(variable)] if axis.role == role), None)

    def _versions(self, name: str, variable: Any, along: list[str], roles: Mapping[str, Role]) -> Any:
        """For files of the old CDS that mix final and preliminary ERA5: which version has data at each time.

        Such a file has both as a dimension, with missing values in the one that does not apply. The first
        point of the map tells which; what is read later is checked for missing values all the same.
        """
        axis = next((dim for dim in along if roles[dim] == "version"), None)
        if axis is None or self.dataset.dimensions[axis].size < 2:
            return None
        rest = tuple(dim for dim in along if roles[dim] not in ("version", "level"))
        corner = self.handle.dataset.variables[name][
            tuple(slice(None) if dim in (*rest, axis) else 0 for dim in variable.dimensions)
        ]
        order = [dim for dim in variable.dimensions if dim in (*rest, axis)]
        present = np.moveaxis(np.isfinite(filled(corner)), order.index(axis), -1)
        if (present.sum(axis=-1) > 1).any():
            raise _UnusableError(f"has data of several versions ({axis}) for the same time: which one is meant?")
        if (present.sum(axis=-1) == 0).any():
            raise _UnusableError(f"has times without data in every version ({axis})")
        chosen = present.argmax(axis=-1)
        self.notes[
            f"{self.file.label}: final and preliminary ERA5 are mixed along {axis}; for each time the one that "
            "has data was taken"
        ] = None
        return lambda index: int(chosen[tuple(index[dim] for dim in rest)]) == index[axis]


def _load(
    handle: Handle,
    name: str,
    position: tuple[int | slice, ...],
    layout: Layout,
    scale: float,
    offset: float,
) -> Values:
    """One field: (H, W) float32, canonical order, our unit, NaN where missing."""
    values = handle.read(name, position)
    if (scale, offset) != (1.0, 0.0):
        values = values.astype(np.float64) * scale + offset
    return layout.arrange(values)


def _attributes(variable: Any) -> dict[str, Any]:
    return {name: variable.getncattr(name) for name in variable.ncattrs()}


def version_text(value: Any) -> str | None:
    """Experiment version in four places: 1, '0001', 5.0 -> 0001, 0001, 0005."""
    text = str(value).strip()
    try:
        return f"{int(float(text)):04d}"
    except ValueError:
        return text or None


def _spread(axis: Coordinate, values: NDArray[Any], dims: tuple[str, ...]) -> NDArray[Any]:
    """Values along some dimensions as an array that broadcasts over all of them."""
    shape = [values.shape[axis.dims.index(dim)] if dim in axis.dims else 1 for dim in dims]
    return values.reshape(shape)
