"""Layers that predict more tokens than one, through whole engines: what they draft is what their families say, and changes nothing that is said."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sapwood.base.errors import ConfigError
from sapwood.base.sampling import SamplingParams
from sapwood.base.trial import Trial
from sapwood.engine.launch import launch
from sapwood.executor import local
from sapwood.runner import graphs
from sapwood.runner.seers import Head
from sapwood.runner.worker import Worker
from tests import heads, mtp
from tests.engine import test_drafts
from tests.engine.test_drafts import KINDS, same, say
from tests.engine.whole import prompts_that_share

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of all sizes are said to cost the same, and drafts little, so that whatever may be right is fed."""

    def time_steps(worker: object, trials: Sequence[Trial], **options: Any) -> list[float]:
        return [1.04 if trial.ahead else 1.0 for trial in trials]

    monkeypatch.setattr(local, "time_steps", time_steps)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", mtp.FAMILIES)
def test_a_layer_computes_what_its_family_says(
    family: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held to transformers' own layer over the whole text at once, between norms and a product that are written here."""
    seen: list[Tensor] = []
    ends: list[int] = []

    def begin(*arguments: Any, **options: Any) -> Any:
        made = launch(*arguments, **options)
        seen.clear()  # what was tried at the start
        ends.clear()
        return made

    monkeypatch.setattr(test_drafts, "launch", begin)
    logits, advance = Head.logits, Head.advance
    monkeypatch.setattr(Head, "logits", lambda self, hidden: seen.append(logits(self, hidden)) or seen[-1])
    monkeypatch.setattr(
        Head, "advance", lambda self, batch: ends.append(int(batch.positions_T[0])) or advance(self, batch)
    )
    prompt, made = prompts_that_share(1)[0], mtp.make(family)
    mine = [(prompt, SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))]
    options: dict[str, Any] = {"speculation": "mtp", "num_speculative_tokens": 3, "device": device}
    options["cuda_graphs"] = False  # nobody sees into one
    ((tokens, *_),), _ = say(mtp.save(family, tmp_path), mine, depth=0, **options)
    drafted = [*prompt, *tokens][: ends[0] + 1]
    with torch.inference_mode():
        features = made.model.model(torch.tensor([drafted[:-1]]), use_cache=False).last_hidden_state[0]
        for step in range(3):
            own = _features(made, drafted[1:], features)
            wanted = made.model.lm_head(own[-1])
            torch.testing.assert_close(seen[step][0].float().cpu(), wanted, atol=2e-4, rtol=1e-4)
            drafted.append(int(wanted.argmax()))
            features = torch.cat([features, own[-1:]])


def _features(made: mtp.Made, tokens: Sequence[int], before: Tensor) -> Tensor:
    """What the layer makes of pairs of a token and the feature before it. Nothing is before the first, whose input is zero."""
    token, feature, after = made.norms
    pairs = torch.cat([token(made.model.get_input_embeddings()(torch.tensor(tokens))), feature(before)], dim=-1)
    x = torch.cat([torch.zeros(1, pairs.shape[-1] // 2), made.join(pairs)])[None]
    places = torch.arange(x.shape[1])[None]
    unseen = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)[None, None]
    # Qwen3.5's takes three rows of places.
    angles = made.model.model.rotary_emb(
        x, places if "qwen3_5" not in type(made.layer).__module__ else places.expand(3, 1, -1)
    )
    found: Tensor = made.layer(x, position_embeddings=angles, attention_mask=unseen, position_ids=places)
    return after(found[0])[1:]


@pytest.mark.parametrize(
    ("family", "depth"), [("deepseek-v3", 0), ("deepseek-v3", 1), ("glm4-moe", 2), ("qwen3-next", 1)]
)
def test_a_layer_that_knows_the_language_is_always_right(family: str, depth: int, tmp_path: Path) -> None:
    """It goes on from its own guesses. The second half of the requests begin behind cached prefixes."""
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    random = np.random.default_rng(0)
    prompts = [[int(token) for token in random.integers(heads.FIRST, heads.WORDS, 20)] for _ in range(3)]
    mine = [(prompt, params) for prompt in prompts]
    options: dict[str, Any] = {"speculation": "mtp", "num_speculative_tokens": 4, "max_num_seqs": 3}
    found, counters = say(mtp.toy(family, tmp_path), mine * 2, depth=depth, kv_cache_memory=2**26, **options)
    for tokens, *_ in found:
        assert all(heads.NEXT[one] == other for one, other in itertools.pairwise(tokens))
    assert counters["accepted_drafts_mtp"] >= 0.95 * counters["drafts_mtp"] > 60
    assert counters["steps"] < 0.4 * sum(len(tokens) for tokens, *_ in found)
    assert counters["cached_tokens"] > 0


def test_a_layer_in_float8_as_its_model(tmp_path: Path) -> None:
    """With experts and latents; what joins its two inputs is stored as it is."""
    model = mtp.quantise(mtp.toy("deepseek-v3", tmp_path))
    mine = [([heads.FIRST + i, 30], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)) for i in range(2)]
    found, counters = say(model, mine, speculation="mtp", num_speculative_tokens=3)
    for tokens, *_ in found:
        assert all(heads.NEXT[one] == other for one, other in itertools.pairwise(tokens))
    assert counters["accepted_drafts_mtp"] == counters["drafts_mtp"] > 10


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("deepseek-v3", {"depth": 0}),
        ("deepseek-v3", {"depth": 1, "max_total_tokens": 240, "page_size": 16}),
        ("glm4-moe", {"depth": 2, "page_size": 4, "max_num_batched_tokens": 32, "speculation": "ngram,mtp"}),
        ("qwen3-next", {"depth": 1, "page_size": 8, "kv_cache_memory": 2**26}),
        ("deepseek-v3", {"depth": 0, "cpu_kernels": "off"}),
    ],
    ids=str,
)
def test_every_request_says_what_it_says_without(
    family: str, options: dict[str, Any], device: str, tmp_path: Path
) -> None:
    if device == "cuda" and "cpu_kernels" in options:
        pytest.skip("there are none of the CPU's kernels")
    model = mtp.save(family, tmp_path)
    mine = [(prompt, KINDS[i % len(KINDS)]) for i, prompt in enumerate(prompts_that_share(6))]
    shape = {name: options[name] for name in ("page_size", "kv_cache_memory", "cpu_kernels") if name in options}
    wanted, _ = say(model, mine, device=device, **shape)
    found, counters = say(model, mine, device=device, **{"speculation": "mtp", "num_speculative_tokens": 3, **options})
    same(found, wanted)
    assert counters["drafts_mtp"] > 0


def test_in_steps_that_are_padded_as_those_of_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "_graph_tokens", property(lambda worker: 64))
    monkeypatch.setattr(graphs, "_Camera", lambda device: None)
    test_a_layer_that_knows_the_language_is_always_right("deepseek-v3", 1, tmp_path)


def test_a_model_without_such_layers_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM .* has no layers that predict more tokens than one"):
        say(tiny_model, [], speculation="mtp")
    model = mtp.save("deepseek-v3", tmp_path)
    file = model / "model.safetensors"
    save_file({name: one for name, one in load_file(file).items() if not name.startswith("model.layers.2.")}, file)
    with pytest.raises(ConfigError, match=r"lacks its layers .* begin with model\.layers\.2\."):
        say(model, [], speculation="mtp")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    with pytest.raises(ConfigError, match="has no layers that predict more"):
        say(model, [], speculation="mtp")
