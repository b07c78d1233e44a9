"""Rolling a model out: the tree of steps that reaches a set of lead times, and the states along it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wm2cli.errors import UsageError
from wm2cli.models import Latent, Model
from wm2cli.state import State


def rollout(model: Model, start: Latent, leads: Sequence[int]) -> Iterator[tuple[int, State]]:
    """States at the lead times, in increasing order, each step of the tree computed once.

    Args:
        model: Any model.
        start: Latent at lead 0.
        leads: Hours, each a sum of the model's steps.

    Yields:
        (lead in hours, state). At most the latents of one branch are held, whatever the number of leads.

    Raises:
        UsageError: A lead cannot be made from the model's steps.
    """
    tree = step_plan(model.steps, leads)
    wanted = set(leads)
    if 0 in wanted:
        yield 0, model.decode(start)
    # Pending steps; the shortest on top. Its lead times lie before those of the longer steps from the same latent, so
    # the states come out in order, and a latent is let go when its last step has been taken.
    pending = _children(start, 0, tree)
    del start
    while pending:
        latent, hours, lead, branch = pending.pop()
        latent = model.advance(latent, hours)
        if lead in wanted:
            yield lead, model.decode(latent)
        pending += _children(latent, lead, branch)
        del latent


Tree = dict[int, "Tree"]
"""Steps in hours that can follow, and what follows each."""


def step_plan(steps: Sequence[int], leads: Sequence[int]) -> Tree:
    """The tree of steps that reaches all lead times: longest steps first, shared beginnings once.

    Raises:
        UsageError: Lead times that no such sequence reaches; all are named.
    """
    tree: Tree = {}
    unreachable = []
    for lead in leads:
        rest, branch = lead, tree
        for step in sorted(steps, reverse=True):
            while rest >= step:
                branch, rest = branch.setdefault(step, {}), rest - step
        if rest:
            unreachable.append(lead)
    if unreachable:
        some = ", ".join(f"{lead} h" for lead in unreachable[:5]) + (", ..." if len(unreachable) > 5 else "")
        raise UsageError(f"the model's steps of {', '.join(f'{step} h' for step in steps)} do not reach {some}",
                         hint=f"choose a --step that is a multiple of {min(steps)} hours")  # fmt: skip
    return tree


def count_steps(tree: Tree) -> dict[int, int]:
    """How often each step of a tree is taken, by its hours."""
    counts: dict[int, int] = {}
    pending = [tree]
    while pending:
        for step, branch in pending.pop().items():
            counts[step] = counts.get(step, 0) + 1
            pending.append(branch)
    return counts


def _children(latent: Latent, lead: int, branch: Tree) -> list[tuple[Latent, int, int, Tree]]:
    return [(latent, step, lead + step, branch[step]) for step in sorted(branch, reverse=True)]
