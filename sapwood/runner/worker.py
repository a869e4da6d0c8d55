"""One rank at work: the model, its KV cache, and the steps that a host plans.

Suffix legend: T tokens of the step, R rows, N rows that yield, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sapwood import kernels
from sapwood.arch.groups import kv_groups
from sapwood.arch.parts import Decoder
from sapwood.attention.base import Backend, Batch
from sapwood.attention.select import choose
from sapwood.base.plan import Ints, Outcome, PageCopy, Plan
from sapwood.config.options import Config
from sapwood.hub.files import ModelFiles
from sapwood.nn.build import Build, build
from sapwood.nn.load import dummy_weights, load_weights
from sapwood.runner.batch import Batcher
from sapwood.runner.profile import heaviest_plan
from sapwood.runner.table import Table
from sapwood.runner.transfer import download, upload
from sapwood.runner.yields import Yields, find_yields
from sapwood.sampling.logprobs import Logprobs, as_rows, logprobs
from sapwood.sampling.sampler import sample

_NOT_FINITE = "the model computed logits that are not finite for this request"
_SCORED_ELEMENTS = 1 << 25  # most logits that exist at once when a prompt is scored


@dataclass(frozen=True, eq=False)
class Scored:
    """Some prompt tokens of one row, what was found of them, and how many alternatives are asked for."""

    row: int
    tokens: Ints
    found: Logprobs
    num_top: int


@dataclass(eq=False)
class Work:
    """A step on its way. `forward` fills the first part, `sample` the rest, in host memory once `done` has passed.

    `tokens_N` are -1 in rows without finite logits.
    """

    plan: Plan
    batch: Batch
    hidden_TD: Tensor

    yields: Yields | None = None
    tokens_N: Tensor | None = None
    logprobs: Logprobs | None = None
    scored: list[Scored] = field(default_factory=list)
    done: torch.cuda.Event | None = None


class Worker:
    """Runs plans, in the order in which they come, on one device.

    Order of calls, all from one thread: `load`, `kv_budget`, `allocate`, then steps. Neither `forward` nor `sample`
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
        self._max_len = config.model.max_model_len
        self._max_rows = config.scheduler.max_num_seqs
        self._max_tokens = config.scheduler.max_num_batched_tokens
        self._steady: tuple[Ints, Yields] | None = None

    @torch.inference_mode()
    def load(self) -> None:
        """Build the model and give it its weights. Raises ModelError if they do not fit."""
        if self.config.device.threads is not None:
            torch.set_num_threads(self.config.device.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.backends = self._make_backends()
        how = Build(
            device=self.device,
            dtype=self.dtype,
            backends=self.backends,
            kernels=kernels.choose(self.device),
            max_positions=self._max_len,
        )
        self.model = build(self.decoder, how)
        if self._files is None:
            dummy_weights(self.model, self.config.device.seed)
        else:
            load_weights(self.model, self._files)
        self.table = Table(num_slots=self._max_rows, max_len=self._max_len, groups=self.groups, device=self.device)
        self._batcher = Batcher(self.table, self.groups, max_tokens=self._max_tokens)

    def _make_backends(self) -> Sequence[Backend]:
        name = self.config.cache.kv_cache_dtype
        dtype = self.dtype if name == "auto" else getattr(torch, name)
        asked = self.config.device.attention_backend
        return [
            choose(group, self.device, dtype, asked)(group, index, self.device, dtype)
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
        return max(0, int(total * self.config.cache.memory_fraction) - others - peak)

    @torch.inference_mode()
    def allocate(self, num_pages: Sequence[int]) -> None:
        """Take the memory of the KV cache, so many pages for each group."""
        for backend, number in zip(self.backends, num_pages, strict=True):
            backend.allocate(number)

    @torch.inference_mode()
    def forward(self, plan: Plan) -> Work:
        """Start a step, up to the hidden states."""
        self.table.apply(plan)
        self._copy(plan.copies)
        batch = self._batcher.make(plan)
        for backend in self.backends:
            backend.plan(batch)
        return Work(plan, batch, self.model(batch))

    def _copy(self, copies: Sequence[PageCopy]) -> None:
        for backend, pages in zip(self.backends, copies, strict=True):
            if len(pages.sources_C):
                both = [pages.sources_C.astype(np.int64), pages.targets_C.astype(np.int64)]
                backend.copy(*upload(both, self.device))

    @torch.inference_mode()
    def sample(self, work: Work) -> None:
        """Choose the tokens, write them to the table, and start their way to the host."""
        batch, tokens_SL = work.batch, self.table.tokens_SL
        ends_R = batch.starts_R + batch.counts_R
        self.table.fed_S[batch.slots_R] = ends_R
        work.scored = self._score(work)
        work.yields = yields = self._yields(work.plan)
        if len(yields.rows):
            hidden_ND = work.hidden_TD if yields.last_N is None else work.hidden_TD.index_select(0, yields.last_N)
            positions_N = (ends_R if yields.rows_N is None else ends_R.index_select(0, yields.rows_N)).long()
            longest = int((work.plan.starts_R + work.plan.counts_R).max())
            sampled = sample(self.model.logits(hidden_ND), yields.recipe, positions_N, tokens_SL[:, :longest])
            tokens_SL[yields.recipe.slots_N, positions_N] = sampled.tokens_N.int()
            work.tokens_N = download(sampled.tokens_N.masked_fill(~sampled.sound_N, -1))
            work.logprobs = None if sampled.logprobs is None else _download(sampled.logprobs)
        if self.device.type == "cuda":
            work.done = torch.cuda.Event()
            work.done.record()

    def _yields(self, plan: Plan) -> Yields:
        if plan.num_rows > plan.num_steady:
            return find_yields(plan, self.table)
        if self._steady is None or self._steady[0] is not plan.steady:
            self._steady = plan.steady, find_yields(plan, self.table)
        return self._steady[1]

    def _score(self, work: Work) -> list[Scored]:
        """Log probabilities of the prompt tokens that spans predict, for those who ask; a bounded part at a time."""
        plan = work.plan
        scored: list[Scored] = []
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
                logits = self.model.logits(work.hidden_TD[first + done : first + end])
                known = self.table.tokens_SL[admit.slot, targets].long()
                found = _download(logprobs(logits, known, num_top=num_top))
                scored.append(Scored(row, admit.tokens[targets], found, num_top))
        return scored

    def result(self, work: Work) -> Outcome:
        """Wait for a step and read what it yielded."""
        assert work.yields is not None, "sample comes before result"
        if work.done is not None:
            work.done.synchronize()
        plan, rows = work.plan, work.yields.rows
        outcome = Outcome(np.zeros(plan.num_rows, dtype=np.int32), {}, {}, {})
        if work.tokens_N is not None:
            outcome.tokens_R[rows] = work.tokens_N.numpy()
            outcome.errors.update(dict.fromkeys(rows[work.tokens_N.numpy() < 0].tolist(), _NOT_FINITE))
        if work.logprobs is not None:
            asking = rows[work.yields.logprobs]
            found = as_rows(outcome.tokens_R[asking].tolist(), work.logprobs, work.yields.num_tops)
            outcome.logprobs.update(zip(asking.tolist(), found, strict=True))
        for part in work.scored:
            found = as_rows(part.tokens.tolist(), part.found, [part.num_top] * len(part.tokens))
            outcome.prompt_logprobs.setdefault(part.row, []).extend(found)
        return outcome

    def shutdown(self) -> None:
        """Give the device's memory back."""
        self._steady = None
        del self.model, self.backends, self.table, self._batcher
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _download(found: Logprobs) -> Logprobs:
    return Logprobs(*map(download, found.tensors()))
