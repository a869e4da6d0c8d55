"""Fields that other servers understand and this one does not: each route refuses them by name if they ask for something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from sapwood.server.errors import unsupported

_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
_CHAT = "it is for /v1/chat/completions"


class Refused(NamedTuple):
    """`instead` is what to do; `harmless` are the values that ask for what is done anyhow."""

    instead: str = ""
    harmless: tuple[Any, ...] = _NOTHING


Table = dict[str, Refused]

_EVERYWHERE: Table = dict.fromkeys(
    ("input_embeds", "lora_path", "custom_logit_processor", "session_params", "return_entropy",
     "return_sampling_mask", "require_reasoning"),
    Refused(),
)  # fmt: skip

_OPENAI: Table = {
    **_EVERYWHERE,
    **dict.fromkeys(("return_hidden_states", "return_routed_experts"), Refused("ask /generate")),
    "lora_path": Refused("give the adapter's name as model"),
    **dict.fromkeys(
        ("audio", "web_search_options", "documents", "chat_template", "prompt_embeds", "truncate_prompt_tokens",
         "use_beam_search", "early_stopping", "repetition_detection", "custom_params", "logits_processors",
         "suffix", "return_tokens_as_token_ids"),
        Refused(),
    ),
    "kv_transfer_params": Refused("it is for servers with --role"),
    "functions": Refused("give tools"),
    "function_call": Refused("give tool_choice", (*_NOTHING, "none", "auto")),
    "modalities": Refused(harmless=(*_NOTHING, ["text"])),
    "length_penalty": Refused(harmless=(*_NOTHING, 1)),
    "beam_width": Refused(harmless=(*_NOTHING, 1)),
    "include_reasoning": Refused(harmless=(None, True)),
    "grammar": Refused("give structured_outputs"),
    "input_ids": Refused("give the token ids as prompt to /v1/completions"),
    "max_new_tokens": Refused("give max_tokens", (None,)),
    "sampling_seed": Refused("give seed", (None,)),
    "top_logprobs_num": Refused("give logprobs"),
    "return_logprob": Refused("give logprobs"),
}  # fmt: skip

CHAT: Table = {
    **_OPENAI,
    "use_beam_search": Refused("it is for /v1/completions"),
    "echo": Refused("it is for /v1/completions"),
}
_BEAMS = ("use_beam_search", "early_stopping", "length_penalty", "beam_width")
COMPLETIONS: Table = {
    **{name: refused for name, refused in _OPENAI.items() if name not in _BEAMS},
    "tools": Refused(_CHAT),
    "tool_choice": Refused(_CHAT, (*_NOTHING, "none", "auto")),
    "thinking_budget": Refused(_CHAT, (None,)),
    "thinking_token_budget": Refused(_CHAT, (None,)),
    "max_thinking_tokens": Refused(_CHAT, (None,)),
}
RESPONSES: Table = {
    **_OPENAI,
    **dict.fromkeys(("context_management", "moderation", "echo", "prompt_logprobs", "return_token_ids"), Refused()),
    **dict.fromkeys(("n", "best_of"), Refused("send a request for each answer", (None, 1))),
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), Refused("give max_output_tokens", (None,))),
    "messages": Refused("give input", (None,)),
    "prompt": Refused("give instructions and input", (None,)),
    "conversation": Refused("give previous_response_id, or all items as input", (None,)),
    "response_format": Refused("give text.format", (None, {"type": "text"})),
    "reasoning_effort": Refused("give reasoning.effort", (None,)),
    "logprobs": Refused('give include: ["message.output_text.logprobs"]', (None, False)),
}  # fmt: skip
GENERATE: Table = {
    **{name: refused for name, refused in _EVERYWHERE.items() if name != "lora_path"},
    **dict.fromkeys(
        ("video_data", "lora_id", "bootstrap_host", "bootstrap_port", "bootstrap_room",
         "return_prompt_token_ids", "background"),
        Refused(),
    ),
    "max_tokens": Refused("give sampling_params.max_new_tokens", (None,)),
    "max_thinking_tokens": Refused(_CHAT, (None,)),
}  # fmt: skip
NATIVE_SAMPLING: Table = {"custom_params": Refused()}


def refuse(table: Table, given: Mapping[str, Any]) -> None:
    """Raise RequestError for the first field of a body that the table refuses. Values may be `msgspec.Raw`."""
    for name, value in given.items():
        refused = table.get(name)
        if refused is None:
            continue
        if isinstance(value, msgspec.Raw):
            value = msgspec.json.decode(value)
        if not any(_same(value, harmless) for harmless in refused.harmless):
            raise unsupported(name, refused.instead)


def _same(value: Any, harmless: Any) -> bool:
    """Equal as JSON is: true is not 1."""
    return isinstance(value, bool) == isinstance(harmless, bool) and bool(value == harmless)
