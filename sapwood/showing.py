"""Images and recordings in what an `LLM` is asked: found in conversations and prompts, and prepared as the server prepares them."""

from __future__ import annotations

import asyncio
import io
import threading
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sapwood.base.errors import RequestError
from sapwood.base.media import Media, Span
from sapwood.base.wire import Facts

if TYPE_CHECKING:
    from PIL.Image import Image

    from sapwood.catalogue import Catalogue
    from sapwood.config.options import Config
    from sapwood.hub.files import ModelFiles
    from sapwood.images.gallery import Cabinet
    from sapwood.text import TextModel

    Medium = str | bytes | Path | Image
    """A URL (data:, or one that the options allow), a file below --allowed-local-media-path, the bytes of one, or an image of Pillow's."""

T = TypeVar("T")
Message = dict[str, Any]
_SCHEMES = ("data:", "http:", "https:", "file:")
_KINDS: Mapping[str, str] = {
    "image": "image", "image_url": "image", "image_pil": "image",
    "audio": "audio", "audio_url": "audio", "input_audio": "audio",
}  # fmt: skip
"""What parts of messages are called, and the media that they are."""


class Shot(NamedTuple):
    """A medium, what kind of one it is, and what errors call it."""

    kind: str
    medium: object
    at: str


class Placed(NamedTuple):
    """Tokens with what stands among them."""

    tokens: list[int]
    media: Sequence[Media] = ()
    spans: Sequence[Span] = ()


class Shown(NamedTuple):
    """Media that are prepared, and what knows their places; None where there are none."""

    media: Sequence[Media]
    cabinet: Cabinet | None

    def worded(self, text: str) -> str:
        """A prompt as it is cut into tokens."""
        return text if self.cabinet is None else self.cabinet.worded(text)

    def placed(self, tokens: list[int], param: str) -> Placed:
        """With the media in the places that are written in a prompt. Raises RequestError where there are not as many."""
        if self.cabinet is None:
            return Placed(tokens)
        whole, spans = self.cabinet.placed(tokens, self.media, param)
        return Placed(whole, self.media, spans)


class _Beside:
    """A loop in a thread of its own, for callers of any thread, who may be in a loop already. It ends with whoever holds this."""

    def __init__(self) -> None:
        loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(loop,), daemon=True).start()
        self._loop = loop
        weakref.finalize(self, loop.call_soon_threadsafe, loop.stop)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of it; whoever is interrupted has it cancelled."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


class Showing:
    """What prepares media for the model of `facts`; its settings are read when the first is shown."""

    def __init__(self, config: Config, files: ModelFiles, text: TextModel, facts: Facts, catalogue: Catalogue) -> None:
        self._about = config, files, text, catalogue
        self._facts = facts
        self._cabinet: Cabinet | str | None = None
        self._beside: _Beside | None = None
        self._opening = threading.Lock()

    def prepared(self, shots: Sequence[Shot]) -> Shown:
        """Raises RequestError naming a medium that cannot be used."""
        if not shots:
            return Shown((), None)
        from sapwood.images.gallery import taking

        opened, beside = self._opened()
        cabinet = taking(opened, [(shot.kind, shot.at) for shot in shots])
        given = [(source_of(shot.medium, shot.at), shot.at) for shot in shots]
        return Shown(beside.wait(cabinet.media(given, most=self._facts.max_model_len)), cabinet)

    def _opened(self) -> tuple[Cabinet | str, _Beside]:
        """What has been opened, once for all threads: its bounds hold for all of them together, and only one loop may wait for them."""
        with self._opening:
            self._beside = self._beside or _Beside()
            return self._open(), self._beside

    def _open(self) -> Cabinet | str:
        if self._cabinet is None:
            from sapwood.engine.declared import declared
            from sapwood.images.gallery import gallery_of

            config, files, text, catalogue = self._about
            tower = declared(config, files, catalogue).encoder if {"image", "audio"} & {*self._facts.media} else None
            self._cabinet = gallery_of(files, tower, text, config)
            if not isinstance(self._cabinet, str):
                self._cabinet.bound(self._facts.max_pixels, self._facts.device)
        return self._cabinet


def source_of(medium: object, at: str) -> str | bytes:
    """A URL or bytes. Raises RequestError for what is no medium."""
    if isinstance(medium, str) and medium.lower().startswith(_SCHEMES):
        return medium
    if isinstance(medium, str | Path) and str(medium):
        return Path(medium).expanduser().absolute().as_uri()
    if isinstance(medium, bytes | bytearray | memoryview):
        return bytes(medium)
    if hasattr(medium, "save") and hasattr(medium, "convert"):  # Pillow's, which need not be installed
        return _written(medium)
    raise RequestError(
        f"{at}: {type(medium).__name__} is no medium: give a URL, a path, bytes, or an image of Pillow's.", param=at
    )


def _written(image: Any) -> bytes:
    """Without loss."""
    file = io.BytesIO()
    known = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")
    known.save(file, "PNG", compress_level=1)
    return file.getvalue()


def shown_in(messages: Sequence[Message]) -> tuple[list[Message], list[Shot]]:
    """A conversation as templates take it, with a place for each medium, and the media in their order. Raises RequestError for a part that
    has none."""
    shots = list[Shot]()

    def told(part: object, at: str) -> object:
        if not isinstance(part, dict) or (kind := _KINDS.get(str(part.get("type")))) is None:
            return part
        shots.append(Shot(kind, _medium(part, at), at))
        return {"type": kind}

    found = list[Message]()
    for index, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            parts = [told(part, f"messages[{index}].content[{number}]") for number, part in enumerate(content)]
            message = {**message, "content": parts}
        found.append(message)
    return found, shots


def _medium(part: Message, at: str) -> object:
    """Of a part of a message: under its own name, or as an object with a `url`, or `data` in base64."""
    name = part["type"]
    given = next((part[key] for key in (name, "url", "path") if part.get(key) is not None), None)
    if isinstance(given, Mapping):
        given = _inline(given["data"]) if given.get("data") else given.get("url")
    if given is None:
        raise RequestError(f"{at}: a part of type {name!r} needs {name}, a URL, a path, bytes or an image.", param=at)
    return given


def _inline(data: object) -> str:
    """A URL of base64, which may be one already."""
    return data if isinstance(data, str) and data.startswith("data:") else f"data:audio/wav;base64,{data}"


def prompt_of(prompt: Mapping[str, Any]) -> tuple[str | list[int], list[Shot]]:
    """Of {"prompt" or "prompt_token_ids": ..., "multi_modal_data": {"image" or "audio": one or several}}. Raises RequestError naming a field."""
    if unknown := set(prompt) - {"prompt", "prompt_token_ids", "multi_modal_data"}:
        raise RequestError(f"a prompt has no {sorted(unknown)[0]!r} here.", param=sorted(unknown)[0])
    given = prompt.get("prompt_token_ids", prompt.get("prompt"))
    if not isinstance(given, str | list):
        raise RequestError("a prompt needs prompt, a text, or prompt_token_ids.", param="prompt")
    shots, data = list[Shot](), prompt.get("multi_modal_data") or {}
    if not isinstance(data, Mapping):
        raise RequestError("multi_modal_data must be an object of image or audio.", param="multi_modal_data")
    for kind, media in data.items():
        if kind not in ("image", "audio"):
            raise RequestError(f"multi_modal_data has image and audio, not {kind!r}.", param="multi_modal_data")
        several = media if isinstance(media, list | tuple) else [media]
        shots += [Shot(kind, one, f"multi_modal_data.{kind}[{number}]") for number, one in enumerate(several)]
    return given, shots
