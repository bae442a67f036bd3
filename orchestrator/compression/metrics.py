"""Compression metrics of hidden states. `B` images, `N` tokens, `D` width, `R` rows (images of all layers together).

    compute(hidden, mask)                    one layer, as a forward hook calls it
    compute_layers([(hidden, mask), ...])    many layers at once: their eigenproblems go in one batch (best on a GPU)

Norms, the mean token and one Gram matrix are shared by all metrics; see `spectrum.py` for precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from orchestrator.compression import norms as on_norms
from orchestrator.compression.registry import ALIGNMENTS, METRICS, check_names, load_user_metric
from orchestrator.compression.spectrum import Spectrum
from orchestrator.errors import ConfigError

_CHUNK = {"cpu": 2**22, "cuda": 2**28}
"""Elements of hidden state handled at once: on a CPU a pass of small models, on a GPU all layers of a 7B model."""
_ROUNDING = 2e-6
"""Centred tokens of less than this share of the raw norm are rounding noise of the subtraction, taken as zero."""


class Shared:
    """Tokens of some rows and what metrics share of them, each computed once when first asked for.

    Attributes:
        hidden: (R, N, D) float32, the tokens of each row first, zeros after them.
        mask: (R, N) bool, where tokens are.
        counts: (R,) int64, tokens of each row.
    """

    def __init__(self, hidden: Float32[Tensor, "R N D"], counts: Int64[Tensor, " R"]) -> None:
        self.hidden = hidden
        self.counts = counts
        self.mask = torch.arange(hidden.shape[1], device=hidden.device) < counts[:, None]
        self.full = bool(self.mask.all())

    @cached_property
    def norms(self) -> Float32[Tensor, "R N"]:
        """Token norms a_n, zero at padding."""
        return torch.linalg.vector_norm(self.hidden, dim=2)

    @cached_property
    def sorted_norms(self) -> Float64[Tensor, "R N"]:
        """Token norms from large to small, float64."""
        return self.norms.double().sort(1, descending=True).values

    @cached_property
    def energies(self) -> Float64[Tensor, "R N"]:
        """Token energies e_n = a_n^2 from large to small, float64."""
        return self.sorted_norms.square()

    @cached_property
    def _mean_and_direction(self) -> Tensor:
        """(R, 2, D): the mean token and the sum of unit tokens, from one pass."""
        weights = torch.stack([self.mask / self.counts[:, None].clamp(min=1), self.inverse_norms(self.norms)], 1)
        return weights @ self.hidden

    @property
    def mean(self) -> Float32[Tensor, "R D"]:
        """The mean token mu."""
        return self._mean_and_direction[:, 0]

    @cached_property
    def _centred_and_norms(self) -> tuple[Tensor, Tensor]:
        centred = self.hidden - self.mean[:, None]
        if not self.full:
            centred *= self.mask[..., None]
        norms = torch.linalg.vector_norm(centred, dim=2)
        equal = torch.linalg.vector_norm(norms, dim=1) <= _ROUNDING * torch.linalg.vector_norm(self.norms, dim=1)
        if equal.any():
            centred[equal], norms[equal] = 0.0, 0.0
        return centred, norms

    @property
    def centred(self) -> Float32[Tensor, "R N D"]:
        """Tokens minus their mean; zeros at padding, and in rows whose tokens are equal but for rounding."""
        return self._centred_and_norms[0]

    def spectrum(self, centred: bool = False) -> Float64[Tensor, "R K"]:
        """Squared singular values sigma_i^2 from large to small, K = min(N, D)."""
        return self._spectrum.eigenvalues[int(centred)]

    def top_directions(self, k: int = 5) -> Float32[Tensor, "R D k"]:
        """Right singular vectors of the k largest singular values; zero columns beyond the rank."""
        if self.hidden.shape[1] == 0:
            return self.hidden.new_zeros(len(self.hidden), self.hidden.shape[2], k)
        return self._spectrum.top_directions(k)

    @cached_property
    def _spectrum(self) -> Spectrum:
        return Spectrum(self.centred, self.mean, self.counts)

    def mean_cosine(self, centred: bool = False) -> Float64[Tensor, " R"]:
        """Mean cosine over pairs of tokens that have a norm; NaN where fewer than two have."""
        if centred:
            inverse = self.inverse_norms(self._centred_and_norms[1], _ROUNDING * self.norms)
            direction = (inverse[:, None] @ self.centred)[:, 0]
        else:
            inverse, direction = self.inverse_norms(self.norms), self._mean_and_direction[:, 1]
        n = (inverse > 0).sum(1).double()
        return ((direction.double().square().sum(1) - n) / (n * (n - 1))).where(n > 1, torch.nan)

    def without_massive(self) -> tuple[Int64[Tensor, " M"], Shared | None]:
        """Rows that have massive tokens, and the tokens of these rows without them."""
        rows = self.massive.any(1).nonzero()[:, 0]
        if not len(rows):
            return rows, None
        return rows, gather_tokens(self.hidden[rows], (self.mask & ~self.massive)[rows])

    @cached_property
    def massive(self) -> Bool[Tensor, "R N"]:
        """Which tokens are massive (`registry.MASSIVE_RATIO`)."""
        return on_norms.massive_tokens(self.norms.double(), self.sorted_norms)

    @staticmethod
    def inverse_norms(norms: Tensor, floor: Tensor | float = 0.0) -> Tensor:
        """1 / norm, and zero where the norm does not exceed `floor`."""
        return torch.where(norms > floor, norms.reciprocal(), 0.0)


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


def gather_tokens(hidden: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Shared:
    """The masked tokens of each row moved to the front, as float32, with no more places than the longest row needs."""
    if hidden.shape[:2] != mask.shape:
        raise ConfigError(
            f"mask has shape {tuple(mask.shape)}; expected {tuple(hidden.shape[:2])} as the hidden states"
        )
    counts = mask.sum(1)
    fewest, most = (int(c) for c in counts.aminmax()) if len(counts) else (0, 0)
    if fewest == mask.shape[1]:
        return Shared(hidden.float(), counts)
    tokens = hidden.flatten(0, 1).index_select(0, mask.flatten().nonzero()[:, 0]).float()
    if fewest == most:
        return Shared(tokens.view(len(counts), most, hidden.shape[2]), counts)
    packed = tokens.new_zeros(len(counts), most, hidden.shape[2])
    packed[torch.arange(most, device=mask.device) < counts[:, None]] = tokens
    return Shared(packed, counts)


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
