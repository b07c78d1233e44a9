"""Stormer against stored outputs of the reference implementation, by hand, and its doors; laws: test_models.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stores
import torch
import torch.nn.functional as F
import xarray as xr
from networks import GRID, state, stormer
from torch import Tensor

from wm2cli import checkpoint
from wm2cli.checkpoint import Header
from wm2cli.cli import run
from wm2cli.errors import CheckpointError, ConfigError, UsageError
from wm2cli.grid import Grid
from wm2cli.models.latent import Latent
from wm2cli.models.presets import PRESETS, Preset
from wm2cli.models.stormer import CHANNELS, SCHEMA, Stormer, StormerConfig, published_statistics
from wm2cli.models.stormer_network import Embedding, StormerNetwork, patchify, position_table, sincos, unpatchify
from wm2cli.paths import choose
from wm2cli.rollout import rollout
from wm2cli.schema import VARIABLES, Schema
from wm2cli.state import Normalizer, State
from wm2cli.training.losses import keep

GOLDEN = Path(__file__).parent / "golden"
SIZES = {2: (2, 4), 4: (3, 8)}
"""Blocks and heads of the stored networks, by patch."""


def golden(patch: int) -> tuple[Stormer, dict[str, Any]]:
    """A network with the weights of the reference implementation, and what that made of two states."""
    stored = dict(np.load(GOLDEN / f"stormer_tiny_p{patch}_io.npz"))
    height, width = stored["x_normalized"].shape[-2:]
    grid = Grid(90 - (np.arange(height) + 0.5) * 180 / height, np.arange(width) * 360 / width)
    depth, heads = SIZES[patch]
    config = StormerConfig(SCHEMA, CHANNELS, patch, 64, depth, heads)
    model = Stormer(config, grid, published_statistics()).eval().requires_grad_(False)
    file = torch.load(GOLDEN / f"stormer_tiny_p{patch}.ckpt", weights_only=True)
    model.load_state_dict(file["state_dict"], strict=True)
    return model, stored


@pytest.mark.parametrize("patch", [2, 4])
def test_increments_are_those_of_the_reference(patch: int) -> None:
    model, stored = golden(patch)
    x = torch.from_numpy(stored["x_normalized"])
    for hours in (6, 12, 24):
        expected = torch.from_numpy(stored[f"tendency_{hours}h"])
        error = (model.increment(x, hours) - expected).abs().amax(dim=(0, 2, 3))
        assert (error < 1e-5 * expected.abs().amax(dim=(0, 2, 3))).all()


def ours(model: Stormer, values: Any) -> State:
    """Two physical states of the reference in our order: from north to south, z t u v q before the surface."""
    channel = dict(zip(CHANNELS, torch.from_numpy(values[..., ::-1, :].copy()).unbind(1), strict=True))
    every = torch.stack([channel[name] for name in SCHEMA.channels], dim=1)
    time = np.array(["2020-01-01", "2020-01-02"], "datetime64[s]")
    upper = every[:, :65].reshape(2, 5, 13, *every.shape[-2:])
    return State(SCHEMA, model.grid, time, upper, every[:, 65:])


def same(model: Stormer, found: State, expected: State) -> None:
    """Beside 1e-5 standard deviations two roundings: the reference goes through physical units at every step."""
    expected.pressure[:, SCHEMA.pressure.index("q")].clamp_(min=0)  # the reference knows no physical limits
    columns = model.normalizer.columns(SCHEMA)
    for kind in ("pressure", "surface"):
        made, wanted = getattr(found, kind), getattr(expected, kind)
        allowed = 1e-5 * columns[f"{kind}_std"] + 2 * torch.finfo(torch.float32).eps * wanted.abs()
        assert ((made - wanted).abs() <= allowed).all()
    assert found.time.tolist() == np.array(["2020-01-02", "2020-01-03"], "datetime64[s]").tolist()


@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize("hours", [6, 12, 24])
def test_a_day_of_steps_is_that_of_the_reference(patch: int, hours: int) -> None:
    """Through the doors."""
    model, stored = golden(patch)
    start = ours(model, stored["x_physical"])
    with torch.inference_mode():
        latent = model.encode(start)
        for _ in range(24 // hours):
            latent = model.advance(latent, hours)
        found = model.decode(latent)
    same(model, found, ours(model, stored[f"state24h_by{hours}h"]))
    z500 = found.select("z", 500.0) - start.select("z", 500.0)
    assert float(z500.std()) > 100.0  # so that there is something to compare


@pytest.mark.parametrize("patch", [2, 4])
def test_the_usual_forecast_is_the_mean_over_the_intervals(patch: int) -> None:
    """Of the states that the reference reaches by 6, 12 and 24 h."""
    model, stored = golden(patch)
    route = choose(None, model, (24,), str).route
    with torch.inference_mode():
        ((lead, found),) = rollout(model, model.encode(ours(model, stored["x_physical"])), route)
    assert lead == 24
    same(model, found, ours(model, np.mean([stored[f"state24h_by{hours}h"] for hours in (6, 12, 24)], axis=0)))


def test_the_channels_are_in_the_published_order() -> None:
    """By the reference's names, with those of our table."""
    for name, label in zip(np.load(GOLDEN / "stormer_tiny_p2_io.npz")["variables"], CHANNELS, strict=True):
        if str(name) in VARIABLES[label if label in VARIABLES else "z"].aliases:
            continue
        variable, level = str(name).rsplit("_", 1)
        assert variable in VARIABLES[label[0]].aliases
        assert label.removesuffix("hPa") == f"{label[0]}{level}"
    assert list(published_statistics().mean) == list(CHANNELS)
    assert published_statistics().difference_std[24]["q1000"] == 0.001181611  # the last of the table
    assert published_statistics().mean["u100hPa"] == 10.28247


def parity_network() -> StormerNetwork:
    """Weights by formula, 0.3 sin(0.7 i + 1.3 k) for value i of tensor k, except the tables."""
    net = StormerNetwork(3, (4, 8), patch=2, width=16, depth=2, heads=2, mlp_ratio=2.0).double()
    given = [name for name in net.state_dict() if name not in ("embedding.pos_embed", "embedding.channel_embed")]
    wanted = ["embedding.channel_query"]
    wanted += [f"embedding.token_embeds.{v}.proj.{kind}" for v in range(3) for kind in ("weight", "bias")]
    wanted += [f"embedding.channel_agg.{name}" for name in
               ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")]  # fmt: skip
    wanted += ["embed_norm_layer.weight", "embed_norm_layer.bias", "t_embedder.mlp.weight", "t_embedder.mlp.bias"]
    wanted += [f"blocks.{block}.{part}.{kind}" for block in range(2)
               for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
               for kind in ("weight", "bias")]  # fmt: skip
    wanted += [f"head.{part}.{kind}" for part in ("linear", "adaLN_modulation.1") for kind in ("weight", "bias")]
    assert sorted(wanted) == sorted(given)
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for number, name in enumerate(wanted):
            place = torch.arange(parameters[name].numel(), dtype=torch.float64)
            parameters[name].copy_((0.3 * torch.sin(0.7 * place + 1.3 * number)).view_as(parameters[name]))
    return net


def parity_input() -> Tensor:
    v, i, j = (torch.arange(size, dtype=torch.float64) for size in (3, 4, 8))
    return torch.sin(0.5 * v[:, None, None] + 0.3 * i[:, None] - 0.2 * j)[None]


PARITY = {
    6: (-0.076614998992, 0.842285439027, 1.180377124296, 1.0341121749, -0.2652969151, 0.9496211183, -0.1795512951,
        -1.287472528057, 0.840142255636),
    12: (-0.107667702357, 1.273578941867, 1.674594125415, 1.4357500923, -0.1671802007, 1.3803584371, -0.0880367852,
         -1.922755892220, 1.475776886925),
    24: (-0.237469821712, 2.248127160071, 2.925758037437, 2.0287390567, 0.597096327, 1.9873307484, 0.654249495,
         -3.226436651421, 2.853747718791),
}  # fmt: skip
"""Mean, standard deviation, maximum, y[0,0,0,0:4], y[0,2,3,7] and y[0,1,2,5] of the reference in float64."""


@pytest.mark.parametrize("hours", PARITY)
def test_parity_in_float64(hours: int) -> None:
    net, x = parity_network(), parity_input()
    with torch.no_grad():
        for prepared in (None, net.prepare((24, 12, 6))):
            y = net(x, (hours,), prepared)
            found = [y.mean(), y.std(correction=0), y.max(), *y[0, 0, 0, :4], y[0, 2, 3, 7], y[0, 1, 2, 5]]
            assert [float(value) for value in found] == pytest.approx(PARITY[hours], abs=1e-7)


def test_parity_of_the_embedding() -> None:
    with torch.no_grad():
        tokens = parity_network().embedding(parity_input())[0]
    found = [*tokens[0, :3].tolist(), float(tokens[7, 15]), float(tokens.sum())]
    expected = (0.156109149924, -0.207268080793, 0.065137505605, -0.671036217012, -4.009257693147)
    assert found == pytest.approx(expected, abs=1e-7)


def test_tables_of_position_and_variable() -> None:
    code = [0.84147096, 0.09983341, 0.00999983, 0.001, 0.54030228, 0.99500418, 0.99994999, 0.99999952]
    still = [0.0] * 4 + [1.0] * 4
    table = position_table(2, 4, 16)
    assert table.dtype == torch.float32
    assert table[1].tolist() == pytest.approx(code + still, abs=1e-7)  # one column on
    assert table[4].tolist() == pytest.approx(still + code, abs=1e-7)  # one row on
    second = [0.90929741, 0.5911271, 0.19866933, 0.06320339, 0.01999867, 0.00632451, 0.002, 0.00063246, -0.41614684,
              0.8065784, 0.9800666, 0.99800068, 0.99980003, 0.99997997, 0.99999797, 0.99999982]  # fmt: skip
    assert sincos(torch.arange(3), 16)[2].tolist() == pytest.approx(second, abs=1e-7)


def plain_embedding(part: Embedding, x: Tensor) -> Tensor:
    """Tokens of all variables written out, and torch's own attention: the definition."""
    convolved = [layer.proj(x[:, v : v + 1]).flatten(2).mT for v, layer in enumerate(part.token_embeds)]  # type: ignore[operator, union-attr]
    tokens = torch.stack(convolved, dim=2) + part.channel_embed + part.pos_embed[:, :, None]  # (B, L, V, D)
    flat = tokens.flatten(0, 1).transpose(0, 1)  # (V, B L, D)
    attention = part.channel_agg
    found, _ = F.multi_head_attention_forward(
        part.channel_query.expand(1, flat.shape[1], -1), flat, flat, flat.shape[-1], part.heads,
        attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0, attention.out_proj.weight,
        attention.out_proj.bias,
    )  # fmt: skip
    return found[0].view(tokens.shape[0], tokens.shape[1], -1)


def test_the_aggregation_multiplied_out_is_the_attention() -> None:
    """To rounding, and so are its gradients."""
    torch.manual_seed(0)
    part = Embedding(5, rows=3, columns=4, patch=2, width=24, heads=3).double()
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 12, 24, dtype=torch.float64)
    plain, short = plain_embedding(part, x), part(x)
    torch.testing.assert_close(short, plain, rtol=1e-12, atol=1e-12)
    wanted = (x, *part.parameters())
    gradients = [torch.autograd.grad((made * weight).sum(), wanted) for made in (plain, short)]
    for exact, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-11)
    assert all(float(gradient.abs().max()) > 1e-3 for gradient in gradients[0])


@pytest.mark.parametrize(("patch", "expected"), [(2, 468_751_636), (4, 464_156_752)])
def test_published_size_and_names(patch: int, expected: int) -> None:
    chosen = PRESETS[f"stormer-1.40625-p{patch}"]
    with torch.device("meta"):
        model = Stormer(chosen.config, chosen.grid, chosen.config.nominal())  # type: ignore[arg-type]
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert len(shapes) == 393
    assert sum(math.prod(shape) for shape in shapes.values()) == expected
    tokens = 128 * 256 // patch**2
    for name, shape in {
        "embedding.channel_embed": (1, 69, 1024), "embedding.channel_query": (1, 1, 1024),
        "embedding.pos_embed": (1, tokens, 1024), "embedding.token_embeds.68.proj.weight": (1024, 1, patch, patch),
        "embedding.channel_agg.in_proj_weight": (3072, 1024), "embed_norm_layer.bias": (1024,),
        "t_embedder.mlp.weight": (1024, 1), "blocks.23.attn.qkv.weight": (3072, 1024),
        "blocks.0.mlp.fc2.weight": (1024, 4096), "blocks.23.adaLN_modulation.1.bias": (6144,),
        "head.linear.weight": (69 * patch**2, 1024), "head.adaLN_modulation.1.weight": (2048, 1024),
    }.items():  # fmt: skip
        assert shapes[f"net.{name}"] == shape
    blocks = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("net.blocks.7."))
    assert blocks == 18_889_728
    # Blocks of the published networks: 11.5 and 1.65 TFLOP a step.
    assert model.operations()["advance 6"] == pytest.approx({2: 11.5e12, 4: 1.65e12}[patch], rel=0.02)


def test_it_begins_as_published() -> None:
    model = stormer(loud=False)
    x = torch.randn(1, 19, *GRID.shape)
    assert not model.increment(x, 6).any()
    values = dict(model.net.named_parameters())
    assert not values["embedding.channel_query"].any()
    assert not values["blocks.1.adaLN_modulation.1.weight"].any()
    assert not values["head.linear.weight"].any()
    biases = {name: value for name, value in values.items() if name.endswith("bias")}
    assert [name for name, value in biases.items() if value.any() and "token_embeds" not in name] == []
    convolutions = torch.cat([value for name, value in biases.items() if "token_embeds" in name])
    assert 0.45 < float(convolutions.abs().max()) < 0.5  # uniform within 1 / p
    for name in ("blocks.0.mlp.fc1.weight", "embedding.channel_agg.out_proj.weight"):
        assert float(values[name].std()) == pytest.approx(0.02, rel=0.06)
    assert 0.2 < float(values["embedding.channel_agg.in_proj_weight"].abs().max()) < math.sqrt(6 / (4 * 32))  # Xavier
    assert (values["embed_norm_layer.weight"] == 1).all()


def test_patches_by_hand_and_back() -> None:
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)  # the second variable is the first plus 16
    patches = patchify(x, 2)
    assert patches[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]  # row, column, variable
    x = torch.randn(3, 5, 6, 12)
    assert torch.equal(unpatchify(patchify(x, 3), 2, 3, 5), x)


def test_rows_that_do_not_fill_a_patch_are_padded_before_the_first() -> None:
    net = StormerNetwork(3, (5, 8), 2, 16, 1, 2, 4.0).double()
    whole = StormerNetwork(3, (6, 8), 2, 16, 1, 2, 4.0).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
        whole.load_state_dict(net.state_dict())
        x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
        padded = torch.cat([torch.zeros_like(x[:, :, :1]), x], dim=2)
        assert torch.equal(net(x, (6,)), whole(padded, (6,))[:, :, 1:])


def test_the_update_is_the_way_through_physical_units() -> None:
    """Denormalise, add the change in its own units, normalise."""
    model = stormer()
    latent = model.encode(state(model))
    change = model.increment(latent.x, 12)
    short = model.update(latent.x, change, 12)
    tables, names = model.normalizer, model.config.channels
    column = {
        key: torch.tensor([table[name] for name in names], dtype=torch.float64)[:, None, None]
        for key, table in (("mean", tables.mean), ("std", tables.std), ("change", tables.difference_std[12]))
    }
    physical = latent.x.double() * column["std"] + column["mean"] + change.double() * column["change"]
    torch.testing.assert_close(short.double(), (physical - column["mean"]) / column["std"], rtol=1e-5, atol=1e-6)
    assert torch.equal(model.advance(latent, 12).x, short)
    back = (short - latent.x) / model.scale(12, 1)
    torch.testing.assert_close(back, change, rtol=1e-4, atol=1e-4)


def test_rows_and_channels_go_in_and_out_by_name() -> None:
    model = stormer()
    start = state(model, batch=2)
    latent = model.encode(start)
    place = model.config.channels.index("t500")
    expected = (start.select("t", 500.0) - model.normalizer.mean["t500"]) / model.normalizer.std["t500"]
    torch.testing.assert_close(latent.x[:, place], expected.flip(-2))
    upper, lower = model.decode_normalized(latent)
    assert torch.equal(upper, model.normalize(start)[0])
    assert torch.equal(lower, model.normalize(start)[1])


def test_samples_of_one_batch_may_have_intervals_of_their_own() -> None:
    model = stormer().requires_grad_(True)
    x = torch.randn(4, 19, *GRID.shape)
    hours = [6, 24, 12, 6]
    together = model.increment(x, torch.tensor(hours))
    moved = model.update(x, together, hours)
    for index, step in enumerate(hours):
        alone = model.increment(x[index : index + 1], step)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-5)
        one = model.update(x[index : index + 1], alone, [step])
        torch.testing.assert_close(moved[index : index + 1], one, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.increment(x[:1], 6), model.increment(x[:1], 24), atol=1e-2)
    together.square().mean().backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


def test_impossible_intervals_are_refused() -> None:
    model, x = stormer(), torch.zeros(2, 19, *GRID.shape)
    with pytest.raises(UsageError, match="no 18 h, 3 h step; it has 24 h, 12 h, 6 h"):
        model.increment(x, [18, 3])
    with pytest.raises(UsageError, match="3 intervals were given for 2 samples"):
        model.increment(x, [6, 6, 6])


def test_what_a_forecast_carries_ends_with_it() -> None:
    """Weights that change are seen by the next forecast, and gradients never go through what was carried."""
    model = stormer()
    start = state(model)
    with torch.no_grad():
        before = model.advance(model.encode(start), 6)
        for parameter in model.net.head.parameters():
            parameter.data.mul_(2.0)
        model.net.embedding.channel_query.data.add_(1.0)
        after = model.advance(model.encode(start), 6)
        again = model.advance(Latent(model.encode(start).x, start.time), 6)
    assert not torch.allclose(before.x, after.x)
    torch.testing.assert_close(after.x, again.x, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        latent = model.encode(start)
    model.requires_grad_(True)
    model.advance(latent, 6).x.square().sum().backward()
    query = model.net.embedding.channel_query.grad
    assert query is not None
    assert query.any()


def test_recomputing_keeps_the_gradients_to_the_bit() -> None:
    found = []
    for policy in ("none", "block"):
        model = stormer().requires_grad_(True)
        keep(model, policy)  # type: ignore[arg-type]
        latent = model.encode(state(model))
        model.advance(model.advance(latent, 12), 6).x.square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert model.net.recompute
    assert all(first is not None and torch.equal(first, second) for first, second in zip(*found, strict=True))  # type: ignore[arg-type]


def test_the_state_stays_float32_under_autocast() -> None:
    """Only the network's output is rounded: of states and sums, no digit is lost."""
    model = stormer()
    start = state(model)
    exact = model.encode(start).x
    expected = exact + model.increment(exact, 6) * model.scale(6, 1)
    with torch.autocast("cpu", torch.bfloat16):
        latent = model.encode(start)
        change = model.increment(latent.x, 6)
        later = model.advance(latent, 6)
    assert change.dtype == later.x.dtype == torch.float32
    assert torch.equal(latent.x, exact)
    assert torch.equal(later.x, exact + change * model.scale(6, 1))
    assert 0 < float((later.x - expected).abs().max()) < 0.05
    quiet = stormer(loud=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quiet.advance(quiet.encode(start), 6).x, exact)


def test_what_cannot_be_built_is_listed_whole() -> None:
    schema = stormer().config.schema
    with pytest.raises(ConfigError) as caught:
        stormer(width=34, heads=3, patch=3, depth=0, intervals=(6, 6), channels=(*schema.channels[1:], "z850"))
    text = "\n".join(caught.value.problems)
    for part in ("depth must be at least 1", "34 is not a number of channels for each of 3 heads", "no multiple of 4",
                 "patches of 3 columns do not divide", "different positive hours", "z850 is not in the schema",
                 f"{schema.channels[0]} of the schema has no place"):  # fmt: skip
        assert part in text
    assert len(caught.value.problems) == 7


def test_statistics_of_changes_must_cover_every_interval_and_channel() -> None:
    whole = stormer().normalizer
    tables = {6: whole.difference_std[6], 12: {**whole.difference_std[12], "z500": 0.0}}
    config = stormer().config
    with pytest.raises(CheckpointError) as caught:
        Stormer(config, GRID, Normalizer(whole.mean, whole.std, tables))
    assert caught.value.problems == (
        "no statistics of changes over 24 h", "no positive standard deviation of changes of z500 over 12 h",
    )  # fmt: skip
    other = StormerConfig(SCHEMA, CHANNELS, 2, 32, 1, 2, intervals=(3, 6))
    with pytest.raises(ConfigError, match="no statistics without data"):
        other.nominal()


def test_a_checkpoint_gives_the_same_network_back(tmp_path: Path) -> None:
    model, path = stormer(), tmp_path / "net.safetensors"
    checkpoint.save(path, model, Header("stormer", "test", model.config, model.normalizer), {})
    loaded = checkpoint.load(path)
    assert loaded.header.config == model.config
    assert loaded.header.normalizer == model.normalizer
    start = state(model)
    state_of: Any = loaded.model
    assert all(torch.equal(value, state_of.state_dict()[name]) for name, value in model.state_dict().items())
    found = loaded.model.advance(loaded.model.encode(start), 24)
    torch.testing.assert_close(found.x, model.advance(model.encode(start), 24).x, rtol=1e-5, atol=1e-5)


def test_from_a_preset_to_a_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """An untrained Stormer is persistence, whatever the steps."""
    monkeypatch.chdir(tmp_path)
    assert run(["weights", "init", "--preset", "stormer-tiny", "--out", "tiny.safetensors"]) == 0
    assert run(["weights", "info", "tiny.safetensors", "--json"]) == 0
    printed = capsys.readouterr().out
    assert '"steps_hours": [24, 12, 6]' in " ".join(printed.split()).replace("[ ", "[").replace(" ]", "]")
    common = ["forecast", "--init", "2024-01-01T00", "--hours", "42", "--step", "6", "--source", "idealized",
              "--weights", "tiny.safetensors", "--allow-untrained", "--lossless", "--out", "a.nc"]  # fmt: skip
    assert run([*common, "--plan", "--json"]) == 0
    assert '"advances":{"24":1,"12":3,"6":7}' in "".join(capsys.readouterr().out.split())
    assert run(common) == 0, capsys.readouterr().err
    with xr.open_dataset("a.nc") as made:
        assert made.sizes["time"] == 7
        for name in ("t2m", "z", "q"):
            first = made[name].isel(time=0)
            assert np.abs(made[name] - first).max() <= 1e-6 * np.abs(first).max()
        assert float(made["z"].std()) > 100.0


def test_training_takes_it_like_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a preset, over a tree of 12 and 6 h steps, to weights that beat what they began as, persistence."""
    schema = Schema(("z", "t"), (500, 850), ("t2m",))
    config = StormerConfig(schema, ("t2m", "z500", "z850", "t500", "t850"), 2, 32, 1, 2)
    monkeypatch.setitem(PRESETS, "toy", Preset("toy", 22.5, "cells", config, "stormer"))
    store = stores.make_store(tmp_path / "store")
    stage = stores.stage(steps=24, horizon=(18, 18), targets=2, rate=1e-2, micro=4)
    recipe = stores.toy_recipe(None, stage, validate_every=24, save_every=24, checkpoint="block", ema=0.0)
    result = stores.run(tmp_path / "run", store.path, recipe)
    assert result.validation is not None
    for errors in result.validation["rmse"].values():
        assert errors["6"]["forecast"] < 0.8 * errors["6"]["persistence"]
    loaded = checkpoint.load(result.weights)
    assert loaded.header.model == "stormer"
    assert loaded.header.trained
    assert set(loaded.model.normalizer.difference_std) == {6, 12, 24}
    with pytest.raises(ConfigError, match="toy reads no static fields, the recipe names orog"):
        stores.run(tmp_path / "other", store.path, stores.toy_recipe(None, stage, static=("orog",)))
