"""Records one forward pass: compression metrics, and the states of a few tokens.

Hooks only copy: the kept tokens of each layer go into a buffer that is allocated once per pass. After the pass (on a
CPU: whenever the buffer is full, while states are still in its caches) the metrics of all buffered layers are computed
as one batch, and all results are copied to the host at once. On a GPU the host does not synchronize until it asks for
the result, by which time the next pass runs.

Shapes: B images, N tokens, T kept tokens, D width, C layers of a buffer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from orchestrator.capture import positions
from orchestrator.capture.pass_record import Outbound, PassRecord, Pending, SentLayers
from orchestrator.capture.taps import State
from orchestrator.capture.token_layout import GroupLayout, TokenLayout, make_layout
from orchestrator.compression.gram import Variant
from orchestrator.compression.metrics import Launched, measure, split
from orchestrator.compression.registry import ALIGNMENTS, METRICS
from orchestrator.config import CaptureConfig
from orchestrator.errors import ModelError

HELD = {"cpu": 2**21, "cuda": 2**30}
"""Elements of a buffer: about the size of the caches on a CPU, all layers of a pass of a 7B model on a GPU."""

PATCH_TAPS = ("encoder",)
"""Taps whose vision tokens are the encoder's patches, in its own order: which show an object is not known of them."""
MAP_TAPS = ("decoder", "cross_v")
"""Taps at which norms of vision tokens are kept for maps over the image; a model has vision tokens in one of them."""


class _Buffer:
    """Kept tokens of several layers of a tap: `tokens` (C, B, T, D) in the dtype of the states."""

    def __init__(self, layout: TokenLayout, hidden: Tensor, n_layers: int) -> None:
        shape = (len(hidden), layout.n_tokens, hidden.shape[2])
        limit = HELD.get(hidden.device.type, HELD["cuda"])
        capacity = max(1, min(n_layers, limit // max(1, shape[0] * shape[1] * shape[2])))
        self.layout = layout
        self.tokens = hidden.new_empty((capacity, *shape))
        self.layers: list[int] = []

    def fits(self, layout: TokenLayout, hidden: Tensor) -> bool:
        same = layout is self.layout and hidden.device == self.tokens.device and hidden.dtype == self.tokens.dtype
        return same and len(self.layers) < len(self.tokens)

    def take(self, layer: int, hidden: Tensor) -> None:
        out = self.tokens[len(self.layers)].view(-1, hidden.shape[2])
        torch.index_select(hidden.flatten(0, 1), 0, self.layout.places, out=out)
        self.layers.append(layer)


class Recorder:
    """Receives the states of one pass (`Taps(on_state=recorder)`); `launch` starts the copy of its results.

    Args:
        config: metrics, kept positions and their seed.
        metrics: names, in the order of `Row.values`.
        quantiles: `vision_quantiles` of the config.
        n_layers: number of layers at each tap; the capacity of its buffer.
        own_prompts: each image has its own prompt; short prompts repeat text positions.
        classes: for each image which of its vision tokens, in their order, are of each of `positions.CLASSES`.
    """

    def __init__(
        self,
        config: CaptureConfig,
        metrics: Sequence[str],
        quantiles: np.ndarray,
        n_layers: Mapping[str, int] | None = None,
        own_prompts: bool = False,
        classes: Sequence[Bool[Tensor, "2 V"]] | None = None,
    ) -> None:
        self.classes = classes
        self.own_prompts = own_prompts
        self.config, self.metrics, self.quantiles = config, tuple(metrics), quantiles
        self._n_layers = n_layers or {}
        self._layouts: dict[tuple[object, ...], tuple[TokenLayout, State]] = {}
        self._buffers: dict[str, _Buffer] = {}
        self._outbound = Outbound()
        self._sent: list[SentLayers] = []
        self._names: dict[str, list[str]] = {}
        self._last: dict[tuple[str, str, Variant], Tensor] = {}
        aligned = [METRICS[name] for name in self.metrics if name in ALIGNMENTS]
        self._pairs = {
            base: sorted({Variant(m.centred, m.trimmed) for m in aligned if m.base == base})
            for base in ("top5_alignment_text", "top5_alignment_next")
        }

    def __call__(self, state: State) -> None:
        layout = self._layout(state)
        buffer = self._buffers.get(state.tap)
        if buffer is None or not buffer.fits(layout, state.hidden):
            self._flush(state.tap)
            n_left = self._n_layers.get(state.tap, 1)
            reuse = buffer is not None and buffer.layout is layout and buffer.tokens.device == state.hidden.device
            if buffer is None or not reuse or buffer.tokens.dtype != state.hidden.dtype:
                buffer = self._buffers[state.tap] = _Buffer(layout, state.hidden, n_left)
        buffer.take(state.layer, state.hidden)

    def _layout(self, state: State) -> TokenLayout:
        # `Taps` passes the same mask objects for every layer of a pass; holding the state keeps their ids unique.
        key = (id(state.vision), id(state.text), state.hidden.device)
        if key not in self._layouts:
            masks = {"vision": state.vision, "text": state.text}
            layout = make_layout(
                {group: mask for group, mask in masks.items() if mask is not None},
                state.hidden.device,
                self.quantiles,
                self.config.n_text_positions,
                self.own_prompts,
            )
            empty = State(state.tap, state.layer, state.hidden[:0], state.vision, state.text)
            self._layouts[key] = layout, empty
        return self._layouts[key][0]

    # ------------------------------------------------------------ metrics and features of the buffered layers

    def _flush(self, *taps: str) -> None:
        """Measure what these taps have buffered, in one batch where shapes allow, and add all to the transfer."""
        filled = [(tap, self._buffers[tap]) for tap in taps if tap in self._buffers and self._buffers[tap].layers]
        parts = [
            (part, buffer.tokens[: len(buffer.layers), :, part.start : part.end])
            for _, buffer in filled
            for part in buffer.layout.groups.values()
        ]
        measured = iter(self._measure(parts))
        for tap, buffer in filled:
            self._add(tap, buffer, {group: next(measured) for group in buffer.layout.groups})
            buffer.layers.clear()

    def _add(self, tap: str, buffer: _Buffer, launched: Mapping[str, Launched]) -> None:
        layout, tokens = buffer.layout, buffer.tokens[: len(buffer.layers)]
        counts = {group: part.counts for group, part in layout.groups.items()}
        sent = SentLayers(tap, list(buffer.layers), counts, tokens.shape[3])
        kept: list[Tensor] = []
        for group, part in layout.groups.items():
            states = tokens[:, :, part.start : part.end]
            self._add_metrics(sent, group, launched[group])
            mean = _means(states, part)
            sent.finite.append(self._outbound.add(mean.isfinite().all(2)))
            if group == "vision" and tap in MAP_TAPS:
                sent.norms = self._outbound.add(_norms(states, part))
            if self.config.keep_features:
                kept += [mean[:, :, None], positions.take(tokens, part.ordinals).float()]
                if group == "text":
                    kept.append(tokens[:, :, layout.extra[0], None].float())
        if kept:
            kept += [tokens[:, :, column, None].float() for column in layout.extra[1:]]
            names = layout.position_names
            if self.classes is not None and tap not in PATCH_TAPS and "vision" in layout.groups:
                part = layout.groups["vision"]
                kept.append(self._class_means(tokens[:, :, part.start : part.end], part, self.classes))
                names = [*names, *positions.CLASSES]
            sent.features = self._outbound.add(torch.cat(kept, 2))
            self._names.setdefault(tap, names)
        self._compare(sent, launched)
        self._sent.append(sent)

    def _measure(self, parts: Sequence[tuple[GroupLayout, Tensor]]) -> list[Launched]:
        """Metrics of each part's states (L, B, T, D); parts of equal B, T and D are measured together if they are
        small."""
        together: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for number, (part, states) in enumerate(parts):
            small = 2 * states.numel() <= HELD.get(states.device.type, HELD["cuda"])
            key = part.full, states.shape[1:], states.dtype, states.device
            together[key if small else (number,)].append(number)
        measured: dict[int, Launched] = {}
        for numbers in together.values():
            some = [parts[number] for number in numbers]
            states = torch.cat([states for _, states in some]) if len(some) > 1 else some[0][1]
            counts = torch.cat([part.device_counts.repeat(len(states)) for part, states in some])
            launched = measure(states.flatten(0, 1), counts, self.metrics, full=some[0][0].full)
            sizes = [len(states) * states.shape[1] for _, states in some]
            measured |= zip(numbers, split(launched, sizes) if len(some) > 1 else [launched], strict=True)
        return [measured[number] for number in range(len(parts))]

    def _add_metrics(self, sent: SentLayers, group: str, launched: Launched) -> None:
        add, names = self._outbound.add, tuple(launched.columns)
        table = torch.stack([launched.columns[n] for n in names]) if names else torch.empty(0, launched.n_rows)
        sent.columns[group] = names, add(table)
        for variant, leading in launched.leading.items():
            sent.blocks[group, variant] = (
                add(leading.trace),
                add(leading.frobenius),
                add(leading.ritz),
                add(leading.metric),
            )

    def _class_means(self, own: Tensor, part: GroupLayout, classes: Sequence[Bool[Tensor, "2 V"]]) -> Tensor:
        """Means over the vision tokens of each class, (L, B, 2, D) float32."""
        counts = [one.shape[1] for one in classes]
        if counts != part.counts.tolist():
            raise ModelError(f"objects are known for {counts} vision tokens; expected {part.counts.tolist()}")
        padded = torch.stack([torch.nn.functional.pad(one, (0, part.size - one.shape[1])) for one in classes])
        return positions.class_means(own, padded.to(own.device, non_blocking=True))

    def _compare(self, sent: SentLayers, launched: Mapping[str, Launched]) -> None:
        """Products of leading bases: vision with text, and each layer with the next."""
        products: dict[tuple[int, ...], Tensor] = {}  # variants of the same matrices share a basis
        if len(launched) == 2:
            for variant in self._pairs["top5_alignment_text"]:
                vision, text = (launched[group].leading[variant].basis for group in ("vision", "text"))
                key = id(vision), id(text)
                if key not in products:
                    products[key] = vision.mT @ text
                sent.with_text[variant] = self._outbound.add(products[key])
        ends: dict[int, Tensor] = {}
        for group, measured in launched.items():
            n_images = len(sent.counts[group])
            for variant in self._pairs["top5_alignment_next"]:
                basis = measured.leading[variant].basis
                last = self._last.get((sent.tap, group, variant))
                key = id(basis), id(last)
                if key not in products:
                    first = basis if last is None else torch.cat([last.to(basis.device), basis])
                    later = basis[n_images:] if last is None else basis
                    products[key] = first[:-n_images].mT @ later
                sent.with_next[group, variant] = self._outbound.add(products[key])
                self._last[sent.tap, group, variant] = ends.setdefault(id(basis), basis[-n_images:])

    # ------------------------------------------------------------ the end of the pass

    def launch(self) -> Pending:
        """Compute what is still buffered and start the copy to the host; the recorder must not be used afterwards."""
        self._flush(*self._buffers)
        self._outbound.send()
        self._buffers.clear()
        self._last.clear()
        return Pending(self._outbound, self._sent, self.metrics, self._names)

    def finish(self) -> PassRecord:
        """The record of the pass; waits for the copy."""
        return self.launch().result()


def _means(states: Tensor, part: GroupLayout) -> Tensor:
    """Mean over the tokens of each image, (L, B, D) float32."""
    present = None if part.full else _present(part)
    return positions.masked_mean(states, present)


def _present(part: GroupLayout) -> Tensor:
    return torch.arange(part.size, device=part.device_counts.device) < part.device_counts[:, None]


def _norms(states: Tensor, part: GroupLayout) -> Tensor:
    """Norms of the tokens of each image, (L, B, V) float32, NaN as padding."""
    norms = torch.linalg.vector_norm(states, dim=3, dtype=torch.float32)
    return norms if part.full else norms.masked_fill(~_present(part), torch.nan)
