"""Text that grows token by token is the text of all tokens."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from tokenizers import Tokenizer

from sapwood.text.detokenizer import Detokenizer
from sapwood.text.pieces import BYTE_OF, Pieces


def test_random_tokens_in_random_steps(byte_level: Tokenizer) -> None:
    pieces = Pieces(byte_level)
    special = {byte_level.token_to_id(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}
    ids = st.integers(0, byte_level.get_vocab_size() - 1)

    @hypothesis_settings(max_examples=400, deadline=None)
    @given(st.lists(st.lists(ids, max_size=4), max_size=8), st.booleans())
    def check(steps: list[list[int]], skip: bool) -> None:
        stream = Detokenizer(pieces, skip=special if skip else ())
        text = "".join(stream.push(step) for step in steps) + stream.finish()
        tokens = [token for step in steps for token in step]
        assert text == byte_level.decode(tokens, skip_special_tokens=skip)

    check()


def test_a_character_comes_when_it_is_whole(byte_level: Tokenizer) -> None:
    char_of = {byte: char for char, byte in BYTE_OF.items()}
    first, *rest = [byte_level.token_to_id(char_of[byte]) for byte in "😀".encode()]
    stream = Detokenizer(Pieces(byte_level))
    assert [stream.push([token]) for token in (first, *rest)] == ["", "", "", "😀"]
    assert stream.push([first]) == ""
    assert stream.finish() == "\ufffd"


def test_every_byte_is_in_the_alphabet() -> None:
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert len(BYTE_OF) == 256


def test_ids_outside_the_vocabulary_have_no_text(byte_level: Tokenizer) -> None:
    pieces = Pieces(byte_level)
    assert [pieces[id] for id in (-1, byte_level.get_vocab_size(), 2**32, 2**70)] == [b""] * 4
    assert not pieces
