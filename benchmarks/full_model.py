"""One encode, advance and decode of a preset on this machine: seconds of each, peak memory, and the rate reached.

    python benchmarks/full_model.py [--preset wm2] [--precision fp32 bf16] [--device cpu] [--steps 1] [--json FILE]

The named alternative is the machine's own matrix product: `of_matmul` is the share of its rate that the model reaches
in the same process. Weights are untrained; time and memory do not depend on their values. `--steps 56` on a GPU is the
14-day rollout for which 12 s on an RTX 4090 is published.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any


def measure(
    preset_name: str, precision: str, device_name: str, steps: int, threads: int | None, backend: str
) -> dict[str, Any]:
    """Runs in a process of its own, so that its peak memory is its own."""
    import numpy as np
    import torch

    from wm2cli.devices import autocast, measure_rate
    from wm2cli.models import layers
    from wm2cli.models.attention import neighborhood_attention
    from wm2cli.models.presets import preset
    from wm2cli.models.weathermesh2 import WeatherMesh2
    from wm2cli.state import Normalizer, State

    if threads:
        torch.set_num_threads(threads)
    if backend != "auto":
        layers.neighborhood_attention = lambda q, k, v, window: neighborhood_attention(q, k, v, window, backend=backend)
    device = torch.device(device_name)
    rate = measure_rate(device, precision)
    chosen = preset(preset_name)
    statistics = Normalizer.nominal(*(e.schema for e in chosen.config.encoders), chosen.config.schema_out)
    torch.manual_seed(0)
    model = WeatherMesh2(chosen.config, chosen.grid, statistics).eval().requires_grad_(False).to(device)
    schema = next(iter(model.inputs.values()))
    columns, (height, width) = statistics.columns(schema), chosen.grid.shape
    upper = torch.randn(1, len(schema.pressure), len(schema.levels), height, width) * columns["pressure_std"]
    lower = torch.randn(1, len(schema.surface), height, width) * columns["surface_std"]
    upper += columns["pressure_mean"]
    lower += columns["surface_mean"]
    state = State(schema, chosen.grid, np.array(["2024-01-01"], "datetime64[s]"), upper, lower).to(device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        out = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
        return out

    with torch.inference_mode(), autocast(precision, device):
        if device.type == "cuda":  # kernels are chosen and compiled at first use
            model.decode(model.advance(model.encode(state), 6))
            torch.cuda.reset_peak_memory_stats()
        latent = timed("encode", lambda: model.encode(state))
        for _ in range(steps):
            latent = timed("advance", lambda: model.advance(latent, 6))  # noqa: B023
            out = timed("decode", lambda: model.decode(latent))  # noqa: B023
    if not bool(torch.isfinite(out.pressure).all()):
        raise SystemExit("the output is not finite")
    operations = model.operations()
    total = operations["encode"] + steps * (operations["advance 6"] + operations["decode"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "preset": preset_name,
        "precision": precision,
        "device": device_name,
        "steps": steps,
        "backend": backend,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "total_seconds": sum(seconds.values()),
        "peak_gib": peak / 2**20,
        "before_gib": before / 2**20,
        "planned_gib": (
            model.working_bytes(2 if precision == "bf16" else 4) + 4 * sum(p.numel() for p in model.parameters())
        )
        / 2**30,
        "device_peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
        "tflop": total / 1e12,
        "matmul_tflop_per_second": rate / 1e12,
        "of_matmul": total / sum(seconds.values()) / rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="wm2")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--backend", nargs="+", default=["auto"], help="attention backends: auto tiled natten")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = []
    for backend in arguments.backend:
        for precision in arguments.precision:
            with context.Pool(1) as pool:
                job = (arguments.preset, precision, arguments.device, arguments.steps, arguments.threads, backend)
                found = pool.apply(measure, job)
            results.append(found)
            stages = ", ".join(f"{name} {value:.2f} s" for name, value in found["seconds"].items())
            print(
                f"{found['preset']} {precision} {backend} on {found['device']} ({found['threads']} threads): {stages}; "
                f"peak {found['peak_gib']:.1f} GiB (planned {found['planned_gib']:.1f}), "
                f"GPU {found['device_peak_gib']:.1f} GiB; "
                f"{found['tflop']:.1f} TFLOP at {found['of_matmul']:.0%} of the rate of a matrix product"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
