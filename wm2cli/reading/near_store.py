"""Zarr stores on a disk of this machine, read without a thread for every chunk."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from zarr.storage import LocalStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

_AT_ONCE_S = 1e-3
"""A disk that makes one wait longer for a chunk, in the mean of the last ones, gains by threads; a faster one loses."""


class NearStore(LocalStore):
    """A folder opened for reading, whose chunks are read where they are asked for as long as they come at once.

    zarr hands each chunk to another thread. For small chunks that the system still holds in memory, waking that thread
    takes several times as long as reading; for a disk or a network that has to be waited for, threads wait together.
    So chunks are read here as long as they come at once, and by threads from the time on that they do not.
    """

    def __init__(self, root: Path | str, *, read_only: bool = True) -> None:
        super().__init__(root, read_only=read_only)
        self._wait = 0.0

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
                  ) -> Buffer | None:  # fmt: skip
        """Bytes of a key or a part of them, or None; see zarr's `Store.get`."""
        if self._wait > _AT_ONCE_S:
            return await super().get(key, prototype, byte_range)
        started = perf_counter()
        found = self.get_sync(key, prototype=prototype, byte_range=byte_range)
        self._wait += 0.1 * (perf_counter() - started - self._wait)
        return found
