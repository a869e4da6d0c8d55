"""What `LLM` and `AsyncLLM` give: texts, whole and as they grow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from numpy.typing import NDArray

from sapwood.base.errors import GenerationFailed
from sapwood.base.plan import TokenLogprobs
from sapwood.engine.beams import Beam
from sapwood.grammar.schema import Finding
from sapwood.text.parsers import Said


@dataclass(eq=False)
class Output:
    """One generated text.

    `finish_reason` is 'stop', 'length', or 'error'; `stop` is the stop string or token that ended it. An output that
    failed has an `error`, which says why, and neither text nor tokens. `said` is what a chat's text says, taken apart:
    text, thoughts and calls of tools. `schema_check` is what was found of the complete text where its grammar leaves keywords
    of a schema out, None where nothing was left out.

    `hidden_states`, `logits` (float32 or float16) and `routed_experts` (int32) are arrays [positions, numbers of each], where they were asked for: of all positions of the
    prompt, and of those of the output's tokens but the last. What is at a position is what the next token was chosen by. Experts are those of each layer that
    has some, best first, one layer behind the other.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop: str | int | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    said: Said | None = None
    error: str | None = None
    schema_check: Finding | None = None
    score: float | None = None
    hidden_states: NDArray[Any] | None = None
    logits: NDArray[Any] | None = None
    routed_experts: NDArray[Any] | None = None

    @staticmethod
    def of_beam(beam: Beam, text: str) -> Output:
        """A finished beam."""
        return Output(
            text, list(beam.tokens), beam.finish, beam.tokens[-1] if beam.finish == "stop" else None, score=beam.score
        )


@dataclass(eq=False)
class Generation:
    """What came of one prompt: `params.n` outputs. `text`, `token_ids` and `finish_reason` are the first one's. `left_out_tokens` of the
    prompt were not computed (`--speculative-prefill`)."""

    prompt_token_ids: list[int]
    outputs: list[Output]
    cached_tokens: int = 0
    left_out_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.outputs[0].finish_reason

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def error(self) -> str | None:
        """Why the first of its outputs that failed did, None if none has."""
        return next((output.error for output in self.outputs if output.error is not None), None)

    def raise_for_error(self) -> Self:
        """Itself, if no output has failed; else raises GenerationFailed."""
        if self.error is not None:
            raise GenerationFailed(self.error)
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A piece of a streamed output. `cached_tokens` counts from the first chunk on; the last one has the `stop`, and may have
    a `schema_check`."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    logprobs: list[TokenLogprobs] | None = None
    stop: str | int | None = None
    schema_check: Finding | None = None
