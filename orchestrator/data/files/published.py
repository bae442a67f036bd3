"""Published question files: official names, mapping of fields to the row model, and layouts by name.

Others are registered under the entry-point group `vtsweep.questions` (docs/data.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

import orjson

from orchestrator.data.files.layouts import Files, Layout, convert, mapped, plain
from orchestrator.data.files.records import Record
from orchestrator.errors import ConfigError, did_you_mean

ENTRY_POINT_GROUP = "vtsweep.questions"


def _pope(row: Mapping[str, Any]) -> Mapping[str, Any]:
    if row["label"] not in ("yes", "no"):
        raise ValueError(f"label {row['label']!r}; expected yes or no")
    return {
        "id": row["question_id"],
        "image": row["image"],
        "question": row["text"],
        "answer": row["label"],
        "choices": ["yes", "no"],
        "family": "existence",
        "group": row["image"],
    }


def _read_pope(files: Files) -> Iterator[tuple[str, Record]]:
    """The sampling of POPE (random, popular, adversarial) is in the file name; ids restart in every file."""
    for name in files.names:
        stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        sampling = next((s for s in ("random", "popular", "adversarial") if stem.endswith(s)), stem)
        for record in files.records(name):
            converted = convert(record, _pope)
            if converted.value is not None:
                converted = converted._replace(
                    value={
                        **converted.value,
                        "id": f"{sampling}-{converted.value['id']}",
                        "family": sampling,
                        "sampling": sampling,
                    }
                )
            yield name, converted


def _read_gqa(files: Files) -> Iterator[tuple[str, Record]]:
    """An object of question id -> question. Scene graphs (`*sceneGraphs.json`) add the number of objects."""
    n_objects: dict[str, int] = {}
    for name in files.names:
        if "sceneGraphs" in name:
            n_objects |= {key: len(graph["objects"]) for key, graph in files.pairs(name)}
    for name in files.names:
        if "sceneGraphs" in name:
            continue
        for key, value in files.pairs(name):
            yield name, convert(Record(key, {"id": key, "n_objects": n_objects, "row": value}), _gqa)


def _gqa(record: Mapping[str, Any]) -> Mapping[str, Any]:
    row, types = record["row"], record["row"].get("types") or {}
    steps = row.get("semantic") or []
    relations = [str(s.get("argument", "")) for s in steps if str(s.get("operation", "")).endswith("rel")]
    spatial = any("to the left of" in r or "to the right of" in r for r in relations)
    return {
        "id": record["id"],
        "image": row["imageId"],
        "question": row["question"],
        "answer": row.get("answer"),
        "family": types.get("structural"),
        "group": row["imageId"],
        "semantic": types.get("semantic"),
        "detailed": types.get("detailed"),
        "balanced": row.get("isBalanced"),
        "left_right": spatial,
        "n_steps": len(steps),
        "n_objects": record["n_objects"].get(row["imageId"]),
    }


def _read_vqa(files: Files) -> Iterator[tuple[str, Record]]:
    """Questions and their ten answers are in two files. A malformed annotation is an invalid row of its own."""
    answers: dict[Any, bytes] = {}  # as JSON: a tenth of the memory
    for name in files.names:
        if "annotations" in name:
            for record in files.records(name):
                converted = convert(record, _vqa_answers)
                if converted.value is None:
                    yield name, converted
                else:
                    answers |= converted.value

    def fields(row: Mapping[str, Any]) -> Mapping[str, Any]:
        answer, answer_type, question_type = orjson.loads(answers.get(row["question_id"], b"[null, null, null]"))
        return {
            "id": row["question_id"],
            "image": f"{int(row['image_id']):012d}",
            "question": row["question"],
            "answer": answer,
            "family": answer_type,
            "group": row["image_id"],
            "question_type": question_type,
        }

    for name in files.names:
        if "annotations" not in name:
            for record in files.records(name):
                yield name, convert(record, fields)


def _vqa_answers(row: Mapping[str, Any]) -> dict[Any, bytes]:
    given_answers = [annotation["answer"] for annotation in row["answers"]] or None
    return {row["question_id"]: orjson.dumps((given_answers, row.get("answer_type"), row.get("question_type")))}


def _textvqa(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "id": row["question_id"],
        "image": row["image_id"],
        "question": row["question"],
        "answer": row.get("answers"),
        "group": row["image_id"],
        "split": row.get("set_name"),
        "family": "text",
        "image_row": row.get("image_row"),
    }


def _refcoco(row: Mapping[str, Any]) -> Mapping[str, Any]:
    x, y, width, height = row["bbox"]
    sentences = row.get("sentences") or row.get("answer") or [row.get("sentence", row.get("question"))]
    text = sentences[0] if isinstance(sentences, list) else sentences
    text = text.get("sent", text.get("raw")) if isinstance(text, Mapping) else text
    image = row.get("file_name") or row.get("image_path")
    return {
        "id": row.get("ref_id", row.get("question_id")),
        "image": image,
        "image_row": row.get("image_row"),
        "question": f"Where is {text}?",
        "box": [x, y, x + width, y + height],
        "family": "referring",
        "group": str(row.get("image_id", image)),
        "split": row.get("split"),
        "expression": text,
    }


def _clevr(row: Mapping[str, Any]) -> Mapping[str, Any]:
    program = row.get("program") or []
    last = program[-1].get("function", program[-1].get("type")) if program else None
    return {
        "id": row["question_index"],
        "image": row["image_filename"],
        "question": row["question"],
        "answer": row.get("answer"),
        "family": last,
        "group": row["image_filename"],
        "split": row.get("split"),
        "n_steps": len(program),
    }


def _read_captions(files: Files) -> Iterator[tuple[str, Record]]:
    """Captions as prompts: the model reads the sentence and its image; there is no answer."""
    for name in files.names:
        names = {image["id"]: image["file_name"] for image in files.members(name, "images")}
        for number, value in enumerate(files.members(name, "annotations")):
            annotation = Record(f"annotations[{number}]", value)
            yield (
                name,
                convert(
                    annotation,
                    lambda r, names=names: {  # type: ignore[misc]
                        "id": r["id"],
                        "image": names[r["image_id"]],
                        "question": r["caption"],
                        "family": "caption",
                        "group": r["image_id"],
                    },
                ),
            )


LAYOUTS: dict[str, Layout] = {
    "rows": Layout(plain, source="docs/data.md"),
    "pope": Layout(
        _read_pope,
        ("coco_pope_random.json", "coco_pope_popular.json", "coco_pope_adversarial.json"),
        ("val2014/{image}", "val2017/{number}.jpg", "train2017/{number}.jpg"),
        "yes_no",
        "Li et al. 2023, Evaluating object hallucination in large vision-language models",
    ),
    "gqa": Layout(
        _read_gqa,
        ("questions1.2/val_balanced_questions.json",),
        ("images/{image}.jpg",),
        "gqa",
        "Hudson and Manning 2019, GQA",
    ),
    "vqa": Layout(
        _read_vqa,
        ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
        ("val2014/COCO_val2014_{image}.jpg", "val2017/{image}.jpg", "train2017/{image}.jpg"),
        "vqa",
        "Antol et al. 2015; Goyal et al. 2017",
    ),
    "textvqa": Layout(
        mapped(_textvqa), ("TextVQA_0.5.1_val.json",), ("train_images/{image}.jpg",), "textvqa", "Singh et al. 2019"
    ),
    "refcoco": Layout(mapped(_refcoco), (), ("train2014/{image}", "train2017/{number}.jpg"), "box", "Yu et al. 2016"),
    "clevr": Layout(
        mapped(_clevr), ("questions/CLEVR_val_questions.json",), ("images/val/{image}",), "exact", "Johnson et al. 2017"
    ),
    "captions": Layout(
        _read_captions, ("annotations/captions_val2017.json",), ("val2017/{image}",), "none", "Chen et al. 2015"
    ),
}


def find_layout(name: str) -> Layout:
    """A layout by name, built in or registered; ConfigError for an unknown one."""
    if name in LAYOUTS:
        return LAYOUTS[name]
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in points:
        raise ConfigError(f"data.layout: no layout {name!r}.{did_you_mean(name, [*LAYOUTS, *points])}")
    layout = points[name].load()
    if not isinstance(layout, Layout):
        raise ConfigError(f"data.layout: {name!r} ({points[name].value}) is no orchestrator.data.files.layouts.Layout")
    return layout
