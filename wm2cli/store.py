"""The training store: years of states in one Zarr array, one time a chunk, with all that is needed to use them.

A store is a folder with a Zarr v3 group. `fields` (time, channel, latitude, longitude) holds float32 physical values,
or float16 values normalised as (f(x) - mean) / std, where f is ln(x + floor) for sums of precipitation and else the
identity; `time`, `latitude`, `longitude` and `static` stand beside it, and `hashes` has the sha256 of every time. The
channel table, the splits, the statistics and the provenance are attributes. Float16 keeps 11 bits: at two standard
deviations from the mean a value is off by at most a two-thousandth of a standard deviation.

A store is made in a folder `NAME.part` that gets its name when every byte has been verified (`wm2cli.preprocess`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wm2cli.errors import ConfigError, DataError, UsageError
from wm2cli.grid import Grid
from wm2cli.schema import Schema

FORMAT = 1
"""Format number of the stores written here; other numbers are refused."""

DTYPES = ("float16", "float32")
"""Of `fields`: normalised and physical values."""

Dtype = Literal["float16", "float32"]
Fields = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
Splits = Mapping[str, tuple[tuple[np.datetime64, np.datetime64], ...]]

_BLOCK_BYTES = 64 * 2**20  # read at once while verifying
_NOT_A_STORE = "make a training store with `wm2 preprocess`"


@dataclass(frozen=True, eq=False)
class Coding:
    """How physical values stand in a store: the map between them and the numbers in the array.

    Args:
        dtype: Type of the numbers.
        mean, std: (C, 1, 1) of f(x), one for each channel.
        floor: (C, 1, 1) added before the logarithm; NaN for channels without one.
    """

    dtype: Dtype
    mean: Fields
    std: Fields
    floor: Fields

    @classmethod
    def of(cls, dtype: Dtype, channels: Sequence[str], normalizer: Mapping[str, Any]) -> Coding:
        """The coding that a normalizer (`state.Normalizer.to_dict`) means."""

        def column(values: Mapping[str, float], missing: float | None = None) -> Fields:
            table = [values[name] if missing is None else values.get(name, missing) for name in channels]
            return np.array(table, np.float32).reshape(-1, 1, 1)

        floor = column(normalizer["log_floor"], np.nan)
        return cls(dtype, column(normalizer["mean"]), column(normalizer["std"]), floor)

    def encode(self, values: Fields) -> NDArray[np.floating]:
        """(N, C, H, W) physical values -> numbers for the array."""
        if self.dtype == "float32":
            return np.ascontiguousarray(values, "<f4")
        made = np.empty(values.shape, "<f2")
        for number, one in enumerate(values):  # one at a time stays in the processor's cache
            work = one.copy()
            apply_logarithm(work, self.floor)
            work -= self.mean
            work /= self.std
            made[number] = work
        return made

    def decode(self, numbers: NDArray[np.floating]) -> Fields:
        """(N, C, H, W) numbers of the array -> physical values."""
        values = numbers.astype(np.float32)
        if self.dtype == "float32":
            return values
        values *= self.std
        values += self.mean
        for channel in _with_floor(self.floor):
            values[:, channel] = np.maximum(np.exp(values[:, channel]) - self.floor[channel], 0.0)
        return values


def apply_logarithm(values: Fields, floor: Fields) -> None:
    """Makes f(x) of x in place: ln(x + floor) for the channels with a floor, the identity for the others.

    Args:
        values: (..., C, H, W) physical values.
        floor: (C, 1, 1), NaN for channels without one.
    """
    for channel in _with_floor(floor):
        part = values[..., channel, :, :]
        np.log(np.maximum(part, 0.0) + floor[channel], out=part)


def _with_floor(floor: Fields) -> list[int]:
    return [int(channel) for channel in np.flatnonzero(np.isfinite(floor.ravel()))]


@dataclass(frozen=True, eq=False)
class Store:
    """A complete training store, open for reading; safe in many threads, and can be pickled to other processes.

    Args:
        path: Folder.
        schema: Variables in channel order; `forcing` is empty.
        grid: Grid of shape (H, W).
        time: (T,) datetime64[s], UTC, in steps of `step_hours`.
        step_hours: Hours between times.
        splits: `train`, `validation`, `test`: ranges of time, both ends included.
        normalizer: Statistics over the times of `train`, as `state.Normalizer.from_dict` takes them.
        static: (H, W) float32 by name.
        provenance: Where the data come from and what was done to them.
        fingerprint: sha256 over channels, statistics, grid, times and every byte of the fields.
        dtype: Of the stored numbers.
        title: One line for people.
    """

    path: Path
    schema: Schema
    grid: Grid
    time: NDArray[np.datetime64]
    step_hours: int
    splits: Splits
    normalizer: Mapping[str, Any]
    static: Mapping[str, Fields]
    provenance: Mapping[str, Any]
    fingerprint: str
    dtype: Dtype
    _fields: Any
    _coding: Coding

    @property
    def kind(self) -> str:
        """`reanalysis`, `analysis` or `simulated`."""
        return str(self.provenance["kind"])

    @property
    def title(self) -> str:
        """What the data are, in one line."""
        return str(self.provenance["title"])

    def index(self, times: ArrayLike) -> NDArray[np.int64]:
        """(N,) places of times on the axis.

        Raises:
            DataError: Some are not there; all of them are named, shortened when there are many.
        """
        wanted = np.atleast_1d(np.asarray(times, "datetime64[s]"))
        offset = (wanted - self.time[0]).astype(np.int64)
        places: NDArray[np.int64] = offset // (3600 * self.step_hours)
        absent = wanted[(offset % (3600 * self.step_hours) != 0) | (places < 0) | (places >= self.time.size)]
        if absent.size:
            shown = ", ".join(str(time)[:16] for time in absent[:6]) + (", ..." if absent.size > 6 else "")
            raise DataError(
                f"{self.path} lacks {absent.size} of {wanted.size} times: {shown}",
                hint=f"it has {str(self.time[0])[:16]} to {str(self.time[-1])[:16]} every {self.step_hours} h",
            )
        return places

    def split_indices(self, name: str) -> NDArray[np.int64]:
        """Places of the times of a split, in order.

        Raises:
            UsageError: There is no such split; names those there are.
        """
        if name not in self.splits:
            raise UsageError(f"{self.path} has no split '{name}'", hint=f"it has {', '.join(self.splits)}")
        return split_places(self.time, self.splits[name])

    def read(self, indices: ArrayLike) -> Fields:
        """(N, C, H, W) float32 physical values at places on the axis, channels in the order of `schema.channels`.

        Raises:
            DataError: A chunk is lost or damaged.
            IndexError: No such place.
        """
        return self._coding.decode(self.read_stored(indices))

    def read_stored(self, indices: ArrayLike) -> NDArray[np.floating]:
        """The same as stored: normalised float16, or physical float32."""
        places = np.atleast_1d(np.asarray(indices, np.int64))
        if places.size and (places.min() < 0 or places.max() >= self.time.size):
            raise IndexError(f"places {places.min()} to {places.max()} of {self.time.size} times")
        with _reading(self.path):
            numbers = read_places(self._fields, places)
        if numbers.size and np.isnan(numbers.min()):  # the minimum of any NaN is NaN; a lost chunk is all NaN
            lost = places[[np.isnan(one.min()) for one in numbers]]
            raise DataError(f"{self.path} has lost {lost.size} times: {str(self.time[lost[0]])[:16]}"
                            f"{', ...' if lost.size > 1 else ''}", hint="make the store again")  # fmt: skip
        return numbers

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)


def open_store(path: Path | str) -> Store:
    """Opens a training store; only its attributes and axes are read.

    Raises:
        DataError: There is none, or it is not finished, of another format, or damaged; says what to do.
    """
    folder = Path(path).expanduser()
    group = _open_group(folder)
    attributes = dict(group.attrs)
    with _reading(folder):
        try:
            schema = Schema.from_dict(attributes["schema"])
            grid = Grid(group["latitude"][:], group["longitude"][:])
            time = np.asarray(group["time"][:]).astype("datetime64[s]")
            dtype = cast(Dtype, str(group["fields"].dtype))
            splits = {name: tuple((np.datetime64(first, "s"), np.datetime64(last, "s")) for first, last in ranges)
                      for name, ranges in attributes["splits"].items()}  # fmt: skip
            store = Store(
                path=folder, schema=schema, grid=grid, time=time, step_hours=int(attributes["step_hours"]),
                splits=splits, normalizer=attributes["normalizer"],
                static=dict(zip(schema.static, np.asarray(group["static"][:], np.float32), strict=True)),
                provenance=attributes["provenance"], fingerprint=str(attributes["fingerprint"]), dtype=dtype,
                _fields=group["fields"], _coding=Coding.of(dtype, schema.channels, attributes["normalizer"]),
            )  # fmt: skip
        except (KeyError, TypeError, ConfigError) as error:
            raise DataError(f"{folder} is damaged: {error}", hint="make the store again") from error
    shape = (time.size, len(schema.channels), *grid.shape)
    if store._fields.shape != shape:
        raise DataError(f"{folder} is damaged: fields are {store._fields.shape}, its table says {shape}",
                        hint="make the store again")  # fmt: skip
    return store


def verify(store: Store, on_progress: Progress = lambda what, done, total: None) -> None:
    """Reads every byte of a store again and compares it with the hashes and the fingerprint.

    Raises:
        DataError: Some times are not what was written; they are named.
    """
    import zarr

    known = zarr.open_group(store.path, mode="r")["hashes"]
    wrong: list[str] = []
    with _reading(store.path):
        expected = np.asarray(cast(Any, known)[:])
        for places in blocks(store.time.size, store._fields):
            found = hashes_of(read_places(store._fields, places))
            wrong += [str(store.time[place])[:16] for place in places[(found != expected[places]).any(axis=1)]]
            on_progress("verifying the store", int(places[-1]) + 1, store.time.size)
    table = channel_table(store.schema, store.dtype, store.normalizer)
    if not wrong and fingerprint_of(table, store.grid, store.time, expected) != store.fingerprint:
        wrong = ["the table of channels, the axes or the hashes"]
    if wrong:
        raise DataError(f"{store.path} is damaged", problems=[f"{item} is not what was written" for item in wrong],
                        hint="make the store again")  # fmt: skip


def split_places(time: NDArray[np.datetime64], ranges: Sequence[tuple[Any, Any]]) -> NDArray[np.int64]:
    """Places on a time axis inside any of some ranges, both ends included, in order."""
    inside = np.zeros(time.size, bool)
    for first, last in ranges:
        inside |= (time >= np.datetime64(first, "s")) & (time <= np.datetime64(last, "s"))
    return np.flatnonzero(inside).astype(np.int64)


def read_places(fields: Any, places: NDArray[np.int64]) -> NDArray[np.floating]:
    """(N, C, H, W) numbers of the array `fields` at places on its time axis."""
    if places.size > 1 and (np.diff(places) == 1).all():  # zarr fetches the chunks of a slice side by side
        return np.asarray(fields[int(places[0]) : int(places[-1]) + 1])
    made = np.empty((places.size, *fields.shape[1:]), fields.dtype)
    for number, place in enumerate(places):
        made[number] = fields[int(place)]
    return made


def blocks(count: int, fields: Any) -> Iterator[NDArray[np.int64]]:
    """Places 0 to `count` in runs that fit into memory."""
    one = int(np.prod(fields.shape[1:])) * np.dtype(fields.dtype).itemsize
    step = max(1, _BLOCK_BYTES // one)
    for start in range(0, count, step):
        yield np.arange(start, min(start + step, count))


def hashes_of(numbers: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(N, 32) sha256 of the bytes of each of N times, as stored."""
    digests = [hashlib.sha256(np.ascontiguousarray(one).data).digest() for one in numbers]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def channel_table(schema: Schema, dtype: Dtype, normalizer: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers of a store mean."""
    return {"schema": schema.to_dict(), "dtype": dtype, "normalizer": normalizer}


def fingerprint_of(table: Mapping[str, Any], grid: Grid, time: NDArray[np.datetime64],
                   hashes: NDArray[np.uint8]) -> str:  # fmt: skip
    """sha256 over the channel table, the grid, the times and the hashes of all times."""
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    for axis in (grid.lat.astype("<f8"), grid.lon.astype("<f8"), time.astype("datetime64[s]").astype("<i8"), hashes):
        digest.update(np.ascontiguousarray(axis).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What a failed read means: zarr and its codecs raise whatever they like."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="make the store again") from error


def _open_group(folder: Path) -> Any:
    import zarr

    part = folder.with_name(f"{folder.name}.part")
    if not folder.exists():
        if part.exists():
            raise DataError(f"{folder} is not finished: {part} is there",
                            hint="run the same `wm2 preprocess` again; it goes on where it stopped")  # fmt: skip
        raise DataError(f"there is no training store {folder}", hint=_NOT_A_STORE)
    try:
        group = zarr.open_group(folder, mode="r", zarr_format=3)
        number = group.attrs.get("format")
    except Exception as error:  # zarr has no error of its own for what is no group
        raise DataError(f"{folder} is not a training store: {error}", hint=_NOT_A_STORE) from error
    if "schema" not in group.attrs or number is None:
        raise DataError(f"{folder} is a Zarr store, but not a training store", hint=_NOT_A_STORE)
    if number != FORMAT:
        raise DataError(f"{folder} has the format {number}, this wm2 reads {FORMAT}", hint="make the store again")
    if group.attrs.get("complete") is not True:
        raise DataError(f"{folder} is not finished",
                        hint="run the same `wm2 preprocess` again; it goes on where it stopped")  # fmt: skip
    return group
