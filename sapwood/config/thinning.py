"""Speculative prefill: what has to be so that prompts can be thinned."""

from __future__ import annotations

from sapwood.arch.foreign import Foreign
from sapwood.arch.groups import kv_groups
from sapwood.arch.network import Network
from sapwood.arch.parts import Decoder
from sapwood.base.errors import ConfigError
from sapwood.base.kv import Heads, KVKind, Latent
from sapwood.config import stores
from sapwood.config.flags import flag_of
from sapwood.config.options import Config

_KEEP, _MODEL = "speculative_prefill", "speculative_prefill_model"


def thinned(config: Config) -> bool:
    """Whether some tokens may be turned by other positions than their places."""
    keep = config.speculation.speculative_prefill
    return keep is not None and keep < 1


def chooser_of(config: Config) -> str | None:
    """The smaller model that is to choose, None where nothing is left out. Raises ConfigError."""
    options, flag = config.speculation, flag_of(_KEEP)
    keep, model = options.speculative_prefill, options.speculative_prefill_model
    if keep is None:
        if model is not None:
            raise ConfigError(f"{flag_of(_MODEL)} chooses what {flag} leaves out: give both, or neither.")
        return None
    if not 0 < keep <= 1:
        raise ConfigError(f"{flag} must be in (0, 1], got {keep}.")
    if (model or options.speculative_model) is None:
        raise ConfigError(f"{flag} needs a smaller model that chooses: give {flag_of(_MODEL)} MODEL.")
    if stores.places(config.stores) or config.stores.role is not None:
        raise ConfigError(
            f"{flag} does not go with stores of KV, nor with --role: what is computed of a thinned prompt is nobody else's, and they would "
            "keep it, or hand it on. Leave out one of the two."
        )
    return model or options.speculative_model


def told(config: Config) -> tuple[tuple[str, str, str], ...]:
    """What is decided, as a field, its value and the reason. Raises ConfigError."""
    model, keep = chooser_of(config), config.speculation.speculative_prefill
    if model is None or keep is None:
        return ()
    return (
        (_KEEP, f"{keep:.0%} of long prompts", f"as asked, chosen by {model}; answers are not those of whole prompts"),
    )


def check_thinned(target: Decoder | Foreign) -> None:
    """Raise ConfigError for a model to which a text with holes is not what it would be with other positions alone."""
    if (why := _why_not(target)) is not None:
        raise ConfigError(f"{flag_of(_KEEP)}: of prompts for {target.architecture} nothing can be left out: {why}.")


def check_chooser(model: Network, name: str) -> None:
    """Raise ConfigError for a smaller model whose attention cannot be looked at."""
    if not isinstance(model, Decoder):
        raise ConfigError(f"{flag_of(_MODEL)} {name} is no whole model, and has read no prompt. Take one that is.")
    kinds = [group.kind for group in kv_groups(model, page_size=1)]
    if model.encoder is not None or not all(isinstance(kind, Heads) and not kind.relative for kind in kinds):
        raise ConfigError(
            f"{flag_of(_MODEL)} {name}: what a token looks at is seen in layers of plain attention, and it has others. Take a llama, say."
        )


def _why_not(target: Decoder | Foreign) -> str | None:
    if isinstance(target, Decoder) and not target.writes:
        return "it only reads"
    if target.encoder is not None:
        return "what it sees or hears stands in them"
    found = (_of_kind(group.kind) for group in kv_groups(target, page_size=1))
    return next((why for why in found if why is not None), None)


def _of_kind(kind: KVKind) -> str | None:
    if isinstance(kind, Latent):
        return None
    if not isinstance(kind, Heads):
        return "it has layers other than attention, which take in every token"
    if kind.window is not None:
        return "it has layers that see a window, which is counted in tokens"
    if kind.slopes is not None or kind.relative:
        return "its scores depend on distances, which are counted in tokens"
    return None
