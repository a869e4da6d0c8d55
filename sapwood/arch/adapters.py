"""What an adapter's tensors are to a model's Linears, and what a rank has of them.

PEFT names modules as transformers does. A Linear of ours may be several of these side by side (queries, keys and values, say), or
one may be several parts of ours: parts with one name that follow each other are a *group*, which has an A of its own (of a name with two
groups both have the same), and B's rows are those of W.
So the pieces of an adapter are cut as W's are: A along its columns, B and the magnitudes along the rows.

Suffix legend: R rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from sapwood.arch.parts import Axis, Decoder, Linear, Part, Place, StoredTensor, Tied, inside, walk
from sapwood.arch.shard import Piece, weight_map

Shapes = Mapping[str, tuple[int, ...]]

HEAD, EMBEDDING = "head", "embed"
"""The ends of a model, as `adaptable` names them: the paths of their places, also where the head is the embedding."""

_PREFIX = "base_model.model."
_ENDINGS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_magnitude_vector": "M",
    ".lora_magnitude_vector.weight": "M",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
}
_BASE = ".base_layer.weight"  # a copy of an end's own weights, which PEFT saves beside what changes it
_SAID = {
    ".lora_A.bias": "biases",
    ".lora_B.bias": "biases",
    ".modules_to_save": "modules saved whole",
}


def groups_of(part: Linear) -> tuple[tuple[int, int], ...]:
    """The outputs [first, behind) of each group, in the order of the rows."""
    sizes = [sum(one.size for one in some) for _, some in groupby(part.parts, key=lambda one: one.name)]
    ends = list(accumulate(sizes, initial=0))
    return tuple(pairwise(ends))


def head_of(decoder: Decoder) -> Place | None:
    """The head as a Linear that adapters may change; one that is tied is a Linear by the name that it has in the checkpoint."""
    head = decoder.head
    if isinstance(head, Tied):
        head = Linear(decoder.embed.hidden_size, (Part(head.name, decoder.embed.vocab_size),), "out")
    return Place(HEAD, "", head) if isinstance(head, Linear) and not head.unit_rows else None


def embedding_of(decoder: Decoder) -> Place:
    """The embedding as a Linear of one-hot vectors, which is how adapters change it."""
    embed = decoder.embed
    return Place(EMBEDDING, "", Linear(embed.vocab_size, (Part(embed.name, embed.hidden_size),), "in"))


def adaptable(decoder: Decoder, ends: Collection[str] = ()) -> Iterator[Place]:
    """The Linears that adapters may change: those of the blocks, but for what a part says is `fixed`, and of the `ends` that there are."""
    fixed = {
        f"{path}.{name}"
        for index, block in enumerate(decoder.blocks)
        for path, part in inside(block, f"blocks.{index}")
        for name in getattr(part, "fixed", ())
    }
    for place in walk(decoder):
        if isinstance(place.leaf, Linear) and place.path.startswith("blocks.") and not _within(place.path, fixed):
            yield place
    if HEAD in ends and (head := head_of(decoder)) is not None:
        yield head
    if EMBEDDING in ends:
        yield embedding_of(decoder)


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


def fit(decoder: Decoder, shapes: Shapes, *, most: int, ends: Collection[str] = ()) -> Fit:
    """Find the place of every tensor. `shapes` are those of the file, by PEFT's names; `most` is the largest rank that there is room for,
    `ends` are those that there is room for.

    Raises ValueError that says what does not fit: left over, missing, of another shape, or too large.
    """
    whole = decoder if decoder.portion is None else decoder.portion[0]
    names = _by_module(whole, shapes, ends)
    modules = {module: shapes[found["A"]][0] for module, found in names.items() if len(shapes[found["A"]]) == 2}
    if (rank := max(modules.values(), default=0)) > most:
        raise ValueError(f"its rank is {rank}, and there is room for {most}: raise --max-lora-rank")
    used: Used = {}

    def tensors(place: Place) -> Sequence[StoredTensor]:
        """With whole names: what `weight_map` puts before them is taken off again."""
        paths = (HEAD, EMBEDDING) if place.path == shared else (place.path,)
        found = [places[path] for path in paths if path in places]
        return tuple(one for here in found for one in _stored(here, place.path, names, modules, used))

    places = {place.path: place for place in adaptable(whole, ends)}
    shared = EMBEDDING if isinstance(whole.head, Tied) else None  # whose share a tied head has
    pieces = tuple(_located(piece, used) for piece in weight_map(decoder, tensors=tensors))
    _check(pieces, shapes)
    return Fit(pieces, modules)


Used = dict[tuple[str, str], tuple[str, str]]
"""PEFT's module and the name of each tensor, by the path of the leaf that is cut with it, and by its param."""


def _stored(
    place: Place, cut: str, names: Mapping[str, Mapping[str, str]], modules: Mapping[str, int], used: Used
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
                param = f"{kind}.{group if kind == 'A' else index}.{place.path}"
                used[cut, param] = module, found[kind]
                yield StoredTensor(param, found[kind], axes)


def _located(piece: Piece, used: Used) -> Located:
    kind, index, path = piece.param.split(".", 2)
    module, name = used[piece.path, piece.param]
    named = Piece(path, piece.param, name, piece.shape, piece.source, piece.target)
    return Located(path, kind, int(index), module, named)


def _by_module(decoder: Decoder, shapes: Shapes, ends: Collection[str]) -> dict[str, dict[str, str]]:
    """The names of the tensors of each module, by matrix. Raises ValueError for what belongs to no Linear."""
    known = {place.prefix + part.name for place in adaptable(decoder, ends) for part in _parts(place)}
    copied, looked = _copied(decoder, ends), decoder.embed.name
    found: dict[str, dict[str, str]] = {}
    for name in shapes:
        bare = name.removeprefix(_PREFIX)
        if (own := copied.get(bare, copied.get(decoder.root + bare))) is not None:
            if shapes[name] != own:
                raise ValueError(
                    f"{name} is {list(shapes[name])}, and the model's is {list(own)}: its vocabulary is another"
                )
            continue
        ending = next((one for one in (*_ENDINGS, _BASE) if name.endswith(one)), None)
        if ending is None:
            raise ValueError(f"{name} is not supported: {_why(name)}")
        module = name.removesuffix(ending).removeprefix(_PREFIX)
        module = next((one for one in (module, decoder.root + module) if one in known), module)
        if module not in known or (".lora_embedding_" in ending) != (module == looked):
            raise ValueError(f"{name} is not supported: {_unknown(decoder, module)}")
        if ending == _BASE:
            raise ValueError(f"{name} is not supported: of a base's own weights, those of its ends are looked at alone")
        found.setdefault(module, {})[_ENDINGS[ending]] = name
    for module, matrices in found.items():
        if missing := {"A", "B"} - matrices.keys():
            raise ValueError(f"{module} has no lora_{missing.pop()}")
    if not found:
        raise ValueError("it has no tensors")
    return found


def _copied(decoder: Decoder, ends: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of the ends' own weights, by the names under which PEFT saves them beside what changes them."""
    found: dict[str, tuple[int, ...]] = {}
    if HEAD in ends and (head := head_of(decoder)) is not None:
        found |= {f"{part.name}{_BASE}": (part.size, decoder.hidden_size) for part in _parts(head)}
    if EMBEDDING in ends:
        found[f"{decoder.embed.name}{_BASE}"] = (decoder.vocab_size, decoder.hidden_size)
    return found


def _parts(place: Place) -> tuple[Part, ...]:
    assert isinstance(place.leaf, Linear)
    return place.leaf.parts


def _why(name: str) -> str:
    return next((f"{what} are not changed by adapters here" for part, what in _SAID.items() if part in name), "unknown")


def _unknown(decoder: Decoder, module: str) -> str:
    if "expert" in module and "shared_expert" not in module:
        return "adapters of experts are not served; train on the attention's Linears, or on a model without experts"
    last = module.rsplit(".", 1)[-1]
    if decoder.embed.name in (module, decoder.root + module):
        return "the embedding is changed, by plain LoRA, where --lora-modules names an adapter at the start that changes it"
    if last == "score":
        return f"it is not changed by adapters here; leave {last} out of target_modules"
    return f"the model has no Linear {module} that adapters may change"


def _check(pieces: Sequence[Located], shapes: Shapes) -> None:
    for one in pieces:
        given = shapes[one.piece.name]
        if one.piece.shape != given:
            raise ValueError(f"{one.piece.name} is {list(given)}, wants {list(one.piece.shape or ())}")
