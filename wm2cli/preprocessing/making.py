"""The two passes over the inputs, in tasks of some blocks: gathering statistics, and writing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError
from wm2cli.preprocessing.blocks import Problem, cut_blocks, problem_lines, read_block
from wm2cli.preprocessing.plan import Plan, shortened
from wm2cli.preprocessing.statistics import Gatherer, Moments, Sums, lags_of, normalizer_of
from wm2cli.preprocessing.target import Target, write_times
from wm2cli.preprocessing.workers import run
from wm2cli.reading.fields import time_text
from wm2cli.schema import log_floors
from wm2cli.store import Coding, Progress, Store, read_places

_TASK_BLOCKS = 8
_JUMP, _JUMP_OF_LOGARITHMS = 4.0, 1.5
"""A block whose mean lies that many standard deviations off those of the other blocks is in another unit. Degrees
Celsius lie further off; millimetres instead of metres by 6.9 in the logarithm, which is about 2 standard deviations;
seasons and eruptions do not come near."""
_JUMP_OF_SPREAD = 100.0
"""The same for a spread that is so many times as large or small: grams instead of kilograms, a rate instead of a sum.
The humidity of the stratosphere may well change its spread tenfold, so factors of ten are left to the limits of the
table of variables (geopotential as height, pressure in hPa, cloud in percent)."""
_SAME = 0.02  # of a standard deviation: what statistics of the written numbers may be off by


@dataclass(frozen=True, eq=False)
class _Shared:
    """What every task needs.

    Args:
        plan: Where everything is.
        part: Folder of the store in the making.
        coding: How values stand there; None while float16 stores have no statistics.
        counted: (T,) which times the statistics are over.
        floor: (C, 1, 1) as in `Coding`.
        stored: Whether values are read from the store rather than from the inputs.
    """

    plan: Plan
    part: Path
    coding: Coding | None
    counted: NDArray[np.bool_]
    floor: NDArray[np.float32]
    stored: bool = False


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a task saw of its blocks."""

    blocks: tuple[tuple[int, int], ...]
    moments: tuple[Moments, ...]
    sums: Sums
    problems: tuple[Problem, ...]


@dataclass(frozen=True, eq=False)
class _Written:
    """What a task wrote."""

    places: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    problems: tuple[Problem, ...]


def _values(shared: _Shared, first: int, stop: int) -> tuple[NDArray[np.float32], list[Problem]]:
    if not shared.stored or shared.coding is None:
        return read_block(shared.plan, first, stop)
    import zarr

    fields = zarr.open_array(shared.part / "fields", mode="r", zarr_format=3)
    return shared.coding.decode(read_places(fields, np.arange(first, stop))), []


def _survey(shared: _Shared, blocks: Sequence[tuple[int, int]]) -> _Seen:
    """Reads and checks blocks, and gathers their statistics."""
    lags = tuple(lags_of(shared.plan.step_hours).values())
    begin = blocks[0][0]
    gatherer = Gatherer(shared.floor, shared.counted, lags, begin)
    before = max(0, begin - max(lags))
    if before < begin and shared.counted[before:begin].any():
        values, problems = _values(shared, before, begin)
        if not problems:  # if there are, the task of those times tells them
            gatherer.add(before, values)
    moments: list[Moments] = []
    found: list[Problem] = []
    with np.errstate(all="ignore"):  # after a problem numbers may be anything; they are not used
        for first, stop in blocks:
            values, problems = _values(shared, first, stop)
            found += problems
            moments.append(gatherer.add(first, values))
    return _Seen(tuple(blocks), tuple(moments), gatherer.sums, tuple(found))


def _write(shared: _Shared, blocks: Sequence[tuple[int, int]]) -> _Written:
    """Reads, checks and writes blocks."""
    places: list[NDArray[np.int64]] = []
    hashes: list[NDArray[np.uint8]] = []
    found: list[Problem] = []
    if shared.coding is None:
        raise ValueError("nothing can be written yet")
    for first, stop in blocks:
        values, problems = _values(shared, first, stop)
        found += problems
        if not problems:
            places.append(np.arange(first, stop))
            hashes.append(write_times(shared.part, places[-1], values, shared.coding))
    none = (np.empty(0, np.int64), np.empty((0, 32), np.uint8))
    return _Written(np.concatenate([none[0], *places]), np.concatenate([none[1], *hashes]), tuple(found))


# What runs here.


class Work:
    """One run: hands out tasks and takes what comes of them."""

    def __init__(
        self,
        made: Plan,
        target: Target,
        on_progress: Progress,
        *,
        scheduler: str | None,
        workers: int | None,
        allow_jumps: bool,
    ) -> None:
        self.notes: list[str] = []
        self.allow_jumps = allow_jumps
        self.dtype = target.contents.dtype
        self.scheduler, self.workers = scheduler, workers
        self.plan = made
        self.target = target
        self.on_progress = on_progress
        self.blocks = cut_blocks(made)
        self.floors = log_floors(made.schema.surface)
        self.floor = np.array([self.floors.get(name, np.nan) for name in made.schema.channels], np.float32)
        self.counted = np.zeros(made.time.size, bool)
        for first, last in made.splits["train"]:
            self.counted |= (made.time >= first) & (made.time <= last)

    def survey(self, *, stored: bool) -> dict[str, dict[str, object]]:
        """The statistics over the times of `train`, after all times have been checked.

        Raises:
            DataError: Values that cannot be, or that jump between blocks.
        """
        # Long enough that the times before each task, which its changes need, hardly count.
        least = 8 * max(lags_of(self.plan.step_hours).values())
        tasks = self._tasks(self.blocks, least)
        seen: dict[int, _Seen] = dict(self._run(_survey, tasks, "gathering statistics", stored=stored))
        parts = [seen[number] for number in range(len(tasks))]
        problems = [problem for part in parts for problem in part.problems]
        if problems:
            raise self._refused(problem_lines(problems))
        jumps = self._jumps(parts)
        if jumps and not self.allow_jumps:
            raise self._refused(jumps, "; --allow-jumps takes them as they are")
        self.notes += [f"taken as it is: {line}" for line in jumps]
        sums = Sums.empty(self.floor.size, tuple(lags_of(self.plan.step_hours).values()))
        for part in parts:
            sums = sums.merge(part.sums)
        flat = [name for name, std in zip(self.plan.schema.channels, sums.values.std, strict=True) if not std > 0]
        if flat:
            raise self._refused([f"{name} is the same everywhere and at all times of train" for name in flat])
        return normalizer_of(sums, self.plan.schema.channels, self.plan.step_hours, self.floors)

    def write(self) -> None:
        """Writes the times that are not there yet.

        Raises:
            DataError: Values that cannot be.
        """
        todo = [(first, stop) for first, stop in self.blocks if not self.target.done[first:stop].all()]
        problems: list[Problem] = []
        for _, result in self._run(_write, self._tasks(todo, 1), "writing the store", stored=False):
            problems += result.problems
            if result.places.size:
                self.target.record(result.places, result.hashes)
        if problems:
            raise self._refused(problem_lines(sorted(problems, key=lambda problem: (problem.time, problem.file))))

    def finish(self) -> Store:
        """Verifies the store: hashes, finite values, and statistics that are those that were gathered.

        Raises:
            DataError: It is not what was meant.
        """
        again = Moments.empty(self.floor.size)

        def look(places: NDArray[np.int64], numbers: NDArray[np.floating]) -> None:
            nonlocal again
            if self.counted[places].any():
                again = again.merge(Moments.of(numbers[self.counted[places]].astype(np.float32)))

        def judge() -> list[str]:
            # Float32 stores had their statistics gathered from the store itself.
            if self.dtype == "float32":
                return []
            off = (np.abs(again.mean) > _SAME) | (np.abs(again.std - 1.0) > _SAME)
            return [
                f"{self.plan.schema.channels[channel]} has the mean {again.mean[channel]:.3g} and the spread "
                f"{again.std[channel]:.3g} where 0 and 1 are expected"
                for channel in np.flatnonzero(off)
            ]

        return self.target.finish(self.on_progress, look, judge)

    def _tasks(self, blocks: Sequence[tuple[int, int]], least: int) -> list[list[tuple[int, int]]]:
        """Blocks that follow each other as tasks of some blocks and at least so many times."""
        tasks: list[list[tuple[int, int]]] = []
        for block in blocks:
            if tasks and tasks[-1][-1][1] == block[0]:
                times = tasks[-1][-1][1] - tasks[-1][0][0]
                if times < least or (len(tasks[-1]) < _TASK_BLOCKS and times < 32):
                    tasks[-1].append(block)
                    continue
            tasks.append([block])
        return tasks

    def _run(self, work: Callable[[_Shared, Any], Any], tasks: Sequence[Any], what: str, *, stored: bool) -> Any:
        coding = None
        if self.target.normalizer is not None or self.dtype == "float32":
            coding = self.target.coding
        shared = _Shared(
            self.plan, self.target.part.resolve(), coding, self.counted, self.floor.reshape(-1, 1, 1), stored
        )
        done, total = 0, sum(stop - first for task in tasks for first, stop in task)
        self.on_progress(what, 0, total)
        for number, result in run(work, shared, tasks, scheduler=self.scheduler, workers=self.workers):
            yield number, result
            done += sum(stop - first for first, stop in tasks[number])
            self.on_progress(what, done, total)

    def _jumps(self, parts: Sequence[_Seen]) -> list[str]:
        """Blocks that are in another unit than the others."""
        blocks = [block for part in parts for block in part.blocks]
        means = np.stack([one.mean for part in parts for one in part.moments])
        stds = np.stack([one.std for part in parts for one in part.moments])
        mean, std = np.median(means, axis=0), np.median(stds, axis=0)
        limit = np.where(np.isfinite(self.floor), _JUMP_OF_LOGARITHMS, _JUMP)
        off = (
            (np.abs(means - mean) > limit * np.maximum(std, stds))
            | (stds > _JUMP_OF_SPREAD * std)
            | (stds < std / _JUMP_OF_SPREAD)
        )
        groups: dict[str, list[tuple[int, int]]] = {}
        channels = self.plan.schema.channels
        for number, channel in zip(*np.nonzero(off), strict=True):
            origin = self.plan.origin_of(int(channel), blocks[number][0])
            groups.setdefault(origin, []).append((int(number), int(channel)))
        lines = []
        for origin, items in groups.items():
            number, channel = items[0]
            more = f", and {len(items) - 1} more" if items[1:] else ""
            scale = " in the logarithm" if np.isfinite(self.floor[channel]) else ""
            lines.append(
                f"{origin}: {channels[channel]} has a mean of {means[number, channel]:.4g} and a spread of "
                f"{stds[number, channel]:.3g}{scale} from {time_text(self.plan.time[blocks[number][0]])}, elsewhere "
                f"{mean[channel]:.4g} and {std[channel]:.3g}: another unit or another quantity{more}"
            )
        return shortened(lines)

    def _refused(self, lines: Sequence[str], also: str = "") -> DataError:
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        return DataError(f"{count} with the values of the inputs", problems=lines,
                         hint=f"mend or leave out these files{also}")  # fmt: skip
