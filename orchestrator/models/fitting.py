"""Pictures for processors that cut the centre out of them: questions speak of the whole picture, its sides included.

Of the supported families only LLaVA-1.5's processor cuts; its original code filled a picture to a square with the mean
colour (`image_aspect_ratio: pad`), which is what `pad` does here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Fit = Literal["pad", "crop", "stretch"]
Window = tuple[float, float, float, float]
"""Part of a picture as shares of it, (x0, y0, x1, y1) from the top left; below 0 and above 1 is padding."""
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


def cut_shape(processor: Any) -> tuple[int, int] | None:
    """Return the (height, width) that a processor cuts out of the middle of a picture; `None` if it cuts nothing."""
    images = getattr(processor, "image_processor", None)
    if images is None:
        return None
    names = ("image_grid_pinpoints", "do_image_splitting", "do_center_crop", "crop_size")
    return cut_of_settings({name: getattr(images, name, None) for name in names})


def cut_of_settings(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the same from an image processor's settings; CLIP's cuts unless they say otherwise."""
    by_default = str(settings.get("image_processor_type", "")).startswith("CLIP")
    tiled = settings.get("image_grid_pinpoints") or settings.get("do_image_splitting")
    if tiled or not settings.get("do_center_crop", by_default):
        return None
    size = settings.get("crop_size")
    if isinstance(size, int):
        return size, size
    size = dict(size) if size is not None else {}
    if "height" not in size or "width" not in size:
        return None
    return int(size["height"]), int(size["width"])


def seen_window(height: int, width: int, cut: tuple[int, int], fit: Fit) -> tuple[float, float, float, float]:
    """Return the (top, left, bottom, right) of a picture that a model sees, px: the middle of one that is cut."""
    if fit != "crop":
        return 0.0, 0.0, float(height), float(width)
    seen_height, seen_width = min(height, width * cut[0] / cut[1]), min(width, height * cut[1] / cut[0])
    top, left = (height - seen_height) / 2, (width - seen_width) / 2
    return top, left, top + seen_height, left + seen_width


def shown_window(processor: Any, fit: Fit, height: int, width: int) -> Window:
    """Return what a model sees of a picture after `fit_picture`: the padded, the cropped or the whole picture."""
    cut = cut_shape(processor)
    if cut is None or fit == "stretch":
        return WHOLE
    ratio = (width / height) / (cut[1] / cut[0])
    wide = max(1.0, 1 / ratio) if fit == "pad" else min(1.0, 1 / ratio)
    high = max(1.0, ratio) if fit == "pad" else min(1.0, ratio)
    return 0.5 - wide / 2, 0.5 - high / 2, 0.5 + wide / 2, 0.5 + high / 2


def unseen_share(processor: Any, height: int, width: int) -> float:
    """Return the share of a picture's area that its processor cuts off."""
    cut = cut_shape(processor)
    if cut is None:
        return 0.0
    top, left, bottom, right = seen_window(height, width, cut, "crop")
    return 1 - (bottom - top) * (right - left) / (height * width)


def fit_picture(image: np.ndarray, fit: Fit, processor: Any) -> np.ndarray:
    """Return the picture in the shape that its processor takes whole, or as it is where nothing would be cut off.

    Args:
        image: uint8 (H, W, 3).
        fit: `pad` puts it in the middle of the processor's mean colour, `stretch` squeezes it, `crop` leaves it.
    """
    cut = cut_shape(processor)
    height, width = image.shape[:2]
    if cut is None or fit == "crop" or height * cut[1] == width * cut[0]:
        return image
    wide = width * cut[0] > height * cut[1]
    new = (round(width * cut[0] / cut[1]), width) if wide else (height, round(height * cut[1] / cut[0]))
    if fit == "stretch":
        from PIL import Image

        return np.asarray(Image.fromarray(image).resize((new[1], new[0]), Image.Resampling.BICUBIC))
    mean = getattr(processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
    padded = np.empty((*new, 3), dtype=np.uint8)
    padded[:] = np.round(np.asarray(mean, dtype=float) * 255).astype(np.uint8)
    top, left = (new[0] - height) // 2, (new[1] - width) // 2
    padded[top : top + height, left : left + width] = image
    return padded
