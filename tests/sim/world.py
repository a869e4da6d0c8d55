"""A scheduler, a cache and the fake device, driven step by step, with every invariant checked on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sapwood.base.kv import KVGroup, KVKind
from sapwood.base.news import News
from sapwood.base.plan import Plan
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.cache import Borders, KVCache, KVStake
from sapwood.cache.tree import ABSENT
from sapwood.executor.fake import FakeExecutor, Work, next_hash, next_token
from sapwood.grammar import Constraints, GrammarStake
from sapwood.scheduler import Scheduler
from tests import kv
from tests.sim.toy import Toy


def group(window: int | None = None, page_size: int = 4) -> KVGroup:
    return kv.group(window=window, page_size=page_size)


def expected(
    prompt: Sequence[int], limit: int, stop_ids: Sequence[int], vocab_size: int, toy: Toy | None = None
) -> list[int]:
    """What the fake model says to a prompt when it is alone in the world, token by token."""
    prefix = 0
    for token in prompt:
        prefix = next_hash(prefix, token)
    out: list[int] = []
    while len(prompt) + len(out) < limit:
        out.append(next_token(prefix, vocab_size, None if toy is None else toy.allowed()))
        if out[-1] in stop_ids or (toy is not None and toy.accept(out[-1]) and toy.done):
            break
        prefix = next_hash(prefix, out[-1])
    return out


class World:
    def __init__(
        self,
        *,
        windows: Sequence[int | None] = (None,),
        kinds: Sequence[KVKind] = (),
        page_size: int = 4,
        rewind: int = 0,
        num_pages: int | Sequence[int] = 64,
        max_num_seqs: int = 4,
        max_num_batched_tokens: int = 16,
        max_model_len: int = 128,
        depth: int = 1,
        vocab_size: int = 50,
        reuse: bool = True,
        poison: int | None = None,
        jump: bool = True,
        drafting: int = 0,
        stakes: Callable[[Slots], Sequence[Stake]] = lambda slots: (),
        **options: Any,
    ) -> None:
        of_windows = [group(window, page_size) for window in windows]
        self.groups = [KVGroup(kind, 1, page_size, rewind) for kind in kinds] or of_windows
        pages = [num_pages] * len(self.groups) if isinstance(num_pages, int) else list(num_pages)
        self.kv = KVCache(self.groups, pages, reuse=reuse, anchors=True)
        self.vocab_size = vocab_size
        self.slots = Slots(max_num_seqs, max_model_len)
        self.device = FakeExecutor.of(
            self.groups,
            pages,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            poison=poison,
            drafting=drafting,
        )
        self.constraints = Constraints(None, self.device.allocate_masks, jump=jump)  # type: ignore[arg-type]
        mine = (*self._lasting(), *stakes(self.slots))
        self.scheduler = Scheduler(
            self.slots, mine, max_num_batched_tokens=max_num_batched_tokens, peek=self.kv.peek, **options
        )
        self.max_tokens = max_num_batched_tokens
        self.max_mixed = options.get("chunked_prefill_size") or max_num_batched_tokens
        self.depth = depth
        self.flying, self.plans = deque[tuple[Plan, Work]](), list[Plan]()
        self.requests: dict[int, Request] = {}
        self.output: dict[int, list[int]] = {}
        self.finish: dict[int, str] = {}
        self.cached: dict[int, int] = {}
        self.seen: dict[int, list[list[float]]] = {}
        self._next = 0

    def _lasting(self) -> Sequence[Stake]:
        kv, slots = self.kv, self.slots
        return KVStake(kv, slots), Borders(kv, slots), GrammarStake(self.constraints, slots)

    def add(self, prompt: Sequence[int], max_tokens: int = 8, *, stop_ids: tuple[int, ...] = (), **options: Any) -> int:
        self._next += 1
        params = options.pop("params", SamplingParams())
        request = Request(
            self._next,
            np.array(prompt, np.int32),
            params,
            limit=len(prompt) + max_tokens,
            stop_ids=stop_ids,
            arrival=self._next,
            **options,
        )
        if params.grammar is not None:
            request.constraint = self.toy(request)
        self.requests[request.id] = request
        self.output[request.id] = []
        self.scheduler.add(request)
        return request.id

    def toy(self, request: Request) -> Toy:
        return Toy(request.id, request.prompt_len, self.vocab_size, request.stop_ids)

    def abort(self, id: int) -> None:
        news = self.scheduler.abort(id)
        if news is not None:
            self._news(news)

    def step(self) -> bool:
        """One turn of the loop; False when there was nothing to do."""
        for news in self.scheduler.usher():
            self._news(news)
        plan = self.scheduler.plan()
        if plan is None and not self.flying:
            return False
        if plan is not None:
            self.check_plan(plan)
            self.plans.append(plan)
            work = self.device.forward(plan)
            while self.flying and plan.late:
                self.land()
            # The device samples in order: the earlier step's tokens are written before this step reads them.
            self.device.sample(work, self.scheduler.fill(plan, self.device.proposed(work)))
            self.flying.append((plan, work))
        while self.flying and (plan is None or len(self.flying) > self.depth):
            self.land()
        self.check()
        return True

    def land(self) -> None:
        plan, work = self.flying.popleft()
        landing = self.scheduler.commit(plan, self.device.result(work))
        for id, token in zip(landing.ids, landing.tokens, strict=True):
            self._news(News(id, [token]))
        for news in landing.news:
            self._news(news)

    def run(self, most: int = 100_000) -> None:
        for _ in range(most):
            if not self.step():
                assert not self.scheduler.num_waiting and not self.scheduler.num_running
                return
        raise AssertionError("the world does not come to rest")

    def _news(self, news: News) -> None:
        assert news.id not in self.finish, "news after the end"
        self.output[news.id] += news.tokens
        self.seen.setdefault(news.id, []).extend(news.insights.get("hidden_states", np.zeros((0, 2))).tolist())
        if news.cached_tokens >= 0:
            assert news.id not in self.cached
            self.cached[news.id] = news.cached_tokens
        if news.finish:
            self.finish[news.id] = news.finish

    # -- what must always hold ----------------------------------------------------------------------------------------

    def check_plan(self, plan: Plan) -> None:
        assert 0 < plan.num_tokens <= self.max_tokens
        assert len(set(plan.slots_R.tolist())) == plan.num_rows, "a slot twice in one plan"
        steady = slice(0, plan.num_steady)
        assert (plan.counts_R > 0).all() and (plan.heads_R[steady] == plan.counts_R[steady]).all()
        assert (plan.heads_R[plan.num_steady :] <= 1).all()
        assert (plan.starts_R + plan.counts_R < self.slots.limit[plan.slots_R]).all(), "a last token is never fed"
        if plan.num_steady:
            assert plan.counts_R[plan.num_steady :].sum() <= self.max_mixed

    def check(self) -> None:
        tree, running = self.kv.tree, self.scheduler.running()
        slots = self.slots
        for request in running:
            flying, slack = int(slots.flying[request.slot]), int(slots.slack[request.slot])
            wanted = int(slots.known[request.slot]) + flying - int(slots.fed[request.slot])
            assert 1 <= wanted <= slots.limit[request.slot]
            assert 0 <= slack <= flying
            assert self.flying or not slack
        self.check_tree()
        # What a partial page, a page in the tree and a running request hold is all that there is, each of it once.
        nodes = list(tree.nodes())
        for g, pool in enumerate(self.kv.pools):
            present = [node.pages[g] for node in nodes if node.pages[g] != ABSENT]
            owned = [own[g] for request in running for own in request.hold.own if own[g] != ABSENT]
            pages = [*pool.free, *present, *owned]
            assert sorted(pages) == list(range(1, pool.num_pages)), f"group {g}: a page lost or had twice"
            if tree.windows[g] is not None:
                assert tree.num_present[g] == len(present)
                assert tree.num_held[g] == sum([node.holds[g] > 0 and node.pages[g] != ABSENT for node in nodes])

    def check_tree(self) -> None:
        tree = self.kv.tree
        num_nodes = num_sheltered = leases = 0
        for node in tree.nodes():
            num_nodes += 1
            num_sheltered += node.shelters > 0
            leases += node.leases
            if node.children:
                sheltered = sum([child.shelters > 0 for child in node.children.values()])
                assert len(node.key) == tree.page_bytes, "a partial page with children"
            else:
                sheltered = 0
            assert node.shelters == sheltered + (node.leases > 0)
        assert (num_nodes, num_sheltered) == (tree.num_nodes, tree.num_sheltered)
        assert leases + sum(root.leases for root in tree.roots.values()) == len(self.scheduler.running())
        assert all(root.children or root.shelters for root in tree.roots.values()), "an empty namespace is kept"

    def check_outputs(self) -> None:
        for id, request in self.requests.items():
            prompt = request.tokens[: request.prompt_len].tolist()
            if request.params.return_hidden_states:
                self._check_seen(request, prompt + self.output[id])
            toy = None if request.constraint is None else self.toy(request)
            want = expected(prompt, request.limit, request.stop_ids, self.vocab_size, toy)
            if self.finish[id] in ("stop", "length"):
                assert self.output[id] == want
                complete = want[-1] in request.stop_ids or (toy is not None and toy.done)
                assert (self.finish[id] == "stop") == complete
            else:
                assert self.output[id] == want[: len(self.output[id])]

    def _check_seen(self, request: Request, tokens: list[int]) -> None:
        """It was told of each position that was computed once, in order, and of what stands there in the end."""
        seen = self.seen[request.id]
        assert seen == [[position, token] for position, token in enumerate(tokens[: len(seen)])]
        if self.finish[request.id] in ("stop", "length"):
            assert len(seen) == len(tokens) - 1, "but for the last, which is never fed"

    def check_rest(self) -> None:
        """At rest nothing is leased, the books are right, and a flush gives every page back."""
        assert self.kv.audit([]) == 0
        assert self.kv.tree.num_sheltered == 0
        self.kv.flush()
        for pool in self.kv.pools:
            assert len(pool.free) == pool.capacity
        assert not self.kv.tree.roots
