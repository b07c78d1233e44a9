"""Checkpoints: one safetensors file that holds everything a forecast needs.

The header carries one JSON document (`wm2`) with a format number: model, configuration with its schemas, statistics,
origin of static fields, training data, licence, and a digest of all tensors. Nothing is unpickled. The sha256 of the
file is the checkpoint's identity and goes into every forecast.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import wm2cli
from wm2cli.config import from_mapping, to_mapping
from wm2cli.errors import CheckpointError, ResourceError, ValuesError, Wm2Error
from wm2cli.grid import Grid
from wm2cli.models import MODELS, Model
from wm2cli.sources import Progress, quiet
from wm2cli.state import Normalizer

FORMAT = 1
"""Format number of the files this version writes and reads."""

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16"}


@dataclass(frozen=True)
class Header:
    """What a checkpoint says about itself.

    Args:
        model: Key of `MODELS`.
        name: Name of the weights, for people and files.
        config: Architecture and schemas.
        normalizer: Statistics of all channels.
        trained: Whether the weights have seen data at all.
        training: Data, recipe and metrics of the training, for people; empty when untrained.
        static: Origin of each static field; a field that is not named is zero.
        licence: SPDX identifier.
        created: wm2 version that wrote the file.
        digest: sha256 over names, shapes, types and bytes of all tensors in order of their names.
    """

    model: str
    name: str
    config: Any
    normalizer: Normalizer
    trained: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    static: Mapping[str, str] = field(default_factory=dict)
    licence: str = "MIT"
    created: str = f"wm2 {wm2cli.__version__}"
    digest: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Args:
        model: Network in eval mode with its weights.
        header: What the file says about itself.
        static: Static fields by name, (H, W) float32.
        sha256: Identity of the file.
        path: Where it was read.
    """

    model: Model
    header: Header
    static: Mapping[str, Tensor]
    sha256: str
    path: Path


@dataclass(frozen=True)
class Values:
    """A tensor that is read when it is written down.

    Args:
        dtype, shape: Of the tensor.
        read: Gives it, contiguous and on the CPU.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def save(
    path: Path, model: Model, header: Header, static: Mapping[str, Tensor], *, half: bool = False
) -> None:  # fmt: skip
    """Writes a checkpoint; the name appears only when the file is complete.

    Args:
        path: Target; its folder must exist.
        model: The network whose parameters are stored.
        header: As described above; its digest is filled in here.
        static: Static fields by name, (H, W).
        half: Store the network's parameters as float16, which has 11 bits; they are float32 again when loaded.

    Raises:
        ResourceError: The folder does not exist, is not writable, or the disk is full.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError("only torch modules can be saved")
    kind = torch.float16 if half else torch.float32
    parameters = model.state_dict()
    if half and not all(bool(value.detach().to(kind).isfinite().all()) for value in parameters.values()):
        raise ValuesError("these weights are too large for 16 bits", hint="store them in 32 bits")
    write(path, header, model.grid, {name: _values(value, kind) for name, value in parameters.items()},
          {name: _values(value, torch.float32) for name, value in static.items()})  # fmt: skip


def write(
    path: Path, header: Header, grid: Grid, parameters: Mapping[str, Values],
    static: Mapping[str, Values] | None = None, on_progress: Progress = quiet,
) -> None:  # fmt: skip
    """Writes a checkpoint of parameters that are read one at a time; the name appears only when it is complete.

    Args:
        path: Target; its folder must exist.
        header: Its digest is filled in here.
        grid: Of the model.
        parameters: Of the network, by their names in its `state_dict`.
        static: Static fields.

    Raises:
        ResourceError: The folder does not exist, is not writable, or the disk is full.
    """
    tensors = {f"model.{name}": value for name, value in parameters.items()}
    tensors |= {f"static.{name}": value for name, value in (static or {}).items()}
    tensors["grid.lat"], tensors["grid.lon"] = (_values(torch.from_numpy(axis.copy()), torch.float64)
                                                for axis in (grid.lat, grid.lon))  # fmt: skip
    begins, data = _layout(tensors)
    digest = _Digest()
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as stream:
            # The digest is known at the end, its length from the start: what comes before the tensors is written twice.
            first = len(_preamble(header, data, "0" * 64))
            for done, name in enumerate(sorted(tensors)):
                on_progress(f"writing {path.name}", done, len(tensors))
                value = tensors[name].read()
                if value.dtype != tensors[name].dtype or tuple(value.shape) != tensors[name].shape:
                    raise TypeError(f"{name} is {value.dtype} {tuple(value.shape)}, not as announced")
                stream.seek(first + begins[name])
                stream.write(digest.add(name, value))
            stream.seek(0)
            stream.write(_preamble(header, data, digest.text()))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        raise ResourceError(
            f"cannot write {path}: {error}", hint="check the folder, its rights and the free space"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_header(path: Path) -> tuple[Header, dict[str, tuple[int, ...]]]:
    """The header, and the shape of every tensor, without reading the tensors.

    Raises:
        CheckpointError: No such file, not a checkpoint, damaged, or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"there are no weights at {path}", hint="make untrained ones with `wm2 weights init`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        theirs = zipfile.is_zipfile(path)
        hint = "`wm2 weights import` reads checkpoints of PyTorch" if theirs else (
            "copy or make it again; the file may be cut short")  # fmt: skip
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}", hint=hint) from error
    if "wm2" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file but not a wm2 checkpoint: it has no 'wm2' header")
    try:
        document = json.loads(metadata["wm2"])
        number = document["format"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {error!r}") from error
    if number != FORMAT:
        newer = isinstance(number, int) and number > FORMAT
        raise CheckpointError(
            f"{path} has checkpoint format {number}, this wm2 {wm2cli.__version__} reads format {FORMAT}",
            hint="install a newer wm2" if newer else "convert the file with the wm2 that wrote it",
        )
    return _parse(path, document), shapes


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """The model of a checkpoint on a device, in eval mode.

    Raises:
        CheckpointError: As `read_header`; or tensors are missing, unexpected, mis-shaped or damaged (all are listed).
    """
    header, shapes = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if _digest(tensors) != header.digest:
        raise CheckpointError(f"{path} is damaged: its tensors do not match the digest in its header",
                              hint="copy or download the file again")  # fmt: skip
    static = {name.removeprefix("static."): value for name, value in tensors.items() if name.startswith("static.")}
    weights = {name.removeprefix("model."): value.float() for name, value in tensors.items()
               if name.startswith("model.")}  # fmt: skip
    model = _build(path, header, tensors, static)
    _check_shapes(path, model, {name: tuple(value.shape) for name, value in weights.items()})
    model.load_state_dict(weights, assign=True)
    model.to(device).eval().requires_grad_(False)
    return Checkpoint(model, header, static, file_sha256(path), path)


def verify(path: Path, on_progress: Progress = quiet) -> str:
    """Reads a checkpoint whole, a tensor at a time, and gives its sha256.

    Raises:
        CheckpointError: As `load`; or values are not finite. Everything that is wrong with the tensors is listed.
    """
    header, model = skeleton(path)
    digest, problems = _Digest(), []
    with safe_open(path, framework="pt") as file:
        names = sorted(file.keys())
        shapes = {name.removeprefix("model."): tuple(file.get_slice(name).get_shape()) for name in names
                  if name.startswith("model.")}  # fmt: skip
        _check_shapes(path, model, shapes)
        for done, name in enumerate(names):
            on_progress(f"reading {path.name}", done, len(names))
            value = file.get_tensor(name)
            digest.add(name, value)
            if not bool(value.isfinite().all()):
                problems.append(f"{name} has values that are not finite")
    if digest.text() != header.digest:
        raise CheckpointError(f"{path} is damaged: its tensors do not match the digest in its header",
                              hint="copy or download the file again")  # fmt: skip
    if problems:
        raise CheckpointError(f"{path} is whole, but of no use", problems=problems)
    return file_sha256(path)


def skeleton(path: Path) -> tuple[Header, Model]:
    """The header and the model without its weights (on the meta device), to plan with.

    Raises:
        CheckpointError: As `read_header`, or the model cannot be built.
    """
    header, _ = read_header(path)
    with safe_open(path, framework="pt") as file:
        axes = {name: file.get_tensor(name) for name in ("grid.lat", "grid.lon") if name in file.keys()}  # noqa: SIM118
    return header, _build(path, header, axes, {})


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def misfits(model: Any, found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Parameters that a model lacks among those found, that it does not have, and that have another shape."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is not part of the model" for name in found if name not in wanted]
    problems += [f"{name} is {found[name]}, expected {shape}" for name, shape in wanted.items()
                 if name in found and found[name] != shape]  # fmt: skip
    return problems


def _check_shapes(path: Path, model: Any, found: Mapping[str, tuple[int, ...]]) -> None:
    if problems := misfits(model, found):
        raise CheckpointError(f"the tensors of {path} do not fit its model", problems=problems)


def _build(path: Path, header: Header, tensors: Mapping[str, Tensor], static: Mapping[str, Tensor]) -> Any:
    try:
        grid = Grid(tensors["grid.lat"].numpy(), tensors["grid.lon"].numpy())
        with torch.device("meta"):  # parameters come from the file, so none are drawn
            return MODELS[header.model][1](header.config, grid, header.normalizer, static)
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}") from error
    except Wm2Error as error:
        raise CheckpointError(
            f"the model of {path} cannot be built: {error.message}", problems=error.problems
        ) from error


def _parse(path: Path, document: Mapping[str, Any]) -> Header:
    try:
        kind = document["model"]
        if kind not in MODELS:
            raise CheckpointError(f"{path} holds a '{kind}', this wm2 knows {', '.join(MODELS)}")
        return Header(
            model=kind,
            name=str(document["name"]),
            config=from_mapping(MODELS[kind][0], document["config"]),
            normalizer=Normalizer.from_dict(document["normalizer"]),
            trained=bool(document["trained"]),
            training=document["training"],
            static=document["static"],
            licence=str(document["licence"]),
            created=str(document["created"]),
            digest=str(document["digest"]),
        )
    except CheckpointError:
        raise
    except Wm2Error as error:
        raise CheckpointError(
            f"the header of {path} cannot be used: {error.message}", problems=error.problems
        ) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {error!r}") from error


class _Digest:
    """sha256 over tensors in order of their names; safetensors has no checksum of its own.

    A flipped bit in a weight would otherwise run as if nothing were wrong.
    """

    def __init__(self) -> None:
        self.sum = hashlib.sha256()

    def add(self, name: str, value: Tensor) -> memoryview:
        """Takes one in, and gives its bytes."""
        self.sum.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        content = value.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self.sum.update(content)
        return content

    def text(self) -> str:
        """In hexadecimal."""
        return self.sum.hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = _Digest()
    for name in sorted(tensors):
        digest.add(name, tensors[name])
    return digest.text()


def _values(value: Tensor, kind: torch.dtype) -> Values:
    return Values(kind, tuple(value.shape), lambda: value.detach().to("cpu", kind).contiguous())


def _layout(tensors: Mapping[str, Values]) -> tuple[dict[str, int], dict[str, Any]]:
    """Where each tensor begins, and what a safetensors header says of them: wide types first, then by name."""
    begins: dict[str, int] = {}
    entries: dict[str, Any] = {}
    here = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        value = tensors[name]
        begins[name], end = here, here + math.prod(value.shape) * value.dtype.itemsize
        entries[name] = {"dtype": _DTYPES[value.dtype], "shape": value.shape, "data_offsets": [here, end]}
        here = end
    return begins, entries


def _preamble(header: Header, entries: Mapping[str, Any], digest: str) -> bytes:
    """Everything before the tensors."""
    document = {
        "format": FORMAT,
        "model": header.model,
        "name": header.name,
        "config": to_mapping(header.config),
        "normalizer": header.normalizer.to_dict(),
        "trained": header.trained,
        "training": dict(header.training),
        "static": dict(header.static),
        "licence": header.licence,
        "created": header.created,
        "digest": digest,
    }
    text = json.dumps({"__metadata__": {"wm2": json.dumps(document)}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
