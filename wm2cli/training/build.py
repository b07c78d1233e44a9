"""The model of a recipe: made anew, or from weights with encoders added; and which of its parts a stage trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import wm2cli
from wm2cli import checkpoint, weights
from wm2cli.checkpoint import Header
from wm2cli.errors import ConfigError, DataError
from wm2cli.models import MODELS
from wm2cli.models.presets import preset
from wm2cli.models.weathermesh2 import EncoderConfig, WeatherMesh2Config
from wm2cli.schema import Schema
from wm2cli.state import Normalizer
from wm2cli.store import Store
from wm2cli.training.recipes import Recipe

BLEND = "blend"


@dataclass(eq=False)
class Built:
    """A model under training.

    Args:
        model: The network, on the CPU at first.
        kind: Key of `MODELS`.
        static: Static fields that go into the weights.
        origin: Origin of each static field.
        trained_before: What the starting weights say of their training, if there were any.
        blend: Logarithms of the blending weights while these are trained.
        notes: For people.
    """

    model: Any
    kind: str
    static: Mapping[str, Tensor]
    origin: Mapping[str, str]
    trained_before: Mapping[str, Any]
    blend: nn.Parameter
    notes: tuple[str, ...] = ()

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter by name, the blending weights last."""
        yield from self.model.named_parameters()
        yield BLEND, self.blend

    def to(self, device: torch.device) -> None:
        """Moves everything that is trained to a device."""
        self.model.to(device)
        self.blend.data = self.blend.data.to(device)

    def settle(self) -> None:
        """Writes the trained blending weights into the configuration, where `encode` finds them."""
        if len(self.model.inputs) == 1:
            return
        config = self.model.config
        encoders = tuple(
            replace(encoder, weight=share)
            for encoder, share in zip(config.encoders, self.blend.detach().softmax(0).tolist(), strict=True)
        )
        self.model.config = replace(config, encoders=encoders)

    def shares(self) -> dict[str, Tensor] | None:
        """Share of each encoder in a blend, when these are trained; else those of the configuration hold."""
        if not self.blend.requires_grad:
            return None
        return dict(zip(self.model.inputs, self.blend.softmax(0).unbind(), strict=True))

    def _years(self, recipe: Recipe, stores: Mapping[str, Store]) -> list[list[str]]:
        """All times that the weights have learnt from, in any stage and before: what they must not be judged by."""
        read = dict.fromkeys(stage.data for stage in recipe.stages)
        ranges = [(str(first), str(last)) for name in read for first, last in stores[name].splits["train"]]
        earlier = [(str(first), str(last)) for first, last in self.trained_before.get("train", ())]
        return [list(pair) for pair in sorted({*earlier, *ranges})]

    def header(self, recipe: Recipe, stores: Mapping[str, Store], steps: int, validation: Mapping[str, Any] | None
               ) -> Header:  # fmt: skip
        """What exported weights say about themselves."""
        main = stores[recipe.stages[-1].data]
        config = self.model.config
        kinds = sorted({store.kind for store in stores.values()})
        training = {
            "data": "; ".join(dict.fromkeys(store.title for store in stores.values())),
            "kind": "simulated" if "simulated" in kinds else main.kind,
            "recipe": recipe.name,
            "steps": steps,
            "train": self._years(recipe, stores),
            "stores": {name: store.fingerprint for name, store in stores.items()},
            "comment": recipe.comment,
            "wm2": wm2cli.__version__,
        }
        if validation:
            training["validation"] = {"rmse": validation["rmse"], "times": validation["times"]}
        if self.trained_before:
            training["before"] = dict(self.trained_before)
        return Header(self.kind, recipe.name, config, self.model.normalizer, trained=True, training=training,
                      static=self.origin)  # fmt: skip


def build(recipe: Recipe, stores: Mapping[str, Store]) -> Built:
    """The model of a recipe before its first step.

    Raises:
        DataError: The store lacks statistics or static fields that the model needs; all are listed.
        ConfigError: Encoders that cannot be added, or a model that cannot be built.
        CheckpointError: The starting weights cannot be used.
    """
    main = stores[recipe.stages[0].data]
    return _from_weights(recipe) if recipe.start is not None else _anew(recipe, main)


def trainable(built: Built, parts: Sequence[str]) -> list[tuple[str, nn.Parameter]]:
    """Freezes everything but some parts, and gives the parameters of these with their names.

    Raises:
        ConfigError: The model has no such part; all are named.
    """
    if problems := part_problems(built, parts):
        raise ConfigError("this cannot be trained", problems=problems)
    prefixes = [_prefix(part) for part in parts]
    chosen = []
    for name, parameter in built.named():
        wanted = any(name.startswith(prefix) for prefix in prefixes) if name != BLEND else BLEND in parts
        parameter.requires_grad_(wanted)
        if wanted:
            chosen.append((name, parameter))
    return chosen


def part_problems(built: Built, parts: Sequence[str]) -> list[str]:
    """Which of some parts of a model there are not."""
    names = [name for name, _ in built.named()]
    problems = [f"the model has no {part}" for part in parts
                if part != "all" and not any(name.startswith(_prefix(part)) for name in names)]  # fmt: skip
    if BLEND in parts and len(built.model.inputs) < 2:
        problems.append("there is nothing to blend: the model has one encoder")
    return problems


def _prefix(part: str) -> str:
    head, _, tail = part.partition(":")
    return {"all": "", "decoder": "decoder.", BLEND: BLEND, "encoder": f"encoders.{tail}.",
            "processor": f"processors.{tail}."}[head]  # fmt: skip


def _anew(recipe: Recipe, store: Store) -> Built:
    chosen = preset(str(recipe.model))
    config = chosen.config
    if recipe.static and not isinstance(config, WeatherMesh2Config):
        raise ConfigError(f"{recipe.model} reads no static fields, the recipe names {', '.join(recipe.static)}",
                          hint="leave static out of the recipe")  # fmt: skip
    if recipe.static is not None and isinstance(config, WeatherMesh2Config):
        config = replace(
            config, schema_out=replace(config.schema_out, static=recipe.static),
            encoders=tuple(replace(e, schema=replace(e.schema, static=recipe.static)) for e in config.encoders),
        )  # fmt: skip
    problems = []
    if store.grid != chosen.grid:
        problems.append(f"the store is on {store.grid.describe()}, the model on {chosen.grid.describe()}")
    channels = {c: None for schema in (*config.inputs.values(), config.schema_out) for c in schema.channels}
    have = set(store.schema.channels)
    problems += [f"{name} is missing" for name in channels if name not in have]
    problems += [f"static field {name} is missing" for name in config.schema_out.static if name not in store.static]
    if problems:
        raise DataError(f"the store {store.path} does not fit the model {recipe.model}", problems=problems,
                        hint="make another store with `wm2 preprocess`, or set static = [...] in the recipe for static "
                        "fields that do not exist")  # fmt: skip
    whole = Normalizer.from_dict(store.normalizer)
    normalizer = Normalizer(
        {c: whole.mean[c] for c in channels}, {c: whole.std[c] for c in channels},
        {step: {c: table[c] for c in channels} for step, table in whole.difference_std.items()},
        {name: floor for name, floor in whole.log_floor.items() if name in channels},
    )  # fmt: skip
    static = {name: torch.from_numpy(store.static[name].copy()) for name in config.schema_out.static}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = MODELS[chosen.kind][1](config, chosen.grid, normalizer, static)
    origin = dict.fromkeys(static, store.title)
    return Built(model, chosen.kind, static, origin, {}, _blend(config))


def _from_weights(recipe: Recipe) -> Built:
    loaded = checkpoint.load(weights.resolve(recipe.start))
    model: Any = loaded.model
    notes: tuple[str, ...] = ()
    if recipe.encoders:
        config = model.config
        if not isinstance(config, WeatherMesh2Config):
            raise ConfigError(f"no encoders can be added to {loaded.header.name}, a {loaded.header.model}")
        known = {encoder.name: encoder for encoder in config.encoders}
        problems = [f"'{extra.name}' is there already" for extra in recipe.encoders if extra.name in known]
        problems += [f"'{extra.name}' is to begin as '{extra.like}', which is not there" for extra in recipe.encoders
                     if extra.like not in known]  # fmt: skip
        if problems:
            raise ConfigError("the encoders cannot be added", problems=problems)
        added = tuple(
            EncoderConfig(extra.name, _with_levels(known[extra.like].schema, extra.levels), extra.weight)
            for extra in recipe.encoders
        )
        config = replace(config, encoders=(*config.encoders, *added))
        larger = MODELS[loaded.header.model][1](config, model.grid, model.normalizer, loaded.static)
        values = dict(model.state_dict())
        for extra in recipe.encoders:
            values |= {
                name.replace(f"encoders.{extra.like}.", f"encoders.{extra.name}.", 1): value
                for name, value in model.state_dict().items()
                if name.startswith(f"encoders.{extra.like}.")
            }
            notes += (f"encoder {extra.name} begins as {extra.like}",)
        larger.load_state_dict(values)
        model = larger
    header = loaded.header
    return Built(model.requires_grad_(True).train(), header.model, loaded.static, header.static,
                 {"name": header.name, "sha256": loaded.sha256, **header.training}, _blend(model.config),
                 (f"starting from {header.name} ({Path(loaded.path).name})", *notes))  # fmt: skip


def _with_levels(schema: Schema, levels: tuple[float, ...]) -> Schema:
    return replace(schema, levels=levels) if levels else schema


def _blend(config: Any) -> nn.Parameter:
    parts = [encoder.weight for encoder in config.encoders] if isinstance(config, WeatherMesh2Config) else [1.0]
    shares = torch.tensor(parts, dtype=torch.float32).clamp(min=1e-6)
    return nn.Parameter((shares / shares.sum()).log())
