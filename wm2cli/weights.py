"""The weights commands: make untrained checkpoints, and say what a checkpoint holds."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wm2cli import bundled, checkpoint
from wm2cli.checkpoint import Header
from wm2cli.errors import CheckpointError, UsageError
from wm2cli.grid import Grid
from wm2cli.models import MODELS
from wm2cli.models.presets import preset
from wm2cli.sources import open_source

FORMAT = 1
"""Format number of the JSON documents of these commands."""


@dataclass(frozen=True)
class Written:
    """What `init` wrote."""

    path: Path
    parameters: int
    sha256: str


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
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already", hint="choose another name, or give --overwrite")
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
    return Written(out, sum(p.numel() for p in model.parameters()), checkpoint.file_sha256(out))


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
        "statistics": "of the training data" if header.trained else "nominal",
    }


def resolve(name: str | None) -> Path:
    """The file behind a weights name: a path or a bundled name, else `WM2_WEIGHTS`, else the bundled default.

    Raises:
        CheckpointError: No weights have that name.
    """
    given = name or os.environ.get("WM2_WEIGHTS") or bundled.DEFAULT_WEIGHTS
    known = bundled.weights() if Path(given).suffix == "" and not Path(given).exists() else {}
    if given in known:
        return known[given]
    path = Path(given).expanduser()
    if path.suffix == "" and not path.exists():
        near = difflib.get_close_matches(given, known, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise CheckpointError(f"there are no weights '{given}'",
                              hint=f"{meant}bundled are {', '.join(known) or 'none'}; or give a file")  # fmt: skip
    return path


def _grid(path: Path) -> Grid:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return Grid(file.get_tensor("grid.lat"), file.get_tensor("grid.lon"))


def _schema_text(pressure: Sequence[str], levels: Sequence[float], surface: Sequence[str]) -> dict[str, Any]:
    return {"pressure": list(pressure), "levels_hpa": list(levels), "surface": list(surface)}
