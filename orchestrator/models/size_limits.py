"""Largest numbers of a model's config files: a size beyond them takes all memory before a model is even built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from orchestrator.errors import ModelError
from orchestrator.models.catalogue import Entry
from orchestrator.models.checkpoint import read_json

FILES = ("config.json", "processor_config.json", "preprocessor_config.json")
PIXEL_BUDGETS = re.compile(r"^(Qwen|Glm|Keye|Ernie)", re.IGNORECASE)
"""Image and video processors whose `shortest_edge` and `longest_edge` count pixels of a picture, not of an edge."""
BUDGET_FIELDS = ("merge_size", "min_pixels", "max_pixels", "temporal_patch_size")
"""Fields of a processor that makes as many patches as a budget of pixels allows: its `size` is such a budget."""
LIMITS: tuple[tuple[str, int], ...] = (
    (r"n_layers?|num_.*layers|depth|num_.*blocks", 1024),
    (r"max_.*(tiles|crops|patches|patch|images)", 2**16),
    (r"height|width|.*edge|crop_size|image_size|base_image_input_size|image_grid_pinpoints|size", 2**14),
    (r"image_seq_len(gth)?|num_(additional_)?image_tokens", 2**17),
    (r"min_pixels", 2**26),
    (r".*_dim|.*_size|.*_heads|.*_experts", 2**22),
)
"""Names of fields, by pattern, and the largest value of each: some ten times what any published model has."""


def check_sizes(entry: Entry) -> None:
    """Refuse a checkpoint folder with a size that no model has.

    Raises:
        ModelError: which names file, field, value and limit.
    """
    if entry.folder is None:
        return
    for name in FILES:
        if not (file := entry.folder / name).is_file():
            continue
        for path, value in _numbers(read_json(file, entry.name), ()):
            limit = _limit(path)
            if limit is not None and value > limit:
                raise ModelError(f"{entry.name}: {name}: {'.'.join(path)} is {value}; expected at most {limit}.")


def _limit(path: tuple[str, ...]) -> int | None:
    return next((limit for pattern, limit in LIMITS if path and re.fullmatch(pattern, path[-1])), None)


def _numbers(fields: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield every number below `fields` with the names that lead to it."""
    if isinstance(fields, dict):
        kinds = (str(fields.get(f"{part}_processor_type", "")) for part in ("image", "video"))
        counts_pixels = any(map(PIXEL_BUDGETS.match, kinds)) or any(fields.get(name) for name in BUDGET_FIELDS)
        for name, value in fields.items():
            if counts_pixels and name == "size" and isinstance(value, dict):
                yield from _numbers({"min_pixels": value.get("shortest_edge")}, (*path, "size"))
            else:
                yield from _numbers(value, (*path, str(name)))
    elif isinstance(fields, list):
        for value in fields:
            yield from _numbers(value, path)
    elif isinstance(fields, int | float) and not isinstance(fields, bool):
        yield path, fields
