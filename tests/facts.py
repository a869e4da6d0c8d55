"""What a front is told of an engine that is none, or a small one."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from sapwood.base.wire import Facts

_FACTS = Facts(
    max_model_len=100,
    vocab_size=100,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    page_size=4,
    num_pages=[64],
    device="cpu",
    dtype="float32",
    attention_backend="none",
    seconds_to_ready={"weights": 1.5},
    decisions=[],
)


def make_facts(**told: Any) -> Facts:
    """Those facts, but for the ones that are told."""
    return replace(_FACTS, **told)
