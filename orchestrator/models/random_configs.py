"""Configs of every native class at a chosen small size; see `random_models`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers as hf

VOCABULARY = 128
IMAGE, SEPARATOR = 120, 121
"""Token ids of image placeholders and of separators between tiles or rows."""


@dataclass(frozen=True)
class Size:
    """Size of a random model. Each tile of an image makes `side` x `side` vision tokens."""

    width: int = 32
    layers: int = 3
    heads: int = 4
    vision_width: int = 32
    vision_layers: int = 2
    side: int = 2
    patch: int = 4


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


CONFIGS: dict[str, Callable[[Size], Any]] = {
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
"""The config of a family's model at a size."""
