"""WeatherMesh-2: encoders, latent processors and decoder on 3-D neighborhood attention.

The latent is a tensor (B, D, Y, X, C): D - 1 slots of pressure levels from the top down and one slot of the surface.
It is the residual stream of the whole model and its only path of information: a forecast is encoded once, advanced by
any sequence of processors, and decoded where a field is wanted. The processors are not told the time; the latent
carries it.

Sources: WindBorne, WeatherMesh-2 technical blog (2025); arXiv 2503.22235 and the public WeatherMesh-3 architecture for
what the blog leaves open (surface codec, constants). See the README for how this differs from the public code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wm2cli.errors import ConfigError, UsageError
from wm2cli.forcings import forcing_fields
from wm2cli.grid import Grid
from wm2cli.models.latent import Latent
from wm2cli.models.layers import Down, Norm, Residual, Rotary, Transformer, Up, sincos_code
from wm2cli.models.statistics import Statistics
from wm2cli.schema import Schema
from wm2cli.state import Normalizer, State

SOIL_TYPES = 8
"""Classes of ERA5's soil type, 0 (none) to 7."""


@dataclass(frozen=True)
class EncoderConfig:
    """One encoder: the analysis it reads.

    Args:
        name: `era5`, `gfs`, `hres`, ...
        schema: What it reads; its levels are all or some of the decoder's.
        weight: Share in the blend when several analyses are given.
        unused_channels: Surface inputs that are always zero, kept for compatibility of shapes (WeatherMesh-3: 9).
    """

    name: str
    schema: Schema
    weight: float = 1.0
    unused_channels: int = 0


@dataclass(frozen=True)
class ProcessorConfig:
    """One processor: the hours it advances the latent, and its depth in blocks."""

    hours: int
    blocks: int


@dataclass(frozen=True)
class WeatherMesh2Config:
    """The architecture.

    Args:
        encoders: One or more; all share one latent space.
        processors: Step lengths and depths.
        schema_out: What the decoder writes.
        width: Channels C of the latent.
        heads: Attention heads; width / heads channels each.
        patch: Levels, rows and columns of a token.
        window: Attention window in tokens: depth, rows, columns.
        encoder_blocks, decoder_blocks: Transformer blocks in the codecs.
        surface_widths: Channels of the surface codec's stages, fine to coarse; one stage halves rows and columns.
        codec_blocks: Residual blocks in each stage of the surface codec.
        codec_norm: `pixel` is local; `instance` takes statistics over the globe (WeatherMesh-3).
        position: `rotary` has no seam; `sincos` is WeatherMesh-3's absolute code.
        south_row: Appends the reflected south row before the surface stages (WeatherMesh-3).
        decoder_forcing: The decoder sees the forcings at its valid time beside the constants.
        shortcut: Linear paths beside the surface codec, and weights that start as the identity: an untrained model is
            persistence, and learns what changes. Not in the published models; it makes short trainings worth while.
        branch_scale: Factor on what is added to the linear paths and the residual stream. Changes within a step are a
            small part of the fields, and so should be what one update of the weights can do to them; 1 as published.
    """

    encoders: tuple[EncoderConfig, ...]
    processors: tuple[ProcessorConfig, ...]
    schema_out: Schema
    width: int
    heads: int
    patch: tuple[int, int, int]
    window: tuple[int, int, int]
    encoder_blocks: int
    decoder_blocks: int
    surface_widths: tuple[int, ...]
    codec_norm: Norm = "pixel"
    position: Literal["rotary", "sincos"] = "rotary"
    south_row: bool = False
    decoder_forcing: bool = True
    shortcut: bool = False
    branch_scale: float = 1.0
    codec_blocks: int = 2

    @property
    def inputs(self) -> dict[str, Schema]:
        """Schema of each encoder by name, the first one first."""
        return {encoder.name: encoder.schema for encoder in self.encoders}

    @property
    def steps(self) -> tuple[int, ...]:
        """Step lengths in hours, longest first."""
        return tuple(sorted((processor.hours for processor in self.processors), reverse=True))

    def nominal(self) -> Normalizer:
        """Statistics for weights that have seen no data."""
        return Normalizer.nominal(*self.inputs.values(), self.schema_out)

    def architecture(self) -> dict[str, Any]:
        """What people want to know, as plain values."""
        return {
            "width": self.width,
            "heads": self.heads,
            "patch": list(self.patch),
            "window": list(self.window),
            "encoder_blocks": self.encoder_blocks,
            "processor_blocks": {str(p.hours): p.blocks for p in self.processors},
            "decoder_blocks": self.decoder_blocks,
            "position": self.position,
        }

    def check(self, grid: Grid) -> None:
        """Refuses what cannot be built on a grid.

        Raises:
            ConfigError: Everything that does not fit, one line each.
        """
        height, width = grid.shape
        _, rows, columns = self.patch
        problems = []
        if self.width % self.heads or (self.width // self.heads) % 2:
            problems.append(f"width {self.width} is not an even number of channels for each of {self.heads} heads")
        if height % rows or width % columns:
            problems.append(f"patches of {rows} x {columns} do not divide the grid of {height} x {width}")
        if rows != columns or rows != 2 ** len(self.surface_widths):
            side = 2 ** len(self.surface_widths)
            problems.append(
                f"the surface stages make patches of {side} x {side}, the pressure patch is {rows} x {columns}"
            )
        values = math.prod(self.patch) * len(self.schema_out.pressure)
        if self.shortcut and self.width < values:
            problems.append(f"a latent of {self.width} channels cannot hold the {values} values of a patch unchanged")
        names = [encoder.name for encoder in self.encoders]
        if not names or len(set(names)) < len(names):
            problems.append(f"encoders need different names, found {names}")
        if any(encoder.weight < 0 for encoder in self.encoders) or not sum(e.weight for e in self.encoders) > 0:
            problems.append("encoder weights must not be negative and not all zero")
        hours = [processor.hours for processor in self.processors]
        if not hours or len(set(hours)) < len(hours) or min(hours) < 1:
            problems.append(f"processors need different positive step lengths, found {hours}")
        for encoder in self.encoders:
            strange = [level for level in encoder.schema.levels if level not in self.schema_out.levels]
            if strange:
                problems.append(f"encoder {encoder.name} reads levels that the decoder does not write: {strange} hPa")
        if self.codec_blocks < 1:
            problems.append(f"codec_blocks must be at least 1, found {self.codec_blocks}")
        if problems:
            raise ConfigError("this WeatherMesh-2 cannot be built", problems=problems)


class WeatherMesh2(nn.Module):
    """The model behind the `Model` protocol.

    Args:
        config: Architecture.
        grid: Grid of inputs and outputs, (H, W).
        normalizer: Statistics of every input and output channel.
        static: Static fields by name, (H, W): `orog`, `lsm`, `slt`; absent ones are zero.

    Raises:
        ConfigError: The architecture does not fit the grid.
        CheckpointError: The statistics do not fit the schemas.
    """

    paths = "longest"

    def __init__(
        self, config: WeatherMesh2Config, grid: Grid, normalizer: Normalizer, static: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        config.check(grid)
        self.inputs = config.inputs
        normalizer.check(*self.inputs.values(), config.schema_out)
        self.config, self.grid, self.normalizer = config, grid, normalizer
        self.schema_out = config.schema_out
        self.steps = config.steps
        depth = _slots(config.schema_out, config.patch[0]) + 1
        rows, columns = grid.shape[0] // config.patch[1], grid.shape[1] // config.patch[2]
        self.latent_shape = (depth, rows, columns, config.width)
        with torch.device("cpu"):  # real even when the parameters are built on the meta device
            constants = _constants(grid, static or {})
        self.register_buffer("constants", constants, persistent=False)
        self.rotary = (
            Rotary(config.width // config.heads, depth, rows, columns) if config.position == "rotary" else None
        )
        self.encoders = nn.ModuleDict(
            {encoder.name: Encoder(config, encoder, normalizer, self.latent_shape, constants.shape[0])
             for encoder in config.encoders}
        )  # fmt: skip
        self.processors = nn.ModuleDict(
            {
                str(p.hours): Transformer(p.blocks, config.width, config.heads, config.window, config.branch_scale)
                for p in config.processors
            }
        )
        self.decoder = Decoder(config, normalizer, constants.shape[0])
        initialise(self)

    constants: Tensor

    def encode(
        self, states: State | Mapping[str, State], shares: Mapping[str, float | Tensor] | None = None
    ) -> Latent:  # fmt: skip
        """The latent of one analysis, or the weighted mean of the latents of several.

        Args:
            states: A state for the first encoder, or states by encoder name; their times must agree.
            shares: Weights of the mean by encoder, instead of those of the configuration.

        Raises:
            UsageError: No such encoder, or a state of another schema, grid or time.
        """
        named = {self.config.encoders[0].name: states} if isinstance(states, State) else dict(states)
        configs = {encoder.name: encoder for encoder in self.config.encoders}
        problems = [
            f"there is no encoder '{name}'; known are {', '.join(configs)}" for name in named if name not in configs
        ]
        problems += [f"the state for {name} has another schema" for name, state in named.items()
                     if name in configs and state.schema != configs[name].schema]  # fmt: skip
        problems += [f"the state for {name} is on {state.grid.describe()}, the model on {self.grid.describe()}"
                     for name, state in named.items() if state.grid != self.grid]  # fmt: skip
        times = [state.time for state in named.values()]
        if any(not np.array_equal(time, times[0]) for time in times):
            problems.append("the states have different times")
        if not named:
            problems.append("no state was given")
        if problems:
            raise UsageError("the model cannot encode this", problems=problems)
        parts = {name: configs[name].weight if shares is None else shares[name] for name in named}
        total = sum(parts.values())
        if len(named) > 1 and not total > 0:
            raise UsageError(f"the blending weights of {', '.join(named)} are all zero")
        latent: Tensor | None = None
        for name, state in named.items():
            extra = self._extra(state.time, state.schema.forcing)
            part = self.encoders[name](state.pressure, state.surface, extra, self.rotary)
            share = parts[name] / total if len(named) > 1 else 1.0
            latent = part * share if latent is None else latent + part * share
        if latent is None:
            raise UsageError("no state was given")
        return Latent(latent, times[0])

    def advance(self, latent: Latent, hours: int) -> Latent:
        """The latent `hours` later; `hours` must be one of `steps`.

        Raises:
            UsageError: There is no processor for that step.
        """
        if str(hours) not in self.processors:
            raise UsageError(f"the model has no {hours} h step; it has {', '.join(f'{step} h' for step in self.steps)}")
        x = self.processors[str(hours)](latent.x, self.rotary)
        return Latent(x, latent.time + np.timedelta64(hours, "h"))

    def decode(self, latent: Latent) -> State:
        """The state of a latent; values beyond a variable's physical limits (q < 0, cloud > 1) are set to them."""
        return self.denormalize(*self.decode_normalized(latent), latent.time)

    def decode_normalized(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """What losses compare: (B, V, L, H, W) and (B, S, H, W) in standard deviations, without limits, float32."""
        names = self.schema_out.forcing if self.config.decoder_forcing else ()
        pressure, surface = self.decoder(latent.x, self._extra(latent.time, names), self.rotary)
        return pressure, surface

    def normalize(self, state: State) -> tuple[Tensor, Tensor]:
        """A state of the output's schema as `decode_normalized` would give it."""
        return self.decoder.statistics.normalize(state.pressure, state.surface)

    def denormalize(self, pressure: Tensor, surface: Tensor, time: NDArray[np.datetime64]) -> State:
        """The state whose `normalize` these values are, within physical limits."""
        return State(self.schema_out, self.grid, time, *self.decoder.statistics.denormalize(pressure, surface))

    def operations(self) -> dict[str, float]:
        """Floating-point operations of `encode`, `decode` and each `advance N` for one instant.

        Counted: matrix products and convolutions, two operations a multiply-add; attention over exactly its window.
        """
        depth, rows, columns, width = self.latent_shape
        keys = math.prod(min(size, axis) for size, axis in zip(self.config.window, self.latent_shape, strict=False))
        block = depth * rows * columns * (24.0 * width**2 + 4.0 * keys * width)
        patches = 2.0 * (depth - 1) * rows * columns * width * math.prod(self.config.patch)
        surface = next(iter(self.encoders.values())).get_submodule("surface")
        counted = {f"advance {p.hours}": p.blocks * block for p in self.config.processors}
        counted["encode"] = (
            self.config.encoder_blocks * block
            + patches * len(self.schema_out.pressure)
            + _convolution_operations(surface, *self.grid.shape)
        )
        decoder_rows = _convolution_operations(self.decoder.surface, rows, columns)
        counted["decode"] = (
            self.config.decoder_blocks * block
            + patches * len(self.schema_out.pressure)
            + decoder_rows
            + _convolution_operations(self.decoder.final, *self.grid.shape)
        )
        return counted

    def working_bytes(self, bytes_per_value: int) -> int:
        """Rough peak of activations in bytes for one instant, weights not counted.

        The larger of a transformer block (residual stream in float32, q k v with their gathered windows, the MLP's
        hidden layer) and of the finest stage of the surface codec beside the fields in float32.
        """
        depth, rows, columns, width = self.latent_shape
        tokens = depth * rows * columns * width
        block = tokens * (4 * 3 + bytes_per_value * 12)
        height, across = self.grid.shape
        fields = len(self.schema_out.channels) * height * across * 4
        stage = (self.config.surface_widths[0] * 5 + 2 * len(self.schema_out.surface)) * height * across
        return max(block, stage * bytes_per_value + tokens * 4) + 3 * fields

    def latent_bytes(self) -> int:
        """Bytes of one latent of one instant."""
        return 4 * math.prod(self.latent_shape)

    def _extra(self, time: NDArray[np.datetime64], names: tuple[str, ...]) -> Tensor:
        """Forcings and constants beside each other, (B, F + K, H, W)."""
        device = self.constants.device
        fields = np.stack([forcing_fields(names, instant, self.grid) for instant in time])
        constants = self.constants.expand(len(time), -1, -1, -1)
        return torch.cat([torch.from_numpy(fields).to(device), constants], dim=1)


class Encoder(nn.Module):
    """(pressure, surface, forcings and constants) in physical units -> latent (B, D, Y, X, C)."""

    def __init__(
        self, config: WeatherMesh2Config, encoder: EncoderConfig, normalizer: Normalizer,
        latent_shape: tuple[int, int, int, int], constants: int,
    ) -> None:  # fmt: skip
        super().__init__()
        schema = encoder.schema
        self.statistics = Statistics(normalizer, schema)
        self.south_row, self.unused, self.branch_scale = config.south_row, encoder.unused_channels, config.branch_scale
        every = config.schema_out.levels
        self.filled_levels = -len(every) % config.patch[0]
        # None when the encoder reads all levels, which spares a copy of the fields.
        self.level_places = None if schema.levels == every else [every.index(level) for level in schema.levels]
        self.levels = len(every)
        self.pressure = nn.Conv3d(len(schema.pressure), config.width, config.patch, stride=config.patch)
        widths = (*config.surface_widths, config.width)
        inputs = len(schema.surface) + encoder.unused_channels + len(schema.forcing) + constants
        stages: list[nn.Module] = []
        for index, (fine, coarse) in enumerate(itertools.pairwise(widths)):
            first = inputs if index == 0 else fine
            stages += [
                Residual(first if block == 0 else fine, fine, config.codec_norm) for block in range(config.codec_blocks)
            ]
            stages.append(Down(fine, coarse))
        self.surface = nn.Sequential(*stages)
        side = config.patch[1:]
        self.shortcut = nn.Conv2d(inputs, config.width, side, side, bias=False) if config.shortcut else None
        self.transformer = Transformer(
            config.encoder_blocks, config.width, config.heads, config.window, config.branch_scale
        )
        with torch.device("cpu"):
            code = sincos_code(config.width, *latent_shape[:3]) if config.position == "sincos" else None
        self.register_buffer("position", code, persistent=False)

    position: Tensor | None

    def forward(self, pressure: Tensor, surface: Tensor, extra: Tensor, rotary: Rotary | None) -> Tensor:
        pressure, surface = self.statistics.normalize(pressure, surface)
        if self.level_places is not None:  # an absent level is zero, the climatological mean
            every = pressure.new_zeros(*pressure.shape[:2], self.levels, *pressure.shape[3:])
            pressure = every.index_copy(2, torch.tensor(self.level_places, device=every.device), pressure)
        # Levels that do not fill a patch are filled up at the top, likewise with zeros.
        pressure = F.pad(pressure, (0, 0, 0, 0, self.filled_levels, 0))
        with _exact(pressure, self.shortcut):
            upper = self.pressure(pressure)  # (B, C, D-1, Y, X)
        unused = surface.new_zeros(surface.shape[0], self.unused, *surface.shape[2:])
        lower = torch.cat([surface, unused, extra], dim=1).contiguous(memory_format=torch.channels_last)
        if self.south_row:
            lower = F.pad(lower, (0, 0, 0, 1), mode="reflect")
        direct = lower
        lower = self.surface(lower)[:, :, : upper.shape[-2]]  # (B, C, Y, X)
        if self.shortcut is not None:
            with _exact(direct, self.shortcut):
                lower = self.shortcut(direct)[:, :, : upper.shape[-2]] + self.branch_scale * lower
        x = torch.cat([upper, lower.unsqueeze(2)], dim=2).permute(0, 2, 3, 4, 1).float().contiguous()
        if self.position is not None:
            x = x + self.position
        out: Tensor = self.transformer(x, rotary)
        return out


class Decoder(nn.Module):
    """Latent (B, D, Y, X, C) -> (pressure (B, V, L, H, W), surface (B, S, H, W)), normalised, float32."""

    def __init__(self, config: WeatherMesh2Config, normalizer: Normalizer, constants: int) -> None:
        super().__init__()
        schema = config.schema_out
        self.statistics = Statistics(normalizer, schema)
        self.filled_levels = -len(schema.levels) % config.patch[0]
        self.branch_scale = config.branch_scale
        self.transformer = Transformer(
            config.decoder_blocks, config.width, config.heads, config.window, config.branch_scale
        )
        self.pressure = nn.ConvTranspose3d(config.width, len(schema.pressure), config.patch, stride=config.patch)
        widths = (config.width, *reversed(config.surface_widths))
        stages: list[nn.Module] = []
        for coarse, fine in itertools.pairwise(widths):
            stages += [Residual(coarse, coarse, config.codec_norm) for _ in range(config.codec_blocks)]
            stages.append(Up(coarse, fine))
        self.surface = nn.Sequential(*stages)
        forcings = len(schema.forcing) if config.decoder_forcing else 0
        finest = config.surface_widths[0]
        self.final = nn.Sequential(
            Residual(finest + forcings + constants, finest, config.codec_norm),
            Residual(finest, len(schema.surface), config.codec_norm),
        )
        side = config.patch[1:]
        self.shortcut = (
            nn.ConvTranspose2d(config.width, len(schema.surface), side, side, bias=False) if config.shortcut else None
        )

    def forward(self, x: Tensor, extra: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
        x = self.transformer(x, rotary).permute(0, 4, 1, 2, 3)  # (B, C, D, Y, X)
        with _exact(x, self.shortcut):
            pressure = self.pressure(x[:, :, :-1])[:, :, self.filled_levels :]
        lowest = x[:, :, -1].contiguous(memory_format=torch.channels_last)
        surface = self.surface(lowest)
        surface = self.final(torch.cat([surface, extra.to(surface.dtype)], dim=1)).float()
        if self.shortcut is not None:
            with _exact(x, self.shortcut):
                surface = self.shortcut(lowest) + self.branch_scale * surface
        return pressure.float(), surface


def _exact(x: Tensor, shortcut: nn.Module | None) -> AbstractContextManager[Any]:
    """Float32 inside the block for codecs whose linear path carries the fields themselves.

    The three digits of bf16 are less than the change of a field within six hours.
    """
    return nullcontext() if shortcut is None else torch.autocast(x.device.type, enabled=False)


def _convolution_operations(stages: nn.Module, rows: int, columns: int) -> float:
    """Operations of a codec's convolutions on maps that start with these rows and columns."""
    total = 0.0
    for module in stages.modules():
        if isinstance(module, nn.Conv2d):
            if module.stride[0] == 2:
                rows, columns = rows // 2, columns // 2
            total += 2.0 * module.weight.numel() * rows * columns
        elif isinstance(module, nn.ConvTranspose2d):
            total += 2.0 * module.weight.numel() * rows * columns
            rows, columns = rows * 2, columns * 2
    return total


def _slots(schema: Schema, levels_per_patch: int) -> int:
    return math.ceil(len(schema.levels) / levels_per_patch)


def _constants(grid: Grid, static: Mapping[str, Tensor]) -> Tensor:
    """Constant inputs (4 + 1 + 8 + 1, H, W): sin lat, sin lon, cos lat, cos lon, land, soil classes, elevation.

    Elevation is divided by its maximum, soil type is one-hot (public WeatherMesh-3). Absent fields are zero.
    """
    lat = torch.deg2rad(torch.from_numpy(grid.lat.copy()))[:, None].expand(grid.shape)
    lon = torch.deg2rad(torch.from_numpy(grid.lon.copy()))[None, :].expand(grid.shape)
    zero = torch.zeros(grid.shape, dtype=torch.float64)
    elevation = static.get("orog", zero).double()
    soil = static.get("slt")
    classes = [zero if soil is None else (soil == kind).double() for kind in range(SOIL_TYPES)]
    highest = elevation.max().clamp(min=1.0)
    fields = [
        lat.sin(),
        lon.sin(),
        lat.cos(),
        lon.cos(),
        static.get("lsm", zero).double(),
        *classes,
        elevation / highest,
    ]
    return torch.stack(fields).float()


def initialise(model: WeatherMesh2) -> None:
    """Weights for training from scratch, drawn from torch's current generator.

    Linear layers of the transformers: normal of 0.02, divided by sqrt(2 N) where they write into the residual stream of
    N blocks. The layers that write the fields start small, so that an untrained model stays near the mean state.
    """
    blocks = [module for module in model.modules() if isinstance(module, Transformer)]
    with torch.no_grad():
        for stack in blocks:
            shrink = 1.0 / math.sqrt(2.0 * max(1, len(stack.blocks)))
            for name, parameter in stack.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                elif "norm" not in name:
                    writes = "proj" in name or "fc2" in name
                    scale = 0.0 if writes and model.config.shortcut else shrink if writes else 1.0
                    nn.init.normal_(parameter, std=0.02 * scale)
        nn.init.normal_(model.decoder.pressure.weight, std=0.02 / math.sqrt(model.config.width))
        last = model.decoder.final[1]
        for layer in (last.conv2, last.shortcut):
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(0.1)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if model.config.shortcut:
            _identity(model)


def _identity(model: WeatherMesh2) -> None:
    """Makes decode(encode(state)) the state itself: patches go through orthonormal columns and back through them.

    What the decoder writes and no encoder reads starts at its mean. Encoders share the columns of the fields they
    share, so that their latents mean the same from the start.
    """
    config: WeatherMesh2Config = model.config
    decoder: Any = model.decoder
    schema, width = config.schema_out, config.width
    upper = _columns(width, len(schema.pressure), config.patch)  # (C, V, levels, rows, columns)
    decoder.pressure.weight.copy_(upper)
    first = config.encoders[0].schema
    names = [*first.surface, *(f"extra{i}" for i in range(len(first.forcing) + model.constants.shape[0]))]
    known = dict(zip(names, _columns(width, len(names), config.patch[1:]).unbind(1), strict=True))
    nn.init.zeros_(decoder.pressure.bias)
    for layer in (decoder.final[1].conv2, decoder.final[1].shortcut):
        nn.init.zeros_(layer.weight)
    if decoder.shortcut is not None:
        nn.init.zeros_(decoder.shortcut.weight)
        for index, name in enumerate(schema.surface):
            if name in known:
                decoder.shortcut.weight[:, index] = known[name]
    encoders: dict[str, Any] = dict(model.encoders.items())
    for encoder, settings in zip(encoders.values(), config.encoders, strict=True):
        read = settings.schema
        for index, name in enumerate(read.pressure):
            encoder.pressure.weight[:, index] = upper[:, schema.pressure.index(name)]
        nn.init.zeros_(encoder.pressure.bias)
        last = encoder.surface[-1].conv
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.zeros_(encoder.shortcut.weight)
        skipped = len(read.surface) + settings.unused_channels
        for index, name in enumerate(read.surface):
            if name in known:
                encoder.shortcut.weight[:, index] = known[name]
        for index in range(len(read.forcing) + model.constants.shape[0]):
            if f"extra{index}" in known and read.forcing == first.forcing:
                encoder.shortcut.weight[:, skipped + index] = known[f"extra{index}"]


def _columns(width: int, fields: int, patch: tuple[int, ...]) -> Tensor:
    """(C, fields, *patch): orthonormal columns where the latent is wide enough for all of them."""
    values = fields * math.prod(patch)
    if width >= values:
        basis: Tensor = torch.linalg.qr(torch.randn(width, values))[0]
    else:  # only inputs that are never read back can be too many
        basis = torch.randn(width, values) / math.sqrt(width)
    return basis.reshape(width, fields, *patch)
