"""Peak memory and time of converting a published checkpoint of full size, against the size of the weights in it.

    python benchmarks/importing.py [--preset stormer-1.40625-p2] [--folder /var/tmp] [--json FILE]

Makes a file in the published layout (weights drawn at random, two optimizer moments of each, classes that are
installed nowhere; 5.6 GB), and converts it by the command a user types, in a process of its own. Making it takes 2.5 GB
of memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def make(path: str, preset_name: str) -> tuple[int, list[str]]:
    """Writes the file; the number of parameters, and what the file does not tell as flags of the command."""
    import lightning
    import torch

    from wm2cli.hub import PUBLISHED
    from wm2cli.models.presets import preset
    from wm2cli.models.stormer import Stormer, StormerConfig

    chosen = preset(preset_name)
    if not isinstance(chosen.config, StormerConfig):
        raise SystemExit(f"{preset_name} is no Stormer")
    with torch.device("meta"):
        model = Stormer(chosen.config, chosen.grid, chosen.config.nominal())
    state = {name: torch.rand(value.shape) for name, value in model.state_dict().items()}
    lightning.write(Path(path), state, draw=torch.zeros)  # the moments are not read; zeros take no memory to make
    rows, columns = chosen.grid.shape
    flags = [] if preset_name in PUBLISHED else ["--grid", f"{rows}x{columns}", "--heads", str(chosen.config.heads)]
    return sum(value.numel() for value in state.values()), flags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="stormer-1.40625-p2")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, out = f"{folder}/published.ckpt", f"{folder}/ours.safetensors"
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            parameters, flags = pool.apply(make, (source, arguments.preset))
        results: dict[str, Any] = {
            "preset": arguments.preset,
            "parameters": parameters,
            "file_bytes": os.path.getsize(source),
        }
        for name, words in {
            "import": ["import", "stormer", source, "--out", out, *flags], "verify": ["verify", out],
        }.items():  # fmt: skip
            started = time.monotonic()
            process = subprocess.Popen([sys.executable, "-m", "wm2cli", "weights", *words])
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"wm2 weights {' '.join(words)} failed")
            peak = usage.ru_maxrss * 1024
            share = peak / (4 * parameters)
            seconds, processor = time.monotonic() - started, usage.ru_utime + usage.ru_stime
            print(f"{name}: {peak / 2**30:.2f} GiB at most, {share:.2f} of the weights; {seconds:.0f} s, "
                  f"{processor:.0f} s of processor")  # fmt: skip
            results[name] = {"seconds": seconds, "processor_seconds": processor, "peak_bytes": peak, "share": share}
        results["written_bytes"] = os.path.getsize(out)
    print(json.dumps(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
