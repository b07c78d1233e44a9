"""GRIB files in object stores, read by their index: a state costs the messages it needs, not the whole file.

GFS and IFS publish a list of messages beside each file. Those needed are picked from it, neighbours are merged into one
range, ranges are fetched in parallel, and every message is checked: that it begins and ends where the index says, and,
once all are there, that each holds the field, level, time and grid that was asked for, with values that can be.
An index that does not fit its file is read again once; then the next mirror is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from wm2cli import sources
from wm2cli.errors import DataError, NotYetError, RemoteError, UsageError, Wm2Error
from wm2cli.reading.fields import Inventory, SourceFile, time_text
from wm2cli.reading.grib import open_grib
from wm2cli.reading.inputs import open_files
from wm2cli.sources import Piece, Progress, Request, quiet
from wm2cli.sources.cache import keep, workspace
from wm2cli.sources.checks import check_fields
from wm2cli.sources.labels import Label, digest, grid_of, grid_text, label_text, labels_of
from wm2cli.transfer import AbsentError, Door, Meter, UnusableError, shown

Found = TypeVar("Found")

_END_LENGTH = 4
_UPLOAD_HOURS = 3.0


@dataclass(frozen=True)
class Entry:
    """A message in an index.

    Args:
        label: The field in it.
        start: First byte in the file.
        length: Bytes; None for the last message of an index that does not say.
    """

    label: Label
    start: int
    length: int | None


@dataclass(frozen=True)
class Selection:
    """What of a file is to be fetched.

    Args:
        entries: Messages.
        missing: Fields that the index lacks, as text.
        notes: What was taken instead.
    """

    entries: tuple[Entry, ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a file and its index may be.

    Args:
        root: Of the mirror.
        data, index: Addresses.
    """

    root: str
    data: str
    index: str


class MismatchError(RemoteError):
    """The bytes are not those that the index promises."""


class Archive(ABC):
    """A source in public archives with a file a cycle and an index beside each.

    Of a subclass: `name`, `attribution` as of every source; `offered`, the variables there are; `grids`, in degrees;
    `delay_hours`, after which a cycle is usually there, and `soonest_hours`, before which it never is.
    """

    remote = True
    keeps = True
    name: str
    attribution: str
    offered: tuple[str, ...]
    grids: tuple[str, ...]
    delay_hours: float
    soonest_hours: float

    @abstractmethod
    def places(self, time: np.datetime64, grid: str) -> tuple[Place, ...]:
        """Where a cycle's file may be, in the order they are tried."""

    @abstractmethod
    def select(self, text: str, labels: Sequence[Label], time: np.datetime64) -> Selection:
        """Picks messages from the text of an index."""

    def asked(self, request: Request) -> tuple[str, tuple[Label, ...]]:
        """Grid and fields of a request.

        Raises:
            UsageError: Unknown options, grids or fields.
        """
        request.refuse_options(self.name, ("grid",))
        text = grid_text(request.options.get("grid", self.grids[0]), self.name, self.grids)
        return text, labels_of(request, self.name, self.offered)

    def pieces(self, request: Request, labels: Sequence[Label], grid: str, size: int, requests: int
               ) -> tuple[Piece, ...]:  # fmt: skip
        """A piece a time; names of files tell what is in them apart."""
        parts = tuple(label_text(label) for label in labels)
        off = [time for time in request.times if time.astype("datetime64[s]").astype(np.int64) % 21600]
        if off:
            raise UsageError(f"{self.name} starts at 00, 06, 12 and 18 UTC",
                             problems=[f"there is none for {time_text(time)}" for time in off])  # fmt: skip
        made = []
        for time in request.times:
            text = time_text(time)
            made.append(Piece(
                f"{self.name}/{grid}/{text}", f"{self.name}_{grid}_{text.replace('-', '')}_{digest(labels)}.grib2",
                {"time": text, "grid": grid, "fields": [list(label) for label in labels]}, parts, size, requests,
            ))  # fmt: skip
        return tuple(made)

    def fetch(self, piece: Piece, folder: Path, on_progress: Progress = quiet) -> Path:
        """Gets the messages of a piece from the first place that has them all.

        Raises:
            NotYetError: It is not published yet.
            RemoteError: No place has it, or all failed; each is named with the reason.
            DataError: What came is not what was asked for.
            OSError: The folder cannot be written.
        """
        time = np.datetime64(str(piece.request["time"]), "s")
        labels = [(str(name), level) for name, level in piece.request["fields"]]
        _refuse_future(self.name, time, self.delay_hours)
        with Door() as door:
            return self._first_place(
                str(piece.request["grid"]), time,
                lambda place: _from_place(door, piece, folder, place, labels, time,
                                          lambda text, wanted: self.select(text, wanted, time), on_progress),
            )  # fmt: skip

    def open(self, paths: Sequence[Path]) -> Inventory:
        """See `wm2cli.reading.inputs.open_files`."""
        return open_files(paths)

    def latest(self, request: Request, now: np.datetime64) -> np.datetime64:
        """The newest cycle of the last two days that has every field.

        Raises:
            NotYetError: None is complete.
            RemoteError: The remotes failed.
        """
        grid, labels = self.asked(request)
        cycle = np.timedelta64(6, "h")
        newest = now - (now - np.datetime64("1970-01-01T00", "s")) % cycle
        reasons: list[str] = []
        for back in range(9):
            time = newest - back * cycle
            if now - time < np.timedelta64(round(self.soonest_hours * 3600), "s"):
                continue
            try:
                self._probe(grid, labels, time)
            except (AbsentError, NotYetError, DataError) as error:
                reasons.append(f"{time_text(time)}: {error.message}")
            else:
                return time
        raise NotYetError(f"{self.name} has no complete cycle of the last two days", problems=reasons)

    def _probe(self, grid: str, labels: Sequence[Label], time: np.datetime64) -> None:
        """Whether everything is really there: the index names all fields, and the last of them ends as it should."""

        def look(door: Door, place: Place) -> None:
            selection = _select(door, place, labels, lambda text, wanted: self.select(text, wanted, time))[0]
            last = max(selection.entries, key=lambda entry: entry.start)
            if last.length is not None:
                start = last.start + last.length - _END_LENGTH
                if door.get(place.data, start, _END_LENGTH).data != b"7777":
                    raise MismatchError(f"{shown(place.data)}: is not complete yet")
            elif door.get(place.data, last.start, 4).data != b"GRIB":
                raise MismatchError(f"{shown(place.data)}: does not fit its index")

        with Door() as door:
            self._first_place(grid, time, lambda place: look(door, place))

    def _first_place(self, grid: str, time: np.datetime64, get: Callable[[Place], Found]) -> Found:
        failures: dict[str, Wm2Error] = {}
        dead: set[str] = set()
        for place in self.places(time, grid):
            if place.root in dead:
                continue
            for _ in range(2):
                try:
                    return get(place)
                except (MismatchError, UnusableError) as error:
                    # The index may be older than its file, or the file was replaced: both are read anew once.
                    failures[place.data] = error
                    continue
                except AbsentError as error:
                    failures[place.data] = error
                except RemoteError as error:
                    failures[place.data] = error
                    dead.add(place.root)
                except (DataError, NotYetError) as error:
                    failures[place.data] = error
                break
        raise _explain(failures, self.name, time, self.delay_hours)


def _refuse_future(source: str, time: np.datetime64, delay_hours: float) -> None:
    if time > sources.now():
        raise NotYetError(f"{source} for {time_text(time)} lies in the future",
                          hint=f"it is published about {delay_hours:g} h after that time")  # fmt: skip


def _explain(failures: Mapping[str, Wm2Error], source: str, time: np.datetime64, delay_hours: float) -> Wm2Error:
    """One error for all places: not yet there, never there, failed, or wrong."""
    text = time_text(time)
    errors = list(failures.values())
    problems = list(dict.fromkeys(line for error in errors for line in (error.message, *error.problems)))
    age = sources.now() - time
    young = age < np.timedelta64(24, "h")
    expected = time + np.timedelta64(round(delay_hours * 60), "m")
    incomplete: tuple[type[Wm2Error], ...] = (AbsentError, NotYetError, MismatchError, UnusableError)
    if age < np.timedelta64(round((delay_hours + _UPLOAD_HOURS) * 60), "m"):
        incomplete = (*incomplete, MissingError)  # an index grows while its file is uploaded
    if young and errors and all(isinstance(error, incomplete) for error in errors):
        return NotYetError(f"{source} for {text} is not published yet", problems=problems,
                           hint=f"expected about {time_text(expected)} UTC; --wait 3h waits for it, or take --init "
                           "latest")  # fmt: skip
    if errors and all(isinstance(error, AbsentError) for error in errors):
        return AbsentError(f"{source} for {text} is in none of the archives asked", problems=problems,
                           hint="older states: --source era5 or --source arco")  # fmt: skip
    wrong = [error for error in errors if isinstance(error, DataError)]
    if wrong and all(isinstance(error, (DataError, AbsentError)) for error in errors):
        return DataError(f"{source} for {text} is not what it should be", problems=problems, hint=wrong[0].hint)
    hint = next((error.hint for error in errors if error.hint), None)
    return RemoteError(f"{source} for {text} could not be fetched", problems=problems,
                       hint=hint or "try again later, or another --source")  # fmt: skip


def _select(
    door: Door, place: Place, labels: Sequence[Label], select: Callable[[str, Sequence[Label]], Selection]
) -> tuple[Selection, str]:
    """What to fetch from a place, and the hash of its index."""
    raw = door.get(place.index).data
    try:
        selection = select(raw.decode("ascii"), labels)
    except (UnicodeDecodeError, ValueError) as error:
        raise MismatchError(f"{shown(place.index)}: is no index ({error})") from error
    if selection.missing:
        raise MissingError(f"{shown(place.index)}: lacks {', '.join(selection.missing)}")
    return selection, hashlib.sha256(raw).hexdigest()


class MissingError(DataError):
    """The index lacks fields."""


def _from_place(
    door: Door,
    piece: Piece,
    folder: Path,
    place: Place,
    labels: Sequence[Label],
    time: np.datetime64,
    select: Callable[[str, Sequence[Label]], Selection],
    on_progress: Progress,
) -> Path:
    on_progress(f"reading {shown(place.index)}", 0, 1)
    selection, hashed = _select(door, place, labels, select)
    origin = {"data": place.data, "index": hashed}
    runs = merge(selection.entries)
    total = sum(run[-1].length or 0 for run in runs) + sum(run[-1].start - run[0].start for run in runs)
    meter = Meter(on_progress, f"fetching {piece.key}", total)
    with workspace(piece, folder) as work:
        tag = _resume(work, origin)
        _fetch_runs(door, place, work, runs, tag, origin, meter)
        whole = work / "whole"
        with open(whole, "wb") as stream:
            for run in runs:
                with open(work / _run_name(run), "rb") as part:
                    shutil.copyfileobj(part, stream, 2**20)
        on_progress(f"checking {piece.key}", 0, 1)
        there = tuple(dict.fromkeys(entry.label for entry in selection.entries))
        inventory = open_grib(SourceFile(whole, piece.filename))
        check_fields(inventory, piece.filename, there, time, grid_of(str(piece.request["grid"])))
        return keep(piece, whole, folder / piece.filename, urls=[shown(place.data)], notes=selection.notes)


def merge(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Entries that lie one behind the other, as one run each; runs in the order of the file."""
    runs: list[list[Entry]] = []
    for entry in sorted(entries, key=lambda entry: entry.start):
        last = runs[-1][-1] if runs else None
        if last is not None and last.length is not None and last.start + last.length == entry.start:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _run_name(run: Sequence[Entry]) -> str:
    last = run[-1]
    return f"{run[0].start}-{'' if last.length is None else last.start + last.length}"


def _resume(work: Path, origin: Mapping[str, str]) -> str | None:
    """The tag of the object that an earlier run began to fetch; clears what is of another object."""
    note = work / "origin.json"
    try:
        account = json.loads(note.read_text())
        if {name: account[name] for name in origin} == dict(origin):
            return str(account["tag"]) if account["tag"] else None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return None


def _fetch_runs(
    door: Door,
    place: Place,
    work: Path,
    runs: Sequence[Sequence[Entry]],
    tag: str | None,
    origin: Mapping[str, str],
    meter: Meter,
) -> None:
    """Every run into a file of its own in `work`; those that are there are taken when they are of the same object."""
    if tag is None:
        for path in work.iterdir():
            path.unlink()
    pending = [run for run in runs if not _is_there(work / _run_name(run), run, meter)]
    if not pending:
        return

    def one(run: Sequence[Entry], known: str | None) -> str | None:
        last = run[-1]
        length = None if last.length is None else last.start + last.length - run[0].start
        reply = door.get(place.data, run[0].start, length, tag=known, on_bytes=meter.add)
        problem = run_problem(run, reply.data)
        if problem is not None:
            raise MismatchError(f"{shown(place.data)}: {problem}")
        path = work / _run_name(run)
        partial = path.with_suffix(".unfinished")
        partial.write_bytes(reply.data)
        os.replace(partial, path)
        return reply.tag

    # The first one tells which version of the object this is; all others must be of the same.
    found = one(pending[0], tag)
    (work / "origin.json").write_text(json.dumps({**origin, "tag": found}))
    with ThreadPoolExecutor(max_workers=door.network.parallel) as pool:
        waiting = [pool.submit(one, run, found) for run in pending[1:]]
        try:
            for done in as_completed(waiting):
                done.result()
        except BaseException:
            door.closing.set()
            for future in waiting:
                future.cancel()
            raise
        finally:
            pool.shutdown(wait=True)
            door.closing.clear()


def _is_there(path: Path, run: Sequence[Entry], meter: Meter) -> bool:
    try:
        data = path.read_bytes()
    except OSError:
        return False
    if run_problem(run, data) is not None:
        return False
    meter.add(len(data), fetched=False)
    return True


def run_problem(run: Sequence[Entry], data: bytes) -> str | None:
    """Why bytes are not the messages of a run, or None when they are."""
    first = run[0].start
    for entry in run:
        here = entry.start - first
        end = len(data) if entry.length is None else here + entry.length
        where = f"bytes {entry.start} to {first + end}"
        message = data[here:end]
        if len(message) < 16 or message[:4] != b"GRIB":
            return f"{where} are no GRIB message: they begin with {message[:8]!r}"
        edition = message[7]
        if edition not in (1, 2):
            return f"{where} have GRIB edition {edition}"
        length = int.from_bytes(message[8:16] if edition == 2 else message[4:7], "big")
        if length != len(message):
            return f"{where} hold a message of {length} bytes, not of {len(message)}"
        if message[-4:] != b"7777":
            return f"{where} do not end with 7777"
    return None
