"""Prints the model card's tables from the JSON of `wm2 evaluate`: `python weights/table.py forecasts/scores.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

CHANNELS = {"z500": ("m²/s²", 1.0, 0), "t850": ("K", 1.0, 2), "u850": ("m/s", 1.0, 2), "t2m": ("K", 1.0, 2),
            "msl": ("Pa", 1.0, 0)}  # fmt: skip


def main() -> None:
    document = json.loads(Path(sys.argv[1]).read_text())
    leads = document["leads_hours"]
    scores = document["scores"]
    head = " | ".join(f"{lead / 24:g} d" if lead >= 24 else f"{lead} h" for lead in leads)
    print(f"| RMSE | | {head} |\n|---|---|" + "---|" * len(leads))
    for channel, (units, scale, digits) in CHANNELS.items():
        for kind in ("forecast", "persistence", "climatology"):
            values = scores[kind]["rmse"][channel]["global"]
            label = f"{channel} ({units})" if kind == "forecast" else ""
            print(f"| {label} | {kind} | " + " | ".join(f"{value * scale:.{digits}f}" for value in values) + " |")
    print(f"\n| of the forecast | | {head} |\n|---|---|" + "---|" * len(leads))
    for channel in ("z500", "t2m"):
        for score, label in (("activity", "activity, to the truth's"), ("acc", "ACC")):
            values = scores["forecast"][score][channel]["global"]
            if score == "activity":
                true = scores["forecast"]["activity_truth"][channel]["global"]
                values = [a / b for a, b in zip(values, true, strict=True)]
            print(f"| {channel} | {label} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    print("\n" + json.dumps(document["physics"]))


if __name__ == "__main__":
    main()
