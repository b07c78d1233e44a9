"""Errors of one network behind each of its encoders, on the same dates of the validation split.

    python weights/compare_encoders.py WEIGHTS --data era5=store.zarr --data other=other.zarr

Twelve initial times, z500, t850, u850 and t2m; the truth is the first store.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from wm2cli import checkpoint
from wm2cli.store import open_store
from wm2cli.training.samples import Samples, View

LEADS = (6, 24, 72)
CHANNELS = {"z500": ("z", 500), "t850": ("t", 850), "u850": ("u", 850), "t2m": ("t2m", None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", action="append", required=True, metavar="ENCODER=STORE")
    arguments = parser.parse_args()
    stores = {name: open_store(Path(path)) for name, path in (text.split("=", 1) for text in arguments.data)}
    model = checkpoint.load(arguments.weights).model
    views = {name: View(store, model.inputs[name]) for name, store in stores.items()}
    truth = View(next(iter(stores.values())), model.schema_out)
    samples = Samples(views, truth, "validation", 120, 6)
    chosen = np.linspace(0, len(samples) - 1, 12).round().astype(int)
    area = torch.tensor(model.grid.area_weights(), dtype=torch.float32)[:, None]
    print("| encoder | lead | " + " | ".join(CHANNELS) + " |\n|---|---|" + "---|" * len(CHANNELS))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        batch = samples.read(chosen, LEADS)
        for name in views:
            latent, reached = model.encode({name: batch.inputs[name]}), 0
            for lead in LEADS:
                for _ in range((lead - reached) // 6):
                    latent = model.advance(latent, 6)
                made, real, reached = model.decode(latent), batch.targets[lead], lead
                errors = [(made.select(*key) - real.select(*key)).float().square() * area for key in CHANNELS.values()]
                print(f"| {name} | {lead} h | " + " | ".join(f"{float(e.mean().sqrt()):.2f}" for e in errors) + " |",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
