"""Putting one rank together: a model with its weights, and attention backends for its KV groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast, get_args

import torch

from sapwood import kernels
from sapwood.arch import draft_head
from sapwood.arch.adapters import EMBEDDING, HEAD
from sapwood.arch.apart import FLAG, apart
from sapwood.arch.foreign import Foreign
from sapwood.arch.groups import joint_groups, kv_groups
from sapwood.arch.network import Network
from sapwood.arch.parts import Decoder
from sapwood.arch.reader import Reader
from sapwood.arch.shard import shard
from sapwood.arch.stages import stage
from sapwood.attention.base import Backend
from sapwood.attention.fixed import Entries, FixedPool
from sapwood.attention.native import InLibrary
from sapwood.attention.native_fixed import NativeEntries
from sapwood.attention.select import BACKENDS, Offer, choose, scaled, stored
from sapwood.base.abilities import Ability
from sapwood.base.errors import ConfigError
from sapwood.base.kv import KVGroup, most_rewound
from sapwood.config import adapters
from sapwood.config.inputs import room_of
from sapwood.config.options import Config
from sapwood.config.thinning import thinned
from sapwood.device import Device, find
from sapwood.hub.files import ModelFiles
from sapwood.hub.pull import Progress, silent
from sapwood.kernels import Kernels
from sapwood.kernels.cpu import library
from sapwood.kernels.cpu.library import Machine
from sapwood.nn.adapted import Bank, NoBank
from sapwood.nn.build import Build, build
from sapwood.nn.draft_head import DraftHead
from sapwood.nn.load import Loadable, dummy_weights, forms, load_weights
from sapwood.nn.model import Model
from sapwood.nn.native import NativeModel
from sapwood.nn.stack import unlisted
from sapwood.parallel import ALONE, NO_PIPE, Mesh, Pipe
from sapwood.quant.base import Choice, everywhere, tensors_by
from sapwood.quant.blocks import Blocks
from sapwood.quant.choice import choice_of, of_whole
from sapwood.quant.methods import METHODS, ReadSection
from sapwood.quant.packed import Packed, Rounded
from sapwood.quant.plain import Plain
from sapwood.quant.repacked import repacked, unpackable

if TYPE_CHECKING:
    from sapwood.foreign.model import ForeignModel


@dataclass(frozen=True, eq=False)
class Rank:
    """What computes: a model on a device, and what keeps its keys and values, a backend for each of its KV groups.

    `groups` are those of all models that run side by side. `machine` is what the CPU's own kernels run on, or why they do not;
    `aside` says why they do not compute the whole model. In `pool` lies what an encoder leaves of inputs, in `bank` the adapters that
    requests may have.
    """

    device: Device
    dtype: torch.dtype
    groups: tuple[KVGroup, ...]
    machine: Machine | str
    backends: Sequence[Backend]
    model: Model | NativeModel | ForeignModel
    aside: str | None = None
    mesh: Mesh = ALONE
    pool: Entries | None = None
    bank: Bank | None = None

    @property
    def planned(self) -> Sequence[Backend | Entries | Bank]:
        """What has to know each step's batch before the model runs."""
        return (*self.backends, *(one for one in (self.pool, self.bank) if one is not None))

    def logits(self, hidden_ND: torch.Tensor, tokens_N: torch.Tensor | slice, *, raw: bool = False) -> torch.Tensor:
        """As the model's, of these tokens of the step that was planned last, each with its adapter."""
        with (self.bank or NoBank()).heads(tokens_N):
            return self.model.logits(hidden_ND, raw=raw)

    @property
    def computed_by(self) -> tuple[str, str] | None:
        """On a CPU, whether its own kernels compute the model, and why."""
        if not self.device.can(Ability.HOST):
            return None
        if self.aside is not None or isinstance(self.machine, str):
            return "modules of PyTorch", str(self.aside)
        return "the CPU kernels", f"the whole model is operations of the build for {self.machine.library.target}"


class Beside(NamedTuple):
    """What computes beside a rank: a model or a head, with a backend for each of its own groups."""

    backends: Sequence[Backend]
    model: Model | NativeModel | DraftHead


class _Made(NamedTuple):
    """A model, why the CPU's own kernels do not compute all of it, and where what its encoder leaves lies."""

    model: Model | NativeModel
    aside: str | None
    pool: Entries | None


class Choices(NamedTuple):
    """What may be chosen: backends, and methods by their names in checkpoints."""

    backends: Sequence[Offer] = BACKENDS
    methods: Mapping[str, ReadSection] = METHODS


D = TypeVar("D", bound=Network)


def portion(
    config: Config, decoder: D, choices: Choices, files: ModelFiles | None, mesh: Mesh, pipe: Pipe = NO_PIPE
) -> D:
    """What this rank computes of a model whose weights are those of `files`; of heads that go on from another's states, all."""
    decoder = cast(D, stage(decoder, pipe.number, pipe.count))
    if mesh.size == 1 or isinstance(decoder, draft_head.DraftHead):
        return decoder
    if not isinstance(decoder, Decoder):
        raise ConfigError("another library's modules (--model-impl) are not cut: leave out --tensor-parallel-size.")
    if config.parallel.experts_apart and not find(config.device.device).can(Ability.HOST):
        raise ConfigError(f"{FLAG}: on GPUs every rank has a part of each expert yet; leave it out.")
    whole = apart(decoder) if config.parallel.experts_apart else decoder
    otherwise = _otherwise(files, kernels.choose(find(config.device.device).place))
    choice = choice_of(whole, config.model.quantization, choices.methods, otherwise)
    return cast(D, shard(whole, rank=mesh.rank, size=mesh.size, tensors=tensors_by(choice)))


@torch.inference_mode()
def assemble(
    config: Config,
    decoder: Network,
    choices: Choices,
    files: ModelFiles | None = None,
    others: Sequence[Decoder | draft_head.DraftHead] = (),
    *,
    max_drafts: int = 0,
    mesh: Mesh = ALONE,
    pipe: Pipe = NO_PIPE,
) -> Rank:
    """Build the model, without its weights, which will be those of `files`, or random ones. The `others` will run beside it. On a
    `mesh` and in a `pipe` all are this rank's portions."""
    page_size, depth = config.cache.page_size, config.scheduler.depth
    assert page_size is not None and depth is not None, "a resolved configuration"
    device, dtype = find(config.device.device), getattr(torch, config.model.dtype)
    if config.device.threads is not None:
        torch.set_num_threads(config.device.threads)
    device.use()
    machine = _machine(config, device, dtype) if mesh.size == pipe.count == 1 else "one call of theirs computes all"
    groups = joint_groups((decoder, *others), page_size, most_rewound(max_drafts, depth))
    mine = enumerate(groups[: len(kv_groups(decoder, page_size))])
    backends = _backends(config, mine, device.place, dtype, machine, choices.backends)
    bank = _bank(config, decoder, device.place, mesh)
    if isinstance(decoder, Foreign):
        plainly = _how(config, everywhere(Plain()), device.place, dtype, backends, mesh)
        return Rank(device, dtype, groups, machine, backends, _foreign(decoder, plainly), "they are transformers' own")
    assert isinstance(decoder, Decoder)
    tapped = any(isinstance(other, draft_head.DraftHead) and other.taps for other in others)
    stack = "a head goes on from hidden states within the model" if tapped else _whole(config, machine)
    if bank is not None and EMBEDDING in bank.ends and not isinstance(stack, str):
        stack = "an adapter of --lora-modules changes the embedding, which their operations do not"
    known = choices.methods
    made = _model(config, decoder, device.place, dtype, backends, stack, known, files, mesh, pipe, bank)
    return Rank(device, dtype, groups, machine, backends, made.model, made.aside, mesh, made.pool, bank)


@torch.inference_mode()
def beside(
    rank: Rank,
    config: Config,
    decoder: Decoder | draft_head.DraftHead,
    choices: Choices,
    files: ModelFiles | None = None,
) -> Beside:
    """Likewise what runs beside another: it has what is left of the groups."""
    device, dtype, machine = rank.device.place, rank.dtype, rank.machine
    mine = list(enumerate(rank.groups))[len(rank.backends) :]
    backends = _backends(config, mine, device, dtype, machine, choices.backends)
    if isinstance(decoder, draft_head.DraftHead):
        how = _how(config, choice_of(decoder, None, choices.methods), device, dtype, backends, rank.mesh)
        assert isinstance(rank.model, Model | NativeModel), "who looks into a model was refused beside others"
        return Beside(backends, DraftHead(decoder, how, rank.model))
    stack = _whole(config, machine)
    made = _model(config, decoder, device, dtype, backends, stack, choices.methods, files, rank.mesh)
    return Beside(backends, made.model)


@torch.inference_mode()
def give_weights(model: Loadable, files: ModelFiles | None, *, seed: int, progress: Progress = silent) -> None:
    """Load the model's weights, random ones without `files`. Raises ModelError if they do not fit."""
    if files is None:
        dummy_weights(model, seed)
    else:
        load_weights(model, files, progress)


def _machine(config: Config, device: Device, dtype: torch.dtype) -> Machine | str:
    """What the CPU's own kernels run on, or why they are not used."""
    if not device.can(Ability.HOST):
        return f"they run on CPUs, and the device is {device.place}"
    if dtype != torch.float32:
        return f"they compute in float32, and --dtype is {config.model.dtype}"
    found = library.find(config.device.cpu_kernels)
    if isinstance(found, str):
        if config.device.cpu_kernels not in ("auto", "off"):
            raise ConfigError(f"--cpu-kernels {config.device.cpu_kernels} cannot be used: {found}.")
        return f"the CPU kernels are not used: {found}"
    threads = config.device.threads or torch.get_num_threads()
    return Machine(found, threads, fine=config.device.cpu_activations == "int12")


def _whole(config: Config, machine: Machine | str) -> Machine | str:
    """What the CPU's own kernels compute a whole model on, or why they do not."""
    if isinstance(machine, str) or not thinned(config):
        return machine
    return "tokens of thinned prompts are turned by other positions than their places, which they do not know"


def _backends(
    config: Config,
    groups: Iterable[tuple[int, KVGroup]],
    device: torch.device,
    dtype: torch.dtype,
    machine: Machine | str,
    offers: Sequence[Offer],
) -> Sequence[Backend]:
    kept, with_scales = stored(config.cache.kv_cache_dtype, dtype), scaled(config.cache.kv_cache_dtype)
    asked = config.device.attention_backend
    groups = list(groups)
    meant = [
        group.kind
        for _, group in groups
        if any(asked == offer.name and isinstance(group.kind, offer.kind) for offer in offers)
    ]
    return [
        choose(
            group,
            device,
            kept,
            asked if group.kind in meant or not meant else "auto",
            machine,
            offers,
            scaled=with_scales,
        )(group, index, device, kept)
        for index, group in groups
    ]


def _model(
    config: Config,
    decoder: Decoder,
    device: torch.device,
    dtype: torch.dtype,
    backends: Sequence[Backend],
    machine: Machine | str,
    known: Mapping[str, ReadSection],
    files: ModelFiles | None,
    mesh: Mesh,
    pipe: Pipe = NO_PIPE,
    bank: Bank | None = None,
) -> _Made:
    """The whole decoder by the CPU's own kernels where they can, else modules of PyTorch's, and why."""
    assert config.model.max_model_len is not None, "a resolved configuration"
    native = [backend for backend in backends if isinstance(backend, InLibrary)]
    rounded = config.model.quantization
    choice = of_whole(choice_of(decoder, rounded, known, _otherwise(files, kernels.choose(device))), decoder)
    aside = machine if isinstance(machine, str) else _without_operations(decoder, choice, backends)
    if not isinstance(machine, str) and aside is None:
        # PyTorch's own threads would still be waiting for work, busily, when the kernels' are to begin.
        torch.set_num_threads(1)
        own: Rounded | None = rounded if rounded in get_args(Rounded) else None  # type: ignore[assignment]
        method = repacked(choice if own is None else everywhere(Plain()), Packed(machine, own))
        method = method if bank is None else bank.around(method)
        longest, entries = config.model.max_model_len, _entries(config, decoder, machine, dtype)
        return _Made(
            NativeModel(decoder, native, machine, method, max_positions=longest, bank=bank, pool=entries), None, entries
        )
    choice = choice if bank is None else bank.around(choice)
    pool = _pool(config, decoder, device, dtype)
    how = replace(_how(config, choice, device, dtype, backends, mesh, pipe), pool=pool)
    how = how if bank is None else replace(how, tied=bank.tied, looked=bank.looked)
    return _Made(build(decoder, how), aside, pool)


def _pool(config: Config, decoder: Decoder, device: torch.device, dtype: torch.dtype) -> FixedPool | None:
    """Its memory is taken at once, before what is left is measured."""
    if (room := room_of(config, decoder)) is None:
        return None
    seqs = config.scheduler.max_num_seqs
    assert seqs is not None, "a resolved configuration"
    return FixedPool(
        room.kind,
        num_layers=room.layers,
        entries=room.entries,
        longest=room.longest,
        num_slots=seqs,
        device=device,
        dtype=dtype,
    )


def _entries(config: Config, decoder: Decoder, machine: Machine, dtype: torch.dtype) -> NativeEntries | None:
    """The same for the CPU's own kernels, in what they store keys and values as."""
    if (room := room_of(config, decoder)) is None:
        return None
    seqs = config.scheduler.max_num_seqs
    assert seqs is not None, "a resolved configuration"
    return NativeEntries(
        room.kind,
        machine,
        num_layers=room.layers,
        entries=room.entries,
        longest=room.longest,
        num_slots=seqs,
        dtype=stored(config.cache.kv_cache_dtype, dtype),
    )


def _bank(config: Config, decoder: Network, device: torch.device, mesh: Mesh) -> Bank | None:
    """Room for adapters, if there may be some."""
    if not adapters.enabled(config):
        return None
    if not isinstance(decoder, Decoder):
        raise ConfigError("--enable-lora: adapters change our own modules, and these are transformers' (--model-impl).")
    assert config.adapters.max_lora_rank and config.scheduler.max_num_seqs, "a resolved configuration"
    return Bank(
        decoder,
        num_slots=config.adapters.max_loras,
        rank=config.adapters.max_lora_rank,
        num_requests=config.scheduler.max_num_seqs,
        device=device,
        mesh=mesh,
        ends=_ends(config),
    )


def _ends(config: Config) -> tuple[str, ...]:
    """Those of the model that adapters may change."""
    return (HEAD, EMBEDDING) if adapters.embedded(config.adapters) else (HEAD,)


def _foreign(decoder: Foreign, how: Build) -> ForeignModel:
    """Imported only where it is wanted, which takes a while."""
    from sapwood.foreign.model import ForeignModel

    return ForeignModel(decoder, how)


def _how(
    config: Config,
    choice: Choice,
    device: torch.device,
    dtype: torch.dtype,
    backends: Sequence[Backend],
    mesh: Mesh,
    pipe: Pipe = NO_PIPE,
) -> Build:
    return Build(
        device=device,
        dtype=dtype,
        backends=backends,
        kernels=kernels.choose(device),
        method=choice,
        max_positions=config.model.max_model_len,
        mesh=mesh,
        pipe=pipe,
    )


def _otherwise(files: ModelFiles | None, kernels: Kernels) -> Choice:
    """How weights are kept of which a checkpoint's section says nothing: as a GGUF file has them, or plain."""
    if files is None or files.kind != "gguf" or kernels.quantised is None:
        return everywhere(Plain())
    return everywhere(Blocks(forms(files)))


def _without_operations(decoder: Decoder, choice: Choice, backends: Sequence[Backend]) -> str | None:
    """Why the CPU's own kernels cannot compute the whole decoder."""
    if decoder.encoder is not None and not isinstance(decoder.encoder, Reader):
        return "vectors of images stand among those of tokens"
    if other := next((backend.name for backend in backends if not isinstance(backend, InLibrary)), None):
        return f"attention is {other}'s"
    if found := unpackable(choice, decoder):
        return f"the CPU kernels have no form for {found}"
    if found := unlisted(decoder):
        return f"the CPU kernels have no operations for {found}"
    return None
