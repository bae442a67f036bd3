"""Settings in which a processor and its model must agree, so that image tokens match image features."""

from __future__ import annotations

from typing import Any

from orchestrator.errors import ModelError
from orchestrator.models.catalogue import Entry
from orchestrator.models.visual_tokens import visual_load

_SHARED = (
    # part of the processor, its field, the field of the model's config
    ("", "patch_size", "vision_config.patch_size"),
    ("", "vision_feature_select_strategy", "vision_feature_select_strategy"),
    ("", "image_token_id", "image_token_id"),
    ("", "image_seq_length", "image_seq_length"),
    ("image_processor", "patch_size", "vision_config.patch_size"),
    ("image_processor", "merge_size", "vision_config.spatial_merge_size"),
    ("image_processor", "temporal_patch_size", "vision_config.temporal_patch_size"),
)

_FIXED_SIZE = ("llava", "llava_next", "llava_onevision", "paligemma", "gemma3")
"""Families with a fixed image size of the vision encoder, and a token count determined by the image size."""


def check_processor(entry: Entry, processor: Any, config: Any) -> None:
    """Reject a processor whose settings are absent or differ from the model's.

    Raises:
        ModelError: which names the field and both values.
    """
    for part, field, path in _SHARED:
        owner = getattr(processor, part, None) if part else processor
        expected = _at(config, path)
        if field == "image_token_id" and config.model_type in ("gemma3", "molmo2"):
            continue  # whose processors call the mark of an image so, and not the tokens that hold its features
        if owner is None or expected is None or not hasattr(owner, field):
            continue
        value = getattr(owner, field)
        if _plain(value) != _plain(expected):
            file = "preprocessor_config.json" if part else "processor_config.json"
            raise ModelError(
                f"{entry.name}: {type(owner).__name__} has {field} {value!r}; the model's config has {path} "
                f"{expected!r}."
                f" Set it in {file}."
            )


def check_example(entry: Entry, config: Any, example: dict[str, Any], height: int, width: int) -> None:
    """Reject an example whose image tensors do not fit the model's vision encoder.

    Raises:
        ModelError: which names the sizes found and expected.
    """
    if config.model_type not in _FIXED_SIZE:
        return
    size, pixels = config.vision_config.image_size, example["pixel_values"].shape
    if _plain(tuple(pixels[-2:])) != _plain(size):
        raise ModelError(
            f"{entry.name}: the processor makes images of {pixels[-1]} x {pixels[-2]} px, the vision encoder takes"
            f" {size}. Set size (and crop_size) in preprocessor_config.json."
        )
    n_tokens = int((example["input_ids"] == config.image_token_id).sum())
    expected = visual_load(config, height, width).placeholders
    if n_tokens != expected:
        raise ModelError(
            f"{entry.name}: the processor writes {n_tokens} image tokens into the prompt, the model makes {expected}"
            " features of an image. Compare patch_size, vision_feature_select_strategy and"
            " num_additional_image_tokens of processor_config.json with config.json."
        )


def _at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _plain(value: Any) -> Any:
    """Return a size as one number where both sides are equal."""
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        return value[0]
    if isinstance(value, dict):
        return _plain(tuple(value.values()))
    return value
