"""The original Molmo (7B-O, 7B-D, MolmoE-1B): a decoder from the hub's own code, with its own names and calls.

Its code was written for transformers 4.43. What `apply_shims` changes lets transformers 5 load it; on transformers 4
the same changes do nothing. Generation is ours, so Molmo's hooks into `generate` are never used.

Verified against a stand-in with the same module layout and signatures (`tests/models/test_molmo.py`), not on the
published weights: see `docs/models.md`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from orchestrator.models import anatomy
from orchestrator.models.batching import Batch
from orchestrator.models.catalogue import Entry
from orchestrator.models.preparation import Pictures, listed
from orchestrator.models.prompts import family_rules
from orchestrator.models.sequence import SequenceAdapter
from orchestrator.models.weights import load_checked

LOW_RESOLUTION_ROWS = 12
"""Rows of vision tokens of the low-resolution view, which comes before the crops."""


def apply_shims(model_class: Any) -> None:
    """Give a Molmo class what transformers 5 expects of a model class."""
    model_class.all_tied_weights_keys = {}  # the published weights tie nothing
    model_class.tie_weights = _tie_nothing
    model_class._supports_default_dynamic_cache = classmethod(lambda _: False)  # its caches are plain tuples


def _tie_nothing(self: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Accept any arguments: transformers 5 passes some that Molmo's own method does not take."""


@contextlib.contextmanager
def without_tensorflow_check() -> Iterator[None]:
    """Let remote code that names tensorflow in a branch never taken be imported where it is not installed."""
    from transformers import dynamic_module_utils

    listed = dynamic_module_utils.get_imports

    def needed(filename: Any) -> list[str]:
        return [name for name in listed(filename) if name != "tensorflow"]

    dynamic_module_utils.get_imports = needed
    try:
        yield
    finally:
        dynamic_module_utils.get_imports = listed


def load_molmo(entry: Entry, allow: Sequence[str], dtype: torch.dtype, device_map: str | None = None) -> MolmoAdapter:
    """Return the adapter of a Molmo repository at the revision that the entry pins; see `loading.load_checked`."""
    from transformers import AutoConfig, AutoProcessor
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    where: dict[str, Any] = {"revision": entry.revision}
    with without_tensorflow_check():
        config = AutoConfig.from_pretrained(entry.source, trust_remote_code=True, **where)
        reference = config.auto_map["AutoModelForCausalLM"]
        model_class: Any = get_class_from_dynamic_module(reference, entry.source, **where)
        apply_shims(model_class)
        model = load_checked(model_class, entry, allow, config=config, dtype=dtype, device_map=device_map, **where)
        processor = AutoProcessor.from_pretrained(entry.source, trust_remote_code=True, **where)
    return MolmoAdapter(model, processor)


class MolmoAdapter(SequenceAdapter):
    """Joint attention over image and text, through the original code.

    Blocks are called with `attention_bias` (B, 1, S, S), `position_ids` and `layer_past`, and return tuples. Vision
    features are added to the embeddings at `image_input_idx`.
    """

    mask_name = "attention_bias"

    # ------------------------------------------------------------ parts

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights, which images are cast to."""
        return next(self.model.parameters()).dtype

    @property
    def n_embeddings(self) -> int:
        """Rows of the input embedding, those added for image tokens included."""
        table: Any = self.model.model.transformer.wte
        added = getattr(table, "new_embedding", None)
        return int(table.embedding.shape[0]) + (0 if added is None else int(added.shape[0]))

    @property
    def decoder(self) -> nn.Module:
        """The inner model, which merges images and text and runs the blocks."""
        return self.model.model

    @property
    def entry(self) -> nn.Module:
        """The first block: the merge happens inside the decoder."""
        return self.layers[0]

    @property
    def layers(self) -> list[nn.Module]:
        """Decoder blocks, in order."""
        return list(self.model.model.transformer.blocks)

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block."""
        return self.model.model.transformer.ln_f

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        norm: Any = self.final_norm
        return int(norm.weight.shape[0])

    @property
    def encoder_layers(self) -> list[nn.Module]:
        """Blocks of the CLIP vision transformer."""
        return anatomy.encoder_layers(self.model.model.vision_backbone.image_vit)

    def encoder_states(self, hidden: Tensor, batch: Batch) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """Return a vision block's states by image: the patches of its crops, class tokens left out."""
        images = batch["images"]
        rows, crops, patches = images.shape[:3]
        real = images.ne(-1).any(dim=-1).to(hidden.device)
        states = hidden[:, -patches:].reshape(rows, crops * patches, -1)
        return states, real.flatten(1)

    # ------------------------------------------------------------ inputs

    def image_ids(self) -> set[int]:
        """Return no ids: places are given by `image_input_idx`, and only boundary tokens carry image ids."""
        return set()

    def call_processor(self, image: Pictures, text: str) -> Batch:
        """Return the tensors of Molmo's own `process`, which writes the prompt " User: ... Assistant:" itself.

        Without an image the prompt is written here: some forms of `process` fail there.
        """
        if image is None:
            words = self.tokenizer
            first = words.bos_token_id or words.eos_token_id  # Qwen2 and OLMo have no token of the beginning
            ids = [first, *words(self.spoken(text), add_special_tokens=False)["input_ids"]]
            example = {"input_ids": torch.tensor([ids])}
        else:
            from PIL import Image

            encoded = self.processor.process(images=[Image.fromarray(one) for one in listed(image)], text=text)
            example = {key: torch.as_tensor(value)[None] for key, value in encoded.items()}
        example["attention_mask"] = torch.ones_like(example["input_ids"])
        return example

    def spoken(self, text: str) -> str:
        """Return the prompt that the processor writes around a question."""
        return str(family_rules("molmo")["written"]).replace("{question}", text)

    def _rows(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each row's vision positions and their places; column tokens part the rows of tokens."""
        for row in range(len(batch["input_ids"])):
            if "image_input_idx" not in batch:
                yield torch.zeros(0, dtype=torch.long), torch.zeros(0, 3, dtype=torch.long)
                continue
            places = batch["image_input_idx"][row].flatten()
            positions = places[places >= 0].sort().values
            yield positions, grid_of_runs(positions)

    # ------------------------------------------------------------ running

    def run(self, batch: Batch, **kwargs: Any) -> Any:
        """Return the model's output; `logits_to_keep` limits the head to the last positions, not the final norm."""
        keep = kwargs.pop("logits_to_keep", 0)
        with contextlib.ExitStack() as stack:
            if keep:
                head = self.model.model.transformer.ff_out
                stack.callback(head.register_forward_pre_hook(lambda _, args: (args[0][:, -keep:],)).remove)
            return super().run(batch, **kwargs)

    @contextlib.contextmanager
    def deleting(self, batch: Batch) -> Iterator[None]:
        """Shorten the sequence at the input of block `keep_layer` while the context lasts."""
        cut = self.cut(batch)
        if cut is None:
            with super().deleting(batch):
                yield
            return
        cut = cut.to(self.device)
        with contextlib.ExitStack() as stack:
            self.shorten_blocks(stack, cut, batch["input_ids"].shape[1], int(batch["keep_layer"]))
            yield

    def cached_length(self, kwargs: dict[str, Any], layer: int) -> int:
        """Return how many tokens a block's cache holds, from the keywords it is called with."""
        past = kwargs.get("layer_past")
        return 0 if past is None else int(past[0].shape[-2])

    @contextlib.contextmanager
    def prompt_pass(self, batch: Batch) -> Iterator[TuplePrompts]:
        """Run prompts through Molmo's own code, whose caches are tuples."""
        yield TuplePrompts(self, batch)


class TuplePrompts:
    """Prompts whose keys and values are a tuple a block; see `decoding.Prompts`."""

    def __init__(self, adapter: MolmoAdapter, batch: Batch) -> None:
        self.adapter = adapter
        output = adapter.model(**adapter.forward_inputs(batch), use_cache=True, last_logits_only=True)
        self.logits: Tensor = output.logits[:, -1]
        mask = adapter.key_mask(batch).long().to(adapter.device)  # known once a reduction has chosen
        positions = batch["attention_mask"].sum(dim=1, keepdim=True).to(adapter.device) - 1
        self._start = self._state = (output.past_key_values, mask, positions)

    @property
    def cache_bytes(self) -> int:
        """Keys and values held now."""
        return sum(part.nbytes for block in self._state[0] for part in block)

    def step(self, token: Int[Tensor, " B"]) -> Tensor:
        """Add one token to each row; return the logits of the next one, (B, vocabulary)."""
        cache, mask, positions = self._state
        mask, positions = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1), positions + 1
        output = self.adapter.model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            last_logits_only=True,
        )
        self._state = (output.past_key_values, mask, positions)
        return output.logits[:, -1]

    def rewind(self) -> None:
        """Forget the tokens after the prompts: a step makes new tuples."""
        self._state = self._start


def grid_of_runs(positions: Int[Tensor, " V"]) -> Int[Tensor, "V 3"]:
    """Return (row, column, tile) of Molmo's vision tokens from their positions: a run without a gap is one row."""
    if not len(positions):
        return torch.zeros(0, 3, dtype=torch.long)
    starts = torch.ones_like(positions, dtype=torch.bool)
    starts[1:] = positions[1:] != positions[:-1] + 1
    run = starts.cumsum(0) - 1
    column = positions - positions[starts][run]
    tile = (run >= LOW_RESOLUTION_ROWS).long()
    return torch.stack([run - tile * LOW_RESOLUTION_ROWS, column, tile], dim=1)
