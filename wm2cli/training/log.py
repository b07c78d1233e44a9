"""The log of a run: `log.jsonl` with a line a step and lines for validations; TensorBoard beside it when asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wm2cli.errors import ResourceError

FORMAT = 1
"""Format number of the lines of `log.jsonl`."""


class Log:
    """Lines are whole when they are there, and are flushed one by one.

    Args:
        run: Run folder.
        resumed_at: Updates made by the checkpoint that the run goes on from; what a killed run did after it is done
            again, and logged again. None begins a new log.
        tensorboard: Also write TensorBoard events.

    Raises:
        ResourceError: TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(self, run: Path, resumed_at: int | None, tensorboard: bool) -> None:
        # First, so that a folder without TensorBoard stays as it was.
        self._events: Any = _events(run / "tensorboard", resumed_at or 0) if tensorboard else None
        path = run / "log.jsonl"
        try:
            lines = path.read_text().splitlines() if path.exists() and resumed_at is not None else []
            kept = [line for line in lines if _step_of(line) <= (resumed_at or 0)]
            partial = path.with_suffix(".part")
            partial.write_text("".join(line + "\n" for line in kept))
            partial.replace(path)
            self._stream = path.open("a", buffering=1)
        except OSError as error:
            raise _unwritable(error) from error

    def step(self, report: Mapping[str, Any]) -> None:
        """A line for a step, with the fields of `loop.Step`."""
        self._line({"kind": "step", **report})
        if self._events:
            values = {"loss": report["loss"], "rate": report["rate"], "gradient": report["gradient"],
                      **{f"loss at/{label}": value for label, value in labelled(report).items()},
                      **{f"seconds/{name}": value for name, value in report["seconds"].items()}}  # fmt: skip
            for name, value in values.items():
                self._events.add_scalar(name, value, report["step"])

    def validation(self, step: int, result: Mapping[str, Any]) -> None:
        """A line for a validation."""
        self._line({"kind": "validation", "step": step, **result})
        if self._events:
            self._events.add_scalar("score", result["score"], step)
            for name, leads in result["rmse"].items():
                for lead, found in leads.items():
                    self._events.add_scalars(f"rmse {name}/{lead} h", found, step)

    def close(self) -> None:
        """Flushes everything."""
        self._stream.close()
        if self._events:
            self._events.close()

    def _line(self, document: Mapping[str, Any]) -> None:
        try:
            self._stream.write(json.dumps(plain({"format": FORMAT, **document}), allow_nan=False) + "\n")
        except OSError as error:
            raise _unwritable(error) from error


def labelled(report: Mapping[str, Any]) -> dict[str, float]:
    """The parts of the loss of a `loop.Step`, under names for people."""
    unit = "step {}" if report["intervals"] else "{} h"
    return {unit.format(lead): value for lead, value in report["leads"].items()}


def plain(value: Any) -> Any:
    """A value as JSON knows it: NaN and infinity, which JSON has not, are null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _events(folder: Path, purge_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ResourceError(f"TensorBoard is not installed: {error}", hint="pip install 'wm2cli[tensorboard]'"
                            ) from error  # fmt: skip
    return SummaryWriter(str(folder), purge_step=purge_step)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62  # cut short by a kill: it goes


def _unwritable(error: OSError) -> ResourceError:
    return ResourceError(f"the log of the run cannot be written: {error}",
                         hint="free some space and start again with --resume")  # fmt: skip
