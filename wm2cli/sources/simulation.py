"""Simulated weather: years of a general-circulation model, for training and tests where there are no real data.

A world is a seed and the date on which it begins; its months are files in the cache. A month that is wanted is made by
going on from the nearest state saved before it, and every month on the way is kept. The atmosphere is a model's: no
diurnal cycle, eight levels, a polar night too cold above 100 hPa, the same sea-surface temperature every year. What is
trained on it has no skill for real weather, and every file says so.
"""

from __future__ import annotations

import os
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wm2cli.errors import UsageError
from wm2cli.reading.fields import Inventory
from wm2cli.reading.inputs import open_files
from wm2cli.sources import Piece, Progress, Request, quiet
from wm2cli.sources.cache import keep
from wm2cli.writing.canonical import write_fields

if TYPE_CHECKING:
    from wm2cli.sources.speedy import World

CAVEAT = (
    "Simulated, not observed. No diurnal cycle, eight model levels, unphysically cold polar nights above 100 hPa, sea "
    "surface temperatures that repeat every year. Nothing learnt from it has skill for real weather."
)

SPIN_UP = np.timedelta64(365, "D")
"""From the state of rest to the first month that is kept."""


@dataclass(frozen=True)
class WorldOptions:
    """What makes a world.

    Args:
        seed: Of the initial perturbation.
        begins: The date on which the atmosphere is at rest; a year before the first month wanted when None. The same
            seed and date are the same world, whatever months are asked for.
        hours: Between the fields, 1 or 6.
    """

    seed: int = 1
    begins: str | None = None
    hours: int = 6


class Simulation:
    """The source `simulation`; options `seed`, `begins`, `hours` of `WorldOptions`."""

    name = "simulation"
    remote = False
    keeps = True
    attribution = ""

    def __init__(self) -> None:
        self._world: World | None = None
        self._made_for: tuple[int, np.datetime64] | None = None

    def plan(self, request: Request) -> tuple[Piece, ...]:
        """One piece a month that holds any of the times; the instant 00 UTC on the first day ends the month before.

        Raises:
            UsageError: Options that are unknown or impossible; all are listed.
        """
        request.refuse_options(self.name, ("seed", "begins", "hours"))
        options = _options(request.options)
        times = np.array(request.times, "datetime64[s]")
        if not len(times):
            raise UsageError("the simulation has no latest state", hint="give it times")
        months = np.unique((times - np.timedelta64(1, "s")).astype("datetime64[M]"))
        begins = np.datetime64(options.begins or months[0].astype("datetime64[D]") - SPIN_UP, "D")
        problems = [
            f"{time} is no multiple of {options.hours} h"
            for time in times[:3]
            if time.astype("datetime64[h]") != time or int(time.astype("datetime64[h]").astype(int)) % options.hours
        ]
        if begins + SPIN_UP > months[0].astype("datetime64[D]"):
            problems.append(f"a world that is at rest on {begins} has not settled before {begins + SPIN_UP}")
        if problems:
            raise UsageError("the simulation cannot make this", problems=problems)
        return tuple(_piece(options.seed, begins, options.hours, month) for month in months)

    def fetch(self, piece: Piece, folder: Path, on_progress: Progress = quiet) -> Path:
        """Makes a month, and on the way to it the months since the last saved state.

        Raises:
            ResourceError: The simulation's packages are missing, or the folder cannot be written.
            ValuesError: The simulation broke down.
        """
        seed, begins = int(piece.request["seed"]), np.datetime64(piece.request["begins"], "D")
        wanted, hours = np.datetime64(piece.request["month"], "M"), int(piece.request["hours"])
        states = folder / ".states" / f"seed{seed}_{begins}"
        month = self._go_to(seed, begins, states, wanted, on_progress)
        while month <= wanted:
            self._month(_piece(seed, begins, hours, month), folder, states, on_progress)
            month += 1
        return folder / piece.filename

    def open(self, paths: Sequence[Path]) -> Inventory:
        """See `wm2cli.reading.inputs.open_files`."""
        return open_files(paths)

    def _go_to(self, seed: int, begins: Any, states: Path, wanted: Any, on_progress: Progress) -> Any:
        """Brings a world to the beginning of the latest month, up to the wanted one, from which it can go on."""
        from wm2cli.sources.speedy import World

        if self._world is not None and self._made_for == (seed, begins):
            if self._world.time == wanted.astype("datetime64[h]"):
                return wanted
        else:
            on_progress("compiling the simulation", 0, 1)
            self._world = World(seed, begins, states.parents[1] / ".compiled")
            self._made_for = (seed, begins)
        saved = sorted((np.datetime64(path.stem, "M") for path in states.glob("*.state")), reverse=True)
        for month in saved:
            if month <= wanted:
                self._world.load(states / f"{month}.state", month.astype("datetime64[h]"))
                return month
        if self._world.time != begins.astype("datetime64[h]"):
            self._world = World(seed, begins, states.parents[1] / ".compiled")
        first = (begins + SPIN_UP - np.timedelta64(1, "D")).astype("datetime64[M]") + 1
        days = int((first.astype("datetime64[D]") - begins).astype(int))
        started = clock.monotonic()
        for day in range(days):
            on_progress(f"spinning up seed {seed} {_rate(day, started)}", day, days)
            if day < days - 1:
                self._world.skip_day()
            else:
                self._world.day(6)  # so that windows of the first hours have their past
        self._world.save(states / f"{first}.state")
        return first

    def _month(self, piece: Piece, folder: Path, states: Path, on_progress: Progress) -> None:
        """Advances the world by a month, and keeps it with the state at its end."""
        from wm2cli.sources.speedy import GRID, LEVELS, World, versions

        world = self._world
        if not isinstance(world, World):
            raise TypeError("no world was made")
        month, hours = np.datetime64(piece.request["month"], "M"), int(piece.request["hours"])
        begin, end = month.astype("datetime64[D]"), (month + 1).astype("datetime64[D]")
        days = int((end - begin).astype(int))
        made: list[Mapping[str, Any]] = []
        started = clock.monotonic()
        for day in range(days):
            on_progress(f"simulating {month}, seed {piece.request['seed']} {_rate(day, started)}", day, days)
            made.append(world.day(hours))
        fields = {name: np.concatenate([part[name] for part in made]) for name in made[0]}
        times = begin.astype("datetime64[h]") + hours * np.arange(1, days * 24 // hours + 1)
        used = versions()
        target = folder / piece.filename
        partial = folder / f".{piece.filename}.{os.getpid()}.part"
        try:
            write_fields(
                partial, times=times, grid=GRID, levels=LEVELS, fields={**fields, **world.static}, rounded=True,
                attributes={
                    "title": "Simulated atmosphere, not observations",
                    "wm2_kind": "simulated",
                    "source": f"jcm {used['jcm']} (SPEEDY physics) on dinosaur {used['dinosaur']}, T31, 8 levels, "
                    "30 min",
                    "wm2_world": f"seed {piece.request['seed']}, at rest on {piece.request['begins']}",
                    "wm2_versions": " ".join(f"{name} {version}" for name, version in used.items()),
                    "references": "Molteni 2003, doi:10.1007/s00382-002-0268-2; "
                    "https://github.com/climate-analytics-lab/jax-gcm",
                    "comment": CAVEAT,
                },
            )  # fmt: skip
            # First the state: a month that is there can always be gone on from.
            world.save(states / f"{month + 1}.state")
            keep(piece, partial, target, urls=(), notes=("simulated weather, not observations",))
        finally:
            partial.unlink(missing_ok=True)


def _piece(seed: int, begins: Any, hours: int, month: Any) -> Piece:
    return Piece(
        f"simulation/seed {seed} from {begins}, {month}, every {hours} h",
        f"seed{seed}_{begins}_{hours}h_{month}.nc",
        {"seed": seed, "begins": str(begins), "hours": hours, "month": str(month)},
    )


def _options(given: Mapping[str, Any]) -> WorldOptions:
    """Options as text from the command line or as values.

    Raises:
        UsageError: Unknown or impossible ones; all are listed.
    """
    problems = []
    values: dict[str, Any] = {}
    for name, low in (("seed", 0), ("hours", 1)):
        if name in given:
            try:
                values[name] = int(given[name])
            except ValueError:
                problems.append(f"{name} must be a whole number, found {given[name]!r}")
                continue
            if values[name] < low:
                problems.append(f"{name} must be at least {low}, found {values[name]}")
    if values.get("hours", 6) not in (1, 6):
        problems.append(f"hours must be 1 or 6, found {values['hours']}")
    if given.get("begins") is not None:
        try:
            values["begins"] = str(np.datetime64(str(given["begins"]), "D"))
        except ValueError:
            problems.append(f"begins must be a date as 2009-01-01, found {given['begins']!r}")
    if problems:
        raise UsageError("the simulation cannot be planned", problems=problems,
                         hint="options are seed=1, begins=2009-01-01, hours=6 or 1")  # fmt: skip
    return WorldOptions(**values)


def _rate(days: int, started: float) -> str:
    """For people: how fast it goes."""
    seconds = clock.monotonic() - started
    return f"({days / seconds:.2f} days/s)" if days and seconds > 0 else ""
