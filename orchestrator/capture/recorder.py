"""What is kept of one forward pass: compression metrics and a few tokens' states, taken while the model runs.

Letters: B images, N tokens, D width, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from orchestrator.capture import positions
from orchestrator.capture.taps import State
from orchestrator.compression.alignment import TOP, align_layers
from orchestrator.compression.entries import ALIGNMENTS
from orchestrator.compression.metrics import Measured, measure_layers
from orchestrator.config import CaptureConfig

_HELD = {"cpu": 2**21, "cuda": 2**28}
"""Elements of hidden state held before their metrics are computed together. On a GPU eigenproblems of several layers
are solved at once; on a CPU this only spares small models the cost of many small calls."""


MAP_TAPS = ("decoder", "cross_v")
"""Taps whose vision tokens' norms are kept for maps over the image: a model has them in one of the two."""


@dataclass(frozen=True)
class Row:
    """Metrics of one group at one tap point, for the B images of a pass."""

    tap: str
    layer: int
    group: str
    n_tokens: np.ndarray
    """int64 (B,)."""
    values: np.ndarray
    """float32 (n_metrics, B)."""


@dataclass
class PassRecord:
    """All that one pass gave, on the CPU."""

    rows: list[Row] = field(default_factory=list)
    features: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    """tap -> layer -> float32 (B, P, D)."""
    position_names: dict[str, list[str]] = field(default_factory=dict)
    token_norms: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    """tap -> layer -> float32 (B, V), norms of the vision tokens in their order, NaN past an image's own."""
    broken: dict[int, str] = field(default_factory=dict)
    """Row of the batch -> where its states are not finite."""


@dataclass(frozen=True)
class _Group:
    """One group's mask at a tap point, with what follows from it alone and is shared by all layers that have it."""

    mask: Bool[Tensor, "B N"]
    counts: Int64[Tensor, " B"]
    order: Int64[Tensor, "B T"]
    """Places of the group's tokens, T the most that an image has; past an image's own, places of other tokens."""
    present: Bool[Tensor, "B T"]
    """Which of these are the group's."""
    full: bool
    """Whether all are: each image has T."""
    ordinals: Int64[Tensor, "B P"]
    """Which of the group's tokens are kept for probes."""
    before: Int64[Tensor, "B 1"] | None
    """Place of the last token before the group; None where an image begins with the group."""

    def take(self, hidden: Tensor) -> Tensor:
        """The group's tokens, (B, T, D), in the dtype of `hidden` (B, N, D)."""
        if self.full and self.order.shape[1] == hidden.shape[1]:
            return hidden
        return positions.take(hidden, self.order)


@dataclass(frozen=True)
class _Point:
    """Where in the model; holds no tensor, so that a state is freed as soon as it is measured."""

    tap: str
    layer: int


class Recorder:
    """Receives the states of one pass (`Taps(on_state=recorder)`); `finish` gives its record.

    Args:
        config: metrics, kept positions and their seed.
        metrics: names, in the order of `Row.values`.
        quantiles: `positions.vision_quantiles` of the config.
    """

    def __init__(
        self, config: CaptureConfig, metrics: Sequence[str], quantiles: np.ndarray, own_prompts: bool = False
    ) -> None:
        self.own_prompts = own_prompts
        self.config, self.metrics, self.quantiles = config, tuple(metrics), quantiles
        self._groups: dict[int, _Group] = {}
        self._pending: dict[str, list[tuple[_Point, _Group, Tensor]]] = {"vision": [], "text": []}
        self._held = 0
        self._device: torch.device | None = None
        self._n_directions = 0 if ALIGNMENTS.keys().isdisjoint(metrics) else TOP
        self._measured: list[tuple[_Point, str, _Group, Measured]] = []
        self._means: list[tuple[_Point, Tensor]] = []
        self._features: list[tuple[_Point, Tensor]] = []
        self._norms: list[tuple[_Point, Tensor]] = []
        self._names: dict[str, list[str]] = {}

    def __call__(self, state: State) -> None:
        if state.hidden.device != self._device:
            # A model spread over several GPUs: what is measured together lies on one.
            self._measure()
            self._device = state.hidden.device
        point = _Point(state.tap, state.layer)
        parts: list[Tensor] = []
        for group, mask in (("vision", state.vision), ("text", state.text)):
            if mask is None:
                continue
            known = self._group(group, mask)
            tokens = known.take(state.hidden)
            self._pending[group].append((point, known, tokens))
            self._held += tokens.numel()
            mean = positions.masked_mean(tokens, None if known.full else known.present)
            self._means.append((point, mean))
            if group == "vision" and state.tap in MAP_TAPS:
                norms = torch.linalg.vector_norm(tokens, dim=2, dtype=torch.float32)
                self._norms.append((point, norms if known.full else norms.masked_fill(~known.present, torch.nan)))
            if self.config.keep_features:
                parts += [mean[:, None], positions.take(tokens, known.ordinals).float()]
                if group == "text":
                    parts.append(state.hidden[:, -1:].float())
        if parts and (before := self._before_image(state)) is not None:
            parts.append(positions.take(state.hidden, before).float())
        if parts:
            self._features.append((point, torch.cat(parts, dim=1)))
            self._names.setdefault(state.tap, self._position_names(state))
        if self._held > _HELD[state.hidden.device.type]:
            self._measure()

    def _position_names(self, state: State) -> list[str]:
        n_text = None
        if state.text is not None:
            n_text = self._group("text", state.text).ordinals.shape[1]
        n_vision = None if state.vision is None else len(self.quantiles)
        return positions.position_names(n_vision, n_text, self._before_image(state) is not None)

    def _before_image(self, state: State) -> Tensor | None:
        """Place of the last token before the image, (B, 1), of states that hold image and text."""
        return None if state.vision is None or state.text is None else self._group("vision", state.vision).before

    def _group(self, group: str, mask: Bool[Tensor, "B N"]) -> _Group:
        # Taps give every layer of a pass the same mask object; keeping it here keeps its identity unique.
        known = self._groups.get(id(mask))
        if known is None:
            counts = mask.sum(1)
            most = int(counts.max())
            order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :most]
            present = torch.arange(most, device=mask.device) < counts[:, None]
            if group == "vision":
                ordinals = positions.vision_ordinals(self.quantiles, counts)
            else:
                # Counts are equal in a batch. With one prompt a stage no token is kept twice; where images have prompts
                # of their own, short ones repeat tokens, so that all images keep the same positions.
                n_kept = self.config.n_text_positions
                ordinals = positions.text_ordinals(n_kept if self.own_prompts else min(n_kept, most), counts)
            before = order[:, :1] - 1
            known = self._groups[id(mask)] = _Group(
                mask,
                counts,
                order,
                present,
                int(counts.min()) == most,
                ordinals,
                before if before.numel() and int(before.min()) >= 0 else None,
            )
        return known

    def _measure(self) -> None:
        for group, pending in self._pending.items():
            states = [(tokens, known.present) for _, known, tokens in pending]
            found = measure_layers(states, self.metrics, self._n_directions)
            for (point, known, _), measured in zip(pending, found, strict=True):
                self._measured.append((point, group, known, measured))
            pending.clear()
        self._held = 0

    def finish(self) -> PassRecord:
        """Measure what is left and bring everything to the CPU."""
        self._measure()
        record = PassRecord(position_names=self._names)
        directions = {
            (point.tap, point.layer, group): measured.directions
            for point, group, _, measured in self._measured
            if measured.directions is not None
        }
        aligned = align_layers(directions)
        for point, group, known, measured in self._measured:
            columns = measured.values | aligned.get((point.tap, point.layer, group), {})
            values = torch.stack([columns[name] for name in self.metrics])
            record.rows.append(Row(point.tap, point.layer, group, known.counts.cpu().numpy(), values.cpu().numpy()))
        for point, mean in self._means:
            for row in (~mean.isfinite().all(1)).nonzero()[:, 0].tolist():
                record.broken.setdefault(row, f"states are not finite at {point.tap} layer {point.layer}")
        for point, kept in self._features:
            record.features.setdefault(point.tap, {})[point.layer] = kept.cpu().numpy()
        for point, norms in self._norms:
            record.token_norms.setdefault(point.tap, {})[point.layer] = norms.cpu().numpy()
        return record
