"""Pictures for processors that cut the centre out of them: questions speak of the whole picture, its sides included.

Of the supported families only LLaVA-1.5's processor cuts; its original code filled a picture to a square with the mean
colour (`image_aspect_ratio: pad`), which is what `pad` does here.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Fit = Literal["pad", "crop", "stretch"]


def cut_shape(processor: Any) -> tuple[int, int] | None:
    """Return the (height, width) that a processor cuts out of the middle of a picture; `None` if it cuts nothing."""
    images = getattr(processor, "image_processor", None)
    tiled = getattr(images, "image_grid_pinpoints", None) or getattr(images, "do_image_splitting", False)
    if images is None or tiled or not getattr(images, "do_center_crop", False):
        return None
    size = getattr(images, "crop_size", None)
    size = dict(size) if size is not None else {}
    if "height" not in size or "width" not in size:
        return None
    return int(size["height"]), int(size["width"])


def unseen_share(processor: Any, height: int, width: int) -> float:
    """Return the share of a picture's area that its processor cuts off."""
    cut = cut_shape(processor)
    if cut is None:
        return 0.0
    ratio = (width / height) / (cut[1] / cut[0])
    return 1 - min(ratio, 1 / ratio)


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
