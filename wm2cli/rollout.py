"""Rolling a model out: the paths of steps to each lead time, and the states along them.

A lead time that several paths reach gets the mean of their states (Stormer, arXiv 2312.03876, section 3.3). Beginnings
that paths share are computed once, so that all paths together are a tree; what has to be held while it is computed
depends on the order of its steps, and is known before the first of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from torch import Tensor

from wm2cli.errors import UsageError
from wm2cli.models import Latent, Model
from wm2cli.state import State

Runs = tuple[tuple[int, int], ...]
"""A path: steps one after the other, as runs of equal ones, (hours, how many). A thousand steps may be one run."""

Paths = Mapping[int, tuple[Runs, ...]]
"""For each lead time in hours the paths whose states are averaged."""


def runs_of(steps: Iterable[int]) -> Runs:
    """The path of some steps in hours."""
    return tuple((hours, len(list(run))) for hours, run in groupby(steps))


def length(path: Runs) -> int:
    """The lead time in hours to which a path leads."""
    return sum(hours * count for hours, count in path)


def before(path: Runs) -> Runs:
    """The path without its last step."""
    *others, (hours, count) = path
    return (*others, (hours, count - 1)) if count > 1 else tuple(others)


def longest_first(steps: Sequence[int], leads: Sequence[int]) -> Paths:
    """One path to each lead time: longest steps first, which needs the fewest.

    Raises:
        UsageError: Lead times that no such sequence reaches; all are named.
    """
    made = {}
    for lead in leads:
        path: list[tuple[int, int]] = []
        rest = lead
        for hours in sorted(steps, reverse=True):
            if rest >= hours:
                path.append((hours, rest // hours))
                rest %= hours
        made[lead] = (tuple(path),)
    _refuse_unreached(steps, [lead for lead, (path,) in made.items() if length(path) != lead])
    return made


def homogeneous(steps: Sequence[int], leads: Sequence[int]) -> Paths:
    """To each lead time the paths of equal steps, one for every step length that divides it.

    Raises:
        UsageError: Lead times that no step divides; all are named.
    """
    made: dict[int, tuple[Runs, ...]] = {
        lead: tuple(((hours, lead // hours),) for hours in sorted(steps) if lead % hours == 0) if lead else ((),)
        for lead in leads
    }
    _refuse_unreached(steps, [lead for lead, paths in made.items() if not paths])
    return made


WAYS: dict[str, Callable[[Sequence[int], Sequence[int]], Paths]] = {
    "homogeneous": homogeneous,
    "longest": longest_first,
}
"""How steps can reach lead times, by the name that a model gives its usual way (`Model.paths`)."""


@dataclass(frozen=True)
class Route:
    """Paths, and the order in which the steps of their tree are taken.

    Args:
        paths: By lead time.
        order: Every step once, named by the path that ends with it; a step comes after the one before it.
        latents: The most latents that are held while a step is computed.
        means: The most unfinished means that are held beside them.
    """

    paths: Paths
    order: tuple[Runs, ...]
    latents: int
    means: int

    @classmethod
    def along(cls, paths: Paths) -> Route:
        """The better of two orders.

        By lead time, a latent is held for each path, and one mean at a time: what is held does not grow with the lead
        times, and states come out in their order. Branch by branch, few latents are held, but the mean of every lead
        time. The first is better for a few paths to many lead times, the second for many paths to a few.
        """
        tree = tree_order(path for some in paths.values() for path in some)
        by_lead, by_branch = (_measured(paths, order) for order in (tuple(sorted(tree, key=length)), tree))
        return by_branch if by_branch.latents + by_branch.means < by_lead.latents + by_lead.means else by_lead

    @property
    def advances(self) -> dict[int, int]:
        """How often each step is taken, by its hours, longest first."""
        counts = Counter(path[-1][0] for path in self.order)
        return {step: counts[step] for step in sorted(counts, reverse=True)}


def rollout(model: Model, start: Latent, route: Route) -> Iterator[tuple[int, State]]:
    """States at the lead times of a route; where several paths lead, the mean of their states.

    Means are taken of normalised float32 fields: these are what the paper averages, they are all near one, so that a
    sum loses no digits, and physical limits (q >= 0) are applied once, to the mean.

    Args:
        model: Any model.
        start: Latent at lead 0.
        route: Where to go.

    Yields:
        (lead in hours, state), each lead time when its last path has come there.
    """
    members = {path for paths in route.paths.values() for path in paths}
    sums: dict[int, tuple[Tensor, Tensor]] = {}
    arrived: Counter[int] = Counter()

    def arrive(lead: int, latent: Latent) -> State | None:
        paths = route.paths[lead]
        if len(paths) == 1:
            return model.decode(latent)
        pressure, surface = model.decode_normalized(latent)
        if lead in sums:
            pressure, surface = sums[lead][0] + pressure, sums[lead][1] + surface
        sums[lead] = pressure, surface
        arrived[lead] += 1
        if arrived[lead] < len(paths):
            return None
        del sums[lead]
        return model.denormalize(pressure / len(paths), surface / len(paths), latent.time)

    if () in members:
        yield 0, model.decode(start)
    walked = walk(model, start, route.order)
    del start
    for path, latent in walked:
        state = arrive(length(path), latent) if path in members else None
        del latent  # while the next one is computed, only those are held that others follow from
        if state is not None:
            yield length(path), state
        del state


def walk(model: Model, start: Latent, order: Sequence[Runs]) -> Iterator[tuple[Runs, Latent]]:
    """The latents at the end of every step of a tree, each computed once and let go after its last step.

    Args:
        model: Any model.
        start: Latent at lead 0.
        order: As in a `Route`.
    """
    last = {before(path): number for number, path in enumerate(order)}
    held: dict[Runs, Latent] = {(): start}
    del start
    for number, path in enumerate(order):
        origin = before(path)
        latent = model.advance(held[origin], path[-1][0])
        if last[origin] == number:
            del held[origin]
        if path in last:
            held[path] = latent
        yield path, latent
        del latent


def tree_order(paths: Iterable[Runs]) -> tuple[Runs, ...]:
    """Every step of the paths' tree once, branch by branch."""
    tree: set[Runs] = set()
    for path in paths:
        while path and path not in tree:
            tree.add(path)
            path = before(path)
    return tuple(sorted(tree))


Tree = dict[int, "Tree"]
"""Steps in hours that can follow, and what follows each."""


def step_plan(steps: Sequence[int], leads: Sequence[int]) -> Tree:
    """The tree of steps that reaches all lead times, longest steps first, as a recursion walks it.

    Raises:
        UsageError: Lead times that no such sequence reaches; all are named.
    """
    tree: Tree = {}
    for (path,) in longest_first(steps, leads).values():
        branch = tree
        for hours, count in path:
            for _ in range(count):
                branch = branch.setdefault(hours, {})
    return tree


def _measured(paths: Paths, order: tuple[Runs, ...]) -> Route:
    number = {path: place for place, path in enumerate(order)}
    last = {before(path): place for place, path in enumerate(order)}
    latents = [(number.get(path, -1) + 1, end) for path, end in last.items()]
    places = [sorted(number[path] for path in some) for some in paths.values() if len(some) > 1]
    return Route(paths, order, _most(latents), _most([(some[0] + 1, some[-1]) for some in places]))


def _most(lifetimes: Sequence[tuple[int, int]]) -> int:
    """How many lifetimes overlap at most; each from its first to its last step, both included."""
    changes: Counter[int] = Counter()
    for first, end in lifetimes:
        changes[first] += 1
        changes[end + 1] -= 1
    return max(accumulate(changes[place] for place in sorted(changes)), default=0)


def _refuse_unreached(steps: Sequence[int], leads: Sequence[int]) -> None:
    if leads:
        some = ", ".join(f"{lead} h" for lead in leads[:5]) + (", ..." if len(leads) > 5 else "")
        raise UsageError(f"the model's steps of {', '.join(f'{step} h' for step in steps)} do not reach {some}",
                         hint=f"choose a --step that is a multiple of {min(steps)} hours")  # fmt: skip
