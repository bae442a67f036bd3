"""Special token ids of a model, read in one place: generation config first, then tokeniser, then the model's config.

Published configs differ in which of them they have: Molmo's has no id of padding or of the end at all, and LLaVA-1.5's
tokeniser no token of its own for padding.
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
    """Return the id that closes an answer: the tokeniser's own end where generation stops at it."""
    ids = stop_ids(model, tokenizer)
    own = getattr(tokenizer, "eos_token_id", None)
    return own if own in ids else min(ids, default=None)


def pad_id(model: Any, tokenizer: Any = None) -> int:
    """Return the id that fills padding, 0 where nothing names one: attention never sees it."""
    return next((ids[0] for ids in _named("pad_token_id", model, tokenizer) if ids), 0)


def special_ids(model: Any, tokenizer: Any = None) -> set[int]:
    """Return every id that stands for no text: those a config names, and those of begin, end and padding."""
    found = anatomy.special_token_ids(model.config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for ids in _named(name, model, tokenizer):
            found |= set(ids)
    return found


def _named(field: str, model: Any, tokenizer: Any) -> Iterator[list[int]]:
    """Yield what each source says of a field, as a list, in the order in which they are believed."""
    for source in (getattr(model, "generation_config", None), tokenizer, text_config(model.config)):
        value = getattr(source, field, None)
        ids = value if isinstance(value, list | tuple) else [value]
        yield [int(token) for token in ids if isinstance(token, int) and token >= 0]
