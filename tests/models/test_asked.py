"""What stages will ask of a model is known before work: lengths, words, and what is cut off pictures."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.config import CocoConfig, ModelConfig, QuestionsConfig
from orchestrator.data.coco import CocoSource
from orchestrator.data.picture_sizes import distinct_sizes, header_size, picture_sizes
from orchestrator.data.source import make_source
from orchestrator.errors import ModelError, VtsweepError
from orchestrator.models.catalogue import entries, resolve
from orchestrator.models.check import check_model
from orchestrator.models.cuts import known_cut
from orchestrator.models.fitting import cut_shape
from orchestrator.models.known_config import read_config
from orchestrator.models.loading import load_processor
from orchestrator.models.visual_tokens import visual_load
from orchestrator.study.asked import Asking
from orchestrator.study.plan import make_plan
from orchestrator.study.planned_pictures import planned_pictures
from orchestrator.study.preflight import preflight
from tests.conftest import tiny_study
from tests.models.published import save_family


def copy_of_reference(folder: Path) -> Path:
    shipped = entries()["reference-joint"].folder
    assert shipped is not None
    shutil.copytree(shipped, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def edit(file: Path, change: Callable[[dict], object]) -> None:
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))


def refused(sweep, match: str, stages: tuple[str, ...] = ("capture",)) -> None:
    """By run's preflight and by plan."""
    with pytest.raises(ModelError, match=match):
        preflight(sweep, stages)
    try:
        problems = make_plan(sweep).problems
    except VtsweepError as error:
        problems = [str(error)]
    assert any(match in problem for problem in problems), problems


def question_root(folder: Path, questions: list[str], size: tuple[int, int] = (40, 30)) -> Path:
    folder.mkdir()
    Image.new("RGB", size).save(folder / "0.png")
    rows = [{"id": f"q{k}", "image": "0.png", "question": text, "answer": "1"} for k, text in enumerate(questions)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("shipped", [True, False])
def test_one_question_beyond_the_context_is_refused_before_work(tmp_path: Path, shipped: bool) -> None:
    name = "reference-joint" if shipped else str(copy_of_reference(tmp_path / "model"))
    questions = ["how many red circles are there ?"] * 20
    questions[13] = " ".join(["how many red circles are there ?"] * 200)
    root = question_root(tmp_path / "data", questions)
    data = {"source": "questions", "root": str(root), "file": ["q.jsonl"]}
    sweep = tiny_study(tmp_path / "results", base={"model": {"name": name}, "data": data})
    refused(sweep, "the model's context holds")
    few = data | {"n_images": 5, "seed": 1}  # another draw, without that row
    assert 13 not in make_source(QuestionsConfig.model_validate(few)).chosen.tolist()
    preflight(tiny_study(tmp_path / "results", base={"model": {"name": name}, "data": few}), ("capture",))


def test_one_large_picture_beyond_the_context_is_refused_before_work(tmp_path: Path) -> None:
    """The size that makes most tokens is tried, whatever the others are."""
    folder = save_family("llava_next", tmp_path / "model")
    config = read_config(resolve(ModelConfig(name=str(folder))))
    sizes = [(16, 16), (12, 60), (40, 40), (60, 12), (20, 36), (70, 70)]  # height, width
    few, *_, most = sorted(sizes, key=lambda size: visual_load(config, *size).placeholders)
    assert visual_load(config, *few).placeholders < visual_load(config, *most).placeholders
    root = tmp_path / "data"
    root.mkdir()
    for k in range(12):
        Image.new("RGB", (most if k == 7 else few)[::-1]).save(root / f"{k}.png")
    (root / "attributes.csv").write_text("file,n\n" + "".join(f"{k}.png,{k}\n" for k in range(12)))
    base = {"model": {"name": str(folder)}, "data": {"source": "folder", "root": str(root)}}
    base["capture"] = {"prompt": "what?"}
    sweep = tiny_study(tmp_path / "results", base=base)
    preflight(sweep, ("capture",))
    length = load_length(folder, few)
    edit(folder / "config.json", lambda c: c["text_config"].update(max_position_embeddings=length))
    refused(sweep, f"the model's context holds {length}")
    Image.new("RGB", few[::-1]).save(root / "7.png")
    preflight(sweep, ("capture",))


def load_length(folder: Path, size: tuple[int, int]) -> int:
    from orchestrator.models.loading import load_adapter

    adapter = load_adapter(ModelConfig(name=str(folder)), "meta")
    return adapter.prepare(np.zeros((*size, 3), dtype=np.uint8), "what?")["input_ids"].shape[1]


def coco_of(root: Path, category: str) -> Path:
    """Two pictures of 60 x 40 px with an object in the middle, one at the left edge and one across the cut."""
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    boxes = [[25, 10, 10, 10], [0, 0, 5, 5], [5, 5, 10, 10]]
    document = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 60, "height": 40} for k in (1, 2)],
        "annotations": [
            {"id": 3 * k + i, "image_id": k, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for k in (1, 2)
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": category}],
    }
    for k in (1, 2):
        Image.new("RGB", (60, 40), (k, 9, 9)).save(root / "val2017" / f"{k}.png")
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
    return root


def test_a_category_that_the_tokeniser_cannot_express_is_refused_with_the_word(tmp_path: Path) -> None:
    for name in ("reference-joint", str(copy_of_reference(tmp_path / "model"))):
        for category in ("dog", "armadillo"):
            root = tmp_path / category
            data = {"source": "coco", "root": str(root if root.exists() else coco_of(root, category))}
            base = {"model": {"name": name}, "data": data, "finetune": {"task": {"source": "coco"}}}
            (point,) = tiny_study(tmp_path / "results", base=base).points
            known = category == "dog"
            with contextlib.nullcontext() if known else pytest.raises(ModelError, match="no token for 'armadillo'"):
                check_model(point.run.model, **Asking(("finetune",))(point.run))


def test_sizes_are_read_from_headers_as_pictures_are_decoded(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (20, 10)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    (tmp_path / "attributes.csv").write_text("file,n\na.jpg,1\nb.png,2\nc.png,3\n")
    source = make_source(
        tiny_study(tmp_path, base={"data": {"source": "folder", "root": str(tmp_path)}}).points[0].run.data
    )
    assert picture_sizes(source) == {0: (60, 40), 1: (10, 20)}
    assert picture_sizes(source)[0] == source.load(0).image.shape[:2]
    assert distinct_sizes(source) == [(10, 20), (60, 40)]
    assert header_size(source.fs, str(tmp_path / "c.png")) is None


@pytest.mark.parametrize("name", ["reference-joint", "reference-cross"])
def test_what_a_processor_cuts_is_known_from_its_files(name: str) -> None:
    assert known_cut(ModelConfig(name=name)) == cut_shape(load_processor(resolve(ModelConfig(name=name))))
    assert known_cut(ModelConfig(name="llava-1.5-7b")) == (336, 336)
    assert known_cut(ModelConfig(name="qwen2.5-vl-7b")) is None


def cutting_copy(folder: Path) -> Path:
    """The reference model with LLaVA-1.5's way to cut the middle out of a picture."""
    copy = copy_of_reference(folder)
    settings = {"do_center_crop": True, "size": {"shortest_edge": 112}}
    edit(copy / "processor_config.json", lambda c: c["image_processor"].update(settings))
    return copy


def test_what_is_cut_off_is_counted_and_said_by_plan(tmp_path: Path) -> None:
    root, folder = coco_of(tmp_path / "coco", "dog"), cutting_copy(tmp_path / "model")
    base = {"model": {"name": str(folder)}, "data": {"source": "coco", "root": str(root)}}
    rows = {}
    for fit in ("crop", "pad", "stretch"):
        plan = make_plan(tiny_study(tmp_path / "results", f"model.fit={fit}", base=base))
        (rows[fit],) = plan.pictures
    crop = rows["crop"]
    assert (crop.n_pictures, crop.n_changed, crop.n_places, crop.n_outside, crop.n_partly) == (2, 2, 6, 2, 2)
    assert crop.unseen_share == pytest.approx(1 / 3)
    assert crop.n_moved == 6
    assert "those outside at its edge" in crop.words
    assert "2 of 6 objects, boxes and points lie outside and 2 are cut through" in crop.words
    for fit in ("pad", "stretch"):
        assert (rows[fit].n_changed, rows[fit].n_outside, rows[fit].n_partly, rows[fit].unseen_share) == (2, 0, 0, 0)
        assert "nothing is cut off" in rows[fit].words
        assert rows[fit].n_moved == (6 if fit == "pad" else 0)
    assert planned_pictures([tiny_study(tmp_path, "model.fit=crop").points[0].run]) == []


def test_objects_cut_off_photographs_are_those_outside_the_middle_square(coco_root: Path, tmp_path: Path) -> None:
    folder = cutting_copy(tmp_path / "model")
    base = {"model": {"name": str(folder), "fit": "crop"}, "data": {"source": "coco", "root": str(coco_root)}}
    (row,) = planned_pictures([point.run for point in tiny_study(tmp_path, base=base).points])
    source = CocoSource(CocoConfig(root=str(coco_root)))
    outside = total = 0
    for index in range(len(source)):
        width, height = source.sizes[index].tolist()
        side, middle = min(width, height), np.array([width, height]) / 2
        for one in source.objects(index):
            if one.crowd:
                continue
            low = np.array([one.x, one.y])
            high = low + np.array([one.width, one.height])
            total += 1
            outside += bool((high <= middle - side / 2).any() or (low >= middle + side / 2).any())
    assert (row.n_places, row.n_outside) == (total, outside)
    assert outside > 0
