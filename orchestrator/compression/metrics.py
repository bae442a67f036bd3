"""Compression metrics of hidden states. `B` images, `N` tokens, `D` width, `R` rows (images of all layers together).

    compute(hidden, mask)                    one layer, as a forward hook calls it
    compute_layers([(hidden, mask), ...])    many layers at once: their eigenproblems go in one batch (best on a GPU)

Norms, the mean token and one Gram matrix are shared by all metrics; see `spectrum.py` for precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from orchestrator.compression import norms as on_norms
from orchestrator.compression.entries import ALIGNMENTS
from orchestrator.compression.registry import METRICS, check_names, load_user_metric
from orchestrator.compression.shared import Shared, gather_tokens

_CHUNK = {"cpu": 2**22, "cuda": 2**28}
"""Elements of hidden state handled at once: on a CPU a pass of small models, on a GPU all layers of a 7B model."""

FUNCTIONS: dict[str, Callable[[Shared, bool], Tensor]] = {
    "gini": lambda s, _: on_norms.gini(s.sorted_norms, s.counts),
    "participation_ratio": lambda s, _: on_norms.participation(s.energies),
    "participation_ratio_share": lambda s, _: on_norms.participation(s.energies) / s.counts,
    "norm_entropy": lambda s, _: on_norms.entropy_number(s.energies) / s.counts,
    "hoyer": lambda s, _: on_norms.hoyer(s.sorted_norms, s.counts),
    "tokens_90": lambda s, _: on_norms.share_needed(s.energies) / s.counts,
    "stable_rank": lambda s, centred: s.spectrum(centred).sum(1) / s.spectrum(centred)[:, 0],
    "effective_rank": lambda s, centred: on_norms.entropy_number(s.spectrum(centred).sqrt()),
    "spectral_participation": lambda s, centred: on_norms.participation(s.spectrum(centred)),
    "rank_90": lambda s, centred: on_norms.share_needed(s.spectrum(centred)),
    "mean_cosine": lambda s, centred: s.mean_cosine(centred),
    "massive_share": lambda s, _: s.massive.sum(1) / s.counts,
}
"""How each base metric is computed from what is shared; the flag asks for the centred variant."""


def compute(
    hidden: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"], names: Iterable[str] | None = None
) -> dict[str, Float32[Tensor, " B"]]:
    """Metrics of one layer's tokens, one group.

    Args:
        hidden: token states of any floating dtype; cast to float32 first.
        mask: which tokens belong to the group. Rows may differ in number.
        names: metric names (`registry.METRICS`, or those of installed packages); all when None. Alignments, which
            compare two sets of tokens, are passed over.

    Returns:
        float32 values by name on the device of `hidden`. NaN where a metric is undefined: no token, no energy, a
        state that is not finite, a single token (`hoyer`, `mean_cosine`), or equal tokens (centred variants).

    Raises:
        ConfigError: an unknown name.
    """
    return compute_layers([(hidden, mask)], names)[0]


def compute_layers(
    states: Sequence[tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]], names: Iterable[str] | None = None
) -> list[dict[str, Float32[Tensor, " B"]]]:
    """Metrics of several layers (taps, groups): the same values as `compute` on each, in as few batches as fit."""
    return [measured.values for measured in measure_layers(states, names)]


@dataclass(frozen=True)
class Measured:
    """One state's metrics by name, (B,) float32 each, and its leading directions (B, D, k) float32 if asked for."""

    values: dict[str, Tensor]
    directions: Tensor | None


@torch.no_grad()
def measure_layers(
    states: Sequence[tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]],
    names: Iterable[str] | None = None,
    n_directions: int = 0,
) -> list[Measured]:
    """`compute_layers` that also gives the `n_directions` leading right singular vectors from the same reduction.

    They are what `alignment.align_layers` compares. Rows without that many directions have zero columns. Names of
    alignments are passed over: they are of two sets of tokens.
    """
    chosen = tuple(name for name in check_names(names) if name not in ALIGNMENTS)
    parts: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in states]
    for batch in _batches(states):
        tokens = _stack([tokens for _, tokens in batch])
        sizes = [len(tokens.counts) for _, tokens in batch]
        finite = tokens.norms.isfinite().all(1)
        if not finite.all():
            tokens = Shared(tokens.hidden.where(finite[:, None, None], 0.0), tokens.counts)
        values = _values(tokens, chosen)
        table = (
            torch.stack([values[name].float() for name in chosen]) if chosen else tokens.norms.new_empty(0, len(finite))
        )
        directions = tokens.top_directions(n_directions).split(sizes) if n_directions else [None] * len(batch)
        columns = table.where(finite, torch.nan).split(sizes, dim=1)
        for k, (state, _) in enumerate(batch):
            parts[state].append((columns[k], directions[k]))
    return [
        Measured(
            dict(zip(chosen, torch.cat([columns for columns, _ in of_state], dim=1).unbind(), strict=True)),
            torch.cat([d for _, d in of_state if d is not None]) if n_directions else None,
        )
        for of_state in parts
    ]


def _batches(states: Sequence[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[int, Shared]]]:
    """Runs of (state, tokens of some of its rows) of one width and one number of places, of about `_CHUNK` elements."""
    open_batches: dict[tuple[int, ...], list[tuple[int, Shared]]] = {}
    for i, (hidden, mask) in enumerate(states):
        limit = _CHUNK[hidden.device.type]
        most = int(mask.sum(1).max()) if len(mask) else 0
        rows = max(1, limit // max(1, most * hidden.shape[2]))
        n_parts = max(1, -(-len(mask) // rows))  # of even size: kernels work on many rows at once
        for some, present in zip(hidden.tensor_split(n_parts), mask.tensor_split(n_parts), strict=True):
            tokens = gather_tokens(some, present)
            batch = open_batches.setdefault(tokens.hidden.shape[1:], [])
            if batch and sum(len(t.counts) for _, t in batch) + len(tokens.counts) > rows:
                yield batch
                batch = open_batches[tokens.hidden.shape[1:]] = []
            batch.append((i, tokens))
    yield from open_batches.values()


def _stack(parts: Sequence[Shared]) -> Shared:
    if len(parts) == 1:
        return parts[0]
    return Shared(torch.cat([part.hidden for part in parts]), torch.cat([part.counts for part in parts]))


def _values(tokens: Shared, names: Sequence[str]) -> dict[str, Tensor]:
    """Each named metric of each row, (R,)."""
    if tokens.hidden.shape[1] == 0:
        return {name: torch.full_like(tokens.counts, torch.nan, dtype=torch.float32) for name in names}
    builtin = [METRICS[name] for name in names if name in METRICS]
    rows, trimmed = tokens.without_massive() if any(m.trimmed for m in builtin) else (tokens.counts[:0], None)
    values: dict[str, Tensor] = {}
    plain: dict[tuple[str, bool], Tensor] = {}
    for metric in builtin:
        key = (metric.base, metric.centred)
        if key not in plain:
            plain[key] = FUNCTIONS[metric.base](tokens, metric.centred)
        values[metric.name] = plain[key]
        if metric.trimmed and trimmed is not None:
            values[metric.name] = plain[key].index_copy(0, rows, FUNCTIONS[metric.base](trimmed, metric.centred))
    for name in names:
        if name not in METRICS:
            values[name] = load_user_metric(name).function(tokens.hidden, tokens.mask, tokens)
    return values
