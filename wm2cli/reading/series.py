"""Long series in files: a variable over many times, read in one go.

`fields` cuts everything into single maps, which suits a forecast that needs a hundred of them; a training set has
millions. A `Series` is one variable of one file with all its times and levels. What it is was found out by the same
readers, and values come in the same order and units.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError
from wm2cli.machine import cores
from wm2cli.reading.fields import Axes, Field, Inventory, SourceFile, Values
from wm2cli.reading.inputs import kind_of, open_one, unpack
from wm2cli.reading.netcdf import Block, Reader, version_text
from wm2cli.reading.netcdf_file import LOCK, Handle, check_size
from wm2cli.schema import VARIABLES, Statistic, channel_label

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Series:
    """One variable over the times and levels of a file.

    Args:
        variable: Name in `VARIABLES`; of windowed pairs (`tp`, `tp_6h`) always the plain one.
        levels: hPa, in the order of the file; empty for variables without levels.
        times: (T,) datetime64[s] valid times, in the order of the file.
        forecast: (T,) whether it is a forecast for that time rather than an analysis.
        statistic, window_hours: As in `Field`.
        member: Ensemble member, or None.
        version: ECMWF experiment version, or None.
        axes: Grid in canonical order.
        origin: Where it is, for messages.
        file: The file it is in.
        load: Reads (places, levels) -> (n, L, H, W) float32 in canonical order and our unit, NaN where missing; L is 1
            without levels.
        holder: What keeps the file open while it is entered, where opening is slow.
        chunk: Times that are unpacked together.
    """

    variable: str
    levels: tuple[float, ...]
    times: NDArray[np.datetime64] = field(repr=False)
    forecast: NDArray[np.bool_] = field(repr=False)
    statistic: Statistic
    window_hours: float
    member: int | None
    version: str | None
    axes: Axes = field(repr=False)
    origin: str
    file: SourceFile = field(repr=False)
    load: Callable[[NDArray[np.int64], Sequence[int]], Values] = field(repr=False)
    holder: AbstractContextManager[object] = field(default_factory=nullcontext, repr=False)
    chunk: int = 1

    def read(self, places: NDArray[np.int64], levels: Sequence[float] = ()) -> Values:
        """Values at some times and levels.

        Args:
            places: (n,) places in `times`.
            levels: hPa; must be among `levels`.

        Returns:
            (n, L, H, W) float32, NaN where missing; L is 1 for variables without levels.

        Raises:
            DataError: The file has changed or cannot be decoded.
        """
        self.file.check_unchanged()
        return self.load(places, [self.levels.index(level) for level in levels])

    @property
    def key(self) -> str:
        """What it is, for people: `tp (sum over 1 h)`."""
        if self.statistic == "point":
            return self.variable
        window = "unknown time" if np.isnan(self.window_hours) else f"{self.window_hours:g} h"
        return f"{self.variable} ({self.statistic} over {window})"


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Everything a set of inputs holds, as series.

    Args:
        series: In the order of the inputs.
        statics: Fields that do not change in time.
        files: The files looked at.
        attributes: Global attributes by file label, where a file has any.
        ignored, problems, notes: As in `Inventory`.
    """

    series: tuple[Series, ...] = ()
    statics: tuple[Field, ...] = ()
    files: tuple[SourceFile, ...] = ()
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    problems: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def merge(cls, parts: Iterable[Catalogue]) -> Catalogue:
        """All catalogues as one."""
        whole = list(parts)
        ignored: Counter[str] = Counter()
        problems: dict[str, tuple[str, ...]] = {}
        attributes: dict[str, Mapping[str, Any]] = {}
        for part in whole:
            ignored.update(part.ignored)
            attributes |= part.attributes
            for name, lines in part.problems.items():
                problems[name] = problems.get(name, ()) + lines
        return cls(
            tuple(series for part in whole for series in part.series),
            tuple(static for part in whole for static in part.statics),
            tuple(file for part in whole for file in part.files),
            attributes,
            dict(ignored),
            problems,
            tuple(dict.fromkeys(note for part in whole for note in part.notes)),
        )


def open_series(inputs: Iterable[str | Path], on_progress: Progress = lambda what, done, total: None) -> Catalogue:
    """What inputs hold, from their headers alone.

    Args:
        inputs: NetCDF and GRIB files, ZIP archives of them, folders with such files, Zarr stores (folders or URLs).

    Raises:
        DataError: Some cannot be read; each is named with the reason.
    """
    stores, paths = _expand(inputs)
    parts: list[Catalogue] = []
    errors: list[DataError] = []
    everything: list[str | Path] = [*stores, *paths]
    for done, item in enumerate(everything):
        on_progress("looking at the inputs", done, len(everything))
        try:
            parts += [_open_zarr(item)] if isinstance(item, str) else _open_path(item)
        except DataError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DataError(f"{len(errors)} of {len(everything)} inputs cannot be read", hint=errors[0].hint,
                        problems=[line for error in errors for line in (error.message, *error.problems)])  # fmt: skip
    return Catalogue.merge(parts)


def _expand(inputs: Iterable[str | Path]) -> tuple[list[str], list[Path]]:
    """Zarr stores, and files; folders stand for all files of weather in them, at any depth, in the order of names."""
    stores: list[str] = []
    paths: list[Path] = []
    problems: list[str] = []
    for item in inputs:
        path = Path(item).expanduser()
        if "://" in str(item) or is_zarr(path):
            stores.append(str(item) if "://" in str(item) else str(path))
        elif path.is_dir():
            found, skipped = _files_in(path)
            stores += [str(store) for store in found if store.is_dir()]
            paths += [file for file in found if file.is_file()]
            if not found:
                problems.append(f"the folder {path} has no files with weather data"
                                + (f" ({len(skipped)} others)" if skipped else ""))  # fmt: skip
        elif path.exists():
            paths.append(path)
        else:
            problems.append(f"{path} does not exist")
    twice = [str(path) for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    problems += [f"{path} is given twice" for path in twice]
    if not stores and not paths and not problems:
        problems.append("no inputs were given")
    if problems:
        raise DataError("the inputs cannot be used", problems=problems,
                        hint="name GRIB or NetCDF files, folders of them, or Zarr stores")  # fmt: skip
    return stores, paths


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zmetadata"))


def _files_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of weather and Zarr stores below a folder, and the files that are neither; hidden names are left out.

    Raises:
        DataError: Links to nothing; all are listed.
    """
    found: list[Path] = []
    skipped: list[Path] = []
    lost: list[Path] = []
    for here, folders, names in os.walk(folder):
        zarrs = [name for name in sorted(folders) if is_zarr(Path(here, name))]
        folders[:] = sorted(name for name in folders if name not in zarrs and not name.startswith("."))
        found += [Path(here, name) for name in zarrs]
        for name in sorted(names):
            path = Path(here, name)
            if name.startswith(".") or name.endswith(".part"):
                continue
            if not path.exists():
                lost.append(path)
                continue
            with open(path, "rb") as stream:
                head = stream.read(512)
            try:
                kind_of(path.name, head)
                found.append(path)
            except DataError:
                # Side by side with weather lie indices, checksums and notes; a damaged NetCDF is not among them.
                (found if path.suffix in (".nc", ".grib", ".grb", ".grib2", ".zip") else skipped).append(path)
    if lost:
        raise DataError(f"in {folder} are links to files that are not there", problems=[str(path) for path in lost],
                        hint="mend or remove the links")  # fmt: skip
    return found, skipped


def _open_path(path: Path) -> list[Catalogue]:
    file = SourceFile(path, path.name)
    kind = kind_of(file.label, file.read(0, 512))
    members = unpack(file) if kind == "zip" else [file]
    return [_open_file(member) for member in members]


def _open_file(file: SourceFile) -> Catalogue:
    if kind_of(file.label, file.read(0, 512)) == "netcdf":
        check_size(file)
        with Handle(file) as handle, LOCK:
            reader = Reader(handle)
            return catalogue(reader)
    return of_inventory(open_one(file), file)


def _open_zarr(location: str) -> Catalogue:
    from wm2cli.reading.zarr_group import ZarrHandle

    found = catalogue(Reader(cast(Handle, ZarrHandle(location))))  # the same face
    note = f"{found.files[0].label}: a Zarr store, known by the sha256 of its metadata alone"
    return replace(found, notes=(*found.notes, note))


def catalogue(reader: Reader) -> Catalogue:
    """Everything a reader of NetCDF (or of what looks like it) finds, as series."""
    blocks, ignored, problems = reader.blocks()
    series: list[Series] = []
    statics: list[Field] = []
    for block in blocks:
        if block.known.kind == "static":
            statics += list(reader.fields(block))
        elif _is_plain(block):
            series.append(_of_block(reader, block))
        else:
            series += _of_fields(tuple(reader.fields(block)))
    attributes = {name: reader.dataset.getncattr(name) for name in reader.dataset.ncattrs()}
    return Catalogue(
        tuple(series), tuple(statics), (reader.file,), {reader.file.label: attributes}, ignored, problems,
        tuple(reader.notes),
    )  # fmt: skip


def of_inventory(inventory: Inventory, file: SourceFile) -> Catalogue:
    """Everything an inventory has, as series of single fields."""
    moving = tuple(item for item in inventory.fields if VARIABLES[item.variable].kind != "static")
    statics = tuple(item for item in inventory.fields if VARIABLES[item.variable].kind == "static")
    return Catalogue(tuple(_of_fields(moving)), statics, (file,), {}, inventory.ignored, inventory.problems,
                     inventory.notes)  # fmt: skip


def _is_plain(block: Block) -> bool:
    """Whether a variable has times along one dimension and levels along another, and nothing else."""
    time = None if block.valid is None else block.valid[0]
    levels = () if block.level is None else block.level[0].dims
    moving = {dim for dim, size in block.along.items() if size > 1}
    base = () if block.base is None else block.base[0].dims
    return (
        time is not None and len(time.dims) <= 1 and len(levels) <= 1 and block.choice is None
        and moving <= {*time.dims, *levels} and set(base) <= {*time.dims}
        and (block.version is None or set(block.version.dims) <= {*time.dims})
    )  # fmt: skip


def _of_block(reader: Reader, block: Block) -> Series:
    first = dict.fromkeys(block.along, 0)
    if block.valid is None:
        raise ValueError("a series needs times")
    axis, valid = block.valid
    times = np.atleast_1d(valid).astype("datetime64[s]")
    base = times if block.base is None else np.broadcast_to(block.base[1], valid.shape).reshape(times.shape)
    level = None if block.level is None else block.level[0]
    pressures = () if block.level is None else tuple(float(value) for value in np.atleast_1d(block.level[1]))
    versions: set[str | None] = set()
    if block.version is not None:
        versions = {version_text(value) for value in np.unique(np.atleast_1d(block.version.values))}
    version = ", ".join(sorted(str(found) for found in versions)) or None
    time_dim, level_dim = (None if not at or not at.dims else at.dims[0] for at in (axis, level))
    return Series(
        variable=block.known.name, levels=pressures, times=times, forecast=base.astype("datetime64[s]") != times,
        statistic=block.statistic, window_hours=block.window_hours, member=block.member_at(first), version=version,
        axes=block.layout.axes, origin=f"{reader.file.label} {block.name}", file=reader.file,
        load=partial(_load_block, reader.handle, block.name, block.dims, time_dim, level_dim, block.layout,
                     (block.scale, block.offset)),
        holder=reader.handle, chunk=reader.handle.times_in_chunk(block.name, time_dim),
    )  # fmt: skip


def _load_block(handle: Any, name: str, dims: tuple[str, ...], time_dim: str | None, level_dim: str | None,
                layout: Any, scaling: tuple[float, float], places: NDArray[np.int64],
                levels: Sequence[int]) -> Values:  # fmt: skip
    """(n, L, H, W) of a variable whose dimensions lie in any order.

    Of evenly spaced places the whole run is read and thinned, where a chunk holds several times; netCDF-C is far
    slower with strides.
    """
    wanted_levels = list(levels) or [0]
    low, high = min(wanted_levels), max(wanted_levels) + 1
    parts: list[NDArray[Any]] = []
    for first, stop, picked in _runs(places, handle.times_in_chunk(name, time_dim)):
        index = tuple(
            slice(first, stop) if dim == time_dim else slice(low, high) if dim == level_dim
            else slice(None) if dim in layout.dims else 0
            for dim in dims
        )  # fmt: skip
        values = handle.read(name, index)
        kept = [dim for dim, at in zip(dims, index, strict=True) if isinstance(at, slice)]
        for number, dim in enumerate((time_dim, level_dim)):
            if dim is None or dim not in kept:
                values = np.expand_dims(values, number)
                kept.insert(number, "")
            else:
                values = np.moveaxis(values, kept.index(dim), number)
                kept.insert(number, kept.pop(kept.index(dim)))
        values = values[picked - first]
        if [low, *range(low + 1, high)] != wanted_levels:
            values = values[:, [number - low for number in wanted_levels]]
        parts.append(values)
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if scaling != (1.0, 0.0):
        values = values.astype(np.float64) * scaling[0] + scaling[1]
    return layout.arrange_all(values)  # type: ignore[no-any-return]


def _runs(places: NDArray[np.int64], chunk: int) -> list[tuple[int, int, NDArray[np.int64]]]:
    """Places as runs to read: first, end, and which of them are wanted; gaps within a chunk are read over."""
    cuts = np.flatnonzero((np.diff(places) <= 0) | (np.diff(places) > max(1, chunk))) + 1
    return [(int(part[0]), int(part[-1]) + 1, part) for part in np.split(places, cuts)]


def _of_fields(fields: Sequence[Field]) -> list[Series]:
    """Single fields as series: those of one variable, level, window and member of a file together."""
    groups: dict[object, list[Field]] = {}
    grids: list[Axes] = []
    for item in fields:
        grid = next((number for number, axes in enumerate(grids) if axes.same_as(item.axes)), len(grids))
        if grid == len(grids):
            grids.append(item.axes)
        window = "unknown" if np.isnan(item.window_hours) else item.window_hours
        key = (item.variable, item.level, item.statistic, window, item.member, id(item.file), grid)
        groups.setdefault(key, []).append(item)
    made = []
    for items in groups.values():
        one = items[0]
        versions = ", ".join(sorted({item.version for item in items if item.version is not None}))
        times = np.array([item.valid_time for item in items], "datetime64[s]")
        bases = np.array([item.base_time or item.valid_time for item in items], "datetime64[s]")
        made.append(
            Series(
                variable=one.variable, levels=() if one.level is None else (one.level,), times=times,
                forecast=bases != times, statistic=one.statistic, window_hours=one.window_hours, member=one.member,
                version=versions or None, axes=one.axes,
                origin=f"{one.file.label} {channel_label(one.variable, one.level)}",
                file=one.file, load=partial(_load_fields, tuple(items)),
            )
        )  # fmt: skip
    return made


def _load_fields(fields: tuple[Field, ...], places: NDArray[np.int64], levels: Sequence[int]) -> Values:
    del levels  # each level is a series of its own
    return np.stack([fields[int(place)].read(allow_missing=True) for place in places])[:, None]


def hash_files(files: Sequence[SourceFile], on_progress: Progress) -> list[tuple[str, str]]:
    """Name and sha256 of each file as the user gave it, each once; reads all of them."""
    once = list({file.name: file for file in files}.values())
    made = []
    with ThreadPoolExecutor(max_workers=min(4, cores())) as pool:
        for done, (file, digest) in enumerate(zip(once, pool.map(lambda item: item.sha256, once), strict=True), 1):
            made.append((file.name, digest))
            on_progress("hashing the inputs", done, len(once))
    return made
