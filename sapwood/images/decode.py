"""From bytes to an RGB image, within bounds that are known before anything is decoded."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_MOST_SCANS = 50
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)  # of a JPEG, behind what is coded


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
            _check_effort(data, found)
            found.load()
            return _on_white(ImageOps.exif_transpose(found))
    except ValueError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {most_pixels} pixels (--max-image-pixels)") from None
    except Exception as error:  # whatever a decoder says of a damaged file
        raise ValueError(f"it cannot be decoded: {error}") from None


def _check_effort(data: bytes, image: Image) -> None:
    """Raise ValueError for what takes far more time than its pixels do: each scan of a JPEG goes over all of them, and Pillow reads
    compressed BMP in Python."""
    if image.format in ("JPEG", "MPO") and _num_scans(data) > _MOST_SCANS:
        raise ValueError(f"it has more than {_MOST_SCANS} scans")
    tiles = getattr(image, "tile", ())
    if image.format == "BMP" and tiles and tiles[0][0] == "bmp_rle":
        raise ValueError("it is a compressed BMP, which is not read: send a PNG")


def _num_scans(data: bytes) -> int:
    """Of a JPEG's first image, counted as far as it matters."""
    count, at = 0, 2
    while count <= _MOST_SCANS and (found := _MARKER.search(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == 0xD9:  # its end
            break
        count += marker == 0xDA
        if marker not in (0x01, 0xD8):  # which have no length
            at += int.from_bytes(data[at : at + 2])
    return count


def _on_white(image: Image) -> Image:
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
