"""Is a difference between two forecasts more than chance? Block bootstrap over inits.

Errors of forecasts started one after the other are alike. Whole blocks of consecutive inits are drawn instead of single
ones, so that what is alike stays together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BLOCK_DAYS = 10.0
"""Length of a block: the life of a large-scale weather pattern."""

FEWEST_BLOCKS = 3
"""With fewer, an interval means nothing."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Mean difference of a score between two forecasts, with its 95 % interval; arrays of one shape.

    Args:
        mean: Mean over the inits of the difference.
        low, high: Ends of the interval; NaN where there are too few inits to tell.
        blocks: How many independent blocks there are.
    """

    mean: Array
    low: Array
    high: Array
    blocks: NDArray[np.int64]

    @property
    def significant(self) -> NDArray[np.bool_]:
        """Whether the interval leaves zero out."""
        return np.asarray((self.low > 0) | (self.high < 0))


def block_bootstrap(difference: Array, inits: NDArray[np.datetime64], *, samples: int = 1000, seed: int = 0
                    ) -> Comparison:  # fmt: skip
    """The mean of a series of differences and how sure it is.

    Circular blocks of `BLOCK_DAYS` are drawn with replacement, the same ones for every series.

    Args:
        difference: (N, ...) for N inits, in their order; NaN where an init lacks the pair.
        inits: (N,).
        samples: Number of draws.
        seed: The same seed gives the same interval.
    """
    number = difference.shape[0]
    flat = difference.reshape(number, -1)
    valid = np.isfinite(flat)
    values = np.where(valid, flat, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = values.sum(axis=0) / valid.sum(axis=0)
    spacing = np.median(np.diff(inits) / np.timedelta64(1, "D")) if number > 1 else 1.0
    length = max(1, round(BLOCK_DAYS / max(float(spacing), 1e-9)))
    blocks = valid.sum(axis=0) // length
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    enough = blocks >= FEWEST_BLOCKS
    if enough.any():
        random = np.random.default_rng(seed)
        starts = random.integers(0, number, (samples, -(-number // length)))
        drawn = (starts[:, :, None] + np.arange(length)).reshape(samples, -1)[:, :number] % number
        counts = np.stack([np.bincount(row, minlength=number) for row in drawn]).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            means = (counts @ values[:, enough]) / (counts @ valid[:, enough].astype(np.float64))
        low[enough], high[enough] = np.nanpercentile(means, [2.5, 97.5], axis=0)
    shape = difference.shape[1:]
    return Comparison(mean.reshape(shape), low.reshape(shape), high.reshape(shape), blocks.reshape(shape))
