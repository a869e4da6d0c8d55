"""Tokens that a directory states beside tokenizer.json: which have names, which are special, which are added.

Today all of it stands in tokenizer_config.json. Older directories have special_tokens_map.json and added_tokens.json
for it, which count where that file has no added_tokens_decoder. All is read as transformers 5 reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from sapwood.base.errors import ModelError
from sapwood.hub.files import read_json

_FLAGS = ("lstrip", "rstrip", "normalized", "single_word")
_FIELDS = ("content", "special", *_FLAGS)


def read_config(directory: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json, in whose spelling the older files' statements are added. Raises ModelError."""
    config = _optional(directory / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    extra = _extra(config)
    config |= _optional(directory / "special_tokens_map.json") | ({"additional_special_tokens": extra} if extra else {})
    special = {*names(config).values(), *map(_content, extra)}
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    config["added_tokens_decoder"] = {
        id: {"content": text, "special": text in special, "normalized": text not in special}
        for text, id in _optional(directory / "added_tokens.json").items()
        if text not in known
    }
    return config


def names(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that have a name, such as bos_token, as templates see them."""
    return {name: text for name, value in _named(config).items() if (text := _content(value)) is not None}


def complete(tokenizer: Tokenizer, config: Mapping[str, Any], *, num_rows: int | None) -> None:
    """Give the tokenizer the tokens and flags of a config. A token with a name is special.

    One that is new to the tokenizer and has no row of `num_rows` in the model is left out, as nothing could be made of
    it. Raises ModelError for one whose id is not the one that the tokenizer would give it.
    """
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    next_id = max(size, max(tokenizer.get_added_tokens_decoder(), default=-1) + 1)
    changed: dict[str, AddedToken] = {}
    for token, stated in _wanted(config, known):
        text = token.content
        if text in changed or (text in known and _same(token, known[text])):
            continue
        if tokenizer.token_to_id(text) is None:
            if num_rows is not None and (next_id if stated is None else stated) >= num_rows:
                continue
            if stated not in (None, next_id):
                raise ModelError(
                    f"The tokenizer's files disagree: {text!r} is to have the id {stated}, and would get {next_id} behind "
                    "the tokens of tokenizer.json. Save the tokenizer anew with transformers, or give --tokenizer."
                )
            next_id += 1
        changed[text] = token
    tokenizer.add_tokens(list(changed.values()))


def _wanted(config: Mapping[str, Any], known: Mapping[str, AddedToken]) -> Iterator[tuple[AddedToken, int | None]]:
    """Every token that the config speaks of, as it is to be, with the id that it states; the first word counts."""
    named = _named(config)
    special = set(names(config).values())
    stated = config.get("added_tokens_decoder") or {}
    try:
        for id, fields in sorted((int(id), fields) for id, fields in stated.items()):
            text = fields["content"]
            forced = fields.get("special") or text in special or (text in known and known[text].special)
            yield _token(fields, special=bool(forced)), id
        for value in (*named.values(), *_extra(config)):
            text = _content(value)
            if text is not None and text in known:
                yield _token(_fields(known[text]), special=known[text].special or text in special), None
            elif text:
                yield _token({"content": text} | (value if isinstance(value, dict) else {}), special=True), None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The tokenizer's added or special tokens cannot be read ({error!r}): give --tokenizer."
        ) from error


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _named(config: Mapping[str, Any]) -> dict[str, Any]:
    extra = config.get("extra_special_tokens")
    return {name: value for name, value in config.items() if name.endswith("_token")} | (
        extra if isinstance(extra, dict) else {}
    )


def _extra(config: Mapping[str, Any]) -> list[Any]:
    """Special tokens without a name."""
    lists = [config.get(f"{kind}_special_tokens") for kind in ("extra", "additional")]
    return next((value for value in lists if isinstance(value, list) and value), [])


def _content(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _token(fields: Mapping[str, Any], *, special: bool) -> AddedToken:
    return AddedToken(fields["content"], special=special, **{flag: fields[flag] for flag in _FLAGS if flag in fields})


def _fields(token: AddedToken) -> dict[str, Any]:
    return {field: getattr(token, field) for field in _FIELDS}


def _same(token: AddedToken, other: AddedToken) -> bool:
    return _fields(token) == _fields(other)
