"""Which forecasts can be verified: init + lead against the times of the truth, the climatology and a second forecast.

Every pair that cannot be used is kept with its reason; nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from wm2cli.errors import DataError, UsageError
from wm2cli.evaluation.datasets import split_label
from wm2cli.evaluation.forecasts import Forecasts
from wm2cli.evaluation.series import Climatology, Series
from wm2cli.reading.fields import time_text, times_text
from wm2cli.schema import VARIABLES, level_text, variable

Init: TypeAlias = np.datetime64
Pair: TypeAlias = tuple[Init, int]


@dataclass(frozen=True)
class Matches:
    """Pairs to score.

    Args:
        labels: C channels.
        leads: T leads in hours that have at least one pair.
        pairs: Leads of each init, in the order of inits.
        persistence: Whether the truth has every init, so that it can be held fixed.
        unmatched: Reason -> pairs that were left out for it.
        notes: What else was left out.
    """

    labels: tuple[str, ...]
    leads: tuple[int, ...]
    pairs: Mapping[Init, tuple[int, ...]]
    persistence: bool
    unmatched: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def valid_times(self) -> tuple[np.datetime64, ...]:
        """Those of all pairs, in order."""
        return tuple(sorted({init + np.timedelta64(lead, "h") for init, leads in self.pairs.items() for lead in leads}))

    @property
    def count(self) -> int:
        """Number of pairs."""
        return sum(map(len, self.pairs.values()))


def match_channels(
    forecasts: Forecasts, others: Mapping[str, Sequence[str]], variables: Sequence[str] | None,
    levels: Sequence[float] | None,
) -> tuple[tuple[str, ...], list[str]]:  # fmt: skip
    """The channels to score, and notes on those that were left out because nobody asked for them.

    Args:
        forecasts: What is scored.
        others: What truth and so on are called -> their channels.
        variables: Names (`z`, `t2m`) or channels (`z500`); None for all.
        levels: Levels in hPa; None for all.

    Raises:
        UsageError: A variable is unknown.
        DataError: A channel that was asked for is missing somewhere, or none is left; all are listed.
    """
    asked: dict[str, bool] = {}
    problems: list[str] = []

    def fits(label: str) -> bool:
        return levels is None or split_label(label)[1] in (None, *levels)

    for text in variables or ():
        names = [label for label in forecasts.channels if text in (label, split_label(label)[0].name)]
        names = [
            label for label in names if label == text or levels is None or split_label(label)[1] in (None, *levels)
        ]
        if not names:
            try:
                split_label(text) if text not in VARIABLES else variable(text)
            except UsageError:
                variable(text.rstrip("0123456789."))
            problems.append(f"the forecast has no {text}" + ("" if levels is None else " at these levels"))
        asked |= dict.fromkeys(names, True)
    if variables is None:
        asked = dict.fromkeys(filter(fits, forecasts.channels), True)
        have = {split_label(label)[1] for label in forecasts.channels}
        problems += [
            f"the forecast has no level {level_text(level)} hPa" for level in levels or () if level not in have
        ]
    notes: list[str] = []
    kept = dict(asked)
    for name, channels in others.items():
        there = set(channels)
        lacking = [label for label in asked if label not in there]
        if variables is not None:
            problems += [f"the {name} has no {label}" for label in lacking]
        elif lacking:
            notes.append(f"not scored, because the {name} lacks them: {' '.join(lacking)}")
        kept = {label: True for label in kept if label in there}
    if problems:
        raise DataError("not all that was asked for can be scored", problems=problems)
    if not kept:
        found = {"forecast": forecasts.channels, **others}
        raise DataError("forecast and truth have no channel in common",
                        problems=[f"{name}: {' '.join(labels)}" for name, labels in found.items()])  # fmt: skip
    return tuple(kept), notes


def match(forecasts: Forecasts, truth: Series, climatology: Climatology | None, against: Forecasts | None,
          labels: tuple[str, ...], leads: Sequence[int] | None = None) -> Matches:  # fmt: skip
    """Pairs for which everything is there.

    Raises:
        DataError: No pair is left, or a lead that was asked for is not forecast; says what there is.
    """
    wanted = forecasts.leads if leads is None else tuple(sorted(leads))
    absent = [lead for lead in wanted if lead not in forecasts.leads]
    if absent:
        raise DataError(f"the forecast has no lead of {', '.join(map(str, absent))} h",
                        hint=f"there are {_numbers(forecasts.leads)} h")  # fmt: skip
    unmatched: dict[str, list[Pair]] = {}
    pairs: dict[Init, tuple[int, ...]] = {}
    for init in forecasts.inits:
        good: list[int] = []
        for lead in wanted:
            valid = init + np.timedelta64(lead, "h")
            if not forecasts.has(init, lead):
                reason = "the forecast lacks the lead"
            elif not truth.has(valid):
                reason = f"the truth {truth.label} lacks the valid time"
            elif climatology is not None and not climatology.has(valid):
                reason = f"the climatology {climatology.label} lacks the hour or the day"
            elif against is not None and not against.has(init, lead):
                reason = f"the other forecast {against.label} lacks the pair"
            else:
                good.append(lead)
                continue
            unmatched.setdefault(reason, []).append((init, lead))
        if good:
            pairs[init] = tuple(good)
    if not pairs:
        spans = [f"forecast: inits {times_text(forecasts.inits)}, leads {_numbers(forecasts.leads)} h"]
        spans += [f"{reason}: {describe_pairs(some)}" for reason, some in unmatched.items()]
        raise DataError("no forecast can be verified: not one valid time is in the truth", problems=spans,
                        hint="give a truth for the valid times, init + lead")  # fmt: skip
    notes = []
    lacking = [init for init in pairs if not truth.has(init)]
    if lacking:
        notes.append(f"no scores of persistence: the truth lacks the inits {times_text(lacking)}")
    if against is not None:
        extra = sum(not forecasts.has(init, lead) for init in against.inits for lead in against.leads
                    if against.has(init, lead))  # fmt: skip
        if extra:
            notes.append(f"{extra} pairs of {against.label} were left aside: {forecasts.label} does not have them")
    found = tuple(lead for lead in wanted if any(lead in some for some in pairs.values()))
    return Matches(labels, found, pairs, not lacking, {reason: tuple(some) for reason, some in unmatched.items()},
                   tuple(notes))  # fmt: skip


def describe_pairs(pairs: Sequence[Pair]) -> str:
    """Pairs for people: `2024-01-01T00 + 6, 12, 18 h; ... (57 pairs)`."""
    by_init: dict[Init, list[int]] = {}
    for init, lead in pairs:
        by_init.setdefault(init, []).append(lead)
    texts = [f"{time_text(init)} + {_numbers(some)} h" for init, some in by_init.items()]
    shown = texts if len(texts) <= 4 else [*texts[:2], "...", *texts[-1:]]
    return f"{'; '.join(shown)} ({len(pairs)} pair{'s' if len(pairs) != 1 else ''})"


def _numbers(values: Sequence[int]) -> str:
    if len(values) <= 6:
        return ", ".join(map(str, values))
    return f"{values[0]}, {values[1]} ... {values[-1]}"
