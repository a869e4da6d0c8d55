"""From a declared model to the numbers that `resolve` reads."""

from __future__ import annotations

from sapwood.arch.foreign import Foreign
from sapwood.arch.groups import kv_groups
from sapwood.arch.memory import num_parameters
from sapwood.arch.network import Network
from sapwood.config.facts import ModelShape


def shape_of(decoder: Network, *, name: str, stored_bytes: int = 0, draft: ModelShape | None = None) -> ModelShape:
    """The shape of a model that clients call `name`, beside one that drafts for it."""
    return ModelShape(
        default_name=name,
        max_positions=decoder.max_positions,
        vocab_size=decoder.vocab_size,
        num_parameters=num_parameters(decoder),
        kv_groups=kv_groups(decoder, page_size=1) + (() if draft is None else draft.kv_groups),
        dtype=decoder.dtype or "float32",
        stored_bytes=stored_bytes,
        blocks=decoder.quantization is None,
        foreign=isinstance(decoder, Foreign),
        draft=draft,
    )
