"""From what files hold to exactly what a model starts from: checked, completed as asked for, on its grid and levels."""

from wm2cli.analysis.preparation import Analysis, prepare
from wm2cli.analysis.statics import read_static

__all__ = ["Analysis", "prepare", "read_static"]
