"""The state of a model between encode and decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Latent:
    """What a model carries from step to step; opaque outside the model.

    Args:
        x: (B, ...) in the model's own shape.
        time: (B,) datetime64[s], UTC: the time the latent stands for.
        kept: What the model worked out at `encode` and needs at every step, if anything. It lives and ends with the
            latents of one forecast, so the module itself remembers nothing. None is always right, only slower.
    """

    x: Tensor
    time: NDArray[np.datetime64]
    kept: Any = None
