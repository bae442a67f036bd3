"""Ablation and policies ask the rows of question files as they ask scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from orchestrator.ablate.ablate_stage import POLICY_FILE
from orchestrator.ablate.evaluate import evaluate_points
from orchestrator.ablate.questions import half_of, make_questions
from orchestrator.config import RunConfig
from orchestrator.config.sweep import make_sweep
from orchestrator.errors import ConfigError
from orchestrator.store.filesystem import Storage
from orchestrator.study.preflight import check_file_questions
from orchestrator.study.resolve import resolve
from tests.data.own_files import write_own_questions
from tests.points import ablate_stage, run_ablate

FAMILIES = ["colour", "existence"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    write_own_questions(root, 48)
    return root


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def base(root: Path, data: dict[str, Any] | None = None, **ablate: Any) -> dict[str, Any]:
    settings = {
        "source": "questions",
        "complexity": "n_people",
        "checks": ["deletion", "policy", "link"],
        "low_families": FAMILIES,
        "high_families": FAMILIES,
        "n_per_family": 6,
        "deleted_shares": [0.5],
        "methods": ["random", "norm", "downsample"],
        "seeds": [0],
        "max_accuracy_loss": 0.5,
        **ablate,
    }
    data = {"source": "questions", "root": str(root), "file": "questions.jsonl", **(data or {})}
    return {"data": data, "ablate": settings, "how": {"backend": "local", "batch_size": 12, "torch_threads": 1}}


def make_run(root: Path, data: dict[str, Any] | None = None, **ablate: Any) -> RunConfig:
    return RunConfig.model_validate(base(root, data, **ablate))


def test_a_policy_is_chosen_and_judged_on_the_rows_of_a_question_file(root: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    stage = run_ablate(make_run(root), storage, quiet=True)
    answers = stage.scan("deletion_answers").filter(pl.col("method") == "norm").collect()
    assert set(answers["question_id"]) <= {f"q{i}" for i in range(48)}
    by_tier = answers.unique("question_id").group_by("tier", "family").len()
    assert by_tier["len"].to_list() == [6] * 4
    sweep = make_sweep({"name": "own", "storage": storage.uri, "base": base(root)})
    ((_, evaluated),) = evaluate_points(resolve(sweep, ["ablate"]), stage.store.path(POLICY_FILE))
    table = evaluated.scan("evaluation").collect()
    assert set(table["system"]) >= {"all tokens", "fixed", "random", "downsample"}
    assert set(table["tier"]) == {"low", "high"}


def test_rows_are_asked_once_and_fresh_ones_come_from_the_judging_half(root: Path) -> None:
    run = make_run(root, n_per_family=100)
    asked = [item.question.question_id for item in make_questions(run)]
    assert len(asked) == len(set(asked)) > 24
    fresh = make_questions(run, fresh=True)
    assert {half_of(item.question.cluster) for item in fresh} == {"judge"}
    assert 0 < len(fresh) < len(asked)


def test_groups_are_what_is_split_and_counted_as_one(root: Path) -> None:
    run = make_run(root, {"fields": {"group": "album"}}, n_per_family=100)
    albums = {item.question.question_id: item.question.cluster for item in make_questions(run)}
    assert all(album == f"a{int(name[1:]) // 6}" for name, album in albums.items())
    fresh = {item.question.cluster for item in make_questions(run, fresh=True)}
    assert fresh == {album for album in albums.values() if half_of(album) == "judge"}


def test_rows_without_tiers_are_one_tier(root: Path, tmp_path: Path) -> None:
    run = make_run(root, complexity=None, checks=["deletion"], methods=["norm"], high_families=[])
    assert {item.question.tier for item in make_questions(run)} == {"all"}
    table = run_ablate(run, Storage(str(tmp_path)), quiet=True).scan("deletion").collect()
    assert set(table["tier"]) == {"all"}
    assert set(table["family"]) == set(FAMILIES)


def test_what_the_rows_lack_is_refused_before_work(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no answered low rows of family 'color' with an image; there are: colour"):
        check_file_questions(make_run(root, low_families=["color"]), ["ablate"])
    with pytest.raises(ConfigError, match=r"no numeric column 'n_peple'.*Did you mean 'n_people'"):
        check_file_questions(make_run(root, complexity="n_peple"), ["ablate"])
    task = {"finetune": {"task": {"source": "questions", "families": FAMILIES}}}
    with pytest.raises(ConfigError, match=r"no row has a tier.*name a numeric column .*n_people"):
        check_file_questions(RunConfig.model_validate(base(root) | task), ["finetune"])
    with pytest.raises(ConfigError, match=r"ablate.source: questions needs data.source: questions, found scenes"):
        ablate_stage(RunConfig.model_validate({"ablate": {"source": "questions"}}), Storage(str(tmp_path)))
