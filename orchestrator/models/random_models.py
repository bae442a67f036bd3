"""Randomly weighted models of every supported class at a chosen small size, and inputs for them as raw tensors.

For tests and benchmarks: the real transformers classes, without a checkpoint or a processor. Fresh transformers
weights would not do: Gemma3's projector and mllama's gates start at zero, so pixels would not matter.

Ids below 110 stand for text, the highest ones for image placeholders and separators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from orchestrator.errors import ModelError, did_you_mean
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.geometry import anyres_grid

VOCABULARY, FIRST_TEXT, LAST_TEXT = 128, 5, 110
IMAGE, SEPARATOR = 120, 121


@dataclass(frozen=True)
class Size:
    """How large a random model is. Each tile of an image makes `side` x `side` vision tokens."""

    width: int = 32
    layers: int = 3
    heads: int = 4
    vision_width: int = 32
    vision_layers: int = 2
    side: int = 2
    patch: int = 4


def random_adapter(family: str, size: Size | None = None, seed: int = 0, dtype: torch.dtype | None = None) -> Adapter:
    """Return an adapter over a random model of a family, without a processor.

    Raises:
        ModelError: if the family is not one of `FAMILIES`.
    """
    if family not in _CONFIGS:
        raise ModelError(f"No random model of family {family!r}.{did_you_mean(family, _CONFIGS)}")
    config = _CONFIGS[family](size or Size())
    # Every configured model is a conditional-generation class of the same stem.
    model = getattr(hf, type(config).__name__.removesuffix("Config") + "ForConditionalGeneration")(config)
    reinitialise(model, seed)
    return Adapter.from_model(model.to(dtype) if dtype else model)


def reinitialise(model: nn.Module, seed: int) -> None:
    """Give every weight a random value such that pixels and prompt both reach every output."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.numel() == 1:  # a gate, closed at first
            value = torch.full(parameter.shape, 0.5)
        elif parameter.ndim == 1:
            # Norm scales stay near their neutral value, one or (Gemma) zero; fresh ones are constant.
            neutral = parameter.detach().float().cpu()
            value = (neutral if neutral.unique().numel() == 1 else 0) + 0.1 * noise
        else:
            value = 0.15 * noise * min(1.0, (32 / parameter.shape[-1]) ** 0.5)
        parameter.data.copy_(value)


def random_example(adapter: Adapter, tiles: tuple[int, int] = (1, 1), n_text: int = 6, seed: int = 0) -> Batch:
    """Return one prompt with one random image of `tiles` (rows, columns) and `n_text` text tokens after it.

    Families of one fixed tile ignore `tiles`.
    """
    generator = torch.Generator().manual_seed(seed)
    family = adapter.config.model_type
    placeholders, images = _IMAGES[family](adapter.config, tiles, generator)
    before = _text(1 if family == "paligemma" else 3, generator)
    ids = [*([] if family == "paligemma" else before), *placeholders, *_text(n_text, generator)]
    example: Batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    image = example["input_ids"] == IMAGE
    if family == "gemma3":
        example["token_type_ids"] = image.long()
    if family == "paligemma":
        example["token_type_ids"] = torch.zeros(1, len(ids), dtype=torch.long)
    if family in ("qwen2_5_vl", "qwen3_vl", "molmo2"):
        example["mm_token_type_ids"] = image.int()
    if family == "mllama":
        mask = torch.zeros(1, len(ids), 1, images["aspect_ratio_mask"].shape[-1], dtype=torch.long)
        mask[:, len(before) :] = images["aspect_ratio_mask"][:, None]
        example["cross_attention_mask"] = mask
    example |= images
    from orchestrator.models.preparation import encoder_rows

    rows = encoder_rows(example)
    assert rows is not None
    example["n_encoder_rows"] = torch.tensor([rows])
    example["groups"] = adapter.infer_groups(example)
    example["vision_grid"] = adapter.vision_grid(example)[0][None]
    return example


def _text(n: int, generator: torch.Generator) -> list[int]:
    return torch.randint(FIRST_TEXT, LAST_TEXT, (n,), generator=generator).tolist()


# ---------------------------------------------------------------- configs


def _decoder(size: Size, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": size.width,
        "intermediate_size": 2 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **more,
    }


def _vit(size: Size, merge: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": size.vision_width,
        "intermediate_size": 2 * size.vision_width,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": 4,
        "image_size": size.side * size.patch * merge,
        "patch_size": size.patch,
        **more,
    }


def _clip(size: Size) -> dict[str, Any]:
    return _vit(size, model_type="clip_vision_model", projection_dim=size.vision_width)


def _siglip(size: Size, merge: int = 1) -> dict[str, Any]:
    return _vit(size, merge, model_type="siglip_vision_model", vision_use_head=False)


def _pinpoints(size: Size) -> list[list[int]]:
    tile = size.side * size.patch
    return [[tile * rows, tile * cols] for rows in (1, 2) for cols in (1, 2)]


def _llava(size: Size) -> Any:
    text = _decoder(size, model_type="llama")
    return hf.LlavaConfig(
        vision_config=_clip(size), text_config=text, image_token_index=IMAGE, image_seq_length=size.side**2
    )


def _llava_next(size: Size) -> Any:
    text = _decoder(size, model_type="llama")
    return hf.LlavaNextConfig(
        vision_config=_clip(size), text_config=text, image_token_index=IMAGE, image_grid_pinpoints=_pinpoints(size)
    )


def _llava_onevision(size: Size) -> Any:
    text = _decoder(size, model_type="qwen2")
    return hf.LlavaOnevisionConfig(
        vision_config=_siglip(size),
        text_config=text,
        image_token_index=IMAGE,
        video_token_index=125,
        image_grid_pinpoints=_pinpoints(size),
        vision_aspect_ratio="anyres_max_9",
    )


_QWEN_IDS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": 125,
    "vision_start_token_id": 122,
    "vision_end_token_id": 123,
}


def _mrope(size: Size, **more: Any) -> dict[str, Any]:
    half = size.width // size.heads // 2
    section = [half - 2 * (half // 3), half // 3, half // 3]
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section, **more}


def _qwen_vision(size: Size, **more: Any) -> dict[str, Any]:
    return {
        "depth": size.vision_layers,
        "hidden_size": size.vision_width,
        "intermediate_size": 2 * size.vision_width,
        "num_heads": 4,
        "patch_size": size.patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": size.width,
        **more,
    }


def _qwen2_5_vl(size: Size) -> Any:
    vision = _qwen_vision(size, window_size=size.patch * 4, fullatt_block_indexes=[size.vision_layers - 1])
    return hf.Qwen2_5_VLConfig(
        text_config=_decoder(size, rope_parameters=_mrope(size)), vision_config=vision, **_QWEN_IDS
    )


def _qwen3_vl(size: Size) -> Any:
    vision = _qwen_vision(size, num_position_embeddings=16, deepstack_visual_indexes=[0, 1])
    text = _decoder(size, head_dim=size.width // size.heads, rope_parameters=_mrope(size, mrope_interleaved=True))
    return hf.Qwen3VLConfig(text_config=text, vision_config=vision, **_QWEN_IDS)


def _smolvlm(size: Size) -> Any:
    text = _decoder(size, model_type="llama")
    return hf.SmolVLMConfig(text_config=text, vision_config=_vit(size, 2), image_token_id=IMAGE, scale_factor=2)


def _idefics3(size: Size) -> Any:
    text = _decoder(size, model_type="llama")
    return hf.Idefics3Config(text_config=text, vision_config=_vit(size, 2), image_token_id=IMAGE, scale_factor=2)


def _internvl(size: Size) -> Any:
    side = size.side * size.patch * 2
    vision = _vit(size) | {"image_size": [side, side], "patch_size": [size.patch, size.patch]}
    text = _decoder(size, model_type="qwen2")
    return hf.InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=size.side**2,
        downsample_ratio=0.5,
    )


def _paligemma(size: Size) -> Any:
    text = _decoder(size, model_type="gemma", head_dim=size.width // size.heads)
    return hf.PaliGemmaConfig(
        text_config=text,
        vision_config=_siglip(size),
        image_token_index=IMAGE,
        projection_dim=size.width,
        hidden_size=size.width,
    )


def _gemma3(size: Size) -> Any:
    head = size.width // size.heads
    kinds = ["full_attention" if i % 3 == 1 else "sliding_attention" for i in range(size.layers)]
    text = _decoder(size, head_dim=head, query_pre_attn_scalar=head, sliding_window=2 * size.side**2, layer_types=kinds)
    return hf.Gemma3Config(
        text_config=text,
        vision_config=_siglip(size, 2),
        mm_tokens_per_image=size.side**2,
        image_token_index=IMAGE,
        boi_token_index=122,
        eoi_token_index=123,
    )


def _molmo2(size: Size) -> Any:
    side = size.side * size.patch * 2
    head = size.vision_width // 4
    vision = _vit(size) | {"num_key_value_heads": 4, "head_dim": head, "image_size": [side, side]}
    pooling = {
        "vision_feature_layer": [size.vision_layers - 1, 0],
        "hidden_size": size.vision_width,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": head,
        "intermediate_size": 2 * size.width,
        "text_hidden_size": size.width,
    }
    text = _decoder(
        size,
        head_dim=size.width // size.heads,
        additional_vocab_size=8,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    return hf.Molmo2Config(
        vision_config=vision,
        adapter_config=pooling,
        text_config=text,
        image_patch_id=IMAGE,
        image_start_token_id=122,
        image_end_token_id=123,
        low_res_image_start_token_id=124,
        frame_start_token_id=126,
        frame_end_token_id=127,
    )


def _mllama(size: Size) -> Any:
    cross = list(range(1, size.layers, 2))
    text = _decoder(size, cross_attention_layers=cross, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    vision = _vit(size)
    vision |= {
        "attention_heads": vision.pop("num_attention_heads"),
        "num_global_layers": 1,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 2 * size.vision_width,
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    }
    return hf.MllamaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)


_CONFIGS: dict[str, Callable[[Size], Any]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "molmo2": _molmo2,
    "mllama": _mllama,
}
FAMILIES = tuple(_CONFIGS)
"""Families with a native class, and so a random model."""


# ---------------------------------------------------------------- images: placeholder ids and pixel tensors

_Image = tuple[list[int], Batch]


def _pixels(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _side(config: Any) -> int:
    side = config.vision_config.image_size
    return side[0] if isinstance(side, list | tuple) else side


def _fixed(config: Any, _: tuple[int, int], generator: torch.Generator) -> _Image:
    side = _side(config)
    n = (side // config.vision_config.patch_size) ** 2
    return [IMAGE] * n, {"pixel_values": _pixels(generator, 1, 3, side, side)}


def _anyres(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    side = _side(config)
    rows, cols = tiles
    # A little narrower than its tiles, so that a column of padding is cut off where there is one to cut.
    height, width = rows * side, cols * side - (side // 2 if cols > 1 else 0)
    max_tiles = 9 if config.model_type == "llava_onevision" else None
    n = len(anyres_grid(config, height, width, max_tiles))
    pixels = _pixels(generator, 1, 1 + rows * cols, 3, side, side)
    return [IMAGE] * n, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}


def _qwen(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    patch = config.vision_config.patch_size
    rows, cols = (4 * n for n in tiles)
    side = getattr(config, "tile_side", None) or 2
    rows, cols = rows * side // 2, cols * side // 2
    pixels = _pixels(generator, rows * cols, 3 * 2 * patch * patch)
    return [IMAGE] * (rows * cols // 4), {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, cols]])}


def _separated(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    """Tiles with a separator token before each: Idefics3 and SmolVLM (tiles stacked), Gemma3 (tiles in a row)."""
    side, n_tiles = _side(config), tiles[0] * tiles[1]
    if config.model_type == "gemma3":
        each, lead = config.mm_tokens_per_image, [n_tiles]
    else:
        each, lead = (side // config.vision_config.patch_size // config.scale_factor) ** 2, [1, n_tiles]
    return ([SEPARATOR] + [IMAGE] * each) * n_tiles, {"pixel_values": _pixels(generator, *lead, 3, side, side)}


def _joined(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    side, n_tiles = _side(config), tiles[0] * tiles[1]
    pixels = _pixels(generator, n_tiles, 3, side, side)
    return [IMAGE] * (n_tiles * config.image_seq_length), {"pixel_values": pixels}


def _molmo2_image(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    """A low-resolution crop, then `tiles` crops; each token pools 2 x 2 patches; every row ends in a column token."""
    patches = _side(config) // config.vision_config.patch_size
    rows, cols = tiles
    crops = torch.arange(patches * patches * (1 + rows * cols)).view(1 + rows * cols, patches, patches)
    high = crops[1:].view(rows, cols, patches, patches).transpose(1, 2).reshape(rows * patches, cols * patches)
    pooling, ids, grid = [], [], []
    for view in (crops[0], high):
        windows = view.unfold(0, 2, 2).unfold(1, 2, 2)
        pooling.append(windows.reshape(-1, 4))
        grid += [windows.shape[0], windows.shape[1]]
        ids += ([IMAGE] * windows.shape[1] + [SEPARATOR]) * windows.shape[0]
    pixels = _pixels(generator, 1 + rows * cols, patches * patches, 3 * config.vision_config.patch_size**2)
    return ids, {
        "pixel_values": pixels,
        "image_token_pooling": torch.cat(pooling),
        "image_grids": torch.tensor([grid]),
        "image_num_crops": torch.tensor([1 + rows * cols]),
    }


def _mllama_image(config: Any, tiles: tuple[int, int], generator: torch.Generator) -> _Image:
    side, n_tiles, most = _side(config), tiles[0] * tiles[1], config.vision_config.max_num_tiles
    pixels = torch.zeros(1, 1, most, 3, side, side)
    pixels[:, :, :n_tiles] = _pixels(generator, n_tiles, 3, side, side)
    ratio = config.vision_config.supported_aspect_ratios.index(list(tiles)) + 1
    mask = (torch.arange(most) < n_tiles).long()[None, None]
    return [IMAGE], {
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.tensor([[ratio]]),
        "aspect_ratio_mask": mask,
    }


_IMAGES: dict[str, Callable[[Any, tuple[int, int], torch.Generator], _Image]] = {
    "llava": _fixed,
    "llava_next": _anyres,
    "llava_onevision": _anyres,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "smolvlm": _separated,
    "idefics3": _separated,
    "internvl": _joined,
    "paligemma": _fixed,
    "gemma3": _separated,
    "molmo2": _molmo2_image,
    "mllama": _mllama_image,
}
