"""What a plain transformers model makes of a prompt whose image tokens are gone, for every class.

Nothing of the package's hooks is used. From the decoder's input on, the tokens are left out of the prompt, and the text
keeps its positions; from a later layer on, hooks of this module hide their keys from all other tokens. One prompt at a
time, without padding.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from tests.models.model_zoo import Batch

OURS = ("groups", "vision_grid", "n_encoder_rows")
"""What an adapter keeps beside a processor's tensors."""

END = 2
"""The end token of the tiny and the reference models; padding is 0."""


def logits_without(model: Any, example: Batch, image: Tensor, layer: int, more: tuple[int, ...] = ()) -> Tensor:
    """Logits (1, S', vocabulary); the last position is the prompt's last.

    Args:
        image: (S,) true at the image's tokens; of `mllama`, whose image is not in the sequence, nowhere.
        layer: first layer at whose input the image's tokens are gone.
        more: token ids after the prompt.
    """
    inputs = {key: value for key, value in example.items() if key not in OURS}
    if layer == 0:
        return _text_alone(model, inputs, image, more)
    assert not more
    if model.config.model_type == "mllama":
        return _unread_from(model, inputs, layer)
    return _hidden_from(model, inputs, image, layer)


def greedy_without(model: Any, example: Batch, image: Tensor, n: int) -> list[int]:
    """The first `n` greedily chosen ids without the image, each from a pass over the whole text; 0 after the end."""
    chosen: tuple[int, ...] = ()
    while len(chosen) < n and END not in chosen:
        chosen += (int(logits_without(model, example, image, 0, chosen)[0, -1].argmax()),)
    return [*chosen, *[0] * (n - len(chosen))]


def _text_alone(model: Any, inputs: dict[str, Tensor], image: Tensor, more: tuple[int, ...]) -> Tensor:
    kind, ids = model.config.model_type, inputs["input_ids"]
    left, new = (~image).nonzero()[:, 0], torch.tensor([more], dtype=torch.long)
    text = torch.cat([ids[:, left], new], dim=1)
    whole: dict[str, Any] = {"input_ids": text, "attention_mask": torch.ones_like(text), "use_cache": False}
    if kind == "mllama":
        return model(**whole).logits
    positions = torch.arange(ids.shape[1])[None] if kind == "molmo" else _positions(model, inputs)
    after = positions[..., -1:] + torch.arange(1, len(more) + 1)
    whole["position_ids"] = torch.cat([positions[..., left], after], dim=-1)
    if kind == "paligemma":  # its prompt attends both ways, what it writes does not
        whole["token_type_ids"] = torch.tensor([[0] * len(left) + [1] * len(more)])
    if kind == "gemma3":  # windows reach as far as positions say, gaps included
        whole["attention_mask"] = _windows(whole["position_ids"], model.config.text_config.sliding_window)
    if kind == "molmo2":  # it makes its mask twice, and of gaps in positions that have none packed sequences
        whole["attention_mask"] = _windows(whole["position_ids"], len(image) + len(more))["full_attention"]
    if kind in ("llava_next", "llava_onevision"):  # newlines between rows are no part of the image
        embeds = model.get_input_embeddings()(text).clone()
        embeds[text == model.config.image_token_id] = model.model.image_newline
        whole["inputs_embeds"] = embeds
        del whole["input_ids"]
    return model(**whole).logits


def _positions(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The position ids (..., 1, S) that the model gives its decoder for the whole prompt."""
    seen: dict[str, Any] = {}
    handle = model.get_decoder().register_forward_pre_hook(lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True)
    model(**inputs, use_cache=False)
    handle.remove()
    positions = seen.get("position_ids")
    return torch.arange(inputs["input_ids"].shape[1])[None] if positions is None else positions


def _windows(positions: Tensor, width: int) -> dict[str, Tensor]:
    back = positions[0][:, None] - positions[0][None]
    causal = (back >= 0)[None, None]
    return {"full_attention": causal, "sliding_attention": causal & (back < width)[None, None]}


def _hidden_from(model: Any, inputs: dict[str, Tensor], image: Tensor, layer: int) -> Tensor:
    molmo = model.config.model_type == "molmo"
    blocks = model.model.transformer.blocks if molmo else model.get_decoder().layers
    name = "attention_bias" if molmo else "attention_mask"
    length = len(image)
    seen = ~image[None] | torch.eye(length, dtype=torch.bool)

    def hide(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get(name)
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        hidden = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
        return args, {**kwargs, name: hidden}

    with ExitStack() as stack:
        for block in blocks[layer:]:
            stack.callback(block.register_forward_pre_hook(hide, with_kwargs=True).remove)
        return model(**inputs, use_cache=False).logits


def _unread_from(model: Any, inputs: dict[str, Tensor], layer: int) -> Tensor:
    """Cross-attention layers from `layer` on pass their input through, as they do for a prompt without an image."""
    language = model.get_decoder()
    with ExitStack() as stack:
        for i in language.cross_attention_layers:
            if i >= layer:
                hook = language.layers[i].register_forward_hook(_passed_through, with_kwargs=True)
                stack.callback(hook.remove)
        return model(**inputs, use_cache=False).logits


def _passed_through(_: Any, args: Any, kwargs: dict[str, Any], __: Any) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]
