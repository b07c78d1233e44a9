"""What several test files share."""

from __future__ import annotations

import os

from wm2cli.machine import cores

# Before torch looks at it: processes of tests that share the cores must not each start a thread for every core, which
# then wait for one another.
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // workers)))

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from networks import network, static
from stores import make_store, untrained

from wm2cli import checkpoint
from wm2cli.checkpoint import Header
from wm2cli.store import Store


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads, and small networks gain nothing from several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A training store of the toy's channels."""
    return make_store(tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Path:
    """Untrained weights with the statistics of `store`."""
    return untrained(tmp_path_factory.mktemp("start") / "start.safetensors", store)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small untrained network that stays near the mean state."""
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    model = network(loud=False)
    checkpoint.save(path, model, Header("weathermesh2", "test-net", model.config, model.normalizer), static())
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, settings with short pauses, and a home without credentials."""
    settings = tmp_path / "config.toml"
    settings.write_text(
        "[network]\nattempts = 4\nfirst_pause = 0.01\nlongest_pause = 0.05\n"
        "read_seconds = 10.0\nconnect_seconds = 10.0\n"
    )
    for name in ("CDSAPI_URL", "CDSAPI_KEY", "WM2_GFS_ROOTS", "WM2_IFS_ROOTS", "WM2_ARCO_ROOT", "WM2_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CDSAPI_RC", str(tmp_path / "cdsapirc"))
    monkeypatch.setenv("WM2_CONFIG", str(settings))
    monkeypatch.setenv("WM2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"
