"""Compression metrics of hidden states. `B` images, `N` tokens, `D` width, `R` rows (images of all layers together).

    compute(hidden, mask)                    one layer
    measure(hidden, counts, names)           rows of all layers of a pass at once; called by the recorder

Three classes of cost (`Metric.needs`): norms need one pass over the tokens; Gram metrics need one Gram matrix
(`gram.py`), of which trace, Frobenius norm and a leading block are used (`leading.py`); metrics of the full spectrum
need all eigenvalues (`spectrum.py`) or an estimate (`estimate.py`). CPU and GPU share the code. On a GPU only the exact
spectrum has data-dependent control flow, so that nothing else synchronizes; the remaining small problems are solved on
the host (`finish.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from orchestrator.compression import finish
from orchestrator.compression import norms as on_norms
from orchestrator.compression.declaration import Metric
from orchestrator.compression.gram import Variant
from orchestrator.compression.halves import LEAN
from orchestrator.compression.leading import Leading
from orchestrator.compression.registry import ALIGNMENTS, METRICS, check_names, default_names, load_user_metric
from orchestrator.compression.shared import Shared, gather_tokens, may_be

CHUNK = {"cpu": 2**22, "cuda": 2**30}
"""Elements of hidden state measured at once: about the caches on a CPU, all layers of a 7B pass on a GPU."""
BYTES_AN_ELEMENT = 14
"""Bytes per element of state that metrics need on a GPU: float32 differences, their halves, Gram matrices."""


NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gini": on_norms.gini,
    "participation_ratio": lambda a, _: on_norms.participation(a.square()),
    "participation_ratio_share": lambda a, n: on_norms.participation(a.square()) / n,
    "norm_entropy": lambda a, n: on_norms.entropy_number(a.square()) / n,
    "hoyer": on_norms.hoyer,
    "tokens_90": lambda a, n: on_norms.share_needed(a.square()) / n,
}
"""Norm metrics of sorted norms and their number."""

SPECTRAL: dict[str, Callable[[Shared, Variant], Tensor]] = {
    "effective_rank": lambda s, v: on_norms.entropy_number(s.spectrum(*v).sqrt()),
    "rank_90": lambda s, v: on_norms.share_needed(s.spectrum(*v)),
    "effective_rank_estimate": lambda s, v: s.estimate(v).effective_rank,
    "effective_rank_estimate_se": lambda s, v: s.estimate(v).effective_rank_se,
    "rank_90_estimate": lambda s, v: s.estimate(v).rank_90,
    "rank_90_estimate_se": lambda s, v: s.estimate(v).rank_90_se,
}
"""Metrics of all singular values."""

FROM_BLOCK = ("stable_rank", "spectral_participation")
"""Metrics of trace, Frobenius norm and largest eigenvalue, computed on the host."""


@dataclass
class Launched:
    """Metrics of R rows, launched on their device and not synchronized.

    Attributes:
        columns: metrics computed on the device, (R,) each.
        leading: input of `finish` for the other metrics, by variant.
    """

    n_rows: int
    columns: dict[str, Tensor] = field(default_factory=dict)
    leading: dict[Variant, Leading] = field(default_factory=dict)


@torch.no_grad()
def measure(
    hidden: Float[Tensor, "R N D"], counts: Int64[Tensor, " R"], names: Sequence[str], *, full: bool = False
) -> Launched:
    """Launch the metrics of some rows; only the exact spectrum synchronizes.

    Args:
        hidden: states of any floating dtype; each row's tokens come first, then finite padding.
        counts: number of tokens of each row.
        names: metric names. An alignment adds the leading block of its variant.
        full: all rows are known to have N tokens.

    Returns:
        Rows with non-finite states have NaN in every column.
    """
    rows = max(1, _elements_at_once(hidden.device) // max(1, hidden.shape[1] * hidden.shape[2]))
    n_parts = max(1, -(-len(hidden) // rows))  # of equal size
    parts = [
        _measure(some, n, names, full)
        for some, n in zip(hidden.tensor_split(n_parts), counts.tensor_split(n_parts), strict=True)
    ]
    return parts[0] if n_parts == 1 else _join(parts)


def _elements_at_once(device: torch.device) -> int:
    limit = CHUNK.get(device.type, CHUNK["cuda"])
    if device.type != "cuda" or not torch.cuda.is_available():
        return limit
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    return min(limit, free // (2 * BYTES_AN_ELEMENT))


def _measure(hidden: Tensor, counts: Tensor, names: Sequence[str], full: bool) -> Launched:
    builtin = [METRICS[name] for name in names if name in METRICS]
    exact = any(m.needs == "spectrum" for m in builtin)
    # A GPU reads states in their own dtype; no step fails on non-finite values, and rows are independent.
    lean = hidden.device.type in LEAN
    states = hidden if lean and hidden.dtype in (torch.bfloat16, torch.float16) else hidden.float()
    tokens = Shared(states, counts, exact=exact, full=full)
    finite = tokens.norms.isfinite().all(1)
    if not lean and may_be(~finite):
        tokens = Shared(states.where(finite[:, None, None], 0.0), counts, exact=exact, full=full)
    launched = Launched(len(hidden))
    variants = [Variant(m.centred, m.trimmed) for m in builtin if m.base in FROM_BLOCK or m.name in ALIGNMENTS]
    plain: dict[tuple[str, Variant], Tensor] = {}
    for metric in builtin:
        variant = Variant(metric.centred, metric.trimmed)
        if metric.base in FROM_BLOCK or metric.name in ALIGNMENTS:
            launched.leading[variant] = tokens.leading(variant, variants)
            continue
        key = (metric.base, variant if tokens.trims else Variant(metric.centred))
        if key not in plain:
            plain[key] = _column(tokens, metric, variant).float().masked_fill(~finite, torch.nan)
        launched.columns[metric.name] = plain[key]
    for name in names:
        if name not in METRICS:
            values = load_user_metric(name).function(tokens.hidden, tokens.mask, tokens)
            launched.columns[name] = values.float().masked_fill(~finite | (counts == 0), torch.nan)
    # variants that are the same matrices stay one object: later steps do their work once
    distinct = {id(leading): leading for leading in launched.leading.values()}
    cleaned = {
        key: Leading(leading.trace.masked_fill(~finite, torch.nan), *_fields(leading)[1:])
        for key, leading in distinct.items()
    }
    launched.leading = {v: cleaned[id(leading)] for v, leading in launched.leading.items()}
    return launched


def _column(tokens: Shared, metric: Metric, variant: Variant) -> Tensor:
    if metric.base in NORMS:
        return NORMS[metric.base](*tokens.sizes(variant))
    if metric.base in SPECTRAL:
        return SPECTRAL[metric.base](tokens, variant)
    if metric.base == "massive_share":
        return tokens.massive.sum(1) / tokens.counts
    return tokens.mean_cosine(variant)


def _fields(leading: Leading) -> tuple[Tensor, ...]:
    return leading.trace, leading.frobenius, leading.ritz, leading.metric, leading.basis


def _join(parts: Sequence[Launched]) -> Launched:
    first = parts[0]
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in first.columns}
    joined: dict[tuple[int, ...], Leading] = {}
    leading = {}
    for v in first.leading:
        some = [part.leading[v] for part in parts]
        key = tuple(id(one) for one in some)
        if key not in joined:
            joined[key] = Leading(*(torch.cat(fields) for fields in zip(*map(_fields, some), strict=True)))
        leading[v] = joined[key]
    return Launched(sum(part.n_rows for part in parts), columns, leading)


def split(launched: Launched, sizes: Sequence[int]) -> list[Launched]:
    """The metrics of each of some sets of rows that were measured together."""
    columns = {name: column.split(sizes) for name, column in launched.columns.items()}
    distinct = {id(leading): leading for leading in launched.leading.values()}
    fields = {key: [field.split(sizes) for field in _fields(leading)] for key, leading in distinct.items()}
    parts = []
    for k, n in enumerate(sizes):
        leading = {key: Leading(*(field[k] for field in some)) for key, some in fields.items()}
        by_variant = {v: leading[id(one)] for v, one in launched.leading.items()}
        parts.append(Launched(n, {name: some[k] for name, some in columns.items()}, by_variant))
    return parts


def from_blocks(
    names: Iterable[str],
    traces: dict[Variant, np.ndarray],
    norms: dict[Variant, np.ndarray],
    blocks: dict[Variant, finish.Ritz],
) -> dict[str, Float64[np.ndarray, " R"]]:
    """The metrics among `names` that are computed on the host, (R,) each.

    Args:
        traces, norms: trace and Frobenius norm of each variant's Gram matrix, (R,).
        blocks: the solved leading block of each variant.
    """
    columns = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for name in names:
            metric = METRICS.get(name)
            if metric is None or metric.base not in FROM_BLOCK:
                continue
            variant = Variant(metric.centred, metric.trimmed)
            trace = traces[variant].astype(np.float64)
            if metric.base == "stable_rank":
                columns[name] = trace / blocks[variant].values[:, 0]
            else:
                columns[name] = (trace / norms[variant].astype(np.float64)) ** 2
    return columns


# ---------------------------------------------------------------- one layer


def compute(
    hidden: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"], names: Iterable[str] | None = None
) -> dict[str, Float32[Tensor, " B"]]:
    """Metrics of one layer's tokens, one group.

    Args:
        hidden: token states of any floating dtype; cast to float32 first.
        mask: tokens of the group; the number may differ between rows.
        names: metric names (`registry.METRICS`, or those of installed packages); the default set when None.
            Alignments, which compare two sets of tokens, are skipped.

    Returns:
        (B,) float32 per metric, on the device of `hidden`. NaN where a metric is undefined: no tokens or no energy,
        non-finite states, one token (hoyer, mean_cosine, centred variants), equal tokens (centred variants).
        `hidden` is not changed, and no graph is kept.

    Raises:
        ConfigError: unknown metric, or shapes that do not fit.
    """
    requested = default_names() if names is None else check_names(names)
    chosen = tuple(name for name in requested if name not in ALIGNMENTS)
    with torch.no_grad():
        tokens, counts, full = gather_tokens(hidden, mask)
        launched = measure(tokens, counts, chosen, full=full)
    host = {v: [t.cpu().numpy() for t in _fields(leading)[:4]] for v, leading in launched.leading.items()}
    finished = from_blocks(
        chosen,
        {v: arrays[0] for v, arrays in host.items()},
        {v: arrays[1] for v, arrays in host.items()},
        {v: finish.solve(arrays[2], arrays[3]) for v, arrays in host.items()},
    )
    columns = launched.columns | {
        name: torch.from_numpy(values).float().to(hidden.device) for name, values in finished.items()
    }
    return {name: columns[name] for name in chosen}
