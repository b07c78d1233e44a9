"""What was fetched before: complete pieces with an account of each beside them.

A piece lies under its name only when it is complete and checked. Beside it, a small JSON file says what it holds, where
it came from and its sha256, which is compared whenever the piece is used: damage that came later is seen. Two programs
may share a folder; a lock a piece lets one of them fetch it.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import wm2cli
from wm2cli.errors import DataError, ResourceError
from wm2cli.sources import Piece, Progress
from wm2cli.transfer import UnusableError

FORMAT = 1
"""Format number of the accounts."""

_SUFFIX = ".wm2.json"
_LEFT_BEHIND = 86400.0  # s: what was not written to for so long is no download under way


@dataclass(frozen=True)
class Held:
    """A complete piece in a folder.

    Args:
        path: The file.
        sha256: Its hash, computed when it was fetched, compared when it was found again.
        urls: Where it came from.
        notes: What was noticed about it when it was fetched.
        size: Bytes.
    """

    path: Path
    sha256: str
    urls: tuple[str, ...]
    notes: tuple[str, ...]
    size: int


def keep(piece: Piece, partial: Path, target: Path, *, urls: Sequence[str], notes: Sequence[str] = ()) -> Path:
    """Gives a complete and checked file its final name, with its account beside it.

    Args:
        piece: What the file is.
        partial: Where it was written, in the same folder.
        target: Its final name.
        urls: Where it came from, without secrets.
        notes: What the user should know about it.
    """
    with open(partial, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    account = {
        "format": FORMAT,
        "key": piece.key,
        "parts": list(piece.parts),
        "request": dict(piece.request),
        "sha256": digest,
        "bytes": partial.stat().st_size,
        "urls": list(urls),
        "notes": list(notes),
        "fetched": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wm2": wm2cli.__version__,
    }
    beside = _account(target)
    unfinished = beside.with_name(f".{beside.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(json.dumps(account, indent=1, default=str))
        # First the account: a file under its final name always has one.
        os.replace(unfinished, beside)
        os.replace(partial, target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def find(piece: Piece, folder: Path) -> Held | None:
    """The piece, or a larger one of the same key, when it lies complete and undamaged in a folder.

    Reads the file once to compare its hash; a damaged one is taken for absent.
    """
    exact = _read(folder / piece.filename)
    candidates = [(folder / piece.filename, exact)] if exact is not None else []
    if piece.parts and exact is None:
        for beside in sorted(folder.glob(f"*{_SUFFIX}")):
            path = folder / beside.name.removesuffix(_SUFFIX)
            account = _read(path)
            if account is not None and account["key"] == piece.key and set(piece.parts) <= set(account["parts"]):
                candidates.append((path, account))
    for path, account in candidates:
        held = _verified(path, account)
        if held is not None:
            return held
    return None


@contextmanager
def workspace(piece: Piece, folder: Path) -> Iterator[Path]:
    """A folder for the parts of a piece, gone when the block ends.

    After an interruption or a failure of the network it stays, and the next run goes on; not after wrong data, which
    are of no use, nor if the object changed meanwhile, whose versions do not go together, nor on a full disk, which
    needs the room.
    """
    work = folder / f".{piece.filename}.part"
    work.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    except (UnusableError, DataError, OSError):
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def locked(piece: Piece, folder: Path, on_progress: Progress) -> Iterator[None]:
    """Keeps other programs from fetching the same piece; waits while one does.

    Raises:
        ResourceError: The folder cannot be written.
    """
    path = folder / f".{piece.filename}.lock"
    descriptor = -1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            while not _try_lock(descriptor):
                on_progress(f"another run fetches {piece.key}: waiting for it", 0, 1)
                time.sleep(0.1)
            # The other run took its lock file away when it was done: then the one locked here is no longer there.
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    break
            os.close(descriptor)
    except OSError as error:
        raise ResourceError(
            f"cannot write to {folder}: {error.strerror}", hint="set --cache or WM2_CACHE to a folder you may write"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@dataclass(frozen=True)
class Pruned:
    """What `prune` took away and what is left."""

    removed: tuple[Path, ...]
    bytes_removed: int
    bytes_left: int


def prune(folder: Path, keep_bytes: int) -> Pruned:
    """Takes away what was not used for longest until no more than so many bytes are left.

    What broken downloads left behind goes first, when it is older than a day; nothing else than what wm2 fetched goes.

    Raises:
        ResourceError: Something cannot be removed.
    """
    removed: list[Path] = []
    gone = 0
    try:
        for path in sorted(folder.rglob(".*.part")) if folder.is_dir() else []:
            if time.time() - path.stat().st_mtime > _LEFT_BEHIND:
                gone += _remove(path, removed)
        pieces = []
        for beside in folder.rglob(f"*{_SUFFIX}") if folder.is_dir() else []:
            path = beside.with_name(beside.name.removesuffix(_SUFFIX))
            if path.is_file():
                pieces.append((beside.stat().st_mtime, path, beside))
            else:
                gone += _remove(beside, removed)
        total = sum(path.stat().st_size for _, path, _ in pieces)
        for _, path, beside in sorted(pieces):
            if total <= keep_bytes:
                break
            size = path.stat().st_size
            gone += _remove(path, removed)
            _remove(beside, removed)
            total -= size
    except OSError as error:
        raise ResourceError(f"cannot tidy {folder}: {error}", hint="look at who owns the files in it") from error
    return Pruned(tuple(removed), gone, total)


def _remove(path: Path, removed: list[Path]) -> int:
    if path.is_dir():
        inside = sum(_remove(item, []) for item in path.iterdir())
        path.rmdir()
        removed.append(path)
        return inside
    size = path.stat().st_size
    path.unlink()
    removed.append(path)
    return size


def _account(path: Path) -> Path:
    return path.with_name(path.name + _SUFFIX)


def _read(path: Path) -> Mapping[str, Any] | None:
    """The account of a file, or None when it has none that can be understood."""
    try:
        account = json.loads(_account(path).read_text())
    except (OSError, ValueError):
        return None
    wanted = {"format", "key", "parts", "sha256", "bytes", "urls", "notes"}
    known = isinstance(account, dict) and wanted <= account.keys() and account["format"] == FORMAT
    return account if known else None


def _verified(path: Path, account: Mapping[str, Any]) -> Held | None:
    try:
        if path.stat().st_size != account["bytes"]:
            return None
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != account["sha256"]:
            return None
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a folder that may only be read serves as well
        os.utime(_account(path))
    return Held(path, digest, tuple(account["urls"]), tuple(account["notes"]), account["bytes"])


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def copy(held: Held, folder: Path) -> Held:
    """The same piece in another folder, with its account."""
    target = folder / held.path.name
    for source, final in ((_account(held.path), _account(target)), (held.path, target)):
        partial = final.with_name(f".{final.name}.{os.getpid()}.part")
        try:
            shutil.copyfile(source, partial)
            os.replace(partial, final)
        finally:
            partial.unlink(missing_ok=True)
    return replace(held, path=target)
