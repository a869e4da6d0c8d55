"""Speculative prefill: of a long prompt only what a smaller model finds worth looking at is computed.

The tokens that are left keep their rotary positions, so to the model the text has holes. That is no draft that is verified: what is
left out is never seen, and answers may differ. Which tokens matter, the scores of `Estimate` say (Liu, Chen and Zhang, Speculative
Prefill, 2025); here they are pooled, and runs of CHUNK tokens are kept whole, since words alone say little.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from time import perf_counter

import numpy as np

from sapwood.base.plan import Floats, Gaps, Ints, Part, Rows, Stretch
from sapwood.base.request import Request
from sapwood.base.stake import LATER, NEVER, NOW, Ready, Refusal, Stake
from sapwood.base.task import Generate

CHUNK = 32
SHORTEST = 8 * CHUNK
"""Tokens of a prompt of which some may be left out; shorter ones take less time than the smaller model."""
_POOL = 13  # tokens over which scores are averaged: those beside one that matters do too
_REMEMBERED = 64  # prompts

Estimate = Callable[[Ints], Floats]
"""How much each token of a prompt matters; from one thread at a time."""


def chosen(scores: Floats, keep: float, *, chunk: int) -> Ints:
    """Places to keep, ascending: a share of `keep` at least, in whole chunks counted from the end. The first chunk, to which much attention
    goes whatever it says, and the last, with what is asked, are always among them."""
    length = len(scores)
    padded = np.pad(scores.astype(np.float64), _POOL // 2, mode="edge")
    smooth = np.convolve(padded, np.full(_POOL, 1 / _POOL), mode="valid")
    ends = np.arange(length, 0, -chunk)[::-1]  # the first one may be shorter
    starts = np.concatenate([[0], ends[:-1]])
    value = np.add.reduceat(smooth, starts) / (ends - starts)
    value[[0, -1]] = np.inf
    order = np.argsort(-value, kind="stable")
    enough = int(np.searchsorted(np.cumsum((ends - starts)[order]), keep * length))
    kept = np.sort(order[: max(enough + 1, 2)])
    return np.concatenate([np.arange(starts[one], ends[one], dtype=np.int32) for one in kept])


class ThinStake(Stake):
    """Of prompts of SHORTEST tokens and more a share of `keep` is computed. A request is LATER while a thread of this stake estimates.

    Prompts of which every position is asked for, those that are read and not answered, and those that want to be `whole_prompt` are none
    of its business. A prompt that it keeps wholly runs like any other, and shares the cache.
    """

    reshapes = True

    def __init__(self, estimate: Estimate, *, keep: float) -> None:
        self._estimate, self._keep = estimate, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="estimate")
        self._waiting: dict[int, Future[Ints]] = {}  # by the requests' numbers
        self._known: OrderedDict[bytes, Future[Ints]] = (
            OrderedDict()
        )  # several outputs of one prompt, or a prompt again
        self._turned: dict[int, Ints] = {}  # slots of which the next plan tells
        self._counts = {"thinned_prompts": 0, "left_out_prompt_tokens": 0}
        self._seconds = {"estimate_seconds": 0.0}

    def concerns(self, request: Request) -> bool:
        whole = request.params.whole_prompt or not request.scored or bool(request.media)
        return isinstance(request.task, Generate) and not whole and request.prompt_len >= SHORTEST and self._keep < 1

    def ready(self, request: Request) -> Ready:
        if request.gaps is not None or len(request.tokens) > request.prompt_len:
            return NOW
        found = self._waiting.get(request.id) or self._begun(request)
        if not found.done():
            return LATER
        if (error := found.exception()) is not None:
            return Refusal(f"the model that estimates which tokens of a prompt matter has failed: {error}")
        if len(kept := found.result()) < request.prompt_len:
            self._counts["thinned_prompts"] += 1
            self._counts["left_out_prompt_tokens"] += request.prompt_len - len(kept)
            request.thin(kept)
        return NOW

    def _begun(self, request: Request) -> Future[Ints]:
        key = request.tokens.tobytes()
        if key not in self._known:
            self._known[key] = self._thread.submit(self._kept, request.tokens.copy())
        self._known.move_to_end(key)
        self._waiting[request.id] = found = self._known[key]
        for old in [old for old, one in self._known.items() if one.done()][: len(self._known) - _REMEMBERED]:
            del self._known[old]
        return found

    def _kept(self, tokens: Ints) -> Ints:
        began = perf_counter()
        kept = chosen(self._estimate(tokens), self._keep, chunk=CHUNK)
        self._seconds["estimate_seconds"] += perf_counter() - began
        return kept

    def wait(self, seconds: float) -> None:
        wait(set(self._waiting.values()), timeout=seconds, return_when="FIRST_COMPLETED")

    def enter(self, request: Request, number: int) -> bool:
        self._waiting.pop(request.id, None)
        return True

    def seat(self, request: Request, number: int) -> int:
        if request.gaps is not None:
            self._turned[request.slot] = request.gaps
        return NEVER

    def parts(self, rows: Rows) -> Sequence[Part]:
        if not self._turned:
            return ()
        told = tuple(Stretch(slot, 0, gaps) for slot, gaps in self._turned.items())
        self._turned = {}
        return (Gaps(told),)

    def drop(self, request: Request, number: int, *, trusted: bool) -> None:
        if request.running and request.gaps is not None:
            self._turned[request.slot] = request.gaps[:0]

    def forget(self, request: Request) -> None:
        found = self._waiting.pop(request.id, None)
        if found is not None and found not in self._waiting.values() and found.cancel():
            self._known = OrderedDict((key, one) for key, one in self._known.items() if one is not found)

    def reset(self) -> None:
        self._turned.clear()

    def gauges(self) -> tuple[Mapping[str, int], Mapping[str, float]]:
        """Prompts of which something was left out, how much, and the time of the estimates, beside the loop."""
        return self._counts, self._seconds

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
