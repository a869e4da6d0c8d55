"""A model's tokenizer and what its configuration says about it, from wherever they are kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sapwood.base.errors import ConfigError, ModelError
from sapwood.hub.cache import Cache
from sapwood.hub.files import ModelFiles, read_json
from sapwood.text import special
from sapwood.text.template import find_templates
from sapwood.text.wordpiece import from_vocabulary

FORMAT = 2  # of converted tokenizers in the cache; raise it when `convert` makes something else of the same file


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, tokenizer_config.json (and what stands beside it), and the directory with template files, if any."""

    tokenizer: Tokenizer
    config: dict[str, Any]
    directory: Path | None

    @property
    def named(self) -> dict[str, str]:
        """The special tokens that have a name, such as bos_token, as templates see them."""
        return special.names(self.config)

    def id_of(self, name: str) -> int | None:
        """The id of a named special token."""
        token = self.named.get(name)
        return None if token is None else self.tokenizer.token_to_id(token)


def load_vocabulary(files: ModelFiles, *, override: str | None = None, cache: Cache | None = None) -> Vocabulary:
    """Read the tokenizer of a model, or of the directory or tokenizer.json that `override` names.

    That of a GGUF file is converted once and kept in the cache. Raises ModelError, or ConfigError for `override`.
    """
    if override is not None:
        path = Path(override).expanduser()
        if not path.exists():
            raise ConfigError(f"--tokenizer {override}: no such directory or file.")
        vocabulary = _from_directory(
            path if path.is_dir() else path.parent, "tokenizer.json" if path.is_dir() else path.name
        )
    elif files.kind == "hf":
        vocabulary = _from_directory(files.path, "tokenizer.json")
    else:
        vocabulary = _from_gguf(files.path, cache or Cache.default())
    tokenizer = vocabulary.tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    num_rows = files.config.get("vocab_size")
    special.complete(tokenizer, vocabulary.config, num_rows=num_rows if isinstance(num_rows, int) else None)
    return vocabulary


def own_templates(files: ModelFiles) -> dict[str, str]:
    """The chat templates of the model itself, for when its tokenizer comes from elsewhere and brings none."""
    if files.kind == "hf":
        config = files.path / "tokenizer_config.json"
        return find_templates(files.path, read_json(config) if config.exists() else {})
    from sapwood.hub.gguf import open_gguf
    from sapwood.text.convert import templates

    return templates(open_gguf(files.path).metadata)


def _from_directory(directory: Path, name: str) -> Vocabulary:
    path = directory / name
    if not path.exists() and (directory / "vocab.txt").exists():
        own = directory / "tokenizer_config.json"
        tokenizer = from_vocabulary(directory / "vocab.txt", read_json(own) if own.exists() else {})
        return Vocabulary(tokenizer, special.read_config(directory, tokenizer), directory)
    if not path.exists():
        raise ModelError(
            f"{directory} has no {name}. If it has the files of a slow tokenizer, transformers makes one: "
            f"AutoTokenizer.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r}). "
            "Or give --tokenizer."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{path} is damaged or not a tokenizer: {error}.") from error
    return Vocabulary(tokenizer, special.read_config(directory, tokenizer), directory)


def _from_gguf(path: Path, cache: Cache) -> Vocabulary:
    stat = path.stat()
    facts = f"{FORMAT}:{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    kept = cache.tokenizers / hashlib.sha256(facts.encode()).hexdigest()[:32]
    if kept.is_dir():
        try:
            return _from_directory(kept, "tokenizer.json")
        except ModelError:
            pass  # damaged since; it is converted again, though not replaced
    from sapwood.hub.gguf import open_gguf
    from sapwood.text.convert import convert

    try:
        tokenizer, config = convert(open_gguf(path).metadata)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # of the values in the file; tokenizers raises nothing narrower for its part
        raise ModelError(f"{path} has an incomplete tokenizer ({error!r}): give --tokenizer.") from error
    try:
        with cache.partial() as folder:
            new = folder / kept.name
            new.mkdir()
            tokenizer.save(str(new / "tokenizer.json"), pretty=False)
            (new / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
            kept.parent.mkdir(exist_ok=True)
            new.rename(kept)
    except (OSError, ModelError):
        pass  # a read-only cache, or another process was first: only the next start's speed is at stake
    return Vocabulary(tokenizer, config, None)
