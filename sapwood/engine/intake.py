"""From a front's message to a request of the scheduler."""

from __future__ import annotations

import random
from collections.abc import Sequence
from time import monotonic

import numpy as np

from sapwood.base.errors import RequestError
from sapwood.base.handoff import Offer
from sapwood.base.media import Kind, check_kinds, check_spans
from sapwood.base.request import Request, namespace_of
from sapwood.base.task import Embed, Generate, Task, tag_of
from sapwood.base.tokens import check_ids
from sapwood.base.wire import Delta, Submit

SEED_MASK = 2**63 - 1


class Intake:
    """Numbers arrivals, draws seeds, sets limits. `longest` is the most tokens that one sequence may have; without
    `grammars` requests that are restricted are refused, without `adapters` those that have one, and those of other than the `tasks`,
    or with media of other than the kinds of `media`, in any case."""

    def __init__(
        self,
        *,
        longest: int,
        vocab_size: int,
        seed: int,
        grammars: bool = False,
        adapters: bool = False,
        tasks: Sequence[type[Task]] = (Generate, Embed),
        media: Sequence[Kind] = (),
    ) -> None:
        self.longest, self.tasks, self.media = longest, tuple(tasks), tuple(media)
        self.grammars, self.adapters = grammars, adapters
        self.vocab_size = vocab_size
        self._random = random.Random(seed)
        self._arrivals = 0

    def request(self, message: Submit) -> Request | Delta:
        """The request, or its end with an error. Fronts check first; this keeps a faulty one from harming others."""
        tokens = np.array(message.tokens, dtype=np.int64)
        task = message.task
        if not isinstance(task, self.tasks):
            return _refused(message, f"this model cannot {tag_of(type(task))}")
        # What ends with its first token may be as long as a sequence: that token is never computed on.
        most = self.longest - 1 if isinstance(task, Generate) else self.longest
        if not 0 < len(tokens) <= most:
            return _refused(message, f"a prompt must have 1 to {most} tokens, this one has {len(tokens)}")
        try:
            check_ids((int(tokens.min()), int(tokens.max())), vocab_size=self.vocab_size, param="prompt")
            check_kinds(message.media, self.media)
            check_spans(message.media, message.spans, prompt_len=len(tokens))
        except (RequestError, ValueError) as error:
            return _refused(message, str(error))
        params = message.params
        if params.restricted and not self.grammars:
            return _refused(
                message,
                "this engine masks no tokens: it has no grammars, thinking budgets, allowed_token_ids and bad_words",
            )
        if message.adapter is not None and not self.adapters:
            return _refused(message, "this engine has no adapters: start it with --enable-lora")
        self._arrivals += 1
        room = most + 1 - len(tokens)
        seed = self._random.getrandbits(63) if params.seed is None else params.seed & SEED_MASK
        generates = isinstance(task, Generate) and not isinstance(message.handoff, Offer)
        return Request(
            message.id,
            tokens.astype(np.int32),
            params,
            limit=len(tokens) + (min(params.max_tokens or room, room) if generates else 1),
            stop_ids=tuple(id for id in message.stop_ids if 0 <= id < self.vocab_size),
            seed=seed,
            namespace=namespace_of("" if message.adapter is None else message.adapter.id, message.salt),
            adapter=message.adapter,
            priority=message.priority,
            tenant=message.tenant,
            weight=message.weight,
            arrival=self._arrivals,
            arrived=monotonic(),
            task=task,
            media=message.media,
            spans=message.spans,
            handoff=message.handoff,
        )


def _refused(message: Submit, why: str) -> Delta:
    return Delta(message.id, [], finish="error", error=why)
