"""One step of the full-size Stormer, side by side with a plain implementation of the same formulas.

    python benchmarks/stormer.py [--preset stormer-1.40625-p4] [--threads N] [--repeat 1] [--json FILE]

The plain one makes the tokens of all 69 variables and attends to them with torch's own attention, evaluates the
modulation of every block at every step, and writes softmax(q k) v out in the blocks. Each runs in a process of its own;
the outputs are compared. Printed are ratios of time and of peak memory: of the whole process, and of what is needed
beyond the weights. What a forecast works out once for all of its steps is timed apart and counted to one step too. On a
machine with other work, the ratio of processor time with one thread is the one to read.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

HOURS = 6


def measure(kind: str, preset_name: str, threads: int | None, repeat: int) -> dict[str, Any]:
    """Seconds and bytes of one implementation."""
    import torch

    from wm2cli.models.presets import preset
    from wm2cli.models.stormer import StormerConfig
    from wm2cli.models.stormer_network import StormerNetwork

    if threads:
        torch.set_num_threads(threads)
    chosen = preset(preset_name)
    config = chosen.config
    if not isinstance(config, StormerConfig):
        raise SystemExit(f"{preset_name} is no Stormer")
    with torch.device("meta"):
        net = StormerNetwork(
            len(config.channels), chosen.grid.shape, config.patch, config.width, config.depth, config.heads,
            config.mlp_ratio,
        )  # fmt: skip
    net.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.uniform_(-0.03, 0.03, generator=generator)
    x = torch.randn(1, len(config.channels), *chosen.grid.shape, generator=generator)
    weights = sum(parameter.numel() for parameter in net.parameters()) * 4
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    seconds, processor, once = [], [], 0.0
    with torch.inference_mode():
        prepared = None
        if kind == "wm2":
            started = time.perf_counter()
            prepared = net.prepare(config.steps)
            once = time.perf_counter() - started
        for _ in range(repeat):
            started, used = time.perf_counter(), time.process_time()
            y = net(x, (HOURS,), prepared) if kind == "wm2" else plain(net, x, config.heads)
            seconds.append(time.perf_counter() - started)
            processor.append(time.process_time() - used)
    return {
        "kind": kind, "threads": torch.get_num_threads(), "seconds": min(seconds),
        "processor_seconds": min(processor), "once_seconds": once, "peak_bytes": _memory("VmHWM"),
        "before_bytes": before, "weights_bytes": weights,
        "output": [float(y.mean()), float(y.std()), *y[0, 11, ::7, ::9].flatten().tolist()],
    }  # fmt: skip


def plain(net: Any, x: Any, heads: int) -> Any:
    """The network as its authors describe it, a tensor a formula."""
    import torch
    import torch.nn.functional as F

    part, patch, (batch, channels, height, width) = net.embedding, net.patch, x.shape
    tokens = [layer.proj(x[:, v : v + 1]).flatten(2).mT for v, layer in enumerate(part.token_embeds)]
    tokens = torch.stack(tokens, dim=1) + part.channel_embed[:, :, None] + part.pos_embed[:, None]  # (B, V, L, D)
    by_place = tokens.permute(2, 0, 1, 3).flatten(0, 1).transpose(0, 1)  # (V, L B, D)
    attention = part.channel_agg
    found, _ = F.multi_head_attention_forward(
        part.channel_query.expand(1, by_place.shape[1], -1), by_place, by_place, by_place.shape[-1], heads,
        attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0, attention.out_proj.weight,
        attention.out_proj.bias,
    )  # fmt: skip
    del tokens, by_place
    h = net.embed_norm_layer(found[0].unflatten(0, (-1, batch)).transpose(0, 1))  # (B, L, D)
    told = net.t_embedder.mlp(torch.full((batch, 1), HOURS / 10.0))
    for block in net.blocks:
        modulation = block.adaLN_modulation(told)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        normed = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
        q, k, v = block.attn.qkv(normed).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        h = h + gate1 * block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        normed = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
        h = h + gate2 * block.mlp.fc2(F.gelu(block.mlp.fc1(normed), approximate="tanh"))
    shift, scale = net.head.adaLN_modulation(told)[:, None].chunk(2, dim=-1)
    values = net.head.linear(h * (1 + scale) + shift)
    cells = values.view(batch, height // patch, width // patch, patch, patch, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="stormer-1.40625-p4")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found, output = {}, {}
    for kind in ("wm2", "plain"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            one = pool.apply(measure, (kind, arguments.preset, arguments.threads, arguments.repeat))
        beyond = one["peak_bytes"] - one["weights_bytes"]
        print(f"{kind}: {one['seconds']:.2f} s a step, {one['once_seconds']:.2f} s once a forecast "
              f"({one['threads']} threads); {one['peak_bytes'] / 2**30:.2f} GiB at most, {beyond / 2**30:.2f} of it "
              "beyond the weights")  # fmt: skip
        output[kind] = one.pop("output")
        found[kind] = one
    ours, other = found["wm2"], found["plain"]
    error = max(abs(a - b) for a, b in zip(output["wm2"], output["plain"], strict=True))
    if error > 1e-3 * output["plain"][1]:  # of the standard deviation
        raise SystemExit(f"the outputs differ by {error}: {output}")
    ratios = {
        "processor_time": ours["processor_seconds"] / other["processor_seconds"],
        "time": ours["seconds"] / other["seconds"],
        "time_with_what_is_done_once": (ours["seconds"] + ours["once_seconds"]) / other["seconds"],
        "memory": ours["peak_bytes"] / other["peak_bytes"],
        "memory_beyond_the_weights": (ours["peak_bytes"] - ours["weights_bytes"])
        / (other["peak_bytes"] - other["weights_bytes"]),
    }
    print(", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"preset": arguments.preset, "runs": found, "ratios": ratios}) + "\n")


if __name__ == "__main__":
    main()
