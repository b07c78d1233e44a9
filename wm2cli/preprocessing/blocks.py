"""Blocks of consecutive times: read from the inputs, checked, and brought to the levels and the grid of the store."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm2cli.analysis.levels import between
from wm2cli.analysis.thermodynamics import specific_humidity
from wm2cli.errors import DataError
from wm2cli.preprocessing.derived import derive
from wm2cli.preprocessing.plan import Column, Origin, Plan, Track, shortened
from wm2cli.reading.fields import time_text
from wm2cli.schema import VARIABLES, Variable, value_issues

Fields = NDArray[np.float32]

_BLOCK_BYTES = 24 * 2**20
"""Of a block's values on the grid of the store, or of one variable on that of the inputs. Larger arrays than 32 MiB are
given back to the system each time (glibc), and getting them again costs as much as computing with them."""

_MOST_BYTES = 2**30
"""Of a block where the inputs keep many times in a chunk."""


@dataclass(frozen=True)
class Problem:
    """Values that cannot be.

    Args:
        variable, file: What and where.
        text: What is wrong.
        time: First time at which it was seen.
    """

    variable: str
    file: str
    text: str
    time: str


def cut_blocks(plan: Plan) -> list[tuple[int, int]]:
    """First place and end of each block: within one set of files, and small enough for the memory."""
    channels = len(plan.schema.channels)
    deepest = max(len(column.origins) * column.origins[0].track.series.shape[1] for column in plan.columns)
    height, width = plan.source.shape
    one = 4 * max(channels * plan.grid.shape[0] * plan.grid.shape[1], deepest * height * width)
    longest, most = max(1, _BLOCK_BYTES // one), max(1, _MOST_BYTES // one)
    edges = plan.cuts()
    # A chunk that holds many times is better unpacked, or fetched, once than in every block.
    chunks = plan.chunk_cuts()
    if np.diff(chunks).max() > longest:
        edges, longest = chunks, most
    made = []
    for first, stop in itertools.pairwise(edges.tolist()):
        made += [(start, min(start + longest, stop)) for start in range(first, stop, longest)]
    return made


def read_block(plan: Plan, first: int, stop: int) -> tuple[Fields, list[Problem]]:
    """The values of consecutive times.

    Args:
        plan: Where everything is.
        first, stop: Places on the time axis.

    Returns:
        (n, C, H, W) physical values on the grid of the store, and what is wrong with them.
    """
    out = np.empty((stop - first, len(plan.schema.channels), *plan.grid.shape), np.float32)
    problems: list[Problem] = []
    with ExitStack() as stack:
        for holder in plan.holders(first, stop):
            stack.enter_context(holder)
        _read_columns(plan, first, stop, out, problems)
    return out, problems


def _read_columns(plan: Plan, first: int, stop: int, out: Fields, problems: list[Problem]) -> None:
    for column in plan.columns:
        try:
            values = _read_column(plan, column, first, stop, problems)
        except DataError as error:
            origin = plan.series[int(column.origins[0].track.series[first, 0])]
            text = "; ".join([error.message, *error.problems])
            problems.append(Problem(column.known.name, origin.file.label, text, time_text(plan.time[first])))
            continue
        for offset, channel in enumerate(range(column.channels.start, column.channels.stop)):
            made = values[:, 0]
            if column.levels:
                wanted = column.levels[offset]
                levels = [origin.level for origin in column.origins]
                made = values[:, levels.index(wanted.upper)]
                if wanted.how == "between":
                    made = between(made, values[:, levels.index(wanted.lower)], wanted.weight)
            out[:, channel] = made if plan.source == plan.grid else plan.source.regrid_to(plan.grid, made)


def _read_column(plan: Plan, column: Column, first: int, stop: int, problems: list[Problem]) -> Fields:
    """(n, L, H, W) of a variable at the levels it is read at, windows combined, on the grid of the inputs."""
    known = column.known
    if column.derivation is not None:
        values, wrong = derive(plan, column, first, stop)
        for place, text in wrong:
            file = plan.series[int(column.origins[0].track.series[place, 0])].file.label
            problems.append(Problem(known.name, file, text, time_text(plan.time[place])))
        return values
    plain = [origin for origin in column.origins if origin.temperature is None]
    moist = [origin for origin in column.origins if origin.temperature is not None]
    values = _gather(plan, [(origin.level, origin.track) for origin in plain], first, stop)
    _check(plan, known, plain, values, first, problems)
    if moist:
        both = np.concatenate([values, _humidity(plan, moist, first, stop, problems)], axis=2)
        order = [[*plain, *moist].index(origin) for origin in column.origins]
        values = both[:, :, order]
    if column.combine == "sum":
        return np.asarray(values.sum(axis=1, dtype=np.float64), np.float32)
    if column.combine is None:
        return values[:, 0]
    return np.asarray(values.max(axis=1) if column.combine == "maximum" else values.min(axis=1))


def _humidity(plan: Plan, origins: Sequence[Origin], first: int, stop: int, problems: list[Problem]) -> Fields:
    """(n, 1, L, H, W) specific humidity from relative humidity and temperature."""
    relative = _gather(plan, [(origin.level, origin.track) for origin in origins], first, stop)
    _check(plan, VARIABLES["r"], origins, relative, first, problems)
    warmth = _gather(plan, [(o.level, o.temperature) for o in origins if o.temperature is not None], first, stop)
    _check(plan, VARIABLES["t"], origins, warmth, first, problems)
    made = [specific_humidity(np.maximum(relative[:, :, number], 0.0), warmth[:, :, number], 100.0 * (o.level or 0.0))
            for number, o in enumerate(origins)]  # fmt: skip
    return np.stack(made, axis=2).astype(np.float32)


def _gather(plan: Plan, wanted: Sequence[tuple[float | None, Track]], first: int, stop: int) -> Fields:
    """(n, k, L, H, W) of a variable as it is in the inputs; levels with a track in common are read together."""
    count = wanted[0][1].series.shape[1] if wanted else 1
    out = np.empty((stop - first, count, len(wanted), *plan.source.shape), np.float32)
    together: dict[int, list[int]] = {}
    for number, (_, track) in enumerate(wanted):
        together.setdefault(id(track), []).append(number)
    for numbers in together.values():
        track = wanted[numbers[0]][1]
        levels = [level for level, _ in (wanted[number] for number in numbers) if level is not None]
        owners, places = track.series[first:stop].ravel(), track.places[first:stop].ravel()
        flat = out.reshape(-1, *out.shape[2:])
        for begin, end in _stretches(owners):
            series = plan.series[int(owners[begin])]
            flat[begin:end, numbers] = series.read(places[begin:end], levels)
    return out


def _stretches(owners: NDArray[np.int32]) -> list[tuple[int, int]]:
    edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), owners.size]
    return list(itertools.pairwise(edges))


def _check(plan: Plan, known: Variable, origins: Sequence[Origin], values: Fields, first: int,
           problems: list[Problem]) -> None:  # fmt: skip
    """Notes missing and impossible values; sets what lies beyond a physical limit by packing to the limit."""
    for number, origin in enumerate(origins):
        one = values[:, :, number]
        least, most = float(one.min()), float(one.max())  # NaN, if any is
        low, high = known.plausible(origin.level)
        if not (low <= least and most <= high):
            wrong = [at for at, part in enumerate(one) if not (low <= part.min() and part.max() <= high)]
            series = plan.series[int(origin.track.series[first + wrong[0], 0])]
            text = value_issues(known, one[wrong[0]], origin.level)[0]
            problems.append(Problem(known.name, series.file.label, text, time_text(plan.time[first + wrong[0]])))
        elif least < known.clip_low or most > known.clip_high:
            np.clip(one, known.clip_low, known.clip_high, out=one)


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """Problems as lines for people: the first of each variable in each file, and how many more there are."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.file, problem.variable), []).append(problem)
    lines = []
    for (file, _), items in groups.items():
        more = f", and {len(items) - 1} more of the kind" if items[1:] else ""
        lines.append(f"{file}: {items[0].text} at {items[0].time}{more}")
    return shortened(lines)
