"""The processes of one training: who they are, and the few things they say to each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from wm2cli.errors import ResourceError

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others before it gives them up: validations and climatologies take the first one long.

A process that ends is noticed at once."""

BUCKET = 2**25
"""Values reduced in one go: 128 MiB of float32."""


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Args:
        rank: From 0.
        count: Number of processes.
        local: Rank on this machine, which is the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Adds tensors up over all ranks, in place; every rank ends with the same bits."""
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        size = 0
        for tensor in tensors:
            if bucket and size + tensor.numel() > BUCKET:
                _reduce(bucket)
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.numel()
        if bucket:
            _reduce(bucket)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any rank says so."""
        if self.count == 1:
            return flag
        told = torch.tensor([float(flag)], device=device)
        _guarded(dist.all_reduce, told, op=dist.ReduceOp.MAX)
        return bool(told.item())

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            _guarded(dist.barrier)

    def together(self, call: Callable[[], T]) -> T:
        """What a call gives that talks to the other ranks by itself, as Shampoo does.

        Raises:
            ResourceError: Another rank was lost meanwhile.
        """
        return call() if self.count == 1 else _guarded(call)


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks of this training, as `torchrun` describes them in the environment; alone without it.

    NCCL between GPUs, gloo between CPUs.

    Raises:
        ResourceError: The others did not come, or one was lost.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Ranks()
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ResourceError(f"the ranks of this training did not find each other: {error}",
                            hint="start it by torchrun --nproc-per-node N -m wm2cli train ...") from error  # fmt: skip
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()


def _reduce(tensors: Sequence[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    _guarded(dist.all_reduce, flat)
    offset = 0
    for tensor in tensors:
        tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()


def _guarded(call: Callable[..., T], *values: Any, **more: Any) -> T:
    try:
        return call(*values, **more)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ResourceError(
            f"another rank of this training was lost: {str(error).splitlines()[0]}",
            hint="start it again with --resume; it goes on from the last checkpoint",
        ) from error
