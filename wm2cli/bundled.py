"""What comes with wm2: the default weights and a sample of simulated weather.

`manifest.toml` names each file with its sha256, its size, its licence and where it comes from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from wm2cli.errors import ResourceError

DEFAULT_WEIGHTS = "wm2-mini"
"""Name of the weights that are taken when none are named."""


@dataclass(frozen=True)
class Entry:
    """A bundled file.

    Args:
        name: How it is called on the command line.
        kind: `weights`, `state`, `truth` or `climatology`.
        path: The file.
        sha256: Of its bytes.
        bytes: Its size.
        licence: SPDX identifier.
        origin: Where it comes from.
        times: The time of a state; the initial times whose forecasts a truth verifies.
    """

    name: str
    kind: str
    path: Path
    sha256: str
    bytes: int
    licence: str
    origin: str
    times: tuple[str, ...] = ()


def folder() -> Path:
    """Where the bundled files are: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parent
    inside = package / "bundle"
    return inside if inside.is_dir() else package.parent / "weights"


@cache
def manifest() -> Mapping[str, Entry]:
    """All bundled files by name.

    Raises:
        ResourceError: The folder is missing or its manifest damaged.
    """
    path = folder() / "manifest.toml"
    try:
        entries = tomllib.loads(path.read_text())["files"]
        return {
            entry["name"]: Entry(
                name=entry["name"], kind=entry["kind"], path=folder() / entry["file"], sha256=entry["sha256"],
                bytes=int(entry["bytes"]), licence=entry["licence"], origin=entry["origin"],
                times=tuple(entry.get("times", ())),
            )
            for entry in entries
        }  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ResourceError(f"this installation lacks its bundled files: {path}: {error}",
                            hint="install wm2 again") from error  # fmt: skip


def weights() -> Mapping[str, Path]:
    """Bundled weights by name."""
    return {entry.name: entry.path for entry in manifest().values() if entry.kind == "weights"}


def sample_states() -> Mapping[np.datetime64, Path]:
    """Initial states of the sample by time."""
    return {np.datetime64(entry.times[0], "s"): entry.path for entry in manifest().values() if entry.kind == "state"}


def sample_truth(init: np.datetime64) -> Path | None:
    """What followed a state of the sample; None when it does not come along."""
    text = np.datetime_as_string(init.astype("datetime64[s]"), unit="h")
    return next((entry.path for entry in manifest().values() if entry.kind == "truth" and text in entry.times), None)


def sample_climatology() -> Path | None:
    """The climatology of the sample's world, on the days that its truth covers."""
    return next((entry.path for entry in manifest().values() if entry.kind == "climatology"), None)
