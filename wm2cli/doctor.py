"""The doctor command: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from typing import Any, Literal

from wm2cli.machine import cores
from wm2cli.sources import cache_folder

FORMAT = 1
"""Format number of the JSON document."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Args:
        name: What.
        status: `ok`, `missing` (wm2 works without it) or `broken` (it does not).
        found: What is there.
        mend: The command or step that mends it; empty when nothing needs mending.
    """

    name: str
    status: Literal["ok", "missing", "broken"]
    found: str
    mend: str = ""


def doctor() -> tuple[Finding, ...]:
    """Looks at everything wm2 needs or can use; never raises for what it finds."""
    return (
        _python(),
        _package("wm2cli", "pip install wm2cli"),
        *_torch(),
        _natten(),
        _eccodes(),
        _package("netCDF4", "pip install netCDF4"),
        _package("xarray", "pip install xarray"),
        _weights(),
        *_folders(),
    )


def to_dict(findings: tuple[Finding, ...]) -> dict[str, Any]:
    """One JSON document."""
    return {"format": FORMAT, "findings": [vars(finding) for finding in findings]}


def _python() -> Finding:
    version = platform.python_version()
    text = f"{version} at {sys.executable}"
    return Finding("Python", "ok", text)


def _package(name: str, mend: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "broken", "not installed", mend)


def _torch() -> list[Finding]:
    try:
        import torch
    except Exception as error:  # a broken wheel fails in many ways, and saying so is this command's task
        return [Finding("torch", "broken", f"cannot be imported: {error}", "pip install torch")]
    threads = f"{torch.get_num_threads()} of {cores()} cores"
    findings = [Finding("torch", "ok", torch.__version__), Finding("CPU threads", "ok", threads)]
    capability = torch.backends.cpu.get_cpu_capability()
    native = "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()
    findings.append(Finding("CPU bf16", "ok" if native else "missing", f"{capability}, bf16 "
                            f"{'in hardware' if native else 'emulated: --precision fp32 is faster'}"))  # fmt: skip
    if not torch.cuda.is_available():
        why = "torch is built without CUDA" if torch.version.cuda is None else "no usable driver or GPU"
        findings.append(Finding("GPU", "missing", why, "forecasts run on the CPU; for NVIDIA GPUs install a CUDA "
                                "build of torch and a driver"))  # fmt: skip
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        memory = properties.total_memory / 2**30
        findings.append(Finding(f"GPU cuda:{index}", "ok", f"{properties.name}, {memory:.0f} GiB, {bf16}"))
    from wm2cli.models.attention import available_backends

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    findings.append(Finding("attention", "ok", f"backends on {device}: {', '.join(available_backends(device))}"))
    return findings


def _natten() -> Finding:
    try:
        version = importlib.metadata.version("natten")
    except importlib.metadata.PackageNotFoundError:
        return Finding("natten", "missing", "not installed; only GPUs profit from it",
                       "pip install torch, then pip install --no-build-isolation natten")  # fmt: skip
    try:
        import natten
    except Exception as error:
        return Finding("natten", "missing", f"{version} cannot be imported: {error}",
                       "install the natten wheel that matches torch and CUDA")  # fmt: skip
    return Finding("natten", "ok", str(getattr(natten, "__version__", version)))


def _eccodes() -> Finding:
    try:
        import eccodes

        return Finding(
            "eccodes", "ok", f"{eccodes.codes_get_api_version()} (Python {importlib.metadata.version('eccodes')})"
        )
    except Exception as error:
        return Finding(
            "eccodes", "broken", f"cannot be used: {error}", "pip install --force-reinstall eccodes eccodeslib"
        )


def _weights() -> Finding:
    from wm2cli import weights
    from wm2cli.errors import CheckpointError

    try:
        path = weights.resolve(None)
    except CheckpointError as error:
        return Finding("weights", "missing", error.message, error.hint or "")
    if not path.is_file():
        return Finding("weights", "missing", f"WM2_WEIGHTS names {path}, which is not there", "correct WM2_WEIGHTS")
    return Finding("weights", "ok", str(path))


def _folders() -> list[Finding]:
    cache = cache_folder()
    existing = cache
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    writable = os.access(existing, os.W_OK)
    findings = [Finding("cache folder", "ok" if writable else "broken",
                        f"{cache}{'' if cache.exists() else ' (made when needed)'}",
                        "" if writable else "set WM2_CACHE to a folder you may write")]  # fmt: skip
    for name, folder in (("disk of the cache", existing), ("disk of this folder", os.getcwd())):
        free = shutil.disk_usage(folder).free / 2**30
        findings.append(Finding(name, "ok" if free > 1 else "missing", f"{free:.1f} GiB free",
                                "" if free > 1 else "free some space, or write elsewhere with --out"))  # fmt: skip
    return findings


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as stream:
            return next((set(line.split()) for line in stream if line.startswith("flags")), set())
    except OSError:
        return set()
