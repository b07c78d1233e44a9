"""Samples from training stores: initial states and the states that followed, read ahead of the training."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from wm2cli.errors import DataError
from wm2cli.grid import Grid
from wm2cli.schema import Schema
from wm2cli.state import State
from wm2cli.store import Store

Indices = NDArray[np.int64]

AHEAD = 4
"""Steps whose samples are read while one is computed."""


@dataclass(frozen=True, eq=False)
class View:
    """What a model reads of a store: some of its channels, as states.

    Args:
        store: The store.
        schema: Variables and levels wanted.

    Raises:
        DataError: Channels are missing; all are listed.
    """

    store: Store
    schema: Schema
    _places: Indices = field(init=False)

    def __post_init__(self) -> None:
        have = self.store.schema.channels
        missing = [name for name in self.schema.channels if name not in have]
        if missing:
            raise DataError(
                f"the store {self.store.path} lacks {len(missing)} of the channels that are needed",
                problems=[f"{name} is missing" for name in missing],
                hint="make the store again with `wm2 preprocess`, or choose another model",
            )
        object.__setattr__(self, "_places", np.array([have.index(name) for name in self.schema.channels]))

    def read(self, indices: Indices) -> State:
        """States at places of the store's time axis."""
        values = self.store.read(indices)[:, self._places]
        upper = len(self.schema.pressure) * len(self.schema.levels)
        shape = (len(indices), len(self.schema.pressure), len(self.schema.levels), *self.store.grid.shape)
        pressure = torch.from_numpy(np.ascontiguousarray(values[:, :upper])).view(shape)
        surface = torch.from_numpy(np.ascontiguousarray(values[:, upper:]))
        return State(self.schema, self.store.grid, self.store.time[indices].astype("datetime64[s]"), pressure, surface)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples: what encoders read, and what followed.

    Args:
        inputs: Initial states by encoder.
        targets: By lead time in hours; where samples have intervals, by the number of the step, the initial truth at 0.
        intervals: (B,) hours of each sample's steps, if these are its own.
    """

    inputs: Mapping[str, State]
    targets: Mapping[int, State]
    intervals: Indices | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())).time)

    def to(self, device: torch.device) -> Batch:
        """The same on a device; intervals stay on the host."""
        return Batch({name: state.to(device) for name, state in self.inputs.items()},
                     {lead: state.to(device) for lead, state in self.targets.items()}, self.intervals)  # fmt: skip


class Samples:
    """All samples of a split that a stage can draw from.

    Args:
        inputs: View by encoder name.
        target: View of the store with the truth.
        split: `train`, `validation` or `test`.
        longest: Longest lead time in hours; initial times for which it leaves the split are no samples.
        step: Hours that all lead times are multiples of.

    Raises:
        DataError: Stores do not fit each other, or the split is too short; everything is listed.
    """

    def __init__(self, inputs: Mapping[str, View], target: View, split: str, longest: int, step: int) -> None:
        self.inputs, self.target = inputs, target
        store = target.store
        problems = []
        if step % store.step_hours:
            problems.append(
                f"lead times of {step} h cannot be read from {store.path}, whose step is {store.step_hours} h"
            )
        for name, view in inputs.items():
            if view.store.grid != store.grid:
                problems.append(f"{view.store.path} for encoder {name} is on {view.store.grid.describe()}, the targets "
                                f"in {store.path} on {store.grid.describe()}")  # fmt: skip
        if split not in store.splits:
            problems.append(f"{store.path} has no split '{split}'; it has {', '.join(store.splits)}")
        if problems:
            raise DataError("the stores do not fit", problems=problems)
        self._hours = store.step_hours
        starts = []
        for first, last in store.splits[split]:
            inside = np.flatnonzero((store.time >= first) & (store.time <= last))
            # Only where the time axis has no gap from the first to the last instant of the range.
            starts.append(inside[: max(0, len(inside) - longest // self._hours)])
        self.starts: Indices = np.concatenate(starts) if starts else np.empty(0, np.int64)
        if not len(self.starts):
            raise DataError(f"the split '{split}' of {store.path} has no initial time that is followed by {longest} h",
                            hint="give it more time, or shorten the horizon")  # fmt: skip
        for view in inputs.values():
            if view.store is not store:
                self.starts = self.starts[np.isin(store.time[self.starts], view.store.time)]
        if not len(self.starts):
            others = ", ".join(f"{view.store.path} has {view.store.time[0]} to {view.store.time[-1]}"
                               for view in inputs.values() if view.store is not store)  # fmt: skip
            raise DataError(f"no initial time of the split '{split}' of {store.path} is in all stores: {others}",
                            hint="make the stores for the same years")  # fmt: skip

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def grid(self) -> Grid:
        """Grid of all states."""
        return self.target.store.grid

    def read(self, chosen: Indices, leads: tuple[int, ...]) -> Batch:
        """Samples by their places in `starts`."""
        places = self.starts[chosen]
        targets = {lead: self.target.read(places + lead // self._hours) for lead in leads}
        return Batch(self._initial(places), targets)

    def read_steps(self, chosen: Indices, intervals: Indices, count: int) -> Batch:
        """Samples by their places in `starts`, with the truth at so many steps of each sample's own interval.

        Args:
            chosen: (B,).
            intervals: (B,) hours, multiples of the store's step.
            count: Steps.
        """
        places = self.starts[chosen]
        inputs = self._initial(places)
        ((name, first),) = inputs.items()
        same = self.inputs[name].store is self.target.store and first.schema == self.target.schema
        targets = {0: first if same else self.target.read(places)}
        targets |= {step: self.target.read(places + step * intervals // self._hours) for step in range(1, count + 1)}
        return Batch(inputs, targets, intervals)

    def _initial(self, places: Indices) -> dict[str, State]:
        times = self.target.store.time[places]
        return {
            name: view.read(places if view.store is self.target.store else view.store.index(times))
            for name, view in self.inputs.items()
        }


@dataclass(frozen=True)
class Ready:
    """A batch, and the seconds that the training had to wait for it."""

    batch: Batch
    waited: float


def read_ahead(first: int, last: int, read: Callable[[int], Batch]) -> Iterator[Ready]:
    """Batches of the steps from `first` to before `last`, read by a thread while earlier ones are computed."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        pending: list[Future[Batch]] = []
        following = first
        try:
            for _ in range(first, last):
                while following < last and len(pending) < AHEAD:
                    pending.append(pool.submit(read, following))
                    following += 1
                started = clock.perf_counter()
                batch = pending.pop(0).result()
                yield Ready(batch, clock.perf_counter() - started)
        finally:
            for future in pending:
                future.cancel()
