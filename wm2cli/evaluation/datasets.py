"""NetCDF files and Zarr stores as arrays of channels: many times at once, in wm2's names, units and row order.

The readers of `wm2cli.reading` make one object a field, which suits an analysis and not a year of forecasts. Here a
whole variable is read at once. What an axis means is told as there: by CF attributes first, by names second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError, UsageError
from wm2cli.grid import Grid
from wm2cli.reading.fields import canonical_axes
from wm2cli.reading.netcdf_axes import AxisError, Coordinate, Role, latitudes_and_longitudes, levels_hpa, role_of
from wm2cli.reading.units import conversion
from wm2cli.schema import VARIABLES, Variable, level_text

if TYPE_CHECKING:
    import xarray as xr

    from wm2cli.reading.near_store import NearStore

Values = NDArray[np.floating[Any]]
Axis = Role | Literal["hour", "dayofyear"]
Times = NDArray[np.datetime64]

_MORE_ROLES: Mapping[str, Axis] = {"hour": "hour", "dayofyear": "dayofyear", "initial_time": "reference"}
_DECODED_BYTES = 16 * 2**20
"""Of the chunks of a Zarr store that are decoded together."""

_NAMES: dict[str, str] = {
    alias: known.name for known in VARIABLES.values() if not known.name.endswith("_6h")
    for alias in (known.name, *known.aliases)
}  # fmt: skip


def label_of(name: str, level: float | None) -> str:
    """A channel as people write it: `z500`, `t2m`; `u100hPa` where `u100` is the wind 100 m above the ground."""
    if level is None:
        return name
    label = f"{name}{level_text(level)}"
    return f"{label}hPa" if label in VARIABLES else label


@lru_cache(maxsize=4096)
def split_label(label: str) -> tuple[Variable, float | None]:
    """The variable and the level in hPa of a channel: `z500` -> z, 500.

    Raises:
        UsageError: It is none.
    """
    if label in VARIABLES and VARIABLES[label].kind == "surface":
        return VARIABLES[label], None
    found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)(?:hPa)?", label)
    if found and found[1] in VARIABLES and VARIABLES[found[1]].kind == "pressure":
        return VARIABLES[found[1]], float(found[2])
    raise UsageError(f"'{label}' is no channel such as z500 or t2m")


@lru_cache(maxsize=16)
def bounds_of(labels: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest possible values of channels, (C,) each."""
    pairs = [known.plausible(level) for known, level in map(split_label, labels)]
    return np.array([low for low, _ in pairs]), np.array([high for _, high in pairs])


def span(values: Values) -> tuple[Values, Values]:
    """(..., C, H, W) -> (..., C) smallest and largest value of each field, missing ones aside."""
    flat = values.reshape(*values.shape[:-2], -1)
    least, most = flat.min(axis=-1), flat.max(axis=-1)
    if np.isnan(least).any():  # slower, so only where a value is missing
        least, most = np.fmin.reduce(flat, axis=-1), np.fmax.reduce(flat, axis=-1)
    return least, most


def variable_of(name: str) -> Variable | None:
    """The variable that a name in a file means, windows included (`tp_6h`, `total_precipitation_6hr`)."""
    if name in VARIABLES:
        return VARIABLES[name]
    found = re.fullmatch(r"(.+)_(\d+)hr?", name)
    plain, hours = (found[1], int(found[2])) if found and found[1] in _NAMES else (name, 0)
    if plain not in _NAMES:
        return None
    known = VARIABLES[_NAMES[plain]]
    if not hours or hours == known.window_hours:
        return known
    return VARIABLES.get(f"{known.name}_{hours}h")


def order_of(label: str) -> tuple[int, float]:
    """Sorts channels as the table of variables has them, and by level."""
    known, level = split_label(label)
    return list(VARIABLES).index(known.name), level or 0.0


@dataclass(frozen=True)
class _Place:
    """Where a channel is: its variable in the file, its level there, and what makes the unit ours."""

    variable: str
    level: int | None
    scale: float
    offset: float


class Fields:
    """The channels of one NetCDF file or Zarr store.

    Args:
        path: The file or folder; only coordinates are read.

    Raises:
        DataError: It cannot be opened, has no channel that wm2 knows, or its grid is not global; all is listed.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.label = self.path.name
        self.dataset = _open(self.path)
        self.attributes: dict[str, Any] = dict(self.dataset.attrs)
        self.notes: list[str] = []
        self.problems: list[str] = []
        self.channels: dict[str, _Place] = {}
        self.static: dict[str, str] = {}
        self._dims: dict[Axis, str] = {}
        for dim in self.dataset.dims:
            role = self._role(str(dim))
            if role in self._dims:
                self.problems.append(f"has two axes of the kind {role}: {self._dims[role]} and {dim}")
            self._dims[role] = str(dim)
        missing = [name for role, name in (("lat", "latitude"), ("lon", "longitude")) if role not in self._dims]
        if missing:
            raise DataError(f"{self.path} has no axis of {' and of '.join(missing)}",
                            hint="give fields on a global grid of latitudes and longitudes")  # fmt: skip
        try:
            lat, lon = latitudes_and_longitudes(self._coordinate("lat"), self._coordinate("lon"))
            axes, self._flip, self._roll = canonical_axes(lat, lon)
            self.grid = Grid(axes.lat, axes.lon)
        except AxisError as error:
            raise DataError(f"{self.path} {error}") from None
        except DataError as error:
            raise DataError(f"{self.path}: {error.message}", problems=error.problems,
                            hint="scores need fields of the whole globe") from None  # fmt: skip
        # Zarr lists arrays in any order; scores come in one.
        for name in sorted(map(str, self.dataset.data_vars)):
            self._find_channels(name)
        self.channels = {label: self.channels[label] for label in sorted(self.channels, key=order_of)}
        if not self.channels:
            raise DataError(f"{self.path} has no field that can be verified", problems=self.problems,
                            hint=f"variables there: {', '.join(map(str, self.dataset.data_vars))}")  # fmt: skip

    def has(self, role: Axis) -> bool:
        """Whether there is such an axis."""
        return role in self._dims

    def axis(self, role: Axis) -> NDArray[Any]:
        """Values along an axis."""
        return np.asarray(self.dataset[self._dims[role]].values)

    def size(self, role: Axis) -> int:
        """Points along an axis; 1 where there is none."""
        return int(self.dataset.sizes[self._dims[role]]) if role in self._dims else 1

    def scalar(self, role: Axis) -> Any:
        """The value of a coordinate without an axis; None where there is none."""
        for name, coordinate in self.dataset.coords.items():
            if not coordinate.dims and self._role(str(name)) == role:
                return coordinate.values[()]
        return None

    def read(self, labels: Sequence[str], select: Mapping[Axis, int | slice]) -> Values:
        """Values of channels.

        Args:
            labels: C channels.
            select: Places along all axes but level, latitude, longitude; an integer drops the axis, a slice keeps it.

        Returns:
            (C, ..., H, W) as stored (float32 or float64), in our unit and row order, NaN where missing; the axes that
            were kept stand in the order of `select`.

        Raises:
            DataError: The file is damaged.
        """
        kept = [self._dims[role] for role, part in select.items() if isinstance(part, slice) and role in self._dims]
        order = (*kept, self._dims["lat"], self._dims["lon"])
        index = {self._dims[role]: part for role, part in select.items() if role in self._dims}
        groups: dict[str, list[int]] = {}
        for number, label in enumerate(labels):
            groups.setdefault(self.channels[label].variable, []).append(number)
        out: Values | None = None
        for name, numbers in groups.items():
            places = [self.channels[labels[number]] for number in numbers]
            variable = self.dataset.variables[name]
            chosen: dict[str, Any] = {dim: part for dim, part in index.items() if dim in variable.dims}
            level = self._dims.get("level", "")
            if level in variable.dims:
                chosen[level] = _compact([place.level or 0 for place in places])
            try:
                found = variable.isel(chosen)
                # Read first, turn then: xarray reads a lazy array that was turned point by point.
                values = np.asarray(found.values).transpose([found.dims.index(dim) for dim in (level, *order)
                                                             if dim in found.dims])  # fmt: skip
            except (OSError, RuntimeError, ValueError) as error:
                raise DataError(f"{self.path}: {name} cannot be read: {error}",
                                hint="the file is damaged or incomplete: get it again") from error  # fmt: skip
            values = self._canonical(values if level in variable.dims else values[None], places[0])
            if out is None:
                out = np.empty((len(labels), *values.shape[1:]), values.dtype)
            if values.dtype != out.dtype:
                out = out.astype(np.result_type(out, values))
            out[numbers] = values
        if out is None:
            raise DataError(f"no channels of {self.path} were asked for")
        return out

    def read_static(self, name: str) -> Values:
        """(H, W) values of a field constant in time that `static` names."""
        variable = self.dataset.variables[self.static[name]]
        first = {dim: 0 for dim in variable.dims if dim not in (self._dims["lat"], self._dims["lon"])}
        values = np.asarray(variable.isel(first).transpose(self._dims["lat"], self._dims["lon"]).values)
        known = VARIABLES[name]
        scale, offset = conversion(known, str(variable.attrs.get("units", known.units))) or (1.0, 0.0)
        return np.asarray(self._canonical(values[None], _Place(name, None, scale, offset))[0])

    def read_named(self, name: str, select: Mapping[Axis, int]) -> Values:
        """(H, W) values of a variable that is no channel, as stored but for the order of rows and columns."""
        variable = self.dataset.variables[name]
        index = {self._dims[role]: part for role, part in select.items() if self._dims.get(role, "") in variable.dims}
        return self._map(variable.isel(index))

    def mean_named(self, name: str) -> Values:
        """(H, W) mean of a variable that is no channel over its other axes, in float64."""
        variable = self.dataset.variables[name]
        others = [str(dim) for dim in variable.dims if dim not in (self._dims["lat"], self._dims["lon"])]
        longest = max(others, key=lambda dim: variable.sizes[dim])
        rest, count = [dim for dim in others if dim != longest], variable.sizes[longest]
        total: Any = sum(self._map(variable.isel({longest: number}).mean(rest, dtype=float)) for number in range(count))
        return np.asarray(total / count)

    def _map(self, found: xr.Variable) -> Values:
        values = np.asarray(found.values).transpose([found.dims.index(self._dims[role]) for role in ("lat", "lon")])
        return self._canonical(values, _Place("", None, 1.0, 0.0))

    @cached_property
    def valid_times(self) -> Times:
        """(T,) valid times, for fields that are no forecast.

        Raises:
            DataError: They have no such axis.
        """
        if self.has("step"):
            raise DataError(f"{self.path} is a forecast (it has lead times), not a truth", hint="give an analysis")
        if not self.has("time"):
            raise DataError(f"{self.path} has no time axis", hint="give an analysis with an axis of valid times")
        return _seconds(self.path, self.axis("time"))

    @cached_property
    def starts_and_leads(self) -> tuple[Times, NDArray[np.int64]]:
        """(N,) starts and (T,) leads in hours, for forecasts.

        Raises:
            DataError: They are no forecast.
        """
        reference = self.scalar("reference")
        if self.has("step"):
            steps = self.axis("step")
            roles: tuple[Axis, ...] = ("reference", "time")
            starts = next((self.axis(role) for role in roles if self.has(role)),
                          reference if reference is not None else self.scalar("time"))  # fmt: skip
            if starts is None or not np.issubdtype(steps.dtype, np.timedelta64):
                raise DataError(f"{self.path}: lead times or start of the forecast cannot be told",
                                hint="lead times need units such as hours, the start an axis or a scalar")  # fmt: skip
            return _seconds(self.path, np.atleast_1d(starts)), _hours(self.path, steps)
        if reference is None or not self.has("time"):
            raise DataError(
                f"{self.path} is no forecast: it has no lead times and no forecast_reference_time",
                hint="give what `wm2 forecast` writes, or forecasts in WeatherBench 2 layout",
            )
        start = _seconds(self.path, np.atleast_1d(reference))
        return start, _hours(self.path, _seconds(self.path, self.axis("time")) - start[0])

    def _role(self, name: str) -> Axis:
        if name in _MORE_ROLES:
            return _MORE_ROLES[name]
        attributes = dict(self.dataset[name].attrs) if name in self.dataset.coords else {}
        return role_of(name, attributes)

    def _coordinate(self, role: Axis) -> Coordinate:
        name = self._dims[role]
        if name not in self.dataset.coords:
            raise DataError(f"{self.path} has an axis {name} without values")
        found = self.dataset[name]
        return Coordinate(name, tuple(map(str, found.dims)), np.asarray(found.values), dict(found.attrs), role)  # type: ignore[arg-type]

    def _find_channels(self, name: str) -> None:
        variable = self.dataset.variables[name]
        known = variable_of(name)
        if known is None or not {self._dims["lat"], self._dims["lon"]} <= set(variable.dims):
            return
        if known.kind == "static":
            self.static[known.name] = name
            return
        units = variable.attrs.get("units")
        made = (1.0, 0.0) if units is None else conversion(known, str(units))
        if units is None:
            self.notes.append(f"{self.label}: {name} has no units; taken as {known.units}")
        if made is None:
            self.problems.append(
                f"{name} has the units '{units}', which are not known for {known.name} ({known.units})"
            )
            return
        if known.kind == "surface":
            self._take(known, None, _Place(name, None, *made))
            return
        try:
            if self._dims.get("level", "") in variable.dims:
                levels, note = levels_hpa(self._coordinate("level"))
                if note is not None and f"{self.label}: {note}" not in self.notes:
                    self.notes.append(f"{self.label}: {note}")
                for number, level in enumerate(levels):
                    self._take(known, float(level), _Place(name, number, *made))
            elif (level := self.scalar("level")) is not None:
                self._take(known, float(level), _Place(name, None, *made))
            elif "model_level" not in self._dims:
                self.problems.append(f"{name} has no level")
        except AxisError as error:
            self.problems.append(f"{name} {error}")

    def _take(self, known: Variable, level: float | None, place: _Place) -> None:
        label = label_of(known.name, level)
        if label in self.channels:
            self.problems.append(f"{label} is there twice, as {self.channels[label].variable} and {place.variable}")
        self.channels[label] = place

    def _canonical(self, values: Values, place: _Place) -> Values:
        if not np.issubdtype(values.dtype, np.floating):
            values = values.astype(np.float32)
        if self._flip:
            values = values[..., ::-1, :]
        if self._roll:
            values = np.roll(values, self._roll, axis=-1)
        if (place.scale, place.offset) != (1.0, 0.0):
            values = (values.astype(np.float64) * place.scale + place.offset).astype(values.dtype)
        return values


def _compact(numbers: list[int]) -> slice | list[int]:
    """A run of numbers as a slice, which every backend reads at once."""
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return numbers


def _chunks_at_once(store: NearStore) -> int:
    """Chunks of a Zarr store that are decoded together: zarr takes one by one, which costs more than their reading."""
    import zarr

    arrays = [array for _, array in zarr.open_group(store, mode="r").arrays()]
    largest = max((math.prod(array.chunks) * array.dtype.itemsize for array in arrays), default=1)
    return max(1, min(64, _DECODED_BYTES // largest))


def _open(path: Path) -> xr.Dataset:
    import xarray as xr

    if not path.exists():
        raise DataError(f"{path} does not exist", hint="check the path")
    try:
        if path.is_dir():
            header = path / "zarr.json"
            if not header.exists() and not (path / ".zgroup").exists():
                raise DataError(f"{path} is a folder, but no Zarr store", hint="name the files in it")
            # Said outright, because xarray warns when it has to find out.
            both = (
                '"consolidated_metadata"' in header.read_text() if header.exists() else (path / ".zmetadata").exists()
            )
            import zarr

            from wm2cli.reading.near_store import NearStore

            store = NearStore(path)
            with zarr.config.set({"codec_pipeline.batch_size": _chunks_at_once(store)}):
                stored: xr.Dataset = xr.open_zarr(store, chunks=None, decode_timedelta=True, consolidated=both)
            return stored
        return xr.open_dataset(path, engine="netcdf4", decode_timedelta=True, cache=False)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} cannot be opened: {error}", hint="it is damaged, or neither NetCDF nor Zarr"
        ) from error


def _seconds(path: Path, values: NDArray[Any]) -> Times:
    if not np.issubdtype(values.dtype, np.datetime64) or np.isnat(values).any():
        raise DataError(
            f"{path} has times that cannot be read", hint="times need units such as 'hours since 2020-01-01'"
        )
    return values.astype("datetime64[s]")


def _hours(path: Path, values: NDArray[np.timedelta64]) -> NDArray[np.int64]:
    seconds = values.astype("timedelta64[s]").astype(np.int64)
    if (seconds % 3600).any():
        raise DataError(f"{path} has lead times that are no whole hours")
    return np.asarray(seconds // 3600)
