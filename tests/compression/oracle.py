"""Every metric written out from its definition in float64, with `numpy.linalg.svd`; slow and plain on purpose."""

import numpy as np

from orchestrator.compression.entries import MASSIVE_RATIO
from orchestrator.compression.registry import METRICS


def needed(energies: np.ndarray) -> int:
    """Entries, from the largest, that hold 90 % (with the tolerance for ties that any rounding needs)."""
    ordered = np.sort(energies)[::-1]
    return int(np.argmax(np.cumsum(ordered) >= 0.9 * ordered.sum() * (1 - 1e-6)) + 1)


def entropy_number(weights: np.ndarray) -> float:
    p = weights[weights > 0] / weights.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def is_massive(tokens: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(tokens, axis=1)
    some = np.sort(norms[norms > 0])
    return norms > MASSIVE_RATIO * some[(len(some) - 1) // 2] if len(some) else np.zeros(len(norms), bool)


def base_metric(name: str, tokens: np.ndarray) -> float:
    n = len(tokens)
    norms = np.linalg.norm(tokens, axis=1)
    if name == "massive_share":
        return float(is_massive(tokens).mean())
    if name == "mean_cosine":
        units = tokens[norms > 0] / norms[norms > 0, None]
        m = len(units)
        return float((units @ units.T).sum() - m) / (m * (m - 1)) if m > 1 else np.nan
    if not (norms > 0).any():
        return np.nan
    energies = norms**2
    sigma = np.linalg.svd(tokens, compute_uv=False)
    sigma[sigma < 1e-9 * sigma[0]] = 0
    if name == "gini":
        return float(np.abs(norms[:, None] - norms[None]).sum() / (2 * n * norms.sum()))
    if name == "hoyer":
        return float((np.sqrt(n) - norms.sum() / np.sqrt(energies.sum())) / (np.sqrt(n) - 1)) if n > 1 else np.nan
    return {
        "participation_ratio": lambda: energies.sum() ** 2 / (energies**2).sum(),
        "participation_ratio_share": lambda: energies.sum() ** 2 / (energies**2).sum() / n,
        "norm_entropy": lambda: entropy_number(energies) / n,
        "tokens_90": lambda: needed(energies) / n,
        "stable_rank": lambda: (sigma**2).sum() / sigma[0] ** 2,
        "effective_rank": lambda: entropy_number(sigma),
        "spectral_participation": lambda: (sigma**2).sum() ** 2 / (sigma**4).sum(),
        "rank_90": lambda: float(needed(sigma**2)),
    }[name]()


def metric(name: str, tokens: np.ndarray) -> float:
    """One metric of one set of tokens (N, D), float64."""
    entry = METRICS[name]
    tokens = np.asarray(tokens, np.float64)
    if not len(tokens):
        return np.nan
    if entry.trimmed:
        tokens = tokens[~is_massive(tokens)]
    if entry.centred:
        spread = tokens - tokens.mean(0)
        tokens = spread if np.linalg.norm(spread) > 1e-9 * np.linalg.norm(tokens) else np.zeros_like(tokens)
    return base_metric(entry.base, tokens)
