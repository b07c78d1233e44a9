"""What a training leaves on disk: checkpoints that are whole or not there, and the way back to them.

A run is a folder:

    recipe.json            the resolved recipe
    log.jsonl              a line a step; validations and stages have lines of their own
    checkpoints/00001200/  state.pt (everything) and meta.json (its sha256), renamed into place
    weights/               last.safetensors and best.safetensors, for `wm2 forecast`
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wm2cli.errors import CheckpointError, ResourceError, UsageError
from wm2cli.machine import sync

FORMAT = 1
"""Format number of training checkpoints."""


@dataclass(frozen=True)
class Save:
    """A complete checkpoint of a training.

    Args:
        path: Its folder.
        step: Updates made.
        score: Of the last validation before it, lower is better; None before the first.
    """

    path: Path
    step: int
    score: float | None


def write(run: Path, step: int, state: Mapping[str, Any], score: float | None) -> Save:
    """Writes a checkpoint; its folder has its name only when everything is on the disk.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    folder = run / "checkpoints"
    final, partial = folder / f"{step:08d}", folder / f".{step:08d}.{os.getpid()}.part"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        torch.save(dict(state), partial / "state.pt")
        with (partial / "state.pt").open("rb+") as saved:
            digest = hashlib.file_digest(saved, "sha256").hexdigest()
            os.fsync(saved.fileno())
        meta = {"format": FORMAT, "step": step, "score": score, "sha256": digest}
        with (partial / "meta.json").open("w") as stream:
            stream.write(json.dumps(meta))
            stream.flush()
            os.fsync(stream.fileno())
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        # Older checkpoints are removed only when the name of the new one would survive a power cut.
        sync(folder)
    except (OSError, RuntimeError) as error:  # torch turns some failures to write into RuntimeError
        raise ResourceError(f"the checkpoint of step {step} cannot be written: {error}",
                            hint="free some space and start again with --resume; the checkpoints before it are whole"
                            ) from error  # fmt: skip
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Save(final, step, score)


def found(run: Path) -> list[Save]:
    """Complete checkpoints of a run, the latest last. What a killed process left half-written is none."""
    made = []
    for folder in sorted((run / "checkpoints").glob("[0-9]*")):
        try:
            meta = json.loads((folder / "meta.json").read_text())
            made.append(Save(folder, int(meta["step"]), meta["score"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return made


def read(save: Save) -> dict[str, Any]:
    """The state of a checkpoint, on the CPU.

    Raises:
        CheckpointError: It is damaged, or of another format.
    """
    try:
        meta = json.loads((save.path / "meta.json").read_text())
        if meta["format"] != FORMAT:
            raise CheckpointError(f"{save.path} has format {meta['format']}, this wm2 reads {FORMAT}",
                                  hint="go on with the wm2 that wrote it")  # fmt: skip
        with (save.path / "state.pt").open("rb") as stream:
            whole = hashlib.file_digest(stream, "sha256").hexdigest() == meta["sha256"]
        if not whole:
            raise CheckpointError(f"{save.path} is damaged", hint=f"remove {save.path} to go on from the one before")
        state: dict[str, Any] = torch.load(save.path / "state.pt", map_location="cpu", weights_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{save.path} cannot be read: {error}",
                              hint=f"remove {save.path} to go on from the one before") from error  # fmt: skip
    return state


def prune(run: Path, keep: int) -> None:
    """Removes all checkpoints but the last ones and the best one."""
    saves = found(run)
    scored = [save for save in saves if save.score is not None]
    best = min(scored, key=lambda save: save.score or 0.0) if scored else None
    for save in saves[:-keep]:
        if save != best:
            shutil.rmtree(save.path, ignore_errors=True)
    for left in (run / "checkpoints").glob(".*.part"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds a run folder for this process.

    Raises:
        ResourceError: Another process holds it, or it cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        stream = (run / ".lock").open("w")
    except OSError as error:
        raise ResourceError(f"the run folder {run} cannot be used: {error}") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError(f"another training writes to {run}", hint="wait for it, or choose another --out"
                                ) from None  # fmt: skip
        yield


def refuse_mixing(run: Path, resume: bool) -> None:
    """Refuses a folder that already holds a run when a new one is to begin, and the other way round.

    A run that ended before its first checkpoint left nothing that one could go on from: another may begin there.

    Raises:
        UsageError: As said.
    """
    saves = found(run)
    if saves and not resume:
        raise UsageError(f"{run} already holds a run", hint="give --resume to go on with it, or another --out")
    if resume and not saves:
        raise UsageError(f"there is no complete checkpoint in {run}", hint="leave --resume away to begin")


def describe(run: Path, recipe: str) -> None:
    """Writes down what is being run.

    Raises:
        ResourceError: The folder cannot be written.
    """
    partial = run / "recipe.json.part"
    try:
        partial.write_text(recipe + "\n")
        partial.replace(run / "recipe.json")
    except OSError as error:
        raise ResourceError(f"the run folder {run} cannot be used: {error}") from error
