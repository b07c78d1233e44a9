"""Paths: which steps lead to a lead time, the means of several, and the best of many."""

from __future__ import annotations

import json
import math
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from networks import network, normalized, state, stormer
from stores import GRID, make_store

from wm2cli import checkpoint, paths
from wm2cli.checkpoint import Header
from wm2cli.cli import run
from wm2cli.config import from_mapping
from wm2cli.errors import CheckpointError, ConfigError, DataError, ResourceError, UsageError, ValuesError, Wm2Error
from wm2cli.models import Latent
from wm2cli.models.stormer import CHANNELS, SCHEMA, Stormer, StormerConfig
from wm2cli.models.stormer_network import StormerNetwork
from wm2cli.paths import Steps, text_of
from wm2cli.rollout import Paths, Route, homogeneous, length, longest_first, rollout, runs_of, step_plan
from wm2cli.schema import Schema
from wm2cli.state import Normalizer
from wm2cli.store import open_store
from wm2cli.training.losses import channel_weights

STEPS = (24, 12, 6)
INIT = np.datetime64("2024-01-01T00", "s")


class Ledger:
    """A model whose latent is the path taken and whose field is the sum of the squares of its steps."""

    steps = STEPS
    paths = "homogeneous"

    def __init__(self) -> None:
        self.taken: list[Steps] = []
        self.alive: set[int] = set()
        self.most = 0

    def make(self, path: Steps) -> Latent:
        latent = Latent(torch.tensor(path), np.array([INIT + np.timedelta64(sum(path), "h")]))
        self.alive.add(id(latent))
        weakref.finalize(latent, self.alive.discard, id(latent))
        self.most = max(self.most, len(self.alive))
        return latent

    def advance(self, latent: Latent, hours: int) -> Latent:
        self.taken.append((*latent.x.tolist(), hours))
        return self.make(self.taken[-1])

    def decode(self, latent: Latent) -> float:
        return self.denormalize(*self.decode_normalized(latent), latent.time)

    def decode_normalized(self, latent: Latent) -> tuple[torch.Tensor, torch.Tensor]:
        return latent.x.square().sum().float(), torch.zeros(())

    def denormalize(self, pressure: torch.Tensor, surface: torch.Tensor, time: Any) -> float:
        return float(pressure)


def run_lengths(flat: Any) -> Paths:
    """Paths given step by step."""
    return {lead: tuple(map(runs_of, some)) for lead, some in flat.items()}


def flat(path: Any) -> Steps:
    return tuple(hours for hours, count in path for _ in range(count))


def follow(route: Route) -> tuple[Ledger, list[tuple[int, Any]]]:
    model = Ledger()
    found = rollout(model, model.make(()), route)  # type: ignore[arg-type]
    return model, list(found)


# --- which paths ---


def test_homogeneous_by_hand() -> None:
    by_hand = {6: ((6,),), 12: ((6, 6), (12,)), 18: ((6, 6, 6),), 24: ((6, 6, 6, 6), (12, 12), (24,))}
    assert homogeneous(STEPS, (6, 12, 18, 24)) == run_lengths(by_hand)
    with pytest.raises(UsageError, match="steps of 24 h do not reach 6 h, 12 h"):
        homogeneous((24,), (6, 12, 24))


def test_longest_first_by_hand() -> None:
    assert longest_first(STEPS, (6, 42, 48)) == run_lengths({6: ((6,),), 42: ((24, 12, 6),), 48: ((24, 24),)})


def test_the_number_of_sequences_is_the_published_one() -> None:
    counts = paths.possible(STEPS, 14 * 24)
    assert [counts[days * 24] for days in (1, 2, 3, 5)] == [6, 55, 520, 46754]
    assert [f"{counts[days * 24]:.1e}" for days in (7, 10, 14)] == ["4.2e+06", "3.6e+09", "2.9e+13"]
    assert counts[7] == 0


def test_all_sequences_are_drawn_where_there_are_no_more() -> None:
    by_hand = {(24,), (12, 12), (12, 6, 6), (6, 12, 6), (6, 6, 12), (6, 6, 6, 6)}
    assert set(paths.draw(STEPS, 24, 128, 0)) == by_hand
    assert len(paths.draw(STEPS, 24, 6, 0)) == 6
    every = paths.draw(STEPS, 72, 520, 0)
    assert len(set(every)) == 520
    assert all(sum(path) == 72 for path in every)


def test_sequences_are_drawn_without_repetition_and_all_alike() -> None:
    drawn = paths.draw(STEPS, 336, 128, 3)
    assert len(set(drawn)) == 128
    assert all(sum(path) == 336 and set(path) <= set(STEPS) for path in drawn)
    assert drawn == paths.draw(STEPS, 336, 128, 3)
    assert drawn != paths.draw(STEPS, 336, 128, 4)
    # Of the 520 sequences to 72 h, 55 begin with 24 h (those to 48 h follow) and 169 with 12 h.
    firsts = Counter(paths.draw(STEPS, 72, 1, seed)[0][0] for seed in range(1000))
    for step, share in ((24, 55 / 520), (12, 169 / 520)):
        assert abs(firsts[step] - 1000 * share) < 4 * math.sqrt(1000 * share * (1 - share))
    with pytest.raises(UsageError, match="leads to 25 h"):
        paths.draw(STEPS, 25, 1, 0)


# --- the tree ---


def test_means_by_hand() -> None:
    model, found = follow(Route.along(homogeneous(STEPS, (6, 12, 24))))
    # 36; (2 x 36 + 144) / 2; (4 x 36 + 2 x 144 + 576) / 3
    assert found == [(6, 36.0), (12, 108.0), (24, 336.0)]
    assert len(model.taken) == 4 + 2 + 1


def test_fourteen_days_are_98_steps_and_hold_three_latents() -> None:
    route = Route.along(homogeneous(STEPS, range(6, 337, 6)))
    assert route.advances == {24: 14, 12: 28, 6: 56}
    assert (route.latents, route.means) == (3, 1)
    model, found = follow(route)
    assert [lead for lead, _ in found] == list(range(6, 337, 6))
    assert len(model.taken) == 98


def test_shared_beginnings_are_computed_once() -> None:
    route = Route.along(run_lengths({24: ((12, 6, 6), (12, 12)), 36: ((12, 6, 6, 12), (6, 6, 24))}))
    model, found = follow(route)
    assert sorted(model.taken) == [(6,), (6, 6), (6, 6, 24), (12,), (12, 6), (12, 6, 6), (12, 6, 6, 12), (12, 12)]
    assert dict(found) == {24: (216 + 288) / 2, 36: (360 + 648) / 2}


@pytest.mark.parametrize(
    "chosen",
    [
        homogeneous(STEPS, range(6, 121, 6)),
        longest_first(STEPS, range(6, 121, 6)),
        run_lengths({lead: paths.draw(STEPS, lead, 20, 1) for lead in (24, 72, 120)}),
        run_lengths({lead: paths.draw(STEPS, lead, 3, 1) for lead in range(24, 241, 24)}),
    ],
    ids=["homogeneous", "longest", "many to a few", "few to many"],
)
def test_what_is_held_is_known_before(chosen: Any) -> None:
    route = Route.along(chosen)
    model, found = follow(route)
    every = {flat(path) for some in chosen.values() for path in some}
    assert sorted(model.taken) == sorted({path[:end] for path in every for end in range(1, len(path) + 1)})
    assert model.most == route.latents + 1  # beside those held, the one that is being computed
    assert dict(found) == {
        lead: pytest.approx(np.mean([sum(step**2 for step in flat(path)) for path in some]))
        for lead, some in chosen.items()
    }
    assert not model.alive


def test_the_order_is_the_one_that_holds_less() -> None:
    many = Route.along(run_lengths({lead: paths.draw(STEPS, lead, 32, 1) for lead in (72, 120)}))
    assert many.latents + many.means < 20  # by lead time, some forty latents
    assert many.means == 2
    few = Route.along(homogeneous(STEPS, range(6, 337, 6)))
    assert few.means == 1  # branch by branch, 28 means


def test_runs_by_hand() -> None:
    assert runs_of((24, 12, 12, 24)) == ((24, 1), (12, 2), (24, 1))
    assert length(runs_of((24, 12, 12, 24))) == 72
    assert text_of(runs_of((24, 12, 12, 24))) == "24+2x12+24"
    assert runs_of(()) == ()


def test_a_long_forecast_is_planned_in_a_moment() -> None:
    """Two years by the hour: what it takes must not grow with the square of the lead times."""
    route = Route.along(longest_first((6, 1), range(1, 17521)))
    assert route.advances == {6: 2920, 1: 5 * 2920}
    assert (route.latents, route.means) == (2, 0)
    assert step_plan((6, 1), (7,)) == {6: {1: {}}}


def test_a_mean_is_that_of_normalised_fields() -> None:
    model = stormer()
    start = model.encode(state(model))

    def alone(path: Steps) -> Latent:
        latent = start
        for hours in path:
            latent = model.advance(latent, hours)
        return latent

    found = dict(rollout(model, start, Route.along(homogeneous(STEPS, (6, 12, 24)))))
    assert torch.equal(found[6].pressure, model.decode(alone((6,))).pressure)
    ends = [alone(path) for path in ((6,) * 4, (12, 12), (24,))]
    assert float((ends[2].x - ends[1].x).std()) > 0.1  # so that it matters
    fields = [model.decode_normalized(latent) for latent in ends]
    pressure, surface = (torch.stack(parts).mean(dim=0) for parts in zip(*fields, strict=True))
    expected = model.denormalize(pressure, surface, ends[0].time)
    torch.testing.assert_close(normalized(model, found[24]), normalized(model, expected), rtol=1e-5, atol=1e-5)
    assert found[24].time == INIT + np.timedelta64(24, "h")
    # Limits hold for the mean: where one path has less than no humidity, the others make up for it.
    limited = torch.stack([model.decode(latent).select("q", 1000.0) for latent in ends]).mean(dim=0)
    assert float((limited - found[24].select("q", 1000.0)).max()) > 1e-5
    assert float(found[24].select("q", 1000.0).min()) >= 0.0


# --- files of paths ---


@pytest.fixture
def model() -> Stormer:
    return stormer()


def choice(given: str | None, model: Any, leads: tuple[int, ...] = (24,), sha256: str = "a") -> paths.Choice:
    return paths.choose(given, model, leads, lambda: sha256)


def file(folder: Path, **values: Any) -> str:
    path = folder / "paths.json"
    path.write_text(json.dumps({"format": 1, **values}))
    return str(path)


def test_the_usual_way_is_the_models(model: Stormer) -> None:
    assert choice(None, model).route.paths == homogeneous(STEPS, (24,))
    usual = choice(None, network(), (6, 7))
    assert usual.route.paths == longest_first((6, 1), (6, 7))
    assert not usual.listed
    assert choice("longest", model, (30,)).route.paths == {30: (((24, 1), (6, 1)),)}
    twelve = choice("12", model, (12, 24))
    assert twelve.route.paths == {12: (((12, 1),),), 24: (((12, 2),),)}
    assert twelve.text == "12 h: 12\n24 h: 2x12"
    assert twelve.members == (1, 1)


def test_a_file_comes_back_as_it_was_written(tmp_path: Path, model: Stormer) -> None:
    written = paths.Selection(1, {"24": ((24,), (12, 6, 6)), "72": ((24, 24, 24),)}, "a", "net",
                              {"24": (0.5, 0.75), "72": (1.25,)}, {"seed": 3})  # fmt: skip
    path = tmp_path / "paths.json"
    paths.write(path, written)
    assert paths.read(path, STEPS) == written
    assert [entry.name for entry in tmp_path.iterdir()] == ["paths.json"]
    assert '    "24": [[24], [12, 6, 6]],\n' in path.read_text()
    chosen = choice(str(path), model, (24, 72))
    assert chosen.members == (2, 1)
    assert chosen.text == "24 h: 24, 12+2x6\n72 h: 3x24"
    assert chosen.description == f"mean of the paths in paths.json sha256={checkpoint.file_sha256(path)}"
    assert choice(str(path), model, (72,)).route.paths == {72: (((24, 3),),)}


IMPOSSIBLE: list[tuple[dict[str, Any], list[str]]] = [
    ({"paths": {}}, ["there are no lead times"]),
    ({"paths": {"24": []}}, ["24 h has no paths"]),
    ({"paths": {"24": [[24, 6]]}}, ["24 h: the path 24+6 leads to 30 h"]),
    ({"paths": {"24": [[12, 12], [24], [12, 12]]}}, ["24 h: the path 2x12 is given 2 times"]),
    ({"paths": {"24": [[18, 6]]}}, ["24 h: the path 18+6 needs steps of 18 h; the model has 24 h, 12 h, 6 h"]),
    ({"paths": {"24": [[]]}}, ["24 h: the path without steps leads to 0 h"]),
    ({"paths": {"1 day": [[24]], "024": [[24]], "0": [[]]}},
     ["'1 day' is no lead time in hours", "'024' is no lead time in hours", "'0' is no lead time in hours"]),
    ({"paths": {"24": [[24.0]]}}, ["'paths.24[0][0]' must be int, found 24.0"]),
    ({"paths": {"24": [24]}}, ["'paths.24[0]' must be a list, found 24"]),
    ({"path": {"24": [[24]]}}, ["unknown key 'path'; did you mean 'paths'?", "missing key 'paths'"]),
]  # fmt: skip


@pytest.mark.parametrize(("values", "problems"), IMPOSSIBLE, ids=lambda value: str(value)[:40])
def test_impossible_files_are_refused(
    values: dict[str, Any], problems: list[str], tmp_path: Path, model: Stormer
) -> None:
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        choice(file(tmp_path, **values), model)
    assert list(caught.value.problems) == problems
    assert caught.value.exit_code == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1, "paths": {"24": [[24]], "24": [[12, 12]]}}', "cannot be used\n  - '24' is given twice"),
        ("{", "are not JSON"),
        ("[1]", "holds no table of paths"),
        ('{"paths": {"24": [[24]]}}', "has the format None, this wm2 reads 1"),
        ('{"format": 2}', "has the format 2, this wm2 reads 1"),
    ],
)
def test_files_that_are_none_are_refused(text: str, message: str, tmp_path: Path, model: Stormer) -> None:
    (tmp_path / "paths.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        choice(str(tmp_path / "paths.json"), model)
    assert message in str(caught.value)


REFUSED: list[tuple[str, str, int]] = [
    ("18", "the model has no 18 h step; it has 24 h, 12 h, 6 h", 2),
    ("0", "the model has no 0 h step", 2),
    ("homogenous", "there are no paths 'homogenous'", 2),
    ("24.txt", "there are no paths '24.txt'", 2),
    ("absent.json", "the paths absent.json cannot be read", 9),
]


@pytest.mark.parametrize(("given", "message", "code"), REFUSED)
def test_other_paths_are_refused(given: str, message: str, code: int, model: Stormer) -> None:
    with pytest.raises(Wm2Error) as caught:
        choice(given, model)
    assert message in caught.value.message
    assert caught.value.exit_code == code


def test_lead_times_that_are_not_reached_are_named(tmp_path: Path, model: Stormer) -> None:
    with pytest.raises(UsageError, match="steps of 24 h do not reach 6 h, 30 h"):
        choice("24", model, (6, 24, 30))
    with pytest.raises(UsageError, match="do not reach 3 h") as caught:
        choice(None, model, (3, 6))
    assert "multiple of 6" in (caught.value.hint or "")
    given = file(tmp_path, paths={"24": [[24]], "120": [[24] * 5]})
    with pytest.raises(UsageError, match="has no paths to 48 h, 72 h") as caught:
        choice(given, model, (24, 48, 72, 120))
    assert caught.value.hint == "it has those for --leads 24,120"


def test_paths_need_a_model_with_several_steps() -> None:
    single = stormer(intervals=(6,))
    assert choice(None, single).route.paths == {24: (((6, 4),),)}
    for given in ("homogeneous", "6", "paths.json"):
        with pytest.raises(UsageError, match="have steps of 6 h alone"):
            choice(given, single)


def test_paths_for_other_weights_are_refused(tmp_path: Path, model: Stormer) -> None:
    bound = file(tmp_path, paths={"24": [[24]]}, weights_sha256="b", weights="other-net")
    with pytest.raises(CheckpointError, match="for other weights: other-net, sha256 b") as caught:
        choice(bound, model)
    assert "take weights_sha256 out" in (caught.value.hint or "")
    assert choice(bound, model, sha256="b").members == (1,)
    assert choice(file(tmp_path, paths={"24": [[24]]}), model).members == (1,)


# --- the best of many ---


def test_weights_of_channels_are_the_published_ones() -> None:
    found = dict(zip(SCHEMA.channels, channel_weights(paths.TRAINED_WITH, SCHEMA).tolist(), strict=True))
    assert sorted(found) == sorted(CHANNELS)
    assert sum(found.values()) == pytest.approx(1.0)
    published = {"t2m": 0.158730, "msl": 0.015873, "z50": 0.00131726, "q500": 0.01317263, "v1000": 0.02634525}
    assert {name: found[name] for name in published} == pytest.approx(published, rel=1e-5)


SMALL = Schema(("z", "t"), (500, 850), ("t2m",))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("paths") / "store", days=12, schema=SMALL).path


@pytest.fixture(scope="module")
def weights(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stormer with the statistics of the store, that does something."""
    torch.manual_seed(2)
    config = StormerConfig(SMALL, ("t2m", "z500", "z850", "t500", "t850"), 2, 32, 1, 2)
    made = Stormer(config, GRID, Normalizer.from_dict(open_store(store).normalizer))
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    path = tmp_path_factory.mktemp("paths") / "small.safetensors"
    checkpoint.save(path, made, Header("stormer", "small", config, made.normalizer, trained=True), {})
    return path


@pytest.fixture
def options(store: Path, weights: Path, tmp_path: Path) -> paths.Options:
    return paths.Options(store, (12, 24), tmp_path / "paths.json", str(weights), sample=4, keep=2, times=3,
                         seed=9, device="cpu")  # fmt: skip


def test_the_best_are_kept(options: paths.Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against scores from single steps, without tree and judge."""
    taken = []
    forward = StormerNetwork.forward

    def counted(self: StormerNetwork, *arguments: Any) -> torch.Tensor:
        taken.append(arguments[1])
        return forward(self, *arguments)

    monkeypatch.setattr(StormerNetwork, "forward", counted)
    steps: list[tuple[str, int, int]] = []
    result = paths.select(options, lambda *step: steps.append(step))
    drawn = {lead: paths.draw(STEPS, lead, 4, 9) for lead in (12, 24)}
    tree = {path[:end] for some in drawn.values() for path in some for end in range(1, len(path) + 1)}
    assert len(taken) == result.evaluations == 3 * len(tree)
    assert steps[-1] == ("scoring paths", 3 * len(tree), 3 * len(tree))

    store, model = open_store(options.data), checkpoint.load(Path(options.weights or "")).model
    places = store.split_indices("validation")
    starts = places[[0, round((len(places) - 5) / 2), len(places) - 5]]  # followed by 24 h inside the split
    names = SMALL.channels
    scale = np.array([model.normalizer.difference_std[24][name] for name in names])
    weight = np.array([0.0, 0.0, 0.0, 0.0, 1.0])
    weight[:4] = np.array([500, 850, 500, 850]) / 1350
    latitude = np.cos(np.deg2rad(GRID.lat))
    area = latitude / latitude.mean()

    def score(path: Steps) -> float:
        total = 0.0
        for place in starts:
            values = torch.from_numpy(store.read([place]))
            start = state(model)
            latent = model.encode(
                replace(start, time=store.time[[place]].astype("datetime64[s]"),
                        pressure=values[:, :4].reshape(1, 2, 2, *GRID.shape), surface=values[:, 4:])
            )  # fmt: skip
            for hours in path:
                latent = model.advance(latent, hours)
            made = model.decode(latent)
            field = torch.cat([made.pressure.flatten(1, 2), made.surface], dim=1)[0].double().numpy()
            error = (field - store.read([place + sum(path) // 6])[0]) / scale[:, None, None]
            total += float((error**2 * area[:, None]).mean(axis=(-2, -1)) @ weight / weight.sum())
        return math.sqrt(total / len(starts))

    document = json.loads(options.out.read_text())
    assert document["format"] == 1
    assert document["weights_sha256"] == checkpoint.file_sha256(Path(options.weights or ""))
    assert document["selected"]["data_fingerprint"] == store.fingerprint
    assert document["selected"]["first"] == str(store.time[starts[0]])[:16]
    assert document["selected"]["last"] == str(store.time[starts[-1]])[:16]
    for lead in (12, 24):
        scores = {path: score(path) for path in drawn[lead]}
        best = sorted(scores, key=lambda path: scores[path])[:2]
        assert [tuple(path) for path in document["paths"][str(lead)]] == best
        assert document["scores"][str(lead)] == pytest.approx([scores[path] for path in best], rel=1e-4)
        assert len({round(value, 4) for value in scores.values()}) == len(scores)  # so that there is a best one
    # At 12 h there are only two paths, and both are kept, which is said.
    assert result.notes == ("12 h has only 2 paths: all were scored, 2 are kept",)
    assert from_mapping(paths.Selection, document).paths["24"] == result.found[1].kept
    again = options.out.read_text()
    paths.select(replace(options, overwrite=True))
    assert options.out.read_text() == again


def test_what_cannot_be_selected_is_refused(
    options: paths.Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(options, sample=0, keep=5, times=0, seed=-1, leads=(0, 24), out=tmp_path / "a.txt")
    with pytest.raises(UsageError, match="cannot be selected so") as caught:
        paths.select(wrong)
    assert len(caught.value.problems) == 5
    with pytest.raises(UsageError, match="--keep 5 of --sample 4 paths cannot be") as caught:
        paths.select(replace(options, keep=5))
    with pytest.raises(ResourceError, match="does not exist"):
        paths.select(replace(options, out=tmp_path / "absent" / "a.json"))
    with pytest.raises(UsageError, match="leads to 9 h"):
        paths.select(replace(options, leads=(9, 24)))
    with pytest.raises(DataError, match="no split 'test'"):
        paths.select(replace(options, split="test"))
    with pytest.raises(DataError, match="followed by 240 h"):
        paths.select(replace(options, leads=(240,)))
    monkeypatch.setattr(StormerNetwork, "forward", lambda self, x, *_: x * math.nan)
    with pytest.raises(ValuesError, match="of 6 paths end in values that are no numbers"):
        paths.select(options)
    assert not options.out.exists()
    options.out.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        paths.select(options)
    assert [entry.name for entry in tmp_path.iterdir()] == ["paths.json"]
    assert options.out.read_text() == "mine"


def test_interrupting_leaves_nothing(options: paths.Options, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paths.select(options, stop)
    assert not list(tmp_path.iterdir())


# --- through the command line ---


def test_from_a_selection_to_a_forecast(
    store: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WM2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WM2_WEIGHTS", str(weights))
    assert run(["paths", "--data", str(store), "--leads", "24", "--sample", "5", "--keep", "2", "--times", "2",
                "--out", "best.json"]) == 0  # fmt: skip
    streams = capsys.readouterr()
    assert streams.out == "best.json\n"
    assert "24 h: 5 of 6 paths scored" in streams.err
    kept = json.loads(Path("best.json").read_text())["paths"]["24"]
    common = ["forecast", "--init", "2024-01-01T00", "--source", "idealized", "--lossless", "--overwrite"]

    def made(*arguments: str) -> xr.Dataset:
        assert run([*common, *arguments, "--out", "a.nc"]) == 0, capsys.readouterr().err
        with xr.open_dataset("a.nc") as found:
            return found.load()

    usual = made("--leads", "6,24")
    assert usual.attrs["paths_description"] == "mean of the paths of equal steps, from steps of 24 h, 12 h, 6 h"
    assert usual.attrs["paths_by_lead_time"] == "6 h: 6\n24 h: 4x6, 2x12, 24"
    assert usual.lead_time.values.tolist() == [6 * 3600 * 10**9, 24 * 3600 * 10**9]
    assert usual.paths.values.tolist() == [1, 3]
    alone = {step: made("--paths", str(step), "--hours", "24", "--step", str(step)) for step in (6, 12, 24)}
    assert alone[6].paths.values.tolist() == [1, 1, 1, 1]
    spread = {name: float(usual[name].std()) for name in ("z", "t", "t2m")}
    for name, size in spread.items():
        np.testing.assert_array_equal(usual[name].isel(time=0), alone[6][name].isel(time=0))
        mean = sum(one[name].isel(time=-1) for one in alone.values()) / 3
        assert np.abs(usual[name].isel(time=-1) - mean).max() < 1e-5 * size
        assert np.abs(alone[24][name] - alone[6][name].isel(time=-1)).max() > 1e-3 * size
    best = made("--paths", "best.json", "--leads", "24")
    assert best.paths.values.tolist() == [2]
    assert best.attrs["paths_by_lead_time"] == f"24 h: {', '.join(text_of(runs_of(path)) for path in kept)}"
    assert "best.json sha256=" in best.attrs["paths_description"]
    assert run(["evaluate", "a.nc", "--truth", "a.nc", "--json"]) == 0, capsys.readouterr().err
    longest = made("--paths", "longest", "--hours", "24")
    assert "paths" not in longest.coords
    assert longest.attrs["paths_description"].startswith("longest steps first")
    assert "paths_by_lead_time" not in longest.attrs
    capsys.readouterr()
    assert run([*common, "--paths", "best.json", "--hours", "24"]) == 2
    assert "has no paths to 6 h, 12 h, 18 h\nhint: it has those for --leads 24" in capsys.readouterr().err


def test_the_plan_tells_steps_and_memory(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["forecast", "--init", "2024-01-01T00", "--days", "2", "--source", "idealized", "--weights", str(weights),
              "--device", "cpu", "--plan"]  # fmt: skip

    def runs(*arguments: str) -> dict[str, Any]:
        assert run([*common, "--json", *arguments]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)["runs"]
        return found

    usual, longest = runs(), runs("--paths", "longest")
    assert usual["advances"] == {"24": 2, "12": 4, "6": 8}
    assert (usual["evaluations"], usual["decodes"], usual["latents_held"], usual["means_held"]) == (14, 14, 3, 1)
    assert longest["advances"] == {"24": 2, "12": 2, "6": 4}
    assert (longest["decodes"], longest["latents_held"], longest["means_held"]) == (8, 2, 0)
    assert usual["host_bytes"] == longest["host_bytes"] + 2 * 4 * 5 * 8 * 16  # a latent and a mean
    assert usual["operations"] > longest["operations"]
    assert run(common) == 0
    assert "14 steps; 3 latents and 1 means held" in " ".join(capsys.readouterr().out.split())


def test_wrong_use_of_the_command(
    store: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["paths", "--data", str(store), "--weights", str(weights), "--out", "a.json"]
    for words, code, text in (
        (["--leads", "a day"], 2, "are not leads in hours"),
        (["--leads", "24", "--precision", "fp16"], 2, "--precision must be"),
        (["--leads", "24", "--sample", "0"], 2, "--sample must be at least 1"),
        (["--leads", "24", "--data", "absent"], 3, "there is no training store absent"),
        (["--leads", "24", "--weights", "absent.safetensors"], 6, "there are no weights"),
        (["--leads", "24", "--device", "cuda:7"], 7, "there is no device"),
    ):
        assert run([*common, *words]) == code
        streams = capsys.readouterr()
        assert text in streams.err
        assert streams.out == ""
    assert not list(tmp_path.iterdir())
