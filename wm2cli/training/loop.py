"""The train command: from training stores to weights, in a run that survives.

A run is a recipe's stages one after the other. Everything a step does follows from its number (`schedule`), so a run
that is resumed goes on exactly as it would have. All ranks draw the same samples and lead times, compute their share of
the passes, and add up gradients as a fixed tree; then every rank makes the same update.
"""

from __future__ import annotations

import json
import resource
import signal
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wm2cli import checkpoint
from wm2cli.devices import autocast, resolve_device, resolve_precision
from wm2cli.errors import CheckpointError, ConfigError, DataError, ResourceError, ValuesError
from wm2cli.models.layers import Block
from wm2cli.models.stormer_network import StormerBlock
from wm2cli.store import open_store
from wm2cli.training import saves
from wm2cli.training.build import BLEND, Built, build, trainable
from wm2cli.training.gradients import Gradients, gradient_sums
from wm2cli.training.log import Log, plain
from wm2cli.training.losses import Weights, increment_loss, keep, rollout_loss
from wm2cli.training.optimizers import Optimizers
from wm2cli.training.preparation import Preparation, check_passes
from wm2cli.training.ranks import Ranks, joined
from wm2cli.training.recipes import Recipe, Stage, recipe_from_text, recipe_text
from wm2cli.training.samples import Batch, Samples, read_ahead
from wm2cli.training.schedule import draw, rate
from wm2cli.training.validation import Validation, summary

FORMAT = 1
"""Format number of the JSON documents of this command."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """Everything that `wm2 train` can be told.

    Args:
        recipe: What to do; that of the run when None, which needs `resume`.
        data: Training stores by name; the recipe's stages name them, `main` is the usual one.
        out: Run folder.
        resume: Go on from the last complete checkpoint.
        device, threads: As for a forecast.
        stop_after: Stop (and save) after so many updates of the whole run; None goes to the end.
        tensorboard: Also write TensorBoard events.
    """

    data: Mapping[str, Path]
    out: Path
    recipe: Recipe | None = None
    resume: bool = False
    device: str = "auto"
    threads: int | None = None
    stop_after: int | None = None
    tensorboard: bool = False


@dataclass(frozen=True)
class Step:
    """What is told of a step, to the log and to people.

    Args:
        step, steps: Updates made, and those of the whole run.
        stage: Name of the stage.
        loss: NaN when the step was skipped for it.
        leads: Unweighted loss by lead time; of increments, by the number of the step from a sample.
        intervals: Hours that such a step may have; empty where there are lead times.
        rate, gradient: Learning rate, and norm of the gradient before clipping.
        horizon: Hours, the longest possible.
        skipped: Steps skipped so far.
        seconds: `data` (waited for samples), `compute`, `update`.
        samples_per_second: Over all ranks.
        memory: Largest memory of this process in bytes.
    """

    step: int
    steps: int
    stage: str
    loss: float
    leads: Mapping[int, float]
    intervals: tuple[int, ...]
    rate: float
    gradient: float
    horizon: int
    skipped: int
    seconds: Mapping[str, float]
    samples_per_second: float
    memory: int


@dataclass(frozen=True)
class Result:
    """What a training left."""

    out: Path
    weights: Path
    steps: int
    finished: bool
    skipped: int
    waiting_share: float
    validation: Mapping[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """One JSON document."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {"format": FORMAT, **plain(values)}


@dataclass(frozen=True)
class Listener:
    """Who is told what happens; nobody by default."""

    progress: Progress = lambda what, done, total: None
    step: Callable[[Step], None] = lambda step: None
    note: Callable[[str], None] = lambda text: None


def train(options: Options, listener: Listener | None = None) -> Result:
    """Trains a model, from the beginning or from the last checkpoint of a run.

    Raises:
        UsageError: The folder holds a run already, or none to resume.
        ConfigError: The recipe is not possible, or not that of the run.
        DataError: Stores lack something or are not those of the run.
        CheckpointError: A checkpoint or the starting weights cannot be used.
        ResourceError: No device, memory or disk; another process holds the run; a rank was lost.
        ValuesError: Too many steps in a row had no finite loss.
    """
    told = listener or Listener()
    device = resolve_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    with joined(device) as ranks:
        if device.type == "cuda":
            device = torch.device("cuda", ranks.local if ranks.count > 1 else device.index or 0)
            torch.cuda.set_device(device)
        if not ranks.first:
            return _run(options, Listener(), device, ranks)
        with saves.locked(options.out):
            return _run(options, told, device, ranks)


def _run(options: Options, told: Listener, device: torch.device, ranks: Ranks) -> Result:
    try:
        return _Run(options, told, device, ranks).run()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(
            f"out of memory on {device}",
            hint='smaller passes (stages.N.micro), checkpoint = "step", offload = true or precision = "bf16" in the '
            "recipe need less; a run that has saved goes on with a new folder and start = its weights",
        ) from error


@dataclass
class _Position:
    """Where a run stands; everything here is saved."""

    stage: int = 0
    step: int = 0
    done: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    usual_loss: float = 0.0
    judged: int = 0
    score: float | None = None
    best: float | None = None


class _Run:
    """One process of a training."""

    def __init__(self, options: Options, told: Listener, device: torch.device, ranks: Ranks) -> None:
        self.options, self.told, self.device, self.ranks = options, told, device, ranks
        self.out = options.out
        saves.refuse_mixing(self.out, options.resume)
        self.saved = saves.read(saves.found(self.out)[-1]) if options.resume else None
        resumed = self.saved is not None
        self.recipe = _recipe_of(options, self.saved)
        self.stores = {name: open_store(path) for name, path in options.data.items()}
        check_passes(self.recipe, ranks.count, self.stores)
        self.built: Built = build(self.recipe, self.stores)
        self.model = self.built.model
        self.precision = resolve_precision(self.recipe.precision, device)
        self.at = _Position()
        self.validation_result: dict[str, Any] | None = None
        self.waited = self.busy = 0.0
        self.stop_signal: int | None = None
        if self.saved is not None:
            self._restore(self.saved)
        self.preparation = Preparation(self.recipe, self.stores, self.built, device)
        self.preparation.check()
        module: nn.Module = self.model
        self.built.to(device)
        keep(module, self.recipe.checkpoint)
        if self.recipe.compile:
            for part in module.modules():
                if isinstance(part, (Block, StormerBlock)):
                    part.compile()
        self.writer = Log(self.out, self.at.done if resumed else None, options.tensorboard) if ranks.first else None

    def run(self) -> Result:
        """All stages that are left."""
        if self.ranks.first:
            saves.describe(self.out, recipe_text(self.recipe))
            for note in self.built.notes:
                self.told.note(note)
            read = {name for stage in self.recipe.stages for name in (stage.data, *stage.inputs.values())}
            for name in sorted(set(self.stores) - read):
                self.told.note(f"no stage reads the store '{name}'")
        with self._listening():
            while self.at.stage < len(self.recipe.stages) and not self._enough():
                self._stage(self.recipe.stages[self.at.stage])
        finished = self.at.stage == len(self.recipe.stages)
        self.ranks.wait()
        total = self.waited + self.busy
        share = self.waited / total if total else 0.0
        if self.writer:
            self.writer.close()
            self.told.note(f"{self.at.done} of {self.recipe.steps} steps, {self.at.skipped} skipped; "
                           f"{100 * share:.1f} % of the time went into waiting for data")  # fmt: skip
        return Result(
            out=self.out, weights=self.out / "weights" / "last.safetensors", steps=self.at.done, finished=finished,
            skipped=self.at.skipped, waiting_share=round(share, 4), validation=self.validation_result,
        )  # fmt: skip

    def _stage(self, stage: Stage) -> None:
        parameters = trainable(self.built, stage.trainable)
        self.optimizers = Optimizers(self.recipe.optimizer, parameters)
        self.average = {name: value.detach().clone() for name, value in parameters}
        if self.saved is not None:
            self.optimizers.load(self.saved["optimizer"])
            self.average = {name: value.to(self.device) for name, value in self.saved["average"].items()}
            self.saved = None
        samples = self.preparation.samples(stage, "train")
        weights = self.preparation.weights(stage, self.at.stage, samples)
        validation = (
            self.preparation.validation(stage, self.told.progress, self.told.note) if self.ranks.first else None
        )
        if self.ranks.first:
            count = sum(p.numel() for _, p in parameters)
            reach = f"horizon {stage.horizon[0]} to {stage.horizon[1]} h"
            if intervals := self.preparation.intervals():
                reach = f"{stage.rollout} x {' or '.join(map(str, intervals))} h"
            self.told.note(f"stage {stage.name}: {stage.steps} steps, {count:,} parameters, {len(samples):,} initial "
                           f"times, {reach}")  # fmt: skip
        if validation is not None and self.at.done == 0:
            self._validate(validation)  # the first report is of the untrained model
        last = stage.length
        if self.options.stop_after is not None:
            last = min(last, self.at.step + self.options.stop_after - self.at.done)
        for ready in read_ahead(self.at.step, last, lambda step: self._read(stage, step, samples)):
            self._update(stage, ready.batch, ready.waited, weights, parameters)
            ended = self.at.step == stage.length
            told = self.ranks.any(self.stop_signal is not None, self.device)
            stopping = told or self._enough()
            if validation is not None and (ended or self.at.done % self.recipe.validate_every == 0):
                self._validate(validation)
            if ended:
                self._finish_stage()
            # While steps are being skipped nothing is learnt, and what was saved before is what one goes back to.
            due = self.at.done % self.recipe.save_every == 0 and not self.at.skipped_in_a_row
            if stopping or ended or due:
                self._save()
            if told:
                # Everything is on the disk: now what the signal means happens.
                self.told.note(f"step {self.at.done} is saved; --resume goes on from there")
                number = self.stop_signal or int(signal.SIGTERM)
                signal.signal(number, self._previous.get(number, signal.SIG_DFL))
                signal.raise_signal(number)

    def _finish_stage(self) -> None:
        """The next stage begins with the mean weights, so that what it freezes is what was validated."""
        self._put(self.average)
        self.at.stage += 1
        self.at.step = 0
        self.at.judged, self.at.usual_loss = 0, 0.0

    # One step.

    def _read(self, stage: Stage, step: int, samples: Samples) -> Batch:
        drawn = draw(stage, self.at.stage, step, self.recipe.seed, len(samples), self.preparation.intervals())
        share = stage.batch // self.ranks.count
        mine = slice(self.ranks.rank * share, (self.ranks.rank + 1) * share)
        if drawn.intervals is not None:
            return samples.read_steps(drawn.starts[mine], drawn.intervals[mine], stage.rollout)
        return samples.read(drawn.starts[mine], drawn.leads)

    def _update(self, stage: Stage, batch: Batch, waited: float, weights: Weights,
                parameters: Sequence[tuple[str, nn.Parameter]]) -> None:  # fmt: skip
        started = clock.perf_counter()
        values = [parameter for _, parameter in parameters]
        gradients, loss, leads = self._gradients(stage, batch, weights, values)
        norm = _norm(gradients)
        computed = clock.perf_counter()
        used = rate(stage, self.at.step)
        if self._acceptable(loss, norm):
            limit = self.recipe.clip
            shrink = limit / norm if limit and norm > limit else 1.0
            for value, gradient in zip(values, gradients, strict=True):
                value.grad = None if gradient is None else gradient.mul_(shrink)
            self.ranks.together(lambda: self.optimizers.step(used))
            decay = min(self.recipe.ema, (1 + self.at.step) / (10 + self.at.step))
            with torch.no_grad():
                for name, parameter in parameters:
                    self.average[name].lerp_(parameter, 1.0 - decay)
        for value in values:
            value.grad = None
        self.at.step += 1
        self.at.done += 1
        ended = clock.perf_counter()
        self.waited += waited
        self.busy += ended - started
        report = Step(
            step=self.at.done, steps=self.recipe.steps, stage=stage.name, loss=loss, leads=leads,
            intervals=self.preparation.intervals(), rate=used, gradient=norm,
            horizon=self.preparation.horizon(stage, self.at.step - 1), skipped=self.at.skipped,
            seconds={"data": waited, "compute": computed - started, "update": ended - computed},
            samples_per_second=stage.batch / max(waited + ended - started, 1e-9), memory=_memory(self.device),
        )  # fmt: skip
        if self.writer:
            self.writer.step(vars(report))
        self.told.step(report)
        if self.at.skipped_in_a_row > self.recipe.skips:
            raise ValuesError(
                f"{self.at.skipped_in_a_row} steps in a row had no usable loss (the last: {loss:g}); "
                f"{self._last_good()}",
                hint="lower the rate, or look at the data around these samples",
            )

    def _last_good(self) -> str:
        saved = saves.found(self.out)
        return f"the last good checkpoint is {saved[-1].path}" if saved else "no checkpoint was saved yet"

    def _gradients(self, stage: Stage, batch: Batch, weights: Weights, values: Sequence[nn.Parameter]
                   ) -> tuple[Gradients, float, dict[int, float]]:  # fmt: skip
        """Means over the passes of all ranks: gradients, loss, and unweighted loss by lead time."""

        def loss_of(some: Batch) -> tuple[Tensor, dict[int, float]]:
            here = some.to(self.device)
            keeping = (self.recipe.checkpoint, self.recipe.offload)
            with autocast(self.precision, self.device):
                if here.intervals is not None:
                    return increment_loss(self.model, here, weights, *keeping)
                return rollout_loss(self.model, here, weights, self.recipe.loss.kind, *keeping, self.built.shares(),
                                    stage.tail)  # fmt: skip

        sums = gradient_sums(batch, stage.micro, values, loss_of)
        passes = stage.batch // stage.micro
        # The same gradients are None on all ranks, because all have the same lead times.
        there = [gradient for gradient in sums.gradients if gradient is not None]
        told = torch.tensor([sums.loss, *sums.leads.values()], dtype=torch.float64, device=self.device)
        self.ranks.sum(there)
        self.ranks.sum([told])
        for gradient in there:
            gradient.div_(passes)
        loss, *parts = (told / passes).tolist()
        return sums.gradients, loss, dict(zip(sums.leads, parts, strict=True))

    def _acceptable(self, loss: float, norm: float) -> bool:
        """Whether a step is made; those that are not are counted. The same on all ranks."""
        at = self.at
        good = np.isfinite(loss) and np.isfinite(norm)
        if good and at.judged >= 20 and loss > self.recipe.explosion * at.usual_loss:
            good = False
        if good:
            at.usual_loss = loss if at.judged == 0 else 0.95 * at.usual_loss + 0.05 * loss
            at.judged += 1
            at.skipped_in_a_row = 0
            return True
        at.skipped += 1
        at.skipped_in_a_row += 1
        return False

    def _validate(self, validation: Validation) -> None:
        current = self._swap()
        try:
            self.model.eval()
            with torch.inference_mode(), autocast(self.precision, self.device):
                result = validation.run(
                    self.model, self.device, lambda done, total: self.told.progress("validating", done, total)
                )
        finally:
            self._put(current)
            self.model.train()
        self.validation_result = result
        self.at.score = result["score"] if np.isfinite(result["score"]) else None
        if self.writer:
            self.writer.validation(self.at.done, result)
        self.told.note(f"step {self.at.done}: {summary(result)}")

    # Weights in and out.

    @torch.no_grad()
    def _swap(self) -> dict[str, Tensor]:
        """Puts the mean weights into the model, and gives those it had."""
        parameters = dict(self.built.named())
        current = {name: parameters[name].detach().clone() for name in self.average}
        self._put(self.average)
        return current

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        parameters = dict(self.built.named())
        for name, value in values.items():
            parameters[name].copy_(value)
        if BLEND in values:
            self.built.settle()

    def _save(self) -> None:
        broken = [name for name, value in self.built.named() if not bool(value.detach().isfinite().all())]
        if broken:  # the same on all ranks
            raise ValuesError(
                f"{len(broken)} parameters are not finite after step {self.at.done}, {broken[0]} among them; "
                f"{self._last_good()}", hint="lower the rate",
            )  # fmt: skip
        optimizer = self.ranks.together(self.optimizers.state)
        if self.ranks.first:
            better = self.at.score is not None and (self.at.best is None or self.at.score < self.at.best)
            if better:  # before the position is saved, or a resumed run would take a worse one for the best
                self.at.best = self.at.score
            state = {
                "model": {name: value.detach().cpu() for name, value in self.built.named()},
                "average": {name: value.cpu() for name, value in self.average.items()},
                "optimizer": optimizer,
                "position": vars(self.at).copy(),
                "recipe": recipe_text(self.recipe),
                "data": {name: store.fingerprint for name, store in self.stores.items()},
                "validation": json.dumps(self.validation_result),
                "random": torch.get_rng_state(),
                "start": self.built.trained_before.get("sha256"),
            }
            saves.write(self.out, self.at.done, state, self.at.score)
            saves.prune(self.out, self.recipe.keep)
            self._export(better)
        self.ranks.wait()

    def _export(self, better: bool) -> None:
        """The mean weights as a checkpoint for forecasts."""
        folder = self.out / "weights"
        folder.mkdir(exist_ok=True)
        current = self._swap()
        try:
            header = self.built.header(self.recipe, self.stores, self.at.done, self.validation_result)
            names = ["last"] + (["best"] if better else [])
            for name in names:
                checkpoint.save(folder / f"{name}.safetensors", self.model, header, self.built.static,
                                half=self.recipe.half)  # fmt: skip
        finally:
            self._put(current)

    def _restore(self, saved: Mapping[str, Any]) -> None:
        found, found_start = saved["data"], self.built.trained_before.get("sha256")
        here = {name: self.stores[name].fingerprint if name in self.stores else "not given" for name in found}
        changed = [f"{name}: {here[name][:12]} instead of {found[name][:12]}" for name in found
                   if here[name] != found[name]]  # fmt: skip
        if changed:
            raise DataError("the data are not those of the run", problems=changed,
                            hint="give the same stores, or begin another run")  # fmt: skip
        parameters = dict(self.built.named())
        # Architecture and statistics come from the starting weights, so these must be the same file still.
        if set(parameters) != set(saved["model"]) or saved.get("start", found_start) != found_start:
            raise CheckpointError("the checkpoint is of another model or other starting weights",
                                  hint="begin another run")  # fmt: skip
        with torch.no_grad():
            for name, value in saved["model"].items():
                parameters[name].copy_(value)
        self.at = _Position(**saved["position"])
        if any(BLEND in stage.trainable for stage in self.recipe.stages[: self.at.stage + 1]):
            self.built.settle()
        self.validation_result = json.loads(saved["validation"])
        torch.set_rng_state(saved["random"])
        if self.at.step == 0:
            self.saved = None  # a stage begins: nothing of the last one's optimizer is wanted

    # The rest.

    def _enough(self) -> bool:
        return self.options.stop_after is not None and self.at.done >= self.options.stop_after

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Signals end the run after the step that is being made, when everything is saved."""

        def heard(number: int, frame: object) -> None:
            self.stop_signal = number

        self._previous: dict[int, Any] = {}
        try:
            for number in map(int, (signal.SIGINT, signal.SIGTERM)):
                self._previous[number] = signal.signal(number, heard)
        except ValueError:  # not the main thread: whoever runs us there has signals of their own
            self._previous = {}
        try:
            yield
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)


def _recipe_of(options: Options, saved: Mapping[str, Any] | None) -> Recipe:
    if saved is None:
        if options.recipe is None:
            raise ConfigError("a training needs a recipe", hint="--recipe wm2-mini, or a .toml file")
        return options.recipe.check()
    kept = recipe_from_text(saved["recipe"])
    if options.recipe is not None and _begun(options.recipe, saved) == _begun(kept, saved):
        return options.recipe.check()  # stages that have not begun may still be changed
    if options.recipe is not None:
        old, new = json.loads(recipe_text(kept)), json.loads(recipe_text(options.recipe))
        raise ConfigError("the recipe is not that of the run", problems=list(_differences(old, new, "")),
                          hint="leave --recipe away to go on with the run's own, or begin another run")  # fmt: skip
    return kept


def _begun(recipe: Recipe, saved: Mapping[str, Any]) -> Recipe:
    """The recipe with the stages that a run has begun."""
    at = _Position(**saved["position"])
    stages = recipe.stages[: at.stage + (at.step > 0)]
    if at.step > 0 and stages[at.stage].length > at.step:  # where the stage under way is to stop is still open
        stages = (*stages[:-1], replace(stages[-1], stop=None))
    return replace(recipe, stages=stages)


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(a, b, f"{where}.{number}")
    elif old != new:
        yield f"{where} is {new!r}, in the run it is {old!r}"


def _norm(gradients: Gradients) -> float:
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients if gradient is not None]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
