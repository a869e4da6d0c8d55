"""Taking in what a step yielded: tokens become known, requests end, stakes rule on what follows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sapwood.base.news import FinishReason, Landing, News
from sapwood.base.plan import Bools, Ints, Longs, Outcome, Plan, Stretch
from sapwood.base.ragged import firsts, spread
from sapwood.base.request import Request
from sapwood.base.stake import Landed, Ruling
from sapwood.scheduler.insight import see, told
from sapwood.scheduler.roster import Roster


class Commit:
    """Applies the outcomes of steps, in their order, to the requests of a `roster`."""

    def __init__(self, roster: Roster) -> None:
        self._roster, self._slots = roster, roster.slots

    def __call__(self, plan: Plan, outcome: Outcome) -> Landing:
        """Take in a step's tokens; the news of its requests."""
        alive = self._slots.owner[plan.slots_R] == plan.owners_R
        news = self._take_errors(plan, outcome, alive)
        self._take_prompt_logprobs(plan, outcome, alive)
        self._take_insights(plan, outcome, alive)
        rows = ((plan.heads_R > 0) & alive).nonzero()[0]
        slots, yielded, tokens = plan.slots_R[rows], outcome.yielded_R[rows], outcome.tokens_N
        if plan.drafted:
            starts = firsts(outcome.yielded_R)[rows]
            for stake in self._roster.stakes:
                stake.verified(plan, rows, yielded - 1)
            taken, stopped, ended = self._take_runs(slots, yielded, tokens, starts)
            self._correct(slots, plan.heads_R[rows], yielded)
        else:
            if len(tokens) > len(rows):
                tokens = tokens[firsts(outcome.yielded_R)[rows]]
            starts = np.arange(len(rows))
            taken, stopped, ended = yielded, *self._take_each(slots, tokens)

        rulings = self._rulings(rows, slots, taken, tokens, starts, ended)
        special = ended | self._slots.verbose[slots]
        if rulings:
            special |= np.isin(rows, list(rulings))
        for i in special.nonzero()[0].tolist():
            row, mine = int(rows[i]), tokens[starts[i] : starts[i] + taken[i]].tolist()
            request = self._slots.of(int(slots[i]))
            finish: FinishReason | None = None if not ended[i] else "stop" if stopped[i] else "length"
            news.append(self._tell(request, row, mine, finish, plan, outcome, rulings.get(row)))
        for stake in self._roster.landing:
            stake.landed(plan)
        return self._landing(slots, ~special, taken, tokens, starts, news)

    def _take_each(self, slots: Ints, tokens: Ints) -> tuple[Bools, Bools]:
        """Make one token of each row known. Per row: whether it stops its request, and whether it ends it."""
        s = self._slots
        places = s.known[slots]
        ends = places + 1
        s.history[slots, places] = tokens
        s.known[slots] = ends
        s.flying[slots] -= 1
        stopped = s.stopped(slots, tokens) & (places >= s.min_len[slots])
        return stopped, stopped | (ends >= s.limit[slots])

    def _take_runs(self, slots: Ints, yielded: Ints, tokens: Ints, starts: Longs) -> tuple[Ints, Bools, Bools]:
        """Make tokens known, up to the one that ends its request. Per row: how many, whether the last of them stops it,
        and whether it ends it."""
        s = self._slots
        places = s.known[slots]
        of_N, within_N = spread(yielded)
        slots_N, places_N, new_N = slots[of_N], places[of_N] + within_N, tokens[starts[of_N] + within_N]
        stopped_N = s.stopped(slots_N, new_N) & (places_N >= s.min_len[slots_N])
        ended_N = stopped_N | (places_N + 1 >= s.limit[slots_N])
        taken = yielded.copy()
        np.minimum.at(taken, of_N[ended_N], within_N[ended_N].astype(np.int32) + 1)
        kept_N = within_N < taken[of_N]
        s.history[slots_N[kept_N], places_N[kept_N]] = new_N[kept_N]
        s.known[slots] = places + taken
        stopped, ended = np.zeros(len(slots), np.bool_), np.zeros(len(slots), np.bool_)
        stopped[of_N[kept_N & stopped_N]] = True
        ended[of_N[kept_N & ended_N]] = True
        return taken, stopped, ended

    def _correct(self, slots: Ints, heads: Ints, yielded: Ints) -> None:
        """Of what was counted in advance, as if all drafts were accepted, take back what was not."""
        s, roster = self._slots, self._roster
        s.flying[slots] -= heads
        drafted = heads > 1
        slots, heads, rejected = slots[drafted], heads[drafted], (heads - yielded)[drafted]
        s.fed[slots] -= rejected
        s.slack[slots] -= heads - 1
        # Some had nothing left to do if all were accepted, and have left the steady rows.
        back = s.apart[slots] & (s.fed[slots] < s.limit[slots] - 1)
        for slot in slots[back].tolist():
            if s.of(slot) not in roster.chunked and slot not in roster.joining:
                s.apart[slot] = False
                roster.joining.append(slot)

    def _rulings(
        self, rows: Longs, slots: Ints, taken: Ints, tokens: Ints, starts: Longs, ended: Bools
    ) -> Mapping[int, Ruling]:
        """What stakes say to the new tokens, by row; the first that says anything counts."""
        roster, s = self._roster, self._slots
        rulings: dict[int, Ruling] = {}
        for stake, concerned in zip(roster.stakes, roster.concerned, strict=True):
            if not stake.rules:
                continue
            landed = [
                Landed(
                    int(rows[i]),
                    s.of(int(slots[i])),
                    tokens[starts[i] : starts[i] + taken[i]].tolist(),
                    int(s.flying[slots[i]]),
                    bool(ended[i]),
                )
                for i in concerned[slots].nonzero()[0].tolist()
            ]
            if landed:
                rulings = {**stake.land(landed), **rulings}
        return rulings

    def _tell(
        self,
        request: Request,
        row: int,
        tokens: list[int],
        finish: FinishReason | None,
        plan: Plan,
        outcome: Outcome,
        ruling: Ruling | None,
    ) -> News:
        """The news of a row that needs more than a token; the request may be over with it."""
        if ruling is not None and ruling.error:
            news = News(request.id, [], finish="error", error=ruling.error)
        else:
            if ruling is not None and ruling.taken is not None and ruling.taken < len(tokens):
                self._slots.known[request.slot] -= len(tokens) - ruling.taken
                tokens, finish = tokens[: ruling.taken], None
            if row in outcome.insights:
                self._see(request, row, len(tokens), plan, outcome)
            if ruling is not None and ruling.later and finish is None:
                news = self._news(request, tokens, None, None, outcome, row)
                self._roster.set_aside(request)
                return news
            stop = tokens[-1] if finish == "stop" else None
            if ruling is not None and finish != "stop":
                forced, finish = self._force(request, ruling)
                tokens = tokens + forced
            news = self._news(request, tokens, finish, stop, outcome, row)
        if news.finish is not None:
            self._roster.end(request)
        return news

    def _news(
        self,
        request: Request,
        tokens: list[int],
        finish: FinishReason | None,
        stop: int | None,
        outcome: Outcome,
        row: int,
    ) -> News:
        first = self._slots.known[request.slot] == request.prompt_len + len(tokens)
        wants_logprobs = request.params.logprobs is not None
        self._slots.verbose[request.slot] = request.params.details
        prompt_logprobs = None
        if first and request.params.prompt_logprobs is not None:
            request.scored = not request.params.insights
            prompt_logprobs = request.prompt_logprobs
        return News(
            request.id,
            tokens,
            finish=finish,
            cached_tokens=request.cached_tokens if first else -1,
            stop=stop,
            logprobs=outcome.logprobs.get(row, [])[: len(tokens)] if wants_logprobs else None,
            prompt_logprobs=prompt_logprobs,
            drafted={name: tally.told() for name, tally in request.drafted.items()} if finish else {},
            waited=request.waited if first else -1.0,
            vector=outcome.vectors.get(row),
            left_out=request.num_left_out if first else 0,
            insights=told(request),
        )

    def _see(self, request: Request, row: int, num_tokens: int, plan: Plan, outcome: Outcome) -> None:
        """What was computed at a row's positions up to the last of these tokens; they are known by now."""
        count = int(plan.counts_R[row] - plan.heads_R[row]) + num_tokens
        start = int(plan.starts_R[row])
        if row < plan.num_steady:  # where it began the device alone knew
            start = int(self._slots.known[request.slot]) - num_tokens - 1
        see(request, outcome.insights[row], start, count)

    def _force(self, request: Request, ruling: Ruling) -> tuple[list[int], FinishReason | None]:
        """Make the tokens known that follow in any case; those that fit, and how the request ends.

        The request goes on as one with known tokens to feed. What rows in flight yield for it is void: they were fed
        what was there before.
        """
        s, slot = self._slots, request.slot
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
            s.renew(slot)
            s.fed[slot] = min(int(s.fed[slot]), known)
            s.flying[slot] = s.slack[slot] = 0
            self._roster.known.append((int(s.owner[slot]), Stretch(slot, known, np.array(tokens, np.int32))))
            self._roster.call_apart(request)
        return tokens, None

    def _landing(
        self, slots: Ints, plain: Bools, taken: Ints, tokens: Ints, starts: Longs, news: list[News]
    ) -> Landing:
        ids = self._slots.ids[slots[plain]]
        if len(slots) == len(tokens):  # one each
            return Landing(ids.tolist(), tokens[plain].tolist(), news)
        counts, starts = taken[plain], starts[plain]
        of_N, within_N = spread(counts)
        return Landing(ids[of_N].tolist(), tokens[starts[of_N] + within_N].tolist(), news)

    def _take_errors(self, plan: Plan, outcome: Outcome, alive: Bools) -> list[News]:
        """End the rows that failed; what they computed is forgotten. Marks them dead in `alive`."""
        news: list[News] = []
        for row, text in outcome.errors.items():
            if alive[row]:
                alive[row] = False
                request = self._slots.of(int(plan.slots_R[row]))
                self._roster.end(request, trusted=False)
                news.append(News(request.id, [], finish="error", error=text))
        return news

    def _take_insights(self, plan: Plan, outcome: Outcome, alive: Bools) -> None:
        """Of rows that yield no token; of the others it depends on the tokens."""
        for row, found in outcome.insights.items():
            if alive[row] and not plan.heads_R[row]:
                request = self._slots.of(int(plan.slots_R[row]))
                see(request, found, int(plan.starts_R[row]), int(plan.counts_R[row]))

    def _take_prompt_logprobs(self, plan: Plan, outcome: Outcome, alive: Bools) -> None:
        for row, logprobs in outcome.prompt_logprobs.items():
            if alive[row]:
                request = self._slots.of(int(plan.slots_R[row]))
                if not request.scored:
                    request.prompt_logprobs.extend(logprobs)
