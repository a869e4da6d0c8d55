"""BERT's tokenizer from its vocab.txt, as older directories have it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sapwood.base.errors import ModelError

_FIRST, _END, _UNKNOWN = "[CLS]", "[SEP]", "[UNK]"


def from_vocabulary(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    """`config` is tokenizer_config.json. Raises ModelError for words without BERT's own among them."""
    words = {word: id for id, word in enumerate(path.read_text("utf-8").splitlines())}
    if missing := [name for name in (_FIRST, _END, _UNKNOWN) if name not in words]:
        raise ModelError(f"{path} has no {missing[0]}: it is no vocabulary of BERT. Give --tokenizer.")
    tokenizer = Tokenizer(models.WordPiece(words, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_FIRST} $A {_END}",
        pair=f"{_FIRST} $A {_END} $B:1 {_END}:1",
        special_tokens=[(_FIRST, words[_FIRST]), (_END, words[_END])],
    )
    own = [name for name in ("[PAD]", _UNKNOWN, _FIRST, _END, "[MASK]") if name in words]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in own])
    return tokenizer
