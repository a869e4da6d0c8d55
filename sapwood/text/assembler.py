"""One output from an engine's news: its text, tokens and logprobs, and where it ends. All faces of the engine use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sapwood.base.insight import Insight, Told
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Delta
from sapwood.text.detokenizer import Detokenizer
from sapwood.text.patterns import Patterns
from sapwood.text.stops import Stop, StopFinder, Strings


class Piece(NamedTuple):
    """What some news add to an output: text that is certain, tokens, and their logprobs where they were asked for."""

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]


class Assembler:
    """One output as it grows. Incomplete characters, and text that may be the beginning of a stop, are held back.

    An output ends at the first of these, and in no other way:

    - A token that is one of its ends: an end of sequence, or one of `stop_token_ids`. With `include_stop` it has its
      text as any other token; without, none.
    - A stop string is complete in the text as it is shown. One that holds the name of a special token which is left
      out of the text is looked for where such names are written out: `<|im_end|>` ends an output at that token,
      `<|im_end|>\\n` only if a line break follows it. The stop string is cut off, or shown in full with `include_stop`.
      `stop_regex` are expressions that end it in the same way, in the text as it is shown.
      A stop counts only when it lies wholly behind the first `min_tokens - 1` tokens. Of both in one token this one wins.
    - There can be no further token: `max_tokens`, the context's end, or a grammar behind which nothing may follow.

    Tokens behind the one that completes a stop string are no part of the output, however many came with it. An output
    continues its prompt, so a space at its start stays.

    Attributes:
        finish: Why the output has ended ('stop' or 'length'), None while it grows.
        stop: The stop string or the token that ended it, if one did.
        num_cached_tokens: How many tokens of the prompt were found in the cache.
        num_left_out: How many of them were not computed at all.
        prompt_logprobs: Those of the prompt's tokens but the first, where they were asked for.
        insights: What was asked for of each position that was computed, as it came.
    """

    __slots__ = (
        "_detokenizer", "_finder", "_immune", "_include", "_names", "finish", "insights", "num_cached_tokens", "num_left_out", "prompt_logprobs",
        "stop",
    )  # fmt: skip

    def __init__(self, pieces: Mapping[int, bytes], hidden: Mapping[int, str], params: SamplingParams) -> None:
        """`pieces` are the tokens' bytes, `hidden` the names of those that are left out of the text."""
        self._detokenizer = Detokenizer(pieces, skip=hidden.keys())
        self._finder = _finder(params, hidden.values())
        self._names = hidden
        self._include = params.include_stop
        self._immune = max(params.min_tokens - 1, 0)  # tokens to come in which stop strings do not count
        self.finish: str | None = None
        self.stop: str | int | None = None
        self.num_cached_tokens = self.num_left_out = 0
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.insights: list[dict[Insight, Told]] = []

    @property
    def hurried(self) -> bool:
        """Whether its text may end the output, so that news should be taken as they come."""
        return self._finder is not None

    def take(self, delta: Delta) -> Piece:
        """Add news that tell of no failure. Once `finish` is set there must be no more of them."""
        if delta.cached_tokens >= 0:
            self.num_cached_tokens = delta.cached_tokens
        self.num_left_out += delta.left_out
        if delta.prompt_logprobs:
            self.prompt_logprobs += delta.prompt_logprobs
        if delta.insights:
            self.insights.append(delta.insights)
        tokens, logprobs = delta.tokens, delta.logprobs or []
        if self._finder is None:
            text = self._detokenizer.push(self._written(delta))
            if delta.finish is not None:
                text += self._detokenizer.finish()
                self.finish, self.stop = delta.finish, delta.stop
            return Piece(text, tokens, logprobs)
        text, count = self._search(self._finder, self._written(delta))
        if delta.finish is not None and self._finder.found is None:
            text += self._finder.push(self._detokenizer.finish()) + self._finder.finish()
            count = len(tokens)
            self.finish, self.stop = delta.finish, delta.stop
        if self._finder.found is not None:
            self.finish, self.stop = "stop", self._finder.found
        return Piece(text, tokens[:count], logprobs[:count])

    def _written(self, delta: Delta) -> list[int]:
        """Its tokens that have text."""
        return delta.tokens if delta.stop is None or self._include else delta.tokens[:-1]

    def _search(self, finder: StopFinder, tokens: list[int]) -> tuple[str, int]:
        """The text that tokens make certain, and how many of them there are up to a stop."""
        text, count = "", 0
        for token in tokens:
            count += 1
            new = self._detokenizer.push((token,))
            if self._immune:
                self._immune -= 1
                text += new
                continue
            text += finder.push(new, self._names.get(token, ""))
            if finder.found is not None:
                break
        return text, count


def _finder(params: SamplingParams, hidden: Iterable[str]) -> StopFinder | None:
    """What looks for the request's stops, None if it has none. `hidden` are names of tokens that have no text."""
    if not (params.stop or params.stop_regex):
        return None
    names = tuple(hidden)
    named = [stop for stop in params.stop if any(name in stop for name in names)]
    plain: list[Stop] = [Strings([stop for stop in params.stop if stop not in named])]
    plain += [Patterns(params.stop_regex)] if params.stop_regex else []
    return StopFinder(plain, [Strings(named)] if named else [], include=params.include_stop)
