"""Where initial fields come from: one module a source, all with the same three verbs.

A source plans offline, fetches piece by piece, and opens what it fetched. `SOURCES` is the whole registry.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from wm2cli.errors import UsageError
from wm2cli.reading.fields import Inventory
from wm2cli.schema import LEVELS_25, Schema

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many parts are done, and how many there are."""

INITIAL_FIELDS = Schema(("z", "t", "u", "v", "q"), LEVELS_25,
                        ("t2m", "d2m", "u10", "v10", "u100", "v100", "msl", "tcc"))  # fmt: skip
"""What WeatherMesh-2 starts from, and what is fetched when nothing else is asked for."""


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Request:
    """What is wanted of a source.

    Args:
        times: Valid times of the fields, UTC, in order.
        paths: Files the user named, for sources that read such.
        schema: Variables and levels, for sources that get only what is needed; static ones when it names some.
        options: What else a source takes, by name, as text from the command line.
    """

    times: tuple[np.datetime64, ...]
    paths: tuple[Path, ...] = ()
    schema: Schema = INITIAL_FIELDS
    options: Mapping[str, str] = field(default_factory=dict)

    def refuse_options(self, source: str, known: Iterable[str]) -> None:
        """Refuses options that a source does not take.

        Raises:
            UsageError: Names them, and those there are.
        """
        names = tuple(known)
        problems = [f"--option {name}: the source '{source}' does not take it"
                    for name in self.options if name not in names]  # fmt: skip
        if problems:
            hint = f"it takes {', '.join(names)}" if names else "it takes none"
            raise UsageError("not all options are known", problems=problems, hint=hint)


@dataclass(frozen=True)
class Piece:
    """The smallest part a source fetches in one go.

    Args:
        key: Says what it is, the same for the same request: `gfs/2024-01-01T00`.
        filename: Name in the folder it is fetched to.
        request: What the source needs to fetch it; plain values.
        parts: Fields in it (`z500`, `t2m`). A complete piece of the same key with all of these and more serves as well.
        size: Bytes expected, where that can be said.
        requests: How often the network is asked for it, roughly.
    """

    key: str
    filename: str
    request: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    size: int | None = None
    requests: int = 0


class Source(Protocol):
    """A place that initial fields come from.

    Attributes:
        name: Key in `SOURCES`.
        remote: Whether `fetch` needs a network.
        keeps: Whether `fetch` writes to the folder it is given.
        attribution: What the provider wants to be said wherever its data are used; empty when nothing.
    """

    name: str
    remote: bool
    keeps: bool
    attribution: str

    def plan(self, request: Request) -> tuple[Piece, ...]:
        """The pieces that make up a request; pure, and without a network.

        Raises:
            UsageError: The source cannot serve such a request.
        """

    def fetch(self, piece: Piece, folder: Path, on_progress: Progress = quiet) -> Path:
        """Gets a piece and returns the complete, verified file.

        What takes long to get is left by `wm2cli.sources.cache.keep`, so that it is found again.

        Raises:
            RemoteError: The remote refused or failed.
            NotYetError: What is asked for is not published yet.
            DataError: What came is not what was asked for.
            ResourceError: The folder cannot be written.
        """

    def open(self, paths: Sequence[Path]) -> Inventory:
        """What the files hold, in canonical order and units, read when asked for.

        Raises:
            DataError: Some cannot be read; each is named with the reason.
        """


@runtime_checkable
class Publishing(Protocol):
    """A source that grows with time, so that it has a latest state."""

    def latest(self, request: Request, now: np.datetime64) -> np.datetime64:
        """The newest time for which everything is there; `request.times` does not matter.

        Raises:
            RemoteError: The remote refused or failed.
            NotYetError: There is none within reach.
        """


SOURCES: dict[str, str] = {
    "gfs": "wm2cli.sources.gfs:Gfs",
    "ifs": "wm2cli.sources.ifs:Ifs",
    "era5": "wm2cli.sources.era5:Era5",
    "arco": "wm2cli.sources.arco:Arco",
    "file": "wm2cli.sources.local:LocalFiles",
    "sample": "wm2cli.sources.sample:Sample",
    "simulation": "wm2cli.sources.simulation:Simulation",
    "idealized": "wm2cli.sources.idealized:Idealized",
}
"""Name on the command line -> module and class, imported when asked for."""

OFFLINE_SOURCE = "sample"
"""What to start from where there is no network."""


def open_source(name: str) -> Source:
    """The source of that name.

    Raises:
        UsageError: There is none; names those there are.
    """
    if name not in SOURCES:
        raise UsageError(f"unknown source '{name}'", hint=f"sources: {', '.join(SOURCES)}")
    module, made = SOURCES[name].split(":")
    return cast(Source, getattr(importlib.import_module(module), made)())


def now() -> np.datetime64:
    """The time it is, UTC."""
    return np.datetime64(int(time.time()), "s")


def cache_folder() -> Path:
    """Where fetched pieces are kept: `WM2_CACHE`, or `wm2` in the user's cache folder (XDG Base Directory)."""
    if given := os.environ.get("WM2_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wm2"
