"""Building blocks of WeatherMesh: the surface codec's residual stages and the transformer block.

Shapes: maps are (B, C, H, W); the latent is (B, D, Y, X, C) with D depth (top of the atmosphere first, the surface
last), Y rows, X columns. Longitude is periodic everywhere, the poles reflect in convolutions and bump in attention.
Source: WindBorne's WeatherMesh-2 blog and the public WeatherMesh-3 architecture.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wm2cli.models.attention import neighborhood_attention

Norm = Literal["pixel", "instance"]


class PixelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel of (B, C, H, W).

    Unlike statistics over the globe it keeps the codec local: a pixel's value depends on its surroundings only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # Maps are stored channels-last, so the permutation is a view and the reduction runs over contiguous memory.
        by_pixel: Tensor = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-5)
        return by_pixel.permute(0, 3, 1, 2)


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """A normalisation of (B, C, H, W) maps with one scale and shift a channel."""
    if kind == "instance":
        return nn.InstanceNorm2d(channels, eps=1e-5, affine=True)
    return PixelNorm(channels)


def pad_globe(x: Tensor) -> Tensor:
    """One more row and column on each side of (B, C, H, W): reflected at the poles, periodic in longitude."""
    return F.pad(F.pad(x, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1), mode="reflect")


class Residual(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions: (B, c_in, H, W) -> (B, c_out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3)
        self.norm2 = make_norm(norm, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(pad_globe(F.silu(self.norm1(x))))
        y = self.conv2(pad_globe(F.silu(self.norm2(y))))
        shortcut: Tensor = self.shortcut(x)
        return shortcut + y


class Down(nn.Module):
    """Halves rows and columns: (B, c_in, H, W) -> (B, c_out, ceil(H / 2), W / 2)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(pad_globe(x))
        return out


class Up(nn.Module):
    """Doubles rows and columns: (B, c_in, H, W) -> (B, c_out, 2 H, 2 W).

    The transposed convolution makes one column more than the globe has; that column lies on the first one and is added
    to it, which makes the operation exactly periodic.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)[:, :, 1:]  # (B, C, 2H, 2W + 1)
        return torch.cat([y[..., 1:-1], y[..., -1:] + y[..., :1]], dim=-1)


class Rotary(nn.Module):
    """Rotary position code of a (D, Y, X) token grid, split over depth, rows and columns.

    A quarter of the channel pairs goes to depth, the rest in halves to rows and columns. Wavelengths are geometric from
    4 to 64 tokens, the range that offsets within a window can tell apart. Along longitude each wavelength is rounded so
    that a whole number of them goes round the globe: the code has no seam, and scores depend on relative longitude
    alone.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, depth: int, rows: int, columns: int) -> None:
        super().__init__()
        with torch.device("cpu"):
            phase = _phases(head_dim // 2, depth, rows, columns)  # (D, Y, X, head_dim / 2)
        self.register_buffer("cos", phase.cos().float()[..., None, :], persistent=False)
        self.register_buffer("sin", phase.sin().float()[..., None, :], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotates (B, D, Y, X, heads, head_dim); the pair of channel i is channel i + head_dim / 2."""
        first, second = x.chunk(2, dim=-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _phases(pairs: int, depth: int, rows: int, columns: int) -> Tensor:
    """(D, Y, X, pairs) rotation angles in radians, float64."""
    depth_pairs = pairs // 4
    row_pairs = (pairs - depth_pairs) // 2
    column_pairs = pairs - depth_pairs - row_pairs
    turns = (columns / _wavelengths(column_pairs)).round().clamp(1, max(1, columns // 2))
    by_depth = torch.arange(depth)[:, None] * (2 * math.pi / _wavelengths(depth_pairs))
    by_row = torch.arange(rows)[:, None] * (2 * math.pi / _wavelengths(row_pairs))
    # Turns times column is an integer: taken modulo the columns, the phase closes round the globe exactly.
    by_column = 2 * math.pi * ((torch.arange(columns)[:, None] * turns) % columns) / columns
    shape = (depth, rows, columns, -1)
    return torch.cat(
        [by_depth[:, None, None].expand(shape), by_row[:, None].expand(shape), by_column.expand(shape)], dim=-1
    )


def _wavelengths(count: int) -> Tensor:
    if count <= 1:
        return torch.full((count,), 16.0, dtype=torch.float64)
    return 4.0 * 16.0 ** (torch.arange(count, dtype=torch.float64) / (count - 1))


def sincos_code(channels: int, depth: int, rows: int, columns: int) -> Tensor:
    """Absolute position code (D, Y, X, C) of the public WeatherMesh-3: sines and cosines of column, row, slot.

    With f = C // 6 frequencies 10000^(-i/(f-1)); the remaining channels are zero. It has a seam at 0 degrees east.
    """
    count = channels // 6
    frequency = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / (count - 1))
    parts = []
    for size, place in ((columns, (1, 1, columns, -1)), (rows, (1, rows, 1, -1)), (depth, (depth, 1, 1, -1))):
        angle = torch.arange(size, dtype=torch.float64)[:, None] * frequency
        parts += [part.float().view(place).expand(depth, rows, columns, -1) for part in (angle.sin(), angle.cos())]
    code = torch.cat(parts, dim=-1)
    return F.pad(code, (0, channels - code.shape[-1]))


class Block(nn.Module):
    """Transformer block on the latent: x + s attention(norm(x)), then x + s mlp(norm(x)), with s = 1 as published.

    Neighborhood attention over (depth, rows, columns) with natten's edge rule at the poles and at the top and bottom,
    periodic in longitude. LayerNorm eps 1e-5, MLP of four times the width with exact GELU, biases everywhere.
    """

    def __init__(self, width: int, heads: int, window: tuple[int, int, int], branch_scale: float = 1.0) -> None:
        super().__init__()
        self.heads, self.window, self.branch_scale = heads, window, branch_scale
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """(B, D, Y, X, C) -> (B, D, Y, X, C)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # (B, D, Y, X, heads, dim)
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        attended = self.proj(neighborhood_attention(q, k, v, self.window).flatten(-2))
        x = torch.add(x, attended, alpha=self.branch_scale)
        return torch.add(x, self.fc2(F.gelu(self.fc1(self.norm2(x)))), alpha=self.branch_scale)


class Transformer(nn.Module):
    """A stack of blocks; no norm at the end, the latent is the residual stream of the whole model."""

    def __init__(
        self, blocks: int, width: int, heads: int, window: tuple[int, int, int], branch_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, window, branch_scale) for _ in range(blocks))
        self.recompute = False
        """Whether training keeps only the input of each block, and computes the rest again when it is needed."""

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """(B, D, Y, X, C) -> (B, D, Y, X, C)."""
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, rotary, use_reentrant=False)
            else:
                x = block(x, rotary)
        return x
