"""Recipes: what `wm2 train` does, as a strict TOML file.

A recipe names a model and lists stages. A stage trains some parts of the model for a number of steps with one rate, one
source of data and a horizon that may grow. Bundled recipes are chosen by name.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wm2cli.config import from_mapping, to_mapping
from wm2cli.errors import ConfigError
from wm2cli.models.presets import PRESETS
from wm2cli.schema import VARIABLES

LEADS_OF_LOSS = ("leads", "lead_zero", "latent")
LEADS_OF_STAGE = ("lead_step", "horizon", "growth", "targets", "tail")
"""Settings of lead times that are drawn, which increments have not."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters follow their gradients.

    Args:
        name: `adamw` and `muon` are torch's; `shampoo` is `wm2cli.training.shampoo`.
        betas, epsilon: Of Adam; of Shampoo's filtered gradient and factor matrices.
        weight_decay: Decoupled.
        decay: What it acts on. `matrices` leaves out norms, biases and other vectors; `all-but-embeddings` leaves out
            the tables of positions and of variables alone, as Stormer's code does.
        momentum: Of Muon.
        linear_rate: Rate of the codecs' linear layers between fields and latent, as a share of the others'.
        precondition_every: Shampoo: steps between refreshes of the roots.
        max_preconditioner_dim: Shampoo: largest factor matrix.
    """

    name: Literal["adamw", "muon", "shampoo"] = "muon"
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    decay: Literal["matrices", "all-but-embeddings"] = "matrices"
    momentum: float = 0.95
    linear_rate: float = 1.0
    precondition_every: int = 20
    max_preconditioner_dim: int = 1024


@dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Args:
        kind: `l1` or `mse` of fields, or `increments`: the mean square error of the changes that a Stormer predicts,
            each sample over an interval of its own (arXiv 2312.03876, equations 1 to 4). Weighted by the area of rows.
        channels: Weights of channels: `difference` measures every channel in standard deviations of its change within
            six hours, `pressure` in standard deviations, times the level's share of the sum of all levels, so that a
            variable on levels counts as much as one at the surface (Stormer, equation 2), `equal` in standard
            deviations. Increments are in standard deviations of the change, which `difference` leaves as it is.
        variables: Further factors by variable (`z`) or channel (`z500`); 1 where nothing is said.
        weight_norm: What the channels' weights are divided by: their `sum`, which makes the loss a mean (Stormer's
            code), or their `count` (its paper).
        leads: Weights of lead times: `persistence` divides by the error of persistence at that lead, `equal` does not.
        lead_zero: Weight of the reconstruction at lead 0 where it is drawn.
        latent: Weight of the mean square of latents, which keeps encoders and steps on one scale.

    `leads`, `lead_zero` and `latent` are of no use to increments and cannot be set there.
    """

    kind: Literal["l1", "mse", "increments"] = "l1"
    channels: Literal["difference", "pressure", "equal"] = "difference"
    variables: Mapping[str, float] = field(default_factory=dict)
    weight_norm: Literal["sum", "count"] = "sum"
    leads: Literal["persistence", "equal"] = "persistence"
    lead_zero: float = 0.1
    latent: float = 1e-4


@dataclass(frozen=True)
class Stage:
    """One part of the training.

    Args:
        name: For logs and files.
        steps: Updates that the schedules of rate and horizon are made for.
        stop: End after so many of them all the same; none is cut off when None.
        rate: Highest learning rate.
        trainable: `all`, or any of `encoder:NAME`, `processor:HOURS`, `decoder`, `blend` (the weights by which the
            latents of several encoders are mixed); the rest is frozen and stays the same to the bit.
        data: Store that targets come from, and the input of the first encoder.
        inputs: Store that each encoder reads; the first encoder reads `data` when empty. Several are blended.
        lead_step: Lead times of targets are multiples of this many hours.
        horizon: Longest lead time in hours, at the beginning and at the end of the stage.
        growth: How the horizon goes from the one to the other; `mixed` takes every length evenly all the time, so that
            long lead times are not learnt at the price of short ones; `mixed-quadratic` takes short ones more often,
            half of the steps in the first quarter of the lengths.
        targets: Lead times drawn in a step: the horizon, and others at random below it, lead 0 among them.
        tail: Hours before the horizon in which targets lie and through which gradients flow; the way there is made
            without them, which is how a forecast learns to stay sound beyond what fits into memory. All when None.
        rollout: Steps that follow one another from each sample, for increments, in place of what is said of lead times:
            each sample draws one of the model's intervals for all of them.
        batch: Samples in a step, over all ranks.
        micro: Samples in one pass; smaller needs less memory. Gradients are added up as a fixed tree of these.
        schedule: `cosine`, or `constant` with a linear cooldown at the end.
        warmup: Steps in which the rate rises; the last of them has all of it.
        initial: Rate of the first of these, as a share of `rate`; the same rise as in the others when None.
        cooldown: Share of the steps in which a constant rate falls.
        final: Rate at the end, as a share of `rate`.
    """

    name: str
    steps: int
    rate: float
    trainable: tuple[str, ...] = ("all",)
    data: str = "main"
    inputs: Mapping[str, str] = field(default_factory=dict)
    lead_step: int = 6
    horizon: tuple[int, int] = (6, 6)
    growth: Literal["linear", "quadratic", "mixed", "mixed-quadratic"] = "linear"
    targets: int = 1
    tail: int | None = None
    rollout: int = 1
    batch: int = 8
    micro: int = 4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 0
    initial: float | None = None
    cooldown: float = 0.2
    final: float = 0.0
    stop: int | None = None

    @property
    def length(self) -> int:
        """Updates that are made."""
        return self.steps if self.stop is None else self.stop


@dataclass(frozen=True)
class ExtraEncoder:
    """An encoder that is added to the model of the starting weights.

    Args:
        name: Of the analysis it will read.
        like: Encoder whose weights it begins with.
        levels: Levels it reads, hPa; those of `like` when empty.
        weight: Share in a blend.
    """

    name: str
    like: str
    levels: tuple[float, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A whole training.

    Args:
        name: Of the recipe, and of the weights that come out.
        stages: In order.
        model: Preset of `wm2cli.models.presets`; or
        start: Checkpoint to start from, whose architecture and statistics are kept.
        encoders: Encoders to add to those of `start`.
        static: Static fields that the model reads; all that the preset names when None.
        seed: Of weights, samples, horizons and targets.
        optimizer, loss: See there.
        ema: Decay of the running mean of weights that is validated and exported; 0 uses the weights themselves.
        clip: Largest global norm of a gradient; 0 does not clip.
        precision: `auto` is bf16 where the device has it, else fp32.
        checkpoint: Activations kept for the backward pass: all, the input of each block, or of each step (nested).
        offload: Keep them in host memory.
        compile: Compile the transformer block.
        validate_every, save_every: Steps.
        keep: Number of last checkpoints kept beside the best one.
        validation_times: Initial times of a validation.
        validation_leads: Hours; those that a stage's store does not hold are left out.
        skips: Steps in a row that may be skipped for a loss that is not finite or explodes.
        explosion: A loss this many times the running mean counts as exploded.
        half: Store the exported weights in 16 bits.
        comment: For people; goes into the exported weights.
    """

    name: str
    stages: tuple[Stage, ...]
    model: str | None = None
    start: str | None = None
    encoders: tuple[ExtraEncoder, ...] = ()
    static: tuple[str, ...] | None = None
    seed: int = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    ema: float = 0.999
    clip: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint: Literal["none", "block", "step"] = "none"
    offload: bool = False
    compile: bool = False
    validate_every: int = 200
    save_every: int = 100
    keep: int = 2
    validation_times: int = 16
    validation_leads: tuple[int, ...] = (6, 24, 72, 120, 240)
    skips: int = 5
    explosion: float = 10.0
    half: bool = False
    comment: str = ""

    @property
    def steps(self) -> int:
        """Updates of all stages."""
        return sum(stage.length for stage in self.stages)

    def check(self) -> Recipe:
        """The recipe itself, when it is possible.

        Raises:
            ConfigError: Everything that is not, one line each.
        """
        problems = []
        if (self.model is None) == (self.start is None):
            problems.append("give either 'model' (a preset) or 'start' (a checkpoint)")
        if self.model is not None and self.model not in PRESETS:
            near = difflib.get_close_matches(self.model, PRESETS, n=1)
            problems.append(f"there is no preset '{self.model}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        if not self.stages:
            problems.append("there are no stages")
        if self.encoders and self.start is None:
            problems.append("encoders can only be added to weights: give 'start'")
        names = [stage.name for stage in self.stages]
        problems += [f"two stages are called '{name}'" for name in sorted({n for n in names if names.count(n) > 1})]
        for name, value, low in (("ema", self.ema, 0.0), ("clip", self.clip, 0.0), ("skips", self.skips, 0),
                                 ("validate_every", self.validate_every, 1), ("save_every", self.save_every, 1),
                                 ("keep", self.keep, 1), ("validation_times", self.validation_times, 1)):  # fmt: skip
            if not low <= value < math.inf:  # NaN neither
                problems.append(f"{name} must be at least {low}, found {value}")
        if self.seed < 0:
            problems.append(f"seed must be at least 0, found {self.seed}")
        if not self.validation_leads or min(self.validation_leads) < 1:
            problems.append(f"validation_leads must be hours of at least 1, found {list(self.validation_leads)}")
        if self.ema >= 1:
            problems.append(f"ema must be below 1, found {self.ema}")
        if not self.explosion > 1:
            problems.append(f"explosion must be above 1, found {self.explosion}")
        problems += _optimizer_problems(self.optimizer)
        problems += _loss_problems(self.loss)
        increments = self.loss.kind == "increments"
        for stage in self.stages:
            found = _stage_problems(stage) + (_increment_problems(stage) if increments else _lead_problems(stage))
            problems += [f"stage {stage.name}: {text}" for text in found]
        if problems:
            raise ConfigError(f"the recipe {self.name} is not possible", problems=problems)
        return self


def _optimizer_problems(optimizer: OptimizerConfig) -> list[str]:
    problems = [f"optimizer.{name} must be in [0, 1), found {value}"
                for name, value in (("betas", optimizer.betas[0]), ("betas", optimizer.betas[1]),
                                    ("momentum", optimizer.momentum)) if not 0 <= value < 1]  # fmt: skip
    least = dict.fromkeys(("epsilon", "weight_decay", "linear_rate"), 0.0)
    least |= dict.fromkeys(("precondition_every", "max_preconditioner_dim"), 1)
    problems += [f"optimizer.{name} must be at least {low:g}, found {getattr(optimizer, name)}"
                 for name, low in least.items() if not low <= getattr(optimizer, name) < math.inf]  # fmt: skip
    return problems


def _loss_problems(loss: LossConfig) -> list[str]:
    problems = [f"loss.{name} must be at least 0, found {value}"
                for name, value in (("lead_zero", loss.lead_zero), ("latent", loss.latent))
                if not 0 <= value < math.inf]  # fmt: skip
    for key, value in loss.variables.items():
        if not 0 <= value < math.inf:
            problems.append(f"loss.variables.{key} must be a number of at least 0, found {value!r}")
        elif key.rstrip("0123456789.") not in VARIABLES and key not in VARIABLES:
            problems.append(f"loss.variables.{key} is no variable and no channel")
    if loss.kind == "increments":
        if loss.channels == "equal":
            problems.append("loss.channels must be difference or pressure for increments, found equal")
        problems += [f"loss.{name} is of no use to increments: leave it out" for name in _set(loss, LEADS_OF_LOSS)]
    return problems


def _increment_problems(stage: Stage) -> list[str]:
    problems = [f"{name} is of no use to increments, whose lead times are rollout steps of the model: leave it out"
                for name in _set(stage, LEADS_OF_STAGE)]  # fmt: skip
    return problems + ([f"rollout must be at least 1, found {stage.rollout}"] if stage.rollout < 1 else [])


def _set(config: LossConfig | Stage, names: Sequence[str]) -> list[str]:
    """Those of some fields that do not have their default."""
    return [name for name in names if getattr(config, name) != getattr(type(config), name)]


def _stage_problems(stage: Stage) -> list[str]:
    counts = {name: getattr(stage, name) for name in ("steps", "batch", "micro")}
    problems = [f"{name} must be at least 1, found {value}" for name, value in counts.items() if value < 1]
    if stage.stop is not None and not 1 <= stage.stop <= stage.steps:
        problems.append(f"stop must be 1 to {stage.steps}, found {stage.stop}")
    if not 0 < stage.rate < math.inf:
        problems.append(f"rate must be positive, found {stage.rate}")
    if stage.micro >= 1 and stage.batch % stage.micro:
        problems.append(f"a batch of {stage.batch} is not a number of passes of {stage.micro}")
    if not 0 <= stage.warmup <= stage.steps:
        problems.append(f"warmup must be 0 to {stage.steps}, found {stage.warmup}")
    if not all(0 <= share <= 1 for share in (stage.cooldown, stage.final, stage.initial or 0.0)):
        problems.append("cooldown, initial and final are shares from 0 to 1")
    if not stage.trainable:
        problems.append("nothing is trainable")
    for part in stage.trainable:
        head, _, tail = part.partition(":")
        if not (part in ("all", "decoder", "blend") or (head in ("encoder", "processor") and tail)):
            problems.append(
                f"'{part}' is no part of a model; parts are all, encoder:NAME, processor:HOURS, decoder, blend"
            )
    return problems


def _lead_problems(stage: Stage) -> list[str]:
    problems = [f"{name} must be at least 1, found {getattr(stage, name)}" for name in ("lead_step", "targets")
                if getattr(stage, name) < 1]  # fmt: skip
    first, last = stage.horizon
    if stage.lead_step >= 1 and (first < stage.lead_step or last < first or last % stage.lead_step):
        problems.append(f"horizon {list(stage.horizon)} must rise in multiples of {stage.lead_step} h")
    if stage.tail is not None and (stage.tail < stage.lead_step or stage.tail % 6 or stage.horizon[0] % 6):
        problems.append(f"tail must be a multiple of 6 h and at least {stage.lead_step} h, found {stage.tail}")
    if stage.rollout != 1:
        problems.append("rollout is for increments alone (loss.kind): say how far it goes by horizon")
    return problems


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe by name or path, with changes applied.

    Args:
        name: A bundled recipe, or the path of a TOML file.
        changes: `key=value` with the value as in TOML; `optimizer.name="adamw"`, `stages.1.steps=500`.

    Raises:
        ConfigError: No such recipe, not TOML, unknown keys (with the nearest known one), impossible values.
    """
    path = Path(name)
    if path.suffix == ".toml":
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the recipe {path} cannot be read: {error}") from error
    else:
        text = _bundled(name)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the recipe {name} is not TOML: {error}") from error
    for change in changes:
        _apply(values, change)
    return from_mapping(Recipe, values).check()


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with wm2."""
    folder = importlib.resources.files("wm2cli.recipes")
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def recipe_text(recipe: Recipe) -> str:
    """A resolved recipe as JSON, for run folders and weights."""
    return json.dumps(to_mapping(recipe), indent=2)


def recipe_from_text(text: str) -> Recipe:
    """The inverse of `recipe_text`."""
    return from_mapping(Recipe, json.loads(text)).check()


def _bundled(name: str) -> str:
    known = bundled_recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"there is no recipe '{name}'", hint=f"{meant}bundled are {', '.join(known)}; or give the "
                          "path of a .toml file")  # fmt: skip
    return (importlib.resources.files("wm2cli.recipes") / f"{name}.toml").read_text()


def _apply(values: dict[str, Any], change: str) -> None:
    """Sets one value of a nested mapping from `a.b=VALUE`."""
    key, found, text = change.partition("=")
    if not found or not key:
        raise ConfigError(f"'{change}' is no change", hint="write --set key=value, as in --set optimizer.name=adamw")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word
    place: Any = values
    *parents, last = key.split(".")
    try:
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"the recipe has no '{key}'") from error
