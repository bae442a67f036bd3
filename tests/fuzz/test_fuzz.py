"""Altered inputs of every kind: read as what they say, or refused in a few words and in time; never a traceback.

`pytest tests/fuzz --fuzz 1000` takes a thousand of each kind.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.ablate.policy_file import load_policy
from orchestrator.cli.status import study_status
from orchestrator.config import CocoConfig, FolderConfig, ModelConfig, QuestionsConfig
from orchestrator.config.sweep import Sweep, load_sweep
from orchestrator.data.source import make_source
from orchestrator.errors import ModelError, VtsweepError
from orchestrator.models.catalogue import entries
from orchestrator.models.check import check_model
from orchestrator.models.identity import fingerprint
from orchestrator.models.loading import with_hub_errors
from orchestrator.store.load_stage import load_stage
from orchestrator.store.stage_folder import Stage
from orchestrator.store.study_record import Study
from orchestrator.store.verify import verify_study
from orchestrator.study.resolve import resolve
from orchestrator.study.run import open_study
from tests.conftest import tiny_study
from tests.fuzz.alter import all_finite, as_json, documents, texts, trees
from tests.models.trained import trained_adapter

SECONDS, WORDS = 10.0, 6000
"""Most time an input may take, and most characters of the message that refuses it."""

Fuzz = Callable[[st.SearchStrategy[Any], Callable[[Any], None]], None]


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """Feed altered inputs to a function that may raise `VtsweepError` alone."""

    def run(inputs: st.SearchStrategy[Any], use: Callable[[Any], None]) -> None:
        @settings(
            max_examples=request.config.getoption("--fuzz"),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs)
        def one(value: Any) -> None:
            started = time.process_time()
            try:
                use(value)
            except VtsweepError as error:
                assert 0 < len(str(error)) < WORDS  # noqa: PT017
                str(error).encode()  # what cannot be printed helps nobody
            assert time.process_time() - started < SECONDS

        one()

    return run


# ---------------------------------------------------------------- settings

SWEEP = {
    "name": "fuzzed",
    "description": "all sections",
    "storage": "results",
    "stages": ["capture", "correlate", "probe", "finetune", "ablate"],
    "base": {
        "model": {"name": "reference-joint", "dtype": "auto", "fit": "pad", "date": "2026-01-01"},
        "data": {"source": "scenes", "n_images": 12, "n_objects": [1, 30], "width": 112, "height": 112, "seed": 0},
        "capture": {"layers": [0, 1], "metrics": ["gini"], "n_vision_positions": 4, "keep_features": True},
        "correlate": {"n_bootstrap": 20, "hold_fixed": ["n_objects"], "smallest_rho": 0.2},
        "probe": {"solvers": ["ridge"], "penalties": [1e-3, 1.0], "n_folds": 5},
        "finetune": {"n_steps": 4, "complexity_ratio": 0.5, "language": {"rank": 8, "learning_rate": 1e-3},
                     "task": {"families": ["colour"], "n_objects_low": [1, 4], "size": [0.1, 0.2]}, "search_trials": 2},
        "ablate": {"checks": ["deletion"], "deleted_shares": [0.5, 0.9], "methods": ["norm"], "seeds": [0]},
        "how": {"backend": "local", "batch_size": 6, "shard_size": 5, "no_progress_timeout_s": 9.0},
    },
    "axes": {"finetune.seed": [0, 1], "data.n_objects": [[1, 4], [5, 9]]},
    "search": {"finetune.language.learning_rate": {"kind": "loguniform", "low": 1e-4, "high": 1e-2}},
    "track": {"enabled": False},
}  # fmt: skip


def sweep_texts() -> st.SearchStrategy[bytes]:
    plain = yaml.safe_dump(SWEEP).encode()

    def dump(tree: Any) -> bytes:
        return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")

    return texts(plain) | trees(SWEEP).map(dump)


def test_sweep_files(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"

    def use(data: bytes) -> None:
        file.write_bytes(data)
        sweep: Sweep = load_sweep(file)
        assert sweep.points
        for point in sweep.points:
            assert all_finite(point.run.model_dump(mode="json"))

    fuzz(sweep_texts(), use)


def test_overrides(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    keys = ["data.n_images", "finetune.seed", "storage", "probe.penalties", "axes", "x", "", "base", "model.name"]
    one = st.tuples(st.sampled_from(keys), texts(b"3e-4") | texts(b"[1, 2]") | texts(b"{a: 1}"))

    def use(pairs: list[tuple[str, bytes]]) -> None:
        sweep = load_sweep(file, [f"{key}={value.decode('utf-8', 'surrogateescape')}" for key, value in pairs])
        assert all(all_finite(point.run.model_dump(mode="json")) for point in sweep.points)

    fuzz(st.lists(one, min_size=1, max_size=3), use)


POLICY = {
    "policy_version": 1,
    "model": "reference-joint",
    "max_accuracy_loss": 0.01,
    "fixed": [{"tier": "low", "family": "all", "method": "norm", "layer": 0, "deleted_share": 0.5}],
    "adaptive": [
        {
            "tier": "high",
            "family": "count",
            "metric": "gini",
            "method": "norm",
            "edges": [0.1, 0.4],
            "deleted_shares": [0.9, 0.5, 0.1],
        }
    ],
}


def test_policies(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"

    def use(data: bytes) -> None:
        file.write_bytes(data)
        policy = load_policy(str(file))
        assert all_finite(policy.model_dump(mode="json"))
        for rule in policy.fixed:
            assert 0 <= rule.deleted_share <= 1
        for rule in policy.adaptive:
            assert all(0 <= rule.share_at(value) <= 1 for value in (-1e9, 0.2, 1e9, float("nan")))

    plain = yaml.safe_dump(POLICY).encode()
    dumped = trees(POLICY).map(lambda tree: yaml.safe_dump(tree).encode("utf-8", "surrogatepass"))
    fuzz(texts(plain) | dumped, use)


# ---------------------------------------------------------------- data

COCO = {
    "images": [{"id": k, "file_name": f"{k}.png", "width": 60, "height": 40} for k in (1, 2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 8, "bbox": [5.5, 5, 5, 5.25], "area": 20.5, "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 8, "bbox": [0, 0, 60, 40], "area": 99, "iscrowd": 0},
    ],
    "categories": [{"id": 7, "name": "dog", "supercategory": "animal"}, {"id": 8, "name": "cup"}],
}


def coco_root(folder: Path) -> Path:
    for name in ("annotations", "val2017"):
        (folder / name).mkdir()
    for k in (1, 2):
        Image.new("RGB", (60, 40), (k, 9, 9)).save(folder / "val2017" / f"{k}.png")
    return folder / "annotations" / "instances_val2017.json"


def test_coco_annotations(fuzz: Fuzz, tmp_path: Path) -> None:
    file = coco_root(tmp_path)

    def use(data: bytes) -> None:
        file.write_bytes(data)
        source = make_source(CocoConfig(root=str(tmp_path), min_objects=0))
        source.fingerprint()
        for index in range(len(source)):
            assert all_finite(source.attributes(index))
            sample = source.load(index)
            for one in sample.objects or ():
                assert all_finite([one.x, one.y, one.width, one.height, one.area])
                assert -1.5 <= one.x <= one.x + one.width <= sample.image.shape[1] + 1.5
                assert -1.5 <= one.y <= one.y + one.height <= sample.image.shape[0] + 1.5

    fuzz(documents(COCO), use)


CSV = b"file,age,n,weather\n1.png,1.5,3,rain\n2.png,,4,sun\n3.png,2e1,5,\n"


def test_tables_of_attributes(fuzz: Fuzz, tmp_path: Path) -> None:
    for k in (1, 2, 3):
        Image.new("RGB", (60, 40), (k, 9, 9)).save(tmp_path / f"{k}.png")

    def use(data: bytes) -> None:
        (tmp_path / "attributes.csv").write_bytes(data)
        source = make_source(FolderConfig(root=str(tmp_path)))
        source.fingerprint()
        for index in range(len(source)):
            assert all_finite(source.attributes(index))

    fuzz(texts(CSV), use)


ROWS = [
    {
        "id": f"q{k}",
        "image": f"{k}.png",
        "question": "is there a dog ?",
        "answer": ["yes", "no"][k % 2],
        "choices": ["yes", "no"],
        "family": "existence",
        "complexity": k / 4,
        "boxes": [[1, 2, 3, 4]],
        "n_dogs": k,
    }
    for k in (1, 2, 3)
]


@pytest.mark.parametrize("name", ["q.json", "q.jsonl", "q.csv"])
def test_question_files(fuzz: Fuzz, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    root.mkdir()
    for k in (1, 2, 3):
        Image.new("RGB", (60, 40), (k, 9, 9)).save(root / f"{k}.png")
    csv = b"id,image,question,answer,complexity\nq1,1.png,is it ?,yes,0.5\nq2,2.png,is it ?,no,1\n"
    lines = trees(ROWS).map(lambda rows: b"\n".join(map(as_json, rows if isinstance(rows, list) else [rows])))
    plain = b"\n".join(map(as_json, ROWS))
    inputs = {"q.json": documents(ROWS), "q.jsonl": lines | texts(plain), "q.csv": texts(csv)}[name]

    def use(data: bytes) -> None:
        (root / name).write_bytes(data)
        source = make_source(QuestionsConfig(root=str(root), file=(name,), max_rejected_fraction=0.5))
        source.fingerprint()
        for index in range(len(source)):
            try:
                sample = source.load(index)
            except VtsweepError:
                continue  # a bad row, which a stage counts as rejected
            assert all_finite(dict(sample.attributes))

    fuzz(inputs, use)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


# ---------------------------------------------------------------- checkpoints

CONFIGS = ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json")


def altered_copy(tmp_path: Path, name: str) -> Path:
    """A reference model's folder of links, in which the file `name` is to be written."""
    reference = entries()["reference-joint"].folder
    assert reference is not None
    folder = tmp_path / "model"
    folder.mkdir()
    for file in reference.iterdir():
        if file.name != name:
            (folder / file.name).symlink_to(file)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_files_of_a_checkpoint(fuzz: Fuzz, tmp_path: Path, name: str) -> None:
    folder = altered_copy(tmp_path, name)

    def use(data: bytes) -> None:
        (folder / name).write_bytes(data)
        check_model(ModelConfig(name=str(folder)), questions=("describe the image .",), size=(112, 112))

    fuzz(documents(json.loads((entries()["reference-joint"].folder / name).read_text())), use)  # type: ignore[operator]


def test_chat_templates_of_a_checkpoint(fuzz: Fuzz, tmp_path: Path) -> None:
    """A template is a program: it may fail at any point of it."""
    folder = altered_copy(tmp_path, "chat_template.jinja")
    config = ModelConfig(name=str(folder))
    plain = (entries()["reference-joint"].folder / "chat_template.jinja").read_bytes()  # type: ignore[operator]

    def use(data: bytes) -> None:
        (folder / "chat_template.jinja").write_bytes(data)
        fingerprint(config)
        check_model(config, questions=("describe the image .",), size=(112, 112), text_only=True)

    fuzz(texts(plain), use)


def test_adapter_configs(fuzz: Fuzz, tmp_path: Path) -> None:
    lora = trained_adapter(tmp_path / "lora")
    file = lora / "adapter_config.json"
    plain = file.read_text()

    def use(data: bytes) -> None:
        file.write_bytes(data)
        check_model(ModelConfig(name="reference-joint", adapter=str(lora)), size=(112, 112))

    fuzz(documents(json.loads(plain)), use)


def test_an_adapter_config_on_which_a_library_stumbles_is_named(tmp_path: Path) -> None:
    lora = trained_adapter(tmp_path / "lora")
    file = lora / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "trainable_token_indices": 7.5}))
    with pytest.raises(ModelError, match="its settings do not fit the model: IndexError"):
        check_model(ModelConfig(name="reference-joint", adapter=str(lora)), size=(112, 112))


FOUND: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("config.json", lambda c: c.update(image_seq_length=None)),
    ("config.json", lambda c: c["text_config"].update(num_attention_heads=0)),
    ("config.json", lambda c: c["vision_config"].update(image_size="large")),
    ("processor_config.json", lambda c: c["image_processor"].update(size="\ud800")),
    ("tokenizer.json", lambda c: c.update(version=None)),
    ("tokenizer.json", lambda c: c.update(model=[])),
    ("config.json", lambda c: c["text_config"].update(num_hidden_layers=10**5)),
    ("config.json", lambda c: c["text_config"].update(head_dim=10**9)),
    ("processor_config.json", lambda c: c.update(image_seq_length=10**9)),
    ("processor_config.json", lambda c: c["image_processor"]["size"].update(height=10**6)),
]


@pytest.mark.parametrize(("name", "change"), FOUND)
def test_what_altered_checkpoints_once_made_fail_is_named(
    tmp_path: Path, name: str, change: Callable[[dict[str, Any]], object]
) -> None:
    reference = entries()["reference-joint"].folder
    assert reference is not None
    folder = Path(shutil.copytree(reference, tmp_path / "model"))
    (folder / name).chmod(0o644)
    fields = json.loads((folder / name).read_text())
    change(fields)
    (folder / name).write_text(json.dumps(fields))
    with pytest.raises(ModelError) as refused:
        check_model(ModelConfig(name=str(folder)), size=(112, 112))
    str(refused.value).encode()


def test_a_panic_in_a_library_s_core_is_an_error_of_the_model() -> None:
    """Rust's panics are no `Exception`."""
    entry = entries()["reference-joint"]
    panic = type("PanicException", (BaseException,), {})

    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(ModelError, match="index out of bounds"):
        with_hub_errors(entry, lambda: fail(panic("index out of bounds")))
    with pytest.raises(KeyboardInterrupt):
        with_hub_errors(entry, lambda: fail(KeyboardInterrupt()))


# ---------------------------------------------------------------- records


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Stage]:
    """A study that was begun: its record, and a capture of one shard."""
    import numpy as np
    import polars as pl

    sweep = tiny_study(tmp_path_factory.mktemp("results"))
    points = resolve(sweep, ["capture", "correlate"])
    study = open_study(sweep, points, ["capture", "correlate"])
    stage = points[0].stages["capture"]
    stage.open({"n_images": 12, "shard_size": 12})
    table = pl.DataFrame({"image_id": ["a"], "index": [0]})
    stage.write_shard(0, {"images": table}, {"features/decoder": np.zeros((1, 2), np.float16)}, {"n": 1})
    stage.mark_done({"n_images": 1})
    return study, stage


def test_records_of_studies(fuzz: Fuzz, opened: tuple[Study, Stage]) -> None:
    study, _ = opened
    file = Path(study.folder.path("study.json"))
    plain = file.read_bytes()

    def use(data: bytes) -> None:
        file.write_bytes(data)
        loaded = Study.load(study.folder.uri)
        study_status(loaded)
        verify_study(loaded)

    fuzz(documents(json.loads(plain)), use)
    file.write_bytes(plain)


@pytest.mark.parametrize("name", ["stage.json", "_SUCCESS", "shards/00000.json", "images/00000.parquet"])
def test_records_of_stages(fuzz: Fuzz, opened: tuple[Study, Stage], name: str) -> None:
    """What is accepted equals what was written: any change of a record is found."""
    study, stage = opened
    file = Path(stage.store.path(name))
    plain, summary, rows = file.read_bytes(), stage.summary(), stage.scan("images").collect()

    def use(data: bytes) -> None:
        file.write_bytes(data)
        verify_study(study)
        loaded = load_stage(study.storage, "capture", stage.digest)
        assert loaded.open() == {"n_images": 12, "shard_size": 12}
        assert loaded.summary() == summary
        assert [record["extra"] for record in loaded.finished_shards().values()] == [{"n": 1}]
        assert loaded.scan("images").collect().equals(rows)
        assert loaded.arrays("features/decoder")[0].shape == (1, 2)

    try:
        fuzz(texts(plain) if name.endswith(".parquet") else documents(json.loads(plain)), use)
    finally:
        file.write_bytes(plain)
