"""The decoder's part of a model's config. Needs no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from orchestrator.errors import ModelError
from orchestrator.models.catalogue import Entry


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


@contextlib.contextmanager
def named_config(entry: Entry) -> Iterator[None]:
    """Convert any failure caused by an invalid config, in transformers or here, into a `ModelError`."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # a size given as text, no heads, a nested list: each raises a different exception
        raise ModelError(
            f"{entry.name}: config.json does not describe its model: {type(error).__name__}: {str(error)[:500]}"
        ) from error
