"""What an adapter's tensors are to a model's Linears, and what a rank has of them.

PEFT names modules as transformers does. A Linear of ours may be several of these side by side (queries, keys and values, say), or
one may be several parts of ours: parts with one name that follow each other are a *group*, which has an A of its own (of a name with two
groups both have the same), and B's rows are those of W.
So the pieces of an adapter are cut as W's are: A along its columns, B and the magnitudes along the rows.

Suffix legend: R rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from sapwood.arch.parts import Axis, Decoder, Linear, Part, Place, StoredTensor, inside, walk
from sapwood.arch.shard import Piece, weight_map

Shapes = Mapping[str, tuple[int, ...]]

_PREFIX = "base_model.model."
_ENDINGS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_magnitude_vector": "M",
    ".lora_magnitude_vector.weight": "M",
}
_ENDS = "the head and the embedding"
_SAID = {
    ".lora_embedding_": _ENDS,
    ".base_layer.": _ENDS,
    ".lora_A.bias": "biases",
    ".lora_B.bias": "biases",
    ".modules_to_save": "modules saved whole",
}


def groups_of(part: Linear) -> tuple[tuple[int, int], ...]:
    """The outputs [first, behind) of each group, in the order of the rows."""
    sizes = [sum(one.size for one in some) for _, some in groupby(part.parts, key=lambda one: one.name)]
    ends = list(accumulate(sizes, initial=0))
    return tuple(pairwise(ends))


def adaptable(decoder: Decoder) -> Iterator[Place]:
    """The Linears that adapters may change: those of the blocks, but for what a part says is `fixed`."""
    fixed = {
        f"{path}.{name}"
        for index, block in enumerate(decoder.blocks)
        for path, part in inside(block, f"blocks.{index}")
        for name in getattr(part, "fixed", ())
    }
    for place in walk(decoder):
        if isinstance(place.leaf, Linear) and place.path.startswith("blocks.") and not _within(place.path, fixed):
            yield place


def _within(path: str, fixed: set[str]) -> bool:
    return any(path == one or path.startswith(f"{one}.") for one in fixed)


class Located(NamedTuple):
    """A piece of an adapter's tensor: of matrix `kind` ("A", "B" or "M") of the Linear at `path`. A's rows are those of group `number`,
    the others' those of part `number`; PEFT's `module` it is of."""

    path: str
    kind: str
    number: int
    module: str
    piece: Piece


@dataclass(frozen=True)
class Fit:
    """How an adapter fits a model: the pieces that a rank wants, and the rank of each module by its name."""

    pieces: tuple[Located, ...]
    modules: Mapping[str, int]


def fit(decoder: Decoder, shapes: Shapes, *, most: int) -> Fit:
    """Find the place of every tensor. `shapes` are those of the file, by PEFT's names; `most` is the largest rank that there is room for.

    Raises ValueError that says what does not fit: left over, missing, of another shape, or too large.
    """
    whole = decoder if decoder.portion is None else decoder.portion[0]
    names = _by_module(whole, shapes)
    modules = {module: shapes[found["A"]][0] for module, found in names.items() if len(shapes[found["A"]]) == 2}
    if (rank := max(modules.values(), default=0)) > most:
        raise ValueError(f"its rank is {rank}, and there is room for {most}: raise --max-lora-rank")
    used: dict[tuple[str, str], tuple[str, str]] = {}

    def tensors(place: Place) -> Sequence[StoredTensor]:
        """With whole names: what `weight_map` puts before them is taken off again."""
        if place.path not in places:
            return ()
        return tuple(_stored(place, names, modules, used))

    places = {place.path for place in adaptable(whole)}
    pieces = tuple(_located(piece, used) for piece in weight_map(decoder, tensors=tensors))
    _check(pieces, shapes)
    return Fit(pieces, modules)


def _stored(
    place: Place,
    names: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, int],
    used: dict[tuple[str, str], tuple[str, str]],
) -> Iterator[StoredTensor]:
    part = place.leaf
    assert isinstance(part, Linear)
    group = -1
    for index, one in enumerate(part.parts):
        begins = not index or part.parts[index - 1].name != one.name
        group += begins
        module = place.prefix + one.name
        if (found := names.get(module)) is None:
            continue
        rank, rows = Axis(modules[module]), part.rows(index)
        wanted = {"B": (rows, rank), "M": (rows,)}
        if begins:
            wanted["A"] = (rank, part.columns)
        for kind, axes in wanted.items():
            if kind in found:
                param = f"{kind}.{group if kind == 'A' else index}"
                used[place.path, param] = module, found[kind]
                yield StoredTensor(param, found[kind], axes)


def _located(piece: Piece, used: Mapping[tuple[str, str], tuple[str, str]]) -> Located:
    kind, index = piece.param.split(".")
    module, name = used[piece.path, piece.param]
    named = Piece(piece.path, piece.param, name, piece.shape, piece.source, piece.target)
    return Located(piece.path, kind, int(index), module, named)


def _by_module(decoder: Decoder, shapes: Shapes) -> dict[str, dict[str, str]]:
    """The names of the tensors of each module, by matrix. Raises ValueError for what belongs to no Linear."""
    known = {place.prefix + part.name for place in adaptable(decoder) for part in _parts(place)}
    found: dict[str, dict[str, str]] = {}
    for name in shapes:
        ending = next((one for one in _ENDINGS if name.endswith(one)), None)
        if ending is None:
            raise ValueError(f"{name} is not supported: {_why(name)}")
        module = name.removesuffix(ending).removeprefix(_PREFIX)
        module = next((one for one in (module, decoder.root + module) if one in known), module)
        if module not in known:
            raise ValueError(f"{name} is not supported: {_unknown(module)}")
        found.setdefault(module, {})[_ENDINGS[ending]] = name
    for module, matrices in found.items():
        if missing := {"A", "B"} - matrices.keys():
            raise ValueError(f"{module} has no lora_{missing.pop()}")
    if not found:
        raise ValueError("it has no tensors")
    return found


def _parts(place: Place) -> tuple[Part, ...]:
    assert isinstance(place.leaf, Linear)
    return place.leaf.parts


def _why(name: str) -> str:
    return next((f"{what} are not changed by adapters here" for part, what in _SAID.items() if part in name), "unknown")


def _unknown(module: str) -> str:
    if "expert" in module and "shared_expert" not in module:
        return "adapters of experts are not served; train on the attention's Linears, or on a model without experts"
    last = module.rsplit(".", 1)[-1]
    if last in ("embed_tokens", "lm_head", "wte", "score"):
        return f"{_ENDS} are not changed by adapters here; leave {last} out of target_modules"
    return f"the model has no Linear {module} that adapters may change"


def _check(pieces: Sequence[Located], shapes: Shapes) -> None:
    for one in pieces:
        given = shapes[one.piece.name]
        if one.piece.shape != given:
            raise ValueError(f"{one.piece.name} is {list(given)}, wants {list(one.piece.shape or ())}")
