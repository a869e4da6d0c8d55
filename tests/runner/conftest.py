"""Triton's interpreter is made to take loop bounds from tensors here too."""

from tests.attention.conftest import interpreter_loops

__all__ = ["interpreter_loops"]
