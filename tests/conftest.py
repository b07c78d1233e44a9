"""What several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
from networks import network, static

from wm2cli import checkpoint
from wm2cli.checkpoint import Header


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small untrained network that stays near the mean state."""
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    model = network(loud=False)
    checkpoint.save(path, model, Header("weathermesh2", "test-net", model.config, model.normalizer), static())
    return path
