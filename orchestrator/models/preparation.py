"""One image and one question, through the chat template and the processor, to a dict of CPU tensors."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from orchestrator.errors import ModelError
from orchestrator.models.batching import Batch
from orchestrator.models.groups import OTHER, TEXT, VISION
from orchestrator.models.prompts import question_span, render


class Preparer(Protocol):
    """What preparation asks of an adapter; see the methods of `Adapter`."""

    processor: Any
    family: str

    @property
    def tokenizer(self) -> Any: ...
    def call_processor(self, image: np.ndarray | None, text: str) -> Batch: ...
    def infer_groups(self, batch: Batch) -> Tensor: ...
    def image_ids(self) -> set[int]: ...


def prepare_example(adapter: Preparer, image: np.ndarray | None, prompt: str, answer: str | None) -> Batch:
    """Return model inputs, `groups` and, with an answer, `labels`; see `Adapter.prepare`."""
    if adapter.processor is None:
        raise ModelError("prepare: the adapter has no processor; load the model by name, or build batches of tensors.")
    if not prompt.strip():
        raise ModelError("prepare: the prompt is empty.")
    if (token := getattr(adapter.processor, "image_token", None)) and token in prompt:
        raise ModelError(f"prepare: the prompt {prompt!r} holds the image placeholder {token!r}.")
    text, continuation = render(adapter.processor, adapter.family, prompt, image=image is not None, answer=answer)
    example = adapter.call_processor(image, text)
    if continuation:
        append_answer(example, adapter.tokenizer, continuation, adapter.family)
    groups = adapter.infer_groups(example)
    template = groups == TEXT
    groups[template] = OTHER
    ids = example["input_ids"][0]
    length = len(ids) - (answer_length(example) if continuation else 0)
    start, end = question_span(adapter.tokenizer, ids[:length].tolist(), prompt, adapter.image_ids())
    groups[0, start:end] = torch.where(groups[0, start:end] == VISION, VISION, TEXT).to(torch.int8)
    example["groups"] = groups
    rows = encoder_rows(example)
    if rows is not None:
        example["n_encoder_rows"] = torch.tensor([rows])
    return example


def call_processor(processor: Any, image: np.ndarray | None, text: str) -> Batch:
    """Return the processor's tensors for one prompt, as they come, with a leading axis of one.

    BOS is left to the template where it already wrote one.
    """
    from PIL import Image

    tokenizer = getattr(processor, "tokenizer", processor)
    bos = getattr(tokenizer, "bos_token", None)
    special = not (bos and text.startswith(bos))
    images = {} if image is None else {"images": [Image.fromarray(image)]}
    encoded = processor(text=[text], **images, return_tensors="pt", add_special_tokens=special)
    # PaliGemma's adds labels of its own, of no answer.
    example = {key: value for key, value in encoded.items() if isinstance(value, Tensor) and key != "labels"}
    if "attention_mask" not in example:
        example["attention_mask"] = torch.ones_like(example["input_ids"])
    return example


def append_answer(example: Batch, tokenizer: Any, continuation: str, family: str) -> None:
    """Add the answer's tokens to an example in place, and `labels` that are -100 before them.

    They are tokenised by themselves, as generation would write them one after the other.
    """
    ids = torch.tensor([tokenizer(continuation, add_special_tokens=False)["input_ids"]], dtype=torch.long)
    n = ids.shape[1]
    prompt = example["input_ids"]
    example["input_ids"] = torch.cat([prompt, ids], dim=1)
    example["labels"] = torch.cat([torch.full_like(prompt, -100), ids], dim=1)
    # A prefix language model marks the causal suffix; elsewhere a type says "image", which an answer is not.
    types = {"token_type_ids": 1 if family == "paligemma" else 0, "mm_token_type_ids": 0, "attention_mask": 1}
    for key, value in types.items():
        if key in example:
            example[key] = torch.cat([example[key], torch.full((1, n), value, dtype=example[key].dtype)], dim=1)
    if "cross_attention_mask" in example:
        mask = example["cross_attention_mask"]
        example["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, n, -1, -1)], dim=1)


def answer_length(example: Batch) -> int:
    """Return the number of labelled tokens, which end the sequence."""
    return int((example["labels"] != -100).sum())


def encoder_rows(example: Batch) -> int | None:
    """Return how many leading-axis rows the vision encoder makes of one example: patches, crops or tiles."""
    pixels = example.get("pixel_values")
    if pixels is None:
        return None
    if "image_grid_thw" in example:
        return int(example["image_grid_thw"].prod())
    if "image_num_crops" in example:
        return int(example["image_num_crops"].sum())
    return int(np.prod(pixels.shape[:-3]))
