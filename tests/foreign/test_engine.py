"""Models in transformers' modules through whole engines: what is said is what transformers says, however it comes about."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sapwood.base.sampling import SamplingParams
from sapwood.cli import main
from sapwood.hub.files import open_files
from sapwood.nn.load import open_checkpoint
from tests import models
from tests.contracts.between import stand_still
from tests.engine.test_drafts import drafted, same, say
from tests.engine.whole import greedy, prompts_that_share
from tests.http.conftest import Server
from tests.nn.test_gguf import PROMPT
from tests.tiny import write_bytes_model

MINE = [(prompt, SamplingParams(max_tokens=16, temperature=0, logprobs=1)) for prompt in prompts_that_share(5)]


def continued(family: str, prompt: list[int], count: int) -> list[int]:
    """By transformers alone."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(models.logits(family, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def test_every_way_says_the_same(tmp_path: Path) -> None:
    """Of windows and caps: Sapwood's own modules, transformers', with drafts, in chunks, and giving way to each other."""
    model = models.save("gemma2", tmp_path)
    wanted, _ = say(model, MINE, prefix_caching=False)
    same(say(model, MINE, model_impl="transformers")[0], wanted)
    same(say(model, MINE, model_impl="transformers", depth=1, max_num_batched_tokens=32)[0], wanted)
    same(say(model, MINE, model_impl="transformers", stakes=drafted(wanted, truth=0.7))[0], wanted)


def test_who_has_to_give_way_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are evicted where memory is short, and all requests give up their slots again and again."""
    model, prompts = models.save("gemma2", tmp_path), prompts_that_share(8)
    roomy, _ = greedy(model, prompts)
    stand_still(monkeypatch)
    tight, engine = greedy(
        model, prompts, model_impl="transformers", max_total_tokens=208, page_size=4, max_num_batched_tokens=32
    )
    assert tight == roomy
    assert engine.stats().counters["evicted_pages"] > 0


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    """With graphs of steps and Triton's attention."""
    model = models.save("gemma2", tmp_path)
    wanted, _ = say(model, MINE, prefix_caching=False, device="cuda")
    same(say(model, MINE, model_impl="transformers", device="cuda")[0], wanted)


def test_a_family_that_nobody_knows(tmp_path: Path) -> None:
    prompts = prompts_that_share(3)
    found, engine = greedy(models.save("apertus", tmp_path), prompts)
    for prompt, said in zip(prompts, found, strict=True):
        assert said == continued("apertus", prompt, len(said))
    assert engine.counters["steps"]


def test_a_real_model_says_the_same_in_both_ways(smollm2: Path, tmp_path: Path) -> None:
    files = open_files(smollm2, name="smollm2")
    with ExitStack() as stack:
        source = open_checkpoint(files, stack)
        tensors = {name: source.read(name, (slice(None),)).half().contiguous() for name in source.shapes()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(files.config | {"dtype": "float16"}))
    wanted, _ = greedy(tmp_path, [PROMPT], model_impl="sapwood")
    assert greedy(tmp_path, [PROMPT], model_impl="transformers")[0] == wanted


def test_random_weights_need_no_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(models.config("apertus")))
    found, _ = greedy(tmp_path, [[5, 6, 7]], load_format="dummy")
    assert len(found[0]) > 1


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has a tokenizer."""
    from transformers import ApertusConfig, ApertusForCausalLM

    path, sizes = tmp_path_factory.mktemp("unknown"), models.config("apertus")
    write_bytes_model(path)
    torch.manual_seed(0)
    ApertusForCausalLM(ApertusConfig.from_dict(sizes | {"vocab_size": 258, "eos_token_id": 257})).save_pretrained(path)
    return path


def test_explain(unknown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(unknown), "--device", "cpu"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "ApertusForCausalLM" in lines["model"] and "2 layers" in lines["model"]
    assert "transformers" in lines["model_impl"] and "slower" in lines["model_impl"]
    assert "in float32" in lines["weights"]


def test_a_server(unknown: Path) -> None:
    server = Server(unknown, "--served-model-name", "it", "--kv-cache-memory", "32M")
    try:
        assert any("model_impl" in line and "transformers" in line for line in server.output.splitlines())
        body = {"model": "it", "prompt": "Hello", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
        first, second = (server.post("/v1/completions", json=body).json() for _ in range(2))
        assert first["usage"]["completion_tokens"] == 5
        assert first["choices"][0]["text"] == second["choices"][0]["text"]
    finally:
        server.kill()
