"""What a gate's products go through before they are multiplied."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton.language as tl

from sapwood.kernels.triton.jit import jit


@jit
def activate(x, KIND: tl.constexpr):
    if KIND == "relu" or KIND == "relu2":
        x = tl.maximum(x, 0.0)
        if KIND == "relu2":
            x *= x
    elif KIND == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        # (1 + tanh(u)) / 2 = sigmoid(2 u), so both activations are x times a sigmoid.
        slope = x if KIND == "silu" else 1.5957691216057308 * (x + 0.044715 * x * x * x)
        x = x / (1.0 + tl.exp(-slope))
    return x


@jit
def through_gate(gate, up, KIND: tl.constexpr):
    """A gate's product and the one beside it, as `Kernels.gated` has them."""
    if KIND == "swiglu_clamped":
        gate = tl.minimum(gate, 7.0)
        up = tl.minimum(tl.maximum(up, -7.0), 7.0)
        return gate / (1.0 + tl.exp(-1.702 * gate)) * (up + 1.0)
    else:
        return activate(gate, KIND) * up
