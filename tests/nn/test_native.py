"""Whole models on the CPU's own kernels: against transformers, and quantised ones against their dequantised twins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from sapwood import LLM, SamplingParams
from sapwood.arch import declare
from sapwood.arch.groups import kv_groups
from sapwood.base.errors import ModelError
from sapwood.base.kv import Latent, State
from sapwood.nn.native import NativeModel
from sapwood.nn.stack import unlisted
from sapwood.runner.step import Step
from tests import models
from tests.nn import forward, ggufs, native
from tests.recurrent import RECURRENT

TOKENS = np.random.default_rng(0).integers(3, 199, size=70).tolist()
BUILDS = ["base", "avx2", "avx2vnni", "avx512", "neon"]


@pytest.fixture(scope="session", params=[*models.MODELS, *RECURRENT])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    if part := unlisted(declare(models.config(request.param))):
        pytest.skip(f"the library has no operations for {part}")
    return request.param, models.save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("build", BUILDS)
def test_logits_are_those_of_transformers(saved: tuple[str, Path], build: str) -> None:
    """Float32 all the way, the prompt at once and in pieces of which some are single tokens."""
    family, path = saved
    model, theirs = native.load(path, native.machine(build)), models.logits(family, TOKENS)
    assert theirs.std() > 0.1, "logits this flat would hide differences"
    assert (native.logits(model, TOKENS) - theirs).abs().max() < 1e-4
    assert (native.logits(model, TOKENS, [1, 2, 33, 34, 35, 60, 69]) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.int8, 0.05)])
def test_half_and_int8_keys_and_values(saved: tuple[str, Path], dtype: torch.dtype, tolerance: float) -> None:
    family, path = saved
    kept = {type(group.kind) for group in kv_groups(declare(models.config(family)), page_size=16)}
    if Latent in kept and dtype == torch.int8:
        pytest.skip("latents have no scales")
    if kept == {State}:
        pytest.skip("states are float32 whatever else is kept")
    theirs = models.logits(family, TOKENS)
    ours = native.logits(native.load(path, native.machine(), dtype=dtype), TOKENS, [9, 10, 40])
    assert 1e-7 < (ours - theirs).norm() / theirs.norm() < tolerance


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
@pytest.mark.parametrize("family", ["qwen2-moe", "qwen3-moe"])
def test_stacks_of_quantised_experts_are_packed_as_they_are(family: str, kind: str, tmp_path: Path) -> None:
    path = ggufs.write(family, tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType[kind])
    twin, model = forward.load(path), native.load(path, native.machine())
    error = native.logits(model, TOKENS, [1, 20, 21]) - forward.logits(twin, TOKENS)
    assert error.norm() / forward.logits(twin, TOKENS).norm() < 2e-3
    assert model.weight_bytes < 0.7 * sum(p.numel() * 4 for p in twin.parameters())


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe"])
def test_experts_yield_the_same_bits_in_any_company(family: str, tmp_path: Path) -> None:
    model = native.load(models.save(family, tmp_path), native.machine())
    alone = [native.logits(model, TOKENS[first : first + 5]) for first in (0, 20, 40)]
    rows = [(slot, 0, TOKENS[20 * slot : 20 * slot + 5]) for slot in range(3)]
    assert torch.equal(model.logits(model(native.batch(model, rows))), torch.cat(alone))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("family", ["deepseek-v3", "lfm2", "mamba2", "qwen3-next"])
def test_latents_and_states_yield_the_same_bits_in_any_company(family: str, build: str, tmp_path: Path) -> None:
    """Alone and at once, among others, and cut anywhere."""
    model = native.load(models.save(family, tmp_path), native.machine(build), dtype=torch.float16)
    alone = [native.logits(model, TOKENS[first : first + 40]) for first in (0, 20, 30)]
    together = [
        model.logits(model(native.batch(model, _rows(0, 33)))),
        model.logits(model(native.batch(model, _rows(33, 34)))),
    ]
    together.append(model.logits(model(native.batch(model, _rows(34, 40)))))
    for row, first in enumerate((0, 20, 30)):
        parts = [part.unflatten(0, (3, -1))[row] for part in together]
        assert torch.equal(torch.cat(parts), alone[row])
        assert torch.equal(native.logits(model, TOKENS[first : first + 40], [1, 2, 17, 18, 39]), alone[row])


def _rows(start: int, end: int) -> list[tuple[int, int, list[int]]]:
    return [(slot, start, TOKENS[first:][start:end]) for slot, first in enumerate((0, 20, 30))]


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("family", ["llama-tied", "qwen3", "phi3"])
def test_a_quantised_file_has_the_logits_of_its_dequantised_twin(family: str, kind: str, tmp_path: Path) -> None:
    """Activations of 12 bits leave an error of about 3e-4 a product, those of 8 half a percent; plain halves none."""
    path = ggufs.write(family, tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType[kind])
    twin = forward.logits(forward.load(path), TOKENS)
    for fine, tolerance in ((True, 2e-3), (False, 0.03)):
        model = native.load(path, native.machine(fine=fine))
        ours = native.logits(model, TOKENS, [1, 20, 21])
        error = (ours - twin).norm() / twin.norm()
        assert error < (1e-5 if kind in ("F16", "BF16") else tolerance)
    assert model.weight_bytes < 0.7 * sum(p.numel() * 4 for p in forward.load(path).parameters())


def test_a_row_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    """To the last bit, whatever else is there: sums of products go in one order."""
    path = ggufs.write("llama-tied", tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType.Q4_1)
    model = native.load(path, native.machine())
    with torch.inference_mode():
        alone = [
            model(native.batch(model, [(0, 0, TOKENS[:30])])),
            model(native.batch(model, [(0, 30, TOKENS[30:31])])),
        ]
        rows = [(1, 0, TOKENS[5:60]), (0, 0, TOKENS[:30]), (2, 0, TOKENS[:3])]
        mixed = [model(native.batch(model, rows))[55:85]]
        mixed.append(model(native.batch(model, [(2, 3, TOKENS[9:10]), (0, 30, TOKENS[30:31])]))[1:])
    assert all(torch.equal(one, other) for one, other in zip(alone, mixed, strict=True))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q4_1", "Q8_0"])
def test_a_token_does_not_depend_on_how_a_prompt_is_cut(kind: str, build: str, tmp_path: Path) -> None:
    """At once, in pieces, and some tokens by themselves as if they had been decoded: the same logits to the last bit."""
    path = ggufs.write("llama-tied", tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType[kind])
    for fine in (True, False):
        model = native.load(path, native.machine(build, fine=fine), dtype=torch.float16)
        whole = native.logits(model, TOKENS)
        assert torch.equal(whole, native.logits(model, TOKENS, [1, 2, 20, 21, 29, 64, 65, 69]))


@pytest.mark.parametrize(("rounded", "tolerance"), [("int8", 0.03), ("int4", 0.3)])
def test_plain_weights_are_rounded_when_they_are_loaded(rounded: str, tolerance: float, tmp_path: Path) -> None:
    path = models.save("qwen2", tmp_path)
    plain, theirs = native.load(path, native.machine()), models.logits("qwen2", TOKENS)
    model = native.load(path, native.machine(), rounded=rounded)  # type: ignore[arg-type]
    error = (native.logits(model, TOKENS) - theirs).norm() / theirs.norm()
    assert 1e-3 < error < tolerance
    share = {"int8": 8.5 / 32, "int4": 5 / 32}[rounded]
    assert model.weight_bytes < 1.1 * share * plain.weight_bytes


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_weights_of_a_file_are_rounded_too(kind: str, tmp_path: Path) -> None:
    """With the rows of queries and keys in an order of the file's own."""
    path = ggufs.write("llama-tied", tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType[kind])
    model, twin = native.load(path, native.machine(), rounded="int8"), forward.logits(forward.load(path), TOKENS)
    error = (native.logits(model, TOKENS) - twin).norm() / twin.norm()
    assert 1e-3 < error < 0.03


def test_forms_that_the_kernels_do_not_know_become_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IQ4_NL, whose blocks are of the same bytes as Q4_0's, with other meanings."""
    real, kind = gguf.quantize, gguf.GGMLQuantizationType.IQ4_NL
    lent = gguf.GGMLQuantizationType.Q4_0
    monkeypatch.setattr(gguf, "quantize", lambda values, asked: real(values, lent if asked == kind else asked))
    path = ggufs.write("llama-tied", tmp_path / "model.gguf", kind=kind)
    ours = native.logits(native.load(path, native.machine()), TOKENS)
    twin = forward.logits(forward.load(path), TOKENS)
    assert (ours - twin).norm() < 1e-5 * twin.norm()


def test_matrices_of_integers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = gguf.GGMLQuantizationType.I32
    real = gguf.quantize
    monkeypatch.setattr(
        gguf, "quantize", lambda values, asked: values.astype(np.int32) if asked == kind else real(values, asked)
    )
    path = ggufs.write("llama-tied", tmp_path / "model.gguf", kind=kind)
    with pytest.raises(ModelError, match="stored as I32, which cannot be read"):
        native.load(path, native.machine())


def test_random_weights_are_those_of_the_twin(tmp_path: Path) -> None:
    from sapwood.nn.load import dummy_weights

    path = models.save("llama", tmp_path)
    model, twin = native.load(path, native.machine()), forward.load(path)
    assert isinstance(model, NativeModel)
    for one in (model, twin):
        dummy_weights(one, 5)
    assert (native.logits(model, TOKENS) - forward.logits(twin, TOKENS)).abs().max() < 1e-4


@pytest.fixture(scope="module")
def both(smollm2: Path) -> tuple[LLM, LLM]:
    """The small real model on the kernels, and its dequantised twin in float32."""
    native.machine()
    return LLM(str(smollm2), max_model_len=1024), LLM(
        str(smollm2), max_model_len=1024, cpu_kernels="off", kv_cache_dtype="float32"
    )


def test_greedy_answers_of_the_real_model_are_its_twins(both: tuple[LLM, LLM]) -> None:
    questions = [
        "What is the capital of France?",
        "Name a colour of the rainbow.",
        "What is 2 + 2?",
        "Who wrote Hamlet?",
        "What animal barks?",
        "What is the opposite of hot?",
    ]
    prompts = [[{"role": "user", "content": question}] for question in questions]
    params = SamplingParams(max_tokens=20, temperature=0)
    ours, twins = ([output.text for output in llm.chat(prompts, params)] for llm in both)
    assert ours == twins
    assert "Paris" in ours[0]


def test_perplexity_of_the_real_model_is_its_twins(both: tuple[LLM, LLM]) -> None:
    text = (Path(__file__).parents[1] / "quant" / "text.txt").read_text(encoding="utf-8")
    found = []
    for llm in both:
        (output,) = llm.generate([text], SamplingParams(max_tokens=1, prompt_logprobs=0))
        found.append(np.exp(-np.mean([entry.logprob for entry in output.prompt_logprobs])))
    assert 20 < found[1] < 60
    assert abs(found[0] / found[1] - 1) < 3e-3


def test_requests_repeat_bit_by_bit_in_a_crowd(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and sampled, behind one prefix that is long enough for a run of two, and to be cut between two threads: alone,
    together with others that end sooner, and one of each way reading its own pages."""
    native.machine()
    random = np.random.default_rng(0)
    prefix = random.integers(10, 10000, 560).tolist()
    prompts = [prefix + random.integers(10, 10000, 20 + 9 * row).tolist() for row in range(8)]
    ways: list[dict[str, Any]] = [{"temperature": 0}, {"top_p": 0.9}, {"top_k": 40, "repetition_penalty": 1.1}, {}]
    params = [
        SamplingParams(max_tokens=4 + row, ignore_eos=True, seed=row, logprobs=row % 3, **ways[row % len(ways)])
        for row in range(len(prompts))
    ]
    runs: list[int] = []
    upload = Step._upload
    monkeypatch.setattr(Step, "_upload", lambda self, all, plan: runs.append(plan.number) or upload(self, all, plan))
    found = []
    for sharing, count in ((True, len(prompts)), (False, len(ways))):
        llm = LLM(str(smollm2), max_model_len=1280, max_num_seqs=8, prefix_caching=sharing, threads=2)
        found.append(llm.generate(prompts[:count], params[:count]))
        assert bool(runs) is sharing
        runs.clear()
        if sharing:
            found += [[llm.generate([prompt], one)[0] for prompt, one in zip(prompts, params, strict=True)]]
    together, *others = ([(one.token_ids, one.outputs[0].logprobs) for one in every] for every in found)
    assert all(logprobs for _, logprobs in together)
    assert [len(other) for other in others] == [len(prompts), len(ways)]
    assert all(other == together[: len(other)] for other in others)
