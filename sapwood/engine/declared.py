"""Which model there is to run: one of the families, or, where nobody has it, another library's."""

from __future__ import annotations

from sapwood.arch.families import declare
from sapwood.arch.foreign import LIBRARY, Foreign, is_foreign
from sapwood.arch.parts import Decoder
from sapwood.arch.sight import Tower, unseeing
from sapwood.base.abilities import Ability
from sapwood.base.errors import ConfigError, ModelError
from sapwood.catalogue import Catalogue
from sapwood.config.options import Config, ModelConfig
from sapwood.hub.files import ModelFiles, tensor_names


def declared(config: Config, files: ModelFiles, catalogue: Catalogue) -> Decoder | Foreign:
    """The model of `files`, as the options want it. Raises UserError."""
    found = _declared(config.model, files, catalogue)
    if not isinstance(found, Decoder) or not isinstance(tower := found.encoder, Tower):
        return found
    blind = config.sight.language_model_only or (tower.ahead and not _attends(config))
    return unseeing(found) if blind else found


def _attends(config: Config) -> bool:
    """Within images whose positions see each other: on hosts alone; elsewhere the text is served as fast as it can be."""
    from sapwood.device import find  # which imports torch

    return find(config.device.device).can(Ability.HOST)


def _declared(model: ModelConfig, files: ModelFiles, catalogue: Catalogue) -> Decoder | Foreign:
    if not is_foreign(model.model_impl, files.config, catalogue.families):
        return declare(files.config, catalogue.families, methods=catalogue.methods)
    if model.model_impl == LIBRARY:
        return _foreign(model, files)
    try:
        return _foreign(model, files)
    except ModelError as error:
        try:
            return declare(files.config, catalogue.families, methods=catalogue.methods)
        except ModelError as first:
            raise ModelError(f"{first} {error}") from error


def _foreign(model: ModelConfig, files: ModelFiles) -> Foreign:
    if files.kind == "gguf":
        raise ModelError(f"--model-impl {LIBRARY}: GGUF files run in Sapwood's own modules only. Leave it out.")
    if model.quantization is not None:
        why = (
            "" if model.model_impl == LIBRARY else f"no family here has this model, which runs in {LIBRARY}' modules; "
        )
        raise ConfigError(
            f"--quantization {model.quantization}: {why}{LIBRARY}' modules take plain weights only. Leave it out."
        )
    try:
        from sapwood.foreign.facts import read
    except ImportError as error:
        raise ModelError(
            f"--model-impl {LIBRARY} needs it, 5 or newer: pip install 'sapwood[{LIBRARY}]' ({error})."
        ) from error
    return read(files.config, _names(files))


def _names(files: ModelFiles) -> frozenset[str]:
    """Of the tensors that the files hold; none where weights are made up."""
    return tensor_names(files) if any(files.path.glob("*.safetensors")) else frozenset()
