"""A model's text side."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import accumulate
from typing import Any, Literal

from sapwood.base.errors import RequestError
from sapwood.base.sampling import SamplingParams
from sapwood.config.options import ModelConfig
from sapwood.hub.cache import Cache
from sapwood.hub.files import ModelFiles
from sapwood.hub.sentence import Sentence, sentence_of
from sapwood.hub.speech import Speech, speech_of
from sapwood.text.assembler import Assembler
from sapwood.text.detokenizer import Detokenizer, Places
from sapwood.text.ends import bos_id, eos_ids
from sapwood.text.parsers import FORMATS, Dialect, Formats, Parser, Said, choose, gather
from sapwood.text.parsers.rules import Rules
from sapwood.text.pieces import Pieces
from sapwood.text.template import ChatTemplate, find_templates, given_template
from sapwood.text.tokenizer import Vocabulary, load_vocabulary, own_templates

Thoughts = Literal["none", "possible", "open", "over"]
"""Whether an output may begin with thoughts, continues some, or has none because the prompt has ended them."""


class TextModel:
    """Everything about a model that concerns text. Immutable to its users and safe to share between threads.

    Attributes:
        vocab_size: One more than the largest token id that has text.
        eos_ids: The tokens that end an output, ascending.
        bos_id: The token that begins a text, or None.
        special_ids: The tokens that `skip_special` leaves out.
        dialect: How it writes calls of tools and thoughts.
        sentence: How vectors are made of texts.
        speech: How it hears, if it transcribes.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        eos_ids: Iterable[int],
        bos_id: int | None,
        template: ChatTemplate | None,
        dialect: Dialect,
        sentence: Sentence = Sentence(),  # noqa: B008 (immutable)
        speech: Speech | None = None,
    ) -> None:
        self.sentence, self.speech = sentence, speech
        self._tokenizer = vocabulary.tokenizer
        self._template = template
        self._pieces = Pieces(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token.content: id for id, token in added.items() if token.special}
        self._names = {id: content for content, id in self._special.items()}
        self.special_ids = frozenset(self._names)
        self.dialect = dialect
        self._markers = {
            calls: self._named_in(Dialect(tools=dialect.tools if calls else None, reasoning=dialect.reasoning).markers)
            for calls in (False, True)
        }
        self.vocab_size = max(self._tokenizer.get_vocab_size(with_added_tokens=False), max(added, default=-1) + 1)
        self.eos_ids = tuple(sorted(set(eos_ids)))
        self.bos_id = bos_id
        self._prepend = [bos_id] if bos_id is not None and self._forgets_bos(vocabulary, bos_id) else []

    @classmethod
    def configured(cls, files: ModelFiles, options: ModelConfig, formats: Formats = FORMATS) -> TextModel:
        """`load`, as the options say."""
        return cls.load(
            files,
            tokenizer=options.tokenizer,
            chat_template=options.chat_template,
            tool_parser=options.tool_parser,
            reasoning_parser=options.reasoning_parser,
            formats=formats,
        )

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        *,
        tokenizer: str | None = None,
        chat_template: str | None = None,
        tool_parser: str = "auto",
        reasoning_parser: str = "auto",
        formats: Formats = FORMATS,
        cache: Cache | None = None,
    ) -> TextModel:
        """Load a model's tokenizer and template, or those that the user gives instead.

        `tokenizer` is a directory or a tokenizer.json, `chat_template` a Jinja file or text; for the parsers and
        `formats` see `parsers.choose`. Raises ModelError, or ConfigError for these four.
        """
        vocabulary = load_vocabulary(files, override=tokenizer, cache=cache)
        if chat_template is not None:
            sources = given_template(chat_template)
        else:
            sources = find_templates(vocabulary.directory, vocabulary.config)
            if not sources and tokenizer is not None:
                sources = own_templates(files)
        template = ChatTemplate(sources, vocabulary.named) if sources else None
        return cls(
            vocabulary,
            eos_ids=eos_ids(files, vocabulary, sources),
            bos_id=bos_id(files, vocabulary),
            template=template,
            dialect=_dialect(template, tool_parser, reasoning_parser, formats),
            sentence=sentence_of(files),
            speech=speech_of(files.config, files.generation_config),
        )

    @property
    def has_template(self) -> bool:
        return self._template is not None

    @property
    def templates(self) -> Mapping[str, str]:
        """The chat template's text, by name where there are several, else under "default"; nothing without one."""
        return {} if self._template is None else self._template.sources

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Tokens that have a meaning instead of a text, by name."""
        return self._special

    @property
    def template_source(self) -> str:
        """The chat template that serves most requests; "" without one."""
        return "" if self._template is None else self._template.source

    def tokenizer_json(self) -> str:
        """The tokenizer as tokenizer.json has it, with what its configuration adds."""
        return str(self._tokenizer.to_str())

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Tokens of a text. Raises RequestError for a text that is not valid Unicode.

        Names of special tokens inside the text become those tokens, as with transformers: a raw completion may write
        the chat format by hand. With `add_special` the text is framed as the model was trained (a bos token, say),
        even if it already begins so.
        """
        return self._encode(text, add_special, "prompt")

    def encode_pair(self, text: str, second: str | None = None, *, most: int | None = None) -> tuple[list[int], int]:
        """Tokens of a text that is to be read, or of two as one, framed as the model was trained, and where the second one's begin,
        0 where the model is not told. With `most` the end of the longer one is cut off. Raises RequestError as `encode` does."""
        texts = [text] if second is None else [text, second]
        for given in texts:
            _check_unicode(given, "prompt")
        one, *others = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        other = others[0] if others else None
        if most is not None:
            frame = self._tokenizer.num_special_tokens_to_add(other is not None) + len(self._prepend)
            first_most, second_most = _cut(len(one.ids), 0 if other is None else len(other.ids), max(most - frame, 0))
            one.truncate(first_most)
            if other is not None:
                other.truncate(second_most)
        whole = self._tokenizer.post_process(one, other, add_special_tokens=True)
        begins = whole.type_ids.index(1) + len(self._prepend) if 1 in whole.type_ids else 0
        return self._prepend + whole.ids, begins

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of tokens that are a whole text: the space that encoding put in front of it goes again.

        Ids outside the vocabulary have no text.
        """
        stream = Detokenizer(self._pieces, skip=self.special_ids if skip_special else ())
        text = stream.push(ids) + stream.finish()
        spaces = len(text) - len(text.lstrip(" "))
        return text[min(spaces, self._pieces.strip) :]

    def token_text(self, id: int) -> str:
        """A token's text by itself; U+FFFD stands for bytes that are only part of a character."""
        return self._pieces[id].decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """A token's bytes; those of an output's tokens join to its text."""
        return self._pieces[id]

    def prompt_places(self, text: str) -> Places:
        """Where the tokens of a prompt stand, this being its text as it was given or decoded."""
        return Places(self._pieces, skip=self.special_ids, text=text)

    def output_places(self, params: SamplingParams, *, begin: int) -> Places:
        """Where the tokens of an output stand whose text begins at `begin`."""
        return Places(self._pieces, skip=self.special_ids if params.skip_special_tokens else (), begin=begin)

    def render(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a conversation as the model was trained to read it, by its chat template. Raises RequestError.

        A template may add to it: SmolLM2's begins with a system message of its own when the first is not one.
        `continue_final` leaves the last message open, `template_kwargs` are more arguments of the template.
        """
        if self._template is None:
            raise RequestError(
                "This model has no chat template: use /v1/completions, or start with --chat-template.", param="messages"
            )
        return self._template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final=continue_final,
            extra=template_kwargs,
        )

    def assembler(self, params: SamplingParams, *, shown: Set[int] = frozenset()) -> Assembler:
        """Assembles one output to come, in which the special tokens `shown` have text in any case."""
        hidden = self._names if params.skip_special_tokens else {}
        if shown:
            hidden = {id: name for id, name in hidden.items() if id not in shown}
        return Assembler(self._pieces, hidden, params)

    def markers(self, *, calls: bool) -> frozenset[int]:
        """The special tokens with which the dialect marks thoughts, and calls if `calls`."""
        return self._markers[calls]

    def _named_in(self, markers: Iterable[str]) -> frozenset[int]:
        return frozenset(id for text, id in self._special.items() if any(text in marker for marker in markers))

    def rules(self) -> Rules:
        """Writes the grammars of calls and of what follows thoughts."""
        return Rules(self.dialect, self._special, self.eos_ids)

    def special_text(self, text: str, *, param: str = "prompt") -> list[int]:
        """Tokens of a text without a frame, names of special tokens in it being those. Errors name `param`."""
        return self._encode(text, False, param)

    def runs_of(self, words: Iterable[str], *, param: str = "bad_words") -> tuple[tuple[int, ...], ...]:
        """The tokens that words are at the beginning of a text and behind a space, for `SamplingParams.forbidden`.

        Raises RequestError for a word that is nothing but space.
        """
        runs: dict[tuple[int, ...], None] = {}
        for word in words:
            if not (bare := word.strip()):
                raise RequestError(f"{param} must not hold {word!r}: it has no letters.", param=param)
            runs |= dict.fromkeys(tuple(self._encode(space + bare, False, param)) for space in ("", " "))
        return tuple(run for run in runs if run)

    def thoughts(self, prompt: str, *, continues: bool = False) -> Thoughts:
        """Where an output stands that follows this prompt; it `continues` the last message, which may be thinking."""
        reasoning = self.dialect.reasoning
        if reasoning is None:
            return "none"
        end = prompt.rstrip()
        unfinished = continues and prompt.rfind(reasoning.begin) > prompt.rfind(reasoning.end)
        if end.endswith(reasoning.begin.strip()) or unfinished:
            return "open"
        return "over" if end.endswith(reasoning.end) and not reasoning.resume else "possible"

    def read(self, text: str, tools: Sequence[dict[str, Any]] | None = None, *, open: bool = False) -> Said:
        """What a whole output says: text, thoughts, and calls of `tools` (as the OpenAI API has them)."""
        functions = [tool.get("function", tool) for tool in tools or ()]
        schemas = {function.get("name"): function.get("parameters") for function in functions}
        parser = Parser(self.dialect, tools=schemas, thinking=open)
        return gather([*parser.push(text), *parser.finish()])

    def num_thought_tokens(self, tokens: Sequence[int], *, open: bool) -> int:
        """How many of an output's tokens are thoughts, with what stands around them."""
        reasoning = self.dialect.reasoning
        if reasoning is None:
            return 0
        pieces = [self._pieces[token] for token in tokens]
        ends = list(accumulate(map(len, pieces)))
        data, at, count, begun = b"".join(pieces), 0, 0, 0
        marks = {False: reasoning.begin.encode(), True: reasoning.end.encode()}
        while (found := data.find(marks[open], at)) >= 0:
            at = found + len(marks[open])
            if open:
                count += bisect_left(ends, at) + 1 - begun
            else:
                begun = bisect_right(ends, found)
            open = not open
        return count + len(pieces) - begun if open else count

    def _encode(self, text: str, add_special: bool, param: str) -> list[int]:
        _check_unicode(text, param)
        # The batch call leaves out offsets, which nobody asks for, and lets other threads run meanwhile.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special)
        return self._prepend + encoding.ids if add_special else encoding.ids

    def _forgets_bos(self, vocabulary: Vocabulary, bos_id: int) -> bool:
        """Whether tokenizer_config.json wants a bos token that tokenizer.json does not add."""
        return vocabulary.config.get("add_bos_token") is True and bos_id not in self._tokenizer.encode("").ids


def _check_unicode(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{param} is not valid Unicode: a lone surrogate {text[error.start]!r} at character {error.start}.",
            param=param,
        ) from error


def _cut(first: int, second: int, most: int) -> tuple[int, int]:
    """How many tokens of two texts are left of so many together, when the longer one gives way."""
    if first + second <= most:
        return first, second
    if first > second:
        other, one = _cut(second, first, most)
        return one, other
    first = min(first, most // 2)
    return first, most - first


def _dialect(template: ChatTemplate | None, tools: str, reasoning: str, formats: Formats) -> Dialect:
    """The template shows both; but of tools that it does not take it shows nothing, whatever else is in it."""
    shown = "" if template is None else "\n".join(template.sources.values())
    taught = template is not None and template.takes_tools
    return Dialect(
        tools=choose(shown if taught else "", tools=tools, formats=formats).tools,
        reasoning=choose(shown, reasoning=reasoning, formats=formats).reasoning,
    )
