"""One rank at work: a model, its KV cache, and the steps that a host plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from sapwood.arch.network import Network
from sapwood.base.abilities import Ability
from sapwood.base.pages import Pager, Rooms
from sapwood.base.plan import Bits, Ints, LatePart, Longs, Outcome, Plan
from sapwood.base.weights import Given, Held, Level
from sapwood.config.options import Config
from sapwood.config.thinning import thinned
from sapwood.hub.draft import DraftModel
from sapwood.hub.files import ModelFiles
from sapwood.hub.pull import Progress, silent
from sapwood.nn import renew
from sapwood.nn.adapted import Bank, NoBank
from sapwood.nn.experts import chosen
from sapwood.nn.model import Model
from sapwood.nn.native import NativeModel
from sapwood.parallel import ALONE, NO_PIPE, Mesh, Pipe
from sapwood.runner.adapters import Shelf
from sapwood.runner.assemble import Beside, Choices, assemble, beside, give_weights, portion
from sapwood.runner.away import Away
from sapwood.runner.choose import Chooser, Onlooker, Told, Work, read
from sapwood.runner.companion import Companion
from sapwood.runner.graphs import Graphs
from sapwood.runner.inputs import InputReader
from sapwood.runner.pager import DevicePager, HostPager, aside, pager
from sapwood.runner.parts import Memory, after, before
from sapwood.runner.profile import heaviest_plan
from sapwood.runner.seers import seer
from sapwood.runner.sight import Sight, sight_of
from sapwood.runner.step import Step
from sapwood.runner.table import Table
from sapwood.sampling.warm import warm

_NOTHING: Ints = np.zeros(0, np.int32)


class Worker:
    """Runs plans, in the order in which they come, on one device.

    Order of calls, all from one thread: `load`, `kv_budget`, `allocate`, `capture`, then steps. Neither `forward` nor `sample`
    waits for the device. `config` must be resolved. Without `files` the weights are random. A row feeds `max_drafts` drafts
    at most, which a `draft` model may propose; `choices` are what it is put together from. All ranks of a `mesh`, and
    all stages of a `pipe`, run the same plans; those but the last are told what was drawn (`settle`).
    """

    def __init__(
        self,
        config: Config,
        decoder: Network,
        files: ModelFiles | None = None,
        *,
        max_drafts: int = 0,
        draft: DraftModel | None = None,
        choices: Choices = Choices(),  # noqa: B008 (immutable)
        mesh: Mesh = ALONE,
        pipe: Pipe = NO_PIPE,
    ) -> None:
        assert config.model.max_model_len is not None
        assert config.scheduler.max_num_seqs is not None
        assert config.scheduler.max_num_batched_tokens is not None
        self.config, self.decoder = config, decoder
        self._files = None if config.model.load_format == "dummy" else files
        self._max_len = config.model.max_model_len
        self._max_rows = config.scheduler.max_num_seqs
        self._max_tokens = config.scheduler.max_num_batched_tokens
        self._max_drafts, self._draft, self._choices, self._mesh = max_drafts, draft, choices, mesh
        self._pipe = pipe
        self._pagers: list[HostPager | DevicePager] = []
        self._num_pages: Sequence[int] = ()
        self._away: Away | None = None
        self._gone: set[Held] = set()

    @property
    def _draft_files(self) -> ModelFiles | None:
        return None if self._files is None or self._draft is None else self._draft.files

    def load(self, progress: Progress = silent) -> None:
        """Build the model and give it its weights. Raises ModelError if they do not fit."""
        drafts, mesh, config, choices = self._max_drafts, self._mesh, self.config, self._choices
        part = portion(config, self.decoder, choices, self._files, mesh, self._pipe)
        beside_it = () if self._draft is None else (self._draft.decoder,)
        others = [portion(config, other, choices, self._draft_files, mesh) for other in beside_it]
        self.rank = rank = assemble(
            config, part, choices, self._files, others, max_drafts=drafts, mesh=mesh, pipe=self._pipe
        )
        mine = [beside(rank, self.config, other, self._choices, self._draft_files) for other in others]
        self.backends = [*rank.backends, *(backend for one in mine for backend in one.backends)]
        self.groups, self.device, self.model = rank.groups, rank.device, rank.model
        self._models = [rank.model, *(one.model for one in mine)]
        with torch.inference_mode():
            self.table = Table(
                num_slots=self._max_rows,
                max_len=self._max_len,
                groups=rank.groups,
                device=rank.device.place,
                gaps=thinned(config),
            )
            self.shelf, sight = self._shelf(rank.bank), self._sight()
            self._memory = Memory(self.table, self.backends, sight, self._reader(), self.shelf)
            self.companion = self._companion(mine[0]) if mine else None
            vocab_size, heads = self.decoder.vocab_size, None
            if self._graph_tokens:
                heads = self._graph_tokens if self._max_drafts else self._max_rows
            self._step = Step(
                rank, self.table, vocab_size=vocab_size, max_heads=heads, follower=self.companion, sight=sight
            )
            made = Chooser if part.stage.ends else Onlooker
            self._chooser = made(rank, self.table, self._step, vocab_size=vocab_size)
            compiled = self._compile()
        give_weights(rank.model, self._files, seed=self.config.device.seed, progress=progress)
        for one in mine:
            give_weights(one.model, self._draft_files, seed=self.config.device.seed, progress=progress)
        compiled()

    def _sight(self) -> Sight | None:
        sizes = {"num_slots": self._max_rows, "max_len": self._max_len}
        return sight_of(self.decoder, self.config, self.model.encoder, **sizes, device=self.device)

    def _reader(self) -> InputReader | None:
        if self.rank.pool is None:
            return None
        assert isinstance(self.model, Model | NativeModel), "no other has layers that look at inputs"
        return InputReader(self.model, self.rank.pool, most=max(self._max_tokens, self.rank.pool.longest))

    def _shelf(self, bank: Bank | None) -> Shelf | None:
        """What keeps adapters for the device, where there may be some."""
        if bank is None:
            return None
        most = self.config.adapters.max_cpu_loras
        assert most is not None, "a resolved configuration"
        return Shelf(bank, most=most, dtype=self.rank.dtype, pinned=self.device.can(Ability.PINNED))

    def _companion(self, mine: Beside) -> Companion:
        made = seer(mine.model, nobody=self.table.nobody, most=self._max_drafts + 1, dtype=self.rank.dtype)
        return Companion(made, mine.backends, self.table, self.groups, max_tokens=self._max_tokens)

    def _compile(self) -> Callable[[], None]:
        """Begin to compile what steps will launch; what is returned waits for it."""
        if (
            not self.device.can(Ability.TRITON) or self._mesh.size * self._pipe.count > 1
        ):  # a process beside this one would be no rank
            return lambda: None
        from sapwood.runner.ahead import compile_ahead

        options = self.config.model.dtype, self.config.cache.kv_cache_dtype, self.config.device.attention_backend
        sizes = self._max_len, self._max_rows, self._max_tokens, self._graph_tokens, self.config.cache.page_size
        device = self.device.facts.capability, sorted(self.device.facts.abilities)
        # Blocks of a GGUF file are kept as they are, and which they are shows in its size.
        files = [one.stored_bytes for one in (self._files, self._draft_files) if one is not None]
        stored = self.config.model.quantization, files
        adapters = self.config.adapters.max_loras, self.config.adapters.max_lora_rank, self.rank.bank is not None
        facts = (
            device,
            self.decoder,
            adapters,
            options,
            sizes,
            self._max_drafts,
            self._draft and self._draft.decoder,
            stored,
        )
        return compile_ahead(facts, self._rehearse)

    def _rehearse(self) -> None:
        """Launch what steps will launch."""
        self._warm()  # first what takes longest to compile
        self.allocate([2] * len(self.groups))
        for graphs in self._make_graphs():
            if graphs is not None:
                graphs.rehearse()

    def _warm(self) -> None:
        warm(self.decoder.vocab_size, self.rank.dtype, self.table.settings_SK)

    def agreed(self, seconds: float) -> float:
        """The mean of what all ranks have measured, so that all decide alike."""
        if self._mesh.size == 1:
            return seconds
        mine = torch.tensor([[seconds]], dtype=torch.float64, device=self.device.place)
        return float(self._mesh.sum(mine)) / self._mesh.size

    @property
    def _graph_tokens(self) -> int | None:
        """Tokens of the largest step that is a graph; None where there are no graphs."""
        options = self.config.device
        wanted = self.device.can(Ability.GRAPHS) and options.cuda_graphs and self._pipe.count == 1
        wanted = wanted and not any(getattr(backend, "waits", False) for backend in self.rank.backends)
        return options.cuda_graph_max_tokens if wanted else None

    # -- memory ---------------------------------------------------------------------------------------------------

    def kv_budget(self) -> int:
        """Bytes that the KV cache may take: as configured, or what the heaviest step leaves of the device's share."""
        if self.config.cache.kv_cache_memory is not None:
            return self.config.cache.kv_cache_memory
        assert self.config.cache.memory_fraction is not None, "a resolved configuration"
        self.device.release()
        total, others = self.device.memory()
        self.allocate([2] * len(self.groups))
        peak = self.device.peak(self._heaviest)
        self.device.release()
        peak += self._graph_memory() + aside(self.config, self.device)
        return max(0, int(total * self.config.cache.memory_fraction) - others - peak)

    @torch.inference_mode()
    def _heaviest(self) -> None:
        if self._memory.reader is not None:
            self._memory.reader.read_most()
        if self._memory.sight is not None:
            self._memory.sight.encode_largest()
        bank, generates = self.rank.bank or NoBank(), not self._step.headless
        bank.lend(True)
        work = self.forward(heaviest_plan(self._max_rows, self._max_tokens, self._max_len, generates=generates))
        self.sample(work)
        self.result(work)
        bank.lend(False)

    @torch.inference_mode()
    def _graph_memory(self) -> int:
        """Bytes that all graphs together will take: what the largest need to compute, and something for each one."""
        taken, made = 0, [one for one in self._make_graphs() if one is not None]
        for graphs in made:
            largest, each = self.device.taken(graphs.capture_largest), self.device.taken(graphs.capture_next)
            taken += largest + each * graphs.num_ahead
        if made:
            made.clear()
            del graphs
            self.device.release()
        return taken

    def _make_graphs(self) -> list[Graphs[Any] | None]:
        """Those of steps, of the model that drafts if there is one, of steps that it leaves out, and of steps with adapters; none of them is
        captured yet."""
        if self._graph_tokens is None or self._step.headless:
            return []  # whoever generates nothing has steps of whole texts, of all sizes
        step = partial(
            self._step.make_graphs,
            max_rows=self._max_rows,
            max_tokens=self._graph_tokens,
            drafts=self._max_drafts > 0,
        )
        adapted = None if self.rank.bank is None else step(adapted=True)
        if self.companion is None:
            return [step(), None, None, adapted]
        passes = self.companion.make_graphs(max_rows=self._max_rows)
        return [step(), passes, None if self.companion.trail is None else step(alone=True), adapted]

    def _use(self, graphs: Sequence[Graphs[Any] | None]) -> None:
        self._graphs: Sequence[Graphs[Any]] = [one for one in graphs if one is not None]
        self._step.graphs, passes, self._step.graphs_alone, self._step.graphs_adapted = graphs or (None,) * 4
        if self.companion is not None:
            self.companion.graphs = passes

    @torch.inference_mode()
    def allocate(self, num_pages: Sequence[int]) -> None:
        """Take the memory of the KV cache, so many pages for each group."""
        self._use(())
        for backend, number in zip(self.backends, num_pages, strict=True):
            backend.allocate(number)
        self._allocated = num_pages
        for one in self._pagers:
            one.reach(self.backends)

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the graphs that take the most memory, and compile what no graph holds.

        Steps before this are launched kernel by kernel.
        """
        self._use(self._make_graphs())
        for graphs in self._graphs:
            graphs.capture_largest()
        if self.device.can(Ability.TRITON):
            self._warm()

    @torch.inference_mode()
    def tidy(self) -> bool:
        """Do a piece of work that steps will be glad of, while there are none; False if there is none to do."""
        return any(graphs.capture_next() for graphs in reversed(self._graphs))

    def pager(self, num_blocks: Sequence[int], memory: Rooms | None = None) -> Pager:
        """What moves pages of each group through so many blocks of the host's memory, made by `memory` where that is the device's."""
        self._pagers.append(made := pager(self.backends, self.device, num_blocks, memory))
        return made

    # -- other weights, and sleep -----------------------------------------------------------------------------------

    def check_weights(self, given: Given) -> None:
        """See `Executor.check_weights`."""
        renew.check(self.model, given)

    @torch.inference_mode()
    def take_weights(self, given: Given) -> None:
        """See `Executor.take_weights`."""
        renew.refill(self.model, given)
        if self._graphs and renew.moved(self.model):
            self.capture()

    @torch.inference_mode()
    def release(self, held: Sequence[Held], level: Level) -> None:
        """See `Executor.release`."""
        if "kv_cache" not in self._gone:
            self._num_pages = self._allocated
            self.allocate([2] * len(self.groups))  # as few as there can be: whoever holds pools goes on to
            self._gone.add("kv_cache")
        if "weights" in held and "weights" not in self._gone:
            if level == 1:
                self._away = Away(self._models, self.device)
            else:
                self._drop()
            self._gone.add("weights")
        self.device.release()

    def restore(self, held: Sequence[Held]) -> None:
        """See `Executor.restore`."""
        if "weights" in held and "weights" in self._gone:
            if self._away is not None:
                self._away.back()
                self._away = None
            else:
                self.load()
                self.allocate([2] * len(self.groups))
            self._gone.remove("weights")
        if "kv_cache" in held and "kv_cache" in self._gone:
            self.allocate(self._num_pages)
            self._gone.remove("kv_cache")
        if not self._gone:
            self.capture()

    # -- steps ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, plan: Plan) -> Work:
        """Start a step, up to the tokens that are drawn at once."""
        for part in plan.parts:
            before(part, self._memory)
        self._chooser.watch(plan)
        drafts_N = None if self.companion is None else self.companion.propose(plan)
        told = None if drafts_N is None else Told(drafts_N, self.device.mark())
        return Work(plan, self._step.forward(plan), told)

    def proposed(self, work: Work) -> Ints:
        """See `Executor.proposed`."""
        return _NOTHING if work.told is None else work.told.read()

    def allocate_masks(self, num_rows: int, width: int | None = None) -> Bits:
        """Memory for the masks of so many heads."""
        return self._chooser.allocate_masks(num_rows, width)

    @torch.inference_mode()
    def sample(self, work: Work, late: Sequence[LatePart] = ()) -> None:
        """Choose the tokens that were not drawn at once, and start the way of all to the host."""
        self._chooser.choose(work, late)
        for part in late:
            after(part, self._memory)
        work.done = self.device.mark()

    @torch.inference_mode()
    def settle(self, work: Work, drawn: Ints) -> None:
        """Write what another stage has drawn at the heads of a step, before what comes behind it is forwarded."""
        self._step.settle(work.left, torch.from_numpy(drawn.copy()).to(self.device.place))

    def result(self, work: Work) -> Outcome:
        """Wait for a step and read what it yielded."""
        if work.done is not None:
            work.done.synchronize()
        return read(work)

    def expert_tokens(self) -> Longs:
        """How many tokens have chosen each expert of each layer here."""
        if self._loaded and isinstance(self.model, Model):
            return chosen(self.model)
        return np.zeros((0, 0), np.int64)

    @property
    def _loaded(self) -> bool:
        return "weights" not in self._gone or self._away is not None

    def shutdown(self) -> None:
        """Give the device's memory back."""
        if self._loaded:
            self._drop()
        self.device.release()

    def _drop(self) -> None:
        """All that `load` has made."""
        del self.rank, self.model, self._models, self.backends, self.table, self._memory, self._step, self._chooser
        del self.companion
        self._graphs = ()
