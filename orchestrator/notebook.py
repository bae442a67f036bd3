"""Capture in a notebook: images in, tables out, no files written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import polars as pl
from PIL import Image

from orchestrator.config import CaptureConfig, ModelConfig, RunConfig
from orchestrator.data.images import read_image, to_rgb
from orchestrator.errors import DataError

Picture = Image.Image | np.ndarray | str | Path
"""An image in memory, or the path or URI of a file."""

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Captured:
    """Capture of some images by a model.

    `features[tap]` is float16 (images, layers, positions, width); its axes are named in `axes[tap]`.
    """

    images: pl.DataFrame
    layer_metrics: pl.DataFrame
    rejected: pl.DataFrame
    features: dict[str, np.ndarray]
    axes: dict[str, dict[str, list[Any]]]

    def figure(self, metrics: Sequence[str] | None = None) -> Figure:
        """Figure of each metric by decoder layer, for visual and text tokens (matplotlib)."""
        from orchestrator.report.figures.compression import layer_curves_figure
        from orchestrator.report.intervals import layer_curves

        return layer_curves_figure(layer_curves(self.layer_metrics), "captured images", metrics)

    def long(self) -> pl.DataFrame:
        """`layer_metrics` in long format: image_id, tap, layer, group, n_tokens, metric, value."""
        keys = [c for c in ("image_id", "tap", "layer", "group", "n_tokens") if c in self.layer_metrics.columns]
        return self.layer_metrics.unpivot(index=keys, variable_name="metric", value_name="value").drop_nulls("value")

    def _repr_html_(self) -> str:
        """Notebook representation: number of images, and a figure of every metric by layer."""
        import base64
        import io

        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=80)
        picture = base64.b64encode(buffer.getvalue()).decode()
        rejected = f", {self.rejected.height} rejected" if self.rejected.height else ""
        taps = ", ".join(self.features) or "none kept"
        return (
            f"<p>{self.images.height} images{rejected}; features: {taps}</p>"
            f'<img alt="compression by layer" src="data:image/png;base64,{picture}">'
        )


def capture_images(
    model: str | ModelConfig,
    images: Sequence[Picture] | Mapping[str, Picture],
    **settings: Any,
) -> Captured:
    """Run a model on images in this process and measure compression at every layer.

    Args:
        model: catalogue name, repository id, local folder, or a full `ModelConfig`.
        images: files, PIL images or arrays (uint8 RGB, RGBA or grey, or uint16 grey); a mapping gives them names. They
            are converted to RGB as the images of a folder (`data.images.to_rgb`), the EXIF orientation included.
        settings: fields of `CaptureConfig` (`prompt`, `layers`, `metrics`, `taps`, ...).

    Raises:
        DataError: there are no images, or one cannot be read or has pixels of unknown range.
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


def _pixels(name: str, image: Picture) -> np.ndarray:
    if isinstance(image, str | Path):
        fs, path = fsspec.core.url_to_fs(str(image))
        return read_image(fs, path, str(image))
    if isinstance(image, Image.Image):
        return to_rgb(image, name)
    array = np.asarray(image)
    colour = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (3, 4)
    grey = array.dtype in (np.uint8, np.uint16) and array.ndim == 2
    if not (colour or grey) or not array.size:
        raise DataError(
            f"capture: image {name!r} is {array.dtype} {array.shape}; expected a file, a PIL image, uint8 (H, W, 3), "
            "(H, W, 4) or (H, W), or uint16 (H, W)"
        )
    return to_rgb(Image.fromarray(array), name)
