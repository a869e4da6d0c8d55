"""Triton's interpreter, mended where it fails here and spared what it does for nothing; nothing of what it computes changes."""

from __future__ import annotations

import dataclasses
import functools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    _loop_bounds(monkeypatch, interpreter)
    _patched_once(monkeypatch, interpreter)
    _rounded_up(monkeypatch, interpreter)
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


def _rounded_up(monkeypatch: pytest.MonkeyPatch, interpreter: Any) -> None:
    """What is rounded to float8 up to a power of 2 loses its carry: 127 becomes 64."""
    convert = interpreter._convert_float

    def converted(values: Any, given: Any, wanted: Any, mode: Any) -> Any:
        if given.name != "fp32" or wanted.name != "fp8e4nv":
            return convert(values, given, wanted, mode)
        floats = torch.from_numpy(np.ascontiguousarray(values).view(np.float32))
        return floats.to(torch.float8_e4m3fn).view(torch.uint8).numpy().reshape(values.shape)

    monkeypatch.setattr(interpreter, "_convert_float", converted)


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
