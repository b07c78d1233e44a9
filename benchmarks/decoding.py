"""Decodes the messages of a GRIB file through wm2 and through a bare eccodes loop, in turn, and prints the ratio.

    python benchmarks/decoding.py FILE [--copies 60] [--repeat 5] [--json FILE]

Every message is read `--copies` times in a round, by both; the figure of each is its best round, in CPU time.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import eccodes
import numpy as np

from wm2cli.reading.inputs import open_files


def bare(path: Path) -> int:
    """Number of values decoded, of all messages."""
    total = 0
    with path.open("rb") as stream:
        while (handle := eccodes.codes_grib_new_from_file(stream)) is not None:
            total += np.asarray(eccodes.codes_get_values(handle)).size
            eccodes.codes_release(handle)
    return total


def ours(path: Path) -> int:
    """The same through the reader that forecasts use, opening included."""
    inventory = open_files([path])
    with inventory.reading():
        return sum(field.read().size for field in inventory.fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--copies", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if bare(arguments.file) != ours(arguments.file):  # fields that wm2 has no name for are not read, and cost nothing
        raise SystemExit(f"{arguments.file} holds messages that wm2 does not read: the two are not comparable")
    rounds: dict[str, list[float]] = {"bare": [], "wm2": []}
    for _ in range(arguments.repeat):
        for name, read in (("bare", bare), ("wm2", ours)):
            started = time.process_time()
            for _ in range(arguments.copies):
                read(arguments.file)
            rounds[name].append(time.process_time() - started)
    best = {name: min(times) for name, times in rounds.items()}
    ratio = best["wm2"] / best["bare"]
    found = {"file": arguments.file.name, "copies": arguments.copies, "seconds": rounds, "ratio": ratio}
    print(json.dumps(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
