"""Features of requests and of engines with an encoder-decoder: what changes no token of others changes none of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood import ConfigError
from tests import seq2seq
from tests.contracts.test_pairs import CASES, FEATURES, SHARE, answers, as_asked, same

WITH_READERS = (
    ("overlap", "chunked prompts", "drafts", "a stake that pauses", "longest prefix first"),
    ("standing still", "a store of KV", "two at a time", "speculation", "small pages"),
    ("deep overlap", "no prefix cache", "priorities", "no jump-forward", "reference attention"),
)
OF_PROMPTS = {"prompt logprobs", "all positions"}  # which an encoder reads
ASKED_OF_READERS = [case for case in CASES if not OF_PROMPTS & {*case.names}][::6]
"""Of an encoder-decoder nobody can ask how likely its prompt is."""


def test_features_of_requests_and_engines_with_encoder_decoders(tmp_path: Path) -> None:
    reader = seq2seq.write_speaking(tmp_path)
    alone = answers(reader, (), ASKED_OF_READERS)
    as_asked(alone, ASKED_OF_READERS)
    assert len({tuple(one.token_ids) for one in alone}) > len(alone) // 2
    for turn, names in enumerate(WITH_READERS):
        mine = slice(turn, None, SHARE)
        found = answers(reader, [FEATURES[name] for name in names], ASKED_OF_READERS[mine])
        same(found, alone[mine], ASKED_OF_READERS[mine])
    for name, why in (
        ("a draft model", "--speculative-model"),
        ("weights in int8", "--quantization"),
        ("two ranks", "cut"),
        ("two stages", "encoder"),
    ):
        with pytest.raises(ConfigError, match=why):
            answers(reader, [FEATURES[name]], ASKED_OF_READERS[:1])
