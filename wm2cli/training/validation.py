"""Validation during training: pooled errors of forecasts beside those of persistence and climatology."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm2cli.models import Model
from wm2cli.rollout import WAYS, Route, rollout
from wm2cli.schema import Schema
from wm2cli.state import State
from wm2cli.training.samples import Samples, View

HEADLINES = ("z500", "t850", "u850", "q700", "t2m", "u10", "msl")
"""Channels that are reported, where the model has them."""

TERMS = 5
"""Of a climatology: the mean, and two harmonics of the year with two terms each."""

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Climatology:
    """Mean and two annual harmonics of some channels at each point, fitted by least squares.

    Args:
        coefficients: (5, C, H, W); (1, C, H, W), the mean alone, where the times leave out a month of the year.
    """

    coefficients: Values

    @classmethod
    def fit(cls, view: View, split: str, names: Sequence[str], every: int, on_progress: Callable[[int, int], None]
            ) -> Climatology:  # fmt: skip
        """Fits to every so many times of a split."""
        store = view.store
        places = store.split_indices(split)[::every]
        # Harmonics that some months do not determine would run away in the months between.
        months = {int(month) % 12 for month in store.time[places].astype("datetime64[M]").astype(np.int64)}
        terms = TERMS if len(months) == 12 else 1
        normal, moments = np.zeros((terms, terms)), np.zeros((terms, len(names), *store.grid.shape))
        for start in range(0, len(places), 64):
            some = places[start : start + 64]
            design = _harmonics(store.time[some], terms)
            values = np.stack([channel(view.read(some), name).numpy() for name in names], axis=1).astype(np.float64)
            normal += design.T @ design
            moments += np.tensordot(design, values, axes=(0, 0))
            on_progress(min(start + 64, len(places)), len(places))
        solved = np.linalg.solve(normal, moments.reshape(terms, -1)).astype(np.float64)
        return cls(solved.reshape(moments.shape))

    def at(self, times: NDArray[np.datetime64]) -> Values:
        """(T, C, H, W) at times."""
        return np.tensordot(_harmonics(times, len(self.coefficients)), self.coefficients, axes=(1, 0))


def _harmonics(times: NDArray[np.datetime64], terms: int) -> Values:
    seconds = (times - times.astype("datetime64[Y]")).astype("timedelta64[s]").astype(np.float64)
    angle = 2 * np.pi * seconds / (365.25 * 86400.0)
    waves = [np.ones_like(angle), np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)]
    return np.stack(waves[:terms], axis=1)


def headlines(schema: Schema) -> list[str]:
    """Channels of a schema that are reported; its first ones when it has none of the usual ones."""
    return [name for name in HEADLINES if name in schema.channels] or list(schema.channels[:4])


def channel(state: State, name: str) -> Tensor:
    """(B, H, W) of a channel by its name, as `z500` or `t2m`."""
    place = state.schema.channels.index(name)
    upper = len(state.schema.pressure) * len(state.schema.levels)
    if place < upper:
        return state.pressure.flatten(1, 2)[:, place]
    return state.surface[:, place - upper]


@dataclass(frozen=True, eq=False)
class Validation:
    """A fixed set of forecasts to make.

    Args:
        samples: Of the validation split.
        chosen: Places of the initial times.
        leads: Hours.
        climatology: Of the headline channels.
    """

    samples: Samples
    chosen: NDArray[np.int64]
    leads: tuple[int, ...]
    climatology: Climatology

    def run(self, model: Model, device: torch.device, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Errors by channel and lead time.

        Returns:
            `rmse`: {channel: {lead: {"forecast", "persistence", "climatology"}}}, root of the mean square pooled over
            initial times and area; `activity`: the standard deviation of the forecast's anomalies over the truth's;
            `score`: mean over channels and leads of the forecast's error over the climatology's.
        """
        names = headlines(model.schema_out)
        area = self.samples.grid.area_weights()[:, None]
        area = area / (area.sum() * self.samples.grid.shape[1])  # sums to one over the globe
        route = Route.along(WAYS[model.paths](model.steps, self.leads))
        sums = {kind: np.zeros((len(self.leads), len(names))) for kind in
                ("forecast", "persistence", "climatology", "made", "true")}  # fmt: skip
        for done, place in enumerate(self.chosen):
            on_progress(done, len(self.chosen))
            batch = self.samples.read(np.array([place]), (0, *self.leads))
            first = _stack(batch.targets[0], names)
            inputs = {name: state.to(device) for name, state in batch.inputs.items()}
            for lead, state in rollout(model, model.encode(inputs), route):
                row = self.leads.index(lead)
                truth, made = _stack(batch.targets[lead], names), _stack(state.to("cpu"), names)
                usual = self.climatology.at(batch.targets[lead].time)[0]
                for kind, error in (("forecast", made - truth), ("persistence", first - truth),
                                    ("climatology", usual - truth), ("made", made - usual),
                                    ("true", truth - usual)):  # fmt: skip
                    sums[kind][row] += (error**2 * area).sum(axis=(-2, -1))
        roots = {kind: np.sqrt(values / len(self.chosen)) for kind, values in sums.items()}
        rmse = {
            name: {
                str(lead): {
                    kind: float(roots[kind][row, column]) for kind in ("forecast", "persistence", "climatology")
                }
                for row, lead in enumerate(self.leads)
            }
            for column, name in enumerate(names)
        }
        activity = {
            name: {str(lead): float(roots["made"][row, column] / max(roots["true"][row, column], 1e-30))
                   for row, lead in enumerate(self.leads)}
            for column, name in enumerate(names)
        }  # fmt: skip
        score = float(np.mean(roots["forecast"] / np.maximum(roots["climatology"], 1e-30)))
        return {"rmse": rmse, "activity": activity, "score": score, "times": len(self.chosen)}


def summary(result: Mapping[str, Any]) -> str:
    """One line for people: errors of the first headline over its leads."""
    name = next(iter(result["rmse"]))
    parts = [
        f"{int(lead) / 24:g} d {found['forecast']:.4g} (persistence {found['persistence']:.4g}, climatology "
        f"{found['climatology']:.4g})"
        for lead, found in result["rmse"][name].items()
    ]
    return f"{name} RMSE: {'; '.join(parts)}; score {result['score']:.3f}"


def _stack(state: State, names: Sequence[str]) -> Values:
    """(C, H, W) of the first instant."""
    return np.stack([channel(state, name)[0].double().numpy() for name in names])
