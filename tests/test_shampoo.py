"""Distributed Shampoo: parity with stored trajectories, and what the optimizer promises by itself."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from wm2cli.errors import CheckpointError, ConfigError, ValuesError
from wm2cli.training.shampoo import Shampoo, bias_correction, cut, inverse_root, merged_shape, owners

DATA = Path(__file__).parent / "data"
NAMES = ("matrix", "wide", "vector", "conv", "patch", "scalar")
BLOCKED = {
    "lr": 0.02,
    "weight_decay": 1e-3,
    "max_preconditioner_dim": 8,
    "precondition_frequency": 5,
    "start_preconditioning_step": 5,
}
UNBLOCKED = {"lr": 0.02, "max_preconditioner_dim": 64, "precondition_frequency": 1, "start_preconditioning_step": 1}
WELL_CONDITIONED = {**BLOCKED, "epsilon": 1e-2}
"""Where two runs need not agree in every bit: round-off is not magnified."""
STEPS = 40


pytestmark = pytest.mark.usefixtures("one_thread")


def golden(kind: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"shampoo_{kind}.npz") as stored:
        return {name: stored[name] for name in stored.files}


def parameters_of(stored: dict[str, np.ndarray]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(stored[f"init_{name}"])) for name in NAMES]


def walk(
    optimizer: Shampoo, parameters: list[torch.nn.Parameter], stored: dict[str, np.ndarray], steps: range
) -> list[torch.Tensor]:
    """Feeds the stored gradients of some steps; returns the parameters after each, as one vector a step."""
    after = []
    for step in steps:
        for parameter, name in zip(parameters, NAMES, strict=True):
            parameter.grad = torch.tensor(stored[f"grads_{name}"][step])
        optimizer.step()
        after.append(torch.cat([parameter.detach().reshape(-1) for parameter in parameters]))
    return after


def distance(a: torch.Tensor, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.detach().numpy() - b) / np.linalg.norm(b))


# ---------------------------------------------------------------------------------------------------------- golden


def magnifications(stored: dict[str, np.ndarray], name: str, settings: dict[str, Any]) -> list[float]:
    """How much more the roots in use enlarge the smallest eigenvector than the largest, for each step."""
    limit, frequency = settings["max_preconditioner_dim"], settings["precondition_frequency"]
    start, gradients = settings["start_preconditioning_step"], stored[f"grads_{name}"].astype(np.float64)
    shape = merged_shape(gradients.shape[1:], limit)
    factors = {
        (block.number, side): np.zeros((n, n)) for block in cut(shape, limit) for side, n in enumerate(block.shape)
    }
    worst, found = 1.0, []
    for step, gradient in enumerate(gradients, start=1):
        for block in cut(shape, limit):
            piece = gradient.reshape(shape)[block.region]
            for side, length in enumerate(block.shape):
                rows = np.moveaxis(piece, side, 0).reshape(length, -1)
                factors[block.number, side] = 0.99 * factors[block.number, side] + 0.01 * rows @ rows.T
        if step >= start and step % frequency == 0:
            spectra = [np.linalg.eigvalsh(factor) for factor in factors.values()]
            worst = max(values[-1] / max(values[0], 1e-30) for values in spectra) ** (0.5 / len(shape))
        found.append(worst)
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vector"])
def test_follows_the_blocked_trajectory(name: str) -> None:
    """All 40 steps to 1e-5, without correction on the way."""
    stored, index = golden("blocked_f5"), NAMES.index(name)
    parameters = parameters_of(stored)
    optimizer = Shampoo(parameters, **BLOCKED)
    for step in range(STEPS):
        walk(optimizer, parameters, stored, range(step, step + 1))
        assert distance(parameters[index], stored[f"params_{name}"][step]) < 1e-5, step


@pytest.mark.parametrize(
    ("kind", "settings", "fewest"), [("blocked_f5", BLOCKED, 225), ("unblocked_f1", UNBLOCKED, 190)]
)
def test_every_determined_step_is_the_reference_step(kind: str, settings: dict[str, Any], fewest: int) -> None:
    """Each step from the reference's own parameters, to 1e-5.

    While a factor has seen fewer gradients than it has rows, its smallest eigenvalues are round-off, and their power
    -1/2w enlarges the round-off of the gradient up to a millionfold: the direction in the reference is then noise
    of its linear algebra library, and another processor gives another. Of such steps only what single precision does
    determine is compared, the length. They are known from the gradients alone, in double precision.
    """
    stored = golden(kind)
    parameters = parameters_of(stored)
    optimizer = Shampoo(parameters, **settings)
    noise = {name: magnifications(stored, name, settings) for name in NAMES}
    held = 0
    for step in range(STEPS):
        before = {name: stored[f"params_{name}"][step - 1] if step else stored[f"init_{name}"] for name in NAMES}
        for parameter, name in zip(parameters, NAMES, strict=True):
            parameter.data.copy_(torch.tensor(before[name]))
        walk(optimizer, parameters, stored, range(step, step + 1))
        for parameter, name in zip(parameters, NAMES, strict=True):
            after = stored[f"params_{name}"][step]
            moved, wanted = parameter.detach().numpy() - before[name], after - before[name]
            assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(wanted), rel=1e-4), (name, step)
            if noise[name][step] < 100:
                held += 1
                assert distance(parameter, after) < 1e-5, (name, step)
                assert np.linalg.norm(moved - wanted) < 3e-4 * np.linalg.norm(wanted), (name, step)
    assert held >= fewest


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vector"])
def test_stays_with_the_unblocked_trajectory(name: str) -> None:
    """The round-off of the first steps, when factors lack rank, is carried along; nothing is added to it."""
    stored, index = golden("unblocked_f1"), NAMES.index(name)
    parameters = parameters_of(stored)
    optimizer = Shampoo(parameters, **UNBLOCKED)
    for step in range(STEPS):
        walk(optimizer, parameters, stored, range(step, step + 1))
        assert distance(parameters[index], stored[f"params_{name}"][step]) < 2e-3, step


# --------------------------------------------------------------------------------------------------------- by hand


def test_one_step_on_paper() -> None:
    """At the first step both roots turn G into its nearest rotation, and Adam's direction is the signs of G.

    For G = [[3, 1], [2, 4]] the angle has the tangent (2 - 1) / (3 + 4), so that the rotation is [[7, -1], [1, 7]] /
    sqrt(50), of norm sqrt(2); the signs have norm 2. The direction is [[7, -1], [1, 7]] / 5.
    """
    start = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = Shampoo([parameter], lr=0.1, weight_decay=0.5, max_preconditioner_dim=2, precondition_frequency=1)
    parameter.grad = torch.tensor([[3.0, 1.0], [2.0, 4.0]], dtype=torch.float64)
    optimizer.step()
    wanted = start - 0.1 * (torch.tensor([[1.4, -0.2], [0.2, 1.4]], dtype=torch.float64) + 0.5 * start)
    torch.testing.assert_close(parameter.detach(), wanted, rtol=0, atol=1e-8)
    left, right = optimizer.state[parameter]["blocks"][0]["roots"]
    for root, factor in ((left, parameter.grad @ parameter.grad.T), (right, parameter.grad.T @ parameter.grad)):
        torch.testing.assert_close(torch.linalg.matrix_power(root, 4) @ factor, torch.eye(2, dtype=torch.float64))


def test_five_steps_in_numpy() -> None:
    """The same, with memory: written with singular values of symmetric matrices instead of eigenvalues."""
    generator = np.random.default_rng(3)
    gradients = generator.normal(size=(5, 2, 2))
    parameter = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer = Shampoo(
        [parameter], lr=0.1, max_preconditioner_dim=2, precondition_frequency=2, start_preconditioning_step=3
    )
    value, left, right, mean, square = np.ones((2, 2)), *np.zeros((4, 2, 2))
    roots = [np.eye(2), np.eye(2)]
    for step, gradient in enumerate(gradients, start=1):
        left = 0.99 * left + 0.01 * gradient @ gradient.T
        right = 0.99 * right + 0.01 * gradient.T @ gradient
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        if step in {3, 4}:
            roots = []
            for factor in (left, right):
                u, s, _ = np.linalg.svd(factor / (1 - 0.99**step))
                roots.append(u @ np.diag((s + 1e-12) ** -0.25) @ u.T)
        first = mean / (1 - 0.9**step)
        adam = first / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        direction = adam
        if step >= 3:
            direction = roots[0] @ first @ roots[1]
            direction *= np.linalg.norm(adam) / np.linalg.norm(direction)
        value = value - 0.1 * direction
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-9)


def test_inverse_root_of_a_known_matrix() -> None:
    """[[5, 4], [4, 5]] has the eigenvalues 9 and 1: its inverse square root is [[2, -1], [-1, 2]] / 3."""
    root = inverse_root(torch.tensor([[5.0, 4.0], [4.0, 5.0]], dtype=torch.float64), 2, 0.0)
    torch.testing.assert_close(root, torch.tensor([[2.0, -1.0], [-1.0, 2.0]], dtype=torch.float64) / 3)


def test_inverse_root_shifts_negative_eigenvalues_to_zero() -> None:
    root = inverse_root(torch.diag(torch.tensor([-1.0, 3.0], dtype=torch.float64)), 2, 0.25)
    torch.testing.assert_close(root, torch.diag(torch.tensor([0.25, 4.25], dtype=torch.float64) ** -0.5))


def test_inverse_root_is_tried_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = torch.linalg.eigh

    def only_double(matrix: torch.Tensor) -> Any:
        if matrix.dtype != torch.float64:
            raise torch.linalg.LinAlgError("did not converge")
        return honest(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", only_double)
    root = inverse_root(torch.tensor([[5.0, 4.0], [4.0, 5.0]]), 2, 0.0)
    torch.testing.assert_close(root, torch.tensor([[2.0, -1.0], [-1.0, 2.0]]) / 3)


def test_bias_correction_of_double_state_is_exact() -> None:
    assert bias_correction(0.999, 1, torch.float64) == pytest.approx(1e-3, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize(
    ("shape", "limit", "merged", "blocks"),
    [
        ((), 8, (1,), [(1,)]),
        ((1,), 8, (1,), [(1,)]),
        ((16,), 8, (16,), [(8,), (8,)]),
        ((16,), 16, (16,), [(16,)]),
        ((12, 20), 8, (12, 20), [(8, 8), (8, 8), (8, 4), (4, 8), (4, 8), (4, 4)]),
        ((12, 20), 240, (240,), [(240,)]),
        ((8, 3, 3, 3), 8, (8, 3, 3, 3), [(8, 3, 3, 3)]),
        ((8, 3, 3, 3), 64, (8, 27), [(8, 27)]),
        ((10, 2, 4, 4), 8, (10, 8, 4), [(8, 8, 4), (2, 8, 4)]),
        ((10, 2, 4, 4), 64, (10, 32), [(10, 32)]),
        ((5, 1, 1, 7), 7, (5, 7), [(5, 7)]),
        ((0, 3), 8, (0,), []),
    ],
)
def test_merging_and_cutting(
    shape: tuple[int, ...], limit: int, merged: tuple[int, ...], blocks: list[tuple[int, ...]]
) -> None:
    assert merged_shape(shape, limit) == merged
    assert [block.shape for block in cut(merged, limit)] == blocks


def test_blocks_cover_a_parameter_once() -> None:
    seen = torch.zeros(13, 9, 5)
    for block in cut((13, 9, 5), 4):
        assert seen[block.region].shape == block.shape
        seen[block.region] += 1
    assert bool((seen == 1).all())


def test_the_dearest_block_goes_to_the_rank_with_the_least() -> None:
    assert owners([1, 7, 3, 5], 2) == [0, 0, 1, 1]
    assert owners([2, 2, 2, 2], 3) == [0, 1, 2, 0]
    assert owners([4, 1], 1) == [0, 0]


# ------------------------------------------------------------------------------------------------------- behaviour


def test_reaches_the_minimum_of_a_quadratic_with_a_schedule() -> None:
    """Curvatures over two decades, in directions oblique to the axes: after 300 steps Adam is still 1e-1 away."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator))
    hessian = (basis * torch.logspace(0, -2, 12)) @ basis.T
    solution = torch.randn(12, 6, generator=generator)
    parameter = torch.nn.Parameter(torch.zeros(12, 6))
    optimizer = Shampoo([parameter], lr=0.1, max_preconditioner_dim=16, precondition_frequency=5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        parameter.grad = hessian @ (parameter.detach() - solution)
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(parameter.detach(), solution, rtol=0, atol=1e-4)


def test_weight_decay_is_decoupled() -> None:
    """It shrinks the parameter by lr * decay and is not seen by the state."""
    results = []
    for decay in (0.0, 0.1):
        parameter = torch.nn.Parameter(torch.full((3, 4), 2.0))
        optimizer = Shampoo([parameter], lr=0.5, weight_decay=decay, max_preconditioner_dim=4, precondition_frequency=1)
        parameter.grad = torch.arange(12.0).reshape(3, 4).sin()
        optimizer.step()
        results.append((parameter.detach(), optimizer.state[parameter]["blocks"][0]))
    torch.testing.assert_close(results[0][0] - results[1][0], torch.full((3, 4), 0.5 * 0.1 * 2.0))
    assert torch.equal(results[0][1]["factors"][0], results[1][1]["factors"][0])
    assert torch.equal(results[0][1]["roots"][1], results[1][1]["roots"][1])


def test_groups_have_their_own_settings() -> None:
    """Two groups give what two optimizers give."""
    together = [torch.nn.Parameter(torch.ones(6, 6)) for _ in range(2)]
    apart = [torch.nn.Parameter(torch.ones(6, 6)) for _ in range(2)]
    settings = [{"lr": 0.1, "max_preconditioner_dim": 3}, {"lr": 0.01, "precondition_frequency": 2}]
    one = Shampoo([{"params": [p], **s} for p, s in zip(together, settings, strict=True)], precondition_frequency=1)
    two = [Shampoo([p], **{"precondition_frequency": 1, **s}) for p, s in zip(apart, settings, strict=True)]
    for step in range(4):
        for parameter in together + apart:
            parameter.grad = torch.arange(36.0).reshape(6, 6).add(step).sin()
        for optimizer in (one, *two):
            optimizer.step()
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(together[0], together[1])


def test_parameter_without_gradient_is_skipped() -> None:
    """A frozen parameter stays and has no state; thawed late, it goes the way of one that starts anew."""
    late, early = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3, 3))
    optimizer = Shampoo([late, early], lr=0.1, precondition_frequency=2)
    first = []
    for step in range(6):
        early.grad = torch.arange(9.0).reshape(3, 3).add(step).sin()
        late.grad = torch.arange(9.0).reshape(3, 3).add(step - 3).sin() if step >= 3 else None
        optimizer.step()
        if step < 3:
            assert late not in optimizer.state
            assert torch.equal(late, torch.ones(3, 3))
            first.append(early.detach().clone())
    assert optimizer.state[late]["step"] == 3
    assert torch.equal(late, first[-1])


def test_half_precision_parameters_keep_single_precision_state() -> None:
    values = torch.linspace(-1, 1, 20).reshape(4, 5)
    full, half = torch.nn.Parameter(values.bfloat16().float()), torch.nn.Parameter(values.bfloat16())
    optimizers = [Shampoo([parameter], lr=0.05, precondition_frequency=1) for parameter in (full, half)]
    for step in range(3):
        for parameter, optimizer in zip((full, half), optimizers, strict=True):
            parameter.grad = torch.arange(20.0).reshape(4, 5).add(step).sin().bfloat16().to(parameter.dtype)
            optimizer.step()
    kept = optimizers[1].state[half]["blocks"][0]
    assert half.dtype == torch.bfloat16
    assert kept["factors"][0].dtype == torch.float32
    assert torch.equal(kept["factors"][0], optimizers[0].state[full]["blocks"][0]["factors"][0])
    torch.testing.assert_close(half.float(), full, rtol=0.01, atol=0.01)
    reloaded = Shampoo([half], lr=0.05, precondition_frequency=1)
    reloaded.load_state_dict(optimizers[1].state_dict())
    assert torch.equal(reloaded.state[half]["blocks"][0]["factors"][0], kept["factors"][0])


def test_layout_in_memory_does_not_matter() -> None:
    gradient = torch.randn(4, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        parameter = torch.nn.Parameter(torch.ones_like(gradient).contiguous(memory_format=layout))
        parameter.grad = gradient.contiguous(memory_format=layout)
        Shampoo([parameter], lr=0.1, max_preconditioner_dim=4, precondition_frequency=1).step()
        assert parameter.is_contiguous(memory_format=layout)
        ends.append(parameter.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)


def test_scalars_and_empty_parameters() -> None:
    scalar, empty = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.zeros(0, 3))
    scalar.grad, empty.grad = torch.tensor(-5.0), torch.zeros(0, 3)
    Shampoo([scalar, empty], lr=0.5, precondition_frequency=1).step()
    assert scalar.item() == pytest.approx(2.5, abs=1e-5)


def test_closure_is_called_with_gradients() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Shampoo([parameter], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert float(parameter.detach().max()) == pytest.approx(0.9)


# ---------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gradients_that_are_not_finite_are_refused(bad: float) -> None:
    good, spoiled = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3, 2))
    optimizer = Shampoo([good, spoiled])
    good.grad, spoiled.grad = torch.ones(2, 3), torch.ones(3, 2)
    spoiled.grad[1, 1] = bad
    with pytest.raises(ValuesError, match=r"parameter 1 of shape \(3, 2\): 1 value"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(good, torch.ones(2, 3))
    with pytest.raises(ValuesError, match=r"parameter spoiled of shape \(3, 2\)"):
        Shampoo([("frozen", torch.nn.Parameter(torch.ones(2))), ("spoiled", spoiled)]).step()


def refuse(matrix: torch.Tensor) -> Any:
    raise torch.linalg.LinAlgError("did not converge")


def test_a_failed_eigendecomposition_keeps_the_root(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = Shampoo([parameter], lr=0.1, precondition_frequency=1, max_preconditioner_dim=4)
    parameter.grad = torch.arange(12.0).reshape(3, 4).sin()
    optimizer.step()
    roots = [root.clone() for root in optimizer.state[parameter]["blocks"][0]["roots"]]
    monkeypatch.setattr(torch.linalg, "eigh", refuse)
    with caplog.at_level(logging.WARNING):
        optimizer.step()
        optimizer.step()
    assert optimizer.failed_roots == 4
    assert sum("previous root" in record.message for record in caplog.records) == 4
    for kept, root in zip(optimizer.state[parameter]["blocks"][0]["roots"], roots, strict=True):
        assert torch.equal(kept, root)
    monkeypatch.undo()
    optimizer.step()  # a success between ends the row
    assert not torch.equal(optimizer.state[parameter]["blocks"][0]["roots"][0], roots[0])
    monkeypatch.setattr(torch.linalg, "eigh", refuse)
    optimizer.step()
    optimizer.step()
    before = parameter.detach().clone()
    with pytest.raises(ValuesError, match="3 times in a row"):
        optimizer.step()
    assert torch.equal(parameter, before)
    assert optimizer.failed_roots == 10


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": -1.0},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, float("nan"))},
        {"grafting_beta2": 1.0},
        {"max_preconditioner_dim": 0},
        {"precondition_frequency": 0, "start_preconditioning_step": 1},
        {"start_preconditioning_step": 0},
        {"epsilon": -1e-3},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Shampoo([torch.nn.Parameter(torch.ones(2))], **settings)
    assert len(caught.value.problems) == 1


def test_state_of_other_parameters_is_refused() -> None:
    stored = golden("blocked_f5")
    parameters = parameters_of(stored)
    optimizer = Shampoo(parameters, **BLOCKED)
    walk(optimizer, parameters, stored, range(1))
    state = optimizer.state_dict()
    with pytest.raises(CheckpointError, match="does not fit"):
        Shampoo(parameters[:2], **BLOCKED).load_state_dict(state)
    with pytest.raises(CheckpointError) as caught:
        Shampoo(parameters[::-1], **BLOCKED).load_state_dict(state)
    assert len(caught.value.problems) > 1


# -------------------------------------------------------------------------------------------------------- resuming


def test_resuming_is_bit_for_bit(tmp_path: Path) -> None:
    """10 + 10 steps are 20; through a file that holds nothing but tensors, numbers and containers."""
    stored = golden("blocked_f5")
    straight = parameters_of(stored)
    wanted = walk(Shampoo(straight, **BLOCKED), straight, stored, range(20))
    parameters = parameters_of(stored)
    optimizer = Shampoo(parameters, **BLOCKED)
    walk(optimizer, parameters, stored, range(12))
    torch.save([optimizer.state_dict(), [parameter.data for parameter in parameters]], tmp_path / "state.pt")
    state, values = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = [torch.nn.Parameter(value) for value in values]
    other = Shampoo(resumed)
    other.load_state_dict(state)
    for a, b in zip(walk(other, resumed, stored, range(12, 20)), wanted[12:], strict=True):
        assert torch.equal(a, b)


def test_a_loaded_state_is_a_copy() -> None:
    stored = golden("blocked_f5")
    parameters = parameters_of(stored)
    optimizer = Shampoo(parameters, **BLOCKED)
    walk(optimizer, parameters, stored, range(6))
    state = optimizer.full_state_dict()
    before = copy.deepcopy(state)
    other = Shampoo(parameters, **BLOCKED)
    other.load_state_dict(state)
    walk(other, parameters, stored, range(6, 12))
    walk(optimizer, parameters, stored, range(12, 18))
    torch.testing.assert_close(state, before, rtol=0, atol=0)


# ----------------------------------------------------------------------------------------------------- several ranks


def elements(state: Any) -> int:
    """Numbers held in the tensors of a state."""
    if isinstance(state, torch.Tensor):
        return state.numel()
    if isinstance(state, dict):
        return sum(elements(value) for value in state.values())
    return sum(elements(value) for value in state) if isinstance(state, list) else 0


def one_rank_of_two(rank: int, folder: str) -> None:
    """What each of two processes does; what it found goes to a file."""
    torch.set_num_threads(1)
    logging.disable()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    stored = golden("blocked_f5")
    parameters = parameters_of(stored)
    optimizer = Shampoo(parameters, **WELL_CONDITIONED)
    found: dict[str, Any] = {"first": walk(optimizer, parameters, stored, range(12))}
    full, part, values = optimizer.full_state_dict(), optimizer.state_dict(), [p.data.clone() for p in parameters]
    found["elements"], found["full"], found["part"] = elements(part), full, copy.deepcopy(part)
    if rank == 0:
        torch.save(full, f"{folder}/full.pt")
    dist.barrier()
    for name, state in (("part", part), ("full", torch.load(f"{folder}/full.pt", weights_only=True))):
        resumed = [torch.nn.Parameter(value.clone()) for value in values]
        other = Shampoo(resumed)
        other.load_state_dict(copy.deepcopy(state))
        found[f"resumed from {name}"] = walk(other, resumed, stored, range(12, 20))
    found["second"] = walk(optimizer, parameters, stored, range(12, 20))
    try:
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    except ConfigError as error:
        found["late group"] = str(error)
    doomed = Shampoo(parameters_of(stored), **UNBLOCKED)
    if rank == 1:
        torch.linalg.eigh = refuse
    try:
        walk(doomed, doomed.param_groups[0]["params"], stored, range(3))
    except ValuesError as error:
        found["failure"] = (str(error), doomed.failed_roots)
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(one_rank_of_two, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one_rank() -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Twenty steps, and the state after twelve."""
    stored = golden("blocked_f5")
    parameters = parameters_of(stored)
    optimizer = Shampoo(parameters, **WELL_CONDITIONED)
    first = walk(optimizer, parameters, stored, range(12))
    state = optimizer.full_state_dict()
    return first + walk(optimizer, parameters, stored, range(12, 20)), state


def test_two_ranks_go_the_way_of_one(
    two_ranks: list[dict[str, Any]], one_rank: tuple[list[torch.Tensor], dict[str, Any]]
) -> None:
    for found in two_ranks:
        torch.testing.assert_close(found["first"] + found["second"], one_rank[0], rtol=1e-6, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(two_ranks[0]["second"], two_ranks[1]["second"], strict=True))


def test_each_of_two_ranks_holds_about_half_the_state(
    two_ranks: list[dict[str, Any]], one_rank: tuple[list[torch.Tensor], dict[str, Any]]
) -> None:
    whole = elements(one_rank[1]["state"])
    held = [found["elements"] for found in two_ranks]
    assert sum(held) == whole
    assert max(held) < 0.65 * whole


def test_the_full_state_does_not_depend_on_the_ranks(
    two_ranks: list[dict[str, Any]], one_rank: tuple[list[torch.Tensor], dict[str, Any]]
) -> None:
    torch.testing.assert_close(two_ranks[0]["full"], one_rank[1], rtol=1e-6, atol=1e-7)
    assert two_ranks[1]["full"] == {}


@pytest.mark.parametrize("source", ["part", "full"])
def test_two_ranks_resume_bit_for_bit(two_ranks: list[dict[str, Any]], source: str) -> None:
    for found in two_ranks:
        for a, b in zip(found[f"resumed from {source}"], found["second"], strict=True):
            assert torch.equal(a, b)


def test_one_rank_resumes_what_two_began(two_ranks: list[dict[str, Any]]) -> None:
    stored = golden("blocked_f5")
    parameters = parameters_of(stored)
    flat = two_ranks[0]["first"][-1].split([parameter.numel() for parameter in parameters])
    for parameter, values in zip(parameters, flat, strict=True):
        parameter.data.copy_(values.view(parameter.shape))
    optimizer = Shampoo(parameters)
    optimizer.load_state_dict(two_ranks[0]["full"])
    after = walk(optimizer, parameters, stored, range(12, 20))
    torch.testing.assert_close(after, two_ranks[0]["second"], rtol=1e-6, atol=1e-7)


def test_one_rank_does_not_resume_a_part(two_ranks: list[dict[str, Any]]) -> None:
    with pytest.raises(CheckpointError, match="does not hold all blocks") as caught:
        Shampoo(parameters_of(golden("blocked_f5"))).load_state_dict(two_ranks[0]["part"])
    assert "full_state_dict" in str(caught.value.hint)


def test_a_failure_on_one_rank_stops_both(two_ranks: list[dict[str, Any]]) -> None:
    messages = [found["failure"] for found in two_ranks]
    assert messages[0] == messages[1]
    assert "3 times in a row" in messages[0][0]
    assert messages[0][1] > 3


def test_groups_cannot_come_late_on_several_ranks(two_ranks: list[dict[str, Any]]) -> None:
    assert all("before the first step" in found["late group"] for found in two_ranks)
