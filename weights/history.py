"""Prints what the model card says of a run, from its log: `python weights/history.py runs/wm2-mini/log.jsonl`.

A run that was stopped and resumed wrote some steps twice; the last ones count.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    steps = {row["step"]: row for row in rows if row["kind"] == "step"}
    stages = list(dict.fromkeys(row["stage"] for row in steps.values()))
    print("| stage | steps | minutes | first loss | last loss |\n|---|---|---|---|---|")
    for stage in stages:
        part = [row for row in steps.values() if row["stage"] == stage]
        edge = max(1, len(part) // 10)
        first, last = (sum(row["loss"] for row in some) / edge for some in (part[:edge], part[-edge:]))
        print(f"| {stage} | {len(part)} | {minutes(part):.0f} | {first:.4f} | {last:.4f} |")
    every = list(steps.values())
    waited = sum(row["seconds"]["data"] for row in every)
    print(f"\n{len(every)} steps in {minutes(every):.0f} minutes; waiting for data "
          f"{100 * waited / (60 * minutes(every)):.3f} % of them; skipped {every[-1]['skipped']}")  # fmt: skip


def minutes(rows: list[dict]) -> float:
    return sum(sum(row["seconds"].values()) for row in rows) / 60


if __name__ == "__main__":
    main()
