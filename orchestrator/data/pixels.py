"""Complexity of an image from its pixels, without annotations.

The image is first scaled to `SIDE` px on its longer side (area interpolation), so that values of different sizes are
comparable. Each value is a proxy with a bias, described in docs/data.md.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from orchestrator.data.attributes import Kind

VERSION = 1
"""Incremented whenever the same image gives different values."""
SIDE = 256
"""Longer side of the scaled image, px."""

PIXEL_ATTRIBUTES: dict[str, tuple[Kind, str]] = {
    "edge_density": ("continuous", "share of pixels on a Canny edge (thresholds 100 and 200), 0 to 1"),
    "compressed_size": ("continuous", "bytes a pixel of its JPEG at quality 75"),
    "entropy": ("continuous", "Shannon entropy of the grey levels' histogram, 0 to 8 bits"),
    "n_segments": ("count", "colour regions of at least 0.1 % of the picture after mean-shift filtering"),
    "colourfulness": ("continuous", "Hasler and Suesstrunk's M3, 0 and more"),
    "saliency_spread": (
        "continuous",
        "root mean square distance of spectral-residual saliency from its centre, over half the diagonal, 0 to 1",
    ),
}
"""Kind and meaning. Sources: Canny 1986; Machado et al. 2015 (compression as visual complexity); Comaniciu and Meer
2002 (mean shift); Hasler and Suesstrunk 2003; Hou and Zhang 2007 (spectral residual)."""


def pixel_attributes(image: UInt8[np.ndarray, "H W 3"]) -> dict[str, float | int]:
    """Return the attributes of an RGB image (`PIXEL_ATTRIBUTES`)."""
    scale = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=interpolation)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 75])
    shares = np.bincount(grey.ravel(), minlength=256) / grey.size
    return {
        "edge_density": float((cv2.Canny(grey, 100, 200) > 0).mean()),
        "compressed_size": len(jpeg) / grey.size,
        "entropy": float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum()) + 0.0,
        "n_segments": _n_segments(small),
        "colourfulness": _colourfulness(small.astype(np.float64)),
        "saliency_spread": _spread(_saliency(grey)),
    }


def _n_segments(small: UInt8[np.ndarray, "h w 3"]) -> int:
    """Connected regions of equal colour, 32 levels per channel, after mean-shift filtering (radii 8 px and 16
    levels)."""
    levels = (cv2.pyrMeanShiftFiltering(small, 8, 16) // 8).astype(np.int32)
    colour = (levels[..., 0] << 10) | (levels[..., 1] << 5) | levels[..., 2]
    least = 0.001 * colour.size
    n = 0
    for value, count in zip(*np.unique(colour, return_counts=True), strict=True):
        if count >= least:
            _, _, stats, _ = cv2.connectedComponentsWithStats((colour == value).astype(np.uint8), connectivity=4)
            n += int((stats[1:, cv2.CC_STAT_AREA] >= least).sum())
    return n


def _colourfulness(rgb: Float[np.ndarray, "h w 3"]) -> float:
    red_green = rgb[..., 0] - rgb[..., 1]
    yellow_blue = (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    spread = math.hypot(red_green.std(), yellow_blue.std())
    return spread + 0.3 * math.hypot(red_green.mean(), yellow_blue.mean())


def _saliency(grey: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "64 64"]:
    """Energy of the spectral residual at 64 x 64 px, smoothed (sigma 2.5 px); zero for a uniform image."""
    small = cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float64)
    if not small.std():
        return np.zeros((64, 64))
    spectrum = np.fft.fft2(small)
    log_amplitude = np.log(np.abs(spectrum) + 1e-9)
    residual = log_amplitude - cv2.blur(log_amplitude, (3, 3))
    energy = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    return cv2.GaussianBlur(energy, (0, 0), 2.5)


def _spread(weight: Float[np.ndarray, "h w"]) -> float:
    total = weight.sum()
    if total <= 0:
        return 0.0
    y, x = (np.arange(n) / (n - 1) - 0.5 for n in weight.shape)
    columns, rows = weight.sum(0) / total, weight.sum(1) / total
    variance = sum(float((w * p**2).sum() - (w * p).sum() ** 2) for w, p in ((columns, x), (rows, y)))
    return math.sqrt(max(0.0, variance)) / (math.sqrt(2) / 2)
