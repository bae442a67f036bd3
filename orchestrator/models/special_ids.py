"""Special token ids of a model: from the generation config, then the tokenizer, then the model's config.

Published configs differ: Molmo's has neither a padding nor an end id, and LLaVA-1.5's tokenizer has no separate padding
token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.models import anatomy
from orchestrator.models.decoder_config import text_config


def stop_ids(model: Any, tokenizer: Any = None) -> set[int]:
    """Return the ids at which an answer ends; empty if nothing names one."""
    return next((set(ids) for ids in _named("eos_token_id", model, tokenizer) if ids), set())


def end_id(model: Any, tokenizer: Any = None) -> int | None:
    """Return the id that ends an answer: the tokenizer's end token if generation stops at it."""
    ids = stop_ids(model, tokenizer)
    eos_token = getattr(tokenizer, "eos_token_id", None)
    return eos_token if eos_token in ids else min(ids, default=None)


def pad_id(model: Any, tokenizer: Any = None) -> int:
    """Return the padding id; 0 if none is defined, as padding is masked."""
    return next((ids[0] for ids in _named("pad_token_id", model, tokenizer) if ids), 0)


def special_ids(model: Any, tokenizer: Any = None) -> set[int]:
    """Return all non-text ids: those in a config, and those of begin, end and padding."""
    ids_found = anatomy.special_token_ids(model.config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for ids in _named(name, model, tokenizer):
            ids_found |= set(ids)
    return ids_found


def _named(field: str, model: Any, tokenizer: Any) -> Iterator[list[int]]:
    """Yield each source's value of a field, as a list, in order of priority."""
    for source in (getattr(model, "generation_config", None), tokenizer, text_config(model.config)):
        value = getattr(source, field, None)
        ids = value if isinstance(value, list | tuple) else [value]
        yield [int(token) for token in ids if isinstance(token, int) and token >= 0]
