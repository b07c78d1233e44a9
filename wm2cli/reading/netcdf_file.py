"""An open NetCDF file, as far as reading from several threads and processes is concerned."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError
from wm2cli.reading.fields import SourceFile
from wm2cli.reading.netcdf_classic import HEADER, classic_size

_DAMAGED = "the file is damaged or incomplete: get it again"
_MOST_CACHE = 512 * 2**20  # bytes of decompressed chunks kept, so that levels in one chunk are unpacked once

LOCK = threading.RLock()
"""netCDF-C and its HDF5 are not safe to call from two threads; fields are read in several."""


def check_size(file: SourceFile) -> None:
    """Refuses a classic file that was cut off; HDF5 notices by itself."""
    head = file.read(0, HEADER)
    needed = classic_size(head) if head.startswith(b"CDF") else None
    if needed is not None and file.size < needed:
        raise DataError(f"{file.label} has {file.size} bytes, its header asks for {needed}: cut off", hint=_DAMAGED)


class Handle:
    """A file that is open only while it is read, because HDF5 locks what it has open against other programs."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.dataset: Any = None
        self._holders = 0
        self._tuned: set[str] = set()

    def __enter__(self) -> Handle:
        """Opens the file, or keeps it open for one more."""
        with LOCK:
            self._open()
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the file when nobody else needs it open."""
        with LOCK:
            self._close()

    def read(self, name: str, index: tuple[int | slice, ...]) -> NDArray[Any]:
        """A part of a variable, unpacked, NaN where missing."""
        with LOCK:
            self._open()
            try:
                self._tune(name)
                return filled(self.dataset.variables[name][index])
            except (OSError, RuntimeError) as error:
                raise DataError(f"{self.file.label}: {name} cannot be read: {_reason(error)}", hint=_DAMAGED) from error
            finally:
                self._close()

    def times_in_chunk(self, name: str, dim: str | None) -> int:
        """How many places along a dimension are unpacked together."""
        with self, LOCK:
            variable = self.dataset.variables[name]
            chunk = variable.chunking()
            return chunk[variable.dimensions.index(dim)] if isinstance(chunk, list) and dim is not None else 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Handle, (self.file,)

    def _open(self) -> None:
        import netCDF4

        if self.dataset is None:
            try:
                self.dataset = netCDF4.Dataset(self.file.path, "r")
            except (OSError, RuntimeError) as error:
                raise DataError(
                    f"{self.file.label} cannot be opened as NetCDF: {_reason(error)}", hint=_DAMAGED
                ) from error
        self._holders += 1

    def _close(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self.dataset.close()
            self.dataset = None
            self._tuned.clear()

    def _tune(self, name: str) -> None:
        """Lets HDF5 keep all chunks that one map touches: a chunk may hold every level."""
        if name in self._tuned:
            return
        self._tuned.add(name)
        variable = self.dataset.variables[name]
        chunk = variable.chunking()
        if not isinstance(chunk, list):
            return
        number = math.prod(-(-size // part) for size, part in zip(variable.shape[-2:], chunk[-2:], strict=True))
        wanted = number * math.prod(chunk) * variable.dtype.itemsize
        if wanted > variable.get_var_chunk_cache()[0]:
            variable.set_var_chunk_cache(min(wanted + 2**20, _MOST_CACHE), 10 * number + 1, 0.75)


def _reason(error: Exception) -> str:
    return str(error.args[-1] if isinstance(error, OSError) and error.strerror is None and error.args else error)


def filled(values: Any) -> NDArray[Any]:
    """A masked array as a plain one with NaN where masked."""
    if not np.ma.is_masked(values):
        plain: NDArray[Any] = np.ma.getdata(values)
        return plain
    wide = values if values.dtype.kind == "f" else values.astype(np.float64)
    return np.asarray(wide.filled(np.nan))
