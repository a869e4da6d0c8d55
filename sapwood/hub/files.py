"""A model's files, found and checked before anything is built from them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sapwood.arch.families import FAMILIES
from sapwood.arch.families.common import LLAMA
from sapwood.arch.family import Family, Gguf
from sapwood.base.errors import ModelError
from sapwood.hub.cache import Cache
from sapwood.hub.ctranslate2 import config_of, generation_of, is_ctranslate2, tensors_of
from sapwood.hub.pull import HUB_ID, Progress, pull, pulled, short_names

if TYPE_CHECKING:
    from sapwood.config.options import ModelConfig

INDEX = "model.safetensors.index.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelFiles:
    """A model that can be read: a Hugging Face directory or one GGUF file.

    `config` and `generation_config` have the keys of config.json and generation_config.json for both kinds; a head of
    its own is in `config` even where the file says that it is tied. `layout` says how a GGUF file has the model.
    """

    name: str
    path: Path
    kind: Literal["hf", "gguf"]
    config: dict[str, Any]
    generation_config: dict[str, Any]
    layout: Gguf | None = None

    @property
    def stored_bytes(self) -> int:
        """Bytes of quantised weights, a GGUF file's or those of a config that says so; 0 for plain ones, whose size follows from
        the config's dtype, and where there are none."""
        if self.kind == "gguf":
            return self.path.stat().st_size
        quantised = self.config.get("quantization_config") is not None
        return sum(file.stat().st_size for file in self.path.glob("*.safetensors")) if quantised else 0


def find(
    model: str,
    *,
    revision: str | None = None,
    weights: bool = True,
    cache: Cache | None = None,
    progress: Progress | None = None,
    families: Sequence[Family] = FAMILIES,
) -> ModelFiles:
    """Find a directory, a .gguf file, a short name or a hub id, in this order, and pull the latter two if needed.

    What is in the cache is used as it is, without asking the network. Without `weights` they may be missing. A GGUF file
    has to be of one of the `families`. Raises ModelError.
    """
    opened = partial(open_files, name=model, weights=weights, families=families)
    if Path(model).expanduser().exists():
        return opened(Path(model).expanduser())
    cache = cache or Cache.default()
    if path := pulled(model, revision=revision, cache=cache):
        try:
            return opened(path)
        except ModelError:
            pass  # an interrupted pull: pulling resumes it, or says what is wrong
    if model.endswith(".gguf"):
        raise ModelError(f"{model} does not exist.")
    try:
        path = pull(model, revision=revision, cache=cache, progress=progress)
    except ModelError as error:
        if HUB_ID.fullmatch(model):
            mend = f"A hub id needs a hub that can be reached: try `sapwood pull {model}`, or give a local directory."
            raise ModelError(f"{model} is no local path, and not in the cache. {error} {mend}") from error
        if model in short_names().split(", "):
            raise
        raise ModelError(
            f"There is no model {model!r}. It can be a directory with config.json and safetensors, a .gguf file, "
            f"a short name ({short_names()}), or a hub id (organisation/name, brought by `sapwood pull`)."
        ) from error
    return opened(path)


def find_configured(
    options: ModelConfig, *, families: Sequence[Family], weights: bool = True, progress: Progress | None = None
) -> ModelFiles:
    """`find`, as the options say: of a model whose weights are made up they may be missing."""
    weights = weights and options.load_format != "dummy"
    return find(options.model, revision=options.revision, weights=weights, progress=progress, families=families)


def open_files(path: Path, *, name: str, weights: bool = True, families: Sequence[Family] = FAMILIES) -> ModelFiles:
    """Read and check what is at `path`: a directory as Hugging Face writes them, or a .gguf file.

    Without `weights` only the config is needed. Raises ModelError, which names the file and says how to mend it.
    """
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if (path / "config.json").exists() or not ggufs:
            return _open_directory(path, name, weights)
        if len(ggufs) > 1:
            names = ", ".join(file.name for file in ggufs[:8])
            raise ModelError(f"{path} holds several GGUF files ({names}): name one of them.")
        (path,) = ggufs
    if not path.exists():
        raise ModelError(f"{path} does not exist.")
    if path.suffix != ".gguf":
        raise ModelError(f"{path} is neither a directory nor a .gguf file.")
    return _open_gguf(path, name, families)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a Hugging Face directory. Raises ModelError if there are none, or not all."""
    if (directory / INDEX).exists():
        shards = read_json(directory / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise ModelError(f"{directory / INDEX} has no weight_map: fetch it again.")
        files = [directory / shard for shard in sorted(set(shards.values()))]
        if missing := [file.name for file in files if not file.exists()]:
            raise ModelError(
                f"{directory} misses {len(missing)} of {len(files)} weight files: {_few(missing)}. Fetch them again."
            )
        return files
    if (whole := directory / "model.safetensors").exists():
        return [whole]
    if files := sorted(directory.glob("*.safetensors")):
        return files
    if is_ctranslate2(directory / "model.bin"):
        return [directory / "model.bin"]
    if old := [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in directory.glob(pattern)]:
        raise ModelError(
            f"{directory} holds pickled weights only ({_few(sorted(old))}), which can run code when they are read. "
            "Convert them to safetensors: transformers' from_pretrained, then save_pretrained, does."
        )
    raise ModelError(f"{directory} holds no weights: *.safetensors files are missing.")


def tensor_names(files: ModelFiles) -> frozenset[str]:
    """Of a Hugging Face directory. Raises ModelError."""
    return frozenset(name for file in weight_files(files.path) for name in tensors_in(file))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the model. Raises ModelError."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}); it may be cut off: fetch it again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, and holds a {type(value).__name__}.")
    return value


def _open_directory(path: Path, name: str, weights: bool) -> ModelFiles:
    if is_ctranslate2(path / "model.bin"):
        return _open_ctranslate2(path, name, weights)
    config = read_json(path / "config.json")
    generation, beside = path / "generation_config.json", path / "hf_quant_config.json"
    if "quantization_config" not in config and beside.exists():  # as older versions of ModelOpt have it
        config["quantization_config"] = {"quant_method": "modelopt", **read_json(beside)}
    if weights:
        spans = {name: span for file in weight_files(path) for name, span in tensors_in(file).items()}
        head, embedding = spans.get(f"{LLAMA.head}.weight"), spans.get(f"{LLAMA.embed}.weight")
        if head and embedding and config.get("tie_word_embeddings") is not False and _differ(head, embedding):
            config["tie_word_embeddings"] = False  # trained apart, whatever the field says
    return ModelFiles(name, path, "hf", config, read_json(generation) if generation.exists() else {})


def _open_ctranslate2(path: Path, name: str, weights: bool) -> ModelFiles:
    """A directory whose model.bin is CTranslate2's; what stands in its config.json is about generation."""
    config, beside = config_of(path / "model.bin"), path / "config.json"
    if weights:
        tensors_of(path / "model.bin")
    return ModelFiles(name, path, "hf", config, generation_of(config, read_json(beside) if beside.exists() else {}))


def _open_gguf(path: Path, name: str, families: Sequence[Family]) -> ModelFiles:
    from sapwood.hub.gguf import open_gguf
    from sapwood.hub.metadata import config_of, family_of

    gguf = open_gguf(path)
    ends = [gguf.metadata.get(f"tokenizer.ggml.{token}_token_id") for token in ("eos", "eot")]
    generation = {"eos_token_id": [end for end in ends if end is not None]}
    config, (_, layout) = config_of(gguf, families), family_of(gguf, families)
    return ModelFiles(name, path, "gguf", config, generation, layout)


class StoredTensor(NamedTuple):
    """A tensor of a safetensors file: its bytes there, [start, stop), and what they are, by the names of that format."""

    path: Path
    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]


def tensors_in(path: Path) -> dict[str, StoredTensor]:
    """Those of a safetensors file, or of CTranslate2's model.bin, by name. Raises ModelError.

    The file's length is compared with what its header promises: an interrupted download shows here, not later.
    """
    if path.suffix == ".bin":
        return {name: StoredTensor(path, *variable) for name, variable in tensors_of(path).items()}
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            raise ModelError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository.")
        (length,) = struct.unpack("<Q", start.ljust(8, b"\0"))
        header = file.read(length) if length < size else b""
    begin = 8 + length
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        found = {name: _tensor(path, begin, **entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is damaged or cut off: its header cannot be read. Fetch it again.") from error
    promised = max((tensor.stop for tensor in found.values()), default=begin)
    if size != promised:
        raise ModelError(f"{path} has {size} bytes where its header promises {promised}: fetch it again.")
    return found


def _tensor(path: Path, begin: int, *, dtype: str, shape: Sequence[int], data_offsets: Sequence[int]) -> StoredTensor:
    """An entry of a header, whose offsets count from `begin`. Raises TypeError or ValueError if it is none."""
    first, last = data_offsets
    if not 0 <= first <= last:
        raise ValueError(f"data_offsets {data_offsets}")
    return StoredTensor(path, begin + first, begin + last, dtype, tuple(map(int, shape)))


def _differ(one: StoredTensor, other: StoredTensor) -> bool:
    if one.stop - one.start != other.stop - other.start:
        return True
    with one.path.open("rb") as a, other.path.open("rb") as b:
        a.seek(one.start)
        b.seek(other.start)
        left = one.stop - one.start
        while left > 0:
            size = min(left, _CHUNK_BYTES)
            if a.read(size) != b.read(size):
                return True
            left -= size
    return False


def _few(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
