"""Maps and the report: what is drawn, and that it stands on its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from verification import START, save, times, weatherbench, write_climatology, write_forecast, write_truth

from wm2cli.cli import run
from wm2cli.evaluation import plots, published
from wm2cli.evaluation.evaluate import Options, evaluate
from wm2cli.evaluation.plots import Panel, coastline, draw_maps
from wm2cli.evaluation.report import render
from wm2cli.grid import Grid


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A truth, a climatology and a forecast."""
    made = tmp_path_factory.mktemp("plots")
    write_truth(made / "truth.nc", days=2)
    write_climatology(made / "climatology.nc")
    write_forecast(made / "forecast.nc", leads=(6, 24, 48), attributes={"initial_conditions_source": "sample"})
    save(weatherbench(times(1, 24), (24,)), made / "two.zarr")
    return made


def colours(axes: Any, lon: float, lat: float) -> tuple[int, ...]:
    """The colour at a place of a map."""
    figure = axes.figure
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())
    x, y = axes.transData.transform((lon, lat))
    return tuple(int(part) for part in picture[picture.shape[0] - 1 - int(y), int(x), :3])


def test_what_is_drawn_is_where_it_belongs() -> None:
    grid = Grid.regular(5.625, "cells")
    field = np.zeros(grid.shape)
    field[(grid.lat[:, None] > 20) & (grid.lon[None] > 180) & (grid.lon[None] < 270)] = 10.0  # the north-east Pacific
    figure = draw_maps([Panel(field, "one")], grid.lat, grid.lon, "u850", title="winds", footer="from nowhere")
    axes = figure.axes[0]
    there, elsewhere = colours(axes, -135.0, 45.0), colours(axes, 75.0, -40.0)
    assert there[0] > there[2] + 60  # red for positive
    assert max(elsewhere) - min(elsewhere) < 30  # white for nothing
    assert axes.get_xlim() == (-180.0, 180.0)
    assert axes.get_title() == "one"
    bar = figure.axes[1]
    assert bar.get_xlabel() == "Eastward wind at 850 hPa, m/s"


def test_units_of_maps() -> None:
    grid = Grid.regular(22.5, "cells")
    for label, values, low, high, text in (
        ("z500", 9.80665 * 10 * np.linspace(500, 590, 16), 490, 600, "Geopotential height at 500 hPa, dam"),
        ("t2m", np.linspace(273.15, 303.15, 16), -3, 33, "2 metre temperature, °C"),
        ("msl", np.linspace(98000, 103000, 16), 975, 1035, "Mean sea level pressure, hPa"),
        ("tp_6h", np.linspace(0, 0.02, 16), 0.1, 50, "Total precipitation, 6 h, mm"),
    ):
        field = np.broadcast_to(values, grid.shape)
        figure = draw_maps([Panel(field, "")], grid.lat, grid.lon, label, title="")
        bar = figure.axes[1]
        assert bar.get_xlabel() == text
        assert low <= bar.get_xlim()[0]
        assert bar.get_xlim()[1] <= high
        error = draw_maps([Panel(field - field.mean(), "")], grid.lat, grid.lon, label, title="", difference=True)
        first, last = error.axes[1].get_xlim()
        assert first == pytest.approx(-last)


def test_coastlines_are_those_of_the_earth() -> None:
    points = np.concatenate(coastline())
    assert np.abs(points[:, 0]).max() <= 180
    assert np.abs(points[:, 1]).max() < 90

    def near(lon: float, lat: float) -> float:
        return float(np.hypot(points[:, 0] - lon, points[:, 1] - lat).min())

    for lon, lat in ((18.4, -34.3), (-5.7, 50.1), (-80.4, 25.2), (114.1, -21.8)):  # Cape, Cornwall, Florida, Exmouth
        assert near(lon, lat) < 1.6
    assert near(-140.0, 0.0) > 15  # the Pacific is empty


def test_plot_writes_pictures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["plot", str(folder / "forecast.nc"), "--variable"]
    assert run([*base, "z500", "--lead", "24", "--out", str(tmp_path / "map.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'map.png'}\n"
    one = Image.open(tmp_path / "map.png")
    assert min(one.size) > 400
    assert (
        run([*base, "t2m", "--lead", "6,24,48", "--region", "72/-25/34/45", "--out", str(tmp_path / "three.svg")]) == 0
    )
    assert "<svg" in (tmp_path / "three.svg").read_text()
    assert run([*base, "msl", "--out", str(tmp_path / "all.gif")]) == 0
    assert Image.open(tmp_path / "all.gif").n_frames == 3
    assert (
        run([*base, "msl", "--truth", str(folder / "truth.nc"), "--lead", "24", "--out", str(tmp_path / "e.pdf")]) == 0
    )
    assert (tmp_path / "e.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".gif", ".pdf", ".png", ".svg"]


def test_the_footer_says_that_weather_is_simulated(folder: Path) -> None:
    from wm2cli.evaluation.forecasts import open_forecasts
    from wm2cli.evaluation.plot import _footer

    assert "SIMULATED WEATHER" in _footer(open_forecasts([folder / "forecast.nc"]))
    assert "SIMULATED" not in _footer(open_forecasts([folder / "two.zarr"]))


WRONG = [
    (["forecast.nc", "--variable", "z501", "--out", "a.png"], 2, "the forecast has no z501"),
    (["forecast.nc", "--variable", "rain", "--out", "a.png"], 2, "is no channel"),
    (["forecast.nc", "--variable", "z500", "--out", "a.bmp"], 2, "no kind of picture"),
    (["forecast.nc", "--variable", "z500", "--out", "a.png", "--lead", "7"], 2, "no lead of 7 h"),
    (["forecast.nc", "--variable", "z500", "--out", "a.png", "--region", "1/2/3/4"], 2, "is not possible"),
    (["forecast.nc", "--variable", "z500", "--out", "a.png", "--init", "2024-01-01T00"], 2, "no init 2024-01-01T00"),
    (["two.zarr", "--variable", "z500", "--out", "a.png"], 2, "there are several inits"),
    (["truth.nc", "--variable", "z500", "--out", "a.png"], 3, "is no forecast"),
    (["forecast.nc", "--variable", "z500", "--out", "no/such/a.png"], 7, "cannot write"),
    (["forecast.nc", "--variable", "z500", "--out", "truth.nc"], 2, "no kind of picture"),
    (["forecast.nc", "--variable", "z500", "--out", "old.png"], 2, "exists already"),
]


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[" ".join(words) for words, _, _ in WRONG])
def test_wrong_command_lines(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                             words: list[str], code: int, message: str) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    (folder / "old.png").write_bytes(b"")
    assert run(["plot", *words]) == code
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.out == ""
    assert not list(folder.glob(".*part"))


def test_the_report_needs_nothing_else(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(folder / "forecast.nc"), "--truth", str(folder / "truth.nc"), "--climatology",
             str(folder / "climatology.nc"), "--report", str(tmp_path / "report")]  # fmt: skip
    assert run(words) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'report' / 'index.html'}\n")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["index.html", "scores.csv", "scores.json"]
    page = (tmp_path / "report" / "index.html").read_text()
    sources = re.findall(r'src="([^"]{0,40})', page)
    assert len(sources) > 8
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in re.sub(r'src="[^"]+"', "", page)
    assert set(re.findall(r'href="([^"]+)"', page)) == {"scores.csv", "scores.json"}
    for text in ("Scorecard", "Error by lead", "Where the errors are", "Spectra", "Physical checks",
                 "What was compared", "simulated weather", "Published models are not shown",
                 "better than persistence"):  # fmt: skip
        assert text in page
    assert run(words) == 2
    assert "exists already" in capsys.readouterr().err


def test_published_models_are_drawn_where_comparable(folder: Path) -> None:
    found = evaluate(Options((folder / "forecast.nc",), truth=(str(folder / "truth.nc"),), workers=1))
    curves = {"z500": published.curves("rmse", "z500")}
    figure = plots.draw_curves(found, "rmse", ["z500", "t2m"], curves)
    lines = figure.axes[0].get_lines()
    assert any(np.allclose(line.get_ydata(), (46.9, 138.9, 307.9, 522.8, 811.0)) for line in lines
               if len(line.get_ydata()) == 5)  # fmt: skip
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "IFS HRES vs ERA5" in texts
    assert "forecast" in texts


def test_names_in_the_page_are_text(folder: Path, tmp_path: Path) -> None:
    write_truth(tmp_path / "truth.nc", days=1, attributes={"source": "<script>alert(1)</script>"})
    write_forecast(tmp_path / "forecast.nc", leads=(6,))
    found = evaluate(Options((tmp_path / "forecast.nc",), truth=(str(tmp_path / "truth.nc"),), workers=1))
    page = render(found)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert START.astype(str)[:10] in page
