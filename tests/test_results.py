"""The published study: every number in its prose comes from its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jobs import results

ROOT = Path(__file__).parents[1]


def test_the_page_says_what_the_tables_say() -> None:
    assert (results.FOLDER / "README.md").read_text(encoding="utf-8") == results.page()


def test_the_readme_opens_with_what_the_tables_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == results.readme(text)


def test_changed_tables_part_from_the_page(tmp_path: Path) -> None:
    for file in results.FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    trials = pl.read_parquet(tmp_path / "ratio_trials.parquet")
    trials.with_columns(pl.col("accuracy/high/count") * 0.9).write_parquet(tmp_path / "ratio_trials.parquet")
    assert results.short(tmp_path) != results.short()
    assert results.page(tmp_path) != results.page()


def test_gains_are_those_of_a_plain_mean_over_paired_seeds() -> None:
    trials = pl.read_parquet(results.FOLDER / "ratio_trials.parquet")
    found = results.ratio_numbers(trials)
    for model in results.MODELS:
        own = trials.filter(pl.col("model") == model)
        high = {
            r: own.filter(pl.col("complexity_ratio") == r).sort("seed")["accuracy/high"].to_numpy() for r in (0.0, 1.0)
        }
        effect = next(p for p in found[model]["primary"] if p["outcome"] == "accuracy/high")
        assert effect["effect"] == pytest.approx(np.mean(high[1.0] - high[0.0]))
        assert effect["n_seeds"] == found["n_seeds"] == len(high[0.0])


@pytest.mark.parametrize("name", list(results.FIGURES))
def test_figures_are_drawn_from_their_tables(name: str, tmp_path: Path) -> None:
    table, draw = results.FIGURES[name]
    data = pl.read_parquet(results.FOLDER / table)
    draw(data, tmp_path / "first.png")
    draw(data.with_columns(pl.col(pl.Float32, pl.Float64) * 0.5), tmp_path / "other.png")
    assert (tmp_path / "first.png").read_bytes() != (tmp_path / "other.png").read_bytes()
    assert (results.FOLDER / name).exists()


def test_only_seeds_finished_everywhere_are_published() -> None:
    trials = pl.DataFrame({"seed": [0, 0, 1, 1, 2], "complexity_ratio": [0.0, 1.0, 0.0, 1.0, 0.0]})
    assert results.whole_seeds(trials)["seed"].unique().sort().to_list() == [0, 1]
