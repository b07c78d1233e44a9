"""What training minimises: weighted differences of normalised fields, rolled out in latent space; or of increments.

Sources: the public WeatherMesh-3 loss (weights of latitude, variables and leads; latent regulariser); Stormer,
arXiv 2312.03876, equations 1 to 4 (increments over random intervals, weights of pressure levels, several steps).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wm2cli.errors import ConfigError, DataError
from wm2cli.grid import Grid
from wm2cli.models import Latent, Model
from wm2cli.models.layers import Transformer
from wm2cli.models.stormer import Stormer
from wm2cli.models.stormer_network import StormerNetwork
from wm2cli.rollout import step_plan
from wm2cli.schema import Schema
from wm2cli.state import Normalizer, State
from wm2cli.training.recipes import LossConfig
from wm2cli.training.samples import Batch

Keep = Literal["none", "block", "step"]

POLAR_CAP = 12.5
"""Degrees from a pole within which rows get some weight beside their area (public WeatherMesh-3: 50 rows)."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of a loss, each set with mean or sum one.

    Args:
        rows: (H, 1), mean one.
        pressure: (V, L, 1, 1); with `surface` the sum is one, unless `LossConfig.weight_norm` divides by the count.
        surface: (S, 1, 1).
        leads: By lead time.
        lead_zero, latent: See `LossConfig`.
    """

    rows: Tensor
    pressure: Tensor
    surface: Tensor
    leads: Mapping[int, float]
    lead_zero: float
    latent: float

    def of_lead(self, lead: int) -> float:
        """Weight of a lead time."""
        return self.lead_zero if lead == 0 else self.leads.get(lead, 1.0)


def row_weights(grid: Grid, poles: bool = True) -> Tensor:
    """(H, 1): area of the rows, and near the poles 0.1 (1 - d / 12.5)^2 with d degrees from the pole; mean one.

    At the pole itself the area vanishes, and without the second term nothing would hold the fields there.

    Args:
        grid: Grid of shape (H, W).
        poles: Whether there is that second term; Stormer has none.
    """
    polar = np.clip(1.0 - (90.0 - np.abs(grid.lat)) / POLAR_CAP, 0.0, None) ** 2 if poles else 0.0
    area = grid.area_weights()
    weights = area / area.max() + 0.1 * polar
    return torch.from_numpy(weights / weights.mean()).float()[:, None]


def channel_weights(config: LossConfig, schema: Schema, scale: Tensor | None = None) -> Tensor:
    """(C,) float64 weights of channels: what a loss says of variables and of levels.

    Args:
        config: The loss.
        schema: C channels.
        scale: (C,) factors in which the channels are measured; one when None.

    Raises:
        ConfigError: All weights are zero.
    """
    channels = schema.channels
    values = torch.ones(len(channels), dtype=torch.float64) if scale is None else scale.clone()
    if config.channels == "pressure":
        levels = list(schema.levels) * len(schema.pressure)
        values[: len(levels)] *= torch.tensor(levels, dtype=torch.float64) / float(sum(schema.levels))
    names = [*(name for name in schema.pressure for _ in schema.levels), *schema.surface]
    for index, (name, channel) in enumerate(zip(names, channels, strict=True)):
        values[index] *= config.variables.get(channel, config.variables.get(name, 1.0))
    if not values.sum() > 0:
        raise ConfigError("loss.variables takes every channel of the model out of the loss")
    return values / (values.sum() if config.weight_norm == "sum" else len(channels))


def make_weights(
    config: LossConfig, schema: Schema, grid: Grid, normalizer: Normalizer, leads: Mapping[int, float],
    device: torch.device,
) -> Weights:  # fmt: skip
    """The weights of a loss.

    Args:
        config: The recipe's.
        schema: Of the output.
        grid: Of the output.
        normalizer: With standard deviations of differences where channels are weighted by them.
        leads: Weight by lead time, as `persistence_errors` makes them.
        device: Where the loss is computed.

    Raises:
        DataError: The statistics that the weights need are not there.
        ConfigError: All weights are zero.
    """
    channels = schema.channels
    scale = torch.ones(len(channels), dtype=torch.float64)
    if config.channels == "difference" and config.kind != "increments":
        steps = sorted(normalizer.difference_std)
        if not steps:
            raise DataError("the statistics hold no differences, which weight the channels",
                            hint="make the store again with `wm2 preprocess`, or set loss.channels=equal")  # fmt: skip
        table = normalizer.difference_std[6 if 6 in steps else steps[0]]
        still = [channel for channel in channels if not table[channel] > 0]
        if still:
            raise DataError("these channels never change, so that their change is no measure", problems=still,
                            hint="set loss.channels=equal, or make the store again without them")  # fmt: skip
        for index, channel in enumerate(channels):
            scale[index] = normalizer.std[channel] / table[channel]
        if config.kind == "mse":
            scale = scale**2
    values = channel_weights(config, schema, scale).float().to(device)
    count = len(schema.pressure) * len(schema.levels)
    return Weights(
        rows=row_weights(grid, poles=config.kind != "increments").to(device),
        pressure=values[:count].view(len(schema.pressure), len(schema.levels), 1, 1),
        surface=values[count:].view(-1, 1, 1),
        leads=dict(leads),
        lead_zero=config.lead_zero,
        latent=config.latent,
    )


def difference(predicted: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], weights: Weights, kind: str) -> Tensor:
    """Weighted L1 or MSE of normalised fields: a mean over samples and points, a weighted sum over channels."""
    total = predicted[0].new_zeros(())
    for made, wanted, channel in zip(predicted, truth, (weights.pressure, weights.surface), strict=True):
        if made.numel():
            error = made.float() - wanted
            error = error.abs() if kind == "l1" else error.square()
            rows, samples, columns = weights.rows, made.shape[0], made.shape[-1]
            by_channel = (error * rows).sum(dim=(0, -2, -1), keepdim=True)[0]
            total = total + (by_channel * channel).sum() / (samples * columns * rows.shape[0])
    return total


def keep(model: nn.Module, policy: Keep) -> None:
    """Sets what the transformers of a model keep for the backward pass."""
    for module in model.modules():
        if isinstance(module, (Transformer, StormerNetwork)):
            module.recompute = policy != "none"


def rollout_loss(
    model: Any, batch: Batch, weights: Weights, kind: str, policy: Keep = "none", offload: bool = False,
    shares: Mapping[str, Tensor] | None = None, tail: int | None = None,
) -> tuple[Tensor, dict[int, float]]:  # fmt: skip
    """The loss of some samples, and its part for each lead time.

    Encodes once, advances along the tree of steps that reaches all lead times, decodes at these.

    Args:
        model: In training mode or not; `keep` must have been called with the same policy.
        batch: Samples on the model's device.
        weights: See there.
        kind: `l1` or `mse`.
        policy: `none` keeps all activations; `block` the input of each block; `step` (nested) the fields, the latent
            before each step, and the inputs of one step's blocks at a time. The gradients are the same to the bit.
        offload: What is kept waits in host memory.
        shares: Weights of several encoders' latents, where these are trained.
        tail: Hours before the last lead time through which gradients flow; all when None.

    Returns:
        Scalar loss, and the unweighted difference by lead time.
    """
    leads = tuple(batch.targets)
    cut = 0 if tail is None else max(leads) - tail
    parts: dict[int, float] = {}
    squares: list[Tensor] = []
    losses: list[Tensor] = []
    outer = _offloaded(next(iter(batch.inputs.values()))) if offload else nullcontext()

    def judge(x: Tensor, latent: Latent, target: State) -> Tensor:
        truth = model.normalize(target)
        return difference(model.decode_normalized(Latent(x, latent.time)), truth, weights, kind)

    def visit(latent: Latent, lead: int) -> None:
        if lead not in batch.targets:
            return
        target = batch.targets[lead]
        if policy == "none":
            found = judge(latent.x, latent, target)
        else:
            found = checkpoint(judge, latent.x, latent, target, use_reentrant=False)
        parts[lead] = float(found.detach())
        losses.append(found * weights.of_lead(lead))
        squares.append(latent.x.float().square().mean())

    def follow(latent: Latent, lead: int, tree: Mapping[int, Any]) -> None:
        for hours in sorted(tree):
            if lead + hours <= cut:
                with torch.no_grad():
                    reached = model.advance(latent, hours)
                follow(reached, lead + hours, tree[hours])
                continue

            def step(x: Tensor, time: Any = latent.time, hours: int = hours) -> Tensor:
                advanced: Tensor = model.advance(Latent(x, time), hours).x
                return advanced

            x = checkpoint(step, latent.x, use_reentrant=False) if policy == "step" else step(latent.x)
            later = Latent(x, latent.time + np.timedelta64(hours, "h"))
            visit(later, lead + hours)
            follow(later, lead + hours, tree[hours])

    def begin() -> Tensor:
        encoded: Tensor = (model.encode(batch.inputs) if shares is None else model.encode(batch.inputs, shares)).x
        return encoded

    with outer:
        # The maps of the surface codec at full resolution are larger than many latents.
        with torch.set_grad_enabled(torch.is_grad_enabled() and cut <= 0):
            x = checkpoint(begin, use_reentrant=False) if policy == "step" and cut <= 0 else begin()
        start = Latent(x, next(iter(batch.inputs.values())).time)
        if 0 not in batch.targets:
            squares.append(start.x.float().square().mean())
        visit(start, 0)
        follow(start, 0, step_plan(model.steps, [lead for lead in leads if lead > 0]))
    # Not divided by the sum of the weights: a step of long lead times would outweigh many of short ones.
    loss = torch.stack(losses).mean()
    if weights.latent > 0:
        loss = loss + weights.latent * torch.stack(squares).mean()
    return loss, parts


def increment_loss(
    model: Stormer, batch: Batch, weights: Weights, policy: Keep = "none", offload: bool = False
) -> tuple[Tensor, dict[int, float]]:
    """The loss of the increments that a Stormer predicts in some steps, and its part for each step.

    The steps follow one another from the initial state, through whose sums of increments gradients flow. What each is
    compared with is the increment between two true states, not the way from where the model is to the truth.

    Args:
        model: As for `rollout_loss`; `keep` must have been called with the same policy.
        batch: Samples with intervals, of `Samples.read_steps`, on the model's device.
        weights: See there.
        policy: See `rollout_loss`; `step` keeps the state before each step.
        offload: What is kept waits in host memory.

    Returns:
        Scalar loss, and the weighted mean square by number of the step, whose mean it is.
    """
    if batch.intervals is None:
        raise ValueError("increments need samples with intervals")
    hours = batch.intervals.tolist()
    (initial,) = batch.inputs.values()
    x = model.arrange(*model.normalize(initial))
    scale = model.scale(hours, len(x))
    before = model.arrange(*model.normalize(batch.targets[0]))
    losses: list[Tensor] = []

    def step(x: Tensor) -> Tensor:
        return model.increment(x, hours)

    with _offloaded(initial) if offload else nullcontext():
        for number in range(1, len(batch.targets)):
            made = checkpoint(step, x, use_reentrant=False) if policy == "step" else step(x)
            after = model.arrange(*model.normalize(batch.targets[number]))
            losses.append(difference(model.restore(made), model.restore((after - before) / scale), weights, "mse"))
            before, x = after, model.update(x, made, hours)
    return torch.stack(losses).mean(), {number: float(loss.detach()) for number, loss in enumerate(losses, 1)}


def _offloaded(state: State) -> AbstractContextManager[Any]:
    """Lets what is kept for the backward pass wait in host memory."""
    return torch.autograd.graph.save_on_cpu(pin_memory=state.pressure.is_cuda)


def persistence_errors(
    read: Callable[[int, tuple[int, ...]], Batch], samples: int, model: Model, weights: Weights, kind: str,
    leads: Sequence[int],
) -> dict[int, float]:  # fmt: skip
    """The loss of persistence at each lead time, for all variables that are written.

    Args:
        read: Gives the truth of one of the samples at lead times. One field after the other: all lead times of a long
            horizon together may not fit into memory.
        samples: Their number.
        model: For its normalisation.
        weights: Of the loss.
        kind: `l1` or `mse`.
        leads: Hours.
    """
    sums = dict.fromkeys(leads, 0.0)
    for place in range(samples):
        first = model.normalize(read(place, (0,)).targets[0])
        for lead in leads:
            later = model.normalize(read(place, (lead,)).targets[lead])
            sums[lead] += float(difference(first, later, weights, kind))
    return {lead: total / samples for lead, total in sums.items()}
