"""The worker against transformers, driven by hand-made plans."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapwood.arch.families import declare
from sapwood.base.plan import Masks, Stretch
from sapwood.base.sampling import SamplingParams
from sapwood.config.options import CacheConfig, Config, DeviceConfig, ModelConfig, SchedulerConfig
from sapwood.hub.files import open_files
from sapwood.runner import graphs
from sapwood.runner.graphs import Graphs
from sapwood.runner.worker import Worker
from tests import models
from tests.runner.desk import Desk
from tests.runner.plans import admit, ints, make_plan
from tests.runner.subject import ANY, MAX_LEN, PAGE, Subject, near, two_families

each_family = pytest.mark.parametrize("family", list(models.MODELS))


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
                bits = executor.allocate_masks(1)
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
        scheduler=SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=256, depth=0),
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
    step.graphs = Graphs(partial(step.compute_for_graph, None), worker.table, max_rows=8, max_tokens=64, tile=step.tile)
    tokens = made.tokens(9)
    desk.admit(0, tokens, params=SamplingParams(temperature=0))
    desk.step({0: 9})
    for _ in range(3):
        desk.step({}, steady=[0])
    assert desk.seats[0].tokens[9:] == made.greedy(tokens, 4)
    assert len(tried) == 1
    assert not worker.tidy()
    assert "no room" in caplog.text


def test_steps_with_drafts_have_sizes_of_their_own_ahead(tmp_path: Path) -> None:
    worker = Subject("llama", tmp_path, "cpu").worker
    few, more = (
        Graphs(
            partial(worker._step.compute_for_graph, None),
            worker.table,
            max_rows=8,
            max_tokens=64,
            tile=worker._step.tile,
            drafts=drafts,
            capture=False,
        )
        for drafts in (False, True)
    )
    sizes = set(more._ahead) - set(few._ahead)
    assert sizes and all(size.drafted and size.heads == size.tokens for size in sizes)
    assert {size.tokens for size in sizes} == {16, 32, 64}
