"""Objects are found where they lie, in scenes and photographs; states of a part of the image or prompt are replaced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from orchestrator.ablate.bench import Bench
from orchestrator.ablate.pairs import make_pairs
from orchestrator.ablate.places import changed_tokens, image_part, object_tokens
from orchestrator.ablate.runner import load_model
from orchestrator.config import AblateConfig, CocoConfig, RunConfig, TaskConfig
from orchestrator.data.boxes import boxes_of, sample_boxes
from orchestrator.data.coco import CocoSource
from orchestrator.data.mixture import Example, ExampleMaker
from orchestrator.data.questions import Question
from orchestrator.data.scenes import Scene, SceneObject
from orchestrator.errors import ModelError
from orchestrator.store.filesystem import Storage
from tests.points import run_ablate

HOW = {"backend": "local", "batch_size": 12, "torch_threads": 1}
PLAIN = SimpleNamespace(family="llava", fit="pad", processor=None)
QUESTION = Question("q", "i", "colour", "low", "?", "red")
GRID = torch.tensor([[r, c, 0] for r in range(8) for c in range(8)])


def scene(*objects: SceneObject) -> Scene:
    return Scene(0, 0, 112, 112, objects)


def circle(x: float, y: float, size: float, colour: str = "red") -> SceneObject:
    return SceneObject("circle", colour, x, y, size, 0.0)


def test_objects_are_found_where_they_were_drawn() -> None:
    item = Example(QUESTION, scene=scene(circle(21.0, 91.0, 14.0)))
    assert GRID[object_tokens(PLAIN, item, GRID)].tolist() == [[6, 1, 0]], "14 px a token: it fills column 1, row 6"
    wide = Example(QUESTION, scene=scene(circle(28.0, 28.0, 20.0)))
    shown = {tuple(p[:2]) for p in GRID[object_tokens(PLAIN, wide, GRID)].tolist()}
    assert shown == {(1, 1), (1, 2), (2, 1), (2, 2)}
    with_class = torch.cat([torch.tensor([[-1, -1, 0]]), GRID])
    assert not object_tokens(PLAIN, item, with_class)[0]
    with pytest.raises(ModelError, match="no boxes of its objects"):
        object_tokens(PLAIN, Example(QUESTION), GRID)


def test_what_changed_is_what_one_scene_alone_has() -> None:
    stays = circle(21.0, 91.0, 14.0)
    own, donor = (Example(QUESTION, scene=scene(stays, circle(49.0, 21.0, 14.0, c))) for c in ("red", "blue"))
    assert GRID[changed_tokens(PLAIN, own, donor, GRID)].tolist() == [[1, 3, 0]]


def test_boxes_of_photographs_cover_the_cells_that_their_pixels_do(coco_root: Path) -> None:
    source = CocoSource(CocoConfig(root=str(coco_root)))
    for index in range(0, len(source), max(1, len(source) // 8)):
        sample = source.load(index)
        height, width = sample.image.shape[:2]
        painted = np.zeros((height, width), bool)
        for o in sample.objects:
            painted[int(o.y) : int(np.ceil(o.y + o.height)), int(o.x) : int(np.ceil(o.x + o.width))] = True
        item = Example(QUESTION, image_index=index, source=source)
        np.testing.assert_allclose(boxes_of(item).edges, sample_boxes(sample).edges)
        shown = object_tokens(PLAIN, item, GRID).reshape(8, 8).numpy()
        for row in range(8):
            for col in range(8):
                cell = painted[
                    row * height // 8 + 2 : (row + 1) * height // 8 - 2,
                    col * width // 8 + 2 : (col + 1) * width // 8 - 2,
                ]
                assert shown[row, col] or not cell.any()
                if shown[row, col]:  # a box may only reach into the rim
                    rim = painted[row * height // 8 : -(-(row + 1) * height // 8), col * width // 8 :]
                    assert rim.any()


@pytest.fixture(scope="module")
def benches() -> tuple[Bench, Bench]:
    adapter = load_model(RunConfig.model_validate({"model": {"name": "reference-joint"}, "how": HOW}))
    own, donors = make_pairs("colour", 12, 3, ExampleMaker(TaskConfig()))
    return Bench(adapter, own, 12), Bench(adapter, donors, 12)


def test_object_and_background_together_are_the_image(benches: tuple[Bench, Bench]) -> None:
    own, donors = benches
    batch = own.adapter.collate(own.inputs)
    parts = [image_part(own.adapter, batch, own.examples, place, donors.examples) for place in ("object", "background")]
    assert (parts[0] ^ parts[1]).all()
    changed = image_part(own.adapter, batch, own.examples, "changed", donors.examples)
    assert changed.any(dim=1).all()
    assert not (changed & parts[1]).any(), "what changed is an object"


def test_the_answer_follows_the_tokens_of_what_changed(benches: tuple[Bench, Bench]) -> None:
    """And nothing else: the same states put in place change nothing, nor does the question before any layer."""
    own, donors = benches
    for place in ("object", "question", "last"):
        assert own.patched(own, 1, place).predicted == own.plain.predicted
    assert own.patched(donors, 0, "question").predicted == own.plain.predicted
    usable = own.plain.correct & donors.plain.correct
    assert usable.sum() >= 8

    def flips(place: str, layer: int) -> float:
        found = own.patched(donors, layer, place).predicted
        return float(np.mean([a == b for a, b in zip(found, donors.plain.predicted, strict=True)], where=usable))

    assert flips("image", 0) == 1.0
    assert flips("changed", 0) > flips("background", 0) + 0.5
    assert flips("last", 0) == 0.0, "before any layer it has read nothing"


def test_parts_of_the_image_need_known_boxes() -> None:
    with pytest.raises(ValidationError, match=r"object->last needs ablate.source: scenes or coco"):
        AblateConfig(checks=("routes",), routes=("object->last",), source="questions")
    with pytest.raises(ValidationError, match=r"replaced_places: background needs ablate.source"):
        AblateConfig(checks=("replacing",), replaced_places=("background",), source="questions")


@pytest.mark.parametrize("model", ["reference-joint", "reference-cross"])
def test_parts_of_photographs_and_scenes_are_blocked_replaced_and_patched(
    model: str, tmp_path: Path, coco_root: Path
) -> None:
    ablate = {
        "checks": ["routes", "replacing", "patching"],
        "source": "coco",
        "low_families": ["existence"],
        "high_families": [],
        "n_per_family": 6,
        "window": 10,
        "routes": ["object->question", "background->last"],
        "replaced": ["mean"],
        "replaced_places": ["object", "background"],
        "patched": ["colour"],
        "patched_places": ["image", "changed", "last"],
    }
    data = {"source": "coco", "root": str(coco_root)}
    run = RunConfig.model_validate({"model": {"name": model}, "data": data, "ablate": ablate, "how": HOW})
    stage = run_ablate(run, Storage(str(tmp_path)), quiet=True)
    assert set(stage.scan("routes").collect()["source"]) == {"object", "background"}
    assert set(stage.scan("replacing").collect()["place"]) == {"object", "background"}
    patching = stage.scan("patching").collect()
    layers = dict(patching.group_by("place").agg(pl.len()).iter_rows())
    assert layers["image"] == layers["changed"] <= layers["last"]
