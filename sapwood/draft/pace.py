"""How many drafts to feed: as many as are worth it, by how often those of a row were right and by what a step costs.

    p        the share of drafts that were right, of those behind right ones: by row and drafter, fading; where little is known,
             the drafter's everywhere
    g(j)     p ** (f + j): the tokens that a row's j-th draft is worth, where f tokens are in flight that it presumes
    c(t, n)  seconds of a step of t tokens and n drafts, as they were measured: of t + n tokens in rows of one, or with drafts,
             and what is read of the positions before them: once for each row, and again, as far as that costs, for each draft
    r(n)     (t + the gains of the n drafts that are worth most) / c(t, n): what a step of t tokens, those of prompts among
             them, gets done in a second; a draft is worth its gain but for what is done in the time that its reading takes.
             Drafts of a model cost the seconds of its passes too

The step feeds the n drafts for which r(n) is greatest, if r(n) is more than r(0) by a margin. Drafts that are not fed tell
nothing, so what is known of them fades until they are tried again. A row of which the first draft is wrong time and again
is not asked for more until it has grown by 4, 8, ... 256 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sapwood.base.plan import Bools, Ints, Longs

Floats = NDArray[np.float64]

_FADES = 0.85  # of what is known of a row, with each time that it is verified
_FORGETS = 0.98  # with each step in which it might have fed drafts and did not
_PRIOR = 3.0  # drafts that what is known of a drafter counts as, in each of its rows
_FIRST = 0.6  # what is presumed of a drafter of which nothing is known
_MARGIN = 1.02
_SURE = 0.98  # nothing is surer
_LEAST_WORTH = 0.02  # a draft that is right less often is not even proposed
_PATIENCE = 2  # times that the first draft may be wrong before a row rests
_LONGEST_REST = 256  # tokens


class Pace(Protocol):
    """Decides how many drafts are proposed and fed. Slots and drafters are numbers; arrays are by row."""

    def reach(self, slots: Ints, known: Ints) -> Ints:
        """How many drafts each row may be given, by drafter [R, D]; 0 is not worth asking."""
        ...

    def share(self, slots: Ints, lengths: Ints, drafters: Ints, ready: Ints, flying: Ints, most: int) -> Ints:
        """How many of the `ready` drafts each row of such a length feeds, in all no more than `most`. Before them `flying`
        tokens are presumed."""
        ...

    def learn(self, slots: Ints, drafters: Ints, drafts: Ints, right: Ints, known: Ints) -> None:
        """Of the drafts that were fed behind `known` tokens so many were right."""
        ...

    def begin(self, slot: int) -> None:
        """The slot is another request's."""
        ...

    def beside(self, tokens: int) -> None:
        """The step feeds so many tokens of prompts too."""
        ...


class Greedy:
    """All that can be fed is: first come, first served."""

    def __init__(self, most: int, num_drafters: int) -> None:
        self._most, self._num_drafters = most, num_drafters

    def reach(self, slots: Ints, known: Ints) -> Ints:
        return np.full((len(slots), self._num_drafters), self._most, np.int32)

    def share(self, slots: Ints, lengths: Ints, drafters: Ints, ready: Ints, flying: Ints, most: int) -> Ints:
        shares: Ints = np.diff(np.minimum(np.cumsum(ready), most), prepend=0).astype(np.int32)
        return shares

    def learn(self, slots: Ints, drafters: Ints, drafts: Ints, right: Ints, known: Ints) -> None:
        pass

    def begin(self, slot: int) -> None:
        pass

    def beside(self, tokens: int) -> None:
        pass


class Line:
    """Seconds of a step by its tokens, up to `most`: between those that were measured a line, beyond them the last one's.

    A step costs no more than a larger one: what disturbs a measurement only makes it longer.
    """

    def __init__(self, tokens: Sequence[int], seconds: Sequence[float], most: int) -> None:
        known = np.minimum.accumulate(np.array(seconds, np.float64)[::-1])[::-1]
        self.by_tokens: Floats = np.interp(np.arange(most + 1), tokens, known)
        if len(tokens) > 1 and most > tokens[-1]:
            slope = (known[-1] - known[-2]) / (tokens[-1] - tokens[-2])
            self.by_tokens[tokens[-1] :] = known[-1] + slope * np.arange(most + 1 - tokens[-1])

    def of(self, first: int, last: int) -> Floats:
        """Of steps with `first` to `last` tokens."""
        return self.by_tokens[np.minimum(np.arange(first, last + 1), len(self.by_tokens) - 1)]


class Costs:
    """What steps cost: without drafts, which is no more than with them, and with some. `row` and `draft` are the seconds of
    each position that a row has before it, and of each that a draft has."""

    def __init__(self, plain: Line, drafted: Line, *, row: float = 0.0, draft: float = 0.0) -> None:
        self.drafted, self.row, self.draft = drafted, row, draft
        self._plain = np.minimum(plain.by_tokens, drafted.by_tokens)

    def plain(self, tokens: int) -> float:
        """Of a step without drafts, but for its positions."""
        return float(self._plain[min(tokens, len(self._plain) - 1)])

    def bend(self) -> int:
        """Up to how many tokens a step gets more done in a second the more it has: the least that come near the most."""
        seconds = self.drafted.by_tokens[1:]
        rates = np.arange(1, len(seconds) + 1) / seconds
        return 1 + int(np.flatnonzero(rates >= 0.95 * rates.max())[0])


class Passes:
    """What the drafter of that number costs, which is a model: with each pass it computes one more token of some rows, and its
    seconds follow from how many rows these are, as `line` says."""

    def __init__(self, drafter: int, line: Line) -> None:
        self._drafter, self._line = drafter, line

    def seconds(self, drafters: Ints, places: Longs) -> Floats:
        """Of the first 1, 2, ... of some drafts: whose each is, and its place behind its row's token."""
        mine = drafters == self._drafter
        at = places[mine]
        order = np.argsort(at, kind="stable")
        rows = np.empty_like(at)
        rows[order] = np.arange(len(at)) - np.searchsorted(at[order], at[order])  # that its pass has already
        line = self._line.of(0, int(rows.max(initial=0)) + 1)
        line[0] = 0.0
        more = np.zeros(len(drafters))
        more[mine] = line[rows + 1] - line[rows]
        return more.cumsum()


class Adaptive:
    """The formula above, for steps that cost what `costs` says; a row feeds at most `most` drafts."""

    def __init__(
        self, num_slots: int, num_drafters: int, *, most: int, costs: Costs, passes: Passes | None = None
    ) -> None:
        self._most, self._costs, self._passes = most, costs, passes
        self._tried: Floats = np.zeros((num_slots, num_drafters))
        self._right: Floats = np.zeros((num_slots, num_drafters))
        self._known_tried: Floats = np.full(num_drafters, _PRIOR)  # of drafters everywhere
        self._known_right: Floats = np.full(num_drafters, _PRIOR * _FIRST)
        self._misses: Ints = np.zeros((num_slots, num_drafters), np.int32)  # times in a row that the first was wrong
        self._again: Ints = np.zeros((num_slots, num_drafters), np.int32)  # tokens that a row rests up to
        self._beside = 0

    def reach(self, slots: Ints, known: Ints) -> Ints:
        tokens, costs = len(slots) + self._beside, self._costs
        read = costs.row * float(known.sum())
        now, more = costs.plain(tokens) + read, costs.drafted.of(tokens + 1, tokens + 1) + read + costs.draft * known
        pays = (tokens + _SURE) * now > tokens * more * _MARGIN  # else not even the surest draft is worth what it costs
        if not pays.any():
            return np.zeros((len(slots), self._tried.shape[1]), np.int32)
        reach = np.log(_LEAST_WORTH) / np.log(self._chances(slots))
        asked = pays[:, None] & (self._again[slots] <= known[:, None])
        found: Ints = np.where(asked, np.clip(reach, 1, self._most), 0).astype(np.int32)
        return found

    def share(self, slots: Ints, lengths: Ints, drafters: Ints, ready: Ints, flying: Ints, most: int) -> Ints:
        shares: Ints = np.zeros(len(slots), np.int32)
        asked = np.flatnonzero(ready)
        if not len(asked) or most <= 0:
            return shares
        tokens, read = len(slots) + self._beside, self._costs.row * float(lengths.sum())
        now = self._costs.plain(tokens) + read
        reads = self._costs.draft * lengths[asked]  # seconds of each draft
        chances = self._chances(slots[asked])[np.arange(len(asked)), drafters[asked]]
        places = np.arange(1, int(ready.max()) + 1)
        gains = chances[:, None] ** (flying[asked, None] + places)
        worth = np.where(places > ready[asked, None], -np.inf, gains - tokens / now * reads[:, None])
        order = np.argsort(-worth, axis=None, kind="stable")[: min(most, int(ready.sum()))]
        done = tokens + np.cumsum(gains.ravel()[order])
        costs = self._costs.drafted.of(tokens + 1, tokens + len(order)) + read + np.cumsum(reads[order // len(places)])
        if self._passes is not None:
            costs = costs + self._passes.seconds(drafters[asked][order // len(places)], order % len(places))
        rates = done / costs
        best = int(rates.argmax())
        if rates[best] > tokens / now * _MARGIN:
            shares[asked] = np.bincount(order[: best + 1] // len(places), minlength=len(asked))
        self._fade(slots[asked], drafters[asked], shares[asked] == 0)
        return shares

    def learn(self, slots: Ints, drafters: Ints, drafts: Ints, right: Ints, known: Ints) -> None:
        tried = np.minimum(right + 1, drafts)
        at = slots, drafters
        self._tried[at] = _FADES * self._tried[at] + tried
        self._right[at] = _FADES * self._right[at] + right
        fades = _FADES ** (np.bincount(drafters, minlength=len(self._known_tried)) / 8)
        self._known_tried = fades * self._known_tried + np.bincount(drafters, tried, len(self._known_tried))
        self._known_right = fades * self._known_right + np.bincount(drafters, right, len(self._known_right))
        misses = np.where(right > 0, 0, self._misses[at] + 1).astype(np.int32)
        rest = np.minimum(2 ** np.minimum(misses, 16), _LONGEST_REST)
        self._misses[at] = misses
        self._again[at] = np.where(misses >= _PATIENCE, known + rest, 0)

    def begin(self, slot: int) -> None:
        self._tried[slot] = self._right[slot] = 0.0
        self._misses[slot] = self._again[slot] = 0

    def beside(self, tokens: int) -> None:
        self._beside = tokens

    def _chances(self, slots: Ints) -> Floats:
        """p of each row and drafter."""
        prior = _PRIOR * self._known_right / self._known_tried
        chances: Floats = (self._right[slots] + prior) / (self._tried[slots] + _PRIOR)
        return np.clip(chances, 0.01, _SURE)

    def _fade(self, slots: Ints, drafters: Ints, unfed: Bools) -> None:
        slots, drafters = slots[unfed], drafters[unfed]
        self._tried[slots, drafters] *= _FORGETS
        self._right[slots, drafters] *= _FORGETS
        of: Longs = np.flatnonzero(np.bincount(drafters))
        self._known_right[of] += (1 - _FORGETS) * (_FIRST * self._known_tried[of] - self._known_right[of])
