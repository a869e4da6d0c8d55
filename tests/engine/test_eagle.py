"""EAGLE's heads through whole engines: what they draft is what their layouts say, and changes nothing that is said."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from sapwood.base.errors import ModelError
from sapwood.base.sampling import SamplingParams
from sapwood.base.trial import Trial
from sapwood.executor import local
from sapwood.runner import graphs
from sapwood.runner.seers import Head
from sapwood.runner.worker import Worker
from tests import heads, models
from tests.engine.test_drafts import KINDS, same, say
from tests.engine.whole import prompts_that_share

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
VOCAB, WORDS = 199, 120


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of all sizes are said to cost the same, and drafts of a head little, so that whatever may be right is fed."""

    def time_steps(worker: object, trials: Sequence[Trial], **options: Any) -> list[float]:
        return [1.04 if trial.ahead else 1.0 for trial in trials]

    monkeypatch.setattr(local, "time_steps", time_steps)


def random_head(form: str, path: Path) -> Path:
    made = heads.first(64, VOCAB) if form == "first" else heads.third(64, VOCAB, WORDS)
    return heads.write(path, *made)


@pytest.mark.parametrize("form", ["first", "third"])
def test_in_steps_that_are_padded_as_those_of_graphs(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "_graph_tokens", property(lambda worker: 64))
    monkeypatch.setattr(graphs, "_Camera", lambda device: None)
    test_a_head_that_knows_the_language_is_always_right(form, 1, "cpu", tmp_path)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("form", ["first", "third"])
def test_a_head_that_knows_the_language_is_always_right(form: str, depth: int, device: str, tmp_path: Path) -> None:
    """The second half of the requests begin behind cached prefixes: where they do, one hidden state is another's."""
    model = heads.toy(tmp_path / "model")
    head = (heads.toy_first if form == "first" else heads.toy_third)(tmp_path / "head")
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    prompts = [
        [int(token) for token in np.random.default_rng(seed).integers(heads.FIRST, heads.WORDS, 20)]
        for seed in range(4)
    ]
    mine = [(prompt, params) for prompt in prompts]
    options: dict[str, Any] = {"speculative_model": str(head), "speculation": "eagle", "num_speculative_tokens": 4}
    found, counters = say(model, mine * 2, device=device, depth=depth, max_num_seqs=4, **options)
    for tokens, *_ in found:
        assert all(heads.NEXT[one] == other for one, other in itertools.pairwise(tokens))
    assert counters["accepted_drafts_draft"] >= 0.95 * counters["drafts_draft"] > 100
    assert counters["steps"] < 0.4 * sum(len(tokens) for tokens, *_ in found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("family", "form", "options"),
    [
        ("llama", "first", {"depth": 0}),
        ("llama", "third", {"depth": 1, "max_total_tokens": 240, "page_size": 16, "speculation": "eagle3"}),
        ("gemma3", "third", {"depth": 2, "page_size": 4, "max_num_batched_tokens": 32}),
        ("qwen3", "first", {"depth": 1, "kv_cache_dtype": "float16", "quantization": "int8"}),
    ],
    ids=str,
)
def test_every_request_says_what_it_says_without(
    family: str, form: str, options: dict[str, Any], device: str, tmp_path: Path
) -> None:
    model, head = models.save(family, tmp_path / "model"), random_head(form, tmp_path / "head")
    shape = {name: options[name] for name in ("kv_cache_dtype", "page_size", "quantization") if name in options}
    mine = [(prompt, KINDS[i % len(KINDS)]) for i, prompt in enumerate(prompts_that_share(10))]
    plain = {"cpu_kernels": "off"} if device == "cpu" else {}  # as modules compute where a head is
    wanted, _ = say(model, mine, device=device, **shape, **plain)
    found, counters = say(model, mine, device=device, speculative_model=str(head), **options, **plain)
    same(found, wanted)
    assert counters["drafts_draft"] > 0


@pytest.mark.parametrize("form", ["first", "third"])
def test_a_head_computes_what_its_layout_says(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held to a forward that is written here once more, over the whole text at once."""
    family = "gemma3" if form == "third" else "qwen3"  # of enough layers to take three different hidden states of
    model, head = models.save(family, tmp_path / "model"), random_head(form, tmp_path / "head")
    seen: list[Tensor] = []
    logits = Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, hidden: seen.append(logits(self, hidden)) or seen[-1])
    prompt = prompts_that_share(1)[0]
    mine = [(prompt, SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))]
    ((tokens, *_),), _ = say(
        model, mine, speculative_model=str(head), speculation="eagle", num_speculative_tokens=3, depth=0
    )
    tensors, text = load_file(head / "model.safetensors"), [*prompt, *tokens]
    drafted = text[: len(prompt) + 2]  # as many are known when drafts are first worth it: no step before had a prompt
    hidden, taken = _hidden(family, drafted[:-1])
    features = hidden if form == "first" else torch.cat(taken, -1) @ tensors["fc.weight"].T
    embedding = tensors.get("embed_tokens.weight")
    if embedding is None:
        embedding = models.make(family).get_input_embeddings()(torch.arange(VOCAB)).detach()
    for step in range(3):
        own = _forward(form, tensors, embedding[drafted[1:]], features)
        wanted = _logits(form, family, tensors, own[-1])
        torch.testing.assert_close(seen[step][0], wanted, atol=2e-4, rtol=1e-4)
        drafted.append(int(wanted.argmax()))
        features = torch.cat([features, own[-1:]])


def test_a_head_of_another_model_is_refused(tmp_path: Path) -> None:
    model = models.save("llama", tmp_path / "model")
    for fields, words in (
        ({"vocab_size": 198}, "vocab_size = 198 of a head; .* it must be 199"),
        ({"num_hidden_layers": 2}, "num_hidden_layers = 2 of a head"),
        ({"norm_before_residual": True}, "norm_before_residual"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 9]}}, "must be 3 of 2 layers"),
    ):
        head = heads.write(tmp_path / "head", *heads.third(64, VOCAB, WORDS, **fields))
        with pytest.raises(ModelError, match=words):
            say(model, [], speculative_model=str(head))
    config, tensors = heads.third(64, VOCAB, WORDS)
    tensors["d2t"] = tensors["d2t"] + VOCAB
    head = heads.write(tmp_path / "head", config, tensors)
    with pytest.raises(ModelError, match=r"names the words .* of 199"):
        say(model, [], speculative_model=str(head))


def _hidden(family: str, tokens: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """transformers' hidden states behind the last norm, and before the layers that a head of the third form looks at."""
    with torch.inference_mode():
        found = models.make(family)(torch.tensor([tokens]), output_hidden_states=True, use_cache=False).hidden_states
    count = len(found) - 1
    return found[-1][0], [found[place][0] for place in (2, count // 2, count - 3)]


def _forward(form: str, tensors: dict[str, Tensor], token: Tensor, feature: Tensor) -> Tensor:
    """A head over pairs of a token's embedding and the feature before it. Before the first stands a key of zeros."""
    prefix = "layers.0." if form == "first" else "midlayer."
    weight = {name.removeprefix(prefix).removesuffix(".weight"): one for name, one in tensors.items()}
    norm = functools.partial(F.rms_norm, normalized_shape=(64,), eps=1e-6)
    if form == "first":
        x = residual = torch.cat([token, feature], -1) @ weight["fc"].T + tensors["fc.bias"]
    else:
        x = torch.cat([norm(token, weight=weight["input_layernorm"]), norm(feature, weight=weight["hidden_norm"])], -1)
        residual = feature
    q, k, v = ((x @ weight[f"self_attn.{name}_proj"].T).view(len(x), -1, 16) for name in "qkv")
    q, k = _rotate(q), _rotate(k)
    k, v = (F.pad(one.repeat_interleave(2, 1), (0, 0, 0, 0, 1, 0)) for one in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / 4.0
    seen = torch.ones(len(x), len(x) + 1).tril(1).bool()
    mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v).flatten(1)
    residual = residual + mixed @ weight["self_attn.o_proj"].T
    y = norm(residual, weight=weight["post_attention_layernorm"])
    inner = F.silu(y @ weight["mlp.gate_proj"].T) * (y @ weight["mlp.up_proj"].T)
    return residual + inner @ weight["mlp.down_proj"].T


def _rotate(heads: Tensor) -> Tensor:
    angles = torch.arange(1, len(heads) + 1)[:, None] * 10000.0 ** (-torch.arange(8) / 8)
    cos, sin = (f(angles)[:, None] for f in (torch.cos, torch.sin))
    one, other = heads[..., :8], heads[..., 8:]
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)


def _logits(form: str, family: str, tensors: dict[str, Tensor], own: Tensor) -> Tensor:
    if form == "first":
        with torch.inference_mode():
            return models.make(family).get_output_embeddings()(own)
    few = F.rms_norm(own, (64,), tensors["norm.weight"], 1e-6) @ tensors["lm_head.weight"].T
    return torch.full((VOCAB,), float("-inf")).index_copy(0, tensors["d2t"] + torch.arange(WORDS), few)
