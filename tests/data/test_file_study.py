"""The whole study of docs/data.md on a question file of one's own, and question files by URI."""

from __future__ import annotations

import functools
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pytest
from PIL import Image

from orchestrator.config import QuestionsConfig, RunConfig, ScenesConfig
from orchestrator.config.sweep import load_sweep, make_sweep
from orchestrator.data.examples import make_example
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.render import render
from orchestrator.errors import DataError
from orchestrator.study.preflight import check_file_questions
from orchestrator.study.run import run_study
from tests.data.own_files import write_own_questions

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))


def test_the_documented_study_runs_on_rows_of_ones_own(tmp_path: Path) -> None:
    rows = write_own_questions(tmp_path / "my_questions", 60)
    rows[5]["answer"] = "plaid"  # not among its choices
    (tmp_path / "my_questions" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_questions" / "7.png").unlink()
    file = tmp_path / "my_study.yaml"
    text = next(b for b in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL) if "my-study" in b)
    file.write_text(text.replace("[0.0, 0.5, 1.0]", "[0.0, 1.0]").replace("[0, 1, 2]", "[0]"))
    shorter = [
        f"data.root={tmp_path / 'my_questions'}",
        f"storage={tmp_path / 'r'}",
        "how.backend=local",
        "how.torch_threads=1",
        "capture.metrics=[gini,stable_rank]",
        "capture.layers=[2]",
        "probe.solvers=[ridge]",
        "correlate.n_bootstrap=5",
        "finetune.n_steps=1",
        "finetune.n_examples=8",
        "finetune.batch_size=4",
        "finetune.n_capture_images=4",
        "finetune.n_capture_questions=0",
        "ablate.deleted_shares=[0.5]",
        "ablate.seeds=[0]",
        "ablate.n_per_family=4",
    ]
    study, page = run_study(load_sweep(file, shorter), quiet=True)
    assert Path(page).is_file()
    point = study.record["points"][0]
    tables = {stage: tmp_path / "r" / stage / digest for stage, digest in point["stages"].items()}
    related = pl.read_parquet(tables["correlate"] / "correlations" / "*.parquet")
    assert {"n_people", "edge_density", "entropy", "family"} <= set(related["attribute"])
    probed = pl.read_parquet(tables["probe"] / "probes" / "*.parquet")
    assert "n_people" in set(probed["attribute"])
    trial = pl.read_parquet(tables["finetune"] / "trials" / "*.parquet")
    assert {"accuracy/low/colour", "accuracy/high/existence", "questions/high/words"} <= set(trial.columns)
    answers = pl.read_parquet(tables["finetune"] / "answers" / "*.parquet")
    asked = pl.read_parquet(tables["ablate"] / "deletion_answers" / "*.parquet")
    for stage in ("capture", "finetune", "ablate"):
        name = {"capture": "rejected", "finetune": "trial_rejected", "ablate": "ablate_rejected"}[stage]
        reasons = pl.read_parquet(tables[stage] / name / "*.parquet").sort("index")["reason"].to_list()
        assert [("plaid" in a, "7.png: missing file" in b) for a, b in [reasons]] == [(True, True)]
        assert reasons[0].startswith("questions.jsonl, line 6: answer")
        assert stage == "capture" or reasons[1].startswith("questions.jsonl, line 8: ")
    for table in (answers, asked):
        assert set(table["question_id"]) <= {f"q{i}" for i in range(60)}
        assert set(table["tier"]) == {"low", "high"}


def test_a_trial_on_boxes_is_judged_by_overlap_in_both_tiers(tmp_path: Path) -> None:
    """Referring expressions in the layout of RefCOCO: [x, y, width, height] in px, asked and answered in hundredths."""
    root, rows = tmp_path / "refs", []
    (root / "train2014").mkdir(parents=True)
    for i in range(400):
        if len(rows) == 24:
            break
        scene, question = make_example(ScenesConfig(n_objects=((1, 4), (6, 12))[i % 2]), "point", None, 3, i, room=4)
        if question.detail["wording"] != "box" or i % 2 != len(rows) % 2:
            continue
        Image.fromarray(render(scene)).save(root / "train2014" / f"{i}.png")
        x0, y0, x1, y1 = (
            int(v) * size / 100
            for v, size in zip(question.answer.split(), [scene.width, scene.height] * 2, strict=True)
        )
        rows.append({"ref_id": i, "file_name": f"{i}.png", "bbox": [x0, y0, x1 - x0, y1 - y0], "n": len(scene.objects)})
        rows[-1]["sentences"] = [{"sent": question.text}]
    (root / "refs.json").write_text(json.dumps(rows))
    (root / "rows.jsonl").write_text(
        "".join(
            json.dumps({"question": r["sentences"][0]["sent"], "image": f"train2014/{r['file_name']}", "n": r["n"],
                        "family": "referring", "box": [r["bbox"][0], r["bbox"][1], r["bbox"][0] + r["bbox"][2],
                                                       r["bbox"][1] + r["bbox"][3]]}) + "\n" for r in rows
        )
    )  # fmt: skip
    published = QuestionSource(QuestionsConfig(root=str(root), file=("refs.json",), layout="refcoco"))
    own = open_rows(str(root), file=("rows.jsonl",))
    assert [published.asked(i).answer for i in range(24)] == [own.asked(i).answer for i in range(24)]
    task = {"source": "questions", "families": ["referring"], "complexity": "n"}
    finetune = {"task": task, "n_steps": 1, "n_examples": 4, "batch_size": 4, "n_capture_images": 2}
    finetune |= {"n_capture_questions": 0, "complexity_ratio": 0.5}
    base = {"model": {"name": "reference-joint"}, "finetune": finetune, "how": {"backend": "local", "torch_threads": 1}}
    base["data"] = {"source": "questions", "root": str(root), "file": "rows.jsonl"}
    run_study(
        make_sweep({"name": "boxes", "storage": str(tmp_path / "r"), "stages": ["finetune"], "base": base}), quiet=True
    )
    answers = pl.read_parquet(tmp_path / "r" / "finetune" / "*" / "answers" / "*.parquet")
    assert set(answers["scoring"]) == {"box"}
    assert set(answers["tier"]) == {"low", "high"}
    trial = pl.read_parquet(tmp_path / "r" / "finetune" / "*" / "trials" / "*.parquet")
    for tier, part in answers.group_by("tier"):
        wanted = []
        for row in part.iter_rows(named=True):
            found, right = (re.findall(r"[0-9.]+", row[key]) for key in ("predicted", "answer"))
            wanted.append(len(found) == 4 and overlap_in_pixels(found, right) >= 0.5)
        assert trial[f"accuracy/{tier[0]}/referring"].item() == pytest.approx(sum(wanted) / len(wanted))


def overlap_in_pixels(a: list[str], b: list[str]) -> float:
    masks = np.zeros((2, 100, 100), bool)
    for mask, box in zip(masks, (a, b), strict=True):
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        mask[y0:y1, x0:x1] = True
    return (masks[0] & masks[1]).sum() / max(1, (masks[0] | masks[1]).sum())


def open_rows(root: str, **options: Any) -> QuestionSource:
    return QuestionSource(QuestionsConfig(root=root, **{"file": ("questions.jsonl",), **options}))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_own_questions(tmp_path / "own", 6)
    return tmp_path / "own"


@pytest.fixture
def web(own: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(own))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def same_as_local(there: QuestionSource, own: Path) -> None:
    here = open_rows(str(own))
    assert list(there.ids) == list(here.ids)
    assert (there.load(3).image == here.load(3).image).all()
    assert there.question(4) == here.question(4)
    assert there.fingerprint() == here.fingerprint()


def test_rows_and_images_lie_in_memory(own: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(own), "/vtsweep-own", recursive=True)
    try:
        same_as_local(open_rows("memory://vtsweep-own"), own)
    finally:
        fs.rm("/vtsweep-own", recursive=True)


def test_rows_and_images_lie_on_a_web_server(own: Path, web: str) -> None:
    same_as_local(open_rows(web), own)


def test_a_missing_image_of_a_web_server_is_a_bad_row_and_not_a_fault_of_the_network(own: Path, web: str) -> None:
    (own / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png: missing file"):
        open_rows(web).load(2)


# ---------------------------------------------------------------- none, several, moving


def with_images(root: Path, images: list[Any]) -> RunConfig:
    rows = write_own_questions(root, len(images))
    for row, image in zip(rows, images, strict=True):
        row["image"] = image
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "questions", "root": str(root), "file": "questions.jsonl"}
    return RunConfig.model_validate({"data": data})


def test_rows_without_an_image_are_refused_by_capture_and_asked_by_other_stages(tmp_path: Path) -> None:
    run = with_images(tmp_path / "d", ["0.png", None, "2.png", "3.png"])
    with pytest.raises(DataError, match=r"questions\.jsonl, line 2 has no image, as 1 of 4 rows"):
        check_file_questions(run, ["capture"])
    check_file_questions(run, ["finetune"])
    source = open_rows(run.data.root)  # type: ignore[union-attr]
    assert source.shown(1) is None
    assert source.shown(0) is not None


def test_a_row_of_several_images_is_refused_before_work(tmp_path: Path) -> None:
    run = with_images(tmp_path / "d", ["0.png", "1.png", ["2.png", "0.png"], "3.png"])
    with pytest.raises(DataError, match=r"questions\.jsonl, line 3 names several, as 1 of 4 rows do"):
        check_file_questions(run, ["finetune"])
    assert sorted(open_rows(run.data.root).image_names()) == [f"{i}.png" for i in range(4)]  # type: ignore[union-attr]


def test_a_video_is_a_bad_row(tmp_path: Path) -> None:
    run = with_images(tmp_path / "d", ["0.png", "a.MP4"])
    with pytest.raises(DataError, match=r"line 2: image: 'a\.MP4' is a video"):
        check_file_questions(run, ["capture"])
