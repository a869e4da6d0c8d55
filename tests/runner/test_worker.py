"""The worker against transformers, driven by hand-made plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.arch.families import declare
from sapwood.base.grammar import Grammar
from sapwood.base.plan import Masks, Stretch
from sapwood.base.sampling import SamplingParams
from sapwood.config.options import CacheConfig, Config, DeviceConfig, ModelConfig, SchedulerConfig
from sapwood.hub.files import open_files
from sapwood.runner import choose, graphs
from sapwood.runner.graphs import Graphs
from sapwood.runner.worker import Worker
from tests import models
from tests.runner.desk import Desk
from tests.runner.plans import admit, ints, make_plan

NUM_PAGES = 120
PAGE = 4
MAX_LEN = 64


class Subject:
    """A tiny random model twice: in a worker, and in transformers."""

    def __init__(self, family: str, path: Path, device: str) -> None:
        self.family = family
        files = open_files(models.save(family, path), name=family)
        config = Config(
            model=ModelConfig(dtype="float32", max_model_len=MAX_LEN),
            cache=CacheConfig(page_size=PAGE, kv_cache_memory=1 << 20),
            scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=128),
            device=DeviceConfig(device=device, threads=1),
        )
        self.worker = Worker(config, declare(files.config), files)
        self.worker.load()
        self.vocab_size = self.worker.decoder.vocab_size

    def desk(self, seed: int = 0) -> Desk:
        """A fresh start: empty pages, whose numbers are handed out in another order for another seed."""
        self.worker.allocate([NUM_PAGES] * len(self.worker.groups))
        return Desk(self.worker, num_pages=NUM_PAGES, seed=seed)

    def tokens(self, length: int, seed: int = 0) -> list[int]:
        return np.random.default_rng(seed).integers(0, self.vocab_size, length).tolist()

    def logits(self, tokens: list[int]) -> Tensor:
        return models.logits(self.family, tokens)

    def greedy(self, tokens: list[int], num_tokens: int) -> list[int]:
        known = list(tokens)
        for _ in range(num_tokens):
            known.append(int(self.logits(known)[-1].argmax()))
        return known[len(tokens) :]


class Padded(Subject):
    """Whose steps are padded as those of graphs, and on a GPU are graphs."""

    def __init__(self, family: str, path: Path, device: str) -> None:
        super().__init__(family, path, device)
        step = self.worker._step
        step._logits_NV = torch.empty(64, self.vocab_size, device=self.worker.device)
        step.graphs = Graphs(
            step.compute_for_graph,
            self.worker.table,
            max_rows=8,
            max_tokens=64,
            tile=step.tile,
            drafts=True,
            capture=device != "cpu",
        )

    def desk(self, seed: int = 0) -> Desk:
        for backend in self.worker.backends:  # graphs know where keys and values lie
            if not hasattr(backend, "_keys"):
                backend.allocate(NUM_PAGES)
        return Desk(self.worker, num_pages=NUM_PAGES, seed=seed)


@pytest.fixture(
    scope="module",
    params=[
        "cpu",
        "cpu padded",
        pytest.param("cuda:0", marks=pytest.mark.gpu),
        pytest.param("cuda:0 padded", marks=pytest.mark.gpu),
    ],
)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Subject]]:
    made: dict[str, Subject] = {}

    def get(family: str) -> Subject:
        if family not in made:
            device, _, padded = request.param.partition(" ")
            made[family] = (Padded if padded else Subject)(family, tmp_path_factory.mktemp(family), device)
        return made[family]

    yield get
    for one in made.values():
        one.worker.shutdown()


def near(found: Tensor, wanted: Tensor) -> None:
    """Of the last rows, those that there are."""
    assert len(found) in (1, len(wanted))
    torch.testing.assert_close(found, wanted[-len(found) :], atol=1e-4, rtol=0)


each_family = pytest.mark.parametrize("family", list(models.MODELS))
two_families = pytest.mark.parametrize("family", ["llama", "gemma3"])  # one KV group; two, one with a window


@each_family
def test_whole_prompt_then_token_by_token(subject: Callable[[str], Subject], family: str) -> None:
    model = subject(family)
    desk, prompt = model.desk(), model.tokens(30)
    desk.admit(3, prompt)
    near(desk.step({3: 30}).logits[3], model.logits(prompt))
    for _ in range(12):
        near(desk.step({}, steady=[3]).logits[3], model.logits(desk.seats[3].tokens[:-1])[-1:])
    assert desk.seats[3].tokens[30:] == model.greedy(prompt, 13)


@two_families
@pytest.mark.parametrize("sizes", [[1, 7, 3, 13, 5, 1, 10], [39, 1], [4] * 10])
def test_a_prompt_in_chunks(subject: Callable[[str], Subject], family: str, sizes: list[int]) -> None:
    model = subject(family)
    desk, prompt = model.desk(), model.tokens(40, seed=1)
    desk.admit(0, prompt)
    near(torch.cat([logits for size in sizes for logits in desk.step({0: size}).logits.values()]), model.logits(prompt))


@two_families
def test_pages_of_one_request_serve_another(subject: Callable[[str], Subject], family: str) -> None:
    model = subject(family)
    desk, first = model.desk(), model.tokens(26, seed=2)
    second = first[:20] + model.tokens(9, seed=3)
    desk.admit(1, first)
    desk.step({1: 26})
    shared = [{index: pages[index] for index in range(20 // PAGE)} for pages in desk.seats[1].pages]
    desk.admit(6, second, fed=20, pages=shared)
    step = desk.step({6: 9}, steady=[1])
    near(step.logits[6], model.logits(second)[20:])
    near(step.logits[1], model.logits(desk.seats[1].tokens[:-1])[-1:])


@two_families
def test_a_prefix_is_shared_inside_one_step(subject: Callable[[str], Subject], family: str) -> None:
    model = subject(family)
    desk, first = model.desk(), model.tokens(17, seed=4)
    second = first[:16] + model.tokens(3, seed=5)
    desk.admit(2, first)
    for group, pages in enumerate(desk.seats[2].pages):
        pages.update({index: 100 + index for index in range(4)})
        desk._pages[group][2] = dict(pages)
    desk.admit(0, second, fed=16, pages=[{index: 100 + index for index in range(4)} for _ in desk.seats[2].pages])
    step = desk.step({0: 3, 2: 17})
    near(step.logits[0], model.logits(second)[16:])
    near(step.logits[2], model.logits(first))


@two_families
def test_preempted_and_resumed_elsewhere(subject: Callable[[str], Subject], family: str) -> None:
    model = subject(family)
    desk, prompt = model.desk(), model.tokens(21, seed=6)
    desk.admit(1, prompt)
    desk.step({1: 21})
    for _ in range(6):
        desk.step({}, steady=[1])
    known = list(desk.seats[1].tokens)
    desk.admit(1, model.tokens(5, seed=7))  # another takes the slot
    desk.admit(7, known, prompt_len=21)
    found = torch.cat([logits for size in (11, 17) for logits in desk.step({7: size}).logits.values()])
    assert len(known) == 28
    near(found, model.logits(known))
    assert desk.seats[7].tokens[21:] == model.greedy(prompt, 8)


@two_families
def test_a_copied_page_goes_its_own_way(subject: Callable[[str], Subject], family: str) -> None:
    model = subject(family)
    desk, first = model.desk(), model.tokens(18, seed=8)
    second = first[:17] + model.tokens(8, seed=9)
    desk.admit(0, first)
    desk.step({0: 18})
    desk.admit(5, second, fed=17, pages=desk.seats[0].pages)
    desk.copy(5, 17 // PAGE)
    step = desk.step({5: 8}, steady=[0])
    near(step.logits[5], model.logits(second)[17:])
    for _ in range(3):
        near(desk.step({}, steady=[0]).logits[0], model.logits(desk.seats[0].tokens[:-1])[-1:])


def test_pages_behind_the_window_are_not_read(subject: Callable[[str], Subject]) -> None:
    model = subject("gemma3")
    desk, prompt = model.desk(), model.tokens(30, seed=10)
    (number, window) = next((i, group.window) for i, group in enumerate(model.worker.groups) if group.window)
    desk.admit(0, prompt)
    desk.step({0: 30})
    desk.admit(1, model.tokens(28, seed=11))
    for _ in range(12):
        seat = desk.seats[0]
        for index in [i for i in seat.pages[number] if (i + 1) * PAGE <= seat.fed - window + 1]:
            page = seat.pages[number][index]
            desk.forget(0, number, index)
            desk._free[number].append(page)  # and written by the other request at once
        spans = {1: 2} if desk.seats[1].fed < 28 else {}
        near(desk.step(spans, steady=[0]).logits[0], model.logits(seat.tokens[:-1])[-1:])
    assert min(desk.seats[0].pages[number]) > 0


@two_families
@pytest.mark.parametrize("seed", range(3))
def test_anything_with_anything(subject: Callable[[str], Subject], family: str, seed: int) -> None:
    """Chunks, decodes, hits, copies and resumptions in random mixtures."""
    model = subject(family)
    draw = np.random.default_rng(seed)
    desk = model.desk(seed)
    for _ in range(25):
        slot = int(draw.integers(0, 8))
        seat = desk.seats.get(slot)
        if seat is None:
            donors = [other for other in desk.seats.values() if other.fed >= PAGE]
            tokens, fed, pages, copied = (
                model.tokens(int(draw.integers(1, 30)), seed=int(draw.integers(1e6))),
                0,
                None,
                None,
            )
            if donors and draw.random() < 0.7:
                donor = donors[int(draw.integers(len(donors)))]
                fed = int(draw.integers(1, donor.fed + 1))
                tokens = donor.tokens[:fed] + tokens
                pages = [{i: p for i, p in group.items() if i * PAGE < fed} for group in donor.pages]
                copied = fed // PAGE if fed % PAGE else None
            if len(tokens) < 40:
                desk.admit(slot, tokens, fed=fed, pages=pages)
                if copied is not None:
                    desk.copy(slot, copied)
        elif draw.random() < 0.2 and seat.fed > 8:
            desk.admit(slot, seat.tokens, prompt_len=1)
        runnable = [s for s, other in desk.seats.items() if len(other.tokens) < MAX_LEN]
        steady = sorted(s for s in runnable if len(desk.seats[s].tokens) - desk.seats[s].fed == 1)
        spans = {
            s: int(draw.integers(1, len(desk.seats[s].tokens) - desk.seats[s].fed + 1))
            for s in runnable
            if s not in steady and draw.random() < 0.8
        }
        if not steady and not spans:
            continue
        starts = {s: desk.seats[s].fed for s in [*steady, *spans]}
        step = desk.step(spans, steady=steady)
        for s, logits in step.logits.items():
            wanted = model.logits(desk.seats[s].tokens[: desk.seats[s].fed])
            near(logits, wanted[starts[s] :])


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


def test_a_step_is_read_after_the_next_has_begun(subject: Callable[[str], Subject]) -> None:
    """The slot has changed hands by then, and what is read is still the first one's."""
    model = subject("llama")
    model.desk()
    executor = model.worker
    prompt, other = model.tokens(3, seed=18), model.tokens(4, seed=19)
    params = SamplingParams(temperature=0.0, logprobs=3, prompt_logprobs=1)
    first = executor.forward(
        make_plan([(0, 0, 3, True)], admits=[admit(0, prompt, params=params)], pages=[{0: {0: 1}}])
    )
    executor.sample(first)
    second = executor.forward(make_plan([(0, 0, 4, True)], admits=[admit(0, other)], pages=[{0: {0: 2}}]))
    outcome = executor.result(first)
    executor.sample(second)
    assert outcome.tokens_N.tolist() == model.greedy(prompt, 1)
    assert len(outcome.logprobs[0][0].top_ids) == 3
    assert [entry.token for entry in outcome.prompt_logprobs[0]] == prompt[1:]
    later = executor.result(second)
    assert later.tokens_N.tolist() == model.greedy(other, 1)
    assert not later.logprobs
    assert not later.prompt_logprobs


def test_a_step_that_yields_nothing(subject: Callable[[str], Subject]) -> None:
    desk = subject("llama").desk()
    desk.admit(0, subject("llama").tokens(10))
    outcome = desk.step({0: 6}).outcome
    assert not outcome.logprobs
    assert not outcome.errors
    assert not len(outcome.tokens_N) and outcome.yielded_R.tolist() == [0]
    assert desk.worker.table.fed_S[0] == 6


ANY = Grammar.regex(".*")  # the worker only has to know that there is one; which tokens it allows, the host says


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


def test_the_configured_memory_is_the_budget(subject: Callable[[str], Subject]) -> None:
    assert subject("llama").worker.kv_budget() == 1 << 20


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_neither_forward_nor_sample_waits_for_the_gpu(tmp_path: Path, family: str) -> None:
    model = Subject(family, tmp_path, "cuda:0")
    model.desk()
    params = SamplingParams(
        top_k=30, top_p=0.9, min_p=0.01, repetition_penalty=1.1, logit_bias={3: 1.0}, logprobs=2, prompt_logprobs=2
    )
    executor = model.worker
    prompts = {slot: model.tokens(9 + slot, seed=slot) for slot in range(3)}
    restricted = SamplingParams(grammar=ANY)
    several = {1: params, 2: restricted} if family == "llama" else {2: restricted}  # both ways to sample masked rows
    admits = [
        admit(slot, tokens, params=several.get(slot), stop_ids=(2,), min_len=20 if slot in several else 0)
        for slot, tokens in prompts.items()
    ]
    tables = [{slot: {i: 10 * slot + i + 1 for i in range(6)} for slot in prompts} for _ in model.worker.groups]
    copies = [{1: 90, 11: 91} for _ in model.worker.groups]
    spans = make_plan(
        [(slot, 0, len(tokens), True) for slot, tokens in prompts.items()],
        admits=admits, pages=tables, copies=copies, masked=[2],
    )  # fmt: skip
    decode = [
        make_plan(
            [(slot, len(tokens) + i, 1, True) for slot, tokens in prompts.items()],
            pages=tables,
            num_steady=len(prompts),
            version=1,
            masked=[2],
            known=[Stretch(2, len(prompts[2]) + i, ints([5]))],
        )
        for i in range(3)
    ]
    for quiet in (False, True):  # the first time kernels are compiled
        works = []
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")
        try:
            for plan in (spans, *decode):
                works.append(executor.forward(plan))
                bits = executor.room(1)
                bits.fill(-1)
                executor.sample(works[-1], (Masks(bits),))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(not executor.result(work).errors for work in works)
    model.worker.shutdown()


@pytest.mark.gpu
def test_the_budget_of_a_gpu_is_what_the_heaviest_step_leaves(tmp_path: Path) -> None:
    files = open_files(models.save("llama", tmp_path), name="llama")
    config = Config(
        model=ModelConfig(dtype="bfloat16", max_model_len=128),
        cache=CacheConfig(page_size=16, memory_fraction=0.5),
        scheduler=SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=256),
        device=DeviceConfig(device="cuda:0", threads=1),
    )
    worker = Worker(config, declare(files.config), files)
    worker.load()
    free, total = torch.cuda.mem_get_info()
    budget = worker.kv_budget()
    assert 0 < budget < total // 2
    assert budget > total // 2 - (total - free) - (1 << 30)
    num_pages = [budget // len(worker.groups) // group.bytes_per_page(2) for group in worker.groups]
    worker.allocate(num_pages)
    desk = Desk(worker, num_pages=50)
    desk.admit(0, [1, 2, 3])
    assert len(desk.generate(0, 4)) == 4
    worker.shutdown()


def test_a_graph_that_cannot_be_captured_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    class Blind:
        def __init__(self, device: torch.device) -> None:
            pass

        def capture(self, launch: Any) -> Any:
            tried.append(launch)
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(graphs, "_Camera", Blind)
    made = Subject("llama", tmp_path, "cpu")
    worker, step = made.worker, made.worker._step
    step._logits_NV = torch.empty(8, made.vocab_size)
    desk = made.desk()
    step.graphs = Graphs(step.compute_for_graph, worker.table, max_rows=8, max_tokens=64, tile=step.tile)
    tokens = made.tokens(9)
    desk.admit(0, tokens, params=SamplingParams(temperature=0))
    desk.step({0: 9})
    for _ in range(3):
        desk.step({}, steady=[0])
    assert desk.seats[0].tokens[9:] == made.greedy(tokens, 4)
    assert len(tried) == 1
    assert not worker.tidy()
    assert "no room" in caplog.text
