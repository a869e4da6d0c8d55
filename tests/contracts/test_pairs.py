"""Every feature works with every other one, or the pair is refused at start with the reason.

Features of a request are combined pair by pair in one batch. Around it are engines with some features each, so that every
two of these meet in one of them. What changes how an answer comes about must not change a token of it; what changes the
numbers must leave every request what it asked for. A new feature joins one of the three tables, and is then tried with
all that were there before.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from sapwood import LLM, ConfigError, Grammar, SamplingParams
from sapwood.base.adapter import Adapter
from sapwood.base.plan import Ints
from sapwood.base.request import Request
from sapwood.base.sampling import Timestamps
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.base.task import POOLINGS, Embed
from sapwood.base.wire import Deltas
from sapwood.draft import Drafter, DraftStake, thin
from sapwood.engine import launch
from sapwood.engine.loop import Engine
from sapwood.loras import Lora, Loras
from sapwood.outputs import Generation, Output
from sapwood.text.reading import PARAMS
from tests import heads
from tests.adapters import some
from tests.contracts import between
from tests.contracts.test_guests import Pause

# -- features of a request ----------------------------------------------------------------------------------------

Check = Callable[[Output, Generation, SamplingParams], bool]


class Feature(NamedTuple):
    """Fields of a request, and whether an output is what they ask for."""

    fields: Mapping[str, Any]
    holds: Check


def whole(output: Output, params: SamplingParams) -> bool:
    """Whether nothing cut the output off before its grammar was done."""
    return output.finish_reason == "stop" and output.stop is None


DIGITS = Grammar.regex("[0-9]{3}-[a-f]{4,6}")
RECORD = Grammar.json({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})
MOST = 10
"""Tokens that every request generates at most."""

REQUESTS: Mapping[str, Feature] = MappingProxyType(
    {
        "greedy": Feature({"temperature": 0}, lambda o, g, p: len(o.token_ids) <= MOST),
        "sampled": Feature({"temperature": 1.2, "seed": 7}, lambda o, g, p: len(o.token_ids) <= MOST),
        "truncated": Feature(
            {"temperature": 0.9, "seed": 8, "top_k": 20, "top_p": 0.9, "min_p": 0.02}, lambda o, g, p: bool(o.token_ids)
        ),
        "penalties": Feature(
            {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
            lambda o, g, p: bool(o.token_ids),
        ),
        "bias": Feature(
            {"logit_bias": {66: -100.0, 67: 5.0}}, lambda o, g, p: p.grammar is not None or 66 not in o.token_ids
        ),
        "least": Feature(
            {"min_tokens": 4}, lambda o, g, p: len(o.token_ids) >= 4 or p.grammar is not None or o.stop is not None
        ),
        "stop string": Feature({"stop": ("a", "0")}, lambda o, g, p: p.include_stop or not set("a0") & set(o.text)),
        "stop expression": Feature(
            {"stop_regex": ("[b-d]",)}, lambda o, g, p: p.include_stop or not set("bcd") & set(o.text)
        ),
        "stop token": Feature(
            {"stop_token_ids": (68, 20)}, lambda o, g, p: not {68, 20} & set(o.token_ids[:-1]) or p.min_tokens > 0
        ),
        "stop shown": Feature(
            {"include_stop": True, "stop": ("e", "1")},
            lambda o, g, p: not isinstance(o.stop, str) or o.text.endswith(o.stop) or bool(p.stop_regex),
        ),
        "no end": Feature(
            {"ignore_eos": True},
            lambda o, g, p: len(o.token_ids) == MOST or o.stop is not None or p.grammar is not None,
        ),
        "logprobs": Feature({"logprobs": 2}, lambda o, g, p: [one.token for one in o.logprobs] == o.token_ids),
        "prompt logprobs": Feature(
            {"prompt_logprobs": 1}, lambda o, g, p: len(g.prompt_logprobs) == g.prompt_tokens - 1
        ),
        "all positions": Feature(
            {"return_hidden_states": True}, lambda o, g, p: np.size(o.hidden_states) > 64 * (g.prompt_tokens - 1)
        ),
        "prediction": Feature({"prediction": tuple(b'0123-abcdef{"ok": true}')}, lambda o, g, p: bool(o.token_ids)),
        "several": Feature({"n": 2}, lambda o, g, p: len(g.outputs) == 2),
        "expression": Feature(
            {"grammar": DIGITS},
            lambda o, g, p: (
                p.grammar is not DIGITS or not whole(o, p) or bool(re.fullmatch("[0-9]{3}-[a-f]{4,6}", o.text))
            ),
        ),
        "schema": Feature(
            {"grammar": RECORD},
            lambda o, g, p: p.grammar is not RECORD or not whole(o, p) or "ok" in json.loads(o.text),
        ),
        "marks of time": Feature(
            {"timestamps": Timestamps(first=200, text_end=190)}, lambda o, g, p: not 200 > o.token_ids[0] >= 0
        ),
    }
)
REFUSED_REQUESTS = frozenset(frozenset(("marks of time", name)) for name in ("expression", "schema"))
"""Each says what may follow; `SamplingParams.check` refuses them."""
STEM = "You are a helpful assistant. Answer in as few words as you can. "


class Case(NamedTuple):
    names: tuple[str, str]
    prompt: str
    params: SamplingParams


def cases() -> list[Case]:
    """Every pair of a request's features, on prompts of which many share a beginning."""
    found = []
    pairs = [names for names in itertools.combinations(REQUESTS, 2) if frozenset(names) not in REFUSED_REQUESTS]
    for number, names in enumerate(pairs):
        fields: dict[str, Any] = {"max_tokens": MOST, "temperature": 0.8, "seed": number}
        for name in names:
            fields |= REQUESTS[name].fields
        prompt = STEM[: 8 * (number % 9)] + f"Question {number}: " + " and ".join(names) + "?"
        found.append(Case(names, prompt, SamplingParams(**fields)))
    return found


CASES = cases()

# -- features of the engine ---------------------------------------------------------------------------------------


class Lookup(Drafter):
    """Proposes what followed the last token when it stood in the text before."""

    def propose(self, request: Request, tokens: Ints, count: int) -> Sequence[int]:
        places = (tokens[:-1] == tokens[-1]).nonzero()[0]
        return tokens[places[-1] + 1 :][:count].tolist() if len(places) else [65] * count


def _drafts(slots: Slots) -> Sequence[Stake]:
    return (DraftStake(slots, (Lookup(),), most=3),)


def _pause(slots: Slots) -> Sequence[Stake]:
    return (Pause(),)


def _forget(patch: pytest.MonkeyPatch) -> None:
    """Empty the device's cache of all that nobody uses after every fifth step, and let the store take its time."""
    step, turns = Engine.step, itertools.count()

    def stepped(engine: Engine) -> list[Deltas]:
        news = step(engine)
        if next(turns) % 5 == 0:
            engine.scheduler.tidy()
            engine.control("flush_cache")
        return news

    patch.setattr(Engine, "step", stepped)


class Unheard:
    """Follows what will be asked for when all is over."""

    def wake(self) -> None: ...


def _read_beside(patch: pytest.MonkeyPatch) -> None:
    """Texts are embedded while all else is generated: their vectors are those that they have alone afterwards."""
    generate, texts = LLM.generate, [STEM, f"{STEM}Question 3: what?", "Something else."]

    def generated(llm: LLM, prompts: Any, params: Any = None) -> list[Generation]:
        tokens = [llm.text.encode(text) for text in texts for _ in POOLINGS]
        tasks = [Embed(pooling) for _ in texts for pooling in POOLINGS]
        streams = [
            llm.engine.submit(*pair, Unheard(), task=task)
            for *pair, task in zip(tokens, [PARAMS] * len(tasks), tasks, strict=True)
        ]
        found = generate(llm, prompts, params)
        for stream, ids, task in zip(streams, tokens, tasks, strict=True):
            delta = stream.take()
            assert delta is not None and delta.finish == "length"
            (alone,) = llm.embed(ids, pooling=task.pooling, normalise=True)
            vector = np.frombuffer(delta.vector, np.float32)
            assert vector @ alone.vector / np.linalg.norm(vector) > 0.98, task
            stream.close()
        return found

    patch.setattr(LLM, "generate", generated)


def _in_turns(patch: pytest.MonkeyPatch) -> None:
    """Of four requests three have an adapter each, of more than there are slots for."""
    each = Loras.each

    def chosen(loras: Loras, lora: Lora, count: int) -> list[Adapter | None]:
        return each(loras, [[None, *loras.names][number % 4] for number in range(count)], count)

    patch.setattr(Loras, "each", chosen)


def _long(patch: pytest.MonkeyPatch) -> None:
    """All prompts are."""
    patch.setattr(thin, "CHUNK", 2)
    patch.setattr(thin, "SHORTEST", 6)


LORAS = ADAPTERS, OF_THE_EMBEDDING = "adapters", "adapters of the embedding"
HANDED = "prompts handed over"

ITSELF, HEAD = "the model itself", "a head for it"
"""What stands for a path."""

Stakes = Callable[[Slots], Sequence[Stake]]

ENGINES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "overlap": {"depth": 1},
        "deep overlap": {"depth": 2},
        "chunked prompts": {"max_num_batched_tokens": 48, "chunked_prefill_size": 16},
        "small pages": {"page_size": 8},
        "no prefix cache": {"prefix_caching": False},
        "preemption": {"max_total_tokens": 960, "max_model_len": 160},
        "priorities": {"policy": "priority"},
        "longest prefix first": {"policy": "lpm"},
        "keys in turns": {"policy": "fair"},
        "two at a time": {"max_num_seqs": 2},
        "texts read beside": {"between": _read_beside},
        "no jump-forward": {"jump_forward": False},
        "drafts": {"stakes": _drafts},
        "speculation": {"speculation": "auto", "num_speculative_tokens": 3},
        "a draft model": {"speculative_model": ITSELF},
        "a stake that pauses": {"stakes": _pause},
        "standing still": {"between": between.stand_still},
        "sleep and waking": {"between": between.sleep},
        "weights given anew": {"between": between.renew},
        "a store of KV": {"kv_store": "host:64M", "between": _forget},
        HANDED: {"role": "both", "transfer_memory": 64 << 20, "between": between.hand_over},
    }
)
"""What changes how an answer comes about, and no token of it."""

NUMBERS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "PyTorch on CPUs": {"cpu_kernels": "off"},
        "the CPU's attention": {"attention_backend": "cpu"},
        "reference attention": {"attention_backend": "reference"},
        "KV in float16": {"kv_cache_dtype": "float16"},
        "KV in int8": {"kv_cache_dtype": "int8"},
        "weights in int8": {"quantization": "int8"},
        "weights in int4": {"quantization": "int4"},
        "weights in fp8": {"quantization": "fp8"},
        "weights in NVFP4": {"quantization": "nvfp4"},
        "activations in int8": {"cpu_activations": "int8"},
        "bfloat16": {"dtype": "bfloat16"},
        "an EAGLE head": {"speculative_model": HEAD},
        "transformers' modules": {"model_impl": "transformers"},
        "thinned prompts": {"speculative_prefill": 0.5, "speculative_prefill_model": ITSELF, "between": _long},
        "two ranks": {"tensor_parallel_size": 2},
        "two stages": {"pipeline_parallel_size": 2},
        ADAPTERS: {"lora_modules": some.PLAIN, "max_loras": 2, "between": _in_turns},
        OF_THE_EMBEDDING: {"lora_modules": some.OF_THE_EMBEDDING, "max_loras": 2, "between": _in_turns},
    }
)
"""What changes the numbers that tokens are drawn from."""

FEATURES = MappingProxyType({**ENGINES, **NUMBERS})
OF_THE_KERNELS = ("KV in int8",)
FOREIGN = "transformers' modules"
WITHOUT_THEM = (
    "PyTorch on CPUs",
    "the CPU's attention",
    "reference attention",
    "bfloat16",
    "small pages",
    "two ranks",
    "two stages",
)
REFUSED: Mapping[frozenset[str], str] = MappingProxyType(
    {
        frozenset(pair): "CPU kernels|native: |in the dtypes that are computed in"
        for pair in itertools.product(WITHOUT_THEM, OF_THE_KERNELS)
    }
    | {frozenset(("a store of KV", "no prefix cache")): "--kv-store is of prefixes"}
    | {frozenset((HANDED, "no prefix cache")): "--role is of prefixes"}
    | {frozenset((HANDED, several)): "--role does not go with several ranks" for several in ("two ranks", "two stages")}
    | {
        frozenset((FOREIGN, name)): "modules take plain weights only"
        for name in NUMBERS
        if name.startswith("weights in")
    }
    | {frozenset(pair): "--enable-lora does not go with" for pair in itertools.product(LORAS, (FOREIGN, "two stages"))}
    | {frozenset((FOREIGN, "an EAGLE head")): "which keep them to themselves"}
    | {frozenset((keeps, "thinned prompts")): "does not go with stores of KV" for keeps in ("a store of KV", HANDED)}
    | {frozenset((FOREIGN, "two ranks")): "modules .* are not cut"}
    | {frozenset((FOREIGN, "two stages")): "modules .* are not taken apart"}
    | {frozenset((drafts, "two stages")): "which no stage has" for drafts in ("a draft model", "an EAGLE head")}
)
"""Pairs that are refused at start, and what the refusal says. docs/architecture.md lists them."""

BASE = {"max_num_seqs": 12, "max_model_len": 256, "max_total_tokens": 8192, "max_num_batched_tokens": 512}
BESIDE = {"stakes", "between"}  # what features bring beside options
TOGETHER = 5  # features of one engine; more would hide each other
SHARE = 4  # of the cases, that each of those engines gets


def meet(one: str, other: str) -> bool:
    """Whether two features can be had together: they are not two values of one option."""
    options = (FEATURES[one].keys() & FEATURES[other].keys()) - BESIDE
    return not options and frozenset((one, other)) not in REFUSED


def crowds(names: Sequence[str], guests: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Sets of features in which every two of `names` that can meet do, and every guest meets every one of them."""
    pairs = itertools.chain(itertools.combinations(names, 2), itertools.product(guests, names))
    left = {frozenset(pair) for pair in pairs if meet(*pair)}
    found = []
    while left:
        crowd = sorted(next(iter(sorted(left, key=sorted))))
        while len(crowd) < TOGETHER:
            others = [name for name in (*names, *guests) if name not in crowd and all(meet(name, one) for one in crowd)]
            new = {name: sum(frozenset((name, one)) in left for one in crowd) for name in others}
            if not any(new.values()):
                break
            crowd.append(max(new, key=lambda name: new[name]))
        left -= {frozenset(pair) for pair in itertools.combinations(crowd, 2)}
        found.append(tuple(crowd))
    return found


def head_for(model: Path) -> Path:
    """A random one, written once."""
    path = model.parent / f"{model.name}-head"
    return path if path.exists() else heads.write(path, *heads.third(64, 258, 100))


def assembled(model: Path, features: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], Stakes]:
    """Options and stakes of an engine with these features; several that bring stakes bring all of theirs."""
    options: dict[str, Any] = dict(BASE)
    stakes: list[Stakes] = []
    for feature in features:
        options |= {name: value for name, value in feature.items() if name not in BESIDE}
        stakes += [feature["stakes"]] if "stakes" in feature else []
    if options.get("speculative_model") in (ITSELF, HEAD):
        options["speculative_model"] = str(model if options["speculative_model"] == ITSELF else head_for(model))
    if options.get("speculative_prefill_model") == ITSELF:
        options["speculative_prefill_model"] = str(model)
    options |= some.named(model, options.get("lora_modules"))
    return options, lambda slots: [one for make in stakes for one in make(slots)]


def answers(model: Path, features: Sequence[Mapping[str, Any]], cases: Sequence[Case]) -> list[Generation]:
    """What an engine with these features says."""
    options, stakes = assembled(model, features)
    made = functools.partial(launch.launch, stakes=stakes, max_drafts=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", made)
        for feature in features:
            feature.get("between", lambda patch: None)(patch)
        llm = LLM(str(model), device="cpu", **options)
        found = llm.generate([case.prompt for case in cases], [case.params for case in cases])
    assert llm._engine.audit() == 0
    return found


def as_asked(found: Sequence[Generation], cases: Sequence[Case]) -> None:
    for generation, case in zip(found, cases, strict=True):
        for output in generation.outputs:
            assert output.error is None, (case.names, output.error)
            for name in case.names:
                assert REQUESTS[name].holds(output, generation, case.params), (name, case, output)


def same(found: Sequence[Generation], wanted: Sequence[Generation], cases: Sequence[Case]) -> None:
    for generation, right, case in zip(found, wanted, cases, strict=True):
        for output, other in zip(generation.outputs, right.outputs, strict=True):
            told = (output.token_ids, output.text, output.finish_reason, output.stop)
            assert told == (other.token_ids, other.text, other.finish_reason, other.stop), case.names
        for scores, others in ((generation.prompt_logprobs, right.prompt_logprobs), *_logprobs(generation, right)):
            assert [one.logprob for one in scores] == pytest.approx([one.logprob for one in others], abs=1e-4)


def _logprobs(found: Generation, wanted: Generation) -> list[tuple[Any, Any]]:
    return [(one.logprobs, other.logprobs) for one, other in zip(found.outputs, wanted.outputs, strict=True)]


def _told(value: int | tuple[str, ...]) -> str:
    return str(value) if isinstance(value, int) else " + ".join(value)


@pytest.fixture(scope="module")
def alone(tiny_model: Path) -> list[Generation]:
    """What every case says on an engine without any of the features."""
    return answers(tiny_model, (), CASES)


def test_features_of_requests(alone: list[Generation]) -> None:
    as_asked(alone, CASES)
    reasons = {output.finish_reason for generation in alone for output in generation.outputs}
    assert reasons == {"stop", "length"}, "cases of both kinds"


@pytest.mark.parametrize(("turn", "names"), list(enumerate(crowds(list(ENGINES)))), ids=_told)
def test_engine_features_that_meet(
    tiny_model: Path, alone: list[Generation], turn: int, names: tuple[str, ...]
) -> None:
    mine = slice(turn % SHARE, None, SHARE)
    same(answers(tiny_model, [ENGINES[name] for name in names], CASES[mine]), alone[mine], CASES[mine])


@pytest.mark.parametrize(("turn", "names"), list(enumerate(crowds(list(NUMBERS), list(ENGINES)))), ids=_told)
def test_numbers_that_meet_engine_features(tiny_model: Path, turn: int, names: tuple[str, ...]) -> None:
    mine = slice(turn % SHARE, None, SHARE)
    as_asked(answers(tiny_model, [FEATURES[name] for name in names], CASES[mine]), CASES[mine])


def test_every_two_features_meet_or_are_refused() -> None:
    met = {
        frozenset(pair)
        for crowd in (*crowds(list(ENGINES)), *crowds(list(NUMBERS), list(ENGINES)))
        for pair in itertools.combinations(crowd, 2)
    }
    for pair in itertools.combinations(FEATURES, 2):
        assert frozenset(pair) in met or not meet(*pair)


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: " + ".join(sorted(pair)))
def test_refused_pairs(tiny_model: Path, pair: frozenset[str]) -> None:
    with pytest.raises(ConfigError, match=REFUSED[pair]):
        answers(tiny_model, [FEATURES[name] for name in pair], CASES[:1])
