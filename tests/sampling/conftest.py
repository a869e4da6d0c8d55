"""Triton's interpreter as the tests need it."""

from tests.interpreter import interpreter

__all__ = ["interpreter"]
