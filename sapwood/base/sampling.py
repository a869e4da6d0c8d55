"""What a caller may ask of one generation, checked once where it enters."""

from __future__ import annotations

from typing import Any

import msgspec

from sapwood.base.errors import RequestError
from sapwood.base.grammar import Grammar, Thinking
from sapwood.base.insight import INSIGHTS, PRECISIONS, Insight, Precision
from sapwood.base.tokens import check_ids

MAX_LOGPROBS = 64
MAX_STOPS = 64
MAX_FORBIDDEN = 1024
MOST_THOUGHTS = 2**31 - 1  # tokens
SEED_LIMIT = 2**63

_ONE_TOKEN = 1e-9  # the likeliest of fewer tokens than a thousand million has at least this probability


class Timestamps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How marks of time stand in a transcript, as Whisper was trained to write it (`ApplyTimestampRules` of openai-whisper).

    Attributes:
        first: The mark of 0.00 s; all tokens from here on are marks, each later than the one before.
        text_end: The end of sequence; tokens below it are text.
        most_begin: The transcript begins with one of so many marks, the earliest.
    """

    first: int
    text_end: int
    most_begin: int = 51


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One generation's settings.

    Probabilities come from the logits in this order: logit bias, penalties, `min_tokens`, temperature, top-k, top-p,
    min-p. Reported logprobs are those of the raw logits; with `timestamps` of what may be drawn, as Whisper's transcripts are judged by.

    Attributes:
        max_tokens: Most tokens to generate; None means as many as the context holds.
        min_tokens: Ends of sequence are impossible before this many tokens.
        temperature: 0 is greedy.
        top_k: Keep the k likeliest tokens; 0 or -1 keeps all.
        top_p: Keep the likeliest tokens that together reach this probability; in [0, 1]. 0 is greedy.
        min_p: Drop tokens less likely than this share of the likeliest; in [0, 1].
        repetition_penalty: Divides (or multiplies, below zero) logits of tokens seen in prompt or output; in [0.01, 100].
        presence_penalty: Subtracted once from logits of tokens in the output; in [-2, 2].
        frequency_penalty: Subtracted per occurrence in the output; in [-2, 2].
        logit_bias: Token id to a value in [-100, 100] that is added to its logit. It makes no token impossible.
        allowed_token_ids: The only tokens that may be drawn, ends of sequence included; None is all.
        forbidden: Runs of tokens that the output must not hold: the last token of each is impossible behind the others. A
            request ends with an error where these two and the grammar leave no token at all.
        seed: Same request, same seed, same tokens, whatever else is in the batch: to the last bit by the CPU kernels,
            elsewhere but for rounding. None draws one.
        stop: Strings that end the output and are not part of it; names of special tokens in them are found though
            these tokens are left out of the text.
        stop_regex: Expressions that do the same as soon as a match is complete; see `sapwood.text.patterns`.
        stop_token_ids: Tokens that end the output.
        include_stop: Keep in the text what ended the output: the whole stop string, what matched an expression, or the token as it is shown.
        ignore_eos: Do not end at the model's end-of-sequence tokens.
        skip_special_tokens: Leave special tokens out of the text.
        n: How many independent outputs; they share the prompt's pages.
        logprobs: How many alternatives to report per output token; 0 reports the chosen token only.
        prompt_logprobs: The same for every prompt token but the first.
        logprob_token_ids: Tokens that are reported too, wherever one of these two reports.
        grammar: What the text has to match; None leaves it free.
        thinking: How long the model may think; None as long as it likes.
        timestamps: Marks of time stand in the output by these rules.
        return_hidden_states: Tell the hidden states after the last norm of every position that is computed: those of the prompt and of all
            output tokens but the last.
        return_logits: Tell the logits over the whole vocabulary of these positions.
        return_routed_experts: Tell which experts were chosen at these positions.
        return_dtype: How exactly the first two are told; float16 takes half of the bytes.
        prediction: Tokens that the output will probably be like. Where the engine follows predictions, those that come true cost
            no step of their own; nothing else depends on them.
        whole_prompt: Every token of the prompt is computed, where the engine leaves some out of others' (speculative prefill).
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] | None = None
    forbidden: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_regex: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    grammar: Grammar | None = None
    thinking: Thinking | None = None
    timestamps: Timestamps | None = None
    return_hidden_states: bool = False
    return_logits: bool = False
    return_routed_experts: bool = False
    return_dtype: Precision = "float32"
    prediction: tuple[int, ...] = ()
    whole_prompt: bool = False

    @property
    def insights(self) -> tuple[Insight, ...]:
        """What is to be told of every position."""
        return tuple(name for name in INSIGHTS if getattr(self, f"return_{name}"))

    @property
    def details(self) -> bool:
        """Whether something is told of each token beside which it is."""
        return self.logprobs is not None or bool(self.insights)

    @property
    def restricted(self) -> bool:
        """Whether what may be drawn depends on what has been."""
        return any(one is not None for one in (self.grammar, self.thinking, self.timestamps)) or self.selective

    @property
    def selective(self) -> bool:
        """Whether some tokens may never be drawn, or not behind others."""
        return self.allowed_token_ids is not None or bool(self.forbidden)

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5 or self.top_p < _ONE_TOKEN

    @property
    def penalised(self) -> bool:
        return bool(self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty)

    def check(self, *, vocab_size: int, max_n: int = 128) -> SamplingParams:
        """Return self, or raise RequestError naming the first field that is out of range."""
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_p", self.top_p, 0.0, 1.0)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)  # beyond, logits could overflow
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("top_k", self.top_k, -1, 2**31 - 1)
        _within("n", self.n, 1, max_n)
        _within("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 1, 2**31 - 1)
            if self.min_tokens > self.max_tokens:
                raise RequestError(
                    f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens}).",
                    param="min_tokens",
                )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _within(name, value, 0, min(MAX_LOGPROBS, vocab_size))
        if self.return_dtype not in PRECISIONS:
            raise RequestError(
                f"return_dtype must be one of {', '.join(PRECISIONS)}, got {self.return_dtype!r}.", param="return_dtype"
            )
        if self.seed is not None:
            _within("seed", self.seed, -SEED_LIMIT, 2 * SEED_LIMIT - 1)
        check_ids(self.logit_bias, vocab_size=vocab_size, param="logit_bias")
        for bias in self.logit_bias.values():
            _within("logit_bias", bias, -100.0, 100.0)
        check_ids(self.stop_token_ids, vocab_size=vocab_size, param="stop_token_ids")
        self._check_selection(vocab_size)
        self._check_thinking(vocab_size)
        self._check_timestamps(vocab_size)
        check_ids(self.prediction, vocab_size=vocab_size, param="prediction")
        check_ids(self.logprob_token_ids, vocab_size=vocab_size, param="logprob_token_ids")
        if len(self.logprob_token_ids) > MAX_LOGPROBS:
            raise RequestError(f"logprob_token_ids takes at most {MAX_LOGPROBS} entries.", param="logprob_token_ids")
        if self.logprob_token_ids and self.logprobs is None and self.prompt_logprobs is None:
            raise RequestError("logprob_token_ids needs logprobs.", param="logprob_token_ids")
        for name in ("stop", "stop_regex", "stop_token_ids"):
            if len(getattr(self, name)) > MAX_STOPS:
                raise RequestError(f"{name} takes at most {MAX_STOPS} entries.", param=name)
        for name in ("stop", "stop_regex"):
            if "" in getattr(self, name):
                raise RequestError(f"{name} must not hold an empty string.", param=name)
        return self

    def _check_selection(self, vocab_size: int) -> None:
        if len(self.forbidden) > MAX_FORBIDDEN:
            raise RequestError(f"forbidden takes at most {MAX_FORBIDDEN} entries.", param="forbidden")
        for run in self.forbidden:
            if not run:
                raise RequestError("forbidden must not hold a run of no tokens.", param="forbidden")
            check_ids(run, vocab_size=vocab_size, param="forbidden")
        if self.allowed_token_ids is None:
            return
        if len(self.allowed_token_ids) > vocab_size:
            raise RequestError(f"allowed_token_ids takes at most {vocab_size} entries.", param="allowed_token_ids")
        check_ids(self.allowed_token_ids, vocab_size=vocab_size, param="allowed_token_ids")
        if not set(self.allowed_token_ids) - {run[0] for run in self.forbidden if len(run) == 1}:
            what = "is empty" if not self.allowed_token_ids else "holds only tokens that forbidden rules out"
            raise RequestError(f"allowed_token_ids {what}: there is nothing to choose.", param="allowed_token_ids")

    def _check_thinking(self, vocab_size: int) -> None:
        if self.thinking is None:
            return
        _within("thinking.budget", self.thinking.budget, 0, MOST_THOUGHTS)
        check_ids(self.thinking.leave, vocab_size=vocab_size, param="thinking.leave")
        if not (self.thinking.begin and self.thinking.end and self.thinking.leave):
            raise RequestError("thinking needs begin, end and leave, none of them empty.", param="thinking")

    def _check_timestamps(self, vocab_size: int) -> None:
        if self.timestamps is None:
            return
        check_ids((self.timestamps.first, self.timestamps.text_end), vocab_size=vocab_size, param="timestamps")
        _within("timestamps.text_end", self.timestamps.text_end, 1, self.timestamps.first - 1)
        _within("timestamps.most_begin", self.timestamps.most_begin, 1, vocab_size)
        if self.grammar is not None or self.thinking is not None:
            raise RequestError(
                "timestamps cannot be used beside grammar or thinking: each says what may follow.", param="timestamps"
            )


def _within(name: str, value: Any, low: float, high: float) -> None:
    if not low <= value <= high:  # as is a NaN
        raise RequestError(f"{name} must be in [{low}, {high}], got {value}.", param=name)
