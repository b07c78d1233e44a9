"""What an evaluation found, as tables for people and programs."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm2cli.errors import ResourceError
from wm2cli.evaluation.datasets import split_label
from wm2cli.evaluation.physics import REFERENCE, REFERENCE_MODELS
from wm2cli.evaluation.significance import Comparison
from wm2cli.grid import Grid

Array = NDArray[np.float64]

FORMAT = 1

HEADLINE = ("z500", "t850", "q700", "wind850", "t2m", "msl", "speed10m", "wind10m", "tp_6h")
"""What the field looks at first."""

NAMED_LEADS_HOURS = (24, 72, 120, 168, 240, 336)
"""Leads that scores are quoted at."""

USEFUL_ACC = 0.6
"""Anomaly correlation down to which a forecast of the large scale is called useful."""

BASELINES = ("persistence", "climatology", "against")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of `wm2 evaluate`.

    Args:
        labels: C channels, the wind vectors (`wind850`, `wind10m`) and speeds (`speed850`, `speed10m`) among them.
        leads: T leads in hours.
        regions: R names.
        scores: System -> score -> (T, C, R); systems are `forecast` and those of `BASELINES` there are.
        count: (T,) pairs at each lead.
        comparisons: Baseline -> difference of the forecast's MSE from its, first region, (T, C).
        spectra: `labels`, `wavelengths_km`, `forecast` and `truth` (T, S, K), `effective_resolution_km` (T, S).
        maps: `labels`, `leads`, `rmse` and `bias` (M, P, H, W), `lat`, `lon`; empty unless asked for.
        checks: Name -> (T,) for forecast and truth; see `physics.check_state`.
        metadata: What was compared with what.
        grid: Of the scores.
        warnings: What makes the comparison doubtful.
        notes: What was left out and why.
        unmatched: Reason -> text naming the pairs.
    """

    labels: tuple[str, ...]
    leads: tuple[int, ...]
    regions: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Array]]
    count: NDArray[np.int64]
    comparisons: Mapping[str, Comparison]
    spectra: Mapping[str, Any]
    maps: Mapping[str, Any]
    checks: Mapping[str, Array]
    metadata: Mapping[str, Any]
    grid: Grid
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unmatched: Mapping[str, str] = field(default_factory=dict)

    @property
    def baselines(self) -> tuple[str, ...]:
        """The baselines there are."""
        return tuple(name for name in BASELINES if name in self.scores)

    def value(self, score: str, label: str, lead: int, region: str | None = None, system: str = "forecast") -> float:
        """One number; NaN where undefined. `skill_<baseline>` is 1 - RMSE / RMSE of the baseline."""
        place = (self.leads.index(lead), self.labels.index(label), self.regions.index(region) if region else 0)
        return float(self.table(score, system)[place])

    def table(self, score: str, system: str = "forecast") -> Array:
        """(T, C, R) of a score."""
        baseline = score.removeprefix("skill_")
        if baseline != score:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(1.0 - self.scores["forecast"]["rmse"] / self.scores[baseline]["rmse"])
        return np.asarray(self.scores[system][score])

    @property
    def score_names(self) -> tuple[str, ...]:
        """Every score of the forecast, the skills included."""
        return (*self.scores["forecast"], *(f"skill_{name}" for name in self.baselines))

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a number: system, score, variable, level_hpa, channel, lead_hours, region, value, units, pairs."""
        for system, made in self.scores.items():
            names = self.score_names if system == "forecast" else tuple(made)
            for score in names:
                table = self.table(score, system)
                for (lead, channel, region), value in np.ndenumerate(table):
                    if not math.isnan(value):
                        name, level, units = describe(self.labels[channel])
                        yield {
                            "system": system, "score": score, "variable": name, "level_hpa": level,
                            "channel": self.labels[channel], "lead_hours": self.leads[lead],
                            "region": self.regions[region], "value": float(value),
                            "units": units_of(score, units), "pairs": int(self.count[lead]),
                        }  # fmt: skip

    def headline_labels(self) -> tuple[str, ...]:
        """The channels of `HEADLINE` there are, or the first few."""
        return tuple(label for label in HEADLINE if label in self.labels) or self.labels[:6]

    def headline_leads(self) -> tuple[int, ...]:
        """The leads of `NAMED_LEADS_HOURS` there are, or up to six spread over all."""
        named = tuple(lead for lead in NAMED_LEADS_HOURS if lead in self.leads)
        if len(named) >= min(3, len(self.leads)):
            return named
        daily = tuple(lead for lead in self.leads if lead and lead % 24 == 0)
        among = daily if len(daily) > 1 else self.leads
        places = np.unique(np.linspace(0, len(among) - 1, min(6, len(among))).round().astype(int))
        return tuple(among[place] for place in places)

    def verdict(self) -> str:
        """Is it any good? One line."""
        label = self.headline_labels()[0]
        lead = self.headline_leads()[-1] if len(self.leads) > 1 else self.leads[0]
        shown = next((hours for hours in (120, 72, 24) if hours in self.leads), lead)
        factor, units = display_units(label)
        parts = [f"{label} RMSE {self.value('rmse', label, shown) * factor:.4g} {units} at {lead_text(shown)}"]
        for name in self.baselines:
            skill = self.value(f"skill_{name}", label, shown)
            if math.isfinite(skill):
                what = {"against": "the other forecast"}.get(name, name)
                parts.append(f"{abs(skill) * 100:.0f} % {'better' if skill >= 0 else 'worse'} than {what}")
        if "climatology" in self.baselines:
            acc = (
                self.table("acc")[:, self.labels.index(label), 0] if "acc" in self.scores["forecast"] else np.array([])
            )
            below = next((place for place, value in enumerate(acc) if not value >= USEFUL_ACC), len(acc))
            if below:
                parts.append(f"anomaly correlation above {USEFUL_ACC} up to {lead_text(self.leads[below - 1])}")
            elif np.isfinite(acc).any():
                parts.append(f"anomaly correlation below {USEFUL_ACC} from the first lead on")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """One JSON document; undefined numbers are null."""
        return {
            "format": FORMAT,
            "verdict": self.verdict(),
            "metadata": dict(self.metadata),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "unmatched": dict(self.unmatched),
            "leads_hours": list(self.leads),
            "pairs": self.count.tolist(),
            "regions": list(self.regions),
            "scores": {
                system: {
                    score: self._by_channel(self.table(score, system))
                    for score in (self.score_names if system == "forecast" else made)
                }
                for system, made in self.scores.items()
            },
            "significance": {name: self._compared(found) for name, found in self.comparisons.items()},
            "spectra": {
                "channels": list(self.spectra.get("labels", ())),
                "wavelengths_km": [number(value) for value in self.spectra.get("wavelengths_km", ())],
                **{name: _nested(self.spectra[name]) for name in ("forecast", "truth", "effective_resolution_km")
                   if name in self.spectra},
            },
            "physics": {name: _nested(values) for name, values in self.checks.items()},
        }  # fmt: skip

    def _by_channel(self, table: Array) -> dict[str, dict[str, list[float | None]]]:
        """Channel -> region -> values by lead; channels for which nothing is defined are left out."""
        return {
            label: {region: _nested(table[:, c, r]) for r, region in enumerate(self.regions)}
            for c, label in enumerate(self.labels)
            if np.isfinite(table[:, c]).any()
        }

    def _compared(self, found: Comparison) -> dict[str, Any]:
        """Channel -> difference of the MSE with its interval, and whether it is more than chance, by lead."""
        return {
            label: {
                "mse_difference": _nested(found.mean[:, c]),
                "low": _nested(found.low[:, c]),
                "high": _nested(found.high[:, c]),
                "significant": found.significant[:, c].tolist(),
                "blocks": found.blocks[:, c].tolist(),
            }
            for c, label in enumerate(self.labels[: found.mean.shape[1]])
        }


def describe(label: str) -> tuple[str, float | None, str]:
    """Variable, level and unit of a channel, or of a wind vector or its speed."""
    if label.startswith(("wind", "speed")):
        part = split_label(wind_parts(label)[0])
        return "wind" if label.startswith("wind") else "wind_speed", part[1], part[0].units
    known, level = split_label(label)
    return known.name, level, known.units


def wind_parts(label: str) -> tuple[str, str]:
    """The components of a wind vector or speed: `wind850` -> u850, v850; `speed10m` -> u10, v10."""
    place = label.removeprefix("wind").removeprefix("speed")
    if place.endswith("m"):
        return f"u{place[:-1]}", f"v{place[:-1]}"
    clash = place in ("10", "100")  # the names of the winds 10 and 100 m above the ground
    return (f"u{place}hPa", f"v{place}hPa") if clash else (f"u{place}", f"v{place}")


def wind_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The wind vectors that both components are there of."""
    made = []
    for label in labels:
        known, level = split_label(label)
        if known.name == "u" and level is not None:
            made.append(f"wind{level:g}")
        elif known.name in ("u10", "u100"):
            made.append(f"wind{known.name[1:]}m")
    return tuple(label for label in made if set(wind_parts(label)) <= set(labels))


def all_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Channels as they stand in results: with the wind vectors and, `speed850` for `wind850`, their speeds behind."""
    winds = wind_labels(labels)
    return (*labels, *winds, *(f"speed{wind.removeprefix('wind')}" for wind in winds))


def units_of(score: str, units: str) -> str:
    """The unit of a score of a variable."""
    if score.startswith(("acc", "skill", "spread_skill", "seeps")):
        return "1"
    return f"({units})2" if score == "mse" else units


def display_units(label: str) -> tuple[float, str]:
    """Factor and unit that people read a channel in."""
    name, _, units = describe(label)
    if name in ("q", "q2m"):
        return 1000.0, "g/kg"
    if units == "m":
        return 1000.0, "mm"
    return 1.0, {"m2 s-2": "m²/s²", "m s-1": "m/s", "J m-2": "J/m²"}.get(units, units)


def lead_text(hours: int) -> str:
    """`6 h`, `1 day`, `5 days`."""
    if hours % 24 or hours == 0:
        return f"{hours} h"
    return "1 day" if hours == 24 else f"{hours // 24} days"


def number(value: float) -> float | None:
    """A number as JSON knows it: None where undefined."""
    return float(value) if math.isfinite(value) else None


def physics_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The physical checks, one row each: what, forecast at the first and the last lead, truth, published values."""
    checks, rows = evaluation.checks, []

    def text(name: str, form: str, scale: float = 1.0) -> tuple[str, str, str]:
        ours, truth = checks[name] * scale, checks.get(f"truth_{name}", np.array([np.nan])) * scale
        good, known = ours[np.isfinite(ours)], truth[np.isfinite(truth)]
        first, last = (format(good[0], form), format(good[-1], form)) if good.size else ("-", "-")
        return first, last, format(known.mean(), form) if known.size else "-"

    table = (
        ("not_finite", "values that are not finite", "", ".0f", 1.0),
        ("out_of_range", "values out of range", "", ".0f", 1.0),
        ("humidity_negative_share", "humidity below zero", "%", ".3g", 100.0),
        ("humidity_lowest", "lowest humidity", "g/kg", ".3g", 1000.0),
        ("height_inversions", "height falls upwards", "", ".0f", 1.0),
        ("hydrostatic_rmse", "hydrostatic residual", "m²/s²", ".1f", 1.0),
        ("geostrophic_rmse", "ageostrophic wind 500", "m/s", ".2f", 1.0),
        ("dry_mass_drift", "drift of dry mass", "%/day", ".2g", 1.0),
        ("activity_ratio", "activity, to the truth's", "", ".3f", 1.0),
        ("effective_resolution_km", "effective resolution", "km", ".0f", 1.0),
    )
    for name, what, units, form, scale in table:
        if name in checks:
            first, last, truth = text(name, form, scale)
            known = {model: REFERENCE.get(name, {}).get(model, "") for model in REFERENCE_MODELS}
            rows.append({"check": name, "what": what, "units": units, "first": first, "last": last, "truth": truth,
                         **known})  # fmt: skip
    return rows


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """The tidy table as CSV, its metadata in comment lines before it.

    Raises:
        ResourceError: It cannot be written.
    """
    stream = io.StringIO()
    for name, value in evaluation.metadata.items():
        stream.write(f"# {name}: {' '.join(str(value).split())}\n")
    for warning in evaluation.warnings:
        stream.write(f"# warning: {warning}\n")
    rows = list(evaluation.rows())
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ["system"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "value": repr(row["value"])} for row in rows)
    with replacing(path) as partial:
        partial.write_text(stream.getvalue(), encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well and is removed when it does not.

    Raises:
        ResourceError: The folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror or error}", hint="choose another folder") from error
    finally:
        partial.unlink(missing_ok=True)


def _nested(values: Array) -> Any:
    """An array as nested lists with None where undefined."""
    if values.ndim == 1:
        return [number(value) for value in values]
    return [_nested(part) for part in values]
