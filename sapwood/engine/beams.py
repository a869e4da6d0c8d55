"""Beam search: the likeliest outputs as wholes, by steps of the engine's own.

A beam is an output so far. Each round asks the engine for the likeliest tokens behind each beam, one request of one token, whose beginning is in the
prefix cache but for its last token: beams are forks that share pages, and the tree does the rest. What follows from them is decided
here, as transformers' `generate` does it, so that the same beams come out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from sapwood.base.errors import GenerationFailed, RequestError
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import MAX_LOGPROBS, SamplingParams
from sapwood.base.wire import Delta

Early = bool | Literal["never"]

MOST_BEAMS = MAX_LOGPROBS // 2


@dataclass(frozen=True, kw_only=True)
class BeamParams:
    """Attributes:
    width: Beams that are followed.
    max_tokens: Most tokens of an output.
    length_penalty: A beam's score is its log probability divided by its length to this power: above 0 long ones gain.
    early_stopping: True: it is over with as many finished beams as are followed. False: when the best beam could, as long as it is, not
        become better than the worst of these. "never": when it could not, as long as it may become.
    """

    width: int = 4
    max_tokens: int = 64
    length_penalty: float = 1.0
    early_stopping: Early = False

    def check(self) -> BeamParams:
        """Itself. Raises RequestError."""
        if not 1 <= self.width <= MOST_BEAMS:
            raise RequestError(f"beam_width must be in [1, {MOST_BEAMS}], got {self.width}.", param="beam_width")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {self.max_tokens}.", param="max_tokens")
        if not -10.0 <= self.length_penalty <= 10.0:
            raise RequestError(
                f"length_penalty must be in [-10, 10], got {self.length_penalty}.", param="length_penalty"
            )
        if self.early_stopping not in (True, False, "never"):
            raise RequestError('early_stopping must be true, false or "never".', param="early_stopping")
        return self


def likely(delta: Delta | None) -> TokenLogprobs:
    """The likeliest tokens that a request of one token tells of. Raises GenerationFailed where it has none."""
    if delta is None or not delta.logprobs:
        raise GenerationFailed("a beam's request ended without a token")
    return delta.logprobs[0]


@dataclass(frozen=True, slots=True)
class Beam:
    """Tokens of an output, an end of sequence among them, and their log probability. `score` is what it is ranked by, `finish` why it ended;
    "" while it may go on."""

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0
    score: float = 0.0
    finish: str = ""


class BeamSearch:
    """One prompt's: while there are `running` beams, `take` what the engine says of each. `found` has the best first."""

    def __init__(self, params: BeamParams, ends: Collection[int]) -> None:
        self.params, self._ends = params, frozenset(ends)
        self.running: list[Beam] = [Beam()]
        self.found: list[Beam] = []
        # So many that as many as are followed are left when each end of sequence is among them.
        self._keep = min(max(2, 1 + len(self._ends)) * params.width, MAX_LOGPROBS)

    @property
    def step(self) -> SamplingParams:
        """What a beam's request asks for."""
        return SamplingParams(max_tokens=1, temperature=0, logprobs=self._keep, ignore_eos=True, whole_prompt=True)

    def take(self, likely: Sequence[TokenLogprobs]) -> None:
        """The likeliest tokens behind each running beam, in their order."""
        params, length = self.params, len(self.running[0].tokens) + 1
        forks = [
            (beam.logprob + logprob, place, token)
            for place, (beam, told) in enumerate(zip(self.running, likely, strict=True))
            for token, logprob in zip(told.top_ids, told.top_logprobs, strict=True)
        ]
        forks.sort(key=lambda fork: (-fork[0], fork[1]))
        going: list[Beam] = []
        weight = float(length**params.length_penalty)
        for rank, (logprob, place, token) in enumerate(forks[: self._keep]):
            finish = "stop" if token in self._ends else "length" if length == params.max_tokens else ""
            beam = Beam((*self.running[place].tokens, token), logprob, logprob / weight, finish)
            if not finish:
                going.append(beam)
            elif rank < params.width:
                self.found.append(beam)
        self.found = sorted(self.found, key=lambda beam: -beam.score)[: params.width]
        self.running = [] if self._over(going, length) else going[: params.width]

    def _over(self, going: Sequence[Beam], length: int) -> bool:
        params = self.params
        if not going:
            return True
        if len(self.found) < params.width:
            return False
        if params.early_stopping is True:
            return True
        longest = params.max_tokens if params.early_stopping == "never" and params.length_penalty > 0 else length
        best = going[0].logprob / float(longest**params.length_penalty)
        return best <= self.found[-1].score
