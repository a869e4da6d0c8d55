"""How the CPU kernels are built, found and refused."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
import torch

from sapwood.kernels.cpu import build
from sapwood.kernels.cpu import library as loading
from sapwood.kernels.cpu.library import FOLDER, STRUCTS, Machine, Norm, find, usable
from sapwood.quant.packed import PackedWeights, Product, packing, stored
from tests.waiting import SECONDS


def test_no_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    failed = build.build(tmp_path / "lib")
    assert set(failed) == set(build.targets())
    assert "no C++ compiler" in failed["base"]
    assert "install a C++ compiler" in str(find("auto", tmp_path / "lib"))


def test_a_compiler_that_fails_is_told(tmp_path: Path) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
    compiler.chmod(0o755)
    assert build.build(tmp_path / "lib", cxx=str(compiler))["base"] == "no such flag"
    assert not list((tmp_path / "lib").iterdir())


def test_a_library_that_is_none_is_not_used(tmp_path: Path) -> None:
    build.library(tmp_path, "base").write_bytes(b"not a library")
    assert "cannot be loaded" in str(find("auto", tmp_path))


def test_builds_are_chosen_by_the_processor() -> None:
    found = find()
    if isinstance(found, str):
        pytest.skip(found)
    assert find("off") == "it is turned off"
    assert find(found.target) is found
    other = "neon" if found.target.startswith("avx") else "avx2"
    assert f"this processor is no {other}" in str(find(other))
    assert usable("avx512") == ["base", "avx2", "avx512"]
    assert usable("avx2vnni") == ["base", "avx2", "avx2vnni"]
    assert build.library(FOLDER, found.target).exists()


class Wide(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("eps", ctypes.c_double))


class Turned(ctypes.Structure):
    _fields_ = (("eps", ctypes.c_float), ("weight", ctypes.c_void_p))


class Renamed(ctypes.Structure):
    _fields_ = (("bias", ctypes.c_void_p), ("eps", ctypes.c_float))


@pytest.mark.parametrize("other", [Wide, Turned, Renamed, None])
def test_a_library_with_other_structs_is_not_used(
    other: type[ctypes.Structure] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(found := find("base"), str):
        pytest.skip(found)
    structs = list(STRUCTS)
    if other is None:
        structs.remove(Norm)
    else:
        other.__name__ = "Norm"
        structs[structs.index(Norm)] = other
    monkeypatch.setattr(loading, "STRUCTS", structs)
    shutil.copy(build.library(FOLDER, "base"), build.library(tmp_path, "base"))
    assert "structs differ: install Sapwood once more" in str(find("base", tmp_path))


def test_every_struct_is_compared() -> None:
    defined = [kind for kind in vars(loading).values() if isinstance(kind, type) and issubclass(kind, ctypes.Structure)]
    assert set(defined) - {ctypes.Structure} == set(STRUCTS)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_machines_of_any_size_side_by_side(threads: int) -> None:
    """Products on several machines at once, each with more threads than there are processors."""
    library = find()
    if isinstance(library, str):
        pytest.skip(library)
    values = torch.randn(100, 64)
    x = torch.randn(33, 64)
    results: list[torch.Tensor] = []

    def work() -> None:
        machine = Machine(library, threads)
        weights = PackedWeights(machine, packing(stored(values).form, 64, None), 100, 64)
        weights.put(stored(values), 0, 100)
        results.extend(Product(weights)(x) for _ in range(50))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 150
    assert all(torch.equal(result, results[0]) for result in results)
    torch.testing.assert_close(results[0], x @ values.T, atol=1e-4, rtol=1e-4)


_PRELUDE = """
import os, resource, sys, torch
from sapwood.kernels.cpu.library import Machine, find
from sapwood.quant.packed import PackedWeights, Product, packing, stored
library = find()
if isinstance(library, str):
    sys.exit(77)

def product(machine):
    weights = PackedWeights(machine, packing(stored(values).form, 64, None), 40, 64)
    weights.put(stored(values), 0, 40)
    return Product(weights)

def raises(kind, work):
    try:
        work()
    except kind:
        return True
    return False

values, x = torch.randn(40, 64), torch.randn(3, 64)
machine = Machine(library, 3)
made = product(machine)
expected = made(x)
"""


def _run(script: str) -> None:
    """In a process of its own, which may get stuck or be killed."""
    done = subprocess.run([sys.executable, "-c", _PRELUDE + script], capture_output=True, text=True, timeout=SECONDS)
    if done.returncode == 77:
        pytest.skip("there are no CPU kernels")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_forked_process_is_refused_and_does_not_hang() -> None:
    _run("""
if child := os.fork():
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert torch.equal(made(x), expected)
else:
    assert raises(RuntimeError, lambda: made(x))
    assert raises(RuntimeError, lambda: product(machine))
    del made, machine  # nor does it wait for threads that it has not
    assert torch.equal(product(Machine(library, 2))(x), expected)
""")


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of addresses is needed, and how many there are")
def test_no_memory_is_an_error_and_not_the_end() -> None:
    _run("""
large = torch.zeros(1 << 21, 64)  # half a gigabyte, as is what the kernels would make of it
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (400 << 20), resource.RLIM_INFINITY))
assert raises(MemoryError, lambda: library.linear_apply(machine.pointer, made.pointer, large.data_ptr(), 1 << 21, 1))
assert raises(MemoryError, lambda: Machine(library, 200))  # the stacks of whose threads are larger
assert raises(MemoryError, lambda: PackedWeights(machine, packing(0, 1 << 16, None), 1 << 14, 1 << 16))
assert torch.equal(made(x), expected)
""")


def test_a_source_distribution_holds_the_sources(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("an old setuptools")
    root = build.SOURCE.parents[2]
    if not (root / "setup.py").exists():
        pytest.skip("these are not the sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "sapwood/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    shutil.copytree(build.SOURCE, tmp_path / "sapwood" / "kernels" / "cpu", ignore=shutil.ignore_patterns("lib"))
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=tmp_path, check=True, capture_output=True)
    (made,) = (tmp_path / "dist").iterdir()
    with tarfile.open(made) as archive:
        found = {Path(name).name for name in archive.getnames()}
    assert found >= {path.name for path in build.SOURCE.iterdir() if path.suffix in (".cpp", ".h", ".py")}


def test_only_what_is_outdated_is_built(tmp_path: Path) -> None:
    compiler, folder = tmp_path / "c++", tmp_path / "lib"
    compiler.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho "$2" >>{tmp_path}/made\necho >"$2"\n')
    compiler.chmod(0o755)

    def made() -> int:
        (tmp_path / "made").write_text("")
        assert build.build(folder, cxx=str(compiler)) == {}
        return len((tmp_path / "made").read_text().splitlines())

    assert made() == len(build.targets())
    assert made() == 0
    old, *others = (build.library(folder, name) for name in build.targets())
    os.utime(old, (0, 0))
    for other in others[:1]:
        other.unlink()
    assert made() == min(2, len(build.targets()))
