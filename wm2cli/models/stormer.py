"""Stormer: a vision transformer that predicts the change of the weather over 6, 12 or 24 hours.

The network (`wm2cli.models.stormer_network`) is the published one, with rows from south to north and channels in an
order of its own. States are put into that order at the model's doors: `encode` (by `arrange`) and `decode_normalized`.
What comes out is the change over the interval in standard deviations of such changes. The latent is the normalised
state in the network's order; it accumulates the changes.

Source: Nguyen et al., Scaling transformer neural networks for skillful and reliable medium-range weather forecasting
(NeurIPS 2024, arXiv 2312.03876).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wm2cli.errors import CheckpointError, ConfigError, UsageError
from wm2cli.grid import Grid
from wm2cli.models.latent import Latent
from wm2cli.models.statistics import Statistics
from wm2cli.models.stormer_network import Prepared, StormerNetwork
from wm2cli.schema import LEVELS_13, Schema, channel_label
from wm2cli.state import Normalizer, State

ANALYSIS = "era5"
"""Name of the only analysis it reads."""

SCHEMA = Schema(("z", "t", "u", "v", "q"), LEVELS_13, ("t2m", "u10", "v10", "msl"))
"""What the published networks read and write."""

CHANNELS = ("t2m", "u10", "v10", "msl", *(channel_label(name, level) for name in "zuvtq" for level in LEVELS_13))
"""Channels in the order of the published networks."""


@dataclass(frozen=True)
class StormerConfig:
    """The architecture.

    Args:
        schema: What it reads and writes, in the order of our states.
        channels: The same channels in the network's order.
        patch: Rows and columns of a token.
        width: Channels D of a token.
        depth: Transformer blocks.
        heads: Attention heads, of the blocks and of the aggregation of variables.
        intervals: Step lengths in hours.
        mlp_ratio: Width of the blocks' hidden layers over that of tokens.
    """

    schema: Schema
    channels: tuple[str, ...]
    patch: int
    width: int
    depth: int
    heads: int
    intervals: tuple[int, ...] = (6, 12, 24)
    mlp_ratio: float = 4.0

    @property
    def schema_out(self) -> Schema:
        """What it writes is what it reads."""
        return self.schema

    @property
    def inputs(self) -> dict[str, Schema]:
        """Schema of its one analysis, by name."""
        return {ANALYSIS: self.schema}

    @property
    def steps(self) -> tuple[int, ...]:
        """Step lengths in hours, longest first."""
        return tuple(sorted(self.intervals, reverse=True))

    def nominal(self) -> Normalizer:
        """Statistics for weights that have seen no data: those of the published networks.

        Raises:
            ConfigError: These do not hold all channels or intervals.
        """
        whole = published_statistics()
        problems = [f"there are no published statistics for {name}" for name in self.channels if name not in whole.mean]
        problems += [f"there are no published statistics of changes over {hours} h" for hours in self.intervals
                     if hours not in whole.difference_std]  # fmt: skip
        if problems:
            raise ConfigError("this Stormer has no statistics without data", problems=problems)
        pick = self.schema.channels
        return Normalizer(
            {name: whole.mean[name] for name in pick}, {name: whole.std[name] for name in pick},
            {hours: {name: whole.difference_std[hours][name] for name in pick} for hours in sorted(self.intervals)},
        )  # fmt: skip

    def architecture(self) -> dict[str, Any]:
        """What people want to know, as plain values."""
        return {
            "width": self.width,
            "heads": self.heads,
            "patch": [self.patch, self.patch],
            "blocks": self.depth,
            "mlp_ratio": self.mlp_ratio,
        }

    def check(self, grid: Grid) -> None:
        """Refuses what cannot be built on a grid.

        Raises:
            ConfigError: Everything that does not fit, one line each.
        """
        sizes = {name: getattr(self, name) for name in ("patch", "width", "depth", "heads")}
        problems = [f"{name} must be at least 1, found {size}" for name, size in sizes.items() if size < 1]
        if self.heads >= 1 and self.width % self.heads:
            problems.append(f"width {self.width} is not a number of channels for each of {self.heads} heads")
        if self.width % 4:
            problems.append(f"width {self.width} is no multiple of 4, as the position code of two axes needs")
        if not self.mlp_ratio > 0 or not (self.width * self.mlp_ratio).is_integer():
            problems.append(f"an mlp_ratio of {self.mlp_ratio} gives no hidden layer for width {self.width}")
        if self.patch >= 1 and grid.shape[1] % self.patch:
            problems.append(f"patches of {self.patch} columns do not divide the grid of {grid.shape[1]} columns")
        if not self.intervals or len(set(self.intervals)) < len(self.intervals) or min(self.intervals) < 1:
            problems.append(f"intervals must be different positive hours, found {list(self.intervals)}")
        have = self.schema.channels
        if not have:
            problems.append("the schema has no channels")
        problems += [f"channel {name} is not in the schema" for name in self.channels if name not in have]
        problems += [f"channel {name} of the schema has no place in the network" for name in have
                     if name not in self.channels]  # fmt: skip
        problems += [f"channel {name} is given twice" for name in dict.fromkeys(self.channels)
                     if self.channels.count(name) > 1]  # fmt: skip
        unread = (*self.schema.static, *self.schema.forcing)
        problems += [f"{name} is in the schema, but the network reads no static fields and no forcings"
                     for name in unread]  # fmt: skip
        if problems:
            raise ConfigError("this Stormer cannot be built", problems=problems)


class Stormer(nn.Module):
    """The model behind the `Model` protocol.

    State, normalisation and accumulation are float32 whatever the precision of the network: a change within six hours
    is less than the three digits of bf16.

    Args:
        config: Architecture.
        grid: Grid of inputs and outputs, (H, W); rows that do not fill a patch are padded in the south.
        normalizer: Statistics of every channel, and of its change over every interval.
        static: Kept in checkpoints, where analyses are completed from them; the network reads none.

    Raises:
        ConfigError: The architecture does not fit the grid.
        CheckpointError: The statistics do not fit the schema, or lack changes over an interval.
    """

    paths = "homogeneous"

    def __init__(
        self, config: StormerConfig, grid: Grid, normalizer: Normalizer, static: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        config.check(grid)
        normalizer.check(config.schema)
        self.config, self.grid, self.normalizer = config, grid, normalizer
        self.inputs, self.schema_out, self.steps = config.inputs, config.schema, config.steps
        self.statistics = Statistics(normalizer, config.schema)
        have = config.schema.channels
        with torch.device("cpu"):  # real even when the parameters are built on the meta device
            scales = _change_scales(normalizer, config)
            places = torch.tensor([have.index(name) for name in config.channels])
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("returns", places.argsort(), persistent=False)
        self.net = StormerNetwork(
            len(have), grid.shape, config.patch, config.width, config.depth, config.heads, config.mlp_ratio
        )

    scales: Tensor
    places: Tensor
    returns: Tensor

    def encode(self, states: State | Mapping[str, State]) -> Latent:
        """The normalised state as a latent.

        Without gradients, the latent also carries what follows from the weights alone, for all steps of the forecast.

        Raises:
            UsageError: No such analysis, or a state of another schema or grid.
        """
        named = {ANALYSIS: states} if isinstance(states, State) else dict(states)
        problems = [f"there is no encoder '{name}'; the model reads {ANALYSIS}" for name in named if name != ANALYSIS]
        problems += [f"the state for {name} has another schema" for name, state in named.items()
                     if state.schema.channels != self.schema_out.channels]  # fmt: skip
        problems += [f"the state for {name} is on {state.grid.describe()}, the model on {self.grid.describe()}"
                     for name, state in named.items() if state.grid != self.grid]  # fmt: skip
        if not named:
            problems.append("no state was given")
        if problems:
            raise UsageError("the model cannot encode this", problems=problems)
        state = named[ANALYSIS]
        kept = None if torch.is_grad_enabled() else self.net.prepare(self.steps)
        return Latent(self.arrange(*self.normalize(state)), state.time, kept)

    def advance(self, latent: Latent, hours: int) -> Latent:
        """The latent `hours` later; `hours` must be one of `steps`.

        Raises:
            UsageError: The model has no such step.
        """
        kept = None if torch.is_grad_enabled() else latent.kept
        x = self.update(latent.x, self.increment(latent.x, hours, kept), hours)
        return Latent(x, latent.time + np.timedelta64(hours, "h"), latent.kept)

    def decode(self, latent: Latent) -> State:
        """The state of a latent; values beyond a variable's physical limits (q < 0) are set to them."""
        return self.denormalize(*self.decode_normalized(latent), latent.time)

    def decode_normalized(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """(B, V, L, H, W) and (B, S, H, W) in standard deviations, without limits, float32."""
        return self.restore(latent.x)

    def normalize(self, state: State) -> tuple[Tensor, Tensor]:
        """A state as `decode_normalized` would give it."""
        return self.statistics.normalize(state.pressure, state.surface)

    def denormalize(self, pressure: Tensor, surface: Tensor, time: NDArray[np.datetime64]) -> State:
        """The state whose `normalize` these values are, within physical limits."""
        return State(self.schema_out, self.grid, time, *self.statistics.denormalize(pressure, surface))

    def arrange(self, pressure: Tensor, surface: Tensor) -> Tensor:
        """What `normalize` gives in the network's order, rows from south to north: (B, C, H, W)."""
        return torch.cat([pressure.flatten(1, 2), surface], dim=1).index_select(1, self.places).flip(-2)

    def restore(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `arrange`, for anything with the network's channels: (B, V, L, H, W) and (B, S, H, W)."""
        levels = (len(self.schema_out.pressure), len(self.schema_out.levels))
        every = x.index_select(1, self.returns).flip(-2)
        count = math.prod(levels)
        return every[:, :count].reshape(-1, *levels, *self.grid.shape), every[:, count:]

    def increment(self, x: Tensor, hours: int | Sequence[int] | Tensor, kept: Prepared | None = None) -> Tensor:
        """The network's output: the change of normalised states in standard deviations of such changes.

        Args:
            x: (B, C, H, W) float32 in the network's order, as in a latent.
            hours: Interval, one for all samples or one for each.
            kept: Of `StormerNetwork.prepare`; gradients do not reach what is in it.

        Returns:
            (B, C, H, W) float32, with gradients where they are wanted.

        Raises:
            UsageError: An interval that is not one of `steps`, or not one a sample.
        """
        change: Tensor = self.net(x, self._intervals(hours, x.shape[0]), kept)
        return change.to(x.dtype)

    def update(self, x: Tensor, increment: Tensor, hours: int | Sequence[int] | Tensor) -> Tensor:
        """Normalised states (B, C, H, W) after an increment over an interval (one, or one a sample)."""
        return x + increment * self.scale(hours, x.shape[0])

    def scale(self, hours: int | Sequence[int] | Tensor, batch: int) -> Tensor:
        """(1 or B, C, 1, 1): standard deviation of changes over an interval as a share of that of the values.

        The increment between two true states is `(later - earlier) / scale`, both normalised.
        """
        rows = [self.steps.index(step) for step in self._intervals(hours, batch)]
        return self.scales[torch.tensor(rows, device=self.scales.device)][..., None, None]

    def operations(self) -> dict[str, float]:
        """Floating-point operations of `encode`, `decode` and each `advance N` for one instant.

        Counted: matrix products, two operations a multiply-add. `encode` is what is worked out once for a forecast.
        """
        net, width = self.net, float(self.config.width)
        places, values = net.tokens, net.channels * (self.config.patch**2 + 1.0)
        block = 4.0 * width**2 + 2.0 * self.config.mlp_ratio * width**2 + 2.0 * places * width
        embedding = values * (width + self.config.heads) + width**2
        head = net.channels * self.config.patch**2 * width
        step = 2.0 * places * (self.config.depth * block + embedding + head)
        once = 4.0 * places * width**2 + 2.0 * width**2 * values
        once += 2.0 * len(self.steps) * (6 * self.config.depth + 2) * width**2
        return {"encode": once, "decode": 0.0, **{f"advance {hours}": step for hours in self.steps}}

    def working_bytes(self, bytes_per_value: int) -> int:
        """Rough peak of activations in bytes for one instant, weights not counted.

        The larger of a transformer block (residual stream and its norm in float32, the hidden layer or q k v) and of
        the aggregation of variables (weights of all heads and the weighted patches of one), beside the position's
        share in the tokens and three states in float32.
        """
        net, config = self.net, self.config
        tokens = net.tokens * config.width
        block = tokens * (4 * 3 + bytes_per_value * max(5, int(2 * config.mlp_ratio)))
        values = net.tokens * net.channels * 4
        aggregation = values * (3 * config.heads + 3 * (config.patch**2 + 1)) + 4 * 2 * tokens
        fields = net.channels * math.prod(self.grid.shape) * 4
        return int(max(block, aggregation) + 4 * tokens + 3 * fields)

    def latent_bytes(self) -> int:
        """Bytes of one latent of one instant: a normalised state."""
        return 4 * self.net.channels * math.prod(self.grid.shape)

    def _intervals(self, hours: int | Sequence[int] | Tensor, batch: int) -> tuple[int, ...]:
        """One interval where all samples have the same, else one a sample."""
        found = (hours,) if isinstance(hours, int) else tuple(int(step) for step in hours)
        unknown = [f"{step} h" for step in dict.fromkeys(found) if step not in self.steps]
        if unknown:
            have = ", ".join(f"{step} h" for step in self.steps)
            raise UsageError(f"the model has no {', '.join(unknown)} step; it has {have}")
        if not isinstance(hours, int) and len(found) != batch:
            raise UsageError(f"{len(found)} intervals were given for {batch} samples")
        return found[:1] if len(set(found)) == 1 else found


def published_statistics() -> Normalizer:
    """Statistics of the published networks: ERA5 of 1979 to 2018 at 1.40625 degrees, in their channel order."""
    lines = files("wm2cli.models").joinpath("stormer_statistics.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))

    def column(name: str) -> dict[str, float]:
        return {row["channel"]: float(row[name]) for row in rows}

    return Normalizer(
        column("mean"), column("std"), {hours: column(f"difference_std_{hours}h") for hours in (6, 12, 24)}
    )


def _change_scales(normalizer: Normalizer, config: StormerConfig) -> Tensor:
    """(I, C) standard deviations of changes over those of values, in the order of `steps` and of the network."""
    tables = normalizer.difference_std
    problems = [f"no statistics of changes over {hours} h" for hours in config.steps if hours not in tables]
    problems += [
        f"no positive standard deviation of changes of {name} over {hours} h"
        for hours in config.steps if hours in tables
        for name in config.channels if not tables[hours].get(name, 0.0) > 0
    ]  # fmt: skip
    if problems:
        raise CheckpointError("the statistics do not serve a Stormer's intervals", problems=problems,
                              hint="`wm2 preprocess` gives those of 6, 12 and 24 h for 6-hourly data")  # fmt: skip
    rows = [[tables[hours][name] / normalizer.std[name] for name in config.channels] for hours in config.steps]
    return torch.tensor(rows, dtype=torch.float64).float()
