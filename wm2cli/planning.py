"""What a forecast would read, run and write: `wm2 forecast --plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wm2cli import checkpoint, weights
from wm2cli.devices import measure_rate, resolve_device, resolve_precision
from wm2cli.errors import ResourceError
from wm2cli.fetch import ladder_of, rows_of
from wm2cli.forecast import (
    FORMAT,
    Options,
    encoder_inputs,
    file_size,
    lead_times,
    plain,
    refuse_existing,
    refuse_untrained,
    select,
)
from wm2cli.machine import host_memory
from wm2cli.paths import choose
from wm2cli.sources import Request
from wm2cli.writing import check_space

BASE_BYTES = 450 * 2**20
"""Python, torch and the libraries, measured on Linux (benchmarks/memory.py)."""


@dataclass(frozen=True)
class Plan:
    """What a forecast would read, run and write.

    Args:
        problems: Why it would not fit; empty when it would.
    """

    reads: tuple[Mapping[str, Any], ...]
    weights: Mapping[str, Any]
    runs: Mapping[str, Any]
    writes: Mapping[str, Any]
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
        return {"format": FORMAT, **{name: plain(value) for name, value in vars(self).items()}}


def plan(options: Options) -> Plan:
    """What the forecast would read, run and write; nothing is computed and nothing written.

    Memory is weights, activations and fields by formula; time is the count of operations by the speed of a matrix
    product measured for a moment on the device. Both are rough.

    Raises:
        UsageError, CheckpointError, ResourceError: As `forecast`, as far as the question does not need the data.
    """
    leads = lead_times(options)
    refuse_existing(options)
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    path = weights.resolve(options.weights, options.access.cache)
    header, model = checkpoint.skeleton(path)
    refuse_untrained(header.trained, options)
    choice = choose(options.paths, model, leads, lambda: checkpoint.file_sha256(path))
    chosen = select(options, model.schema_out, model.grid)
    groups = encoder_inputs(options, model.inputs)
    route, decodes = choice.route, sum(choice.members)
    operations = model.operations()
    total = operations["encode"] * len(groups) + operations["decode"] * decodes
    total += sum(number * operations[f"advance {step}"] for step, number in route.advances.items())
    rate = measure_rate(device, precision)
    size = file_size(options, chosen, len(leads))
    parameters = sum(parameter.numel() for parameter in model.parameters()) if isinstance(model, torch.nn.Module) else 0
    fields = 4 * len(model.schema_out.channels) * model.grid.shape[0] * model.grid.shape[1]
    memory = 4 * parameters + model.working_bytes(2 if precision == "bf16" else 4)
    memory += (route.latents - 1) * model.latent_bytes() + route.means * fields
    host = (memory if device.type == "cpu" else 2 * 4 * parameters) + 4 * fields + BASE_BYTES
    problems = []
    if host > (have := host_memory()):
        problems.append(f"needs about {_gib(host)} of memory, {_gib(have)} are there")
    if device.type == "cuda" and memory > (have := torch.cuda.mem_get_info(device)[0]):
        problems.append(f"needs about {_gib(memory)} on {device}, {_gib(have)} are free")
    reads: list[dict[str, Any]] = []
    for name, paths in groups.items():
        ladder, _ = ladder_of(options.source, options.start, files=bool(paths))
        request = Request((options.start,), tuple(Path(path).expanduser() for path in paths),
                          model.inputs[name].dynamic, options.source_options)  # fmt: skip
        for row in rows_of(ladder[0], request, options.access):
            reads.append({"encoder": name, "piece": row["key"], **row})
            if row["source"] == "file" and not row["cached"]:
                problems.append(f"there is no file {row['path']}")
    try:
        free = check_space(options.target, size.expected)
    except ResourceError as error:
        problems.append(error.message)
        free = -1
    return Plan(
        reads=tuple(reads),
        weights={"path": str(path), "name": header.name, "bytes": path.stat().st_size, "parameters": parameters,
                 "trained": header.trained},
        runs={"device": str(device), "precision": precision, "grid": model.grid.describe(),
              "encodes": len(groups), "decodes": decodes,
              "advances": {str(step): number for step, number in route.advances.items()},
              "evaluations": len(route.order), "paths": choice.description, "latents_held": route.latents,
              "means_held": route.means,
              "operations": total, "operations_per_second": rate, "seconds": total / rate, "host_bytes": host,
              "device_bytes": memory if device.type == "cuda" else 0},
        writes={"path": str(options.target), "times": len(leads), "first_lead_hours": leads[0],
                "last_lead_hours": leads[-1], "variables": [*chosen.pressure, *chosen.surface],
                "levels_hpa": list(chosen.levels), "rows": chosen.crop.shape[0], "columns": chosen.crop.shape[1],
                "bytes_uncompressed": size.uncompressed, "bytes_expected": size.expected,
                "bytes_free": free if free >= 0 else None},
        problems=tuple(problems),
    )  # fmt: skip


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
