"""One rank at work: a model, its KV cache, and the steps that a host plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sapwood.arch.parts import Decoder
from sapwood.base.abilities import Ability
from sapwood.base.plan import Bits, LatePart, Outcome, Plan
from sapwood.config.options import Config
from sapwood.hub.files import ModelFiles
from sapwood.runner.assemble import Choices, assemble, give_weights
from sapwood.runner.choose import Chooser, Work, read
from sapwood.runner.graphs import Graphs
from sapwood.runner.parts import Memory, after, before
from sapwood.runner.profile import heaviest_plan
from sapwood.runner.step import Pass, Step
from sapwood.runner.table import Table
from sapwood.sampling.warm import warm


class Worker:
    """Runs plans, in the order in which they come, on one device.

    Order of calls, all from one thread: `load`, `kv_budget`, `allocate`, `capture`, then steps. Neither `forward` nor `sample`
    waits for the device. `config` must be resolved. Without `files` the weights are random. A row feeds `max_drafts` drafts
    at most; `choices` are what it is put together from.
    """

    def __init__(
        self,
        config: Config,
        decoder: Decoder,
        files: ModelFiles | None = None,
        *,
        max_drafts: int = 0,
        choices: Choices = Choices(),  # noqa: B008 (immutable)
    ) -> None:
        assert config.model.max_model_len is not None
        assert config.scheduler.max_num_seqs is not None
        assert config.scheduler.max_num_batched_tokens is not None
        self.config, self.decoder = config, decoder
        self._files = None if config.model.load_format == "dummy" else files
        self._max_len = config.model.max_model_len
        self._max_rows = config.scheduler.max_num_seqs
        self._max_tokens = config.scheduler.max_num_batched_tokens
        self._max_drafts, self._choices = max_drafts, choices

    def load(self) -> None:
        """Build the model and give it its weights. Raises ModelError if they do not fit."""
        self.rank = rank = assemble(self.config, self.decoder, self._choices)
        self.groups, self.device, self.backends, self.model = rank.groups, rank.device, rank.backends, rank.model
        with torch.inference_mode():
            self.table = Table(
                num_slots=self._max_rows, max_len=self._max_len, groups=rank.groups, device=rank.device.place
            )
            self._memory = Memory(self.table, rank.backends)
            vocab_size, heads = self.decoder.vocab_size, None
            if self._graph_tokens:
                heads = self._graph_tokens if self._max_drafts else self._max_rows
            self._step = Step(rank, self.table, vocab_size=vocab_size, max_heads=heads)
            self._chooser = Chooser(rank, self.table, self._step, vocab_size=vocab_size)
            compiled = self._compile()
        give_weights(rank, self._files, seed=self.config.device.seed)
        compiled()

    def _compile(self) -> Callable[[], None]:
        """Begin to compile what steps will launch; what is returned waits for it."""
        if not self.device.can(Ability.TRITON):
            return lambda: None
        from sapwood.runner.ahead import compile_ahead

        options = self.config.model.dtype, self.config.cache.kv_cache_dtype, self.config.device.attention_backend
        sizes = self._max_len, self._max_rows, self._max_tokens, self._graph_tokens, self.config.cache.page_size
        device = self.device.facts.capability, sorted(self.device.facts.abilities)
        facts = device, self.decoder, options, sizes, self._max_drafts
        return compile_ahead(facts, self._rehearse)

    def _rehearse(self) -> None:
        """Launch what steps will launch."""
        self._warm()  # first what takes longest to compile
        self.allocate([2] * len(self.groups))
        if (graphs := self._make_graphs()) is not None:
            graphs.rehearse()

    def _warm(self) -> None:
        warm(self.decoder.vocab_size, self.rank.dtype, self.table.settings_SK)

    @property
    def _graph_tokens(self) -> int | None:
        """Tokens of the largest step that is a graph; None where there are no graphs."""
        options = self.config.device
        wanted = self.device.can(Ability.GRAPHS) and options.cuda_graphs
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
        peak += self._graph_memory()
        return max(0, int(total * self.config.cache.memory_fraction) - others - peak)

    def _heaviest(self) -> None:
        work = self.forward(heaviest_plan(self._max_rows, self._max_tokens, self._max_len))
        self.sample(work)
        self.result(work)

    @torch.inference_mode()
    def _graph_memory(self) -> int:
        """Bytes that all graphs together will take: what the largest need to compute, and something for each one."""
        if (graphs := self._make_graphs()) is None:
            return 0
        largest = self.device.taken(graphs.capture_largest)
        each = self.device.taken(graphs.capture_next)
        number = graphs.num_ahead
        del graphs
        self.device.release()
        return largest + each * number

    def _make_graphs(self) -> Graphs[Pass] | None:
        if self._graph_tokens is None:
            return None
        return Graphs(
            self._step.compute_for_graph,
            self.table,
            max_rows=self._max_rows,
            max_tokens=self._graph_tokens,
            tile=self._step.tile,
            drafts=self._max_drafts > 0,
        )

    @torch.inference_mode()
    def allocate(self, num_pages: Sequence[int]) -> None:
        """Take the memory of the KV cache, so many pages for each group."""
        self._step.graphs = None
        for backend, number in zip(self.backends, num_pages, strict=True):
            backend.allocate(number)

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the graphs that take the most memory, and compile what no graph holds.

        Steps before this are launched kernel by kernel.
        """
        self._step.graphs = self._make_graphs()
        if self._step.graphs is not None:
            self._step.graphs.capture_largest()
        if self.device.can(Ability.TRITON):
            self._warm()

    @torch.inference_mode()
    def tidy(self) -> bool:
        """Do a piece of work that steps will be glad of, while there are none; False if there is none to do."""
        return self._step.graphs is not None and self._step.graphs.capture_next()

    # -- steps ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, plan: Plan) -> Work:
        """Start a step, up to the tokens that are drawn at once."""
        for part in plan.parts:
            before(part, self._memory)
        return Work(plan, self._step.forward(plan))

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

    def result(self, work: Work) -> Outcome:
        """Wait for a step and read what it yielded."""
        if work.done is not None:
            work.done.synchronize()
        return read(work)

    def shutdown(self) -> None:
        """Give the device's memory back."""
        device = self.device
        del self.rank, self.model, self.backends, self.table, self._memory, self._step, self._chooser
        device.release()
