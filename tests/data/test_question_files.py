"""Question files: equal rows from every format, published layouts, bad rows by place, scores by the official rules."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score

from orchestrator.capture.loading import from_row, load_shard, to_row
from orchestrator.config import QuestionsConfig, RunConfig
from orchestrator.config.sweep import make_sweep
from orchestrator.data.files import index
from orchestrator.data.files.scoring import position_bias, score, shuffled_choices, vqa_score, yes_no_summary, yes_or_no
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.picture_sizes import picture_sizes
from orchestrator.errors import ConfigError, DataError, ModelError
from orchestrator.models.catalogue import entries
from orchestrator.store.filesystem import Storage
from orchestrator.study.preflight import preflight
from tests.points import run_capture

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_pope = pytest.mark.skipif(
    not (SHARED / "pope_mini").is_dir(), reason="needs POPE's files in shared/data/pope_mini"
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), (value, 9, 9)).save(buffer, format="png")
    return buffer.getvalue()


def rows(n: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "id": f"q{i}",
            "image": f"{i}.png",
            "question": f"is there a dog in picture {i} ?",
            "answer": "yes" if i % 2 else "no",
            "choices": ["yes", "no"],
            "family": "existence",
            "complexity": i / 4,
            "n_dogs": i,
            "weather": "rain" if i % 2 else None,
        }
        for i in range(n)
    ]


def write(root: Path, name: str, records: list[dict[str, Any]], images: bool = True) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    elif name.endswith(".json"):
        path.write_text(json.dumps(records))
    elif name.endswith(".csv"):
        flat = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in r.items()} for r in records]
        pl.DataFrame(flat).write_csv(path)
    else:
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
    if images:
        for i in range(len(records)):
            (root / f"{i}.png").write_bytes(encoded(40 * i))
    return root


def test_a_word_that_the_tokeniser_cannot_express_is_refused_before_work(tmp_path: Path) -> None:
    """Wherever it stands; of a folder's own tokeniser as of a shipped one."""
    records = [{"id": f"q{k}", "image": "0.png", "question": "describe the image .", "answer": "1"} for k in range(40)]
    shipped = entries()["reference-joint"].folder
    assert shipped is not None
    copy = shutil.copytree(shipped, tmp_path / "model")
    for name in ("known", "unknown"):
        records[33]["question"] = "describe the image ." if name == "known" else "describe the zyzzyva ."
        data = {"source": "questions", "root": str(write(tmp_path / name, "q.jsonl", records)), "file": ["q.jsonl"]}
        for model in ("reference-joint", str(copy)):
            base = {"model": {"name": model}, "data": data}
            sweep = make_sweep({"name": "x", "storage": str(tmp_path / "results"), "base": base})
            refused = contextlib.nullcontext() if name == "known" else pytest.raises(ModelError, match="'zyzzyva'")
            with refused:
                preflight(sweep, ["capture"])


def open_file(root: Path, name: str | tuple[str, ...] = "q.jsonl", **options: Any) -> QuestionSource:
    return QuestionSource(QuestionsConfig.model_validate({"root": str(root), "file": name, **options}))


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.csv", "q.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    source = open_file(write(tmp_path / "d", name, rows()), name)
    assert list(source.ids) == ["q0", "q1", "q2", "q3"]
    assert source.attribute_kinds == {
        "family": "categorical",
        "complexity": "continuous",
        "n_dogs": "count",
        "weather": "categorical",
    }
    sample, question = source.load(3), source.question(3)
    assert sample.prompt == question.text == "is there a dog in picture 3 ?"
    assert sample.attributes == {"family": "existence", "complexity": 0.75, "n_dogs": 3, "weather": "rain"}
    assert source.load(2).attributes["weather"] is None
    assert (sample.image[..., 0] == 120).all()
    assert (question.answer, question.choices, question.family) == ("yes", ("yes", "no"), "existence")


@pytest.mark.parametrize("struct", [True, False])
def test_bytes_in_a_parquet_column_are_images(tmp_path: Path, struct: bool) -> None:
    records = [
        {**r, "image": {"bytes": encoded(40 * i), "path": None} if struct else encoded(40 * i)}
        for i, r in enumerate(rows(5))
    ]
    source = open_file(write(tmp_path / "d", "q.parquet", records, images=False), "q.parquet")
    assert [int(source.load(i).image[0, 0, 0]) for i in (4, 0, 3, 1)] == [160, 0, 120, 40]
    again = pickle.loads(pickle.dumps(source))
    assert int(again.load(2).image[0, 0, 0]) == 80
    assert len(pickle.dumps(source)) < 5000
    assert source.present.all()


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("column", ["image", "images"])
def test_lists_of_bytes_in_a_parquet_column_are_several_images(tmp_path: Path, struct: bool, column: str) -> None:
    records = []
    for i, row in enumerate(rows(5)):
        cells = [encoded(40 * k) for k in range(i)] or None
        held = [{"bytes": cell, "path": None} for cell in cells or ()] if struct else cells
        records.append({**{key: row[key] for key in row if key != "image"}, column: held})
    source = open_file(write(tmp_path / "d", "q.parquet", records, images=False), "q.parquet")
    for i in range(1, 5):
        sample = source.load(i)
        assert [int(one[0, 0, 0]) for one in (sample.image, *sample.more)] == [40 * k for k in range(i)]
    assert source.shown(0) is None
    assert [source.attributes(i)["n_images"] for i in range(5)] == [0, 1, 2, 3, 4]
    assert source.present.all()
    assert source.image_names() == []
    assert source.clusters.n_unique() == 5
    height, width = source.load(1).image.shape[:2]
    assert picture_sizes(source) == dict.fromkeys(range(1, 5), (height, width))


def test_a_null_in_a_column_of_pictures_is_a_row_without_one(tmp_path: Path) -> None:
    records = [{**row, "image": {"bytes": encoded(40), "path": "a.png"} if i else None} for i, row in enumerate(rows())]
    source = open_file(write(tmp_path / "d", "q.parquet", records, images=False), "q.parquet")
    assert source.shown(0) is None
    assert source.image_counts().n_without == 1
    with pytest.raises(DataError, match="row 0: it has no image; capture takes one or more"):
        source.load(0)


def test_a_name_beside_the_bytes_is_not_looked_for(tmp_path: Path) -> None:
    """TextVQA's conversions hold both: `image_id`, and the picture in column `image`."""
    record = {"question_id": 1, "question": "what?", "image_id": "ab", "answers": ["x"] * 10, "image": encoded(40)}
    source = open_file(write(tmp_path / "d", "q.parquet", [record], images=False), "q.parquet", layout="textvqa")
    assert source.present.all()
    assert source.image_names() == []
    assert source.shown(0) is not None


def test_numbers_are_those_of_the_rows_whatever_their_spelling(tmp_path: Path) -> None:
    n = 3000  # several row groups
    values = [None if i % 7 == 0 else "NA" if i % 5 == 0 else str(i) if i % 2 else i / 4 for i in range(n)]
    records = [{"question": "?", "answer": "a", "other": i, "x": value} for i, value in enumerate(values)]
    source = open_file(write(tmp_path / "d", "q.jsonl", records, images=False))
    wanted = [np.nan if value in (None, "NA") else float(value) for value in values]
    np.testing.assert_array_equal(source.numbers("x"), wanted)
    np.testing.assert_array_equal(source.numbers("other"), np.arange(n))
    assert source.quantiles("x", (0.5,)) == [float(np.nanmedian(wanted))]


def test_fields_of_other_names_and_several_files(tmp_path: Path) -> None:
    renamed = [{"prompt": r["question"], "label": r["answer"], "image": r["image"]} for r in rows()]
    root = write(write(tmp_path / "d", "a.jsonl", renamed[:2]), "b.jsonl", renamed[2:], images=False)
    source = open_file(root, ("a.jsonl", "b.jsonl"), fields={"question": "prompt", "answer": "label"})
    assert len(source) == 4
    assert source.question(3).text == rows()[3]["question"]
    assert source.question(3).answer == "yes"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"question": ""}, "question: it is empty"),
    ({"question": None}, "no field 'question'"),
    ({"question": 1.5}, "question: expected text, found 1.5"),
    ({"answer": ""}, "answer: it is empty"),
    ({"answer": "maybe"}, "'maybe' is not among the choices"),
    ({"choices": ["yes"]}, "two or more"),
    ({"choices": ["yes", "yes"]}, "two or more different"),
    ({"box": [5, 5, 1, 9]}, "x0 < x1"),
    ({"box": [1, 2, 3]}, r"box: expected 4 finite"),
    ({"point": ["a", 1]}, "point: expected 2 finite"),
    ({"tier": "middle"}, "tier: expected low or high"),
    ({"complexity": "much"}, "complexity: expected 1 finite"),
    ({"image": "../a.png"}, "leaves the root"),
    ({"n_dogs": [1]}, "n_dogs: expected text, a number or null"),
]


@pytest.mark.parametrize(("fields", "words"), BAD)
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    records = rows()
    records[2] |= fields
    root = write(tmp_path / "d", "q.jsonl", records)
    with pytest.raises(DataError, match=rf"1 of 4 rows are bad.*(?s:.)*q\.jsonl, line 3: .*{words}"):
        open_file(root)
    source = open_file(root, max_rejected_fraction=0.3)
    reasons = [one.reason for one in load_shard(source, range(4))]
    assert [bool(reason) for reason in reasons] == [False, False, True, False]
    assert "q.jsonl, line 3" in (reasons[2] or "")


def test_broken_lines_duplicate_ids_and_pickles_are_named(tmp_path: Path) -> None:
    root = write(tmp_path / "d", "q.jsonl", [*rows(), rows()[1]])
    with pytest.raises(DataError, match=r"'q1' stands twice: q\.jsonl, line 2 and q\.jsonl, line 5"):
        open_file(root)
    (root / "q.jsonl").write_text('{"question": "a ?"}\n{"question"\n')
    with pytest.raises(DataError, match="line 2: broken JSON"):
        open_file(root)
    (root / "refs.p").write_bytes(b"")
    with pytest.raises(DataError, match="pickle can run any code"):
        open_file(root, "refs.p", layout="refcoco")
    with pytest.raises(DataError, match=r"holds no qq\.jsonl\. Did you mean 'q\.jsonl'"):
        open_file(root, "qq.jsonl")
    with pytest.raises(ConfigError, match="Did you mean 'pope'"):
        open_file(root, layout="popo")


def test_a_number_among_texts_and_a_text_among_numbers(tmp_path: Path) -> None:
    records = rows()
    records[1]["n_dogs"] = "many"
    root = write(tmp_path / "d", "q.jsonl", records)
    with pytest.raises(DataError, match=r"q\.jsonl, line 2, field 'n_dogs': found 'many', but 3 of 4 values are num"):
        open_file(root)
    source = open_file(root, attributes={"n_dogs": "category"})
    assert [source.attributes(i)["n_dogs"] for i in range(4)] == ["0", "many", "2", "3"]


def test_identity_is_content_of_rows_and_images(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, "q.jsonl", rows()) for name in "ab")
    assert open_file(first).fingerprint() == open_file(second).fingerprint()
    (second / "1.png").write_bytes(encoded(7))
    assert open_file(first).fingerprint() != open_file(second).fingerprint()
    write(tmp_path / "c", "q.jsonl", [{**r, "answer": "no"} for r in rows()])
    assert open_file(first).fingerprint() != open_file(tmp_path / "c").fingerprint()


def test_the_second_opening_reads_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "d", "q.jsonl", rows())
    before = list(open_file(root).ids)

    def refuse(*_: Any) -> None:
        raise AssertionError("the rows are read again")

    monkeypatch.setattr(index, "write_table", refuse)
    assert list(open_file(root).ids) == before


def test_a_draw_filters_and_nests(tmp_path: Path) -> None:
    records = [{**r, "family": "a" if i < 3 else "b", "split": "val"} for i, r in enumerate(rows(6))]
    root = write(tmp_path / "d", "q.jsonl", records)
    assert list(open_file(root, families=("b",)).ids) == ["q3", "q4", "q5"]
    assert list(open_file(root, where={"weather": "rain"}).ids) == ["q1", "q3", "q5"]
    assert set(open_file(root, n_images=2).ids) < set(open_file(root, n_images=4).ids)
    with pytest.raises(ConfigError, match="no row has 'train'"):
        open_file(root, splits=("train",))


def test_capture_asks_each_row_its_own_question(tmp_path: Path) -> None:
    records = [
        {**r, "question": "what colour is the circle ?" if i < 2 else "is there a star ?"} for i, r in enumerate(rows())
    ]
    for record in records:
        record["image"] = "0.png"
    root = write(tmp_path / "d", "q.jsonl", records)
    run = RunConfig.model_validate(
        {
            "model": {"name": "reference-joint"},
            "data": {"source": "questions", "root": str(root), "file": "q.jsonl"},
            "capture": {"layers": [2], "taps": ["decoder"], "n_text_positions": 8},
            "how": {"backend": "local", "batch_size": 4, "shard_size": 4, "torch_threads": 1},
        }
    )
    stage = run_capture(run, Storage(str(tmp_path / "r")), quiet=True)
    metrics = stage.scan("layer_metrics").collect().filter(pl.col("group") == "text").sort("image_id")
    by_id = dict(zip(metrics["image_id"], metrics["n_tokens"], strict=True))
    assert by_id["q0"] == by_id["q1"] != by_id["q2"] == by_id["q3"]
    images = stage.scan("images").collect().sort("image_id")
    assert images["n_dogs"].to_list() == [0, 1, 2, 3]
    assert set(images["source"]) == {"questions"}


def test_prompts_travel_between_processes(tmp_path: Path) -> None:
    loaded = load_shard(open_file(write(tmp_path / "d", "q.jsonl", rows())), range(2))
    _, again = from_row(to_row(0, loaded))
    assert [one.prompt for one in again] == [r["question"] for r in rows(2)]


def test_a_box_outside_its_picture_is_rejected(tmp_path: Path) -> None:
    records = rows()
    records[1]["box"] = [10, 10, 90, 20]
    records[2]["box"] = [15, 10, 30, 20]
    source = open_file(write(tmp_path / "d", "q.jsonl", records))
    with pytest.raises(DataError, match=r"line 2: box or point .*outside its picture of 60 x 40"):
        source.load(1)
    assert source.question(2, (60, 40)).answer == "25 25 50 50"


# ---------------------------------------------------------------- published layouts


def gqa() -> dict[str, Any]:
    relation = [
        {"operation": "select", "argument": "dog (1)", "dependencies": []},
        {"operation": "relate", "argument": "cat,to the left of,s (2)", "dependencies": [0]},
    ]
    one = {
        "imageId": "2370799",
        "question": "Is the cat to the left of the dog?",
        "answer": "yes",
        "fullAnswer": "Yes, it is.",
        "isBalanced": True,
        "types": {"structural": "verify", "semantic": "rel", "detailed": "relVerify"},
        "semantic": [relation[0], {**relation[1], "operation": "verify rel"}],
    }
    other = {**one, "question": "What is it?", "answer": "dog", "semantic": relation[:1]}
    other["types"] = {"structural": "query", "semantic": "obj", "detailed": "categoryThat"}
    return {"07333408": one, "07333409": other}


def test_gqa(tmp_path: Path) -> None:
    root = tmp_path / "gqa"
    (root / "questions1.2").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "questions1.2" / "val_balanced_questions.json").write_text(json.dumps(gqa()))
    graphs = {"2370799": {"width": 60, "height": 40, "objects": {"1": {"name": "dog"}, "2": {"name": "cat"}}}}
    (root / "val_sceneGraphs.json").write_text(json.dumps(graphs))
    (root / "images" / "2370799.jpg").write_bytes(encoded(7))
    source = open_file(root, (), layout="gqa")
    assert list(source.ids) == ["07333408", "07333409"]
    assert source.attributes(0)["family"] == "verify"
    assert source.attributes(0)["cluster"] == "2370799"
    assert source.load(0).image.shape == (40, 60, 3)
    left = open_file(root, (), layout="gqa", where={"left_right": "true"})
    assert list(left.ids) == ["07333408"]
    files = ("questions1.2/val_balanced_questions.json", "val_sceneGraphs.json")
    assert open_file(root, files, layout="gqa").attributes(1)["n_objects"] == 2


def test_vqa_textvqa_clevr_refcoco_and_captions(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for folder in ("val2014", "val2017", "images/val", "train_images", "train2014", "questions", "annotations"):
        (root / folder).mkdir(parents=True)
    names = ("val2014/COCO_val2014_000000000042.jpg", "images/val/CLEVR_val_000000.png", "train_images/ab.jpg")
    for name in (*names, "val2017/000000000042.jpg", "train2014/COCO_train2014_000000000042.jpg"):
        (root / name).write_bytes(encoded(9))
    questions = [{"image_id": 42, "question": "What is it?", "question_id": 42000}]
    answers = [
        {"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(["dog"] * 6 + ["cat"] * 4, 1)
    ]
    note = {
        "question_id": 42000,
        "image_id": 42,
        "answer_type": "other",
        "question_type": "what is",
        "answers": answers,
    }
    documents = {
        "v2_OpenEnded_mscoco_val2014_questions.json": {"info": {}, "questions": questions},
        "v2_mscoco_val2014_annotations.json": {"info": {}, "annotations": [{**note, "multiple_choice_answer": "dog"}]},
        "TextVQA_0.5.1_val.json": {
            "dataset_type": "val",
            "data": [
                {"question_id": 1, "question": "what?", "image_id": "ab", "answers": ["nokia"] * 10, "set_name": "val"}
            ],
        },
        "questions/CLEVR_val_questions.json": {
            "info": {},
            "questions": [
                {
                    "question_index": 0,
                    "image_filename": "CLEVR_val_000000.png",
                    "question": "How many?",
                    "answer": "3",
                    "program": [{"function": "scene"}, {"function": "count"}],
                    "split": "val",
                }
            ],
        },
        "refs.json": [
            {
                "ref_id": 5,
                "image_id": 42,
                "file_name": "COCO_train2014_000000000042.jpg",
                "bbox": [6, 4, 12, 8],
                "sentences": [{"sent": "left dog"}],
                "split": "testA",
            }
        ],
        "annotations/captions_val2017.json": {
            "images": [{"id": 42, "file_name": "000000000042.jpg"}],
            "annotations": [{"id": 3, "image_id": 42, "caption": "a dog runs"}],
        },
    }
    for name, document in documents.items():
        (root / name).write_text(json.dumps(document))
    vqa = open_file(root, (), layout="vqa").question(0)
    assert (vqa.text, vqa.answer, len(vqa.detail["answers"]), vqa.family) == ("What is it?", "dog", 10, "other")
    assert open_file(root, (), layout="textvqa").question(0).answer == "nokia"
    clevr = open_file(root, (), layout="clevr")
    assert (clevr.question(0).family, clevr.attributes(0)["n_steps"]) == ("count", 2)
    refs = open_file(root, "refs.json", layout="refcoco")
    assert refs.question(0, (60, 40)).answer == "10 10 30 30"
    assert refs.question(0).text == "Where is left dog?"
    captions = open_file(root, (), layout="captions")
    assert captions.load(0).prompt == "a dog runs"
    for source in (refs, clevr, captions, open_file(root, (), layout="vqa"), open_file(root, (), layout="textvqa")):
        assert source.load(0).image.shape == (40, 60, 3)


@needs_pope
def test_pope_as_published_on_photographs_named_as_in_2017() -> None:
    files = [f"pope_mini/coco_pope_{s}.json" for s in ("random", "popular", "adversarial")]
    images = [f"coco_mini/{split}/{{number}}.jpg" for split in ("val2017", "train2017")]
    source = open_file(SHARED, tuple(files), layout="pope", images=images)
    lines = [json.loads(line) for file in files for line in (SHARED / file).read_text().splitlines()]
    assert len(source) == len(lines)
    assert [source.question(i).answer for i in range(len(source))] == [line["label"] for line in lines]
    assert source.load(0).image.ndim == 3
    assert {source.attributes(i)["family"] for i in range(len(source))} == {"random", "popular", "adversarial"}


# ---------------------------------------------------------------- scores against independent computations


@given(
    st.lists(
        st.tuples(st.sampled_from(["Yes, it is.", "no", "There is not. Yes", "No.", "yes"]), st.booleans()), min_size=2
    )
)
def test_pope_figures_equal_scikit_learn(found: list[tuple[str, bool]]) -> None:
    predicted, right = [p for p, _ in found], [r for _, r in found]
    said = [yes_or_no(p) == "yes" for p in predicted]
    figures = yes_no_summary(predicted, ["yes" if r else "no" for r in right])
    assert figures["accuracy"] == pytest.approx(accuracy_score(right, said))
    assert figures["f1"] == pytest.approx(f1_score(right, said, zero_division=0))
    assert figures["yes_share"] == pytest.approx(np.mean(said))


def leave_one_out(predicted: str, answers: list[str]) -> float:
    """The official rule, written out: every annotator in turn is left out, three others that agree are enough."""
    values = []
    for i in range(len(answers)):
        others = answers[:i] + answers[i + 1 :]
        values.append(min(1.0, sum(one == predicted for one in others) / 3))
    return sum(values) / len(values)


@given(
    st.lists(st.sampled_from(["dog", "cat", "red", "2"]), min_size=10, max_size=10),
    st.sampled_from(["dog", "cat", "x"]),
)
def test_vqa_soft_accuracy_is_the_mean_over_annotators_left_out(answers: list[str], predicted: str) -> None:
    assert vqa_score(predicted, answers) == pytest.approx(leave_one_out(predicted, answers))


@pytest.mark.parametrize(
    ("predicted", "answers", "expected"),
    [
        ("Two", ["2"] * 5 + ["three"] * 5, 1.0),
        ("the dog!", ["dog"] * 2 + ["cat"] * 8, 0.6),
        ("dont", ["don't"] * 4 + ["do"] * 6, 1.0),
        ("1,000", ["1000"] * 9 + ["many"], 1.0),
        ("Yes", ["yes"] * 10, 0.0),  # all agree: the official script then compares as written
    ],
)
def test_vqa_normalisation(predicted: str, answers: list[str], expected: float) -> None:
    assert vqa_score(predicted, answers) == pytest.approx(expected)


def textvqa_official(predicted: str, answers: list[str]) -> float:
    """TextVQA's evaluator in its own steps, for texts of words, `'s`, commas, full stops and articles."""

    def process(text: str) -> str:
        text = re.sub(r"[,?]", "", text.lower()).replace("'s", " 's").strip()
        text = re.sub(r"\.(?!\d)", "", text)
        return " ".join({"two": "2"}.get(w, w) for w in text.split() if w not in ("a", "an", "the"))

    cleaned = [process(one) for one in answers]
    scores = {}
    for unique in set(cleaned):
        accs = []
        for i in range(len(cleaned)):
            others = [one for j, one in enumerate(cleaned) if j != i]
            accs.append(min(1, others.count(unique) / 3))
        scores[unique] = sum(accs) / len(accs)
    return scores.get(process(predicted), 0.0)


WORDS = ["Nokia", "nokia.", "the Nokia", "Two, dogs", "2 dogs", "joe's", "JOE's", "a", "3.5"]


@given(st.lists(st.sampled_from(WORDS), min_size=10, max_size=10), st.sampled_from(WORDS))
def test_textvqa_normalises_answers_whether_annotators_differ_or_not(answers: list[str], predicted: str) -> None:
    assert score("textvqa", predicted, answers) == pytest.approx(textvqa_official(predicted, answers))


def test_textvqa_and_vqa_differ_where_all_annotators_agree() -> None:
    assert score("textvqa", "Nokia", ["nokia"] * 10) == 1.0
    assert score("vqa", "Nokia", ["nokia"] * 10) == 0.0


@pytest.mark.parametrize(
    ("rule", "predicted", "answers", "choices", "expected"),
    [
        ("gqa", "Left.", ["left"], None, 1.0),
        ("gqa", "the left", ["left"], None, 0.0),
        ("exact", "The Red circle.", ["red circle"], None, 1.0),
        ("exact", "(B)", ["cat"], ["dog", "cat"], 1.0),
        ("exact", "B. cat", ["cat"], ["dog", "cat"], 1.0),
        ("exact", "a dog", ["cat"], ["dog", "cat"], 0.0),
        ("box", "10 10 30 30", ["10 10 30 30"], None, 1.0),
        ("box", "10 10 20 30", ["10 10 30 30"], None, 1.0),
        ("box", "10 10 19 30", ["10 10 30 30"], None, 0.0),
        ("box", "none", ["10 10 30 30"], None, 0.0),
    ],
)
def test_scores(rule: str, predicted: str, answers: list[str], choices: list[str] | None, expected: float) -> None:
    assert score(rule, predicted, answers, choices) == expected


def test_shuffled_choices_spread_the_right_place_and_show_a_bias() -> None:
    places = [shuffled_choices(["a", "b", "c", "d"], 0, i).index("a") for i in range(4000)]
    assert position_bias(places, 4) < 0.03
    assert position_bias([0] * 50, 4) == pytest.approx(0.75)
