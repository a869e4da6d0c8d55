"""How a family prepares images: its preprocessor_config.json, read as strictly as a config.json, and the steps that all have in common.

The arithmetic is that of transformers' processors on Pillow: images are resized as uint8, and what comes out stays uint8 on its way to
the encoder, which scales and norms it.

Suffix legend: Y rows of pixels, X columns, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sapwood.base.errors import ModelError
from sapwood.base.media import Media

if TYPE_CHECKING:
    from PIL.Image import Image

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Expansion:
    """What stands in a prompt for one image: `ids`, of which each of `spans` (first, length, offset within the result) are places."""

    ids: list[int]
    spans: list[tuple[int, int, int]]


class Places(Protocol):
    """Where media stand. `token` is what the chat template writes for one."""

    token: int

    def expand(self, media: Media) -> Expansion:
        """What the template's token becomes."""
        ...


class Preparer(Places, Protocol):
    """A family's way with images."""

    def prepare(self, image: Image) -> Media:
        """An RGB image as the encoder takes it. Raises ValueError, saying why, for one that cannot be."""
        ...


class Settings:
    """Typed reads of a preprocessor_config.json; what is missing is as `assumed`. Raises ModelError, naming the field."""

    def __init__(self, fields: Mapping[str, Any], **assumed: Any) -> None:
        self._fields = {**assumed, **{name: value for name, value in fields.items() if value is not None}}

    def get(self, name: str) -> Any:
        return self._fields.get(name)

    def flag(self, name: str, default: bool = True) -> bool:
        value = self._fields.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        value = self._fields.get(name, default)
        if type(value) is not int or value <= 0:
            raise self.wrong(name, "a positive integer")
        return value

    def edge(self, name: str, key: str) -> int:
        """A number of pixels within an object, or the number itself."""
        value = self._fields.get(name)
        found = value.get(key) if isinstance(value, Mapping) else value
        if type(found) is not int or found <= 0:
            raise self.wrong(f"{name}.{key}", "a positive integer")
        return found

    def has_edge(self, name: str, key: str) -> bool:
        value = self._fields.get(name)
        return isinstance(value, Mapping) and value.get(key) is not None

    def normal(self) -> NDArray[np.float32]:
        """[factor, 3 means, 3 deviations] as towers want it."""
        factor = self._fields.get("rescale_factor", 1 / 255) if self.flag("do_rescale") else 1.0
        whole = self.flag("do_normalize")
        mean, deviation = (self._three(name) for name in ("image_mean", "image_std"))
        values = [factor, *(mean if whole else (0.0,) * 3), *(deviation if whole else (1.0,) * 3)]
        return np.array(values, np.float32)

    def _three(self, name: str) -> Sequence[float]:
        value = self._fields.get(name)
        if isinstance(value, int | float):
            value = [value] * 3
        if (
            not isinstance(value, list | tuple)
            or len(value) != 3
            or not all(isinstance(one, int | float) for one in value)
        ):
            raise self.wrong(name, "three numbers")
        return value

    def wrong(self, name: str, wanted: str) -> ModelError:
        return ModelError(f"preprocessor_config.json: {name} must be {wanted}, got {self._fields.get(name)!r}.")


def resized(image: Image, height: int, width: int, filter: int) -> Image:
    """By Pillow's filter of that number."""
    from PIL.Image import Resampling

    return image if image.size == (width, height) else image.resize((width, height), Resampling(filter))


def pixels_of(images: Sequence[Image]) -> Bytes:
    """uint8 [image, C, Y, X] of images of one size."""
    return np.stack([np.moveaxis(np.asarray(image), -1, 0) for image in images])


def media_of(pixels: Bytes, normal: NDArray[np.float32], length: int, **more: NDArray[np.generic]) -> Media:
    return Media.of("image", {"pixels": np.ascontiguousarray(pixels), "normal": normal, **more}, length)
