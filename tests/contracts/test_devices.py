"""What a device is, its own files know, and nobody else asks: code asks for abilities by their names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sapwood

ROOT = Path(sapwood.__file__).parent
THEIR_OWN = ("device", "config/devices.py")
KINDS = {"cpu", "cuda", "hip", "mps", "xpu"}
ASKING = {"is_cuda", "is_cpu", "is_available", "get_device_capability", "hip"}
TELLING = {"bench/report.py": "a report says on what it was made"}


def sources() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*.py")):
        if not path.relative_to(ROOT).as_posix().startswith(THEIR_OWN):
            yield path


def asked(path: Path) -> list[str]:
    """Where the code of a file depends on what kind of device there is, and on which."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Compare | ast.MatchValue):
            kinds = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)} & KINDS
            found += [f"line {node.lineno} compares with {kind}" for kind in sorted(kinds)]
            if "capability" in {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}:
                found.append(f"line {node.lineno} compares capabilities")
        elif isinstance(node, ast.Attribute) and node.attr in ASKING and _of_torch(node):
            found.append(f"line {node.lineno} asks {ast.unparse(node)}")
    return found


def _of_torch(node: ast.Attribute) -> bool:
    return node.attr != "is_available" or "cuda" in ast.unparse(node)


def test_nobody_asks_what_kind_of_device_it_runs_on() -> None:
    found = {path.relative_to(ROOT).as_posix(): asked(path) for path in sources()}
    assert {name: lines for name, lines in found.items() if lines and name not in TELLING} == {}
    assert all(found[name] for name in TELLING), "a file that asks no more needs no leave to"


@pytest.mark.parametrize(
    "code",
    [
        "if device.type == 'cuda': pass",
        "x = 'cpu' != device",
        "x = kind in ('cpu', 'int8')",
        "x = (dtype, kind) in (('fp8', 'cuda'),)",
        "x = tensor.is_cuda",
        "x = torch.cuda.is_available()",
        "x = torch.cuda.get_device_capability(device) >= (9, 0)",
        "x = facts.capability >= (9, 0)",
        "match kind:\n    case 'cuda': pass",
    ],
)
def test_the_test_sees_it(code: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(code)
    assert asked(tmp_path / "code.py")
