"""Times neighborhood attention against what one would write in torch without it, in the same run.

    python benchmarks/attention.py [--grid D,H,W,heads,head_dim ...] [--window D,H,W] [--json FILE]

Implementations:

- tiled, natten: the backends of wm2 (natten only where it has compiled kernels for the device).
- gather: index the keys and values of every query, then one batched product; the obvious torch implementation.
- dense: torch's scaled_dot_product_attention over all pairs of tokens, with a mask.
- linears: not an attention, but the four linear layers of the block around it, for scale (24 C^2 FLOP a token).

Each measurement runs in a fresh process, so that its peak memory is its own; what would need more memory than
--memory-limit is left out. Times are the best of up to --repeat runs, fewer if they take long. Use a quiet machine:
where other work takes the cores, threads that spin while they wait for each other make small products many times
slower (then OMP_WAIT_POLICY=PASSIVE, or --threads 1).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from wm2cli.models.attention import available_backends, neighborhood_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

DEFAULT_GRIDS = ["5,16,32,8,32", "6,90,180,28,32"]


@dataclass(frozen=True)
class Case:
    """One measurement: `grid` is D, H, W, heads, head_dim."""

    implementation: str
    grid: tuple[int, ...]
    window: tuple[int, int, int]
    dtype: str
    backward: bool
    device: str
    repeat: int
    threads: int

    @property
    def tokens(self) -> int:
        return math.prod(self.grid[:3])

    @property
    def bytes_needed(self) -> int:
        """A lower bound of the memory that the alternatives take."""
        heads, head_dim = self.grid[3:]
        itemsize = torch.empty(0, dtype=getattr(torch, self.dtype)).itemsize
        keys = math.prod(min(a, b) for a, b in zip(self.window, self.grid, strict=False))
        passes = 2 if self.backward else 1
        if self.implementation == "gather":
            return 2 * passes * self.tokens * keys * heads * head_dim * itemsize
        if self.implementation == "dense":
            return self.tokens**2 * (1 + itemsize)
        return 0


def neighbors(grid: tuple[int, ...], window: tuple[int, int, int]) -> Tensor:
    """Indices of the keys of each query: (tokens, keys)."""
    D, H, W = grid[:3]
    axes = []
    for length, size, periodic in zip((D, H, W), window, (False, False, True), strict=True):
        size = min(size, length)
        first = torch.arange(length) - size // 2
        first = first if periodic else first.clamp(0, length - size)
        axes.append((first[:, None] + torch.arange(size)) % length)
    depth, rows, columns = axes
    index = (depth[:, None, None, :, None, None] * H + rows[:, None, None, :, None]) * W + columns[:, None, None, :]
    return index.reshape(D * H * W, -1)


def make_attention(case: Case) -> Attention:
    """Builds an implementation; masks and indices are made once, as a model would."""
    D, H, W, _, head_dim = case.grid
    if case.implementation in ("tiled", "natten"):
        return lambda q, k, v: neighborhood_attention(q, k, v, case.window, backend=case.implementation)
    index = neighbors(case.grid, case.window).to(case.device)
    if case.implementation == "gather":

        def gather(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.flatten(1, 3) for x in (q, k, v))
            scores = torch.einsum("bnhd,bnkhd->bnhk", q, k[:, index]) * head_dim**-0.5
            out = torch.einsum("bnhk,bnkhd->bnhd", scores.softmax(-1), v[:, index])
            return out.reshape(-1, D, H, W, *out.shape[2:])

        return gather
    mask = torch.zeros(case.tokens, case.tokens, dtype=torch.bool, device=case.device).scatter_(1, index, True)

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.flatten(1, 3).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        return out.reshape(-1, D, H, W, *out.shape[2:])

    return dense


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def best_time(work: Callable[[], object], repeat: int, device: str) -> tuple[float, int]:
    """Best time in seconds, and how far the work raised the peak memory in bytes."""
    before, start = peak_bytes(device), time.perf_counter()
    work()
    synchronize(device)
    peak, first = peak_bytes(device) - before, time.perf_counter() - start
    times = []
    for _ in range(min(repeat, math.ceil(1.5 / first))):
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times), peak


def measure(case: Case) -> dict[str, float]:
    """Measures one case in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(case.threads)
    dtype, device = getattr(torch, case.dtype), case.device
    if case.implementation == "linears":
        return measure_linears(case)
    attend = make_attention(case)
    shape = (1, *case.grid)
    q, k, v, grad = (torch.randn(shape, dtype=dtype, device=device) for _ in range(4))

    def forward() -> None:
        with torch.no_grad():
            attend(q, k, v)

    def both() -> None:
        torch.autograd.grad(attend(q, k, v), (q, k, v), grad)

    if case.backward:
        for x in (q, k, v):
            x.requires_grad_()
    seconds, peak = best_time(both if case.backward else forward, case.repeat, device)
    with torch.no_grad():
        check = float(attend(q, k, v).double().square().mean())
    return {"seconds": seconds, "peak_bytes": peak, "mean_square": check}


def measure_linears(case: Case) -> dict[str, float]:
    """Times qkv, projection and MLP of a block on at most 8192 tokens, scaled to the grid."""
    dtype, device, width = getattr(torch, case.dtype), case.device, case.grid[3] * case.grid[4]
    tokens = min(case.tokens, 8192)
    x = torch.randn(tokens, width, dtype=dtype, device=device)
    sizes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    weights = [torch.randn(a, b, dtype=dtype, device=device, requires_grad=case.backward) for a, b in sizes]
    x.requires_grad_(case.backward)

    def block() -> Tensor:
        y = linear(linear(x, weights[0])[:, :width], weights[1])
        return linear(gelu(linear(y, weights[2])), weights[3])

    def both() -> None:
        torch.autograd.grad(block().sum(), [x, *weights])

    seconds, peak = best_time(both if case.backward else block, case.repeat, device)
    return {"seconds": seconds * case.tokens / tokens, "peak_bytes": peak, "mean_square": math.nan}


def apart(case: Case) -> dict[str, float]:
    """Measures one case in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, case).result()


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description="Times neighborhood attention against plain torch.")
    parser.add_argument("--grid", action="append", help="D,H,W,heads,head_dim; may be repeated")
    parser.add_argument("--window", default="5,7,7")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-limit", type=float, default=6.0, help="GiB; larger alternatives are left out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    window = cast(tuple[int, int, int], integers(options.window))
    implementations = ["tiled", "gather", "dense", "linears"]
    if available_backends(options.device)[0] == "natten":
        implementations.insert(1, "natten")
    limit = options.memory_limit * 2**30
    results = []
    print(f"{'grid':>18} {'type':>9} {'pass':>17} {'what':>8} {'seconds':>9} {'x tiled':>8} {'peak MiB':>9}")
    for grid, dtype, backward in itertools.product(
        options.grid or DEFAULT_GRIDS, options.dtypes.split(","), (False, True)
    ):
        ours = math.nan
        for name in implementations:
            case = Case(name, integers(grid), window, dtype, backward, options.device, options.repeat, options.threads)
            label = f"{grid:>18} {dtype:>9} {'forward+backward' if backward else 'forward':>17} {name:>8}"
            if case.bytes_needed > limit:
                print(f"{label}   left out: needs more than {case.bytes_needed / 2**30:.0f} GiB", flush=True)
                continue
            found = apart(case)
            ours = found["seconds"] if name == "tiled" else ours
            ratio = found["seconds"] / ours
            peak = found["peak_bytes"] / 2**20
            print(f"{label} {found['seconds']:9.4f} {ratio:8.2f} {peak:9.0f}", flush=True)
            results.append(asdict(case) | found | {"times_tiled": ratio})
    if options.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": options.threads,
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
            "load": os.getloadavg()[0],
            "torch": torch.__version__,
        }
        document = {"format": 1, "benchmark": "attention", "machine": machine, "results": results}
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
