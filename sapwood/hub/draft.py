"""The smaller model that drafts for another: found, and held to the other's vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from sapwood.arch.draft_head import DraftHead
from sapwood.arch.eagle import eagle, is_eagle
from sapwood.arch.families import declare
from sapwood.arch.family import Family
from sapwood.arch.foreign import Foreign
from sapwood.arch.parts import Decoder
from sapwood.base.errors import ConfigError
from sapwood.hub.files import ModelFiles, find, read_json, tensor_names
from sapwood.hub.pull import Progress

_FLAG = "--speculative-model"


class DraftModel(NamedTuple):
    """A smaller model, or a head that goes on from the other's hidden states. It runs beside the other, and its KV groups come behind
    the other's."""

    decoder: Decoder | DraftHead
    files: ModelFiles


def find_draft(
    model: str,
    target: Decoder | Foreign,
    target_files: ModelFiles,
    *,
    families: Sequence[Family],
    methods: Collection[str],
    weights: bool = True,
    progress: Progress | None = None,
    flag: str = _FLAG,
) -> DraftModel:
    """Find a model that is to draft for the `target`, as the option of that `flag` says. Raises ConfigError where the two do not share a vocabulary, and ModelError
    for a head that is none of the target's."""
    files = find(model, weights=weights, families=families, progress=progress)
    names = tensor_names(files) if weights and files.kind == "hf" else frozenset()
    if is_eagle(files.config, names):
        if isinstance(target, Foreign):
            raise ConfigError(
                f"{flag} {model} is a head that goes on from hidden states within a model, and {target_files.name} runs in "
                "transformers' modules, which keep them to themselves. Take a whole model, or none."
            )
        return DraftModel(eagle(files.config, names, target), files)
    decoder = declare(files.config, families, methods=methods)
    if decoder.vocab_size != target.vocab_size:
        raise ConfigError(
            f"{flag} {model} cannot draft for {target_files.name}: it has {decoder.vocab_size} tokens, and that has "
            f"{target.vocab_size}. Take a model with the same tokenizer."
        )
    if (other := _difference(tokens_of(files), tokens_of(target_files))) is not None:
        id, mine, its = other
        raise ConfigError(
            f"{flag} {model} cannot draft for {target_files.name}: token {id} is {mine!r} in the one and {its!r} in the "
            "other. Take a model with the same tokenizer."
        )
    if decoder.positions is not None and decoder.max_positions < target.max_positions:
        raise ConfigError(
            f"{flag} {model} cannot draft for {target_files.name}: it has learned {decoder.max_positions} positions and no more, "
            f"and that has {target.max_positions}. Take a model with as many."
        )
    # Its positions go as far as the other's: beyond those that it was made for it is wrong more often.
    return DraftModel(replace(decoder, max_positions=target.max_positions), files)


def own_head(target: Decoder | Foreign, files: ModelFiles, *, weights: bool = True) -> DraftModel:
    """The head that the `target`'s own checkpoint has. Raises ConfigError if it has none."""
    mend = f"Leave it out, or give {_FLAG} MODEL."
    if isinstance(target, Foreign) or target.mtp is None or files.kind == "gguf":
        raise ConfigError(
            f"--speculation mtp: {target.architecture} as {files.name} has it has no layers that predict more tokens than one. {mend}"
        )
    head = replace(target.mtp, quantization=target.quantization)
    if weights and not any(map(head.owns, tensor_names(files))):
        raise ConfigError(
            f"--speculation mtp: the checkpoint of {files.name} lacks its layers that predict more tokens than one, whose names begin "
            f"with {head.within}. {mend}"
        )
    return DraftModel(head, files)


def tokens_of(files: ModelFiles) -> Mapping[int, str]:
    """The tokens of a model by their ids, as its tokenizer spells them; none where there is nothing to read them from."""
    if files.kind == "gguf":
        from sapwood.hub.gguf import open_gguf

        return dict(enumerate(open_gguf(files.path).metadata.get("tokenizer.ggml.tokens", ())))
    path = files.path / "tokenizer.json"
    if not path.exists():
        return {}
    said = read_json(path)
    vocabulary = said.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, dict):
        tokens = {id: token for token, id in vocabulary.items()}
    else:  # pairs of a token and its score, in the order of their ids
        tokens = {id: token for id, (token, _) in enumerate(vocabulary)}
    return tokens | {added["id"]: added["content"] for added in said.get("added_tokens", ())}


def _difference(mine: Mapping[int, str], other: Mapping[int, str]) -> tuple[int, str, str] | None:
    """The first token that both know and spell differently."""
    found = (id for id in sorted(mine.keys() & other.keys()) if mine[id] != other[id])
    return next(((id, mine[id], other[id]) for id in found), None)
