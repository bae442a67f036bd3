"""Render a scene: anti-aliased polygons by OpenCV with 1/16 px precision, optional texture, background and noise."""

from __future__ import annotations

import math
import zlib

import cv2
import numpy as np

from orchestrator.data.scenes import COLOURS, Scene, SceneObject

_SHIFT = 4  # fractional bits of a vertex
_EDGE_PX = 0.6
DIMMEST = 0.4
"""Relative loss of brightness at the darkest side for lighting of strength 1."""
DARKEST = 55.0
"""Maximum darkening of a channel by a background texture of strength 1, 0 to 255."""


def _regular(n: int, phase: float = -90.0) -> np.ndarray:
    angles = np.radians(phase + 360.0 / n * np.arange(n))
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _star() -> np.ndarray:
    points = _regular(10)
    points[1::2] *= 0.42
    return points


def _cross(arm: float = 0.3) -> np.ndarray:
    a, b = arm, math.sqrt(1 - arm * arm)
    corners = [
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
    ]
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
    """Render a scene as RGB uint8 of shape (height, width, 3). Deterministic: equal scenes give equal bytes."""
    plain = not (scene.texture or scene.noise or scene.background_texture or scene.lighting)
    if plain and scene.background == "white":
        image = np.full((scene.height, scene.width, 3), 255, dtype=np.uint8)
        for item in scene.objects:
            cv2.fillPoly(image, _vertices(item), COLOURS[item.colour], cv2.LINE_AA, _SHIFT)
        return image
    rng = np.random.default_rng([scene.seed, scene.index, zlib.crc32(scene.stream.encode())])
    image = _background(scene, rng)
    if scene.background_texture:
        image = _textured_background(image, scene.background_texture, rng)
    for item in scene.objects:
        if scene.texture:
            _draw_textured(image, item, scene.texture, rng)
        else:
            cv2.fillPoly(image, _vertices(item), COLOURS[item.colour], cv2.LINE_AA, _SHIFT)
    if scene.lighting:
        dimmed = 1 - DIMMEST * scene.lighting * _ramp(scene.width, scene.height, rng)
        image = np.rint(image * dimmed[..., None]).astype(np.uint8)
    if scene.noise:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * (255 * scene.noise)
        image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    return image


def outline(item: SceneObject, inset: float = 0.0) -> list[np.ndarray]:
    """Return the outlines of an object as float64 arrays (V, 2) of x, y in px, with the radius reduced by `inset`
    px."""
    radius = max(item.size / 2 - inset, 1.0)
    angle = math.radians(item.angle)
    c, s = math.cos(angle) * radius, math.sin(angle) * radius
    # y points down, so this turns counter-clockwise as seen.
    return [points @ np.array([[c, -s], [s, c]]) + (item.x, item.y) for points in OUTLINES[item.shape]]


def _vertices(item: SceneObject) -> list[np.ndarray]:
    # Pixel centres are at integers in OpenCV and at half-integers here. The edge that OpenCV draws around an
    # anti-aliased polygon widens it; the inset compensates for that.
    return [np.rint((points - 0.5) * (1 << _SHIFT)).astype(np.int32) for points in outline(item, _EDGE_PX)]


def _draw_textured(image: np.ndarray, item: SceneObject, strength: float, rng: np.random.Generator) -> None:
    """Draw an object with soft stripes: darker ones on light colours, lighter ones on dark colours."""
    reach = item.size / 2 + 2
    left, top = max(0, int(item.x - reach)), max(0, int(item.y - reach))
    patch = image[top : int(item.y + reach) + 1, left : int(item.x + reach) + 1]
    mask = np.zeros(patch.shape[:2], dtype=np.uint8)
    cv2.fillPoly(mask, _vertices(item._replace(x=item.x - left, y=item.y - top)), 255, cv2.LINE_AA, _SHIFT)
    y, x = np.mgrid[: patch.shape[0], : patch.shape[1]].astype(np.float32)
    direction, phase = rng.uniform(0, 2 * math.pi, 2)
    period = max(3.0, item.size * rng.uniform(0.2, 0.45))
    wave = 0.5 + 0.5 * np.sin(2 * math.pi / period * (math.cos(direction) * x + math.sin(direction) * y) + phase)
    colour = np.array(COLOURS[item.colour], dtype=np.float32)
    target = 255.0 if colour.mean() < 60 else 0.0
    paint = colour + (0.3 * strength * wave[..., None]) * (target - colour)
    alpha = mask[..., None] / np.float32(255)
    patch[:] = np.rint(patch * (1 - alpha) + paint * alpha).astype(np.uint8)


def _ramp(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Ramp from 0 to 1 across the canvas in a random direction, float32 (height, width)."""
    direction = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ramp = math.cos(direction) * x / width + math.sin(direction) * y / height
    return (ramp - ramp.min()) / (ramp.max() - ramp.min())


def _textured_background(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Darken a background by three crossed gratings of 6 to 24 px, by at most `DARKEST` at full strength."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    pattern = np.zeros(image.shape[:2], dtype=np.float32)
    for direction, phase, period in zip(*rng.uniform(0, 2 * math.pi, (2, 3)), rng.uniform(6, 24, 3), strict=True):
        pattern += np.sin(2 * math.pi / period * (math.cos(direction) * x + math.sin(direction) * y) + phase)
    return np.rint(image - (DARKEST * strength) * (0.5 + pattern[..., None] / 6)).astype(np.uint8)


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Light backgrounds, never darker than 195: a gradient between two tints, or soft clutter."""
    height, width = scene.height, scene.width
    if scene.background == "gradient":
        first = rng.uniform(235, 255, 3).astype(np.float32)
        second = rng.uniform(195, 235, 3).astype(np.float32)
        ramp = _ramp(width, height, rng)
        return np.rint(first + (second - first) * ramp[..., None]).astype(np.uint8)
    if scene.background == "clutter":
        image = np.full((height, width, 3), 228, dtype=np.float32)
        for cells, depth in ((5, 12.0), (14, 8.0), (40, 6.0)):
            coarse = rng.uniform(-depth, depth, (cells, cells, 3)).astype(np.float32)
            image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        return np.clip(np.rint(image), 200, 255).astype(np.uint8)
    return np.full((height, width, 3), 255, dtype=np.uint8)
