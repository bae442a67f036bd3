"""Which layer first puts the right answer above its rivals: questions read by the logit lens."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.ablate.bench import Bench
from orchestrator.models.choosing import Branch, branch_probabilities
from orchestrator.models.lens import lens_logits
from orchestrator.stats.intervals import clustered_share


def lens_scores(bench: Bench) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the right answer among its choices at L + 1 points, and its lead over the best rival.

    Both are float64 (L + 1, n), NaN for a question without choices. Of answers of several tokens the first is read in
    which they differ after the prompt alone; answers that share it count together.
    """
    n, adapter = len(bench.asked), bench.adapter
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for chunk in bench.batches(range(n), bench.inputs):
        logits = lens_logits(adapter, adapter.collate([bench.inputs[i] for i in chunk])).cpu()
        for row, i in enumerate(chunk):
            question = bench.asked[i].question
            if question.choices is None or question.answer not in question.choices:
                continue
            tree = adapter.choice_trees.get(question.choices, True)
            if not isinstance(tree, Branch) or tree.prefix:
                continue
            right = token_of(tree, question.choices.index(question.answer))
            shares = [branch_probabilities(tree, at) for at in logits[:, row]]
            own = np.array([share[right] for share in shares])
            rival = np.array([max(v for token, v in share.items() if token != right) for share in shares])
            found[i] = own, own - rival
    layers = adapter.n_layers + 1
    nothing = np.full(layers, np.nan)
    pairs = [found.get(i, (nothing, nothing)) for i in range(n)]
    return np.stack([p for p, _ in pairs], axis=1), np.stack([lead for _, lead in pairs], axis=1)


def token_of(tree: Branch, number: int) -> int | None:
    """The first token of an answer; None where it ends at the root."""
    for token, child in tree.children.items():
        if child == number or (isinstance(child, Branch) and _holds(child, number)):
            return token
    return None


def _holds(branch: Branch, number: int) -> bool:
    if branch.ends == number:
        return True
    return any(c == number or (isinstance(c, Branch) and _holds(c, number)) for c in branch.children.values())


def lens_rows(bench: Bench) -> list[dict[str, Any]]:
    """Rows of table `lens`, without the checkpoint: each point, each tier as a whole and by family."""
    probability, lead = lens_scores(bench)
    above = np.where(np.isnan(lead), np.nan, lead > 0)
    # From a point on to the last one: the answer does not fall back below a rival.
    settled = np.flip(np.minimum.accumulate(np.flip(above, 0), 0), 0)
    keys = [(item.question.tier, item.question.family) for item in bench.asked]
    scopes = [(t, "all") for t in dict.fromkeys(t for t, _ in keys)] + list(dict.fromkeys(keys))
    rows = []
    for tier, family in scopes:
        own = [i for i, (t, f) in enumerate(keys) if t == tier and family in ("all", f) and np.isfinite(lead[0, i])]
        if not own:
            continue
        clusters = [bench.asked[i].question.cluster for i in own]
        for layer in range(len(lead)):
            share = clustered_share(above[layer, own], clusters)
            rows.append(
                {
                    "layer": layer,
                    "tier": tier,
                    "family": family,
                    "probability": float(probability[layer, own].mean()),
                    "above": share.value,
                    "ci_low": share.low,
                    "ci_high": share.high,
                    "settled": float(settled[layer, own].mean()),
                    "n": len(own),
                }
            )
    return rows
