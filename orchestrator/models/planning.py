"""What capturing a model takes, from its config alone: layers, vision tokens, memory, arithmetic and bytes an image.

Neither weights nor a GPU nor torch are needed. Sizes of published models come from `configs/`, those of a local
checkpoint or another repository from its own `config.json`. Operation counts are of matrix products (two per
multiply-add); attention of a causal decoder counts half its square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    Where rows show several pictures, the memory is that of the row with most, and all else the mean of a row.
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
    pictures: float = 1.0
    """Mean pictures of a row that has any."""
    blocks: int = 0
    """Blocks of the decoder and of the vision encoder."""


def footprint(run: RunConfig, pictures: Mapping[int, int] | None = None) -> Footprint:
    """Return what a run's capture takes for images of its source's size.

    Args:
        pictures: number of pictures -> rows that show as many; one picture a row when absent.

    Raises:
        ModelError: if the model is unknown, or its config is not at hand.
    """
    numbers = {n: rows for n, rows in (pictures or {}).items() if n} or {1: 1}
    size = image_size(run.data)
    each = [footprint_at(run.model, *size, run.capture, run.how.batch_size, n_pictures=n) for n in numbers]
    shares = [rows / sum(numbers.values()) for rows in numbers.values()]

    def mean(name: str) -> float:
        return float(sum(share * getattr(one, name) for share, one in zip(shares, each, strict=True)))

    return replace(
        each[0],
        vision_tokens=round(mean("vision_tokens")),
        memory_gb=max(one.memory_gb for one in each),
        tflop_per_image=mean("tflop_per_image"),
        bytes_per_image=round(mean("bytes_per_image")),
        raw_bytes_per_image=round(mean("raw_bytes_per_image")),
        pictures=mean("pictures"),
    )


def image_size(data: DataConfig) -> tuple[int, int]:
    """Return the (height, width) of a source's images, px: those of scenes, else the most frequent of photographs."""
    return (data.height, data.width) if isinstance(data, ScenesConfig) else COCO_SIZE


def footprint_at(
    model: ModelConfig,
    height: int,
    width: int,
    capture: CaptureConfig | None = None,
    batch_size: int = 1,
    n_pictures: int = 1,
) -> Footprint:
    """Return what capturing rows of `n_pictures` images of `height` x `width` px takes; see `footprint`."""
    entry = resolve(model)
    config = read_config(entry)
    with named_config(entry):
        load = _of_several(visual_load(config, height, width), n_pictures)
        footprint = _footprint(model, entry, config, load, capture or CaptureConfig(), batch_size)
    rows = 4 * METRIC_COLUMNS * n_pictures * (footprint.layers + 2) if n_pictures > 1 else 0  # table picture_metrics
    return replace(
        footprint,
        height=height,
        width_px=width,
        pictures=float(n_pictures),
        bytes_per_image=footprint.bytes_per_image + rows,
    )


def _of_several(load: VisionLoad, n: int) -> VisionLoad:
    """The load of `n` images: the encoder sees each alone, the decoder all of them."""
    return replace(load, tokens=n * load.tokens, placeholders=n * load.placeholders, sequences=n * load.sequences)


def _footprint(
    model: ModelConfig, entry: Entry, config: Any, load: VisionLoad, capture: CaptureConfig, batch_size: int
) -> Footprint:
    decoder, vision = decoder_stack(config), vision_stack(config)
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
        height=0,
        width_px=0,
        blocks=decoder.layers + vision.layers,
    )


def check_context(
    model: ModelConfig, height: int, width: int, text_tokens: int = TEXT_TOKENS, n_pictures: int = 1
) -> None:
    """Refuse images whose tokens the model's context does not hold, as far as that follows from its config.

    Args:
        text_tokens: those of template and question.
        n_pictures: most images of a question.

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
            load = _of_several(visual_load(config, height, width), n_pictures)
            sequence = text_tokens + (0 if cross else load.placeholders)
        except ModelError:  # a family without a rule: the length is known when an image has been prepared
            return
        too_long = sequence > context
    if too_long:
        raise ModelError(
            f"{entry.name}: {'an image' if n_pictures == 1 else f'{n_pictures} images'} of {width} x {height} px and"
            f" {'its' if n_pictures == 1 else 'their'} question make about {sequence} tokens; the model's context holds"
            f" {context}. Use smaller images{', fewer of them' * (n_pictures > 1)}, shorter questions or another model."
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
