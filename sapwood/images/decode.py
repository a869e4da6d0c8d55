"""From bytes to an RGB image, within bounds that are known before anything is decoded."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def decoded(data: bytes, *, most_pixels: int) -> Image:
    """The image, turned as its camera says, on white where it is transparent; of several frames the first.

    Raises ValueError, saying why, for what is none of FORMATS, damaged, or of more pixels than `most_pixels` by its header.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as found:
            width, height = found.size
            if width * height > most_pixels:
                raise ValueError(
                    f"it has {width} by {height} pixels, and {most_pixels} are the most (--max-image-pixels)"
                )
            found.load()
            return _on_white(ImageOps.exif_transpose(found))
    except ValueError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {most_pixels} pixels (--max-image-pixels)") from None
    except (OSError, SyntaxError, EOFError, TypeError, ZeroDivisionError, OverflowError, MemoryError) as error:
        raise ValueError(f"it cannot be decoded: {error}") from None  # what Pillow raises for damaged files


def _on_white(image: Image) -> Image:
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
