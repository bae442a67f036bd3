"""The models of `benchmarks.gpu`: a randomly weighted 7B-shaped LLaVA, in memory or as a checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from orchestrator.config import ModelConfig
from orchestrator.models.adapter import Adapter
from orchestrator.models.catalogue import resolve
from orchestrator.models.families import make_adapter
from orchestrator.models.random_configs import IMAGE


@dataclass(frozen=True)
class Shape:
    """Size of a LLaVA; `side` is that of its square of visual tokens."""

    layers: int = 28
    width: int = 3584
    inner: int = 18944
    heads: int = 28
    vocabulary: int = 152_064
    side: int = 27
    vision_layers: int = 24
    vision_width: int = 1024
    images: int = 8
    """Images per pass."""
    text: int = 24
    """Tokens of the question."""


SEVEN_B = Shape()
TINY = Shape(3, 64, 128, 4, 512, 6, 2, 32, 3)


def make_config(shape: Shape, ids: dict[str, Any] | None = None) -> hf.LlavaConfig:
    """The model's configuration; `ids` are special tokens of a tokeniser."""
    special = ids or {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {
        "model_type": "qwen2",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": max(1, shape.heads // 7),
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        **{name: value for name, value in special.items() if name != "image"},
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": shape.vision_width,
        "intermediate_size": 4 * shape.vision_width,
        "image_size": 14 * shape.side,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_width // 16 if shape.vision_width < 64 else shape.vision_width // 64,
        "patch_size": 14,
        "projection_dim": 768,
    }
    return hf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=special.get("image", IMAGE),
        image_seq_length=shape.side**2,
    )


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Torch's default floating dtype inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_model(config: hf.LlavaConfig, device: str) -> Any:
    """The model with random weights, in bfloat16, created on its device."""
    torch.manual_seed(0)
    with default_dtype(torch.bfloat16), torch.device(device):
        return hf.LlavaForConditionalGeneration(config).eval().requires_grad_(False)


def decoder(shape: Shape) -> Any:
    """The decoder only, with the current default device and dtype."""
    return hf.AutoModel.from_config(make_config(shape).text_config, attn_implementation="sdpa").eval()


def in_memory(shape: Shape, device: str) -> Adapter:
    """An adapter without a processor; inputs are `random_models.random_example`."""
    return make_adapter(make_model(make_config(shape), device))


def checkpoint(shape: Shape, device: str, folder: Path) -> str:
    """A checkpoint folder with the reference models' processor, as `model.name` takes it."""
    reference = str(resolve(ModelConfig()).folder)
    processor = hf.AutoProcessor.from_pretrained(reference)
    processor.image_processor.size = {"height": 14 * shape.side, "width": 14 * shape.side}
    processor.patch_size = 14
    known = hf.AutoConfig.from_pretrained(reference)
    ids = {name: getattr(known.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = make_model(make_config(shape, {**ids, "image": known.image_token_id}), device)
    for name in ("eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, ids[name])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def n_parameters(adapter: Adapter) -> int:
    """Weights of the model."""
    return sum(tensor.numel() for tensor in adapter.model.parameters())
