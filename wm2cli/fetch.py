"""The fetch command: from a source and times to complete, verified files in the cache or a folder.

`obtain` is what `wm2 forecast` uses as well: it takes what is there, fetches what is not, goes down a ladder of sources
when one fails, and waits for what is not published yet. All fields of a time come from one source.
"""

from __future__ import annotations

import shutil
import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wm2cli import sources
from wm2cli.errors import DataError, NotYetError, RemoteError, ResourceError, UsageError, Wm2Error
from wm2cli.reading.fields import time_text
from wm2cli.schema import Schema, variable
from wm2cli.sources import (
    INITIAL_FIELDS,
    SOURCES,
    Piece,
    Progress,
    Publishing,
    Request,
    Source,
    cache_folder,
    open_source,
    quiet,
)
from wm2cli.sources.cache import Held, Pruned, copy, find, locked, prune

FORMAT = 1
"""Format number of the JSON documents of this command."""

ERA5_DELAY = np.timedelta64(6, "D")
"""From then on ERA5 is there (preliminary, as ERA5T)."""
GFS_BEGIN = np.datetime64("2021-01-01T00", "s")
"""The archives of GFS in the open begin then."""

_POLL = 60.0  # s between looks for what is not published yet
_STATIC = Schema((), (), (), ("orog", "lsm", "slt"))

T = TypeVar("T")


@dataclass(frozen=True)
class Access:
    """How pieces are got.

    Args:
        cache: Folder of what was fetched before; the user's when None.
        out: Folder to fetch to instead; what the cache has is copied there.
        offline: Use only what is there.
        wait_hours: How long to wait for what is not published yet.
        max_age_hours: Refuse states older than this; any age will do when None.
    """

    cache: Path | None = None
    out: Path | None = None
    offline: bool = False
    wait_hours: float = 0.0
    max_age_hours: float | None = None

    def folder(self, source: str) -> Path:
        """Where pieces of a source are kept."""
        return (self.cache or cache_folder()) / source


@dataclass(frozen=True)
class Got:
    """A piece on this machine.

    Args:
        source, key: What it is.
        path: The file.
        cached: It was there before.
        held: The account of it; None for files that are read where they lie.
    """

    source: str
    key: str
    path: Path
    cached: bool
    held: Held | None


@dataclass(frozen=True)
class Obtained:
    """Everything a request asked for, from one source.

    Args:
        source: Name of the source that served it.
        times: The times asked for, with `latest` resolved.
        pieces: Its files.
        notes: What the user should know.
    """

    source: str
    times: tuple[np.datetime64, ...]
    pieces: tuple[Got, ...]
    notes: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, as `Source.open` takes them."""
        return tuple(piece.path for piece in self.pieces)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the files came from."""
        return tuple(dict.fromkeys(url for piece in self.pieces if piece.held for url in piece.held.urls))


@dataclass(frozen=True)
class Options:
    """Everything that `wm2 fetch` can be told.

    Args:
        times: Valid times, UTC; None is the latest there is.
        source: Name of a source, several to be tried in order (`gfs,ifs,era5`), or `auto`.
        access: How pieces are got.
        schema: Variables and levels.
        static: Also orography, land-sea mask and soil type, of ERA5.
        options: See `Request`.
    """

    times: tuple[np.datetime64 | None, ...]
    source: str = "auto"
    access: Access = field(default_factory=Access)
    schema: Schema = INITIAL_FIELDS
    static: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What would be fetched.

    Args:
        pieces: One mapping each: source, key, path, bytes (None when unknown), requests, fields, cached.
        notes: Which source was chosen and why.
    """

    pieces: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
        missing = [piece for piece in self.pieces if not piece["cached"]]
        return {
            "format": FORMAT,
            "pieces": [dict(piece) for piece in self.pieces],
            "cached": len(self.pieces) - len(missing),
            "requests": sum(piece["requests"] for piece in missing),
            "bytes": sum(piece["bytes"] or 0 for piece in missing),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Result:
    """What `fetch` got."""

    obtained: tuple[Obtained, ...]
    notes: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, each once."""
        return tuple(dict.fromkeys(path for one in self.obtained for path in one.paths))

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
        pieces = {piece.path: piece for one in self.obtained for piece in one.pieces}
        return {
            "format": FORMAT,
            "times": [time_text(time) for one in self.obtained for time in one.times],
            "pieces": [
                {
                    "source": piece.source,
                    "key": piece.key,
                    "path": str(piece.path),
                    "cached": piece.cached,
                    "bytes": piece.path.stat().st_size,
                    "sha256": piece.held.sha256 if piece.held else None,
                    "urls": list(piece.held.urls) if piece.held else [],
                }
                for piece in pieces.values()
            ],
            "notes": list(self.notes),
        }


def fetch(options: Options, on_progress: Progress = quiet) -> Result:
    """Gets the files for all times; what one time lacks does not keep the others from being fetched.

    Raises:
        UsageError: No such source, or it cannot serve such a request.
        RemoteError: A remote refused or failed, or a piece is missing offline.
        NotYetError: Something is not published yet, or too old.
        DataError: What came is not what was asked for.
        ResourceError: A folder cannot be written, or the disk is full.
    """
    obtained: list[Obtained] = []
    notes: list[str] = []
    failures: list[tuple[str, Wm2Error]] = []
    for request, ladder, note in _requests(options):
        notes += [note] if note else []
        try:
            got = obtain(ladder, request, options.access, on_progress)
        except (DataError, NotYetError, RemoteError) as error:
            failures.append((times_text(request.times), error))
            continue
        obtained.append(got)
        notes += [*got.notes, open_source(got.source).attribution]
    if failures:
        raise _together(failures, len(obtained))
    return Result(tuple(obtained), tuple(dict.fromkeys(filter(None, notes))))


def plan(options: Options) -> Plan:
    """What `fetch` would ask the network for; nothing is fetched, and no network is touched.

    Raises:
        UsageError: No such source, it cannot serve such a request, or `latest` is asked for.
    """
    if None in options.times:
        raise UsageError("what is latest is only known by asking the network", hint="give --plan a time")
    rows: dict[str, Mapping[str, Any]] = {}
    notes = []
    for request, ladder, note in _requests(options):
        notes += [note] if note else []
        rows |= {row["path"]: row for row in rows_of(ladder[0], request, options.access)}
    return Plan(tuple(rows.values()), tuple(dict.fromkeys(notes)))


def rows_of(name: str, request: Request, access: Access) -> list[dict[str, Any]]:
    """The pieces of a request to one source, as `Plan` has them."""
    source = open_source(name)
    rows = []
    for piece in source.plan(request):
        folder = access.out or access.folder(source.name)
        held = find(piece, folder) or find(piece, access.folder(source.name))
        path = held.path if held else folder / piece.filename
        size = held.size if held else piece.size
        if not source.keeps:
            path = source.fetch(piece, folder)  # it lies there already, or nowhere
            size = path.stat().st_size if path.is_file() else None
        rows.append({
            "source": source.name, "key": piece.key, "path": str(path), "bytes": size, "requests": piece.requests,
            "fields": len(piece.parts),
            "cached": held is not None or (not source.keeps and size is not None),
        })  # fmt: skip
    return rows


def tidy(access: Access, keep_bytes: int) -> Pruned:
    """Keeps the cache small, see `wm2cli.sources.cache.prune`."""
    return prune(access.cache or cache_folder(), keep_bytes)


def wanted(variables: Sequence[str] | None, levels: Sequence[float] | None) -> Schema:
    """The fields to fetch: those named, or those WeatherMesh-2 starts from.

    Raises:
        UsageError: A variable is unknown.
        ConfigError: Variables and levels do not go together.
    """
    if variables is None and levels is None:
        return INITIAL_FIELDS
    kinds = {name: variable(name).kind for name in variables or INITIAL_FIELDS.pressure + INITIAL_FIELDS.surface}
    pressure = tuple(name for name, kind in kinds.items() if kind == "pressure")
    chosen = tuple(sorted(map(float, set(levels if levels is not None else INITIAL_FIELDS.levels))))
    return Schema(
        pressure,
        chosen if pressure else (),
        tuple(name for name, kind in kinds.items() if kind == "surface"),
        tuple(name for name, kind in kinds.items() if kind == "static"),
    )


def ladder_of(source: str, time: np.datetime64 | None, *, files: bool = False) -> tuple[tuple[str, ...], str | None]:
    """The sources to try in order, and why these when nobody named any.

    Args:
        source: As on the command line.
        time: Valid time wanted; None is the latest there is.
        files: The user named files.

    Raises:
        UsageError: No such source.
    """
    if source != "auto":
        names = tuple(name.strip() for name in source.split(","))
        for name in names:
            open_source(name)
        return names, None
    if files:
        return ("file",), None
    from wm2cli.sources.era5 import has_key

    text = "the latest" if time is None else time_text(time)
    if time is None or time > sources.now() - ERA5_DELAY:
        return ("gfs",), f"source gfs for {text}: ERA5 follows about {ERA5_DELAY.astype(int)} days later"
    if has_key():
        return ("era5",), f"source era5 for {text}: there is a key for the Climate Data Store"
    ladder = ("arco", "gfs") if time >= GFS_BEGIN else ("arco",)
    return ladder, f"source {', then '.join(ladder)} for {text}: ERA5 without a key for the Climate Data Store"


def obtain(ladder: Sequence[str], request: Request, access: Access, on_progress: Progress = quiet) -> Obtained:
    """Gets all pieces of a request from the first source of a ladder that has them.

    Args:
        ladder: Names of sources.
        request: No times at all mean the latest there is.
        access: How pieces are got.

    Raises:
        As `fetch`.
    """
    latest = not request.times and bool(request.schema.channels)
    if latest and access.offline:
        raise UsageError("what is latest is only known by asking the network", hint="give --offline a time")

    def attempt() -> Obtained:
        failures: list[tuple[str, Wm2Error]] = []
        for name in ladder:
            source = open_source(name)
            try:
                return _from_source(source, request, latest, access, on_progress)
            except (DataError, NotYetError, RemoteError, UsageError) as error:
                failures.append((name, error))
        if len(failures) == 1:
            raise failures[0][1]
        raise _together(failures, 0)

    got = _patiently(attempt, access.wait_hours, on_progress)
    return replace(got, notes=tuple(dict.fromkeys(got.notes)))


def times_text(times: Sequence[np.datetime64]) -> str:
    """One time, or the first and the last."""
    if not times:
        return "the latest"
    return time_text(times[0]) if len(times) == 1 else f"{time_text(times[0])} to {time_text(times[-1])}"


def _requests(options: Options) -> list[tuple[Request, tuple[str, ...], str | None]]:
    """What is to be asked of whom: times that go the same way together, each time by itself where there is a choice."""
    chosen = [(time, *ladder_of(options.source, time)) for time in options.times]
    made = []
    for ladder, group in groupby(chosen, key=lambda item: item[1]):
        items = list(group)
        batches = [items] if len(ladder) == 1 and None not in options.times else [[item] for item in items]
        made += [
            (
                Request(
                    tuple(time for time, _, _ in batch if time is not None),
                    schema=options.schema,
                    options=options.options,
                ),
                ladder,
                items[0][2],
            )
            for batch in batches
        ]
    if options.static:
        from wm2cli.sources.era5 import has_key

        name = options.source if options.source in ("era5", "arco") else "era5" if has_key() else "arco"
        own = options.options if options.source == name else {}
        made.append((Request((), schema=_STATIC, options=own), (name,), None))
    return made


def _from_source(source: Source, request: Request, latest: bool, access: Access, on_progress: Progress) -> Obtained:
    notes: list[str] = []
    if latest:
        if not isinstance(source, Publishing):
            raise UsageError(f"the source '{source.name}' has no latest state", hint="give --init a time")
        request = replace(request, times=(source.latest(request, sources.now()),))
        notes.append(f"the latest of {source.name} is {time_text(request.times[0])}, {_age_text(request.times[0])} old")
    _refuse_old(request, access)
    pieces = source.plan(request)
    if access.offline and source.remote:
        _refuse_missing(source, pieces, access)
    got = []
    for piece in pieces:
        one = _one_piece(source, piece, access, on_progress)
        notes += one.held.notes if one.held else ()
        got.append(one)
    return Obtained(source.name, request.times, tuple(got), tuple(notes))


def _one_piece(source: Source, piece: Piece, access: Access, on_progress: Progress) -> Got:
    """A piece from the folder, from the cache, or from the source."""
    cache = access.folder(source.name)
    folder = access.out or cache
    held = find(piece, folder)
    if held is None and source.keeps:
        with locked(piece, folder, on_progress):
            # Another run may have fetched it while this one waited for the lock.
            held = find(piece, folder)
            there = find(piece, cache) if held is None and access.out else None
            if there is not None:
                held = copy(there, folder)
            if held is None:
                return _get(source, piece, folder, on_progress)
    if held is not None:
        return Got(source.name, piece.key, held.path, True, held)
    return _get(source, piece, folder, on_progress)


def _get(source: Source, piece: Piece, folder: Path, on_progress: Progress) -> Got:
    if piece.size is not None and (free := shutil.disk_usage(folder).free) < piece.size:
        raise ResourceError(f"{piece.key} needs {piece.size / 1e6:.0f} MB, {folder} has {free / 1e6:.0f} MB",
                            hint="free some space, or set --cache or WM2_CACHE to a folder with more")  # fmt: skip
    try:
        path = source.fetch(piece, folder, on_progress)
    except OSError as error:
        raise ResourceError(
            f"cannot write {piece.filename} to {folder}: {error.strerror or error}",
            hint="free some space, or set --cache or WM2_CACHE to a folder with more",
        ) from error
    return Got(source.name, piece.key, path, not source.keeps, find(piece, folder) if source.keeps else None)


def _refuse_old(request: Request, access: Access) -> None:
    if access.max_age_hours is None:
        return
    old = [
        time for time in request.times if sources.now() - time > np.timedelta64(round(access.max_age_hours * 3600), "s")
    ]
    if old:
        problems = [f"{time_text(time)} is {_age_text(time)} old" for time in old]
        raise NotYetError(f"older than the {access.max_age_hours:g} h that --max-age allows", problems=problems,
                          hint="try again when a newer one is published, or add --wait 3h")  # fmt: skip


def _refuse_missing(source: Source, pieces: Sequence[Piece], access: Access) -> None:
    folders = [folder for folder in (access.out, access.folder(source.name)) if folder is not None]
    missing = [piece for piece in pieces if not any(find(piece, folder) for folder in folders)]
    if not missing:
        return
    problems = []
    for piece in missing:
        here = [folder for folder in folders if (folder / piece.filename).exists()]
        what = "is damaged" if here else "is not there"
        problems.append(f"{piece.key} {what} ({(here or folders)[0] / piece.filename})")
    raise RemoteError(f"--offline: {len(missing)} of {len(pieces)} pieces of {source.name} are missing",
                      problems=problems, hint=f"run `wm2 fetch --source {source.name} ...` where there is a network, "
                      "and bring its folder here with --cache or WM2_CACHE")  # fmt: skip


def _patiently(attempt: Callable[[], T], hours: float, on_progress: Progress) -> T:
    """Tries again while something is not published yet, for so long."""
    deadline = clock.monotonic() + hours * 3600.0
    while True:
        try:
            return attempt()
        except NotYetError as error:
            left = deadline - clock.monotonic()
            if left <= 0:
                raise
            on_progress(f"waiting for up to {left / 60:.0f} min: {error.message}", 0, 1)
            clock.sleep(min(_POLL, left))


def _together(failures: Sequence[tuple[str, Wm2Error]], done: int) -> Wm2Error:
    """One error for several; it counts as not published yet only when all are."""
    if len(failures) == 1 and not done:
        return failures[0][1]
    errors = [error for _, error in failures]
    kind = next(kind for kind in (UsageError, ResourceError, RemoteError, DataError, NotYetError)
                if any(isinstance(error, kind) for error in errors))  # fmt: skip
    if all(isinstance(error, (NotYetError, UsageError)) for error in errors) and kind is UsageError:
        kind = NotYetError if any(isinstance(error, NotYetError) for error in errors) else UsageError
    problems = []
    for what, error in failures:
        problems.append(error.message if error.message.startswith(what) else f"{what}: {error.message}")
        problems += [f"{what}: {line}" for line in error.problems]
    hints = list(dict.fromkeys(error.hint for error in errors if error.hint))
    message = f"{len(failures)} of {len(failures) + done} could not be fetched" if done else "nothing could be fetched"
    return kind(message, problems=problems, hint="; ".join(hints[:2]) or None)


def _age_text(time: np.datetime64) -> str:
    minutes = int((sources.now() - time) / np.timedelta64(1, "m"))
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} days"


__all__ = ["SOURCES", "Access", "Options", "Plan", "Result", "fetch", "obtain", "plan", "tidy"]
