"""A file of prompts: what is read, what is answered, and whose fault stays whose."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from sapwood.base.errors import RequestError, UserError
from sapwood.base.grammar import Grammar
from sapwood.base.sampling import SamplingParams
from sapwood.cli.run import Line, _answer, _answers, _output, _read_stdin, answered, read_lines, read_request
from sapwood.cli.sampling import add_sampling, params_of, sampling_fields
from sapwood.outputs import Chunk


def test_lines(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'{"prompt": "a", "custom_id": "x"}\n\n{oops\n[1]\n\xff\n{"prompt": "b"}')
    lines = list(read_lines(file))
    assert [line.index for line in lines] == [0, 1, 2, 3, 4]
    assert [bool(line.error) for line in lines] == [False, True, True, True, False]
    assert lines[0].custom_id == "x"
    assert lines[4].body == {"prompt": "b"}


@pytest.mark.parametrize(("told", "said"), [(b"caf\xc3\xa9", None), (b"caf\xe9", "stdin is not UTF-8")])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_prompt_on_stdin_is_utf8_in_every_locale(
    monkeypatch: pytest.MonkeyPatch, told: bytes, said: str | None, encoding: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(told), encoding))
    with nullcontext() if said is None else pytest.raises(UserError, match=said):
        assert _read_stdin() == "café"


def test_lines_on_stdin_end_with_line_feeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\r\nb\rc\n")))
    assert _read_stdin() == "a\nb\nc\n"


def test_what_was_answered_already(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    assert answered(file) == set()
    file.write_text(
        '{"index": 0, "text": "a"}\n{"index": 1, "error": "no"}\n{"index": 4, "response": {"status_code": 404}, "error": null}\n'
        '{"index": 5, "response": {"status_code": 200}, "error": null}\n{"index": 6, "response": null, "error": {}}\n'
        '{"index": 7, "text": "b"}\n{"index": 3, "te'
    )
    assert answered(file) == {0, 5, 7}
    file.write_bytes('{"index": 0, "text": "a\u2028b"}\n{"index": 3, "text": "caf\u00e9'.encode()[:-1])
    assert answered(file) == {0}, "a line may hold what else ends lines, and be cut off inside a character"


def test_resuming_after_a_cut_off_line_begins_a_new_one(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text('{"index": 0, "te')
    with _output(file, append=True) as out:
        out.write('{"index": 0, "text": "a"}\n')
    assert answered(file) == {0}


def test_requests() -> None:
    prompt, params = read_request(
        {"prompt": "hi", "max_tokens": 3, "stop": "x"}, {"temperature": 0.0, "max_tokens": 9}, None
    )
    assert prompt == "hi"
    assert params == SamplingParams(temperature=0.0, max_tokens=3, stop=("x",))
    prompt, params = read_request(
        {"prompt": [1, 2], "logit_bias": {"5": 1}, "custom_id": 1, "model": "m"}, {}, "be kind"
    )
    assert (prompt, params.logit_bias) == ([1, 2], {5: 1.0})


def test_what_an_answer_has_to_match(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))

    def grammar(*flags: str, **own: Any) -> Grammar | None:
        parser = argparse.ArgumentParser()
        add_sampling(parser)
        return params_of(own, **sampling_fields(parser.parse_args(flags))).grammar

    assert grammar() is None
    assert grammar("--json") == Grammar.json()
    assert grammar("--json-schema", json.dumps(schema)) == grammar("--json-schema", str(tmp_path / "schema.json"))
    assert grammar("--json-schema", str(tmp_path / "schema.json")) == Grammar.json(schema)
    assert grammar("--regex", "a+") == Grammar.regex("a+")
    assert grammar("--choice", "yes", "--choice", "no") == Grammar.choice(["yes", "no"])
    assert grammar("--json", guided_regex="a") == Grammar.regex("a"), "what a line says itself comes first"
    assert grammar(response_format={"type": "json_object"}) == Grammar.json()
    with pytest.raises(RequestError, match="exclude"):
        grammar(guided_regex="a", ebnf="root ::= [a]")
    with pytest.raises(UserError, match="No such file"):
        grammar("--json-schema", "nowhere.json")
    (tmp_path / "schema.json").write_bytes(b'{"title": "caf\xe9"}')
    with pytest.raises(UserError, match="not UTF-8"):
        grammar("--json-schema", str(tmp_path / "schema.json"))
    with pytest.raises(UserError, match="not JSON"):
        grammar("--json-schema", "{")


def test_the_system_message_is_for_conversations_without_one() -> None:
    user, system = {"role": "user", "content": "hi"}, {"role": "system", "content": "own"}
    assert read_request({"messages": [user]}, {}, "be kind")[0] == [{"role": "system", "content": "be kind"}, user]
    assert read_request({"messages": [system, user]}, {}, "be kind")[0] == [system, user]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": 3},
        {"prompt": [1, "a"]},
        {"prompt": [True]},
        {"prompt": []},
        {"messages": "hi"},
        {"messages": [1]},
        {"prompt": "a", "messages": []},
        {"prompt": "a", "temprature": 1},
        {"prompt": "a", "max_tokens": "many"},
    ],
)
def test_requests_that_cannot_be_served(body: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        read_request(body, {}, None)


class Echo:
    """Answers a prompt with itself, letter by letter; 'bad' is refused."""

    async def stream(self, prompt: str, params: SamplingParams) -> AsyncIterator[Chunk]:
        if prompt == "bad":
            raise RequestError("refused")
        for position, letter in enumerate(prompt):
            await asyncio.sleep(0)
            last = position == len(prompt) - 1
            yield Chunk(letter, [1], "stop" if last else None, prompt_tokens=5, cached_tokens=2)


def test_every_line_gets_its_own_answer_or_error() -> None:
    lines = [Line(0, {"prompt": "long one", "custom_id": "a"}), Line(1, {"prompt": "bad"}), Line(2, {}, "broken")]
    lines += [Line(index, {"prompt": f"p{index}"}) for index in range(3, 600)]

    async def collect() -> list[dict[str, Any]]:
        return [result async for result in _answers(lines, lambda line: _answer(Echo(), line, {}, None))]

    results = {result["index"]: result for result in asyncio.run(collect())}
    assert len(results) == 600
    assert results[0] == {
        "index": 0,
        "custom_id": "a",
        "finish_reason": "stop",
        "text": "long one",
        "usage": {"prompt_tokens": 5, "completion_tokens": 8, "cached_tokens": 2},
    }
    assert (results[1]["error"], results[2]["error"]) == ("refused", "broken")
    assert results[599]["text"] == "p599"
    assert json.dumps(list(results.values()))
