"""FastV, DivPrune and ToMe a second time, on plain transformers models.

Written from the papers with torch, numpy and transformers alone: nothing of the package is imported here, so that a
fault of its hooks, masks, positions or choices cannot be repeated. One prompt at a time, without padding.

V visual tokens, D width, S positions of the prompt, K kept.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Pass(NamedTuple):
    """What a plain pass with eager attention shows of one prompt."""

    states: tuple[Tensor, ...]
    """(1, S, D) at the input of each layer."""
    attentions: tuple[Tensor, ...]
    """(1, heads, S, S) of each layer."""
    positions: Tensor
    """(..., 1, S) as the language model is called with."""


def eager_copy(model: nn.Module) -> Any:
    """The same weights with transformers' eager attention."""
    plain: Any = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    return plain


def language_of(model: Any) -> Any:
    """The decoder, by either of the two names that transformers gives it."""
    return getattr(model.model, "language_model", None) or model.model.text_model


def plain_pass(model: Any, inputs: dict[str, Tensor]) -> Pass:
    """Run a prompt through the model's own `forward`."""
    seen: dict[str, Any] = {}
    language = language_of(model)
    handle = language.register_forward_pre_hook(lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True)
    output = model(**inputs, use_cache=False, output_attentions=True, output_hidden_states=True)
    handle.remove()
    positions = seen.get("position_ids")
    if positions is None:
        positions = torch.arange(inputs["input_ids"].shape[1])[None]
    return Pass(output.hidden_states, output.attentions, positions)


def remaining_layers(model: Any, states: Tensor, positions: Tensor, first: int) -> Tensor:
    """Logits (1, K, vocabulary) of a shortened sequence (1, K, D), which layers `first` and later alone see."""
    language = language_of(model)
    rotated = positions[1:] if positions.ndim == 3 and len(positions) == 4 else positions
    rotary = language.rotary_emb(states, rotated)
    length = states.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    for layer in language.layers[first:]:
        output = layer(states, attention_mask=mask, position_embeddings=rotary)
        states = output if isinstance(output, Tensor) else output[0]
    return model.lm_head(language.norm(states))


def fastv(model: Any, inputs: dict[str, Tensor], image: Tensor, n: int, k: int) -> tuple[list[int], Tensor]:
    """Chen et al. 2024: after k layers, the n image tokens that the last token attended to most in the k-th stay.

    Args:
        image: positions of the image's tokens.

    Returns:
        Positions of the image tokens kept, and the logits.
    """
    seen = plain_pass(model, inputs)
    received = seen.attentions[k - 1][0].mean(dim=0)[-1]
    ranked = sorted(image.tolist(), key=lambda place: -float(received[place]))
    gone = set(ranked[n:])
    left = [place for place in range(inputs["input_ids"].shape[1]) if place not in gone]
    return sorted(ranked[:n]), remaining_layers(model, seen.states[k][:, left], seen.positions[..., left], k)


def with_divprune(model: Any, inputs: dict[str, Tensor], image: Tensor, n: int) -> tuple[list[int], Tensor]:
    """DivPrune of the projected image tokens; returns as `fastv`."""
    seen = plain_pass(model, inputs)
    states = seen.states[0]
    kept = sorted(image[divprune(states[0, image].double().numpy(), n)].tolist())
    gone = set(image.tolist()) - set(kept)
    left = [place for place in range(states.shape[1]) if place not in gone]
    return kept, remaining_layers(model, states[:, left], seen.positions[..., left], 0)


def with_tome(model: Any, inputs: dict[str, Tensor], image: Tensor, n: int) -> tuple[list[int], Tensor]:
    """ToMe of the projected image tokens, each mean at the place of its anchor; returns as `fastv`."""
    seen = plain_pass(model, inputs)
    states = seen.states[0].clone()
    merged = tome(states[0, image].double().numpy(), n)
    for anchor, (_, mean) in merged.items():
        states[0, image[anchor]] = torch.from_numpy(mean).float()
    kept = sorted(int(image[anchor]) for anchor in merged)
    gone = set(image.tolist()) - set(kept)
    left = [place for place in range(states.shape[1]) if place not in gone]
    return kept, remaining_layers(model, states[:, left], seen.positions[..., left], 0)


def divprune(x: np.ndarray, n: int) -> list[int]:
    """Alvar et al. 2025, greedily: the token (of V, D) farthest from its nearest other, then the one farthest from all
    that are kept, in cosine distance."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    everything = range(len(x))
    chosen = [max(everything, key=lambda i: min(distance[i, j] for j in everything if j != i))]
    while len(chosen) < n:
        free = [i for i in everything if i not in chosen]
        chosen.append(max(free, key=lambda i: min(distance[i, j] for j in chosen)))
    return chosen


def tome(x: np.ndarray, n: int) -> dict[int, tuple[frozenset[int], np.ndarray]]:
    """Bolya et al. 2023, bipartite soft matching by the paper's five steps, with lists: anchor -> (members, mean)."""
    tokens = [(frozenset([i]), x[i], i) for i in range(len(x))]
    while len(tokens) > n:
        a, b = tokens[0::2], tokens[1::2]
        r = min(len(tokens) - n, len(b))
        pairs = []
        for i, (_, u, _) in enumerate(a):
            likes = [float(u @ w / np.linalg.norm(u) / np.linalg.norm(w)) for _, w, _ in b]
            pairs.append((max(likes), i, int(np.argmax(likes))))
        pairs.sort(key=lambda p: -p[0])
        gone = {i for _, i, _ in pairs[:r]}
        into: dict[int, list[int]] = {}
        for _, i, j in pairs[:r]:
            into.setdefault(j, []).append(i)
        joined = []
        for j, (members, mean, anchor) in enumerate(b):
            total, size = mean * len(members), len(members)
            for i in into.get(j, []):
                total, size, members = total + a[i][1] * len(a[i][0]), size + len(a[i][0]), members | a[i][0]
            joined.append((members, total / size, anchor))
        tokens = [a[i] for _, i, _ in pairs[r:] if i not in gone] + joined
    return {anchor: (members, mean) for members, mean, anchor in tokens}
