"""The `wm2` command: one module a command; each parses, calls one function and prints what it returns."""

from wm2cli.cli import doctor, forecast, preprocess, weights
from wm2cli.cli.program import main, run

__all__ = ["doctor", "forecast", "main", "preprocess", "run", "weights"]
