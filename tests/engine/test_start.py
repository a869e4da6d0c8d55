"""How an engine process begins, and what it is trimmed of."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path

import pytest

from sapwood.base.sampling import SamplingParams
from sapwood.config.flags import from_options
from sapwood.engine import lean
from sapwood.engine.keeper import start
from sapwood.engine.lean import Lateness
from sapwood.engine.spawn import Child, spawn


def test_a_late_module_is_executed_when_it_is_asked_for_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "late_one").mkdir()
    (tmp_path / "late_one" / "__init__.py").write_text("print('executed')\nvalue = 3\n")
    (tmp_path / "late_one" / "inner.py").write_text("print('inner')\n")
    (tmp_path / "late_two.py").write_text("print('two')\nvalue = 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [Lateness(["late_one", "late_two"]), *sys.meta_path])
    import late_one  # type: ignore[import-not-found]
    import late_two  # type: ignore[import-not-found]

    assert late_one.__path__ and late_two.__name__ == "late_two"
    assert capsys.readouterr().out == ""
    import late_one.inner  # type: ignore[import-not-found]

    assert capsys.readouterr().out == "executed\ninner\n", "a package before what is in it"
    assert (late_one.value, late_two.value) == (3, 4)
    with pytest.raises(AttributeError, match="nothing"):
        _ = late_two.nothing
    assert capsys.readouterr().out == "two\n"
    for name in ("late_one", "late_one.inner", "late_two"):
        monkeypatch.delitem(sys.modules, name)


def test_torch_works_without_its_late_parts_and_gets_them() -> None:
    code = """
from sapwood.engine import lean
lean._GPUS = ()
lean.thin_torch()
import torch
late = [name for name in lean.LATE if type(__import__("sys").modules[name]).__name__ == "_Late"]
assert late == list(lean.LATE), late
x = torch.ones(3, 4)
assert torch.nn.functional.linear(x, x).sum() == 36
assert callable(torch.export.export)
lean.whole_torch()
torch.Generator().manual_seed(1)
assert torch.empty(2, 3, device="meta").expand(4, 2, 3).shape == (4, 2, 3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_untouched_code_is_given_back() -> None:
    def mapping(start: int, mode: str, path: str, rss: int, anonymous: int) -> list[str]:
        head = f"{start:x}-{start + 0x400000:x} {mode} 00000000 fe:00 123 {path}\n"
        return [head, f"Rss: {rss} kB\n", f"Anonymous: {anonymous} kB\n", "VmFlags: rd ex\n"]

    lines = [
        *mapping(0x10000000, "r-xp", "  /lib/large.so", 4096, 0),
        *mapping(0x20000000, "r-xp", "  /lib/small.so", 64, 0),
        *mapping(0x30000000, "r-xp", "  /lib/written.so", 4096, 4),
        *mapping(0x40000000, "rw-p", "  /lib/large.so", 4096, 0),
        *mapping(0x50000000, "r--p", "  /lib/large.so", 4096, 0),
        *mapping(0x60000000, "r-xp", "", 4096, 0),
        *mapping(0x70000000, "r-xp", "  [vdso]", 4096, 0),
    ]
    assert list(lean.code_mappings(lines)) == [(0x10000000, 0x400000)]


def test_trimmed_processes_work_on() -> None:
    code = """
import gc, numpy as np
from sapwood.engine import lean
lean.begin()
assert not gc.isenabled()
a = np.random.default_rng(0).normal(size=(300, 300))
before = np.linalg.norm(a @ a)
lean.trim()
assert gc.isenabled() and gc.get_freeze_count()
assert np.linalg.norm(a @ a) == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert gc.isenabled()


WITHOUT_LEAN = """
import runpy, sys, types
import sapwood.engine
lean = types.ModuleType("sapwood.engine.lean")
lean.begin = lean.thin_torch = lean.whole_torch = lean.trim = lambda: None
sys.modules[lean.__name__] = sapwood.engine.lean = lean
runpy.run_module("sapwood.engine.process", run_name="__main__", alter_sys=True)
"""


def test_an_engine_needs_nothing_of_what_makes_it_lean(tiny_model: Path) -> None:
    options = {"model": str(tiny_model), "device": "cpu", "dtype": "float32", "max_model_len": 64}
    config = from_options(options | {"max_total_tokens": 256, "max_num_seqs": 2, "load_format": "dummy"})

    async def tokens(child: Child) -> list[int]:
        async with start(config, child) as engine:
            params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
            return [token async for delta in engine.generate([1, 2, 3], params) for token in delta.tokens]

    with spawn([sys.executable, "-c", WITHOUT_LEAN]) as child:
        assert len(asyncio.run(tokens(child))) == 5


def test_a_child_that_is_told_nothing_ends_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    child = spawn()
    child.close()
    assert child.wait() == 1
    assert capfd.readouterr().err == ""


def test_leaving_a_child_ends_it() -> None:
    with Child([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        pass
    assert child.wait() < 0


def test_a_child_that_has_ended_hears_nothing() -> None:
    child = Child([sys.executable, "-c", "pass"])
    assert child.wait() == 0
    child.tell(b"nobody listens")
    child.close()
