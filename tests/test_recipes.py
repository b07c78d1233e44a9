"""Recipes are strict, and what a step does follows from its number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stores import stage, toml, toy_recipe

from wm2cli.errors import ConfigError
from wm2cli.models.presets import PRESETS
from wm2cli.training.recipes import (
    ExtraEncoder,
    LossConfig,
    OptimizerConfig,
    Recipe,
    bundled_recipes,
    load_recipe,
    recipe_from_text,
    recipe_text,
)
from wm2cli.training.schedule import draw, horizon, rate

MINIMAL = """
name = "mine"
model = "mini"

[[stages]]
name = "single"
steps = 100
rate = 1e-3
"""


def problems(text: str, tmp_path: Path, *changes: str) -> tuple[str, ...]:
    """What is said about a recipe."""
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_recipe(str(path), changes)
    assert error.value.exit_code == 9
    return error.value.problems or (str(error.value),)


# ---------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_bundled_recipe_is_possible_and_survives_its_run_folder(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.model in PRESETS or recipe.start is not None
    assert recipe_from_text(recipe_text(recipe)) == recipe


def test_a_file_gives_the_same_recipe_as_python(tmp_path: Path) -> None:
    recipe = toy_recipe(
        tmp_path / "w.safetensors",
        stage(inputs={"era5": "main", "gfs": "gfs"}, trainable=("encoder:gfs", "blend"), horizon=(6, 24), targets=3),
        stage("long", schedule="constant", growth="quadratic"),
        encoders=(ExtraEncoder("gfs", "era5", (500.0,)),),
        loss=LossConfig(kind="mse", channels="pressure", variables={"z": 2.0, "t850": 0.5}, leads="equal"),
    )
    (tmp_path / "recipe.toml").write_text(toml(recipe))
    assert load_recipe(str(tmp_path / "recipe.toml")) == recipe


def test_changes_are_applied_as_toml(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(MINIMAL)
    changes = [
        "optimizer.name=adamw",
        "stages.0.steps=7",
        "stages.0.horizon=[6, 24]",
        "loss.variables.z500=3",
        "clip=2",
    ]
    recipe = load_recipe(str(tmp_path / "recipe.toml"), changes)
    assert recipe.optimizer == OptimizerConfig(name="adamw")
    assert (recipe.steps, recipe.stages[0].horizon, recipe.clip) == (7, (6, 24), 2.0)
    assert recipe.loss.variables == {"z500": 3.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optimiser.name=adamw", "unknown key 'optimiser'; did you mean 'optimizer'?"),
        ("optimizer.beta=[0.9, 0.99]", "unknown key 'optimizer.beta'; did you mean 'betas'?"),
        ("optimizer.name=adam", "'optimizer.name' must be one of adamw, muon, shampoo, found 'adam'"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas must be in [0, 1), found 1.0"),
        ("optimizer.precondition_every=0", "optimizer.precondition_every must be at least 1, found 0"),
        ("model=minni", "there is no preset 'minni'; did you mean 'mini'?"),
        ("start=w.safetensors", "give either 'model' (a preset) or 'start' (a checkpoint)"),
        ("seed=-1", "seed must be at least 0, found -1"),
        ("seed=one", "'seed' must be int, found 'one'"),
        ("ema=1.0", "ema must be below 1, found 1.0"),
        ("clip=nan", "clip must be at least 0.0, found nan"),
        ("validation_leads=[]", "validation_leads must be hours of at least 1, found []"),
        ("loss.variables=2", "'loss.variables' must be a table, found 2"),
        ("loss.variables.z500=-1", "loss.variables.z500 must be a number of at least 0, found -1.0"),
        ("loss.variables.zz500=1", "loss.variables.zz500 is no variable and no channel"),
        ("loss.latent=-1", "loss.latent must be at least 0, found -1.0"),
        ("loss.weight_norm=mean", "'loss.weight_norm' must be one of sum, count, found 'mean'"),
        ("optimizer.decay=all", "'optimizer.decay' must be one of matrices, all-but-embeddings, found 'all'"),
        ("stages.0.rollout=2", "stage single: rollout is for increments alone (loss.kind): say how far it goes by "
         "horizon"),
        ("stages.0.initial=1.5", "stage single: cooldown, initial and final are shares from 0 to 1"),
        ("stages.0.rate=inf", "stage single: rate must be positive, found inf"),
        ("stages.0.micro=3", "stage single: a batch of 8 is not a number of passes of 3"),
        ("stages.0.horizon=[6, 15]", "stage single: horizon [6, 15] must rise in multiples of 6 h"),
        ("stages.0.horizon=[12, 6]", "stage single: horizon [12, 6] must rise in multiples of 6 h"),
        ("stages.0.horizon=[6]", "'stages[0].horizon' must have 2 values, found 1"),
        ("stages.0.warmup=200", "stage single: warmup must be 0 to 100, found 200"),
        ("stages.0.trainable=[]", "stage single: nothing is trainable"),
        ("stages.0.trainable=[encoder]", "'stages[0].trainable' must be a list, found '[encoder]'"),
        ('stages.0.trainable=["encoder"]', "stage single: 'encoder' is no part of a model; parts are all, "
         "encoder:NAME, processor:HOURS, decoder, blend"),
        ("stages.0.inputs=gfs", "'stages[0].inputs' must be a table, found 'gfs'"),
        ("stages=[]", "there are no stages"),
        ("encoders=[{name = \"gfs\", like = \"era5\"}]", "encoders can only be added to weights: give 'start'"),
    ],
)  # fmt: skip
def test_what_is_impossible_is_said(tmp_path: Path, change: str, said: str) -> None:
    assert problems(MINIMAL, tmp_path, change) == (said,)


def test_increments_take_nothing_that_is_said_of_lead_times(tmp_path: Path) -> None:
    changes = ["loss.kind=increments", "loss.channels=equal", "loss.latent=0.0", "loss.leads=equal",
               "stages.0.rollout=0", "stages.0.horizon=[6, 24]", "stages.0.targets=2"]  # fmt: skip
    unused = "is of no use to increments, whose lead times are rollout steps of the model: leave it out"
    assert problems(MINIMAL, tmp_path, *changes) == (
        "loss.channels must be difference or pressure for increments, found equal",
        "loss.leads is of no use to increments: leave it out",
        "loss.latent is of no use to increments: leave it out",
        f"stage single: horizon {unused}",
        f"stage single: targets {unused}",
        "stage single: rollout must be at least 1, found 0",
    )


def test_everything_is_said_at_once(tmp_path: Path) -> None:
    text = MINIMAL.replace("steps = 100", "steps = 0\nwarmup = 1") + MINIMAL.partition("\n\n")[2]
    found = problems(text, tmp_path, "ema=2", "explosion=0.5", "keep=0")
    assert len(found) == 6
    assert "two stages are called 'single'" in found
    assert "stage single: steps must be at least 1, found 0" in found
    assert problems(MINIMAL, tmp_path, "sed=1", "validat_every=3", "stages.0.stepps=1") == (
        "unknown key 'stages[0].stepps'; did you mean 'steps'?",
        "unknown key 'sed'; did you mean 'seed'?",
        "unknown key 'validat_every'; did you mean 'validate_every'?",
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [("stages.3.steps=1", "the recipe has no 'stages.3.steps'"), ("stages.x.steps=1", "the recipe has no"),
     ("model.x=1", "the recipe has no 'model.x'"), ("seed", "'seed' is no change"), ("=1", "'=1' is no change")],
)  # fmt: skip
def test_a_change_of_what_is_not_there_is_refused(tmp_path: Path, change: str, said: str) -> None:
    assert said in problems(MINIMAL, tmp_path, change)[0]


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no recipe 'wm2-minni'") as error:
        load_recipe("wm2-minni")
    assert "did you mean 'wm2-mini'?" in str(error.value.hint)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(str(tmp_path / "binary.toml"))
    assert "is not TOML" in problems("name = ", tmp_path)[0]


# --------------------------------------------------------------------------------------------------------- schedule


def test_the_rate_warms_up_and_falls_as_a_cosine() -> None:
    one = stage(steps=110, rate=2.0, warmup=10, final=0.1)
    assert [rate(one, step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert rate(one, 10) == 2.0
    assert rate(one, 60) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))  # half way
    assert rate(one, 109) == pytest.approx(0.2, abs=2e-3)
    assert all(rate(one, step) >= rate(one, step + 1) for step in range(10, 109))


def test_the_rate_of_stormer_by_its_check_vector() -> None:
    """Highest in the last step of the warm-up and in the one after it; nothing at both ends."""
    one = stage(steps=20, rate=1.0, warmup=5, initial=0.0)
    assert [rate(one, step) for step in range(21)] == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1, 1, 0.989074, 0.956773, 0.904508, 0.834565, 0.75, 0.654508, 0.552264, 0.447736, 0.345492,
         0.25, 0.165435, 0.095492, 0.043227, 0.010926, 0], abs=5e-7)  # fmt: skip
    floor = replace(one, rate=5e-4, initial=2e-5, final=2e-5)
    assert [rate(floor, step) for step in (0, 4, 20)] == pytest.approx([1e-8, 5e-4, 1e-8])
    assert rate(replace(one, warmup=1, initial=None), 0) == 1.0


def test_a_constant_rate_cools_down_linearly() -> None:
    one = stage(steps=100, rate=1.0, schedule="constant", cooldown=0.2)
    assert {rate(one, step) for step in range(81)} == {1.0}
    assert [rate(one, step) for step in (85, 90, 95)] == pytest.approx([0.75, 0.5, 0.25])
    assert rate(replace(one, cooldown=0.0), 99) == 1.0


def test_the_horizon_grows_and_every_length_gets_its_share() -> None:
    one = stage(steps=400, horizon=(12, 48))
    found = [horizon(one, step) for step in range(400)]
    assert found == sorted(found)
    assert {length: found.count(length) for length in set(found)} == dict.fromkeys(
        range(12, 49, 6), pytest.approx(57, abs=1)
    )
    slow = [horizon(replace(one, growth="quadratic"), step) for step in range(400)]
    assert (slow[0], slow[-1]) == (12, 48)
    assert sum(slow) < sum(found)
    assert {horizon(stage(steps=1), 0), horizon(stage(steps=5), 4)} == {6}
    mixed = [horizon(replace(one, growth="mixed"), step) for step in range(400)]
    for part in (mixed[:100], mixed[150:250]):  # at any time, not in the end alone
        assert {length: part.count(length) for length in set(part)} == dict.fromkeys(
            range(12, 49, 6), pytest.approx(100 / 7, abs=2)
        )
    long = replace(one, horizon=(6, 600), growth="mixed-quadratic")
    skewed = [horizon(long, step) for step in range(400)]
    for part in (skewed[:100], skewed[150:250]):
        assert sum(length <= 150 for length in part) == pytest.approx(50, abs=2)
        assert max(part) > 580


def test_samples_come_once_an_epoch_in_another_order_each() -> None:
    one = stage(steps=100, batch=4)
    drawn = np.concatenate([draw(one, 0, step, 1, possible=10).starts for step in range(10)])
    epochs = drawn.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert not np.array_equal(draw(one, 0, 3, 1, 10).starts, draw(one, 0, 3, 2, 10).starts)  # another seed
    assert not np.array_equal(draw(one, 0, 3, 1, 10).starts, draw(one, 1, 3, 1, 10).starts)  # another stage


def test_lead_times_are_the_horizon_and_random_ones_below_it_and_lead_zero_too() -> None:
    one = stage(steps=300, horizon=(6, 48), targets=3)
    drawn = [draw(one, 0, step, 1, 50).leads for step in range(300)]
    for step, leads in enumerate(drawn):
        longest = horizon(one, step)
        assert leads[-1] == longest
        assert list(leads) == sorted(set(leads))
        assert all(lead % 6 == 0 and 0 <= lead <= longest for lead in leads)
        assert len(leads) == min(3, longest // 6 + 1)
    late = [lead for leads in drawn[-50:] for lead in leads[:-1]]
    assert {0, 6, 12, 18, 24, 30, 36, 42} == set(late)
    assert drawn == [draw(one, 0, step, 1, 50).leads for step in range(300)]  # no memory


def test_each_sample_draws_an_interval_and_all_are_drawn_alike() -> None:
    one = stage(steps=300, batch=8)
    drawn = [draw(one, 0, step, 1, 50, (24, 12, 6)) for step in range(300)]
    found = np.stack([made.intervals for made in drawn])
    assert found.shape == (300, 8)
    assert {hours: int((found == hours).sum()) for hours in np.unique(found)} == dict.fromkeys(
        (6, 12, 24), pytest.approx(800, abs=70)
    )
    assert len(np.unique(found, axis=0)) > 280  # each sample by itself, each step anew
    again = draw(one, 0, 123, 1, 50, (24, 12, 6))  # no memory
    np.testing.assert_array_equal(again.intervals, found[123])
    assert not np.array_equal(draw(one, 1, 123, 1, 50, (24, 12, 6)).intervals, found[123])  # another stage
    assert all(np.array_equal(made.starts, draw(one, 0, step, 1, 50).starts) for step, made in enumerate(drawn))
    assert {made.leads for made in drawn} == {()}


def test_a_single_target_is_the_horizon() -> None:
    one = stage(steps=20, horizon=(6, 24))
    assert all(draw(one, 0, step, 1, 50).leads == (horizon(one, step),) for step in range(20))


def test_recipe_checks_itself_in_python_too() -> None:
    with pytest.raises(ConfigError, match="give either"):
        Recipe("none", (stage(),)).check()
