"""The store that is being made: written time by time, resumed after a kill, and complete when it has its name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError, ResourceError, UsageError
from wm2cli.grid import Grid
from wm2cli.schema import Schema
from wm2cli.store import (
    FORMAT,
    Coding,
    Dtype,
    Fields,
    Progress,
    Splits,
    Store,
    blocks,
    channel_table,
    fingerprint_of,
    hashes_of,
    open_store,
    read_places,
)

Look = Callable[[NDArray[np.int64], NDArray[np.floating]], None]

_HASHES_CHUNK = 4096
_SPACE_MARGIN = 1.02  # of the fields, for axes, attributes and the file system's blocks


@dataclass(frozen=True, eq=False)
class Contents:
    """What a store shall hold, all but the fields and their statistics.

    Args:
        schema: Variables in channel order.
        grid: Grid of shape (H, W).
        time: (T,) datetime64[s], regular.
        step_hours: Hours between times.
        splits: Ranges of time by name, both ends included.
        dtype: Of the stored numbers.
        static: (H, W) float32 by name, one for each of `schema.static`.
        provenance: Where the data come from and what was done to them; `kind` and `title` are needed.
        settings: Everything that decides about the bytes, as JSON knows it; a run with other settings is refused.
    """

    schema: Schema
    grid: Grid
    time: NDArray[np.datetime64]
    step_hours: int
    splits: Splits
    dtype: Dtype
    static: Mapping[str, Fields]
    provenance: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the fields: (T, C, H, W)."""
        return self.time.size, len(self.schema.channels), *self.grid.shape

    @property
    def bytes(self) -> int:
        """Of the fields, uncompressed."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class Target:
    """A store in the making.

        with Target(path, contents) as target:
            target.set_normalizer(normalizer)            # float32 stores may do this last
            for places in ...:
                target.record(places, write_times(target.part, places, values, target.coding))
            store = target.finish()

    It lives in `NAME.part` and gets its name in `finish`. What a killed run has written is kept, if the settings are
    the same: `done` tells which times. One run at a time may write.

    Args:
        path: The store's folder.
        contents: What it shall hold.
        overwrite: Replace a finished store, once the new one is complete, and throw away an unfinished one that was
            begun with other settings.

    Raises:
        UsageError: The store exists, or was begun with other settings; these are listed.
        ResourceError: The folder is missing or not writable, another run is writing, or the disk is too small.
    """

    def __init__(self, path: Path, contents: Contents, *, overwrite: bool = False) -> None:
        self.path = path
        self.contents = contents
        self.part = path.with_name(f"{path.name}.part")
        self.done: NDArray[np.bool_] = np.zeros(contents.time.size, bool)
        self._overwrite = overwrite
        self._hashes: NDArray[np.uint8] = np.zeros((contents.time.size, 32), np.uint8)
        self._group: Any = None
        self._lock: int | None = None
        refuse_existing(path, overwrite)

    def __enter__(self) -> Target:
        try:
            self._take_lock()
            refuse_existing(self.path, self._overwrite)
            with self._writing():
                self._open()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    @property
    def normalizer(self) -> dict[str, Any] | None:
        """Statistics that were set, by this run or the one before it."""
        return self._group.attrs.get("normalizer")  # type: ignore[no-any-return]

    @property
    def coding(self) -> Coding:
        """How values stand in the array; float32 stores need no statistics for it."""
        known = self.normalizer
        if known is None and self.contents.dtype == "float32":
            nothing = dict.fromkeys(self.contents.schema.channels, 1.0)
            known = {"mean": nothing, "std": nothing, "log_floor": {}}
        if known is None:
            raise ValueError("float16 stores need their statistics first")
        return Coding.of(self.contents.dtype, self.contents.schema.channels, known)

    def set_normalizer(self, normalizer: Mapping[str, Any]) -> None:
        """Keeps the statistics."""
        with self._writing():
            self._group.attrs["normalizer"] = dict(normalizer)

    def record(self, places: NDArray[np.int64], hashes: NDArray[np.uint8]) -> None:
        """Notes that times are written, with their hashes (N, 32)."""
        self._hashes[places] = hashes
        with self._writing():
            for chunk in np.unique(places // _HASHES_CHUNK):
                rows = slice(int(chunk) * _HASHES_CHUNK, (int(chunk) + 1) * _HASHES_CHUNK)
                self._group["hashes"][rows] = self._hashes[rows]
        self.done[places] = True

    def check_done(
        self,
        on_progress: Progress = lambda what, done, total: None,
        look: Look = lambda places, numbers: None,
    ) -> None:
        """Reads what an earlier run has written; times that are not what their hashes say become undone.

        Args:
            look: Is shown all that was read, in order: places and (N, C, H, W) numbers.
        """
        written = np.flatnonzero(self.done)
        step = max(1, len(next(iter(blocks(self.contents.time.size, self._group["fields"])))))
        for start in range(0, written.size, step):
            places = written[start : start + step]
            same = self._same(places, look)
            self.done[places[~same]] = False
            on_progress("checking what is there", min(start + step, written.size), written.size)

    def finish(
        self,
        on_progress: Progress = lambda what, done, total: None,
        look: Look = lambda places, numbers: None,
        judge: Callable[[], Sequence[str]] = lambda: (),
    ) -> Store:
        """Verifies all that was written, says so in the store, and gives it its name.

        Args:
            look: Is shown all that is read for it, as by `check_done`.
            judge: Says what is wrong with all that was shown.

        Raises:
            DataError: Something is not what was written; it is taken for undone, so that another run writes it again.
            ValueError: Times or the statistics are missing.
        """
        normalizer = self.normalizer
        if normalizer is None or not self.done.all():
            raise ValueError("the store is not complete")
        self.check_done(lambda what, done, total: on_progress("verifying the store", done, total), look)
        if not self.done.all():
            wrong = self.contents.time[~self.done]
            self._hashes[~self.done] = 0
            with self._writing():
                self._group["hashes"][:] = self._hashes
            raise DataError(
                f"{wrong.size} times of {self.part} are not what was written, {str(wrong[0])[:16]} among them",
                hint="the disk or the memory may be failing; run it again to write them anew",
            )
        if problems := judge():
            raise DataError(f"what was written to {self.part} is not what was read", problems=problems,
                            hint="the inputs changed meanwhile, or this is a bug in wm2")  # fmt: skip
        table = channel_table(self.contents.schema, self.contents.dtype, normalizer)
        with self._writing():
            self._group.attrs["fingerprint"] = fingerprint_of(
                table, self.contents.grid, self.contents.time, self._hashes
            )
            for left in self.part.rglob("*.partial"):  # of a killed run, by zarr
                left.unlink()
            self._group.attrs["complete"] = True
            old = self.path.with_name(f"{self.path.name}.old")
            if self.path.exists():
                os.replace(self.path, old)
            os.replace(self.part, self.path)
            if old.exists():
                shutil.rmtree(old)
        return open_store(self.path)

    def _same(self, places: NDArray[np.int64], look: Look) -> NDArray[np.bool_]:
        """Whether each time reads as its hash says, and holds numbers alone."""
        try:
            numbers = read_places(self._group["fields"], places)
        except (OSError, RuntimeError, ValueError):
            if places.size == 1:
                return np.zeros(1, bool)
            return np.concatenate([self._same(places[number : number + 1], look) for number in range(places.size)])
        look(places, numbers)
        whole = np.isfinite(numbers).all(axis=(1, 2, 3))
        return np.asarray(whole & (hashes_of(numbers) == self._hashes[places]).all(axis=1))

    def _open(self) -> None:
        import zarr

        if self.part.exists():
            found = _settings_of(self.part)
            differences = _differences(found, dict(self.contents.settings))
            if not differences:
                self._group = zarr.open_group(self.part, mode="r+", zarr_format=3)
                self._hashes = np.array(self._group["hashes"][:])
                self.done = np.asarray(self._hashes.any(axis=1), bool)
                return
            if not self._overwrite:
                raise UsageError(f"{self.part} was begun with other settings", problems=differences,
                                 hint="choose another --out, or throw it away with --overwrite")  # fmt: skip
            shutil.rmtree(self.part)
        self._check_space()
        self._create()

    def _create(self) -> None:
        import zarr
        from zarr.codecs import BloscCodec

        contents = self.contents
        # The settings stand in the attributes from the first moment: a folder without them is thrown away.
        group = zarr.create_group(self.part, zarr_format=3, attributes=self._attributes())
        shape = contents.shape
        group.create_array(
            "fields", shape=shape, chunks=(1, *shape[1:]), dtype=contents.dtype, fill_value=np.nan,
            compressors=BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"),
            dimension_names=("time", "channel", "latitude", "longitude"),
        )  # fmt: skip
        group.create_array("hashes", shape=(shape[0], 32), chunks=(_HASHES_CHUNK, 32), dtype="uint8", compressors=None,
                           fill_value=0, dimension_names=("time", "byte"))  # fmt: skip
        units = {"time": "seconds since 1970-01-01", "latitude": "degrees_north", "longitude": "degrees_east"}
        axes = {"time": contents.time.astype("datetime64[s]").astype(np.int64), "latitude": contents.grid.lat,
                "longitude": contents.grid.lon}  # fmt: skip
        for name, values in axes.items():
            group.create_array(name, data=values, dimension_names=(name,),
                               attributes={"units": units[name], "standard_name": name})  # fmt: skip
        fields = [contents.static[name] for name in contents.schema.static]
        static = np.stack(fields) if fields else np.empty((0, *shape[2:]))
        group.create_array("static", data=static.astype(np.float32), chunks=(max(1, len(fields)), *shape[2:]),
                           dimension_names=("name", "latitude", "longitude"))  # fmt: skip
        self._group = group

    def _attributes(self) -> dict[str, Any]:
        contents = self.contents
        splits = {name: [[str(first)[:19], str(last)[:19]] for first, last in ranges]
                  for name, ranges in contents.splits.items()}  # fmt: skip
        return {
            "format": FORMAT, "complete": False, "title": contents.provenance["title"],
            "schema": contents.schema.to_dict(), "channels": list(contents.schema.channels),
            "step_hours": contents.step_hours, "splits": splits, "provenance": dict(contents.provenance),
            "settings": dict(contents.settings),
        }  # fmt: skip

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.part.parent).free
        needed = round(self.contents.bytes * _SPACE_MARGIN)
        if free < needed:
            raise ResourceError(
                f"{self.path} may need {needed / 1e9:.3g} GB, but {self.part.parent} has {free / 1e9:.3g} GB free",
                hint="choose another folder, fewer variables, levels or years, or a coarser grid",
            )

    def _take_lock(self) -> None:
        folder = self.part.parent
        if not folder.is_dir():
            raise ResourceError(f"the folder {folder} of {self.path} does not exist", hint=f"mkdir -p {folder}")
        with self._writing():
            self._lock = os.open(folder / f".{self.path.name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError(f"another run is writing {self.path}",
                                hint="wait until it has finished, or choose another name") from None  # fmt: skip

    def _release(self) -> None:
        if self._lock is not None:
            # The file stays: removing it would let a third run take a lock of the same name beside a second one's.
            os.close(self._lock)
            self._lock = None

    @contextlib.contextmanager
    def _writing(self) -> Any:
        """What a failed write means to the user."""
        try:
            yield
        except OSError as error:
            raise _write_error(self.path, error) from error


def finished(path: Path, contents: Contents) -> Store | None:
    """The store, if a run with these very settings has finished it already."""
    try:
        store = open_store(path)
        return store if _settings_of(path) == dict(contents.settings) else None
    except (DataError, UsageError):
        return None


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuses to replace a store that was not to be replaced, before any work is done.

    Raises:
        UsageError: It exists.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file", hint="name a folder that wm2 may create")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already", hint="give --overwrite to replace it, or another --out")


def write_times(part: Path, places: NDArray[np.int64], values: Fields, coding: Coding) -> NDArray[np.uint8]:
    """Writes times into a store in the making; safe in many threads and processes at once for different times.

    Args:
        part: `Target.part`.
        places: (N,) on the time axis, consecutive.
        values: (N, C, H, W) physical values.
        coding: `Target.coding`.

    Returns:
        (N, 32) hashes for `Target.record`.

    Raises:
        ResourceError: The disk is full or the folder is gone.
    """
    import zarr

    numbers = coding.encode(values)
    try:
        array: Any = zarr.open_array(part / "fields", mode="r+", zarr_format=3)
        array[int(places[0]) : int(places[-1]) + 1] = numbers
    except OSError as error:
        raise _write_error(part, error) from error
    return hashes_of(numbers)


def _settings_of(part: Path) -> dict[str, Any]:
    import zarr

    try:
        settings: Any = zarr.open_group(part, mode="r", zarr_format=3).attrs["settings"]
        return dict(settings)
    except Exception as error:  # zarr has no error of its own for what is no group
        raise UsageError(f"{part} is there, but no unfinished training store: {error}",
                         hint="move it away, or choose another --out") from error  # fmt: skip


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Settings that are not the same, as lines for people."""
    lines = []
    for name in dict.fromkeys([*wanted, *found]):
        before, now = found.get(name), wanted.get(name)
        if before == now:
            continue
        if isinstance(before, list) and isinstance(now, list) and len(before) + len(now) > 8:
            lines.append(f"{name}: {len(before)} entries then, {len(now)} now, "
                         f"{len([item for item in now if item not in before])} of them new")  # fmt: skip
        else:
            lines.append(f"{name}: {before} then, {now} now")
    return lines


def _write_error(path: Path, error: OSError) -> ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"the disk is full: {path} could not be written",
                             hint="free some space and run the same command again; it goes on from there")  # fmt: skip
    return ResourceError(f"{path} could not be written: {error.strerror or error}", hint="check the folder")
