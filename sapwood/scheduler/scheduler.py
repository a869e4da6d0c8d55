"""Which tokens the next step computes.

A plan is made in three parts, all under one token budget:

    steady    running requests that only advance by one token: always first, so a long prompt never stalls an answer
    prompts   running requests with more known tokens than are fed: the next chunk of each
    starts    waiting requests, in the policy's order, as long as there are slots, pages and budget

Memory is asked for in that order. When there is none, the lowest-ranked running request that is not in the plan yet is
preempted: it drops its pages (full ones stay in the tree until they are needed) and waits again.

The scheduler knows counts, slots and, once `commit` brings them, token values. It knows no tensors and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sapwood.base.plan import Admit, Bools, Ints, Known, Longs, Outcome, Plan, Ruling
from sapwood.base.request import Landed, Request
from sapwood.base.wire import Delta, Deltas, FinishReason
from sapwood.cache.kv import KVCache
from sapwood.scheduler.slots import Slots
from sapwood.scheduler.waiting import Waiting

FORESIGHT = 64  # tokens by which running requests may grow before a start must not have taken their pages
NO_SLOTS: Ints = np.zeros(0, np.int32)


class Scheduler:
    """Plans steps over a KV cache and applies what they yield.

    `max_num_batched_tokens` bounds a step, `chunked_prefill_size` the prompt tokens of a step that also decodes.
    """

    def __init__(
        self,
        kv: KVCache,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        chunked_prefill_size: int | None = None,
        policy: str = "fcfs",
    ) -> None:
        assert max_num_batched_tokens >= max_num_seqs
        self.kv = kv
        self.slots = Slots(max_num_seqs, max_model_len)
        self.waiting = Waiting(policy)
        self.max_tokens = max_num_batched_tokens
        self.max_mixed = chunked_prefill_size or max_num_batched_tokens
        self.number = 0
        self.num_preempted = 0
        self._by_id: dict[int, Request] = {}
        self._steady: Ints = NO_SLOTS
        self._prompts: list[Request] = []  # running, prompt not wholly fed, by rank
        self._joining: list[int] = []  # slots that are steady from the next plan on
        self._changed = False  # a steady slot was released
        self._known: list[tuple[int, Known]] = []  # with the owner; what the device does not know yet
        self._masked: tuple[Ints, Longs | None] | None = None  # the steady rows that are restricted
        self._foresight = FORESIGHT
        self._blocked: tuple[int, int, int] | None = None  # what was the case when memory was too short for a start

    # -- arrivals and departures ----------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return self.slots.num_running

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    def __contains__(self, id: int) -> bool:
        return id in self._by_id

    def add(self, request: Request) -> None:
        assert request.id not in self._by_id and request.prompt_len < request.limit
        self._by_id[request.id] = request
        self.waiting.add(request)

    def abort(self, id: int) -> Delta | None:
        """End a request at once; None when there is no such request (any more)."""
        request = self._by_id.pop(id, None)
        if request is None:
            return None
        if request.running:
            self._leave(request)
        else:
            self.waiting.remove(request)
        return Delta(id, [], finish="abort")

    def running(self) -> list[Request]:
        return self.slots.running()

    # -- planning -------------------------------------------------------------------------------------------------

    def plan(self) -> Plan | None:
        """The next step, or None when nothing can be computed until a result comes or a request arrives."""
        number = self.number + 1
        self.slots.recycle()
        steady = self._advance_steady(number)
        budget = self.max_tokens - len(steady)
        if len(steady):
            budget = min(budget, self.max_mixed)
        spans, budget = self._continue_prompts(budget, number)
        admits = self._start_waiting(budget, spans, number)
        if not len(steady) and not spans:
            return None
        self.number = number
        return self._compose(steady, spans, admits)

    def _compose(self, steady: Ints, spans: list[tuple[int, int, int]], admits: list[Admit]) -> Plan:
        s = self.slots
        slots, starts = steady, s.fed[steady]
        counts: Ints = np.ones(len(steady), np.int32)
        yields: Bools = np.ones(len(steady), np.bool_)
        if spans:
            more = np.array(spans, dtype=np.int32)
            slots = np.concatenate([steady, more[:, 0]])
            starts = np.concatenate([starts, more[:, 1]])
            counts = np.concatenate([counts, more[:, 2]])
            yields = starts + counts == s.known[slots]
            yields[: len(steady)] = True
        s.fed[slots] = starts + counts
        s.flying[slots] += yields
        changes, copies = self.kv.take_changes()
        return Plan(
            number=self.number,
            steady=steady,
            slots_R=slots,
            starts_R=starts,
            counts_R=counts,
            yields_R=yields,
            owners_R=s.owner[slots],
            admits=tuple(admits),
            pages=changes,
            copies=copies,
            runs=self.kv.runs(steady, s.requests),
            masked=self._restricted(steady, slots, yields) if s.num_masked else None,
            known=self._take_known(),
        )

    def _restricted(self, steady: Ints, slots: Ints, yields: Bools) -> Longs | None:
        """The yielding rows whose requests have a grammar."""
        if len(slots) > len(steady):
            rows = np.flatnonzero(self.slots.masked[slots] & yields)
            return rows if len(rows) else None
        if self._masked is None or self._masked[0] is not steady:
            rows = np.flatnonzero(self.slots.masked[steady])
            self._masked = steady, rows if len(rows) else None
        return self._masked[1]

    def _take_known(self) -> tuple[Known, ...]:
        """What to tell the device of those that still hold their slots; who starts anew brings all tokens along."""
        if not self._known:
            return ()
        known = tuple(known for owner, known in self._known if self.slots.owner[known.slot] == owner)
        self._known.clear()
        return known

    def _advance_steady(self, number: int) -> Ints:
        """Slots that advance by one, with a page for it; the same array as last time if nothing changed."""
        s = self.slots
        if self._joining or self._changed:
            stay = self._staying() if self._changed else self._steady
            self._steady = np.concatenate([stay, np.array(self._joining, dtype=np.int32)])
            self._joining.clear()
            self._changed = False
        fed = s.fed[self._steady]
        wanting = fed < s.limit[self._steady] - 1
        if not wanting.all():
            self._steady, fed = self._steady[wanting], fed[wanting]
        due = self._steady[fed >= s.until[self._steady]]
        if len(due):
            self._turn_pages(due, number)
        if self._changed:
            self._steady = self._staying()
            self._changed = False
        return self._steady

    def _staying(self) -> Ints:
        """The steady slots that still are."""
        s = self.slots
        return self._steady[(s.owner[self._steady] > 0) & ~s.apart[self._steady]]

    def _turn_pages(self, due: Ints, number: int) -> None:
        """A page more for each of these slots, which are at the end of theirs."""
        s = self.slots
        fed = s.fed[due]
        if self.kv.turn(due, s.requests, fed, np.minimum(s.known[due], fed), s.history, number):
            s.until[due] = fed + self.kv.page_size
        else:
            self._turn_pages_by_rank(sorted(map(s.of, due.tolist()), key=self.waiting.rank), number)

    def _turn_pages_by_rank(self, due: list[Request], number: int) -> None:
        """The same, best rank first; when there is no page, the worst-ranked running request makes room."""
        s = self.slots
        safe: Bools = np.zeros(len(s.owner), np.bool_)
        for request in due:
            if not request.running:
                continue  # made room for a better one
            slot = request.slot
            fed = int(s.fed[slot])
            self.kv.publish(request, s.planned(slot), start=fed, number=number)
            safe[slot] = True
            while not self.kv.clamp(request, fed, 1):
                victim = self._victim(safe) or request
                if self.waiting.rank(victim) < self.waiting.rank(request):
                    victim = request
                self._preempt(victim)
                if victim is request:
                    break
            if request.running:
                self._reserve(request, fed + 1)

    def _victim(self, safe: Bools) -> Request | None:
        """The worst-ranked running request that is not `safe` (by slot) and still has something to compute."""
        s = self.slots
        able = np.flatnonzero((s.owner > 0) & ~safe & (s.fed < s.limit - 1))
        return s.of(s.worst(able)) if len(able) else None

    def _continue_prompts(self, budget: int, number: int) -> tuple[list[tuple[int, int, int]], int]:
        """(slot, start, count) of the next chunk of each request whose prompt is not wholly fed."""
        spans: list[tuple[int, int, int]] = []
        for request in list(self._prompts):
            if budget <= 0 or not request.running:
                continue
            count = self._chunk(request, budget, spans, number)
            while not count and self._prompts[-1] is not request:
                self._preempt(self._prompts[-1])
                count = self._chunk(request, budget, spans, number)
            budget -= count
        return spans, budget

    def _chunk(self, request: Request, budget: int, spans: list[tuple[int, int, int]], number: int) -> int:
        """Plan up to `budget` known tokens of a running request; return how many."""
        s = self.slots
        slot = request.slot
        known = int(s.known[slot])
        tokens = s.history[slot, :known].tobytes()
        start = self.kv.extend(request, int(s.fed[slot]), tokens)
        s.fed[slot] = start
        count = self.kv.clamp(request, start, min(known - start, budget))
        if count <= 0:
            return 0
        end = start + count
        self._reserve(request, end)
        self.kv.publish(request, tokens[: 4 * end], start=start, number=number)
        spans.append((slot, start, count))
        if end == known:
            self._joining.append(slot)
            s.apart[slot] = False
            self._prompts.remove(request)
        return count

    def _reserve(self, request: Request, end: int) -> None:
        taken = self.kv.take(request, end)
        assert taken, "clamp promised these pages"
        self.slots.until[request.slot] = self.kv.horizon(request)

    # -- starting waiting requests ---------------------------------------------------------------------------------

    def _start_waiting(self, budget: int, spans: list[tuple[int, int, int]], number: int) -> list[Admit]:
        s = self.slots
        admits: list[Admit] = []
        if not len(self.waiting) or not s.free or budget <= 0:
            return admits
        self._foresight = max(FORESIGHT, self._foresight - 1)
        if self._blocked == self._circumstances():
            return admits
        short = False
        started: list[Request] = []
        promised = self._promised_pages(np.flatnonzero(s.owner))
        for request in self.waiting.candidates(self.kv.peek):
            if not s.free or budget <= 0:
                break
            if short := not self._enter(request, promised):
                break
            slot = s.assign(request, self.waiting.rank(request))
            cached = self.kv.install(request, number=number)
            s.fed[slot] = cached
            s.until[slot] = self.kv.horizon(request)
            if request.cached_tokens < 0:
                request.cached_tokens = cached
            self._prompts.append(request)
            admits.append(_admit(request, cached))
            started.append(request)
            budget -= self._chunk(request, budget, spans, number)
            promised += self._promised_pages(np.array([slot]))
        if started:
            self.waiting.started(started)
            self._prompts.sort(key=self.waiting.rank)
        self._blocked = self._circumstances() if short else None
        return admits

    def _circumstances(self) -> tuple[int, int, int]:
        """While these are the same, a start for which there was no memory need not be tried again.

        What running requests have and what they were promised only moves from one to the other, unless there is relief.
        """
        return self.waiting.version, self.kv.relief, self._foresight // self.kv.page_size

    def _enter(self, request: Request, promised: Longs) -> bool:
        """Lease the request's cached prefix if there is room for the rest of its known tokens and everybody's growth."""
        kv, s = self.kv, self.slots
        kv.enter(request)
        alone = s.num_running == 0
        growth = min(len(request.tokens) + self._foresight, request.limit)
        roomy = alone or kv.fits(request, growth, promised.tolist())
        if roomy and all(kv.num_available(g) for g in range(len(kv.groups))):
            return True
        kv.leave(request, b"", number=self.number)
        return False

    def _promised_pages(self, slots: Longs) -> Longs:
        """Pages per group that the requests in these slots will ask for: the rest of their prompts and some growth."""
        s = self.slots
        ahead = np.minimum(s.known[slots] + self._foresight, s.limit[slots]) - s.until[slots]
        pages = -(-np.maximum(ahead, 0) // self.kv.page_size)
        # In a windowed group old pages are let go of as new ones are taken.
        sums = [pages.sum() if window is None else np.minimum(pages, 2).sum() for window in self.kv.tree.windows]
        return np.array(sums, np.int64)

    # -- leaving ---------------------------------------------------------------------------------------------------

    def _preempt(self, request: Request) -> None:
        """Drop a running request's place and pages; it waits again with what it has generated as known tokens.

        Tokens of steps in flight are lost and will be drawn again: the same ones, since choices depend on seed and
        position only.
        """
        s = self.slots
        request.tokens = s.history[request.slot, : s.known[request.slot]].copy()
        if not request.scored:
            request.prompt_logprobs.clear()
        self._leave(request)
        self.waiting.add(request)
        self.num_preempted += 1
        self._foresight = min(4096, 2 * self._foresight)

    def _leave(self, request: Request, *, discard: bool = False) -> None:
        slot = request.slot
        self.kv.leave(request, self.slots.planned(slot), number=self.number, discard=discard)
        self.slots.release(request)
        if request in self._prompts:
            self._prompts.remove(request)
        elif slot in self._joining:
            self._joining.remove(slot)
        else:
            self._changed = True

    # -- applying results ------------------------------------------------------------------------------------------

    def tenants(self, plan: Plan) -> list[tuple[Request | None, int]]:
        """Of each masked row: its request, None if that is gone, and the position at which its token will stand."""
        if plan.masked is None:
            return []
        s, rows = self.slots, plan.masked
        slots = plan.slots_R[rows]
        alive = s.owner[slots] == plan.owners_R[rows]
        ends = (plan.starts_R[rows] + plan.counts_R[rows]).tolist()
        return [
            (s.requests[slot] if live else None, end)
            for slot, live, end in zip(slots.tolist(), alive.tolist(), ends, strict=True)
        ]

    def landed(self, plan: Plan, outcome: Outcome) -> list[Landed]:
        """The new tokens of masked rows, as `commit` will take them. Call it before."""
        if plan.masked is None:
            return []
        s = self.slots
        return [
            Landed(row, request, int(outcome.tokens_R[row]), int(s.flying[request.slot]) - 1)
            for row, (request, end) in zip(plan.masked.tolist(), self.tenants(plan), strict=True)
            if request is not None and end >= s.known[request.slot] and row not in outcome.errors
        ]

    def commit(self, plan: Plan, outcome: Outcome, rulings: Mapping[int, Ruling] | None = None) -> Deltas:
        """Take in a step's tokens; return the news for the fronts. `rulings` are what grammars say to some of them."""
        s = self.slots
        alive = s.owner[plan.slots_R] == plan.owners_R
        deltas = self._take_errors(plan, outcome, alive)
        self._take_prompt_logprobs(plan, outcome, alive)
        fresh = plan.yields_R & alive
        if plan.masked is not None:
            # A token that a grammar forced was known before the step that yields it had landed.
            fresh &= plan.starts_R + plan.counts_R >= s.known[plan.slots_R]
        rows = np.flatnonzero(fresh)
        slots, tokens = plan.slots_R[rows], outcome.tokens_R[rows]
        places = s.known[slots]
        s.history[slots, places] = tokens
        s.known[slots] = places + 1
        s.flying[slots] -= 1
        stopped = s.stopped(slots, tokens) & (places >= s.min_len[slots])
        ended = stopped | (places + 1 >= s.limit[slots])
        special = ended | s.verbose[slots]
        if rulings:
            special |= np.isin(rows, list(rulings))
        for i in np.flatnonzero(special).tolist():
            request, row, token = s.of(int(slots[i])), int(rows[i]), int(tokens[i])
            ruling = rulings.get(row) if rulings else None
            stop = token if stopped[i] else None
            finish: FinishReason | None = None if not ended[i] else "stop" if stopped[i] else "length"
            new = [token]
            if ruling is not None and stop is None:
                if ruling.error:
                    deltas.append(self._end(request, Delta(request.id, [], finish="error", error=ruling.error)))
                    continue
                forced, finish = self._force(request, ruling)
                new += forced
            delta = self._delta(request, new, finish, stop, outcome, row)
            deltas.append(self._end(request, delta) if finish else delta)
        plain = ~special
        return Deltas(s.ids[slots[plain]].tolist(), tokens[plain].tolist(), deltas)

    def _force(self, request: Request, ruling: Ruling) -> tuple[list[int], FinishReason | None]:
        """Make the tokens known that a grammar forces behind the new one; those that fit, and how the request ends.

        The request goes on as one with a prompt to feed. A step in flight that yields the first of them is not waited
        for: `commit` will know its token already.
        """
        s, slot = self.slots, request.slot
        known, limit = int(s.known[slot]), int(s.limit[slot])
        tokens = list(ruling.forced[: limit - known])
        end = known + len(tokens)
        s.history[slot, known:end] = tokens
        s.known[slot] = end
        if ruling.done and len(tokens) == len(ruling.forced):
            return tokens, "stop"
        if end >= limit:
            return tokens, "length"
        if tokens:
            self._known.append((int(s.owner[slot]), Known(slot, known, np.array(tokens, np.int32))))
            s.flying[slot] = 0
            if slot in self._joining:
                self._joining.remove(slot)
            else:
                s.apart[slot] = self._changed = True
            self._prompts.append(request)
            self._prompts.sort(key=self.waiting.rank)
        return tokens, None

    def _end(self, request: Request, delta: Delta) -> Delta:
        del self._by_id[request.id]
        self._leave(request)
        return delta

    def _delta(
        self,
        request: Request,
        tokens: list[int],
        finish: FinishReason | None,
        stop: int | None,
        outcome: Outcome,
        row: int,
    ) -> Delta:
        first = self.slots.known[request.slot] == request.prompt_len + len(tokens)
        wants_logprobs = request.params.logprobs is not None
        self.slots.verbose[request.slot] = wants_logprobs
        prompt_logprobs = None
        if first and request.params.prompt_logprobs is not None:
            request.scored = True
            prompt_logprobs = request.prompt_logprobs
        return Delta(
            request.id,
            tokens,
            finish=finish,
            cached_tokens=request.cached_tokens if first else -1,
            stop=stop,
            logprobs=[outcome.logprobs[row]] if wants_logprobs else None,
            prompt_logprobs=prompt_logprobs,
        )

    def _take_errors(self, plan: Plan, outcome: Outcome, alive: Bools) -> list[Delta]:
        """End the rows that failed; what they computed is forgotten. Marks them dead in `alive`."""
        deltas: list[Delta] = []
        for row, text in outcome.errors.items():
            if alive[row]:
                alive[row] = False
                request = self.slots.of(int(plan.slots_R[row]))
                del self._by_id[request.id]
                self._leave(request, discard=True)
                deltas.append(Delta(request.id, [], finish="error", error=text))
        return deltas

    def _take_prompt_logprobs(self, plan: Plan, outcome: Outcome, alive: Bools) -> None:
        for row, logprobs in outcome.prompt_logprobs.items():
            if alive[row]:
                request = self.slots.of(int(plan.slots_R[row]))
                if not request.scored:
                    request.prompt_logprobs.extend(logprobs)

    def fail(self, text: str) -> list[Delta]:
        """End every request with an error, forgetting all they computed: a step is lost."""
        lost = list(self._by_id)
        for request in self.running():
            self._leave(request, discard=True)
        # A plan that was cut off may have left a request in two places, and changes that nobody has taken.
        self.waiting.clear()
        self.kv.take_changes()
        self._known.clear()
        self._by_id.clear()
        return [Delta(id, [], finish="error", error=text) for id in lost]


def _admit(request: Request, cached: int) -> Admit:
    return Admit(
        slot=request.slot,
        tokens=request.tokens,
        fed=cached,
        prompt_len=request.prompt_len,
        limit=request.limit,
        min_len=request.min_len,
        seed=request.seed,
        stop_ids=request.stop_ids,
        params=request.params,
    )
