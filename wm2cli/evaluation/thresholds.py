"""Thresholds for pipelines: `rmse:z500@24h>60` crosses when the score is above 60."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from wm2cli.errors import UsageError
from wm2cli.evaluation.results import Evaluation

_FORM = re.compile(
    r"(?P<score>[a-z_]+):(?P<label>[A-Za-z0-9_.]+)(@(?P<lead>\d+(\.\d+)?)(?P<unit>[hd]))?(/(?P<region>[^<>]+))?"
    r"\s*(?P<sign>[<>])\s*(?P<bound>[-+]?[0-9.]+(e[-+]?\d+)?)"
)


@dataclass(frozen=True)
class Threshold:
    """A bound on a score that must not be crossed.

    Args:
        text: As given.
        score: `rmse`, `acc`, `skill_persistence`, ...
        label: Channel.
        lead_hours: Lead, or None for every one.
        region: Region, or None for the first.
        above: Whether it is crossed by values above the bound, or by those below.
        bound: In the variable's own unit.
    """

    text: str
    score: str
    label: str
    lead_hours: int | None
    region: str | None
    above: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """A threshold from `SCORE:CHANNEL[@LEADh|d][/REGION]>BOUND` or `<BOUND`.

        Raises:
            UsageError: Not of this form.
        """
        found = _FORM.fullmatch(text.strip())
        hours = float(found["lead"]) * (24 if found["unit"] == "d" else 1) if found and found["lead"] else None
        if found is None or (hours is not None and hours != int(hours)):
            hint = "SCORE:CHANNEL[@LEADh][/REGION]>BOUND, such as 'skill_persistence:t2m@3d/europe<0.1'"
            raise UsageError(f"'{text}' is no threshold as rmse:z500@24h>60", hint=hint)
        region = found["region"] and found["region"].strip()
        return cls(text.strip(), found["score"], found["label"], None if hours is None else int(hours), region,
                   found["sign"] == ">", float(found["bound"]))  # fmt: skip

    def problems(self, scope: Scope) -> list[str]:
        """What it asks for that is not evaluated, one line each."""
        lead = None if self.lead_hours is None else f"{self.lead_hours} h"
        lines = []
        for what, name, names in (
            ("score", self.score, scope.scores), ("channel", self.label, scope.labels),
            ("lead of", lead, [f"{hours} h" for hours in scope.leads]), ("region", self.region, scope.regions),
        ):  # fmt: skip
            if name is None or name in names:
                continue
            near = [] if name == lead else difflib.get_close_matches(name, names, n=2, cutoff=0.7)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {shortened(names)}"
            lines.append(f"'{self.text}': no {what} {name} is evaluated; {hint}")
        return lines

    def crossed(self, evaluation: Evaluation) -> list[str]:
        """How it is crossed, one line a lead; a score that is undefined crosses every bound."""
        lines = []
        for lead in evaluation.leads if self.lead_hours is None else (self.lead_hours,):
            value = evaluation.value(self.score, self.label, lead, self.region)
            if math.isnan(value):
                lines.append(f"{self.text}: {self.score} of {self.label} at {lead} h is undefined")
            elif value > self.bound if self.above else value < self.bound:
                lines.append(f"{self.text}: {self.score} of {self.label} at {lead} h is {value:.6g}")
        return lines


@dataclass(frozen=True)
class Scope:
    """What is evaluated, known before anything is scored: names of scores, channels and regions, and leads in hours."""

    scores: tuple[str, ...]
    labels: tuple[str, ...]
    leads: tuple[int, ...]
    regions: tuple[str, ...]


def check(thresholds: Sequence[Threshold], scope: Scope) -> None:
    """Refuses thresholds on what is not evaluated.

    Raises:
        UsageError: All of them, with the nearest that is.
    """
    problems = [line for threshold in thresholds for line in threshold.problems(scope)]
    if problems:
        hint = "what is scored can be chosen by --variables, --levels, --leads, --region, --climatology and --against"
        raise UsageError("the thresholds ask for what is not evaluated", problems=problems, hint=hint)


def crossed(thresholds: Sequence[Threshold], evaluation: Evaluation) -> list[str]:
    """Every way in which thresholds are crossed.

    Raises:
        UsageError: A threshold asks for something that was not evaluated.
    """
    check(thresholds, Scope(evaluation.score_names, evaluation.labels, evaluation.leads, evaluation.regions))
    return [line for threshold in thresholds for line in threshold.crossed(evaluation)]


def shortened(names: Sequence[str]) -> str:
    """Names in one line, the middle of many left out."""
    return ", ".join(names if len(names) <= 12 else [*names[:8], "...", names[-1]])
