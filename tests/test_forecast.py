"""The forecast command's function: step plans, rollout, values, and the file from end to end."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from networks import GRID, network, state

from wm2cli import checkpoint
from wm2cli.checkpoint import Header
from wm2cli.devices import resolve_device
from wm2cli.errors import CheckpointError, DataError, ResourceError, UsageError, ValuesError
from wm2cli.forecast import Options, check_values, encoder_inputs, forecast, lead_times, select
from wm2cli.models import Latent
from wm2cli.models.weathermesh2 import EncoderConfig, WeatherMesh2
from wm2cli.planning import plan
from wm2cli.rollout import Route, Tree, longest_first, rollout, step_plan
from wm2cli.state import State

INIT = np.datetime64("2024-01-01T00", "s")


@pytest.fixture
def options(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setenv("WM2_CACHE", str(tmp_path / "cache"))
    return Options(INIT, 24, source="idealized", weights=str(weights), out=tmp_path / "out.nc", allow_untrained=True,
                   device="cpu")  # fmt: skip


def test_step_plan_shares_beginnings() -> None:
    assert step_plan((6, 1), (6, 12)) == {6: {6: {}}}
    assert step_plan((1, 6), (1, 6, 7, 8)) == {1: {}, 6: {1: {1: {}}}}
    tree = step_plan((6, 1), range(1, 25))
    assert tree[6][6][6] == {1: {1: {1: {1: {1: {}}}}}, 6: {}}


def test_step_plan_names_what_it_cannot_reach() -> None:
    with pytest.raises(UsageError, match="do not reach 3 h, 9 h") as caught:
        step_plan((6,), (3, 6, 9))
    assert "multiple of 6" in (caught.value.hint or "")
    with pytest.raises(UsageError):  # greedy by design: 9 = 3 + 3 + 3 is not found after 5
        step_plan((5, 3), (9,))


class Counter:
    """A model whose latent is the list of steps taken, and which counts the latents alive."""

    steps = (6, 1)

    def __init__(self) -> None:
        self.advances = 0
        self.alive: set[int] = set()
        self.most = 0

    def make(self, steps: tuple[int, ...]) -> Latent:
        latent = Latent(torch.tensor(steps or (0,)), np.array([INIT + np.timedelta64(sum(steps), "h")]))
        self.alive.add(id(latent))
        weakref.finalize(latent, self.alive.discard, id(latent))
        self.most = max(self.most, len(self.alive))
        return latent

    def advance(self, latent: Latent, hours: int) -> Latent:
        self.advances += 1
        done = tuple(latent.x.tolist())
        return self.make((*(step for step in done if step), hours))

    def decode(self, latent: Latent) -> tuple[int, ...]:
        return tuple(latent.x.tolist())


def walk(leads: range) -> tuple[Counter, list[tuple[int, object]]]:
    counter = Counter()
    start = counter.make(())
    found = rollout(counter, start, Route.along(longest_first(counter.steps, leads)))  # type: ignore[arg-type]
    del start
    return counter, list(found)


def test_rollout_comes_in_order_and_computes_each_step_once() -> None:
    counter, found = walk(range(1, 25))
    assert [lead for lead, _ in found] == list(range(1, 25))
    assert all(sum(steps) == lead for lead, steps in found)  # type: ignore[call-overload]
    assert found[20] == (21, (6, 6, 6, 1, 1, 1))
    assert counter.advances == 4 + 4 * 5


@pytest.mark.parametrize("step", [1, 3, 6, 12])
def test_rollout_holds_a_bounded_number_of_latents(step: int) -> None:
    counts = [walk(range(step, hours + 1, step))[0].most for hours in (24, 336)]
    assert counts[0] == counts[1] <= 4


def test_rollout_equals_steps_by_hand() -> None:
    model = network()
    start = model.encode(state(model))
    found = dict(rollout(model, start, Route.along(longest_first(model.steps, (1, 6, 7)))))
    by_hand = model.decode(model.advance(model.advance(start, 6), 1))
    assert torch.equal(found[7].pressure, by_hand.pressure)
    assert found[7].time == INIT + np.timedelta64(7, "h")
    assert torch.equal(found[1].surface, model.decode(model.advance(start, 1)).surface)


@pytest.mark.parametrize(
    ("hours", "step", "text"),
    [(0, 6, "longer than zero"), (25, 6, "not a multiple"), (24, 5, "must be 1, 3, 6, 12 or 24")],
)
def test_impossible_lead_times(hours: int, step: int, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        lead_times(Options(INIT, hours, step))
    assert text in str(caught.value)


def test_lead_times_can_be_named() -> None:
    assert lead_times(Options(INIT, 24, leads=(7, 30))) == (7, 30)
    for leads, text in (((0, 6), "0 h is no lead time"), ((12, 6), "must be some and increase"), ((), "found []")):
        with pytest.raises(UsageError) as caught:
            lead_times(Options(INIT, 24, leads=leads))
        assert text in str(caught.value)


def test_values_are_checked_by_channel() -> None:
    model = network(loud=False)
    good = model.decode(model.encode(state(model)))
    check_values(good, 6)
    for index, value, label in ((1, float("nan"), "t300"), (1, 20.0, "t300"), (0, float("inf"), "z300")):
        pressure = good.pressure.clone()
        pressure[0, index, 1, 3, 3] = value
        bad = State(good.schema, good.grid, good.time, pressure, good.surface)
        with pytest.raises(ValuesError, match="at 12 h") as caught:
            check_values(bad, 12)
        assert len(caught.value.problems) == 1
        assert label in caught.value.problems[0]
        assert caught.value.exit_code == 8


def test_windows_follow_the_step() -> None:
    model = network()
    six = select(Options(INIT, 24, 6), model.schema_out, GRID).surface
    assert "lsp_6h" in six
    for hourly in (Options(INIT, 24, 1), Options(INIT, 24, 3), Options(INIT, 24, leads=(7,))):
        assert not any(name.endswith("_6h") for name in select(hourly, model.schema_out, GRID).surface)
    assert "lsp_6h" in select(Options(INIT, 24, leads=(12, 30)), model.schema_out, GRID).surface


def test_selection_lists_everything_unknown() -> None:
    model = network()
    wanted = Options(INIT, 24, variables=("z", "t2n", "sp"), levels=(500.0, 501.0))
    with pytest.raises(UsageError) as caught:
        select(wanted, model.schema_out, GRID)
    text = "\n".join(caught.value.problems)
    assert "unknown variable 't2n'; did you mean t2m" in text
    assert "does not make sp (Surface pressure)" in text
    assert "no level 501 hPa" in text


def test_inputs_by_encoder() -> None:
    inputs = {"gfs": network().inputs["era5"], "hres": network().inputs["era5"]}
    base = Options(INIT, 24)
    assert encoder_inputs(base, inputs) == {"gfs": ()}
    assert encoder_inputs(replace(base, inputs=("a.nc", "b.nc"), encoder="hres"), inputs) == {"hres": ("a.nc", "b.nc")}
    assert encoder_inputs(replace(base, inputs=("gfs=a=1.nc", "hres=b.nc")), inputs) == {
        "gfs": ("a=1.nc",),
        "hres": ("b.nc",),
    }
    assert encoder_inputs(replace(base, inputs=("x=1.nc",)), inputs) == {"gfs": ("x=1.nc",)}
    with pytest.raises(UsageError, match="no encoder 'ifs'"):
        encoder_inputs(replace(base, encoder="ifs"), inputs)


def test_a_forecast_from_end_to_end(options: Options) -> None:
    steps: list[tuple[str, int, int]] = []
    result = forecast(options, lambda *step: steps.append(step))
    assert result.path == options.out
    assert result.leads_hours == (6, 12, 18, 24)
    assert ("forecasting", 4, 4) in steps
    with xr.open_dataset(result.path) as made:
        assert made.sizes == {"time": 4, "level": 5, "latitude": 16, "longitude": 32, "bnds": 2}
        assert made.time.values[-1] == np.datetime64("2024-01-02T00")
        assert made.forecast_reference_time.values == np.datetime64("2024-01-01T00")
        assert all(np.isfinite(made[name]).all() for name in ("z", "t2m", "lsp_6h"))
        assert made.attrs["weights_trained"] == "no"
        assert "no forecast" in made.attrs["warning"]
        assert made.attrs["weights_sha256"] == result.sha256_weights
        assert "regrid" in made.attrs["initial_conditions_processing"]
        assert made.attrs["command_line"]
    # What stands in the file is what the model makes.
    loaded = checkpoint.load(Path(options.weights or ""))
    assert result.sha256_weights == loaded.sha256


def test_the_file_holds_what_the_model_makes(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[int, State] = {}
    monkeypatch.setattr("wm2cli.forecast.check_values", lambda made, lead: held.update({lead: made}))
    result = forecast(
        replace(
            options, lossless=True, step=3, variables=("t", "t2m"), levels=(850.0, 300.0), region=(50, -20, -10, 40)
        )
    )
    with xr.open_dataset(result.path) as made:
        assert made.level.values.tolist() == [300.0, 850.0]
        assert set(made.data_vars) - {"crs", "time_bnds"} == {"t", "t2m"}
        assert (made.longitude.values < 0).any()
        for index, lead in enumerate(result.leads_hours):
            lat = [float(held[lead].grid.lat[row]) for row in range(16) if -10 <= held[lead].grid.lat[row] <= 50]
            np.testing.assert_array_equal(made.latitude.values, lat)
            row, column = list(GRID.lat).index(lat[1]), 1  # 11.25 degrees east
            assert (
                made.t2m.isel(time=index, latitude=1).sel(longitude=11.25) == held[lead].select("t2m")[0, row, column]
            )
            assert (
                made.t.isel(time=index, latitude=1).sel(longitude=11.25, level=850)
                == held[lead].select("t", 850.0)[0, row, column]
            )


def test_untrained_weights_are_refused_unless_allowed(options: Options) -> None:
    with pytest.raises(CheckpointError, match="untrained") as caught:
        forecast(replace(options, allow_untrained=False))
    assert "--allow-untrained" in (caught.value.hint or "")
    assert options.out is not None
    assert not options.out.exists()


def test_an_existing_output_is_refused_before_any_work(options: Options) -> None:
    assert options.out is not None
    options.out.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        forecast(replace(options, weights="absent.safetensors"))
    assert options.out.read_text() == "mine"
    forecast(replace(options, overwrite=True))
    assert options.out.stat().st_size > 1000


def test_a_failing_model_leaves_no_file(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    def wild(self: WeatherMesh2, latent: Latent) -> State:
        made = decode(self, latent)
        if latent.time[0] >= np.datetime64("2024-01-01T18"):
            made.surface[0, 0, 0, 0] = float("nan")
        return made

    decode = WeatherMesh2.decode
    monkeypatch.setattr(WeatherMesh2, "decode", wild)
    with pytest.raises(ValuesError, match="at 18 h"):
        forecast(options)
    assert options.out is not None
    assert list(options.out.parent.glob("*out.nc*")) == []
    assert list(options.out.parent.glob(".*")) == []


def test_a_wrong_init_says_which_times_there_are(options: Options, tmp_path: Path) -> None:
    from wm2cli.sources.idealized import Idealized

    source = Idealized()
    from wm2cli.sources import Request

    piece = source.plan(Request((INIT,)))[0]
    path = source.fetch(piece, tmp_path)
    with pytest.raises(DataError) as caught:
        forecast(replace(options, source="file", inputs=(str(path),), init=np.datetime64("2024-01-02T00", "s")))
    assert "2024-01-01T00" in str(caught.value)


def test_two_encoders_blend(options: Options, tmp_path: Path) -> None:
    base = network().inputs["era5"]
    model = network(loud=False, encoders=(EncoderConfig("gfs", base, 1.0), EncoderConfig("hres", base, 3.0)))
    path = tmp_path / "two.safetensors"
    checkpoint.save(path, model, Header("weathermesh2", "two", model.config, model.normalizer), {})
    from wm2cli.sources import Request
    from wm2cli.sources.idealized import Idealized

    source = Idealized()
    file = source.fetch(source.plan(Request((INIT,)))[0], tmp_path)
    result = forecast(replace(options, weights=str(path), source="file", inputs=(f"gfs={file}", f"hres={file}")))
    with xr.open_dataset(result.path) as made:
        assert made.attrs["encoders"] == "gfs, hres"


def test_plan_reads_nothing_and_writes_nothing(options: Options) -> None:
    planned = plan(options)
    assert planned.runs["advances"] == {"6": 4}
    assert planned.writes["times"] == 4
    assert planned.writes["bytes_uncompressed"] > 4 * 38 * 16 * 32 * 4
    assert planned.problems == ()
    assert options.out is not None
    assert not options.out.exists()
    hourly = plan(replace(options, step=1))
    assert hourly.runs["advances"] == {"6": 4, "1": 20}


def test_plan_tells_when_the_disk_is_too_small(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))  # type: ignore[attr-defined]
    assert any("1 kB free" in problem for problem in plan(options).problems)
    with pytest.raises(ResourceError):
        forecast(options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_such_device() -> None:
    with pytest.raises(ResourceError, match="there is no device cuda") as caught:
        resolve_device("cuda:3")
    assert "cpu" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="not a device"):
        resolve_device("gpu")
    with pytest.raises(UsageError, match="does not run on"):
        resolve_device("meta")
    assert resolve_device("auto") == torch.device("cpu")


def test_out_of_memory_is_a_resource_problem(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: WeatherMesh2, latent: Latent, hours: int) -> Latent:
        raise MemoryError

    monkeypatch.setattr(WeatherMesh2, "advance", full)
    with pytest.raises(ResourceError, match="out of memory"):
        forecast(options)


def test_tree_type_is_plain() -> None:
    tree: Tree = step_plan((6,), (6,))
    assert isinstance(tree, dict)
