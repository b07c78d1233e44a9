"""What a set of input files holds, before any of it is decoded.

A `Field` is one two-dimensional field in a file: what it is, when it is valid, on which grid, and how to read
it. An `Inventory` is all of them. Readers (`grib`, `netcdf`) only look at headers to make one,
so that a file with hundreds of fields opens at once and only the fields a forecast needs are ever decoded.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError
from wm2cli.grid import Grid, grid_issues
from wm2cli.schema import VARIABLES, Statistic, level_text

Values = NDArray[np.float32]
Time = np.datetime64


@dataclass(frozen=True, eq=False)
class Axes:
    """Coordinates of a rectangular grid in canonical order; unlike `Grid` it may be regional.

    Args:
        lat: (H,) degrees north, from north to south.
        lon: (W,) degrees east, increasing in [0, 360).
    """

    lat: NDArray[np.float64]
    lon: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (H, W)."""
        return self.lat.size, self.lon.size

    def same_as(self, other: Axes) -> bool:
        """Whether both name the same points, to a ten-thousandth of a degree (float32 and GRIB1 coordinates)."""
        return self is other or (
            self.shape == other.shape
            and np.allclose(self.lat, other.lat, rtol=0, atol=1e-4)
            and np.allclose(self.lon, other.lon, rtol=0, atol=1e-4)
        )

    def same_as_grid(self, grid: Grid) -> bool:
        """The same for a global grid."""
        return grid.same_as(self.lat, self.lon)

    def issues(self) -> list[str]:
        """Why these are not a global grid, one line each."""
        return grid_issues(self.lat, self.lon)

    def grid(self) -> Grid:
        """The global grid with these coordinates.

        Raises:
            DataError: They do not cover the globe.
        """
        return Grid(self.lat, self.lon)

    def describe(self) -> str:
        """For people: `73x144, latitude 90 to -90, longitude 0 to 357.5`."""
        height, width = self.shape
        rows = f"latitude {self.lat[0]:g} to {self.lat[-1]:g}"
        # A region across 0 degrees east is cut in two by the canonical order: people know it by its own ends.
        gaps = np.diff(np.append(self.lon, self.lon[0] + 360.0))
        first = (int(np.argmax(gaps)) + 1) % width if gaps.max() > 1.5 * gaps.min() else 0
        west, east = self.lon[first], self.lon[first - 1]
        return f"{height}x{width}, {rows}, longitude {west - 360.0 if west > east else west:g} to {east:g}"


Item = TypeVar("Item")


def one_grid(items: Iterable[tuple[Axes, Item]], whose: Callable[[Sequence[Item]], str]
             ) -> tuple[Grid | None, list[str]]:  # fmt: skip
    """The one global grid that all items lie on, or None with what is wrong; None alone if there are no items.

    Args:
        items: Each with the axes it is on.
        whose: What messages call some of them.
    """
    groups: list[tuple[Axes, list[Item]]] = []
    for axes, item in items:
        for known, members in groups:
            if known.same_as(axes):
                members.append(item)
                break
        else:
            groups.append((axes, [item]))
    issues = []
    if len(groups) > 1:
        issues += [f"{whose(members)}: on a grid of {axes.describe()}; all must be on the same"
                   for axes, members in groups]  # fmt: skip
    issues += [f"{whose(members)} on {axes.describe()}: {'; '.join(found)}"
               for axes, members in groups if (found := axes.issues())]  # fmt: skip
    return None if issues or not groups else groups[0][0].grid(), issues


@dataclass(frozen=True, eq=False)
class SourceFile:
    """A file that fields are read from.

    Args:
        path: Where the bytes are; for a member of a ZIP the unpacked copy.
        label: What to call it in messages: `a.grib` or `a.zip: b.nc`.
        archive: The ZIP the user gave, when there is one; it is what the hash is of.
        keep: Whatever must live as long as the file is read (the folder of unpacked members).
    """

    path: Path
    label: str
    archive: Path | None = None
    keep: object = field(default=None, repr=False)
    _state: tuple[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_state", self._look())

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._state[0]

    @property
    def name(self) -> str:
        """Path as the user knows it."""
        return str(self.archive or self.path)

    def check_unchanged(self) -> None:
        """Make sure that the file is still the one whose headers were read.

        Raises:
            DataError: Its size or modification time differ, or it is gone.
        """
        if self._look() != self._state:
            raise DataError(f"{self.label} changed while it was being read", hint="wait until it is complete")

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from the file; fewer than asked only at its end."""
        with open(self.path, "rb", buffering=0) as stream:
            parts = []
            while length > 0:
                part = os.pread(stream.fileno(), length, offset)
                if not part:
                    break
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @cached_property
    def sha256(self) -> str:
        """Hash of the file as the user gave it; reads all of it once."""
        with open(self.archive or self.path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _look(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise DataError(f"cannot read {self.label}: {error.strerror}") from error
        return found.st_size, found.st_mtime_ns


@dataclass(frozen=True, eq=False)
class Field:
    """One two-dimensional field in a file, not decoded yet.

    Args:
        variable: Name in `wm2cli.schema.VARIABLES`; of windowed pairs (`tp`, `tp_6h`) always the plain one,
            the window says the rest.
        level: Pressure in hPa, or None.
        valid_time: Instant it is valid at, for windows their end; None for fields without a time (statics).
        base_time: Start of the forecast it comes from; equals `valid_time` for an analysis; None when not
            stated.
        statistic: How it stands for the `window_hours` before `valid_time`.
        window_hours: Length of the window; 0 for a point in time, NaN when the file does not say.
        member: Ensemble member, or None outside an ensemble.
        version: ECMWF experiment version (`0001` final ERA5, `0005` preliminary ERA5T), or None.
        axes: Its grid in canonical order.
        origin: Where it is, for messages: `file.grib message 12`.
        file: The file it is in.
        load: Decodes it: (H, W) float32, canonical order, our unit, NaN where missing.
    """

    variable: str
    level: float | None
    valid_time: Time | None
    base_time: Time | None
    statistic: Statistic
    window_hours: float
    member: int | None
    version: str | None
    axes: Axes = field(repr=False)
    origin: str
    file: SourceFile = field(repr=False)
    load: Callable[[], Values] = field(repr=False)

    @property
    def label(self) -> str:
        """Name and level: `z500`, `t2m`."""
        return self.variable if self.level is None else f"{self.variable}{level_text(self.level)}"

    def read(self, *, allow_missing: bool = False) -> Values:
        """Decode the field.

        Args:
            allow_missing: Return NaN at missing points instead of refusing them.

        Returns:
            (H, W) float32 in our unit, rows from north to south, columns from 0 degrees east.

        Raises:
            DataError: The file changed, cannot be decoded, or has missing points.
        """
        self.file.check_unchanged()
        values = self.load()
        if not allow_missing and np.isnan(values.min()):  # the minimum of any NaN is NaN
            missing = int(np.count_nonzero(np.isnan(values)))
            raise DataError(f"{self.label} has {missing} missing values of {values.size} ({self.origin})")
        return values


@dataclass(frozen=True, eq=False)
class Inventory:
    """Everything a set of files holds that wm2 knows, and an account of the rest.

    Args:
        fields: In file order.
        files: The files looked at.
        ignored: Fields that are none of ours, as text for people, with their number.
        problems: Variable name -> why fields of it cannot be used (units, kind of level, grid), one line
            each.
        notes: Facts about the reading that the user should know.
        readers: What keeps files open while it is entered, for files that are slow to open.
    """

    fields: tuple[Field, ...] = ()
    files: tuple[SourceFile, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    problems: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    readers: tuple[AbstractContextManager[object], ...] = ()

    @classmethod
    def merge(cls, parts: Iterable[Inventory]) -> Inventory:
        """All inventories as one."""
        whole = list(parts)
        ignored: Counter[str] = Counter()
        problems: dict[str, tuple[str, ...]] = {}
        for part in whole:
            ignored.update(part.ignored)
            for name, lines in part.problems.items():
                problems[name] = problems.get(name, ()) + lines
        return cls(
            tuple(found for part in whole for found in part.fields),
            tuple(file for part in whole for file in part.files),
            dict(ignored),
            problems,
            tuple(dict.fromkeys(note for part in whole for note in part.notes)),
            tuple(reader for part in whole for reader in part.readers),
        )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keeps files open for the duration; many fields are read faster so."""
        with ExitStack() as stack:
            for reader in self.readers:
                stack.enter_context(reader)
            yield

    def times(self) -> tuple[Time, ...]:
        """Valid times of the fields that change in time, in order."""
        return tuple(sorted({found.valid_time for found in self._dynamic if found.valid_time is not None}))

    def find(
        self,
        variable: str,
        level: float | None = None,
        time: Time | None = None,
        statistic: Statistic | None = None,
    ) -> tuple[Field, ...]:
        """Fields of a variable, in file order.

        Args:
            variable: Name in `VARIABLES`. A windowed one (`tp_6h`) matches only fields with its window.
            level: Pressure in hPa; None matches every level.
            time: Valid time; None matches every time.
            statistic: Another way to stand for a window than the variable's own; then every window matches.
        """
        known = VARIABLES[variable]
        found = self._by_name.get(plain_name(variable), ())
        if level is not None:
            found = tuple(item for item in found if item.level is not None and abs(item.level - level) < 1e-6)
        if time is not None:
            found = tuple(item for item in found if item.valid_time == time)
        if statistic is not None:
            return tuple(item for item in found if item.statistic == statistic)
        own = tuple(item for item in found if item.statistic == known.statistic)
        if known.statistic == "point":
            return own
        return tuple(item for item in own if item.window_hours == known.window_hours)

    def levels(self, variable: str, time: Time | None = None) -> tuple[float, ...]:
        """Levels of a variable in hPa, from low pressure to high."""
        return tuple(sorted({item.level for item in self.find(variable, time=time) if item.level is not None}))

    def duplicates(self) -> tuple[tuple[Field, ...], ...]:
        """Groups of fields that say the same thing for the same time, level, window and member."""
        groups: dict[object, list[Field]] = {}
        for item in self.fields:
            key = (
                item.variable,
                item.level,
                item.valid_time,
                item.base_time,
                item.statistic,
                item.window_hours,
            )
            groups.setdefault((key, item.member), []).append(item)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    def describe(self) -> str:
        """For people: what is there, one line a variable, and what was left aside."""
        lines = [f"{_count(self.fields, 'field')} in {_count(self.files, 'file')}"]
        times = self.times()
        if times:
            lines.append(f"times: {times_text(times)}")
        for name in sorted(self._by_name, key=list(VARIABLES).index):
            items = self._by_name[name]
            levels = sorted({item.level for item in items if item.level is not None})
            listed = " ".join(level_text(level) for level in levels)
            where = f" at {_count(levels, 'level')}: {listed} hPa" if levels else ""
            how = sorted({_statistic_text(item) for item in items} - {""})
            members = [str(member) for member in sorted({i.member for i in items if i.member is not None})]
            whose = f", {'members' if members[1:] else 'member'} {' '.join(members)}" if members else ""
            about = f"{' ' + ', '.join(how) if how else ''}{whose}"
            lines.append(f"{name} ({VARIABLES[name].long_name}){where}{about}: {_count(items, 'field')}")
        lines += [f"cannot be used: {line}" for found in self.problems.values() for line in found]
        lines += [f"not used: {text} ({count})" for text, count in sorted(self.ignored.items())]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    @cached_property
    def _dynamic(self) -> tuple[Field, ...]:
        return tuple(item for item in self.fields if VARIABLES[item.variable].kind != "static")

    @cached_property
    def _by_name(self) -> dict[str, tuple[Field, ...]]:
        groups: dict[str, list[Field]] = {}
        for item in self.fields:
            groups.setdefault(item.variable, []).append(item)
        return {name: tuple(items) for name, items in groups.items()}


def plain_name(variable: str) -> str:
    """The name under which fields of a variable are kept: `tp` for `tp` and for `tp_6h`."""
    plain = variable.removesuffix("_6h")
    return plain if plain in VARIABLES else variable


def time_text(time: Time) -> str:
    """A time as people write it: 2024-01-01T00, with minutes only where there are some."""
    text = str(time.astype("datetime64[m]"))
    return text.removesuffix(":00")


def times_text(times: Iterable[Time], most: int = 6) -> str:
    """Times for people, shortened in the middle when there are many."""
    texts = [time_text(time) for time in times]
    if len(texts) <= most:
        return ", ".join(texts)
    half = most // 2
    return f"{', '.join(texts[:half])}, ... {', '.join(texts[-half:])} ({len(texts)} times)"


def _count(things: Sized, noun: str) -> str:
    """`1 field`, `2 fields`."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _statistic_text(item: Field) -> str:
    if item.statistic == "point":
        return ""
    window = "unknown time" if np.isnan(item.window_hours) else f"{item.window_hours:g} h"
    return f"{item.statistic} over {window}"


def canonical_axes(lat: NDArray[np.float64], lon: NDArray[np.float64]) -> tuple[Axes, bool, int]:
    """Coordinates in canonical order and what it takes to bring values there.

    Args:
        lat: (H,) degrees north, in either direction.
        lon: (W,) degrees east, from west to east, beginning anywhere (-180, 0, 180).

    Returns:
        The axes; whether rows are to be flipped; by how many columns values are to be rolled (`np.roll`
        shift).

    Raises:
        DataError: An axis is not in order, or the columns go round the globe more than once.
    """
    rows = np.diff(lat)
    if not ((rows < 0).all() or (rows > 0).all()):
        raise DataError("latitudes are not in order")
    flip = bool(rows.size and rows[0] > 0)
    # Rounded so that -1e-7 becomes 0 and not 359.9999999.
    turned = np.round(lon % 360.0, 6) % 360.0
    if np.unique(turned).size < turned.size:
        raise DataError(f"longitudes {lon[0]:g} to {lon[-1]:g} name the same meridian twice")
    first = int(np.argmin(turned))
    ordered = np.roll(turned, -first)
    if not (np.diff(ordered) > 0).all():
        raise DataError("longitudes are not in order from west to east")
    return Axes(lat[::-1].copy() if flip else lat.copy(), ordered), flip, -first


def canonical_order(table: NDArray[Any], flip: bool, roll: int, reverse: bool = False) -> Values:
    """Values in canonical order, as `canonical_axes` says.

    Args:
        table: (H, W) of any type of number.
        flip: Rows run from south to north.
        roll: By how many columns to roll, from west to east, at most 0.
        reverse: Columns run from east to west.

    Returns:
        (H, W) float32, a copy: made in one pass, because a field of a million points is slow to allocate.
    """
    table = table[:: -1 if flip else 1, :: -1 if reverse else 1]
    made = np.empty(table.shape, np.float32)
    kept = table.shape[1] + roll
    made[:, :kept] = table[:, -roll:] if roll else table
    made[:, kept:] = table[:, :-roll] if roll else table[:, kept:]
    return made
