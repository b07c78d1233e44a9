"""Training stores of made-up weather, and networks small enough to be trained in a test.

The weather is waves that travel round the globe without change of shape: six hours ahead is a matter of phase, which a
network can learn in a few hundred steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wm2cli import checkpoint
from wm2cli.checkpoint import Header
from wm2cli.grid import Grid
from wm2cli.models import MODELS
from wm2cli.models.presets import Preset
from wm2cli.models.stormer import StormerConfig
from wm2cli.models.weathermesh2 import EncoderConfig, ProcessorConfig, WeatherMesh2Config
from wm2cli.preprocessing.target import Contents, Target, write_times
from wm2cli.schema import Schema, log_floors
from wm2cli.state import Normalizer
from wm2cli.store import Dtype, Store, open_store
from wm2cli.training.loop import Options, Result, train
from wm2cli.training.recipes import LossConfig, Recipe, Stage, recipe_from_text, recipe_text

GRID = Grid.regular(22.5, "cells")  # 8 x 16
FORCING = ("radiation", "sin_year", "cos_year")
STATIC = ("orog", "lsm")
INPUTS = Schema(("z", "t"), (500, 850), ("t2m",), STATIC, FORCING)
OUTPUTS = Schema(("z", "t"), (500, 850), ("t2m", "tp_6h"), STATIC, FORCING)
STORED = Schema(("z", "t"), (500, 850), ("t2m", "tp_6h"), STATIC)

SCALES = {"z500": (55000.0, 2500.0), "z850": (14000.0, 1200.0), "t500": (255.0, 10.0), "t850": (280.0, 12.0),
          "t2m": (287.0, 14.0), "tp_6h": (1e-3, 2e-3)}  # fmt: skip
"""Mean and amplitude of the channels."""


def waves(time: NDArray[np.datetime64], grid: Grid, channels: Sequence[str], shift: float = 0.0) -> NDArray[np.float32]:
    """(T, C, H, W): per channel two waves that go round the globe in 8 and 12 days, smooth towards the poles.

    Args:
        time: Instants.
        grid: Grid of shape (H, W).
        channels: Keys of `SCALES`.
        shift: Phase in radians: another analysis of the same weather, when it is small.
    """
    hours = (time - np.datetime64("2020-01-01", "s")).astype(np.float64) / 3600.0
    turn = 2 * np.pi * hours[:, None, None]
    lat, lon = np.deg2rad(grid.lat)[:, None], np.deg2rad(grid.lon)
    made = []
    for number, name in enumerate(channels):
        mean, size = SCALES[name]
        first = np.sin(lon - turn / (8 * 24) + number + shift) * np.cos(lat)
        second = np.cos(2 * lon - turn / (12 * 24) - 2 * number) * np.cos(lat) ** 2 * np.sin(lat)
        made.append(np.maximum(mean + size * (first + second), 0.0 if name == "tp_6h" else -np.inf))
    return np.stack(made, axis=1).astype(np.float32)


def statistics(values: NDArray[np.float32], channels: Sequence[str], step_hours: int) -> dict[str, Any]:
    """What a store says of its training times."""
    floors = log_floors(channels)
    wide = values.astype(np.float64)
    for name, floor in floors.items():
        place = channels.index(name)
        wide[:, place] = np.log(wide[:, place] + floor)

    def table(numbers: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(channels, numbers.tolist(), strict=True))

    steps = [hours for hours in dict.fromkeys((step_hours, 6, 12, 24)) if hours % step_hours == 0]
    changes = {str(hours): (wide[hours // step_hours :] - wide[: -(hours // step_hours)]) for hours in steps}
    return {"mean": table(wide.mean(axis=(0, 2, 3))), "std": table(wide.std(axis=(0, 2, 3))),
            "difference_std": {hours: table(change.std(axis=(0, 2, 3))) for hours, change in changes.items()},
            "log_floor": floors}  # fmt: skip


def make_store(
    path: Path, *, days: int = 16, first: str = "2020-03-01", step_hours: int = 6, schema: Schema = STORED,
    grid: Grid = GRID, shift: float = 0.0, dtype: Dtype = "float16", spoiled: Mapping[int, float] | None = None,
    splits: Mapping[str, tuple[float, float]] | None = None,
) -> Store:  # fmt: skip
    """A complete store.

    Args:
        path: Its folder.
        days, first, step_hours: Of the time axis.
        schema, grid, dtype: As in a store; `float32` keeps what `spoiled` puts in.
        shift: See `waves`.
        spoiled: Values that fill a whole time, by its place.
        splits: Shares of the time axis where each begins and ends; training and validation by default.
    """
    time = np.datetime64(first, "s") + np.arange(days * 24 // step_hours) * np.timedelta64(step_hours, "h")
    values = waves(time, grid, schema.channels, shift)
    shares = splits or {"train": (0.0, 0.7), "validation": (0.7, 1.0)}
    places = {name: (round(low * time.size), round(high * time.size) - 1) for name, (low, high) in shares.items()}
    low, high = places["train"]
    normalizer = statistics(values[low : high + 1], schema.channels, step_hours)
    for place, value in (spoiled or {}).items():
        values[place] = value
    height = np.random.Generator(np.random.Philox(3)).random(grid.shape).astype(np.float32)
    fields = {"orog": 3000 * height, "lsm": (height > 0.6).astype(np.float32)}
    contents = Contents(
        schema=schema, grid=grid, time=time, step_hours=step_hours, dtype=dtype,
        splits={name: ((time[begin], time[end]),) for name, (begin, end) in places.items()},
        static={name: fields[name] for name in schema.static},
        provenance={"kind": "simulated", "title": "travelling waves"}, settings={"shift": shift},
    )  # fmt: skip
    with Target(path, contents) as target:
        target.set_normalizer(normalizer)
        everything = np.arange(time.size)
        target.record(everything, write_times(target.part, everything, values, target.coding))
        target.finish()
    return open_store(path)


def toy(encoders: Sequence[str] = ("era5",), **changes: Any) -> WeatherMesh2Config:
    """A network of some twenty thousand parameters."""
    values: dict[str, Any] = {
        "encoders": tuple(EncoderConfig(name, INPUTS) for name in encoders),
        "processors": (ProcessorConfig(6, 1), ProcessorConfig(1, 1)), "schema_out": OUTPUTS,
        "width": 24, "heads": 2, "patch": (2, 2, 2), "window": (2, 3, 3), "encoder_blocks": 1, "decoder_blocks": 1,
        "surface_widths": (8,), "codec_blocks": 1, "shortcut": True, "branch_scale": 1.0,
    }  # fmt: skip
    return WeatherMesh2Config(**{**values, **changes})


PRESET = Preset("toy", 22.5, "cells", toy())

STORMER = StormerConfig(Schema(("z", "t"), (500, 850), ("t2m",)), ("t2m", "z500", "z850", "t500", "t850"), 2, 32, 1, 2)
"""A Stormer of some twenty thousand parameters that reads a part of the stores."""

INCREMENTS = LossConfig(kind="increments", channels="pressure", variables={"t2m": 0.5})


def untrained(path: Path, store: Store, encoders: Sequence[str] = ("era5",), **changes: Any) -> Path:
    """Weights to start from, with the statistics of a store, so that commands need no preset for tests."""
    return _begin(path, store, "weathermesh2", toy(encoders, **changes))


def untrained_stormer(path: Path, store: Store) -> Path:
    """The same of a Stormer."""
    return _begin(path, store, "stormer", STORMER)


def _begin(path: Path, store: Store, kind: str, config: Any) -> Path:
    whole = Normalizer.from_dict(store.normalizer)
    channels = config.schema_out.channels
    changes = {hours: {name: table[name] for name in channels} for hours, table in whole.difference_std.items()}
    floors = {name: floor for name, floor in whole.log_floor.items() if name in channels}
    normalizer = Normalizer({name: whole.mean[name] for name in channels}, {name: whole.std[name] for name in channels},
                            changes, floors)  # fmt: skip
    static = {name: torch.from_numpy(store.static[name].copy()) for name in config.schema_out.static}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = MODELS[kind][1](config, GRID, normalizer, static)
    header = Header(kind, "toy", config, model.normalizer, static=dict.fromkeys(static, "made up"))
    checkpoint.save(path, model, header, static)
    return path


def toy_recipe(start: Path | None = None, *stages: Stage, optimizer: str = "adamw", **changes: Any) -> Recipe:
    """A short training; from a preset `toy` when `start` is None.

    Args:
        start: Weights to start from.
        stages: One of ten single steps when there are none.
        optimizer: Its name.
        changes: Other fields of the recipe.
    """
    values: dict[str, Any] = {
        "name": "test", "stages": stages or (stage(),), "validation_leads": (6, 24), "validation_times": 2,
        "validate_every": 10, "save_every": 5, "precision": "fp32",
        **({"model": "toy"} if start is None else {"start": str(start)}),
    }  # fmt: skip
    made = Recipe(**{**values, **changes})
    made = replace(made, optimizer=replace(made.optimizer, name=optimizer, precondition_every=4))
    return recipe_from_text(recipe_text(made))  # as a run folder gives it back


def stage(name: str = "single", steps: int = 10, **changes: Any) -> Stage:
    """A stage of small batches."""
    return Stage(**{"name": name, "steps": steps, "rate": 1e-3, "batch": 4, "micro": 2, **changes})


def run(out: Path, store: Path, recipe: Recipe | None = None, listener: Any = None, **options: Any) -> Result:
    """Trains on one store on the CPU."""
    data = options.pop("data", {"main": store})
    return train(Options(data=data, out=out, recipe=recipe, device="cpu", **options), listener)


def toml(recipe: Recipe) -> str:
    """A recipe as a file."""
    import json

    values = json.loads(recipe_text(recipe))
    stages = values.pop("stages")
    encoders = values.pop("encoders")
    tables = {name: values.pop(name) for name in [key for key, value in values.items() if isinstance(value, dict)]}
    lines = _lines(values)
    for name, table in tables.items():
        lines += [f"[{name}]", *_lines(table)]
    for name, several in (("encoders", encoders), ("stages", stages)):
        for one in several:
            lines += [f"[[{name}]]", *_lines(one)]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    import json

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {text(item)}" for key, item in value.items()) + "}"
        return json.dumps(value)

    return [f"{key} = {text(value)}" for key, value in table.items() if value is not None]
