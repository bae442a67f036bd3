"""Attributes of images: numbers that compression is correlated with and probes predict.

Positions and sizes are relative, so that images of different sizes are comparable: lengths to the canvas's diagonal or
shorter side, areas to the canvas's area. An undefined value (the nearest neighbour of a single object) is None.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Float

from orchestrator.data.render import OUTLINES, outline
from orchestrator.data.scenes import Scene, SceneObject

Kind = Literal["count", "continuous", "categorical"]

SCENE_ATTRIBUTES: dict[str, tuple[Kind, str]] = {
    "n_objects": ("count", "number of objects, 1 and more"),
    "n_shapes": ("count", "number of distinct shapes, 1 to 8"),
    "n_colours": ("count", "number of distinct colours, 1 to 10"),
    "dominant_colour": ("categorical", "colour of the most objects; of equals, the one that covers more"),
    "dominant_shape": ("categorical", "shape of the most objects; of equals, the one that covers more"),
    "coverage": ("continuous", "share of the canvas that objects cover, 0 to 1"),
    "size_mean": ("continuous", "mean diameter of objects over the canvas's shorter side, 0 to 1"),
    "size_spread": ("continuous", "standard deviation (over n) of the same, 0 to 0.5"),
    "spatial_spread": (
        "continuous",
        "root mean square distance of centres from their mean over half the diagonal, 0 to 1",
    ),
    "nearest_distance": (
        "continuous",
        "mean distance to the nearest other centre over the diagonal, 0 to 1; None for one object",
    ),
    "clutter": ("continuous", "total outline length over the square root of the canvas's area, 0 and more"),
}
"""Kind and meaning of each attribute of a scene. Clutter is edge density, a standard proxy of visual clutter
(Rosenholtz, Li and Nakano 2007, "Measuring visual clutter", Journal of Vision 7(2):17)."""

DESIGN_ATTRIBUTES: dict[str, tuple[Kind, str]] = {
    "occlusion": ("continuous", "share of the objects' area that other objects hide, measured, 0 to 1"),
    "texture": ("continuous", "strength of the pattern inside objects, 0 to 1"),
    "background_texture": ("continuous", "strength of the pattern on the background, 0 to 1"),
    "lighting": ("continuous", "strength of light that falls off towards one side, 0 to 1"),
    "background": ("categorical", "white, gradient or clutter"),
}
"""Further attributes of designed scenes, available if the design varies them."""

COCO_ATTRIBUTES: dict[str, tuple[Kind, str]] = {
    "n_objects": ("count", "number of annotated objects, crowds left out, 0 and more"),
    "n_crowds": ("count", "number of crowd annotations, 0 and more"),
    "n_categories": ("count", "number of distinct categories, 0 to 80"),
    "n_supercategories": ("count", "number of distinct supercategories, 0 to 12"),
    "dominant_supercategory": ("categorical", "supercategory of the most objects; of equals, the one of larger area"),
    "coverage": ("continuous", "share of the image inside the union of the boxes, 0 to 1"),
    "area_mean": ("continuous", "mean annotated (segmentation) area of an object over the image's area, 0 to 1"),
    "area_spread": ("continuous", "standard deviation (over n) of the same, 0 to 0.5"),
    "spatial_spread": (
        "continuous",
        "root mean square distance of box centres from their mean over half the diagonal, 0 to 1",
    ),
}
"""Kind and meaning of each attribute of a COCO image. Crowds count only in `n_crowds`; without other objects the
continuous attributes and the dominant supercategory are None, coverage is 0."""


def _polygon_area(points: Float[np.ndarray, "V 2"]) -> float:
    x, y = points[:, 0], points[:, 1]
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _polygon_length(points: Float[np.ndarray, "V 2"]) -> float:
    return float(np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).sum())


_SCALE = 4
"""Grid points per pixel of masks."""
SHAPE_AREA = {name: _polygon_area(rings[0]) - sum(map(_polygon_area, rings[1:])) for name, rings in OUTLINES.items()}
"""Area of each shape in a unit circle, without holes."""
SHAPE_LENGTH = {name: sum(map(_polygon_length, rings)) for name, rings in OUTLINES.items()}
"""Outline length of each shape in a unit circle, holes included."""


def scene_attributes(scene: Scene) -> dict[str, Any]:
    """Return the attributes of a scene (`SCENE_ATTRIBUTES`), computed from its ground truth, not from pixels.

    Coverage is exact if objects do not overlap, else counted on a grid of quarter pixels.
    """
    objects = scene.objects
    x, y, size = (np.array([getattr(o, key) for o in objects]) for key in ("x", "y", "size"))
    area = np.array([SHAPE_AREA[o.shape] for o in objects]) * (size / 2) ** 2
    length = np.array([SHAPE_LENGTH[o.shape] for o in objects]) * (size / 2)
    canvas, diagonal = scene.width * scene.height, math.hypot(scene.width, scene.height)
    between = np.hypot(x - x[:, None], y - y[:, None])
    np.fill_diagonal(between, np.inf)
    apart = bool((between >= (size + size[:, None]) / 2).all())
    relative = size / min(scene.width, scene.height)
    return {
        "n_objects": len(objects),
        "n_shapes": len({o.shape for o in objects}),
        "n_colours": len({o.colour for o in objects}),
        "dominant_colour": _dominant([o.colour for o in objects], area),
        "dominant_shape": _dominant([o.shape for o in objects], area),
        "coverage": float(area.sum()) / canvas if apart else _covered(scene),
        "size_mean": float(relative.mean()),
        "size_spread": float(relative.std()),
        "spatial_spread": _spatial_spread(x, y, diagonal),
        "nearest_distance": float(between.min(1).mean()) / diagonal if len(objects) > 1 else None,
        "clutter": float(length.sum()) / math.sqrt(canvas),
    }


def _covered(scene: Scene) -> float:
    mask = np.zeros((scene.height * _SCALE, scene.width * _SCALE), dtype=np.uint8)
    for item in scene.objects:
        _fill(mask, item)
    return float(mask.mean())


def hidden_share(objects: Sequence[SceneObject]) -> float:
    """Occluded share of the objects' area (covered by later ones), counted on a grid of quarter pixels."""
    reach = [item.size / 2 + 1 for item in objects]
    left = math.floor(min(t.x - r for t, r in zip(objects, reach, strict=True)))
    top = math.floor(min(t.y - r for t, r in zip(objects, reach, strict=True)))
    width = math.ceil(max(t.x + r for t, r in zip(objects, reach, strict=True))) - left
    height = math.ceil(max(t.y + r for t, r in zip(objects, reach, strict=True))) - top
    together = np.zeros((height * _SCALE, width * _SCALE), dtype=np.uint8)
    total = 0
    for item, r in zip(objects, reach, strict=True):
        _fill(together, item._replace(x=item.x - left, y=item.y - top))
        column, row = math.floor(item.x - r), math.floor(item.y - r)
        side = math.ceil(2 * r) + 1
        alone = np.zeros((side * _SCALE, side * _SCALE), dtype=np.uint8)
        _fill(alone, item._replace(x=item.x - column, y=item.y - row))
        total += int(np.count_nonzero(alone))
    return 1 - int(np.count_nonzero(together)) / total


def _fill(mask: np.ndarray, item: SceneObject) -> None:
    """Draw an object into a mask of quarter pixels."""
    # In OpenCV integer coordinates are pixel centres, hence the half.
    rings = [np.rint((points * _SCALE - 0.5) * 16).astype(np.int32) for points in outline(item)]
    cv2.fillPoly(mask, rings, 1, cv2.LINE_8, 4)


def coco_attributes(
    boxes: Float[np.ndarray, "n 4"],
    areas: Float[np.ndarray, " n"],
    categories: Sequence[str],
    supercategories: Sequence[str],
    width: int,
    height: int,
    n_crowds: int = 0,
) -> dict[str, Any]:
    """Return the attributes of a COCO image (`COCO_ATTRIBUTES`) from its objects without crowds.

    `boxes` are (x, y, width, height) in px from the top left, `areas` in px^2.
    """
    n = len(boxes)
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    relative = areas / (width * height)
    return {
        "n_objects": n,
        "n_crowds": n_crowds,
        "n_categories": len(set(categories)),
        "n_supercategories": len(set(supercategories)),
        "dominant_supercategory": _dominant(supercategories, areas) if n else None,
        "coverage": union_area(boxes, width, height) / (width * height),
        "area_mean": float(relative.mean()) if n else None,
        "area_spread": float(relative.std()) if n else None,
        "spatial_spread": _spatial_spread(centres[:, 0], centres[:, 1], math.hypot(width, height)) if n else None,
    }


def union_area(boxes: Float[np.ndarray, "n 4"], width: float, height: float) -> float:
    """Return the exact area in px^2 of the union of boxes (x, y, width, height) within the image.

    The image is cut into the cells between all box edges; a cell counts once if any box covers it.
    """
    x0, x1 = (np.clip(edge, 0, width) for edge in (boxes[:, 0], boxes[:, 0] + boxes[:, 2]))
    y0, y1 = (np.clip(edge, 0, height) for edge in (boxes[:, 1], boxes[:, 1] + boxes[:, 3]))
    xs, ys = np.unique(np.concatenate([x0, x1])), np.unique(np.concatenate([y0, y1]))
    if len(xs) < 2 or len(ys) < 2:
        return 0.0
    in_x = (x0[:, None] <= xs[:-1]) & (xs[1:] <= x1[:, None])
    in_y = (y0[:, None] <= ys[:-1]) & (ys[1:] <= y1[:, None])
    covered = (in_y.T.astype(np.float64) @ in_x.astype(np.float64)) > 0
    return float(np.diff(ys) @ covered @ np.diff(xs))


def _dominant(names: Sequence[str], area: Float[np.ndarray, " n"]) -> str:
    counts, covered = Counter(names), Counter[str]()
    for name, value in zip(names, area.tolist(), strict=True):
        covered[name] += value
    return min(counts, key=lambda name: (-counts[name], -covered[name], name))


def _spatial_spread(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], diagonal: float) -> float:
    return math.sqrt(float(x.var() + y.var())) / (diagonal / 2)
