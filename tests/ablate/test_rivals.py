"""Fair comparison: budgets are met on average over layers, effects are paired, winners named where told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ablate.cells import ALL_TOKENS, list_cells, unmet
from orchestrator.ablate.rivals import rank_table, rival_table
from orchestrator.ablate.selectors.entries import ENTRIES
from orchestrator.ablate.selectors.registry import get_selector
from orchestrator.ablate.selectors.schedules import average_share, depths, schedule_for
from orchestrator.config import AblateConfig, RunConfig
from orchestrator.errors import ConfigError
from orchestrator.store.filesystem import Storage
from tests.points import run_ablate

NAMES = [entry.name for entry in ENTRIES]


@given(st.sampled_from(NAMES), st.integers(2, 48), st.floats(0.02, 0.99), st.booleans())
def test_a_schedule_meets_its_budget_on_average_or_says_why_not(name, n_layers, budget, across) -> None:
    cross = list(range(1, n_layers, 2)) if across else []
    reading, selector = cross or list(range(n_layers)), get_selector(name)
    least = depths(selector, len(reading))[0] / len(reading)
    if budget <= least:
        assert selector.depths != (0.0,), "before the decoder every budget can be met"
        with pytest.raises(ConfigError, match="its average stays above"):
            schedule_for(selector, n_layers, cross, budget)
        return
    schedule = schedule_for(selector, n_layers, cross, budget)
    assert average_share(schedule, n_layers, cross) == pytest.approx(budget, abs=1e-6)
    layers, shares = zip(*schedule, strict=True)
    assert list(layers) == sorted(set(layers))
    assert list(shares) == sorted(shares, reverse=True)
    assert all(0 < share <= 1 for share in shares)


def test_depths_are_those_of_the_papers_on_a_decoder_of_their_size() -> None:
    assert [layer for layer, _ in schedule_for(get_selector("fastv"), 32, [], 0.5)] == [2]
    pyramid = schedule_for(get_selector("pyramiddrop"), 32, [], 0.46875)
    assert [layer for layer, _ in pyramid] == [8, 16, 24]
    np.testing.assert_allclose([share for _, share in pyramid], [0.5, 0.25, 0.125], atol=1e-6)  # its default ratio
    sparse = schedule_for(get_selector("sparsevlm"), 32, [], 1 / 3)
    assert [layer for layer, _ in sparse] == [3, 7, 16]
    kept = np.array([share for _, share in sparse])
    np.testing.assert_allclose(kept / kept[0], np.array([300, 200, 110]) / 300)
    assert schedule_for(get_selector("divprune"), 32, [], 0.2) == ((0, pytest.approx(0.2)),)


def test_a_budget_below_what_the_first_layers_see_is_no_cell_but_a_reason() -> None:
    config = AblateConfig(checks=("rivals",), rivals=("fastv", "norm", "random", "downsample"), budgets=(0.5, 0.1))
    cells = list_cells(config, 6)
    assert [(c.method, c.budget, c.seed) for c in cells] == [
        (ALL_TOKENS, 1.0, -1), ("fastv", 0.5, -1), ("norm", 0.5, -1), ("norm", 0.1, -1),
        *(("random", b, s) for b in (0.5, 0.1) for s in (0, 1, 2)), ("downsample", 0.5, -1), ("downsample", 0.1, -1),
    ]  # fmt: skip
    assert "1 of 6 layers" in unmet("fastv", 6, (), 0.1)
    assert "1 of 3 layers" in unmet("fastv", 7, (1, 3, 5), 0.25)
    assert cells[1].label == "fastv at 50.0%"


def answers(right: dict[str, float], n: int = 400, budget: float = 0.25) -> pl.DataFrame:
    """Planted answers: a question keeps its luck over methods; methods of equal skill fail on different questions."""
    rng = np.random.default_rng(0)
    rows = []
    for method, skill in right.items():
        luck = rng.random(n)
        rows += [
                {"checkpoint": "base", "method": method, "budget": 1.0 if method == ALL_TOKENS else budget, "seed": -1,
                 "question_id": f"q{i:04d}", "image_id": f"i{i}", "cluster": f"i{i}",
                 "family": ("colour", "shape")[i % 2], "tier": "low", "n_vision": 64, "correct": bool(luck[i] < skill),
                 "score": float(luck[i] < skill), "kept_share": budget, "gflop": 1.0, "selection_seconds": 0.1,
                 "prefill_seconds": 0.2, "decode_seconds": 0.1, "cache_mb": 1.0, "peak_mb": None}
                for i in range(n)
            ]  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None, schema_overrides={"peak_mb": pl.Float64})


def test_effects_are_paired_with_all_tokens_and_with_the_controls() -> None:
    table = rival_table(answers({ALL_TOKENS: 0.95, "random": 0.5, "downsample": 0.6, "good": 0.94}), 0.05)
    whole = table.filter((pl.col("family") == "all") & (pl.col("difficulty") == "all"))
    rows = {row["method"]: row for row in whole.iter_rows(named=True)}
    assert rows[ALL_TOKENS]["difference"] == 0
    assert rows[ALL_TOKENS]["verdict"] == ""
    assert rows["random"]["verdict"] == "contradicted"
    assert rows["random"]["over_random"] is None
    assert rows["good"]["over_random_low"] > 0.3
    assert rows["good"]["over_downsample_low"] > 0.2
    assert rows["good"]["difference_low"] < rows["good"]["difference"] < rows["good"]["difference_high"]
    assert rows["good"]["n"] == 400
    assert rows["good"]["peak_mb"] is None
    families = set(table["family"])
    assert families == {"all", "colour", "shape"}


def test_hard_questions_are_those_that_a_smaller_image_does_not_answer() -> None:
    table = rival_table(answers({ALL_TOKENS: 0.9, "downsample": 0.5, "good": 0.8}), 0.05)
    parts = {(r["method"], r["difficulty"]): r for r in table.filter(pl.col("family") == "all").iter_rows(named=True)}
    assert parts["downsample", "easy"]["accuracy"] == 1
    assert parts["downsample", "hard"]["accuracy"] == 0
    assert parts["good", "hard"]["accuracy"] == pytest.approx(0.8, abs=0.08)
    n = [parts["good", kind]["n"] for kind in ("easy", "hard")]
    assert sum(n) == round(400 * parts[ALL_TOKENS, "all"]["accuracy"]), "questions that all tokens miss are in neither"
    without = rival_table(answers({ALL_TOKENS: 0.9, "good": 0.8}), 0.05)
    assert set(without["difficulty"]) == {"all"}
    assert without["over_downsample"].null_count() == without.height


def test_a_winner_is_named_only_against_what_it_is_told_apart_from() -> None:
    ranks = rank_table(answers({ALL_TOKENS: 1.0, "bad": 0.3, "good": 0.80, "twin": 0.79}))
    rows = {r["method"]: r for r in ranks.filter(pl.col("family") == "all").iter_rows(named=True)}
    assert ALL_TOKENS not in rows
    assert sum(row["best"] for row in rows.values()) == 1
    assert [rows[m]["tied"] for m in ("good", "twin", "bad")] == [True, True, False]
    assert rows["bad"]["rank"] == 3
    assert rows["bad"]["behind_high"] < 0
    assert all(row["n_families"] == 2 for row in rows.values())
    by_family = ranks.filter(pl.col("family") != "all")
    means = by_family.group_by("method").agg(pl.col("rank").mean())
    assert {m: r["rank"] for m, r in rows.items()} == dict(means.iter_rows())


def test_what_keeps_more_tokens_than_the_budget_is_not_ranked() -> None:
    frame = answers({"downsample": 0.99, "good": 0.6})
    whole = pl.col("method") == "downsample"
    frame = frame.with_columns(kept_share=pl.when(whole).then(1.0).otherwise(pl.col("kept_share")))
    assert set(rank_table(frame)["method"]) == {"good"}
    assert set(rank_table(answers({"downsample": 0.99, "good": 0.6}))["method"]) == {"downsample", "good"}


def test_equal_methods_share_a_rank_and_are_tied() -> None:
    frame = answers({"one": 0.5})
    both = pl.concat([frame, frame.with_columns(method=pl.lit("two"))])
    ranks = rank_table(both)
    assert set(ranks["rank"]) == {1.5}
    assert ranks["tied"].all()


@pytest.mark.parametrize("model", ["reference-joint", "reference-cross"])
def test_the_stage_compares_rivals_on_the_same_questions(model: str, tmp_path: Path) -> None:
    ablate = {
        "checks": ["rivals"], "low_families": ["colour"], "high_families": ["count"], "n_per_family": 4, "seeds": [0],
        "rivals": ["random", "downsample", "fastv", "visionzip", "pyramiddrop", "tome"], "budgets": [0.5, 0.1],
    }  # fmt: skip
    how = {"backend": "local", "batch_size": 8, "torch_threads": 1}
    run = RunConfig.model_validate({"model": {"name": model}, "ablate": ablate, "how": how})
    stage = run_ablate(run, Storage(str(tmp_path)), quiet=True)
    single, table = stage.scan("rival_answers").collect(), stage.scan("rivals").collect()
    n_asked = single.group_by("method", "budget").agg(pl.col("question_id").n_unique())
    assert set(n_asked["question_id"]) == {8}
    at_half = single.filter((pl.col("budget") == 0.5) & (pl.col("method") != "downsample"))
    assert at_half["kept_share"].to_numpy() == pytest.approx(0.5, abs=0.02)
    full = single.filter(pl.col("method") == ALL_TOKENS)
    assert set(full["kept_share"]) == {1.0}
    others = at_half.filter(pl.col("method") != "pyramiddrop")  # which computes keys of three layers twice
    others = others.join(full.select("question_id", full="gflop"), on="question_id")
    assert (others["gflop"] < others["full"]).all()
    assert single["cache_mb"].min() > 0
    reasons = {(r["method"], r["budget"]) for r in table.filter(pl.col("reason") != "").iter_rows(named=True)}
    assert reasons == {("fastv", 0.1), ("pyramiddrop", 0.1)}
    assert table.filter(pl.col("reason") != "")["accuracy"].null_count() == 4  # a row a tier
    assert (
        stage.scan("rival_ranks").collect().filter(pl.col("budget") == 0.1)["method"].n_unique() == 3
    )  # the smaller image has all its tokens
