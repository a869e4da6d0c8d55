"""What the scheduler has to say of its requests: values, which the engine words as messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sapwood.base.drafts import Drafted
from sapwood.base.insight import Columns
from sapwood.base.plan import Floats, TokenLogprobs

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True, eq=False)
class News:
    """News of one request.

    `tokens` are new output tokens. `cached_tokens` and `waited`, as requests have them, come with the first of
    them, -1 after that, and so does `left_out`, the prompt's tokens that were not computed. `finish` is set on the last news; `stop` is the stop token that ended it, `error` the text of an error
    that did, `drafted` how drafts fared, by drafter, `vector` what a task yields that wants one, `insights`
    what is known of positions of which nothing was told before.
    """

    id: int
    tokens: list[int]
    finish: FinishReason | None = None
    cached_tokens: int = -1
    stop: int | None = None
    error: str | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    waited: float = -1.0
    drafted: dict[str, Drafted] = field(default_factory=dict)
    vector: Floats | None = None
    left_out: int = 0
    insights: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Landing:
    """What a step brought. Of requests that just go on, one pair of id and token for each token, in their order; of the
    others `news`."""

    ids: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    news: list[News] = field(default_factory=list)
