"""The `wm2` command: one module a command; each parses, calls one function and prints what it returns."""

from wm2cli.cli import doctor, evaluate, fetch, forecast, paths, plot, preprocess, train, weights
from wm2cli.cli.program import main, run

__all__ = ["doctor", "evaluate", "fetch", "forecast", "main", "paths", "plot", "preprocess", "run", "train", "weights"]
