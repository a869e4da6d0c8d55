"""Weights into a model: each piece of the model's weight map from the checkpoint straight to its place.

Nothing is loaded by guess: a tensor that is missing, left over or of another shape is a ModelError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from sapwood.arch.network import Network
from sapwood.arch.parts import Place, StoredTensor, Tied, walk
from sapwood.arch.shard import Piece, weight_map
from sapwood.base.abilities import Ability
from sapwood.base.errors import ModelError
from sapwood.device import abilities_of
from sapwood.hub.files import ModelFiles, weight_files
from sapwood.hub.pull import Progress, silent
from sapwood.nn.checkpoint import Checkpoint, Safetensors
from sapwood.nn.kept import fill_factors
from sapwood.quant.base import Choice, Leaf, tensors_by

if TYPE_CHECKING:
    from sapwood.nn.gguf import GgufSource

# Tables that old checkpoints hold although they follow from the config, or from others; and the scales that quantised ones have for keys,
# values and queries, which backends take that have a use for them (`sapwood.nn.kept`).
_COMPUTED = re.compile(
    r"\.(rotary_emb\.inv_freq|masked_bias)$|\.(attn|attention)\.bias$|^t2d$"
    r"|\.(self_attn|attn)\.((qkv_proj|[qkv]_proj|attn)\.)?(([qkv]|kv|prob)_scale|[qkv]_zero_point)$|\.[qkv]_proj\.output_scale$"
)
_NUM_NAMED = 4


class Loadable(Protocol):
    """A model without its weights, on `device`: a leaf for each that its decoder has, its Linears stored by `method`."""

    @property
    def decoder(self) -> Network: ...

    @property
    def method(self) -> Choice: ...

    @property
    def device(self) -> torch.device: ...

    def leaf(self, path: str) -> Leaf:
        """The module at a path of `arch.parts.walk`."""
        ...

    def finish(self) -> None:
        """All leaves have been filled and finished."""
        ...


def load_weights(model: Loadable, files: ModelFiles, progress: Progress = silent) -> None:
    """Fill every weight of the model, telling under its name how many bytes are there. Raises ModelError."""
    with ExitStack() as stack:
        load_from(model, open_checkpoint(files, stack), name=files.name, progress=progress)


def open_checkpoint(files: ModelFiles, stack: ExitStack) -> Checkpoint:
    """That of `files`, open until `stack` is closed."""
    if files.kind == "gguf":
        return _gguf(files, stack)
    return Safetensors(weight_files(files.path), stack)


def forms(files: ModelFiles) -> Mapping[str, int]:
    """How a GGUF file stores each tensor, by its Hugging Face name, as GGUF's number."""
    with ExitStack() as stack:
        return _gguf(files, stack).forms()


def _gguf(files: ModelFiles, stack: ExitStack) -> GgufSource:
    from sapwood.hub.gguf import open_gguf
    from sapwood.nn.gguf import GgufSource

    assert files.layout is not None, "files found as GGUF have one"
    return GgufSource(open_gguf(files.path), files.config, files.layout, stack)


@torch.inference_mode()
def load_from(model: Loadable, source: Checkpoint, *, name: str, progress: Progress = silent) -> None:
    """Fill every weight of the model; `name` is the model's, for messages."""
    fill(model, source, matched(model, source.shapes(), name=name), name=name, progress=progress)
    if isinstance(model, nn.Module):
        fill_factors(model, model.decoder, source, name=name)


def matched(
    model: Loadable, shapes: Mapping[str, tuple[int, ...]], *, name: str, whole: bool = True
) -> tuple[Piece, ...]:
    """The pieces of the model that tensors of these shapes have, leaf by leaf. Raises ModelError if any does not fit, or, of a `whole`
    model, is missing."""
    pieces = _pieces(model, model.decoder, shapes)
    known = {piece.name for piece in pieces_of_all(model, shapes)}  # some are other ranks'
    _check(name, pieces, shapes, unused=known | _unused(model, shapes), whole=whole)
    return tuple(piece for piece in pieces if whole or piece.name in shapes)


def check_all(model: Loadable, shapes: Mapping[str, tuple[int, ...]], *, name: str, whole: bool) -> None:
    """The same check, for all ranks that a model is spread over."""
    if pieces := pieces_of_all(model, shapes):
        _check(name, pieces, shapes, unused=_unused(model, shapes), whole=whole)


def pieces_of_all(model: Loadable, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Piece, ...]:
    """Those of the model that this one is a rank's part of; none of one that is whole."""
    portion = model.decoder.portion
    entire = model.decoder.stage.whole or (None if portion is None else portion[0])
    return () if entire is None else _pieces(model, entire, shapes)


def _pieces(model: Loadable, decoder: Network, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Piece, ...]:
    """Named as tensors of these shapes are."""
    pieces, root = weight_map(decoder, tensors=_spelt(tensors_by(model.method), shapes)), decoder.root
    if root and not any(tensor.startswith(root) for tensor in shapes):
        return tuple(replace(piece, name=piece.name.removeprefix(root)) for piece in pieces)
    return tuple(pieces)


def _unused(model: Loadable, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Tensors that are not the decoder's, or its embeddings once more."""
    head = model.decoder.head
    tied = {f"{head.name}.weight"} if isinstance(head, Tied) else set()
    return {tensor for tensor in shapes if not model.decoder.owns(tensor)} | tied


@torch.inference_mode()
def fill(
    model: Loadable, source: Checkpoint, pieces: Sequence[Piece], *, name: str, progress: Progress = silent
) -> None:
    """Fill pieces of the model, as `matched` has found them."""
    shapes = source.shapes()
    pinned = Ability.PINNED in abilities_of(model.device)
    done, total = 0, source.expect([piece for piece in pieces if piece.name in shapes], pinned=pinned)
    for path, of_leaf in groupby(pieces, key=lambda piece: piece.path):
        leaf = model.leaf(path)
        for piece in of_leaf:
            if piece.name in shapes:  # else it is optional
                leaf.load(piece, source)
                done += source.release(piece.name)
                progress(name, done, total)
        leaf.finish()
    model.finish()


def _spelt(
    tensors: Callable[[Place], Sequence[StoredTensor]], shapes: Mapping[str, tuple[int, ...]]
) -> Callable[[Place], Sequence[StoredTensor]]:
    """What each leaf is made of in a checkpoint with tensors of these shapes: of its spellings the first that is there."""

    def there(place: Place, tensor: StoredTensor) -> bool:
        found = shapes.get(place.prefix + tensor.name)
        return found is not None and tensor.shape in (None, found)

    def found(place: Place) -> Sequence[StoredTensor]:
        spellings = [tensors(replace(place, leaf=leaf)) for leaf in place.leaf.spellings]
        return next((one for one in spellings if one and there(place, one[0])), spellings[0])

    return found


def _check(
    name: str, pieces: Sequence[Piece], shapes: Mapping[str, tuple[int, ...]], *, unused: set[str], whole: bool
) -> None:
    wanted = {piece.name: piece.shape for piece in pieces}
    needed = {piece.name for piece in pieces if whole and not piece.optional}
    left_over = [
        tensor for tensor in shapes if tensor not in wanted and tensor not in unused and not _COMPUTED.search(tensor)
    ]
    misshapen = [
        f"{tensor} is {list(shapes[tensor])}, wants {list(shape)}"
        for tensor, shape in wanted.items()
        if shape is not None and tensor in shapes and shapes[tensor] != shape
    ]
    wrong = {"missing": needed - shapes.keys(), "left over": left_over, "of another shape": misshapen}
    found = "; ".join(f"{len(names)} {what}: {_few(names)}" for what, names in wrong.items() if names)
    if found:
        raise ModelError(f"The weights of {name} do not fit its config. Tensors {found}.")


def _few(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more


@torch.inference_mode()
def dummy_weights(model: Loadable, seed: int) -> None:
    """Random weights, made on the model's device; the same for the same seed, device and dtype."""
    random = torch.Generator(model.device).manual_seed(seed)
    for place in walk(model.decoder):
        leaf = model.leaf(place.path)
        leaf.randomize(random)
        leaf.finish()
    model.finish()
