"""How a Stormer learns: increments over random intervals, by hand; and that it does."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import networks
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stores import INCREMENTS, make_store, run, stage, toy_recipe, untrained, untrained_stormer
from torch import Tensor

from wm2cli import checkpoint
from wm2cli.errors import ConfigError, DataError
from wm2cli.grid import Grid
from wm2cli.models.latent import Latent
from wm2cli.models.stormer import SCHEMA, Stormer, published_statistics
from wm2cli.state import State
from wm2cli.store import Store
from wm2cli.training.gradients import part
from wm2cli.training.log import labelled
from wm2cli.training.loop import Listener, Step
from wm2cli.training.losses import Keep, Weights, difference, increment_loss, keep, make_weights
from wm2cli.training.optimizers import Optimizers
from wm2cli.training.recipes import LossConfig, load_recipe
from wm2cli.training.samples import Batch, Samples, View
from wm2cli.training.schedule import rate

CPU = torch.device("cpu")
PUBLISHED = load_recipe("stormer")

LEVEL_SHARES = {
    50: 0.00131726, 100: 0.00263453, 150: 0.00395179, 200: 0.00526905, 250: 0.00658631, 300: 0.00790358,
    400: 0.01053810, 500: 0.01317263, 600: 0.01580715, 700: 0.01844168, 850: 0.02239347, 925: 0.02436936,
    1000: 0.02634525,
}  # fmt: skip
"""What a variable's levels count in the published loss."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Path:
    return untrained_stormer(tmp_path_factory.mktemp("start") / "start.safetensors", store)


def weights_of(model: Stormer, **changes: Any) -> Weights:
    config = replace(PUBLISHED.loss, **changes)
    return make_weights(config, model.schema_out, model.grid, model.normalizer, {}, CPU)


def changes_of(model: Stormer, hours: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Standard deviations of changes, (B, V, L, 1, 1) and (B, S, 1, 1), each sample over its own hours."""
    schema, tables = model.schema_out, model.normalizer.difference_std
    table = torch.tensor([[tables[step][name] for name in schema.channels] for step in hours])
    count = len(schema.pressure) * len(schema.levels)
    upper = table[:, :count].view(len(hours), len(schema.pressure), len(schema.levels), 1, 1)
    return upper, table[:, count:, None, None]


def samples_of(model: Stormer, hours: Sequence[int], steps: int) -> Batch:
    """Weather that changes as the model's statistics say, and knows no physics."""
    upper, lower = changes_of(model, hours)
    generator = torch.Generator().manual_seed(8)
    states = [networks.state(model, batch=len(hours))]
    for _ in range(steps):
        one = states[-1]
        moved = (field + scale * torch.randn(field.shape, generator=generator)
                 for field, scale in ((one.pressure, upper), (one.surface, lower)))  # fmt: skip
        states.append(State(one.schema, one.grid, one.time + np.array(hours, "timedelta64[h]"), *moved))
    return Batch({"era5": states[0]}, dict(enumerate(states)), np.array(hours))


# ----------------------------------------------------------------------------------------------------------- weights


def test_channels_and_rows_weigh_what_was_published() -> None:
    grid = Grid.regular(1.40625, "cells")
    configs = (replace(PUBLISHED.loss, weight_norm=norm) for norm in ("sum", "count"))  # type: ignore[arg-type]
    by_code, by_paper = (make_weights(config, SCHEMA, grid, published_statistics(), {}, CPU) for config in configs)
    assert by_code.surface.flatten().tolist() == pytest.approx([0.158730, 0.015873, 0.015873, 0.015873], abs=5e-7)
    for variable in by_code.pressure.flatten(1).tolist():
        assert dict(zip(SCHEMA.levels, variable, strict=True)) == pytest.approx(LEVEL_SHARES, abs=5e-9)
    for name in ("pressure", "surface"):
        torch.testing.assert_close(getattr(by_paper, name) * 69 / 6.3, getattr(by_code, name))
    cosine = np.cos(np.deg2rad(grid.lat))
    np.testing.assert_allclose(by_code.rows[:, 0].numpy(), cosine / cosine.mean(), rtol=1e-5)
    even = make_weights(LossConfig("increments"), SCHEMA, grid, published_statistics(), {}, CPU)
    torch.testing.assert_close(even.pressure, torch.full_like(even.pressure, 1 / 69))
    torch.testing.assert_close(even.surface, torch.full_like(even.surface, 1 / 69))


# ------------------------------------------------------------------------------------------------------------ losses


def physical(state: State) -> NDArray[np.float64]:
    """(B, C, H, W)."""
    return torch.cat([state.pressure.flatten(1, 2), state.surface], dim=1).double().numpy()


def by_hand(model: Stormer, batch: Batch, divisor: float) -> tuple[float, list[float]]:
    """Equation 3 as it is written, the state rolled out in physical units, a sample at a time.

    Args:
        model: Asked for increments alone.
        batch: Samples with intervals.
        divisor: V in the paper, the sum of w(v) in the code.

    Returns:
        The loss, and its part of each step.
    """
    schema, steps = model.schema_out, len(batch.targets) - 1
    pressures = np.array(list(schema.levels) * len(schema.pressure))
    of_channel = np.array([*(pressures / sum(schema.levels)), 1.0, 0.1, 0.1, 0.1])
    of_row = np.cos(np.deg2rad(model.grid.lat)) / np.cos(np.deg2rad(model.grid.lat)).mean()
    truth = [physical(state) for state in batch.targets.values()]
    upper = len(pressures)
    parts = np.zeros(steps)
    assert batch.intervals is not None
    for sample, hours in enumerate(batch.intervals.tolist()):
        change = np.array([model.normalizer.difference_std[hours][name] for name in schema.channels])[:, None, None]
        x = physical(batch.inputs["era5"])[sample]
        for step in range(steps):
            fields = torch.from_numpy(x[None]).float()
            shape = (1, len(schema.pressure), len(schema.levels), *model.grid.shape)
            now = State(schema, model.grid, batch.inputs["era5"].time[:1], fields[:, :upper].reshape(shape),
                        fields[:, upper:].clone())  # fmt: skip
            with torch.no_grad():
                told = model.restore(model.increment(model.arrange(*model.normalize(now)), hours))
            made = torch.cat([told[0].flatten(1, 2), told[1]], dim=1)[0].double().numpy()
            wanted = (truth[step + 1][sample] - truth[step][sample]) / change
            error = of_channel[:, None, None] * of_row[:, None] * (made - wanted) ** 2
            parts[step] += error.sum() / (divisor * error[0].size * len(batch))
            x = x + made * change
    return float(parts.mean()), parts.tolist()


@pytest.mark.parametrize(("hours", "steps"), [((12, 12), 1), ((24, 6, 12), 1), ((6, 24, 6), 3)])
def test_increments_by_hand(hours: Sequence[int], steps: int) -> None:
    """Equations 1 and 2 with one step, 3 and 4 with several, by the code's divisor and by the paper's."""
    model = networks.stormer()
    batch = samples_of(model, hours, steps)
    for norm, divisor in (("sum", 5 + 1.3), ("count", 19)):
        loss, parts = increment_loss(model, batch, weights_of(model, weight_norm=norm))
        expected, by_step = by_hand(model, batch, divisor)
        assert float(loss) == pytest.approx(expected, rel=1e-4)
        assert list(parts) == list(range(1, steps + 1))
        assert list(parts.values()) == pytest.approx(by_step, rel=1e-4)
    assert len(set(by_step)) == steps


def test_the_first_loss_is_one() -> None:
    """It begins as persistence, whose normalised increments have variance one; however many steps there are."""
    model = networks.stormer(loud=False)
    for steps in (1, 4):
        loss, parts = increment_loss(model, samples_of(model, (6, 12, 24, 24), steps), weights_of(model))
        assert float(loss) == pytest.approx(1.0, abs=0.02)
        assert list(parts.values()) == pytest.approx([1.0] * steps, abs=0.04)


def test_a_pass_of_several_intervals_is_each_sample_by_itself() -> None:
    model = networks.stormer().requires_grad_(True)
    batch, weights = samples_of(model, (6, 24, 12, 24), 2), weights_of(model)
    parameters = list(model.parameters())
    together, _ = increment_loss(model, batch, weights)
    gradients = torch.autograd.grad(together, parameters)
    alone = [increment_loss(model, part(batch, slice(place, place + 1)), weights)[0] for place in range(4)]
    assert float(together.detach()) == pytest.approx(float(torch.stack(alone).mean().detach()), rel=1e-5)
    for found, expected in zip(gradients, torch.autograd.grad(torch.stack(alone).mean(), parameters), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)
        assert found.any()


def test_gradients_flow_through_all_steps_and_targets_are_true_increments() -> None:
    model = networks.stormer().requires_grad_(True)
    batch, weights = samples_of(model, (12,), 2), weights_of(model)
    parameters = list(model.parameters())
    truth = [model.arrange(*model.normalize(state)) for state in batch.targets.values()]

    def loss(through: bool) -> Tensor:
        x, found = truth[0], []
        for before, after in itertools.pairwise(truth):
            made = model.increment(x, 12)
            wanted = (after - before) / model.scale(12, 1)
            found.append(difference(model.restore(made), model.restore(wanted), weights, "mse"))
            x = model.advance(Latent(x, batch.targets[0].time), 12).x
            x = x if through else x.detach()
        return (found[0] + found[1]) / 2

    gradients = torch.autograd.grad(increment_loss(model, batch, weights)[0], parameters)
    for found, expected in zip(gradients, torch.autograd.grad(loss(True), parameters), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    cut = torch.autograd.grad(loss(False), parameters)
    assert any(not torch.allclose(a, b, rtol=0.05) for a, b in zip(gradients, cut, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_and_offload_change_no_bit_of_the_gradients(precision: str) -> None:
    model = networks.stormer().requires_grad_(True)
    batch, weights = samples_of(model, (6, 24), 2), weights_of(model)
    found: dict[tuple[Keep, bool], list[Tensor]] = {}
    for policy in get_args(Keep):
        for offload in (False, True):
            keep(model, policy)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss, _ = increment_loss(model, batch, weights, policy, offload)
            assert loss.dtype == torch.float32
            found[policy, offload] = [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    plain = found["none", False]
    for way, gradients in found.items():
        assert all(torch.equal(a, b) for a, b in zip(plain, gradients, strict=True)), way


# ----------------------------------------------------------------------------------------------------------- samples


def test_each_sample_is_followed_at_its_own_pace(store: Store, start: Path) -> None:
    model: Any = checkpoint.load(start).model
    view = View(store, model.schema_out)
    samples = Samples({"era5": view}, view, "train", 2 * 24, 6)
    assert len(samples) == len(store.split_indices("train")) - 2 * 4
    hours = np.array([24, 6, 12])
    batch = samples.read_steps(np.array([0, 5, len(samples) - 1]), hours, 2)
    assert batch.targets[0] is batch.inputs["era5"]
    for step, state in batch.targets.items():
        np.testing.assert_array_equal(state.time - batch.inputs["era5"].time, step * hours.astype("timedelta64[h]"))
        np.testing.assert_array_equal(
            state.surface[:, 0].numpy(), store.read(store.index(state.time))[:, store.schema.channels.index("t2m")]
        )
    some = part(batch, slice(1, 3))
    np.testing.assert_array_equal(some.intervals, [6, 12])
    assert torch.equal(some.targets[2].surface, batch.targets[2].surface[1:])


def test_increments_are_those_of_the_truth_whatever_the_network_starts_from(
    store: Store, start: Path, tmp_path: Path
) -> None:
    other = make_store(tmp_path / "other", shift=0.6)
    model: Any = checkpoint.load(start).model
    read, target = View(other, model.schema_out), View(store, model.schema_out)
    batch = Samples({"era5": read}, target, "train", 24, 6).read_steps(np.array([3]), np.array([12]), 1)
    places = store.index(batch.targets[0].time)
    torch.testing.assert_close(batch.inputs["era5"].surface, read.read(places).surface)
    torch.testing.assert_close(batch.targets[0].surface, target.read(places).surface)
    assert not torch.allclose(batch.targets[0].surface, batch.inputs["era5"].surface, atol=1.0)


# ---------------------------------------------------------------------------------------------------------- training


def test_weights_decay_as_published(start: Path) -> None:
    model: Any = checkpoint.load(start).model
    groups = Optimizers(PUBLISHED.optimizer, list(model.named_parameters())).parts["adamw"].param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    spared = {name for name, value in found.items() if value == 0.0}
    assert spared == {"net.embedding.channel_embed", "net.embedding.pos_embed"}
    assert set(found.values()) == {0.0, 1e-5}
    assert {found[f"net.{name}"] for name in ("embedding.channel_query", "embed_norm_layer.weight", "head.linear.bias")
            } == {1e-5}  # fmt: skip
    assert {group["betas"] for group in groups} == {(0.9, 0.95)}


def test_the_recipe_is_what_was_published() -> None:
    """An epoch is every initial time once: 58,440 states of 1979 to 2018, less those that nothing follows."""
    epoch = 58_436 / 128
    phases = [(one.rollout, one.rate, one.warmup / epoch, one.steps / epoch) for one in PUBLISHED.stages]
    assert phases == [(1, 5e-4, pytest.approx(10, rel=2e-3), pytest.approx(100, rel=2e-3)),
                      (4, 5e-6, pytest.approx(5, rel=2e-3), pytest.approx(20, rel=2e-3)),
                      (8, 5e-7, pytest.approx(5, rel=2e-3), pytest.approx(20, rel=2e-3))]  # fmt: skip
    for one in PUBLISHED.stages:
        assert [rate(one, step) for step in (0, one.warmup - 1, one.warmup, one.steps)] == pytest.approx(
            [1e-8, one.rate, one.rate, 1e-8]
        )
    assert (PUBLISHED.clip, PUBLISHED.ema, PUBLISHED.loss.weight_norm) == (0.0, 0.0, "sum")


def test_a_few_samples_are_learnt(tmp_path: Path) -> None:
    """Over every interval, first one step and then two; persistence has a loss of about one."""
    few = make_store(tmp_path / "store", days=4, splits={"train": (0.0, 0.75), "validation": (0.75, 1.0)})
    start = untrained_stormer(tmp_path / "start.safetensors", few)
    reports: list[Step] = []
    notes: list[str] = []
    stages = (stage(steps=120, micro=4, rate=1e-2, warmup=5), stage("two", steps=20, micro=4, rate=2e-3, rollout=2))
    recipe = toy_recipe(start, *stages, validate_every=1000, save_every=1000, loss=INCREMENTS, ema=0.0)
    run(tmp_path / "run", few.path, recipe, Listener(step=reports.append, note=notes.append))
    losses = [report.loss for report in reports]
    assert 0.5 < losses[0] < 2.0
    assert max(losses[110:120]) < 0.1 * losses[0]
    assert max(losses[-10:]) < 0.15 * losses[0]
    assert [(len(report.leads), report.horizon) for report in (reports[0], reports[-1])] == [(1, 24), (2, 48)]
    assert list(labelled(vars(reports[-1]))) == ["step 1", "step 2"]
    assert reports[-1].loss == pytest.approx(np.mean(list(reports[-1].leads.values())), rel=1e-5)
    assert any("8 initial times, 1 x 24 or 12 or 6 h" in note for note in notes)
    assert any("4 initial times, 2 x 24 or 12 or 6 h" in note for note in notes)


def test_a_stage_goes_on_with_the_weights_of_the_one_before(store: Store, start: Path, tmp_path: Path) -> None:
    recipe = toy_recipe(start, stage(steps=6, rate=1e-2), stage("two", steps=1, rate=1e-12, rollout=2),
                        loss=INCREMENTS, ema=0.0)  # fmt: skip
    run(tmp_path / "run", store.path, recipe)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["score"] for line in lines if line["kind"] == "validation"}
    assert judged[7] == pytest.approx(judged[6], rel=1e-4)
    assert judged[7] != judged[0]


def test_what_increments_cannot_be_had_of_is_refused(store: Store, start: Path, tmp_path: Path) -> None:
    fields = untrained(tmp_path / "fields.safetensors", store)
    with pytest.raises(ConfigError) as impossible:
        run(tmp_path / "run", store.path, toy_recipe(fields, stage(), loss=INCREMENTS))
    assert impossible.value.problems == (
        "increments are what a Stormer predicts, and the model is a weathermesh2: set loss.kind to l1 or mse",
    )
    daily = make_store(tmp_path / "daily", days=30, step_hours=24)
    with pytest.raises(DataError) as lacking:
        run(tmp_path / "run", daily.path, toy_recipe(start, stage(), loss=INCREMENTS))
    assert "lead times of 6 h cannot be read" in lacking.value.problems[0]
    with pytest.raises(DataError) as short:
        run(tmp_path / "run", store.path, toy_recipe(start, stage(rollout=12), loss=INCREMENTS))
    assert "no initial time that is followed by 288 h" in short.value.problems[0]
