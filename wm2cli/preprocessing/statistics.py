"""Means and spreads of many fields, gathered part by part in float64.

Parts are merged by the formula of Chan, Golub and LeVeque (1983, doi:10.1080/00031305.1983.10483115), which does not
subtract large numbers from each other. Parts are cut and merged in one order whatever runs beside what, so that the
result is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm2cli.store import Fields, apply_logarithm

Array = NDArray[np.float64]

DIFFERENCE_HOURS = (6, 12, 24)
"""Over which the spread of changes is given, beside the step of the store."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and sum of squared deviations, by channel.

    Args:
        count: Values in each channel.
        mean, squares: (C,) float64.
    """

    count: int
    mean: Array
    squares: Array

    @classmethod
    def empty(cls, channels: int) -> Moments:
        """Of nothing."""
        return cls(0, np.zeros(channels), np.zeros(channels))

    @classmethod
    def of(cls, values: Fields, before: Fields | None = None) -> Moments:
        """Of (n, C, H, W) values, or of their changes since others; each grid point counts for one."""
        channels = values.shape[1]
        mean, squares = np.zeros(channels), np.zeros(channels)
        for channel in range(channels):  # one at a time stays in the processor's cache
            part = values[:, channel] if before is None else values[:, channel] - before[:, channel]
            flat = part.astype(np.float64).ravel()
            mean[channel] = flat.mean()
            flat -= mean[channel]
            squares[channel] = flat @ flat
        return cls(values.shape[0] * values.shape[2] * values.shape[3], mean, squares)

    def merge(self, other: Moments) -> Moments:
        """Of both parts together."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        squares = self.squares + other.squares + shift**2 * (self.count * other.count / count)
        return Moments(count, mean, squares)

    @property
    def std(self) -> Array:
        """(C,) standard deviation over all values (not of a sample)."""
        return np.sqrt(self.squares / self.count) if self.count else np.full(self.mean.shape, np.nan)


@dataclass(frozen=True, eq=False)
class Sums:
    """What is known of some times: of the values, and of their changes by number of steps."""

    values: Moments
    changes: Mapping[int, Moments]

    @classmethod
    def empty(cls, channels: int, lags: Sequence[int]) -> Sums:
        """Of no times."""
        return cls(Moments.empty(channels), {lag: Moments.empty(channels) for lag in lags})

    def merge(self, other: Sums) -> Sums:
        """Of both together."""
        changes = {lag: part.merge(other.changes[lag]) for lag, part in self.changes.items()}
        return Sums(self.values.merge(other.values), changes)


def lags_of(step_hours: int) -> dict[int, int]:
    """Hours over which changes are looked at -> number of steps."""
    return {hours: hours // step_hours for hours in sorted({step_hours, *DIFFERENCE_HOURS})
            if hours % step_hours == 0}  # fmt: skip


class Gatherer:
    """Gathers the statistics of consecutive blocks of times.

    Args:
        floor: (C, 1, 1), NaN for channels that are not looked at as logarithms (`store.Coding.floor`).
        counted: (T,) which times of the store count.
        lags: Numbers of steps.
        first: Place of the first time to come; the ones before it only serve for changes.
    """

    def __init__(self, floor: Fields, counted: NDArray[np.bool_], lags: Sequence[int], first: int) -> None:
        self.sums = Sums.empty(floor.size, lags)
        self._floor = floor
        self._counted = counted
        self._first = first
        self._held: Fields | None = None

    def add(self, place: int, values: Fields) -> Moments:
        """Takes (n, C, H, W) physical values of the times from `place` on, which follow those before.

        Returns:
            The moments of these alone, as f(x).
        """
        earlier = 0 if self._held is None else len(self._held)
        both = np.empty((earlier + len(values), *values.shape[1:]), np.float32)
        if self._held is not None:
            both[:earlier] = self._held
        both[earlier:] = values
        made = both[earlier:]
        apply_logarithm(made, self._floor)
        places = np.arange(place, place + len(made))
        own = Moments.of(made)
        mine = self._counted[places] & (places >= self._first)
        if mine.all():
            self.sums = Sums(self.sums.values.merge(own), self.sums.changes)
        elif mine.any():
            self.sums = Sums(self.sums.values.merge(Moments.of(made[mine])), self.sums.changes)
        begin = place - earlier
        changes = dict(self.sums.changes)
        for lag, before in changes.items():
            ends = places[mine & (places - lag >= begin)]
            ends = ends[self._counted[ends - lag]] - begin
            if ends.size and ends[-1] - ends[0] + 1 == ends.size:
                first, stop = int(ends[0]), int(ends[-1]) + 1
                changes[lag] = before.merge(Moments.of(both[first:stop], both[first - lag : stop - lag]))
            elif ends.size:
                changes[lag] = before.merge(Moments.of(both[ends], both[ends - lag]))
        self.sums = Sums(self.sums.values, changes)
        self._held = both[-max(changes) :].copy() if changes else None
        return own


def normalizer_of(sums: Sums, channels: Sequence[str], step_hours: int, log_floor: Mapping[str, float],
                  ) -> dict[str, dict[str, object]]:  # fmt: skip
    """Statistics as `state.Normalizer.from_dict` takes them."""

    def table(values: Array) -> dict[str, float]:
        return dict(zip(channels, (float(value) for value in values), strict=True))

    steps = {hours: sums.changes[lag] for hours, lag in lags_of(step_hours).items() if sums.changes[lag].count}
    return {
        "mean": dict(table(sums.values.mean)),
        "std": dict(table(sums.values.std)),
        "difference_std": {str(hours): table(part.std) for hours, part in steps.items()},
        "log_floor": dict(log_floor),
    }
