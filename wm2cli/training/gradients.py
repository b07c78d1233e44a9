"""Gradients of a step: its samples in several passes, added up as a fixed tree.

The order of additions decides about the last bits of a sum of floats. The tree here is the same for one rank that makes
all passes and for two ranks that make half of them each, so that both arrive at the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wm2cli.state import State
from wm2cli.training.samples import Batch

Gradients = list[Tensor | None]
"""By parameter; None where nothing of the loss depends on it."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over the passes of a step.

    Args:
        gradients: By parameter.
        loss: Of the loss.
        leads: Of its unweighted parts by lead time.
    """

    gradients: Gradients
    loss: float
    leads: Mapping[int, float]


def gradient_sums(
    batch: Batch, micro: int, parameters: Sequence[nn.Parameter],
    loss_of: Callable[[Batch], tuple[Tensor, Mapping[int, float]]],
) -> Sums:  # fmt: skip
    """Gradients of the samples of a batch, a pass for each `micro` of them.

    Args:
        batch: Samples of this rank.
        micro: Samples in a pass; divides them.
        parameters: What gradients are wanted of.
        loss_of: The loss of a pass, and its parts by lead time.
    """
    tree: list[tuple[int, Gradients]] = []
    total = 0.0
    parts: dict[int, float] = {}
    for first in range(0, len(batch), micro):
        loss, found = loss_of(part(batch, slice(first, first + micro)))
        # A step whose lead times need none of the trained processors has nothing to learn from.
        made: Gradients = [None] * len(parameters)
        if loss.requires_grad:
            made = list(torch.autograd.grad(loss, list(parameters), allow_unused=True))
        total += float(loss.detach())
        parts = {lead: parts.get(lead, 0.0) + value for lead, value in found.items()}
        tree.append((1, made))
        while len(tree) > 1 and tree[-1][0] == tree[-2][0]:
            _join(tree)
    while len(tree) > 1:
        _join(tree)
    return Sums(tree[0][1], total, parts)


def part(batch: Batch, some: slice) -> Batch:
    """Some samples of a batch."""

    def of(state: State) -> State:
        return replace(state, time=state.time[some], pressure=state.pressure[some], surface=state.surface[some])

    return Batch({name: of(state) for name, state in batch.inputs.items()},
                 {lead: of(state) for lead, state in batch.targets.items()},
                 None if batch.intervals is None else batch.intervals[some])  # fmt: skip


def _join(tree: list[tuple[int, Gradients]]) -> None:
    (size, right), (other, left) = tree.pop(), tree.pop()
    tree.append((size + other, [_added(a, b) for a, b in zip(left, right, strict=True)]))


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b)
