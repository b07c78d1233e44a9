"""A normalizer's columns as the models apply them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wm2cli.schema import Schema
from wm2cli.state import Normalizer


class Statistics(nn.Module):
    """A normalizer's columns for one schema, on the model's device; always float32."""

    def __init__(self, normalizer: Normalizer, schema: Schema) -> None:
        super().__init__()
        with torch.device("cpu"):
            columns = normalizer.columns(schema)
        for name, column in columns.items():
            self.register_buffer(name, column, persistent=False)

    pressure_mean: Tensor
    pressure_std: Tensor
    pressure_low: Tensor
    pressure_high: Tensor
    surface_mean: Tensor
    surface_std: Tensor
    surface_low: Tensor
    surface_high: Tensor
    surface_floor: Tensor

    def normalize(self, pressure: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
        """Physical -> normalised; variables with a floor go through ln(value + floor) first."""
        logarithmic = self.surface_floor > 0
        logged = (surface.clamp(min=0) + torch.where(logarithmic, self.surface_floor, 1.0)).log()
        surface = torch.where(logarithmic, logged, surface)
        return ((pressure - self.pressure_mean) / self.pressure_std,
                (surface - self.surface_mean) / self.surface_std)  # fmt: skip

    def denormalize(self, pressure: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised -> physical, within physical limits."""
        pressure = pressure * self.pressure_std + self.pressure_mean
        surface = surface * self.surface_std + self.surface_mean
        logarithmic = self.surface_floor > 0
        # ln(10 m) bounds the exponent: without it a wild network would turn into infinity before any check sees it.
        unlogged = torch.where(logarithmic, surface, 0.0).clamp(max=math.log(10.0)).exp() - self.surface_floor
        surface = torch.where(logarithmic, unlogged, surface)
        return (torch.clamp(pressure, self.pressure_low, self.pressure_high),
                torch.clamp(surface, self.surface_low, self.surface_high))  # fmt: skip
