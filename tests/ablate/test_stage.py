"""The stage on the shipped reference model: 0 % is the plain model; resume, digests, policy file, evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from orchestrator.ablate.ablate_stage import POLICY_FILE
from orchestrator.ablate.ablate_stage import ablate_stage as ablation_folder
from orchestrator.ablate.cells import Cell
from orchestrator.ablate.evaluate import evaluate_points
from orchestrator.ablate.policy_file import load_policy
from orchestrator.ablate.questions import half_of, make_questions
from orchestrator.ablate.runner import Ablation, load_model
from orchestrator.answers.judging import judge
from orchestrator.config import RunConfig
from orchestrator.config.sweep import make_sweep
from orchestrator.errors import ConfigError
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import SUCCESS, Stage
from orchestrator.study.resolve import resolve, resolve_run
from tests.points import ablate_stage, run_ablate

ABLATE: dict[str, Any] = {
    "checks": ["deletion", "knockout", "patching", "policy", "link"],
    "low_families": ["colour", "shape"],
    "high_families": ["count"],
    "n_per_family": 8,
    "deleted_shares": [0.5, 1.0],
    "methods": ["random", "leverage", "downsample"],
    "seeds": [0, 1],
    "window": 3,
    "patched": ["colour"],
}
HOW = {"backend": "local", "batch_size": 12, "torch_threads": 1}


def make_run(how: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    return RunConfig.model_validate({"ablate": {**ABLATE, **settings}, "how": {**HOW, **(how or {})}})


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(str(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def stage(storage: Storage) -> Stage:
    return run_ablate(make_run(), storage, quiet=True)


def test_nothing_deleted_and_nothing_blocked_are_the_plain_model(stage: Stage) -> None:
    adapter, right = load_model(make_run()), {}
    for item in make_questions(make_run()):
        batch = adapter.collate([adapter.prepare(item.image(), item.question.text)])
        right[item.question.question_id] = judge(item.question, adapter.generate(batch)[0])[0]
    plain = stage.scan("deletion_answers").filter(pl.col("deleted_share") == 0).collect()
    assert plain["method"].n_unique() == 3
    assert plain["correct"].to_list() == [right[q] for q in plain["question_id"]]
    deletion, knockout = stage.scan("deletion").collect(), stage.scan("knockout").collect()
    keys = ["tier", "family"]
    none = knockout.filter(pl.col("last_layer") == -1).sort(keys)["accuracy"]
    assert none.equals(deletion.filter((pl.col("deleted_share") == 0) & (pl.col("seed") == 1)).sort(keys)["accuracy"])
    every = knockout.filter((pl.col("first_layer") == 0) & (pl.col("last_layer") == 5)).sort(keys)["accuracy"]
    gone = (pl.col("deleted_share") == 1) & (pl.col("method") == "leverage")
    assert every.equals(deletion.filter(gone).sort(keys)["accuracy"])


def test_tables_hold_every_setting(stage: Stage) -> None:
    deletion = stage.scan("deletion").collect()
    assert deletion.height == 3 * (2 * 3 + 2 * 3)  # families x (seeds x shares of random, shares of two methods)
    assert stage.scan("deletion_answers").select(pl.len()).collect().item() == 8 * deletion.height
    metrics = stage.scan("question_metrics").collect()
    assert set(metrics["depth"]) == {"projector", "early", "middle", "late"}
    assert metrics.height == 4 * 24
    flips = stage.scan("patching").sort("layer").collect()
    assert flips["flip_share"][0] == 1.0  # the first layer's states are all there is of an image


def test_a_stage_that_is_done_is_not_done_again_and_a_lost_shard_alone_is(stage: Stage) -> None:
    files = sorted(Path(stage.store.path("")).rglob("*.parquet"))
    before = {file: file.stat().st_mtime_ns for file in files}
    run_ablate(make_run(how={"batch_size": 5}), stage.storage, quiet=True)
    assert {file: file.stat().st_mtime_ns for file in files} == before
    kept = stage.scan("deletion").collect().drop("seconds")
    for name in (SUCCESS, "deletion/00001.parquet"):
        Path(stage.store.path(name)).unlink()
    run_ablate(make_run(), stage.storage, quiet=True)
    changed = {file.parent.name for file in files if file.stat().st_mtime_ns != before[file] and file.stem == "00001"}
    assert changed == {"deletion", "deletion_answers"}
    assert not [file for file in files if file.parent.name == "patching" and file.stat().st_mtime_ns != before[file]]
    assert stage.scan("deletion").collect().drop("seconds").equals(kept)
    assert stage.is_done()


def test_the_digest_follows_what_is_asked_and_not_how(storage: Storage) -> None:
    first = ablate_stage(make_run(), storage).digest
    assert ablate_stage(make_run(how={"batch_size": 3}), storage).digest == first
    assert ablate_stage(make_run(seed=1), storage).digest != first


@pytest.mark.parametrize(
    ("kind", "settings"), [("metrics", {"checks": ["deletion", "link"]}), ("selectors", {"methods": ["norm"]})]
)
def test_another_version_of_a_package_that_is_used_is_another_ablation(
    storage: Storage, kind: str, settings: dict
) -> None:
    """Of a package of metrics where compression is linked to the tokens needed, and of one that chooses tokens."""
    run = make_run(**settings)
    point = resolve_run(run, storage, "ablate")
    older, newer = (
        ablation_folder(replace(point, packages={kind: {"norm": f"mine {version}"}})).digest for version in ("1", "2")
    )
    assert older != newer
    if kind == "metrics":
        unused = resolve_run(make_run(checks=["deletion"]), storage, "ablate")
        with_package = replace(unused, packages={kind: {"norm": "mine 1"}})
        assert ablation_folder(with_package).digest == ablation_folder(unused).digest


def test_coco_questions_need_coco_images(storage: Storage) -> None:
    with pytest.raises(ConfigError, match=r"ablate.source: coco needs data.source: coco"):
        ablate_stage(make_run(source="coco"), storage)


def test_questions_about_photographs_are_asked_too(tmp_path: Path, coco_root: Path) -> None:
    run = RunConfig.model_validate(
        {
            "data": {"source": "coco", "root": str(coco_root)},
            "ablate": {
                "checks": ["deletion"],
                "source": "coco",
                "low_families": ["existence"],
                "high_families": ["comparison"],
                "n_objects_high": [6, 100],
                "n_per_family": 4,
                "deleted_shares": [0.5],
                "methods": ["norm"],
            },
            "how": HOW,
        }
    )
    table = run_ablate(run, Storage(str(tmp_path)), quiet=True).scan("deletion").collect()
    assert table["n"].to_list() == [4] * 4
    other = run.model_copy(update={"ablate": run.ablate.model_copy(update={"high_families": ("existence",)})})
    fresh = {half_of(item.question.image_id) for item in make_questions(other, fresh=True)}
    assert fresh == {"judge"}, "a policy was chosen on the others"


def test_a_flip_counts_however_the_model_writes_it(stage: Stage, monkeypatch) -> None:
    """As a right answer does: chat models write "Red."."""
    adapter = load_model(make_run())
    texts = adapter.texts
    monkeypatch.setattr(adapter, "texts", lambda ids: [f"{text.capitalize()}." for text in texts(ids)])
    found = Ablation(adapter, make_run()).tables(Cell("patching", attribute="colour"))["patching"]
    assert found.equals(stage.scan("patching").filter(pl.col("layer") == 0).collect())


def test_a_policy_file_is_read_back_and_applied_to_fresh_questions(stage: Stage, storage: Storage) -> None:
    file = stage.store.path(POLICY_FILE)
    policy = load_policy(file)
    assert {rule.family for rule in policy.fixed if rule.tier == "low"} == {"all", "colour", "shape"}
    base = {"ablate": ABLATE, "how": HOW}
    sweep = make_sweep({"name": "tiny", "storage": storage.uri, "base": base})
    ((_, evaluated),) = evaluate_points(resolve(sweep, ["ablate"]), file)
    table = evaluated.scan("evaluation").collect()
    low = table.filter((pl.col("tier") == "low") & (pl.col("family") == "all"))
    rows = {row["system"]: row for row in low.iter_rows(named=True)}
    assert {"all tokens", "fixed", "random", "downsample"} <= set(rows)
    assert rows["all tokens"]["difference"] == 0
    assert rows["all tokens"]["kept_share"] == 1
    assert rows["fixed"]["kept_tokens"] == rows["random"]["kept_tokens"] <= 64
    assert rows["downsample"]["n"] == 16
    ((_, again),) = evaluate_points(resolve(sweep, ["ablate"]), file)
    assert again.scan("evaluation").collect().equals(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed: [{tier: low, family: all, metod: norm, layer: 0, deleted_share: 0.5}]", "'method'"),
        ("{model: m, max_accuracy_loss: 0.01, fixed: [{deleted_share: 2}]}", "deleted_share"),
        ("[1, 2]", "expected a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_broken_policy_file_is_refused_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        load_policy(str(file))
    assert "policy.yaml" in str(raised.value)
