"""`triton.jit` for kernels that stay known when their file changes around them.

Triton finds a compiled kernel again by its source, its callees, the types and constants of the call, and the line at which
the function begins. The last would make every edit above a kernel, and so most new versions, compile it anew.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
from triton.runtime.jit import JITFunction


def jit(function=None, **options):
    """As `triton.jit`. Lines in the compiler's messages count from the function's first."""

    def compiled(function):
        kernel = triton.jit(function, **options)
        if isinstance(kernel, JITFunction):  # not in the interpreter
            kernel.starting_line_number = 1
        return kernel

    return compiled if function is None else compiled(function)
