"""Images and recordings of requests, ready for the engine; those that were seen lately are not prepared again."""

from __future__ import annotations

import importlib.util
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import anyio

from sapwood.arch.sight import InternTower, LlavaTower, QwenTower, ShuffledTower, Tower
from sapwood.arch.sight_gemma import PooledTower
from sapwood.arch.sight_pixtral import PixtralTower
from sapwood.arch.sight_tiled import TiledTower
from sapwood.arch.sound import SoundTower
from sapwood.base.errors import ConfigError, ModelError, RequestError
from sapwood.base.media import Kind, Media, Span
from sapwood.config.devices import rules_of
from sapwood.images.anyres import Anyres
from sapwood.images.decode import decoded
from sapwood.images.framed import Framed
from sapwood.images.grid import Grid
from sapwood.images.hearing import Hearing
from sapwood.images.look import Places, Preparer
from sapwood.images.patches import Patches
from sapwood.images.rows import Rows
from sapwood.images.sources import Sources
from sapwood.images.square import Square
from sapwood.images.tiles import Tiles
from sapwood.speech.audio import AudioLimits, Unheard, check_installed, heard_beside

if TYPE_CHECKING:
    from sapwood.config.options import Config
    from sapwood.hub.files import ModelFiles
    from sapwood.text import TextModel

TEXT_ONLY = "images and recordings are not supported; this model takes text"
MOST_IMAGES = 32
_KEPT_BYTES = 64 << 20
_AT_ONCE = 2  # images that are decoded at a time: their memory is what bounds the server's
_LOOKS: Mapping[str, str | None] = MappingProxyType(
    {"preprocessor_config.json": None, "processor_config.json": "image_processor"}
)
_SOUND_LOOKS: Mapping[str, str | None] = MappingProxyType(
    {"preprocessor_config.json": None, "processor_config.json": "feature_extractor"}
)
_TOKENS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"image": ("<image>", "<|image_pad|>", "<IMG_CONTEXT>", "[IMG]"), "audio": ("<|AUDIO|>", "<sound>", "[AUDIO]")}
)


class Cabinet:
    """Media of one kind, `called` so in messages, from `sources`; `places` knows where in a prompt they stand."""

    kind: ClassVar[Kind]
    called: ClassVar[str]

    def __init__(self, places: Places, sources: Sources) -> None:
        self._places, self._sources = places, sources
        self.around: tuple[str, str] | None = None  # a place in texts, and what it is written as
        self._kept: OrderedDict[bytes, Media] = OrderedDict()
        self._kept_bytes = 0
        self._limiter = anyio.CapacityLimiter(_AT_ONCE)

    @property
    def token(self) -> int:
        """What a template writes for one."""
        return self._places.token

    def worded(self, text: str) -> str:
        """A prompt with media as it is cut into tokens."""
        return text if self.around is None else text.replace(*self.around)

    async def media(self, urls: Sequence[tuple[str | bytes, str]], *, most: int, salt: str = "") -> list[Media]:
        """Those behind some URLs, or whose bytes are given, each with what the caller calls it. What was prepared is kept apart by `salt`. Raises RequestError naming
        the place, for what has more than `most` positions together, too: what no prompt can have is not gathered."""
        if len(urls) > MOST_IMAGES:
            raise RequestError(
                f"{len(urls)} {self.called}s are too many; at most {MOST_IMAGES}.", param=urls[MOST_IMAGES][1]
            )
        found, length = list[Media](), 0
        for url, where in urls:
            try:
                found.append(await self._one(url, salt, most))
            except ValueError as error:
                raise RequestError(
                    f"{where}: the {self.called} cannot be used: {error}.", param=where, code=f"invalid_{self.kind}"
                ) from None
            length += found[-1].length
            if length > most:
                raise RequestError(
                    f"{where}: the {self.called}s up to this one take {length} positions, and the model's context has {most}: send "
                    "fewer, or smaller ones.",
                    param=where,
                    code="context_length_exceeded",
                )
        return found

    async def _one(self, url: str | bytes, salt: str, most: int) -> Media:
        data = url if isinstance(url, bytes) else await self._sources.read(url)
        name = await anyio.to_thread.run_sync(_name, data, salt)
        if (known := self._kept.get(name)) is not None:
            self._kept.move_to_end(name)
            return known
        made = await self._prepared(data, most)
        self._keep(name, made)
        return made

    async def _prepared(self, data: bytes, most: int) -> Media:
        """Raises ValueError, saying why, for what cannot be used; may do so for what has more than `most` positions."""
        raise NotImplementedError

    def _keep(self, name: bytes, made: Media) -> None:
        if name not in self._kept:
            self._kept[name] = made
            self._kept_bytes += _size(made)
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= _size(self._kept.popitem(last=False)[1])

    def bound(self, pixels: int | None, device: str) -> None:
        """Before any is prepared: to how many pixels an image is scaled down, of those that come as large as they are, and what the
        device bounds."""

    def clear(self) -> int:
        """Forget what was prepared; how many they were."""
        count = len(self._kept)
        self._kept.clear()
        self._kept_bytes = 0
        return count

    def placed(self, tokens: Sequence[int], media: Sequence[Media], param: str) -> tuple[list[int], list[Span]]:
        """The prompt with an image's own tokens where the template has written its place, and where results stand in it. Raises
        RequestError where there are not as many places as images."""
        places = [at for at, token in enumerate(tokens) if token == self._places.token]
        if len(places) != len(media):
            raise RequestError(
                f"{param}: the chat template has written {len(places)} places for {len(media)} {self.called}s. Texts must not spell the "
                f"token that stands for one, and the template must know {self.called}s.",
                param=param,
            )
        whole, spans, done = list[int](), list[Span](), 0
        for index, (at, one) in enumerate(zip(places, media, strict=True)):
            whole += tokens[done:at]
            expansion = self._places.expand(one)
            spans += [Span(len(whole) + first, length, index, offset) for first, length, offset in expansion.spans]
            whole += expansion.ids
            done = at + 1
        return [*whole, *tokens[done:]], spans


class Gallery(Cabinet):
    """Prepares images by the model's own `preparer`."""

    kind, called = "image", "image"

    def __init__(self, preparer: Preparer, sources: Sources, *, most_pixels: int) -> None:
        super().__init__(preparer, sources)
        self._preparer, self._most_pixels = preparer, most_pixels

    def bound(self, pixels: int | None, device: str) -> None:
        if isinstance(self._preparer, Patches | Rows):
            self._preparer.within = pixels

    async def _prepared(self, data: bytes, most: int) -> Media:
        def prepared() -> Media:
            return self._preparer.prepare(decoded(data, most_pixels=self._most_pixels))

        return await anyio.to_thread.run_sync(prepared, limiter=self._limiter)


class Archive(Cabinet):
    """Prepares recordings of at most `seconds`."""

    kind, called = "audio", "recording"

    def __init__(self, hearing: Hearing, sources: Sources, *, seconds: float) -> None:
        super().__init__(hearing, sources)
        self._hearing, self._limits = hearing, AudioLimits(seconds=min(seconds, hearing.most_seconds))

    def bound(self, pixels: int | None, device: str) -> None:
        self._limits = AudioLimits(seconds=min(self._limits.seconds, rules_of(device).sound_seconds))

    async def _prepared(self, data: bytes, most: int) -> Media:
        async with self._limiter:
            try:
                audio = await heard_beside(data, self._limits)
            except Unheard as error:
                raise ValueError(str(error)) from None
            return await anyio.to_thread.run_sync(self._hearing.prepare, audio.samples, most)


def _name(data: bytes, salt: str) -> bytes:
    return blake2b(data, digest_size=16, key=blake2b(salt.encode()).digest()).digest()


def _size(media: Media) -> int:
    return sum(len(array.data) for array in media.arrays.values())


def taking(cabinet: Cabinet | str, asked: Sequence[tuple[str, str]]) -> Cabinet:
    """What prepares media, of which kind and place each are told. Raises RequestError naming the first that the model does not take."""
    if isinstance(cabinet, str):
        raise RequestError(f"{asked[0][1]}: {cabinet}.", param=asked[0][1])
    for kind, at in asked:
        if kind != cabinet.kind:
            raise RequestError(
                f"{at}: this model takes no {kind}; besides text it takes {cabinet.called}s.",
                param=at,
                code="unsupported_media",
            )
    return cabinet


def gallery_of(files: ModelFiles, tower: object, text: TextModel, config: Config) -> Cabinet | str:
    """For what a model sees or hears, or why it takes none. Raises ModelError for settings of its processor that are not supported."""
    if not isinstance(tower, Tower):
        return TEXT_ONLY
    allowed = config.sight
    sources = Sources(hosts=allowed.allowed_media_domains or (), root=allowed.allowed_local_media_path)
    if isinstance(tower, SoundTower):
        return _archive(files, tower, text, sources, config.server.max_audio_seconds)
    if importlib.util.find_spec("PIL") is None:
        return "images need Pillow: pip install 'sapwood[vision]'"
    fields = _fields(files.path)
    if fields is None:
        return f"the model has no {' or '.join(_LOOKS)}, which says how images are prepared"
    made = Gallery(_preparer(files.config, tower, fields, text), sources, most_pixels=allowed.max_image_pixels)
    if isinstance(tower, PooledTower):  # blank lines around images are read together with what stands there
        name = next((name for name, id in text.special_tokens.items() if id == made.token), None)
        made.around = None if name is None else (name, f"\n\n{name}\n\n")
    return made


def _archive(files: ModelFiles, tower: SoundTower, text: TextModel, sources: Sources, seconds: float) -> Cabinet | str:
    try:
        check_installed()
    except ConfigError as error:
        return str(error).rstrip(".")
    fields = _fields(files.path, _SOUND_LOOKS) or {}
    return Archive(Hearing(tower, fields, _token(files.config, text, "audio")), sources, seconds=seconds)


def _token(config: Mapping[str, Any], text: TextModel, kind: Kind) -> int:
    token = config.get(f"{kind}_token_id", config.get(f"{kind}_token_index"))
    if token is None:
        token = next((text.special_tokens[name] for name in _TOKENS[kind] if name in text.special_tokens), None)
    if type(token) is not int:
        raise ModelError(f"config.json: {kind}_token_id is missing.")
    return token


def _of_config(config: Mapping[str, Any], name: str, usual: int) -> int:
    """A token by what Gemma's configs call it."""
    found = config.get(f"{name}_token_index", config.get(f"{name}_token_id", usual))
    if type(found) is not int:
        raise ModelError(f"config.json: {name}_token_index must be the number of a token.")
    return found


def _preparer(config: Mapping[str, Any], tower: Tower, fields: Mapping[str, Any], text: TextModel) -> Preparer:
    token = _token(config, text, "image")
    match tower:
        case PooledTower():
            begin, end = (_of_config(config, name, usual) for name, usual in (("boi", 255999), ("eoi", 256000)))
            return Framed(tower, fields, token, begin=begin, end=end)
        case TiledTower():
            return Anyres(tower, fields, token)
        case LlavaTower():
            return Square(tower, fields, token)
        case ShuffledTower():
            return Tiles(tower, fields, token, lambda written: text.encode(written, add_special=False))
        case InternTower():
            return Grid(tower, fields, token, lambda written: text.encode(written, add_special=False))
        case PixtralTower():
            return Rows(tower, fields, token, lambda written: text.encode(written, add_special=False))
        case QwenTower():
            return Patches(tower, fields, token)
    raise AssertionError(f"nothing prepares images for {type(tower).__name__}")


def _fields(path: Path, looks: Mapping[str, str | None] = _LOOKS) -> Mapping[str, Any] | None:
    for name, section in looks.items():
        if (file := path / name).is_file():
            try:
                found = json.loads(file.read_bytes())
                found = found if section is None else found[section]
            except (ValueError, KeyError, TypeError):
                raise ModelError(f"{file} cannot be read as the settings of a processor.") from None
            if not isinstance(found, dict):
                raise ModelError(f"{file} must hold an object.")
            return found
    return None
