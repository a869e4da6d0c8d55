"""A model in transformers' modules, that attends as all others do.

Suffix legend: T tokens, N rows that need logits, E hidden size, H query heads, K KV heads, D head size, V size of values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapwood.arch.foreign import Foreign
from sapwood.arch.groups import kv_places
from sapwood.arch.shard import Piece
from sapwood.attention.base import Batch, HeadsBackend
from sapwood.base.errors import ModelError
from sapwood.foreign import attention
from sapwood.foreign.modules import Halves, Shells, build, failing
from sapwood.foreign.names import weights
from sapwood.kernels import NormRope
from sapwood.nn.make import Build
from sapwood.quant.base import Leaf
from sapwood.quant.source import Source, plain

_NUM_TRIED = 6
_TOLERANCE = 0.02  # of products in few digits, added up in another order


class ForeignModel:
    """Keeps the interface of `sapwood.nn.model.Model`."""

    def __init__(self, decoder: Foreign, how: Build) -> None:
        self.decoder, self.method, self.device = decoder, how.method, how.device
        self.encoder = None
        with failing(f"{decoder.architecture} cannot be made"):
            module = build(decoder.config, attention.SERVING, how.dtype, Shells())
        for name, buffer in module.named_buffers():
            if buffer.is_meta and name not in weights(module):
                raise ModelError(
                    f"{decoder.architecture} has {name}, which no checkpoint holds and which is not computed."
                )
        _fill_in(module, how.device)
        self._longest = min(how.max_positions or decoder.max_positions, decoder.max_positions)
        self._weights = _Filled(weights(module))
        self._halves, self._vocab_size = Halves(module), decoder.vocab_size
        self._attends = _Attends(decoder, how)

    # ---- weights

    def leaf(self, path: str) -> Leaf:
        return self._weights

    def finish(self) -> None:
        """All weights are there. Raises ModelError if tokens see each other otherwise than by attention."""
        ids_T = torch.arange(1, _NUM_TRIED + 1, device=self.device) % self._vocab_size
        positions_T, some = torch.arange(_NUM_TRIED, device=self.device), slice(1, -1, 2)
        positions_T[-1] = self._longest - 1  # a long text in the same step must not turn the heads of short ones
        with failing(f"{self.decoder.architecture} cannot be run"):
            together_TE = self._halves.states(ids_T, positions_T, _alone)[some].float()
            alone_TE = self._halves.states(ids_T[some], positions_T[some], _alone).float()
        if (together_TE - alone_TE).norm() > _TOLERANCE * alone_TE.norm():
            raise ModelError(
                f"{self.decoder.architecture} cannot be run in transformers' modules: what they make of a token depends on others "
                "by more than attention, or on where it stands among them. If it is that long texts turn heads otherwise than short "
                "ones (longrope), --max-model-len up to original_max_position_embeddings helps."
            )

    # ---- steps

    def __call__(self, batch: Batch) -> Tensor:
        return self.forward(batch)

    def forward(self, batch: Batch) -> Tensor:
        """The hidden states of every token after the last norm, hidden_TE."""
        self._attends.begin(len(batch.ids_T))
        return self._halves.states(batch.ids_T, batch.turned_T, self._attends)

    def states(self, batch: Batch, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        assert not taps, "hidden states between its layers are nowhere to be seen"
        return self.forward(batch), []

    def logits(self, hidden_NE: Tensor, *, raw: bool = False) -> Tensor:
        """Logits of some of the hidden states, in float32 or, if `raw`, in their own dtype."""
        logits_NV = self._halves.logits(hidden_NE)
        return logits_NV if raw else logits_NV.float()

    def classify(self, vectors_NE: Tensor) -> Tensor:
        raise AssertionError("asked only of those that have a classifier")


class _Filled(Leaf):
    """All weights, by their names in the modules."""

    refills = True

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tensors = tensors

    def load(self, piece: Piece, source: Source) -> None:
        target = self._tensors[piece.param][piece.target]
        target.copy_(plain(piece, source) if target.is_floating_point() else source.read(piece.name, piece.source))

    def randomize(self, random: torch.Generator) -> None:
        """Matrices; vectors are mostly those of norms, or biases."""
        for name, tensor in self._tensors.items():
            if tensor.dim() > 1 and tensor.is_floating_point():
                tensor.normal_(std=0.02, generator=random)
            else:
                tensor.fill_(0 if name.endswith("bias") else 1)


class _Attends:
    """Answers calls by the backends."""

    def __init__(self, decoder: Foreign, how: Build) -> None:
        places = [(call, at[call.kv]) for call, at in zip(decoder.calls, kv_places(decoder), strict=True)]
        self._calls = [(call, cast(HeadsBackend, how.backends[at.group]), at.layer) for call, at in places]
        self._device = how.device
        self.begin(0)

    def begin(self, num_tokens: int) -> None:
        """A forward of so many follows. The modules will have turned queries and keys already."""
        self._next = 0
        one_T1 = torch.ones(num_tokens, 1, device=self._device)
        self._still = NormRope(one_T1, torch.zeros_like(one_T1))

    def __call__(
        self,
        q_1HTD: Tensor,
        k_1KTD: Tensor,
        v_1KTV: Tensor,
        mask: Tensor | None,
        scale: float | None,
        asked: dict[str, Any],
    ) -> Tensor:
        (call, backend, layer), self._next = self._calls[self._next], self._next + 1
        v_1KTD = F.pad(v_1KTV, (0, call.kv.head_dim - call.value_dim))
        heads_TXD = torch.cat([heads_1XTD[0].transpose(0, 1) for heads_1XTD in (q_1HTD, k_1KTD, v_1KTD)], dim=1)
        out_THD = backend.run(layer, heads_TXD, self._still, call.scale)
        return out_THD[None, ..., : call.value_dim]


def _alone(
    q_1HTD: Tensor, k_1KTD: Tensor, v_1KTV: Tensor, mask: Tensor | None, scale: float | None, asked: dict[str, Any]
) -> Tensor:
    """Lets each token see itself, and where it stands."""
    size, repeat = v_1KTV.shape[3], q_1HTD.shape[1] // k_1KTD.shape[1]
    own_1KTV = v_1KTV + k_1KTD[..., :size]
    return (q_1HTD[..., :size] + own_1KTV.repeat_interleave(repeat, dim=1)).transpose(1, 2)


def _fill_in(module: nn.Module, device: torch.device) -> None:
    """Memory on the device for all that has none, without what it is to hold, and there what has some already; what is shared
    stays so."""
    moved: dict[Tensor, Tensor] = {}  # by identity
    for one in module.modules():
        for name, tensor in [*one.named_parameters(recurse=False), *one.named_buffers(recurse=False)]:
            if tensor not in moved:
                there = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device)
                moved[tensor] = nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there
            setattr(one, name, moved[tensor])
