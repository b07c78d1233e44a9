"""What the three ways of checkpointing keep for the backward pass of a long rollout, and what they cost.

    python benchmarks/checkpointing.py [--steps 24] [--blocks 10] [--width 64] [--json FILE]

A WeatherMesh-2 on the grid of the `tiny` preset with a processor of ten blocks, one sample, three lead times that are
decoded. Counted are the bytes of all tensors that autograd saves in the forward pass, parameters and buffers left out,
each storage once; the time is that of one forward and backward pass.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from wm2cli.models.presets import preset
from wm2cli.models.weathermesh2 import ProcessorConfig, WeatherMesh2
from wm2cli.schema import Schema
from wm2cli.state import Normalizer, State
from wm2cli.training.losses import Keep, keep, make_weights, rollout_loss
from wm2cli.training.recipes import LossConfig
from wm2cli.training.samples import Batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chosen = preset("tiny")
    config = replace(chosen.config, processors=(ProcessorConfig(6, arguments.blocks),), width=arguments.width)
    torch.manual_seed(1)
    normalizer = Normalizer.nominal(config.encoders[0].schema, config.schema_out)
    model = WeatherMesh2(config, chosen.grid, normalizer)

    def state(schema: Schema) -> State:
        columns = normalizer.columns(schema)
        upper = columns["pressure_mean"].expand(1, -1, -1, *chosen.grid.shape)
        lower = columns["surface_mean"].expand(1, -1, *chosen.grid.shape)
        return State(schema, chosen.grid, np.array(["2024-01-01"], "datetime64[s]"), upper, lower)

    leads = sorted({6 * max(1, arguments.steps * part // 3) for part in (1, 2, 3)})
    batch = Batch({"era5": state(config.encoders[0].schema)}, {lead: state(config.schema_out) for lead in leads})
    weights = make_weights(LossConfig(channels="equal"), config.schema_out, chosen.grid, normalizer, {},
                           torch.device("cpu"))  # fmt: skip
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    results = {}
    for policy in get_args(Keep):
        keep(model, policy)
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            storage = tensor.untyped_storage().data_ptr()
            if storage not in own:
                kept[storage] = tensor  # held, so that no address is used twice
            return tensor

        started = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = rollout_loss(model, batch, weights, "l1", policy)
        saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        kept.clear()
        loss.backward()
        seconds = time.perf_counter() - started
        results[policy] = {"saved_mb": saved / 1e6, "seconds": seconds}
        print(f"{policy:>5}: {saved / 1e6:8.1f} MB saved, {seconds:.1f} s")
    ratio = results["block"]["saved_mb"] / results["step"]["saved_mb"]
    print(f"step keeps {ratio:.1f} times less than block")
    if arguments.json:
        document = {"steps": arguments.steps, "blocks": arguments.blocks, "results": results, "ratio": ratio}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
