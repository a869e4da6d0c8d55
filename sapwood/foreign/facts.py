"""What a model in transformers' modules weighs and keeps, found by a try on tensors without memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sapwood.arch.foreign import Call, Foreign, Whole
from sapwood.arch.parts import Block
from sapwood.base.errors import ModelError
from sapwood.base.kv import Heads
from sapwood.foreign import attention
from sapwood.foreign.attention import Sees
from sapwood.foreign.modules import Halves, build, failing
from sapwood.foreign.names import named

_NUM_TOKENS = 4
_FAR = 100_003  # a position beyond all windows
_INERT = frozenset(
    {"dropout", "position_ids", "position_embeddings", "cache_position", "sliding_window", "softcap", "is_causal"}
)
"""Keywords of calls that say nothing more, or that are read."""


def read(config: Mapping[str, Any], names: Collection[str] = ()) -> Foreign:
    """The model of a config.json whose checkpoint holds tensors of these `names`, if they are known.

    Raises ModelError for what transformers does not have, and for what our attention does not do.
    """
    architecture = str((config.get("architectures") or [""])[0])
    fakes, trial = FakeTensorMode(allow_non_fake_inputs=True), _Trial()
    with failing(f"{architecture} cannot be made"):
        model = build(config, attention.TRYING, torch.bfloat16, fakes)  # which kernels of experts want
        weights = named(model, names)
    with failing(f"{architecture} cannot be run on a few tokens"), fakes, torch.inference_mode():
        halves = Halves(model)
        ids_T, positions_T = torch.zeros(_NUM_TOKENS, dtype=torch.int64), torch.arange(_NUM_TOKENS)
        whole = torch.ones(1, _NUM_TOKENS, dtype=torch.int64)  # or the modules look for several sequences
        hidden_TE = halves.states(ids_T, positions_T, trial, attention_mask=whole)
        logits_TV = halves.logits(hidden_TE)
    text = model.config.get_text_config()
    with _named(architecture):
        calls = [_call(asked, getattr(text, "sliding_window", None)) for asked in trial.calls]
        if not isinstance(layers := getattr(text, "num_hidden_layers", None), int):
            raise ModelError("its config has no num_hidden_layers")
        _check(len(calls) >= layers, f"{len(calls)} of its {layers} layers attend")
        if not isinstance(most := getattr(text, "max_position_embeddings", None), int):
            raise ModelError("its config has no max_position_embeddings")
    return Foreign(
        architecture=architecture,
        max_positions=most,
        dtype=_dtype(config),
        vocab_size=logits_TV.shape[-1],
        hidden_size=hidden_TE.shape[-1],
        weights=Whole(weights.stored),
        blocks=tuple(Block(None, call, None, None) for call in calls),
        aside=weights.aside,
        config=dict(config),
    )


@contextmanager
def _named(architecture: str) -> Iterator[None]:
    """Says of which model something is not supported."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{architecture} cannot be run in transformers' modules: {error}.") from error


def _check(fine: bool, otherwise: str) -> None:
    if not fine:
        raise ModelError(otherwise)


@dataclass(frozen=True)
class _Asked:
    """What one call of attention asked for. Shapes are [1, heads, T, size]."""

    query: torch.Size
    key: torch.Size
    value: torch.Size
    mask: Sees | str | None
    scale: Any
    others: Mapping[str, Any]


class _Trial:
    """Attends to nothing, and takes down what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[_Asked] = []

    def __call__(
        self,
        q_1HTD: Tensor,
        k_1KTD: Tensor,
        v_1KTV: Tensor,
        mask: Tensor | None,
        scale: float | None,
        asked: dict[str, Any],
    ) -> Tensor:
        sees = None if mask is None else attention.sees_of(mask) or "masks that are made otherwise"
        self.calls.append(_Asked(q_1HTD.shape, k_1KTD.shape, v_1KTV.shape, sees, scale, asked))
        return q_1HTD.new_zeros(1, q_1HTD.shape[2], q_1HTD.shape[1], v_1KTV.shape[3])


def _call(asked: _Asked, usual_window: int | None) -> Call:
    """A call as we would answer it. Raises ModelError, saying what it wants that we do not do."""
    (_, heads, tokens, size), (_, kv_heads, keys, key_size), (*_, value_size) = asked.query, asked.key, asked.value
    _check(
        (tokens, keys) == (_NUM_TOKENS, _NUM_TOKENS), f"{tokens} queries are to see {keys} keys of {_NUM_TOKENS} tokens"
    )
    _check(
        size == key_size and value_size <= size and heads % kv_heads == 0,
        f"heads of {size}, {key_size} and {value_size}",
    )
    wanted = [name for name, value in asked.others.items() if name not in _INERT and _says_something(value)]
    _check(not wanted, f"its attention asks for {', '.join(sorted(wanted))}")
    _check(asked.others["is_causal"] is not False, "its attention sees what comes later")
    scale = size**-0.5 if asked.scale is None else asked.scale
    _check(isinstance(scale, int | float), "its attention scales by a tensor")
    windows = dict.fromkeys((asked.others.get("sliding_window"), None, usual_window))
    kinds = [Heads(heads, kv_heads, size, window, asked.others.get("softcap")) for window in windows]
    kind = next((one for one in kinds if _as_we_see(asked.mask, one)), None)
    if kind is None:
        raise ModelError("its attention sees neither all that came before nor a window of it")
    return Call(kind, value_size, float(scale))


def _says_something(value: object) -> bool:
    return isinstance(value, Tensor) or bool(value)


def _as_we_see(mask: Sees | str | None, kind: Heads) -> bool:
    """Whether a mask lets see what queries of that kind see. Without a mask the call's own words count."""
    if mask is None or isinstance(mask, str):
        return mask is None
    size = kind.window or _FAR
    distances = {-size, -1, 0, 1, 2, size // 2, size - 1, size, size + 1, 3 * size}
    for query in (0, 1, 7, 255, size - 1, size, 2 * size + 1, _FAR):
        for key in {query - distance for distance in distances if query >= distance}:
            if mask(query, key) != (kind.oldest(query) <= key <= query):
                return False
    return True


def _dtype(config: Mapping[str, Any]) -> str | None:
    found = config.get("dtype") or config.get("torch_dtype")
    return found if isinstance(found, str) and found != "auto" else None
