"""What capturing a model takes, from its config alone: layers, vision tokens, memory, arithmetic and bytes an image.

Neither weights nor a GPU nor torch are needed. Sizes of published models come from `configs/`, those of a local
checkpoint or another repository from its own `config.json`. Operation counts are of matrix products (two per
multiply-add); attention of a causal decoder counts half its square.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.config import CaptureConfig, DataConfig, ModelConfig, RunConfig, ScenesConfig
from orchestrator.errors import ModelError
from orchestrator.models.catalogue import Entry, resolve
from orchestrator.models.decoder_config import context_length, named_config
from orchestrator.models.tap_names import chosen_taps
from orchestrator.models.visual_tokens import VisionLoad, visual_load

TEXT_TOKENS = 64
"""Tokens of template and question that a plan assumes."""
METRIC_COLUMNS = 40
"""Columns of one row of layer metrics."""
MOLMO_VISION = {"layers": 23, "width": 1024, "mlp": 4096}
"""CLIP ViT-L/14 at 336 px without its last block; Molmo's config file does not hold its vision encoder."""
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


@dataclass(frozen=True)
class Stack:
    """One stack of transformer blocks: its weights count `per_layer` multiply-adds a token."""

    layers: int
    width: int
    query: int
    key: int
    mlp: int
    per_layer: int

    def flops(self, sequences: int, length: int, *, causal: bool) -> float:
        """Return the operations of one pass over `sequences` of `length` tokens."""
        attention = (2 if causal else 4) * length**2 * self.query
        return float(self.layers * sequences * (2 * length * self.per_layer + attention))

    def working_bytes(self, tokens: int, size: int) -> int:
        """Return the bytes one block holds at a time: stream, attention and the widest of the MLP."""
        return tokens * size * (4 * self.width + 2 * self.query + 2 * self.key + 2 * self.mlp)


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


def check_context(model: ModelConfig, height: int, width: int) -> None:
    """Refuse images whose tokens the model's context does not hold, as far as that follows from its config.

    Raises:
        ModelError: which says by how much.
    """
    entry = resolve(model)
    if entry.folder is None and not _shipped_config(entry).is_file():
        return
    config = read_config(entry)
    with named_config(entry):
        context, cross = context_length(config), cross_layers(config)
        if context is None or cross:
            return
        try:
            sequence = TEXT_TOKENS + visual_load(config, height, width).placeholders
        except ModelError:  # a family without a rule: the length is known when an image has been prepared
            return
        too_long = sequence > context
    if too_long:
        raise ModelError(
            f"{entry.name}: an image of {width} x {height} px and its question make about {sequence} tokens; the"
            f" model's context holds {context}. Use smaller images or another model."
        )


def capture_bytes_per_image(run: RunConfig) -> int:
    """Return the bytes that capture keeps of one image, from above."""
    return footprint(run).bytes_per_image


def read_config(entry: Entry) -> Any:
    """Return a model's config: shipped with the catalogue, else from its folder, else downloaded from the hub.

    Raises:
        ModelError: if it cannot be had here.
    """
    shipped = _shipped_config(entry)
    if shipped.is_file():
        fields = json.loads(shipped.read_text(encoding="utf-8"))
    elif entry.folder is not None:
        fields = json.loads((entry.folder / "config.json").read_text(encoding="utf-8"))
    else:
        fields = _download_config(entry)
    if fields.get("model_type") == "molmo":
        return SimpleNamespace(**fields)
    from transformers import CONFIG_MAPPING

    if fields.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(f"{entry.name}: model_type {fields.get('model_type')!r} is not known to transformers.")
    with named_config(entry):
        return CONFIG_MAPPING[fields["model_type"]].from_dict(fields)


def _shipped_config(entry: Entry) -> Any:
    return resources.files("orchestrator.models").joinpath("configs", f"{entry.name}.json")


def _download_config(entry: Entry) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    from orchestrator.models.loading import with_hub_errors

    path = with_hub_errors(entry, lambda: hf_hub_download(entry.source, "config.json", revision=entry.revision))
    return json.loads(Path(path).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- parts


def decoder_stack(config: Any) -> Stack:
    """Return the decoder's blocks; of a mixture of experts, those active for a token."""
    if config.model_type == "molmo":
        width, heads = config.hidden_size, config.num_attention_heads
        key = width // heads * (config.num_key_value_heads or heads)
        # Its `intermediate_size` counts gate and value together.
        mlp = config.intermediate_size // 2 * getattr(config, "moe_top_k", 1)
        return _stack(config.num_hidden_layers, width, width, key, mlp, gated=True)
    text = config.get_text_config()
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    key = head * (getattr(text, "num_key_value_heads", None) or heads)
    return _stack(text.num_hidden_layers, text.hidden_size, head * heads, key, text.intermediate_size, gated=True)


def vision_stack(config: Any) -> Stack:
    """Return the vision encoder's blocks."""
    if config.model_type == "molmo":
        width = MOLMO_VISION["width"]
        return _stack(MOLMO_VISION["layers"], width, width, width, MOLMO_VISION["mlp"], gated=False)
    vision = config.vision_config
    layers = getattr(vision, "num_hidden_layers", None) or vision.depth
    layers += getattr(vision, "num_global_layers", 0)
    width = vision.hidden_size
    gated = config.model_type == "qwen2_5_vl"
    return _stack(layers, width, width, width, vision.intermediate_size, gated=gated)


def _stack(layers: int, width: int, query: int, key: int, mlp: int, *, gated: bool) -> Stack:
    weights = 2 * width * query + 2 * width * key + (3 if gated else 2) * width * mlp
    return Stack(layers, width, query, key, mlp, weights)


def cross_layers(config: Any) -> list[int]:
    """Return the decoder layers that attend to vision states across; none in residual models."""
    return list(config.text_config.cross_attention_layers) if config.model_type == "mllama" else []


def cross_flops(config: Any, decoder: Stack, load: VisionLoad) -> float:
    """Return the operations of projecting vision states to keys and values, and of attending to them."""
    n = len(cross_layers(config))
    if n == 0:
        return 0.0
    projector = 2 * load.tokens * config.vision_config.vision_output_dim * decoder.width
    keys = 2 * load.tokens * 2 * decoder.width * decoder.key
    return float(projector + n * (keys + 4 * TEXT_TOKENS * load.tokens * decoder.query))


def weight_bytes(model: ModelConfig, entry: Entry) -> int:
    """Return the bytes of one weight; `auto` counts as bfloat16 but for small models, which run on a CPU."""
    if model.dtype == "auto":
        return 4 if entry.parameters is not None and entry.parameters < 0.1 else 2
    return 4 if model.dtype == "float32" else 2


def n_parameters(entry: Entry, config: Any, decoder: Stack, vision: Stack) -> float:
    """Return the number of parameters: published, or counted from the blocks and the embeddings."""
    if entry.parameters is not None:
        return entry.parameters * 1e9
    text = config if config.model_type == "molmo" else config.get_text_config()
    tables = 1 if getattr(config, "tie_word_embeddings", False) else 2
    blocks = decoder.layers * decoder.per_layer + vision.layers * vision.per_layer
    return float(blocks + tables * text.vocab_size * decoder.width)


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
    vision, text = 1 + places, 2 + capture.n_text_positions
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
