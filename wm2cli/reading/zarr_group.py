"""Zarr stores of weather, local or remote, shown to the reader of NetCDF as if they were NetCDF.

Names, units, axes and packing follow the same conventions (CF) in ARCO-ERA5, WeatherBench 2 and what xarray writes, so
only the container differs: dimensions stand in `_ARRAY_DIMENSIONS` (format 2) or in the metadata (format 3).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError, RemoteError
from wm2cli.reading.fields import SourceFile

_EXTRA = 'pip install "wm2cli[remote]"'
_PACKING = ("_FillValue", "missing_value", "scale_factor", "add_offset")


@dataclass(frozen=True, eq=False)
class ZarrFile(SourceFile):
    """A Zarr store in the place of a file.

    Args:
        location: Folder or URL.
        digest: sha256 of its metadata. Its chunks are hashed by nobody: an archive may have petabytes.
    """

    location: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Folder or URL."""
        return self.location

    @property
    def sha256(self) -> str:
        """Hash of the metadata."""
        return self.digest

    def _look(self) -> tuple[int, int]:
        return 0, 0  # a store has no size or time of its own


class ZarrHandle:
    """An open store with the face of `netcdf_file.Handle`; reading is safe in many threads."""

    def __init__(self, location: str) -> None:
        self._group = _open(location)
        arrays = dict(self._group.arrays())
        variables = {name: _Variable(name, array) for name, array in arrays.items()}
        dimensions: dict[str, Any] = {}
        for variable in variables.values():
            dimensions |= {dim: SimpleNamespace(size=size)
                           for dim, size in zip(variable.dimensions, variable.shape, strict=True)}  # fmt: skip
        attributes = dict(self._group.attrs)
        self.dataset = SimpleNamespace(
            variables=variables, dimensions=dimensions, groups=[name for name, _ in self._group.groups()],
            ncattrs=lambda: list(attributes), getncattr=attributes.__getitem__,
        )  # fmt: skip
        table = {name: {**dict(array.attrs), "shape": array.shape, "dtype": str(array.dtype)}
                 for name, array in arrays.items()}  # fmt: skip
        digest = hashlib.sha256(json.dumps([attributes, table], sort_keys=True, default=str).encode()).hexdigest()
        label = location.rstrip("/").rsplit("/", 1)[-1]
        self.file = ZarrFile(Path(location), label, location=location, digest=digest)

    def __enter__(self) -> ZarrHandle:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def read(self, name: str, index: tuple[int | slice, ...]) -> NDArray[Any]:
        """A part of a variable, unpacked, NaN where missing."""
        with _reading(self.file.location, name):
            return np.asarray(self.dataset.variables[name][index])

    def times_in_chunk(self, name: str, dim: str | None) -> int:
        """How many places along a dimension are unpacked together."""
        variable = self.dataset.variables[name]
        return int(variable.chunks[variable.dimensions.index(dim)]) if dim is not None else 1

    def __reduce__(self) -> tuple[Any, ...]:
        return ZarrHandle, (self.file.location,)


class _Variable:
    """An array with the face of a netCDF4 variable."""

    def __init__(self, name: str, array: Any) -> None:
        self._array = array
        self._attributes: Mapping[str, Any] = dict(array.attrs)
        named = getattr(array.metadata, "dimension_names", None) or self._attributes.get("_ARRAY_DIMENSIONS")
        self.dimensions = tuple(str(dim) for dim in named) if named else tuple(
            f"{name} axis {number}" for number in range(array.ndim))  # fmt: skip
        self.shape = array.shape
        self.ndim = array.ndim
        self.dtype = array.dtype
        self.chunks = array.chunks

    def ncattrs(self) -> list[str]:
        return [name for name in self._attributes if name != "_ARRAY_DIMENSIONS"]

    def getncattr(self, name: str) -> Any:
        return self._attributes[name]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        values = np.asarray(self._array[index])
        if values.dtype.kind not in "iuf":
            return values
        # xarray keeps the packing in the attributes; in format 2 the array's own fill value means missing as well.
        marks = [self._attributes[name] for name in _PACKING[:2] if name in self._attributes]
        if self._array.metadata.zarr_format == 2 and self._array.fill_value is not None and values.ndim >= 2:
            marks.append(self._array.fill_value)
        missing = np.zeros(values.shape, bool)
        for mark in marks:
            if isinstance(mark, (int, float, np.number)) and mark == mark:  # NaN marks itself
                missing |= values == mark
        scale, offset = (self._attributes.get(name) for name in _PACKING[2:])
        if scale is not None or offset is not None:
            values = values * float(1.0 if scale is None else scale) + float(0.0 if offset is None else offset)
        if missing.any():
            values = np.where(missing, np.nan, values)
        return values


def _open(location: str) -> Any:
    import zarr

    options = {"token": "anon"} if location.startswith("gs://") else {}
    try:
        if "://" in location:
            store = zarr.storage.FsspecStore.from_url(location, storage_options=options, read_only=True)
            return zarr.open_group(store, mode="r")
        return zarr.open_group(location, mode="r")
    except ImportError as error:
        raise DataError(f"{location} needs a package that is not installed: {error}", hint=_EXTRA) from error
    except Exception as error:  # zarr and fsspec have no error in common
        remote = "://" in location
        raise (RemoteError if remote else DataError)(
            f"{location} cannot be opened as Zarr: {type(error).__name__}: {error}",
            hint="check the address and the network" if remote else "is it a Zarr group?",
        ) from error


@contextmanager
def _reading(location: str, name: str) -> Iterator[None]:
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        kind = RemoteError if "://" in location else DataError
        raise kind(f"{location}: {name} cannot be read: {type(error).__name__}: {error}",
                   hint="run the same command again; it goes on where it stopped") from error  # fmt: skip
