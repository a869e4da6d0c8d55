"""The options of speculation: every spelling ends in the same place, and what is not there is refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sapwood.base.errors import ConfigError
from sapwood.config.facts import DeviceFacts
from sapwood.config.flags import from_options
from sapwood.config.resolve import resolve
from sapwood.config.speculation import drafter_rule, drafters, spelled
from tests.config.test_resolve import CPU, H100, SMALL, resolved

ALL = ("prediction", "tree", "ngram")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ()),
        ({"speculation": "off"}, ()),
        ({"speculation": "none"}, ()),
        ({"speculation": "auto"}, ALL),
        ({"speculative_algorithm": "NGRAM"}, ("ngram",)),
        ({"speculation": "ngram, tree"}, ("ngram", "tree")),
        ({"speculative_config": '{"method": "suffix"}'}, ("tree", "ngram")),
        ({"speculative_config": '{"method": "auto", "num_speculative_tokens": 4}'}, ALL),
        ({"speculative_model": "small"}, (*ALL, "draft")),
        ({"speculative_draft_model_path": "small", "speculation": "auto"}, (*ALL, "draft")),
        ({"speculative_model": "small", "speculation": "draft,ngram"}, ("draft", "ngram")),
        ({"speculative_config": '{"method": "draft_model", "model": "small"}'}, ("draft",)),
        ({"speculative_config": '{"method": "eagle3", "model": "head"}'}, ("draft",)),
        ({"speculative_config": '{"model": "small", "num_speculative_tokens": 3}'}, ("draft",)),
        ({"speculative_model": "small", "speculative_algorithm": "STANDALONE"}, ("draft",)),
        ({"speculative_model": "head", "speculative_algorithm": "EAGLE"}, ("draft",)),
        ({"speculative_algorithm": "EAGLE"}, ("mtp",)),
        ({"speculative_algorithm": "NEXTN"}, ("mtp",)),
        ({"speculation": "ngram,mtp"}, ("ngram", "mtp")),
        ({"speculative_config": '{"method": "mtp", "num_speculative_tokens": 2}'}, ("mtp",)),
        ({"speculative_config": '{"method": "qwen3_next_mtp"}'}, ("mtp",)),
    ],
    ids=str,
)
def test_every_spelling_says_what_drafts(options: dict[str, Any], names: tuple[str, ...]) -> None:
    for device in (CPU, H100):
        config = resolved(SMALL, device, **options)
        assert drafters(config) == names
        assert config.speculation.speculative_config is None
        assert (config.speculation.num_speculative_tokens or 0) > 0 or not names


def test_a_model_that_is_named_as_its_own_draft_is_none() -> None:
    given = {"model": "m", "speculative_config": '{"method": "deepseek_mtp", "model": "m"}'}
    options = spelled(from_options(given)).speculation
    assert (options.speculation, options.speculative_model) == ("mtp", None)


def test_how_many_are_drafted() -> None:
    assert resolved(SMALL, CPU, num_speculative_tokens=4).speculation.num_speculative_tokens == 4
    given = '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 4}'
    options = resolved(SMALL, CPU, speculative_config=given).speculation
    assert (options.num_speculative_tokens, options.prompt_lookup_min) == (5, 2)
    assert resolved(SMALL, CPU).speculation.num_speculative_tokens == 0


def test_it_is_explained() -> None:
    _, decisions = resolve(from_options({"speculation": "auto"}), SMALL, CPU)
    told = {decision.field: str(decision) for decision in decisions}
    assert "prediction,tree,ngram" in told["speculation"] and "acceptance and load" in told["num_speculative_tokens"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"speculation": "medusa"},
            "--speculation takes off, auto, or some of prediction, tree, ngram, draft, mtp",
        ),
        ({"speculation": "draft"}, "--speculation draft needs a model: give --speculative-model MODEL"),
        ({"speculative_model": "x", "speculation": "ngram"}, "--speculative-model is given, and --speculation ngram"),
        ({"speculative_model": "x", "speculation": "off"}, "--speculative-model is given, and --speculation off"),
        ({"speculative_config": '{"method": "draft", "model": "x"}', "speculative_model": "y"}, "leave one out"),
        ({"speculation": "ngram,ngram"}, "each once"),
        ({"speculation": "draft,mtp", "speculative_model": "x"}, "only one model drafts. Leave out draft or mtp"),
        ({"speculation": "mtp", "speculative_model": "x"}, "--speculation mtp does not use it"),
        ({"speculation": "auto,ngram"}, "--speculation takes"),
        ({"speculation": ""}, "--speculation takes"),
        ({"speculative_config": '{"method": "eagle3"}'}, "--speculation draft needs a model"),
        ({"speculative_config": '{"method": "ngram", "prompt_lookup_max": 0}'}, "prompt_lookup_max"),
        ({"speculative_config": "ngram"}, "--speculative-config takes a JSON object"),
        ({"speculative_config": '{"num_speculative_tokens": 3}'}, "--speculative-config takes .*method"),
        ({"speculative_config": '{"method": "ngram", "modell": "x"}'}, "--speculative-config takes .*modell"),
        ({"speculative_config": '{"method": "ngram", "model": "x"}'}, "--speculation ngram does not use it"),
        ({"speculative_config": '{"method": "ngram"}', "speculation": "auto"}, "leave one out"),
        (
            {"speculative_config": '{"method": "ngram", "num_speculative_tokens": 3}', "num_speculative_tokens": 4},
            "leave one",
        ),
        ({"num_speculative_tokens": -1}, "--num-speculative-tokens must be at least 0"),
        ({"prompt_lookup_min": 9}, r"--prompt-lookup-min must be in \[1, 8\]"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolved(SMALL, CPU, **options)


@pytest.mark.parametrize("device", [CPU, H100], ids=lambda device: device.option)
@pytest.mark.parametrize(("method", "names"), [("off", "off"), ("auto", "prediction,tree,ngram")])
def test_the_device_says_what_drafts_where_nobody_does(
    device: DeviceFacts, method: str, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = dataclasses.replace(device.rules, drafting=(method, "measured"))
    monkeypatch.setattr(DeviceFacts, "rules", rules)
    found, reason = drafter_rule(from_options({}), SMALL, device)
    assert (
        found == names
        and reason.startswith("measured")
        and f"--speculation {'auto' if method == 'off' else 'off'}" in reason
    )
    assert drafter_rule(from_options({"speculation": "auto"}), SMALL, device)[0] == "prediction,tree,ngram"
