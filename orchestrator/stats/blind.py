"""The blind level: what one earns without seeing the image, by the best single answer of each kind of question.

The best constant of the very questions it is judged on flatters blindness: 0.56 of 100 fair coins. The constant comes
from other questions instead: from `reference` (questions of the same design and another seed, or training questions;
the better choice, without limit in number), or else from the other images of the set itself (cross-fitting). The
constant chosen on part of the questions is not always the population's best, so that cross-fitting alone comes out too
low: `OWN_WEIGHT` of the level is that of the questions' own best constant, whose error runs the other way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from orchestrator.stats.intervals import CONFIDENCE, Estimate, clustered_share

N_FOLDS = 10
N_REPEATS = 20
OWN_WEIGHT = 0.25
"""Weight at which the two errors about cancel, from equal answers to near ties (docs/statistics.md)."""

Judge = Callable[[Hashable, str, str], bool]
"""(group, right answer, given answer) -> whether it counts as right."""


def blind_scores(
    answers: Sequence[str],
    groups: Sequence[Hashable],
    clusters: Sequence[Any],
    reference: Sequence[tuple[Hashable, str]] | None = None,
    judge: Judge | None = None,
    seed: int = 0,
) -> np.ndarray:
    """For each question the chance (0 to 1) that the best constant of its group is right, (n,) float64.

    Args:
        answers: right answer of each question.
        groups: kind of each question (tier, family, wording): one constant serves one group.
        clusters: image of each question; no image is in both the choosing and the judged part.
        reference: (group, right answer) of other questions; a group it lacks is cross-fitted.
        judge: when an answer counts as right; equality when None.
        seed: of the folds.

    A group of which no other question is known scores 0: a blind answerer has nothing to go by.
    """
    right = judge or (lambda _, wanted, given: wanted == given)
    scores = np.zeros(len(answers))
    known: dict[Hashable, list[str]] = {}
    for group, answer in reference or ():
        known.setdefault(group, []).append(answer)
    rows: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        rows.setdefault(group, []).append(i)
    for group, places in rows.items():
        own = [answers[i] for i in places]
        if group in known:
            scores[places] = _judged(group, own, _best(group, known[group], right), right)
        else:
            scores[places] = _cross_fitted(group, own, [clusters[i] for i in places], right, seed)
    return scores


def blind_level(
    answers: Sequence[str],
    groups: Sequence[Hashable],
    clusters: Sequence[Any],
    reference: Sequence[tuple[Hashable, str]] | None = None,
    judge: Judge | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """Mean of `blind_scores` with its interval, clustered by image."""
    return clustered_share(blind_scores(answers, groups, clusters, reference, judge, seed), clusters, confidence)


def _cross_fitted(group: Hashable, own: list[str], clusters: list[Any], right: Judge, seed: int) -> np.ndarray:
    """Chance that the best constant of the other folds is right, mean over repeated folds of images; less its bias."""
    given = sorted(set(own))
    kind = np.array([given.index(answer) for answer in own])
    earns = np.array([[right(group, wanted, one) for one in given] for wanted in given], dtype=np.float64)[kind]
    said = np.eye(len(given))[kind]
    _, codes = np.unique([str(c) for c in clusters], return_inverse=True)
    n_clusters = int(codes.max()) + 1
    scores = np.zeros(len(own))
    if n_clusters < 2:
        return scores
    rng = np.random.default_rng(seed)
    for _ in range(N_REPEATS):
        fold = (rng.permutation(n_clusters) % min(N_FOLDS, n_clusters))[codes]
        for k in range(fold.max() + 1):
            inside = fold == k
            scores[inside] += earns[inside] @ _best_share(earns[~inside], said[~inside])
    return (1 - OWN_WEIGHT) * scores / N_REPEATS + OWN_WEIGHT * earns @ _best_share(earns, said)


def _best_share(earns: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Weight of each of K answers as the constant: even among those of the answers `said` that earn most, (K,).

    Args:
        earns, said: (m, K) of m questions: whether an answer would be right, and whether it is the right answer.
    """
    earned = np.where(said.any(axis=0), earns.sum(axis=0), -1.0)
    best = earned == earned.max()
    return best / best.sum()


def _best(group: Hashable, others: list[str], right: Judge) -> list[str]:
    """The constants that are right for most of `others`; several where they tie."""
    counts = Counter(others)
    earned = {given: sum(n for wanted, n in counts.items() if right(group, wanted, given)) for given in counts}
    most = max(earned.values(), default=0)
    return sorted(given for given, n in earned.items() if n == most)


def _judged(group: Hashable, wanted: list[str], best: list[str], right: Judge) -> np.ndarray:
    if not best:
        return np.zeros(len(wanted))
    return np.array([np.mean([right(group, answer, given) for given in best]) for answer in wanted])
