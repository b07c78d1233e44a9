"""What a step of a stage does: its rate, its horizon, its samples and its lead times, all from the step's number.

Nothing here has a memory, so that resuming is arithmetic: the draws of a step depend on the seed, the stage and the
step alone, not on workers, ranks or what was prefetched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wm2cli.training.recipes import Stage

Indices = NDArray[np.int64]

GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples modulo 1 fill the unit interval evenly, from any beginning on."""


@dataclass(frozen=True)
class Draw:
    """The samples of one step.

    Args:
        starts: (batch,) places in the list of possible initial times.
        leads: Hours, increasing; the last is the horizon. None where samples have intervals.
        intervals: (batch,) hours of each sample's steps, where these are drawn.
    """

    starts: Indices
    leads: tuple[int, ...]
    intervals: Indices | None = None


def rate(stage: Stage, step: int) -> float:
    """Learning rate of a step, 0 to `stage.steps` - 1."""
    if step < stage.warmup:
        first = 1 / stage.warmup if stage.initial is None else stage.initial
        return stage.rate * (first + (1 - first) * step / max(1, stage.warmup - 1))
    if stage.schedule == "cosine":
        share = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
        return stage.rate * (stage.final + (1 - stage.final) * 0.5 * (1 + math.cos(math.pi * share)))
    begin = stage.steps * (1 - stage.cooldown)
    share = min(max((step - begin) / max(1.0, stage.steps - begin), 0.0), 1.0)
    return stage.rate * (1 - share * (1 - stage.final))


def horizon(stage: Stage, step: int) -> int:
    """Longest lead time of a step in hours, a multiple of the stage's lead step."""
    first, last = stage.horizon
    share = step / max(1, stage.steps - 1)
    if stage.growth.startswith("mixed"):
        share = (step * GOLDEN) % 1.0
    grown = share**2 if stage.growth.endswith("quadratic") else share
    # Every length gets its share of the steps, the last one too.
    count = (last - first) // stage.lead_step + 1
    return first + min(int(grown * count), count - 1) * stage.lead_step


def draw(stage: Stage, number: int, step: int, seed: int, possible: int, intervals: Sequence[int] = ()) -> Draw:
    """Samples of a step, and their lead times or intervals.

    Args:
        stage: The stage.
        number: Of the stage in its recipe.
        step: In the stage.
        seed: Of the recipe.
        possible: How many initial times there are.
        intervals: Hours from which each sample draws, all alike; lead times are drawn where there are none.
    """
    places = np.arange(step * stage.batch, (step + 1) * stage.batch)
    starts = np.array([_shuffled(seed, number, int(place // possible), possible)[place % possible] for place in places])
    chance = np.random.Generator(np.random.Philox(key=[seed, (number << 40) + (1 << 39) + step]))
    if intervals:
        return Draw(starts, (), chance.choice(np.array(intervals, np.int64), size=stage.batch))
    longest = horizon(stage, step)
    nearest = 0 if stage.tail is None else max(0, longest - stage.tail + stage.lead_step)
    below = list(range(nearest, longest, stage.lead_step))
    others = chance.choice(below, size=min(stage.targets - 1, len(below)), replace=False).tolist()
    return Draw(starts, tuple(sorted([*map(int, others), longest])))


@lru_cache(maxsize=4)
def _shuffled(seed: int, number: int, epoch: int, possible: int) -> Indices:
    """All initial times in the order of an epoch."""
    generator = np.random.Generator(np.random.Philox(key=[seed, (number << 40) + epoch]))
    return generator.permutation(possible)
