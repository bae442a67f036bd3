"""The paper's claims as named hypotheses, each with a predefined rule and its verdict.

Verdicts are those of `stats.verdict`, and `not measured` if a table that the rule needs is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from orchestrator.correlate.findings import SMALLEST_RHO
from orchestrator.correlate.paper_claims import SMALLEST_SHARE_OF_RANGE
from orchestrator.report.hypothesis_rules import (
    SINGLE_SHARE,
    SMALLEST_DRIFT,
    SMALLEST_LOSS,
    SMALLEST_R2,
    Result,
    a_ratio_suffices,
    any_token_counts,
    counting_dies_colour_survives,
    of_findings,
    text_changes_more,
    text_knows_early,
)
from orchestrator.report.model import PointResults
from orchestrator.store.tables.core import TABLES, check_table


@dataclass(frozen=True)
class Hypothesis:
    name: str
    claim: str
    rule: str
    judge: Callable[[PointResults], Result]


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis(
        "depth_profile",
        "Over depth, vision tokens' energy is spread, then concentrated, then spread again.",
        f"Every norm metric: middle third above the nearer of early and late by more than"
        f" {SMALLEST_SHARE_OF_RANGE:g} of its range, interval of the weaker step; metrics that differ"
        " leave it undecided.",
        of_findings("depth", "needs norm metrics of vision tokens"),
    ),
    Hypothesis(
        "objects_and_compression",
        "The more objects, the less compressed are vision tokens.",
        f"Every family of metrics: rank correlation of the number of objects with less compression above"
        f" {SMALLEST_RHO:g}; a relation that turns contradicts.",
        of_findings("objects", "needs a number of objects that varies"),
    ),
    Hypothesis(
        "diversity_and_size_spread",
        "On photographs, diversity of categories and spread of object sizes lower compression most.",
        "Every family of metrics: the weaker of the two lowers the rank correlation by more than any other attribute,"
        " number of objects held fixed.",
        of_findings("coco_drivers", "needs COCO's categories and areas"),
    ),
    Hypothesis(
        "text_knows_early",
        "Text tokens know the image's attributes right after the first layer.",
        "Mean over numeric attributes, derived ones left out, of the mean text token's skill beyond covariates at"
        f" layer 1 above {SMALLEST_RHO:g}; contradicted where it is below at layer 1 and above at half of the depth.",
        text_knows_early,
    ),
    Hypothesis(
        "any_token_counts",
        "Nearly every single vision token predicts the number of objects.",
        f"At half of the depth, R² of the token a tenth from the bottom above {SINGLE_SHARE:g} of the mean token's;"
        f" equivalent to nothing where the mean token's is below {SMALLEST_R2:.2f}.",
        any_token_counts,
    ),
    Hypothesis(
        "half_kills_counting",
        "Random deletion of half of the visual tokens kills counting while colour survives.",
        f"In simple scenes (low tier) counting loses more accuracy than colour by more than {SMALLEST_LOSS:g}; both"
        " must have something to lose (all tokens better than none).",
        counting_dies_colour_survives,
    ),
    Hypothesis(
        "text_changes_more",
        "Fine-tuning changes text representations more than visual ones.",
        f"Relative drift of text less vision above {SMALLEST_DRIFT:g}, over three seeds or more.",
        text_changes_more,
    ),
    Hypothesis(
        "sufficient_ratio",
        "From a sufficient share of complex training data on, answers about complex scenes improve.",
        "Accuracy on high-tier questions rises by more than its smallest effect, paired by seed, and a smallest"
        " sufficient ratio exists.",
        a_ratio_suffices,
    ),
)


def judge_hypotheses(point: PointResults) -> pl.DataFrame:
    """Table `hypotheses` of one point: one row per hypothesis, in the order of the paper."""
    rows = []
    for hypothesis in HYPOTHESES:
        judged = hypothesis.judge(point)
        numbers = {
            k: None if v is None or not np.isfinite(v) else float(v)
            for k, v in (("effect", judged.effect), ("ci_low", judged.ci_low), ("ci_high", judged.ci_high))
        }
        rows.append(
            {
                "point": point.label, "hypothesis": hypothesis.name, "claim": hypothesis.claim, "rule": hypothesis.rule,
                "verdict": judged.verdict, "effect_name": judged.effect_name, **numbers, "smallest": judged.smallest,
                "n": judged.n, "note": judged.note,
            }
        )  # fmt: skip
    schema = {name: column.dtype for name, column in TABLES["hypotheses"].columns.items()}
    return check_table(pl.DataFrame(rows, schema=schema), "hypotheses")


def hypothesis_table(points: Sequence[PointResults]) -> pl.DataFrame:
    """Table `hypotheses` of several points."""
    return pl.concat([judge_hypotheses(point) for point in points])
