"""Distributed Shampoo: a second-order optimizer whose work and memory are shared between the ranks of a run.

Shampoo (Gupta et al. 2018, arXiv 1802.09568, algorithm 2) preconditions a gradient tensor along every dimension with an
inverse root of that dimension's second moment. Three additions make it practical (Anil et al. 2020, arXiv 2002.09018;
Shi et al. 2023, arXiv 2309.06497): large tensors are cut into blocks, each direction takes the length of Adam's
("grafting"), and the roots are refreshed only every so many steps. Conventions that the papers leave open follow
stored trajectories of the public PyTorch implementation.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from wm2cli.errors import CheckpointError, ConfigError, ValuesError

log = logging.getLogger(__name__)

TOLERATED_FAILURES = 2
"""Refreshes in a row that may fail for one block; the next failure ends the run."""

REPORTS = 2
"""Numbers that travel behind the directions of each rank: failed roots, and blocks that have failed too often."""


@dataclass(frozen=True)
class Block:
    """One block of a parameter: where it is, who works on it, and where its direction lies in the gathered buffer."""

    number: int
    region: tuple[slice, ...]
    """Where it lies in the parameter of merged shape."""
    shape: tuple[int, ...]
    owner: int = 0
    offset: int = 0
    """Of its direction, in the segment of its owner."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def work(self) -> int:
        """Multiplications, up to a factor: eigendecompositions, and the products along each dimension."""
        return sum(length**3 + self.size * length for length in self.shape)


def merged_shape(shape: Sequence[int], limit: int) -> tuple[int, ...]:
    """Merges adjacent dimensions while their product stays within a limit.

    Begins at the last dimension, so that a convolution's kernel is merged with itself and not with the channels out.
    Dimensions of length one vanish (arXiv 2309.06497 on large tensors: merging and blocking).

    Args:
        shape: Shape of a parameter; may be empty.
        limit: Largest product of merged dimensions.

    Returns:
        A shape of as many elements, with at least one dimension.
    """
    merged: list[int] = []
    for length in reversed([length for length in shape if length != 1]):
        if merged and merged[-1] * length <= limit:
            merged[-1] *= length
        else:
            merged.append(length)
    return tuple(reversed(merged)) or (1,)


def cut(shape: Sequence[int], limit: int) -> tuple[Block, ...]:
    """Cuts a merged shape into blocks no longer than the limit in every dimension; the last ones may be shorter."""
    starts = (range(0, length, limit) for length in shape)
    regions = (
        tuple(slice(start, min(start + limit, length)) for start, length in zip(corner, shape, strict=True))
        for corner in itertools.product(*starts)
    )
    return tuple(
        Block(number, region, tuple(part.stop - part.start for part in region)) for number, region in enumerate(regions)
    )


def owners(costs: Sequence[int], ranks: int) -> list[int]:
    """Gives each piece of work to a rank: the dearest first, always to the rank with the least so far.

    Ties go to the earlier piece and the lower rank, so that all ranks come to the same answer without a word.
    """
    loads = [(0, rank) for rank in range(ranks)]
    chosen = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, rank = heapq.heappop(loads)
        chosen[index] = rank
        heapq.heappush(loads, (load + costs[index], rank))
    return chosen


def lay_out(parameters: Sequence[tuple[Tensor, int]], ranks: int) -> dict[Tensor, tuple[Block, ...]]:
    """Cuts parameters into blocks and spreads these over the ranks.

    Args:
        parameters: Each parameter and its `max_preconditioner_dim`.
        ranks: Number of ranks.
    """
    uncut = [
        (parameter, block)
        for parameter, limit in parameters
        for block in cut(merged_shape(parameter.shape, limit), limit)
    ]
    used = [0] * ranks
    blocks: dict[Tensor, list[Block]] = {parameter: [] for parameter, _ in parameters}
    for (parameter, block), owner in zip(uncut, owners([block.work for _, block in uncut], ranks), strict=True):
        blocks[parameter].append(replace(block, owner=owner, offset=used[owner]))
        used[owner] += block.size
    return {parameter: tuple(those) for parameter, those in blocks.items()}


def inverse_root(matrix: Tensor, order: int, epsilon: float) -> Tensor:
    """The inverse root of a symmetric matrix that is positive up to round-off.

    Eigenvalues below zero can only be round-off: all are shifted so that the smallest is not negative, and then by
    epsilon (arXiv 2309.06497 on root inverses). Tried in double precision when single precision fails.

    Args:
        matrix: (n, n).
        order: 2 gives the inverse square root.
        epsilon: Added to the eigenvalues.

    Returns:
        (n, n), of the matrix's type.

    Raises:
        RuntimeError: No finite root was found.
    """
    for dtype in dict.fromkeys((matrix.dtype, torch.float64)):
        try:
            values, vectors = torch.linalg.eigh(matrix.to(dtype))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # LinAlgError, and what cuSOLVER raises when it does not converge
            log.debug("eigendecomposition in %s failed: %s", dtype, error)
            continue
        values = values - values.min().clamp(max=0.0) + epsilon
        root: Tensor = (vectors * values.pow(-1.0 / order)) @ vectors.mT
        if bool(root.isfinite().all()):
            return root.to(matrix.dtype)
    raise RuntimeError(f"no finite inverse root of a matrix of {matrix.shape[0]} rows")


def bias_correction(beta: float, step: int, dtype: torch.dtype) -> float:
    """1 - beta^step, rounded as the state is.

    In single precision the difference loses up to 1e-5 of itself at the first steps of a beta near one. The reference
    trajectories carry that, so an exact number would follow them less well.
    """
    return float(1.0 - beta ** torch.tensor(step, dtype=dtype))


class Shampoo(Optimizer):
    """Shampoo with blocks, Adam grafting and decoupled weight decay, shared between ranks.

    Per block of w dimensions, with the gradient G (arXiv 1802.09568, algorithm 2; arXiv 2309.06497 on heuristics):

    - factors L_k <- beta2 L_k + (1 - beta2) G_(k) G_(k)^T for the unfolding of each dimension k;
    - every `precondition_frequency` steps the roots (L_k / (1 - beta2^t))^(-1/2w);
    - the mean gradient M <- beta1 M + (1 - beta1) G, without bias, multiplied along each dimension by its root and
      scaled to the norm of Adam's direction; before `start_preconditioning_step` Adam's direction itself;
    - parameter <- parameter - lr (direction + weight_decay parameter).

    When a process group is initialised, each block belongs to one rank, which alone keeps its state and computes its
    direction; the directions are gathered once a step. All ranks must hold the same parameters and gradients, as
    under DistributedDataParallel.

    State is float32, or float64 for float64 parameters. A parameter without a gradient is skipped, and its own steps
    are counted, so that one which is thawed late starts with the right bias correction. `state_dict` holds the blocks
    of this rank only; `full_state_dict` gathers those of all.

    Args:
        params: Parameters or parameter groups; a group may override every setting below.
        lr: Learning rate.
        betas: Decay of the mean gradient and of the factors.
        epsilon: Added to the eigenvalues of the factors.
        weight_decay: Decoupled weight decay.
        max_preconditioner_dim: Longest side of a block, and largest product of merged dimensions.
        precondition_frequency: Steps between refreshes of the roots.
        start_preconditioning_step: First step that is preconditioned; None means the frequency.
        grafting_beta2: Decay of Adam's second moment.
        grafting_epsilon: Added to the root of Adam's second moment.

    Attributes:
        failed_roots: Eigendecompositions that failed since the optimizer was made, on all ranks.

    Raises:
        ConfigError: A setting is impossible.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        epsilon: float = 1e-12,
        weight_decay: float = 0.0,
        *,
        max_preconditioner_dim: int = 1024,
        precondition_frequency: int = 50,
        start_preconditioning_step: int | None = None,
        grafting_beta2: float = 0.999,
        grafting_epsilon: float = 1e-8,
    ) -> None:
        spread = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if spread else 0
        self.ranks = dist.get_world_size() if spread else 1
        self.failed_roots = 0
        self._blocks: dict[Tensor, tuple[Block, ...]] | None = None
        settings = {
            "lr": lr,
            "betas": betas,
            "epsilon": epsilon,
            "weight_decay": weight_decay,
            "max_preconditioner_dim": max_preconditioner_dim,
            "precondition_frequency": precondition_frequency,
            "start_preconditioning_step": start_preconditioning_step,
            "grafting_beta2": grafting_beta2,
            "grafting_epsilon": grafting_epsilon,
        }
        super().__init__(params, settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group; not after the first step of a run on several ranks, because blocks would move."""
        if self.ranks > 1 and self.state:
            raise ConfigError("on several ranks all parameter groups must be there before the first step")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["start_preconditioning_step"] is None:
            group["start_preconditioning_step"] = group["precondition_frequency"]
        if problems := setting_problems(group):
            raise ConfigError("these settings of Shampoo are impossible:", problems=problems)
        self._blocks = None

    @property
    def blocks(self) -> dict[Tensor, tuple[Block, ...]]:
        """The blocks of each parameter, on all ranks."""
        if self._blocks is None:
            limits = [(parameter, group["max_preconditioner_dim"]) for group, parameter in self._parameters()]
            self._blocks = lay_out(limits, self.ranks)
        return self._blocks

    def _parameters(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, parameter) for group in self.param_groups for parameter in group["params"]]

    def _own(self, parameter: Tensor) -> Iterable[Block]:
        return (block for block in self.blocks[parameter] if block.owner == self.rank)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates the parameters, and returns what the closure returned.

        Raises:
            ValuesError: A gradient is not finite (nothing was changed then), or the eigendecompositions of a block
                failed three times in a row (the parameters were not changed then).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            active = [(group, parameter) for group, parameter in self._parameters() if parameter.grad is not None]
            self._refuse_bad_gradients()
            reports = [self._observe(group, parameter) for group, parameter in active]
            failed, hopeless = (sum(column) for column in zip(*reports, strict=True)) if reports else (0, 0)
            if self.ranks == 1:
                self._judge(failed, hopeless)
                for group, parameter in active:
                    pieces = ((block, self._direction(group, parameter, block)) for block in self._own(parameter))
                    self._move(group, parameter, pieces)
            else:
                self._move_together(active, failed, hopeless)
        return loss

    def _refuse_bad_gradients(self) -> None:
        """NaN and infinity would stay in the factors for ever."""
        gradients = [parameter.grad for _, parameter in self._parameters()]
        filled = [gradient for gradient in gradients if gradient is not None and gradient.numel()]
        # The largest absolute value is NaN when one is: one answer from the device for all gradients.
        if not filled or bool(torch.nn.utils.get_total_norm(filled, math.inf).isfinite()):
            return
        names = [name for group in self.param_groups for name in group.get("param_names", group["params"])]
        problems = [
            f"parameter {name if isinstance(name, str) else number} of shape {tuple(gradient.shape)}: "
            f"{int((~gradient.isfinite()).sum())} values"
            for number, (name, gradient) in enumerate(zip(names, gradients, strict=True))
            if gradient is not None and not bool(gradient.isfinite().all())
        ]
        raise ValuesError(
            "gradients are not finite:", problems=problems, hint="skip the step, or lower the learning rate"
        )

    def _observe(self, group: dict[str, Any], parameter: Tensor) -> tuple[int, int]:
        """Takes a gradient into the state of this rank's blocks, and refreshes their roots when it is time.

        Returns:
            Number of roots that failed, and number of blocks that have failed too often.
        """
        if parameter.grad is None:
            return 0, 0
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["blocks"] = {block.number: new_state(parameter, block) for block in self._own(parameter)}
        state["step"] += 1
        gradient = parameter.grad.to(state_type(parameter)).reshape(
            merged_shape(parameter.shape, group["max_preconditioner_dim"])
        )
        beta1, beta2 = group["betas"]
        step, start = state["step"], group["start_preconditioning_step"]
        refresh = step >= start and (step % group["precondition_frequency"] == 0 or step == start)
        failed = hopeless = 0
        for block in self._own(parameter):
            kept, piece = state["blocks"][block.number], gradient[block.region]
            for side, factor in enumerate(kept["factors"]):
                others = [other for other in range(piece.ndim) if other != side]
                factor.mul_(beta2).add_(torch.tensordot(piece, piece, dims=(others, others)), alpha=1 - beta2)
            kept["second_moment"].mul_(group["grafting_beta2"])
            kept["second_moment"].addcmul_(piece, piece, value=1 - group["grafting_beta2"])
            kept["mean"].lerp_(piece, 1 - beta1)
            if refresh:
                failed += refresh_roots(kept, bias_correction(beta2, step, piece.dtype), group["epsilon"])
                hopeless += int(kept["failures"]) > TOLERATED_FAILURES
        return failed, hopeless

    def _direction(self, group: dict[str, Any], parameter: Tensor, block: Block) -> Tensor:
        """The direction of one block: preconditioned, and of the length of Adam's."""
        step = self.state[parameter]["step"]
        kept: dict[str, Any] = self.state[parameter]["blocks"][block.number]
        mean: Tensor = kept["mean"] / bias_correction(group["betas"][0], step, state_type(parameter))
        variance: Tensor = kept["second_moment"] / bias_correction(group["grafting_beta2"], step, mean.dtype)
        adam = mean / variance.sqrt_().add_(group["grafting_epsilon"])
        if step < group["start_preconditioning_step"]:
            return adam
        direction = mean
        roots: list[Tensor] = kept["roots"]
        for root in roots:
            # Contracting the first dimension puts the result last: after all of them the order is the old one.
            direction = torch.tensordot(direction, root, dims=([0], [0]))
        length: Tensor = torch.linalg.vector_norm(adam) / (torch.linalg.vector_norm(direction) + 1e-16)
        return direction * length

    def _move(self, group: dict[str, Any], parameter: Tensor, pieces: Iterable[tuple[Block, Tensor]]) -> None:
        """Moves a parameter along the directions of its blocks."""
        shape = merged_shape(parameter.shape, group["max_preconditioner_dim"])
        update = torch.empty(shape, dtype=state_type(parameter), device=parameter.device)
        for block, direction in pieces:
            update[block.region] = direction
        update = update.view(parameter.shape)
        if group["weight_decay"]:
            update.add_(parameter, alpha=group["weight_decay"])
        parameter.add_(update, alpha=-float(group["lr"]))

    def _move_together(self, active: list[tuple[dict[str, Any], Tensor]], failed: int, hopeless: int) -> None:
        """Gathers the directions of all ranks in one message, and moves all parameters."""
        known = [parameter for _, parameter in self._parameters()]
        dtype = torch.float64 if torch.float64 in {state_type(parameter) for parameter in known} else torch.float32
        segment = max((block.offset + block.size for those in self.blocks.values() for block in those), default=0)
        mine = torch.zeros(segment + REPORTS, dtype=dtype, device=known[0].device)
        for group, parameter in active:
            for block in self._own(parameter):
                direction = self._direction(group, parameter, block)
                mine[block.offset : block.offset + block.size] = direction.reshape(-1)
        # A rank that stopped alone would leave the others waiting: failures travel along, and all stop together.
        mine[-REPORTS:] = torch.tensor([failed, hopeless], dtype=dtype)
        everything = mine.new_empty(self.ranks, mine.numel())
        dist.all_gather_into_tensor(everything.view(-1), mine)
        failed, hopeless = (int(number) for number in everything[:, -REPORTS:].sum(dim=0).tolist())
        self._judge(failed, hopeless)
        for group, parameter in active:
            pieces = (
                (block, everything[block.owner, block.offset : block.offset + block.size].view(block.shape))
                for block in self.blocks[parameter]
            )
            self._move(group, parameter, pieces)

    def _judge(self, failed: int, hopeless: int) -> None:
        self.failed_roots += failed
        if hopeless:
            raise ValuesError(
                f"the eigendecomposition of {hopeless} Shampoo blocks failed {TOLERATED_FAILURES + 1} times in a row",
                hint="lower the learning rate, or raise epsilon",
            )

    def full_state_dict(self) -> dict[str, Any]:
        """The state of all ranks in one, on the CPU; all ranks must call this.

        Returns:
            On rank 0 what `state_dict` returns in a run of one rank, for `load_state_dict` on any number of ranks;
            an empty dict on the others, so that host memory holds it once.
        """
        packed: dict[str, Any] = {"state": {}, "param_groups": super().state_dict()["param_groups"]}
        for index, (_, parameter) in enumerate(self._parameters()):
            if parameter not in self.state:
                continue
            state = self.state[parameter]
            blocks: dict[int, dict[str, Any]] = {}
            for block in self.blocks[parameter]:
                kept = state["blocks"][block.number] if block.owner == self.rank else new_state(parameter, block)
                if self.ranks > 1:
                    for tensor in tensors_of(kept):
                        dist.broadcast(tensor, src=block.owner)
                if self.rank == 0:
                    blocks[block.number] = new_state(parameter, block, torch.device("cpu"))
                    copy_state(blocks[block.number], kept)
            packed["state"][index] = {"step": state["step"], "blocks": blocks}
        return packed if self.rank == 0 else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state of `full_state_dict`, or of `state_dict` on the same rank of as many ranks.

        As with every torch optimizer, the settings of the groups come from the state too.

        Raises:
            CheckpointError: The state is of other parameters, or lacks blocks that this rank must hold.
        """
        try:
            # The state itself goes past torch, which would cast it to the type of the parameters.
            super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"the optimizer state does not fit these parameters: {error}") from error
        self._blocks = None
        problems = []
        for index, (_, parameter) in enumerate(self._parameters()):
            if index not in state_dict["state"]:
                continue
            saved = state_dict["state"][index]
            blocks: dict[int, dict[str, Any]] = {}
            for block in self._own(parameter):
                found = saved["blocks"].get(block.number)
                if found is None or found["mean"].shape != block.shape:
                    problems.append(f"parameter {index}, block {block.number} of shape {block.shape}")
                    continue
                blocks[block.number] = new_state(parameter, block)
                copy_state(blocks[block.number], found)
            self.state[parameter] = {"step": int(saved["step"]), "blocks": blocks}
        if problems:
            raise CheckpointError(
                "the optimizer state does not hold all blocks of this rank:",
                problems=problems,
                hint="on another number of ranks only a state of full_state_dict can be resumed",
            )


def setting_problems(group: dict[str, Any]) -> list[str]:
    """What is impossible in the settings of a parameter group."""
    least = dict.fromkeys(("lr", "epsilon", "weight_decay", "grafting_epsilon"), 0)
    least |= dict.fromkeys(("max_preconditioner_dim", "precondition_frequency", "start_preconditioning_step"), 1)
    problems = [
        f"{name} = {group[name]}: must be at least {low}" for name, low in least.items() if not group[name] >= low
    ]
    decays = zip(("beta1", "beta2", "grafting_beta2"), (*group["betas"], group["grafting_beta2"]), strict=True)
    return problems + [f"{name} = {value}: must be in [0, 1)" for name, value in decays if not 0 <= value < 1]


def state_type(parameter: Tensor) -> torch.dtype:
    """Type of a parameter's state: half precision would lose the small eigenvalues."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def new_state(parameter: Tensor, block: Block, device: torch.device | None = None) -> dict[str, Any]:
    """The state of a block that has seen no gradient: the roots are identities."""
    like: dict[str, Any] = {"dtype": state_type(parameter), "device": device or parameter.device}
    return {
        "mean": torch.zeros(block.shape, **like),
        "second_moment": torch.zeros(block.shape, **like),
        "factors": [torch.zeros(length, length, **like) for length in block.shape],
        "roots": [torch.eye(length, **like) for length in block.shape],
        "failures": torch.zeros((), **like),
    }


def tensors_of(kept: dict[str, Any]) -> list[Tensor]:
    """All tensors of a block's state, in an order of their own."""
    return [kept["mean"], kept["second_moment"], *kept["factors"], *kept["roots"], kept["failures"]]


def copy_state(target: dict[str, Any], source: dict[str, Any]) -> None:
    """Copies a block's state, so that two optimizers never share one."""
    for new, old in zip(tensors_of(target), tensors_of(source), strict=True):
        new.copy_(old)


def refresh_roots(kept: dict[str, Any], correction: float, epsilon: float) -> int:
    """Computes the roots of a block anew; one that fails stays what it was.

    Returns:
        The number of roots that failed; whether any did is counted in the state.
    """
    failed = 0
    for side, factor in enumerate(kept["factors"]):
        try:
            kept["roots"][side].copy_(inverse_root(factor / correction, 2 * len(kept["factors"]), epsilon))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            failed += 1
            log.warning("Shampoo keeps the previous root of a block of shape %s: %s", tuple(kept["mean"].shape), error)
    kept["failures"].copy_(kept["failures"] + 1 if failed else torch.zeros(()))
    return failed
