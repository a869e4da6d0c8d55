"""The options of models that see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sapwood.base.errors import ConfigError
from sapwood.config.option import option

if TYPE_CHECKING:
    from sapwood.config.facts import DeviceFacts, ModelShape
    from sapwood.config.options import Config

MIN_ROWS = 1024
LEAST_PIXELS = 56 * 56


@dataclass(frozen=True, kw_only=True)
class SightConfig:
    """What images may be, where they may come from, and the memory for what is made of them."""

    language_model_only: bool = option(
        False, "a model that sees is served as its text alone, without its tower", "--language-model-only"
    )
    encoder_cache_memory: int | None = option(
        None,
        "bytes of device memory for encoded images, which are kept by their content (default: twice the largest image)",
        "--encoder-cache-memory",
        metavar="BYTES",
        derived=False,
    )
    encoder_cache_host_memory: int = option(
        0,
        "bytes of host memory for encoded images that had to make way on the device, from where they come back (default: none)",
        "--encoder-cache-host-memory",
        metavar="BYTES",
    )
    max_image_pixels: int = option(
        36_000_000,
        "most pixels of an image; more are refused before anything is decoded",
        "--max-image-pixels",
        metavar="N",
    )
    max_pixels: int | None = option(
        None,
        "pixels to which an image is scaled down before it is encoded, of models that see images of nearly their own size",
        "--max-pixels",
        metavar="N",
    )
    allowed_media_domains: tuple[str, ...] | None = option(
        None,
        "hosts from which images may be fetched, separated by commas (default: none)",
        "--allowed-media-domains",
        metavar="HOST",
        derived=False,
        several=True,
    )
    allowed_local_media_path: str | None = option(
        None,
        "directory below which file:// images may lie (default: none)",
        "--allowed-local-media-path",
        derived=False,
    )


def pixels_rule(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    """That for `max_pixels`; who composes a model that scales its images says why."""
    return device.rules.image_pixels[0], ""


def check(config: Config) -> None:
    """Raise ConfigError for options that are out of range."""
    sight = config.sight
    for flag, value, least in (
        ("--encoder-cache-memory", sight.encoder_cache_memory, 1),
        ("--encoder-cache-host-memory", sight.encoder_cache_host_memory, 0),
        ("--max-image-pixels", sight.max_image_pixels, 1),
        ("--max-pixels", sight.max_pixels, LEAST_PIXELS),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{flag} must be at least {least}, got {value}.")


def encoder_rows(config: Config, *, largest: int, width: int, itemsize: int) -> int:
    """Positions of results that there is room for: as many as the option's bytes hold, or twice those of the `largest` image. Raises
    ConfigError where that is none."""
    asked = config.sight.encoder_cache_memory
    if asked is None:
        return max(2 * largest, MIN_ROWS)
    rows = asked // (width * itemsize)
    if rows < 1:
        raise ConfigError(
            f"--encoder-cache-memory ({asked}) does not hold one position of {width * itemsize} bytes. Raise it."
        )
    return rows
