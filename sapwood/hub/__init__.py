"""Where models are found: directories, GGUF files, the local cache, packages that carry one, and the hub."""

from sapwood.hub.cache import Cache, Cached
from sapwood.hub.catalog import CATALOG, Packaged
from sapwood.hub.files import ModelFiles, find, open_files

__all__ = ["CATALOG", "Cache", "Cached", "ModelFiles", "Packaged", "find", "open_files"]
