"""The local model cache: a directory that may be shared by processes and deleted at any time.

ROOT/models/NAME/FILE.gguf          models of the catalog, whole and verified
ROOT/hub/models--ORG--NAME/...      models of the hub, in the layout of huggingface_hub
ROOT/tokenizers/KEY/...             tokenizers converted from GGUF files
ROOT/digests/KEY                    of large weight files, which are read once
ROOT/partial/...                    downloads under way; what a killed one left is swept after a day
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sapwood.base.errors import ModelError
from sapwood.hub.catalog import CATALOG, Packaged

STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Cached:
    """A model in the cache, under the name by which `find` knows it."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Cache:
    root: Path

    @classmethod
    def default(cls) -> Cache:
        """The user's cache, where the environment says."""
        from sapwood.config.env import cache_dir

        return cls(cache_dir())

    @property
    def hub(self) -> Path:
        return self.root / "hub"

    @property
    def tokenizers(self) -> Path:
        return self.root / "tokenizers"

    @property
    def digests(self) -> Path:
        return self.root / "digests"

    def path_of(self, model: Packaged) -> Path:
        """Where the catalog's model is, or would be: a file, or a directory."""
        return self.file_of(model).parent if model.beside else self.file_of(model)

    def file_of(self, model: Packaged) -> Path:
        """Its weights; they come last of what it has."""
        return self.root / "models" / model.name / model.file

    def has(self, model: Packaged) -> bool:
        """Whether it is there. Its hash was verified before it took its place, so the size is enough."""
        path = self.file_of(model)
        return path.is_file() and path.stat().st_size == model.size

    def models(self) -> list[Cached]:
        """What is cached, by name."""
        found = [Cached(model.name, self.path_of(model), model.size) for model in CATALOG if self.has(model)]
        for folder in self.hub.glob("models--*"):
            name = folder.name.removeprefix("models--").replace("--", "/")
            found.append(Cached(name, folder, sum(file.stat().st_size for file in folder.glob("blobs/*"))))
        return sorted(found, key=lambda model: model.name)

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """A private directory on the cache's file system, gone afterwards; a finished file is renamed out of it."""
        folder = self.root / "partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.iterdir():
                if time.time() - old.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
            temporary = tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True)
        except OSError as error:
            raise ModelError(f"The model cache {self.root} cannot be written: {error.strerror or error}.") from error
        with temporary as path:
            yield Path(path)
