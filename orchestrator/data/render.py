"""Draw a scene: anti-aliased polygons by OpenCV with 1/16 px precision, optional texture, background and noise."""

from __future__ import annotations

import math
import zlib

import cv2
import numpy as np

from orchestrator.data.scenes import COLOURS, Scene

_SHIFT = 4  # fractional bits of a vertex


def _regular(n: int, phase: float = -90.0) -> np.ndarray:
    angles = np.radians(phase + 360.0 / n * np.arange(n))
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _star() -> np.ndarray:
    points = _regular(10)
    points[1::2] *= 0.42
    return points


def _cross(arm: float = 0.3) -> np.ndarray:
    a, b = arm, math.sqrt(1 - arm * arm)
    corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    return np.array(corners)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    points = np.stack([x, y - (y.max() + y.min()) / 2], 1)
    return points / np.linalg.norm(points, axis=1).max()


_ROUND = _regular(40)
OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (_ROUND,),
    "square": (_regular(4, 45.0),),
    "triangle": (_regular(3),),
    "diamond": (np.array([(0, -1), (0.55, 0), (0, 1), (-0.55, 0)]),),
    "star": (_star(),),
    "cross": (_cross(),),
    "heart": (_heart(),),
    "ring": (_ROUND, _ROUND * 0.55),
}
"""Outlines of each shape as (V, 2) vertices within the unit circle, y down; a second outline is a hole."""


def render(scene: Scene) -> np.ndarray:
    """Draw a scene as RGB uint8 of shape (height, width, 3). The same scene always gives the same bytes."""
    rng = None
    if scene.noise or scene.texture or scene.background != "white":
        rng = np.random.default_rng([scene.seed, scene.index, zlib.crc32(scene.stream.encode())])
    image = _background(scene, rng)
    for thing in scene.objects:
        outlines = _vertices(thing.shape, thing.x, thing.y, thing.size, thing.angle)
        cv2.fillPoly(image, outlines, COLOURS[thing.colour], cv2.LINE_AA, _SHIFT)
    return image


def _vertices(shape: str, x: float, y: float, size: float, angle: float) -> list[np.ndarray]:
    # Pixel centres lie at whole numbers for OpenCV and at halves for us. The edge that OpenCV draws around an
    # anti-aliased polygon makes it about half a pixel wider, taken off again here.
    radius = max(size / 2 - 0.5, 1.0) * (1 << _SHIFT)
    c, s = math.cos(math.radians(angle)) * radius, math.sin(math.radians(angle)) * radius
    turn = np.array([[c, -s], [s, c]])
    centre = np.array([(x - 0.5) * (1 << _SHIFT), (y - 0.5) * (1 << _SHIFT)])
    return [np.rint(points @ turn + centre).astype(np.int32) for points in OUTLINES[shape]]


def _background(scene: Scene, rng: np.random.Generator | None) -> np.ndarray:
    return np.full((scene.height, scene.width, 3), 255, dtype=np.uint8)
