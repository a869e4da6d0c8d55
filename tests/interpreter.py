"""Triton's interpreter, mended where it fails here and spared what it does for nothing; nothing of what it computes changes."""

from __future__ import annotations

import dataclasses
import functools
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    _loop_bounds(monkeypatch, interpreter)
    _patched_once(monkeypatch, interpreter)
    # Without `debug` the interpreter computes whether integers overflow, and drops what it finds.
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
    monkeypatch.setattr(interpreter, "_get_np_dtype", _remembered(interpreter._get_np_dtype))


def _loop_bounds(monkeypatch: pytest.MonkeyPatch, interpreter: Any) -> None:
    """Triton 3.6's interpreter takes loop bounds from arrays of one element, which numpy 2.4 no longer converts."""
    patch = interpreter._patch_lang_tensor

    def patch_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_index)


def _patched_once(monkeypatch: pytest.MonkeyPatch, interpreter: Any) -> None:
    """A launch puts the interpreter's functions in the place of the language's. So does every call of a device function
    within, which searches the whole language for what is left to replace: nothing."""
    patch, language = interpreter._patch_lang, interpreter.tl

    @functools.cache
    def seen(function: Any) -> list[ModuleType]:
        return [value for value in function.__globals__.values() if value is language or value is language.core]

    def patch_first(function: Any) -> Any:
        if seen(function) and not any(language.core.is_builtin(module.load) for module in seen(function)):
            return interpreter._LangPatchScope()
        return patch(function)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_first)


def _remembered(np_dtype: Any) -> Any:
    """By the name of the elements' type, as blocks of all shapes have the same."""
    known: dict[str, Any] = {}

    def of(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in known:
            known[name] = np_dtype(kind.scalar)
        return known[name]

    return of
