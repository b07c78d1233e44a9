"""Where initial fields come from: one module a source, all with the same three verbs.

A source plans offline, fetches piece by piece, and opens what it fetched. `SOURCES` is the whole registry.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from wm2cli.errors import UsageError
from wm2cli.reading.fields import Inventory
from wm2cli.schema import Schema


@dataclass(frozen=True)
class Request:
    """What is wanted of a source.

    Args:
        time: Valid time of the fields, UTC.
        paths: Files the user named, for sources that read such.
        schema: Variables and levels, for sources that get only what is needed.
        options: What else a source takes, by name.
    """

    time: np.datetime64
    paths: tuple[Path, ...] = ()
    schema: Schema | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """The smallest part a source fetches in one go.

    Args:
        key: Says what it is, the same for the same request.
        filename: Name in the folder it is fetched to.
        request: What the source needs to fetch it.
    """

    key: str
    filename: str
    request: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """A place that initial fields come from."""

    name: str

    def plan(self, request: Request) -> tuple[Piece, ...]:
        """The pieces that make up a request; pure, and without a network.

        Raises:
            UsageError: The source cannot serve such a request.
        """

    def fetch(self, piece: Piece, folder: Path) -> Path:
        """Gets a piece and returns the complete, verified file."""

    def open(self, paths: Sequence[Path]) -> Inventory:
        """What the files hold, in canonical order and units, read when asked for.

        Raises:
            DataError: Some cannot be read; each is named with the reason.
        """


SOURCES: dict[str, str] = {
    "file": "wm2cli.sources.local:LocalFiles",
    "idealized": "wm2cli.sources.idealized:Idealized",
}
"""Name on the command line -> module and class, imported when asked for."""


def open_source(name: str) -> Source:
    """The source of that name.

    Raises:
        UsageError: There is none; names those there are.
    """
    if name not in SOURCES:
        raise UsageError(f"unknown source '{name}'", hint=f"sources: {', '.join(SOURCES)}")
    module, made = SOURCES[name].split(":")
    return cast(Source, getattr(importlib.import_module(module), made)())


def cache_folder() -> Path:
    """Where fetched pieces are kept: `WM2_CACHE`, or `wm2` in the user's cache folder (XDG Base Directory)."""
    if given := os.environ.get("WM2_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wm2"
