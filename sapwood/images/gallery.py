"""Images of requests, ready for the engine; those that were seen lately are not prepared again."""

from __future__ import annotations

import importlib.util
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from sapwood.arch.sight import InternTower, LlavaTower, QwenTower, ShuffledTower, Tower
from sapwood.base.errors import ModelError, RequestError
from sapwood.base.media import Media, Span
from sapwood.images.decode import decoded
from sapwood.images.grid import Grid
from sapwood.images.look import Preparer
from sapwood.images.patches import Patches
from sapwood.images.sources import Sources
from sapwood.images.square import Square
from sapwood.images.tiles import Tiles

if TYPE_CHECKING:
    from sapwood.config.sight import SightConfig
    from sapwood.hub.files import ModelFiles
    from sapwood.text import TextModel

TEXT_ONLY = "images are not supported; this model takes text"
MOST_IMAGES = 32
_KEPT_BYTES = 64 << 20
_AT_ONCE = 2  # images that are decoded at a time: their memory is what bounds the server's
_LOOKS = {"preprocessor_config.json": None, "processor_config.json": "image_processor"}
_TOKENS = ("<image>", "<|image_pad|>", "<IMG_CONTEXT>")


class Gallery:
    """Prepares images by the model's own `preparer`, from `sources`."""

    def __init__(self, preparer: Preparer, sources: Sources, *, most_pixels: int) -> None:
        self._preparer, self._sources, self._most_pixels = preparer, sources, most_pixels
        self._kept: OrderedDict[bytes, Media] = OrderedDict()
        self._kept_bytes = 0
        self._limiter = anyio.CapacityLimiter(_AT_ONCE)

    async def media(self, urls: Sequence[tuple[str, str]], *, most: int, salt: str = "") -> list[Media]:
        """Those behind some URLs, each with what the caller calls it. What was prepared is kept apart by `salt`. Raises RequestError naming
        the place, for what has more than `most` positions together, too: what no prompt can have is not gathered."""
        if len(urls) > MOST_IMAGES:
            raise RequestError(f"{len(urls)} images are too many; at most {MOST_IMAGES}.", param=urls[MOST_IMAGES][1])
        found, length = list[Media](), 0
        for url, where in urls:
            try:
                found.append(await self._one(url, salt))
            except ValueError as error:
                raise RequestError(
                    f"{where}: the image cannot be used: {error}.", param=where, code="invalid_image"
                ) from None
            length += found[-1].length
            if length > most:
                raise RequestError(
                    f"{where}: the images up to this one take {length} positions, and the model's context has {most}: send fewer, or "
                    "smaller ones.",
                    param=where,
                    code="context_length_exceeded",
                )
        return found

    async def _one(self, url: str, salt: str) -> Media:
        data = await self._sources.read(url)
        name = await anyio.to_thread.run_sync(_name, data, salt)
        if (known := self._kept.get(name)) is not None:
            self._kept.move_to_end(name)
            return known

        def prepared() -> Media:
            return self._preparer.prepare(decoded(data, most_pixels=self._most_pixels))

        made = await anyio.to_thread.run_sync(prepared, limiter=self._limiter)
        self._keep(name, made)
        return made

    def _keep(self, name: bytes, made: Media) -> None:
        if name not in self._kept:
            self._kept[name] = made
            self._kept_bytes += _size(made)
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= _size(self._kept.popitem(last=False)[1])

    def placed(self, tokens: Sequence[int], media: Sequence[Media], param: str) -> tuple[list[int], list[Span]]:
        """The prompt with an image's own tokens where the template has written its place, and where results stand in it. Raises
        RequestError where there are not as many places as images."""
        places = [at for at, token in enumerate(tokens) if token == self._preparer.token]
        if len(places) != len(media):
            raise RequestError(
                f"{param}: the chat template has written {len(places)} places for {len(media)} images. Texts must not spell the "
                "token that stands for an image, and the template must know images.",
                param=param,
            )
        whole, spans, done = list[int](), list[Span](), 0
        for index, (at, one) in enumerate(zip(places, media, strict=True)):
            whole += tokens[done:at]
            expansion = self._preparer.expand(one)
            spans += [Span(len(whole) + first, length, index, offset) for first, length, offset in expansion.spans]
            whole += expansion.ids
            done = at + 1
        return [*whole, *tokens[done:]], spans


def _name(data: bytes, salt: str) -> bytes:
    return blake2b(data, digest_size=16, key=blake2b(salt.encode()).digest()).digest()


def _size(media: Media) -> int:
    return sum(len(array.data) for array in media.arrays.values())


def gallery_of(files: ModelFiles, tower: object, text: TextModel, config: SightConfig) -> Gallery | str:
    """For a model's images, or why it takes none. Raises ModelError for settings of its processor that are not supported."""
    if not isinstance(tower, Tower):
        return TEXT_ONLY
    if importlib.util.find_spec("PIL") is None:
        return "images need Pillow: pip install 'sapwood[vision]'"
    fields = _fields(files.path)
    if fields is None:
        return f"the model has no {' or '.join(_LOOKS)}, which says how images are prepared"
    sources = Sources(hosts=config.allowed_media_domains or (), root=config.allowed_local_media_path)
    return Gallery(_preparer(files.config, tower, fields, text), sources, most_pixels=config.max_image_pixels)


def _preparer(config: Mapping[str, Any], tower: Tower, fields: Mapping[str, Any], text: TextModel) -> Preparer:
    token = config.get("image_token_id", config.get("image_token_index"))
    if token is None:
        token = next((text.special_tokens[name] for name in _TOKENS if name in text.special_tokens), None)
    if type(token) is not int:
        raise ModelError("config.json: image_token_id is missing.")
    match tower:
        case LlavaTower():
            return Square(tower, fields, token)
        case ShuffledTower():
            return Tiles(tower, fields, token, lambda written: text.encode(written, add_special=False))
        case InternTower():
            return Grid(tower, fields, token, lambda written: text.encode(written, add_special=False))
        case QwenTower():
            return Patches(tower, fields, token)
    raise AssertionError(f"nothing prepares images for {type(tower).__name__}")


def _fields(path: Path) -> Mapping[str, Any] | None:
    for name, section in _LOOKS.items():
        if (file := path / name).is_file():
            try:
                found = json.loads(file.read_bytes())
                found = found if section is None else found[section]
            except (ValueError, KeyError, TypeError):
                raise ModelError(f"{file} cannot be read as the settings of an image processor.") from None
            if not isinstance(found, dict):
                raise ModelError(f"{file} must hold an object.")
            return found
    return None
