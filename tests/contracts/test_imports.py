"""Who knows whom: the rules of pyproject's import-linter section, and what really happens at import."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import sapwood

ROOT = Path(__file__).parents[2]
DEVICE_ROOMS = ("runner", "nn", "attention", "quant", "kernels", "sampling", "device", "parallel", "foreign")
JOINTS = (
    "sapwood.engine.launch",
    "sapwood.engine.rank",
    "sapwood.executor.local",
    "sapwood.executor.stages",
)  # of both sides
ASKED_FOR = (
    "sapwood.observe.traces",
    "sapwood.fleet.rays",
    "sapwood.fleet.ray_router",
)  # imported only where a flag or a command says so
HEAVY = ("torch", "transformers", "triton", "opentelemetry")


def host_modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(sapwood.__path__, "sapwood.")]
    rooms = tuple(f"sapwood.{room}" for room in DEVICE_ROOMS)
    return [name for name in names if name not in JOINTS + ASKED_FOR and not _within(name, rooms)]


def _within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def test_host_modules_do_not_import_torch() -> None:
    """In one process, one after the other: the first that brings something heavy is named."""
    modules = host_modules()
    assert len(modules) > 50
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
    for heavy in {HEAVY!r}:
        assert heavy not in sys.modules, f"{{name}} imports {{heavy}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_contracts() -> None:
    linter = pytest.importorskip("importlinter.cli", reason="import-linter is not installed")
    code = f"import sys; from {linter.__name__} import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
