"""Small networks and states for the tests of everything that runs a model."""

from __future__ import annotations

import numpy as np
import torch

from wm2cli.grid import Grid
from wm2cli.models import Model
from wm2cli.models.presets import SIX_HOURLY, STATIC, SURFACE, UPPER
from wm2cli.models.stormer import Stormer, StormerConfig
from wm2cli.models.weathermesh2 import EncoderConfig, ProcessorConfig, WeatherMesh2, WeatherMesh2Config
from wm2cli.schema import Schema
from wm2cli.state import Normalizer, State

LEVELS = (100.0, 300.0, 500.0, 850.0, 1000.0)
FORCING = ("radiation", "sin_altitude", "cos_altitude", "sin_year", "cos_year")
GRID = Grid.regular(11.25, "cells")  # 16 x 32


def schemas() -> tuple[Schema, Schema]:
    """Input and output."""
    inputs = Schema(UPPER, LEVELS, SURFACE, STATIC, FORCING)
    return inputs, Schema(UPPER, LEVELS, (*SURFACE, *SIX_HOURLY), STATIC, FORCING)


def config(**changes: object) -> WeatherMesh2Config:
    """A network of some ten thousand parameters; five levels in patches of two leave one to be filled up."""
    inputs, outputs = schemas()
    values: dict[str, object] = {
        "encoders": (EncoderConfig("era5", inputs),),
        "processors": (ProcessorConfig(6, 2), ProcessorConfig(1, 1)),
        "schema_out": outputs,
        "width": 32, "heads": 2, "patch": (2, 2, 2), "window": (3, 3, 5), "encoder_blocks": 1, "decoder_blocks": 1,
        "surface_widths": (16,),
    }  # fmt: skip
    return WeatherMesh2Config(**{**values, **changes})  # type: ignore[arg-type]


def network(seed: int = 0, grid: Grid = GRID, loud: bool = True, **changes: object) -> WeatherMesh2:
    """An untrained network in eval mode; `loud` undoes the small start so that every path shows in the output."""
    built = config(**changes)
    torch.manual_seed(seed)
    statistics = Normalizer.nominal(*(encoder.schema for encoder in built.encoders), built.schema_out)
    model = WeatherMesh2(built, grid, statistics, static(grid))
    if loud:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "blocks" in name and name.endswith("weight") and "norm" not in name:
                    parameter.mul_(8.0)
            model.decoder.pressure.weight.mul_(30.0)
    return model.eval().requires_grad_(False)


def stormer(seed: int = 0, grid: Grid = GRID, loud: bool = True, **changes: object) -> Stormer:
    """A small Stormer in eval mode, of 19 channels in another order than its schema's.

    As published it begins as persistence; `loud` draws all that begins as zero.
    """
    schema = Schema(("z", "t", "u", "v", "q"), (100.0, 500.0, 1000.0), ("t2m", "u10", "v10", "msl"))
    values: dict[str, object] = {
        "schema": schema, "channels": (*schema.channels[-4:], *schema.channels[:-4]), "patch": 2, "width": 32,
        "depth": 2, "heads": 2,
    }  # fmt: skip
    built = StormerConfig(**{**values, **changes})  # type: ignore[arg-type]
    torch.manual_seed(seed)
    model = Stormer(built, grid, built.nominal())
    if loud:
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.2)
    return model.eval().requires_grad_(False)


def static(grid: Grid = GRID) -> dict[str, torch.Tensor]:
    """Hills, land and soils without symmetry."""
    generator = torch.Generator().manual_seed(5)
    height = torch.rand(grid.shape, generator=generator)
    return {"orog": 3000 * height, "lsm": (height > 0.6).float(), "slt": (8 * height).floor().clamp(max=7)}


def state(
    model: Model, seed: int = 1, batch: int = 1, encoder: str | None = None, time: str = "2024-01-01T00"
) -> State:
    """Noise of half a standard deviation about the mean."""
    schema = model.inputs[encoder or next(iter(model.inputs))]
    generator = torch.Generator().manual_seed(seed)
    columns = model.normalizer.columns(schema)
    height, width = model.grid.shape
    upper = torch.randn(batch, len(schema.pressure), len(schema.levels), height, width, generator=generator)
    lower = torch.randn(batch, len(schema.surface), height, width, generator=generator)
    times = np.datetime64(time, "s") + np.arange(batch) * np.timedelta64(24, "h")
    return State(schema, model.grid, times, columns["pressure_mean"] + 0.5 * columns["pressure_std"] * upper,
                 columns["surface_mean"] + 0.5 * columns["surface_std"] * lower)  # fmt: skip


def normalized(model: Model, made: State) -> torch.Tensor:
    """All channels of an output state in standard deviations, to compare them on one scale."""
    columns = model.normalizer.columns(made.schema)
    upper = (made.pressure - columns["pressure_mean"]) / columns["pressure_std"]
    instant = [name for name in made.schema.surface if name in SURFACE]
    index = [made.schema.surface.index(name) for name in instant]
    lower = ((made.surface - columns["surface_mean"]) / columns["surface_std"])[:, index]
    return torch.cat([upper.flatten(1, 2), lower], dim=1)
