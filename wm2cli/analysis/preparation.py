"""From an inventory of files to exactly the fields a model starts from, or one error that lists all that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import xarray as xr

from wm2cli.analysis.derivations import Derivation, derivations_of
from wm2cli.analysis.levels import LevelPlan, between, beyond, levels_text, plan_levels
from wm2cli.analysis.snapshot import Snapshot, names_text
from wm2cli.analysis.statics import read_static
from wm2cli.analysis.thermodynamics import specific_humidity
from wm2cli.errors import DataError
from wm2cli.grid import Grid
from wm2cli.machine import cores
from wm2cli.reading.fields import Field, Inventory, Time, Values, one_grid, plain_name, time_text, times_text
from wm2cli.schema import VARIABLES, Schema, level_text, value_issues

__all__ = ["Analysis", "prepare", "read_static"]

_HUMIDITY = (
    "from relative humidity at {levels}: q = 0.622 e / (p - 0.378 e), e = r es(t), es over mixed water and ice "
    "(IFS Cy47r3 Part IV eq. 7.4 and 7.5)"
)


@dataclass(frozen=True)
class Analysis:
    """The state a forecast starts from.

    Args:
        dataset: Canonical: dims (time, level, latitude, longitude), the model's grid and levels, our names
            and units.
        notes: Everything done to the fields beyond copying them, and what they are when they are no analysis.
        files: Name and sha256 of each file that fields were read from.
    """

    dataset: xr.Dataset
    notes: tuple[str, ...]
    files: tuple[tuple[str, str], ...]


def prepare(
    inventory: Inventory,
    schema: Schema,
    time: Time,
    grid: Grid,
    *,
    derive: bool = False,
    extrapolate: bool = False,
    static: xr.Dataset | None = None,
) -> Analysis:
    """The fields of a schema at one time, on a grid.

    What differs from the files is noted: levels that the source does not have are interpolated linearly in ln
    p; specific humidity is made from relative humidity where only that is there; another grid is regridded
    conservatively; values outside physical limits by no more than packing explains are set to them.

    Args:
        inventory: Of the input files.
        schema: Variables and levels wanted.
        time: Valid time wanted.
        grid: Target grid.
        derive: Also make fields that others only approximate (`wm2cli.analysis.derivations`), and fill a hole in one
            variable's levels where other variables have that level.
        extrapolate: Also make levels beyond those of the source (`wm2cli.analysis.levels.beyond`).
        static: Fields constant in time for derivations and for `schema.static`, dims (latitude, longitude).

    Raises:
        DataError: The time is not there, or anything is missing, ambiguous, regional, on several grids, has
            missing or impossible values; all of it is listed.
    """
    moment = time.astype("datetime64[s]")
    _check_time(inventory, moment)
    work = _Preparation(Snapshot(inventory, moment, static), schema, grid, derive, extrapolate, static)
    with inventory.reading(), ThreadPoolExecutor(max_workers=min(8, cores())) as pool:
        return work.run(pool)


def _check_time(inventory: Inventory, time: Time) -> None:
    times = inventory.times()
    names = ", ".join(file.label for file in inventory.files) or "the input"
    if not times and not any(VARIABLES[item.variable].kind != "static" for item in inventory.fields):
        problems = [line for lines in inventory.problems.values() for line in lines]
        if inventory.ignored:
            some = sorted(inventory.ignored)
            problems.append(f"not used: {', '.join(some[:8])}" + (f" and {len(some) - 8} more" if some[8:] else ""))
        raise DataError(f"no usable fields in {names}", problems=problems,
                        hint="give an analysis with fields on pressure levels")  # fmt: skip
    if time not in times:
        raise DataError(
            f"no fields for {time_text(time)} in {names}",
            problems=[f"there are: {times_text(times)}"],
            hint="set --init to a time that is there, or give the files for it",
        )


@dataclass
class _Preparation:
    """One run of `prepare`: plans from headers first, so that all that lacks is known, then reads."""

    snapshot: Snapshot
    schema: Schema
    grid: Grid
    derive: bool
    extrapolate: bool
    static: xr.Dataset | None

    def __post_init__(self) -> None:
        self.hints: dict[str, None] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.columns: dict[str, list[LevelPlan]] = {}
        self.derived: dict[str, Derivation] = {}
        self.fields: list[Field] = []

    def run(self, pool: Executor) -> Analysis:
        self._plan_columns()
        self._plan_surface()
        source = self._source_grid()
        given = self._static_fields()
        if self.problems or self.snapshot.problems or source is None:
            # What is there is checked as well, so that the user hears of everything at once.
            list(pool.map(self.snapshot.read_field, {id(item): item for item in self.fields}.values()))
            raise self._error()
        upper = self._read_columns(pool, source)
        surface = self._read_surface(pool, source)
        if self.snapshot.problems:
            raise self._error()
        if source != self.grid:
            self.notes.append(f"regridded conservatively from {source.describe()} to {self.grid.describe()}")
        hashes = tuple(pool.map(lambda file: (file.name, file.sha256), self.snapshot.files()))
        notes = tuple(dict.fromkeys([*self.notes, *self.snapshot.account()]))
        return Analysis(self._dataset(upper, surface, given), notes, tuple(dict(hashes).items()))

    # Planning, from headers alone.

    def _levels_of(self, name: str) -> tuple[float, ...]:
        """Levels in hPa on which a variable can be read, or made from relative humidity."""
        levels = set(self.snapshot.levels(name))
        if name == "q":
            levels |= set(self.snapshot.levels("r")) & set(self.snapshot.levels("t"))
        return tuple(sorted(levels))

    def _plan_columns(self) -> None:
        have = {name: self._levels_of(name) for name in self.schema.pressure}
        anywhere = {level for levels in have.values() for level in levels}
        lines: dict[str, list[str]] = {}
        notes: dict[str, list[str]] = {}
        for name, levels in have.items():
            if not levels:
                self._missing(name, f"{name} ({VARIABLES[name].long_name}) is missing on all levels")
                continue
            plans = plan_levels(map(float, self.schema.levels), levels)
            outside = [plan.level for plan in plans if plan.how in ("above", "below")]
            holes = [plan.level for plan in plans if plan.how == "between" and plan.level in anywhere]
            if outside and not self.extrapolate:
                ends = f"{level_text(levels[0])} to {level_text(levels[-1])} hPa"
                self._by_text(lines, f"{levels_text(outside)} missing, beyond the levels there are ({ends})", name)
                self.hints["--extrapolate goes beyond the levels there are"] = None
            if holes and not self.derive:
                others = [other for other in self.schema.pressure if set(holes) <= set(have[other])]
                whose = f"which {' '.join(others)} have" if others else "which other variables have"
                self._by_text(lines, f"{levels_text(holes)} missing, {whose}", name)
                self.hints["--derive fills holes from the levels around them"] = None
            for text in self._level_notes(name, plans, levels, holes, outside):
                self._by_text(notes, text, name)
            self.columns[name] = plans
            for level in sorted({level for plan in plans for level in (plan.upper, plan.lower)}):
                self._use(name, level)
            if name == "z" and outside:
                self._use("t", levels[0])
                self._use("t", levels[-1])
        self.problems += [f"{' '.join(names)}: {text}" for text, names in lines.items()]
        self.notes += [f"{' '.join(names)}: {text}" for text, names in notes.items()]

    @staticmethod
    def _by_text(lines: dict[str, list[str]], text: str, name: str) -> None:
        """Gathers the variables that the same is to be said of."""
        lines.setdefault(text, []).append(name)

    def _use(self, name: str, level: float) -> None:
        """Remembers the fields that a level of a variable is read from."""
        found = self.snapshot.pick(name, level)
        needed = [found] if found is not None else [self.snapshot.pick("r", level), self.snapshot.pick("t", level)]
        self.fields += [item for item in needed if item is not None]

    def _level_notes(
        self,
        name: str,
        plans: list[LevelPlan],
        have: tuple[float, ...],
        holes: list[float],
        outside: list[float],
    ) -> list[str]:
        """What is done to get the levels of a variable."""
        notes = []
        plain = [plan.level for plan in plans if plan.how == "between" and plan.level not in holes]
        if plain:
            notes.append(f"{levels_text(plain)} interpolated linearly in ln p from {levels_text(have)}")
        if holes:
            notes.append(
                f"{levels_text(holes)} missing although other variables have it; interpolated linearly in "
                "ln p from the levels around"
            )
        if outside:
            ends = sorted({plan.upper for plan in plans if plan.level in outside})
            notes.append(f"{levels_text(outside)} extrapolated from {levels_text(ends)}")
        if name == "q":
            read = {level for plan in plans for level in (plan.upper, plan.lower)}
            made = read - set(self.snapshot.levels("q"))
            if made:
                notes.append(_HUMIDITY.format(levels=levels_text(made)))
        return notes

    def _plan_surface(self) -> None:
        for name in self.schema.surface:
            found = self.snapshot.pick(name)
            if found is not None:
                self.fields.append(found)
                continue
            ways = derivations_of(name)
            possible = next((way for way in ways if not way.lacks(self.snapshot)), None)
            text = f"{name} ({VARIABLES[name].long_name}) is missing"
            if possible is None:
                text += self.snapshot.elsewhere(name)
                for way in ways:
                    lacks = way.lacks(self.snapshot)
                    text += f"; could be derived from {needs_text(way.needs)} if {needs_text(lacks)} were there"
                self._missing(name, text)
            elif not self.derive:
                self._missing(name, f"{text}; --derive makes it from {needs_text(possible.needs)}")
                self.hints["--derive makes what others determine"] = None
            else:
                self.derived[name] = possible
                self.fields += possible.fields(self.snapshot)
                self.notes.append(f"{name} derived from {needs_text(possible.needs)}: {possible.formula}")

    def _missing(self, name: str, text: str) -> None:
        self.problems.append(text)
        self.problems += self.snapshot.inventory.problems.get(plain_name(name), ())

    def _source_grid(self) -> Grid | None:
        """The one grid all fields lie on; None with the problems noted when there is none."""
        grid, issues = one_grid(((item.axes, item) for item in self.fields), names_text)
        self.problems += issues
        return grid

    def _static_fields(self) -> dict[str, Values]:
        made: dict[str, Values] = {}
        lacks = []
        for name in self.schema.static:
            if self.static is not None and name in self.static:
                given = self.static[name]
                if not self.grid.same_as(given["latitude"].values, given["longitude"].values):
                    self.problems.append(f"the static field {name} that was given lies on another grid than the model")
                made[name] = np.asarray(given.values, np.float32)
            else:
                lacks.append(name)
        there = [name for name in lacks if self.snapshot.pick(name) is not None]
        if there:
            try:
                dataset = read_static(self.snapshot.inventory, self.grid)
            except DataError as error:
                self.problems += error.problems
                return made
            made |= {name: dataset[name].values for name in there}
            self.notes += [f"{name} is from {dataset[name].attrs['origin']}" for name in there]
        self.problems += [
            f"{name} ({VARIABLES[name].long_name}) is missing; it comes with weights or with --static"
            for name in lacks
            if name not in made
        ]
        return made

    # Reading.

    def _read_columns(self, pool: Executor, source: Grid) -> dict[str, Values]:
        made: dict[str, Values] = {}
        for name, plans in self.columns.items():
            uses = Counter(level for plan in plans for level in {plan.upper, plan.lower})
            # Levels that two others are made from are read once and kept; the rest goes straight to its place.
            shared = [level for level, count in uses.items() if count > 1]
            kept = dict(zip(shared, pool.map(partial(self._read_level, name), shared), strict=True))
            made[name] = np.empty((1, len(plans), *self.grid.shape), np.float32)
            list(pool.map(partial(self._fill, name, source, kept), plans, made[name][0]))
        return made

    def _fill(
        self, name: str, source: Grid, kept: Mapping[float, Values | None], plan: LevelPlan, target: Values
    ) -> None:
        """Puts one level of one variable into its place (H, W); leaves it where a problem was noted."""
        upper = kept[plan.upper] if plan.upper in kept else self._read_level(name, plan.upper)
        lower = upper
        if plan.lower != plan.upper:
            lower = kept[plan.lower] if plan.lower in kept else self._read_level(name, plan.lower)
        if upper is None or lower is None:
            return
        values = self._at_level(name, plan, upper, lower)
        target[...] = values if source == self.grid else source.regrid_to(self.grid, values)

    def _read_level(self, name: str, level: float) -> Values | None:
        """A level of the source: (H, W), or None when it cannot be read."""
        if self.snapshot.pick(name, level) is not None or name != "q":
            return self.snapshot.read(name, level)
        humidity, temperature = self.snapshot.read("r", level), self.snapshot.read("t", level)
        if humidity is None or temperature is None:
            return None
        humidity = self.snapshot.clip("r", humidity, 0.0, np.inf, f"r{level_text(level)}")
        return self._checked("q", level, specific_humidity(humidity, temperature, level * 100.0).astype(np.float32))

    def _at_level(self, name: str, plan: LevelPlan, upper: Values, lower: Values) -> Values:
        if plan.how == "direct":
            return upper
        if plan.how == "between":
            return between(upper, lower, plan.weight)
        temperature = self.snapshot.read("t", plan.upper) if name == "z" else None
        if name == "z" and temperature is None:
            where = f"{level_text(plan.level)} hPa without t at {level_text(plan.upper)} hPa"
            self.snapshot.problems[f"z cannot be extrapolated to {where}"] = None
            return upper
        return self._checked(name, plan.level, beyond(name, plan, upper, temperature))

    def _checked(self, name: str, level: float | None, values: Values) -> Values:
        """Values that were made here, with their problems noted."""
        for issue in value_issues(VARIABLES[name], values, level):
            self.snapshot.problems[f"{issue} (made from other fields)"] = None
        return values

    def _read_surface(self, pool: Executor, source: Grid) -> dict[str, Values]:
        plain = [name for name in self.schema.surface if name not in self.derived]
        read: dict[str, Values | None] = dict(zip(plain, pool.map(self.snapshot.read, plain), strict=True))
        for name, way in self.derived.items():
            values = way.make(self.snapshot, source)
            read[name] = None if values is None else self._checked(name, None, values)
        made = {}
        for name in self.schema.surface:
            values = read[name]
            if values is not None:
                made[name] = (values if source == self.grid else source.regrid_to(self.grid, values))[None]
        return made

    def _error(self) -> DataError:
        # Threads find what is wrong with values in any order; people should find it in the same one each time.
        problems = list(dict.fromkeys([*self.problems, *sorted(self.snapshot.problems)]))
        files = ", ".join(file.label for file in self.snapshot.inventory.files)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lacks = any(" missing" in line for line in self.problems)
        hint = "; ".join(self.hints) or ("add files with what is missing to --input" if lacks else None)
        return DataError(
            f"{count} with the fields for {time_text(self.snapshot.time)} in {files}", problems=problems, hint=hint
        )

    def _dataset(self, upper: dict[str, Values], surface: dict[str, Values], static: dict[str, Values]) -> xr.Dataset:
        dims = {
            "pressure": ("time", "level", "latitude", "longitude"),
            "surface": ("time", "latitude", "longitude"),
            "static": ("latitude", "longitude"),
        }
        variables = {name: (dims[VARIABLES[name].kind], values, _attributes(name))
                     for name, values in (upper | surface | static).items()}  # fmt: skip
        coordinates: dict[str, object] = {
            "time": np.array([self.snapshot.time], "datetime64[ns]"),
            "latitude": ("latitude", self.grid.lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": (
                "longitude",
                self.grid.lon,
                {"units": "degrees_east", "standard_name": "longitude"},
            ),
        }
        if upper:
            levels = np.array(self.schema.levels, np.float64)
            coordinates["level"] = (
                "level",
                levels,
                {"units": "hPa", "standard_name": "air_pressure", "positive": "down"},
            )
        return xr.Dataset(variables, coordinates)


def _attributes(name: str) -> dict[str, str]:
    known = VARIABLES[name]
    named = {"standard_name": known.standard_name} if known.standard_name else {}
    return {"units": known.units, "long_name": known.long_name, **named}


def needs_text(needs: Iterable[str]) -> str:
    """What a derivation needs, for people: `u10, u on levels, orog`."""
    return ", ".join(f"{need[:-1]} on levels" if need.endswith("*") else need for need in needs)
