"""Read an image file, whatever its mode, as RGB; name what is wrong with one that cannot be read."""

from __future__ import annotations

import io
import warnings
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from orchestrator.errors import DataError


def safe_name(name: str, place: str) -> str:
    """Return a file name that stays below its root; DataError for one that is absolute, climbs, or names a drive."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or ":" in parts[0] or "\0" in name:
        raise DataError(f"{place}: file name {name!r} leaves the root; expected a relative path below it")
    return "/".join(parts)


def decode(data: bytes, name: str, *, turn: bool = False) -> np.ndarray:
    """Decode an image as RGB uint8 of shape (height, width, 3).

    Grey-scale (8 and 16 bit), palette and CMYK images are converted; transparency is laid over white. With `turn` the
    EXIF orientation is applied. Raises DataError for a file that is no image, is cut off, is absurdly large, or holds
    floating-point pixels, whose range nobody knows.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data))
            image.load()
        if turn:
            image = ImageOps.exif_transpose(image)
        return np.array(_rgb(image))
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image that can be read ({len(data)} bytes)") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Warning) as error:
        raise DataError(f"{name}: broken image: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def read_image(fs: Any, path: str, name: str, *, turn: bool = False) -> np.ndarray:
    """Read and decode a file of an fsspec file system; DataError with the reason where that fails."""
    try:
        data = fs.cat_file(path)
    except FileNotFoundError:
        raise DataError(f"{name}: missing file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error}") from error
    return decode(data, name, turn=turn)
