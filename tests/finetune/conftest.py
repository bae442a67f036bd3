"""A tiny genuine checkpoint folder (LLaVA class, random weights) with the reference models' own processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from orchestrator.config import RunConfig
from orchestrator.data.templates import vocabulary
from orchestrator.models.adapter import Adapter
from orchestrator.models.loading import load_adapter
from orchestrator.reference.build import BOS, EOS, IMAGE, IMAGE_SIZE, N_PATCHES, PAD, PATCH_SIZE, make_processor

WIDTH = 32
TRIAL: dict[str, Any] = {
    "n_examples": 8,
    "n_steps": 4,
    "batch_size": 4,
    "n_eval_per_family": 1,
    "n_capture_images": 3,
    "language": {"rank": 4, "learning_rate": 1e-2},
    "projector": {"rank": 4, "learning_rate": 1e-2},
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    processor = make_processor(vocabulary())
    size = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "projection_dim": WIDTH,
            **size,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(processor.tokenizer),
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            **size,
        },
        image_token_index=IMAGE,
        image_seq_length=N_PATCHES,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(make_run: Callable[..., RunConfig]) -> Adapter:
    return load_adapter(make_run().model)


@pytest.fixture(scope="session")
def make_run(checkpoint: Path) -> Callable[..., RunConfig]:
    """`make_run(complexity_ratio=0.5, how={...})`: a run of a few seconds; other keywords are fine-tuning settings."""

    def make(how: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
        return RunConfig.model_validate(
            {
                "model": {"name": str(checkpoint)},
                "data": {"source": "scenes", "n_images": 4, "n_objects": [1, 6], "width": 112, "height": 112},
                "capture": {"metrics": ["gini", "stable_rank"]},
                "finetune": {**TRIAL, **settings},
                "how": {"backend": "local", "torch_threads": 1, "checkpoint_steps": 2, **(how or {})},
            }
        )

    return make
