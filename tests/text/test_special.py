"""What stands beside tokenizer.json. The values are those of transformers 5 on the same directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from sapwood.base.errors import ModelError
from sapwood.hub.files import ModelFiles
from sapwood.text import TextModel

TOOL, NEW = "<|tool|>", 320  # a token, and the first id behind those of the tokenizer
USER = [{"role": "user", "content": "hi"}]
Load = Callable[..., TextModel]


@pytest.fixture
def load(tmp_path: Path, byte_level: Tokenizer) -> Load:
    """Write a directory, with the token in tokenizer.json if `own` are its flags, and load it for a model of `rows`."""

    def load(*, own: dict[str, bool] | None = None, rows: int = 400, **files: dict[str, Any]) -> TextModel:
        tokenizer = Tokenizer.from_str(byte_level.to_str())
        if own is not None:
            tokenizer.add_tokens([AddedToken(TOOL, **{"normalized": False, **own})])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return TextModel.load(ModelFiles("tiny", tmp_path, "hf", {"vocab_size": rows}, {}))

    return load


def stated(**flags: bool) -> dict[str, Any]:
    return {"added_tokens_decoder": {str(NEW): {"content": TOOL, "normalized": False, **flags}}}


@pytest.mark.parametrize(
    ("own", "files", "special"),
    [
        ({}, {"tokenizer_config": stated(special=True)}, True),
        ({"special": True}, {"tokenizer_config": stated(special=False)}, True),
        ({}, {"tokenizer_config": {"extra_special_tokens": {"tool_token": TOOL}}}, True),
        ({}, {"tokenizer_config": {"eos_token": TOOL}}, True),
        ({}, {"tokenizer_config": {"extra_special_tokens": [TOOL]}}, False),
        (None, {"tokenizer_config": stated(special=True)}, True),
        (None, {"tokenizer_config": stated(special=False)}, False),
        (None, {"tokenizer_config": {"additional_special_tokens": [TOOL]}}, True),
        (None, {"added_tokens": {TOOL: NEW}}, False),
        (None, {"added_tokens": {TOOL: NEW}, "special_tokens_map": {"eos_token": {"content": TOOL}}}, True),
        (None, {"added_tokens": {TOOL: NEW}, "tokenizer_config": {"additional_special_tokens": [TOOL]}}, True),
        (None, {"special_tokens_map": {"pad_token": TOOL}}, True),
    ],
)
def test_a_token_of_any_file(load: Load, own: dict[str, bool] | None, files: dict[str, Any], special: bool) -> None:
    text = load(own=own, **files)
    ids = text.encode(f"a {TOOL} b")
    assert ids == [*text.encode("a "), NEW, *text.encode(" b")]
    assert (NEW in text.special_ids, text.decode(ids)) == (special, "a  b" if special else f"a {TOOL} b")
    assert text.vocab_size == NEW + 1


def test_the_config_s_flags_count(load: Load) -> None:
    flags = stated(special=True, lstrip=True, rstrip=True)
    assert load(own={"special": True}, tokenizer_config=flags).encode(f"a {TOOL} b") == [
        *load().encode("a"), NEW, *load().encode("b")
    ]  # fmt: skip


def test_names_of_every_file_reach_the_template(load: Load) -> None:
    template = {"chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ tool_token }}"}
    old = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>", "lstrip": False}}
    text = load(tokenizer_config=template | {"bos_token": None}, special_tokens_map=old)
    assert text.render(USER) == "<|im_start|>hi<|im_end|>"
    assert (text.bos_id, text.eos_ids) == (1, (2,))
    new = template | {"added_tokens_decoder": {}, "extra_special_tokens": {"tool_token": "<|im_end|>"}}
    assert load(tokenizer_config=new, special_tokens_map=old).render(USER) == "hi<|im_end|>"  # the old file is not read


def test_tokens_without_a_row_are_left_out(load: Load) -> None:
    for files in ({"added_tokens": {TOOL: NEW}}, {"tokenizer_config": {"pad_token": TOOL}}):
        text = load(rows=NEW, **files)
        assert text.vocab_size == NEW
        assert len(text.encode(TOOL)) > 1


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"added_tokens": {TOOL: NEW + 1}}, r"<\|tool\|>.*id 321.*would get 320"),
        ({"tokenizer_config": {"added_tokens_decoder": {"320": TOOL}}}, "added or special tokens cannot be read"),
        ({"tokenizer_config": {"added_tokens_decoder": [TOOL]}}, "added or special tokens cannot be read"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": TOOL}}}}, "cannot be read"),
        ({"tokenizer_config": {"added_tokens_decoder": {"320": {"content": TOOL, "lstrip": "no"}}}}, "cannot be read"),
        ({"added_tokens": {TOOL: None}}, "cannot be read"),
    ],
)
def test_statements_that_make_no_sense_are_refused(load: Load, files: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load(**files)
