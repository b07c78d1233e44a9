"""The page a person reads: one HTML file with everything in it, and the numbers beside it as CSV and JSON."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wm2cli.errors import ResourceError
from wm2cli.evaluation import plots, published
from wm2cli.evaluation.physics import REFERENCE_MODELS
from wm2cli.evaluation.results import (
    Evaluation,
    display_units,
    lead_text,
    physics_rows,
    replacing,
    write_csv,
)
from wm2cli.evaluation.significance import FEWEST_BLOCKS
from wm2cli.sources import Progress

_STYLE = """
:root { --ink: #1c2329; --soft: #5a6670; --line: #d8dee3; --paper: #ffffff; --shade: #f4f6f8; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: var(--ink);
  background: var(--paper); }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0 0 6px; } h2 { font-size: 19px; margin: 40px 0 10px; }
p { margin: 6px 0; } .verdict { font-size: 17px; } .soft { color: var(--soft); font-size: 13.5px; }
.warning { background: #fff4d6; border-left: 4px solid #d89b00; padding: 8px 12px; margin: 10px 0; }
table { border-collapse: collapse; font-size: 13.5px; } .scroll { overflow-x: auto; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { background: var(--shade); font-weight: 600; }
.facts td { text-align: left; white-space: normal; vertical-align: top; } .facts td:first-child { color: var(--soft);
  white-space: nowrap; }
.cards { display: flex; flex-wrap: wrap; gap: 6px 34px; } .card th:not(:first-child) { text-align: center; }
.card td.cell { min-width: 78px; text-align: center; border: 1px solid var(--paper); }
.card small { color: inherit; opacity: 0.85; } img { max-width: 100%; height: auto; display: block; margin: 8px 0; }
.legend span { display: inline-block; padding: 1px 9px; margin-right: 4px; font-size: 12.5px; }
"""


def write_report(evaluation: Evaluation, folder: Path, on_progress: Progress = lambda what, done, total: None) -> Path:
    """Writes `index.html`, `scores.csv` and `scores.json` into a folder.

    Returns:
        The page.

    Raises:
        ResourceError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot make {folder}: {error.strerror}", hint="choose another folder") from error
    page = render(evaluation, on_progress)
    write_csv(evaluation, folder / "scores.csv")
    with replacing(folder / "scores.json") as partial:
        partial.write_text(json.dumps(evaluation.to_dict(), indent=1), encoding="utf-8")
    with replacing(folder / "index.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / "index.html"


def render(evaluation: Evaluation, on_progress: Progress = lambda what, done, total: None) -> str:
    """The page as text."""
    sections: tuple[Callable[[Evaluation], Iterator[str]], ...] = (
        _head, _scorecards, _curves, _maps, _spectra, _physics, _left_out, _facts,
    )  # fmt: skip
    parts: list[str] = []
    for number, section in enumerate(sections):
        on_progress("drawing the report", number, len(sections))
        parts += section(evaluation)
    title = html.escape(f"Scores of {evaluation.metadata['forecast']}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main>\n{''.join(parts)}\n</main></body></html>\n"
    )


def _head(evaluation: Evaluation) -> Iterator[str]:
    known = evaluation.metadata
    yield f"<h1>Scores of {_text(known['forecast'])}</h1>"
    yield f'<p class="verdict">{_text(evaluation.verdict())}.</p>'
    yield (f'<p class="soft">Verified against {_text(known["truth"])}; started {_text(known["inits"])}; '
           f'{_text(known["pairs"])} pairs; {_text(known["grid"])}; {_text(evaluation.regions[0])}.</p>')  # fmt: skip
    for warning in evaluation.warnings:
        yield f'<p class="warning">{_text(warning)}</p>'


def _scorecards(evaluation: Evaluation) -> Iterator[str]:
    leads, labels = evaluation.headline_leads(), evaluation.headline_labels()
    yield "<h2>Scorecard</h2>"
    if not evaluation.baselines:
        yield "<p>No baseline: give a climatology, a truth that has the inits, or a second forecast.</p>"
    yield '<div class="cards">'
    for baseline in evaluation.baselines or ("",):
        yield '<section class="scroll">'
        if baseline:
            article = "the " if baseline == "against" else ""
            yield f"<p>RMSE, and its difference from {article}{plots.NAMES[baseline]}.</p>"
        yield '<table class="card"><thead><tr><th>channel</th>'
        yield "".join(f"<th>{lead_text(lead)}</th>" for lead in leads) + "</tr></thead><tbody>"
        for label in labels:
            factor, units = display_units(label)
            yield f"<tr><td>{_text(label)} <small>{_text(units)}</small></td>"
            for lead in leads:
                yield _cell(evaluation, label, lead, baseline, factor)
            yield "</tr>"
        yield "</tbody></table></section>"
    yield "</div>"
    if evaluation.baselines:
        words = {0.5: "50 % better", 0.15: "15 % better", 0.0: "the same", -0.15: "15 % worse", -0.5: "50 % worse"}
        yield '<p class="legend soft">' + "".join(
            f'<span style="background:{_colour(skill)};color:{_ink(skill)}">{text}</span>'
            for skill, text in words.items()
        ) + f" {_sure(evaluation)}</p>"  # fmt: skip


def _sure(evaluation: Evaluation) -> str:
    if not any((found.blocks >= FEWEST_BLOCKS).any() for found in evaluation.comparisons.values()):
        return "Too few inits to tell skill from chance."
    return "A star marks what is not chance at 95 % (block bootstrap over inits, blocks of 10 days)."


def _cell(evaluation: Evaluation, label: str, lead: int, baseline: str, factor: float) -> str:
    rmse = evaluation.value("rmse", label, lead) * factor
    if not math.isfinite(rmse):
        return '<td class="cell">-</td>'
    if not baseline:
        return f'<td class="cell">{rmse:.4g}</td>'
    skill = evaluation.value(f"skill_{baseline}", label, lead)
    if not math.isfinite(skill):
        return f'<td class="cell">{rmse:.4g}</td>'
    found = evaluation.comparisons.get(baseline)
    channel = evaluation.labels.index(label)
    star = ""
    if found is not None and channel < found.mean.shape[1]:
        star = " *" if found.significant[evaluation.leads.index(lead), channel] else ""
    return (f'<td class="cell" style="background:{_colour(skill)};color:{_ink(skill)}">{rmse:.4g}<br>'
            f"<small>{-skill * 100:+.0f} %{star}</small></td>")  # fmt: skip


def _curves(evaluation: Evaluation) -> Iterator[str]:
    if len(evaluation.leads) < 2:
        return
    labels = evaluation.headline_labels()
    kinds = [str(evaluation.metadata[name]) for name in ("forecast_kind", "truth_kind")]
    reasons = published.why_not_comparable(
        evaluation.grid, str(evaluation.metadata["years"]), kinds, evaluation.regions[0]
    )
    truth = published.truth_of(f"{evaluation.metadata['truth']} {evaluation.metadata['truth_source']}")
    for score, title in (("rmse", "Error by lead"), ("acc", "Anomaly correlation by lead")):
        wanted = [label for label in labels if _any(evaluation, score, label)]
        if not wanted:
            continue
        others = {} if reasons else {label: published.curves(score, label, truth) for label in wanted}
        yield f"<h2>{title}</h2>"
        if score == "rmse":
            yield f'<p class="soft">{_published_text(reasons)}</p>'
        yield _image(plots.draw_curves(evaluation, score, wanted, others), title)


def _published_text(reasons: list[str]) -> str:
    if reasons:
        return _text(f"Published models are not shown, because {'; '.join(reasons)}.")
    return ("Thin lines are published scores of 2022 at 1.5 degrees (WeatherBench 2), full lines against ERA5, dashed "
            "lines against the IFS analysis.")  # fmt: skip


def _maps(evaluation: Evaluation) -> Iterator[str]:
    maps = evaluation.maps
    if not maps:
        return
    yield "<h2>Where the errors are</h2>"
    for number, label in enumerate(maps["labels"]):
        for name, title, difference in (("bias", "Bias", True), ("rmse", "RMSE", False)):
            panels = [
                plots.Panel(maps[name][place, number], lead_text(lead)) for place, lead in enumerate(maps["leads"])
            ]
            figure = plots.draw_maps(panels, maps["lat"], maps["lon"], label, title=f"{title} of {label}",
                                     difference=difference, error=not difference)  # fmt: skip
            yield _image(figure, f"{title} of {label}", "png")


def _spectra(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.spectra.get("labels"):
        return
    yield "<h2>Spectra</h2>"
    yield ('<p class="soft">Zonal energy spectra between 30 and 60 degrees, both hemispheres. A forecast below the '
           "truth at small scales is too smooth.</p>")  # fmt: skip
    leads = evaluation.headline_leads()
    yield _image(plots.draw_spectra(evaluation, leads), "Spectra")


def _physics(evaluation: Evaluation) -> Iterator[str]:
    rows = physics_rows(evaluation)
    yield "<h2>Physical checks</h2>"
    yield ('<p class="soft">Published values are those of PhysMetrics (2020, at 12 / 120 / 240 h, finer grids): an '
           "order of magnitude.</p>")  # fmt: skip
    yield '<div class="scroll"><table><thead><tr><th>check</th><th>unit</th><th>first lead</th><th>last lead</th>'
    yield "<th>truth</th>" + "".join(f"<th>{model}</th>" for model in REFERENCE_MODELS) + "</tr></thead><tbody>"
    for row in rows:
        names = ("what", "units", "first", "last", "truth", *REFERENCE_MODELS)
        yield "<tr>" + "".join(f"<td>{_text(row[name])}</td>" for name in names) + "</tr>"
    yield "</tbody></table></div>"


def _left_out(evaluation: Evaluation) -> Iterator[str]:
    lines = [*evaluation.notes, *(f"not scored, {reason}: {pairs}" for reason, pairs in evaluation.unmatched.items())]
    if lines:
        yield "<h2>Notes</h2><ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _facts(evaluation: Evaluation) -> Iterator[str]:
    yield '<h2>What was compared</h2><table class="facts"><tbody>'
    for name, value in evaluation.metadata.items():
        yield f"<tr><td>{_text(name.replace('_', ' '))}</td><td>{_text(value)}</td></tr>"
    yield "</tbody></table>"
    yield '<p class="soft">All numbers: <a href="scores.csv">scores.csv</a>, <a href="scores.json">scores.json</a>.</p>'


def _any(evaluation: Evaluation, score: str, label: str) -> bool:
    return any(math.isfinite(evaluation.value(score, label, lead)) for lead in evaluation.leads)


def _image(figure: Any, title: str, kind: str = "svg") -> str:
    return f'<img alt="{_text(title)}" src="{plots.embedded(figure, kind)}">'


def _text(value: Any) -> str:
    return html.escape(str(value))


def _colour(skill: float) -> str:
    """Blue for better, orange for worse, white for the same."""
    share = min(1.0, abs(skill) / 0.5)
    end = (33, 102, 172) if skill > 0 else (196, 98, 16)
    red, green, blue = (round(255 + (part - 255) * share) for part in end)
    return f"rgb({red},{green},{blue})"


def _ink(skill: float) -> str:
    return "#ffffff" if abs(skill) > 0.36 else "#1c2329"
