"""Compressed chunks of a NetCDF-4 file: bit rounding, shuffling and deflating in several threads.

HDF5 compresses in the thread that writes, at about 100 MB/s; a global 0.25-degree state of 138 fields is 573 MB, and a
model makes one in a fraction of a second. HDF5 also takes chunks that are already compressed, so that any number of
threads can compress while one writes. The files are ordinary ones: zlib streams behind the shuffle filter, read by
every NetCDF-4 reader.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.float32]

MANTISSA_BITS = 23
"""Explicit mantissa bits of a float32 (IEEE 754)."""

CHUNK_VALUES = 65536
"""Values a chunk aims at: 256 KiB, a sixteenth of a 0.25-degree map, which fits a processor's cache."""


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


class ChunkFile:
    """An open NetCDF-4 file whose float32 variables are filled chunk by chunk, already compressed.

    HDF5 compresses in the thread that writes; h5py hands it chunks that any number of threads compressed. h5py brings
    an HDF5 of its own, so that reading NetCDF elsewhere in the process does not meet it.

    Args:
        path: A NetCDF-4 file nobody else has open.
        names: Variables to be written: in the root group, little-endian float32, chunked, with the shuffle and deflate
            filters unless `level` is 0.
        level: Compression level of `deflate`.
    """

    def __init__(self, path: Path, names: Iterable[str], level: int) -> None:
        import h5py

        self._level = level
        self._file: Any = h5py.File(path, "r+", rdcc_nbytes=0)
        self._datasets = {name: self._file[name].id for name in names}

    def encode(self, values: Field, chunk: tuple[int, ...]) -> bytes:
        """What `write` takes for a block: a chunk, or what is left of one at the edge; safe in many threads at once."""
        return deflate(values, chunk, self._level)

    def write(self, name: str, origin: tuple[int, ...], encoded: bytes) -> None:
        """Store a block whose first element is at `origin`; OSError or RuntimeError when the disk is full."""
        self._datasets[name].write_direct_chunk(origin, encoded)

    def close(self) -> None:
        """Write what is still held back and close. Raises as `write`; may then be called again."""
        if self._file:
            # HDF5 1.14 crashes some time after a close that failed; after a failed flush it can still be closed.
            self._file.flush()
            self._datasets.clear()
            self._file.close()
