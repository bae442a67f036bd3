"""What is kept of one forward pass: compression metrics and a few tokens' states, taken while the model runs.

Letters: B images, N tokens, D width, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from orchestrator.capture import positions
from orchestrator.capture.taps import State
from orchestrator.compression.metrics import compute_layers
from orchestrator.config import CaptureConfig

_HELD = {"cpu": 2**20, "cuda": 2**28}
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
    counts: Tensor
    ordinals: Tensor


class Recorder:
    """Receives the states of one pass (`Taps(on_state=recorder)`); `finish` gives its record.

    Args:
        config: metrics, kept positions and their seed.
        metrics: names, in the order of `Row.values`.
        quantiles: `positions.vision_quantiles` of the config.
    """

    def __init__(self, config: CaptureConfig, metrics: Sequence[str], quantiles: np.ndarray) -> None:
        self.config, self.metrics, self.quantiles = config, tuple(metrics), quantiles
        self._groups: dict[int, _Group] = {}
        self._pending: dict[str, list[tuple[State, _Group]]] = {"vision": [], "text": []}
        self._held = 0
        self._device: torch.device | None = None
        self._measured: list[tuple[State, str, _Group, Tensor]] = []
        self._means: list[tuple[State, Tensor]] = []
        self._features: list[tuple[State, Tensor]] = []
        self._norms: list[tuple[State, Tensor]] = []
        self._names: dict[str, list[str]] = {}

    def __call__(self, state: State) -> None:
        if state.hidden.device != self._device:
            # A model spread over several GPUs: what is measured together lies on one.
            self._measure()
            self._device = state.hidden.device
        parts = []
        if state.tap in MAP_TAPS and state.vision is not None:
            self._norms.append((_without_hidden(state), vision_norms(state.hidden, state.vision)))
        for group, mask in (("vision", state.vision), ("text", state.text)):
            if mask is None:
                continue
            known = self._group(group, mask)
            self._pending[group].append((state, known))
            mean = positions.masked_mean(state.hidden, mask)
            self._means.append((state, mean))
            if self.config.keep_features:
                parts += [mean[:, None], positions.take(state.hidden, mask, known.ordinals)]
                if group == "text":
                    parts.append(state.hidden[:, -1:].float())
        if parts:
            self._features.append((state, torch.cat(parts, dim=1)))
            self._names.setdefault(state.tap, self._position_names(state))
        self._held += state.hidden.numel()
        if self._held > _HELD[state.hidden.device.type]:
            self._measure()

    def _position_names(self, state: State) -> list[str]:
        n_text = None
        if state.text is not None:
            n_text = self._group("text", state.text).ordinals.shape[1]
        return positions.position_names(None if state.vision is None else len(self.quantiles), n_text)

    def _group(self, group: str, mask: Bool[Tensor, "B N"]) -> _Group:
        # Taps give every layer of a pass the same mask object; keeping it here keeps its identity unique.
        known = self._groups.get(id(mask))
        if known is None:
            counts = mask.sum(1)
            if group == "vision":
                ordinals = positions.vision_ordinals(self.quantiles, counts)
            else:
                # The prompt is one and the same for all images of a stage, so all counts are equal.
                n = min(self.config.n_text_positions, int(counts.max()))
                ordinals = positions.text_ordinals(n, counts)
            known = self._groups[id(mask)] = _Group(mask, counts, ordinals)
        return known

    def _measure(self) -> None:
        for group, pending in self._pending.items():
            found = compute_layers([(state.hidden, known.mask) for state, known in pending], self.metrics)
            for (state, known), values in zip(pending, found, strict=True):
                stacked = torch.stack([values[name] for name in self.metrics])
                self._measured.append((_without_hidden(state), group, known, stacked))
            pending.clear()
        self._held = 0

    def finish(self) -> PassRecord:
        """Measure what is left and bring everything to the CPU."""
        self._measure()
        record = PassRecord(position_names=self._names)
        for state, group, known, values in self._measured:
            counts = known.counts.cpu().numpy()
            record.rows.append(Row(state.tap, state.layer, group, counts, values.cpu().numpy()))
        for state, mean in self._means:
            for row in (~mean.isfinite().all(1)).nonzero()[:, 0].tolist():
                record.broken.setdefault(row, f"states are not finite at {state.tap} layer {state.layer}")
        for state, kept in self._features:
            record.features.setdefault(state.tap, {})[state.layer] = kept.cpu().numpy()
        for state, norms in self._norms:
            record.token_norms.setdefault(state.tap, {})[state.layer] = norms.cpu().numpy()
        return record


def vision_norms(hidden: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float32[Tensor, "B V"]:
    """Norm of each vision token, in order, NaN past an image's own."""
    norms = torch.linalg.vector_norm(hidden, dim=2, dtype=torch.float32)
    return torch.nn.utils.rnn.pad_sequence(
        [row[kept] for row, kept in zip(norms, mask, strict=True)], batch_first=True, padding_value=torch.nan
    )


def _without_hidden(state: State) -> State:
    """The state's place alone, so that its tensor can be freed."""
    nothing: Float[Tensor, "B N D"] = state.hidden[:, :0]
    return State(state.tap, state.layer, nothing.clone(), None, None)
