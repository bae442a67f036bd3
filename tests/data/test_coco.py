"""COCO in its official layout: subsets, crowds, odd images, bad input by name, and balanced questions."""

from __future__ import annotations

import json
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from orchestrator.config import CocoConfig
from orchestrator.data.coco import CocoSource
from orchestrator.data.coco_questions import COCO_FAMILIES, CocoQuestions
from orchestrator.data.images import safe_name
from orchestrator.data.source import make_source
from orchestrator.data.templates import vocabulary
from orchestrator.errors import ConfigError, DataError, VtsweepError

MINI = Path(__file__).parents[2].parent / "shared" / "data" / "coco_mini"
needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason="no COCO subset in ../shared/data/coco_mini")


def document(n: int = 4) -> dict[str, Any]:
    """A COCO document of n images of 60 x 40 px: image i holds i dogs, and image 2 a crowd of people besides."""
    annotations = [
        {"id": 10 * i + k, "image_id": i, "category_id": 18, "bbox": [5 * k, 4, 10, 10], "area": 80.0, "iscrowd": 0}
        for i in range(1, n + 1)
        for k in range(i)
    ]
    annotations.append(
        {"id": 999, "image_id": 2, "category_id": 1, "bbox": [0, 0, 60, 40], "area": 2000.0, "iscrowd": 1}
    )
    annotations.append(
        {"id": 998, "image_id": 3, "category_id": 1, "bbox": [40, 10, 10, 20], "area": 100.0, "iscrowd": 0}
    )
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 40} for i in range(1, n + 1)],
        "annotations": annotations,
        "categories": [
            {"id": 1, "name": "person", "supercategory": "person"},
            {"id": 18, "name": "dog", "supercategory": "animal"},
        ],
    }


def write(root: Path, content: dict[str, Any] | str | None = None) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    content = document() if content is None else content
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "annotations" / "instances_val2017.json").write_text(text)
    for i in range(1, 5):
        Image.new("RGB", (60, 40), (i * 40, 0, 0)).save(root / "val2017" / f"{i}.jpg")
    return root


def open_coco(root: Path, **options: Any) -> CocoSource:
    return CocoSource(CocoConfig(root=str(root), **options))


def test_crowds_count_apart(tmp_path: Path) -> None:
    source = open_coco(write(tmp_path))
    sample = source.load(1)
    assert sample.image_id == "val2017-000000000002"
    assert sample.attributes["n_objects"] == 2
    assert sample.attributes["n_crowds"] == 1
    assert sample.attributes["n_categories"] == 1
    assert sample.attributes["area_mean"] == pytest.approx(80 / 2400)
    assert sample.attributes["coverage"] == pytest.approx(150 / 2400)
    assert sample.objects is not None
    assert [o.crowd for o in sample.objects] == [False, False, True]


def test_a_subset_is_drawn_by_number_seed_and_categories(tmp_path: Path) -> None:
    root = write(tmp_path)
    assert len(open_coco(root)) == 4
    assert open_coco(root, categories=("person",)).ids == ["val2017-000000000003"]
    assert open_coco(root, min_objects=3).ids == ["val2017-000000000003", "val2017-000000000004"]
    three = open_coco(root, n_images=3, seed=5)
    assert set(open_coco(root, n_images=2, seed=5).ids) < set(three.ids)
    assert three.ids == open_coco(root, n_images=3, seed=5).ids
    assert len({tuple(open_coco(root, n_images=2, seed=s).ids) for s in range(8)}) > 1


def test_a_source_pickles_without_its_annotations_file(tmp_path: Path) -> None:
    source = open_coco(write(tmp_path))
    data = pickle.dumps(source)
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    again = pickle.loads(data)
    assert again.load(2).attributes == source.load(2).attributes
    assert len(data) < 6000


def test_the_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    first, second = (open_coco(write(tmp_path / name)).fingerprint() for name in ("a", "b"))
    assert first == second
    changed = document()
    changed["annotations"][0]["area"] = 81.0
    assert open_coco(write(tmp_path / "c", changed)).fingerprint() != first
    assert str(tmp_path) not in json.dumps(first)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1"])
def test_images_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    source = open_coco(write(tmp_path))
    suffix = "jpeg" if mode in ("L", "CMYK") else "png"
    Image.new("RGB", (60, 40), (204, 204, 204)).convert(mode).save(tmp_path / "val2017" / "1.jpg", format=suffix)
    image = source.load(0).image
    assert image.shape == (40, 60, 3)
    assert image.dtype == np.uint8
    if mode != "1":
        assert np.abs(image.astype(int) - 204).max() <= 6


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    source = open_coco(write(tmp_path))
    Image.fromarray(np.full((40, 60), 0.8, np.float32)).save(tmp_path / "val2017" / "1.jpg", format="tiff")
    with pytest.raises(DataError, match="floating-point pixels"):
        source.load(0)


def truncate(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="jpeg")
    path.write_bytes(path.read_bytes()[:600])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "val2017/1.jpg: missing"),
        (lambda p: p.write_bytes(b"no image"), "val2017/1.jpg: not an image"),
        (lambda p: p.write_bytes(b""), "val2017/1.jpg: not an image"),
        (truncate, "val2017/1.jpg: broken"),
        (lambda p: Image.new("RGB", (40, 60)).save(p), "40 x 60 px, its annotation says 60 x 40"),
    ],
)
def test_a_broken_image_is_named_and_the_rest_goes_on(
    tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    source = open_coco(write(tmp_path))
    spoil(tmp_path / "val2017" / "1.jpg")
    with pytest.raises(DataError, match=words):
        source.load(0)
    assert source.load(1).image.shape == (40, 60, 3)


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", "..\\b.jpg", "C:\\b.jpg", ""])
def test_a_file_name_that_leaves_the_root_is_refused(tmp_path: Path, name: str) -> None:
    content = document()
    content["images"][0]["file_name"] = name
    with pytest.raises(DataError, match="leaves the root"):
        open_coco(write(tmp_path, content))
    assert safe_name("a/b.jpg", "here") == "a/b.jpg"


def with_annotation(**fields: Any) -> dict[str, Any]:
    """A document whose one annotation has these fields."""
    plain = {"image_id": 1, "category_id": 18, "bbox": [1, 2, 3, 4], "area": 12}
    return {**document(), "annotations": [{**plain, **fields}]}


def without(key: str) -> dict[str, Any]:
    content = document()
    del content[key]
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"images": [', "broken JSON.*line 1"),
        ("[1]", "expected an object"),
        (without("images"), "expected a list under 'images'"),
        (without("annotations"), "expected a list under 'annotations'"),
        ({**document(), "images": []}, "no images"),
        ({**document(), "annotations": []}, "no annotations"),
        ({**document(), "images": [{"id": 1}]}, r"images\[0\].*file_name"),
        ({**document(), "categories": [{"id": 7, "name": "cat"}]}, "names category 18"),
        ({**document(), "images": [{"id": 77, "file_name": "a.jpg", "width": 9, "height": 9}]}, "listed image"),
        ({**document(), "annotations": [{"image_id": 1, "category_id": 18, "bbox": [1, 2, 3]}]}, "malformed"),
        ({**document(), "annotations": [{"image_id": 1, "category_id": 18, "bbox": [1, 2, -3, 4]}]}, "negative"),
        ({**document(), "images": [{"id": 1, "file_name": "1.jpg", "width": 0, "height": 9}]}, "1 px or more"),
        (with_annotation(bbox=[None, 2, 3, 4]), r"not a number.*bbox \[None"),
        (with_annotation(area=None), "not a number.*area None"),
        (with_annotation(category_id=[18]), "malformed"),
        ({**document(), "images": [{"id": 1, "file_name": "1.jpg", "width": None, "height": 9}]}, "found None x 9"),
        ({**document(), "images": document()["images"] * 2}, "stands twice"),
        ({**document(), "images": [{"id": "one", "file_name": "1.jpg", "width": 9, "height": 9}]}, "whole number"),
    ],
)
def test_broken_annotations_are_named(tmp_path: Path, content: dict[str, Any] | str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_coco(write(tmp_path, content))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "val2071"}, "Did you mean 'val2017'"),
        ({"min_objects": 50}, "zero images"),
        ({"n_images": 9}, "9 asked for, 4 found"),
        ({"categories": ("dgo",)}, "Did you mean 'dog'"),
    ],
)
def test_an_impossible_subset_is_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises((DataError, ConfigError), match=words):
        open_coco(write(tmp_path), **options)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        open_coco(tmp_path / "nowhere")
    with pytest.raises(DataError, match="annotations"):
        open_coco(tmp_path)
    root = write(tmp_path / "coco")
    for file in (root / "val2017").iterdir():
        file.unlink()
    (root / "val2017").rmdir()
    with pytest.raises(DataError, match="image folder"):
        open_coco(root)


def test_an_image_with_a_crowd_is_crowded(tmp_path: Path) -> None:
    """COCO marks crowds of more than ten, so two dogs beside one are no scene of few objects."""
    content = document()
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 4]
    questions = CocoQuestions(open_coco(write(tmp_path, content), min_objects=0))
    assert {questions.make("existence", "low", 0, i)[0] for i in range(60)} == {0, 2}


@needs_mini
def test_a_real_subset_loads_whole() -> None:
    source = make_source(CocoConfig(root=str(MINI), split="val2017"))
    assert len(source) > 70
    for index in range(0, len(source), 10):
        sample = source.load(index)
        assert set(sample.attributes) == set(source.attribute_kinds)
        assert 0 < sample.attributes["coverage"] <= 1


@needs_mini
@pytest.mark.parametrize(
    ("family", "tier"),
    [*((f, "high") for f in COCO_FAMILIES), *((f, "low") for f in ("existence", "count_by_attribute", "point"))],
)
def test_questions_about_photographs_are_right(family: str, tier: str) -> None:
    source = open_coco(MINI, split="train2017")
    questions, known = CocoQuestions(source, high=(6, 50)), set(vocabulary())
    for number in range(120):
        index, question = questions.make(family, tier, 0, number)
        things = source.objects(index)
        n_plain, crowd = sum(not o.crowd for o in things), any(o.crowd for o in things)
        assert question.tier == tier == ("high" if crowd or n_plain >= 6 else "low")
        assert (n_plain <= 4) or tier == "high"
        counts = Counter(o.category for o in things if not o.crowd)
        detail = question.detail
        if family == "existence":
            truth = "yes" if counts[detail["object"]] else "no"
        elif family == "count_by_attribute":
            truth = str(counts[detail["group"].removesuffix(" objects")])
        elif family == "comparison":
            first, second = (counts[detail[k].removesuffix(" objects")] for k in ("group", "other"))
            assert min(first, second) > 0
            truth = "yes" if (first > second) == (detail["wording"] == "more") else "no"
        elif family == "relation":
            a, b = (next(o for o in things if o.category == detail[k]) for k in ("object", "other"))
            assert counts[a.category] == counts[b.category] == 1
            truth = "left" if a.x + a.width / 2 < b.x + b.width / 2 else "right"
        else:
            thing = next(o for o in things if o.category == detail["object"])
            assert counts[thing.category] == 1
            width, height = source.sizes[index]
            truth = f"{int(100 * (thing.x + thing.width / 2) / width):02d} "
            truth += f"{int(100 * (thing.y + thing.height / 2) / height):02d}"
            if detail["wording"] == "box":
                truth = question.answer
        assert question.answer == truth
        assert all(w in known or set(w) <= known for w in (question.text + " " + question.answer).split())


@needs_mini
@pytest.mark.parametrize("family", [f for f in COCO_FAMILIES if f != "point"])
def test_a_blind_model_scores_at_chance_on_photographs(family: str) -> None:
    questions = CocoQuestions(open_coco(MINI, split="train2017"))
    train, test = ([questions.make(family, "high", seed, i)[1] for i in range(500)] for seed in (1, 2))
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        by_text[question.text][question.answer] += 1
    overall = Counter(q.answer for q in train)
    correct = sum(by_text.get(q.text, overall).most_common(1)[0][0] == q.answer for q in test)
    chance = 1 / len(overall) if family == "count_by_attribute" else 0.5
    assert binomtest(correct, len(test), chance, alternative="greater").pvalue > 1e-3


@needs_mini
def test_questions_that_boxes_cannot_answer_are_refused() -> None:
    questions = CocoQuestions(open_coco(MINI))
    for family, tier in (("colour", "low"), ("count", "high"), ("colr", "low")):
        with pytest.raises(VtsweepError, match="families"):
            questions.make(family, tier, 0, 0)


def test_a_subset_too_small_to_balance_is_named(tmp_path: Path) -> None:
    questions = CocoQuestions(open_coco(write(tmp_path)))
    with pytest.raises(DataError, match="too few"):
        questions.make("relation", "high", 0, 0)


def test_annotations_are_read_once_until_they_change(tmp_path: Path) -> None:
    root = write(tmp_path / "a")
    config = CocoConfig(root=str(root), split="val2017")
    first = make_source(config)
    assert make_source(config) is first
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text() + " ")
    assert make_source(config) is not first
