"""Broken things, each in one place: who reads such a thing is tried with all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

# Templates that are no Jinja, and what is said of them when they are loaded.
NO_JINJA: dict[str, tuple[str, str]] = {
    "a loop over nothing": ("fine\n{% for %}", "line 2"),
    "a block without end": ("{% if x %}", "line 1"),
    "an expression without end": ("{{ x", "line 1"),
    "an end without beginning": ("{% endfor %}", "line 1"),
    "an unknown statement": ("{% nonsense %}", "nonsense"),
    "an unknown filter": ("{{ x | nonsense }}", "nonsense"),
    "an unknown test": ("{{ x is nonsense }}", "nonsense"),
}
# Templates that load, and refuse or fail with every conversation.
REFUSING: dict[str, tuple[str, str]] = {
    "its own words": ("{{ raise_exception('only in pairs, please') }}", "only in pairs, please"),
    "what is not there": ("{{ nothing.at.all }}", "undefined"),
    "a function that is not there": ("{{ nothing() }}", "undefined"),
    "a message that is not there": ("{{ messages[7].content }}", "undefined|no element"),
    "text and a number": ("{{ messages[0].content + 1 }}", "str"),
    "a division by zero": ("{{ 1 / 0 }}", "division"),
    "a macro without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "another template": ("{% extends 'other' %}", "loader"),
    "a text that is too large": ("{{ 'x' * 999999999 }}", "stopped"),
    "a list that is too large": ("{{ [0] * 2 ** 40 }}", "stopped"),
    "a range that is too large": ("{% for i in range(10 ** 9) %}{% endfor %}", "stopped|refuses"),
}

# Bodies of requests that are not JSON, or not what a request is.
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "cut off": b"{",
    "a list": b"[]",
    "null": b"null",
    "a word": b"hello",
    "something behind it": b'{"prompt": "x"} trailing',
    "NaN": b'{"prompt": "x", "temperature": NaN}',
    "an infinity": b'{"prompt": "x", "temperature": Infinity}',
    "a number beyond floats": b'{"prompt": "x", "temperature": 1e999}',
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": json.dumps({"prompt": "x"}).encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"prompt": "x"}',
    "a zero byte in a text": b'{"prompt": "a\x00b"}',
    "a zero byte behind it": b'{"prompt": "x"}\x00',
    "half a character": b'{"prompt": "\\ud800"}',
    "a name twice": b'{"prompt": "x", "prompt": "y"}',
    "a name twice inside": b'{"prompt": "x", "logit_bias": {"5": 1, "5": 2}}',
    "deep": b"[" * 100_000,
    "deep in a field that nobody knows": b'{"prompt": "x", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep in a field": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}

# What is wrong with a tokenizer.json: how a good one becomes it, and what is said.
Damage = Callable[[dict[str, Any]], Any]
TOKENIZERS: dict[str, tuple[Damage, str]] = {
    "no decoder": (lambda good: good | {"decoder": None}, "no decoder"),
    "another decoder": (
        lambda good: (
            good | {"decoder": {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}}
        ),
        "CTC",
    ),
    "no model": (lambda good: {name: part for name, part in good.items() if name != "model"}, r"tokenizer\.json"),
    "a model of another kind": (lambda good: good | {"model": {"type": "Quantum"}}, r"tokenizer\.json"),
    "merges of what there is not": (
        lambda good: good | {"model": good["model"] | {"merges": [["no", "thing"]]}},
        r"tokenizer\.json",
    ),
    "no object": (lambda good: [], r"tokenizer\.json"),
}

# Columns and flags of a GGUF file's tokenizer, by the ends of their keys, and what is said of them.
METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "too few types": ({"token_type": [1] * 3}, "token_type has 3 entries for"),
    "too many types": ({"token_type": [1] * 999}, "token_type has 999 entries for"),
    "too few scores": ({"scores": [0.0]}, "scores has 1 entries for"),
    "no scores": ({"scores": None}, "scores is missing"),
    "a flag that is a word": ({"add_bos_token": "false"}, "add_bos_token must be true or false, got 'false'"),
    "a flag that is a number": ({"add_space_prefix": 2}, "add_space_prefix must be true or false, got 2"),
}
