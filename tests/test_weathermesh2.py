"""The geometry of the sphere, the blending of encoders, and the published sizes; test_models.py has the laws."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import GRID, LEVELS, config, network, normalized, schemas, state, static

from wm2cli.errors import CheckpointError, ConfigError, UsageError
from wm2cli.grid import Grid
from wm2cli.models.layers import Down, Residual, Rotary, Up, pad_globe, sincos_code
from wm2cli.models.presets import PRESETS
from wm2cli.models.weathermesh2 import EncoderConfig, ProcessorConfig, WeatherMesh2
from wm2cli.schema import Schema
from wm2cli.state import Normalizer, State


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def model() -> WeatherMesh2:
    return network()


@pytest.mark.parametrize("position", ["rotary"])
@pytest.mark.parametrize("norm", ["pixel", "instance"])
@pytest.mark.parametrize("patches", [1, 5, 8])
def test_rolling_the_input_rolls_the_output(position: str, norm: str, patches: int) -> None:
    """By whole patches, constants and forcings rolled along: the globe has no seam."""
    model = network(position=position, codec_norm=norm)
    start, shift = state(model), patches * model.config.patch[2]
    extra = model._extra(start.time, start.schema.forcing)
    later = model._extra(start.time + np.timedelta64(6, "h"), model.schema_out.forcing)

    def run(columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        turn = [part.roll(columns, -1) for part in (start.pressure, start.surface, extra, later)]
        latent = model.encoders["era5"](*turn[:3], model.rotary)
        latent = model.processors["6"](latent, model.rotary)
        upper, lower = model.decoder(latent, turn[3], model.rotary)
        return upper, lower

    upper, lower = run(0)
    rolled_upper, rolled_lower = run(shift)
    torch.testing.assert_close(rolled_upper, upper.roll(shift, -1), rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(rolled_lower, lower.roll(shift, -1), rtol=1e-4, atol=2e-4)
    assert not torch.allclose(upper, upper.roll(shift, -1), atol=1e-2)  # so the test can fail


def test_a_change_at_the_date_line_reaches_both_sides_alike() -> None:
    """Without constants and forcings, the response to a bump is symmetric in how far it travels across the seam."""
    model = network()
    start = state(model)
    bumped = start.pressure.clone()
    bumped[..., 8, 0] += 50.0
    changed = State(start.schema, start.grid, start.time, bumped, start.surface)
    difference = (model.encode(changed).x - model.encode(start).x).abs().amax(dim=(0, 1, 2, 4))
    assert difference[0] > 0
    assert difference[-1] > 0  # the westward neighbour lies on the other side of Greenwich
    assert difference[1] > 0


def test_the_horizon_of_one_block_is_the_window() -> None:
    """A bump is felt within half a window and nowhere beyond, except where the edge shifts the window inward."""
    model = network(encoder_blocks=0, processors=(ProcessorConfig(6, 1),), codec_norm="pixel")
    latent = model.encode(state(model)).x
    bumped = latent.clone()
    bumped[:, 1, 4, 0] += 1.0
    stack = model.processors["6"]
    felt = (stack(bumped, model.rotary) - stack(latent, model.rotary)).abs().amax(dim=(0, -1))
    # depth window 3 of 4 slots, rows 3, columns 5: slots 0..2, and slot 3 whose window is shifted up; rows 3..5
    assert set(felt.amax(dim=(1, 2)).nonzero().flatten().tolist()) == {0, 1, 2, 3}
    assert set(felt.amax(dim=(0, 2)).nonzero().flatten().tolist()) == {3, 4, 5}
    assert set(felt.amax(dim=(0, 1)).nonzero().flatten().tolist()) == {14, 15, 0, 1, 2}


def test_encoders_blend_by_weight() -> None:
    inputs, _ = schemas()
    coarse = Schema(inputs.pressure, inputs.levels[1:], inputs.surface[:-1], inputs.static, inputs.forcing)
    encoders = (EncoderConfig("gfs", inputs, 1.0), EncoderConfig("hres", coarse, 3.0))
    model = network(encoders=encoders)
    gfs, hres = state(model, 1, encoder="gfs"), state(model, 2, encoder="hres")
    blend = model.encode({"gfs": gfs, "hres": hres}).x
    expected = 0.25 * model.encode({"gfs": gfs}).x + 0.75 * model.encode({"hres": hres}).x
    torch.testing.assert_close(blend, expected)
    with pytest.raises(UsageError) as caught:
        model.encode({"gfs": hres, "ifs": gfs})
    assert len(caught.value.problems) == 2
    late = State(gfs.schema, gfs.grid, gfs.time + np.timedelta64(6, "h"), gfs.pressure, gfs.surface)
    with pytest.raises(UsageError) as caught:
        model.encode({"gfs": late, "hres": hres})
    assert "different times" in str(caught.value)


def test_physical_limits_hold_in_every_output() -> None:
    out = (made := network(seed=3)).decode(made.advance(made.encode(state(made)), 6))
    assert out.select("q", 1000.0).min() >= 0
    assert 0 <= out.select("tcc").min() <= out.select("tcc").max() <= 1
    assert out.select("lsp_6h").min() >= 0


def test_static_fields_reach_the_output() -> None:
    model = network()
    flat = WeatherMesh2(model.config, GRID, model.normalizer, {}).eval()
    flat.load_state_dict(model.state_dict())
    start = state(model)
    assert not torch.allclose(model.encode(start).x, flat.encode(start).x)


def test_published_sizes() -> None:
    """The public WeatherMesh-3 has 268,447,243 parameters; WeatherMesh-2 is quoted at about 200 million."""
    sizes = {}
    for name in ("wm2", "wm3"):
        chosen = PRESETS[name]
        statistics = Normalizer.nominal(*(e.schema for e in chosen.config.encoders), chosen.config.schema_out)
        with torch.device("meta"):
            sizes[name] = WeatherMesh2(chosen.config, chosen.grid, statistics)
    wm3 = sizes["wm3"]
    assert parameters(wm3) == 268_447_243
    assert parameters(wm3.encoders["gfs"]) == 43_331_430
    assert parameters(wm3.processors["6"]) == 100_769_792
    assert parameters(wm3.decoder) == 81_014_591
    wm2 = sizes["wm2"]
    assert wm2.latent_shape == (6, 90, 180, 896)
    one_processor = parameters(wm2) - parameters(wm2.processors["1"])
    assert one_processor == 199_216_487


@pytest.mark.parametrize("name", ["small", "mini", "tiny"])
def test_smaller_presets_build(name: str) -> None:
    chosen = PRESETS[name]
    statistics = Normalizer.nominal(*(e.schema for e in chosen.config.encoders), chosen.config.schema_out)
    with torch.device("meta"):
        model = WeatherMesh2(chosen.config, chosen.grid, statistics)
    assert parameters(model) < {"small": 40e6, "mini": 13e6, "tiny": 1e6}[name]


def test_what_cannot_be_built_is_listed_whole() -> None:
    with pytest.raises(ConfigError) as caught:
        network(heads=3, patch=(2, 4, 2), processors=(ProcessorConfig(6, 1), ProcessorConfig(6, 2)))
    assert len(caught.value.problems) == 3


def test_statistics_must_cover_the_channels_exactly() -> None:
    full = Normalizer.nominal(*schemas())
    mean = dict(full.mean)
    del mean["z500"]
    mean["z123"] = 0.0
    with pytest.raises(CheckpointError) as caught:
        WeatherMesh2(config(), GRID, Normalizer(mean, full.std, {}, full.log_floor), static())
    assert caught.value.problems == ("no statistics for z500", "statistics for z123, which is no channel")


def test_operations_match_a_count_by_hand() -> None:
    """Published arithmetic: a block of the full model is about 2 TFLOP, 14 days of 6 h steps about 1.6 PFLOP."""
    chosen = PRESETS["wm2"]
    statistics = Normalizer.nominal(*(e.schema for e in chosen.config.encoders), chosen.config.schema_out)
    with torch.device("meta"):
        counted = WeatherMesh2(chosen.config, chosen.grid, statistics).operations()
    assert counted["advance 6"] / 10 == pytest.approx(2.0e12, rel=0.05)
    assert counted["encode"] + 56 * (counted["advance 6"] + counted["decode"]) == pytest.approx(1.6e15, rel=0.1)


def test_padding_of_the_globe_by_hand() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    expected = torch.tensor(
        [[7, 4, 5, 6, 7, 4], [3, 0, 1, 2, 3, 0], [7, 4, 5, 6, 7, 4], [11, 8, 9, 10, 11, 8], [7, 4, 5, 6, 7, 4]]
    )
    assert torch.equal(pad_globe(x)[0, 0], expected.float())


@pytest.mark.parametrize("norm", ["pixel", "instance"])
def test_the_surface_codec_has_no_seam(norm: str) -> None:
    torch.manual_seed(0)
    codec = torch.nn.Sequential(Residual(3, 4, norm), Down(4, 6), Residual(6, 6, norm), Up(6, 4))  # type: ignore[arg-type]
    x = torch.randn(2, 3, 8, 16)
    out = codec(x)
    assert out.shape == (2, 4, 8, 16)
    torch.testing.assert_close(codec(x.roll(6, -1)), out.roll(6, -1), rtol=1e-5, atol=1e-5)


def test_rotary_scores_depend_on_offsets_alone() -> None:
    """Also across the seam: the score of columns 0 and W-1 equals that of any two neighbours."""
    rotary = Rotary(32, 3, 5, 12).double()
    torch.manual_seed(0)
    q, k = torch.randn(32, dtype=torch.float64), torch.randn(32, dtype=torch.float64)
    rotary.cos, rotary.sin = rotary.cos.double(), rotary.sin.double()
    turned_q, turned_k = (rotary(x.expand(1, 3, 5, 12, 1, 32)) for x in (q, k))

    def score(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        return float((turned_q[0][a][0] * turned_k[0][b][0]).sum())

    assert score((0, 2, 0), (0, 2, 11)) == pytest.approx(score((0, 2, 5), (0, 2, 4)), rel=1e-5)
    assert score((1, 3, 11), (2, 1, 1)) == pytest.approx(score((0, 2, 4), (1, 0, 6)), rel=1e-5)
    assert score((0, 2, 0), (0, 2, 1)) != pytest.approx(score((0, 2, 0), (0, 2, 2)), rel=1e-3)


def test_the_absolute_code_has_the_published_seam() -> None:
    """Norm of the difference between columns 0 and 179: 14.9; between neighbours: 3.0."""
    code = sincos_code(1024, 1, 90, 180)[0, 0]
    assert float((code[0] - code[179]).norm()) == pytest.approx(14.9, abs=0.05)
    assert float((code[0] - code[1]).norm()) == pytest.approx(3.0, abs=0.05)
    assert (code[:, 1020:] == 0).all()


def test_gradients_reach_every_parameter() -> None:
    model = copy.deepcopy(network()).train().requires_grad_(True)
    latent = model.encode(state(model))
    out = model.decode(model.advance(model.advance(latent, 6), 1))
    normalized(model, out).square().mean().backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    # The channels that feed only precipitation, radiation and extremes are not in the loss, everything else is.
    assert unreached == []


def test_regression() -> None:
    """Frozen output of seed 0: a change of these numbers is a change of every forecast."""
    made = network()
    out = normalized(made, made.decode(made.advance(made.encode(state(made)), 6)))
    found = [
        float(out.mean()),
        float(out.std()),
        float(out[0, 0, 0, 0]),
        float(out[0, 12, 7, 31]),
        float(out[0, -1, 15, 3]),
    ]
    assert found == pytest.approx(FROZEN, abs=2e-4)


FROZEN = [0.005937, 0.747045, -1.097072, -0.149948, 0.066221]


def test_levels_that_do_not_fill_a_patch_are_all_there(model: WeatherMesh2) -> None:
    """Five levels in patches of two: each input level changes the latent, each output level is made."""
    start = state(model)
    held = model.encode(start).x
    for level in range(len(LEVELS)):
        changed = start.pressure.clone()
        changed[:, 1, level] += 10.0
        moved = model.encode(State(start.schema, start.grid, start.time, changed, start.surface)).x
        assert not torch.allclose(moved, held)
    assert model.decode(model.encode(start)).pressure.shape[2] == len(LEVELS)


def test_a_grid_with_pole_rows_is_refused_by_patches_that_do_not_divide_it() -> None:
    with pytest.raises(ConfigError) as caught:
        network(grid=Grid.regular(11.25, "poles"))
    assert "do not divide the grid of 17 x 32" in str(caught.value)
