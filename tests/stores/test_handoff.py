"""Prompts that one engine reads and another answers: answers are those of one engine, token for token, whatever happens in between."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from sapwood import Grammar
from sapwood.base.errors import ConfigError
from sapwood.base.handoff import Fetch, Offer
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Abort, Delta, Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import Launched, launch
from sapwood.stores.handoff import FetchStake, OfferStake, SocketTransfer, TransferError
from sapwood.stores.handoff.book import Book
from sapwood.stores.handoff.peers import Ticket
from sapwood.stores.handoff.shared import SharedTransfer
from sapwood.stores.handoff.wire import Hello, Line, Refused
from tests import models
from tests.engine.whole import prompts_that_share
from tests.tiny import write_bytes_model

BASE = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 64}
PROMPT = prompts_that_share(1)[0] * 2
DRAWN = {"temperature": 0.9, "seed": 3, "logprobs": 2}
PATIENCE = 60.0  # seconds until a test gives up; it waits for what it wants to see


class Side:
    """An engine that is driven by hand."""

    def __init__(self, launched: Launched) -> None:
        self.engine, self.facts = launched.engine, launched.facts
        self.deltas: dict[int, list[Delta]] = {}
        self._numbers = iter(range(1, 1000))

    def ask(self, prompt: list[int], handoff: Any = None, **params: Any) -> int:
        number = next(self._numbers)
        fields = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True} | params
        self.deltas[number] = []
        assert self.engine.submit(Submit(number, prompt, SamplingParams(**fields), handoff=handoff)) is None
        return number

    def turn(self) -> None:
        for news in self.engine.step():
            for id, token in zip(news.ids, news.tokens, strict=True):
                self.deltas[id].append(Delta(id, [token]))
            for delta in news.deltas:
                self.deltas[delta.id].append(delta)
        while self.engine.idle and self.engine.tidy():
            pass

    def run(self, number: int) -> tuple[list[int], list[Any], int]:
        """Until it ends: its tokens, their logprobs, and how much of its prompt was cached."""
        until = monotonic() + PATIENCE
        while not (self.deltas[number] and self.deltas[number][-1].finish):
            assert monotonic() < until, "it does not end"
            self.turn()
        deltas = self.deltas[number]
        assert deltas[-1].error is None and self.engine.audit() == 0
        logprobs = [(one.token, one.logprob) for delta in deltas for one in delta.logprobs or ()]
        return [token for delta in deltas for token in delta.tokens], logprobs, max(one.cached_tokens for one in deltas)

    @property
    def counts(self) -> Mapping[str, int]:
        return self.engine.stats().counters


@contextmanager
def side(model: Path, role: str | None, **options: Any) -> Iterator[Side]:
    given = BASE | {"model": str(model), "max_total_tokens": 1024, "transfer_memory": "64M"} | options
    given |= {} if list(model.glob("*.safetensors")) else {"load_format": "dummy"}
    made = Side(launch(from_options(given | ({} if role is None else {"role": role}))))
    try:
        yield made
    finally:
        made.engine.shutdown()


def fetch(one: Side, ticket: str, **more: Any) -> Fetch:
    door = one.facts.door
    assert door is not None
    return Fetch(ticket, door.host, door.port, **more)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer, which grammars need, and weights that are made up."""
    path = tmp_path_factory.mktemp("llama")
    write_bytes_model(path)
    return path


@pytest.fixture(scope="module")
def pair(llama: Path) -> Iterator[tuple[Side, Side, Side]]:
    """One that computes, one that goes on, and one that does all alone."""
    with side(llama, "prefill") as ahead, side(llama, "decode") as behind, side(llama, None) as alone:
        yield ahead, behind, alone


def full(prompt: list[int], page: int = 16) -> int:
    """How many tokens of a prompt can come from elsewhere."""
    return (len(prompt) - 1) // page * page


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


def freed(one: Side) -> None:
    """What was offered has been taken, and no block is held."""
    until = monotonic() + PATIENCE
    while one.counts["offered_blocks"]:
        assert monotonic() < until
        one.engine.tidy()


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


def stake(one: Side, kind: type) -> Any:
    (found,) = [stake for stake in one.engine.scheduler._roster.stakes if isinstance(stake, kind)]
    return found


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


def test_several_prompts_of_one_ticket(pair: tuple[Side, Side, Side]) -> None:
    """Nothing is left of where their pages were, whoever of them is done first."""
    ahead, behind, _ = pair
    prompts = [[16, *PROMPT], [17, *PROMPT]]
    for prompt in prompts:
        ahead.run(ahead.ask(prompt, Offer("several")))
    for number in [behind.ask(prompt, fetch(ahead, "several")) for prompt in prompts]:
        assert behind.run(number)[2] == full(prompts[0])
    freed(ahead)
    store = stake(behind, FetchStake)._store
    assert not store._where and not store._noted


def test_peers_that_requests_make_up_are_forgotten(
    pair: tuple[Side, Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may name any port of the own host: each of these has a thread for as long as it is remembered. Who could be reached is
    remembered longest."""
    monkeypatch.setattr("sapwood.stores.handoff.peers._MOST_PEERS", 3)
    ahead, behind, _ = pair
    ahead.run(ahead.ask([18, *PROMPT], Offer("true")))
    assert behind.run(behind.ask([18, *PROMPT], fetch(ahead, "true")))[2]
    store = stake(behind, FetchStake)._store
    for port in range(1, 9):
        behind.run(behind.ask([19, port, *PROMPT], Fetch("made up", "127.0.0.1", port)))
    door = ahead.facts.door
    assert door is not None and (door.host, door.port) in store._peers
    until = monotonic() + PATIENCE
    while not all(one.idle for one in store._peers.values()):
        assert monotonic() < until
    store.find(Ticket("127.0.0.1", 9, "made up"), [])
    assert len(store._peers) == 3


def test_a_peer_that_tells_of_other_pages(pair: tuple[Side, Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Book, "find", lambda *_: ([], "open"))
    ahead, behind, _ = pair
    assert behind.run(behind.ask([20, *PROMPT], fetch(ahead, "short")))[2] == 0


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


def test_who_does_not_say_who_it_is_is_hung_up_on(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they take nobody's place for good."""
    monkeypatch.setattr("sapwood.stores.handoff.listener._HELLO_SECONDS", 0.05)
    monkeypatch.setattr("sapwood.stores.handoff.listener.MOST_PEERS", 1)
    with side(llama, "prefill") as ahead:
        door = ahead.facts.door
        assert door is not None
        with socket.create_connection((door.host, door.port)) as silent:
            silent.settimeout(PATIENCE)
            assert silent.recv(1) == b""
        until, answer = monotonic() + PATIENCE, None
        while answer is None:  # the place is free a moment later
            assert monotonic() < until
            line = Line.to(door.host, door.port, connect=1.0, seconds=PATIENCE)
            with suppress(TransferError):
                line.send(Hello(99, b"", {}))
                answer = line.receive()
            line.close()
        assert isinstance(answer, Refused)


def test_a_peer_that_says_nonsense(pair: tuple[Side, Side, Side]) -> None:
    """Neither side minds."""
    ahead, _, _ = pair
    door = ahead.facts.door
    assert door is not None
    for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\1\xc1", b"\0\0"):
        with socket.create_connection((door.host, door.port)) as one:
            one.settimeout(PATIENCE)
            one.sendall(nonsense)
            with suppress(OSError):  # it has hung up already
                one.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                assert one.recv(1) == b""
    line = Line.to(door.host, door.port, connect=1.0, seconds=PATIENCE)
    line.send(Hello(99, b"", {}))
    answer = line.receive()
    line.close()
    assert isinstance(answer, Refused) and answer.why.startswith("protocol")
