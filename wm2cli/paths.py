"""The paths of a forecast: what `--paths` means, and the paths command, which finds the best m of n for some weights.

Best m in n (Stormer, arXiv 2312.03876, section 3.3): for each lead time, n sequences of steps are drawn from all that
there are, each is scored by itself on a validation period, and the m with the smallest errors are averaged from then
on. Which they are stands in a file, so that every forecast can be repeated.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm2cli import checkpoint, weights
from wm2cli.checkpoint import file_sha256
from wm2cli.config import from_mapping, to_mapping
from wm2cli.devices import Precision, autocast, resolve_device, resolve_precision
from wm2cli.errors import CheckpointError, ConfigError, DataError, ResourceError, UsageError, ValuesError
from wm2cli.models import Model
from wm2cli.rollout import WAYS, Route, Runs, homogeneous, length, runs_of, tree_order, walk
from wm2cli.schema import VARIABLES
from wm2cli.sources import Progress, quiet
from wm2cli.store import open_store
from wm2cli.training.losses import channel_weights, row_weights
from wm2cli.training.recipes import LossConfig
from wm2cli.training.samples import Samples, View

FORMAT = 1
"""Format number of the files with paths, and of the command's JSON document."""

TRAINED_WITH = LossConfig(
    "increments", channels="pressure", variables={name: 0.1 for name, known in VARIABLES.items()
                                                  if known.kind == "surface" and name != "t2m"},
)  # fmt: skip
"""Weights of channels: levels share that of their variable by pressure, t2m has 1, the rest at the surface 0.1."""

Steps = tuple[int, ...]
"""A path as it stands in a file: steps in hours, one after the other."""


@dataclass(frozen=True)
class Selection:
    """A file with paths, written by hand or by `wm2 paths`.

    Args:
        format: Number of the file's format.
        paths: By lead time in hours, sequences of steps in hours.
        weights_sha256: The only weights that the paths are for; any when None.
        weights: Their name.
        scores: By lead time, of each path: root of the weighted mean square error, see `Judge`.
        selected: How they were found.
    """

    format: int
    paths: Mapping[str, tuple[Steps, ...]]
    weights_sha256: str | None = None
    weights: str = ""
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    selected: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """How a forecast reaches its lead times.

    Args:
        description: One line for people and files.
        route: The paths, and the order of their steps.
        listed: Whether the description leaves open which paths they are.
    """

    description: str
    route: Route
    listed: bool

    @property
    def members(self) -> tuple[int, ...]:
        """How many paths make each lead time."""
        return tuple(len(paths) for paths in self.route.paths.values())

    @property
    def text(self) -> str:
        """Every lead time with its paths, one a line."""
        return "\n".join(f"{lead} h: {', '.join(map(text_of, paths))}" for lead, paths in self.route.paths.items())


def choose(given: str | None, model: Model, leads: Sequence[int], sha256: Callable[[], str]) -> Choice:
    """What `--paths` means for a model.

    Args:
        given: `homogeneous`, `longest`, a step in hours, a file of `wm2 paths`; the model's usual way when None.
        model: Any model.
        leads: Hours, increasing.
        sha256: Asked for the identity of the weights, if the paths are for some weights alone.

    Raises:
        UsageError: Paths for a model with one step; a step the model has not; lead times that are not reached.
        ConfigError: The file cannot be read or is not possible; everything is listed.
        CheckpointError: The file is for other weights.
    """
    if given is not None:
        _refuse_one_step(model)
    way = given or model.paths
    all_steps = ", ".join(f"{step} h" for step in model.steps)
    if way in WAYS:
        described = {"homogeneous": "mean of the paths of equal steps", "longest": "longest steps first"}[way]
        return Choice(f"{described}, from steps of {all_steps}", Route.along(WAYS[way](model.steps, leads)),
                      way != "longest")  # fmt: skip
    if way.isdecimal():
        if int(way) not in model.steps:
            raise UsageError(f"the model has no {way} h step; it has {all_steps}")
        return Choice(f"steps of {way} h", Route.along(homogeneous((int(way),), leads)), True)
    if Path(way).suffix != ".json":
        near = difflib.get_close_matches(way, WAYS, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        can_be = ", ".join((*WAYS, *(str(step) for step in model.steps)))
        raise UsageError(f"there are no paths '{way}'",
                         hint=f"{meant}they are {can_be}, or a .json file of `wm2 paths`")  # fmt: skip
    path = Path(way).expanduser()
    selection = read(path, model.steps)
    if selection.weights_sha256 is not None and selection.weights_sha256 != sha256():
        raise CheckpointError(
            f"the paths in {path} were selected for other weights: {selection.weights or 'without a name'}, "
            f"sha256 {selection.weights_sha256}",
            hint="select others with `wm2 paths`; or take weights_sha256 out of the file to use them all the same",
        )
    missing = [lead for lead in leads if str(lead) not in selection.paths]
    if missing:
        some = ", ".join(f"{lead} h" for lead in missing[:5]) + (", ..." if len(missing) > 5 else "")
        have = ",".join(sorted(selection.paths, key=int))
        raise UsageError(f"{path} has no paths to {some}", hint=f"it has those for --leads {have}")
    route = Route.along({lead: tuple(map(runs_of, selection.paths[str(lead)])) for lead in leads})
    return Choice(f"mean of the paths in {path.name} sha256={file_sha256(path)}", route, True)


def text_of(path: Runs) -> str:
    """`24+2x12` for 24, 12 and 12 h."""
    return "+".join(f"{count}x{hours}" if count > 1 else f"{hours}" for hours, count in path)


def read(path: Path, steps: Sequence[int]) -> Selection:
    """A file with paths for a model with these steps.

    Raises:
        ConfigError: Not such a file, or its paths are not possible; everything is listed.
    """
    repeated: list[str] = []

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        names = [name for name, _ in pairs]
        repeated.extend(name for name in made if names.count(name) > 1)
        return made

    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=table)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the paths {path} cannot be read: {error}",
                          hint="`wm2 paths` makes such files") from error  # fmt: skip
    except json.JSONDecodeError as error:
        raise ConfigError(f"the paths {path} are not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no table of paths", hint="`wm2 paths` makes such files")
    if (number := values.get("format")) != FORMAT:
        raise ConfigError(f"{path} has the format {number!r}, this wm2 reads {FORMAT}")
    try:
        selection = from_mapping(Selection, values)
    except ConfigError as error:
        raise ConfigError(f"the paths {path} cannot be used", problems=error.problems) from error
    problems = [f"'{name}' is given twice" for name in repeated] + _impossible(selection.paths, steps)
    if problems:
        raise ConfigError(f"the paths {path} cannot be used", problems=problems)
    return selection


def _impossible(paths: Mapping[str, tuple[Steps, ...]], steps: Sequence[int]) -> list[str]:
    """What is wrong with the paths of a file."""
    have = ", ".join(f"{step} h" for step in steps)
    problems = [] if paths else ["there are no lead times"]
    for lead, some in paths.items():
        if not lead.isdecimal() or str(int(lead)) != lead or lead == "0":
            problems.append(f"'{lead}' is no lead time in hours")
            continue
        if not some:
            problems.append(f"{lead} h has no paths")
        for path in dict.fromkeys(some):
            text = f"{lead} h: the path {text_of(runs_of(path)) or 'without steps'}"
            unknown = [f"{step} h" for step in dict.fromkeys(path) if step not in steps]
            if unknown:
                problems.append(f"{text} needs steps of {', '.join(unknown)}; the model has {have}")
            if sum(path) != int(lead):
                problems.append(f"{text} leads to {sum(path)} h")
            if some.count(path) > 1:
                problems.append(f"{text} is given {some.count(path)} times")
    return problems


def _refuse_one_step(model: Model) -> None:
    if len(model.steps) < 2:
        raise UsageError(f"these weights have steps of {model.steps[0]} h alone: there are no paths to choose from",
                         hint="leave out --paths")  # fmt: skip


# --- the command ---


@dataclass(frozen=True)
class Options:
    """Everything that `wm2 paths` can be told; the flags of the same names.

    Args:
        data: Training store with the truth.
        leads: Hours, increasing.
        out: JSON file.
        weights: Checkpoint; `WM2_WEIGHTS` or the bundled default when None.
        sample: Paths drawn for each lead time, all different, each as likely as any other; all where there are fewer.
        keep: How many of them are kept.
        times: Initial times, spread evenly over the split.
        split: Of the store. Scores of forecasts on the same split flatter.
        seed: The same seed draws the same paths to a lead time, whatever the others.
        device, precision, threads: As in a forecast.
        overwrite: Replace an existing file.
    """

    data: Path
    leads: tuple[int, ...]
    out: Path
    weights: str | None = None
    sample: int = 128
    keep: int = 32
    times: int = 64
    split: str = "validation"
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Found:
    """What was found for one lead time.

    Args:
        lead: Hours.
        possible: Paths that there are.
        scored: Paths that were scored.
        kept: The best of them, best first.
        scores: Of `kept`.
        worst: Score of the worst path that was scored.
    """

    lead: int
    possible: int
    scored: int
    kept: tuple[Steps, ...]
    scores: tuple[float, ...]
    worst: float


@dataclass(frozen=True)
class Result:
    """What the command wrote."""

    path: Path
    found: tuple[Found, ...]
    times: int
    evaluations: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
        leads = {str(one.lead): {"possible": one.possible, "scored": one.scored, "kept": len(one.kept),
                                 "best": one.scores[0], "worst_kept": one.scores[-1], "worst": one.worst}
                 for one in self.found}  # fmt: skip
        return {"format": FORMAT, "path": str(self.path), "leads": leads, "times": self.times,
                "evaluations": self.evaluations, "notes": list(self.notes)}  # fmt: skip


def select(options: Options, on_progress: Progress = quiet) -> Result:
    """Draws paths, scores them on a split of a training store, and writes the best ones of each lead time.

    Raises:
        UsageError: Impossible numbers, lead times that no path reaches, an existing output.
        DataError: The store lacks channels, times or the split, or is on another grid.
        CheckpointError: The weights are missing or damaged, or have no measure of their errors.
        ValuesError: A path ends in values that are no numbers.
        ResourceError: No such device, not enough memory, the output cannot be written.
    """
    _check(options)
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    on_progress("loading weights", 0, 1)
    loaded = checkpoint.load(weights.resolve(options.weights), device)
    model = loaded.model
    _refuse_one_step(model)
    drawn = {lead: draw(model.steps, lead, options.sample, options.seed) for lead in options.leads}
    samples = _samples(options, model)
    judge = Judge.of(model, device)
    count = min(options.times, len(samples))
    chosen = np.linspace(0, len(samples) - 1, count).round().astype(np.int64)
    sums = {runs_of(path): 0.0 for paths in drawn.values() for path in paths}
    order = tree_order(sums)
    try:
        with torch.inference_mode(), autocast(resolve_precision(options.precision, device), device):
            for number, place in enumerate(chosen):
                batch = samples.read(np.array([place]), options.leads).to(device)
                truth = {lead: model.normalize(target) for lead, target in batch.targets.items()}
                walked = walk(model, model.encode(batch.inputs), order)
                for done, (path, latent) in enumerate(walked, number * len(order) + 1):
                    if path in sums:
                        sums[path] += judge(model.decode_normalized(latent), truth[length(path)])
                    on_progress("scoring paths", done, count * len(order))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(f"out of memory on {device}",
                            hint="try --device cpu, or --precision bf16") from error  # fmt: skip
    wild = [path for path, total in sums.items() if not math.isfinite(total)]
    if wild:
        raise ValuesError(f"{len(wild)} of {len(sums)} paths end in values that are no numbers",
                          problems=[text_of(path) for path in wild[:10]])  # fmt: skip
    scores = {path: math.sqrt(total / count) for path, total in sums.items()}
    found = tuple(_best(lead, paths, scores, options.keep, possible(model.steps, lead)[lead])
                  for lead, paths in drawn.items())  # fmt: skip
    notes = [f"{one.lead} h has only {one.possible} paths: all were scored, {len(one.kept)} are kept"
             for one in found if one.possible < options.sample]  # fmt: skip
    if count < options.times:
        notes.append(f"the split has only {count} initial times that are followed by {max(options.leads)} h")
    if not loaded.header.trained:
        notes.append("the weights are untrained: no path is better than another")
    times = samples.target.store.time[samples.starts[chosen]]
    store = samples.target.store
    selected = {
        "sample": options.sample, "keep": options.keep, "seed": options.seed, "measure": MEASURE, "data": store.title,
        "data_fingerprint": store.fingerprint, "split": options.split, "times": count,
        "first": str(times[0])[:16], "last": str(times[-1])[:16],
    }  # fmt: skip
    write(options.out, Selection(
        FORMAT, {str(one.lead): one.kept for one in found}, loaded.sha256, loaded.header.name,
        {str(one.lead): one.scores for one in found}, selected,
    ))  # fmt: skip
    return Result(options.out, found, count, count * len(order), tuple(notes))


def possible(steps: Sequence[int], lead: int) -> dict[int, int]:
    """How many sequences of steps lead to every hour up to a lead time; hours that none reaches have zero."""
    counts = {0: 1}
    for hour in range(1, lead + 1):
        counts[hour] = sum(counts.get(hour - step, 0) for step in steps)
    return counts


def draw(steps: Sequence[int], lead: int, number: int, seed: int) -> tuple[Steps, ...]:
    """Different paths to a lead time, each set of so many as likely as any other; all when there are no more.

    Raises:
        UsageError: No sequence of steps leads there.
    """
    counts = possible(steps, lead)
    if not counts[lead]:
        raise UsageError(f"no sequence of steps of {', '.join(f'{step} h' for step in steps)} leads to {lead} h")
    chosen: set[int] = set(range(counts[lead])) if counts[lead] <= number else set()
    chance = random.Random(f"{seed} {lead}")  # of text: torch and numpy have no numbers as large as these counts
    while len(chosen) < min(number, counts[lead]):
        chosen.add(chance.randrange(counts[lead]))
    return tuple(sorted(_numbered(steps, lead, counts, place) for place in chosen))


def _numbered(steps: Sequence[int], lead: int, counts: Mapping[int, int], place: int) -> Steps:
    """The path at a place in the list of all of them."""
    path: list[int] = []
    while lead:
        for step in steps:
            following = counts.get(lead - step, 0)
            if place < following:
                break
            place -= following
        path.append(step)
        lead -= step
    return tuple(path)


MEASURE = (
    "root of the mean square error, weighted by area and by channel (t2m 1, other fields of one level 0.1, each "
    "variable on levels 1 in proportion to pressure), in standard deviations of the change over the longest step"
)


@dataclass(frozen=True, eq=False)
class Judge:
    """The square error of a forecast, weighted as in the training of Stormer (arXiv 2312.03876, equation 2).

    Args:
        channels: (C,) float64; weights, over the squares of the standard deviations of the channel's change.
        rows: (H, 1) relative area, mean one.
    """

    channels: Tensor
    rows: Tensor

    @classmethod
    def of(cls, model: Model, device: torch.device) -> Judge:
        """The judge of a model's forecasts.

        Raises:
            CheckpointError: The weights do not say how much their channels change over their longest step.
        """
        names, table = model.schema_out.channels, model.normalizer.difference_std.get(model.steps[0], {})
        unknown = [f"no standard deviation of the change of {name} over {model.steps[0]} h" for name in names
                   if not table.get(name, 0.0) > 0]  # fmt: skip
        if unknown:
            raise CheckpointError("the statistics of the weights give no measure of errors", problems=unknown)
        changes = torch.tensor([model.normalizer.std[name] / table[name] for name in names], dtype=torch.float64)
        return cls(
            (channel_weights(TRAINED_WITH, model.schema_out) * changes**2).to(device),
            row_weights(model.grid, poles=False).to(device),
        )  # fmt: skip

    def __call__(self, made: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> float:
        """Of normalised fields, each pair (1, V, L, H, W) and (1, S, H, W)."""
        errors = [(found - true).flatten(0, -3) for found, true in zip(made, truth, strict=True)]
        by_channel = (torch.cat(errors).square() * self.rows).mean(dim=(-2, -1))
        return float(by_channel.double() @ self.channels)


def _check(options: Options) -> None:
    counts = {"sample": options.sample, "keep": options.keep, "times": options.times}
    problems = [f"--{name} must be at least 1, found {value}" for name, value in counts.items() if value < 1]
    if options.keep > options.sample >= 1:
        problems.append(f"--keep {options.keep} of --sample {options.sample} paths cannot be")
    if options.seed < 0:
        problems.append(f"--seed must be at least 0, found {options.seed}")
    problems += [f"{lead} h is no lead time" for lead in options.leads if lead < 1]
    if not options.leads:
        problems.append("there are no lead times")
    if options.out.suffix != ".json":
        problems.append(f"--out must end in .json, which tells --paths that it is a file, found {options.out.name}")
    if problems:
        raise UsageError("the paths cannot be selected so", problems=problems)
    if options.out.exists() and not options.overwrite:
        raise UsageError(f"{options.out} exists already", hint="give --overwrite to replace it, or another --out")
    if not options.out.parent.is_dir():
        raise ResourceError(f"the folder {options.out.parent} does not exist", hint="make it, or choose another --out")


def _samples(options: Options, model: Model) -> Samples:
    """Initial states and truth of the split."""
    store = open_store(options.data)
    if store.grid != model.grid:
        raise DataError(f"the store {store.path} is on {store.grid.describe()}, the model on {model.grid.describe()}",
                        hint="make another store with `wm2 preprocess`")  # fmt: skip
    encoder, schema = next(iter(model.inputs.items()))
    return Samples({encoder: View(store, schema)}, View(store, model.schema_out), options.split, max(options.leads),
                   math.gcd(*options.leads))  # fmt: skip


def _best(lead: int, paths: Sequence[Steps], scores: Mapping[Runs, float], keep: int, number: int) -> Found:
    ranked = sorted((scores[runs_of(path)], path) for path in paths)
    kept = ranked[:keep]
    return Found(lead, number, len(paths), tuple(path for _, path in kept), tuple(score for score, _ in kept),
                 ranked[-1][0])  # fmt: skip


def write(path: Path, selection: Selection) -> None:
    """Writes a file with paths, a lead time a line; the name appears only when the file is complete.

    Raises:
        ResourceError: It cannot be written.
    """
    lines = []
    for name, value in to_mapping(selection).items():
        text = json.dumps(value)
        if isinstance(value, dict):
            inner = ",\n".join(f"    {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
            text = f"{{\n{inner}\n  }}"
        lines.append(f"  {json.dumps(name)}: {text}")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error}",
                            hint="check the folder, its rights and the free space") from error  # fmt: skip
    finally:
        partial.unlink(missing_ok=True)
