"""The messages between a front and its engine: typed msgpack, never pickle.

Front to engine: Submit, or Lists and Sharing for it, Abort, Control. Engine to front: Ready, Failed, Deltas, Stats, Beat, Reply.
Requests are numbered by the front that sends them. Tokens cross once per step for all requests together.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sapwood.base.adapter import Adapter
from sapwood.base.drafts import Drafted
from sapwood.base.handoff import Door, Handoff
from sapwood.base.histogram import Histogram
from sapwood.base.insight import Insight, Told
from sapwood.base.media import Kind, Media, Span
from sapwood.base.news import FinishReason, Landing, News
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import GENERATE, Pooling, Task
from sapwood.base.weights import FIRST

_SHORT = 64  # entries that cost no more than saying that they are the same


class Submit(msgspec.Struct, frozen=True, tag="submit", array_like=True):
    """One generation (n is 1 here; the front expands n > 1).

    `stop_ids` are all tokens that end it, end-of-sequence tokens included. `salt` and `adapter` separate the prefix
    cache; higher `priority` runs first under the priority policy; tenants take turns under the fair one, each as its `weight` says.
    A `task` that is no generation ends with one token, which means nothing. `media` are what its encoder is fed with, `spans` where in
    the prompt they stand; what has no span is seen by every token. `handoff` says of another engine that reads the prompt, or will go on with it.
    """

    id: int
    tokens: list[int]
    params: SamplingParams
    stop_ids: list[int] = []
    salt: str = ""
    adapter: Adapter | None = None
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0
    task: Task = GENERATE
    media: list[Media] = []
    spans: list[Span] = []
    handoff: Handoff | None = None


class Lists(msgspec.Struct, frozen=True, tag="lists", array_like=True):
    """What may be large in the `Sharing` messages that follow, until the next of these: one body may ask for a thousand outputs that
    have it in common. All but the media are of the parameters."""

    logit_bias: dict[int, float]
    allowed_token_ids: tuple[int, ...] | None
    forbidden: tuple[tuple[int, ...], ...]
    prediction: tuple[int, ...]
    media: list[Media] = []

    @staticmethod
    def of(message: Submit) -> Lists | None:
        """Those of a generation, None where they are short."""
        params, media = message.params, message.media
        found = Lists(params.logit_bias.copy(), params.allowed_token_ids, params.forbidden, params.prediction, media)
        size = len(found.logit_bias) + len(found.allowed_token_ids or ()) + len(found.forbidden) + len(found.prediction)
        return found if media or size > _SHORT else None


class Sharing(msgspec.Struct, frozen=True, tag="sharing", array_like=True):
    """A generation without what the last `Lists` said."""

    submit: Submit

    @staticmethod
    def of(message: Submit) -> Sharing:
        params = msgspec.structs.replace(
            message.params, logit_bias={}, allowed_token_ids=None, forbidden=(), prediction=()
        )
        return Sharing(msgspec.structs.replace(message, params=params, media=[]))

    def whole(self, lists: Lists) -> Submit:
        large = msgspec.structs.asdict(lists)
        media = large.pop("media")
        return msgspec.structs.replace(
            self.submit, params=msgspec.structs.replace(self.submit.params, **large), media=media
        )


class Abort(msgspec.Struct, frozen=True, tag="abort", array_like=True):
    ids: list[int]


class Control(msgspec.Struct, frozen=True, tag="control", array_like=True):
    """A question or command outside the loop's business: 'status', 'flush_cache', 'flush_encoders', 'check', 'live', 'tree', 'pause', 'hold',
    'continue', 'retract', 'explain', 'adapter', 'forget_adapter', 'check_weights', 'update_weights', 'sleep', 'wake_up',
    'join_group', 'leave_group', 'receive_weights'; `about` are the arguments of
    those that take some."""

    id: int
    what: str
    about: dict[str, Any] = {}


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """News of one request.

    `tokens` are new output tokens (for a stop by token, the stop token is the last of them). `cached_tokens` counts
    prompt tokens found in the cache, `waited` the seconds until the request was first planned; both are sent with the first
    news only (-1 after that), and so is `left_out`, how many prompt tokens were not computed at all. `finish` is set on the last news; `stop` is the stop token that ended it, `error` the text of an
    error that ended it, `drafted` how its drafts fared, by drafter, `vector` what a task yields that wants one, as float32,
    `weight_version` that of the weights that computed its end. `insights` is what is known of positions of which
    nothing was told before.
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
    drafted: dict[str, Drafted] = {}
    vector: bytes = b""
    weight_version: str = FIRST
    left_out: int = 0
    insights: dict[Insight, Told] = {}


class Deltas(msgspec.Struct, frozen=True, tag="deltas", array_like=True):
    """News of one step. Tokens of requests that just go on are in `ids` and `tokens` (parallel; a request with several
    tokens stands there as often, in their order); the rest in `deltas`."""

    ids: list[int]
    tokens: list[int]
    deltas: list[Delta]


def worded(news: News, weight_version: str = FIRST) -> Delta:
    """News of a request, as a message says it."""
    return Delta(
        news.id,
        news.tokens,
        finish=news.finish,
        cached_tokens=news.cached_tokens,
        stop=news.stop,
        error=news.error,
        logprobs=news.logprobs,
        prompt_logprobs=news.prompt_logprobs,
        waited=news.waited,
        drafted=news.drafted,
        vector=b"" if news.vector is None else news.vector.tobytes(),
        weight_version=FIRST if news.finish is None else weight_version,
        left_out=news.left_out,
        insights={name: Told.of(array) for name, array in news.insights.items()},
    )


def worded_step(landing: Landing, weight_version: str = FIRST) -> Deltas:
    """A step's news, as a message says them; weights of that version have computed it."""
    return Deltas(landing.ids, landing.tokens, [worded(news, weight_version) for news in landing.news])


class Reading(msgspec.Struct, frozen=True):
    """How a model's encoder is fed: inputs of a `kind` of at most `longest` positions. A prompt is such an input, if it reads tokens, and
    `starts` are what the decoder begins with."""

    kind: Kind
    longest: int
    starts: list[int] = []


class Facts(msgspec.Struct, frozen=True):
    """What a front has to know of the running engine. `eos_ids` come from the tokenizer, which the front has. `tasks` are the tags
    of those that the model can do, `classifier` what its classifier wants, if it has one, `pooling` what a vector is made by of a model that does not say.
    A vector has `vector_size` numbers. `media` are the kinds that the model has an encoder for, and `reading` says how an encoder is fed
    whose model writes of what it has read. Requests may have adapters of up to `max_lora_rank` ranks; None: of none.
    `door` is where prompts are handed over, `insights` are what can be told of each position, and how many numbers each is. Images are scaled down
    to `max_pixels`; None: as the model's settings have it."""

    max_model_len: int
    vocab_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    page_size: int
    num_pages: list[int]
    device: str
    dtype: str
    attention_backend: str
    seconds_to_ready: dict[str, float]
    decisions: list[str]
    tasks: tuple[str, ...] = ("generate", "embed")
    classifier: Pooling | None = None
    pooling: Pooling = "last"
    vector_size: int = 0
    media: tuple[Kind, ...] = ()
    reading: Reading | None = None
    eos_ids: list[int] = []
    max_lora_rank: int | None = None
    door: Door | None = None
    insights: dict[Insight, int] = {}
    max_pixels: int | None = None

    def begun(self, num_tokens: int) -> int:
        """How many positions of a sequence a prompt of so many tokens takes: none of its own where an encoder reads it."""
        return len(self.reading.starts) if self.reading is not None and self.reading.kind == "tokens" else num_tokens


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    facts: Facts


class Failed(msgspec.Struct, frozen=True, tag="failed", array_like=True):
    """The engine cannot start (`user_error`: because of what the user asked) or has to stop."""

    message: str
    user_error: bool


class Beat(msgspec.Struct, frozen=True, tag="beat", array_like=True):
    """The engine's process runs, and its loop has been at one thing for `seconds`, after so many steps since start. Sent about
    every second while that is more than one: between shorter steps other news tell as much."""

    steps: int
    seconds: float


class Stats(msgspec.Struct, frozen=True, tag="stats", array_like=True):
    """Gauges and counters since start, sent about every second while there is work, and when it is done.

    Counters: steps, prompt_tokens (fed), cached_tokens, output_tokens, preemptions, evicted_pages, finished, errors,
    repaired_pages, copied_pages. Gauges: running, waiting; pages per KV group as [total, free, evictable];
    paused: nothing is planned.
    Seconds: host_seconds (planning and committing), wait_seconds (waiting for the device). Histograms by name and kind, ""
    where there are no kinds: step_seconds, step_tokens, step_host_seconds.
    """

    running: int
    waiting: int
    counters: dict[str, int]
    seconds: dict[str, float]
    pages: list[list[int]]
    histograms: dict[str, dict[str, Histogram]] = {}
    paused: bool = False


class Reply(msgspec.Struct, frozen=True, tag="reply", array_like=True):
    """The answer to a Control, with the same id."""

    id: int
    body: dict[str, Any]


ToEngine = Submit | Abort | Control
FromEngine = Ready | Failed | Deltas | Stats | Beat | Reply
