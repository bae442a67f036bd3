"""What capturing a model takes, from its config alone: layers, vision tokens, memory, arithmetic and bytes an image.

Neither weights nor a GPU nor torch are needed. Sizes of published models come from `configs/`, those of a local
checkpoint or another repository from its own `config.json`. Operation counts are of matrix products (two per
multiply-add); attention of a causal decoder counts half its square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.config import CaptureConfig, DataConfig, ModelConfig, RunConfig, ScenesConfig
from orchestrator.errors import ModelError
from orchestrator.models.catalogue import Entry, resolve
from orchestrator.models.decoder_config import context_length, named_config
from orchestrator.models.known_config import config_here, read_config
from orchestrator.models.stacks import (
    TEXT_TOKENS,
    Stack,
    cross_flops,
    cross_layers,
    decoder_stack,
    n_parameters,
    vision_stack,
    weight_bytes,
)
from orchestrator.models.tap_names import chosen_taps
from orchestrator.models.visual_tokens import VisionLoad, visual_load

METRIC_COLUMNS = 40
"""Columns of one row of layer metrics."""
COCO_SIZE = (480, 640)
"""The most frequent (height, width) of COCO photographs, px."""


@dataclass(frozen=True)
class Footprint:
    """What one image, and one actor, of a model take.

    `memory_gb` is weights and working memory of a batch; `bytes_per_image` is what capture keeps;
    `raw_bytes_per_image` is what storing every state would take instead. `height`, `width_px` are the image's.
    """

    layers: int
    width: int
    vision_tokens: int
    memory_gb: float
    tflop_per_image: float
    bytes_per_image: int
    raw_bytes_per_image: int
    height: int
    width_px: int


def footprint(run: RunConfig) -> Footprint:
    """Return what a run's capture takes for images of its source's size.

    Raises:
        ModelError: if the model is unknown, or its config is not at hand.
    """
    return footprint_at(run.model, *image_size(run.data), capture=run.capture, batch_size=run.how.batch_size)


def image_size(data: DataConfig) -> tuple[int, int]:
    """Return the (height, width) of a source's images, px: those of scenes, else the most frequent of photographs."""
    return (data.height, data.width) if isinstance(data, ScenesConfig) else COCO_SIZE


def footprint_at(
    model: ModelConfig, height: int, width: int, capture: CaptureConfig | None = None, batch_size: int = 1
) -> Footprint:
    """Return what capturing images of `height` x `width` px takes; see `footprint`."""
    entry = resolve(model)
    config = read_config(entry)
    with named_config(entry):
        return _footprint(model, entry, config, height, width, capture or CaptureConfig(), batch_size)


def _footprint(
    model: ModelConfig, entry: Entry, config: Any, height: int, width: int, capture: CaptureConfig, batch_size: int
) -> Footprint:
    decoder, vision, load = decoder_stack(config), vision_stack(config), visual_load(config, height, width)
    cross = cross_layers(config)
    sequence = TEXT_TOKENS + (0 if cross else load.placeholders)
    size = weight_bytes(model, entry)
    flops = vision.flops(load.sequences, load.length, causal=False) + decoder.flops(1, sequence, causal=True)
    flops += cross_flops(config, decoder, load)
    working = vision.working_bytes(load.sequences * load.length, size) + decoder.working_bytes(sequence, size)
    measured = 3 * 4 * load.tokens * decoder.width  # one layer's tokens as float32, their Gram factors beside them
    memory = n_parameters(entry, config, decoder, vision) * size + batch_size * (working + measured)
    return Footprint(
        layers=decoder.layers,
        width=decoder.width,
        vision_tokens=load.tokens,
        memory_gb=memory / 1e9,
        tflop_per_image=flops / 1e12,
        bytes_per_image=kept_bytes(config, decoder, load, capture),
        raw_bytes_per_image=raw_bytes(config, decoder, load),
        height=height,
        width_px=width,
    )


def check_context(model: ModelConfig, height: int, width: int, text_tokens: int = TEXT_TOKENS) -> None:
    """Refuse images whose tokens the model's context does not hold, as far as that follows from its config.

    Args:
        text_tokens: those of template and question.

    Raises:
        ModelError: which says by how much.
    """
    entry = resolve(model)
    if not config_here(entry):
        return
    config = read_config(entry)
    with named_config(entry):
        context, cross = context_length(config), cross_layers(config)
        if context is None:
            return
        try:
            sequence = text_tokens + (0 if cross else visual_load(config, height, width).placeholders)
        except ModelError:  # a family without a rule: the length is known when an image has been prepared
            return
        too_long = sequence > context
    if too_long:
        raise ModelError(
            f"{entry.name}: an image of {width} x {height} px and its question make about {sequence} tokens; the"
            f" model's context holds {context}. Use smaller images, shorter questions or another model."
        )


def largest_picture(model: ModelConfig, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the (height, width) that makes most visual tokens; the largest area where the model has no rule."""
    entry = resolve(model)
    config = read_config(entry) if config_here(entry) and len(sizes) > 1 else None

    def tokens(size: tuple[int, int]) -> tuple[int, int]:
        area = size[0] * size[1]
        if config is None:
            return 0, area
        try:
            with named_config(entry):
                return visual_load(config, *size).placeholders, area
        except ModelError:
            return 0, area

    return max(sizes, key=tokens)


def capture_bytes_per_image(run: RunConfig) -> int:
    """Return the bytes that capture keeps of one image, from above."""
    return footprint(run).bytes_per_image


def vision_positions(run: RunConfig) -> int:
    """Return the number of single vision tokens kept of an image; `all` is the model's own number."""
    n = run.capture.n_vision_positions
    return footprint(run).vision_tokens if n == "all" else n


# ---------------------------------------------------------------- bytes


def raw_bytes(config: Any, decoder: Stack, load: VisionLoad) -> int:
    """Return the bytes of every state of one image in bfloat16: the residual stream at L + 1 points.

    Of a `cross_kv` model: the projector's output, keys and values of each cross-attention layer, and the text.
    """
    n = len(cross_layers(config))
    if n == 0:
        return 2 * load.tokens * (decoder.layers + 1) * decoder.width
    states = load.tokens * (decoder.width + n * 2 * decoder.key)
    return 2 * (states + TEXT_TOKENS * (decoder.layers + 1) * decoder.width)


def kept_bytes(config: Any, decoder: Stack, load: VisionLoad, capture: CaptureConfig) -> int:
    """Return the bytes that capture keeps of one image: float32 metrics, float16 features and maps of token norms."""
    n = len(cross_layers(config))
    points = len(capture.layers) if capture.layers is not None else decoder.layers + 1
    places = load.tokens if capture.n_vision_positions == "all" else capture.n_vision_positions
    vision, text = 1 + places + 2 * capture.object_positions, 2 + capture.n_text_positions
    taps = chosen_taps("cross_kv" if n else "residual", capture.taps)
    encoder = vision_stack(config)
    positions = {
        "decoder": points * ((0 if n else vision + 1) + text) * decoder.width,
        "projector": vision * decoder.width,
        "encoder": (encoder.layers + 1) * vision * encoder.width,
        "cross_k": n * vision * decoder.key,
        "cross_v": n * vision * decoder.key,
        "cross_out": n * text * decoder.width,
    }
    rows = {"decoder": points if n else 2 * points, "projector": 1, "encoder": encoder.layers + 1}
    n_rows = sum(rows.get(tap, n) for tap in taps)
    features = sum(positions[tap] for tap in taps) if capture.keep_features else 0
    # Norms of all vision tokens where they pass through the decoder, and each one's row, column and tile.
    mapped = {"cross_v": n} if n else {"decoder": points}
    maps = sum(load.tokens * (4 * layers + 6) for tap, layers in mapped.items() if tap in taps)
    return 4 * METRIC_COLUMNS * n_rows + 2 * features + maps
