"""The laws that every model keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import network, normalized, state, stormer
from torch import Tensor

from wm2cli.errors import UsageError
from wm2cli.models import MODELS, Model
from wm2cli.models.presets import PRESETS
from wm2cli.state import State

NETWORKS: dict[str, Any] = {"weathermesh2": network, "stormer": stormer}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    built: Model = NETWORKS[request.param]()
    return built


def held_by(model: Any) -> dict[str, Tensor]:
    """Every tensor of a module, those that are not saved too."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_it_is_a_model(model: Model) -> None:
    assert isinstance(model, Model)
    assert model.steps in ((6, 1), (24, 12, 6))  # longest first


def test_time_and_grid_are_right(model: Model) -> None:
    longest, shortest = model.steps[0], model.steps[-1]
    latent = model.advance(model.advance(model.encode(state(model)), longest), shortest)
    assert latent.time == np.datetime64("2024-01-01T00") + np.timedelta64(longest + shortest, "h")
    out = model.decode(latent)
    assert out.time == latent.time
    assert out.grid == model.grid
    assert out.schema == model.schema_out
    assert torch.isfinite(out.pressure).all()


def test_other_steps_are_refused(model: Model) -> None:
    with pytest.raises(UsageError, match=f"no 3 h step; it has {', '.join(f'{step} h' for step in model.steps)}"):
        model.advance(model.encode(state(model)), 3)


def test_inputs_stay_untouched_and_the_module_has_no_memory(model: Model) -> None:
    start = state(model)
    before = start.pressure.clone(), start.surface.clone()
    weights = {name: value.clone() for name, value in held_by(model).items()}
    latent = model.encode(start)
    held = latent.x.clone()
    six, other = model.advance(latent, 6), model.advance(latent, next(step for step in model.steps if step != 6))
    again = model.advance(latent, 6)
    assert torch.equal(start.pressure, before[0])
    assert torch.equal(start.surface, before[1])
    assert torch.equal(latent.x, held)
    assert torch.equal(six.x, again.x)
    assert not torch.allclose(six.x, other.x)
    assert all(torch.equal(value, weights[name]) for name, value in held_by(model).items())


def test_decoding_is_denormalizing_what_losses_compare(model: Model) -> None:
    """`normalize` undoes it, where no physical limit does."""
    latent = model.advance(model.encode(state(model)), 6)
    values = model.decode_normalized(latent)
    out, again = model.decode(latent), model.denormalize(*values, latent.time)
    assert torch.equal(out.pressure, again.pressure)
    assert torch.equal(out.surface, again.surface)
    assert again.time == latent.time
    wind = model.schema_out.pressure.index("u")
    torch.testing.assert_close(model.normalize(out)[0][:, wind], values[0][:, wind], rtol=1e-4, atol=1e-4)


def test_the_size_of_a_latent_is_known(model: Model) -> None:
    x = model.encode(state(model)).x
    assert model.latent_bytes() == x.numel() * x.element_size()


def test_a_batch_of_two_equals_two_batches_of_one(model: Model) -> None:
    both = state(model, batch=2)
    out = model.decode(model.advance(model.encode(both), 6))
    for index in range(2):
        single = State(both.schema, both.grid, both.time[index : index + 1], both.pressure[index : index + 1],
                       both.surface[index : index + 1])  # fmt: skip
        alone = model.decode(model.advance(model.encode(single), 6))
        assert alone.time[0] == out.time[index]
        torch.testing.assert_close(normalized(model, alone)[0], normalized(model, out)[index], rtol=1e-4, atol=1e-4)


def test_it_is_deterministic(model: Model) -> None:
    first, second = (model.decode(model.advance(model.encode(state(model)), 6)) for _ in range(2))
    assert torch.equal(first.pressure, second.pressure)
    assert torch.equal(first.surface, second.surface)


def test_without_gradients_the_result_is_the_same(model: Model) -> None:
    """A forecast may take short cuts that training must not; they are exact."""
    start = state(model, batch=2)
    exact = normalized(model, model.decode(model.advance(model.advance(model.encode(start), 6), 6)))
    with torch.inference_mode():
        quick = normalized(model, model.decode(model.advance(model.advance(model.encode(start), 6), 6)))
    torch.testing.assert_close(quick, exact, rtol=1e-5, atol=1e-5)


def test_bf16_stays_near_fp32(model: Model) -> None:
    start = state(model)
    exact = normalized(model, model.decode(model.advance(model.encode(start), 6)))
    with torch.autocast("cpu", torch.bfloat16):
        out = model.decode(model.advance(model.encode(start), 6))
    assert out.pressure.dtype == torch.float32
    error = normalized(model, out) - exact
    assert 0 < float(error.square().mean().sqrt()) < 0.03 * float(exact.std())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_of_their_kind_and_fit_their_grid(name: str) -> None:
    chosen = PRESETS[name]
    assert isinstance(chosen.config, MODELS[chosen.kind][0])
    chosen.config.check(chosen.grid)
    chosen.config.nominal().check(*chosen.config.inputs.values(), chosen.config.schema_out)
