"""Routes on the reference models: probabilities are those of the choices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from orchestrator.ablate.bench import Bench
from orchestrator.ablate.questions import make_questions
from orchestrator.ablate.routing import routed
from orchestrator.ablate.runner import load_model
from orchestrator.config import RunConfig
from orchestrator.models.choosing import choose, scores_of
from orchestrator.models.decoding import prompted
from orchestrator.models.routes import Route
from orchestrator.store.filesystem import Storage
from tests.points import run_ablate

HOW = {"backend": "local", "batch_size": 12, "torch_threads": 1}
ABLATE = {
    "checks": ["routes"],
    "low_families": ["colour", "count"],
    "high_families": [],
    "n_per_family": 6,
    "window": 3,
}


def make_run(model: str = "reference-joint", **settings) -> RunConfig:
    return RunConfig.model_validate({"model": {"name": model}, "ablate": {**ABLATE, **settings}, "how": HOW})


def test_the_score_of_the_best_choice_is_the_one_it_was_chosen_by() -> None:
    run = make_run()
    adapter, asked = load_model(run), make_questions(run)
    bench = Bench(adapter, asked, 12)
    batch = adapter.collate(bench.inputs)
    trees = [adapter.choice_trees.get(item.question.choices, True) for item in asked]
    with prompted(adapter, batch) as prompts:
        best = choose(prompts, trees)
        scores = scores_of(prompts, trees, [number for number, _ in best])
        every = [scores_of(prompts, trees, [k] * len(trees)) for k in range(2)]
        assert scores_of(prompts, trees, [None] * len(trees)) == [None] * len(trees)
    np.testing.assert_allclose(scores, [score for _, score in best], atol=1e-5)
    assert all(a + b <= 1 + 1e-5 for a, b in zip(*every, strict=True))


@pytest.mark.parametrize("model", ["reference-joint", "reference-cross"])
def test_the_stage_blocks_routes_by_windows_of_layers(model: str, tmp_path: Path) -> None:
    routes = ["image->question", "image->last", "question->last", "object->question", "background->question"]
    run = make_run(model, routes=routes, window=10)
    table = run_ablate(run, Storage(str(tmp_path)), quiet=True).scan("routes").collect()
    assert table.height == len(routes) * 3  # one window of all layers; the tier and two families
    whole = table.filter(pl.col("family") == "all")
    assert whole["probability_plain"].n_unique() == 1
    assert whole["probability_plain"][0] > 0.5
    by_source = {(r["source"], r["target"]): r for r in whole.iter_rows(named=True)}
    seen = by_source["object", "question"]["change"], by_source["background", "question"]["change"]
    assert seen[0] < -0.02, "the words read the objects"
    assert seen[0] < seen[1] + 0.05, "and less of the background"
    assert (whole["change_low"] <= whole["change"]).all()
    assert ((whole["flip_share"] >= 0) & (whole["flip_share"] <= 1)).all()
    assert (whole["n_flippable"] <= whole["n"]).all()


def test_nothing_blocked_is_the_plain_answer() -> None:
    run = make_run()
    bench = Bench(load_model(run), make_questions(run), 12)
    answered, chances = routed(bench, Route("image", "last"), ())
    assert answered.predicted == bench.plain.predicted
    assert ((chances > 0) & (chances <= 1)).all()
