"""The lens on the reference models: the last point is the model's own choice, and an answer that settles stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from orchestrator.ablate.bench import Bench
from orchestrator.ablate.questions import make_questions
from orchestrator.ablate.reading import lens_scores, token_of
from orchestrator.ablate.runner import load_model
from orchestrator.config import RunConfig
from orchestrator.models.choosing import Branch
from orchestrator.store.filesystem import Storage
from tests.points import run_ablate

ABLATE = {"checks": ["lens"], "low_families": ["colour", "shape"], "high_families": [], "n_per_family": 10}


def make_run(model: str) -> RunConfig:
    how = {"backend": "local", "batch_size": 20, "torch_threads": 1}
    return RunConfig.model_validate({"model": {"name": model}, "ablate": ABLATE, "how": how})


@pytest.mark.parametrize("model", ["reference-joint", "reference-cross"])
def test_the_last_point_is_the_model_s_own_choice(model: str, tmp_path: Path) -> None:
    run = make_run(model)
    table = run_ablate(run, Storage(str(tmp_path)), quiet=True).scan("lens").collect()
    bench = Bench(load_model(run), make_questions(run), 20)
    probability, lead = lens_scores(bench)
    batch = bench.adapter.collate(bench.inputs)
    chosen = bench.adapter.answer(batch, [item.question.choices for item in bench.asked])
    right = [choice == item.question.answer for (_, choice), item in zip(chosen, bench.asked, strict=True)]
    assert (lead[-1] > 0).tolist() == right
    assert ((probability > 0) & (probability <= 1)).all()
    whole = table.filter(pl.col("family") == "all").sort("layer")
    assert whole["layer"].to_list() == list(range(bench.adapter.n_layers + 1))
    assert whole["above"][-1] == whole["settled"][-1] == pytest.approx(np.mean(right))
    assert whole["settled"].is_sorted(), "what is settled stays so"
    assert (whole["settled"] <= whole["above"]).all()
    assert whole["probability"][-1] > whole["probability"][0] + 0.2


def test_an_answer_s_first_token_is_found_through_branches() -> None:
    tree = Branch((), None, {7: 0, 9: Branch((9,), 1, {4: 2})})
    assert [token_of(tree, k) for k in (0, 1, 2)] == [7, 9, 9]
    assert token_of(Branch((), 0, {5: 1}), 0) is None
