"""What the stages of a recipe need, made once a stage: samples, weights of the loss, a validation.

What any stage lacks is said before the first step, not after days.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from wm2cli.errors import ConfigError, DataError, UsageError
from wm2cli.models.stormer import Stormer
from wm2cli.rollout import WAYS
from wm2cli.store import Store
from wm2cli.training.build import Built, part_problems
from wm2cli.training.losses import Weights, make_weights, persistence_errors
from wm2cli.training.recipes import Recipe, Stage
from wm2cli.training.samples import Samples, View
from wm2cli.training.schedule import horizon
from wm2cli.training.validation import Climatology, Validation, headlines

JUDGED = 16
"""Samples that the error of persistence is taken from."""

FITTED = 1500
"""Times that a climatology is fitted to, about a year of six-hourly fields."""


def check_passes(recipe: Recipe, ranks: int, stores: Mapping[str, Store]) -> None:
    """Refuses a recipe whose passes do not divide among the ranks, or whose stores were not given.

    Raises:
        ConfigError: As said; everything is listed.
    """
    problems = []
    for stage in recipe.stages:
        passes = stage.batch // stage.micro
        if passes % ranks:
            problems.append(f"stage {stage.name}: {passes} passes (batch {stage.batch} / micro {stage.micro}) do not "
                            f"divide among {ranks} ranks")  # fmt: skip
        problems += [f"stage {stage.name} needs the store '{name}': give --data {name}=PATH"
                     for name in (stage.data, *stage.inputs.values()) if name not in stores]  # fmt: skip
    if problems:
        raise ConfigError("the recipe cannot be run so", problems=list(dict.fromkeys(problems)))


@dataclass(frozen=True, eq=False)
class Preparation:
    """Makes what stages need.

    Args:
        recipe: The whole recipe.
        stores: By name.
        built: The model.
        device: Where it is trained.
    """

    recipe: Recipe
    stores: Mapping[str, Store]
    built: Built
    device: torch.device

    def check(self) -> None:
        """Refuses what a stage cannot be run with.

        Raises:
            ConfigError: Parts or encoders that the model has not, or lead times that its steps do not reach.
            DataError: Stores that lack channels, times or splits, or lie on another grid.
        """
        impossible, lacking = [], []
        if self.intervals() and not isinstance(self.built.model, Stormer):
            impossible.append(f"increments are what a Stormer predicts, and the model is a {self.built.kind}: set "
                              "loss.kind to l1 or mse")  # fmt: skip
        for stage in self.recipe.stages:
            problems = part_problems(self.built, stage.trainable)
            if not self.intervals():
                problems += self._unreachable(range(stage.lead_step, stage.horizon[1] + 1, stage.lead_step))
            try:
                self.samples(stage, "train")
            except ConfigError as error:
                problems += [error.message]
            except DataError as error:
                lacking.append(f"stage {stage.name}: {_whole(error)}")
            impossible += [f"stage {stage.name}: {text}" for text in problems]
        if impossible:
            raise ConfigError("the recipe cannot be run so", problems=impossible)
        if lacking:
            raise DataError("the stores do not have what the recipe needs", problems=lacking,
                            hint="make the stores again with `wm2 preprocess`, or change the recipe")  # fmt: skip

    def intervals(self) -> tuple[int, ...]:
        """Hours from which samples draw, for increments; none for other losses."""
        return self.built.model.steps if self.recipe.loss.kind == "increments" else ()

    def horizon(self, stage: Stage, step: int | None = None) -> int:
        """Longest lead time of a step of a stage in hours, or of the whole stage."""
        if intervals := self.intervals():
            return stage.rollout * max(intervals)
        return stage.horizon[1] if step is None else horizon(stage, step)

    def samples(self, stage: Stage, split: str, longest: int | None = None, step: int | None = None) -> Samples:
        """All samples of a stage in a split.

        Args:
            stage: Says which stores are read.
            split: `train` or `validation`.
            longest: Longest lead time in hours; the stage's when None.
            step: Hours that all lead times are multiples of; the stage's when None.

        Raises:
            ConfigError: The model has no such encoder.
            DataError: The stores do not have it.
        """
        model = self.built.model
        configs = model.inputs
        names = dict(stage.inputs) or {next(iter(configs)): stage.data}
        unknown = [name for name in names if name not in configs]
        if unknown:
            raise ConfigError(f"the model has no encoder {', '.join(unknown)}; it has {', '.join(configs)}")
        inputs = {name: View(self.stores[data], configs[name]) for name, data in names.items()}
        target = View(self.stores[stage.data], model.schema_out)
        if target.store.grid != model.grid:
            raise DataError(f"the store {target.store.path} is on {target.store.grid.describe()}, the model on "
                            f"{model.grid.describe()}", hint="make another store with `wm2 preprocess`")  # fmt: skip
        if step is None:
            step = math.gcd(*self.intervals()) or stage.lead_step
        return Samples(inputs, target, split, self.horizon(stage) if longest is None else longest, step)

    def weights(self, stage: Stage, number: int, samples: Samples) -> Weights:
        """The weights of a stage's loss.

        Args:
            stage: With the number `number` in the recipe.
            number: Decides, with the recipe's seed, at which samples persistence is judged.
            samples: To judge persistence by.
        """
        loss, model = self.recipe.loss, self.built.model
        equal = make_weights(loss, model.schema_out, model.grid, model.normalizer, {}, self.device)
        if loss.leads == "equal" or loss.kind == "increments":
            return equal
        leads = tuple(range(stage.lead_step, stage.horizon[1] + 1, stage.lead_step))
        generator = np.random.Generator(np.random.Philox(key=[self.recipe.seed, number]))
        chosen = np.sort(generator.choice(len(samples), size=min(JUDGED, len(samples)), replace=False))
        errors = persistence_errors(
            lambda place, wanted: samples.read(chosen[place : place + 1], wanted).to(self.device),
            len(chosen), model, equal, loss.kind, leads,
        )  # fmt: skip
        # Relative to six hours or the shortest lead time: what is hard counts less, but not less than a tenth.
        unit = errors.get(6, errors[leads[0]])
        table = {lead: max(0.1, unit / error) if error > 0 else 1.0 for lead, error in errors.items()}
        return replace(equal, leads=table)

    def validation(
        self, stage: Stage, on_progress: Callable[[str, int, int], None], on_note: Callable[[str], None]
    ) -> Validation | None:
        """The forecasts that are made to judge a stage; None, and a note why, when its store has nothing for them."""
        store = self.stores[stage.data]
        way = self.built.model.paths
        leads = tuple(lead for lead in sorted(set(self.recipe.validation_leads))
                      if lead % store.step_hours == 0 and not self._unreachable((lead,), way))  # fmt: skip
        try:
            if not leads:
                raise DataError(f"the model's steps reach none of the validation_leads that are multiples of the "
                                f"{store.step_hours} h of {store.path}")  # fmt: skip
            samples = self.samples(stage, "validation", max(leads), step=store.step_hours)
        except DataError as error:
            on_note(f"no validation in stage {stage.name}: {_whole(error)}")
            return None
        count = min(self.recipe.validation_times, len(samples))
        chosen = np.linspace(0, len(samples) - 1, count).round().astype(np.int64)
        climatology = Climatology.fit(
            samples.target, "train", headlines(self.built.model.schema_out),
            max(1, len(store.split_indices("train")) // FITTED),
            lambda done, total: on_progress("fitting a climatology", done, total),
        )  # fmt: skip
        return Validation(samples, chosen, leads, climatology)

    def _unreachable(self, leads: Sequence[int], way: str = "longest") -> list[str]:
        """What is wrong with lead times that the model's steps do not reach in a way."""
        try:
            WAYS[way](self.built.model.steps, leads)
        except UsageError as error:
            return [error.message]
        return []


def _whole(error: DataError) -> str:
    """An error on one line."""
    return "; ".join((error.message, *error.problems))
