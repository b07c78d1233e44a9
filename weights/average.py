"""Averages checkpoints of one run: their mean is better than each where they are good at different lead times.

python weights/average.py weeks.safetensors day.safetensors --out mean.safetensors
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from wm2cli import checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="checkpoints of the same network and statistics")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    parts = [checkpoint.load(path) for path in arguments.files]
    first = parts[0]
    if any((part.header.config, part.header.normalizer) != (first.header.config, first.header.normalizer)
           for part in parts):  # fmt: skip
        raise SystemExit("error: the checkpoints have different networks or statistics, and have no mean")
    weights = [part.model.state_dict() for part in parts]
    mean = {name: torch.stack([one[name].double() for one in weights]).mean(dim=0).to(value.dtype)
            for name, value in weights[0].items()}  # fmt: skip
    first.model.load_state_dict(mean)
    training = {**first.header.training, "mean_of_sha256": [part.sha256 for part in parts]}
    checkpoint.save(arguments.out, first.model, replace(first.header, training=training), first.static, half=True)
    print(arguments.out)


if __name__ == "__main__":
    main()
