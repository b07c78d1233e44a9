"""Checkpoints as PyTorch Lightning writes them, in the layout of the published Stormer: small, and with all that they
hold beside the weights, classes that are installed nowhere among it."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm2cli.foreign import parse_grid
from wm2cli.models.stormer import CHANNELS, SCHEMA, Stormer, StormerConfig, published_statistics

FOREIGN = (
    "climate_learn.models.lr_scheduler.LinearWarmupCosineAnnealingLR", "climate_learn.metrics.metrics.LatWeightedMSE",
    "climate_learn.metrics.metrics.LatWeightedRMSE", "climate_learn.metrics.utils.MetricsMetaInfo",
    "climate_learn.transforms.denormalize.Denormalize", "torchvision.transforms.transforms.Normalize",
)  # fmt: skip
"""Classes that the published files name."""


def network(grid: str, patch: int, width: int = 32, depth: int = 2, heads: int = 4, seed: int = 0) -> Stormer:
    """A Stormer of the 69 variables whose every parameter is drawn, its position table too."""
    torch.manual_seed(seed)
    config = StormerConfig(SCHEMA, CHANNELS, patch, width, depth, heads)
    model = Stormer(config, parse_grid(grid), published_statistics())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (parameter.shape[-1] ** -0.5))
    return model.eval().requires_grad_(False)


@contextmanager
def classes(names: tuple[str, ...] = FOREIGN) -> Iterator[list[Any]]:
    """Objects of classes that exist only in here."""
    made, before = [], set(sys.modules)
    for name in names:
        module, _, short = name.rpartition(".")
        for part in [module.rsplit(".", n)[0] for n in range(module.count(".") + 1)]:
            sys.modules.setdefault(part, types.ModuleType(part))
        kind = type(short, (), {"__module__": module})
        setattr(sys.modules[module], short, kind)
        thing = kind()
        thing.values, thing.nested = np.arange(3.0), {"set": {1, 2}, "dtype": torch.float32}
        made.append(thing)
    try:
        yield made
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def optimizer_states(state: Mapping[str, Tensor], draw: Callable[[torch.Size], Tensor] = torch.rand) -> dict[str, Any]:
    """Two moments of each tensor, as AdamW keeps them."""
    return {
        "state": {number: {"step": torch.tensor(9.0), "exp_avg": draw(value.shape), "exp_avg_sq": draw(value.shape)}
                  for number, value in enumerate(state.values()) if isinstance(value, Tensor)},
        "param_groups": [{"lr": 5e-7, "betas": (0.9, 0.95), "weight_decay": 1e-5, "params": list(range(len(state)))}],
    }  # fmt: skip


def write(
    path: Path, state: Mapping[str, Tensor], draw: Callable[[torch.Size], Tensor] = torch.rand, **more: Any
) -> Path:  # fmt: skip
    """A checkpoint with these tensors under their published names; `more` replaces entries of it."""
    whole = OrderedDict(state)
    whole._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]  # as `state_dict()` has it
    with classes() as things:
        torch.save({
            "epoch": 19, "global_step": 14_000, "pytorch-lightning_version": "2.1.1", "state_dict": whole,
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 20}}}},
            "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best": torch.tensor(0.5), "thing": things[0]}},
            "optimizer_states": [optimizer_states(state, draw)],
            "lr_schedulers": [{"last_epoch": 9, "scheduler": things}], "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 5e-7, "metrics": things[1:4]}, **more,
        }, path)  # fmt: skip
    return path


def states(model: Stormer, batch: int = 1, seed: int = 5) -> Tensor:
    """(B, 69, H, W) normalised fields in the network's order."""
    return torch.randn(batch, len(CHANNELS), *model.grid.shape, generator=torch.Generator().manual_seed(seed))
