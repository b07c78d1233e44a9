"""Where a network runs and in which precision, and what that place can do."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from wm2cli.errors import ResourceError, UsageError

Precision = Literal["auto", "fp32", "bf16"]


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU, or the CPU.

    Raises:
        ResourceError: There is no such device; says which there are.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    have = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"'{name}' is not a device", hint=f"auto, or one of: {have}") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"wm2 does not run on {device.type}", hint=f"auto, or one of: {have}")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ResourceError(f"there is no device {name}", hint=f"there are: {have}; `wm2 doctor` says more")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 on GPUs that have it, and fp32 elsewhere: on a CPU the gain depends on the model's size."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products and convolutions in bf16 inside the block; statistics, sums and fields stay in float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def measure_rate(device: torch.device, precision: str) -> float:
    """Operations per second of a square matrix product that fills the device for a moment."""
    size = 8192 if device.type == "cuda" else 1024
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=kind)

    def once() -> float:
        started = time.perf_counter()
        float((a @ a)[0, 0])  # asking for a number waits for the device
        return time.perf_counter() - started

    once()
    return 2.0 * size**3 / min(once() for _ in range(5))


def describe(device: torch.device) -> str:
    """For people: `cuda:0 (NVIDIA H100)`, `cpu (8 threads)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"
