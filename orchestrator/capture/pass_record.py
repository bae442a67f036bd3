"""Results of one forward pass: one device-to-host copy, then the small eigenproblems that are solved on the host.

Shapes: B images, L layers of a tap measured together, M metrics, P positions, D width, V vision tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.compression import finish
from orchestrator.compression.gram import Variant
from orchestrator.compression.metrics import from_blocks
from orchestrator.compression.registry import ALIGNMENTS, METRICS


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
    """All results of one pass, on the CPU."""

    rows: list[Row] = field(default_factory=list)
    features: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    """tap -> layer -> float32 (B, P, D)."""
    position_names: dict[str, list[str]] = field(default_factory=dict)
    token_norms: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    """tap -> layer -> float32 (B, V), norms of the vision tokens in sequence order, NaN as padding."""
    broken: dict[int, str] = field(default_factory=dict)
    """Batch row -> tap and layer at which its states are not finite."""


class Outbound:
    """Device-to-host transfer of the tensors of one pass.

    On a GPU all tensors of a device are concatenated and copied once, into pinned memory and on a separate stream, so
    that the copy overlaps with the next pass. On a CPU nothing is copied.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}
        self._arrays: list[np.ndarray] = []
        self._events: list[Any] = []
        self._hosts: list[tuple[list[int], Tensor]] = []

    def add(self, tensor: Tensor) -> int:
        """Add a tensor to the transfer, once; returns the number by which `get` finds it."""
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self._tensors)
            self._tensors.append(tensor)
        return self._numbers[id(tensor)]

    def send(self) -> None:
        """Start the copies; no tensor may be added afterwards."""
        by_device: dict[torch.device, list[int]] = {}
        for number, tensor in enumerate(self._tensors):
            by_device.setdefault(tensor.device, []).append(number)
        for device, numbers in by_device.items():
            if device.type != "cuda":
                continue
            flat = torch.cat([self._tensors[number].float().flatten() for number in numbers])
            host = _pinned(len(flat))
            if _is_real(flat):
                stream = _copy_stream(device)
                stream.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(stream):
                    host.copy_(flat, non_blocking=True)
                    flat.record_stream(stream)
                    self._events.append(stream.record_event())
            else:
                host.copy_(flat, non_blocking=True)
            self._hosts.append((numbers, host))

    def wait(self) -> None:
        """Wait for the copies only (not for the device), and free the device tensors."""
        for event in self._events:
            event.synchronize()
        arrays: dict[int, np.ndarray] = {}
        for numbers, host in self._hosts:
            sizes = [self._tensors[number].numel() for number in numbers]
            for number, part in zip(numbers, host.split(sizes), strict=True):
                arrays[number] = part.view(self._tensors[number].shape).numpy()
        for number, tensor in enumerate(self._tensors):
            if number not in arrays:
                arrays[number] = tensor.numpy()
        self._arrays = [arrays[number] for number in range(len(self._tensors))]
        self._tensors, self._hosts = [], []

    def get(self, number: int) -> np.ndarray:
        """The tensor of this number, as a host array."""
        return self._arrays[number]


def _is_real(tensor: Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return not isinstance(tensor, FakeTensor)


def _pinned(n: int) -> Tensor:
    # PyTorch's pinned-memory allocator caches blocks: two passes in flight hold two of them.
    return torch.empty(n, dtype=torch.float32, pin_memory=torch.cuda.is_available())


_streams: dict[torch.device, Any] = {}


def _copy_stream(device: torch.device) -> Any:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


@dataclass
class SentLayers:
    """Transfer numbers (`Outbound.add`) of the results of some layers of a tap, measured together; see `Recorder`."""

    tap: str
    layers: list[int]
    counts: dict[str, np.ndarray]
    """group -> (B,)."""
    width: int
    columns: dict[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)
    """group -> metric names, and the number of their values (names, L B)."""
    blocks: dict[tuple[str, Variant], tuple[int, int, int, int]] = field(default_factory=dict)
    """(group, variant) -> traces, Frobenius norms, Ritz matrices, metrics of the bases."""
    with_text: dict[Variant, int] = field(default_factory=dict)
    """Products of the vision and the text bases, (L B, b, b)."""
    with_next: dict[tuple[str, Variant], int] = field(default_factory=dict)
    """Products of each basis with that of the next layer; starts at the layer before the first, if there is one."""
    finite: list[int] = field(default_factory=list)
    """For each group, (L, B): whether all states are finite."""
    features: int | None = None
    norms: int | None = None


@dataclass
class Pending:
    """A pass whose device-to-host copy has been started."""

    outbound: Outbound
    sent: list[SentLayers]
    names: tuple[str, ...]
    position_names: dict[str, list[str]]

    def result(self) -> PassRecord:
        """Wait for the copy, then compute the metrics that are left to the host."""
        self.outbound.wait()
        get = self.outbound.get
        record = PassRecord(position_names=self.position_names)
        previous: dict[tuple[str, str, Variant], finish.Ritz] = {}
        for part in self.sent:
            self._finish(part, record, previous)
            for index, layer in enumerate(part.layers):
                for number in part.finite:
                    for row in np.flatnonzero(get(number)[index] == 0).tolist():
                        record.broken.setdefault(row, f"states are not finite at {part.tap} layer {layer}")
                if part.features is not None:
                    record.features.setdefault(part.tap, {})[layer] = get(part.features)[index]
                if part.norms is not None:
                    record.token_norms.setdefault(part.tap, {})[layer] = get(part.norms)[index]
        return record

    def _finish(
        self, part: SentLayers, record: PassRecord, previous: dict[tuple[str, str, Variant], finish.Ritz]
    ) -> None:
        get = self.outbound.get
        max_ranks = {group: np.tile(counts, len(part.layers)) for group, counts in part.counts.items()}
        distinct: dict[tuple[int, bool], finish.Ritz] = {}  # variants of the same matrices have the same numbers
        solved = {}
        for (group, variant), n in part.blocks.items():
            key = n[2], variant.centred
            if key not in distinct:
                distinct[key] = finish.solve(get(n[2]), get(n[3]), max_ranks[group] - int(variant.centred))
            solved[group, variant] = distinct[key]
        for group, (column_names, number) in part.columns.items():
            n_images = len(part.counts[group])
            variants = {v: n for (g, v), n in part.blocks.items() if g == group}
            columns = dict(zip(column_names, get(number), strict=True))
            columns |= from_blocks(
                self.names,
                {v: get(n[0]) for v, n in variants.items()},
                {v: get(n[1]) for v, n in variants.items()},
                {v: solved[group, v] for v in variants},
            )
            columns |= self._alignments(part, group, solved, record, previous)
            table = np.stack([np.asarray(columns[name], np.float32) for name in self.names])
            table = table.reshape(len(self.names), len(part.layers), n_images)
            for index, layer in enumerate(part.layers):
                record.rows.append(Row(part.tap, layer, group, part.counts[group], table[:, index]))
        for (group, variant), ritz in solved.items():
            previous[part.tap, group, variant] = _rows(ritz, slice(-len(part.counts[group]), None))

    def _alignments(
        self,
        part: SentLayers,
        group: str,
        solved: Mapping[tuple[str, Variant], finish.Ritz],
        record: PassRecord,
        previous: Mapping[tuple[str, str, Variant], finish.Ritz],
    ) -> dict[str, np.ndarray]:
        get = self.outbound.get
        n_images, n_rows = len(part.counts[group]), len(part.counts[group]) * len(part.layers)
        columns: dict[str, np.ndarray] = {}
        for name in self.names:
            if name not in ALIGNMENTS:
                continue
            metric = METRICS[name]
            variant = Variant(metric.centred, metric.trimmed)
            column = columns[name] = np.full(n_rows, np.nan)
            vision, text = (solved.get((side, variant)) for side in ("vision", "text"))
            if metric.base == "top5_alignment_next":
                bases = solved[group, variant]
                earlier = previous.get((part.tap, group, variant))
                preceding = bases if earlier is None else _join(earlier, bases)
                pairs = finish.overlap(
                    _rows(preceding, slice(None, -n_images)),
                    bases if earlier is not None else _rows(bases, slice(n_images, None)),
                    get(part.with_next[group, variant]),
                )
                if earlier is not None:
                    column_index = self.names.index(name)
                    row = next(r for r in reversed(record.rows) if (r.tap, r.group) == (part.tap, group))
                    row.values[column_index] = pairs[:n_images]
                    pairs = pairs[n_images:]
                column[: len(pairs)] = pairs
            elif vision is not None and text is not None:
                if metric.base == "top5_alignment_chance":
                    column[:] = finish.chance(vision, text, part.width)
                else:
                    column[:] = finish.overlap(vision, text, get(part.with_text[variant]))
        return columns


def _rows(ritz: finish.Ritz, rows: slice) -> finish.Ritz:
    return finish.Ritz(ritz.values[rows], ritz.directions[rows], ritz.present[rows])


def _join(first: finish.Ritz, second: finish.Ritz) -> finish.Ritz:
    parts: Sequence[tuple[np.ndarray, np.ndarray]] = [
        (first.values, second.values),
        (first.directions, second.directions),
        (first.present, second.present),
    ]
    return finish.Ritz(*(np.concatenate(pair) for pair in parts))
