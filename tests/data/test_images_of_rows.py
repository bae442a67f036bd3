"""Rows of several images, and rows of none: read, identified, asked of a model, and refused where it takes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from orchestrator.ablate.bench import Bench
from orchestrator.ablate.questions import make_questions
from orchestrator.answers.evaluate import answer_table, predict
from orchestrator.answers.prepared import Prepared
from orchestrator.capture.loading import from_row, load_shard, to_row
from orchestrator.config import ModelConfig, QuestionsConfig, RunConfig, TaskConfig
from orchestrator.data.file_questions import FileQuestions
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.mixture import ExampleMaker
from orchestrator.data.overview import survey
from orchestrator.data.pixel_source import with_pixels
from orchestrator.errors import DataError, ModelError
from orchestrator.finetune.drift import take_snapshot
from orchestrator.models.planning import check_context, footprint
from orchestrator.study.estimate import Machine, stage_seconds
from orchestrator.study.preflight import check_file_questions
from orchestrator.study.row_pictures import row_footprint, row_pictures, rows_without_image
from tests.data.own_files import write_own_questions
from tests.models.processors import processed_adapter

IMAGES: list[Any] = ["0.png", None, ["1.png", "2.png"], ["2.png", "3.png", "3.png"], "4.png", "5.png"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))


def write(root: Path, images: list[Any] = IMAGES, key: str = "image") -> Path:
    rows = write_own_questions(root, len(images), families=("colour",))
    for row, image in zip(rows, images, strict=True):
        del row["image"], row["album"], row["choices"]
        row[key if isinstance(image, list) else "image"] = image
        row |= {"question": "what is it ?", "answer": "red", "tier": "low"}
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def open_rows(root: Path, **options: Any) -> QuestionSource:
    return QuestionSource(QuestionsConfig(root=str(root), file=("questions.jsonl",), **options))


@pytest.mark.parametrize("key", ["image", "images"])
def test_rows_show_their_images_in_order(tmp_path: Path, key: str) -> None:
    source = open_rows(write(tmp_path / "d", key=key))
    assert source.shown(1) is None
    single, both = source.load(0), source.load(2)
    assert single.pictures is single.image
    for one, name in zip(both.pictures, ["1.png", "2.png"], strict=True):
        assert (one == source.pictures.pixels(source.record(0), [name])[0]).all()
    assert [source.attributes(i)["n_images"] for i in range(6)] == [1, 0, 2, 3, 1, 1]
    assert "images" not in source.attribute_kinds
    counts = source.image_counts()
    assert (counts.n_without, counts.n_several, counts.most) == (1, 2, 3)
    assert counts.first_several == "questions.jsonl, line 3"
    seen = survey(source)
    assert (seen.n_opened, seen.faults) == (5, [])


def test_rows_that_share_any_image_are_one_cluster_and_every_image_counts(tmp_path: Path) -> None:
    source = open_rows(write(tmp_path / "d"))
    clusters = source.clusters.to_list()
    assert clusters[2] == clusters[3]
    assert len(set(clusters)) == 5
    before = source.fingerprint()
    (tmp_path / "d" / "3.png").write_bytes((tmp_path / "d" / "0.png").read_bytes())
    assert open_rows(tmp_path / "d").fingerprint() != before
    (tmp_path / "d" / "3.png").unlink()
    assert open_rows(tmp_path / "d", max_rejected_fraction=0.2).present.tolist() == [
        True,
        True,
        True,
        False,
        True,
        True,
    ]
    with pytest.raises(DataError, match=r"1 of 6 rows have no image file, the first questions\.jsonl, line 4: 3\.png"):
        _ = open_rows(tmp_path / "d").present


def test_several_images_travel_between_processes_and_pixels_are_their_mean(tmp_path: Path) -> None:
    source = with_pixels(open_rows(write(tmp_path / "d"), max_rejected_fraction=0.2), ["entropy", "n_segments"])
    loaded = load_shard(source, range(4))
    assert loaded[1].reason is not None
    assert "line 2: it has no image" in loaded[1].reason
    _, arrived = from_row(to_row(7, loaded))
    for one, other in zip(loaded, arrived, strict=True):
        assert (one.image is None) == (other.image is None)
        assert len(one.more) == len(other.more)
        for a, b in zip(one.more, other.more, strict=True):
            assert np.array_equal(a, b)
    each = [with_pixels(source.source, ["entropy"]).load(0).attributes["entropy"]]  # type: ignore[attr-defined]
    assert each[0] == loaded[0].attributes["entropy"]
    alone = open_rows(write(tmp_path / "e", ["0.png", "1.png", "2.png"]))
    found = [with_pixels(alone, ["entropy"]).load(i).attributes["entropy"] for i in (1, 2)]
    assert loaded[2].attributes["entropy"] == pytest.approx(np.mean(found))


def test_a_box_needs_one_picture(tmp_path: Path) -> None:
    root = write(tmp_path / "d")
    rows = [json.loads(line) for line in (root / "questions.jsonl").read_text().splitlines()]
    rows[2]["box"] = [1, 1, 20, 20]
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_rows(root, max_rejected_fraction=0.5)
    assert "line 3: a box or point needs a picture, and one alone" in (source.fault(2) or "")
    with pytest.raises(DataError, match="one alone"):
        source.load(2)


def test_a_model_of_one_image_is_named_before_work_and_others_are_not_refused(tmp_path: Path) -> None:
    data = {"source": "questions", "root": str(write(tmp_path / "d")), "file": "questions.jsonl"}
    run = RunConfig.model_validate({"data": data, "model": {"name": "reference-joint"}})
    with pytest.raises(DataError, match=r"line 3 names several, as 2 of 6 rows do\. reference-joint, llava: this fam"):
        check_file_questions(run, ["finetune"])
    other = RunConfig.model_validate({"data": data, "model": {"name": "qwen2.5-vl-3b"}})
    check_file_questions(other, [])


def test_rows_of_no_one_and_several_images_are_answered_and_measured_alike(tmp_path: Path) -> None:
    adapter = processed_adapter("qwen2_5_vl")
    maker = ExampleMaker(TaskConfig(source="questions"), open_rows(write(tmp_path / "d")))
    asked = [maker.make("colour", "low", 0, i) for i in range(6)]
    ids = [item.question.question_id for item in asked]
    shown = [adapter.prepare(item.image(), item.question.text) for item in asked]
    n_vision = {name: int(adapter.n_vision(example)[0]) for name, example in zip(ids, shown, strict=True)}
    assert n_vision["q1"] == 0
    assert n_vision["q3"] == 3 * n_vision["q0"]
    prepared = Prepared(adapter)
    replies = predict(adapter, prepared, asked, 4)
    alone = [predict(adapter, prepared, [item], 1)[0] for item in asked]
    assert replies == alone
    assert answer_table(asked, replies).height == 6
    examples = [prepared.prompt(item) for item in asked]
    snapshot = take_snapshot(
        adapter, examples, ids, prepared.batches(dict(enumerate(examples)), 4), ["gini", "stable_rank"], 8
    )
    vision = snapshot.metrics.filter(pl.col("group") == "vision")
    assert set(vision["image_id"]) == set(ids) - {"q1"}  # absent, not zero
    assert set(snapshot.metrics.filter(pl.col("group") == "text")["image_id"]) == set(ids)
    assert not vision["gini"].is_nan().any()
    for row in vision.iter_rows(named=True):
        assert row["n_tokens"] == n_vision[row["image_id"]]


def test_deletion_asks_rows_with_images_alone_and_downsampling_shrinks_each(tmp_path: Path) -> None:
    adapter = processed_adapter("qwen2_5_vl")
    source = open_rows(write(tmp_path / "d"))
    assert len(FileQuestions(source).rows["colour", "low"]) == 6
    maker = ExampleMaker(TaskConfig(source="questions"), source, with_image=True)
    assert maker.at_most("colour", "low", 0, 99) == 5
    asked = [maker.make("colour", "low", 0, i) for i in range(5)]
    bench = Bench(adapter, asked, 4)
    full, half = bench.plain.kept, bench.deleted("random", 0.5).kept
    assert (np.abs(half - full / 2) <= 1).all()
    smaller = bench.keeping([0.9] * 5, "downsample").kept
    assert (smaller < full).all()


def test_capture_of_rows_without_images_is_refused_with_the_reason(tmp_path: Path) -> None:
    data = {"source": "questions", "root": str(write(tmp_path / "d")), "file": "questions.jsonl"}
    run = RunConfig.model_validate({"data": data, "model": {"name": "qwen2.5-vl-3b"}})
    with pytest.raises(DataError, match=r"line 2 has no image, as 1 of 6 rows; capture needs one for each\. Leave"):
        check_file_questions(run, ["capture"])
    run = RunConfig.model_validate({"data": {**data, "max_rejected_fraction": 0.2}, "model": {"name": "qwen2.5-vl-3b"}})
    check_file_questions(run, ["capture"])


def test_rows_without_an_image_are_counted_by_plan_and_recorded_by_what_leaves_them_out(tmp_path: Path) -> None:
    root = write(tmp_path / "d", ["0.png", None, "1.png", None, "9.png"])
    data = {"source": "questions", "root": str(root), "file": "questions.jsonl", "max_rejected_fraction": 0.6}
    task = {"source": "questions", "families": ["colour"]}
    ablate = {"source": "questions", "low_families": ["colour"], "high_families": []}
    run = RunConfig.model_validate(
        {"data": data, "model": {"name": "qwen2.5-vl-3b"}, "finetune": {"task": task}, "ablate": ablate}
    )
    told = rows_without_image([run, run], ["capture", "finetune", "ablate"])
    assert told == [
        "2 of 5 rows have no image (questions.jsonl, line 2 first): capture records them as rejected, training and "
        "evaluation ask them as text, ablation leaves them out (table ablate_rejected)"
    ]
    assert "ablation" not in rows_without_image([run], ["capture"])[0]
    assert rows_without_image([run], ["baseline"]) == []
    rejected: list[tuple[int, str, str]] = []
    asked = make_questions(run, rejected=rejected)
    assert {one.question.question_id for one in asked} == {"q0", "q2"}
    assert [(i, name) for i, name, _ in rejected] == [(1, "q1"), (3, "q3"), (4, "q4")]
    assert rejected[0][2] == "questions.jsonl, line 2: it has no image; there is nothing to take away"
    assert "9.png: missing file" in rejected[2][2]
    trained = ExampleMaker(TaskConfig.model_validate(task), open_rows(root, max_rejected_fraction=0.6))
    assert [name for _, name, _ in trained.rejected()] == ["q4"]  # training asks q1 and q3 as text


def test_plan_counts_every_image_of_a_row(tmp_path: Path) -> None:
    images = ["0.png", ["1.png", "2.png"], ["1.png", "2.png", "3.png"]]
    data = {"source": "questions", "root": str(write(tmp_path / "d", images)), "file": "questions.jsonl"}
    run = RunConfig.model_validate({"data": data, "model": {"name": "qwen2.5-vl-3b"}})
    assert row_pictures(run) == {1: 1, 2: 1, 3: 1}
    one, planned = footprint(run), row_footprint(run)
    assert (one.pictures, planned.pictures) == (1, 2)
    assert planned.vision_tokens == 2 * one.vision_tokens
    # Attention makes passes grow faster than their tokens; the prompt is shared.
    assert 1.7 < planned.tflop_per_image / one.tflop_per_image < 2.5
    assert planned.memory_gb > footprint(run, {2: 1}).memory_gb > one.memory_gb
    assert planned.bytes_per_image > one.bytes_per_image
    took = [stage_seconds("capture", run, 1000, size, Machine(1, 16.0, 0, "", None, 1e12)) for size in (one, planned)]
    assert 1.7 < took[1] / took[0] < 2.5
    assert row_pictures(run.model_copy(update={"model": ModelConfig(name="reference-joint")})) is None


def test_context_holds_all_images_of_a_row() -> None:
    model = ModelConfig(name="llava-onevision-7b")  # 32,768 tokens
    check_context(model, 480, 640, n_pictures=2)
    with pytest.raises(ModelError, match=r"50 images of 640 x 480 px and their question .* holds 32768.* fewer of"):
        check_context(model, 480, 640, n_pictures=50)
