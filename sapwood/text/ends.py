"""Which tokens begin a text and end an output: what the model's files say, and what its template needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.base.errors import ModelError
from sapwood.hub.files import ModelFiles
from sapwood.text.tokenizer import Vocabulary

# Tokens that end a turn in the templates of the families; they end an output even where the config forgot to say so.
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|call|>",
    "<|return|>",
)
MANY_MESSAGES = "<|channel|>"  # in templates in which a turn may be of several messages, so <|end|> ends no output


def eos_ids(files: ModelFiles, vocabulary: Vocabulary, templates: Mapping[str, str]) -> set[int]:
    """The union of what generation_config, config and tokenizer say, and the end of a turn in the template.

    Ids that the model has no row for are left out: many files name the end of some other model. Raises ModelError.
    """
    ids = {*_stated(files, "generation_config", "eos_token_id"), *_stated(files, "config", "eos_token_id")}
    turns = [token for token in END_OF_TURN if any(token in source for source in templates.values())]
    if any(MANY_MESSAGES in source for source in templates.values()) and "<|end|>" in turns:
        turns.remove("<|end|>")
    known = vocabulary.tokenizer.get_added_tokens_decoder()
    ids.update(id for id, token in known.items() if token.content in turns)
    if (eos := vocabulary.id_of("eos_token")) is not None:
        ids.add(eos)
    return {id for id in ids if _has_row(files, id)}


def bos_id(files: ModelFiles, vocabulary: Vocabulary) -> int | None:
    """The token that begins a text: the tokenizer's, else the config's. Raises ModelError."""
    if (own := vocabulary.id_of("bos_token")) is not None:
        return own
    return next((id for id in _stated(files, "config", "bos_token_id") if _has_row(files, id)), None)


def _stated(files: ModelFiles, file: str, field: str) -> list[int]:
    """The ids of a field of config or generation_config."""
    value: Any = getattr(files, file).get(field)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        where = files.path / f"{file}.json" if files.kind == "hf" else files.path
        raise ModelError(f"{where}: {field} must be a token's id or a list of them, got {value!r}.")
    return ids


def _has_row(files: ModelFiles, id: int) -> bool:
    """Whether the model may yield a token."""
    num_rows = files.config.get("vocab_size")
    return id >= 0 and (not isinstance(num_rows, int) or id < num_rows)
