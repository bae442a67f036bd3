"""Several questions about one image are not several images: statistics, probes and tiers know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from polars.testing import assert_frame_equal

from orchestrator.config import CorrelateConfig, QuestionsConfig
from orchestrator.correlate.correlation import correlate
from orchestrator.correlate.findings import find
from orchestrator.data.clusters import first_of_like, independent_rows
from orchestrator.data.file_questions import FileQuestions
from orchestrator.data.files.source import QuestionSource


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))


def captured(n: int, copies: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables `images` and `layer_metrics` of n images, each asked about `copies` times."""
    rng = np.random.default_rng(0)
    x, metric = rng.normal(size=n), rng.normal(size=n)
    which = np.repeat(np.arange(n), copies)
    ids = [f"q{i:03d}-{k}" for i in range(n) for k in range(copies)]
    images = pl.DataFrame(
        {"image_id": ids, "source": "questions", "index": range(n * copies), "width": 8, "height": 8, "x": x[which]}
    ).with_columns(cluster=pl.Series([f"i{i}" for i in which]))
    metrics = pl.DataFrame(
        {"image_id": ids, "tap": "decoder", "layer": 1, "group": "vision", "n_tokens": 4, "gini": metric[which]}
    )
    return images, metrics


def test_asking_ten_questions_about_each_image_makes_no_correlation_surer() -> None:
    config, kinds = CorrelateConfig(n_bootstrap=50), {"x": "continuous", "cluster": "categorical"}
    once, tenfold = (correlate(*captured(40, copies), kinds, config) for copies in (1, 10))
    assert set(tenfold["attribute"]) == {"x"}
    assert tenfold["n"].to_list() == [40] * tenfold.height
    columns = ["statistic", "rho", "p", "n"]
    assert_frame_equal(once.select(columns), tenfold.select(columns))
    images, metrics = captured(40, 10)
    found = find(images, metrics, tenfold, source="questions")
    assert all("cluster" not in (one.attribute or "") for one in found)


def test_rows_of_one_image_do_not_make_noise_significant() -> None:
    """40 images asked ten times, 120 metrics of noise: with rows taken for images half would be significant."""
    rng = np.random.default_rng(1)
    images, metrics = captured(40, 10)
    image = np.repeat(np.arange(40), 10)
    noise = {f"m{k}": rng.normal(size=40)[image] + 0.1 * rng.normal(size=400) for k in range(120)}
    found = correlate(
        images, metrics.with_columns(**noise), {"x": "continuous"}, CorrelateConfig(n_bootstrap=200)
    ).filter((pl.col("metric") != "gini") & (pl.col("statistic") == "spearman"))
    assert found.height == 120
    assert (found["p"] < 0.05).mean() < 0.11
    assert ((found["ci_low"] < 0) & (found["ci_high"] > 0)).mean() > 0.88
    rows = images.drop("cluster").with_columns(image_id=pl.col("image_id"))
    wrong = correlate(rows, metrics.with_columns(**noise), {"x": "continuous"}, CorrelateConfig(n_bootstrap=0))
    assert (wrong.filter(pl.col("metric") != "gini")["p"] < 0.05).mean() > 0.4


def test_the_row_of_a_cluster_depends_on_its_ids_alone() -> None:
    images, _ = captured(12, 5)
    kept = independent_rows(images)
    assert kept["cluster"].n_unique() == kept.height == 12
    assert set(independent_rows(images.sample(fraction=1, shuffle=True, seed=1))["image_id"]) == set(kept["image_id"])
    assert independent_rows(images.drop("cluster")).height == 60


@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 5))), min_size=1, max_size=12))
def test_like_rows_are_the_connected_ones(keys: list[tuple[int, int | None]]) -> None:
    """Against the transitive closure of "shares a key", by powers of the matrix."""
    n = len(keys)
    joined = np.array(
        [
            [a == b or (c is not None and c == d) or i == j for j, (b, d) in enumerate(keys)]
            for i, (a, c) in enumerate(keys)
        ]
    )
    for _ in range(n):
        joined = joined @ joined
    assert first_of_like([a for a, _ in keys], [c for _, c in keys]) == [int(np.argmax(row)) for row in joined]


def write(root: Path, rows: list[dict[str, object]]) -> QuestionSource:
    root.mkdir(parents=True, exist_ok=True)
    for row in rows:
        Image.new("RGB", (8, 8)).save(root / str(row["image"]))
    (root / "q.jsonl").write_text(
        "".join(json.dumps({"id": f"q{i}", "question": "what ?", **r}) + "\n" for i, r in enumerate(rows))
    )
    return QuestionSource(QuestionsConfig(root=str(root), file=("q.jsonl",)))


def test_a_source_names_clusters_where_rows_depend_on_each_other(tmp_path: Path) -> None:
    alone = write(tmp_path / "a", [{"image": f"{i}.png"} for i in range(4)])
    assert "cluster" not in alone.attribute_kinds
    shared = write(tmp_path / "b", [{"image": f"{i // 2}.png"} for i in range(4)])
    assert [shared.attributes(i)["cluster"] for i in range(4)] == ["0.png", "0.png", "1.png", "1.png"]
    grouped = write(tmp_path / "c", [{"image": f"{i}.png", "group": f"g{i // 3}"} for i in range(6)])
    assert [grouped.attributes(i)["cluster"] for i in range(6)] == ["g0"] * 3 + ["g1"] * 3
    crossed = write(tmp_path / "d", [{"image": f"{i // 2}.png", "group": f"g{i % 2}"} for i in range(4)])
    assert [crossed.attributes(i)["cluster"] for i in range(4)] == ["0.png", "0.png", "1.png", "1.png"]


def test_rows_of_every_split_are_cut_at_the_same_values(tmp_path: Path) -> None:
    """Held-out rows that are all complex are all of the high tier, whatever their own thirds."""
    rows: list[dict[str, object]] = [
        {"image": f"{i}.png", "answer": "a", "split": "train" if i < 60 else "test", "complexity": float(i)}
        for i in range(90)
    ]
    source = write(tmp_path / "d", rows)
    held_out = QuestionSource(source.config.model_copy(update={"splits": ("test",)}))
    assert {tier for _, tier in FileQuestions(held_out, "complexity").rows} == {"high"}
    trained = QuestionSource(source.config.model_copy(update={"splits": ("train",)}))
    assert len(FileQuestions(trained, "complexity").rows["question", "low"]) == 30
