"""One rank at work: the model, its KV cache, and the steps that a host plans.

Suffix legend: T tokens of the step, R rows, N rows that yield, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sapwood import kernels
from sapwood.arch.groups import kv_groups
from sapwood.arch.parts import Decoder
from sapwood.attention.base import Backend, Limits, Shared, Spans, tile_members
from sapwood.attention.native import Native
from sapwood.attention.select import choose, stored
from sapwood.base.errors import ConfigError
from sapwood.base.plan import Bits, Ints, Longs, Outcome, PageCopy, Plan
from sapwood.config.options import Config
from sapwood.hub.files import ModelFiles
from sapwood.kernels.cpu.library import Machine, find
from sapwood.nn.build import Build, build
from sapwood.nn.load import dummy_weights, load_weights
from sapwood.nn.model import Model
from sapwood.nn.native import NativeModel
from sapwood.quant.packed import Rounded
from sapwood.runner import frame, shared
from sapwood.runner.batch import Batcher, Heads, spans_of
from sapwood.runner.frame import Frame
from sapwood.runner.graphs import Graphs, memory_of
from sapwood.runner.profile import heaviest_plan
from sapwood.runner.table import Table
from sapwood.runner.transfer import download, upload
from sapwood.runner.yields import Yields, find_special
from sapwood.sampling.fast import draw
from sapwood.sampling.logprobs import Logprobs, as_rows, logprobs
from sapwood.sampling.masks import restricted
from sapwood.sampling.sampler import sample
from sapwood.sampling.warm import warm

_NOT_FINITE = "the model computed logits that are not finite for this request"
_SCORED_ELEMENTS = 1 << 25  # most logits that exist at once when a prompt is scored


@dataclass(frozen=True, eq=False)
class Scored:
    """Some prompt tokens of one row, what was found of them, and how many alternatives are asked for."""

    row: int
    tokens: Ints
    found: Logprobs
    num_top: int


@dataclass(frozen=True, eq=False)
class Pass:
    """What a step leaves on the device. `logits_NV` and `drawn_N` (int32) are None where no row yields.

    `drawn_N` are -1 in rows without finite logits, and mean nothing in rows of Kind.SPECIAL. `hidden_TD` is None where
    nobody will ask for it. All may be overwritten by the next step's.
    """

    heads: Heads
    hidden_TD: Tensor | None
    logits_NV: Tensor | None
    drawn_N: Tensor | None


@dataclass(eq=False)
class Work:
    """A step on its way. `forward` fills the first part, `sample` the rest, in host memory once `done` has passed.

    `rows` are those of the plan that yield, `tokens_N` their tokens, -1 in rows without finite logits.
    """

    plan: Plan
    left: Pass
    rows: Longs

    special: Yields | None = None
    tokens_N: Tensor | None = None
    logprobs: Logprobs | None = None
    scored: list[Scored] = field(default_factory=list)
    done: torch.cuda.Event | None = None


class Worker:
    """Runs plans, in the order in which they come, on one device.

    Order of calls, all from one thread: `load`, `kv_budget`, `allocate`, `capture`, then steps. Neither `forward` nor `sample`
    waits for the device. `config` must be resolved. Without `files` the weights are random.
    """

    def __init__(self, config: Config, decoder: Decoder, files: ModelFiles | None = None) -> None:
        assert config.cache.page_size is not None
        assert config.model.max_model_len is not None
        assert config.scheduler.max_num_seqs is not None
        assert config.scheduler.max_num_batched_tokens is not None
        self.config, self.decoder = config, decoder
        self.device = torch.device(config.device.device)
        self.dtype: torch.dtype = getattr(torch, config.model.dtype)
        self.groups = kv_groups(decoder, config.cache.page_size)
        self._files = None if config.model.load_format == "dummy" else files
        self._tile = tile_members(self.groups)
        self._max_len = config.model.max_model_len
        self._max_rows = config.scheduler.max_num_seqs
        self._max_tokens = config.scheduler.max_num_batched_tokens
        self._graph_tokens = config.device.cuda_graph_max_tokens if config.device.cuda_graphs else None
        self._steady: tuple[Ints, Yields | None] | None = None
        self._graphs: Graphs[Pass] | None = None
        self._logits_NV: Tensor | None = None
        self._room_MW: Tensor | None = None
        self._uploads: torch.cuda.Stream | None = None

    @torch.inference_mode()
    def load(self) -> None:
        """Build the model and give it its weights. Raises ModelError if they do not fit."""
        if self.config.device.threads is not None:
            torch.set_num_threads(self.config.device.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        machine = self._machine()
        self.backends = self._make_backends(machine)
        self.model = self._make_model(machine)
        self.table = Table(num_slots=self._max_rows, max_len=self._max_len, groups=self.groups, device=self.device)
        self._batcher = Batcher(self.table, self.groups)
        if self.device.type == "cuda" and self._graph_tokens is not None:
            self._logits_NV = torch.empty(self._max_rows, self.decoder.vocab_size, dtype=self.dtype, device=self.device)
        compiled = self._compile()
        if self._files is None:
            dummy_weights(self.model, self.config.device.seed)
        else:
            load_weights(self.model, self._files)
        compiled()

    def _compile(self) -> Callable[[], None]:
        """Begin to compile what steps will launch; what is returned waits for it."""
        if self.device.type != "cuda":
            return lambda: None
        from sapwood.runner.ahead import compile_ahead

        options = self.config.model.dtype, self.config.cache.kv_cache_dtype, self.config.device.attention_backend
        sizes = self._max_len, self._max_rows, self._max_tokens, self._graph_tokens, self.config.cache.page_size
        facts = torch.cuda.get_device_capability(self.device), self.decoder, options, sizes
        return compile_ahead(facts, self._rehearse)

    def _rehearse(self) -> None:
        """Launch what steps will launch."""
        warm(self.decoder.vocab_size, self.dtype, self.table.settings_SK)  # first what takes longest to compile
        self.allocate([2] * len(self.groups))
        if (graphs := self._make_graphs()) is not None:
            graphs.rehearse()

    def _machine(self) -> Machine | str:
        """What the CPU's own kernels run on, or why they are not used."""
        if self.device.type != "cpu":
            return f"they run on CPUs, and the device is {self.device}"
        if self.dtype != torch.float32:
            return f"they compute in float32, and --dtype is {self.config.model.dtype}"
        found = find(self.config.device.cpu_kernels)
        if isinstance(found, str):
            if self.config.device.cpu_kernels not in ("auto", "off"):
                raise ConfigError(f"--cpu-kernels {self.config.device.cpu_kernels} cannot be used: {found}.")
            return f"the CPU kernels are not used: {found}"
        threads = self.config.device.threads or torch.get_num_threads()
        return Machine(found, threads, fine=self.config.device.cpu_activations == "int12")

    def _make_model(self, machine: Machine | str) -> Model | NativeModel:
        """The whole decoder by the CPU's own kernels where all of its attention is theirs, else modules of PyTorch's."""
        native = [backend for backend in self.backends if isinstance(backend, Native)]
        if not isinstance(machine, str) and len(native) == len(self.backends):
            # PyTorch's own threads would still be waiting for work, busily, when the kernels' are to begin.
            torch.set_num_threads(1)
            rounded: Rounded | None = self.config.model.quantization  # type: ignore[assignment]
            return NativeModel(self.decoder, native, machine, max_positions=self._max_len, rounded=rounded)
        if self.config.model.quantization is not None:
            why = machine if isinstance(machine, str) else "--attention-backend is not native"
            raise ConfigError(f"--quantization {self.config.model.quantization} needs the CPU kernels: {why}.")
        how = Build(
            device=self.device,
            dtype=self.dtype,
            backends=self.backends,
            kernels=kernels.choose(self.device),
            max_positions=self._max_len,
        )
        return build(self.decoder, how)

    def _make_backends(self, machine: Machine | str) -> Sequence[Backend]:
        dtype = stored(self.config.cache.kv_cache_dtype, self.dtype)
        asked = self.config.device.attention_backend
        return [
            choose(group, self.device, dtype, asked, machine)(group, index, self.device, dtype)
            for index, group in enumerate(self.groups)
        ]

    def kv_budget(self) -> int:
        """Bytes that the KV cache may take: as configured, or what the heaviest step leaves of the device's share."""
        if self.config.cache.kv_cache_memory is not None:
            return self.config.cache.kv_cache_memory
        assert self.config.cache.memory_fraction is not None, "only a GPU's memory is measured"
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        others = total - free - torch.cuda.memory_reserved(self.device)
        self.allocate([2] * len(self.groups))
        torch.cuda.reset_peak_memory_stats(self.device)
        plan = heaviest_plan(self._max_rows, self._max_tokens, self._max_len, len(self.groups))
        self.sample(work := self.forward(plan))
        self.result(work)
        peak = torch.cuda.max_memory_reserved(self.device)
        del work
        torch.cuda.empty_cache()
        return max(0, int(total * self.config.cache.memory_fraction) - others - peak - self._graph_memory())

    @torch.inference_mode()
    def _graph_memory(self) -> int:
        """Bytes that all graphs together will take: what the largest need to compute, and something for each one."""
        if (graphs := self._make_graphs()) is None:
            return 0
        largest = memory_of(graphs.capture_largest, self.device)
        others = memory_of(graphs.capture_next, self.device) * graphs.num_ahead
        del graphs
        torch.cuda.empty_cache()
        return largest + others

    def _make_graphs(self) -> Graphs[Pass] | None:
        if self.device.type != "cuda" or self._graph_tokens is None:
            return None
        return Graphs(
            self._compute_for_graph,
            self.table,
            max_rows=self._max_rows,
            max_tokens=self._graph_tokens,
            tile=self._tile,
        )

    @torch.inference_mode()
    def allocate(self, num_pages: Sequence[int]) -> None:
        """Take the memory of the KV cache, so many pages for each group."""
        self._graphs = None
        for backend, number in zip(self.backends, num_pages, strict=True):
            backend.allocate(number)

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the graphs that take the most memory, and compile what no graph holds.

        Steps before this are launched kernel by kernel.
        """
        self._graphs = self._make_graphs()
        if self._graphs is not None:
            self._graphs.capture_largest()
        if self.device.type == "cuda":
            warm(self.decoder.vocab_size, self.dtype, self.table.settings_SK)

    @torch.inference_mode()
    def tidy(self) -> bool:
        """Do a piece of work that steps will be glad of, while there are none; False if there is none to do."""
        return self._graphs is not None and self._graphs.capture_next()

    @torch.inference_mode()
    def forward(self, plan: Plan) -> Work:
        """Start a step, up to the tokens that are drawn at once."""
        self.table.take(plan.admits)
        self.table.write(plan.known)
        self._copy(plan.copies)
        left = None if self._graphs is None else self._graphs.run(plan)
        return Work(plan, left or self._launch(plan), np.flatnonzero(plan.yields_R))

    def _launch(self, plan: Plan) -> Pass:
        """A step kernel by kernel, of its own size."""
        spans = plan.counts_R[plan.num_steady :] > 1
        limits = Limits(decodes=plan.num_rows - int(spans.sum()), spans=int(spans.sum()))
        runs = self._upload_runs(plan) if plan.runs is not None else None
        return self._compute(frame.exact(plan, self.table), plan.num_tokens, limits, runs, spans_of(plan))

    def _upload_runs(self, plan: Plan) -> Shared:
        assert plan.runs is not None
        size = shared.Size(shared.num_tiles(plan.runs, self._tile), plan.num_rows, self._tile)
        return shared.shared(upload([shared.words(plan.runs, plan.steady, size)], self.device)[0], size)

    def _compute(
        self,
        frame: Frame,
        num_tokens: int,
        limits: Limits,
        runs: Shared | None,
        spans: Spans | None = None,
    ) -> Pass:
        """The whole of a step that no host needs to know more about; may be captured."""
        batch, heads = self._batcher.make(frame, num_tokens, limits=limits, shared=runs, spans=spans)
        for backend in self.backends:
            backend.plan(batch)
        hidden_TD = self.model(batch)
        if not frame.num_heads:
            return Pass(heads, hidden_TD, None, None)
        logits_NV = self.model.logits(hidden_TD.index_select(0, heads.last_N), raw=True)
        drawn_N = torch.empty_like(heads.draws_N)
        draw(logits_NV, self.table.settings_SK, heads.draws_N, heads.ends_N, drawn_N)
        self._batcher.put(drawn_N, heads)
        return Pass(heads, hidden_TD, logits_NV, drawn_N)

    def _compute_for_graph(self, frame: Frame, num_tokens: int, limits: Limits, runs: Shared | None) -> Pass:
        """The same; what outlives the launch is small, or lies in memory that all graphs share."""
        left = self._compute(frame, num_tokens, limits, runs)
        assert left.logits_NV is not None and self._logits_NV is not None
        logits_NV = self._logits_NV[: frame.num_heads]
        logits_NV.copy_(left.logits_NV)
        return Pass(left.heads, None, logits_NV, left.drawn_N)

    def _copy(self, copies: Sequence[PageCopy]) -> None:
        for backend, pages in zip(self.backends, copies, strict=True):
            if len(pages.sources_C):
                both = [pages.sources_C.astype(np.int64), pages.targets_C.astype(np.int64)]
                backend.copy(*upload(both, self.device))

    def room(self, num_rows: int, width: int | None = None) -> Bits:
        """Pinned memory for the masks of so many rows, new each time: the last may still be on its way to the device."""
        width = width or -(-self.decoder.vocab_size // 32)
        pinned = self.device.type == "cuda"
        self._room_MW = torch.empty(num_rows, width, dtype=torch.int32, pin_memory=pinned)
        return self._room_MW.numpy()

    @torch.inference_mode()
    def sample(self, work: Work, bits_MW: Bits | None = None) -> None:
        """Choose the tokens that were not drawn at once, and start the way of all to the host.

        `bits_MW` are the masks of the plan's masked rows, in the memory that `room` gave last.
        """
        assert (bits_MW is None) == (work.plan.masked is None)
        work.scored = self._score(work)
        left = work.left
        if len(work.rows):
            assert left.drawn_N is not None
            work.special = special = self._special(work.plan)
            if special is not None and special.only_masked:
                self._sample_masked(work, special)
            elif special is not None:
                self._sample_special(work, special)
            work.tokens_N = download(left.drawn_N[: len(work.rows)])
        if self.device.type == "cuda":
            work.done = torch.cuda.Event()
            work.done.record()

    def _masks(self, work: Work) -> Tensor | None:
        """The masks on the device, in the order of the masked rows, which is theirs among the special ones too."""
        if work.plan.masked is None:
            return None
        assert self._room_MW is not None and len(self._room_MW) == len(work.plan.masked)
        if self.device.type != "cuda":
            return self._room_MW
        # Beside the forward that is still running: behind it, every step would wait for them.
        if self._uploads is None:
            self._uploads = torch.cuda.Stream(self.device)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._uploads):
            bits_MW = self._room_MW.to(self.device, non_blocking=True)
        computing.wait_stream(self._uploads)
        bits_MW.record_stream(computing)
        return bits_MW

    def _sample_masked(self, work: Work, special: Yields) -> None:
        """Rows of which nothing is edited but what their grammars forbid: as they would have been drawn at once."""
        left, bits_MW, table = work.left, self._masks(work), self.table
        assert left.drawn_N is not None and left.logits_NV is not None and bits_MW is not None
        logits_MV = restricted(left.logits_NV, special.places_N, bits_MW)
        ends_M = left.heads.ends_N.index_select(0, special.places_N)
        drawn_M = torch.empty_like(ends_M)
        draw(logits_MV, table.settings_SK, special.recipe.slots_N.int(), ends_M, drawn_M)
        table.tokens_SL[special.recipe.slots_N, ends_M.long()] = drawn_M.clamp(min=0)
        left.drawn_N[special.places_N] = drawn_M

    def _sample_special(self, work: Work, special: Yields) -> None:
        left, tokens_SL = work.left, self.table.tokens_SL
        assert left.drawn_N is not None and left.logits_NV is not None
        positions_N = left.heads.ends_N.index_select(0, special.places_N).long()
        longest = int((work.plan.starts_R + work.plan.counts_R).max())
        logits_NV = left.logits_NV.index_select(0, special.places_N).float()
        sampled = sample(logits_NV, special.recipe, positions_N, tokens_SL[:, :longest], self._masks(work))
        tokens_N = sampled.tokens_N.int()
        tokens_SL[special.recipe.slots_N, positions_N] = tokens_N
        left.drawn_N[special.places_N] = tokens_N.masked_fill(~sampled.sound_N, -1)
        work.logprobs = None if sampled.logprobs is None else _download(sampled.logprobs)

    def _special(self, plan: Plan) -> Yields | None:
        if not self.table.special_S[plan.slots_R].any():
            return None
        if plan.num_rows > plan.num_steady:
            return find_special(plan, self.table)
        if self._steady is None or self._steady[0] is not plan.steady:
            self._steady = plan.steady, find_special(plan, self.table)
        return self._steady[1]

    def _score(self, work: Work) -> list[Scored]:
        """Log probabilities of the prompt tokens that spans predict, for those who ask; a bounded part at a time."""
        plan = work.plan
        scored: list[Scored] = []
        if plan.num_rows == plan.num_steady:
            return scored
        at_once = max(1, _SCORED_ELEMENTS // self.decoder.vocab_size)
        firsts = np.cumsum(plan.counts_R) - plan.counts_R
        spans = np.arange(plan.num_steady, plan.num_rows)
        for row in spans[self.table.scored_S[plan.slots_R[spans]]].tolist():
            admit = self.table.admit(plan.slots_R[row])
            num_top = admit.params.prompt_logprobs or 0
            start, first = int(plan.starts_R[row]), int(firsts[row])
            length = min(int(plan.counts_R[row]), admit.prompt_len - 1 - start)
            for done in range(0, length, at_once):
                end = min(done + at_once, length)
                targets = slice(start + done + 1, start + end + 1)
                assert work.left.hidden_TD is not None, "a scored prompt is never part of a graph"
                logits = self.model.logits(work.left.hidden_TD[first + done : first + end])
                known = self.table.tokens_SL[admit.slot, targets].long()
                found = _download(logprobs(logits, known, num_top=num_top))
                scored.append(Scored(row, admit.tokens[targets], found, num_top))
        return scored

    def result(self, work: Work) -> Outcome:
        """Wait for a step and read what it yielded."""
        if work.done is not None:
            work.done.synchronize()
        plan, rows = work.plan, work.rows
        outcome = Outcome(np.zeros(plan.num_rows, dtype=np.int32), {}, {}, {})
        if work.tokens_N is not None:
            tokens = work.tokens_N.numpy()
            outcome.tokens_R[rows] = tokens
            if tokens.min() < 0:
                outcome.errors.update(dict.fromkeys(rows[tokens < 0].tolist(), _NOT_FINITE))
        if work.logprobs is not None:
            assert work.special is not None
            asking = rows[work.special.places[work.special.logprobs]]
            found = as_rows(outcome.tokens_R[asking].tolist(), work.logprobs, work.special.num_tops)
            outcome.logprobs.update(zip(asking.tolist(), found, strict=True))
        for part in work.scored:
            found = as_rows(part.tokens.tolist(), part.found, [part.num_top] * len(part.tokens))
            outcome.prompt_logprobs.setdefault(part.row, []).extend(found)
        return outcome

    def shutdown(self) -> None:
        """Give the device's memory back."""
        self._steady = self._graphs = self._logits_NV = self._room_MW = self._uploads = None
        del self.model, self.backends, self.table, self._batcher
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _download(found: Logprobs) -> Logprobs:
    return Logprobs(*map(download, found.tensors()))
