"""A question with its images, through the chat template and the processor, to a dict of CPU tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from orchestrator.errors import ModelError
from orchestrator.models.batching import Batch
from orchestrator.models.fitting import Fit, fit_picture
from orchestrator.models.groups import OTHER, TEXT, VISION
from orchestrator.models.prompts import family_rules, question_span, render, unknown_words
from orchestrator.models.several import check_several
from orchestrator.models.special_ids import end_id

Pictures = np.ndarray | Sequence[np.ndarray] | None
"""What is shown with a question: a picture, uint8 (H, W, 3), several of them in order, or none."""


class Preparer(Protocol):
    """What preparation asks of an adapter; see the methods of `Adapter`."""

    model: Any
    processor: Any
    family: str
    date: str
    fit: Fit

    @property
    def tokenizer(self) -> Any: ...
    @property
    def eos_token_ids(self) -> set[int]: ...
    @property
    def context_length(self) -> int | None: ...
    @property
    def n_embeddings(self) -> int: ...
    def spoken(self, text: str) -> str: ...
    def call_processor(self, image: Pictures, text: str) -> Batch: ...
    def infer_groups(self, batch: Batch) -> Tensor: ...
    def image_ids(self) -> set[int]: ...


def listed(image: Pictures) -> list[np.ndarray]:
    """Return the pictures of a question as a list."""
    if image is None:
        return []
    return [image] if isinstance(image, np.ndarray) else list(image)


def prepare_example(adapter: Preparer, image: Pictures, prompt: str, answer: str | None) -> Batch:
    """Return model inputs, `groups` and, with an answer, `labels`; see `Adapter.prepare`."""
    if adapter.processor is None:
        raise ModelError("prepare: the adapter has no processor; load the model by name, or build batches of tensors.")
    if not prompt.strip():
        raise ModelError("prepare: the prompt is empty.")
    if (token := getattr(adapter.processor, "image_token", None)) and token in prompt:
        raise ModelError(f"prepare: the prompt {prompt!r} holds the image placeholder {token!r}.")
    for text in (prompt, answer or ""):
        if words := unknown_words(adapter.tokenizer, text):
            raise ModelError(f"{adapter.family}: the tokeniser has no token for {words[0]!r} in {text!r}.")
    pictures = [fit_picture(one, adapter.fit, adapter.processor) for one in listed(image)]
    if len(pictures) > 1:
        check_several(adapter.family)
    text, continuation = render(
        adapter.processor, adapter.family, prompt, image=len(pictures), answer=answer, date=adapter.date
    )
    shown = pictures if len(pictures) > 1 else pictures[0] if pictures else None
    example = adapter.call_processor(shown, text)
    if len(pictures) > 1:
        example["n_images"] = torch.tensor([len(pictures)])
    n_prompt = example["input_ids"].shape[1]
    if continuation:
        assert answer is not None, "only an answer is continued with"
        append_answer(example, answer_ids(adapter, text, continuation, answer), adapter.family)
    check_length(adapter, example)
    groups = adapter.infer_groups(example)
    template = groups == TEXT
    groups[template] = OTHER
    ids = example["input_ids"][0]
    start, end = question_span(adapter.tokenizer, ids[:n_prompt].tolist(), prompt, adapter.image_ids())
    groups[0, start:end] = torch.where(groups[0, start:end] == VISION, VISION, TEXT).to(torch.int8)
    example["groups"] = groups
    rows = encoder_rows(example)
    if rows is not None:
        example["n_encoder_rows"] = torch.tensor([rows])
    return example


def call_processor(processor: Any, image: Pictures, text: str) -> Batch:
    """Return the processor's tensors for one prompt, as they come, with a leading axis of one.

    BOS is left to the template where it already wrote one.
    """
    from PIL import Image

    tokenizer = getattr(processor, "tokenizer", processor)
    bos = getattr(tokenizer, "bos_token", None)
    special = not (bos and text.startswith(bos))
    pictures = [Image.fromarray(one) for one in listed(image)]
    # Several are a list of their own: the flat list is one picture a prompt to some processors.
    images = {"images": [pictures] if len(pictures) > 1 else pictures} if pictures else {}
    encoded = processor(text=[text], **images, return_tensors="pt", add_special_tokens=special)
    # PaliGemma's adds labels of its own, of no answer.
    example = {key: value for key, value in encoded.items() if isinstance(value, Tensor) and key != "labels"}
    if "attention_mask" not in example:
        example["attention_mask"] = torch.ones_like(example["input_ids"])
    return example


def answer_ids(adapter: Preparer, prompt: str, continuation: str, answer: str) -> list[int]:
    """Return the tokens that generation would write after a rendered prompt: the answer and what ends the turn.

    They are cut from the tokens of prompt and continuation together, as a tokeniser may write the first word of a text
    in another way than the same word inside it (Llama's puts a space in front). What the template writes after the
    answer is kept up to the first token at which generation stops; without one, that token is added in its place.

    Raises:
        ModelError: if nothing ends an answer.
    """
    tokenizer, stops = adapter.tokenizer, adapter.eos_token_ids
    closing = end_id(adapter.model, tokenizer)
    if closing is None:
        raise ModelError(f"{adapter.family}: no end token in generation config, tokeniser or config; none to train on.")
    n_answer = continuation.index(answer) + len(answer)
    # Space after the answer is the template's, and generation ends before it.
    ids = _continued(adapter, prompt, continuation[:n_answer] + continuation[n_answer:].strip())
    end = next((place for place, token in enumerate(ids) if token in stops and place > 0), None)
    return [*ids, closing] if end is None else ids[: end + 1]


def _continued(adapter: Preparer, prompt: str, continuation: str) -> list[int]:
    """Return the tokens of `continuation` where it follows `prompt`."""
    tokenizer = adapter.tokenizer

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    if family_rules(adapter.family)["answer_apart"]:
        return encode(continuation)
    # Where the prompt's last token would swallow the answer's beginning, generation starts after a whole token.
    for text in (adapter.spoken(prompt), "\n"):
        before, whole = encode(text), encode(text + continuation)
        if whole[: len(before)] == before:
            return whole[len(before) :]
    return encode(continuation)


def append_answer(example: Batch, answer: list[int], family: str) -> None:
    """Add the answer's tokens to an example in place, and `labels` that are -100 before them."""
    ids = torch.tensor([answer], dtype=torch.long)
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


def check_length(adapter: Preparer, example: Batch) -> None:
    """Refuse a sequence beyond the model's context, and token ids beyond its embedding.

    Raises:
        ModelError: which says by how much.
    """
    ids = example["input_ids"][0]
    if adapter.context_length is not None and len(ids) > adapter.context_length:
        raise ModelError(
            f"{adapter.family}: {len(ids)} tokens of picture and text; the model's context holds"
            f" {adapter.context_length}. Use smaller pictures or a shorter question."
        )
    if int(ids.max()) >= adapter.n_embeddings:
        token = int(ids.max())
        raise ModelError(
            f"{adapter.family}: token {token} ({adapter.tokenizer.convert_ids_to_tokens(token)!r}) lies beyond the"
            f" {adapter.n_embeddings} rows of the model's embedding; tokeniser and weights do not belong together."
        )


def encoder_rows(example: Batch) -> int | None:
    """Return how many leading-axis rows the vision encoder makes of one example: patches, crops or tiles."""
    pixels = example.get("pixel_values")
    if pixels is None:
        return None
    if "image_grid_thw" in example:
        return int(example["image_grid_thw"].prod(dim=-1).sum())
    if "image_num_crops" in example:
        return int(example["image_num_crops"].sum())
    return int(np.prod(pixels.shape[:-3]))
