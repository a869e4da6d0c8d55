"""Beam search against transformers': a decoder, and an encoder-decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sapwood import LLM, RequestError
from sapwood.base.plan import TokenLogprobs
from sapwood.engine.beams import BeamParams, BeamSearch
from tests import models, seq2seq
from tests.tiny import write_bytes_model

HOW: list[dict[str, Any]] = [
    {"width": 4, "max_tokens": 12},
    {"width": 3, "max_tokens": 10, "length_penalty": 2.0, "early_stopping": True},
    {"width": 2, "max_tokens": 9, "length_penalty": 0.5, "early_stopping": "never"},
]


@pytest.fixture(scope="module", params=["llama", "t5"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, LLM]:
    """With transformers' twin, and an engine that speaks in bytes."""
    family, path = request.param, tmp_path_factory.mktemp(request.param)
    write_bytes_model(path)
    (path / "config.json").unlink()
    theirs = models.make(family) if family == "llama" else seq2seq.make(family)
    theirs.save_pretrained(path)
    llm = LLM(str(path), device="cpu", dtype="float32", max_model_len=64, max_total_tokens=2048, max_num_seqs=8)
    llm.engine.end_at([2])
    llm.facts = llm.engine.facts
    return family, theirs, llm


def beams(family: str, theirs: Any, prompt: list[int], params: BeamParams) -> tuple[list[list[int]], list[float]]:
    with torch.inference_mode():
        out = theirs.generate(
            torch.tensor([prompt]),
            num_beams=params.width,
            num_return_sequences=params.width,
            max_new_tokens=params.max_tokens,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            do_sample=False,
            use_cache=False,
            eos_token_id=2,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
    begun = len(prompt) if family == "llama" else 1
    rows = out.sequences[:, begun:].tolist()
    cut = [row[: row.index(2) + 1] if 2 in row else row for row in rows]
    return cut, out.sequences_scores.tolist()


@pytest.mark.parametrize("how", HOW, ids=str)
def test_beams(model: tuple[str, Any, LLM], how: dict[str, Any]) -> None:
    family, theirs, llm = model
    params = BeamParams(**how)
    prompts = [seq2seq.text(3, 18), seq2seq.text(4, 7)]
    options = {name: value for name, value in how.items() if name != "width"}
    found = llm.beam_search(prompts, beam_width=params.width, **options)
    for prompt, generation in zip(prompts, found, strict=True):
        tokens, scores = beams(family, theirs, prompt, params)
        assert [output.token_ids for output in generation.outputs] == tokens
        assert [output.score for output in generation.outputs] == pytest.approx(scores, abs=1e-3)
    assert llm._engine.audit() == 0


def likely(*pairs: tuple[int, float]) -> TokenLogprobs:
    return TokenLogprobs(pairs[0][0], pairs[0][1], 1, [id for id, _ in pairs], [value for _, value in pairs])


def test_ends_and_stops() -> None:
    search = BeamSearch(BeamParams(width=2, max_tokens=3), [9])
    assert search.step.logprobs == 4
    search.take([likely((9, -0.1), (1, -1.0), (2, -2.0), (3, -3.0))])
    assert [beam.tokens for beam in search.found] == [(9,)] and [beam.tokens for beam in search.running] == [(1,), (2,)]
    search.take([likely((9, -0.5), (4, -2.0)), likely((9, -0.1), (5, -9.0))])
    assert [beam.tokens for beam in search.found] == [(9,), (1, 9)] and not search.running, "none could be better"
    assert search.found[1].score == pytest.approx(-1.5 / 2) and search.found[1].finish == "stop"
    search = BeamSearch(BeamParams(width=2, max_tokens=1), [9])
    search.take([likely((1, -1.0), (2, -2.0), (9, -5.0))])
    assert [beam.finish for beam in search.found] == ["length", "length"] and not search.running
    for wrong in ({"width": 0}, {"width": 33}, {"max_tokens": 0}, {"length_penalty": 11.0}, {"early_stopping": "soon"}):
        with pytest.raises(RequestError):
            BeamParams(**wrong).check()
