"""Runs that survive: kills, signals, full disks, lost ranks; and what is refused before a run begins.

Commands run in processes of their own, forked from one that has imported everything.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stores import INCREMENTS, make_store, run, stage, toml, toy_recipe, untrained, untrained_stormer

from wm2cli import checkpoint
from wm2cli.cli.program import run as wm2
from wm2cli.errors import CheckpointError, ConfigError, DataError, ResourceError, UsageError, ValuesError, Wm2Error
from wm2cli.grid import Grid
from wm2cli.schema import Schema
from wm2cli.store import Store
from wm2cli.training import saves
from wm2cli.training.loop import Listener, Step
from wm2cli.training.preparation import check_passes
from wm2cli.training.recipes import ExtraEncoder, OptimizerConfig, Recipe, Stage

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["stores", "wm2cli.cli", "wm2cli.training.loop"])
PATIENCE = 600.0
"""Seconds that a very busy machine may take for a process of some seconds."""


pytestmark = pytest.mark.usefixtures("one_thread")


# -------------------------------------------------------------------------------------------------------- processes


class Process:
    """A function in a process of its own, as one rank of several where that is said."""

    def __init__(self, errors: Path, work: Callable[[], Any], environment: Mapping[str, str] | None = None) -> None:
        self.errors = errors
        # A daemon, so that none outlives a failed test.
        self._process = PROCESSES.Process(target=_work, args=(work, errors, dict(environment or {})), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    def end(self) -> int:
        """The exit code, minus the signal's number for a process that was killed."""
        self._process.join(PATIENCE)
        if self._process.exitcode is None:
            self._process.kill()
            pytest.fail(f"the process did not end; it said: {self.errors.read_text()}")
        return self._process.exitcode


def _work(work: Callable[[], Any], errors: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with errors.open("w") as stream:
        os.dup2(stream.fileno(), 2)
    with errors.with_suffix(".out").open("w") as stream:
        os.dup2(stream.fileno(), 1)
    found = work()
    sys.stdout.flush()
    sys.exit(found if isinstance(found, int) else 0)


def ranks(folder: Path, *work: Callable[[], Any]) -> list[Process]:
    """One process a rank, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(len(work)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [Process(folder / f"rank{rank}.log", one, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank, one in enumerate(work)]  # fmt: skip


def wait_for(out: Path, step: int) -> None:
    """Until a run has made some steps."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        log = out / "log.jsonl"
        if log.exists() and any(line.get("kind") == "step" and line["step"] >= step for line in lines(out)):
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} of {out} was never made")


def lines(out: Path) -> list[dict[str, Any]]:
    """Whole lines of a log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().split("\n")[:-1]]


def die_at(step: int) -> Callable[[Step], None]:
    """kill -9 to itself."""

    def told(report: Step) -> None:
        if report.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return told


def killed_run(out: Path, store: Path, recipe: Recipe, step: int) -> None:
    run(out, store, recipe, Listener(step=die_at(step)))


def killed_while_saving(out: Path, store: Path) -> None:
    """A process that dies when half of its second checkpoint is written."""
    whole = torch.save

    def half(state: Any, path: Path) -> None:
        whole(state, path)
        with path.open("rb+") as stream:
            stream.truncate(path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half  # type: ignore[assignment]
    run(out, store, resume=True)


# -------------------------------------------------------------------------------------------------------- to the bit


def last(out: Path) -> dict[str, Any]:
    return whole_state(saves.found(out)[-1])


def whole_state(save: saves.Save) -> dict[str, Any]:
    """All of a checkpoint but the state of torch's generator, which is the process's; no step draws from it."""
    state = saves.read(save)
    del state["random"]
    return state


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """The same to the bit, tensors and everything else."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}.{number}")
    else:
        assert one == two or (one != one and two != two), where


def told(out: Path) -> list[tuple[int, float, float]]:
    """What a log says of its steps, without their times."""
    return [(line["step"], line["loss"], line["gradient"]) for line in lines(out) if line["kind"] == "step"]


def long_recipe(start: Path, optimizer: str = "adamw", **changes: Any) -> Recipe:
    """20 steps in two stages, a checkpoint after ten; the second stage is two steps old when it is killed."""
    stages = (stage(steps=11, warmup=3), stage("grow", steps=9, horizon=(6, 12), targets=2, trainable=("decoder",)))
    return toy_recipe(start, *stages, optimizer=optimizer, **{"save_every": 10, "keep": 3, **changes})


def stormer_recipe(start: Path, *stages: Stage, **changes: Any) -> Recipe:
    """Increments over random intervals, with a Stormer's optimizer."""
    recipe = toy_recipe(start, *stages, loss=INCREMENTS, checkpoint="step", **changes)
    return replace(recipe, optimizer=OptimizerConfig("adamw", (0.9, 0.95), 1e-8, 1e-5, "all-but-embeddings"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "shampoo", "stormer"])
def test_ten_steps_a_kill_and_ten_more_are_twenty(store: Store, start: Path, tmp_path: Path, optimizer: str) -> None:
    often = {"save_every": 10, "validate_every": 5}
    if optimizer == "stormer":
        two = stage(steps=20, warmup=3, initial=0.0, rate=1e-2, rollout=2)
        recipe = stormer_recipe(untrained_stormer(tmp_path / "stormer.safetensors", store), two, **often)
    else:
        recipe = toy_recipe(start, stage(steps=20, warmup=3), optimizer=optimizer, **often)
    killed = Process(tmp_path / "errors", functools.partial(killed_run, tmp_path / "b", store.path, recipe, 13))
    whole = run(tmp_path / "a", store.path, recipe)
    assert killed.end() == -signal.SIGKILL
    assert [save.step for save in saves.found(tmp_path / "b")] == [10]
    assert [step for step, *_ in told(tmp_path / "b")] == list(range(1, 14))
    resumed = run(tmp_path / "b", store.path, resume=True)
    assert (resumed.steps, resumed.finished) == (20, True)
    assert_same(last(tmp_path / "a"), last(tmp_path / "b"))
    assert told(tmp_path / "a") == told(tmp_path / "b")  # each step once
    assert resumed.validation == whole.validation
    assert checkpoint.load(whole.weights).sha256 == checkpoint.load(resumed.weights).sha256


def test_a_kill_while_saving_leaves_the_checkpoint_before(store: Store, start: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", long_recipe(start)
    run(out, store.path, recipe, stop_after=10)
    killed = Process(tmp_path / "errors", functools.partial(killed_while_saving, out, store.path))
    assert killed.end() == -signal.SIGKILL
    parts = list((out / "checkpoints").glob(".*.part"))
    assert len(parts) == 1  # the half-written one, under no name that counts
    assert [save.step for save in saves.found(out)] == [10]
    run(out, store.path, resume=True)
    assert not list((out / "checkpoints").glob(".*.part"))
    run(tmp_path / "whole", store.path, recipe)
    assert_same(last(out), last(tmp_path / "whole"))


def test_a_folder_without_its_note_is_no_checkpoint_and_a_damaged_one_is_named(
    store: Store, start: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(out, store.path, toy_recipe(start, stage(steps=4), save_every=2))
    assert [save.step for save in saves.found(out)] == [2, 4]
    state = out / "checkpoints" / "00000004" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="00000004 is damaged") as error:
        run(out, store.path, resume=True)
    assert error.value.exit_code == 6
    assert "go on from the one before" in str(error.value.hint)
    (out / "checkpoints" / "00000004" / "meta.json").unlink()
    result = run(out, store.path, resume=True)
    assert result.finished
    assert [step for step, *_ in told(out)] == [1, 2, 3, 4]


def test_the_last_ones_and_the_best_one_are_kept(tmp_path: Path) -> None:
    for step, score in enumerate([None, 0.5, 0.2, 0.9, None, 0.4], 1):
        saves.write(tmp_path, step, {"step": step}, score)
        saves.prune(tmp_path, keep=2)
    assert [save.step for save in saves.found(tmp_path)] == [3, 5, 6]
    assert saves.read(saves.found(tmp_path)[0]) == {"step": 3}


# ------------------------------------------------------------------------------------------------------------ ranks


def on_ranks(folder: Path, count: int, out: Path, store: Path, recipe: Recipe | None, **options: Any) -> None:
    work = functools.partial(run, out, store, recipe, **options)
    assert [process.end() for process in ranks(folder, *[work] * count)] == [0] * count


def test_two_ranks_draw_the_intervals_of_one(store: Store, tmp_path: Path) -> None:
    start = untrained_stormer(tmp_path / "stormer.safetensors", store)
    recipe = stormer_recipe(start, stage(steps=3, batch=8, rollout=2, rate=1e-2), save_every=3)
    run(tmp_path / "one", store.path, recipe)
    on_ranks(tmp_path, 2, tmp_path / "two", store.path, recipe)
    assert told(tmp_path / "two") == told(tmp_path / "one")
    assert_same(last(tmp_path / "two"), last(tmp_path / "one"))


def test_two_ranks_are_one_rank_to_the_bit_and_take_over_from_each_other(
    store: Store, start: Path, tmp_path: Path
) -> None:
    """One rank all the way; two ranks, then one; one, then two. Shampoo, whose state is divided."""
    recipe = toy_recipe(start, stage(steps=12, micro=1), optimizer="shampoo", save_every=6, validate_every=6)
    run(tmp_path / "one", store.path, recipe)
    on_ranks(tmp_path, 2, tmp_path / "down", store.path, recipe, stop_after=6)
    assert_same(whole_state(saves.found(tmp_path / "one")[0]), last(tmp_path / "down"))
    run(tmp_path / "down", store.path, resume=True)
    run(tmp_path / "up", store.path, recipe, stop_after=6)
    on_ranks(tmp_path, 2, tmp_path / "up", store.path, None, resume=True)
    for out in (tmp_path / "down", tmp_path / "up"):
        assert told(out) == told(tmp_path / "one")
        assert_same(last(out), last(tmp_path / "one"))


def measure_state(out: Path, start: Path) -> None:
    """Bytes of Shampoo's state on this rank."""
    from wm2cli.training.optimizers import Optimizers
    from wm2cli.training.ranks import joined
    from wm2cli.training.recipes import OptimizerConfig
    from wm2cli.training.shampoo import tensors_of

    with joined(torch.device("cpu")) as here:
        model: Any = checkpoint.load(start).model
        named = [(name, parameter.requires_grad_(True)) for name, parameter in model.named_parameters()]
        optimizers = Optimizers(OptimizerConfig(name="shampoo"), named)
        for _, parameter in named:
            parameter.grad = torch.ones_like(parameter)
        optimizers.step(1e-3)
        blocks = [block for state in optimizers.parts["shampoo"].state.values() for block in state["blocks"].values()]
        held = sum(tensor.nbytes for block in blocks for tensor in tensors_of(block))
        whole = optimizers.state()  # both take part
        (out / f"{here.rank}.json").write_text(json.dumps(held))
        if here.first:
            every = [block for state in whole["shampoo"]["state"].values() for block in state["blocks"].values()]
            (out / "whole.json").write_text(json.dumps(sum(t.nbytes for block in every for t in tensors_of(block))))


def test_each_of_two_ranks_holds_about_half_of_shampoos_state(start: Path, tmp_path: Path) -> None:
    work = functools.partial(measure_state, tmp_path, start)
    assert [process.end() for process in ranks(tmp_path, work, work)] == [0, 0]
    one, two, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0", "1", "whole"))
    assert one + two == whole
    assert 0.4 < one / whole < 0.6


def test_a_rank_that_dies_ends_the_others_with_a_message_and_a_whole_checkpoint(
    store: Store, start: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    recipe = toy_recipe(start, stage(steps=2_000), save_every=3)
    (tmp_path / "recipe.toml").write_text(toml(recipe))
    command = ["train", "--recipe", str(tmp_path / "recipe.toml"), "--data", str(store.path), "--out", str(out)]
    first, second = ranks(tmp_path, *[functools.partial(wm2, command)] * 2)
    wait_for(out, 4)
    os.kill(second.pid, signal.SIGKILL)
    assert second.end() == -signal.SIGKILL
    assert first.end() == 7
    said = first.errors.read_text()
    assert "error: another rank of this training was lost" in said
    assert "hint: start it again with --resume" in said
    done = saves.found(out)[-1].step
    assert done >= 3
    result = run(out, store.path, resume=True, stop_after=done + 1)
    assert result.steps == done + 1
    assert [step for step, *_ in told(out)] == list(range(1, done + 2))


@pytest.mark.slow
def test_torchrun_starts_two_ranks(store: Store, start: Path, tmp_path: Path) -> None:
    recipe = toy_recipe(start, stage(steps=4, micro=1), optimizer="shampoo")
    (tmp_path / "recipe.toml").write_text(toml(recipe))
    command = ["-m", "wm2cli", "train", "--recipe", str(tmp_path / "recipe.toml"), "--data", str(store.path), "--out",
               str(tmp_path / "two"), "--threads", "1", "--json"]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"] is True  # one document, of one rank
    run(tmp_path / "one", store.path, recipe)
    assert_same(last(tmp_path / "one"), last(tmp_path / "two"))


# ---------------------------------------------------------------------------------------------------------- signals


def test_a_signal_saves_and_ends_all_ranks_with_its_code(store: Store, start: Path, tmp_path: Path) -> None:
    """SIGTERM to one of two ranks, as a batch system may send it; then Ctrl-C to the resumed run of one."""
    out = tmp_path / "run"
    (tmp_path / "recipe.toml").write_text(toml(toy_recipe(start, stage(steps=2_000), save_every=1_999)))
    begin = ["train", "--recipe", str(tmp_path / "recipe.toml"), "--data", str(store.path), "--out", str(out)]
    both = ranks(tmp_path, *[functools.partial(wm2, begin)] * 2)
    wait_for(out, 2)
    os.kill(both[1].pid, signal.SIGTERM)
    assert [process.end() for process in both] == [143, 143]
    (save,) = saves.found(out)
    assert save.step == told(out)[-1][0]
    assert f"note: step {save.step} is saved; --resume goes on from there" in both[0].errors.read_text()
    again = ["train", "--resume", "--data", str(store.path), "--out", str(out)]
    alone = Process(tmp_path / "alone.log", functools.partial(wm2, again))
    wait_for(out, save.step + 2)
    os.kill(alone.pid, signal.SIGINT)
    assert alone.end() == 130
    assert saves.found(out)[-1].step >= save.step + 2
    assert [step for step, *_ in told(out)] == list(range(1, saves.found(out)[-1].step + 1))
    assert not list(out.rglob("*.part"))


# ----------------------------------------------------------------------------------------------------- disk and loss


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(store: Store, start: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", long_recipe(start)
    run(out, store.path, recipe, stop_after=10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as little as a disk that is nearly full
    try:
        with pytest.raises(ResourceError, match="checkpoint of step 11 cannot be written") as error:
            run(out, store.path, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.exit_code == 7
    assert "--resume" in str(error.value.hint)
    assert [save.step for save in saves.found(out)] == [10]
    assert not list((out / "checkpoints").glob(".*"))
    run(out, store.path, resume=True)
    run(tmp_path / "whole", store.path, recipe)
    assert_same(last(out), last(tmp_path / "whole"))


def test_too_many_bad_steps_end_the_run_at_the_last_good_checkpoint(start: Path, tmp_path: Path) -> None:
    bad = dict.fromkeys(range(8, 24), 3e38)
    spoiled = make_store(tmp_path / "spoiled", days=6, dtype="float32", spoiled=bad,
                         splits={"train": (0.0, 1.0)})  # fmt: skip
    out, seen = tmp_path / "run", list[Step]()
    recipe = toy_recipe(start, stage(steps=60, batch=1, micro=1), skips=2, save_every=1, keep=2)
    with pytest.raises(ValuesError, match="3 steps in a row had no usable loss") as error:
        run(out, spoiled.path, recipe, Listener(step=seen.append))
    assert error.value.exit_code == 8
    good = [report.step for report in seen if np.isfinite(report.loss)]
    assert seen[-1].step - 3 == max(good, default=0)
    if good:  # checkpoints of skipped steps have not pushed out those of good ones
        assert saves.found(out)[-1].step == max(good)
        assert str(saves.found(out)[-1].path) in str(error.value)
    else:
        assert "no checkpoint was saved yet" in str(error.value)
    assert len(good) > 0  # the seed begins with good samples


def test_weights_that_are_not_finite_are_never_saved(
    store: Store, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wm2cli.training.optimizers import Optimizers

    step, seen = Optimizers.step, list[int]()

    def ruin(self: Optimizers, rate: float) -> None:
        step(self, rate)
        seen.append(1)
        if len(seen) == 4:
            with torch.no_grad():
                next(iter(self.parts.values())).param_groups[0]["params"][0].fill_(np.nan)

    monkeypatch.setattr(Optimizers, "step", ruin)
    with pytest.raises(ValuesError, match="not finite after step 4") as error:
        run(tmp_path / "run", store.path, toy_recipe(start, stage(steps=6), save_every=2))
    assert [save.step for save in saves.found(tmp_path / "run")] == [2]
    assert "00000002" in str(error.value)


# ------------------------------------------------------------------------------------------------- what is refused


def test_two_trainings_do_not_share_a_folder(store: Store, start: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with saves.locked(out), pytest.raises(ResourceError, match="another training writes to"):
        run(out, store.path, toy_recipe(start))
    run(out, store.path, toy_recipe(start, stage(steps=1)))
    with pytest.raises(UsageError, match="already holds a run"):
        run(out, store.path, toy_recipe(start, stage(steps=1)))


def test_a_run_that_saved_nothing_can_be_begun_again(store: Store, start: Path, tmp_path: Path) -> None:
    recipe = toy_recipe(start, stage(steps=6), save_every=5)
    killed = Process(tmp_path / "errors", functools.partial(killed_run, tmp_path / "run", store.path, recipe, 3))
    assert killed.end() == -signal.SIGKILL
    with pytest.raises(UsageError, match="no complete checkpoint"):
        run(tmp_path / "run", store.path, resume=True)
    run(tmp_path / "run", store.path, recipe)
    assert [step for step, *_ in told(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_resuming_wants_the_same_recipe_data_and_starting_weights(store: Store, start: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", toy_recipe(start, stage(steps=6), stage("later", steps=2))
    run(out, store.path, recipe, stop_after=2)
    other = toy_recipe(start, stage(steps=6, rate=5e-4), stage("later", steps=2), optimizer="muon")
    with pytest.raises(ConfigError, match="not that of the run") as error:
        run(out, store.path, other, resume=True)
    assert error.value.problems == ("optimizer.name is 'muon', in the run it is 'adamw'",
                                    "stages.0.rate is 0.0005, in the run it is 0.001")  # fmt: skip
    strange = make_store(tmp_path / "strange", shift=0.1)
    with pytest.raises(DataError, match="not those of the run") as refused:
        run(out, strange.path, resume=True)
    assert strange.fingerprint[:12] in refused.value.problems[0]
    with pytest.raises(ConfigError) as lacking:
        run(out, store.path, resume=True, data={"other": store.path})
    assert lacking.value.problems == ("stage single needs the store 'main': give --data main=PATH",
                                      "stage later needs the store 'main': give --data main=PATH")  # fmt: skip
    kept = start.read_bytes()
    try:
        untrained(start, strange)
        with pytest.raises(CheckpointError, match="other starting weights"):
            run(out, store.path, resume=True)
    finally:
        start.write_bytes(kept)
    longer = toy_recipe(start, stage(steps=6), stage("later", steps=3))
    assert run(out, store.path, longer, resume=True).steps == 9  # what has not begun may be changed


def refused(kind: type[Wm2Error], out: Path, recipe: Recipe, **data: Path) -> tuple[str, ...]:
    with pytest.raises(kind) as error:
        run(out, next(iter(data.values())), recipe, data=data)
    assert not (out / "log.jsonl").exists()
    return error.value.problems or (error.value.message,)


def test_what_any_stage_lacks_is_said_before_the_first_step(store: Store, start: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = toy_recipe(
        start, stage("a"), stage("b", trainable=("processor:12", "decoder", "blend")),
        stage("c", inputs={"gfs": "main"}), stage("d", trainable=("encoder:gfs",)),
    )  # fmt: skip
    assert refused(ConfigError, out, recipe, main=store.path) == (
        "stage b: the model has no processor:12",
        "stage b: there is nothing to blend: the model has one encoder",
        "stage c: the model has no encoder gfs; it has era5",
        "stage d: the model has no encoder:gfs",
    )
    found = refused(DataError, out, toy_recipe(start, stage(), stage("long", horizon=(6, 2400))), main=store.path)
    assert found == (f"stage long: the split 'train' of {store.path} has no initial time that is followed by 2400 h",)
    found = refused(DataError, out, toy_recipe(start, stage(lead_step=1, horizon=(1, 5))), main=store.path)
    assert found == (f"stage single: the stores do not fit; lead times of 1 h cannot be read from {store.path}, whose "
                     "step is 6 h",)  # fmt: skip
    uneven = toy_recipe(start, stage(batch=3, micro=1))
    with pytest.raises(ConfigError, match="cannot be run so") as error:
        check_passes(uneven, 2, {"main": store})
    assert error.value.problems == ("stage single: 3 passes (batch 3 / micro 1) do not divide among 2 ranks",)


def test_stores_that_do_not_fit_the_model_are_refused(store: Store, start: Path, tmp_path: Path) -> None:
    poor = Schema(("z",), (500, 850), ("t2m",), ("orog", "lsm"))
    other = make_store(tmp_path / "other", days=4, schema=poor)
    (problem,) = refused(DataError, tmp_path / "run", toy_recipe(start), main=other.path)
    assert "lacks 2 of the channels that are needed; t500 is missing; t850 is missing" in problem
    coarse = make_store(tmp_path / "coarse", days=4, grid=Grid.regular(45.0, "cells"))
    (problem,) = refused(DataError, tmp_path / "run", toy_recipe(start), main=coarse.path)
    assert "is on" in problem
    assert "the model on" in problem
    gfs = make_store(tmp_path / "gfs", days=4, first="2021-03-01")
    two = toy_recipe(start, stage(inputs={"gfs": "gfs"}), encoders=(ExtraEncoder("gfs", "era5"),))
    (problem,) = refused(DataError, tmp_path / "run", two, main=store.path, gfs=gfs.path)
    assert "2021-03-01" in problem  # other years


def test_a_preset_lists_all_that_a_store_lacks(store: Store, tmp_path: Path) -> None:
    recipe = Recipe(**{**vars(toy_recipe(tmp_path / "none")), "start": None, "model": "tiny"})
    found = refused(DataError, tmp_path / "run", recipe, main=store.path)
    assert any("the store is on" in problem for problem in found)
    assert {"u500 is missing", "msl is missing", "static field slt is missing"} <= set(found)


def test_encoders_that_cannot_be_added_are_refused(store: Store, start: Path, tmp_path: Path) -> None:
    extra = (ExtraEncoder("era5", "era5"), ExtraEncoder("gfs", "ifs"))
    assert refused(ConfigError, tmp_path / "run", toy_recipe(start, encoders=extra), main=store.path) == (
        "'era5' is there already", "'gfs' is to begin as 'ifs', which is not there",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--data", "STORE"], 2, "a training needs a recipe"),
        (["--resume", "--set", "seed=2", "--data", "STORE"], 2, "--set changes a recipe: give --recipe as well"),
        (["--recipe", "RECIPE", "--data", "STORE", "--data", "STORE"], 2, "two stores are called 'main'"),
        (["--recipe", "RECIPE", "--data", "a=STORE", "--data", "a=STORE"], 2, "two stores are called 'a'"),
        (["--recipe", "RECIPE", "--set", "optimiser.name=adamw", "--data", "STORE"], 9, "did you mean 'optimizer'?"),
        (["--recipe", "RECIPE", "--data", "NOWHERE"], 3, "there is no training store"),
        (["--recipe", "RECIPE", "--data", "hourly=STORE"], 9, "needs the store 'main': give --data main=PATH"),
        (["--recipe", "RECIPE", "--set", "start=none.safetensors", "--data", "STORE"], 6, "none.safetensors"),
        (["--resume", "--data", "STORE"], 2, "there is no complete checkpoint"),
    ],
)
def test_commands_that_cannot_be(
    store: Store, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int,
    said: str,
) -> None:  # fmt: skip
    (tmp_path / "recipe.toml").write_text(toml(toy_recipe(start)))
    places = {"STORE": str(store.path), "RECIPE": str(tmp_path / "recipe.toml"), "NOWHERE": str(tmp_path / "none")}
    words = [functools.reduce(lambda text, item: text.replace(*item), places.items(), word) for word in arguments]
    assert wm2(["train", *words, "--out", str(tmp_path / "run")]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert not captured.out


def test_the_command_trains_and_says_where_the_weights_are(
    store: Store, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = tmp_path / "a=b"
    strange.symlink_to(store.path)  # a path with "=" is no NAME=PATH
    (tmp_path / "recipe.toml").write_text(toml(toy_recipe(start, stage(steps=2))))
    out = tmp_path / "run"
    data = ["--data", str(strange), "--data", f"spare={store.path}"]
    begin = ["train", "--recipe", str(tmp_path / "recipe.toml"), *data, "--out", str(out), "--set", "stages.0.steps=3"]
    assert wm2([*begin, "--stop-after", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out / 'weights' / 'last.safetensors'}\n"
    assert "no stage reads the store 'spare'" in captured.err
    assert "of the time went into waiting for data" in captured.err
    assert wm2(["train", "--resume", *data, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["steps"], document["finished"]) == (1, 3, True)
    assert 0 <= document["waiting_share"] < 1
    assert checkpoint.load(out / "weights" / "best.safetensors").header.trained
