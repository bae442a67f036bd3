"""The decoder's part of a model's config. Needs no torch."""

from __future__ import annotations

from typing import Any


def text_config(config: Any) -> Any:
    """Return the decoder's part of a model's config."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def context_length(config: Any) -> int | None:
    """Return the positions that a decoder was made for, by its config; `None` if it does not say."""
    for field in ("max_position_embeddings", "max_sequence_length"):
        value = getattr(text_config(config), field, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
