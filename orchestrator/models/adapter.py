"""One way to use any vision-language model: prepare, collate, run, generate, find its parts.

Shapes: B images in a batch, S sequence positions, V vision tokens of the image that has most, L decoder layers,
D width. An example or batch is a dict of tensors with a leading batch axis (see `batching`).
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor, nn

from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError
from orchestrator.models import special_ids
from orchestrator.models.batching import NOT_MODEL_INPUTS, Batch, collate
from orchestrator.models.choosing import ChoiceTrees, choose
from orchestrator.models.decoder_config import context_length
from orchestrator.models.decoding import Generated, Prompts, cached_pass, continue_greedily, greedy, prompted
from orchestrator.models.fitting import Fit
from orchestrator.models.grids import join_grids
from orchestrator.models.groups import OTHER, PADDING, TEXT, VISION
from orchestrator.models.marking import marked, marked_to_reduce
from orchestrator.models.parts import Parts
from orchestrator.models.preparation import Pictures, call_processor, prepare_example
from orchestrator.models.prompts import family_rules
from orchestrator.models.reduction import Reduction


class Adapter(Parts, ABC):
    """A loaded model and its processor behind one interface.

    `model` is the plain transformers model (LoRA layers may be injected in it), `processor` may be `None` for a model
    built from a config, in which case `prepare` is not available.
    """

    vision_kind: ClassVar[Literal["residual", "cross_kv"]]

    def __init__(self, model: nn.Module, processor: Any = None, *, family: str | None = None) -> None:
        plain: Any = model
        self.model = plain
        self.processor = processor
        self.config = plain.config
        self.family: str = family or plain.config.model_type
        self.active_batch: Batch | None = None
        self.decoding = False
        self.date: str = ModelConfig().date
        self.fit: Fit = ModelConfig().fit
        model.eval()

    # ------------------------------------------------------------ inputs

    def prepare(self, image: Pictures, prompt: str, answer: str | None = None) -> Batch:
        """Return a question with its image as model inputs on the CPU, through chat template and processor.

        Args:
            image: uint8 (H, W, 3), several of them in order, or `None` for a question without an image.
            prompt: the question; the template around it is the family's.
            answer: adds the answer's tokens and `labels`, -100 everywhere else.

        Raises:
            ModelError: if the adapter has no processor, the family takes one image a prompt, its tokeniser loses text
                of the question or has no token for a word of it, or the sequence is longer than the model's context.
        """
        example = prepare_example(self, image, prompt, answer)
        example["vision_grid"] = join_grids(self.vision_grid(example))
        return example

    def call_processor(self, image: Pictures, text: str) -> Batch:
        """Return the processor's tensors for one rendered prompt."""
        if image is None and family_rules(self.family)["tokeniser_alone"]:
            ids = torch.tensor([self.tokenizer(text)["input_ids"]], dtype=torch.long)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        return call_processor(self.processor, image, text)

    def spoken(self, text: str) -> str:
        """Return the text that the processor makes of a rendered prompt, after which an answer is written."""
        return text

    def collate(self, examples: Sequence[Batch]) -> Batch:
        """Return one batch, padded so that each example gives what it gives alone."""
        return collate(examples, self.pad_token_id)

    def bucket(self, example: Batch) -> tuple[str, ...]:
        """Return a key; examples of one key may share a batch."""
        return tuple(sorted(key for key in example if key not in NOT_MODEL_INPUTS or key == "n_images"))

    @cached_property
    def pad_token_id(self) -> int:
        """Token that fills padding; attention never sees it."""
        return special_ids.pad_id(self.model, self.tokenizer)

    def model_inputs(self, batch: Batch) -> dict[str, Any]:
        """Return what of a batch the model itself takes, on its device and in its floating type."""
        inputs: dict[str, Any] = {}
        for key, value in batch.items():
            if key not in NOT_MODEL_INPUTS:
                dtype = self.dtype if value.is_floating_point() else None
                inputs[key] = value.to(self.device, dtype, non_blocking=True)
        return inputs

    # ------------------------------------------------------------ token groups

    def image_ids(self) -> set[int]:
        """Return the token ids that stand for an image in the prompt."""
        return {int(self.config.image_token_id)}

    def placeholders(self, batch: Batch) -> Bool[Tensor, "B S"]:
        """Return where the prompt holds image placeholders, newlines included."""
        return torch.isin(batch["input_ids"], torch.tensor(sorted(self.image_ids()), dtype=torch.long))

    def groups(self, batch: Batch) -> Int8[Tensor, "B S"]:
        """Return the group of each position: 0 other, 1 vision, 2 text, -1 padding; of the shortened one after `drop`.

        Of a batch built without `prepare`, every unmasked token that is neither an image placeholder nor special
        counts as text.
        """
        return self.full_groups(batch)

    def full_groups(self, batch: Batch) -> Int8[Tensor, "B S"]:
        """Return the groups of the whole sequence, whatever `drop` removed."""
        if "groups" in batch:
            return batch["groups"]
        return self.infer_groups(batch)

    def infer_groups(self, batch: Batch) -> Int8[Tensor, "B S"]:
        """Return the groups as far as ids and geometry alone tell."""
        ids = batch["input_ids"]
        text = torch.ones_like(ids, dtype=torch.bool)
        for special in self.special_ids:
            text &= ids != special
        groups = torch.where(text, TEXT, OTHER).to(torch.int8)
        for row, vision in enumerate(self._vision_positions(batch)):
            groups[row, vision] = VISION
        if "attention_mask" in batch:
            groups[batch["attention_mask"] == 0] = PADDING
        return groups

    @cached_property
    def special_ids(self) -> set[int]:
        """Token ids that stand for no text; read once, as a config copies itself whole each time."""
        return special_ids.special_ids(self.model, self.tokenizer)

    @abstractmethod
    def _vision_positions(self, batch: Batch) -> list[Int[Tensor, " V"]]:
        """Return the sequence positions of each row's visual content."""

    @abstractmethod
    def vision_grid(self, batch: Batch) -> list[Int[Tensor, "V 3"]]:
        """Return each image's vision tokens in order as (row, column, tile), for maps over the image."""

    def n_vision(self, batch: Batch) -> Int[Tensor, " B"]:
        """Return the number of vision tokens of each image, before any deletion."""
        return torch.tensor([len(grid) for grid in self.vision_grid(batch)])

    @abstractmethod
    def groups_at(self, batch: Batch, layer: int) -> Int8[Tensor, "B S"]:
        """Return the groups at the input of a decoder layer, where `drop` may have deleted at an earlier one."""

    @abstractmethod
    def encoder_states(self, hidden: Tensor, batch: Batch) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """Return a vision block's states by image, and which are patches rather than padding."""

    # ------------------------------------------------------------ running

    def drop(self, batch: Batch, keep: Bool[Tensor, "B V"], layer: int = 0) -> Batch:
        """Return the batch with vision tokens deleted; `run`, `generate` and the loss then work on what is left.

        The sequence (or the cross-attended states) is shortened, and positions are kept.

        Args:
            keep: true for the tokens to keep, in the order of `vision_grid`; entries past an image's count are
                ignored. All false leaves the text alone.
            layer: delete at the input of this decoder layer instead of after the projector; earlier layers see all.

        Raises:
            ModelError: if `keep` does not fit the batch or there is no such layer.
        """
        return marked(batch, keep, layer, self.n_vision(batch), self.n_layers)

    def reduce(self, batch: Batch, reduction: Reduction) -> Batch:
        """Return the batch with a reduction on it: `run` and `generate` then drop or merge tokens as it chooses.

        Raises:
            ModelError: there is no such layer, or the batch has labels.
        """
        return marked_to_reduce(batch, reduction, self.n_layers)

    @contextlib.contextmanager
    def activated(self, batch: Batch, *, decoding: bool = False) -> Iterator[None]:
        """Let hooks know which batch is running, and whether to generate."""
        previous = self.active_batch, self.decoding
        self.active_batch, self.decoding = batch, decoding
        try:
            yield
        finally:
            self.active_batch, self.decoding = previous

    def run(self, batch: Batch, **kwargs: Any) -> Any:
        """Return the model's output on a batch: `.logits` (B, S, vocabulary), and `.loss` if the batch has labels.

        `kwargs` go to the model; `logits_to_keep=1` saves most of the memory of a pass made for its hidden states.
        """
        with self.activated(batch), self.deleting(batch):
            return self.model(**self.forward_inputs(batch), **{"use_cache": False, **kwargs})

    def forward_inputs(self, batch: Batch) -> dict[str, Any]:
        """Return the model's inputs, labels cut like the logits will be."""
        return self.model_inputs(batch)

    @abstractmethod
    def deleting(self, batch: Batch) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model's passes delete what the batch's `keep` says; a no-op without one."""

    @abstractmethod
    def key_mask(self, batch: Batch) -> Bool[Tensor, "B S"]:
        """Return which of the positions that enter the decoder are real tokens, after any deletion."""

    def step_inputs(self, batch: Batch) -> dict[str, Any]:
        """Return what a decoding step needs beside token, mask, position and cache."""
        return {}

    def generate(self, batch: Batch, max_new_tokens: int = 16) -> list[str]:
        """Return the greedy answer to each question, special tokens and surrounding space removed."""
        if self.processor is None:
            raise ModelError("generate: the adapter has no processor to decode with; use `generate_ids`.")
        return self.texts(self.generate_ids(batch, max_new_tokens))

    def texts(self, ids: Int[Tensor, "B T"]) -> list[str]:
        """Return generated ids as text, special tokens and surrounding space removed."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def answer(
        self, batch: Batch, choices: Sequence[tuple[str, ...] | None], max_new_tokens: int = 16
    ) -> list[tuple[str, str | None]]:
        """Return for each question the greedy answer and the most probable of its choices, after one prompt pass.

        Args:
            choices: closed set of answers of each row (see `choosing`); None where there is none.
        """
        if self.processor is None:
            raise ModelError("answer: the adapter has no processor to decode with; use `generate_ids`.")
        seen = (self.n_vision(batch) > 0).tolist()
        trees = [None if c is None else self.choice_trees.get(c, s) for c, s in zip(choices, seen, strict=True)]
        with prompted(self, batch) as prompts:
            best = choose(prompts, trees)
            ids = continue_greedily(prompts, max_new_tokens)
        texts = self.texts(ids)
        chosen = [c[b[0]] if c and b else None for c, b in zip(choices, best, strict=True)]
        return list(zip(texts, chosen, strict=True))

    @cached_property
    def choice_trees(self) -> ChoiceTrees:
        """Closed sets of answers as this model's tokens."""
        return ChoiceTrees(self.processor, self.family)

    def prompt_pass(self, batch: Batch) -> contextlib.AbstractContextManager[Prompts]:
        """Run prompts and keep what decoding needs of their pass, while the context lasts."""
        return cached_pass(self, batch)

    def generate_ids(self, batch: Batch, max_new_tokens: int = 16) -> Int[Tensor, "B T"]:
        """Return the greedily generated token ids on the CPU, padded after the end token."""
        return self.generate_measured(batch, max_new_tokens).ids

    @torch.no_grad()
    def generate_measured(self, batch: Batch, max_new_tokens: int = 16) -> Generated:
        """Return the same ids with the seconds and memory that they took."""
        return greedy(self, batch, max_new_tokens)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokeniser."""
        return getattr(self.processor, "tokenizer", self.processor)

    @cached_property
    def eos_token_ids(self) -> set[int]:
        """Ids at which an answer ends."""
        return special_ids.stop_ids(self.model, self.tokenizer)

    @cached_property
    def context_length(self) -> int | None:
        """Positions that the decoder was made for; `None` if its config does not say."""
        return context_length(self.config)
