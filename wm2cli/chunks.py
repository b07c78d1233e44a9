"""Compressed chunks of a NetCDF-4 file: bit rounding, shuffling and deflating in several threads.

HDF5 compresses in the thread that writes, at about 100 MB/s; a global 0.25-degree state of 138 fields is 573
MB, and a model makes one in a fraction of a second. HDF5 also takes chunks that are compressed already
(`H5Dwrite_chunk`), so that many threads can compress while one writes. The netCDF4 package does not offer
that call, but the HDF5 library it has loaded does, and `DirectFile` calls it there. `LibraryFile` does the
same through netCDF4 alone where the call is not to be had. Both make ordinary files, zlib streams behind the
shuffle filter, which every NetCDF-4 reader reads.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Field: TypeAlias = NDArray[np.float32]

MANTISSA_BITS = 23
"""Explicit mantissa bits of a float32 (IEEE 754)."""

CHUNK_VALUES = 65536
"""Values a chunk aims at: 256 KiB, a sixteenth of a 0.25-degree map, which fits a processor's cache."""

_READ_WRITE = 0x0001  # H5F_ACC_RDWR
_WHOLE_FILE = 1  # H5F_SCOPE_GLOBAL
_DEFAULT = 0  # H5P_DEFAULT of property lists and H5E_DEFAULT of error stacks


def round_mantissa(values: Field, keep_bits: int) -> Field:
    """Round values to the nearest with `keep_bits` explicit mantissa bits, ties to even.

    The error is at most 2**-(keep_bits + 1) times the power of two at or below the value (2**-126 for
    subnormal values). Zeros, infinities and NaN stay as they are; a value that near to the largest float32
    becomes infinite, as in any IEEE 754 rounding. Source: Kouznetsov (2021, doi:10.5194/gmd-14-377-2021); CF
    calls it `bitround`.

    Args:
        values: float32 of any shape with at least one dimension; not changed.
        keep_bits: 1 to 23; 23 changes nothing.

    Returns:
        A new float32 array of the same shape.

    Raises:
        ValueError: `keep_bits` is out of range.
    """
    if not 1 <= keep_bits <= MANTISSA_BITS:
        raise ValueError(f"keep_bits must be 1 to {MANTISSA_BITS}, found {keep_bits}")
    values = np.ascontiguousarray(values, np.float32)
    drop = MANTISSA_BITS - keep_bits
    if drop == 0:
        return values.copy()
    bits = values.view(np.uint32)
    # Just under half of the last kept unit plus its own parity carries exactly when nearest-even rounds up; a
    # carry out of the mantissa raises the exponent, which is the right neighbour too.
    rounded = bits >> np.uint32(drop)
    rounded &= np.uint32(1)
    rounded += np.uint32((1 << (drop - 1)) - 1)
    rounded += bits
    rounded &= np.uint32((0xFFFFFFFF << drop) & 0xFFFFFFFF)
    special = ~np.isfinite(values)
    if special.any():  # the carry could turn a NaN into a number
        rounded[special] = bits[special]
    return rounded.view(np.float32)


def chunk_shape(levels: int, height: int, width: int) -> tuple[int, int, int]:
    """Levels, rows and columns of a chunk near `CHUNK_VALUES` values, evenly cut.

    Maps of one level and profiles at one point are both read often. Whole maps as chunks make a profile at
    0.25 degrees some ten times as slow; several levels in a chunk make a map that many times as slow. Only
    where a whole map is smaller than a chunk do levels share one (measured by benchmarks/writer.py).
    """
    cuts = max(1, round(math.sqrt(height * width / CHUNK_VALUES)))
    rows, columns = -(-height // min(cuts, height)), -(-width // min(cuts, width))
    most = max(1, CHUNK_VALUES // (rows * columns))
    return -(-levels // -(-levels // most)), rows, columns


def deflate(values: Field, shape: tuple[int, ...], level: int) -> bytes:
    """A chunk as HDF5 stores it behind its shuffle and deflate filters.

    Args:
        values: float32 of at most `shape`; the rest, beyond the edge of the grid, becomes zero.
        shape: Shape of the chunk.
        level: 0 stores plainly; 1 looks only for runs; 2 to 9 are zlib's levels.
    """
    if values.shape == shape:
        block = np.ascontiguousarray(values, "<f4")
    else:
        block = np.zeros(shape, "<f4")
        block[tuple(slice(0, size) for size in values.shape)] = values
    if level == 0:
        return block.tobytes()
    planes = np.ascontiguousarray(block.reshape(-1).view(np.uint8).reshape(-1, 4).T)
    # The byte planes of a smooth and rounded field repeat themselves in runs, hardly otherwise: looking for
    # runs alone is 1.7 times as fast as zlib's own level 1, and files grow by 7 % (benchmarks/writer.py).
    strategy = zlib.Z_RLE if level == 1 else zlib.Z_DEFAULT_STRATEGY
    stream = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return stream.compress(planes.data) + stream.flush()


def library_lock() -> AbstractContextManager[Any]:
    """The lock under which netCDF-C and HDF5 may be called; neither is safe to call from two threads.

    It is xarray's own, so that a data set read lazily in one thread and a file written in another don't
    collide.
    """
    from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

    return NETCDF4_PYTHON_LOCK


class ChunkFile(Protocol):
    """An open NetCDF-4 file whose float32 variables are filled block by block.

    A block is the part of one variable that is one chunk, or what is left of one at the edge of the grid.
    """

    def encode(self, values: Field, chunk: tuple[int, ...]) -> Any:
        """What `write` takes for this block; safe to call from many threads at once."""

    def write(self, name: str, origin: tuple[int, ...], encoded: Any) -> None:
        """Store a block whose first element is at `origin`; OSError or RuntimeError when the disk is full."""

    def close(self) -> None:
        """Write what is still held back and close. Raises as `write`; may then be called again."""


def open_chunks(path: Path, names: Iterable[str], level: int) -> ChunkFile:
    """Open a file whose variables are defined, to fill it.

    Args:
        path: A NetCDF-4 file nobody else has open.
        names: Variables to be written: in the root group, little-endian float32, chunked, with the shuffle
            and deflate filters unless `level` is 0.
        level: Compression level of `deflate`; `LibraryFile` uses what the variables were defined with.
    """
    library = _hdf5()
    return DirectFile(library, path, names, level) if library is not None else LibraryFile(path, names)


@lru_cache(maxsize=1)
def _hdf5() -> ctypes.CDLL | None:
    """The HDF5 library that netCDF4 is linked with; None where it can't be reached or lacks a function."""
    from netCDF4 import _netCDF4

    try:
        # Symbols are looked up in the extension module and in all it is linked with: this is the copy in use.
        library = ctypes.CDLL(_netCDF4.__file__, use_errno=True)
        number = ctypes.c_int64  # hid_t since HDF5 1.10
        signatures: Mapping[str, tuple[Any, list[Any]]] = {
            "H5Eset_auto2": (ctypes.c_int, [number, ctypes.c_void_p, ctypes.c_void_p]),
            "H5Fopen": (number, [ctypes.c_char_p, ctypes.c_uint, number]),
            "H5Dopen2": (number, [number, ctypes.c_char_p, number]),
            "H5Dwrite_chunk": (
                ctypes.c_int,
                [number, number, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p],
            ),
            "H5Fflush": (ctypes.c_int, [number, ctypes.c_int]),
            "H5Dclose": (ctypes.c_int, [number]),
            "H5Fclose": (ctypes.c_int, [number]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (AttributeError, OSError):
        return None
    return library


class DirectFile:
    """A `ChunkFile` that hands compressed chunks to HDF5."""

    def __init__(self, library: ctypes.CDLL, path: Path, names: Iterable[str], level: int) -> None:
        self._library, self._path, self._level = library, path, level
        self._datasets: dict[str, int] = {}
        self._file: int | None = None
        with library_lock():
            library.H5Eset_auto2(_DEFAULT, None, None)  # or HDF5 prints its error stack on stderr
            self._file = self._call("H5Fopen", os.fsencode(path), _READ_WRITE, _DEFAULT)
            for name in names:
                self._datasets[name] = self._call("H5Dopen2", self._file, name.encode(), _DEFAULT)

    def encode(self, values: Field, chunk: tuple[int, ...]) -> bytes:
        """See `deflate`."""
        return deflate(values, chunk, self._level)

    def write(self, name: str, origin: tuple[int, ...], encoded: bytes) -> None:
        """See `ChunkFile`."""
        offset = (ctypes.c_uint64 * len(origin))(*origin)
        with library_lock():
            self._call("H5Dwrite_chunk", self._datasets[name], _DEFAULT, 0, offset, len(encoded), encoded)

    def close(self) -> None:
        """See `ChunkFile`."""
        with library_lock():
            # HDF5 1.14 crashes some time after a close that failed; after a failed flush it can still be
            # closed.
            if self._file is not None:
                self._call("H5Fflush", self._file, _WHOLE_FILE)
            for name in list(self._datasets):
                self._call("H5Dclose", self._datasets[name])
                del self._datasets[name]
            if self._file is not None:
                self._call("H5Fclose", self._file)
                self._file = None

    def _call(self, function: str, *arguments: Any) -> int:
        ctypes.set_errno(0)
        result = int(getattr(self._library, function)(*arguments))
        if result < 0:
            # The last number set on the way out of HDF5: usually, not surely, the cause.
            number = ctypes.get_errno() or errno.EIO
            raise OSError(number, f"{function} failed: {os.strerror(number)}", str(self._path))
        return result


class LibraryFile:
    """A `ChunkFile` that lets netCDF4 compress, in the thread that writes."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        import netCDF4

        with library_lock():
            self._dataset: Any = netCDF4.Dataset(path, "r+")
            self._variables = {name: self._dataset.variables[name] for name in names}
            for variable in self._variables.values():
                variable.set_auto_maskandscale(False)
                # Chunks are written once and whole: a cache would hold back up to 16 MiB of each variable.
                variable.set_var_chunk_cache(size=1, nelems=1)

    def encode(self, values: Field, chunk: tuple[int, ...]) -> Field:
        """The values themselves."""
        return values

    def write(self, name: str, origin: tuple[int, ...], encoded: Field) -> None:
        """See `ChunkFile`."""
        where = tuple(slice(first, first + size) for first, size in zip(origin, encoded.shape, strict=True))
        with library_lock():
            self._variables[name][where] = encoded

    def close(self) -> None:
        """See `ChunkFile`."""
        with library_lock():
            if self._dataset.isopen():
                self._dataset.sync()  # as in DirectFile
                self._dataset.close()
