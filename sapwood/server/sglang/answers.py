"""What /generate answers: a choice as it is so far, whole or what is new of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

from msgspec import UNSET, UnsetType

from sapwood.base.insight import join
from sapwood.base.plan import TokenLogprobs
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News, Prompt
from sapwood.server.sglang.asking import Wish
from sapwood.server.sglang.protocol import Array, Finish, Generated, LogprobEntry, Meta
from sapwood.server.sse import Script, frame


class Answers:
    """Words choices, finished or not. `wishes` say what the answers to each prompt hold."""

    def __init__(self, front: Front, wishes: Mapping[Prompt, Wish], *, with_text: bool, begin: float) -> None:
        self._front = front
        self._wishes = wishes
        self._with_text = with_text
        self._begin = begin

    def __call__(self, choice: Choice, *, index: int | UnsetType = UNSET, news: News | None = None) -> Generated:
        """All of it so far, or of its text, tokens and logprobs only what `news` add."""
        wish, new = self._wishes[choice.prompt], choice if news is None else news
        meta = Meta(
            id=wish.id,
            finish_reason=_finish(choice),
            prompt_tokens=len(choice.prompt.tokens),
            completion_tokens=len(choice.tokens),
            cached_tokens=choice.num_cached_tokens,
            left_out_tokens=choice.num_left_out or UNSET,
            weight_version=choice.weight_version if choice.finish is not None else self._front.engine.weight_version,
        )
        if choice.finish is not None:
            meta.e2e_latency = perf_counter() - self._begin
            meta.count([choice])
            for name, told in join(choice.insights).items():
                setattr(meta, name, Array.of(told))
            if wish.end_check is not None:
                meta.schema_check = self._front.checked(wish.end_check(choice.text))
        if wish.logprobs is not None:
            self._add_output(meta, new.logprobs, wish)
            if news is None or news.first:
                self._add_prompt(meta, choice, wish)
        return Generated(text=new.text, output_ids=new.tokens, meta_info=meta, index=index)

    def _add_output(self, meta: Meta, logprobs: Sequence[TokenLogprobs], wish: Wish) -> None:
        meta.output_token_logprobs = [self._entry(one.token, one.logprob) for one in logprobs]
        if wish.named:
            meta.output_token_ids_logprobs = [self._named(one, wish) for one in logprobs]
        if wish.logprobs:
            meta.output_top_logprobs = [self._top(one) for one in logprobs]

    def _add_prompt(self, meta: Meta, choice: Choice, wish: Wish) -> None:
        """The first position has no logprob, whichever it is: SGLang's clients count on that."""
        tokens, start = choice.prompt.tokens, wish.start
        asked = choice.prompt_logprobs[start:] if start >= 0 else []
        first: list[LogprobEntry] = [self._entry(tokens[start], None)] if start >= 0 else []
        meta.input_token_logprobs = first + [self._entry(one.token, one.logprob) for one in asked]
        none: list[list[LogprobEntry] | None] = [None] if start >= 0 else []
        if wish.named:
            meta.input_token_ids_logprobs = none + [self._named(one, wish) for one in asked]
        if wish.logprobs:
            meta.input_top_logprobs = none + [self._top(one) for one in asked]

    def _entry(self, id: int, logprob: float | None) -> LogprobEntry:
        return logprob, id, self._front.text.token_text(id) if self._with_text else None

    def _named(self, one: TokenLogprobs, wish: Wish) -> list[LogprobEntry]:
        return [self._entry(id, value) for id, value in zip(wish.named, one.named_logprobs, strict=True)]

    def _top(self, one: TokenLogprobs) -> list[LogprobEntry]:
        return [self._entry(id, value) for id, value in zip(one.top_ids, one.top_logprobs, strict=True)]


def _finish(choice: Choice) -> Finish | None:
    match choice.finish:
        case None:
            return None
        case "length":
            return Finish("length", length=len(choice.tokens))
        case "abort":
            return Finish("abort", message="The request was aborted.")
        case kind:
            return Finish(kind, matched=choice.stop)


class Telling(Script):
    """Each event holds the whole text so far, as SGLang's do, or with `increments` what is new. `alone`: there is one choice."""

    def __init__(self, answers: Answers, *, alone: bool, increments: bool) -> None:
        self._answers, self._alone, self._increments = answers, alone, increments

    def frames(self, news: list[News]) -> bytes:
        return b"".join(frame(self._told(one)) for one in news)

    def _told(self, news: News) -> Generated:
        index = UNSET if self._alone else news.choice.index
        return self._answers(news.choice, index=index, news=news if self._increments else None)
