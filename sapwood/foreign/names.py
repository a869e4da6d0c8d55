"""Which tensors of a checkpoint a module's weights are, by what transformers itself says of the names and the layout of its models."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from sapwood.arch.parts import Axis, StoredTensor
from sapwood.base.errors import ModelError


class Named(NamedTuple):
    """The tensors that the weights are made of, and those `aside` that are nobody's."""

    stored: tuple[StoredTensor, ...]
    aside: tuple[str, ...] = ()


def named(model: PreTrainedModel, names: Collection[str]) -> Named:
    """`names` are those of the checkpoint's tensors; without any they are taken to be the module's own.

    Raises ModelError for weights that transformers computes when it loads them.
    """
    own, every = weights(model), dict(model.named_parameters(remove_duplicate=False))
    same = {id(tensor): name for name, tensor in own.items()}
    sources, aside = _sources(model, names), []
    for target in list(sources):
        if target in every and target not in own:  # tied to another
            kept = same[id(every[target])]
            spare = sources.pop(target)
            if kept in sources:
                aside += [name for some in spare.runs for name in some]
            else:
                sources[kept] = spare
    unexpected = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    aside += [name for name in names if any(one.search(name) for one in unexpected)]
    stored = [
        one for name, tensor in own.items() for one in _stored(name, tensor, sources.get(name, _Source([[name]])))
    ]
    return Named(tuple(stored), tuple(aside))


def weights(model: PreTrainedModel) -> Mapping[str, Tensor]:
    """All that a checkpoint holds of the modules, by their names, shared ones once."""
    kept = model.state_dict(keep_vars=True)
    return dict(model.named_parameters()) | {name: one for name, one in model.named_buffers() if name in kept}


class _Source(NamedTuple):
    """Names in the checkpoint: of one tensor, or of those of all experts, in `runs` that lie one behind the other in each."""

    runs: Sequence[Sequence[str]]
    of_experts: bool = False


def _sources(model: PreTrainedModel, names: Collection[str]) -> dict[str, _Source]:
    """What each weight is made of, by its name in the model."""
    changes = get_model_conversion_mapping(model)
    renamings = [one for one in changes if isinstance(one, WeightRenaming)]
    converters = [one for one in changes if isinstance(one, WeightConverter)]
    own, found = model.state_dict(), dict[str, dict[str | None, list[str]]]()
    for name in sorted(names, key=_numbers_as_such):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        found.setdefault(target, {}).setdefault(pattern, []).append(name)
    return {target: _source(target, by_pattern, converters) for target, by_pattern in found.items()}


def _source(target: str, by_pattern: Mapping[str | None, list[str]], converters: Sequence[WeightConverter]) -> _Source:
    if None in by_pattern:
        return _Source([by_pattern[None][:1]])
    converter = next(one for one in converters if not by_pattern.keys().isdisjoint(one.source_patterns))
    steps = [type(step) for step in converter.operations]
    if steps not in ([MergeModulelist], [MergeModulelist, Concatenate]) or len(converter.target_patterns) > 1:
        shown = ", ".join(step.__name__ for step in steps)
        raise ModelError(f"{target} is computed from what the checkpoint holds ({shown}), which is not supported.")
    return _Source([by_pattern[one] for one in converter.source_patterns if one in by_pattern], of_experts=True)


def _stored(name: str, tensor: Tensor, source: _Source) -> list[StoredTensor]:
    if not source.of_experts:
        return [StoredTensor(name, source.runs[0][0], tuple(map(Axis, tensor.shape)))]
    count, rows, *rest = tensor.shape
    axes = (Axis(rows // len(source.runs), joined=True), *map(Axis, rest))
    by_expert, experts = zip(*source.runs, strict=True), Axis(count)
    return [
        StoredTensor(name, one, axes, entry=(number, experts)) for number, some in enumerate(by_expert) for one in some
    ]


def _numbers_as_such(name: str) -> list[tuple[int, str]]:
    """Sorts 10 behind 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
