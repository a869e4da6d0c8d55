"""The composition root: from a configuration to an engine that is ready. May import everything; only entries import it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from sapwood.arch.apart import firsts
from sapwood.arch.encoder import media_of
from sapwood.arch.foreign import Foreign
from sapwood.arch.parts import Decoder
from sapwood.arch.sight import Tower
from sapwood.arch.texts import tasks_of
from sapwood.base.errors import ConfigError, GrammarError, ModelError
from sapwood.base.insight import Insight
from sapwood.base.layout import longest_sequence, split_pages
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.base.task import Generate, tag_of
from sapwood.base.wire import Facts
from sapwood.cache import Borders, Explanation, KVCache, KVStake, Sketch, Texts
from sapwood.catalogue import Catalogue, joined
from sapwood.config import Config, ModelConfig
from sapwood.config.adapters import enabled
from sapwood.config.devices import rules_of
from sapwood.config.resolve import Decision, page_bytes, resolve
from sapwood.config.sight import encoder_rows
from sapwood.config.speculation import drafters, spelled
from sapwood.config.weights import ITEMSIZE
from sapwood.device import probe
from sapwood.encode import Attic, EncodeStake, InputStake, Room
from sapwood.engine import lean
from sapwood.engine.adapters import adapters_of
from sapwood.engine.declared import declared
from sapwood.engine.experts import ExpertLoad
from sapwood.engine.inputs import InputsOf, inputs_of
from sapwood.engine.intake import Intake
from sapwood.engine.loop import Engine, Gauges
from sapwood.engine.pause import Pause
from sapwood.engine.sleep import Asleep, changing
from sapwood.engine.spawn import RANK, spawn
from sapwood.engine.speculation import draft_of, shape_beside, speculate
from sapwood.engine.stores import Stores, stores_of
from sapwood.engine.thinning import Thinning, thinning_of
from sapwood.executor.base import Executor, Measured
from sapwood.executor.ranks import Ranks
from sapwood.executor.stages import executor_of
from sapwood.grammar import Compiler, Constraints, GrammarStake, Vocabulary
from sapwood.grammar.vocabulary import spec_of
from sapwood.hub.draft import DraftModel
from sapwood.hub.files import ModelFiles, find_configured
from sapwood.parallel.segment import Segment
from sapwood.scheduler import Scheduler

if TYPE_CHECKING:
    from sapwood.text import TextModel

T = TypeVar("T")


class Launched(NamedTuple):
    """An engine that is ready, what fronts have to know of it, and what compiles its grammars."""

    engine: Engine
    facts: Facts
    compiler: Compiler


class Guest(Protocol):
    """What takes part in an engine where the configuration or the model has it."""

    @property
    def stakes(self) -> Sequence[Stake]: ...

    @property
    def gauges(self) -> Sequence[Gauges]: ...


class Alone(NamedTuple):
    """A guest that is one stake and what that counts."""

    stakes: tuple[Stake, ...]
    gauges: tuple[Gauges, ...]


def no_more(slots: Slots) -> Sequence[Stake]:
    return ()


def launch(
    config: Config,
    files: ModelFiles | None = None,
    text: TextModel | None = None,
    *,
    stakes: Callable[[Slots], Sequence[Stake]] = no_more,
    max_drafts: int = 0,
    executor: Executor | None = None,
    catalogue: Catalogue | None = None,
) -> Launched:
    """Load the model and make the engine. Raises UserError for what the user can mend.

    `text`, where it is loaded already, is what grammars need. `stakes` join those of every engine; a row feeds `max_drafts` drafts
    at most. Without an `executor` this process computes; without a `catalogue` all that is installed may be chosen by name.
    """
    clock, catalogue, model = _Clock(), catalogue or joined(), config.model
    decoder = declared(config, files := _files(model, files, catalogue), catalogue)
    config, decisions, draft, thinning = _resolved(spelled(config), decoder, files, catalogue)
    executor = thinning.start(executor or _executor(config, catalogue))
    clock.lap("configure")
    measured = executor.start(config, decoder, files, max_drafts=_most_drafts(config, max_drafts), draft=draft)
    clock.took(measured.seconds)
    num_pages, longest = _pages(config, measured, asked=model.max_model_len)
    executor.allocate(num_pages)
    clock.lap("kv_cache")
    executor.capture()
    compiler = _compiler(config, files, text, catalogue, vocab_size=decoder.vocab_size)
    slots, kv = Slots(_set(config.scheduler.max_num_seqs), longest), _cache(config, measured, num_pages)
    constraints = Constraints(compiler, executor.allocate_masks, jump=config.grammar.jump_forward)
    speculation, lent = speculate(config, slots, kv, executor), adapters_of(config, slots, executor)
    pause, inputs, spread = Pause(), inputs_of(config, decoder, files), _spread(config, decoder, executor)
    clock.lap("graphs")
    stored, asleep = stores_of(config, decoder, files, draft, measured=measured, kv=kv, executor=executor), Asleep()
    guests: tuple[Guest, ...] = (*_beside(config, decoder, slots, thinning), lent, inputs, speculation, stored, spread)
    mine = (*_lasting(kv, slots, constraints, guests), pause, asleep, *stakes(slots))
    scheduler = _scheduler(config, slots, mine, kv)
    changes = changing(asleep, executor, scheduler, kv, adapted=enabled(config))
    engine = Engine(
        scheduler,
        executor,
        _intake(config, decoder, longest),
        depth=_set(config.scheduler.depth),
        gauges=(kv.gauges, constraints.gauges, *changes.gauges, *(gauge for guest in guests for gauge in guest.gauges)),
        pages=kv.pages,
        commands={**_commands(kv, slots, mine), **lent.commands, **spread.commands, **pause.commands},
        **changes.beside(pause.status),
    )
    told = *_told(decisions, longest), _pool_decision(measured, num_pages), *speculation.decisions, *inputs.decisions
    facts = _facts(config, decoder, measured, told, clock.laps, num_pages, longest, inputs, stored)
    return Launched(engine, facts, compiler)


def _files(model: ModelConfig, given: ModelFiles | None, catalogue: Catalogue) -> ModelFiles:
    if model.load_format == "dummy":
        lean.whole_torch()
    return given or find_configured(model, families=catalogue.families)


def _resolved(
    config: Config, decoder: Decoder | Foreign, files: ModelFiles, catalogue: Catalogue
) -> tuple[Config, tuple[Decision, ...], DraftModel | None, Thinning]:
    """With the model that drafts, if there is one, and what thins prompts."""
    config, draft = _placed(config), draft_of(config, decoder, files, catalogue)
    _firsts(config, decoder)  # what cannot be is told now
    if draft is not None and config.parallel.pipeline_parallel_size > 1:
        raise ConfigError(
            "--pipeline-parallel-size: a model or head that drafts runs beside the whole of another, which no stage has. Leave out one "
            "of the two, or draft by --speculation ngram."
        )
    config, decisions = resolve(config, shape_beside(decoder, files, draft, config), probe(config.device.device))
    return config, decisions, draft, thinning_of(config, decoder, files, catalogue)


def _placed(config: Config) -> Config:
    """With the device of the first rank of this one of several engines, where devices have numbers."""
    if not config.parallel.replica or not (first := probe(config.device.device)).rules.numbered:
        return config
    index = first.index + config.parallel.replica * config.parallel.ranks
    return replace(config, device=replace(config.device, device=f"{first.kind}:{index}"))


def _executor(config: Config, catalogue: Catalogue) -> Executor:
    """This process, or several that compute together."""
    ranks = config.parallel.ranks
    if ranks == 1:
        return executor_of(config, catalogue, None)
    segment = Segment.create(ranks)
    return Ranks(executor_of(config, catalogue, segment), segment, lambda: spawn(RANK))


def _spread(config: Config, decoder: Decoder | Foreign, executor: Executor) -> ExpertLoad:
    return ExpertLoad(executor.expert_tokens, _firsts(config, decoder))


def _firsts(config: Config, decoder: Decoder | Foreign) -> Sequence[int]:
    """The first expert of each rank, where they have whole ones, else none."""
    options = config.parallel
    return firsts(decoder, options.tensor_parallel_size or 1) if options.experts_apart else ()


def _lasting(kv: KVCache, slots: Slots, constraints: Constraints, guests: Sequence[Guest]) -> tuple[Stake, ...]:
    """The stakes of every engine, and of this one's guests."""
    mine = KVStake(kv, slots), Borders(kv, slots), Texts(kv, slots), GrammarStake(constraints, slots)
    return *mine, *(stake for guest in guests for stake in guest.stakes)


def _beside(config: Config, decoder: Decoder | Foreign, slots: Slots, thinning: Thinning) -> tuple[Guest, ...]:
    return *_encoding(config, decoder, slots), thinning.seated()


def _encoding(config: Config, decoder: Decoder | Foreign, slots: Slots) -> tuple[Alone, ...]:
    """Of a model that sees."""
    if decoder.encoder is None or not isinstance(decoder.encoder, Tower):
        return ()
    tower = decoder.encoder
    _, largest = tower.largest(_set(config.model.max_model_len))
    budget = _set(config.scheduler.max_num_batched_tokens)
    others = _set(config.scheduler.max_num_seqs) - 1  # they may run on for ever, and take a token each
    if tower.ahead and largest > (most := min(budget - others, config.scheduler.chunked_prefill_size or budget)):
        raise ConfigError(
            f"beside {others} others a step has {most} tokens for a prompt, and an image of {largest} positions, which see each other, is fed "
            "whole: raise --max-num-batched-tokens or --chunked-prefill-size, lower --max-num-seqs, or leave out images (--language-model-only)."
        )
    itemsize = ITEMSIZE[config.model.dtype]
    rows = encoder_rows(config, largest=largest, width=tower.width, itemsize=itemsize)
    attic = Attic(config.sight.encoder_cache_host_memory // (tower.width * itemsize))
    stake = EncodeStake(slots, Room(rows), budget=budget, whole=tower.ahead, attic=attic)
    return (Alone((stake,), (stake.gauges,)),)


def _cache(config: Config, measured: Measured, num_pages: Sequence[int]) -> KVCache:
    reuse = config.cache.prefix_caching and all(group.lasts for group in measured.groups)
    return KVCache(measured.groups, num_pages, reuse=reuse, anchors="tree" in drafters(config))


def _most_drafts(config: Config, others: int) -> int:
    """Drafts that a row feeds at most, those of `others` than the configuration's."""
    return max(_set(config.speculation.num_speculative_tokens), others)


def _intake(config: Config, decoder: Decoder | Foreign, longest: int) -> Intake:
    return Intake(
        longest=longest,
        vocab_size=decoder.vocab_size,
        seed=config.device.seed,
        grammars=True,
        adapters=enabled(config),
        tasks=tasks_of(decoder),
        media=media_of(decoder),
    )


def _facts(
    config: Config,
    decoder: Decoder | Foreign,
    measured: Measured,
    decisions: Sequence[Decision],
    seconds: dict[str, float],
    num_pages: list[int],
    longest: int,
    inputs: InputsOf,
    stored: Stores,
) -> Facts:
    return Facts(
        max_model_len=longest,
        vocab_size=decoder.vocab_size,
        max_num_seqs=_set(config.scheduler.max_num_seqs),
        max_num_batched_tokens=_set(config.scheduler.max_num_batched_tokens),
        page_size=_set(config.cache.page_size),
        num_pages=num_pages,
        device=config.device.device,
        dtype=config.model.dtype,
        attention_backend=measured.backends[0],
        seconds_to_ready=seconds,
        decisions=[
            str(decision) for decision in (*decisions, *_computed(measured), *_scaled(config, decoder, decisions))
        ],
        tasks=tuple(tag_of(task) for task in tasks_of(decoder)),
        classifier=None if decoder.classifier is None else decoder.classifier.pooling,
        pooling="last" if all(group.lasts for group in measured.groups) else "mean",
        vector_size=decoder.hidden_size,
        media=media_of(decoder),
        max_lora_rank=config.adapters.max_lora_rank if enabled(config) else None,
        reading=inputs.reading,
        door=stored.door,
        insights=_insights(decoder, measured),
        max_pixels=config.sight.max_pixels if _scales(decoder) else None,
    )


def _insights(decoder: Decoder | Foreign, measured: Measured) -> dict[Insight, int]:
    """What can be told of each position, and how many numbers each is."""
    if Generate not in tasks_of(decoder):
        return {}
    found: dict[Insight, int] = {"hidden_states": decoder.hidden_size, "logits": decoder.vocab_size}
    return found | ({"routed_experts": measured.num_routed} if measured.num_routed else {})


def _scales(decoder: Decoder | Foreign) -> bool:
    return isinstance(decoder.encoder, Tower) and decoder.encoder.scales


def _scaled(config: Config, decoder: Decoder | Foreign, decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """To how many pixels images are scaled down, where nobody has said and it matters."""
    if not _scales(decoder) or any(one.field == "max_pixels" for one in decisions):
        return ()
    why = rules_of(config.device.device).image_pixels[1]
    return (Decision("max_pixels", config.sight.max_pixels, why),)


def _computed(measured: Measured) -> tuple[Decision, ...]:
    """Which kernels compute the model, where there is a choice."""
    return () if measured.computed_by is None else (Decision("computed_by", *measured.computed_by),)


def _commands(kv: KVCache, slots: Slots, stakes: Sequence[Stake]) -> dict[str, Callable[..., dict[str, Any]]]:
    encoding = [stake for stake in stakes if isinstance(stake, EncodeStake | InputStake)]
    return {
        "explain": Explanation(kv),
        "flush_cache": lambda: {"freed_pages": kv.flush()},
        "flush_encoders": lambda: {"freed_inputs": sum(stake.flush() for stake in encoding)},
        "tree": Sketch(kv.tree, slots.running).go_on,
    }


def _compiler(
    config: Config, files: ModelFiles, text: TextModel | None, catalogue: Catalogue, *, vocab_size: int
) -> Compiler:
    """Its threads load the vocabulary when it is needed; a model without a tokenizer is an error of the requests that have a grammar."""

    def vocabulary() -> Vocabulary:
        from sapwood.text import TextModel

        try:
            mine = text or TextModel.configured(files, config.model, catalogue.formats)
        except (ConfigError, ModelError) as error:
            raise GrammarError(f"the model's tokenizer cannot be read: {error}") from error
        return Vocabulary(spec_of(mine, vocab_size))

    # In the host's own memory it counts, and most servers never need it; elsewhere what running requests would wait meanwhile.
    apart = rules_of(config.device.device).own_memory
    return Compiler(vocabulary, compact_json=config.grammar.compact_json, at_once=apart)


def _scheduler(config: Config, slots: Slots, stakes: Sequence[Stake], kv: KVCache) -> Scheduler:
    options = config.scheduler
    return Scheduler(
        slots,
        stakes,
        max_num_batched_tokens=_set(options.max_num_batched_tokens),
        chunked_prefill_size=options.chunked_prefill_size,
        policy=_set(options.policy),
        peek=kv.peek,
    )


def _pages(config: Config, measured: Measured, *, asked: int | None) -> tuple[list[int], int]:
    """Pages per KV group, and the longest sequence that they and the options allow, `asked` for or derived."""
    step_tokens = _set(config.scheduler.max_num_batched_tokens)
    wanted = _set(config.model.max_model_len)
    num_pages = split_pages(
        measured.groups,
        measured.kv_bytes,
        page_bytes=[page_bytes(config, group) for group in measured.groups],
        max_num_seqs=_set(config.scheduler.max_num_seqs),
        step_tokens=step_tokens,
        max_tokens=config.cache.max_total_tokens,
        longest=wanted,
    )
    longest = min(wanted, longest_sequence(measured.groups, num_pages, step_tokens=step_tokens))
    if longest < 2:
        raise ConfigError("too little memory: the KV cache does not hold one short sequence. Raise --kv-cache-memory.")
    if asked is not None and longest < asked:
        raise ConfigError(
            f"--max-model-len ({asked}) does not fit: the KV cache holds {longest} tokens. Lower it, or raise "
            "--kv-cache-memory or --mem-fraction-static."
        )
    return num_pages, longest


def _told(decisions: tuple[Decision, ...], longest: int) -> tuple[Decision, ...]:
    """The decisions as they turned out: `resolve` could only estimate what the cache would hold."""
    return tuple(
        Decision(decision.field, longest, "what the KV cache holds")
        if decision.field == "max_model_len" and decision.value > longest
        else decision
        for decision in decisions
    )


def _pool_decision(measured: Measured, num_pages: list[int]) -> Decision:
    pools = [
        f"{(count - 1) * group.page_size} tokens" + (f" (window {group.window})" if group.window else "")
        for group, count in zip(measured.groups, num_pages, strict=True)
    ]
    return Decision("kv_cache", " + ".join(pools), f"{sum(num_pages)} pages of {measured.groups[0].page_size}")


def _set(value: T | None) -> T:
    assert value is not None, "resolve() leaves no option open"
    return value


class _Clock:
    """Seconds of each part of the start."""

    def __init__(self, now: Callable[[], float] = perf_counter) -> None:
        self.laps: dict[str, float] = {}
        self._now = now
        self._last = now()

    def lap(self, name: str) -> None:
        now = self._now()
        self.laps[name] = round(now - self._last, 3)
        self._last = now

    def took(self, seconds: Mapping[str, float]) -> None:
        """What has passed since the last lap, taken apart by whom it was spent."""
        self.laps |= {name: round(part, 3) for name, part in seconds.items()}
        self._last = self._now()
