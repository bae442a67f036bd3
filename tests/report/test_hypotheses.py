"""Every hypothesis reaches every verdict it can, on tables where the truth is planted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from orchestrator.report.hypotheses import HYPOTHESES, hypothesis_table, judge_hypotheses
from orchestrator.report.hypothesis_rules import NOT_MEASURED
from orchestrator.report.model import PointResults
from orchestrator.report.words import summary
from orchestrator.stats.verdict import VERDICTS
from orchestrator.store.tables.core import TABLES
from tests.report.fake_study import fake_point, fake_study

BARE = PointResults("model, scenes", "model", "scenes", 6, {"n_objects": "count"})


def verdict_of(point: PointResults, name: str) -> dict[str, Any]:
    return judge_hypotheses(point).row(by_predicate=pl.col("hypothesis") == name, named=True)


def filled(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """`table` with nulls in the declared columns it lacks."""
    return table.with_columns(pl.lit(None).alias(c) for c in TABLES[name].columns if c not in table.columns)


def findings(claim: str, *holds: str, **further: Any) -> PointResults:
    rows = [
        {
            "claim": claim, "statement": "s", "holds": told, "effect_name": "rho", "effect": 0.3, "ci_low": 0.1,
            "ci_high": 0.5, "smallest": 0.2, "n": 400, "family": family, "given": "", "agreement": None, **further,
        }
        for told, family in zip(holds, ("norm", "spectrum", "similarity"), strict=False)
    ]  # fmt: skip
    return replace(BARE, findings=pl.DataFrame(rows))


def probes(rows: list[tuple[str, int, str, float, float | None]], half: float = 0.05) -> PointResults:
    """(position, layer, attribute, score, skill beyond); intervals of +- `half`."""
    table = pl.DataFrame(
        [
            {
                "tap": "decoder", "layer": layer, "position": position, "attribute": attribute, "kind": "regression",
                "solver": "ridge", "score": score, "ci_low": score - half, "ci_high": score + half,
                "skill_beyond": beyond, "beyond_low": None if beyond is None else beyond - half,
                "beyond_high": None if beyond is None else beyond + half,
                "beyond": None if beyond is None else "n_objects", "n_test": 120, "n_train": 280,
            }
            for position, layer, attribute, score, beyond in rows
        ],
        infer_schema_length=None,
    )  # fmt: skip
    return replace(BARE, probes=filled(table, "probes"))


def text(first: float, middle: float, half: float = 0.05) -> PointResults:
    return probes(
        [("text_mean", layer, a, 0.9, v) for layer, v in ((1, first), (3, middle)) for a in ("size_mean", "n_shapes")],
        half,
    )


def tokens(single: list[float], mean: float, half: float = 0.02) -> PointResults:
    rows = [(f"vision_{i:02d}", layer, "n_objects", v, None) for layer in (3, 6) for i, v in enumerate(single)]
    return probes(
        [*rows, ("vision_mean", 3, "n_objects", mean, None), ("vision_mean", 6, "n_objects", mean, None)], half
    )


def deletion(
    count: tuple[float, float, float],
    colour: tuple[float, float, float],
    half: float = 0.03,
    crowded: tuple[float, float, float] = (0.04, 0.05, 0.03),
) -> PointResults:
    """Accuracy with none, half and all of the tokens deleted, in simple scenes; counting in crowded ones too."""
    rows = [
        {
            "checkpoint": "base", "method": "random", "layer": 0, "seed": 0, "deleted_share": share, "family": family,
            "tier": tier, "kept_tokens": 10.0, "accuracy": value,
            "ci_low": value - half, "ci_high": value + half, "n": 200, "seconds": 0.1,
        }
        for family, tier, values in (("count", "low", count), ("colour", "low", colour), ("count", "high", crowded))
        for share, value in zip((0.0, 0.5, 1.0), values, strict=True)
    ]  # fmt: skip
    return replace(BARE, deletion=filled(pl.DataFrame(rows), "deletion"))


def drift(text_drift: float, vision: float, seeds: int = 4, spread: float = 0.01) -> PointResults:
    rows = [
        {
            "trial": f"{s}{r}", "model": "m", "complexity_ratio": r, "seed": s, "status": "done", "n_steps": 1,
            "train_seconds": 1.0, "train_flops": 1.0, "final_loss": 1.0,
            **{f"drift/text/{t}": text_drift + spread * (s % 2) for t in ("early", "late")},
            **{f"drift/vision/{t}": vision for t in ("early", "late")},
        }
        for s in range(seeds)
        for r in (0.0, 1.0)
    ]  # fmt: skip
    return replace(BARE, trials=filled(pl.DataFrame(rows), "trials"))


def ratio(effect: float, half: float | None, sufficient: float | None) -> PointResults:
    ends = (None, None) if half is None else (effect - half, effect + half)
    row = {
        "outcome": "accuracy/high", "primary": True, "low_ratio": 0.0, "high_ratio": 1.0, "effect": effect,
        "ci_low": ends[0], "ci_high": ends[1], "smallest": 0.05, "n_seeds": 5, "verdict": None,
    }  # fmt: skip
    return replace(BARE, sweep={"contrasts": [row], "tiers": {"high": {"sufficient_ratio": sufficient}}})


OF_FINDINGS = {
    "depth_profile": "depth",
    "objects_and_compression": "objects",
    "diversity_and_size_spread": "coco_drivers",
}
NO_EFFECT = "equivalent to nothing"
CASES = [
    *((name, findings(claim, told, told), told) for name, claim in OF_FINDINGS.items() for told in VERDICTS),
    ("objects_and_compression", findings("objects", "supported", "undecided"), "undecided"),
    ("objects_and_compression", findings("objects", "contradicted", "undecided"), "contradicted"),
    ("objects_and_compression", findings("objects", "supported", "contradicted"), "undecided"),
    ("text_knows_early", text(0.5, 0.6), "supported"),
    ("text_knows_early", text(0.05, 0.6), "contradicted"),
    ("text_knows_early", text(0.02, 0.03), "equivalent to nothing"),
    ("text_knows_early", text(0.2, 0.6, half=0.2), "undecided"),
    ("any_token_counts", tokens([0.7] * 20, 0.8), "supported"),
    ("any_token_counts", tokens([0.1] * 6 + [0.7] * 14, 0.8), "contradicted"),
    ("any_token_counts", tokens([0.1] + [0.7] * 19, 0.8), "supported"),  # one bad place of twenty
    ("any_token_counts", tokens([0.0] * 20, -0.02), "equivalent to nothing"),
    ("any_token_counts", tokens([0.4] * 20, 0.8, half=0.1), "undecided"),
    ("half_kills_counting", deletion((0.8, 0.3, 0.1), (0.9, 0.88, 0.1)), "supported"),
    ("half_kills_counting", deletion((0.8, 0.78, 0.1), (0.9, 0.3, 0.1)), "contradicted"),
    ("half_kills_counting", deletion((0.8, 0.6, 0.1), (0.9, 0.7, 0.1)), "equivalent to nothing"),
    ("half_kills_counting", deletion((0.8, 0.5, 0.1), (0.9, 0.8, 0.1), half=0.1), "undecided"),
    ("half_kills_counting", deletion((0.12, 0.11, 0.1), (0.9, 0.88, 0.1)), "undecided"),  # no counting to kill
    # crowded scenes are not judged, whatever is lost there
    ("half_kills_counting", deletion((0.8, 0.6, 0.1), (0.9, 0.7, 0.1), crowded=(0.9, 0.0, 0.0)), NO_EFFECT),
    ("text_changes_more", drift(0.5, 0.2), "supported"),
    ("text_changes_more", drift(0.2, 0.5), "contradicted"),
    ("text_changes_more", drift(0.2, 0.2), "equivalent to nothing"),
    ("text_changes_more", drift(0.5, 0.2, seeds=2), "undecided"),
    ("text_changes_more", drift(0.26, 0.2, spread=0.2), "undecided"),
    ("sufficient_ratio", ratio(0.3, 0.05, 0.25), "supported"),
    ("sufficient_ratio", ratio(0.3, 0.05, None), "undecided"),
    ("sufficient_ratio", ratio(-0.3, 0.05, None), "contradicted"),
    ("sufficient_ratio", ratio(0.0, 0.03, None), "equivalent to nothing"),
    ("sufficient_ratio", ratio(0.3, None, None), "undecided"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "point", "expected"), CASES)
def test_a_planted_truth_gets_its_verdict(name: str, point: PointResults, expected: str) -> None:
    row = verdict_of(point, name)
    assert row["verdict"] == expected
    others = judge_hypotheses(point).filter(pl.col("hypothesis") != name)
    measured = others.filter(pl.col("verdict") != NOT_MEASURED)["hypothesis"].to_list()
    assert not set(measured) - {"any_token_counts", "text_knows_early"}  # both are judged on the probes


def test_what_was_not_measured_says_what_it_needs() -> None:
    table = judge_hypotheses(BARE)
    assert table["hypothesis"].to_list() == [h.name for h in HYPOTHESES]
    assert len(HYPOTHESES) == 8
    assert set(table["verdict"]) == {NOT_MEASURED}
    assert table["effect"].null_count() == 8
    assert all(note.startswith("needs") for note in table["note"])


def test_families_that_disagree_are_said_to() -> None:
    assert "disagree" in verdict_of(findings("objects", "supported", "contradicted"), "objects_and_compression")["note"]


def test_effects_carry_their_smallest_in_the_same_unit() -> None:
    for name, point, expected in CASES:
        row = verdict_of(point, name)
        if expected == "supported":
            assert row["smallest"] is not None
            assert row["n"] > 0
            assert row["rule"]


def test_the_report_prints_each_rule_beside_its_result() -> None:
    results = fake_study(1)
    (heading, statements) = summary(results)[0]
    assert "claims" in heading
    shown = [s for s in statements if s.verdict]
    measured = hypothesis_table(results.points).filter(pl.col("verdict") != NOT_MEASURED)
    assert [s.verdict for s in shown] == measured["verdict"].to_list()
    assert all("Rule: " in s.evidence for s in shown)
    assert judge_hypotheses(fake_point())["point"][0] == "reference-joint, scenes"


def test_what_crowded_scenes_lose_is_noted_beside_the_verdict() -> None:
    row = verdict_of(deletion((0.8, 0.3, 0.1), (0.9, 0.88, 0.1)), "half_kills_counting")
    assert "simple scenes" in row["effect_name"]
    assert "not judged: count in crowded scenes from 0.04 to 0.05" in row["note"]
    only_high = deletion((0.8, 0.3, 0.1), (0.9, 0.88, 0.1))
    assert only_high.deletion is not None
    crowded = replace(only_high, deletion=only_high.deletion.filter(pl.col("tier") == "high"))
    assert verdict_of(crowded, "half_kills_counting")["verdict"] == NOT_MEASURED
