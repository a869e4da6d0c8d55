"""What a checkpoint says that keys and values are to be divided by before they are stored as float8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from sapwood.arch.network import Network
from sapwood.arch.parts import Attention, inside
from sapwood.arch.shard import share_at
from sapwood.attention.scaled import Factors
from sapwood.base.errors import ModelError
from sapwood.quant.source import Source

_KEYS, _VALUES = 0, 1
_LETTERS = "kv"
_OTHERS = "Serve it with another --kv-cache-dtype, which does not use it."


@runtime_checkable
class Keeping(Protocol):
    """A module that keeps keys and values."""

    @property
    def kept(self) -> tuple[int, Factors] | None:
        """The layer of its backend, and what that divides by, if it does."""
        ...


def fill_factors(model: nn.Module, decoder: Network, source: Source, *, name: str) -> None:
    """Give backends that store keys and values divided what the checkpoint has for them. Raises ModelError for what cannot divide."""
    keeping = {path: module.kept for path, module in model.named_modules() if isinstance(module, Keeping)}
    if not any(keeping.values()) or not _for_float8(decoder.quantization):
        return
    shapes = source.shapes()
    stripped = bool(decoder.root) and not any(tensor.startswith(decoder.root) for tensor in shapes)
    for path, prefix, part in _attentions(decoder):
        if (kept := keeping.get(path)) is None:
            continue
        prefix = prefix.removeprefix(decoder.root) if stripped else prefix
        for which in (_KEYS, _VALUES):
            if tensor := next((one for one in _names(part, which) if prefix + one in shapes), None):
                factors = source.read(prefix + tensor, ()).float().flatten()
                kept[1].put(kept[0], which, _mine(factors, decoder, path, f"{prefix}{tensor} of {name}"))


def _for_float8(section: Mapping[str, object] | None) -> bool:
    """Whether the scales of a checkpoint with such a section are those of float8: it says so, or nothing of its keys and values.

    Those of four bits go to a much smaller largest number.
    """
    if section is None:
        return True
    inner = section.get("quantization")
    section = inner if isinstance(inner, Mapping) else section
    scheme, algorithm = section.get("kv_cache_scheme"), section.get("kv_cache_quant_algo")
    if isinstance(scheme, Mapping):
        return (scheme.get("num_bits", 8), scheme.get("type", "float")) == (8, "float")
    return str(scheme or algorithm or "FP8").upper() in ("FP8", "NONE")


def _attentions(decoder: Network) -> Iterator[tuple[str, str, Attention]]:
    """Every attention among the blocks: its path, how names of its tensors begin, and itself."""
    for index, block in enumerate(decoder.blocks):
        prefix = decoder.block_prefix.format(decoder.stage.first + index)
        for path, part in inside(block, f"blocks.{index}"):
            if isinstance(part, Attention):
                yield path, prefix, part


def _names(part: Attention, which: int) -> Iterator[str]:
    """What the tensor may be called: LLM Compressor's, ModelOpt's and AutoFP8's names, and those of vLLM's own modules."""
    letter, parts = _LETTERS[which], part.qkv.parts
    module = parts[min(1 + which, len(parts) - 1)].name
    stem = module.rpartition(".")[0] + "."
    yield from (f"{stem}{letter}_scale", f"{stem}attn.{letter}_scale", f"{module}.{letter}_scale")
    yield from (f"{module}.output_scale", f"{stem}kv_scale", f"{stem}attn.kv_scale")


def _mine(factors: Tensor, decoder: Network, path: str, tensor: str) -> Tensor:
    """Those of this rank's heads, or the one for all."""
    if not (factors.isfinite() & (factors > 0)).all():
        raise ModelError(f"{tensor} is not all above zero and finite, so that nothing can be divided by it. {_OTHERS}")
    if len(factors) == 1:
        return factors
    whole, shares = decoder.portion or (decoder, {})
    heads = next(part.num_kv_heads for at, _, part in _attentions(whole) if at == path)
    if len(factors) != heads:
        raise ModelError(f"{tensor} has {len(factors)} numbers, wants one, or one for each of {heads} heads. {_OTHERS}")
    return factors[share_at(path, shares).run(heads, 1)]
