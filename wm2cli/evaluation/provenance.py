"""What is compared with what: metadata for every output, warnings where it is not comparable, and the bundled truth.

Scores mean little without the source of the initial fields and of the truth, the grid, the year and the climatology. A
model started from one centre's analysis is at a disadvantage against another's, most of all in the first days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import wm2cli
from wm2cli import bundled
from wm2cli.evaluation.forecasts import Forecasts
from wm2cli.evaluation.matching import Matches
from wm2cli.evaluation.series import Climatology, Series, kind_of_weather
from wm2cli.grid import Grid
from wm2cli.reading.fields import time_text

SIMULATED = "simulated weather: these scores say nothing about skill on the real atmosphere"


@dataclass(frozen=True)
class BundledTruth:
    """Truth and climatology that come with wm2."""

    truth: tuple[Path, ...]
    climatology: Path | None


def bundled_truth(attributes: Mapping[str, Any], inits: Sequence[np.datetime64]) -> BundledTruth | None:
    """The bundled truth of forecasts from the bundled sample; None for any others.

    Args:
        attributes: Global attributes of the forecast file.
        inits: Its starts.
    """
    if str(attributes.get("initial_conditions_source", "")) != "sample":
        return None
    found = [bundled.sample_truth(init) for init in inits]
    paths = tuple(dict.fromkeys(path for path in found if path is not None))
    if not paths or len(found) > sum(path is not None for path in found):
        return None
    return BundledTruth(paths, bundled.sample_climatology())


def metadata(forecasts: Forecasts, truth: Series, climatology: Climatology | None, against: Forecasts | None,
             matches: Matches, grid: Grid, regions: tuple[str, ...], *, skip_missing: bool,
             command_line: str) -> dict[str, Any]:  # fmt: skip
    """What stands in every output: section by section what was compared, and by which rules."""
    inits = tuple(matches.pairs)
    years = sorted({str(init.astype("datetime64[Y]")) for init in inits})
    made: dict[str, Any] = {
        "wm2": wm2cli.__version__,
        "forecast": forecasts.label,
        "forecast_model": _first(forecasts.attributes, "model", "source", "title"),
        "forecast_weights": _first(forecasts.attributes, "weights_name"),
        "forecast_initial_conditions": _first(forecasts.attributes, "initial_conditions_source"),
        "forecast_kind": forecasts.kind,
        "members": forecasts.members or 1,
        "truth": truth.label,
        "truth_source": _first(truth.attributes, "title", "source", "institution"),
        "truth_kind": kind_of_weather(truth.attributes),
        "climatology": "none" if climatology is None else climatology.label,
        "climatology_years": "none" if climatology is None else _first(climatology.attributes, "years", "period"),
        "grid": grid.describe(),
        "inits": _span(inits),
        "years": "-".join(dict.fromkeys((years[0], years[-1]))),
        "pairs": matches.count,
        "regions": ", ".join(regions),
        "rules": "cell-area weights; RMSE: root last; ACC: uncentred, pooled; sums in float64; "
        + ("cells with missing values left out" if skip_missing else "no missing values"),
    }
    if against is not None:
        made["against"] = against.label
        made["against_initial_conditions"] = _first(against.attributes, "initial_conditions_source")
    if command_line:
        made["command_line"] = command_line
    return made


def warnings_of(forecasts: Forecasts, truth: Series, climatology: Climatology | None, against: Forecasts | None
                ) -> list[str]:  # fmt: skip
    """What makes a comparison doubtful, one line each."""
    lines = []
    kinds = {"forecast": forecasts.kind, "truth": kind_of_weather(truth.attributes)}
    if against is not None:
        kinds["other forecast"] = against.kind
    if climatology is not None:
        kinds["climatology"] = kind_of_weather(climatology.attributes)
    simulated = [name for name, kind in kinds.items() if kind == "simulated"]
    real = [name for name, kind in kinds.items() if kind in ("reanalysis", "analysis")]
    if simulated:
        lines.append(SIMULATED)
    if simulated and real:
        lines.append(
            f"not comparable: {' and '.join(simulated)} of simulated weather, {' and '.join(real)} of the real one"
        )
    if str(forecasts.attributes.get("weights_trained", "yes")) == "no":
        lines.append("the weights are untrained: this is no forecast")
    source = _source(forecasts.attributes, "initial_conditions_source")
    found = _source(truth.attributes, "source", "title")
    if source and found and source != found:
        lines.append(f"started from {source}, verified against {found}: errors of the first days include how much the "
                     "two analyses differ")  # fmt: skip
    other = None if against is None else _source(against.attributes, "initial_conditions_source")
    if source and other and source != other:
        lines.append(f"not comparable in the first days: started from {source} and from {other}")
    if against is not None and against.grid != forecasts.grid:
        lines.append(f"the forecasts were made on different grids: {forecasts.grid.describe()} and "
                     f"{against.grid.describe()}; both are scored on one")  # fmt: skip
    return lines


def _source(attributes: Mapping[str, Any], *names: str) -> str | None:
    """One of the known centres that an attribute names."""
    text = " ".join(str(attributes.get(name, "")) for name in names).lower()
    for centre in ("era5", "gfs", "ifs", "hres"):
        if centre in text:
            return "ifs" if centre == "hres" else centre
    return "era5" if "arco" in text else None


def _first(attributes: Mapping[str, Any], *names: str) -> str:
    return next((str(attributes[name]) for name in names if attributes.get(name)), "not stated")


def _span(inits: Sequence[np.datetime64]) -> str:
    if len(inits) == 1:
        return time_text(inits[0])
    return f"{time_text(inits[0])} to {time_text(inits[-1])} ({len(inits)} of them)"
