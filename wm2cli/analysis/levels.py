"""From the pressure levels of a source to those of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wm2cli.analysis.thermodynamics import DRY_AIR, LAPSE
from wm2cli.reading.fields import Values
from wm2cli.schema import GRAVITY, level_text


@dataclass(frozen=True)
class LevelPlan:
    """How one level of one variable comes about.

    Args:
        level: Pressure wanted, hPa.
        how: Read as it is, between two levels, or beyond the outermost.
        upper, lower: Source levels in hPa above (less pressure) and below; equal unless `between`.
    """

    level: float
    how: Literal["direct", "between", "above", "below"]
    upper: float
    lower: float

    @property
    def weight(self) -> float:
        """Weight of the lower level: linear in the logarithm of pressure."""
        if self.upper == self.lower:
            return 1.0
        return math.log(self.level / self.upper) / math.log(self.lower / self.upper)


def plan_levels(wanted: Iterable[float], have: Sequence[float]) -> list[LevelPlan]:
    """How to make each wanted level from those there are.

    Args:
        wanted: hPa.
        have: hPa, increasing, at least one.
    """
    plans = []
    for level in wanted:
        near = [source for source in have if abs(source - level) < 1e-6]
        if near:
            plans.append(LevelPlan(level, "direct", near[0], near[0]))
        elif level < have[0]:
            plans.append(LevelPlan(level, "above", have[0], have[0]))
        elif level > have[-1]:
            plans.append(LevelPlan(level, "below", have[-1], have[-1]))
        else:
            lower = next(index for index, source in enumerate(have) if source > level)
            plans.append(LevelPlan(level, "between", have[lower - 1], have[lower]))
    return plans


def between(upper: Values, lower: Values, weight: float) -> Values:
    """A field between two levels, linear in the logarithm of pressure; all (H, W)."""
    return upper + (lower - upper) * np.float32(weight)


def beyond(name: str, plan: LevelPlan, edge: Values, temperature: Values | None) -> Values:
    """A field beyond the outermost level of its source.

    Winds and humidity stay what they are at the outermost level. Temperature stays so upwards, and rises
    downwards by 6.5 K per km; geopotential follows from it hydrostatically:
    above, z = z0 + R T0 ln(p0 / p); below, z = z0 - (T - T0) g / L with T = T0 (p / p0)^(R L / g).

    Args:
        name: Variable.
        plan: Which level from which.
        edge: (H, W) at the outermost level.
        temperature: (H, W) there, needed for z.
    """
    ratio = plan.level / plan.upper
    warming = ratio ** (DRY_AIR * LAPSE / GRAVITY)
    if name == "t" and plan.how == "below":
        return edge * np.float32(warming)
    if name == "z" and temperature is not None:
        if plan.how == "above":
            return edge - np.float32(DRY_AIR * math.log(ratio)) * temperature
        return edge - np.float32((warming - 1.0) * GRAVITY / LAPSE) * temperature
    return edge


def levels_text(levels: Iterable[float]) -> str:
    """Levels for people: `30 70 350 hPa`."""
    return f"{' '.join(level_text(level) for level in sorted(levels))} hPa"
