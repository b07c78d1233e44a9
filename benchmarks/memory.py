"""Peak memory of a 14-day forecast against that of a 1-day forecast, from the idealised atmosphere.

    python benchmarks/memory.py [--preset mini] [--days 1 14] [--json FILE]

Each runs as the command a user types, in a process of its own; printed is the largest resident set of that process, and
the ratio of the last to the first. It must stay within 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def peak(words: list[str]) -> tuple[float, float]:
    """Largest resident set in MiB and seconds of one `wm2` command."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "wm2cli", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"wm2 {' '.join(words)} failed")
    return usage.ru_maxrss / 1024, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--days", nargs="+", type=int, default=[1, 14])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.safetensors"
        peak(["weights", "init", "--preset", arguments.preset, "--out", weights])
        for days in arguments.days:
            words = ["forecast", "--init", "2024-01-01T00", "--days", str(days), "--source", "idealized"]
            size, seconds = peak([*words, "--weights", weights, "--allow-untrained", "--out", f"{folder}/{days}.nc"])
            results[days] = {"peak_mib": size, "seconds": seconds}
            print(f"{arguments.preset}, {days} days: {size:.0f} MiB, {seconds:.1f} s")
    ratio = results[arguments.days[-1]]["peak_mib"] / results[arguments.days[0]]["peak_mib"]
    print(f"ratio {ratio:.3f}")
    if arguments.json:
        document = {"preset": arguments.preset, "results": results, "ratio": ratio}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
