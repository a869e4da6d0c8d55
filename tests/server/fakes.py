"""An engine that computes nothing: it says what it was told to say, and remembers what was asked and what broke off."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sapwood.base.adapter import Adapter
from sapwood.base.drafts import Drafted
from sapwood.base.errors import EngineDead, Overloaded
from sapwood.base.handoff import Handoff
from sapwood.base.insight import Insight, Told, dtype_of
from sapwood.base.media import Media, Span, check_kinds
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import GENERATE, Task
from sapwood.base.wire import Delta, Stats
from sapwood.engine.client import Follower, Stream, check_request
from sapwood.hub.files import ModelFiles
from sapwood.text import TextModel
from tests.facts import make_facts
from tests.waiting import SECONDS

MODEL = "tiny"
CHATML = (
    "{% for m in messages %}{% if m.content == 'raise' %}{{ raise_exception('no such thing') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if mood is defined %}({{ mood }}) {% endif %}{% endif %}"
)


def make_text(directory: Path, template: str = CHATML, special: tuple[str, ...] = ()) -> TextModel:
    """A real text side around a byte-level tokenizer that knows hardly more than bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat; the dog did not."] * 4, trainer)
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template, "eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"})
    )
    return TextModel.load(ModelFiles(MODEL, directory, "hf", {}, {}))


@dataclass(frozen=True)
class Asked:
    tokens: list[int]
    params: SamplingParams
    salt: str
    priority: int


class FakeEngine:
    """`answer` makes the output of a prompt; `chunk` tokens come at a time, after `delay` seconds each.

    `fail_after`: so many tokens are yielded before `failure` is raised. `hold`: nothing is yielded beyond the first
    chunk until it is set.
    """

    def __init__(self, text: TextModel, *, max_model_len: int = 512) -> None:
        self.facts = make_facts(max_model_len=max_model_len, vocab_size=text.vocab_size, eos_ids=list(text.eos_ids))
        self.stats: Stats | None = None
        self.dead: str | None = None
        self.changed: Callable[[], None] = lambda: None
        self.retry_after: float | None = None
        self.restarts = 0
        self.weight_version = "default"
        self.ails: str | None = None  # it lives, and does not answer
        end = text.eos_ids[0]
        self.answer: Callable[[list[int], SamplingParams], list[int]] = lambda tokens, params: [
            *text.encode("The cat sat on the mat — naïvely."),
            end,
        ]
        self.chunk = 1
        self.delay = 0.0
        self.hold: asyncio.Event | None = None
        self.failure: Exception | None = None
        self.fail_after = 0
        self.cached = 0
        self.left_out = 0
        self.drafted: dict[str, Drafted] = {}
        self.asked: list[Asked] = []
        self.given: list[tuple[tuple[Media, ...], tuple[Span, ...]]] = []  # with each of these
        self.lent: list[Adapter | None] = []  # likewise
        self.handed: list[Handoff | None] = []  # likewise
        self.controls: list[str] = []
        self.replies: dict[str, dict[str, Any]] = {  # to what it is told or asked
            "live": {"lanes": [], "running": 0, "waiting": 0, "counters": {}, "seconds": {}, "pages": [[32, 20, 4]]},
            "status": {
                "running": 0,
                "waiting": 0,
                "held": 0,
                "paused": False,
                "asleep": [],
                "weight_version": "default",
            },
            "flush_cache": {"freed_pages": 3},
            "flush_encoders": {"freed_inputs": 2},
            "adapter": {"loaded": True},
            "tree": {"done": True, "tree": {"pages": 0, "twigs": {"pages": [], "label": []}, "holders": {}}},
        }
        self.running = 0
        self.broken_off = 0
        self._changed = asyncio.Event()
        self._speaking: dict[Stream, asyncio.Task[None]] = {}

    @property
    def replicas(self) -> Sequence[FakeEngine]:
        return (self,)

    async def until_running(self, count: int) -> None:
        """Wait until so many generations run."""
        async with asyncio.timeout(SECONDS):
            while self.running != count:
                self._changed.clear()
                await self._changed.wait()

    def submit(
        self,
        tokens: list[int],
        params: SamplingParams,
        follower: Follower,
        *,
        salt: str = "",
        adapter: Adapter | None = None,
        priority: int = 0,
        tenant: str = "",
        weight: float = 1.0,
        checked: bool = False,
        task: Task = GENERATE,
        media: Sequence[Media] = (),
        spans: Sequence[Span] = (),
        handoff: Handoff | None = None,
    ) -> Stream:
        check_request(tokens, params, self.facts, checked=checked, task=task)
        check_kinds(media, self.facts.media)
        self.given.append((tuple(media), tuple(spans)))
        self.lent.append(adapter)
        self.handed.append(handoff)
        if self.dead is not None:
            raise EngineDead(self.dead, retry_after=self.retry_after)
        self.asked.append(Asked(tokens, params, salt, priority))
        self.running += 1
        self._changed.set()
        stream = Stream(len(self.asked), follower, self._leave)
        self._speaking[stream] = asyncio.create_task(self._speak(stream, tokens, params))
        return stream

    def _leave(self, stream: Stream) -> None:
        self._speaking.pop(stream).cancel()
        self.running -= 1
        self._changed.set()
        self.broken_off += not stream.finished

    async def _speak(self, stream: Stream, tokens: list[int], params: SamplingParams) -> None:
        try:
            for delta in self._deltas(tokens, params):
                await asyncio.sleep(self.delay)
                stream.put(delta)
                stream.follower.wake()
                if self.hold is not None:
                    await self.hold.wait()
        except Exception as error:
            stream.fail(error)
            stream.follower.wake()

    def _deltas(self, prompt: list[int], params: SamplingParams) -> Iterator[Delta]:
        output = self.answer(prompt, params)
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else self.facts.eos_ids)}
        end = next((at for at, token in enumerate(output, 1) if token in stops), len(output) + 1)
        limit = min(params.max_tokens or 10**9, self.facts.max_model_len - len(prompt))
        output = (output * (limit // len(output) + 1))[: min(end, limit)]
        for at in range(0, len(output), self.chunk):
            if self.failure is not None and at >= self.fail_after:
                raise self.failure
            piece = output[at : at + self.chunk]
            last = at + self.chunk >= len(output)
            stop = output[-1] if last and output[-1] in stops else None
            yield Delta(
                1,
                piece,
                finish=("stop" if stop is not None else "length") if last else None,
                cached_tokens=self.cached if at == 0 else -1,
                left_out=self.left_out if at == 0 else 0,
                drafted=self.drafted,
                stop=stop,
                logprobs=self._logprobs(piece, params.logprobs, params.logprob_token_ids),
                insights=self._insights(at, len(piece), params),
                prompt_logprobs=(
                    self._logprobs(prompt[1:], params.prompt_logprobs, params.logprob_token_ids) if at == 0 else None
                ),
            )

    def _insights(self, at: int, count: int, params: SamplingParams) -> dict[Insight, Told]:
        """Of each output token as many times its place as the facts say."""
        places = np.arange(at, at + count)[:, None]
        wide = {name: places.repeat(self.facts.insights[name], 1) for name in params.insights}
        return {name: Told.of(wide[name].astype(dtype_of(name, params.return_dtype))) for name in wide}

    @staticmethod
    def _logprobs(tokens: list[int], count: int | None, named: Sequence[int]) -> list[TokenLogprobs] | None:
        """The token t has logprob -t / 100 and rank 2, its rivals are the ids from 10 on, and -t where it is named."""
        if count is None:
            return None
        ids = list(range(10, 10 + count))
        top, others = ([-float(id) for id in some] for some in (ids, named))
        return [TokenLogprobs(token, -token / 100, 2, ids, top, others) for token in tokens]

    async def trouble(self) -> str | None:
        return self.dead or self.ails

    async def control(self, what: str, about: dict[str, Any] | None = None) -> dict[str, Any]:
        if self.dead is not None:
            raise EngineDead(self.dead)
        self.controls.append(what)
        return copy.deepcopy(self.replies.get(what, {"did": what}))


def overloaded() -> Overloaded:
    return Overloaded("9 requests are running or waiting already; try again later.")
