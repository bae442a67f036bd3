"""Taps: forward hooks that read a model's hidden states and keep only what is selected.

| tap | states | layer |
|---|---|---|
| `decoder` | the raw residual stream, at the input of each block and of the final norm (never after it) | 0..L |
| `projector` | vision tokens as they enter the decoder (cross_kv: the states attended to) | 0 |
| `encoder` | patch tokens at the input of each vision block and at the last one's output | 0..E |
| `cross_k`, `cross_v` | keys after their norm, and values, of each cross-attention layer | decoder layer |
| `cross_out` | what a cross-attention layer adds to the text: tanh(gate) times its attention output | decoder layer |

Shapes: B images, N tokens, D width, L decoder blocks, E vision blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from orchestrator.errors import ModelError, did_you_mean
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.cross_attention import CrossAttentionAdapter
from orchestrator.models.groups import TEXT, VISION
from orchestrator.models.sequence import SequenceAdapter
from orchestrator.models.tap_names import chosen_taps, taps_of


@dataclass(frozen=True)
class State:
    """One tap's states at one layer: `hidden` (B, N, D) as the model computed it, and which tokens are what.

    The masks `vision` and `text` (B, N) are on the CPU, whatever the device of `hidden`: reading them needs no
    synchronization. They are `None` if a tap has no token of that group. Padding is false in both.
    """

    tap: str
    layer: int
    hidden: Float[Tensor, "B N D"]
    vision: Bool[Tensor, "B N"] | None
    text: Bool[Tensor, "B N"] | None


def available_taps(adapter: Adapter) -> tuple[str, ...]:
    """Return the taps that an adapter's model has."""
    return taps_of(adapter.vision_kind)


def default_taps(adapter: Adapter) -> tuple[str, ...]:
    """Return the default taps: all except the layers of the vision encoder."""
    return chosen_taps(adapter.vision_kind)


def tap_layers(adapter: Adapter, tap: str) -> list[int]:
    """Return the layers at which a tap reads."""
    if tap == "decoder":
        return list(range(adapter.n_layers + 1))
    if tap == "projector":
        return [0]
    if tap == "encoder":
        return list(range(len(adapter.encoder_layers) + 1))
    assert isinstance(adapter, CrossAttentionAdapter)
    return adapter.cross_layers


class Taps:
    """Hooks on a model for the passes of `adapter.run` made inside a `with` block.

    Args:
        adapter: the model.
        select: tap names, or a mapping from each to the layers wanted (`None` for all of them).
        on_state: called with each `State` during the pass, in order of execution, so that it can be measured and freed.
            Without it, states are held and `states(batch)` returns those of the last pass.

    Raises:
        ModelError: for a tap or layer that the model does not have.
    """

    def __init__(
        self,
        adapter: Adapter,
        select: Iterable[str] | Mapping[str, Collection[int] | None],
        on_state: Callable[[State], None] | None = None,
    ) -> None:
        self.adapter = adapter
        chosen = dict(select) if isinstance(select, Mapping) else dict.fromkeys(select)
        self.select = {tap: self._layers(tap, layers) for tap, layers in chosen.items()}
        self._on_state = on_state if on_state is not None else self._hold
        self._held: list[State] = []
        self._handles: list[Any] = []
        self._masked: Batch | None = None
        self._masks: dict[tuple[str, bool], Tensor] = {}

    def _layers(self, tap: str, layers: Collection[int] | None) -> list[int]:
        known = available_taps(self.adapter)
        if tap not in known:
            kind = self.adapter.vision_kind
            raise ModelError(f"No tap {tap!r} on this {kind} model.{did_you_mean(tap, known)}")
        available = tap_layers(self.adapter, tap)
        if layers is None:
            return available
        if unknown := sorted(set(layers) - set(available)):
            raise ModelError(
                f"Tap {tap!r} has no layer {unknown[0]}; it has {available[0]} to {available[-1]}: {available}."
            )
        return sorted(layers)

    # ------------------------------------------------------------ hooks

    def __enter__(self) -> Taps:
        self._held.clear()
        self._masked = None
        try:
            for tap, layers in self.select.items():
                getattr(self, f"_attach_{tap}")(layers)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def states(self, batch: Batch) -> list[State]:
        """Return the states of the last pass, which must have been of this batch."""
        if self._held and self._held[0].hidden.shape[0] != batch["input_ids"].shape[0]:
            n_held, n_batch = self._held[0].hidden.shape[0], batch["input_ids"].shape[0]
            raise ModelError(f"states: the last pass was of {n_held} images, not {n_batch}.")
        return list(self._held)

    def _hold(self, state: State) -> None:
        # The first state of a new pass replaces the states of the previous pass.
        if any(earlier.tap == state.tap and earlier.layer == state.layer for earlier in self._held):
            self._held.clear()
        self._held.append(state)

    def _before(self, module: nn.Module, callback: Callable[[Tensor, Batch], None]) -> None:
        """Call `callback` with the input of a module."""

        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            batch = self.adapter.active_batch
            if batch is not None and not self.adapter.decoding:
                callback(args[0] if args else kwargs["hidden_states"], batch)

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after(self, module: nn.Module, callback: Callable[[Tensor, Batch], None]) -> None:
        """Call `callback` with the output of a module."""

        def hook(_: nn.Module, __: tuple, output: Any) -> None:
            batch = self.adapter.active_batch
            if batch is not None and not self.adapter.decoding:
                callback(output[0] if isinstance(output, tuple) else output, batch)

        self._handles.append(module.register_forward_hook(hook))

    def _emit(self, tap: str, layer: int, hidden: Tensor, vision: Tensor | None, text: Tensor | None) -> None:
        self._on_state(State(tap, layer, hidden.detach(), vision, text))

    # ------------------------------------------------------------ decoder and projector

    def _attach_decoder(self, layers: list[int]) -> None:
        points = [*self.adapter.layers, self.adapter.final_norm]
        for layer in layers:
            self._before(points[layer], partial(self._decoder, layer))

    def _decoder(self, layer: int, hidden: Tensor, batch: Batch) -> None:
        vision = None
        if self.adapter.vision_kind == "residual":
            vision = self._mask("vision", batch, layer, lambda: self.adapter.groups_at(batch, layer) == VISION)
        text = self._mask("text", batch, layer, lambda: self.adapter.groups_at(batch, layer) == TEXT)
        self._emit("decoder", layer, hidden, vision, text)

    def _mask(self, name: str, batch: Batch, layer: int, make_mask: Callable[[], Tensor]) -> Tensor:
        """Return a mask on the CPU: the same object for all layers of a pass that share it."""
        if self._masked is not batch:
            self._masked, self._masks = batch, {}
        key = (name, "keep" in batch and layer >= int(batch["keep_layer"]))
        if key not in self._masks:
            self._masks[key] = make_mask().cpu()
        return self._masks[key]

    def _attach_projector(self, layers: list[int]) -> None:
        for _ in layers:
            if isinstance(self.adapter, CrossAttentionAdapter):
                self._after(self.adapter.projector, self._cross_projector)
            elif isinstance(self.adapter, SequenceAdapter):
                hook = self.adapter.entry.register_forward_pre_hook(self._residual_projector, with_kwargs=True)
                self._handles.append(hook)

    def _residual_projector(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        batch = self.adapter.active_batch
        if batch is None or self.adapter.decoding:
            return
        embeds = kwargs["inputs_embeds"] if "inputs_embeds" in kwargs else args[0]
        # The hook of a token deletion may run before or after this one: use the groups that match this length.
        groups = self.adapter.full_groups(batch)
        if embeds.shape[1] != groups.shape[1]:
            groups = self.adapter.groups(batch)
        is_vision = (groups == VISION).cpu()
        counts = is_vision.sum(dim=1)
        max_tokens = int(counts.max())
        if not max_tokens:  # questions without an image
            return
        order = is_vision.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :max_tokens]
        places = (order + torch.arange(len(order))[:, None] * embeds.shape[1]).flatten()
        vision = torch.arange(max_tokens)[None] < counts[:, None]
        hidden = embeds.flatten(0, 1).index_select(0, places.to(embeds.device, non_blocking=True))
        self._emit("projector", 0, hidden.view(*vision.shape, -1), vision, None)

    # ------------------------------------------------------------ cross-attention

    def _cross(self) -> CrossAttentionAdapter:
        assert isinstance(self.adapter, CrossAttentionAdapter)
        return self.adapter

    def _cross_projector(self, hidden: Tensor, batch: Batch) -> None:
        vision = self._cross().vision_mask(batch)
        self._emit("projector", 0, hidden.reshape(*vision.shape, -1), vision, None)

    def _attach_cross_k(self, layers: list[int]) -> None:
        for i in layers:
            norm = self.adapter.layers[i].get_submodule("cross_attn.k_norm")
            self._after(norm, partial(self._key, i))

    def _attach_cross_v(self, layers: list[int]) -> None:
        for i in layers:
            project = self.adapter.layers[i].get_submodule("cross_attn.v_proj")
            self._after(project, partial(self._key_or_value, "cross_v", i))

    def _key(self, layer: int, hidden: Tensor, batch: Batch) -> None:
        # (B, heads, N, head_dim) to one row per token
        self._key_or_value("cross_k", layer, hidden.transpose(1, 2), batch)

    def _key_or_value(self, tap: str, layer: int, hidden: Tensor, batch: Batch) -> None:
        vision = self._mask("across", batch, layer, lambda: self._cross().vision_mask_at(batch, layer))
        self._emit(tap, layer, hidden.reshape(*vision.shape, -1), vision, None)

    def _attach_cross_out(self, layers: list[int]) -> None:
        for i in layers:
            block: Any = self.adapter.layers[i]

            def callback(hidden: Tensor, batch: Batch, i: int = i, block: Any = block) -> None:
                text = self._mask("text", batch, i, lambda: self.adapter.groups_at(batch, i) == TEXT)
                self._emit("cross_out", i, block.cross_attn_attn_gate.tanh() * hidden, None, text)

            self._after(block.cross_attn, callback)

    # ------------------------------------------------------------ vision encoder

    def _attach_encoder(self, layers: list[int]) -> None:
        blocks = self.adapter.encoder_layers
        for layer in layers:
            callback = partial(self._encoder, layer)
            if layer < len(blocks):
                self._before(blocks[layer], callback)
            else:
                self._after(blocks[-1], callback)

    def _encoder(self, layer: int, hidden: Tensor, batch: Batch) -> None:
        states, patches = self.adapter.encoder_states(hidden, batch)
        self._emit("encoder", layer, states, self._mask("patches", batch, 0, lambda: patches), None)
