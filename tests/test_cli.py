"""The command line: streams, exit codes, messages, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wm2cli import __version__, checkpoint
from wm2cli.cli import run
from wm2cli.cli.arguments import parse_levels, parse_region, parse_time
from wm2cli.cli.program import app
from wm2cli.errors import UsageError


@pytest.fixture
def base(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("WM2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return [
        "forecast",
        "--init",
        "2024-01-01T00",
        "--hours",
        "12",
        "--source",
        "idealized",
        "--weights",
        str(weights),
        "--allow-untrained",
    ]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"wm2 {__version__}\n"


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("forecast", "weights", "doctor"):
        assert command in text


@pytest.mark.parametrize(
    "command",
    [
        ["forecast"],
        ["paths"],
        ["doctor"],
        *(["weights", verb] for verb in ("list", "get", "import", "verify", "info", "init")),
    ],
    ids=" ".join,
)
def test_every_command_shows_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples" in text
    assert text.count(f"wm2 {' '.join(command)}") >= 2


FLAGS = {
    "--init",
    "--days",
    "--hours",
    "--step",
    "--leads",
    "--paths",
    "--source",
    "--option",
    "--cache",
    "--offline",
    "--wait",
    "--max-age",
    "--input",
    "--weights",
    "--out",
    "--variables",
    "--levels",
    "--region",
    "--device",
    "--precision",
    "--encoder",
    "--threads",
    "--derive",
    "--extrapolate",
    "--lossless",
    "--overwrite",
    "--allow-untrained",
    "--plan",
    "--json",
    "--help",
}


def test_the_flags_of_forecast_are_frozen() -> None:
    import typer

    command = typer.main.get_command(app).commands["forecast"]  # type: ignore[attr-defined]
    context = command.make_context("forecast", ["--init", "x"])
    assert {
        name for parameter in command.get_params(context) for name in parameter.opts if name.startswith("--")
    } == FLAGS


def test_stdout_is_the_path_and_nothing_else(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(base) == 0
    streams = capsys.readouterr()
    assert streams.out == "wm2_20240101T00.nc\n"
    assert (tmp_path / "wm2_20240101T00.nc").is_file()
    assert "warning: untrained weights" in streams.err


def test_json_is_one_document(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*base, "--json", "--out", "a.nc"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == 1
    assert document["path"] == "a.nc"
    assert document["leads_hours"] == [6, 12]
    assert document["trained"] is False
    assert run([*base, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["writes"]["times"] == 2


def test_days_and_default_length(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    plain = [word for word in base if word not in ("--hours", "12")]
    assert run([*plain, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["writes"]["last_lead_hours"] == 336
    assert run([*plain, "--days", "0.5", "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["writes"]["last_lead_hours"] == 12


def swap(words: list[str], flag: str, value: str) -> list[str]:
    return [value if words[max(0, index - 1)] == flag else word for index, word in enumerate(words)]


WRONG = [
    (["--init", "yesterday"], 2, "not a time as 2024-01-01T00"),
    (["--init", "2024-02-30T00"], 2, "not a date of the calendar"),
    (["--init", "2024-01-01T00+02"], 2, "not a time as"),
    (["--days", "3"], 2, "exclude each other"),
    (["--step", "5"], 2, "must be 1, 3, 6, 12 or 24"),
    (["--step", "24"], 2, "not a multiple of the step"),
    (["--leads", "6,12"], 2, "--leads stands for --days, --hours and --step"),
    (["--paths", "12"], 2, "the model has no 12 h step; it has 6 h, 1 h"),
    (["--paths", "homogenous"], 2, "did you mean 'homogeneous'? they are homogeneous, longest, 6, 1, or a .json"),
    (["--paths", "absent.json"], 9, "the paths absent.json cannot be read"),
    (["--variables", "t2m,rain"], 2, "unknown variable 'rain'"),
    (["--levels", "500,high"], 2, "not levels in hPa"),
    (["--region", "10/20/30"], 2, "not a region as N/W/S/E"),
    (["--region", "10/20/30/40"], 2, "north not below south"),
    (["--device", "cuda:7"], 7, "there is no device cuda:7"),
    (["--precision", "fp16"], 2, "must be auto, fp32 or bf16"),
    (["--source", "era6"], 2, "unknown source 'era6'"),
    (["--source", "file"], 2, "needs files"),
    (["--source", "file", "--input", "absent.grib"], 3, "absent.grib"),
    (["--weights", "absent.safetensors"], 6, "there are no weights at absent.safetensors"),
    (["--out", "no/such/folder/a.nc"], 7, "does not exist"),
    (["--out", "/proc/a.nc"], 7, "/proc"),
    (["--encoder", "gfs"], 2, "no encoder 'gfs'"),
    (["--threads", "0"], 2, "threads"),
    (["--colour", "blue"], 2, "--colour"),
]


@pytest.mark.parametrize(
    ("change", "code", "text"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_wrong_usage(
    base: list[str], change: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = list(base)
    for flag, value in zip(change[::2], change[1::2], strict=True):
        words = swap(words, flag, value) if flag in words else [*words, flag, value]
    assert run(words) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    assert text in streams.err
    assert "Traceback" not in streams.err
    assert [line for line in streams.err.splitlines() if line.startswith("error: ")]
    assert not list(Path().glob("**/*.nc.part"))
    assert not list(Path().glob("*.nc"))


def test_several_mistakes_are_told_at_once(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*swap(base, "--init", "x"), "--region", "x", "--levels", "x", "--precision", "x"]) == 2
    assert capsys.readouterr().err.count("\n  - ") == 4


def test_an_unknown_name_of_weights_is_refused_with_those_there_are(
    base: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = base.index("--weights")
    monkeypatch.setenv("WM2_WEIGHTS", "no-such-weights")
    assert run(base[:index] + base[index + 2 :]) == 6
    assert "bundled are wm2-mini" in capsys.readouterr().err


def test_existing_output(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wm2_20240101T00.nc").write_text("mine")
    assert run(base) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "wm2_20240101T00.nc").read_text() == "mine"
    assert run([*base, "--overwrite"]) == 0


def test_a_bug_is_code_1_with_a_pointer_to_debug(
    base: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("wm2cli.forecast.forecast", broken)
    assert run(base) == 1
    assert "bug in wm2: ZeroDivisionError: oops" in (text := capsys.readouterr().err)
    assert "Traceback" not in text
    assert run(["--debug", *base]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_weights_init_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.safetensors"
    words = ["weights", "init", "--preset", "tiny", "--seed", "3", "--out"]
    assert run([*words, str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert run([*words, str(path)]) == 2
    assert run([*words, str(tmp_path / "again.safetensors")]) == 0
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert run(["weights", "init", "--preset", "tiny", "--seed", "4", "--out", str(path), "--overwrite"]) == 0
    assert path.read_bytes() != (tmp_path / "again.safetensors").read_bytes()
    capsys.readouterr()
    assert run(["weights", "info", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["trained"] is False
    assert document["static"] == {"lsm": "zero (none given)", "orog": "zero (none given)", "slt": "zero (none given)"}
    assert document["parameters"] == sum(document["parameters_by_part"].values())
    assert document["steps_hours"] == [6, 1]
    assert run(["weights", "info", str(path)]) == 0
    assert "zero (none given)" in capsys.readouterr().out
    assert run(["weights", "init", "--preset", "minni", "--out", str(tmp_path / "x")]) == 2
    assert "did you mean 'mini'" in capsys.readouterr().err


def test_static_fields_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wm2cli.sources import Request
    from wm2cli.sources.idealized import Idealized

    source = Idealized()
    file = source.fetch(source.plan(Request((np.datetime64("2024-01-01"),)))[0], tmp_path)
    path = tmp_path / "tiny.safetensors"
    assert run(["weights", "init", "--preset", "tiny", "--static", str(file), "--out", str(path)]) == 0
    capsys.readouterr()
    assert run(["weights", "info", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["static"]
    assert "idealized" in found["orog"]
    assert found["lsm"] == "zero (none given)"
    loaded = checkpoint.load(path)
    assert float(loaded.static["orog"].min()) == pytest.approx(-315, abs=20)


def test_a_damaged_checkpoint_is_code_6(
    weights: Path, tmp_path: Path, base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(bytes(data))
    assert run(swap(base, "--weights", str(tmp_path / "bad.safetensors"))) == 6
    assert "damaged" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    findings = {item["name"]: item for item in json.loads(capsys.readouterr().out)["findings"]}
    assert {
        "Python",
        "torch",
        "CPU threads",
        "CPU bf16",
        "natten",
        "eccodes",
        "cache folder",
        "disk of the cache",
    } <= set(findings)
    assert all(item["mend"] for item in findings.values() if item["status"] == "broken")
    assert run(["doctor"]) == 0
    assert "eccodes" in capsys.readouterr().out


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """A long forecast in a process of its own, once it has begun to write."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wm2cli", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob(".*.part")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing(base: list[str], tmp_path: Path, number: signal.Signals, code: int) -> None:
    words = [*swap(base, "--hours", "24000"), "--step", "1"]
    process = start(words, tmp_path)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert "nothing was left half-written" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


def test_kill_leaves_no_final_name_and_the_next_run_works(base: list[str], tmp_path: Path) -> None:
    process = start([*swap(base, "--hours", "24000"), "--step", "1"], tmp_path)
    process.kill()
    process.communicate()
    assert not (tmp_path / "wm2_20240101T00.nc").exists()
    assert run(base) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "wm2_20240101T00.nc"]


def test_a_closed_pipe_is_no_traceback(base: list[str], tmp_path: Path) -> None:
    code = f"{sys.executable} -m wm2cli weights info {base[base.index('--weights') + 1]} | head -1"
    done = subprocess.run(
        ["bash", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-01-01T06", "2024-01-01T06:00:00"),
        ("2024-01-01", "2024-01-01T00:00:00"),
        ("2024-01-01T0630Z", "2024-01-01T06:30:00"),
        ("2024-01-01T18:00", "2024-01-01T18:00:00"),
    ],
)
def test_times(text: str, value: str) -> None:
    assert str(parse_time(text)) == value


def test_lists_of_numbers() -> None:
    assert parse_levels("500,0.5") == (500.0, 0.5)
    assert parse_region("72/-25/34/45") == (72.0, -25.0, 34.0, 45.0)
    with pytest.raises(UsageError):
        parse_region("a/b/c/d")
