"""Going through all pairs: an init at a time, several at once, each leaving only sums behind.

What an init leaves is added in the order of the inits, whoever finished first: results do not depend on the number of
workers. Memory holds a block of leads for each worker, whatever the number of inits; beside the sums only one number is
kept for each init, lead and channel, which the bootstrap needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import DataError
from wm2cli.evaluation.accumulator import Accumulator, system_sums
from wm2cli.evaluation.datasets import Values, bounds_of, span, split_label
from wm2cli.evaluation.forecasts import Forecasts
from wm2cli.evaluation.matching import Init, Matches
from wm2cli.evaluation.physics import check_state
from wm2cli.evaluation.regions import Regions
from wm2cli.evaluation.seeps import DRY_BELOW_M, seeps
from wm2cli.evaluation.series import OnGrid, Winds, with_speeds
from wm2cli.evaluation.spectra import band_spectrum
from wm2cli.grid import Grid
from wm2cli.reading.fields import time_text
from wm2cli.sources import Progress

Array = NDArray[np.float64]
BLOCK_BYTES = 128 * 2**20
"""Of a forecast read at once by a worker."""

SEEPS = ("seeps", "seeps_mean_dry_fraction")
"""With the climate's fraction of dry cases at the place and the date, and with its mean over the year, as WeatherBench
scores."""


@dataclass(frozen=True, eq=False)
class Work:
    """All that scoring an init needs.

    Args:
        matches: Pairs and channels.
        forecasts, against: Forecasts, the second ones if any.
        truth, climatology: On the grid of the scores.
        grid: Of the scores.
        regions: On that grid.
        skip_missing: See `Accumulator`.
        spectra: Numbers of the channels whose spectra are wanted.
        maps: Numbers of channels, and leads, of which maps of error and bias are wanted.
        orography: (H, W) in m, for the mass budget.
        rain: Numbers of the channels that SEEPS is wanted of.
        winds: Pairs of channels whose speed is scored as well.
    """

    matches: Matches
    forecasts: Forecasts
    truth: OnGrid
    climatology: OnGrid | None
    against: Forecasts | None
    grid: Grid
    regions: Regions
    skip_missing: bool = False
    spectra: tuple[int, ...] = ()
    maps: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    orography: Values | None = None
    rain: tuple[int, ...] = ()
    winds: Winds = ()

    @property
    def systems(self) -> dict[str, int]:
        """What is scored, and its number of ensemble members."""
        made = {"forecast": self.forecasts.members}
        if self.against is not None:
            made["against"] = self.against.members
        if self.matches.persistence:
            made["persistence"] = 0
        if self.climatology is not None:
            made["climatology"] = 0
        return made


@dataclass
class Tally:
    """Sums over some inits.

    Args:
        accumulators: By system.
        speeds: The same for the speeds of winds; not for climatologies, which do not have them.
        inits: N inits so far.
        mse: System -> N arrays (T, C): mean square error over the first region, NaN where there is no pair.
        spectra: `forecast` and `truth` -> (T, S, K) sums of spectra; `count` is theirs.
        maps: (2, M, P, H, W) sums of the difference and of its square at M leads for P channels.
        seeps: System -> (2, T, C, R, 2) sums of both of `SEEPS` and of the weights of the places where it is defined.
        checks: Name -> N arrays (T,) of `physics.check_state`; `truth_` before the name for the truth.
    """

    accumulators: dict[str, Accumulator]
    speeds: dict[str, Accumulator]
    inits: list[Init] = field(default_factory=list)
    mse: dict[str, list[Array]] = field(default_factory=dict)
    spectra: dict[str, Array] = field(default_factory=dict)
    spectra_count: Any = None
    maps: Any = None
    maps_count: Any = None
    checks: list[dict[str, Array]] = field(default_factory=list)
    seeps: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, work: Work) -> Tally:
        """Nothing added yet."""
        leads, channels = len(work.matches.leads), len(work.matches.labels)

        def accumulators(number: int, systems: Mapping[str, int]) -> dict[str, Accumulator]:
            return {name: Accumulator(work.regions, leads, number, members, work.skip_missing)
                    for name, members in systems.items()}  # fmt: skip

        moving = {name: members for name, members in work.systems.items() if name != "climatology" and work.winds}
        made = cls(accumulators(channels, work.systems), accumulators(len(work.winds), moving))
        made.mse = {name: [] for name in work.systems}
        if work.rain:
            shape = (len(SEEPS), leads, channels, len(work.regions.names), 2)
            made.seeps = {name: np.zeros(shape) for name in work.systems}
        waves = work.grid.lon.size // 2 + 1
        made.spectra = {name: np.zeros((leads, len(work.spectra), waves)) for name in ("forecast", "truth")}
        made.spectra_count = np.zeros(leads, np.int64)
        numbers, map_leads = work.maps
        made.maps = np.zeros((2, len(map_leads), len(numbers), *work.grid.shape))
        made.maps_count = np.zeros(len(map_leads), np.int64)
        return made

    def merge(self, other: Tally) -> Tally:
        """Adds what another one holds, whose inits are later, and returns itself."""
        for name, accumulator in self.accumulators.items():
            accumulator.merge(other.accumulators[name])
            self.mse[name] += other.mse[name]
        for name, accumulator in self.speeds.items():
            accumulator.merge(other.speeds[name])
        for name, table in self.seeps.items():
            table += other.seeps[name]
        self.inits += other.inits
        self.checks += other.checks
        for name in self.spectra:
            self.spectra[name] += other.spectra[name]
        self.spectra_count += other.spectra_count
        self.maps += other.maps
        self.maps_count += other.maps_count
        return self


def score(work: Work, workers: int, on_progress: Progress, scheduler: str | None = None) -> Tally:
    """Sums over all pairs.

    Args:
        work: What to score.
        workers: Threads.
        on_progress: Called with the number of inits done.
        scheduler: Address of a dask scheduler, whose workers see the same files; threads of this process otherwise.

    Raises:
        DataError: A file is damaged, or values are missing or impossible.
    """
    from dask.base import compute
    from dask.delayed import delayed

    inits = tuple(work.matches.pairs)
    done = 0

    def add(total: Tally, part: Tally) -> Tally:
        nonlocal done
        made = total.merge(part)
        done += 1
        on_progress("scoring", done, len(inits))
        return made

    # The work is bound, not passed: dask would look through everything that is passed for graphs of its own.
    score_one = delayed(partial(score_init, work), pure=False, traverse=False)
    if scheduler is not None:
        return _on_cluster(scheduler, [score_one(init) for init in inits], Tally.of(work), add)
    total = delayed(Tally.of(work), traverse=False)
    join = delayed(add, pure=False, traverse=False)
    on_progress("scoring", 0, len(inits))
    for init in inits:
        total = join(total, score_one(init))
    (made,) = compute(  # type: ignore[no-untyped-call]
        total, scheduler="threads" if workers > 1 else "sync", num_workers=workers
    )
    return made  # type: ignore[no-any-return]


def _on_cluster(address: str, tasks: Sequence[Any], total: Tally, add: Callable[[Tally, Tally], Tally]) -> Tally:
    from wm2cli.errors import ResourceError

    try:
        import distributed as loaded
    except ImportError:
        raise ResourceError("--scheduler needs dask.distributed", hint='pip install "wm2cli[cluster]"') from None
    distributed: Any = loaded  # half of it has no types
    try:
        client = distributed.Client(address, timeout=20)
    except (OSError, TimeoutError, ValueError) as error:
        raise ResourceError(f"no dask scheduler at {address}: {error}", hint="check its address") from error
    with client:
        for future in client.compute(list(tasks)):
            total = add(total, future.result())
            future.release()
    return total


def score_init(work: Work, init: Init) -> Tally:
    """Sums over all leads of one init.

    Raises:
        DataError: As `score`; says which pair.
    """
    tally, matches = Tally.of(work), work.matches
    shape = (len(matches.leads), len(matches.labels))
    tally.inits.append(init)
    errors = {name: np.full(shape, np.nan) for name in work.systems}
    checks: dict[str, Array] = {}
    start = work.truth.read(init) if matches.persistence else None
    leads = matches.pairs[init]
    per_lead = 4 * len(matches.labels) * work.forecasts.grid.lat.size * work.forecasts.grid.lon.size
    step = max(1, BLOCK_BYTES // (per_lead * max(1, work.forecasts.members)))
    for first in range(0, len(leads), step):
        some = leads[first : first + step]
        block, speeds = _read(work, work.forecasts, init, some)
        others = None if work.against is None else _read(work, work.against, init, some)
        for number, lead in enumerate(some):
            place = matches.leads.index(lead)
            valid = init + np.timedelta64(lead, "h")
            try:
                truth, truth_speeds = work.truth.read(valid)
                climatology = None if work.climatology is None else work.climatology.read(valid)[0]
                fields = {"forecast": (block[number], speeds[number])}
                if start is not None:
                    fields["persistence"] = start
                if climatology is not None:
                    fields["climatology"] = (climatology, speeds[:0])
                if others is not None:
                    fields["against"] = (others[0][number], others[1][number])
                singles = {name: values.mean(axis=0, dtype=np.float64) if work.systems[name] else values
                           for name, (values, _) in fields.items()}  # fmt: skip
                sums = system_sums(singles, truth, climatology, work.regions, skip_missing=work.skip_missing)
                for name, accumulator in tally.accumulators.items():
                    errors[name][place] = accumulator.add_sums(place, sums[name], fields[name][0], truth)[:, 0]
                if tally.speeds:
                    _add_speeds(work, tally, place, {name: pair[1] for name, pair in fields.items()}, truth_speeds)
                if work.rain:
                    _add_seeps(work, tally, place, singles, truth, valid)
            except DataError as error:
                where = f"{time_text(init)} + {lead} h: {error.message}"
                raise DataError(where, problems=error.problems, hint=error.hint) from error
            _add_rest(work, tally, lead, singles["forecast"], truth, checks, check_truth=lead in (leads[0], leads[-1]))
    for name, table in errors.items():
        tally.mse[name].append(table)
    tally.checks.append(checks)
    return tally


def _add_speeds(work: Work, tally: Tally, place: int, speeds: Mapping[str, Values], truth: Values) -> None:
    """The speeds of the winds of all systems that have them."""
    singles = {name: speeds[name].mean(axis=0, dtype=np.float64) if work.systems[name] else speeds[name]
               for name in tally.speeds}  # fmt: skip
    sums = system_sums(singles, truth, None, work.regions, skip_missing=work.skip_missing)
    for name, accumulator in tally.speeds.items():
        accumulator.add_sums(place, sums[name], speeds[name], truth)


def _add_rest(work: Work, tally: Tally, lead: int, forecast: Values, truth: Values, checks: dict[str, Array], *,
              check_truth: bool) -> None:  # fmt: skip
    """Spectra, maps and physical checks of one pair."""
    place = work.matches.leads.index(lead)
    if work.spectra:
        chosen = list(work.spectra)
        tally.spectra["forecast"][place] += band_spectrum(forecast[chosen], work.grid)
        tally.spectra["truth"][place] += band_spectrum(truth[chosen], work.grid)
        tally.spectra_count[place] += 1
    numbers, map_leads = work.maps
    if lead in map_leads:
        difference = np.subtract(forecast[list(numbers)], truth[list(numbers)], dtype=np.float64)
        tally.maps[0, map_leads.index(lead)] += difference
        tally.maps[1, map_leads.index(lead)] += difference**2
        tally.maps_count[map_leads.index(lead)] += 1
    # The truth's own residuals are there to compare with: two times of each init tell them.
    for prefix, values in (("", forecast), *((("truth_", truth),) if check_truth else ())):
        for name, value in check_state(values, work.matches.labels, work.grid, work.orography).items():
            table = checks.setdefault(prefix + name, np.full(len(work.matches.leads), np.nan))
            table[place] = value


def _add_seeps(work: Work, tally: Tally, place: int, fields: Mapping[str, Values], truth: Values, valid: Init) -> None:
    """SEEPS of one pair of all systems."""
    climatology: Any = None if work.climatology is None else work.climatology.series
    for channel in work.rain:
        label = work.matches.labels[channel]
        dry, heavy = (np.asarray(part, np.float64) for part in climatology.rain_classes(label, valid))
        limit = DRY_BELOW_M[split_label(label)[0].window_hours]
        for number, fraction in enumerate((dry, climatology.mean_dry_fraction(label))):
            for name, values in fields.items():
                found = seeps(values[channel], truth[channel], fraction, heavy, limit)
                valid_cells = np.isfinite(found)
                sums = tally.seeps[name][number, place, channel]
                sums[:, 0] += work.regions.sums(np.where(valid_cells, found, 0.0))
                sums[:, 1] += work.regions.sums(valid_cells.astype(np.float64))


def _read(work: Work, forecasts: Forecasts, init: Init, leads: Sequence[int]) -> tuple[Values, Values]:
    """(T, [M], C, H, W) on the grid of the scores, and (T, [M], S, H, W) speeds of winds.

    Raises:
        DataError: Most values of a channel are impossible in its unit: the unit is not what the file says.
    """
    values = forecasts.read(init, leads, work.matches.labels)
    problems = []
    least, most = span(values[0])
    low, high = bounds_of(work.matches.labels)
    for number in np.flatnonzero(((least < low) | (most > high)).reshape(-1, low.size).any(axis=0)):
        sample = values[0, ..., number, :, :]
        finite = sample[np.isfinite(sample)]
        # A forecast that went wrong in places is scored and shown by its checks; one in another unit is refused.
        if finite.size and not low[number] <= (middle := float(np.median(finite))) <= high[number]:
            label = work.matches.labels[number]
            problems.append(f"{label} is about {middle:.6g}, possible are {low[number]:.6g} to {high[number]:.6g} "
                            f"{split_label(label)[0].units}")  # fmt: skip
    if problems:
        where = f"{forecasts.label} at {time_text(init)} + {leads[0]} h"
        raise DataError(f"impossible values in {where}", problems=problems,
                        hint="check the unit that the file states")  # fmt: skip
    return with_speeds(values, work.winds, forecasts.grid, work.grid)
