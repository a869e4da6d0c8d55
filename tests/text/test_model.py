"""The text side of a model directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from tokenizers import Tokenizer, processors

from sapwood.base.errors import ConfigError, ModelError, RequestError
from sapwood.hub import ModelFiles
from sapwood.text import TextModel
from tests.broken import TOKENIZERS, Damage

Load = Callable[..., TextModel]
USER = [{"role": "user", "content": "the cat"}]


def test_any_text_comes_back(text: TextModel) -> None:
    @hypothesis_settings(deadline=None)
    @given(st.text())
    def check(written: str) -> None:
        assert text.decode(text.encode(written), skip_special=False) == written

    check()


def test_special_tokens(text: TextModel) -> None:
    ids = text.encode("<|im_start|>the cat<|im_end|>")
    assert (text.token_text(ids[0]), text.token_text(ids[-1])) == ("<|im_start|>", "<|im_end|>")
    assert text.decode(ids) == "the cat"
    assert text.decode(ids, skip_special=False) == "<|im_start|>the cat<|im_end|>"
    assert text.special_ids == {0, 1, 2}
    assert text.vocab_size == 320


def test_bytes_of_tokens_join_to_the_text(text: TextModel) -> None:
    written = "très 日本語 😀"
    assert b"".join(text.token_bytes(id) for id in text.encode(written)) == written.encode()


def test_lone_surrogates_are_refused(text: TextModel) -> None:
    with pytest.raises(RequestError, match="character 1") as caught:
        text.encode("a\ud800")
    assert caught.value.param == "prompt"
    with pytest.raises(RequestError) as caught:
        text.special_text(text.render([{"role": "user", "content": "\udfff"}]), param="messages")
    assert caught.value.param == "messages"


def test_chat(text: TextModel) -> None:
    assert text.has_template
    rendered = "<|im_start|>user\nthe cat<|im_end|>\n"
    assert text.render(USER, add_generation_prompt=False) == rendered
    assert text.decode(text.special_text(text.render(USER)), skip_special=False) == f"{rendered}<|im_start|>assistant\n"


def test_without_a_template(load: Load) -> None:
    text = load(chat_template=None)
    assert not text.has_template
    with pytest.raises(RequestError, match=r"/v1/completions.*--chat-template") as caught:
        text.render(USER)
    assert caught.value.param == "messages"


def test_ends_are_gathered_from_everywhere(load: Load) -> None:
    # the template uses <|im_end|>, so it ends too, whatever the configs say
    assert load(chat_template=None).eos_ids == ()
    assert load().eos_ids == (2,)
    assert load({"eos_token_id": 9}, {"eos_token_id": [7, 8]}, eos_token={"content": "<|endoftext|>"}).eos_ids == (
        0,
        2,
        7,
        8,
        9,
    )
    assert load({"eos_token_id": 9, "bos_token_id": 5}).bos_id == 5
    assert load({"bos_token_id": 5}, bos_token="<|im_start|>").bos_id == 1


def test_ids_without_a_row_are_no_ends(load: Load) -> None:
    """Those of the padded rows stay, as they may be drawn."""
    config = {"vocab_size": 350, "eos_token_id": 340}
    assert load(config, {"eos_token_id": [7, -1, 350, 128009]}).eos_ids == (2, 7, 340)
    for bos in (-1, 350):
        assert load(config | {"bos_token_id": bos}).bos_id is None
    assert load({"vocab_size": 2}).eos_ids == (), "not even the template's"


@pytest.mark.parametrize("value", ["2", [2, "3"], 2.5, True, {"id": 2}])
def test_ends_that_are_no_ids_are_named(load: Load, value: object) -> None:
    for config, generation, file in (
        ({}, {"eos_token_id": value}, "generation_config"),
        ({"eos_token_id": value}, {}, "config"),
    ):
        with pytest.raises(ModelError, match=rf"[/\\]{file}\.json: eos_token_id must be"):
            load(config, generation)
    with pytest.raises(ModelError, match="bos_token_id must be"):
        load({"bos_token_id": value})


def test_the_bos_token_is_added_once(load: Load, byte_level: Tokenizer, tmp_path: Path) -> None:
    text = load(bos_token="<|endoftext|>", add_bos_token=True)  # tokenizer.json does not add it
    assert text.encode("a")[0] == 0
    assert text.encode("a", add_special=False)[0] != 0
    assert 0 not in text.special_text(text.render(USER))
    framing = Tokenizer.from_str(byte_level.to_str())
    framing.post_processor = processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    framing.save(str(tmp_path / "tokenizer.json"))
    text = TextModel.load(ModelFiles("tiny", tmp_path, "hf", {}, {}))
    assert text.encode("a").count(0) == 1


def test_a_named_token_is_special_though_not_marked(load: Load, byte_level: Tokenizer) -> None:
    word = byte_level.id_to_token(319)
    text = load(eos_token=word)
    assert 319 in text.special_ids
    assert 319 in text.eos_ids


def test_other_tokenizers_and_templates(load: Load, byte_level: Tokenizer, tmp_path: Path) -> None:
    load()
    files = ModelFiles("elsewhere", tmp_path / "nothing", "hf", {}, {})
    for override in (tmp_path, tmp_path / "tokenizer.json"):
        text = TextModel.load(files, tokenizer=str(override), chat_template="{{ messages[0].content }}")
        assert text.decode(text.special_text(text.render(USER))) == "the cat"
    with pytest.raises(ConfigError, match="--tokenizer"):
        TextModel.load(files, tokenizer=str(tmp_path / "missing"))


def test_a_tokenizer_without_a_template_keeps_the_models(load: Load, byte_level: Tokenizer, tmp_path: Path) -> None:
    load()
    bare = tmp_path / "bare"
    bare.mkdir()
    byte_level.save(str(bare / "tokenizer.json"))
    assert TextModel.load(ModelFiles("tiny", tmp_path, "hf", {}, {}), tokenizer=str(bare)).has_template


def test_broken_tokenizers_are_refused_in_words(tmp_path: Path, byte_level: Tokenizer) -> None:
    files = ModelFiles("tiny", tmp_path, "hf", {}, {})
    with pytest.raises(ModelError, match=r"no tokenizer\.json.*save_pretrained"):
        TextModel.load(files)
    (tmp_path / "tokenizer.json").write_text(byte_level.to_str()[:500])
    with pytest.raises(ModelError, match=r"tokenizer\.json is damaged"):
        TextModel.load(files)


@pytest.mark.parametrize(("damage", "says"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers_of_which_a_part_is_broken(tmp_path: Path, byte_level: Tokenizer, damage: Damage, says: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(damage(json.loads(byte_level.to_str()))))
    with pytest.raises(ModelError, match=says):
        TextModel.load(ModelFiles("tiny", tmp_path, "hf", {}, {}))


def test_a_truncating_tokenizer_is_told_not_to(load: Load, byte_level: Tokenizer, tmp_path: Path) -> None:
    truncating = Tokenizer.from_str(byte_level.to_str())
    truncating.enable_truncation(4)
    truncating.enable_padding(length=4)
    load()
    truncating.save(str(tmp_path / "tokenizer.json"))
    text = TextModel.load(ModelFiles("tiny", tmp_path, "hf", {}, {}))
    assert len(text.encode("a")) == 1
    assert len(text.encode("q" * 50)) == 50


def test_huge_inputs(text: TextModel) -> None:
    for written in ("a" * 300_000, " " * 300_000, "ab " * 100_000, "\n" * 300_000, json.dumps(["x"] * 50_000)):
        assert text.decode(text.encode(written)) == written


def test_a_message_that_ends_is_not_the_end_where_turns_have_several(load: Callable[..., TextModel]) -> None:
    special = ("<|end|>", "<|channel|>", "<|call|>", "<|return|>")
    several = load(
        chat_template="<|start|>assistant<|channel|>final<|message|>x<|end|><|call|><|return|>", extra=special
    )
    names = {several.token_text(id) for id in several.eos_ids}
    assert {"<|call|>", "<|return|>"} <= names and "<|end|>" not in names
    alone = load(chat_template="<|user|>x<|end|>", extra=special)
    assert "<|end|>" in {alone.token_text(id) for id in alone.eos_ids}


def test_where_thoughts_stand(load: Callable[..., TextModel]) -> None:
    text = load(chat_template="{{ messages[0].content }}{# <think></think> #}")
    assert [text.thoughts(end) for end in ("Hi", "Hi<think>\n", "Hi<think>\n\n</think>\n\n", "a <think> b")] == [
        "possible", "open", "over", "possible"
    ]  # fmt: skip
    assert text.thoughts("Hi<think>\nSo", continues=True) == "open"
    assert load(chat_template="x").thoughts("<think>") == "none"
    tokens = text.encode("<think>Hm.</think>Yes.<think>Oh</think>!")
    assert text.num_thought_tokens(tokens, open=False) == len(text.encode("<think>Hm.</think><think>Oh</think>"))
    assert text.num_thought_tokens(text.encode("Hm.</think>Yes"), open=True) == len(text.encode("Hm.</think>"))
    assert text.num_thought_tokens(text.encode("Hm."), open=True) == len(text.encode("Hm."))
