"""How devices of a kind are run where the user leaves it open: a table for each, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What `resolve` and the composition root have to know of a kind of device.

    Attributes:
        numbered: There may be several, and an option names one by its number.
        found: What is said when it was chosen; has places for `name`, `cores` and `memory`.
        own_memory: Its memory is no program's but the engine's. The KV cache takes what weights and the heaviest step leave
            of a share, which is measured. Else it takes as much as a few requests want, and the share means nothing.
        share: Why `memory_fraction` is what it is.
        dtype: What is computed in whatever the checkpoint holds, and why.
        halves: Keys and values are halved where the checkpoint has no more digits.
        stores: Dtypes of keys and values that are only stored, and computed in another.
        rounds: It has kernels of its own, which keep weights as they are stored, and round plain ones if asked to.
        foreign: Attention backends that do not run on it, and `backend` is one that does.
        seqs: How many requests may run at once, few to many: the most that its memory holds; `beyond` says why no more.
        step_tokens: Tokens of a step, and why.
        chunk: Prompt tokens beside decoding rows.
        threads: How many at most, and why.
        depth: Steps in flight, and why.
        drafts: Most drafts of a row, and why.
        drafting: What drafts where nobody says, `off` or `auto`, and why.
        compiles: Kernels are compiled when they are first wanted.
        image_pixels: To how many an image is scaled down where a model takes it as large as it is, and why.
        sound_seconds: The longest recording in a conversation: a step encodes it as a whole, and all others wait for it.
    """

    numbered: bool
    found: str
    own_memory: bool
    share: str
    dtype: tuple[str, str] | None
    halves: bool
    stores: tuple[str, ...]
    rounds: bool
    foreign: tuple[str, ...]
    backend: str
    seqs: tuple[int, ...]
    beyond: str
    step_tokens: tuple[int, str]
    chunk: int
    threads: tuple[int | None, str]
    depth: tuple[int, str]
    drafts: tuple[int, str]
    drafting: tuple[str, str]
    compiles: bool
    image_pixels: tuple[int, str]
    sound_seconds: float


CPU = Rules(
    numbered=False,
    found="no CUDA device found; {cores} cores, {memory}",
    own_memory=False,
    share="unused: on a CPU {flag} says what is taken",
    dtype=("float32", "half-precision products are slow on a CPU"),
    halves=True,
    stores=("int8",),
    rounds=True,
    foreign=(),
    backend="native",
    seqs=(64,),
    beyond="a CPU gains little beyond",
    step_tokens=(512, "keeps a step short on a CPU"),
    chunk=256,
    threads=(None, "the cores this process may use"),
    depth=(0, "host and device are the same cores"),
    drafts=(31, "as a CPU gains little beyond"),
    drafting=("off", "what it costs has not been measured on a quiet machine"),
    compiles=False,
    image_pixels=(1280 * 28 * 28, "a step encodes an image as a whole, and all others wait for it"),
    sound_seconds=120.0,
)

CUDA = Rules(
    numbered=True,
    found="found {name}, {memory}",
    own_memory=True,
    share="leaves room for the driver and other processes",
    dtype=None,
    halves=False,
    stores=("fp8_e4m3", "fp8_per_token_head", "int8"),
    rounds=False,
    foreign=("cpu", "native"),
    backend="triton",
    # The more rows read the weights together, the less each pays for them. Few of those that are held are much shorter
    # than what `resolve` counts, and a row costs memory too.
    seqs=(256, 512, 1024),
    beyond="a GPU gains little beyond",
    step_tokens=(8192, "enough to keep the GPU busy"),
    chunk=4096,
    threads=(4, "the GPU does the work"),
    depth=(1, "the next step is launched before the last one's tokens are read"),
    drafts=(63, "as many as one tile of a matrix product holds"),
    drafting=("off", "one workload of a small model lost 3 %, and what was mended since has not been measured with it"),
    compiles=True,
    image_pixels=(36_000_000, "as many as an image may have"),
    sound_seconds=3600.0,
)

RULES: Mapping[str, Rules] = MappingProxyType({"cpu": CPU, "cuda": CUDA})
"""By kind."""


def rules_of(device: str) -> Rules:
    """The rules for a device as a resolved option names it: a kind, and maybe a number."""
    return RULES[device.partition(":")[0]]
