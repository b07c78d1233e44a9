"""3-D neighborhood attention on the globe: each token attends to the window of tokens around it.

Depth and latitude are bounded: near an end the window is shifted inward, so every query sees equally many
keys (at the poles the first rows all see the first rows; nothing crosses the pole). Longitude is periodic:
the window wraps around. A window of n tokens reaches n // 2 back and n - n // 2 - 1 on. Position is the
caller's business (rotary embedding of q and k).

One operator, three backends:

- natten: NATTEN's fused CUDA kernels, over a circular extension in longitude.
- tiled: torch alone, any device, forward and backward, memory linear in the number of tokens.
- reference: the definition, with a mask over all pairs of tokens; quadratic memory, for tests and tiny grids.

Source: Hassani et al., Neighborhood Attention Transformer (CVPR 2023), section 3; Hassani et al., Generalized
Neighborhood Attention (2025); windows of even size follow NATTEN 0.21.7 (get_window_left and
get_window_right in csrc/include/natten/cuda/reference/mask.hpp, the same in natten/backends/flex.py).
"""

from __future__ import annotations

import functools
import importlib
import math
from types import ModuleType

import torch
from torch import Tensor

from wm2cli.errors import ResourceError
from wm2cli.models.tiled_attention import Sizes, tiled_attention

BACKENDS = ("auto", "natten", "tiled", "reference")

_NATTEN_VERSION = (0, 21)  # the first whose na3d has the signature that we call


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, window: Sizes, *, backend: str = "auto") -> Tensor:
    """Attends from each token to the (depth, rows, columns) window around it, periodic in columns.

    Computes softmax(q k^T / sqrt(head_dim)) v over the window. An axis shorter than its window is attended
    whole, each key once. Under autocast the inputs are cast to the autocast type, as torch's own attention
    does.

    Args:
        q: Queries, (B, D, H, W, heads, head_dim), heads last as in `natten.na3d`.
        k: Keys, same shape, type and device.
        v: Values, same shape, type and device.
        window: Sizes in tokens along D, H, W, each at least 1. Even ones reach one token further back.
        backend: One of `BACKENDS`. "auto" is natten for CUDA tensors that its fused kernels take, else tiled.

    Returns:
        (B, D, H, W, heads, head_dim) in the type of the (autocast) inputs.

    Raises:
        ValueError: Shapes, types, window or the backend's name are impossible.
        ResourceError: natten was asked for by name and is absent, too old, or has no kernel for this.
    """
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    if q.ndim != 6 or not q.shape == k.shape == v.shape:
        found = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k, v must share one shape (B, D, H, W, heads, head_dim), got {found}")
    if not (q.is_floating_point() and q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        found = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise ValueError(f"q, k, v must share one floating point type and one device, got {found}")
    if len(window) != 3 or min(window) < 1:
        raise ValueError(f"window must be three sizes of at least 1 (depth, rows, columns), got {window}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}, expected one of {', '.join(BACKENDS)}")

    D, H, W = q.shape[1:4]
    window = (min(window[0], D), min(window[1], H), min(window[2], W))
    if backend == "auto":
        backend = "natten" if _natten_is_fused_for(q) else "tiled"
    # The type is settled; further down, logits and sums keep the precision that each backend chose for them.
    with torch.autocast(q.device.type, enabled=False):
        if backend == "natten":
            return _natten_attention(q, k, v, window)
        if backend == "tiled":
            return tiled_attention(q, k, v, window)
        return _reference_attention(q, k, v, window)


def available_backends(device: torch.device | str) -> tuple[str, ...]:
    """Names the backends that run on a device, best first: what "auto" takes (but float64 is tiled).

    natten without its compiled kernels runs unfused, with quadratic memory, and is listed last.
    """
    kind = torch.device(device).type
    natten = _natten()
    if natten is None or kind not in ("cpu", "cuda"):
        return ("tiled", "reference")
    if kind == "cuda" and getattr(natten, "HAS_LIBNATTEN", False):
        return ("natten", "tiled", "reference")
    return ("tiled", "reference", "natten")


# --- reference: plain enough to be believed ----------------------------------------------------------------


def _visible(length: int, size: int, *, periodic: bool) -> Tensor:
    """Writes down which keys of an axis each query sees: (length, length) bool."""
    visible = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        first = query - size // 2
        if not periodic:
            first = min(max(first, 0), length - size)
        for key in range(first, first + size):
            visible[query, key % length] = True
    return visible


def _reference_attention(q: Tensor, k: Tensor, v: Tensor, window: Sizes) -> Tensor:
    """Attention by its definition. Half types are computed in float32."""
    D, H, W, _, head_dim = q.shape[1:]
    depth = _visible(D, window[0], periodic=False)
    rows = _visible(H, window[1], periodic=False)
    columns = _visible(W, window[2], periodic=True)
    mask = depth[:, None, None, :, None, None] & rows[:, None, None, :, None] & columns[:, None, None, :]
    mask = mask.reshape(D * H * W, D * H * W)
    dtype = torch.promote_types(q.dtype, torch.float32)
    # (B, heads, tokens, head_dim)
    query, key, value = (x.to(dtype).flatten(1, 3).transpose(1, 2) for x in (q, k, v))
    scores = query @ key.mT / math.sqrt(head_dim)
    weights = scores.masked_fill(~mask.to(q.device), -math.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).reshape(q.shape).to(q.dtype)


# --- natten ------------------------------------------------------------------------------------------------


@functools.cache
def _natten() -> ModuleType | None:
    """Imports natten once; gives None where it is absent or too old."""
    try:
        module = importlib.import_module("natten")
    except ImportError:
        return None
    parts = str(getattr(module, "__version__", "0")).split(".")[:2]
    recent = all(part.isdigit() for part in parts) and tuple(map(int, parts)) >= _NATTEN_VERSION
    return module if recent else None


def _natten_is_fused_for(q: Tensor) -> bool:
    """Tells whether natten has a compiled kernel for q; its fallback materializes all pairs of tokens."""
    return (
        q.device.type == "cuda"
        and q.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and q.shape[-1] % 8 == 0
        and bool(getattr(_natten(), "HAS_LIBNATTEN", False))
    )


def _natten_attention(q: Tensor, k: Tensor, v: Tensor, window: Sizes) -> Tensor:
    """Calls natten over a circular extension of the columns and crops: q and k need equal extents there."""
    natten = _natten()
    if natten is None:
        needed = ".".join(map(str, _NATTEN_VERSION))
        raise ResourceError(
            f"the natten attention backend needs the package natten >= {needed}, which is not installed",
            hint="install the wheel for your torch and CUDA (natten.org), or leave the backend at auto",
        )
    if max(window) == 1:  # natten has nothing to do, see below
        return tiled_attention(q, k, v, window)
    W = q.shape[3]
    reach = 0 if window[2] == W else window[2] // 2  # the whole circle needs no extension
    if reach:
        q, k, v = (torch.cat([x[:, :, :, W - reach :], x, x[:, :, :, :reach]], dim=3) for x in (q, k, v))
    # natten refuses windows of 1. Along such an axis tokens do not see each other: it becomes part of the
    # batch.
    alone = [axis for axis in (1, 2, 3) if window[axis - 1] == 1]
    order = [0, *alone, *(axis for axis in range(1, 6) if axis not in alone)]
    folded = [x.permute(order).flatten(0, len(alone)).contiguous() for x in (q, k, v)]
    sizes = tuple(size for size in window if size > 1)
    try:
        out: Tensor = getattr(natten, f"na{len(sizes)}d")(*folded, kernel_size=sizes)
    except (NotImplementedError, ValueError) as error:  # natten's refusals: no kernel, or not for these sizes
        raise ResourceError(
            f"natten cannot attend {q.dtype} with head_dim {q.shape[-1]} on {q.device}: {error}",
            hint="leave the attention backend at auto",
        ) from error
    out = out.reshape([q.shape[axis] for axis in order]).permute([order.index(axis) for axis in range(6)])
    return out[:, :, :, reach : reach + W].contiguous()
