"""What the composition root says of an engine is what the engine does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sapwood.base.errors import ConfigError
from sapwood.base.grammar import Grammar
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Submit
from sapwood.config.flags import from_options
from sapwood.config.resolve import Decision
from sapwood.engine import launch as root
from sapwood.engine.launch import launch
from sapwood.executor.base import Measured
from tests import kv, models


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("options", [{"kv_cache_dtype": "int8"}, {"kv_cache_dtype": "float32", "page_size": 4}])
def test_one_request_as_long_as_was_asked_for(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    """No page is missing: neither the reserved one's, nor what scales and windows take."""
    model = models.save(family, tmp_path)
    asked = {
        "model": str(model),
        "dtype": "float32",
        "max_num_seqs": 1,
        "max_num_batched_tokens": 16,
        "max_model_len": 128,
    }
    engine, facts, _ = launch(from_options(asked | options))
    assert facts.max_model_len == 128
    assert "max_model_len = 128 (as asked)" in facts.decisions
    assert engine.submit(Submit(1, [5] * 100, SamplingParams(max_tokens=28, ignore_eos=True))) is None
    ends = []
    while not engine.idle:
        ends += [delta.finish for news in engine.step() for delta in news.deltas if delta.finish]
    assert ends == ["length"]
    engine.executor.shutdown()


def test_a_cache_that_turns_out_smaller() -> None:
    """As on a GPU, whose memory is measured when the weights are there."""
    group = kv.group(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, page_size=16)
    config = from_options(
        {"max_model_len": 256, "max_num_seqs": 2, "max_num_batched_tokens": 16, "kv_cache_dtype": "float32"}
    )
    config = replace(config, model=replace(config.model, dtype="float32"))
    measured = Measured(groups=(group,), kv_bytes=9 * group.bytes_per_page(4), backends=("fake",), seconds={})
    num_pages, longest = root._pages(config, measured, asked=None)
    assert (num_pages, longest) == ([9], 128)
    length, other = Decision("max_model_len", 256, "the model's"), Decision("page_size", 16, "as asked")
    assert root._told((length, other), longest) == (Decision("max_model_len", 128, "what the KV cache holds"), other)
    assert root._told((length,), 256) == (length,)
    with pytest.raises(ConfigError, match=r"--max-model-len \(256\) does not fit: the KV cache holds 128 tokens"):
        root._pages(config, measured, asked=256)


def test_grammars_where_the_model_has_a_broken_template(tiny_model: Path, tmp_path: Path) -> None:
    """They need the tokenizer, and the template is the one that the options give."""
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    told = tmp_path / "tokenizer_config.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"chat_template": "{% if"}))
    options = {"model": str(tmp_path), "chat_template": "{{ messages[0].content }}", "kv_cache_memory": "8M"}
    launched = launch(from_options(options))
    assert launched.compiler.check(Grammar.regex("a+"), seconds=300).matcher is not None
    launched.engine.executor.shutdown()
