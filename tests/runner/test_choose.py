"""The tokens that a worker chooses, against transformers and against one another, driven by hand-made plans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sapwood.base.sampling import SamplingParams
from sapwood.runner import choose
from tests.runner.subject import ANY, Subject, near, two_families


def test_a_seed_means_the_same_tokens_anywhere(subject: Callable[[str], Subject]) -> None:
    model = subject("llama")
    prompt = model.tokens(9, seed=12)
    requests = {
        "plain": SamplingParams(),
        "cut": SamplingParams(temperature=1.3, top_k=40, top_p=0.8, min_p=0.01),
        "penalised": SamplingParams(temperature=0.9, repetition_penalty=1.2, presence_penalty=0.5),
        "greedy": SamplingParams(temperature=0.0),
    }
    alone = {}
    for name, params in requests.items():
        desk = model.desk()
        desk.admit(2, prompt, params=params, seed=77)
        alone[name] = desk.generate(2, 12)
    assert len(set(map(tuple, alone.values()))) == len(alone)

    desk = model.desk(seed=3)
    slots = dict(zip(requests, [7, 0, 4, 1], strict=True))
    for name, slot in slots.items():
        desk.admit(slot, prompt, params=requests[name], seed=77)
    desk.admit(5, prompt, params=SamplingParams(), seed=78)
    desk.step({slots["plain"]: 9, slots["cut"]: 4, 5: 9})
    desk.step({slots["cut"]: 5, slots["penalised"]: 9}, steady=[5, slots["plain"]])
    while any(len(desk.seats[slot].tokens) < 21 for slot in slots.values()):
        steady = [slot for slot in slots.values() if desk.seats[slot].fed >= 9 and len(desk.seats[slot].tokens) < 21]
        desk.step({slot: 9 for slot in slots.values() if not desk.seats[slot].fed}, steady=steady)
    assert {name: desk.seats[slot].tokens[9:] for name, slot in slots.items()} == alone
    assert desk.seats[5].tokens[9:] != alone["plain"][:2]

    preempted = desk.seats[slots["penalised"]].tokens[:15]
    desk.admit(3, preempted, prompt_len=9, params=requests["penalised"], seed=77)
    assert desk.generate(3, 6) == alone["penalised"][6:]


def test_min_tokens_and_bias_act_by_position(subject: Callable[[str], Subject]) -> None:
    model = subject("llama")
    prompt = model.tokens(6, seed=13)
    likely = model.greedy(prompt, 1)[0]
    desk = model.desk()
    desk.admit(
        0, prompt, min_len=9, stop_ids=(likely, 5), params=SamplingParams(temperature=0.0, logit_bias={5: 100.0})
    )
    tokens = desk.generate(0, 5)
    assert not {likely, 5} & set(tokens[:3])
    assert tokens[3:] == [5, 5]


@pytest.mark.parametrize("sizes", [[20], [7, 6, 7], [19, 1]])
@pytest.mark.parametrize("at_once", [4, 1000])
def test_prompt_logprobs(
    subject: Callable[[str], Subject], sizes: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = subject("llama")
    monkeypatch.setattr(choose, "_SCORED_ELEMENTS", at_once * model.vocab_size)
    prompt = model.tokens(20, seed=14)
    desk = model.desk()
    desk.admit(
        4, prompt, params=SamplingParams(temperature=0.0, prompt_logprobs=2, logprobs=1, logprob_token_ids=(9, 3))
    )
    desk.admit(0, model.tokens(24, seed=15))
    desk.step({0: 24})
    found = []
    for size in sizes:
        outcome = desk.step({4: size}, steady=[0]).outcome
        assert outcome.prompt_logprobs.keys() <= {1}
        found += outcome.prompt_logprobs.get(1, [])
    wanted = model.logits(prompt).log_softmax(-1)
    assert [entry.token for entry in found] == prompt[1:]
    for entry, logprobs in zip(found, wanted, strict=False):
        assert entry.logprob == pytest.approx(logprobs[entry.token].item(), abs=1e-4)
        assert entry.rank == int((logprobs > logprobs[entry.token]).sum()) + 1
        assert entry.top_ids == logprobs.topk(2).indices.tolist()
        assert entry.named_logprobs == pytest.approx(logprobs[[9, 3]].tolist(), abs=1e-4)
    (last,) = outcome.logprobs[1]
    assert len(last.named_logprobs) == 2
    assert last.token == last.top_ids[0] == desk.seats[4].tokens[20]
    assert last.rank == 1
    assert last.logprob == pytest.approx(wanted[-1].max().item(), abs=1e-4)
    assert not desk.step({}, steady=[0, 4]).outcome.prompt_logprobs


def test_a_row_without_finite_logits_ends_alone(subject: Callable[[str], Subject]) -> None:
    model = subject("llama")
    prompts = [[token for token in model.tokens(12, seed=seed) if token != 9] for seed in (16, 17)]
    wanted = model.greedy(prompts[0], 4)
    desk = model.desk()
    embedding = model.worker.model.embed.weight
    kept = embedding[9].clone()
    try:
        with torch.inference_mode():
            embedding[9] = torch.nan
        if model.worker.model.head is None:
            pytest.skip("this model's head is its embedding")
        desk.admit(0, prompts[0])
        desk.admit(1, [*prompts[1], 9])
        first = desk.step({0: len(prompts[0]), 1: len(prompts[1]) + 1}).outcome
        assert list(first.errors) == [1]
        for _ in range(3):
            assert not desk.step({}, steady=[0]).outcome.errors
    finally:
        with torch.inference_mode():
            embedding[9] = kept
    assert desk.seats[0].tokens[len(prompts[0]) :] == wanted


@two_families
@pytest.mark.parametrize("special", [False, True])
def test_masked_rows_beside_free_ones(subject: Callable[[str], Subject], family: str, special: bool) -> None:
    """Greedy among the allowed tokens, in spans and steady rows, with and without other edits in the same step."""
    model = subject(family)
    desk, chance = model.desk(), np.random.default_rng(3)
    prompts = {slot: model.tokens(5 + 3 * slot, seed=slot) for slot in range(4)}
    restricted = {1: SamplingParams(temperature=0, grammar=ANY), 3: SamplingParams(temperature=0, grammar=ANY)}
    if special:
        restricted[3] = SamplingParams(temperature=0, grammar=ANY, logit_bias={5: 3.0}, logprobs=2)
    for slot, prompt in prompts.items():
        desk.admit(slot, prompt, params=restricted.get(slot))
    for number in range(6):
        # Slot 3 starts later: other rows are masked by then, and it comes as a span among steady ones.
        allowed = {slot: chance.choice(model.vocab_size, 4, replace=False).tolist() for slot in restricted}
        allowed |= {1: [7]} if number == 2 else {}
        if number == 0:
            step = desk.step({slot: len(prompts[slot]) for slot in (0, 1, 2)}, allowed=allowed)
        elif number == 1:
            step = desk.step({3: len(prompts[3])}, steady=[0, 1, 2], allowed=allowed)
        else:
            step = desk.step({}, steady=[0, 1, 2, 3], allowed=allowed)
        for slot in step.slots:
            logits = model.logits(desk.seats[slot].tokens[:-1])[-1].clone()
            raw = logits.log_softmax(-1)
            if slot in restricted:
                if special and slot == 3:
                    logits[5] += 3.0
                    (found,) = step.outcome.logprobs[step.slots.index(3)]
                    assert found.logprob == pytest.approx(float(raw[found.token]), abs=1e-3), (
                        "raw logits, not masked ones"
                    )
                forbidden = torch.ones(model.vocab_size, dtype=torch.bool)
                forbidden[allowed[slot]] = False
                logits[forbidden] = -torch.inf
            assert step.token(slot) == int(logits.argmax())
    assert not step.outcome.errors


def test_random_tokens_are_the_same_whether_masked_rows_are_special(subject: Callable[[str], Subject]) -> None:
    model = subject("llama")
    outputs = []
    for logprobs in (None, 1):
        desk = model.desk()
        params = SamplingParams(temperature=1.5, top_p=0.9, grammar=ANY, logprobs=logprobs)
        desk.admit(2, model.tokens(9), params=params, seed=77)
        allowed = {2: list(range(3, model.vocab_size, 2))}
        tokens = [desk.step({2: 9}, allowed=allowed).token(2)]
        tokens += [desk.step({}, steady=[2], allowed=allowed).token(2) for _ in range(10)]
        assert all(token in allowed[2] for token in tokens)
        outputs.append(tokens)
    assert outputs[0] == outputs[1] and len(set(outputs[0])) > 1


def test_a_row_that_may_yield_nothing_is_an_error_of_its_own(subject: Callable[[str], Subject]) -> None:
    model = subject("llama")
    desk = model.desk()
    desk.admit(0, model.tokens(5), params=SamplingParams(grammar=ANY))
    desk.admit(1, model.tokens(5))
    step = desk.step({0: 5, 1: 5}, allowed={0: []})
    assert list(step.outcome.errors) == [0]


@two_families
def test_tokens_that_the_host_tells_are_fed_like_a_prompt(subject: Callable[[str], Subject], family: str) -> None:
    model = subject(family)
    desk, prompt = model.desk(), model.tokens(10)
    desk.admit(1, prompt)
    desk.admit(2, model.tokens(4, seed=5))
    desk.step({1: 10, 2: 4})
    desk.step({}, steady=[1, 2])
    desk.tell(1, model.tokens(6, seed=9))
    near(desk.step({1: 7}, steady=[2]).logits[1], model.logits(desk.seats[1].tokens[:-1])[-7:])
    near(desk.step({}, steady=[1, 2]).logits[1], model.logits(desk.seats[1].tokens[:-1])[-1:])


@two_families
def test_rows_yield_what_they_would_without_drafts(subject: Callable[[str], Subject], family: str) -> None:
    """Right, half right and wrong drafts, beside rows without and a prompt; greedy, random, penalised, with logprobs."""
    model = subject(family)
    kinds = {
        0: SamplingParams(temperature=0),
        1: SamplingParams(temperature=0.8, top_k=20),
        2: SamplingParams(temperature=0, repetition_penalty=1.3, logprobs=2),
        3: SamplingParams(temperature=0),
    }
    prompts = {slot: model.tokens(5 + 3 * slot, seed=slot) for slot in kinds}
    plain = model.desk()
    for slot, params in kinds.items():
        plain.admit(slot, prompts[slot], params=params, seed=slot)
        plain.generate(slot, 16)
    desk = model.desk()
    for slot, params in kinds.items():
        desk.admit(slot, prompts[slot], params=params, seed=slot)
    desk.step({slot: len(prompts[slot]) for slot in (0, 1, 2)})
    draw = np.random.default_rng(0)
    spans = {3: len(prompts[3])}
    while len(desk.seats[0].tokens) < len(prompts[0]) + 10:
        for slot in (0, 1, 2):
            known = desk.seats[slot].tokens
            future = plain.seats[slot].tokens[len(known) : len(known) + 4]
            right = int(draw.integers(0, 5))
            wrong = [(token + 1) % model.vocab_size for token in future[right:]]
            desk.draft(slot, (future[:right] + wrong)[: int(draw.integers(0, 5))])
        steady = [0, 1, 2] if spans else [0, 1, 2, 3]
        outcome = desk.step(spans, steady=steady).outcome
        assert [len(outcome.logprobs.get(row, ())) for row in range(3)] == [0, 0, outcome.yielded_R[2]]
        spans = {}
    for slot in kinds:
        known = desk.seats[slot].tokens
        assert known == plain.seats[slot].tokens[: len(known)]
