"""Neighborhood attention: the window rule by hand; tiled against reference and natten; memory."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from wm2cli.errors import ResourceError
from wm2cli.models import attention, tiled_attention
from wm2cli.models.attention import available_backends, neighborhood_attention

Shape = tuple[int, int, int, int, int, int]
Sizes = tuple[int, int, int]


pytestmark = pytest.mark.usefixtures("one_thread")


def natten_window(query: int, length: int, size: int, *, periodic: bool) -> set[int]:
    """The keys a query sees, told the way natten tells it: a window centre that is kept off the ends.

    NATTEN 0.21.7, csrc/include/natten/cuda/reference/mask.hpp: left = size / 2, right = size / 2 + (size % 2
    - 1); the centre is the query clamped to left .. length - 1 - right (the same in natten/backends/flex.py).
    """
    left, right = size // 2, size // 2 + (size % 2 - 1)
    if periodic:
        return {(query + offset) % length for offset in range(-left, right + 1)}
    centre = min(max(query, left), length - 1 - right)
    return set(range(centre - left, centre + right + 1))


def make_inputs(shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4)]


def run(inputs: list[Tensor], window: Sizes, backend: str) -> list[Tensor]:
    """Output and gradients of q, k, v; the last input is the gradient of the output."""
    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    out = neighborhood_attention(q, k, v, window, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), inputs[3])]


def check_equal(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    for name, a, b in zip(("output", "grad q", "grad k", "grad v"), found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, msg=functools.partial("{}: {}".format, name))


def seen_keys(lengths: Sizes, window: Sizes, backend: str) -> Tensor:
    """Weight of each key for each query when all scores are equal: (D, H, W, D, H, W)."""
    tokens = math.prod(lengths)
    q = torch.zeros(1, *lengths, 1, tokens, dtype=torch.float64)
    v = torch.eye(tokens, dtype=torch.float64).view(1, *lengths, 1, tokens)
    return neighborhood_attention(q, q, v, window, backend=backend).view(*lengths, *lengths)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize("window", [(3, 5, 7), (2, 4, 6), (4, 2, 3), (1, 6, 8), (9, 9, 9)])
def test_every_query_sees_exactly_its_window(window: Sizes, backend: str) -> None:
    lengths = (4, 6, 8)
    sizes = [min(size, length) for size, length in zip(window, lengths, strict=True)]
    expected = torch.zeros(*lengths, *lengths, dtype=torch.float64)
    for query in itertools.product(*map(range, lengths)):
        keys = [
            natten_window(i, length, size, periodic=axis == 2)
            for axis, (i, length, size) in enumerate(zip(query, lengths, sizes, strict=True))
        ]
        for key in itertools.product(*keys):
            expected[(*query, *key)] = 1 / math.prod(sizes)
    torch.testing.assert_close(seen_keys(lengths, window, backend), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_poles_and_depth_ends_see_the_first_and_last_window(backend: str) -> None:
    seen = seen_keys((5, 9, 10), (3, 7, 5), backend) > 0
    for row in range(4):  # a window of 7 stays at the pole up to its middle
        assert seen[2, row, 0].any(dim=(0, 2)).nonzero().flatten().tolist() == list(range(7))
    assert seen[2, 4, 0].any(dim=(0, 2)).nonzero().flatten().tolist() == list(range(1, 8))
    assert seen[2, 8, 0].any(dim=(0, 2)).nonzero().flatten().tolist() == list(range(2, 9))
    assert seen[0, 4, 0].any(dim=(1, 2)).nonzero().flatten().tolist() == [0, 1, 2]
    assert seen[4, 4, 0].any(dim=(1, 2)).nonzero().flatten().tolist() == [2, 3, 4]
    assert seen[2, 4, 0].any(dim=(0, 1)).nonzero().flatten().tolist() == [0, 1, 2, 8, 9]
    assert seen[2, 4, 9].any(dim=(0, 1)).nonzero().flatten().tolist() == [0, 1, 7, 8, 9]


def test_attends_by_scaled_dot_products() -> None:
    # Two keys, one column: scores 3 * 2 / sqrt(4) = 3 and 0, so the weights are e^3 and 1 over their sum.
    q, k, v = (torch.zeros(1, 1, 2, 1, 1, 4, dtype=torch.float64) for _ in range(3))
    q[..., 0], k[0, 0, 0, 0, 0, 0], v[0, 0, 0, 0, 0, 1] = 3.0, 2.0, 1.0
    expected = math.exp(3) / (math.exp(3) + 1)
    for backend in ("reference", "tiled"):
        out = neighborhood_attention(q, k, v, (1, 2, 1), backend=backend)
        assert out[..., 1].flatten().tolist() == pytest.approx([expected, expected], abs=1e-15)


CASES: list[tuple[Shape, Sizes]] = [
    ((1, 6, 10, 20, 3, 8), (5, 7, 7)),
    ((2, 5, 9, 15, 2, 16), (3, 5, 5)),
    ((1, 4, 8, 12, 1, 128), (4, 4, 6)),
    ((1, 3, 7, 11, 2, 32), (2, 6, 2)),
    ((1, 2, 3, 5, 2, 8), (5, 7, 7)),
    ((1, 1, 12, 13, 1, 8), (5, 1, 7)),
    ((3, 7, 1, 9, 1, 8), (3, 7, 4)),
    ((1, 5, 6, 1, 2, 8), (3, 3, 7)),
    ((1, 1, 1, 1, 1, 8), (5, 7, 7)),
    ((1, 30, 4, 6, 1, 8), (3, 3, 3)),
]


@pytest.mark.parametrize(("shape", "window"), CASES)
def test_tiled_equals_reference(shape: Shape, window: Sizes) -> None:
    inputs = make_inputs(shape)
    check_equal(run(inputs, window, "tiled"), run(inputs, window, "reference"))


@pytest.mark.parametrize(("shape", "window"), CASES)
def test_other_devices_path_equals_reference(shape: Shape, window: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    # On accelerators slabs go through torch's own attention; here that branch runs on the CPU.
    monkeypatch.setattr(tiled_attention, "_is_dense", lambda device: False)
    inputs = make_inputs(shape)
    check_equal(run(inputs, window, "tiled"), run(inputs, window, "reference"))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Shape, Sizes, Sizes, int]:
    D, H, W = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 11))
    window = (draw(st.integers(1, 5)), draw(st.integers(1, 8)), draw(st.integers(1, 12)))
    tile = (draw(st.integers(1, D)), draw(st.integers(1, H)), draw(st.integers(1, W)))
    batch, heads, head_dim = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        draw(st.sampled_from((4, 8, 12))),
    )
    return (batch, D, H, W, heads, head_dim), window, tile, draw(st.integers(0, 2**32))


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("bound", [1, 3000, 2**19])
@given(problem=problems())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
def test_any_cut_into_tiles_gives_the_same(bound: int, dense: bool, problem: tuple[Shape, Sizes, Sizes, int]) -> None:
    shape, window, tile, seed = problem
    inputs = make_inputs(shape, seed=seed)
    with (
        mock.patch.object(tiled_attention, "_choose_tile", return_value=tile),
        mock.patch.object(tiled_attention, "_is_dense", return_value=dense),
        mock.patch.object(tiled_attention, "_SCORES_PER_THREAD", bound),
        mock.patch.object(tiled_attention, "_KEYS_AT_ONCE", bound),
    ):
        found = run(inputs, window, "tiled")
    check_equal(found, run(inputs, window, "reference"))


def test_gradients_against_finite_differences() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return neighborhood_attention(q, k, v, (2, 3, 3), backend="tiled")

    q, k, v, _ = (x.requires_grad_() for x in make_inputs((1, 2, 3, 5, 1, 4)))
    assert torch.autograd.gradcheck(attend, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("shift", [1, 4, 7])
def test_rolling_the_longitudes_rolls_the_output(shift: int) -> None:
    inputs = make_inputs((1, 4, 9, 24, 2, 8))
    rolled = run([x.roll(shift, 3) for x in inputs], (3, 5, 7), "tiled")
    check_equal([x.roll(-shift, 3) for x in rolled], run(inputs, (3, 5, 7), "tiled"), 1e-12)


def test_batch_entries_and_heads_do_not_mix() -> None:
    inputs = make_inputs((2, 3, 6, 10, 3, 8))
    together = run(inputs, (3, 5, 5), "tiled")
    for batch, head in itertools.product(range(2), range(3)):
        part = [x[batch : batch + 1, ..., head : head + 1, :] for x in inputs]
        check_equal(
            run(part, (3, 5, 5), "tiled"),
            [x[batch : batch + 1, ..., head : head + 1, :] for x in together],
            1e-13,
        )


@pytest.mark.parametrize("backend", ["tiled", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_lose_only_their_own_rounding(dtype: torch.dtype, backend: str) -> None:
    inputs = make_inputs((1, 5, 8, 12, 2, 32), dtype)
    found = run(inputs, (5, 7, 7), backend)
    expected = run([x.double() for x in inputs], (5, 7, 7), "reference")
    assert all(x.dtype == dtype for x in found)
    half_unit = torch.finfo(dtype).eps / 2
    # Rounding a result costs 0.42 half units in the mean square. Tiled rounds the weights too, as fused kernels do, and
    # keeps the scores and all sums in float32: then no result is worse than this.
    for a, b, bound in zip(found, expected, (0.65, 0.5, 0.5, 0.5), strict=True):
        assert float((a.double() - b).square().mean().sqrt() / b.square().mean().sqrt()) < bound * half_unit


def test_float32_is_accurate() -> None:
    inputs = make_inputs((1, 5, 12, 18, 2, 32), torch.float32)
    found = run(inputs, (5, 7, 7), "tiled")
    expected = run([x.double() for x in inputs], (5, 7, 7), "reference")
    check_equal([x.double() for x in found], expected, 1e-5)


def test_large_scores_do_not_overflow() -> None:
    inputs = [x * 100 for x in make_inputs((1, 3, 5, 8, 1, 16), torch.float32)]
    found, expected = (run(inputs, (3, 3, 5), backend) for backend in ("tiled", "reference"))
    assert all(x.isfinite().all() for x in found)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-2, atol=1e-2)


def test_takes_any_strides() -> None:
    inputs = make_inputs((2, 4, 8, 12, 2, 8))
    expected = run(inputs, (3, 5, 5), "tiled")
    packed = torch.stack(inputs[:3], dim=4)  # as from one qkv linear layer
    views = [*packed.unbind(4), inputs[3].transpose(1, 3).contiguous().transpose(1, 3)]
    assert not any(x.is_contiguous() for x in views)
    assert all(torch.equal(a, b) for a, b in zip(run(views, (3, 5, 5), "tiled"), expected, strict=True))
    q = inputs[0].requires_grad_()
    # The gradient of a sum is one expanded number.
    torch.autograd.backward(neighborhood_attention(q, q, q, (3, 5, 5), backend="tiled").sum())
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_inputs_stay_untouched() -> None:
    inputs = make_inputs((1, 3, 6, 8, 1, 8))
    before = [x.clone() for x in inputs]
    run(inputs, (3, 3, 3), "tiled")
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_and_repetition_give_identical_bits(dtype: torch.dtype) -> None:
    torch.set_num_threads(2)
    inputs = make_inputs((1, 6, 12, 24, 4, 32), dtype)
    plain = run(inputs, (5, 7, 7), "tiled")
    assert all(torch.equal(a, b) for a, b in zip(run(inputs, (5, 7, 7), "tiled"), plain, strict=True))

    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return neighborhood_attention(q, k, v, (5, 7, 7), backend="tiled")

    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    out = checkpoint(block, q, k, v, use_reentrant=False)
    again = [out.detach(), *torch.autograd.grad(out, (q, k, v), inputs[3])]
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))


def test_inference_mode_does_not_spoil_later_training() -> None:
    inputs = make_inputs((1, 3, 7, 10, 1, 8))
    q, k, v, _ = inputs
    tiled_attention._plan.cache_clear()  # so that what is cached is made in inference mode
    with torch.inference_mode():
        first = neighborhood_attention(q, k, v, (3, 3, 5), backend="tiled")
    assert torch.equal(first, run(inputs, (3, 3, 5), "tiled")[0])


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_autocast_casts_the_inputs_and_nothing_else(backend: str) -> None:
    inputs = make_inputs((1, 3, 8, 10, 2, 16), torch.float32)
    q, k, v = (x.bfloat16() for x in inputs[:3])
    expected = neighborhood_attention(q, k, v, (3, 5, 5), backend=backend)
    q, k = (x.clone().requires_grad_() for x in inputs[:2])
    with torch.autocast("cpu", torch.bfloat16):
        # A rotary embedding in float32 leaves q and k wider than v.
        out = neighborhood_attention(q, k, v, (3, 5, 5), backend=backend)
        torch.autograd.backward(out.sum())
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    assert q.grad is not None
    assert q.grad.dtype == torch.float32


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the largest memory that any operation returned."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return result


def _footprint(rows: int, backend: str) -> tuple[int, int]:
    """Bytes saved for the backward pass, and bytes of the largest tensor made in both passes."""
    q, k, v, grad = make_inputs((1, 2, rows, 128, 1, 4), torch.float32)
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    for x in (q, k, v):
        x.requires_grad_()
    with (
        mock.patch.object(tiled_attention, "_choose_tile", return_value=(2, 2, 4)),
        mock.patch.object(tiled_attention, "_SCORES_PER_THREAD", 1),  # as if the tiles of the grid were large
        _Allocations() as allocations,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
    ):
        out = neighborhood_attention(q, k, v, (2, 3, 3), backend=backend)
        torch.autograd.backward(out, grad)
    if backend == "tiled":  # the next layer keeps the output anyway; it must not be kept twice
        assert out.untyped_storage().data_ptr() in saved
    return sum(saved.values()), allocations.largest


def test_memory_is_linear_in_the_tokens() -> None:
    one, two = _footprint(8, "tiled"), _footprint(16, "tiled")
    field = 2 * 8 * 128 * 4 * 4
    assert one[0] == 4 * field  # q, k, v and the output
    assert two[0] == 8 * field
    assert one[1] <= field
    assert two[1] <= 2 * field
    # The measure itself tells quadratic from linear.
    assert _footprint(16, "reference")[1] > 3.5 * _footprint(8, "reference")[1]


@pytest.mark.parametrize(("step", "width"), [(1, 1), (1, 7), (4, 10), (4, 11), (4, 12), (4, 13), (0, 9)])
def test_tiles_of_one_round_share_no_columns(step: int, width: int) -> None:
    columns = tiled_attention._Columns(first=0, step=step, width=width, count=40)
    for start in range(columns.rounds):
        runs = [set(range(i * step, i * step + width)) for i in range(start, 40, columns.rounds)]
        assert sum(map(len, runs)) == len(set().union(*runs))


@pytest.mark.parametrize(
    ("lengths", "window"),
    [
        ((6, 90, 180), (5, 7, 7)),
        ((8, 32, 64), (5, 7, 7)),
        ((4, 45, 90), (3, 7, 7)),
        ((64, 64, 64), (3, 3, 3)),
    ],
)
def test_tiles_waste_little(lengths: Sizes, window: Sizes) -> None:
    tile = tiled_attention._choose_tile(lengths, window)
    plan = tiled_attention._plan(lengths, window, tile)
    scores = sum(
        rows.mask.numel() * depth.mask.numel() * plan.mask.numel() * plan.queries.count
        for rows, depth in itertools.product(plan.rows, plan.depth)
    )
    assert scores < 6 * math.prod(lengths) * math.prod(window)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 2, 2, 2, 1, 4)}, "share one shape"),
        ({"q": torch.zeros(2, 2, 2, 1, 8)}, "share one shape"),
        ({"v": torch.zeros(1, 2, 2, 2, 1, 8, dtype=torch.float64)}, "share one floating point type"),
        ({"v": torch.zeros(1, 2, 2, 2, 1, 8, device="meta")}, "on meta"),
        ({"window": (0, 3, 3)}, "at least 1"),
        ({"window": (3, 3)}, "three sizes"),
        ({"backend": "nattn"}, "expected one of auto, natten, tiled, reference"),
    ],
)
def test_impossible_arguments_are_named(change: dict[str, Any], message: str) -> None:
    x = torch.zeros(1, 2, 2, 2, 1, 8)
    arguments: dict[str, Any] = {"q": x, "k": x, "v": x, "window": (3, 3, 3), "backend": "tiled"} | change
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(**arguments)


@pytest.fixture
def without_natten() -> Iterator[None]:
    attention._natten.cache_clear()
    with mock.patch.dict("sys.modules", {"natten": None}):
        yield
    attention._natten.cache_clear()


@pytest.mark.usefixtures("without_natten")
def test_asking_for_absent_natten_is_an_error_with_a_hint() -> None:
    x = torch.zeros(1, 2, 2, 2, 1, 8)
    with pytest.raises(ResourceError, match="not installed") as caught:
        neighborhood_attention(x, x, x, (3, 3, 3), backend="natten")
    assert "auto" in str(caught.value.hint)
    assert available_backends("cpu") == ("tiled", "reference")
    assert available_backends("cuda") == ("tiled", "reference")
    assert torch.equal(
        neighborhood_attention(x, x, x, (3, 3, 3)),
        neighborhood_attention(x, x, x, (3, 3, 3), backend="tiled"),
    )


@pytest.mark.parametrize(("version", "taken"), [("0.21.7", True), ("0.22.0+torch213", True), ("0.17.5", False)])
def test_natten_must_be_recent_and_compiled(version: str, taken: bool) -> None:
    fake = mock.Mock(__version__=version, HAS_LIBNATTEN=True)
    attention._natten.cache_clear()
    try:
        with mock.patch.dict("sys.modules", {"natten": fake}):
            assert (available_backends("cuda")[0] == "natten") is taken
            cuda = mock.Mock(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, 2, 3, 4, 5, 32))
            assert attention._natten_is_fused_for(cuda) is taken
            for other in (
                {"device": torch.device("cpu")},
                {"dtype": torch.float64},
                {"shape": (1, 2, 3, 4, 5, 12)},
            ):
                changed = mock.Mock(**({"device": cuda.device, "dtype": cuda.dtype, "shape": cuda.shape} | other))
                assert not attention._natten_is_fused_for(changed)
            fake.HAS_LIBNATTEN = False
            assert available_backends("cuda")[0] == "tiled"
            assert not attention._natten_is_fused_for(cuda)
    finally:
        attention._natten.cache_clear()


# natten without its CUDA kernels runs on a CPU through torch's flex attention: slowly and forward only, but
# by its own rules.
NATTEN_CASES: list[tuple[Shape, Sizes]] = [
    ((1, 5, 8, 10, 2, 8), (5, 7, 7)),
    ((2, 4, 6, 9, 1, 16), (2, 4, 6)),
    ((1, 4, 6, 8, 2, 8), (4, 3, 2)),
    ((1, 2, 4, 6, 1, 8), (5, 7, 7)),
    ((1, 1, 7, 9, 2, 8), (3, 4, 5)),
    ((1, 3, 5, 6, 1, 8), (3, 1, 1)),
    ((1, 1, 1, 6, 1, 8), (5, 7, 4)),
    ((1, 2, 3, 4, 1, 8), (1, 1, 1)),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("shape", "window"), NATTEN_CASES)
def test_tiled_equals_natten(shape: Shape, window: Sizes) -> None:
    pytest.importorskip("natten", minversion="0.21")
    inputs = make_inputs(shape, torch.float32)
    q, k, v, _ = inputs
    found = neighborhood_attention(q, k, v, window, backend="tiled")
    torch.testing.assert_close(found, neighborhood_attention(q, k, v, window, backend="natten"), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("window", [(2, 4, 6), (3, 5, 7), (4, 2, 3)])
def test_window_rule_is_that_of_natten(window: Sizes) -> None:
    natten = pytest.importorskip("natten", minversion="0.21")
    lengths = (5, 7, 9)
    tokens = math.prod(lengths)
    q = torch.zeros(1, *lengths, 1, 8)
    found = torch.zeros(tokens, tokens)
    for start in range(0, tokens, 8):  # eight keys at a time are marked by the eight values
        v = torch.eye(tokens)[:, start : start + 8]
        v = torch.nn.functional.pad(v, (0, 8 - v.shape[1])).reshape(1, *lengths, 1, 8)
        seen = natten.na3d(q, q, v, kernel_size=window).view(tokens, 8)
        found[:, start : start + 8] = seen[:, : tokens - start]
    found = found.view(*lengths, *lengths) > 0
    for query in itertools.product(*map(range, lengths)):
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            keys = set(found[query].any(dim=others).nonzero().flatten().tolist())
            assert keys == natten_window(query[axis], lengths[axis], window[axis], periodic=False)


@pytest.mark.filterwarnings("ignore")
def test_what_natten_cannot_do_is_an_error_with_a_hint() -> None:
    pytest.importorskip("natten", minversion="0.21")
    x = torch.zeros(1, 3, 4, 5, 1, 8, dtype=torch.float64)
    with pytest.raises(ResourceError, match=r"cannot attend torch\.float64"):
        neighborhood_attention(x, x, x, (3, 3, 3), backend="natten")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("backend", ["natten", "tiled"])
def test_cuda_equals_reference(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    if backend not in available_backends("cuda")[:2]:
        pytest.skip("natten has no CUDA kernels here")
    inputs = [x.cuda() for x in make_inputs((2, 6, 12, 24, 4, 32), dtype)]
    for window in ((5, 7, 7), (4, 6, 2), (3, 1, 30)):
        expected = run([x.double() for x in inputs], window, "reference")
        check_equal([x.double() for x in run(inputs, window, backend)], expected, tolerance)
