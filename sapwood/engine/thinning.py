"""Speculative prefill as the configuration wants it: the smaller model that chooses, and the stake that asks it."""

from __future__ import annotations

from collections.abc import Callable

from sapwood.arch.foreign import Foreign
from sapwood.arch.parts import Decoder
from sapwood.base.plan import Floats, Ints
from sapwood.catalogue import Catalogue
from sapwood.config import Config
from sapwood.config.flags import flag_of
from sapwood.config.thinning import check_chooser, check_thinned, chooser_of
from sapwood.draft import ThinStake
from sapwood.engine.loop import Gauges
from sapwood.executor.base import Executor
from sapwood.hub.draft import DraftModel, find_draft
from sapwood.hub.files import ModelFiles


class Thinning:
    """A guest of engines whose prompts are thinned, and nothing in others. First the model is found, then the executor takes it in, then
    there is a stake."""

    def __init__(self, config: Config, model: DraftModel | None) -> None:
        self.stakes: tuple[ThinStake, ...] = ()
        self.gauges: tuple[Gauges, ...] = ()
        self._config, self._model = config, model
        self._estimate: Callable[[Ints], Floats] | None = None

    def start(self, executor: Executor) -> Executor:
        if self._model is not None:
            self._estimate = executor.scout(self._config, self._model)
        return executor

    def seated(self) -> Thinning:
        keep = self._config.speculation.speculative_prefill
        if self._estimate is not None and keep is not None:
            stake = ThinStake(self._estimate, keep=keep)
            self.stakes, self.gauges = (stake,), (stake.gauges,)
        return self


def thinning_of(config: Config, decoder: Decoder | Foreign, files: ModelFiles, catalogue: Catalogue) -> Thinning:
    """`config` is resolved. Raises UserError."""
    name = chooser_of(config)
    if name is None:
        return Thinning(config, None)
    check_thinned(decoder)
    weights, flag = config.model.load_format != "dummy", flag_of("speculative_prefill_model")
    families, methods = catalogue.families, catalogue.methods
    model = find_draft(name, decoder, files, families=families, methods=methods, weights=weights, flag=flag)
    check_chooser(model.decoder, name)
    return Thinning(config, model)
