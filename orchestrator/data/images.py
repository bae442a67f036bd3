"""Read an image file, whatever its mode, as RGB; name what is wrong with one that cannot be read.

Every door uses this decoder: image folders, COCO, question files and pictures given in a notebook.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from orchestrator.errors import DataError
from orchestrator.store.reading import read_bytes

_PLAIN = re.compile(r"[\w-][\w .-]*(/[\w-][\w .-]*)*")
"""Names of letters, digits and few signs, none of whose parts begins with a dot: they need no closer look."""
_DRIVE = re.compile(r"[A-Za-z]:")
TRANSPOSING = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


def safe_name(name: str, place: str) -> str:
    """Return a file name that stays below its root, in one spelling (`./a//b.png` is `a/b.png`).

    Raises DataError for one that is absolute, climbs, or names a drive or a URI. A colon elsewhere is a letter.
    """
    if _PLAIN.fullmatch(name):
        return name
    parts = PurePosixPath(name.replace("\\", "/")).parts
    climbs = not parts or ".." in parts or parts[0] == "/" or "\0" in name
    if climbs or _DRIVE.fullmatch(parts[0]) or "://" in name:
        raise DataError(f"{place}: file name {name!r} leaves the root; expected a relative path below it")
    return "/".join(parts)


def decode(data: bytes, name: str, *, turn: bool = True, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image as RGB uint8 of shape (height, width, 3); `to_rgb` says how each mode is converted.

    Args:
        data: the file's bytes.
        name: the file's name for messages.
        turn: apply the EXIF orientation.
        size: (width, height) that an annotation states, in px. The EXIF orientation is then applied if only the turned
            picture has that size, and not if only the stored one has.

    Raises:
        DataError: no image, cut off, absurdly large, animated, of a size other than `size`, or with an orientation
            that `size` cannot decide: the annotation's boxes may then speak of either picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data))
            image.load()
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image that can be read ({len(data)} bytes)") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Warning) as error:
        raise DataError(f"{name}: broken image: {error}") from error
    return to_rgb(image, name, turn=turn if size is None else _turned(image, name, size))


def _turned(image: Image.Image, name: str, size: tuple[int, int]) -> bool:
    orientation = orientation_of(image)
    turned = image.size[::-1] if orientation in TRANSPOSING else image.size
    if size not in (image.size, turned):
        raise DataError(
            f"{name}: image is {image.size[0]} x {image.size[1]} px, its annotation says {size[0]} x {size[1]}"
        )
    if orientation == 1 or image.size != turned:
        return size != image.size
    raise DataError(
        f"{name}: EXIF orientation {orientation} keeps the size of {size[0]} x {size[1]} px, so it is unknown whether "
        "the boxes speak of the stored or the turned picture; set data.exif: turn or ignore"
    )


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where there is none."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def to_rgb(image: Image.Image, name: str, *, turn: bool = True) -> np.ndarray:
    """Convert a PIL image to RGB uint8 (height, width, 3); DataError for one that has no single reading.

    | mode | becomes |
    |---|---|
    | bilevel, 8-bit grey, palette, RGB, CMYK, YCbCr, HSV | RGB, by Pillow |
    | 16-bit unsigned grey | its upper 8 bits |
    | an alpha channel or a transparent colour (tRNS) | laid over white |
    | signed 16-bit, 32-bit, floating point | refused: their range is not known |
    | several frames | refused: a video or a stack of pages |
    """
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a phone's MPO holds the photograph first
        raise DataError(f"{name}: {image.format} of {image.n_frames} frames; expected one picture")  # type: ignore[attr-defined]
    try:
        if turn:
            image = ImageOps.exif_transpose(image)
        return np.array(_rgb(image))
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: broken image: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow scales PGM to 16 bits
        return _from_16_bits(np.asarray(image).astype(np.int64), image.info.get("transparency"))
    if image.mode == "I":
        raise ValueError("signed or 32-bit pixels, whose range is not known; save it with 8 or unsigned 16 bits")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(grey: np.ndarray, transparent: int | None) -> Image.Image:
    upper = (grey >> 8).astype(np.uint8)
    if isinstance(transparent, int):
        upper[grey == transparent] = 255
    return Image.fromarray(upper).convert("RGB")


def read_image(fs: Any, path: str, name: str, *, turn: bool = True, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read and decode a file of an fsspec file system; errors as `read_bytes` and `decode`."""
    return decode(read_bytes(fs, path, name), name, turn=turn, size=size)
