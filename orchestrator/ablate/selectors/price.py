"""Operations that a selection costs and saves, from a model's config alone. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.ablate.selectors.check import selections
from orchestrator.ablate.selectors.kinds import Sizes
from orchestrator.config import RunConfig
from orchestrator.models.catalogue import resolve
from orchestrator.models.known_config import read_config
from orchestrator.models.planning import image_size
from orchestrator.models.stacks import TEXT_TOKENS, Stack, cross_flops, cross_layers, decoder_stack
from orchestrator.models.visual_tokens import VisionLoad, visual_load

KEPT = 0.25
"""Share of tokens kept for which operations are given."""
QUESTION_TOKENS = 16
"""Tokens of a question that a plan assumes."""


@dataclass(frozen=True)
class Price:
    """Operations of one method on one image if a quarter of its tokens is kept."""

    model: str
    method: str
    depth: str
    """`before the decoder`, or `inside`."""
    choosing_gflop: float
    saved_gflop: float
    """Of the decoder's pass over the prompt; inside, from the second layer on."""


def prices(run: RunConfig) -> list[Price]:
    """The price of every method that a run's ablation names.

    Raises:
        ModelError: the model is unknown, or its config is not at hand.
    """
    config = read_config(resolve(run.model))
    decoder, load = decoder_stack(config), visual_load(config, *image_size(run.data))
    n_kept = max(1, round(KEPT * load.tokens))
    saved = _pass(config, decoder, load, load.tokens) - _pass(config, decoder, load, n_kept)
    priced = []
    for selector, inside in selections(run.ablate):
        layer = 2 * inside
        needs = selector.needs_at(layer)
        total = selector.operations(Sizes(load.tokens, decoder.width, n_kept, QUESTION_TOKENS))
        if "full_pass" in needs:
            total += _pass(config, decoder, load, load.tokens)
        if "own_attention" in needs:
            total += 2.0 * (TEXT_TOKENS + load.tokens) * decoder.width * (decoder.query + 2 * decoder.key)
        share = 1.0 - layer / decoder.layers
        depth = "inside" if inside else "before the decoder"
        priced.append(Price(run.model.label, selector.name, depth, total / 1e9, share * saved / 1e9))
    return priced


def _pass(config: object, decoder: Stack, load: VisionLoad, n_vision: int) -> float:
    """Operations of the decoder's pass over a prompt with `n_vision` visual tokens."""
    if not cross_layers(config):
        return decoder.flops(1, TEXT_TOKENS + load.placeholders - load.tokens + n_vision, causal=True)
    share = n_vision / max(1, load.tokens)
    return decoder.flops(1, TEXT_TOKENS, causal=True) + share * cross_flops(config, decoder, load)
