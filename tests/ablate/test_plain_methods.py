"""FastV, DivPrune and ToMe keep the tokens, and give the logits, of a second implementation on plain transformers.

Ours reads attention beside the fused kernel and shortens a padded batch in hooks; the other (`plain_methods.py`) takes
transformers' eager attentions of one prompt, chooses, and calls the remaining layers by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from orchestrator.ablate.selection import make_reduction
from tests.ablate import plain_methods
from tests.ablate.test_reference_methods import asked
from tests.models import model_zoo

MODELS = ("reference-joint", "llava", "llava_next", "internvl", "smolvlm", "qwen2_5_vl")
METHODS: dict[str, tuple[str, tuple[int, ...], Callable[..., Any]]] = {
    "fastv after 1": ("fastv", (1,), lambda *args: plain_methods.fastv(*args, 1)),
    "fastv after 2": ("fastv", (2,), lambda *args: plain_methods.fastv(*args, 2)),
    "divprune": ("divprune", (0,), plain_methods.with_divprune),
    "tome": ("tome", (0,), plain_methods.with_tome),
}
OURS = ("groups", "vision_grid", "n_encoder_rows")
"""What an adapter keeps beside a processor's tensors."""


@cache
def prompts(name: str) -> tuple[Any, Any, list[Any]]:
    """Our adapter, a transformers model with eager attention of the same weights, and three prompts."""
    adapter, examples = (
        (model_zoo.adapter(name), model_zoo.examples(name)) if name in model_zoo.CLASSES else asked(name)[::3]
    )
    return adapter, plain_methods.eager_copy(adapter.model), examples


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_tokens_and_logits_are_those_of_a_second_implementation(name: str, method: str) -> None:
    selector, layers, second = METHODS[method]
    adapter, plain, examples = prompts(name)
    for share in (0.25, 0.5):
        batch = adapter.collate(examples)
        batch = adapter.reduce(batch, make_reduction(adapter, batch, selector, layers, [[share] * len(examples)]))
        logits = adapter.run(batch).logits
        cut, length = batch["reduction"].cuts[0], batch["input_ids"].shape[1]
        for row, example in enumerate(examples):
            image = (example["groups"][0] == 1).nonzero()[:, 0]
            inputs = {key: value for key, value in example.items() if key not in OURS}
            n = int(share * len(image) + 0.5)
            kept, expected = second(plain, inputs, image, n)
            padding = length - example["input_ids"].shape[1]
            left = set((cut.index[row][cut.real[row]] - padding).tolist()) & set(image.tolist())
            assert sorted(left) == kept
            assert len(kept) == n < len(image)
            torch.testing.assert_close(logits[row, -3:], expected[0, -3:], rtol=0, atol=5e-5)


@torch.no_grad()
def test_the_second_implementation_is_the_plain_model_when_it_keeps_all() -> None:
    """Its remaining layers are the model's: else both could be wrong alike."""
    for name in MODELS:
        _, plain, examples = prompts(name)
        inputs = {key: value for key, value in examples[1].items() if key not in OURS}
        expected = plain(**inputs, use_cache=False).logits
        seen = plain_methods.plain_pass(plain, inputs)
        for k in (0, 1, 2):
            found = plain_methods.remaining_layers(plain, seen.states[k], seen.positions, k)
            torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
