"""Scores that others have published, to be drawn beside ours where both may be compared.

`published.csv` holds the global RMSE and ACC of 2022 at 1.5 degrees of the website of WeatherBench 2. Scores on another
grid, of another year or of simulated weather are something else: z500 at day 1 differs by 3 % between 0.25 and 1.5
degrees, t2m by 34 %.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from wm2cli.grid import Grid

YEAR = "2022"
GRID = Grid.regular(1.5)


@dataclass(frozen=True)
class Curve:
    """A published score by lead, in SI units.

    Args:
        model: Its name.
        truth: What it was verified against.
        leads_hours, values: The points.
    """

    model: str
    truth: str
    leads_hours: tuple[int, ...]
    values: tuple[float, ...]


def curves(score: str, channel: str, truth: str | None = None) -> tuple[Curve, ...]:
    """The published curves of a score (`rmse`, `acc`) of a channel; empty where there are none.

    Args:
        score, channel: What.
        truth: `ERA5` or `IFS analysis`: only those verified against it.
    """
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    lines = files("wm2cli.evaluation").joinpath("published.csv").read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        if row["score"] == score and row["channel"] == channel:
            points = found.setdefault((row["model"], row["truth"]), [])
            points.append((int(row["lead_hours"]), float(row["value"])))
    return tuple(
        Curve(model, against, tuple(lead for lead, _ in points), tuple(value for _, value in points))
        for (model, against), points in found.items()
        if truth in (None, against)
    )


def truth_of(names: str) -> str | None:
    """Which of the published truths ours is, by what its file says; None when it is neither."""
    plain = names.lower()
    if "era5" in plain:
        return "ERA5"
    return "IFS analysis" if "ifs" in plain or "hres" in plain else None


def why_not_comparable(grid: Grid, years: str, kinds: Sequence[str], region: str) -> list[str]:
    """What forbids to draw the published scores beside ours, one line each; empty when nothing does.

    Args:
        grid: Of our scores.
        years: Of our inits.
        kinds: `provenance.kind_of_weather` of forecast and truth.
        region: Of our scores.
    """
    reasons = []
    if "simulated" in kinds:
        reasons.append("this is simulated weather")
    if grid != GRID:
        reasons.append(f"the grid is {grid.describe()}, theirs {GRID.describe()} (--grid 1.5)")
    if years not in (YEAR, f"{YEAR}-2023"):
        reasons.append(f"the inits are of {years}, theirs of {YEAR}")
    if region != "global":
        reasons.append(f"the region is {region}, theirs global")
    return reasons
