"""Weights of others as checkpoints of ours.

The published Stormer comes as checkpoints of PyTorch Lightning with the prefix `net.`, optimizer states beside the
weights, and classes that exist nowhere any more. Its tensors are taken out one at a time (`wm2cli.torch_archive`), and
only when their names, shapes and number are exactly those of the network they are to be.

Source: the layout of the published files (github.com/tung-nd/stormer, huggingface.co/tungnd/stormer).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm2cli.checkpoint import Header, Values, misfits, write
from wm2cli.errors import CheckpointError, Wm2Error
from wm2cli.grid import Grid
from wm2cli.models.presets import PRESETS, Preset
from wm2cli.models.stormer import CHANNELS, SCHEMA, Stormer, StormerConfig
from wm2cli.schema import VARIABLES, channel_label
from wm2cli.sources import Progress, quiet
from wm2cli.torch_archive import TensorEntry, TorchArchive

PREFIX = "net."
FULL_SIZE = (PRESETS["stormer-1.40625-p2"], PRESETS["stormer-1.40625-p4"])
"""The published networks: the number of heads and the grid follow from their other sizes."""

_EXACT = (torch.float32, torch.float16, torch.bfloat16)  # float32 holds all values of these
_ALIASES = {"channel_embed": "embedding.channel_embed"}
_STATED: Mapping[str, tuple[tuple[type, ...], tuple[str, ...]]] = {
    "patch": ((int,), ("patch_size",)),
    "width": ((int,), ("hidden_size", "embed_dim")),
    "depth": ((int,), ("depth",)),
    "heads": ((int,), ("num_heads",)),
    "mlp_ratio": ((int, float), ("mlp_ratio",)),
    "grid": ((list, tuple), ("in_img_size", "img_size")),
    "variables": ((list, tuple), ("variables", "list_variables")),
}
"""What files may say of the architecture in their `hyper_parameters`, by the names it goes under."""


@dataclass(frozen=True)
class Account:
    """What a checkpoint is to say of weights that come from elsewhere.

    Args:
        name: Of the weights.
        licence: SPDX identifier.
        training: See `wm2cli.checkpoint.Header`.
        trained: None when the file itself is to say it, by its number of steps.
    """

    name: str
    licence: str
    training: Mapping[str, Any] = field(default_factory=dict)
    trained: bool | None = None


@dataclass(frozen=True)
class Imported:
    """What was made of a file.

    Args:
        header: Of the checkpoint.
        parameters: Numbers in it.
        ignored: Names of foreign classes and functions that the file asks for; none was looked up.
    """

    header: Header
    parameters: int
    ignored: tuple[str, ...]


def import_stormer(
    path: Path, out: Path, account: Account, *, grid: Grid | None = None, heads: int | None = None,
    like: Preset | None = None, on_progress: Progress = quiet,
) -> Imported:  # fmt: skip
    """Writes a checkpoint with the weights of a Lightning checkpoint in the published layout.

    Statistics are those of the published networks. Memory is that of the largest tensor.

    Args:
        path: The file.
        out: Target.
        account: What the checkpoint says about itself.
        grid: Of the fields, (H, W). Like `heads` it is in no tensor: needed unless the file says it, or the other sizes
            are those of a published network.
        heads: Of every attention.
        like: What it must be, when that is known.

    Raises:
        CheckpointError: The file is damaged or not in that layout, or its tensors are not those of a Stormer; all that
            is missing, left over, mis-shaped or unknown is listed.
        ResourceError: The target cannot be written.
    """
    with TorchArchive(path) as archive:
        entries, problems = _state(path, archive.root)
        if like is not None and isinstance(like.config, StormerConfig):
            grid, heads = grid or like.grid, heads or like.config.heads
        found = _architecture(entries, archive.root, grid, heads, problems)
        if found is None:
            raise _refusal(path, problems)
        config, chosen = found
        if like is not None and (config, chosen) != (like.config, like.grid):
            problems.append(f"it is no such network as '{account.name}' is")
        normalizer = config.nominal()
        try:
            with torch.device("meta"):
                model = Stormer(config, chosen, normalizer)
        except Wm2Error as error:
            raise _refusal(path, [*problems, *(error.problems or (error.message,))]) from error
        problems += misfits(model, {name: entry.shape for name, entry in entries.items()})
        problems += [f"{name} has values of {entry.storage.dtype}, which float32 does not hold"
                     for name, entry in entries.items() if entry.storage.dtype not in _EXACT]  # fmt: skip
        if problems:
            raise _refusal(path, problems)
        steps = archive.root.get("global_step")
        trained = account.trained if account.trained is not None else isinstance(steps, int) and steps > 0
        header = Header("stormer", account.name, config, normalizer, trained=trained, training=account.training,
                        licence=account.licence)  # fmt: skip
        write(out, header, chosen, {name: _values(archive, name, entries[name]) for name in model.state_dict()},
              on_progress=on_progress)  # fmt: skip
        return Imported(header, sum(value.numel() for value in model.state_dict().values()), archive.foreign)


def parse_grid(text: str) -> Grid:
    """A grid as `18x32`, rows and columns at cell centres, or as `Grid.parse` takes it.

    Raises:
        UsageError: It is no such grid.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    return Grid.parse(text) if match is None else _cells(int(match[1]), int(match[2]))


def _cells(rows: int, columns: int) -> Grid:
    return Grid(90.0 - (np.arange(rows) + 0.5) * 180.0 / rows, np.arange(columns) * 360.0 / columns)


def _state(path: Path, root: Any) -> tuple[dict[str, TensorEntry], list[str]]:
    """The tensors of the network under their names in ours."""
    state = root.get("state_dict") if isinstance(root, dict) else None
    if not isinstance(state, dict) or not state:
        held = ", ".join(map(str, root)) if isinstance(root, dict) else type(root).__name__
        raise CheckpointError(f"{path} has no state_dict; it holds {held:.200}",
                              hint="give the checkpoint as Lightning wrote it")  # fmt: skip
    entries: dict[str, TensorEntry] = {}
    problems = []
    for key, entry in state.items():
        name = str(key)
        short = name.removeprefix(PREFIX)
        if short != name and short in _ALIASES and f"{PREFIX}{_ALIASES[short]}" not in state:
            name = f"{PREFIX}{_ALIASES[short]}"
        if not isinstance(entry, TensorEntry) or not entry.possible:
            problems.append(f"{key} is no tensor")
        else:
            entries[name] = entry
    return entries, problems


def _architecture(
    entries: Mapping[str, TensorEntry], root: Mapping[str, Any], grid: Grid | None, heads: int | None,
    problems: list[str],
) -> tuple[StormerConfig, Grid] | None:  # fmt: skip
    """Configuration and grid, of which whatever tells something must tell the same; None when something is not told.

    Adds to `problems` what is contradictory or not told.
    """

    def size(axis: int, *patterns: str) -> int | None:
        """Of the first tensor that there is."""
        shapes = (entry.shape for pattern in patterns for name, entry in entries.items()
                  if re.fullmatch(rf"net\.{pattern}", name))  # fmt: skip
        return next((shape[axis] for shape in shapes if len(shape) > axis and shape[axis] > 0), None)

    stated = _stated(root)
    tensors = {
        "patch": size(3, r"embedding\.token_embeds\.\d+\.proj\.weight"),
        "width": size(2, r"embedding\.channel_query", r"embedding\.channel_embed", r"embedding\.pos_embed"),
        "depth": len({match[1] for name in entries if (match := re.match(r"net\.blocks\.(\d+)\.", name))}) or None,
    }
    hidden = size(0, r"blocks\.\d+\.mlp\.fc1\.weight", r"blocks\.\d+\.mlp\.fc1\.bias")
    ratio = hidden / tensors["width"] if hidden and tensors["width"] else None
    tokens = size(1, r"embedding\.pos_embed")
    published = next((preset for preset in FULL_SIZE if _is_full_size(preset, tokens, **tensors)), None)
    known = None if published is None else (published.config.heads, published.grid)
    tell: dict[str, Any] = {
        name: _told(f"its {name}", {"its tensors": value, "its hyper_parameters": stated.get(name)}, "", problems)
        for name, value in (*tensors.items(), ("mlp_ratio", ratio))
    }
    tell["heads"] = _told("its number of heads", {
        "--heads": heads, "its hyper_parameters": stated.get("heads"), "its sizes": known and known[0],
    }, "--heads N", problems)  # fmt: skip
    patched = f" of {tokens} patches" if tokens else ""
    chosen = _told(f"its grid{patched}", {
        "--grid": grid, "its hyper_parameters": _image(stated.get("grid")), "its sizes": known and known[1],
    }, "--grid ROWSxCOLUMNS", problems)  # fmt: skip
    variables = size(1, r"embedding\.channel_embed")
    if variables not in (None, len(CHANNELS)):
        problems.append(f"it has {variables} variables; only of the published {len(CHANNELS)} are order and statistics "
                        "known")  # fmt: skip
    problems += _order(stated.get("variables"))
    if chosen is None or None in tell.values() or variables not in (None, len(CHANNELS)):
        return None
    patches = -(-chosen.shape[0] // tell["patch"]) * (chosen.shape[1] // tell["patch"])
    if tokens not in (None, patches):
        problems.append(f"a grid of {_text(chosen)} has {patches} patches of {tell['patch']} x {tell['patch']}, its "
                        f"position table has {tokens}")  # fmt: skip
    return StormerConfig(SCHEMA, CHANNELS, **tell), chosen


def _told(what: str, told: Mapping[str, Any], flag: str, problems: list[str]) -> Any:
    """What all who tell something tell."""
    said = {who: value for who, value in told.items() if value is not None}
    if not said:
        problems.append(f"{what} is in no tensor, and nothing else tells it: give {flag}" if flag else
                        f"{what} cannot be told: the tensors that show it are missing")  # fmt: skip
    first = next(iter(said.values()), None)
    if any(value != first for value in said.values()):
        problems.append(f"{what} is " + ", ".join(f"{_text(value)} by {who}" for who, value in said.items()))
    return first


def _stated(root: Mapping[str, Any]) -> dict[str, Any]:
    """What the file's hyper-parameters say of the architecture, where it is of a kind that can be compared."""
    given = root.get("hyper_parameters")
    given = given if isinstance(given, dict) else {}
    net = given.get("net")
    both = {**given, **(net if isinstance(net, dict) else {})}
    return {what: both[name] for what, (kinds, names) in _STATED.items() for name in names
            if type(both.get(name)) in kinds}  # fmt: skip


def _is_full_size(preset: Preset, tokens: int | None, **sizes: int | None) -> bool:
    config: Any = preset.config
    patches = preset.grid.shape[0] * preset.grid.shape[1] // config.patch**2
    return tokens == patches and all(getattr(config, name) == size for name, size in sizes.items())


def _image(stated: Any) -> Grid | None:
    """The grid of an image size in hyper-parameters, when it is one."""
    sizes = stated or ()
    return _cells(*sizes) if len(sizes) == 2 and all(type(size) is int and size > 1 for size in sizes) else None


def _text(value: Any) -> str:
    return f"{value.shape[0]}x{value.shape[1]}" if isinstance(value, Grid) else str(value)


def _order(names: Any) -> list[str]:
    """What is wrong with the variables a file names, in its order; nothing when it names none."""
    if not isinstance(names, Sequence) or isinstance(names, str):
        return []
    labels = [_label(str(name)) for name in names]
    if labels == list(CHANNELS):
        return []
    other = next((index for index, (one, two) in enumerate(zip(labels, CHANNELS, strict=False)) if one != two), None)
    where = f"{len(labels)} for {len(CHANNELS)}" if other is None else f"{names[other]} is number {other}"
    return [f"its hyper_parameters name other variables than the published networks have, or in another order: {where}"]


def _label(name: str) -> str:
    """Our label of a channel as the published networks name it: `geopotential_500` is `z500`."""
    variable, _, level = name.rpartition("_")
    for short in SCHEMA.surface:
        if name in VARIABLES[short].aliases:
            return short
    for short in SCHEMA.pressure:
        if variable in VARIABLES[short].aliases and level.isdigit():
            return channel_label(short, float(level))
    return name


def _values(archive: TorchArchive, name: str, entry: TensorEntry) -> Values:
    def read() -> Tensor:
        value = archive.read(entry).float()
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{archive.path} is of no use: {name} has values that are not finite")
        return value

    return Values(torch.float32, entry.shape, read)


def _refusal(path: Path, problems: Sequence[str]) -> CheckpointError:
    flags = [flag for flag in ("--grid ROWSxCOLUMNS", "--heads N") if any(flag in line for line in problems)]
    hint = f"add {' '.join(flags)}, as the network was trained" if flags else None
    return CheckpointError(f"{path} does not hold a Stormer that wm2 knows", problems=problems, hint=hint)
