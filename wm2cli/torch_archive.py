"""Files of `torch.save`, read without executing anything in them.

Such a file is a ZIP archive: one pickle that says how things hang together, and the bytes of each storage beside it. A
pickle is a program, and may call whatever it names. Here it gets, for every name it asks for, one of a few stand-ins of
our own that describe tensors, or a placeholder on which nothing has an effect: classes that are not installed do no
harm, and those that would are never looked up. Storages are read one by one, when a tensor in them is asked for.

Source: the file format of PyTorch, as `torch.serialization` writes it since version 1.6.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wm2cli.errors import CheckpointError

MOST_PICKLE_BYTES = 2**26
"""That of a model of 10,000 tensors with two moments each has a tenth of it."""

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_EXTENSIONS = ("EXT1", "EXT2", "EXT4")
_POINTER = b"version https://git-lfs"
_BLOCK = 2**20
_DAMAGE = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)  # what zipfile raises for it


class StorageEntry(NamedTuple):
    """The bytes behind tensors: type, name in the archive, number of values."""

    dtype: torch.dtype
    key: str
    length: int


class TensorEntry(NamedTuple):
    """A tensor as the pickle describes it; what it says is only believed when the tensor is read."""

    storage: StorageEntry
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def possible(self) -> bool:
        """Whether these are a storage and sizes, and the tensor lies within the storage and is no larger than it."""
        try:
            (dtype, key, length), offset, shape, stride = self
            sizes = [length, offset, *shape, *stride]
        except (TypeError, ValueError):
            return False
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or len(shape) != len(stride):
            return False
        if any(type(size) is not int or size < 0 for size in sizes):
            return False
        number = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        return number == 0 or max(number, last + 1) <= length


class Foreign:
    """What stands in for everything that is not read: it takes whatever is done to it, and does nothing."""

    def __new__(cls, *arguments: object, **named: object) -> Foreign:
        """Forgets its arguments."""
        return super().__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __call__(self, *arguments: object, **named: object) -> Foreign:
        """Another one: methods of foreign objects are as inert as these."""
        return Foreign()

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Nothing."""

    extend = add = append


class TorchArchive:
    """An open file of `torch.save`.

    Args:
        path: The file.

    Attributes:
        root: What was saved: plain values, `TensorEntry` for tensors, `Foreign` for everything else.
        foreign: Names that the pickle asked for and did not get, as `module.name`, in order.

    Raises:
        CheckpointError: No such file, of another format, cut off, or its pickle is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: tuple[StorageEntry, Tensor] | None = None
        self._zip = _open(path)
        try:
            self._folder = self._find_folder()
            self.root, self.foreign = _unpickle(path, self._pickle())
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> TorchArchive:
        """Is open from the start."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the file."""
        self._zip.close()

    def read(self, entry: TensorEntry) -> Tensor:
        """The values of a tensor, contiguous, checked against the checksum of its storage.

        Needs memory for the storage, which is kept until another one is read, and for the tensor where it is no
        contiguous part of it.

        Raises:
            CheckpointError: The entry is impossible, or its storage is missing or damaged.
        """
        if not entry.possible:
            raise CheckpointError(f"{self.path} describes a tensor that cannot be: {tuple(entry)}")
        storage = entry.storage
        if self._last is None or self._last[0] != storage:
            self._last = None  # first, so that not two are held
            self._last = (storage, self._values(storage))
        return self._last[1].as_strided(entry.shape, entry.stride, entry.offset).contiguous()

    def _values(self, storage: StorageEntry) -> Tensor:
        name, size = f"{self._folder}data/{storage.key}", storage.length * storage.dtype.itemsize
        try:
            info = self._zip.getinfo(name)
            if info.file_size != size or info.compress_type != zipfile.ZIP_STORED or size > self.path.stat().st_size:
                raise CheckpointError(f"{self.path} is damaged: {name} has {info.file_size} bytes, expected {size}")
            values, got = bytearray(size), 0
            with self._zip.open(info) as stream:  # which compares the checksum at the end
                while block := stream.read(_BLOCK):
                    values[got : got + len(block)] = block
                    got += len(block)
            if got < size:
                raise CheckpointError(f"{self.path} is damaged: {name} ends after {got} of {size} bytes")
        except KeyError:
            raise CheckpointError(f"{self.path} is not complete: it lacks {name}") from None
        except _DAMAGE as error:
            raise CheckpointError(f"{self.path} is damaged: {error}", hint="copy or download it again") from error
        return torch.frombuffer(values, dtype=storage.dtype) if values else torch.empty(0, dtype=storage.dtype)

    def _find_folder(self) -> str:
        found = [name for name in self._zip.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(found) != 1:
            raise CheckpointError(f"{self.path} is a ZIP archive, but none of torch.save: it has {len(found)} data.pkl",
                                  hint="give the checkpoint itself")  # fmt: skip
        return found[0].removesuffix("data.pkl")

    def _pickle(self) -> bytes:
        try:
            byteorder = f"{self._folder}byteorder"
            if byteorder in self._zip.namelist() and self._zip.read(byteorder) != b"little":
                raise CheckpointError(f"{self.path} was written on a machine with another byte order",
                                      hint="save it again on a little-endian machine")  # fmt: skip
            info = self._zip.getinfo(f"{self._folder}data.pkl")
            if info.file_size > MOST_PICKLE_BYTES or info.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"the pickle in {self.path} has {info.file_size} bytes, which is none of weights")
            return self._zip.read(info)
        except _DAMAGE as error:
            raise CheckpointError(f"{self.path} is damaged: {error}", hint="copy or download it again") from error


class _StorageType(NamedTuple):
    """What `torch.FloatStorage` and its like mean in a pickle."""

    dtype: torch.dtype


class _Mapping(dict[Any, Any]):
    """An `OrderedDict` without the attributes that `state_dict()` hangs on it."""

    def __setstate__(self, state: object) -> None:
        pass


class _Tensor:
    """Stands in for `torch._utils._rebuild_tensor_v2`. Without attributes, so that a pickle cannot change it."""

    __slots__ = ()

    def __call__(self, storage: StorageEntry, offset: int, shape: tuple[int, ...], stride: tuple[int, ...],
                 *rest: object) -> TensorEntry:  # fmt: skip
        return TensorEntry(storage, offset, shape, stride)


class _Parameter:
    """Stands in for `torch._utils._rebuild_parameter`: the tensor in it."""

    __slots__ = ()

    def __call__(self, tensor: TensorEntry, *rest: object) -> TensorEntry:
        return tensor


class _FromType:
    """Stands in for `torch._tensor._rebuild_from_type_v2`: the tensor, without its class and its attributes."""

    __slots__ = ()

    def __call__(self, rebuild: object, kind: object, arguments: tuple[Any, ...], state: object) -> object:
        # Only what tensors are made of is called, which the pickle cannot have got from anywhere but here.
        return rebuild(*arguments) if isinstance(rebuild, (_Tensor, _Parameter)) else Foreign()


class _Unpickler(pickle.Unpickler):
    """Never looks a name up: it has answers for a few, and placeholders for all others."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.foreign: dict[str, None] = {}
        self.known: Mapping[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Mapping,
            ("torch._utils", "_rebuild_tensor_v2"): _Tensor(),
            ("torch._utils", "_rebuild_parameter"): _Parameter(),
            ("torch._tensor", "_rebuild_from_type_v2"): _FromType(),
            **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        found = self.known.get((module, name))
        if found is None:
            self.foreign[f"{module}.{name}"] = None
            return Foreign
        return found

    def persistent_load(self, pid: Any) -> StorageEntry:
        kind, storage, key, _, length = pid
        if kind != "storage" or not isinstance(storage, _StorageType):
            raise pickle.UnpicklingError(f"there is no storage {pid!r:.80}")
        return StorageEntry(storage.dtype, key, length)


def _unpickle(path: Path, data: bytes) -> tuple[Any, tuple[str, ...]]:
    unpickler = _Unpickler(data)
    try:
        _check_opcodes(data)
        root = unpickler.load()
    # Whatever a damaged or hostile pickle makes of the machine that reads it: nothing but our own objects was touched.
    except (Exception, MemoryError, RecursionError) as error:
        raise CheckpointError(f"the pickle in {path} is damaged: {error}", hint="copy or download it again") from error
    return root, tuple(unpickler.foreign)


def _check_opcodes(data: bytes) -> None:
    """Refuses what makes the interpreter reach beyond the pickle, or for more memory than it has bytes.

    Lengths beyond the end are noticed on the way.
    """
    for opcode, argument, place in pickletools.genops(data):
        if opcode.name in _EXTENSIONS:
            raise pickle.UnpicklingError(f"it asks for the extension {argument}")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= (place or 0):
            raise pickle.UnpicklingError(f"it remembers something as number {argument}")


def _open(path: Path) -> zipfile.ZipFile:
    try:
        with path.open("rb") as stream:
            first = stream.read(len(_POINTER))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        if first == _POINTER:
            raise CheckpointError(f"{path} is a pointer to a file, not the file itself",
                                  hint="fetch it with `git lfs pull`") from error  # fmt: skip
        if first.startswith(b"PK"):
            raise CheckpointError(f"{path} is not a complete file of torch.save: {error}",
                                  hint="copy or download it again; it may be cut short") from error  # fmt: skip
        raise CheckpointError(
            f"{path} is no ZIP archive, as torch.save writes them since version 1.6",
            hint="if it is in the layout before that and you trust it, let torch load it and save it again",
        ) from error
