"""A tokenizer out of a GGUF file, as the two files that a Hugging Face directory would have.

GGUF states the vocabulary and names the rest. Byte-level BPE ("gpt2") brings its merges, and `tokenizer.ggml.pre`
names the rule that cuts text into words first. The SentencePiece kind ("llama") brings a score per token: of all
neighbours that can merge, the pair whose union scores best does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sapwood.base.errors import ModelError

CONTROL, USER_DEFINED, NORMAL = 3, 4, 1
SPACE = "\u2581"  # how SentencePiece writes a space

# Words as Llama 3 and its many followers cut them; they differ in how many digits stay together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}|"
    r" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def convert(metadata: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    """Return the tokenizer and what tokenizer_config.json would say. Raises ModelError."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"The file's tokenizer is of kind {kind!r}, which cannot be read: give --tokenizer.")
    tokens = list(metadata["tokenizer.ggml.tokens"])
    types = [int(type_) for type_ in _column(metadata, "token_type", [NORMAL] * len(tokens))]
    pre = str(metadata.get("tokenizer.ggml.pre", "default"))
    if kind == "gpt2":
        tokenizer = _byte_level(tokens, metadata["tokenizer.ggml.merges"], pre)
    else:
        tokenizer = _sentence_piece(tokens, metadata)
    for special in (True, False):
        wanted = CONTROL if special else USER_DEFINED
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == wanted
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    config = _config(metadata, tokens)
    _frame(
        tokenizer,
        begin=config["bos_token"] if _flag(metadata, "add_bos_token", kind == "llama" or pre in _BEGIN) else None,
        end=config["eos_token"] if _flag(metadata, "add_eos_token", False) else None,
    )
    return tokenizer, config


def templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The file's chat templates by name."""
    key = "tokenizer.chat_template"
    named = {name.removeprefix(f"{key}."): metadata[name] for name in metadata if name.startswith(f"{key}.")}
    return named | ({"default": metadata[key]} if key in metadata else {})


def _byte_level(tokens: Sequence[str], merges: Sequence[str], pre: str) -> Tokenizer:
    if pre not in _CUTS:
        known = ", ".join(sorted(_CUTS))
        raise ModelError(
            f"The file's tokenizer cuts words by the rule {pre!r}, which is not known ({known}): give --tokenizer."
        )
    vocabulary = {token: id for id, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre in _IGNORE_MERGES))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _CUTS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _regex(pattern: str) -> Callable[[], Any]:
    return lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_LLAMA3 = _regex(_WORDS.format(digits="{1,3}"))
_CUTS: Mapping[str, Callable[[], Any]] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "smollm": _single_digits,
    "starcoder": _single_digits,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "qwen2": _regex(_WORDS.format(digits="")),
    "tekken": _regex(_TEKKEN),
}
_BEGIN = frozenset({"llama3", "llama-v3", "llama-bpe", "tekken"})  # start with the bos token unless told otherwise
_IGNORE_MERGES = _BEGIN  # a word that is a token is taken whole


def _sentence_piece(tokens: Sequence[str], metadata: Mapping[str, Any]) -> Tokenizer:
    unknown = _named(metadata, "unknown", tokens) or tokens[0]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    merges = _merges(vocabulary, tokens, _column(metadata, "scores"))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = _flag(metadata, "add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    return tokenizer


def _merges(vocabulary: Mapping[str, int], tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best token first; BPE ranks merges by their place in this list.

    Tokens of any kind are made so. Those of one score are runs of a character, of which the longest is to be found.
    """
    best_first = sorted(range(len(tokens)), key=lambda id: (-scores[id], -len(tokens[id])))
    splits = ((tokens[id][:cut], tokens[id][cut:]) for id in best_first for cut in range(len(tokens[id]) - 1, 0, -1))
    return [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]


def _frame(tokenizer: Tokenizer, *, begin: str | None, end: str | None) -> None:
    """Have the tokenizer put `begin` before and `end` after a text."""
    framed = [token for token in (begin, "$A", end) if token]
    if len(framed) > 1:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(framed),
            pair=None,
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (begin, end) if token],
        )


def _config(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    config: dict[str, Any] = {f"{name}_token": _named(metadata, key, tokens) for name, key in keys.items()}
    if found := templates(metadata):
        config["chat_template"] = [{"name": name, "template": text} for name, text in found.items()]
    return config


def _named(metadata: Mapping[str, Any], key: str, tokens: Sequence[str]) -> str | None:
    """A special token. Files write -1 or a number beyond the vocabulary for one that there is not."""
    id = metadata.get(f"tokenizer.ggml.{key}_token_id")
    return tokens[id] if isinstance(id, int) and 0 <= id < len(tokens) else None


def _column(metadata: Mapping[str, Any], name: str, default: Sequence[Any] | None = None) -> Sequence[Any]:
    """One value of each token."""
    tokens = metadata["tokenizer.ggml.tokens"]
    values: Sequence[Any] | None = metadata.get(f"tokenizer.ggml.{name}", default)
    if values is None or len(values) != len(tokens):
        have = "is missing" if values is None else f"has {len(values)} entries for {len(tokens)} tokens"
        raise ModelError(f"The file's tokenizer is damaged: tokenizer.ggml.{name} {have}. Give --tokenizer.")
    return values


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if value not in (True, False):
        raise ModelError(f"The file's tokenizer.ggml.{name} must be true or false, got {value!r}: give --tokenizer.")
    return bool(value)
