"""The lenses on the reference models: the last point is the model's own choice, and an answer that settles stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from orchestrator.ablate.bench import Bench
from orchestrator.ablate.questions import make_questions
from orchestrator.ablate.reading import _first, read_scores, read_states, token_of
from orchestrator.ablate.runner import load_model
from orchestrator.config import RunConfig
from orchestrator.models.choosing import Branch
from orchestrator.store.filesystem import Storage
from tests.points import run_ablate

ABLATE = {"checks": ["lens"], "low_families": ["colour", "shape"], "high_families": [], "n_per_family": 24}


def make_run(model: str) -> RunConfig:
    how = {"backend": "local", "batch_size": 20, "torch_threads": 1}
    return RunConfig.model_validate({"model": {"name": model}, "ablate": ABLATE, "how": how})


@pytest.mark.parametrize("model", ["reference-joint", "reference-cross"])
def test_the_last_point_is_the_model_s_own_choice(model: str, tmp_path: Path) -> None:
    run = make_run(model)
    stage = run_ablate(run, Storage(str(tmp_path)), quiet=True)
    table, layers = (stage.scan(name).collect() for name in ("lens", "lens_layers"))
    bench = Bench(load_model(run), make_questions(run), 20)
    batch = bench.adapter.collate(bench.inputs)
    chosen = bench.adapter.answer(batch, [item.question.choices for item in bench.examples])
    right = [choice == item.question.answer for (_, choice), item in zip(chosen, bench.examples, strict=True)]
    for lens in ("logit", "tuned"):
        whole = table.filter((pl.col("family") == "all") & (pl.col("lens") == lens) & (pl.col("place") == "last"))
        whole = whole.sort("layer")
        assert whole["layer"].to_list() == list(range(bench.adapter.n_layers + 1))
        assert whole["above"][-1] == whole["settled"][-1] == pytest.approx(np.mean(right))
        assert whole["settled"].is_sorted(), "what is settled stays so"
        assert (whole["settled"] <= whole["above"]).all()
        assert whole["probability"][-1] > whole["probability"][0] + 0.2
    assert layers.filter(pl.col("family") == "all")["right_share"].to_list() == pytest.approx([np.mean(right)] * 2)
    assert ((table["probability"] > 0) & (table["probability"] <= 1)).all()
    places = set(table["place"])
    assert places == {"last", "text"} | ({"vision", "object", "background"} if model == "reference-joint" else set())
    sides = table.filter((pl.col("place") == "last") & (pl.col("family") == "all")).sort("layer")
    logit, tuned = (sides.filter(pl.col("lens") == lens)["probability"].to_numpy() for lens in ("logit", "tuned"))
    assert tuned[-2] >= logit[-2] - 0.05, "the last but one is read no worse when calibrated"


def test_the_mean_over_visual_tokens_weighs_objects_and_background_by_their_numbers() -> None:
    run = make_run("reference-joint")
    bench = Bench(load_model(run), make_questions(run)[:3], 3)
    few, all_of = read_states(bench, 2), read_states(bench, 999)
    counts = [int(n) for n in bench.adapter.n_vision(bench.adapter.collate(bench.inputs))]
    for i, n in enumerate(counts):
        of_image = np.isin(all_of.place, ("object", "background")) & (all_of.question == i)
        assert of_image.sum() == n, "every visual token is of one place"
        shares = {p: all_of.share[of_image & (all_of.place == p)][0] for p in ("object", "background")}
        assert sum(shares.values()) == pytest.approx(1.0)
        assert ((few.question == i) & (few.place == "object")).sum() == min(2, round(shares["object"] * n))
    probability, _ = read_scores(bench, all_of, "logit")
    assert np.isfinite(probability).all()


def test_first_and_for_good_are_told_apart() -> None:
    above = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=bool)
    found = _first(above)
    assert (found["first"], found["for_good"]) == (1.0, 2.0)
    assert (found["never_share"], found["right_share"], found["n"]) == (0.25, 0.5, 4)
    assert _first(np.zeros((2, 3), dtype=bool))["first"] is None


def test_an_answer_s_first_token_is_found_through_branches() -> None:
    tree = Branch((), None, {7: 0, 9: Branch((9,), 1, {4: 2})})
    assert [token_of(tree, k) for k in (0, 1, 2)] == [7, 9, 9]
    assert token_of(Branch((), 0, {5: 1}), 0) is None
