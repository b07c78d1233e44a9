"""The network of Stormer, as published: rows from south to north, parameters under their published names.

Every variable has a patch embedding of its own; at each place one cross-attention makes one token of all variables; a
plain transformer with global attention follows, told the interval by adaptive layer norms.

Sources: Nguyen et al., Scaling transformer neural networks for skillful and reliable medium-range weather forecasting
(NeurIPS 2024, arXiv 2312.03876), and the public code where the two differ (no final norm, interval in tens of hours).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HOURS_PER_UNIT = 10.0
"""The network is told the interval in tens of hours."""


@dataclass(frozen=True, eq=False)
class Tables:
    """The aggregation of variables, multiplied out: see `Embedding`.

    Args:
        scores: (V, p p + 1, heads).
        values: (heads, V (p p + 1), D / heads).
        offset: (L, D).
    """

    scores: Tensor
    values: Tensor
    offset: Tensor


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a forecast needs of the weights at every step, and what does not depend on the weather.

    Args:
        tables: Of the aggregation of variables.
        modulations: By interval in hours; see `StormerNetwork.modulations`.
    """

    tables: Tables
    modulations: Mapping[int, tuple[Tensor, ...]]


class StormerNetwork(nn.Module):
    """The published network. Parameters have the names of the published files (there under `net.` as well).

    Args:
        channels: V.
        shape: Rows and columns of the fields (H, W); rows from south to north.
        patch: Rows and columns of a token, p.
        width: D.
        depth: Blocks.
        heads: Of every attention.
        mlp_ratio: Hidden layer over width.
    """

    def __init__(
        self, channels: int, shape: tuple[int, int], patch: int, width: int, depth: int, heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        self.padding = -shape[0] % patch
        rows, columns = (shape[0] + self.padding) // patch, shape[1] // patch
        self.rows, self.tokens = rows, rows * columns
        self.recompute = False
        """Whether training keeps only the input of each part, and computes the rest again when it is needed."""
        self.embedding = Embedding(channels, rows, columns, patch, width, heads)
        self.embed_norm_layer = nn.LayerNorm(width, eps=1e-5)
        self.t_embedder = IntervalEmbedding(width)
        self.blocks = nn.ModuleList(StormerBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.head = Head(width, patch * patch * channels)
        initialise(self)

    def prepare(self, intervals: Sequence[int]) -> Prepared:
        """What follows from the weights alone, for some intervals in hours."""
        by_layer = self.modulations(intervals)
        return Prepared(
            self.embedding.tables(),
            {hours: tuple(layer[row : row + 1] for layer in by_layer) for row, hours in enumerate(intervals)},
        )

    def modulations(self, intervals: Sequence[int]) -> tuple[Tensor, ...]:
        """What the interval does to each block, (M, 6, D), and to the head, (M, 2, D), for M intervals in hours."""
        weight = self.t_embedder.mlp.weight
        with torch.autocast(weight.device.type, enabled=False):
            hours = torch.tensor(intervals, dtype=weight.dtype, device=weight.device)
            told = F.silu(self.t_embedder(hours[:, None] / HOURS_PER_UNIT))
            layers: list[Any] = [*self.blocks, self.head]
            return tuple(layer.adaLN_modulation[1](told).unflatten(-1, (-1, len(weight))) for layer in layers)

    def forward(self, x: Tensor, intervals: Sequence[int], prepared: Prepared | None = None) -> Tensor:
        """The normalised change over an interval.

        Args:
            x: (B, V, H, W) normalised.
            intervals: Hours: one for all samples, or one a sample.
            prepared: Of the same weights, if at hand.

        Returns:
            (B, V, H, W); in the type of the (autocast) body.
        """
        if prepared is None:
            tables, modulations = None, self.modulations(intervals)
        else:
            tables = prepared.tables
            modulations = tuple(torch.cat(layer) for layer in zip(
                *(prepared.modulations[hours] for hours in intervals), strict=True))  # fmt: skip
        x = F.pad(x, (0, 0, self.padding, 0))  # the normalised mean, south of the first row
        tokens = self.embed_norm_layer(self._run(self.embedding, x, tables))
        for block, modulation in zip(self.blocks, modulations, strict=False):
            tokens = self._run(block, tokens, modulation)
        values = self.head(tokens, modulations[-1])
        return unpatchify(values, self.rows, self.patch, self.channels)[..., self.padding :, :]

    def _run(self, part: nn.Module, *arguments: Any) -> Tensor:
        kept = not self.recompute or not torch.is_grad_enabled()
        out: Tensor = part(*arguments) if kept else checkpoint(part, *arguments, use_reentrant=False)
        return out


class Embedding(nn.Module):
    """Patches of all variables -> tokens (B, L, D): a query that all places share attends to the variables' tokens.

    A variable's token is affine in the p p values of its patch, and so are its scores and its values in every head.
    Multiplied out, the tokens (B, V, L, D), 2.3 GB a sample in the published network, are never made: the scores are
    products of patches with (p p + 1, heads) numbers a variable, the values products of weighted patches with
    (p p + 1, D / heads). The position adds the same to the scores of all variables at a place, which a softmax does
    not see, and to the result its own value. All this is exact, and gradients go through it.
    """

    def __init__(self, channels: int, rows: int, columns: int, patch: int, width: int, heads: int) -> None:
        super().__init__()
        self.patch, self.heads = patch, heads
        self.token_embeds = nn.ModuleList(PatchEmbedding(patch, width) for _ in range(channels))
        self.channel_embed = nn.Parameter(sincos(torch.arange(channels), width)[None])
        self.channel_query = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(position_table(rows, columns, width)[None])
        self.channel_agg = Aggregation(width)

    def tables(self) -> Tables:
        """The products of weights, in the parameters' type."""
        with torch.autocast(self.pos_embed.device.type, enabled=False):
            layers: list[Any] = [part.proj for part in self.token_embeds]
            linear = torch.stack([layer.weight.flatten(1) for layer in layers])  # (V, D, p p)
            constant = torch.stack([layer.bias for layer in layers]) + self.channel_embed[0]  # (V, D)
            columns = torch.cat([linear, constant[..., None]], dim=-1)
            width, attention = columns.shape[1], self.channel_agg
            query, key, value = attention.in_proj_weight.chunk(3)
            query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
            asked = F.linear(self.channel_query[0, 0], query, query_bias) / math.sqrt(width // self.heads)
            by_head = (self.heads, width // self.heads)
            asked = torch.einsum("ae,aed->ad", asked.view(by_head), key.view(*by_head, width))
            scores = torch.einsum("ad,vdp->vpa", asked, columns)
            values = torch.einsum("aed,vdp->avpe", value.view(*by_head, width), columns)
            offset = attention.out_proj(F.linear(self.pos_embed[0], value, value_bias))
            return Tables(scores, values.flatten(1, 2), offset)

    def forward(self, x: Tensor, tables: Tables | None = None) -> Tensor:
        """(B, V, H, W) -> (B, L, D), in the parameters' type."""
        tables = self.tables() if tables is None else tables
        with torch.autocast(x.device.type, enabled=False):
            channels = x.shape[1]
            patches = patchify(x, self.patch)
            patches = patches.view(*patches.shape[:2], -1, channels).mT  # (B, L, V, p p)
            patches = torch.cat([patches, torch.ones_like(patches[..., :1])], dim=-1)
            weights = torch.einsum("blvp,vpa->ablv", patches, tables.scores).softmax(-1)
            # A head at a time: the weighted patches of all of them would be a dozen times the size of the weights.
            heads = [
                (weight[..., None] * patches).flatten(-2) @ value
                for weight, value in zip(weights.unbind(), tables.values.unbind(), strict=True)
            ]
            return F.linear(torch.cat(heads, dim=-1), self.channel_agg.out_proj.weight) + tables.offset


class PatchEmbedding(nn.Module):
    """The embedding of one variable's patches."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, patch, patch)


class Aggregation(nn.Module):
    """The projections of the attention over variables; rows of the first are those of query, key, value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)


class IntervalEmbedding(nn.Module):
    """Linear layer of one number, the interval."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(1, width)

    def forward(self, tens_of_hours: Tensor) -> Tensor:
        """(M, 1) -> (M, D)."""
        out: Tensor = self.mlp(tens_of_hours)
        return out


class StormerBlock(nn.Module):
    """Transformer block whose norms are scaled and shifted, and whose branches are weighted, by the interval."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Tokens (B, L, D) and (1 or B, 6, D): shift, scale, gate of the attention, then of the MLP -> (B, L, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
        x = x + gate1[:, None] * self.attn(modulated_norm(x, shift1, scale1))
        out: Tensor = x + gate2[:, None] * self.mlp(modulated_norm(x, shift2, scale2))
        return out


class Attention(nn.Module):
    """Each token attends to all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, D / heads)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return out


class Mlp(nn.Module):
    """Two linear layers with GELU in its tanh form."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Head(nn.Module):
    """Tokens -> values of their patches; modulated without a norm, as published."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Tokens (B, L, D) and (1 or B, 2, D): shift, scale -> (B, L, p p V)."""
        shift, scale = modulation.unbind(1)
        out: Tensor = self.linear(torch.addcmul(shift[:, None], x, 1.0 + scale[:, None]))
        return out


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm (eps 1e-6) of tokens (B, L, D), times 1 + scale, plus shift; these are (1 or B, D)."""
    width = x.shape[-1:]
    if len(scale) == 1:  # one for all samples is a norm's own weight and bias, a single pass over memory
        return F.layer_norm(x, width, 1.0 + scale[0], shift[0], 1e-6)
    return torch.addcmul(shift[:, None], F.layer_norm(x, width, eps=1e-6), 1.0 + scale[:, None])


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, V, H, W) -> (B, L, p p V): patches row by row, values by row, column and variable, the last fastest."""
    batch, channels, height, width = x.shape
    cells = x.view(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(-3).flatten(1, 2)


def unpatchify(values: Tensor, rows: int, patch: int, channels: int) -> Tensor:
    """The inverse of `patchify` for `rows` rows of patches."""
    cells = values.view(len(values), rows, values.shape[1] // rows, patch, patch, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(-2).flatten(-3, -2)


def sincos(positions: Tensor, width: int) -> Tensor:
    """(N, width) float32: sines, then cosines, of positions times 10000^(-2k / width)."""
    half = width // 2
    omega = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    phase = positions.double()[:, None] * omega
    return torch.cat([phase.sin(), phase.cos()], dim=-1).float()


def position_table(rows: int, columns: int, width: int) -> Tensor:
    """(L, width) float32: the code of the column in the first half of channels, of the row in the second."""
    by_column = sincos(torch.arange(columns), width // 2).expand(rows, -1, -1)
    by_row = sincos(torch.arange(rows), width // 2)[:, None].expand(-1, columns, -1)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1)


def initialise(net: StormerNetwork) -> None:
    """Weights for training from scratch as published, drawn from torch's current generator.

    Blocks begin as identities and the output as zero: an untrained model is persistence.
    """
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-2.0, b=2.0)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(net.embedding.channel_agg.in_proj_weight)
    parts: list[Any] = [*net.blocks, net.head]
    for layer in (*(part.adaLN_modulation[1] for part in parts), net.head.linear):
        nn.init.zeros_(layer.weight)
