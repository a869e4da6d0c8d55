"""Chat templates: Jinja as transformers sets it up, in a sandbox that also watches the clock.

A template comes with the model and is as trustworthy as its source. It cannot reach Python's attributes, files or
imports, and one that loops for too long is stopped.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sapwood.base.errors import ConfigError, ModelError, RequestError
from sapwood.hub.files import read_json
from sapwood.text.order import is_ordered, ordered, text_of
from sapwood.text.parsers.plain import in_words

MAX_SECONDS = 5.0
MAX_CHARS = 1 << 27

Message = dict[str, Any]


class ChatTemplate:
    """A model's template, or its named ones: `tool_use` serves requests with tools if it exists, else `default`.

    `constants` are the special tokens that templates refer to by name, such as bos_token. Raises ModelError for a
    template that is not valid Jinja. May be used by many threads at once.
    """

    def __init__(self, sources: Mapping[str, str], constants: Mapping[str, str]) -> None:
        assert sources
        self.sources = dict(sources)
        self._constants = dict(constants)
        self._compiled = {name: _compile(source) for name, source in sources.items()}
        self._default = "default" if "default" in sources else next(iter(sources))
        self._tried: dict[int, _Habits] = {}

    @property
    def source(self) -> str:
        """The one that serves requests without tools."""
        return self.sources[self._default]

    @property
    def takes_tools(self) -> bool:
        """Whether requests with tools get a template that prints them."""
        code = self._compiled[self._default]
        return "tool_use" in self._compiled or code.takes_tools or code.takes_system_tools

    @property
    def takes_calls(self) -> bool:
        """The same of calls and their results in messages, which come with tools or without."""
        return "tool_calls" in self.sources[self._default]

    def render(
        self,
        messages: list[Message],
        /,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt. Raises RequestError, with the template's own words where it refuses the messages.

        Tools, calls and results that the template has no place for are told in words. `continue_final` leaves out what the
        template puts behind the text of the last message. `extra` are more arguments of the template.
        """
        messages = [_checked(message, index) for index, message in enumerate(messages)]
        if (tools and not self.takes_tools) or not (tools or self.takes_calls):
            messages, tools = in_words(messages, tools), None
        code = self._compiled["tool_use" if tools and "tool_use" in self._compiled else self._default]
        if tools and code.takes_system_tools and not code.takes_tools:
            messages = _with_system_tools(messages, tools)
        if continue_final:
            messages = _marked(messages)
        variables: dict[str, Any] = {
            "messages": [_message(message, self._habits(code).parts) for message in self._ordered(messages, code)],
            "tools": tools or None,
            "add_generation_prompt": add_generation_prompt,
        }
        extra = dict(extra or {})
        if taken := sorted((variables.keys() | self._constants.keys()) & extra.keys()):
            raise RequestError(f"{taken[0]} cannot be set as a template argument.", param="chat_template_kwargs")
        text = self._run(code, variables | extra)
        return _cut(text, messages) if continue_final else text

    def _run(self, code: _Code, variables: dict[str, Any]) -> str:
        sandbox = _Sandbox()
        template = jinja2.Template.from_code(sandbox, code.code, dict(sandbox.globals))
        context = template.new_context(self._constants | {"documents": None} | variables)
        try:
            return _join(template.root_render_func(context))
        except SecurityError as error:
            raise RequestError(f"The model's chat template was stopped: {error}", param="messages") from error
        except Exception as error:  # a template can raise whatever an expression can
            reason = str(error) or type(error).__name__
            raise RequestError(
                f"The model's chat template refuses these messages: {reason}", param="messages"
            ) from error

    def _ordered(self, messages: list[Message], code: _Code) -> list[Message]:
        """The messages with roles and in an order that the template takes."""
        if not code.knows_developer:
            messages = [
                {**message, "role": "system"} if message["role"] == "developer" else message for message in messages
            ]
        if is_ordered(messages) or self._habits(code).systems:
            return messages
        return ordered(messages)

    def _habits(self, code: _Code) -> _Habits:
        """What the template does with messages, found out by trying when it is first asked."""
        known = self._tried.get(id(code))
        if known is None:
            known = self._tried[id(code)] = _Habits(
                frozenset(role for role, before in _BEFORE.items() if self._takes_parts(code, role, before)),
                self._takes_systems(code),
            )
        return known

    def _takes_parts(self, code: _Code, role: str, before: list[Message]) -> bool:
        """Whether it prints the texts of a message's parts, rather than the list that they are."""
        said: Message = {
            "role": role,
            "content": [{"type": "text", "text": _MARKS[0]}, {"type": "text", "text": _MARKS[1]}],
        }
        said |= {"tool_call_id": "callid001", "name": "f"} if role == "tool" else {}
        text = self._try(code, [*before, said])
        return text is not None and all(mark in text for mark in _MARKS) and not _AS_LIST.search(text)

    def _takes_systems(self, code: _Code) -> bool:
        """Whether it prints a system message that is not the first."""
        first, later = ({"role": "system", "content": mark} for mark in _MARKS)
        answered = {"role": "assistant", "content": "y"}
        text = self._try(code, [first, _ASKED, answered, later, _ASKED])
        return text is not None and all(mark in text for mark in _MARKS)

    def _try(self, code: _Code, messages: list[Message]) -> str | None:
        variables = {"messages": messages, "tools": None, "add_generation_prompt": False}
        try:
            return self._run(code, variables)
        except RequestError:
            return None


def find_templates(directory: Path | None, config: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a model by name: from files of their own, else from tokenizer_config.json's `config`."""
    found: dict[str, str] = {}
    if directory is not None:
        for path in directory.glob("additional_chat_templates/*.jinja"):
            found[path.stem] = _read(path)
        if (path := directory / "chat_template.jinja").exists():
            return found | {"default": _read(path)}
        if (path := directory / "chat_template.json").exists():
            return found | _named(read_json(path).get("chat_template"), path)
    return found | _named(config.get("chat_template"), "tokenizer_config.json")


def given_template(text: str) -> dict[str, str]:
    """The template that the user gave instead of the model's: Jinja itself, or the path of a file. Raises ConfigError."""
    if "{" in text or "\n" in text:
        return {"default": text}
    path = Path(text).expanduser()
    try:
        return {"default": _read(path)}
    except ModelError as error:
        raise ConfigError(f"--chat-template {text} is neither a Jinja text nor a file that can be read.") from error


def _named(value: Any, where: object) -> dict[str, str]:
    match value:
        case None:
            return {}
        case str():
            return {"default": value}
        case list() if all(isinstance(entry, dict) for entry in value):
            named = {entry.get("name"): entry.get("template") for entry in value}
        case dict():
            named = value
        case _:
            named = {None: None}
    if not all(isinstance(item, str) for pair in named.items() for item in pair):
        raise ModelError(f"chat_template in {where} must be a string or a list of name and template.")
    return named


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error


def _checked(message: Any, index: int) -> Message:
    """A message that has a role, and content that is text or parts, of text or for media."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"messages[{index}] must be an object with a role.", param="messages")
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        if not (isinstance(part, dict) and (part in _PLACES or _is_text(part))):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RequestError(
                f"messages[{index}].content has a part of type {kind!r}; this model takes text only.", param="messages"
            )
    if content is not None and not isinstance(content, str | list):
        raise RequestError(f"messages[{index}].content must be a string or a list of parts.", param="messages")
    return message


_PLACES: tuple[Message, ...] = ({"type": "image"}, {"type": "audio"})
"""Parts that are a place for one."""


def _is_text(part: Message) -> bool:
    return part.get("type") == "text" and isinstance(part.get("text"), str)


def _message(message: Message, takes_parts: Container[str]) -> Message:
    """One message as templates expect it: text where they want text, thoughts under each name that templates use, tool
    arguments as objects, and no list of calls where there are none."""
    changed: Message = {}
    content = message.get("content")
    if content is None:
        changed["content"] = ""
    elif isinstance(content, list) and message["role"] not in takes_parts:
        if (place := next((part for part in content if part in _PLACES), None)) is not None:
            raise RequestError(
                f"the model's chat template takes no {place['type']} in messages of the role {message['role']!r}: send them as a user's.",
                param="messages",
            )
        changed["content"] = text_of(message)
    thoughts = next((said for name in _THOUGHTS if isinstance(said := message.get(name), str)), None)
    if thoughts is not None:
        changed |= {name: thoughts for name in ("reasoning_content", "thinking") if message.get(name) is None}
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        changed["tool_calls"] = [_tool_call(call) for call in calls]
    elif "tool_calls" in message:
        message = {name: value for name, value in message.items() if name != "tool_calls"}
    return message | changed


def _marked(messages: list[Message]) -> list[Message]:
    """The messages with a mark behind the text of the last. The space at its end tells whether the template strips."""
    if not messages:
        return messages
    *others, last = messages
    content = last.get("content")
    if isinstance(content, list) and content and _is_text(content[-1]):
        final = {**content[-1], "text": content[-1]["text"] + _END}
        return [*others, {**last, "content": [*content[:-1], final]}]
    if isinstance(content, list):
        return [*others, {**last, "content": [*content, {"type": "text", "text": _END}]}]
    return [*others, {**last, "content": (content or "") + _END}]


def _cut(text: str, marked: list[Message]) -> str:
    """What stands before the mark. Where the template strips texts this one ends stripped, but a blank one has no end:
    what would be stripped there are the template's own words."""
    at = text.rfind(_END.strip())
    if at < 0:
        raise RequestError(
            "continue_final_message needs a last message whose text the chat template prints.",
            param="continue_final_message",
        )
    whole = text.startswith(_END, at) or not text_of(marked[-1]).removesuffix(_END).strip()
    return text[:at] if whole else text[:at].rstrip()


def _tool_call(call: Any) -> Any:
    """A call whose arguments, a JSON text on the wire, are the object that templates print."""
    try:
        text = call["function"].get("arguments")
        arguments = json.loads(text) if text else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return call
    return call | {"function": call["function"] | {"arguments": arguments}} if isinstance(arguments, dict) else call


class _Code(NamedTuple):
    """A template ready to run, and what it does: print the tools, print those that stand in a system message (Phi-4), have
    words for a developer."""

    code: Any
    takes_tools: bool
    takes_system_tools: bool
    knows_developer: bool


class _Habits(NamedTuple):
    """The roles whose messages may have parts; and whether system messages may stand anywhere."""

    parts: frozenset[str]
    systems: bool


_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_END = "\ue000end-of-what-is-continued\ue001 "
_MARKS = ("\ue000one\ue001", "\ue000two\ue001")
_AS_LIST = re.compile(r"""[{,]\s*['"]type['"]\s*:""")  # of Python or JSON
_ASKED: Message = {"role": "user", "content": "x"}
_CALL = {"id": "callid001", "type": "function", "function": {"name": "f", "arguments": {}}}
_BEFORE: Mapping[str, list[Message]] = {
    "user": [],
    "system": [],
    "developer": [],
    "assistant": [_ASKED],
    "tool": [_ASKED, {"role": "assistant", "content": "", "tool_calls": [_CALL]}],
}
"""What stands before a message of each role when a template is tried with it."""


def _compile(source: str) -> _Code:
    sandbox = _Sandbox()
    try:
        tree = sandbox.parse(source)
        takes_tools = any(name.name == "tools" and name.ctx == "load" for name in tree.find_all(nodes.Name))
        knows_developer = any(const.value == "developer" for const in tree.find_all(nodes.Const))
        return _Code(sandbox.compile(source), takes_tools, _takes_system_tools(tree), knows_developer)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"The chat template is not valid Jinja (line {error.lineno}: {error.message}): give another with --chat-template."
        ) from error


def _takes_system_tools(tree: nodes.Template) -> bool:
    named = any(node.attr == "tools" for node in tree.find_all(nodes.Getattr))
    items = (node.arg for node in tree.find_all(nodes.Getitem))
    return named or any(isinstance(arg, nodes.Const) and arg.value == "tools" for arg in items)


def _with_system_tools(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    text = json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)
    if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
        return [{**messages[0], "tools": text}, *messages[1:]]
    return [{"role": "system", "content": "", "tools": text}, *messages]


def _join(chunks: Iterable[str]) -> str:
    texts, length = [], 0
    for chunk in chunks:
        texts.append(chunk)
        length += len(chunk)
        _bound(length)
    return "".join(texts)


def _bound(length: int) -> None:
    if length > MAX_CHARS:
        raise SecurityError(f"it makes a text of more than {MAX_CHARS} characters.")


class _Generation(Extension):
    """`{% generation %}`, which marks what the assistant says for training; here its body counts, not the mark."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering. Every call and every turn of a loop looks at the clock."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], cache_size=0)
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise, "strftime_now": _now}
        self.filters["tojson"] = _tojson
        self._deadline = time.monotonic() + MAX_SECONDS

    def check(self) -> None:
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it ran for more than {MAX_SECONDS:g} seconds.")

    def metered(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.check()
            yield item

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.check()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, count in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and isinstance(count, int):
                    _bound(len(text) * count)
        elif isinstance(right, int | float) and abs(right) > 1024:
            raise SecurityError("it raises to a power above 1024.")
        return super().call_binop(context, operator, left, right)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Wrap what loops walk through, just before Jinja turns the tree into code."""
        for loop in source.find_all(nodes.For):
            meter = nodes.EnvironmentAttribute("metered", lineno=loop.lineno, environment=self)
            loop.iter = nodes.Call(meter, [loop.iter], [], None, None, lineno=loop.lineno, environment=self)
        return super()._generate(source, *args, **kwargs)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escaping of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
