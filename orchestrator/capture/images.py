"""Capture on images of one's own, in a notebook: pictures in, tables out, nothing written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from PIL import Image

from orchestrator.config import CaptureConfig, ModelConfig, RunConfig
from orchestrator.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Captured:
    """What a model does with some images.

    `features[tap]` is float16 (images, layers, positions, width); its axes are named in `axes[tap]`.
    """

    images: pl.DataFrame
    layer_metrics: pl.DataFrame
    rejected: pl.DataFrame
    features: dict[str, np.ndarray]
    axes: dict[str, dict[str, list[Any]]]

    def figure(self, metrics: Sequence[str] | None = None) -> Figure:
        """Each metric by layer of the decoder, visual and text tokens, as a matplotlib figure."""
        from orchestrator.report.figures.compression import layer_curves_figure
        from orchestrator.report.intervals import layer_curves

        return layer_curves_figure(layer_curves(self.layer_metrics), "captured images", metrics)


def capture(
    model: str | ModelConfig,
    images: Sequence[Image.Image | np.ndarray] | Mapping[str, Image.Image | np.ndarray],
    **settings: Any,
) -> Captured:
    """Run a model on images in this process and measure compression at every layer.

    Args:
        model: catalogue name, repository id, local folder, or a full `ModelConfig`.
        images: PIL images or uint8 arrays (H, W, 3); a mapping gives them names.
        settings: fields of `CaptureConfig` (`prompt`, `layers`, `metrics`, `taps`, ...).

    Raises:
        DataError: there are no images, or one is no picture.
        ModelError: the model cannot be found or loaded.
    """
    from orchestrator.capture.loading import Loaded
    from orchestrator.capture.shard_worker import CaptureWorker

    named = images if isinstance(images, Mapping) else {f"image-{i:04d}": image for i, image in enumerate(images)}
    if not named:
        raise DataError("capture: expected at least one image, found none")
    loaded = [Loaded(i, name, _pixels(name, image), {}) for i, (name, image) in enumerate(named.items())]
    config = model if isinstance(model, ModelConfig) else ModelConfig(name=model)
    run = RunConfig(model=config, capture=CaptureConfig(**settings))
    result = CaptureWorker(run, {}).shard(loaded)
    table = result.tables["images"].with_columns(source=pl.lit("notebook"))
    features = {name.removeprefix("features/"): a for name, a in result.arrays.items() if name.startswith("features/")}
    return Captured(
        table, result.tables["layer_metrics"], result.tables["rejected"], features, result.extra["features"]
    )


def _pixels(name: str, image: Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(
            f"capture: image {name!r} is {array.dtype} {array.shape}; expected a PIL image or uint8 (H, W, 3)"
        )
    return array
