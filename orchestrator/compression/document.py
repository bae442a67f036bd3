"""`python -m orchestrator.compression.document`: generates docs/metrics.md and its figures from the registry.

The text is always written; `--pictures` also draws the figures, `--check` only compares and fails on a difference.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from orchestrator.compression.declaration import Metric
from orchestrator.compression.entries import ALIGNMENT_BASES, BASES, MASSIVE_RATIO, MASSIVE_SHARE
from orchestrator.compression.metrics import compute

PAGE = Path("docs/metrics.md")
PICTURES = Path("docs/img")

EXAMPLE = np.array([[6.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 2.0, 2.0], [1.0, 0.0, 1.0]])
"""The worked example's four tokens of width three."""

_STEPS = {
    "gini": "sorted norms 1.414, 2.828, 3, 6 with weights -3, -1, 1, 3, over 4 x 13.243",
    "participation_ratio": "energies 36, 9, 8, 2: 55^2 / (1296 + 81 + 64 + 4)",
    "participation_ratio_share": "the participation ratio 2.093 over 4 tokens",
    "norm_entropy": "p = 0.655, 0.164, 0.145, 0.036; entropy 0.974; exp 0.974 = 2.649, over 4 tokens",
    "hoyer": "(2 - 13.243 / 7.416) / (2 - 1)",
    "tokens_90": "36 + 9 = 45 is below 49.5; 36 + 9 + 8 = 53 is not: 3 of 4 tokens",
    "stable_rank": "sigma^2 = {sigma2}; 55 over the largest",
    "effective_rank": "sigma = {sigma}; exp of the entropy of their shares",
    "spectral_participation": "55^2 over the sum of squares of {sigma2}",
    "rank_90": "the running sum of {sigma2} reaches 49.5",
    "mean_cosine": "the six pairs' cosines: {cosines}",
    "massive_share": "the median norm is 2.828 (the lower of the middle two), and no norm exceeds 28.28",
}


def example_values(names: list[str]) -> dict[str, float]:
    """Values of the worked example, computed by the package."""
    hidden = torch.from_numpy(EXAMPLE).float()[None]
    return {n: float(v) for n, v in compute(hidden, torch.ones(1, len(EXAMPLE), dtype=torch.bool), names).items()}


def _steps(name: str) -> str:
    sigma = np.linalg.svd(EXAMPLE, compute_uv=False)
    units = EXAMPLE / np.linalg.norm(EXAMPLE, axis=1, keepdims=True)
    cosines = (units @ units.T)[np.triu_indices(len(EXAMPLE), 1)]
    shown = {
        key: ", ".join(f"{v:.3g}" for v in np.round(values, 6) + 0.0)
        for key, values in (("sigma", sigma), ("sigma2", sigma**2), ("cosines", cosines))
    }
    return _STEPS[name].format(**shown)


def _section(metric: Metric) -> str:
    names = [metric.name]
    if metric.family in ("spectrum", "similarity"):
        names.append(f"{metric.name}_centred")
    lines = [
        f"### `{metric.name}`: {metric.title}",
        "",
        f"    {metric.formula}",
        "",
        "| | |",
        "|---|---|",
        f"| range | {metric.range} |",
        f"| direction | {metric.expected} |",
        f"| high | {metric.high} |",
        f"| low | {metric.low} |",
        f"| unchanged by | {', '.join(sorted(metric.invariances))} |",
        f"| source | {metric.source} |",
        f"| cost | {metric.cost} |",
        f"| misleads | {metric.misleads} |",
    ]
    if metric.family != "alignment":
        values = example_values(names)
        shown = f"{values[metric.name]:.3f}"
        if len(names) > 1:
            shown += f"; centred {values[names[1]]:.3f}"
        lines.append(f"| example | {_steps(metric.name)}: **{shown}** |")
        if metric.name != "massive_share":
            lines += ["", f"![{metric.title}: low and high](img/metrics_{metric.name}.png)"]
    return "\n".join(lines)


def page() -> str:
    """The whole of docs/metrics.md."""
    parts = [
        "# Compression metrics",
        "",
        "Generated from `orchestrator/compression/entries.py` by `python -m orchestrator.compression.document`; a",
        "test compares the two.",
        "",
        "`H` is the N x d matrix of one image's tokens of one group (vision or text) at one layer; `h_n` a token,",
        "`a_n` its norm, `e_n = a_n^2` its energy, `sigma_i` the singular values of `H`. Column names of",
        "`layer_metrics` are the names below, with variants:",
        "",
        "* `_centred` (rank metrics, alignments and the cosine): the mean token is subtracted first, as in PCA.",
        "  Raw values mostly measure the mean token's size; centred ones the number of directions in which",
        "  tokens differ.",
        f"* `_trimmed` (all metrics): tokens whose norm exceeds {MASSIVE_RATIO:g} x the median norm are left out.",
        "  Sun et al. 2024 call an activation massive when it is about 1,000 times the median magnitude; one such",
        "  activation among d Gaussian ones gives its token 1000 / (1.48 sqrt d) times the usual norm, 11 at d = 4096.",
        "  Where no token is massive (`massive_share` 0) the variant equals the plain value.",
        "",
        "**Direction.** Every metric says whether larger means more compressed. Reports apply its sign, so that + is",
        "always more compressed.",
        "",
        "**Undefined values** are NaN in memory and null in tables, never 0: no tokens, no energy, states that are not",
        "finite, one token (`hoyer`, `mean_cosine`, centred variants), equal tokens (centred variants).",
        "",
        "**Cost.** Three classes. *Norms* (and cosines) need one pass over the tokens. *Gram* metrics need one",
        "Gram matrix for all variants; its trace and Frobenius norm are sums, and the five leading directions come",
        "of 12 products with 8 columns (subspace iteration). *Full spectrum* metrics (`effective_rank`, `rank_90`)",
        "need all eigenvalues of each variant: `capture.spectrum: exact` costs about as much as the forward pass",
        "itself (one variant; all four: four times). `capture.spectrum: estimate` gives `effective_rank_estimate`",
        "and `rank_90_estimate` (stochastic Lanczos quadrature) at a quarter of that on a GPU, slower than the",
        "exact spectrum on a CPU, each with its standard error in a column that ends in `_se`; 95 of 100",
        "estimates lie within two errors (tested on flat, power-law, low-rank and massive-token spectra). The",
        "default set is norms and Gram.",
        "",
        "**Precision.** float32, cast up from bfloat16 or float16; token norms and their sums are kept in float64.",
        "Against a float64 SVD `effective_rank` is within 1 % and every other metric within 0.1 %, also with one",
        "huge token, a massive dimension, duplicate or zero tokens; `stable_rank` of the flattest spectra",
        "(independent noise) within 2 %, always from above. On a GPU Gram matrices are products of bfloat16",
        "halves, 2e-5 relative. Directions of less than 3e-8 of the largest squared singular value count as",
        "absent. Norms must not overflow: |h| < 1e18.",
        "",
        "**A model in bfloat16.** Its states are rounded; the metrics of the rounded states are as exact as above.",
        "Against a pass in float32 (CPU, both shipped models, vision tokens of 32 scenes, all layers; the",
        "larger of both):",
        "",
        "| metrics | relative difference, median | 95 % | least Spearman rho over images in a layer |",
        "|---|---|---|---|",
        "| `stable_rank`, `spectral_participation`, all variants | 9e-4 | 3e-3 | 0.999 |",
        "| `mean_cosine` | 9e-4 | 4e-3 | 1.000 |",
        "| `mean_cosine_centred` | 3e-3 | 2e-2 | 0.998 |",
        "| `effective_rank`, all variants | 4e-3 | 3e-2 | 0.999 |",
        "| `rank_90` | 0 | 0 | 0.996 |",
        "| `top5_alignment_next`, all variants | 2e-3 | 7e-3 | 0.996 |",
        "| `top5_alignment_text`; centred | 4e-3; 8e-3 | 2e-2; 5e-2 | 0.985 |",
        "| `hoyer`, `gini` | 3e-3 | 2e-2 | 0.969 |",
        "| `participation_ratio`, `norm_entropy`, `tokens_90` | 1e-4 | 2e-3 | 0.967 |",
        "",
        "Rank and cosine metrics may be trusted in bfloat16. Norm metrics are as close, but vary so little between",
        "images in some layers that rounding changes their order: compare them in float32, or over many images.",
        "Differences of alignment with text below 0.05 of its value are within rounding. `pytest -m cuda` compares a",
        "GPU in bfloat16 with a CPU in float32: within 2 % (norms) and 5 % (Gram metrics) in the median.",
        "",
        "**Adding a metric.** A package names a `UserMetric` (its `Metric` entry and a function of hidden states, mask",
        "and shared intermediate results) as an entry point of group `vtsweep.metrics`; it is then a column like any",
        "other.",
        "",
        "The worked example has four tokens of width three: "
        + ", ".join("(" + ", ".join(f"{v:g}" for v in token) + ")" for token in EXAMPLE)
        + ".",
    ]
    titles = {
        "norm": "Norms: distribution of energy over tokens",
        "spectrum": "Rank: number of directions of the tokens",
    }
    titles["similarity"] = "Similarity of tokens"
    for family, title in titles.items():
        members = [m for m in BASES.values() if m.family == family]
        if family == "norm":
            members.append(MASSIVE_SHARE)
        parts += ["", f"## {title}", "", "\n\n".join(_section(m) for m in members)]
    parts += [
        "",
        "## Alignment: subspace shared by two sets of tokens",
        "",
        "These have no direction: they measure what is shared, not how compressed either side is. Between a model",
        "and its fine-tuned version, `top5_alignment`, debiased linear CKA (Kornblith et al. 2019; Song et al.",
        "2012) and relative drift |H' - H|_F / |H|_F are columns of `trials` "
        "(`orchestrator/compression/alignment.py`).",
        "",
        "\n\n".join(_section(m) for m in ALIGNMENT_BASES.values()),
        "",
    ]
    return "\n".join(parts)


def main() -> None:
    """Write or check the page; optionally draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date")
    parser.add_argument("--pictures", action="store_true", help="draw docs/img/metrics_*.png too")
    options = parser.parse_args()
    if options.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE} is not up to date: run python -m orchestrator.compression.document")
        return
    PAGE.write_text(page(), encoding="utf-8")
    if options.pictures:
        from orchestrator.compression.pictures import draw

        for name in BASES:
            draw(name, PICTURES / f"metrics_{name}.png")


if __name__ == "__main__":
    main()
