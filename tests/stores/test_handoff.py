"""Prompts that one engine reads and another answers: answers are those of one engine, token for token, whatever happens in between."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from sapwood import Grammar
from sapwood.base.errors import ConfigError
from sapwood.base.handoff import Offer
from sapwood.base.wire import Abort
from sapwood.stores.handoff import FetchStake, OfferStake, SocketTransfer, TransferError
from sapwood.stores.handoff.book import Book
from sapwood.stores.handoff.shared import SharedTransfer
from tests import models
from tests.stores.sides import PATIENCE, PROMPT, Side, fetch, freed, full, side, stake

DRAWN = {"temperature": 0.9, "seed": 3, "logprobs": 2}

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"kv_cache_dtype": "int8"}),
    ("gemma3", {}),
    ("lfm2", {}),
    ("mistral", {"page_size": 4, "cpu_kernels": "off"}),
    ("llama", {"depth": 1, "speculation": "ngram", "num_speculative_tokens": 3, "kv_store": "host:16M"}),
]


@pytest.mark.parametrize(("family", "options"), KINDS, ids=str)
def test_answers_are_those_of_one_engine(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = models.save(family, tmp_path)
    with ExitStack() as all_:
        ahead, behind, alone = (all_.enter_context(side(model, role, **options)) for role in ("both", "both", None))
        tokens, _, _ = ahead.run(ahead.ask(PROMPT, Offer("t"), **DRAWN))
        whole, logprobs, _ = alone.run(alone.ask(PROMPT, **DRAWN))
        assert tokens == whole[:1] and len(whole) == 6
        said, theirs, cached = behind.run(behind.ask(PROMPT, fetch(ahead, "t"), **DRAWN))
        assert said == whole and alike(theirs, logprobs)
        assert cached == full(PROMPT, options.get("page_size", 16))
        freed(ahead)


def alike(found: list[Any], wanted: list[Any]) -> bool:
    """The same tokens, and log probabilities but for their last bits."""
    same = [one for one, _ in found] == [one for one, _ in wanted]
    return same and [one for _, one in found] == pytest.approx([one for _, one in wanted], abs=1e-5)


WAYS = {
    "tokens": {},
    "drawn": DRAWN,
    "grammar": {"grammar": Grammar.regex("[a-c]{3,5}"), "temperature": 1.0, "seed": 1},
}


@pytest.mark.parametrize("way", ["shm", "tcp"])
@pytest.mark.parametrize("what", sorted(WAYS))
def test_each_way(what: str, way: str, pair: tuple[Side, Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, behind, alone = pair
    if way == "tcp":
        monkeypatch.setattr(SharedTransfer, "metadata", lambda self: b"")
    stake(behind, FetchStake)._store.close(0.0)
    stake(behind, FetchStake)._store._peers.clear()  # made anew, so that it asks for the way
    fields, ticket = WAYS[what], f"{what} {way}"
    prompt = [3 + len(what), *PROMPT]
    before = behind.counts[f"handoff_bytes_{way}"]
    ahead.run(ahead.ask(prompt, Offer(ticket), **fields))
    said = behind.run(behind.ask(prompt, fetch(ahead, ticket), **fields))
    behind.engine.control("flush_cache")
    tokens, logprobs, _ = alone.run(alone.ask(prompt, **fields))
    assert said[0] == tokens and alike(said[1], logprobs) and said[2] == full(prompt)
    assert behind.counts[f"handoff_bytes_{way}"] > before
    ahead.engine.control("flush_cache")
    freed(ahead)


def test_pages_come_while_the_rest_is_computed(pair: tuple[Side, Side, Side]) -> None:
    """And others are not held up: who waits for a prompt waits aside."""
    ahead, behind, alone = pair
    prompt = [9, *PROMPT, *PROMPT[:60]]
    assert len(prompt) > 2 * 64
    asked = ahead.ask(prompt, Offer("early"))
    ahead.turn()
    assert not ahead.deltas[asked]
    mine = behind.ask(prompt, fetch(ahead, "early"))
    other = behind.ask([5, 6, 7])
    behind.run(other)
    until = monotonic() + PATIENCE
    while not behind.counts["fetched_pages"] or not behind.engine.scheduler.num_waiting:
        assert monotonic() < until
        behind.turn()
    came = behind.counts["fetched_pages"]
    ahead.run(asked)
    said, _, cached = behind.run(mine)
    assert cached == full(prompt) and behind.counts["fetched_pages"] > came > 0
    assert said == alone.run(alone.ask(prompt))[0]
    freed(ahead)


def test_both_hear_of_it_at_once(pair: tuple[Side, Side, Side]) -> None:
    """Whoever goes on may ask before the other one has been asked to compute."""
    ahead, behind, alone = pair
    prompt = [11, *PROMPT]
    mine = behind.ask(prompt, fetch(ahead, "room", early=True))
    going = stake(behind, FetchStake)
    until = monotonic() + PATIENCE
    while not any(one.again for one in going._going.values()):  # it has been told that nobody knows of it
        assert monotonic() < until
        behind.turn()
    ahead.run(ahead.ask(prompt, Offer("room")))
    said, _, cached = behind.run(mine)
    assert cached == full(prompt) and said == alone.run(alone.ask(prompt))[0]


def test_several_outputs_of_one_prompt(pair: tuple[Side, Side, Side]) -> None:
    ahead, behind, alone = pair
    prompt = [12, *PROMPT]
    ahead.run(ahead.ask(prompt, Offer("n")))
    asked = [behind.ask(prompt, fetch(ahead, "n"), temperature=1.0, seed=seed) for seed in (1, 2)]
    for number, seed in zip(asked, (1, 2), strict=True):
        said, _, cached = behind.run(number)
        assert cached == full(prompt) and said == alone.run(alone.ask(prompt, temperature=1.0, seed=seed))[0]
    freed(ahead)


def test_scores_of_the_prompt_are_computed_here(pair: tuple[Side, Side, Side]) -> None:
    ahead, behind, alone = pair
    prompt, fields = [13, *PROMPT], {"prompt_logprobs": 1}
    ahead.run(ahead.ask(prompt, Offer("scored")))
    said, _, cached = behind.run(behind.ask(prompt, fetch(ahead, "scored"), **fields))
    assert cached == 0 and said == alone.run(alone.ask(prompt, **fields))[0]
    freed(ahead)


# -- faults -------------------------------------------------------------------------------------------------------


def broken(*_: Any) -> Any:
    raise TransferError("gone")


def _before_it_is_asked(ahead: Side, patch: pytest.MonkeyPatch) -> None:
    ahead.engine.scheduler.close()


def _when_it_is_asked(ahead: Side, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Book, "find", broken)


def _in_the_middle_of_pages(ahead: Side, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SharedTransfer, "metadata", lambda self: b"")
    patch.setattr(SocketTransfer, "answer", broken)


def _behind_the_last_page(ahead: Side, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Book, "hold", broken)


def _given_up_while_read(ahead: Side, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Book, "hold", lambda self, ticket: False)


def _before_its_prompt_is_whole(ahead: Side, patch: pytest.MonkeyPatch) -> None:
    def find(book: Book, ticket: str, keys: Any) -> Any:
        return [-1] * len(keys), "closed"

    patch.setattr(Book, "find", find)


def _never_told_of(ahead: Side, patch: pytest.MonkeyPatch) -> None:
    stake(ahead, OfferStake)._book.let_go("t", taken=False)


FAULTS = (
    _before_it_is_asked,
    _when_it_is_asked,
    _in_the_middle_of_pages,
    _behind_the_last_page,
    _given_up_while_read,
    _before_its_prompt_is_whole,
    _never_told_of,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_who_computed_is_gone(fault: Any, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of the hand-off: the prompt is computed where it is wanted, and is right."""
    with side(llama, "prefill") as ahead, side(llama, "decode") as behind:
        ahead.run(ahead.ask(PROMPT, Offer("t")))
        where = fetch(ahead, "t")
        fault(ahead, monkeypatch)
        said, _, cached = behind.run(behind.ask(PROMPT, where))
        assert cached == 0
        assert said == behind.run(behind.ask(PROMPT))[0]


def test_who_would_go_on_is_gone(llama: Path) -> None:
    """Its pages are given back when its connection ends."""
    with side(llama, "prefill") as ahead:
        ahead.run(ahead.ask(PROMPT, Offer("t")))
        with side(llama, "decode") as behind:
            mine = behind.ask(PROMPT, fetch(ahead, "t"))
            behind.turn()
            going = stake(behind, FetchStake)._going[mine]
            assert going.asked.result(PATIENCE).state == "closed"
            assert ahead.counts["offered_blocks"]
        freed(ahead)
        assert ahead.counts["taken"] == 0


def test_what_nobody_fetches_is_given_back(llama: Path) -> None:
    with side(llama, "prefill", transfer_seconds=1e-3) as ahead:
        ahead.run(ahead.ask(PROMPT, Offer("t")))
        freed(ahead)
        assert ahead.counts["expired"] == 1


def test_what_nobody_fetches_is_given_back_by_an_engine_that_rests(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sapwood.stores.handoff.listener._TIDY_SECONDS", 0.05)
    with side(llama, "prefill", transfer_seconds=0.5) as ahead:
        ahead.run(ahead.ask(PROMPT, Offer("t")))
        while ahead.engine.tidy():
            pass
        assert ahead.counts["offered_pages"]
        until = monotonic() + PATIENCE
        while ahead.counts["offered_blocks"]:  # nobody drives it
            assert monotonic() < until
            sleep(0.05)
        assert ahead.counts["expired"] == 1


def test_where_there_is_no_room_the_rest_is_computed(llama: Path) -> None:
    with side(llama, "prefill", transfer_memory="72K") as ahead, side(llama, "decode") as behind:
        prompt, blocks = PROMPT + PROMPT, len(stake(ahead, OfferStake)._pager.blocks[0])
        ahead.run(ahead.ask(prompt, Offer("t")))
        said, _, cached = behind.run(behind.ask(prompt, fetch(ahead, "t")))
        assert cached == blocks * 16 < full(prompt) and ahead.counts["unoffered_pages"] > 0
        assert said == ahead.run(ahead.ask(prompt, max_tokens=6))[0]


def test_a_request_that_is_aborted_lets_go(pair: tuple[Side, Side, Side]) -> None:
    ahead, behind, _ = pair
    prompt = [14, *PROMPT]
    ahead.run(ahead.ask(prompt, Offer("gone")))
    mine = behind.ask(prompt, fetch(ahead, "gone"))
    behind.turn()
    behind.engine.abort(Abort([mine]))
    freed(ahead)
    number = ahead.ask([15, *PROMPT], Offer("half"))
    ahead.turn()
    ahead.engine.abort(Abort([number]))
    ahead.turn()
    assert stake(ahead, OfferStake)._book.find("half", [])[1] == "closed"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype: float32 there, int8 here"),
        ({"page_size": 32}, "page_size: 16 there, 32 here"),
    ],
    ids=str,
)
def test_other_pages_are_refused_with_the_reason(
    options: dict[str, Any], why: str, llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with side(llama, "prefill", page_size=16) as ahead, side(llama, "decode", **options) as behind:
        ahead.run(ahead.ask(PROMPT, Offer("t")))
        _, _, cached = behind.run(behind.ask(PROMPT, fetch(ahead, "t")))
        assert cached == 0 and behind.counts["fetches_failed"] == 1
    assert any(why in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"prefix_caching": False}, "--enable-prefix-caching"),
        ({"transfer_memory": 1}, "--transfer-memory"),
        ({"transfer_seconds": 0.0}, "--transfer-seconds"),
        ({"transfer_port": 70000}, "--transfer-port"),
        ({"transfer_host": "not an address"}, "--transfer-port: not an address"),
        ({"transfer_peer": "there:port"}, "--transfer-peer"),
        ({"data_parallel_size": 2, "data_parallel_rank": 0}, "--data-parallel-size"),
        ({"tensor_parallel_size": 2}, "--tensor-parallel-size"),
    ],
    ids=str,
)
def test_what_is_refused(options: dict[str, Any], why: str, llama: Path) -> None:
    with pytest.raises(ConfigError, match=why), side(llama, "prefill", **options):
        pass
