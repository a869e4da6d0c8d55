"""Nothing is longer than a reader holds in his head: files, and the functions in them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("sapwood", "tests", "scripts", "bench")
MOST_LINES = 450  # of a file
MOST_OF_A_FUNCTION = (
    50  # lines, its decorators apart; kernels are the exception, which have no functions to call but inlined ones
)


def files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def long_functions(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_kernel(node):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > MOST_OF_A_FUNCTION:
                yield f"{node.name}, line {node.lineno}: {length} lines"


def is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).partition("(")[0] == "jit" for decorator in node.decorator_list)


def test_files_and_functions_are_short() -> None:
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("these are not the sources")
    found = files()
    assert len(found) > 300
    offenders = []
    for path in found:
        source = path.read_text(encoding="utf-8")
        lines = source.count("\n")
        if lines > MOST_LINES:
            offenders.append(f"{path.relative_to(ROOT)}: {lines} lines")
        offenders += [f"{path.relative_to(ROOT)}: {function}" for function in long_functions(source)]
    assert not offenders, "too long:\n" + "\n".join(offenders)


def test_what_is_too_long_is_seen() -> None:
    body = "\n".join(["    x = 1"] * MOST_OF_A_FUNCTION)
    assert list(long_functions(f"class A:\n  async def f():\n{body}\n")) == [
        f"f, line 2: {MOST_OF_A_FUNCTION + 1} lines"
    ]
    assert not list(long_functions(f"@jit(a=1)\ndef kernel():\n{body}\n"))
