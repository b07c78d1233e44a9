"""What a training computes: losses by hand, gradients to the bit, what is frozen, what is learnt."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from stores import GRID, INPUTS, OUTPUTS, PRESET, STORED, make_store, run, stage, toy, toy_recipe, untrained, waves
from torch import Tensor

from wm2cli import checkpoint
from wm2cli.errors import ConfigError, DataError, ResourceError
from wm2cli.grid import Grid
from wm2cli.models.presets import PRESETS
from wm2cli.models.weathermesh2 import EncoderConfig, ProcessorConfig, WeatherMesh2
from wm2cli.schema import Schema
from wm2cli.state import Normalizer, State
from wm2cli.store import Store
from wm2cli.training import loop
from wm2cli.training.gradients import gradient_sums
from wm2cli.training.log import Log, labelled
from wm2cli.training.loop import Listener, Step
from wm2cli.training.losses import (
    Keep,
    Weights,
    difference,
    keep,
    make_weights,
    persistence_errors,
    rollout_loss,
    row_weights,
)
from wm2cli.training.optimizers import Optimizers
from wm2cli.training.recipes import ExtraEncoder, LossConfig, OptimizerConfig
from wm2cli.training.samples import Batch, Samples, View, read_ahead
from wm2cli.training.schedule import draw
from wm2cli.training.validation import Climatology, Validation

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def network(store: Store, **changes: Any) -> WeatherMesh2:
    """One that is not the identity, so that every parameter has a gradient."""
    torch.manual_seed(4)
    made = WeatherMesh2(toy(**changes), GRID, Normalizer.from_dict(store.normalizer))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return made


def samples_of(store: Store, model: WeatherMesh2, longest: int = 48, split: str = "train") -> Samples:
    name, schema = next(iter(model.inputs.items()))
    return Samples({name: View(store, schema)}, View(store, model.schema_out), split, longest, 6)


def weights_of(store: Store, config: LossConfig | None = None) -> Weights:
    config = config or LossConfig(channels="equal")
    return make_weights(config, OUTPUTS, GRID, Normalizer.from_dict(store.normalizer), {}, CPU)


# ----------------------------------------------------------------------------------------------------------- losses


def test_rows_count_by_their_area_and_a_little_more_at_the_poles() -> None:
    grid = Grid.regular(1.0, "poles")
    weights = row_weights(grid)[:, 0].double().numpy()
    area = grid.area_weights() / grid.area_weights().max()
    plain = area.copy()
    for row, lat in enumerate(grid.lat):
        if abs(lat) > 77.5:
            plain[row] += 0.1 * (1 - (90 - abs(lat)) / 12.5) ** 2
    np.testing.assert_allclose(weights, plain / plain.mean(), rtol=1e-6)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[0] / weights[90] == pytest.approx(0.1, abs=0.005)  # as in the public WeatherMesh-3


@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_the_loss_by_hand(kind: str) -> None:
    grid = Grid(np.array([60.0, 0.0, -60.0]), np.array([0.0, 180.0]))
    schema = Schema(("z",), (500, 850), ("t2m",))
    statistics = Normalizer(dict.fromkeys(schema.channels, 0.0), dict.fromkeys(schema.channels, 1.0))
    config = LossConfig(kind=kind, channels="equal", variables={"z": 2.0, "z850": 0.5, "t2m": 1.5})  # type: ignore[arg-type]
    weights = make_weights(config, schema, grid, statistics, {}, CPU)
    upper, lower = torch.zeros(2, 1, 2, 3, 2), torch.zeros(2, 1, 3, 2)
    upper[0, 0, 0, 1, 0] = 3.0  # z500 at the equator
    upper[1, 0, 1, 2, 1] = -4.0  # z850 at 60 S
    lower[0, 0, 0, 1] = 0.5  # t2m at 60 N
    found = difference((upper, lower), (torch.zeros_like(upper), torch.zeros_like(lower)), weights, kind)
    area = grid.area_weights()
    rows = area / area.mean()
    power = 1 if kind == "l1" else 2
    points = 2 * 3 * 2  # samples, rows, columns
    by_hand = (2.0 * 3.0**power * rows[1] + 0.5 * 4.0**power * rows[2] + 1.5 * 0.5**power * rows[0]) / 4.0 / points
    assert float(found) == pytest.approx(by_hand, rel=1e-6)


def test_channels_are_weighted_by_their_change_or_their_pressure(store: Store) -> None:
    statistics = Normalizer.from_dict(store.normalizer)
    channels = OUTPUTS.channels

    def table(**changes: Any) -> dict[str, float]:
        made = weights_of(store, LossConfig(**changes))
        values = [*made.pressure.flatten().tolist(), *made.surface.flatten().tolist()]
        assert sum(values) == pytest.approx(1.0)
        return dict(zip(channels, values, strict=True))

    change = {name: statistics.std[name] / statistics.difference_std[6][name] for name in channels}
    for kind, power in (("l1", 1), ("mse", 2)):
        expected = {name: value**power for name, value in change.items()}
        total = sum(expected.values())
        assert table(kind=kind) == pytest.approx({name: value / total for name, value in expected.items()})
    pressure = {name: 500 / 1350 if "500" in name else 850 / 1350 for name in channels[:4]} | {"t2m": 1.0, "tp_6h": 1.0}
    assert table(channels="pressure") == pytest.approx({name: value / 4 for name, value in pressure.items()})
    assert table(channels="equal") == pytest.approx(dict.fromkeys(channels, 1 / 6))


def test_weights_that_cannot_be_are_refused(store: Store) -> None:
    statistics = Normalizer.from_dict(store.normalizer)
    with pytest.raises(DataError, match="hold no differences"):
        make_weights(LossConfig(), OUTPUTS, GRID, replace(statistics, difference_std={}), {}, CPU)
    still = {6: {**statistics.difference_std[6], "t500": 0.0}}
    with pytest.raises(DataError) as error:
        make_weights(LossConfig(), OUTPUTS, GRID, replace(statistics, difference_std=still), {}, CPU)
    assert error.value.problems == ("t500",)
    nothing = LossConfig(variables=dict.fromkeys(("z", "t", "t2m", "tp_6h"), 0.0))
    with pytest.raises(ConfigError, match="every channel"):
        make_weights(nothing, OUTPUTS, GRID, statistics, {}, CPU)


def test_lead_times_are_weighted_and_latents_held(store: Store) -> None:
    model = network(store)
    batch = samples_of(store, model).read(np.array([3, 8]), (0, 6, 12))
    base = weights_of(store)
    loss, parts = rollout_loss(model, batch, replace(base, latent=0.0, leads={6: 1.0, 12: 0.5}, lead_zero=0.1), "l1")
    assert loss.item() == pytest.approx((0.1 * parts[0] + parts[6] + 0.5 * parts[12]) / 3, rel=1e-5)
    held, _ = rollout_loss(model, batch, replace(base, latent=2.0, leads={6: 1.0, 12: 0.5}, lead_zero=0.1), "l1")
    latent = model.encode(batch.inputs)
    squares = [latent.x.detach().square().mean().item()]
    for _ in range(2):
        latent = model.advance(latent, 6)
        squares.append(latent.x.detach().square().mean().item())
    assert held.item() == pytest.approx(loss.item() + 2.0 * float(np.mean(squares)), rel=1e-5)


def test_each_lead_time_is_compared_with_its_own_truth(store: Store) -> None:
    model = network(store)
    batch = samples_of(store, model).read(np.array([5]), (1 * 6, 18))
    _, parts = rollout_loss(model, batch, weights_of(store), "l1")
    latent = model.encode(batch.inputs)
    for lead in (6, 12, 18):
        latent = model.advance(latent, 6)
        if lead in parts:
            truth = batch.targets[lead]
            assert np.array_equal(truth.time, latent.time)
            expected = difference(model.decode_normalized(latent), model.normalize(truth), weights_of(store), "l1")
            assert parts[lead] == pytest.approx(float(expected.detach()), rel=1e-6)


def test_the_error_of_persistence_by_hand(store: Store) -> None:
    model, chosen = network(store), np.array([2, 9, 30])
    samples, weights = samples_of(store, model), weights_of(store)
    found = persistence_errors(
        lambda place, leads: samples.read(chosen[place : place + 1], leads), 3, model, weights, "l1", (6, 24)
    )
    for lead, error in found.items():
        first, later = (store.read(samples.starts[chosen] + shift) for shift in (0, lead // 6))
        columns = Normalizer.from_dict(store.normalizer)
        total = 0.0
        rows = weights.rows[:, 0].numpy()
        for place, name in enumerate(STORED.channels):
            one, two = (np.log(v[:, place] + 1e-7) if name == "tp_6h" else v[:, place] for v in (first, later))
            total += float((np.abs(two - one) / columns.std[name] * rows[:, None]).mean()) / 6
        assert error == pytest.approx(total, rel=1e-4)
    assert found[24] > 2 * found[6]


# -------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_and_offload_change_no_bit_of_the_gradients(store: Store, precision: str) -> None:
    model = network(store, processors=(ProcessorConfig(6, 2), ProcessorConfig(1, 1)))
    batch = samples_of(store, model).read(np.array([0, 7]), (0, 6, 18, 24))
    parameters = list(model.parameters())
    found: dict[tuple[Keep, bool], list[Tensor]] = {}
    for policy in get_args(Keep):
        for offload in (False, True):
            keep(model, policy)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss, parts = rollout_loss(model, batch, weights_of(store), "l1", policy, offload)
            made = torch.autograd.grad(loss, parameters, allow_unused=True)
            told = [loss.detach(), *map(torch.tensor, parts.values())]
            found[policy, offload] = [*told, *(gradient for gradient in made if gradient is not None)]
    plain = found["none", False]
    names = [name for name, _ in model.named_parameters() if not name.startswith("processors.1.")]
    assert len(plain) == 5 + len(names)  # all but the processor that no lead time needs
    assert all(float(gradient.abs().sum()) > 0 for gradient in plain)
    for way, gradients in found.items():
        assert all(torch.equal(a, b) for a, b in zip(plain, gradients, strict=True)), way


def saved_bytes(model: WeatherMesh2, batch: Batch, weights: Weights, policy: Keep) -> int:
    """Bytes of activations that wait for the backward pass when the forward pass is done."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    own |= {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    keep(model, policy)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = rollout_loss(model, batch, weights, "l1", policy)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del loss
    return total


def test_nested_checkpointing_keeps_a_fifth_of_what_blocks_keep(store: Store) -> None:
    """24 steps of ten blocks with three lead times that are decoded."""
    model = network(store, processors=(ProcessorConfig(6, 10),), width=16, surface_widths=(4,), shortcut=False)
    batch = samples_of(store, model, 144).read(np.array([0]), (48, 96, 144))
    block, nested = (saved_bytes(model, batch, weights_of(store), policy) for policy in ("block", "step"))
    assert nested * 5 <= block, (block, nested)


@pytest.mark.parametrize("passes", [1, 2, 3, 4, 5, 8])
def test_gradients_of_passes_are_those_of_the_whole_batch(passes: int) -> None:
    weight = torch.nn.Parameter(torch.tensor([0.5, -2.0]))
    idle = torch.nn.Parameter(torch.ones(3))
    states = State(OUTPUTS, GRID, np.arange(passes).astype("datetime64[s]"), torch.randn(passes, 2, 2, *GRID.shape),
                   torch.randn(passes, 2, *GRID.shape))  # fmt: skip

    def loss_of(some: Batch) -> tuple[Tensor, dict[int, float]]:
        state = some.inputs["era5"]
        loss = (weight * state.surface.mean(dim=(2, 3))).square().mean()
        return loss, {6: float(loss.detach())}

    found = gradient_sums(Batch({"era5": states}, {6: states}), 1, [weight, idle], loss_of)
    whole, parts = loss_of(Batch({"era5": states}, {6: states}))
    (expected,) = torch.autograd.grad(whole, [weight])
    assert found.gradients[1] is None
    assert found.gradients[0] is not None
    torch.testing.assert_close(found.gradients[0] / passes, expected)
    assert found.loss / passes == pytest.approx(float(whole.detach()), rel=1e-5)
    assert found.leads[6] / passes == pytest.approx(parts[6], rel=1e-5)


def test_two_halves_of_the_passes_add_up_to_the_same_bits() -> None:
    """The tree of eight passes is the sum of the trees of four."""
    weight = torch.nn.Parameter(torch.ones(50))
    numbers = torch.randn(8, 2, 2, *GRID.shape) * torch.logspace(-6, 6, 8).view(-1, 1, 1, 1, 1)
    lower = torch.zeros(8, 2, *GRID.shape)

    def batch(some: slice) -> Batch:
        time = np.arange(8).astype("datetime64[s]")[some]
        return Batch({"era5": State(OUTPUTS, GRID, time, numbers[some], lower[some])}, {})

    def loss_of(some: Batch) -> tuple[Tensor, dict[int, float]]:
        return (weight * some.inputs["era5"].pressure.flatten()[:50]).sum(), {}

    def gradient(some: slice) -> Tensor:
        found = gradient_sums(batch(some), 1, [weight], loss_of).gradients[0]
        assert found is not None
        return found

    whole, halves = gradient(slice(0, 8)), gradient(slice(0, 4)) + gradient(slice(4, 8))
    assert torch.equal(whole, halves)
    assert not torch.equal(whole, numbers.flatten(1)[:, :50].sum(dim=0))  # not any order would do


# ------------------------------------------------------------------------------------------------------- optimizers


def test_parameters_fall_into_the_groups_of_their_optimizer(store: Store) -> None:
    named = list(network(store).named_parameters())
    whole = sum(parameter.numel() for _, parameter in named)
    for name, parts in (("adamw", {"adamw"}), ("muon", {"muon", "adamw"}), ("shampoo", {"shampoo"})):
        made = Optimizers(OptimizerConfig(name=name, linear_rate=0.1), named)  # type: ignore[arg-type]
        assert set(made.parts) == parts
        groups = [group for part in made.parts.values() for group in part.param_groups]
        assert sum(parameter.numel() for group in groups for parameter in group["params"]) == whole
        for _, parameter in named:
            parameter.grad = torch.ones_like(parameter)
        made.step(0.5)
        rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
        for key, parameter in named:
            linear = ".pressure." in key or (".shortcut." in key and ".surface." not in key and ".final." not in key)
            assert rates[id(parameter)] == pytest.approx(0.05 if linear else 0.5), key
            if parameter.ndim < 2:
                assert decays[id(parameter)] == 0.0, key
    assert {parameter.ndim for parameter in Optimizers(OptimizerConfig(), named).parts["muon"].param_groups[0]["params"]
            } == {2}  # fmt: skip


def test_what_no_lead_time_needs_stays_as_it_is(store: Store, start: Path, tmp_path: Path) -> None:
    """`all` includes the 1 h processor; in steps of 6 h it has no gradient, and must not decay either."""
    before = checkpoint.load(start).model.state_dict()
    run(tmp_path / "run", store.path, toy_recipe(start, stage(steps=3, rate=1e-2), ema=0.0))
    after = checkpoint.load(tmp_path / "run" / "weights" / "last.safetensors").model.state_dict()
    changed = {name.split(".")[0] + "." + name.split(".")[1] for name in before
               if not torch.equal(before[name], after[name])}  # fmt: skip
    assert "processors.1" not in changed
    assert {"processors.6", "encoders.era5", "decoder.transformer", "decoder.surface"} <= changed


# ----------------------------------------------------------------------------------------------------------- stages


def test_an_overfit_run_drives_the_loss_to_nothing(tmp_path: Path) -> None:
    """Four samples; the loss falls below two per cent of its start."""
    store = make_store(tmp_path / "store", days=3, splits={"train": (0.0, 5 / 12), "validation": (0.5, 1.0)})
    start = untrained(tmp_path / "start.safetensors", store)
    losses: list[float] = []
    recipe = toy_recipe(
        start, stage(steps=220, micro=4, rate=1e-2, warmup=5), optimizer="muon", validate_every=1000, save_every=1000,
        loss=LossConfig(channels="equal", leads="equal", latent=0.0),
    )  # fmt: skip
    run(tmp_path / "run", store.path, recipe, Listener(step=lambda report: losses.append(report.loss)))
    assert losses[-1] < 0.02 * losses[0]
    assert losses[0] > 0.05  # there was something to learn


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Another analysis of the same weather: shifted by a little, and of hours of its own."""
    return make_store(tmp_path_factory.mktemp("other") / "other", shift=0.6)


def test_a_frozen_core_stays_the_same_to_the_bit_while_a_second_encoder_learns(
    store: Store, other: Store, start: Path, tmp_path: Path
) -> None:
    learning = stage("encoder", steps=16, rate=1e-2, trainable=("encoder:gfs",), inputs={"gfs": "gfs"})
    recipe = toy_recipe(start, learning, encoders=(ExtraEncoder("gfs", "era5", (500.0,)),), validate_every=100)
    losses: list[float] = []
    run(tmp_path / "run", store.path, recipe, Listener(step=lambda report: losses.append(report.loss)),
        data={"main": store.path, "gfs": other.path})  # fmt: skip
    before = checkpoint.load(start)
    after = checkpoint.load(tmp_path / "run" / "weights" / "last.safetensors")
    learnt, core = after.model.state_dict(), before.model.state_dict()
    assert all(torch.equal(learnt[name], value) for name, value in core.items())
    moved = [name for name in learnt if name.startswith("encoders.gfs.")]
    assert any(not torch.equal(learnt[name], core[name.replace(".gfs.", ".era5.")]) for name in moved)
    assert set(learnt) == set(core) | set(moved)
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert after.model.inputs["gfs"].levels == (500.0,)
    state = View(store, before.model.inputs["era5"]).read(np.array([4]))
    one, two = (loaded.model.decode(loaded.model.advance(loaded.model.encode(state), 6)) for loaded in (before, after))
    assert torch.equal(one.pressure, two.pressure)
    assert torch.equal(one.surface, two.surface)


def test_blending_weights_learn_which_analysis_is_better_and_count_from_then_on(
    store: Store, other: Store, tmp_path: Path
) -> None:
    start = untrained(tmp_path / "two.safetensors", store, ("era5", "gfs"))
    both = {"era5": "main", "gfs": "gfs"}
    blend = stage("blend", steps=12, rate=1e-1, trainable=("blend",), inputs=both)
    after = stage("after", steps=2, trainable=("decoder",), inputs=both, rate=1e-9)
    recipe = toy_recipe(start, blend, after, ema=0.5, validate_every=100)
    result = run(tmp_path / "run", store.path, recipe, data={"main": store.path, "gfs": other.path})
    loaded = checkpoint.load(result.weights)
    shares = {encoder.name: encoder.weight for encoder in loaded.header.config.encoders}
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-6)
    assert shares["era5"] > 0.6  # they began at a half
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["score"] for line in lines if line["kind"] == "validation"}
    assert judged[12] < 0.9 * judged[0]  # validations see the shares
    assert judged[14] == pytest.approx(judged[12], rel=1e-3)  # and the next stage goes on with them
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}
    assert losses[13] < 0.9 * losses[1]


def test_shares_that_are_not_trained_stay_as_they_were_given(store: Store, other: Store, tmp_path: Path) -> None:
    start = tmp_path / "two.safetensors"
    encoders = (EncoderConfig("era5", INPUTS, 3.0), EncoderConfig("gfs", INPUTS, 0.0))
    config = replace(toy(), encoders=encoders)
    model = WeatherMesh2(config, GRID, Normalizer.from_dict(store.normalizer))
    checkpoint.save(start, model, checkpoint.Header("weathermesh2", "two", config, model.normalizer), {})
    recipe = toy_recipe(start, stage(steps=1, inputs={"era5": "main", "gfs": "gfs"}))
    result = run(tmp_path / "run", store.path, recipe, data={"main": store.path, "gfs": other.path})
    assert [encoder.weight for encoder in checkpoint.load(result.weights).header.config.encoders] == [3.0, 0.0]


def test_the_hourly_processor_learns_alone_and_stages_can_be_mixed(start: Path, store: Store, tmp_path: Path) -> None:
    hourly = make_store(tmp_path / "hourly", days=4, step_hours=1)
    one = stage("hourly", steps=3, trainable=("processor:1",), data="hourly", lead_step=1, horizon=(1, 5), targets=2)
    mixed = stage("mixed", steps=4, trainable=("processor:1",), data="hourly", lead_step=1, horizon=(6, 8), targets=1)
    reports: list[Step] = []
    run(tmp_path / "run", store.path, toy_recipe(start, one, mixed, ema=0.0), Listener(step=reports.append),
        data={"hourly": hourly.path})  # fmt: skip
    before = checkpoint.load(start).model.state_dict()
    after = checkpoint.load(tmp_path / "run" / "weights" / "last.safetensors").model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("processors.1.") for name in changed)
    assert [report.horizon for report in reports] == [1, 3, 5, 6, 7, 8, 8]
    # Six hours need no 1 h step: nothing could be learnt, and nothing was.
    assert [report.gradient > 0 for report in reports] == [True, True, True, False, True, True, True]
    assert all(math.isfinite(report.loss) for report in reports)


def test_weights_name_all_times_they_have_learnt_from(start: Path, store: Store, tmp_path: Path) -> None:
    hourly = make_store(tmp_path / "hourly", days=4, step_hours=1)
    one = stage("one", steps=1)
    hours = stage("hours", steps=1, trainable=("processor:1",), data="hourly", lead_step=1, horizon=(1, 1))
    first = run(tmp_path / "one", store.path, toy_recipe(start, one, ema=0.0))
    second = run(tmp_path / "two", store.path, toy_recipe(first.weights, hours, ema=0.0), data={"hourly": hourly.path})
    names = [checkpoint.read_header(path)[0].training["train"] for path in (first.weights, second.weights)]
    (low, high), (early, late) = (made.splits["train"][0] for made in (store, hourly))
    assert names[0] == [[str(low), str(high)]]
    assert names[1] == sorted([[str(low), str(high)], [str(early), str(late)]])


def test_a_preset_is_made_anew_from_the_store(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "toy", PRESET)
    generator = torch.get_rng_state()
    recipe = toy_recipe(None, stage(steps=2), static=("orog",), half=True)
    results = [run(tmp_path / name, store.path, recipe) for name in ("one", "two")]
    one, two = (checkpoint.load(result.weights) for result in results)
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(),
                                                 strict=True))  # fmt: skip
    assert one.sha256 == two.sha256
    assert torch.equal(torch.get_rng_state(), generator)
    header = one.header
    assert (header.trained, header.training["kind"], header.training["steps"]) == (True, "simulated", 2)
    assert header.training["stores"] == {"main": store.fingerprint}
    assert header.normalizer.to_dict() == Normalizer.from_dict(store.normalizer).to_dict()
    assert list(one.static) == ["orog"]
    assert torch.equal(one.static["orog"], torch.from_numpy(store.static["orog"]))


def test_weights_that_a_training_left_begin_another(store: Store, start: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "one", store.path, toy_recipe(start, stage(steps=2)))
    second = run(tmp_path / "two", store.path, toy_recipe(first.weights, stage(steps=2)))
    before = checkpoint.load(second.weights).header.training["before"]
    assert before["sha256"] == checkpoint.file_sha256(first.weights)
    assert before["steps"] == 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "shampoo"])
def test_every_optimizer_learns(store: Store, start: Path, tmp_path: Path, optimizer: str) -> None:
    losses: list[float] = []
    run(tmp_path / "run", store.path, toy_recipe(start, stage(steps=15, rate=3e-3), optimizer=optimizer),
        Listener(step=lambda report: losses.append(report.loss)))  # fmt: skip
    assert np.mean(losses[-3:]) < 0.75 * np.mean(losses[:3])


def test_bf16_and_memory_switches_train_too(store: Store, start: Path, tmp_path: Path) -> None:
    grown = stage(steps=4, horizon=(6, 18), targets=2)
    plain = run(tmp_path / "plain", store.path, toy_recipe(start, grown, precision="bf16"))
    saving = run(tmp_path / "saving", store.path,
                 toy_recipe(start, grown, precision="bf16", checkpoint="step", offload=True))  # fmt: skip
    one, two = (checkpoint.load(result.weights).model.state_dict() for result in (plain, saving))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_compiled_blocks_give_nearly_the_same(store: Store, start: Path, tmp_path: Path) -> None:
    losses: dict[bool, list[float]] = {False: [], True: []}
    for compiled, found in losses.items():
        recipe = toy_recipe(start, stage(steps=3), compile=compiled, checkpoint="block")
        listener = Listener(step=lambda report, found=found: found.append(report.loss))  # type: ignore[misc]
        run(tmp_path / str(compiled), store.path, recipe, listener)
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


# ------------------------------------------------------------------------------------------------------- validation


def test_validation_of_an_untrained_network_is_persistence(store: Store, start: Path) -> None:
    """With linear paths it is the identity: its errors are those of persistence, and these are known."""
    model: Any = checkpoint.load(start).model
    samples = samples_of(store, model, 24, "validation")
    chosen = np.array([0, 5, 10])
    names = ["z500", "t850", "t2m"]
    climatology = Climatology.fit(samples.target, "train", names, 1, lambda done, total: None)
    with torch.inference_mode():
        found = Validation(samples, chosen, (6, 24), climatology).run(model, CPU, lambda done, total: None)
    mean = waves(store.time[store.split_indices("train")], GRID, names).mean(axis=0)
    area = GRID.area_weights()[:, None] / (GRID.area_weights().sum() * GRID.shape[1])
    for column, name in enumerate(names):
        for lead in (6, 24):
            first, later = (waves(store.time[samples.starts[chosen] + shift], GRID, names)[:, column]
                            for shift in (0, lead // 6))  # fmt: skip
            persistence = math.sqrt(((later - first) ** 2 * area).sum() / 3)
            usual = math.sqrt(((later - mean[column]) ** 2 * area).sum() / 3)
            errors = found["rmse"][name][str(lead)]
            assert errors["persistence"] == pytest.approx(persistence, rel=0.02)
            assert errors["climatology"] == pytest.approx(usual, rel=0.02)
            if name != "t2m":  # the surface goes through more than a linear path once it is trained
                assert errors["forecast"] == pytest.approx(persistence, rel=0.02)
                assert found["activity"][name][str(lead)] == pytest.approx(1.0, abs=0.1)
    errors_of = [errors for leads in found["rmse"].values() for errors in leads.values()]
    ratios = [errors["forecast"] / errors["climatology"] for errors in errors_of]
    assert found["score"] == pytest.approx(np.mean(ratios))
    assert found["times"] == 3


class _Years:
    """A store of one channel with an annual cycle, as far as a climatology looks at it."""

    grid = GRID

    def __init__(self, days: int) -> None:
        self.time = np.datetime64("2019-01-01", "s") + np.arange(days) * np.timedelta64(1, "D")

    def split_indices(self, name: str) -> np.ndarray[Any, Any]:
        return np.arange(len(self.time))


def test_a_climatology_follows_the_year_where_it_knows_all_of_it() -> None:
    def truth(time: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        seconds = (time - time.astype("datetime64[Y]")).astype("timedelta64[s]").astype(np.float64)
        return 280.0 + 9.0 * np.cos(2 * np.pi * seconds / (365.25 * 86400.0) - 0.3)

    schema = Schema((), (), ("t2m",))

    def fitted(days: int) -> Climatology:
        years = _Years(days)

        def read(some: np.ndarray[Any, Any]) -> State:
            fields = torch.from_numpy(truth(years.time[some]).astype(np.float32))[:, None, None, None]
            empty = torch.empty(len(some), 0, 0, *GRID.shape)
            return State(schema, GRID, years.time[some], empty, fields.expand(-1, 1, *GRID.shape).contiguous())

        view: Any = SimpleNamespace(store=years, read=read)
        return Climatology.fit(view, "train", ["t2m"], 1, lambda done, total: None)

    later = np.array(["2021-01-15", "2021-07-20"], "datetime64[s]")
    np.testing.assert_allclose(fitted(730).at(later)[:, 0, 3, 3], truth(later), atol=0.05)
    half = fitted(181).at(later)[:, 0, 3, 3]  # January to June say nothing of July
    assert half[0] == pytest.approx(half[1])
    assert half[0] == pytest.approx(float(truth(_Years(181).time).mean()), abs=1e-3)


def test_six_hourly_stores_validate_models_with_an_hourly_processor(store: Store, start: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    recipe = toy_recipe(start, stage(steps=2), validation_leads=(1, 6, 24), validate_every=2)
    result = run(tmp_path / "run", store.path, recipe, Listener(note=notes.append))
    assert result.validation is not None
    assert set(result.validation["rmse"]["z500"]) == {"6", "24"}  # an hour is no time of the store
    judged = [note for note in notes if note.startswith("step ")]
    assert [note.split(":")[0] for note in judged] == ["step 0", "step 2"]  # from the first report on
    assert all("persistence" in note and "climatology" in note for note in judged)


def test_a_store_without_validation_says_so(start: Path, tmp_path: Path) -> None:
    alone = make_store(tmp_path / "alone", days=6, splits={"train": (0.0, 1.0)})
    notes: list[str] = []
    result = run(tmp_path / "run", alone.path, toy_recipe(start, stage(steps=1)), Listener(note=notes.append))
    assert result.validation is None
    assert any("no validation in stage single" in note and "has no split 'validation'" in note for note in notes)


# ---------------------------------------------------------------------------------------------------------- samples


def test_samples_never_leave_their_split(store: Store) -> None:
    model: Any = SimpleNamespace(inputs={"era5": toy().encoders[0].schema}, schema_out=OUTPUTS)
    inside = store.split_indices("train")
    for longest in (6, 48):
        samples = samples_of(store, model, longest)
        assert samples.starts[-1] + longest // 6 == inside[-1]
        assert len(samples) == len(inside) - longest // 6
    batch = samples.read(np.array([0, 3]), (0, 48))
    np.testing.assert_array_equal(batch.targets[48].time - batch.targets[0].time, np.timedelta64(48, "h"))
    stored = store.read(samples.starts[[0, 3]] + 8)
    np.testing.assert_array_equal(batch.targets[48].pressure.flatten(1, 2).numpy(), stored[:, :4])
    np.testing.assert_array_equal(batch.inputs["era5"].surface[:, 0].numpy(), store.read(samples.starts[[0, 3]])[:, 4])


def test_steps_come_in_order_and_waiting_is_measured() -> None:
    import time

    def read(step: int) -> Any:
        time.sleep(0.05 if step == 3 else 0.0)
        return step

    ready = list(read_ahead(3, 9, read))
    assert [one.batch for one in ready] == [3, 4, 5, 6, 7, 8]
    assert ready[0].waited > 0.02
    assert list(read_ahead(4, 4, read)) == []


def test_a_failed_read_is_raised_where_its_step_is_due() -> None:
    def read(step: int) -> Any:
        if step == 2:
            raise DataError("lost")
        return step

    ready = read_ahead(0, 5, read)
    assert [next(ready).batch, next(ready).batch] == [0, 1]
    with pytest.raises(DataError, match="lost"):
        next(ready)


# -------------------------------------------------------------------------------------------------- bad steps, logs


def test_steps_without_a_usable_loss_are_skipped_and_counted(start: Path, tmp_path: Path) -> None:
    spoiled = make_store(tmp_path / "spoiled", days=6, dtype="float32", spoiled={6: 3e38})
    losses: list[float] = []
    recipe = toy_recipe(start, stage(steps=12, batch=2, micro=1), skips=12, save_every=4, keep=20)
    result = run(tmp_path / "run", spoiled.path, recipe, Listener(step=lambda report: losses.append(report.loss)))
    bad = [not math.isfinite(loss) for loss in losses]
    assert 0 < sum(bad) < 12
    assert result.skipped == sum(bad)
    state = checkpoint.load(result.weights).model.state_dict()
    assert all(bool(value.isfinite().all()) for value in state.values())
    lines = [json.loads(line, parse_constant=pytest.fail)
             for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]  # fmt: skip
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["loss"] is None for line in steps] == bad  # JSON has no NaN
    assert steps[-1]["skipped"] == sum(bad)


def test_an_exploding_loss_is_skipped_once_the_usual_one_is_known() -> None:
    acceptable: Any = loop._Run._acceptable
    run: Any = SimpleNamespace(at=loop._Position(), recipe=SimpleNamespace(explosion=10.0))
    assert all(acceptable(run, 1.0 + 0.1 * (step % 2), 1.0) for step in range(20))
    assert not acceptable(run, 11.0, 1.0)
    assert not acceptable(run, 1.0, math.inf)
    assert not acceptable(run, math.nan, 1.0)
    assert (run.at.skipped, run.at.skipped_in_a_row) == (3, 3)
    assert acceptable(run, 9.0, 1.0)
    assert (run.at.skipped, run.at.skipped_in_a_row) == (3, 0)


def test_a_step_tells_where_its_time_went(store: Store, start: Path, tmp_path: Path) -> None:
    reports: list[Step] = []
    result = run(tmp_path / "run", store.path, toy_recipe(start, stage(steps=3)), Listener(step=reports.append))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 2, 3]
    waited = sum(report.seconds["data"] for report in reports)
    whole = sum(sum(report.seconds.values()) for report in reports)
    assert result.waiting_share == pytest.approx(waited / whole, abs=0.01)
    for line, report in zip(steps, reports, strict=True):
        assert line["loss"] == report.loss
        assert line["leads"] == {"6": report.leads[6]}
        assert labelled(line) == {"6 h": report.leads[6]}
        assert line["memory"] > 1e7
        assert line["samples_per_second"] == pytest.approx(4 / sum(line["seconds"].values()), rel=0.05)
    assert json.loads(json.dumps(result.to_dict()))["finished"] is True


def test_the_log_says_when_it_cannot_be_written(tmp_path: Path) -> None:
    log = Log(tmp_path, None, False)
    log._stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with pytest.raises(ResourceError, match="cannot be written"):
        log.validation(3, {"score": 1.0})


def test_tensorboard_is_an_extra(store: Store, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
        with pytest.raises(ResourceError, match="TensorBoard is not installed") as error:
            run(tmp_path / "run", store.path, toy_recipe(start, stage(steps=1)), tensorboard=True)
        assert "wm2cli[tensorboard]" in str(error.value.hint)
    run(tmp_path / "run", store.path, toy_recipe(start, stage(steps=1)))  # the folder is as good as new
    pytest.importorskip("tensorboard")
    run(tmp_path / "events", store.path, toy_recipe(start, stage(steps=2)), tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "events" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_a_tail_learns_from_the_last_hours_alone(store: Store) -> None:
    """The gradient is that of a forecast from where the tail begins; the way there counts as given."""
    model = network(store)
    samples, weights = samples_of(store, model), weights_of(store)
    batch = samples.read(np.array([0, 1]), (24,))
    parameters = list(model.processors["6"].parameters())
    loss, parts = rollout_loss(model, batch, weights, "l1", tail=6)
    found = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        latent = model.encode(batch.inputs)
        for _ in range(3):
            latent = model.advance(latent, 6)
    last = model.advance(latent, 6)
    by_hand = difference(model.decode_normalized(last), model.normalize(batch.targets[24]), weights, "l1")
    assert float(by_hand.detach()) == parts[24]
    squares = (last.x.square().mean() + model.encode(batch.inputs).x.detach().square().mean()) / 2
    expected = torch.autograd.grad(by_hand + weights.latent * squares, parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    whole = torch.autograd.grad(rollout_loss(model, batch, weights, "l1")[0], parameters)
    assert not torch.allclose(whole[0], found[0])
    encoder = list(model.encoders.parameters())
    loss, _ = rollout_loss(model, batch, weights, "l1", tail=6)
    assert all(gradient is None for gradient in torch.autograd.grad(loss, encoder, allow_unused=True))


def test_targets_of_a_tail_lie_in_it() -> None:
    made = stage("weeks", horizon=(240, 240), tail=24, targets=3, steps=50)
    for step in range(50):
        leads = draw(made, 0, step, seed=1, possible=100).leads
        assert leads[-1] == 240
        assert min(leads) > 240 - 24
