"""The optimizers by name, and the groups that parameters fall into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wm2cli.training.recipes import OptimizerConfig
from wm2cli.training.shampoo import Shampoo

Named = Sequence[tuple[str, nn.Parameter]]


class Optimizers:
    """One or two optimizers that act as one.

    Muon takes the matrices inside the transformers; everything else, and everything for the other names, goes to one
    optimizer.

    Args:
        config: The recipe's.
        parameters: Trainable ones with their names.
    """

    def __init__(self, config: OptimizerConfig, parameters: Named) -> None:
        matrices = [p for name, p in parameters if is_hidden_matrix(name, p)] if config.name == "muon" else []
        taken = {id(p) for p in matrices}
        rest = [p for _, p in parameters if id(p) not in taken]
        self.parts: dict[str, Any] = {}
        if matrices:
            # Its update is scaled to the size of AdamW's, so that both share one rate.
            self.parts["muon"] = torch.optim.Muon(
                matrices, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )  # fmt: skip
        linear = {id(p) for name, p in parameters if is_linear_path(name)}
        decaying = {id(p) for name, p in parameters if decays(config, name, p)}
        groups = [
            {"params": [p for p in rest if (p.ndim > 1, id(p) in linear, id(p) in decaying) == (wide, direct, decay)],
             "weight_decay": config.weight_decay if decay else 0.0}
            for wide in (True, False) for direct in (False, True) for decay in (True, False)
        ]  # fmt: skip
        groups = [group for group in groups if group["params"]]
        self._linear, self._share = linear, config.linear_rate
        if groups and config.name == "shampoo":
            self.parts["shampoo"] = Shampoo(
                groups, lr=0.0, betas=config.betas, epsilon=config.epsilon, weight_decay=config.weight_decay,
                max_preconditioner_dim=config.max_preconditioner_dim,
                precondition_frequency=config.precondition_every,
            )  # fmt: skip
        elif groups:
            self.parts["adamw"] = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.epsilon)

    def step(self, rate: float) -> None:
        """One update with a learning rate."""
        for optimizer in self.parts.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * (self._share if id(group["params"][0]) in self._linear else 1.0)
            optimizer.step()

    def state(self) -> dict[str, Any]:
        """Everything needed to go on; all ranks must ask for it together."""
        return {
            name: optimizer.full_state_dict() if isinstance(optimizer, Shampoo) else optimizer.state_dict()
            for name, optimizer in self.parts.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave, on any number of ranks."""
        for name, optimizer in self.parts.items():
            optimizer.load_state_dict(state[name])


def decays(config: OptimizerConfig, name: str, parameter: Tensor) -> bool:
    """Whether a parameter's weights decay."""
    if config.decay == "matrices":
        return parameter.ndim > 1 and not is_linear_path(name)
    return "channel_embed" not in name and "pos_embed" not in name


def is_linear_path(name: str) -> bool:
    """Whether a parameter belongs to a codec's linear layer between fields and latent.

    A change of it changes the fields themselves, not what is added to them.
    """
    return (".shortcut." in name and ".surface." not in name and ".final." not in name) or ".pressure." in name


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter maps a hidden layer to a hidden layer, which is what Muon is made for."""
    return parameter.ndim == 2 and ".blocks." in name
