"""The models and the protocol they share.

A model knows three verbs: `encode` a state into its latent, `advance` the latent by one of its steps, `decode` it into
a state. What lies between is its own business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wm2cli.grid import Grid
from wm2cli.models.latent import Latent
from wm2cli.models.stormer import Stormer, StormerConfig
from wm2cli.models.weathermesh2 import WeatherMesh2, WeatherMesh2Config
from wm2cli.schema import Schema
from wm2cli.state import Normalizer, State

__all__ = ["MODELS", "Latent", "Model"]


@runtime_checkable
class Model(Protocol):
    """A weather model.

    Laws, tested for every model: right time and grid; other step lengths are refused; inputs stay untouched; no memory
    in the module, so one latent can be advanced along two branches; a batch of two equals two batches of one; eval mode
    is deterministic.
    """

    config: Any
    grid: Grid
    inputs: Mapping[str, Schema]
    """Schema of each analysis the model can start from, by name; the first is the usual one."""
    schema_out: Schema
    normalizer: Normalizer
    steps: tuple[int, ...]
    """Step lengths in hours, longest first."""
    paths: str
    """How a forecast usually reaches its lead times; a key of `wm2cli.rollout.WAYS`."""

    def encode(self, states: State | Mapping[str, State]) -> Latent:
        """The latent of an analysis."""

    def advance(self, latent: Latent, hours: int) -> Latent:
        """The latent one step later."""

    def decode(self, latent: Latent) -> State:
        """The state of a latent."""

    def decode_normalized(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """What losses compare: pressure (B, V, L, H, W) and surface (B, S, H, W) in standard deviations."""

    def normalize(self, state: State) -> tuple[Tensor, Tensor]:
        """A state of the output's schema as `decode_normalized` would give it."""

    def denormalize(self, pressure: Tensor, surface: Tensor, time: NDArray[np.datetime64]) -> State:
        """The inverse of `normalize`, within physical limits; `decode` is `decode_normalized` and this."""

    def operations(self) -> Mapping[str, float]:
        """Floating-point operations of `encode`, `decode` and each `advance N` for one instant."""

    def working_bytes(self, bytes_per_value: int) -> int:
        """Rough peak of activations in bytes for one instant, weights not counted."""

    def latent_bytes(self) -> int:
        """Bytes of one latent of one instant."""


MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "weathermesh2": (WeatherMesh2Config, WeatherMesh2),
    "stormer": (StormerConfig, Stormer),
}
"""Configuration and network of each model, by the name in a checkpoint's header.

A configuration is a frozen dataclass with `inputs`, `schema_out` and `steps` as the model has them, `check(grid)`,
`nominal()` (statistics for weights that have seen no data) and `architecture()` (plain values for people).
"""
