"""Forecast files: written beside the computation, and complete if they carry their name.

`ForecastWriter` compresses and writes one time after the other in the background, into a hidden file in the
target's folder, and renames that at the end. What stands in the file is said by `wm2cli.writing.layout`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import queue
import shutil
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import ResourceError, UsageError
from wm2cli.grid import Grid
from wm2cli.machine import cores, size_text, sync
from wm2cli.schema import variable
from wm2cli.writing.chunks import MANTISSA_BITS, ChunkFile, Field, round_mantissa
from wm2cli.writing.layout import Block, Layout

log = logging.getLogger(__name__)

Region: TypeAlias = tuple[float, float, float, float]
"""North, west, south, east in degrees."""

EXPECTED_RATIO = 2.5
"""Uncompressed to written size of rounded fields, rather low: 3.0 in benchmarks/writer.py, 2.4 to 4.9 for
single fields of IFS, AIFS and GFS at 0.25 and 0.4 degrees."""

EXPECTED_RATIO_LOSSLESS = 1.4
"""The same without rounding; 1.6 in benchmarks/writer.py."""

_SAME_DEGREE = 1e-4  # as Grid.same_as: coordinates may have been float32
_HEADER_BYTES = 200_000
_NEARLY_FULL = 2**20  # no chunk is larger: with less than this free, the one that failed did not fit


@dataclass(frozen=True, eq=False)
class Crop:
    """The part of a grid inside a region.

    Args:
        rows: Slice of the H rows.
        columns: (w,) indices into the W columns, west to east.
        lat: (h,) degrees north, decreasing.
        lon: (w,) degrees east, increasing; below 0 or above 180 as the region needs it.
    """

    rows: slice
    columns: NDArray[np.intp]
    lat: NDArray[np.float64]
    lon: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (h, w)."""
        return self.lat.size, self.lon.size


def crop(grid: Grid, region: Region | None) -> Crop:
    """The rows and columns whose centres lie in a region; pure, and good for arrays on a device.

    Args:
        grid: The global grid.
        region: North, west, south, east in degrees, or None for the globe. West may exceed east: from 170 to
            -170 is 20 degrees across the date line. West and east 360 apart are the whole circle, beginning
            in the west.

    Raises:
        UsageError: Impossible bounds, or no grid point inside.
    """
    if region is None:
        return Crop(slice(0, grid.lat.size), np.arange(grid.lon.size), grid.lat.copy(), grid.lon.copy())
    north, west, south, east = (float(bound) for bound in region)
    text = f"{north:g}/{west:g}/{south:g}/{east:g}"
    problems = []
    if not -90 <= south <= north <= 90:
        problems.append(f"north {north:g} and south {south:g} must be in -90 to 90, and north not below south")
    if not (-360 <= west <= 360 and -360 <= east <= 360 and abs(east - west) <= 360):
        problems.append(f"west {west:g} and east {east:g} must be in -360 to 360 and at most 360 apart")
    if problems:
        hint = "a region is north/west/south/east in degrees, such as 72/-25/34/45"
        raise UsageError(f"the region {text} is not possible", hint=hint, problems=problems)
    inside = np.flatnonzero((grid.lat <= north + _SAME_DEGREE) & (grid.lat >= south - _SAME_DEGREE))
    span = 360.0 if abs(east - west) == 360 else (east - west) % 360.0
    # Distance eastwards of the western bound. A centre on that bound is at 0, not at 360.
    eastwards = (grid.lon - west + _SAME_DEGREE) % 360.0 - _SAME_DEGREE
    order = np.argsort(eastwards, kind="stable")
    columns = order[eastwards[order] <= span + _SAME_DEGREE]
    if not inside.size or not columns.size:
        raise UsageError(
            f"no grid point lies in the region {text}",
            hint=f"the grid is {grid.describe()}: choose a larger region",
        )
    lon = grid.lon[columns]
    lon = lon + 360.0 * np.round((west + eastwards[columns] - lon) / 360.0)
    if lon[0] < -180.0:
        lon = lon + 360.0
    elif lon[0] >= 180.0 and lon[-1] > 360.0:  # 350 to 370 is better known as -10 to 10
        lon = lon - 360.0
    rows = slice(int(inside[0]), int(inside[-1]) + 1)
    return Crop(rows, columns, grid.lat[rows].copy(), lon)


@dataclass(frozen=True)
class FileSize:
    """Bytes of a forecast file: as float32 without compression, and as expected on disk."""

    uncompressed: int
    expected: int


def estimate_bytes(
    *,
    pressure: Sequence[str],
    levels: Sequence[float],
    surface: Sequence[str],
    shape: tuple[int, int],
    times: int,
    lossless: bool = False,
) -> FileSize:
    """How large a forecast file will be.

    Args:
        pressure: Variables on pressure levels.
        levels: Levels in hPa.
        surface: Variables with one value per column.
        shape: Rows and columns written (`Crop.shape`).
        times: Number of times written.
        lossless: Whether rounding is off.
    """
    fields = (len(pressure) * len(levels) + len(surface)) * times
    values = 4 * fields * shape[0] * shape[1]
    ratio = EXPECTED_RATIO_LOSSLESS if lossless else EXPECTED_RATIO
    return FileSize(values + _HEADER_BYTES, round(values / ratio) + _HEADER_BYTES)


def check_space(path: Path | str, needed: int) -> int:
    """Free bytes where `path` will be written.

    Raises:
        ResourceError: Fewer than `needed` are free; names both.
    """
    folder = Path(os.path.realpath(path)).parent
    while not os.path.isdir(folder):  # a plan may be made before its folder
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{path} needs about {size_text(needed)}, but {folder} has {size_text(free)} free",
            hint="write fewer variables, levels or times, or a region, or choose another folder",
        )
    return free


class ForecastWriter:
    """Writes a forecast file beside the computation.

        with ForecastWriter(path, pressure=("z", "t"), levels=(500, 850), surface=("t2m",), grid=grid,
                            init=np.datetime64("2024-01-01T00"), leads_hours=range(6, 337, 6)) as writer:
            for lead_hours, pressure, surface in forecast:
                writer.write(lead_hours, pressure, surface)

    When the block ends well, the file is complete, on disk, and has its name. When it ends with an exception,
    the interrupts included, nothing is left. At most three times are held in memory.

    Args:
        path: The file. A symbolic link is followed.
        pressure: V variables on pressure levels.
        levels: L levels in hPa.
        surface: S variables with one value per column.
        grid: The global grid of the arrays, H rows and W columns.
        init: Start of the forecast, UTC.
        leads_hours: All lead times to come, in hours, increasing.
        attributes: Global attributes. `command_line` goes into `history` too. `title`, `history` and
            `date_created` have defaults; `Conventions` is set here.
        region: North, west, south, east: write only this part (see `crop`).
        lossless: Keep all bits instead of each variable's `keep_bits`.
        overwrite: Replace an existing file, once the new one is complete.
        compression_level: 0 none, 1 fast, up to 9 small.
        threads: Threads that compress; as many as there are processor cores by default.
        paths: How many rollouts each lead time is the mean of, if the file is to say so.

    Raises:
        UsageError: A variable is unknown, the region is impossible or empty, or the file exists or is no
            regular file.
        ResourceError: The folder is missing; from the block: it is not writable, another run is writing this
            file, or the disk is full.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        pressure: Sequence[str],
        levels: Sequence[float],
        surface: Sequence[str],
        grid: Grid,
        init: np.datetime64,
        leads_hours: Sequence[int],
        attributes: Mapping[str, str | int | float] | None = None,
        region: Region | None = None,
        lossless: bool = False,
        overwrite: bool = False,
        compression_level: int = 1,
        threads: int | None = None,
        paths: Sequence[int] | None = None,
    ) -> None:
        self.path = Path(path)
        self.crop = crop(grid, region)
        self._grid = grid
        self._layout = Layout(
            pressure=tuple(variable(name) for name in pressure),
            levels=tuple(float(level) for level in levels),
            surface=tuple(variable(name) for name in surface),
            lat=self.crop.lat,
            lon=self.crop.lon,
            init=init,
            leads_hours=tuple(int(lead) for lead in leads_hours),
            attributes=dict(attributes or {}),
            lossless=lossless,
            compression_level=compression_level,
            paths=None if paths is None else tuple(paths),
        )
        self._target = _Target(self.path, overwrite)
        self._threads = threads or cores()
        self._missing = set(self._layout.leads_hours)
        # Two states wait while one is written and one is computed: memory is bounded whatever the lead time.
        self._queue: queue.Queue[_Time | None] = queue.Queue(maxsize=2)
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._chunks: ChunkFile | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ForecastWriter:
        if self._thread is not None:
            raise ValueError("a ForecastWriter writes one file once")
        self._target.lock()
        try:
            with self._storage_errors():
                self._target.clear()
                names = [known.name for known in self._layout.variables]
                self._define()
                self._chunks = ChunkFile(self._target.partial, names, self._layout.compression_level)
            self._thread = threading.Thread(
                target=self._work, args=(self._chunks,), name="forecast writer", daemon=True
            )
            self._thread.start()
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, lead_hours: int, pressure: Field, surface: Field, *, cropped: bool = False) -> None:
        """Hand over one time; returns at once unless two are waiting already.

        Args:
            lead_hours: One of the promised lead times, in any order.
            pressure: (V, L, H, W) float32 in the units of `schema.VARIABLES`.
            surface: (S, H, W) float32. Neither array may be changed afterwards: they are read in the
                background.
            cropped: The arrays hold only the rows and columns of `self.crop`: (V, L, h, w) and (S, h, w).

        Raises:
            ResourceError: An earlier time could not be written, because the disk is full for example.
            ValueError: A shape, type or lead time that was not promised.
        """
        if self._thread is None:
            raise ValueError("times are written inside of `with ForecastWriter(...)`")
        self._raise_failure()
        layout, (height, width) = self._layout, self.crop.shape if cropped else self._grid.shape
        for values, shape in (
            (pressure, (len(layout.pressure), len(layout.levels), height, width)),
            (surface, (len(layout.surface), height, width)),
        ):
            if values.shape != shape or values.dtype != np.float32:
                raise ValueError(f"expected float32 values of shape {shape}, found {values.dtype} {values.shape}")
        if lead_hours not in self._missing:
            raise ValueError(f"lead time {lead_hours} h was not promised, or is written already")
        self._missing.remove(lead_hours)
        self._queue.put(_Time(layout.leads_hours.index(lead_hours), pressure, surface, cropped))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _define(self) -> None:
        import netCDF4

        dataset = netCDF4.Dataset(self._target.partial, "w", format="NETCDF4")
        try:
            self._layout.define(dataset)
            dataset.sync()
        except BaseException:
            self._target.empty()  # as in `_discard`
            with contextlib.suppress(OSError, RuntimeError):
                dataset.close()
            raise
        dataset.close()

    def _finish(self) -> None:
        """Wait for the thread, close, and give the file its name."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()
        self._raise_failure()
        if self._missing:
            raise ValueError(f"the forecast ended without the lead times {sorted(self._missing)} h")
        with self._storage_errors():
            if self._chunks is not None:
                self._chunks.close()
            self._target.publish()

    def _discard(self) -> None:
        """Stop the thread, remove what is unfinished and let go of the lock; harmless after `_finish`."""
        try:
            self._stop.set()
            with contextlib.suppress(queue.Empty):
                while True:  # make room for the end marker
                    self._queue.get_nowait()
            if self._thread is not None and self._thread.is_alive():
                self._queue.put(None)
                self._thread.join()
            # Closing writes what HDF5 holds back. On a full disk it can't, tries again when the process ends,
            # and may then hang or crash. A file cut to nothing gives its space back for that last write.
            self._target.empty()
            if self._chunks is not None:
                with contextlib.suppress(OSError, RuntimeError):
                    self._chunks.close()
                self._target.empty()  # in case that failed too: what stays open until the end shall be small
        finally:
            self._target.release()

    def _work(self, chunks: ChunkFile) -> None:
        """The background thread: writes what comes through the queue until the end marker."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="forecast chunk") as pool:
            while (time := self._queue.get()) is not None:
                # After a failure the rest is read and dropped: the caller must not wait for a full queue.
                if self._failure is None and not self._stop.is_set():
                    try:
                        self._write_time(time, chunks, pool)
                    except BaseException as error:
                        self._failure = error
                del time  # or it would stay in memory until the next one comes

    def _write_time(self, time: _Time, chunks: ChunkFile, pool: ThreadPoolExecutor) -> None:
        """Encode blocks in the pool and write them in order, few at a time so that memory stays flat."""
        waiting: deque[tuple[Block, Future[Any]]] = deque()

        def store() -> None:
            block, encoded = waiting.popleft()
            chunks.write(block.variable.name, (time.index, *block.origin), encoded.result())

        for block in self._layout.blocks():
            waiting.append((block, pool.submit(self._encode, block, time, chunks)))
            if len(waiting) > 2 * self._threads:
                store()
            if self._stop.is_set():
                return
        while waiting:
            store()

    def _encode(self, block: Block, time: _Time, chunks: ChunkFile) -> Any:
        """Cut a block out of the arrays of one time, round and encode it."""
        upper = block.variable.kind == "pressure"
        field = time.pressure[block.number] if upper else time.surface[block.number, None]
        rows, columns = block.rows, np.arange(block.columns.start, block.columns.stop)
        if not time.cropped:
            first = self.crop.rows.start
            rows, columns = slice(first + rows.start, first + rows.stop), self.crop.columns[block.columns]
        values = np.take(field[block.levels, rows], columns, axis=-1)
        keep_bits = self._layout.keep_bits(block.variable)
        if keep_bits < MANTISSA_BITS:
            values = round_mantissa(values, keep_bits)
        # The axis of time comes first; a surface field's single level takes its place.
        return chunks.encode(values[None] if upper else values, block.chunk)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            with self._storage_errors():
                raise self._failure

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Turn what netCDF4, HDF5 and the system say of a failed write into a `ResourceError`."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise _storage_error(error, self.path, self._target.final.parent, guess=True) from error


@dataclass(frozen=True, eq=False)
class _Time:
    """One time on its way to the file: its index, and the arrays as given to `ForecastWriter.write`."""

    index: int
    pressure: Field
    surface: Field
    cropped: bool


class _Target:
    """The name a file shall have, the hidden file it is until then, and the lock against other runs."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        self._path, self._overwrite = path, overwrite
        self.final = Path(os.path.realpath(path))
        folder = self.final.parent
        self.partial = folder / f".{self.final.name}.part"
        self._lock_path = folder / f".{self.final.name}.lock"
        self._lock: int | None = None
        if not os.path.isdir(folder):
            raise ResourceError(f"the folder {folder} of {path} does not exist", hint=f"mkdir -p {folder}")
        self._refuse_existing()

    def _refuse_existing(self) -> None:
        # os.path, not pathlib: of what may not be looked at it says no, and opening will say why.
        if os.path.exists(self.final) and not os.path.isfile(self.final):
            raise UsageError(f"{self._path} is not a regular file", hint="name a file that wm2 may create")
        if os.path.exists(self.final) and not self._overwrite:
            raise UsageError(f"{self._path} exists already", hint="replace it with --overwrite, or choose another name")

    def lock(self) -> None:
        """Take the lock, or raise at once when another run has it. A lock left by a dead process is none."""
        try:
            while not self._try_lock():
                pass
            # The run that had the lock before may just have finished.
            self._refuse_existing()
        except OSError as error:
            self.release()
            raise _storage_error(error, self._path, self.final.parent) from error
        except BaseException:
            self.release()
            raise

    def _try_lock(self) -> bool:
        """Whether the lock is ours; False when its file was removed while we waited for it."""
        self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                owner = os.pread(self._lock, 64, 0).decode(errors="replace")
                self._close_lock()
                raise ResourceError(
                    f"another run is writing {self._path}" + (f": process {owner}" if owner else ""),
                    hint="wait until it has finished, or choose another name",
                ) from None
            log.warning("no locks in %s: make sure that no other run writes %s", self.final.parent, self._path)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._lock), os.stat(self._lock_path)):
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, str(os.getpid()).encode(), 0)
                return True
        self._close_lock()
        return False

    def clear(self) -> None:
        """Remove what a killed run left."""
        self.partial.unlink(missing_ok=True)

    def publish(self) -> None:
        """Bring the data to the disk and give the file its name."""
        sync(self.partial)
        self._refuse_existing()
        os.replace(self.partial, self.final)
        sync(self.final.parent)

    def empty(self) -> None:
        """Give back the space of an unfinished file."""
        with contextlib.suppress(OSError):
            os.truncate(self.partial, 0)

    def release(self) -> None:
        """Remove the unfinished file, if any, and let go of the lock."""
        if self._lock is None:
            return
        try:
            for path in (self.partial, self._lock_path):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        finally:
            self._close_lock()

    def _close_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _storage_error(error: OSError | RuntimeError, path: Path, folder: Path, guess: bool = False) -> ResourceError:
    """What a failed write means to the user; `guess` for errors of libraries that hide the cause.

    Of a full disk netCDF-C says "HDF error", and also "permission denied".
    """
    number = error.errno if isinstance(error, OSError) else None
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ResourceError(f"{path} could not be written: {reason}", hint=f"is {folder} still there?")
    place = f"{free} bytes ({size_text(free)}) are free in {folder}"
    if number in (errno.ENOSPC, errno.EDQUOT) or (guess and free < _NEARLY_FULL):
        return ResourceError(
            f"the disk is full: {path} could not be written; {place}",
            hint="free some space or choose another folder; wm2 forecast --plan tells how much is needed",
        )
    return ResourceError(
        f"{path} could not be written: {reason}; {place}", hint="check the folder, or choose another one"
    )
