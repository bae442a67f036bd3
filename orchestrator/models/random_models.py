"""Randomly weighted models of every supported class at a chosen small size, and inputs for them as raw tensors.

For tests and benchmarks: transformers classes without a checkpoint or a processor. transformers' own initialisation is
unsuitable: Gemma3's projector and mllama's gates start at zero, so that outputs would not depend on pixels.

Ids below 110 are text, the highest ones image placeholders and separators.
"""

from __future__ import annotations

import torch
import transformers as hf
from torch import nn

from orchestrator.errors import ModelError, did_you_mean
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.families import make_adapter
from orchestrator.models.preparation import encoder_rows
from orchestrator.models.random_configs import CONFIGS, IMAGE, Size
from orchestrator.models.random_images import IMAGES, one_tile

FIRST_TEXT, LAST_TEXT = 5, 110

FAMILIES = tuple(CONFIGS)
"""Families with a native class, and so a random model."""


def random_adapter(family: str, size: Size | None = None, seed: int = 0, dtype: torch.dtype | None = None) -> Adapter:
    """Return an adapter over a random model of a family, without a processor.

    Raises:
        ModelError: if the family is not one of `FAMILIES`.
    """
    if family not in CONFIGS:
        raise ModelError(f"No random model of family {family!r}.{did_you_mean(family, CONFIGS)}")
    config = CONFIGS[family](size or Size())
    # Every configured model is a conditional-generation class of the same stem.
    model = getattr(hf, type(config).__name__.removesuffix("Config") + "ForConditionalGeneration")(config)
    reinitialise(model, seed)
    return make_adapter(model.to(dtype) if dtype else model)


def reinitialise(model: nn.Module, seed: int) -> None:
    """Initialise every weight at random so that every output depends on pixels and prompt."""
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
    placeholders, images = IMAGES.get(family, one_tile)(adapter.config, tiles, generator)
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
    rows = encoder_rows(example)
    assert rows is not None
    example["n_encoder_rows"] = torch.tensor([rows])
    example["groups"] = adapter.infer_groups(example)
    example["vision_grid"] = adapter.vision_grid(example)[0][None]
    return example


def _text(n: int, generator: torch.Generator) -> list[int]:
    return torch.randint(FIRST_TEXT, LAST_TEXT, (n,), generator=generator).tolist()
