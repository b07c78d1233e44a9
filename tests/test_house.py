"""The rules of the house, read off the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wm2cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"errors", "machine"},
    {"schema", "grid", "config", "recipes"},
    {"bundled", "settings"},
    {"forcings", "reading", "transfer", "writing"},
    {"sources"},
    {"analysis", "fetch", "hub", "store"},
    {"preprocessing", "evaluation"},
    {"state"},
    {"models"},
    {"checkpoint", "devices", "torch_archive"},
    {"foreign"},
    {"rollout", "weights", "preprocess"},
    {"forecast", "training", "doctor", "paths"},
    {"planning"},
    {"cli"},
    {"__main__"},
]
"""A module imports from its own layer or from those above it, never from below."""

ABOVE_TORCH = set().union(*LAYERS[:7]) | {"cli", "__main__"}


def room(path: Path) -> str:
    """`models/layers.py` -> `models`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST, top_only: bool) -> set[str]:
    """Modules imported, at the top of the file or anywhere; what only the type checker sees is left out."""
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif not (top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
                pending.append(node)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    order = {name: number for number, names in enumerate(LAYERS) for name in names}
    if path.parent == PACKAGE and path.stem == "__init__":
        return
    assert room(path) in order, f"give {room(path)} a place in LAYERS"
    for module in imports(ast.parse(path.read_text()), top_only=False):
        parts = module.split(".")
        if parts[0] == "wm2cli" and len(parts) > 1 and parts[1] in order:
            assert order[parts[1]] <= order[room(path)], f"{path.name} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_above_the_bar_imports_torch(path: Path) -> None:
    if room(path) in ABOVE_TORCH:
        top = imports(ast.parse(path.read_text()), top_only=True)
        assert not {module for module in top if module.split(".")[0] == "torch"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_assert_and_no_forbidden_name(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert path.stem not in {"utils", "common", "helpers", "base", "misc"}


def test_the_rule_can_fail() -> None:
    tree = ast.parse("import torch\ndef f():\n    from wm2cli.cli import main\n")
    assert imports(tree, top_only=True) == {"torch"}
    assert imports(tree, top_only=False) == {"torch", "wm2cli.cli.main"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from wm2cli.cli import run; code = run(['--help']);"
        "heavy = {'torch', 'xarray', 'numpy', 'netCDF4', 'eccodes'} & set(sys.modules);"
        "sys.exit(f'{heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
