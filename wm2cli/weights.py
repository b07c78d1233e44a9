"""The weights commands: which weights there are, how they come here, what they hold, and where a name finds them.

A name is looked for as a path, among the bundled weights, and in the cache, where `get` leaves what it converted.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wm2cli import bundled, checkpoint, foreign, hub
from wm2cli.checkpoint import Header
from wm2cli.errors import CheckpointError, RemoteError, UsageError
from wm2cli.foreign import Account, Imported
from wm2cli.grid import Grid
from wm2cli.hub import PUBLISHED, Published
from wm2cli.models import MODELS
from wm2cli.models.presets import PRESETS, preset
from wm2cli.sources import Piece, Progress, cache_folder, open_source, quiet
from wm2cli.sources.cache import locked

FORMAT = 1
"""Format number of the JSON documents of these commands."""


IMPORTERS = {"stormer": foreign.import_stormer}
"""What `import` reads, by the name of the model."""

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Written:
    """A checkpoint that a command wrote, got or verified.

    Args:
        path: The checkpoint.
        parameters: Numbers in it.
        sha256: Its identity.
        notes: What the user should know.
    """

    path: Path
    parameters: int
    sha256: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
        return {"format": FORMAT, **vars(self), "path": str(self.path), "notes": list(self.notes)}


def init(preset_name: str, seed: int, out: Path, *, static: Sequence[Path] = (), overwrite: bool = False) -> Written:
    """Writes an untrained checkpoint.

    Args:
        preset_name: Key of `wm2cli.models.presets.PRESETS`.
        seed: The same seed gives the same file.
        out: Target file.
        static: Files that hold orography, land-sea mask and soil type, GRIB or NetCDF on any global grid; they are
            regridded conservatively. Without them the static fields are zero.
        overwrite: Replace an existing file.

    Raises:
        UsageError: Unknown preset, or the target exists.
        DataError: The static files cannot be used.
        ResourceError: The target cannot be written.
    """
    from wm2cli.analysis import read_static  # here, because `info` needs no reader

    chosen = preset(preset_name)
    _refuse_existing(out, overwrite)
    fields: dict[str, torch.Tensor] = {}
    origin: dict[str, str] = {}
    if static:
        dataset = read_static(open_source("file").open(tuple(static)), chosen.grid)
        for name in dataset.data_vars:
            fields[str(name)] = torch.from_numpy(np.ascontiguousarray(dataset[name].values, dtype=np.float32))
            origin[str(name)] = str(dataset[name].attrs.get("origin", ", ".join(path.name for path in static)))
    config = chosen.config
    normalizer = config.nominal()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[chosen.kind][1](config, chosen.grid, normalizer, fields)
    header = Header(chosen.kind, f"{preset_name}-untrained-{seed}", config, normalizer, static=origin)
    checkpoint.save(out, model, header, fields)
    number = sum(p.numel() for p in model.parameters())
    return Written(out, number, checkpoint.file_sha256(out), (f"{number:,} untrained parameters",))


def info(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, as plain values for a table or JSON.

    Raises:
        CheckpointError: No such file, not a checkpoint, damaged, or of another format.
    """
    header, shapes = checkpoint.read_header(path)
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items() if name.startswith("model.")}
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        words = name.split(".")
        part = ".".join(words[1:3]) if words[1] in ("encoders", "processors", "net") else words[1]
        parts[part] = parts.get(part, 0) + size
    missing = [name for name in ("grid.lat", "grid.lon") if name not in shapes]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    grid = _grid(path)
    config = header.config
    schemas = config.inputs
    names = {name for schema in (*schemas.values(), config.schema_out) for name in schema.static}
    return {
        "format": FORMAT,
        "path": str(path),
        "sha256": checkpoint.file_sha256(path),
        "bytes": path.stat().st_size,
        "name": header.name,
        "model": header.model,
        "trained": header.trained,
        "training": dict(header.training),
        "licence": header.licence,
        "created": header.created,
        "parameters": sum(sizes.values()),
        "parameters_by_part": parts,
        "grid": {"rows": grid.shape[0], "columns": grid.shape[1], "description": grid.describe()},
        "inputs": {
            name: _schema_text(schema.pressure, schema.levels, schema.surface) for name, schema in schemas.items()
        },
        "outputs": _schema_text(config.schema_out.pressure, config.schema_out.levels, config.schema_out.surface),
        "steps_hours": list(config.steps),
        "architecture": config.architecture(),
        "static": {name: header.static.get(name, "zero (none given)") for name in sorted(names)},
        "statistics": header.training.get("statistics", "of the training data") if header.trained else "nominal",
    }


def import_weights(
    kind: str, path: Path, out: Path, *, grid: str | None = None, heads: int | None = None, name: str | None = None,
    licence: str | None = None, overwrite: bool = False, on_progress: Progress = quiet,
) -> Written:  # fmt: skip
    """Writes a checkpoint with weights that others made; nothing in their file is executed.

    Args:
        kind: Key of `IMPORTERS`.
        path: Their file.
        out: Target file.
        grid: `128x256` or a spacing in degrees, where the file does not tell; see `foreign.parse_grid`.
        heads: Number of attention heads, where the file does not tell.
        name: Of the weights; that of the published ones, or of the file.
        licence: SPDX identifier; that of the published weights when None.
        overwrite: Replace an existing file.

    Raises:
        UsageError: No such kind, no such grid, or the target exists.
        CheckpointError: The file is damaged or not what it should be; everything that is wrong is listed.
        ResourceError: The target cannot be written.
    """
    if kind not in IMPORTERS:
        raise UsageError(f"wm2 cannot import '{kind}'", hint=f"it imports {', '.join(IMPORTERS)}")
    _refuse_existing(out, overwrite)
    chosen = None if grid is None else foreign.parse_grid(grid)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    digest = hub.file_sha256(path, on_progress)
    published = next((one for one in PUBLISHED.values() if one.sha256 == digest), None)
    origin = {"file": path.name, "sha256": digest}
    if published is not None:
        account = _account(published, {**origin, "url": published.url})
    else:
        account = Account(path.stem, "MIT", {"data": "not stated by the file", "origin": origin,
                                             "statistics": "those of the published networks"})  # fmt: skip
    account = replace(account, name=name or account.name, licence=licence or account.licence)
    made = IMPORTERS[kind](path, out, account, grid=chosen, heads=heads, on_progress=on_progress)
    notes = _notes(made)
    if published is None:
        notes += (f"{path.name} (sha256 {digest[:12]}...) is not known here: who trained it on what is not stated",)
        notes += () if licence else ("its licence is taken to be MIT, that of the published files; --licence says "
                                     "otherwise",)  # fmt: skip
    return Written(out, made.parameters, checkpoint.file_sha256(out), notes)


def get(name: str, *, cache: Path | None = None, offline: bool = False, on_progress: Progress = quiet) -> Written:
    """The checkpoint of published weights: from the cache when it is whole there, else from the hub and converted.

    Args:
        name: Key of `PUBLISHED`, or of bundled weights.
        cache: Folder of the cache; the user's when None.
        offline: Use only what is here.

    Raises:
        UsageError: No such weights.
        RemoteError: The hub refused or failed, or they are not here and `offline` is set.
        CheckpointError: What came is damaged, or another file than it should be; or bundled weights are damaged.
        ResourceError: The cache cannot be written, or the disk is full.
    """
    damage: tuple[str, ...] = ()
    if (here := _local(cache).get(name)) is not None:
        try:
            return replace(verify(here, on_progress), notes=(f"{name} is here already, and whole",))
        except CheckpointError as error:
            if name not in PUBLISHED:
                raise
            damage = (error.message,)
    published = gettable(name)
    if offline:
        state = "damaged" if damage else "not here"
        raise RemoteError(f"--offline: the weights '{name}' are {state}", problems=damage,
                          hint=f"`wm2 weights get {name}` where there is a network, and bring its folder here with "
                          "--cache or WM2_CACHE")  # fmt: skip
    folder = weights_folder(cache)
    target = folder / f"{name}{_SUFFIX}"
    with locked(Piece(f"weights/{name}", target.name), folder, on_progress):
        if target.is_file():
            try:
                return verify(target, on_progress)  # another run got it while this one waited
            except CheckpointError:
                target.unlink()
        notes = tuple(f"{message}: fetched again" for message in damage)
        fetched = hub.fetch(published, folder, on_progress)
        origin = {"file": published.file, "sha256": fetched.sha256, "url": fetched.url}
        if not fetched.known:
            origin["checked"] = "against the sha256 that the hub announced; it was not known beforehand"
            notes += (f"the sha256 of {published.file} was not known beforehand: it is {fetched.sha256}, as the hub "
                     "announced",)  # fmt: skip
        like = PRESETS[name]
        made = foreign.import_stormer(fetched.path, target, _account(published, origin), like=like,
                                      on_progress=on_progress)  # fmt: skip
        fetched.path.unlink()
    return Written(target, made.parameters, checkpoint.file_sha256(target), (*notes, *_notes(made)))


def gettable(name: str) -> Published:
    """Published weights of that name.

    Raises:
        UsageError: There are none; names the nearest.
    """
    if name not in PUBLISHED:
        raise UsageError(
            f"there are no published weights '{name}'",
            hint=f"{_meant(name, PUBLISHED)}there are {', '.join(PUBLISHED)}",
        )
    return PUBLISHED[name]


def listing(cache: Path | None = None) -> list[dict[str, Any]]:
    """All weights that a name finds, and those that `get` gets, as plain values: a mapping each.

    `where` is `bundled`, `cached`, `damaged` (in the cache, but of no use) or `to get`; `bytes` are those of the file,
    of weights to get those of the download.
    """
    rows: list[dict[str, Any]] = []
    for name, path in _local(cache).items():
        row: dict[str, Any] = {"name": name, "path": str(path), "bytes": path.stat().st_size}
        row["where"] = "bundled" if name in bundled.weights() else "cached"
        try:
            header, _ = checkpoint.read_header(path)
            data = header.training.get("data", "not stated") if header.trained else "none: untrained"
            row |= {"model": header.model, "licence": header.licence, "data": str(data)}
        except CheckpointError as error:
            row |= {"where": "damaged", "model": None, "licence": None, "data": error.message}
        rows.append(row)
    rows += [
        {"name": name, "where": "to get", "path": None, "bytes": one.bytes, "model": PRESETS[name].kind,
         "licence": one.licence, "data": one.data}
        for name, one in PUBLISHED.items() if name not in {row["name"] for row in rows}
    ]  # fmt: skip
    return rows


def verify(path: Path, on_progress: Progress = quiet) -> Written:
    """Reads a checkpoint whole and compares everything in it that can be compared; gives its identity.

    Raises:
        CheckpointError: It is damaged, or does not fit its model.
    """
    digest = checkpoint.verify(path, on_progress)
    entry = next((entry for entry in bundled.manifest().values() if entry.path == path), None)
    if entry is not None and entry.sha256 != digest:
        raise CheckpointError(f"{path} is not the file that came with wm2: its sha256 is {digest}, expected "
                              f"{entry.sha256}", hint="install wm2 again")  # fmt: skip
    _, shapes = checkpoint.read_header(path)
    parameters = sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith("model."))
    return Written(path, parameters, digest)


def resolve(name: str | None, cache: Path | None = None) -> Path:
    """The file behind a weights name: a path, else a bundled or cached name; without one `WM2_WEIGHTS` or the default.

    Args:
        name: As on the command line.
        cache: Folder of the cache; the user's when None.

    Raises:
        CheckpointError: No weights have that name, or they are not here yet.
    """
    given = name or os.environ.get("WM2_WEIGHTS") or bundled.DEFAULT_WEIGHTS
    path = Path(given).expanduser()
    if path.is_file() or path.suffix == _SUFFIX or len(path.parts) > 1:
        return path
    here = _local(cache)
    if given in here:
        return here[given]
    if given in PUBLISHED:
        raise CheckpointError(f"the weights '{given}' are not on this machine yet",
                              hint=f"`wm2 weights get {given}` fetches them, {PUBLISHED[given].bytes / 1e9:.2f} GB"
                              )  # fmt: skip
    raise CheckpointError(f"there are no weights '{given}'", hint=f"{_meant(given, {**here, **PUBLISHED})}bundled are "
                          f"{', '.join(bundled.weights())}; `wm2 weights list` shows all; or give a file")  # fmt: skip


def weights_folder(cache: Path | None = None) -> Path:
    """Where `get` leaves weights."""
    return (cache or cache_folder()) / "weights"


def _local(cache: Path | None) -> dict[str, Path]:
    """Weights on this machine by name; a bundled name goes before one in the cache."""
    found = {path.name.removesuffix(_SUFFIX): path for path in sorted(weights_folder(cache).glob(f"[!.]*{_SUFFIX}"))}
    return {**bundled.weights(), **{name: path for name, path in found.items() if name not in bundled.weights()}}


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'? " if near else ""


def _account(published: Published, origin: Mapping[str, str]) -> Account:
    training = {"data": published.data, "train": [list(published.train)], "origin": dict(origin)}
    return Account(published.name, published.licence, training, trained=True)


def _notes(made: Imported) -> tuple[str, ...]:
    if not made.ignored:
        return ()
    return (f"{len(made.ignored)} foreign names in the file were not looked up: {', '.join(made.ignored)}",)


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already", hint="choose another name, or give --overwrite")


def _grid(path: Path) -> Grid:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return Grid(file.get_tensor("grid.lat"), file.get_tensor("grid.lon"))


def _schema_text(pressure: Sequence[str], levels: Sequence[float], surface: Sequence[str]) -> dict[str, Any]:
    return {"pressure": list(pressure), "levels_hpa": list(levels), "surface": list(surface)}
