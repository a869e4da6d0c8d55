"""What transformers' modules call for attention: whoever runs them hands on, through their own keywords, who attends.

Suffix legend: T tokens of the step, H query heads, K KV heads, D head size, V size of values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from transformers import AttentionInterface, AttentionMaskInterface

SERVING, TRYING = "sapwood", "sapwood-trying"
"""What our attention is called among transformers': without masks, and with masks that say who sees whom."""
BY = "sapwood_attention"
"""The keyword."""


class Attends(Protocol):
    """Answers the calls of one forward, in their order."""

    def __call__(
        self,
        q_1HTD: Tensor,
        k_1KTD: Tensor,
        v_1KTV: Tensor,
        mask: Tensor | None,
        scale: float | None,
        asked: dict[str, Any],
    ) -> Tensor:
        """out_1THV. `asked` are the call's other keywords, and `is_causal` of the module that makes it."""
        ...


class Sees:
    """Of a mask, which query sees which key."""

    def __init__(self, sees: Callable[..., Any]) -> None:
        self._sees = sees

    def __call__(self, query: int, key: int) -> bool | None:
        """None if that depends on what tokens there are."""
        zero = torch.tensor(0)
        try:
            return bool(self._sees(zero, zero, torch.tensor(query), torch.tensor(key)))
        except DataDependentOutputException:
            return None


def register() -> None:
    """Put ours among the functions that transformers' modules may be told to call."""
    for name in (SERVING, TRYING):
        AttentionInterface.register(name, _attend)
    AttentionMaskInterface.register(TRYING, _mask)


def sees_of(mask: Tensor) -> Sees | None:
    """What a mask that was made for `TRYING` lets see; None if it has been changed since."""
    found = getattr(mask, BY, None)
    return found if isinstance(found, Sees) else None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    by: Attends = asked.pop(BY)
    asked.setdefault("is_causal", getattr(module, "is_causal", True))
    return by(query, key, value, attention_mask, scaling, asked), None


def _mask(batch_size: int, q_length: int, kv_length: int, mask_function: Callable[..., Any], **_: Any) -> Tensor:
    mask = torch.ones(batch_size, 1, q_length, kv_length, dtype=torch.bool)
    setattr(mask, BY, Sees(mask_function))
    return mask
