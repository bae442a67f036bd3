"""Forward passes of the reference models on images and packed questions, and the loss of the answers.

Shapes: ``B`` images, ``S`` sequence length, ``P`` patches, ``K`` visual inputs of the decoder, ``D`` width, ``V``
vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from orchestrator.reference.build import IMAGE, WIDTH
from orchestrator.reference.packing import LOGGED


def encode(model: Any, pixels: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "B K D"]]:
    """Run the vision encoder.

    Returns:
        Patch states for the dense loss, and the decoder's input: the projected patches (joint), or the projected
        class token and patches (cross).
    """
    if isinstance(model, LlavaForConditionalGeneration):
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        return states, model.model.multi_modal_projector(states)
    ones = torch.ones(len(pixels), 1, dtype=torch.long, device=pixels.device)
    states = model.model.vision_model(
        pixels[:, None, None], aspect_ratio_ids=ones, aspect_ratio_mask=ones[:, None]
    ).last_hidden_state
    projected = model.model.multi_modal_projector(states).reshape(len(pixels), -1, WIDTH)
    return states[:, 0, 0, 1:, :WIDTH], projected


def packed_logits(
    model: Any, projected: Float[Tensor, "B K D"], batch: dict[str, Tensor]
) -> tuple[Float[Tensor, "B S V"], tuple[Float[Tensor, "B S D"], ...]]:
    """Logits of packed sequences, given the decoder's visual input, and the states after each layer."""
    embeds = model.get_input_embeddings()(batch["input_ids"])
    # An additive mask: transformers' eager attention adds the mask, so that a Boolean mask has no effect.
    mask = torch.zeros_like(batch["attention_mask"], dtype=embeds.dtype)
    mask.masked_fill_(~batch["attention_mask"], torch.finfo(embeds.dtype).min)
    common: dict[str, Any] = {
        "attention_mask": mask,
        "position_ids": batch["position_ids"],
        "use_cache": False,
        "output_hidden_states": True,
    }
    if isinstance(model, LlavaForConditionalGeneration):
        image = (batch["input_ids"] == IMAGE)[..., None].expand_as(embeds)
        embeds = embeds.masked_scatter(image, projected.to(embeds.dtype))
        output = model.model.language_model(inputs_embeds=embeds, **common)
    else:
        reads = ((batch["input_ids"] == IMAGE).cumsum(1) > 0).float()  # tokens from the image on attend to it
        look = (1 - reads)[:, None, :, None].expand(-1, -1, -1, projected.shape[1]) * torch.finfo(torch.float32).min
        row = reads[:, None, :, None]
        output = model.model.language_model(
            inputs_embeds=embeds,
            cross_attention_states=projected,
            cross_attention_mask=look * row,
            full_text_row_masked_out_mask=row,
            **common,
        )
    return model.lm_head(output.last_hidden_state), output.hidden_states


def answer_loss(
    logits: Float[Tensor, "B S V"], batch: dict[str, Tensor]
) -> tuple[Float[Tensor, ""], dict[str, list[float]]]:
    """Weighted cross-entropy of answer tokens; and, for each kind of question, the numbers of correct answers and
    questions.

    An answer is correct if each of its tokens is the most probable one, given the true previous tokens.
    """
    labels = batch["labels"].flatten()
    is_answer = labels != -100
    scores, labels, weights = logits.flatten(0, 1)[is_answer], labels[is_answer], batch["weights"].flatten()[is_answer]
    loss = functional.cross_entropy(scores.float(), labels, reduction="none")
    family = batch["family"]
    right = torch.ones(len(family), device=loss.device)
    right.scatter_reduce_(
        0, batch["question"].flatten()[is_answer], (scores.argmax(-1) == labels).float(), "amin", include_self=True
    )
    n = torch.bincount(family, minlength=len(LOGGED)).tolist()
    n_right = torch.bincount(family, weights=right, minlength=len(LOGGED)).tolist()
    counted = {name: [a, b] for name, a, b in zip(LOGGED, n_right, n, strict=True) if b}
    return (loss * weights).sum() / weights.sum(), counted
