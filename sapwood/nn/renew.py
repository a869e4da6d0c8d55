"""Other weights into a model that runs: checked as a whole before anything of the model is touched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from sapwood.arch.parts import walk
from sapwood.arch.shard import Piece
from sapwood.base.errors import ModelError
from sapwood.base.weights import Given
from sapwood.hub.files import tensors_in, weight_files
from sapwood.nn.checkpoint import Safetensors
from sapwood.nn.load import Loadable, check_all, fill, matched, pieces_of_all
from sapwood.nn.make import Derived

_FLOATS = ("F16", "BF16", "F32", "F64")
_FILE_BYTES = 1 << 30  # of tensors that are written together
_STRETCH = 16 << 20  # bytes that are read at once for a checksum


def check(model: Loadable, given: Given) -> None:
    """Raise ModelError, saying why, if `given` cannot take the place of the model's weights. The model stays as it is."""
    _files(given)
    if given.whole:
        _check_refills(model, [place.path for place in walk(model.decoder)])
    with ExitStack() as stack:
        source = Safetensors(_files(given), stack)
        pieces, shapes = _matched(model, source, given), source.shapes()
        check_all(model, shapes, name=given.path, whole=given.whole)
        others = pieces_of_all(model, shapes)
    if not pieces and not any(piece.name in shapes for piece in others):
        raise ModelError(f"{given.path} holds nothing that this model has.")
    _check_refills(model, [piece.path for piece in pieces])
    _check_tensors(given)
    if not given.whole and (fixed := [one for one in _derived(model) if not one.again]):
        raise ModelError(
            f"{type(fixed[0]).__name__.lower()} are made of several of the weights: give all of them, as a whole checkpoint."
        )


def _check_refills(model: Loadable, paths: Sequence[str]) -> None:
    if fixed := next((path for path in paths if not model.leaf(path).refills), None):
        raise ModelError(
            f"{fixed} cannot be replaced while the model runs: its weights are quantised in the checkpoint, and were laid out anew when "
            "they were loaded. Serve the plain checkpoint, or let --quantization round it."
        )


def refill(model: Loadable, given: Given) -> None:
    """Put what `check` has found good into the model. What is raised leaves it half old and half new."""
    with ExitStack() as stack:
        source = Safetensors(_files(given), stack)
        fill(model, source, _matched(model, source, given), name=given.path)


def moved(model: Loadable) -> bool:
    """Whether something that is made of the weights lies elsewhere once they are refilled, so that what has noted where is void."""
    return bool(_derived(model))


def _derived(model: Loadable) -> Sequence[Derived]:
    return [one for one in model.modules() if isinstance(one, Derived)] if isinstance(model, nn.Module) else []


def _matched(model: Loadable, source: Safetensors, given: Given) -> Sequence[Piece]:
    return matched(model, source.shapes(), name=given.path, whole=given.whole)


def _files(given: Given) -> Sequence[Path]:
    path = Path(given.path)
    if path.is_dir():
        return weight_files(path)
    if not path.is_file():
        raise ModelError(
            f"{path} is not there: give a safetensors file, or a directory of some, that the server can read."
        )
    if path.suffix != ".safetensors":
        raise ModelError(f"{path} is no safetensors file; only those can be taken while the model runs.")
    return [path]


def _check_tensors(given: Given) -> None:
    """Their kinds, and the checksums that are said."""
    found = {name: tensor for path in _files(given) for name, tensor in tensors_in(path).items()}
    if unknown := given.checksums.keys() - found:
        raise ModelError(f"checksums name {min(unknown)}, which {given.path} does not hold.")
    for name, tensor in found.items():
        if tensor.dtype not in _FLOATS:
            raise ModelError(
                f"{given.path} holds {name} as {tensor.dtype}; tensors of {', '.join(_FLOATS)} can be taken."
            )
    for name, wanted in given.checksums.items():
        if _sha256(found[name].path, found[name].start, found[name].stop) != wanted.lower():
            raise ModelError(f"{name} in {given.path} has another checksum than was said: write it again.")


def _sha256(path: Path, start: int, stop: int) -> str:
    made = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            data = file.read(min(_STRETCH, stop - start))
            made.update(data)
            start += len(data)
    return made.hexdigest()


def store(tensors: Mapping[str, torch.Tensor], path: Path) -> int:
    """Write tensors as a safetensors file; returns their bytes."""
    from safetensors.torch import save_file

    whole: dict[str, torch.Tensor] = {}
    shared: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().to("cpu", copy=False).contiguous()
        place = here.untyped_storage().data_ptr()
        whole[name] = here.clone() if place in shared else here  # a file has tensors of its own, as of tied heads
        shared.add(place)
    save_file(whole, path)
    return sum(tensor.nbytes for tensor in whole.values())


def store_all(weights: Iterable[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Write tensors as they come, to files of about a GiB. Raises ModelError for one that comes twice."""
    names: set[str] = set()
    some: dict[str, torch.Tensor] = {}
    size = number = 0
    for name, tensor in weights:
        if name in names:
            raise ModelError(f"{name} was given twice.")
        names.add(name)
        some[name] = tensor
        size += tensor.nbytes
        if size >= _FILE_BYTES:
            store(some, folder / f"{number:05}.safetensors")
            some, size, number = {}, 0, number + 1
    if some or not names:
        store(some, folder / f"{number:05}.safetensors")
