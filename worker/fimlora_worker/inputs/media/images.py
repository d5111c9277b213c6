"""Bytes of a stranger's image to pixels, of a bounded number."""

import io
import warnings
from typing import Any

# Three bytes each once decoded; read from the header, before anything is.
MOST_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


class DamagedMedia(ValueError):
    """It cannot be decoded; the message goes on after the name of what holds it."""


def decode_image(content: bytes, *, most_pixels: int = MOST_PIXELS, n_before: int = 0) -> Any:
    """The first frame of an image, the right way up, as RGB.

    Args:
        content: Bytes of a file.
        most_pixels: How many it may have, with those before it.
        n_before: Pixels of the images before it in its row.

    Returns:
        An image of Pillow.

    Raises:
        DamagedMedia: It is none, or is cut off, or has too many pixels or bits of them.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, which is looked at here
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if width * height > most_pixels:
                    raise DamagedMedia(
                        f"has {width} x {height} pixels; an image may have {most_pixels}"
                    )
                if n_before + width * height > most_pixels:
                    raise DamagedMedia(
                        f"has {width} x {height} pixels, after {n_before} of the images before it; "
                        f"those of a row may have {most_pixels} together"
                    )
                if image.mode.startswith(("I", "F")):  # a mere cut to 8 bits turns them white
                    raise DamagedMedia(
                        "has 16 bit samples: save it with 8 bits, so that nothing else decides how"
                    )
                return ImageOps.exif_transpose(image).convert("RGB")
    except DamagedMedia:
        raise
    except Image.DecompressionBombError as error:
        raise DamagedMedia(f"has more pixels than an image may have, {most_pixels}") from error
    except Exception as error:  # decoders raise whatever they meet
        if isinstance(error, MemoryError):
            raise
        raise DamagedMedia(f"is damaged: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":  # its words show an object of ours
        return "no image of these formats"
    return " ".join(str(error).split())[:200] or type(error).__name__
