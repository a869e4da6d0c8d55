"""What is guessed by something smaller than the model: the options."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.config.option import option


@dataclass(frozen=True, kw_only=True)
class SpeculationConfig:
    """Drafts: tokens that are fed before they are drawn; and prompts of which a smaller model has read more than is computed."""

    speculation: str | None = option(
        None,
        "what drafts: off, auto, or some of prediction, tree, ngram, draft and mtp, the first one preferred",
        "--speculation",
        "--speculative-algorithm",
        metavar="NAMES",
    )
    speculative_model: str | None = option(
        None,
        "a smaller model with the same tokenizer, which drafts too",
        "--speculative-model",
        "--speculative-draft-model-path",
        metavar="MODEL",
        derived=False,
    )
    num_speculative_tokens: int | None = option(
        None,
        "most drafts that a request feeds in a step",
        "--num-speculative-tokens",
        "--speculative-num-draft-tokens",
        metavar="N",
    )
    prompt_lookup_min: int = option(
        3,
        "tokens in common with an earlier place of the text, at least, for what follows there to be drafted",
        "--prompt-lookup-min",
        metavar="N",
    )
    speculative_config: str | None = option(
        None,
        'the same as JSON, such as \'{"method": "ngram", "num_speculative_tokens": 8}\'',
        "--speculative-config",
        metavar="JSON",
        derived=False,
    )
    speculative_prefill: float | None = option(
        None,
        "of long prompts compute only this share of the tokens, chosen by a smaller model: faster, and other answers",
        "--speculative-prefill",
        metavar="KEEP",
        derived=False,
    )
    speculative_prefill_model: str | None = option(
        None,
        "the smaller model that chooses, with the same tokenizer; else the one of --speculative-model",
        "--speculative-prefill-model",
        metavar="MODEL",
        derived=False,
    )
