"""Neighborhood attention in torch alone: any device, forward and backward, memory linear in the tokens.

Queries are cut into tiles. The windows of a tile's queries together cover a box of keys, so a tile is one
small dense attention with a mask, the outer product of three axis masks. As columns are periodic, the mask is
the same for all tiles of a slab: a range of depth and rows, all columns. The keys of a slab are copied with
the column index outermost. Then the box of each tile is one contiguous run of the copy, the runs of
neighbouring tiles overlap, and one strided view holds them all: keys are copied several times along depth and
rows only.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

Sizes = tuple[int, int, int]

# In elements: what one step holds at most. More would leave a CPU's caches; less would mean more and smaller
# calls.
_SCORES_PER_THREAD = 2**19
_KEYS_AT_ONCE = 2**21
_KEYS_AT_ONCE_FUSED = 2**26  # an accelerator wants all heads in one launch instead


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, window: Sizes) -> Tensor:
    """Attends from each token to its window, periodic in columns; see `neighborhood_attention`.

    Differentiable once, deterministic on a CPU. Saves q, k, v and the result for the backward pass, no
    weights.

    Args:
        q: Queries, (B, D, H, W, heads, head_dim).
        k: Keys, same shape, type and device.
        v: Values, same shape, type and device.
        window: Sizes in tokens along D, H, W, at most those of the axes.

    Returns:
        (B, D, H, W, heads, head_dim), in the type of q.
    """
    return cast(Tensor, _TiledAttention.apply(q, k, v, window))  # type: ignore[no-untyped-call]


def _first_key(query: int, length: int, size: int) -> int:
    """Gives the first key of a query's window on a bounded axis.

    A window reaches size // 2 tokens back and size - size // 2 - 1 on, and is shifted inward at the ends.
    """
    return min(max(query - size // 2, 0), length - size)


@dataclass(frozen=True)
class _Span:
    """Queries of a bounded axis, the keys that their windows cover, and who sees whom (queries, keys)."""

    queries: slice
    keys: slice
    mask: Tensor


@dataclass(frozen=True)
class _Columns:
    """Columns of the tiles of queries, or of their keys: `count` tiles of `width`, `step` apart.

    They begin at column `first` (negative: they wrap) and may run beyond the circle, which repeats columns.
    """

    first: int
    step: int
    width: int
    count: int

    @property
    def total(self) -> int:
        return (self.count - 1) * self.step + self.width

    @property
    def rounds(self) -> int:
        """Tiles this far apart have no column in common."""
        return math.ceil(self.width / self.step) if self.step else self.count

    def pieces(self, period: int) -> Iterator[tuple[slice, slice]]:
        """Cuts the run of all columns where it wraps: (part of the run, part of the circle)."""
        done = 0
        while done < self.total:
            column = (self.first + done) % period
            length = min(period - column, self.total - done)
            yield slice(done, done + length), slice(column, column + length)
            done += length


@dataclass(frozen=True)
class _Plan:
    """How a grid is cut into tiles."""

    depth: tuple[_Span, ...]
    rows: tuple[_Span, ...]
    queries: _Columns
    keys: _Columns
    mask: Tensor  # (query columns, key columns) of any tile


@functools.lru_cache(maxsize=256)
def _cut(length: int, size: int, tile: int) -> tuple[_Span, ...]:
    """Cuts a bounded axis into spans of `tile` queries, the last one possibly shorter."""
    spans = []
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        first = torch.tensor([_first_key(query, length, size) for query in range(start, stop)])[:, None]
        low, high = int(first[0]), int(first[-1]) + size
        key = torch.arange(low, high)
        spans.append(_Span(slice(start, stop), slice(low, high), (key >= first) & (key < first + size)))
    return tuple(spans)


@functools.lru_cache(maxsize=64)
def _choose_tile(lengths: Sizes, window: Sizes) -> Sizes:
    """Chooses the tile (depth, rows, columns) of least estimated work.

    Large tiles waste scores on keys that a query does not see; small ones load and copy keys more often. The
    unit is one score of forward and backward pass; the weights are a fit to timings on a CPU, good to about
    10 %.
    """

    width, choices = lengths[2], (1, 2, 3, 4, 5, 6, 7, 8, 10, 12)
    # For depth and for rows: tile, number of spans, of keys, and of (query, key) pairs.
    bounded: list[list[tuple[int, int, int, int]]] = []
    for length, size in zip(lengths[:2], window[:2], strict=True):
        spans = {tile: [span.mask.shape for span in _cut(length, size, tile)] for tile in choices if tile <= length}
        bounded.append([(t, len(s), sum(n for _, n in s), sum(m * n for m, n in s)) for t, s in spans.items()])
    work: dict[Sizes, int] = {}
    for depth, rows in itertools.product(*bounded):
        slabs, keys, pairs = (a * b for a, b in zip(depth[1:], rows[1:], strict=True))
        for columns in (tile for tile in choices if tile <= width):
            tiles, reach = math.ceil(width / columns), min(width, columns + window[2] - 1)
            scores, loads, copies = pairs * tiles * columns * reach, keys * tiles * reach, keys * (width + reach)
            work[depth[0], rows[0], columns] = scores + 10 * loads + 40 * copies + 10_000 * slabs
    return min(work, key=work.__getitem__)


@functools.lru_cache(maxsize=64)
def _plan(lengths: Sizes, window: Sizes, tile: Sizes) -> _Plan:
    """Cuts a grid into tiles."""
    D, H, W = lengths
    size, width = window[2], tile[2]
    count = math.ceil(W / width)
    if size < W:
        keys = _Columns(-(size // 2), width, width + size - 1, count)
        query, key = torch.arange(width)[:, None], torch.arange(keys.width)
        mask = (key >= query) & (key < query + size)
    else:  # all tiles see the whole circle
        keys = _Columns(0, 0, W, count)
        mask = torch.ones(width, W, dtype=torch.bool)
    queries = _Columns(0, width, width, count)
    return _Plan(_cut(D, window[0], tile[0]), _cut(H, window[1], tile[1]), queries, keys, mask)


def _outer(depth: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Outer product of three (queries, keys) masks; tokens in the order columns, depth, rows."""
    mask = (
        columns[:, None, None, :, None, None] & depth[None, :, None, None, :, None] & rows[None, None, :, None, None, :]
    )
    return mask.reshape(math.prod(mask.shape[:3]), -1)


class _Workspace:
    """Scratch memory for all slabs: fresh pages cost more than copies."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._pool: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Gives uninitialized memory; the next call with this name takes it back."""
        size = math.prod(shape)
        if name not in self._pool or self._pool[name].numel() < size:
            self._pool[name] = torch.empty(size, dtype=dtype or self.dtype, device=self.device)
        return self._pool[name][:size].view(*shape)


@dataclass(frozen=True)
class _Box:
    """The queries, or the keys, of a slab: part of a field (B, D, H, W, heads, head_dim).

    It is copied to and from blocks (heads, columns, depth, rows, head_dim), whose tiles are (heads, tiles,
    tokens, head_dim) with the tokens of a tile in the order columns, depth, rows.
    """

    batch: int
    depth: slice
    rows: slice
    heads: slice
    columns: _Columns

    def _part(self, field: Tensor) -> Tensor:
        return field[self.batch, self.depth, self.rows, :, self.heads].permute(3, 2, 0, 1, 4)

    def load(self, field: Tensor, space: _Workspace, name: str) -> Tensor:
        """Copies the box to a block."""
        part = self._part(field)
        block = space.take(name, (part.shape[0], self.columns.total, *part.shape[2:]))
        for run, circle in self.columns.pieces(part.shape[1]):
            block[:, run] = part[:, circle]
        return block

    def store(self, block: Tensor, field: Tensor) -> None:
        """Writes a block of queries to the field, without the repeated columns."""
        part = self._part(field)
        part.copy_(block[:, : part.shape[1]])

    def add(self, block: Tensor, field: Tensor) -> None:
        """Adds a block to the field; repeated columns add up."""
        part = self._part(field)
        for run, circle in self.columns.pieces(part.shape[1]):
            part[:, circle] += block[:, run]

    def tiles(self, block: Tensor) -> Tensor:
        """Views the tiles of a block; those of keys share memory with their neighbours."""
        heads, column, head_dim = block.shape[0], block.stride(1), block.shape[-1]
        shape = (heads, self.columns.count, self.columns.width * column // head_dim, head_dim)
        return block.as_strided(shape, (block.stride(0), self.columns.step * column, head_dim, 1))

    def add_tiles(self, values: Tensor, tiles: Tensor) -> None:
        """Adds to tiles (..., tiles, tokens, head_dim), in rounds of tiles that share no memory."""
        rounds = self.columns.rounds
        for start in range(min(rounds, values.shape[-3])):
            tiles[..., start::rounds, :, :] += values[..., start::rounds, :, :]


def _slabs(q: Tensor, window: Sizes, dtype: torch.dtype) -> Iterator[tuple[_Box, _Box, Tensor]]:
    """Goes through the slabs: one batch entry, one span of depth and of rows, all columns, some heads.

    Yields:
        Queries, keys, and the bias (queries of a tile, its keys): 0 where seen, else -inf.
    """
    B, D, H, W, heads, head_dim = q.shape
    plan = _plan((D, H, W), window, _choose_tile((D, H, W), window))
    for depth, rows in itertools.product(plan.depth, plan.rows):
        seen = _outer(depth.mask, rows.mask, plan.mask)
        bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -math.inf).to(q.device)
        size = plan.keys.total * depth.mask.shape[1] * rows.mask.shape[1] * head_dim
        group = max(1, (_KEYS_AT_ONCE if q.device.type == "cpu" else _KEYS_AT_ONCE_FUSED) // size)
        for batch, head in itertools.product(range(B), range(0, heads, group)):
            some = slice(head, min(head + group, heads))
            queries = _Box(batch, depth.queries, rows.queries, some, plan.queries)
            yield queries, _Box(batch, depth.keys, rows.keys, some, plan.keys), bias


def _dense_backward(inputs: Sequence[Tensor], bias: Tensor, box: _Box, space: _Workspace) -> None:
    """Gradients of one slab by the formulas of a softmax, some tiles of one head at a time.

    Args:
        inputs: Tiles (heads, tiles, tokens, head_dim) of q, k, v, output and its gradient; and of the gradients of q,
            which are written, of k and v, which are added to.
        bias: (queries, keys).
        box: The keys.
        space: Scratch memory.
    """
    (heads, count), scale = inputs[0].shape[:2], inputs[0].shape[-1] ** -0.5
    some = max(1, _SCORES_PER_THREAD * torch.get_num_threads() // bias.numel())
    for head, start in itertools.product(range(heads), range(0, count, some)):
        q, k, v, out, grad, into_q, into_k, into_v = (tiles[head, start : start + some] for tiles in inputs)
        weights, scores = (space.take(name, (q.shape[0], *bias.shape)) for name in ("weights", "scores"))
        keys = space.take("keys", k.shape)
        torch.baddbmm(bias, q, k.mT, alpha=scale, out=weights)
        torch.softmax(weights, -1, out=weights)
        box.add_tiles(torch.bmm(weights.mT, grad, out=keys), into_v)
        torch.bmm(grad, v.mT, out=scores)
        scores.sub_((grad * out).sum(-1, keepdim=True)).mul_(weights)
        torch.bmm(scores, k, out=into_q).mul_(scale)
        box.add_tiles(torch.bmm(scores.mT, q, out=keys).mul_(scale), into_k)


def _fused_backward(inputs: Sequence[Tensor], bias: Tensor, box: _Box, space: _Workspace) -> None:
    """The same by differentiating torch's own attention, which on an accelerator keeps the scores on the chip."""
    q, k, v, _, grad, into_q, into_k, into_v = inputs
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        out = scaled_dot_product_attention(leaves[0], leaves[1], leaves[2], attn_mask=bias)
    grad_q, grad_k, grad_v = torch.autograd.grad(out, leaves, grad)
    into_q.copy_(grad_q)
    box.add_tiles(grad_k, into_k)
    box.add_tiles(grad_v, into_v)


def _is_dense(device: torch.device) -> bool:
    """Tells which backward pass to take. On a CPU, dense products took half the time of the fused kernel."""
    return device.type == "cpu"


class _TiledAttention(torch.autograd.Function):
    """Tiled attention. Saves q, k, v and the output alone; the backward pass computes the weights again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: Sizes) -> Tensor:
        space = _Workspace(q.dtype, q.device)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for queries, keys, bias in _slabs(q, window, q.dtype):
            query = queries.load(q, space, "q")
            key, value = keys.load(k, space, "k"), keys.load(v, space, "v")
            tiles = queries.tiles(query), keys.tiles(key), keys.tiles(value)
            result = space.take("out", query.shape)
            queries.tiles(result).copy_(scaled_dot_product_attention(*tiles, attn_mask=bias))
            queries.store(result, out)
        ctx.save_for_backward(q, k, v, out)
        ctx.window = window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out = ctx.saved_tensors
        # Sums of half types are in float32; so is all of the dense pass, whose products would round the
        # scores.
        total, dense = torch.promote_types(q.dtype, torch.float32), _is_dense(q.device)
        space = _Workspace(total if dense else q.dtype, q.device)
        backward = _dense_backward if dense else _fused_backward
        grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        grad_k, grad_v = (torch.zeros(q.shape, dtype=total, device=q.device) for _ in range(2))
        with torch.autocast(q.device.type, enabled=False):
            for queries, keys, bias in _slabs(q, ctx.window, space.dtype):
                query = queries.load(q, space, "q")
                key, value = keys.load(k, space, "k"), keys.load(v, space, "v")
                result, above = queries.load(out, space, "out"), queries.load(grad, space, "grad")
                above[:, q.shape[3] :] = 0  # the repeated columns must not count twice
                into_q = space.take("into_q", query.shape)
                into_k, into_v = (space.take(n, key.shape, total).zero_() for n in ("into_k", "into_v"))
                tiles = [queries.tiles(query), keys.tiles(key), keys.tiles(value)]
                tiles += [queries.tiles(result), queries.tiles(above)]
                tiles += [queries.tiles(into_q), keys.tiles(into_k), keys.tiles(into_v)]
                backward(tiles, bias, keys, space)
                queries.store(into_q, grad_q)
                keys.add(into_k, grad_k)
                keys.add(into_v, grad_v)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None
