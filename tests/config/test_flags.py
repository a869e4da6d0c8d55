"""Every way of setting an option ends in the same Config, and mistakes are told as the user spelled them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from sapwood.base.errors import ConfigError
from sapwood.config import Config
from sapwood.config.flags import add_flags, flag_of, from_args, from_options, given, options


def parse(*argv: str) -> Config:
    return from_args(namespace(*argv))


def namespace(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    return parser.parse_args(argv)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAPWOOD_API_KEY", raising=False)


def test_nothing_given_is_the_default() -> None:
    assert parse() == Config() == from_options({})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("--max-model-len=4096", "--context-length=4096"),
        ("--gpu-memory-utilization=0.8", "--mem-fraction-static=0.8"),
        ("--max-num-seqs=7", "--max-running-requests=7"),
        ("--max-num-batched-tokens=99", "--max-prefill-tokens=99"),
        ("--no-enable-prefix-caching", "--disable-radix-cache"),
        ("--no-enable-prefix-caching", "--no-prefix-caching"),
        ("--scheduling-policy=lpm", "--schedule-policy=lpm"),
        ("--model=/m", "--model-path=/m"),
        ("--model=/m", "/m"),
    ],
)
def test_both_spellings(one: str, other: str) -> None:
    assert parse(one) == parse(other) != Config()


@pytest.mark.parametrize("given", ["a", ["a", "b"], ("a", "b")])
def test_several_names(given: Any) -> None:
    names = (given,) if isinstance(given, str) else tuple(given)
    assert parse("--served-model-name", *names, "--port", "1").model.served_model_name == names
    assert from_options({"served_model_name": given}).model.served_model_name == names


@pytest.mark.parametrize("given", [[], [1], [""], 3])
def test_names_are_texts(given: Any) -> None:
    with pytest.raises(ConfigError, match="--served-model-name takes one or more texts"):
        from_options({"served_model_name": given})


def test_every_flag_is_read_from_the_command_line_and_from_keywords() -> None:
    for option in options():
        sample = (
            option.choices[-1]
            if option.choices
            else {int: "3", float: "0.5", str: "x", bool: "false", tuple: "x"}[option.kind]
        )
        read = option.read(sample)
        by_keyword = from_options({option.field: read})
        assert getattr(getattr(by_keyword, option.section), option.field) == read
        for flag in option.flags:
            if option.kind is bool:
                assert parse(f"--no-{flag.removeprefix('--')}") == by_keyword
            else:
                assert parse(f"{flag}={sample}") == by_keyword


@pytest.mark.parametrize(
    ("text", "value"), [("512M", 512 << 20), ("1.5G", 3 << 29), ("64kib", 64 << 10), ("2GB", 2 << 30), ("7", 7)]
)
def test_bytes(text: str, value: int) -> None:
    assert parse(f"--kv-cache-memory={text}").cache.kv_cache_memory == value


@pytest.mark.parametrize(("text", "value"), [("32k", 32000), ("32K", 32768), ("8192", 8192), ("0.5K", 512)])
def test_tokens(text: str, value: int) -> None:
    assert parse(f"--max-model-len={text}").model.max_model_len == value


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--port=http", "--port takes a whole number, got 'http'"),
        ("--kv-cache-memory=4X", "such as 512M"),
        ("--max-model-len=0.3", "number of tokens"),
        ("--dtype=int3", "--dtype takes one of auto, float32"),
        ("--mem-fraction-static=half", "takes a number"),
        ("--mem-fraction-static=nan", "takes a number"),
        ("--max-model-len=1e999", "number of tokens"),
    ],
)
def test_wrong_values_name_the_flag(flag: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^--") as caught:
        parse(flag)
    assert said in str(caught.value)


@pytest.mark.parametrize("value", [True, 1.5, "x", [1]])
def test_wrong_types_of_keywords(value: object) -> None:
    with pytest.raises(ConfigError, match="--port"):
        from_options({"port": value})


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ConfigError, match="max_model_len'"):
        from_options({"max_model_length": 1})


def test_two_spellings_of_one_option_are_refused() -> None:
    with pytest.raises(ConfigError, match="--max-model-len"):
        from_options({"max_model_len": 1, "context_length": 2})


def test_a_model_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        parse("/a", "--model", "/b")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", 'max-model-len = 4096\npolicy = "lpm"\nenable_prefix_caching = false\nkv_cache_memory = "1G"'),
        (
            "c.json",
            json.dumps(
                {
                    "context_length": 4096,
                    "--schedule-policy": "lpm",
                    "prefix_caching": False,
                    "kv-cache-memory": 1 << 30,
                }
            ),
        ),
        ("c.yaml", "context-length: 4096\npolicy: lpm\nprefix_caching: false\nkv_cache_memory: 1G"),
    ],
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    config = parse("--config", str(file), "--max-num-seqs", "3")
    assert (config.model.max_model_len, config.scheduler.policy) == (4096, "lpm")
    assert (config.cache.prefix_caching, config.cache.kv_cache_memory) == (False, 1 << 30)
    assert config.scheduler.max_num_seqs == 3


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("context_length = 4096")
    assert parse("--config", str(file), "--max-model-len", "8").model.max_model_len == 8


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.toml", "max_model_length = 1", "max_model_len"),
        ("c.toml", "= 1", "cannot be read"),
        ("c.json", "[1]", "names and values"),
        ("c.yaml", "a: [", "cannot be read"),
        ("c.ini", "a=1", "must end in"),
        ("missing/c.toml", None, "No such file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        parse("--config", str(tmp_path / name))


def test_several_keys() -> None:
    assert parse("--api-key", "a", "--api-key", "b,c").server.api_key == "a,b,c"
    assert from_options({"api_key": ["a", "b"]}).server.api_key == "a,b"
    with pytest.raises(ConfigError, match="--api-key takes text"):
        from_options({"api_key": ["a", 1]})


def test_api_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPWOOD_API_KEY", "from-env")
    assert parse().server.api_key == "from-env"
    assert parse("--api-key", "typed").server.api_key == "typed"


def test_given_holds_only_what_was_set() -> None:
    assert given(namespace("--max-num-seqs", "4", "/m")) == {"max_num_seqs": "4", "model": "/m"}


def test_messages_call_a_field_by_its_first_flag() -> None:
    assert flag_of("cors_origins") == "--allowed-origins"
