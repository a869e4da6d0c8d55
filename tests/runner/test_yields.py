"""Whole batches of differing requests through sampling: each row as if it were alone, and as its slow twin says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.base.plan import Admit
from sapwood.base.sampling import SamplingParams
from sapwood.runner.table import Table
from sapwood.runner.yields import find_special
from sapwood.sampling.logprobs import as_rows
from sapwood.sampling.sampler import Sampled, sample
from tests import kv
from tests.runner.plans import admit, make_plan
from tests.sampling import twin

VOCAB = 300
GROUP = kv.group(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, window=None, page_size=4)


def sampled(admits: Sequence[Admit], logits_NV: Tensor) -> Sampled:
    """The tokens that follow all known ones of each admit."""
    table = Table(num_slots=16, max_len=40, groups=[GROUP], device=logits_NV.device)
    plan = make_plan([(a.slot, 0, len(a.tokens), True) for a in admits], admits=admits)
    table.install(admits)
    table.special_S[:] = True
    special = find_special(plan, table)
    assert special is not None
    positions_N = torch.tensor([len(a.tokens) for a in admits], device=logits_NV.device)
    longest = int(positions_N.max())
    return sample(logits_NV.clone(), special.recipe, positions_N, table.tokens_SL[:, :longest])


def random_request(draw: np.random.Generator, slot: int) -> Admit:
    def maybe(value: float, default: float) -> float:
        return value if draw.random() < 0.4 else default

    length = int(draw.integers(1, 30))
    prompt_len = int(draw.integers(1, length + 1))
    params = SamplingParams(
        temperature=maybe(0.0, float(draw.uniform(0.2, 2))),
        top_k=int(maybe(int(draw.integers(1, 50)), 0)),
        top_p=maybe(float(draw.uniform(0.1, 1)), 1.0),
        min_p=maybe(float(draw.uniform(0, 0.3)), 0.0),
        repetition_penalty=maybe(1.3, 1.0),
        presence_penalty=maybe(0.7, 0.0),
        frequency_penalty=maybe(-0.4, 0.0),
        logit_bias={int(token): 4.0 for token in draw.integers(0, VOCAB, int(maybe(5, 0)))},
        logprobs=3 if draw.random() < 0.4 else None,
    )
    return admit(
        slot,
        draw.integers(0, VOCAB, length).tolist(),
        prompt_len=prompt_len,
        min_len=prompt_len + int(maybe(10, 0)),
        seed=int(draw.integers(-(2**63), 2**63 - 1)),
        stop_ids=tuple(draw.integers(0, VOCAB, 100).tolist()),
        params=params,
    )


def expected(request: Admit, logits_V: Tensor) -> int:
    edited = twin.edited(
        logits_V.numpy(),
        request.params,
        tokens=request.tokens.tolist(),
        prompt_len=request.prompt_len,
        min_len=request.min_len,
        stop_ids=request.stop_ids,
    )
    if request.params.greedy:
        return int(edited.argmax())
    kept = twin.weights(edited, request.params)
    return twin.choice(kept, twin.uniform(request.seed, len(request.tokens)))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_mixed_batches_do_as_the_twin_and_as_each_row_alone(device: str) -> None:
    differing = 0
    for seed in range(25):
        draw = np.random.default_rng(seed)
        slots = draw.permutation(16)[: int(draw.integers(1, 10))].tolist()
        requests = [random_request(draw, slot) for slot in slots]
        logits_NV = torch.from_numpy(draw.normal(0, 2, (len(requests), VOCAB)).astype(np.float32))
        on_device = logits_NV.to(device)
        found = sampled(requests, on_device).tokens_N.tolist()
        differing += sum(
            token != expected(request, logits_V)
            for request, logits_V, token in zip(requests, logits_NV, found, strict=True)
        )
        for place, request in enumerate(requests):
            elsewhere = admit(
                (request.slot + 3) % 16,
                request.tokens.tolist(),
                prompt_len=request.prompt_len,
                min_len=request.min_len,
                seed=request.seed,
                stop_ids=request.stop_ids,
                params=request.params,
            )
            assert sampled([elsewhere], on_device[place : place + 1]).tokens_N.tolist() == [found[place]]
    assert differing <= 1, "float32 may part from float64 at a border, but hardly ever"


def test_edges_of_the_settings() -> None:
    logits = torch.zeros(6, VOCAB)
    logits[1] = torch.randn(VOCAB, generator=torch.Generator().manual_seed(0))
    only = {token: -100.0 for token in range(VOCAB) if token != 17}
    params = [
        SamplingParams(top_k=1),
        SamplingParams(top_p=1e-9),
        SamplingParams(temperature=1e-4, logit_bias={33: 0.5}),
        SamplingParams(logit_bias=only),
        SamplingParams(temperature=0.0, logit_bias={299: 1e-3}),
        SamplingParams(temperature=100.0, min_p=1.0, logit_bias={5: 1.0}),
    ]
    found = sampled([admit(slot, [1], seed=slot, params=mine) for slot, mine in enumerate(params)], logits)
    assert found.tokens_N.tolist() == [0, int(logits[1].argmax()), 33, 17, 299, 5]
    assert found.sound_N.all()


def test_a_row_without_finite_logits_is_alone_in_it() -> None:
    for params in (SamplingParams(temperature=0.0), SamplingParams(top_k=5, top_p=0.9), SamplingParams()):
        logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1))
        requests = [admit(slot, [1, 2], seed=slot, params=params) for slot in range(4)]
        clean = sampled(requests, logits)
        logits[1, 7], logits[2, 3] = torch.nan, torch.inf
        broken = sampled(requests, logits)
        assert broken.sound_N.tolist() == [True, False, False, True]
        assert broken.tokens_N[[0, 3]].tolist() == clean.tokens_N[[0, 3]].tolist()
        assert 0 <= int(broken.tokens_N.min()) <= int(broken.tokens_N.max()) < VOCAB


@pytest.mark.parametrize("num_rows", [1, 3])  # the first alone, or two that ask beside one that does not
def test_logprobs_are_of_the_raw_logits(num_rows: int) -> None:
    logits = torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    params = [
        SamplingParams(temperature=1.7, top_k=40, logit_bias={9: 30.0}, logprobs=4, logprob_token_ids=(7, 250)),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.0, logprobs=0, logprob_token_ids=(3,)),
    ][:num_rows]
    found = sampled([admit(slot, [1], params=mine) for slot, mine in enumerate(params)], logits)
    assert found.logprobs is not None
    assert found.tokens_N[0] == 9
    asking = [place for place, mine in enumerate(params) if mine.logprobs is not None]
    named = [params[place].logprob_token_ids for place in asking]
    counts = [(params[place].logprobs or 0, len(ids)) for place, ids in zip(asking, named, strict=True)]
    rows = as_rows(found.tokens_N[asking].tolist(), found.logprobs, counts)
    for row, ids, raw in zip(rows, named, logits[asking].double().numpy(), strict=True):
        wanted = raw - np.log(np.exp(raw).sum())
        order = np.argsort(-raw)
        np.testing.assert_allclose(row.logprob, wanted[row.token], atol=1e-5)
        assert row.rank == order.tolist().index(row.token) + 1
        assert row.top_ids == order[: len(row.top_ids)].tolist()
        np.testing.assert_allclose(row.top_logprobs, wanted[row.top_ids], atol=1e-5)
        np.testing.assert_allclose(row.named_logprobs, wanted[list(ids)], atol=1e-5)
    assert [len(row.top_ids) for row in rows] == [4, 0][: len(asking)]
