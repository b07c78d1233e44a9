"""The classes of precipitation that SEEPS needs of a climate: how often it is dry, and from which sum on it is heavy.

As WeatherBench 2 makes them, by hour and day of the year from the days around it: the fraction of dry cases counts
every case of the window alike, its ends included; the limit of heavy precipitation is the 2/3 quantile of the wet
cases, with the weights of the window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]
Array = NDArray[np.float64]

LIGHT_SHARE = 2 / 3
"""Of the wet cases: the lighter ones are light, the others heavy."""

_CELLS = 64
"""Taken through all operations at once: few enough that the temporaries stay in a core's cache."""


def classes_by_day(read: Callable[[int], Values], weights: Sequence[int], days: int, limit: float
                   ) -> Iterator[tuple[Array, Array]]:  # fmt: skip
    """Yields the classes of days 1, 2 ... of a year that goes round.

    Args:
        read: Day of the year -> (n, P) sums of precipitation in all years, for P places; n may be 0.
        weights: Of the days of the window; an odd number of them, the middle one for the day itself.
        days: Days of the year.
        limit: Dry up to here, in the unit of the sums.

    Yields:
        (P,) fraction of dry cases, and (P,) limit of heavy precipitation, NaN where no case with a weight is wet.
    """
    half = len(weights) // 2
    around = [(shift - half) % days + 1 for shift in range(len(weights))]
    window = deque(read(day) for day in around)
    for day in range(1, days + 1):
        samples = np.concatenate(list(window))
        counts = np.repeat(np.asarray(weights, np.int32), [len(part) for part in window])
        heavy = np.empty(samples.shape[1])
        for first in range(0, heavy.size, _CELLS):
            some = samples[:, first : first + _CELLS].T
            heavy[first : first + _CELLS] = weighted_quantile(some, np.where(some > limit, counts, 0), LIGHT_SHARE)
        yield (samples <= limit).mean(axis=0), heavy
        if day < days:
            window.popleft()
            window.append(read((day + half) % days + 1))


def weighted_quantile(values: Values, weights: NDArray[np.int32], share: float) -> Array:
    """Quantile of weighted samples, linear between them, for the number of samples that the weights are worth.

    With equal weights it is the ordinary one; weights count by Kish's effective number of samples, (sum w)^2 / sum w^2
    (Akinshin 2023, arXiv 2304.07265).

    Args:
        values: (P, n) samples that are not negative, taken as float32.
        weights: (P, n) whole numbers; samples of weight zero do not exist.
        share: Between 0 and 1.

    Returns:
        (P,), NaN where no sample has a weight.
    """
    # The bits of such numbers are in the order of the numbers. With the weight in the lower half one plain sort does,
    # four times as fast as sorting indices and looking both up.
    bits = np.maximum(values, 0, dtype=np.float32).view(np.int32).astype(np.int64)
    keys = np.sort(bits << 32 | weights, axis=-1)
    ranked, counts = (keys >> 32).astype(np.int32).view(np.float32), (keys & 0xFFFFFFFF).astype(np.float64)
    total = counts.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        number = total**2 / np.einsum("pn,pn->p", counts, counts)
        place = (number - 1.0) * share  # between the ranks 0 and number - 1
        # Each sample stands for the part of its step of the cumulated weights that lies in one rank around the place.
        scale = (number / total)[:, None]
        ends = np.clip(np.cumsum(counts, axis=-1) * scale - place[:, None], 0.0, 1.0)
        ends[:, 1:] -= ends[:, :-1].copy()
        return np.asarray(np.einsum("pn,pn->p", ranked, ends))
