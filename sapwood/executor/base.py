"""What the engine knows of a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sapwood.base.adapters import AdapterHost
from sapwood.base.kv import KVGroup
from sapwood.base.pages import Pager, Rooms
from sapwood.base.plan import Bits, Floats, Ints, LatePart, Longs, Outcome, Plan
from sapwood.base.trial import Trial
from sapwood.base.weights import Given, Group, Held, Level, Sent

if TYPE_CHECKING:
    from sapwood.arch.network import Network
    from sapwood.config.options import Config
    from sapwood.hub.draft import DraftModel
    from sapwood.hub.files import ModelFiles


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found once a model was there; of several devices, what holds of all of them.

    `kv_bytes` is what the KV cache may take, `backends` the name of what attends in each group, `seconds` what the parts
    of the start took. `computed_by` is what computes the model and why, where there is a choice; `num_routed` how many experts a token chooses in
    all layers, where that can be told.
    """

    groups: tuple[KVGroup, ...]
    kv_bytes: int
    backends: tuple[str, ...]
    seconds: Mapping[str, float]
    computed_by: tuple[str, str] | None = None
    num_routed: int = 0


class Executor(Protocol):
    """A model somewhere, which runs plans in the order in which they are given.

    Begins with `start`, `allocate` and `capture`, once each. Then for each plan the engine calls `forward`, then `sample`,
    then `result`, once each. Plan N + 1 may be forwarded before the result of N is asked for; if it is late, it is
    sampled after that. Everything a plan writes happens after everything earlier plans read or write, so pages and slots
    may change hands from one plan to the next.
    """

    def scout(self, config: Config, model: DraftModel) -> Callable[[Ints], Floats]:
        """What has a smaller model estimate how much each token of a prompt matters, on the device, beside steps; its calls come one after
        another from any thread. Before `start`, which measures what that leaves. Raises UserError for what the user can mend."""
        ...

    def start(
        self,
        config: Config,
        decoder: Network,
        files: ModelFiles,
        *,
        max_drafts: int = 0,
        draft: DraftModel | None = None,
    ) -> Measured:
        """Build the model, give it its weights, and measure what they and the heaviest step leave for the KV cache.

        `config` is resolved. A row will feed `max_drafts` drafts at most; with a `draft` model plans may have a `Propose`. Raises
        UserError for what the user can mend.
        """
        ...

    def allocate(self, num_pages: Sequence[int]) -> None:
        """Take the memory of the KV cache: so many pages for each group, page 0, which is nobody's, among them."""
        ...

    def capture(self) -> None:
        """Record and compile what steps will be run by."""
        ...

    def time_steps(self, trials: Sequence[Trial], *, budget: float) -> list[float]:
        """Seconds of such steps: of the first four in any case, then of as many as about `budget` seconds allow. Between
        `capture` and the first plan."""
        ...

    def pager(self, num_blocks: Sequence[int], memory: Rooms | None = None) -> Pager:
        """What moves pages of each group through so many blocks of the host's memory, made by `memory` if it is given and
        the device is the host itself. Behind `allocate`; its calls come between those of this class, from the
        same thread."""
        ...

    def adapters(self) -> AdapterHost:
        """What keeps adapters near the device, where the configuration has some. Behind `start`; its calls come from the same thread as those
        of this class, between them."""
        ...

    def forward(self, plan: Plan) -> Any:
        """Start the step's forward and return a handle; does not wait for the device."""
        ...

    def proposed(self, work: Any) -> Ints:
        """The drafts that were made for the plan's `Propose`, row after row, if they are told, else none; waits for them alone."""
        ...

    def allocate_masks(self, num_rows: int, width: int | None = None) -> Bits:
        """Memory for the masks of so many rows ([M, W] int32), from which the device reads fast.

        The caller fills it before the next `sample`. `width` is W, as many words as the vocabulary needs where it is
        not given.
        """
        ...

    def sample(self, work: Any, late: tuple[LatePart, ...] = ()) -> None:
        """Choose the tokens of the rows with heads; does not wait for the device.

        `late` are parts that could not be made before: `Masks` if the plan has a `Masked`.
        """
        ...

    def result(self, work: Any) -> Outcome:
        """Wait until the step is done and return what it yielded."""
        ...

    def tidy(self) -> bool:
        """Do a short piece of work that later steps will be glad of, while no step is wanted; False if there is none."""
        ...

    def expert_tokens(self) -> Longs:
        """How many tokens have chosen each expert of each layer that has some, [layers, experts]; of several stages those of the
        first. Empty where that is not counted."""
        ...

    # Between steps, when none is in flight and nobody runs:

    def check_weights(self, given: Given) -> None:
        """Raise UserError if these cannot take the place of the model's weights; nothing has changed then."""
        ...

    def take_weights(self, given: Given) -> None:
        """Have what was found good take that place. If this raises, the model is of no more use."""
        ...

    def join(self, group: Group) -> None:
        """Be in a group in which a trainer sends weights; waits for the others. Raises UserError if that cannot be."""
        ...

    def leave(self, group_name: str) -> None:
        """Be in it no more. Raises UserError if there is none of that name."""
        ...

    def receive(self, sent: Sent, folder: str) -> None:
        """Write what a trainer sends to `folder`, as files of a checkpoint. Raises UserError for what did not come."""
        ...

    def release(self, held: Sequence[Held], level: Level) -> None:
        """Give back memory of the device, of what is not given back already: what the KV cache holds is lost, weights go where `level`
        says, and with them the KV cache. No step may follow until all is restored."""
        ...

    def restore(self, held: Sequence[Held]) -> None:
        """Take it again; the KV cache holds nothing."""
        ...

    def shutdown(self) -> None:
        """Give back what the device holds."""
        ...
