"""The workloads are those that figures of other engines were taken on: the same ids, lengths and temperatures."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from sapwood.base.errors import UserError
from sapwood.bench import workloads
from sapwood.bench.workloads import NAMED, Workload, WorkloadSpec


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()[:32]


def plain(workload: Workload) -> list[Any]:
    """[prompts, output lengths, temperature] of a workload whose sessions have one turn."""
    turns = [turn for (turn,) in workload.sessions]
    return [[turn.tokens for turn in turns], [turn.output_len for turn in turns], workload.temperature]


@pytest.mark.parametrize(
    ("spec", "known"),
    [
        (NAMED["uniform"][0], "118c9a46578e6ea0854cd3a969b4dabb"),
        (NAMED["general"][0], "dcb22b54b3e0b688f4c65423db111c66"),
        (NAMED["shared"][0], "a313aefb6c2400ef95b84c9c8e7e39d7"),
        (NAMED["decode"][1], "d525098746cfa0b7ae7cfbbffc25f1a5"),
        (NAMED["prefill"][0], "30dda4a1ba65722334b19114c7deb127"),
        (workloads.structured(64), "aae36f6d176921df19acd38b82e5b5da"),
    ],
    ids=lambda value: value.name if isinstance(value, WorkloadSpec) else "",
)
def test_ids_are_the_published_ones(spec: WorkloadSpec, known: str) -> None:
    assert digest(plain(spec.make())) == known


def test_ids_of_the_agent_are_the_published_ones() -> None:
    agent = NAMED["agent"][0].make()
    assert digest([[[turn.tokens for turn in session] for session in agent.sessions], 128]) == (
        "ca15ac31a044dc97eb150d2eded7538a"
    )
    assert {turn.output_len for session in agent.sessions for turn in session} == {128}
    assert (sum(map(len, agent.sessions)), agent.temperature, agent.longest) == (512, 0.0, 2048 + 8 * 256)


def test_decode_runs_longer_for_one_request() -> None:
    one, many, most = (spec.make() for spec in NAMED["decode"])
    assert [len(w.sessions) for w in (one, many, most)] == [1, 32, 256]
    assert [w.sessions[0][0].output_len for w in (one, many, most)] == [512, 256, 256]


@pytest.mark.parametrize("name", NAMED)
def test_a_smaller_workload_has_about_that_share_of_the_tokens(name: str) -> None:
    def num_tokens(workload: Workload) -> int:
        return sum(len(turn.tokens) + turn.output_len for session in workload.sessions for turn in session)

    for whole, small in ((spec.make(), spec.make(0.05)) for spec in NAMED[name]):
        share = num_tokens(small) / num_tokens(whole)
        bound = 0.3 if name == "structured" else 0.08  # batches of W8 keep their size
        assert 0.02 < share < bound
        assert small.longest < whole.longest
        assert small.name == whole.name


def test_a_small_shared_prefix_is_shared() -> None:
    prompts = [session[0].tokens for session in NAMED["shared"][0].make(0.01).sessions]
    length = round(2048 * 0.1)
    stems = {tuple(prompt[:length]) for prompt in prompts}
    assert 1 < len(stems) < len(prompts)
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts)


def test_ids_fold_into_a_small_vocabulary() -> None:
    workload = NAMED["agent"][0].make(0.01)
    assert workload.within(10_000) is workload
    folded = workload.within(199)
    pairs = zip(workload.sessions[0][0].tokens, folded.sessions[0][0].tokens, strict=True)
    assert all(id % 199 == fold for id, fold in pairs)


def test_names_and_numbers() -> None:
    assert workloads.find_all(["w1", "uniform", "W6"]) == [*NAMED["uniform"], *NAMED["prefill"]]
    assert workloads.find_all(["decode"]) == NAMED["decode"]
    assert [spec.name for spec in workloads.find_all(["w2", "w3", "w4", "w5"])] == [
        "W2 general", "W3 shared prefix", "W4 agent", *(f"W5 decode, batch {batch}" for batch in (1, 32, 256)),
    ]  # fmt: skip
    assert len(workloads.find_all(["w8"])) == 8
    with pytest.raises(UserError, match=r"--workloads.*'w7'.*w4 \(agent\)"):
        workloads.find_all(["w1", "w7"])
