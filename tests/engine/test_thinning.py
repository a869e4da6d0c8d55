"""Speculative prefill through whole engines: what is kept of a prompt is computed at its own positions, and belongs to nobody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapwood import LLM
from sapwood.base.errors import ConfigError
from sapwood.base.plan import Floats, Ints
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Submit
from sapwood.catalogue import joined
from sapwood.config.flags import from_options
from sapwood.draft import thin
from sapwood.engine.launch import launch
from sapwood.executor.local import LocalExecutor
from sapwood.runner.scout import AHEAD, Scout
from tests import heads, models
from tests.engine.test_drafts import KINDS, Said, same, say

CHUNK = 8
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that models of few positions have long prompts."""
    _small(monkeypatch)


def _small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thin, "CHUNK", CHUNK)
    patch.setattr(thin, "SHORTEST", 6 * CHUNK)


def prompts(count: int, length: int = 90) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(3, 190, length + 5 * number).tolist() for number in range(count)]


def odd(tokens: Ints) -> Floats:
    """Scores that depend on nothing but tokens."""
    return (tokens * 7919 % 101).astype(np.float32)


def known_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalExecutor, "scout", lambda *asked: odd)


def kept_of(prompt: Sequence[int], keep: float) -> list[int]:
    return thin.chosen(odd(np.array(prompt, np.int32)), keep, chunk=CHUNK).tolist()


def with_holes(model: Any, prompt: Sequence[int], kept: Sequence[int], count: int) -> list[int]:
    """What transformers says to the tokens that are kept, at their own positions."""
    tokens, places = [prompt[one] for one in kept], list(kept)
    for step in range(count):
        with torch.inference_mode():
            asked = {
                "position_ids": torch.tensor([places]),
                "attention_mask": torch.ones(1, len(tokens)),
                "use_cache": False,
            }
            tokens.append(int(model(torch.tensor([tokens]), **asked).logits[0, -1].argmax()))
        places.append(len(prompt) + step)
    return tokens[len(kept) :]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"depth": 2, "max_num_batched_tokens": 40}),
        ("qwen3", {"depth": 1, "page_size": 4, "attention_backend": "reference"}),
        pytest.param("llama", {"attention_backend": "cpu"}, marks=pytest.mark.slow),
        pytest.param("deepseek-v3", {}, marks=pytest.mark.slow),
        pytest.param("gpt2", {}, marks=pytest.mark.slow),
        pytest.param("llama", {"model_impl": "transformers"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_is_kept_is_computed_at_its_own_positions(
    family: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held to transformers, given the positions. A short prompt among them is whole, and so is one that wants to be."""
    known_scores(monkeypatch)
    model, path = models.make(family), models.save(family, tmp_path / "model")
    mine = prompts(3)
    asked = [(prompt, GREEDY) for prompt in [*mine, mine[0][:40]]]
    asked.append((mine[1], SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, whole_prompt=True)))
    chooser = models.save("llama", tmp_path / "chooser")
    found, counters = say(path, asked, speculative_prefill=0.4, speculative_prefill_model=str(chooser), **options)
    kept = [kept_of(prompt, 0.4) for prompt in mine] + [list(range(40)), list(range(len(mine[1])))]
    for (prompt, _), places, (tokens, *_) in zip(asked, kept, found, strict=True):
        assert tokens == with_holes(model, prompt, places, len(tokens)) and tokens
    assert counters["thinned_prompts"] == 3
    assert counters["left_out_prompt_tokens"] == sum(map(len, mine)) - sum(map(len, kept[:3]))
    assert counters["prompt_tokens"] == sum(map(len, kept)) - counters["cached_tokens"]


def test_all_that_is_kept_is_what_is_said_without(tmp_path: Path) -> None:
    path = models.save("llama", tmp_path)
    asked = [(prompt, KINDS[i % len(KINDS)]) for i, prompt in enumerate(prompts(5))]
    wanted, _ = say(path, asked)
    found, counters = say(path, asked, speculative_prefill=1.0, speculative_prefill_model=str(path))
    same(found, wanted)
    assert counters["thinned_prompts"] == 0


THINNED: dict[str, Any] = {"speculative_prefill": 0.5, "page_size": 16}
ASKED = [(prompt, KINDS[i % len(KINDS)]) for i, prompt in enumerate(prompts(4))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A model, and what it says to each request by itself."""
    path = models.save("llama-tied", tmp_path_factory.mktemp("model"))
    with pytest.MonkeyPatch.context() as patch:
        known_scores(patch)
        _small(patch)
        return path, say(path, ASKED, max_num_seqs=1, speculative_prefill_model=str(path), **THINNED)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 2, "speculation": "auto", "num_speculative_tokens": 3},
        {"depth": 1, "speculative_model": "itself", "max_num_batched_tokens": 32, "policy": "lpm"},
        pytest.param(
            {"speculative_model": "a head", "num_speculative_tokens": 3, "max_num_seqs": 2}, marks=pytest.mark.slow
        ),
        pytest.param({"prefix_caching": False, "tensor_parallel_size": 2, "depth": 1}, marks=pytest.mark.slow),
        pytest.param({"pipeline_parallel_size": 2, "page_size": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_how_it_is_run_changes_nothing(
    options: dict[str, Any], alone: tuple[Path, Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps in flight, drafts by whomever, preemption, chunks, several ranks."""
    known_scores(monkeypatch)
    path, wanted = alone
    if options.get("speculative_model") == "itself":
        options = options | {"speculative_model": str(path)}
    elif "speculative_model" in options:
        options = options | {"speculative_model": str(heads.write(tmp_path / "head", *heads.third(64, 199, 100)))}
    found, counters = say(path, ASKED * 2, **(THINNED | {"speculative_prefill_model": str(path)} | options))
    same(found, wanted * 2)
    assert counters["thinned_prompts"] == 8 and counters["cached_tokens"] == 0


def test_who_gave_way_goes_on(alone: tuple[Path, Said], monkeypatch: pytest.MonkeyPatch) -> None:
    known_scores(monkeypatch)
    path, wanted = alone
    fields = {"model": str(path), "dtype": "float32", "max_model_len": 200, "max_total_tokens": 2048, **THINNED}
    engine, *_ = launch(from_options(fields | {"speculative_prefill_model": str(path), "max_num_seqs": 4}))
    said: list[list[int]] = [[] for _ in ASKED]
    for number, (prompt, params) in enumerate(ASKED):
        assert engine.submit(Submit(number, prompt, params, stop_ids=[3, 4])) is None
    retracted = 0
    while not engine.idle:
        for news in engine.step():
            for id, token in zip(news.ids, news.tokens, strict=True):
                said[id].append(token)
            for delta in news.deltas:
                said[delta.id] += delta.tokens
        if not retracted and min(map(len, said)) > 2:
            retracted = engine.control("retract")["retracted"]
    assert retracted == 4 and said == [tokens for tokens, *_ in wanted]
    assert engine.audit() == 0
    engine.shutdown()


def test_nothing_of_it_is_found_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the same prompt again, nor by its beginning, which is whole; and it does not stay in memory."""
    known_scores(monkeypatch)
    path = models.save("llama", tmp_path)
    options = {"model": str(path), "dtype": "float32", "max_model_len": 200, "max_total_tokens": 2048, "page_size": 8}
    engine, *_ = launch(from_options(options | {"speculative_prefill": 0.5, "speculative_prefill_model": str(path)}))
    (prompt,) = prompts(1)

    def cached(number: int, tokens: list[int]) -> int:
        assert engine.submit(Submit(number, tokens, GREEDY)) is None
        found = -1
        while not engine.idle:
            found = max([found, *(delta.cached_tokens for news in engine.step() for delta in news.deltas)])
        return found

    total, free, _ = engine.stats().pages[0]
    assert cached(0, prompt) == cached(1, prompt) == 0
    assert engine.stats().pages[0][:2] == [total, free]
    assert cached(2, prompt[:40]) == 0
    assert cached(3, prompt[:40]) > 0
    engine.shutdown()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_scores_are_what_the_last_tokens_look_at(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held to the weights of transformers' attention; prompts come in several steps."""
    monkeypatch.setattr("sapwood.runner.scout._STEP", 40)
    monkeypatch.setattr("sapwood.attention.watching._MOST", 1000)
    model, path = models.make(family), models.save(family, tmp_path / family)
    scout = _scout(models.save("llama", tmp_path / "llama") if family != "llama" else path, path)
    (prompt,) = prompts(1)
    wanted, tokens = torch.zeros(len(prompt)), list(prompt)
    model.set_attn_implementation("eager")
    for _ in range(AHEAD):
        with torch.inference_mode():
            told = model(torch.tensor([tokens]), output_attentions=True, use_cache=False)
        wanted += torch.stack([one[0, :, -1, : len(prompt)].amax(0) for one in told.attentions]).amax(0)
        tokens.append(int(told.logits[0, -1].argmax()))
    found = scout(np.array(prompt, np.int32))
    torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-4, rtol=1e-4)


def _scout(path: Path, chooser: Path) -> Callable[[Ints], Floats]:
    found: list[Callable[[Ints], Floats]] = []

    class Kept(LocalExecutor):
        def scout(self, *asked: Any) -> Any:
            found.append(super().scout(*asked))
            return found[0]

    options = {"model": str(path), "dtype": "float32", "max_model_len": 200, "max_total_tokens": 256, "max_num_seqs": 2}
    options |= {"speculative_prefill": 0.5, "speculative_prefill_model": str(chooser)}
    engine, *_ = launch(from_options(options), executor=Kept(joined()))
    engine.shutdown()
    assert isinstance(found[0], Scout)
    return found[0]


@pytest.mark.parametrize(
    ("family", "options", "why"),
    [
        ("llama", {"speculative_prefill_model": None}, "needs a smaller model that chooses"),
        ("llama", {"speculative_prefill": None}, "give both, or neither"),
        ("llama", {"speculative_prefill": 0.0}, r"must be in \(0, 1\]"),
        ("llama", {"kv_store": "host:64M"}, "does not go with stores of KV"),
        ("gemma3", {}, "layers that see a window"),
        ("qwen3-next", {}, "layers other than attention"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(family: str, options: dict[str, Any], why: str, tmp_path: Path) -> None:
    path = str(models.save(family, tmp_path))
    with pytest.raises(ConfigError, match=why):
        say(Path(path), [], **({"speculative_prefill": 0.5, "speculative_prefill_model": path} | options))


def test_a_model_that_cannot_choose_is_refused(tmp_path: Path) -> None:
    path, chooser = models.save("llama", tmp_path / "model"), models.save("deepseek-v3", tmp_path / "chooser")
    with pytest.raises(ConfigError, match="seen in layers of plain attention"):
        say(path, [], speculative_prefill=0.5, speculative_prefill_model=str(chooser))
    head = heads.write(tmp_path / "head", *heads.third(64, 199, 100))
    with pytest.raises(ConfigError, match="is no whole model"):
        say(path, [], speculative_prefill=0.5, speculative_prefill_model=str(head))


NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
NEEDLE = "The secret word of the castle is marmalade. "
ASKS = "Question: What is the secret word of the castle?\nAnswer: The secret word of the castle is"


@pytest.mark.slow
def test_what_is_asked_for_is_kept(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real model, amid a text about other things: a quarter of it is enough, and without its choice it is not."""
    monkeypatch.undo()
    text = NOISE * 12 + NEEDLE + NOISE * 12 + "\n" + ASKS
    params = SamplingParams(max_tokens=4, temperature=0)
    options = {"max_model_len": 1024, "max_num_seqs": 1, "max_total_tokens": 2048}
    llm = LLM(str(smollm2), speculative_prefill=0.25, speculative_prefill_model=str(smollm2), **options)
    (found,) = llm.generate(text, params)
    assert "marmalade" in found.text and found.left_out_tokens > 0.6 * found.prompt_tokens
    (stake,) = (stake for stake in llm._engine.scheduler._roster.stakes if isinstance(stake, thin.ThinStake))
    stake._known.clear()
    stake._estimate = lambda tokens: np.arange(len(tokens), dtype=np.float32)  # the last ones
    (other,) = llm.generate(text, params)
    assert "marmalade" not in other.text
