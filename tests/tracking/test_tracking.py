import base64
import json
import multiprocessing
import sqlite3
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import RunConfig, TrackConfig
from orchestrator.store.filesystem import Storage
from orchestrator.tracking import views
from orchestrator.tracking.content import Content, Entry, finite_metrics, server_names
from orchestrator.tracking.tracker import Sent, Tracker, default_uri
from orchestrator.tracking.views import TAG

pytest.importorskip("mlflow")
NOWHERE = "http://ada:hunter2@127.0.0.1:9/mlflow"
"""Nothing listens on the discard port."""


def _content(value: float = 0.5) -> Content:
    return Content(
        params={"model": "reference-joint", "complexity_ratio": value},
        metrics={"accuracy/high": value, "not a number": float("nan"), "absent": None},
        curves={"compression/vision/gini": [(0, 0.1), (1, 0.4), (2, float("nan"))]},
        tables={"correlations": pl.DataFrame({"layer": [0, 1], "rho": [0.1, -0.2]})},
        figures={"fig1.png": b"\x89PNG", "report.html": b"<p>"},
        note="a *note*",
    )


def _entry(number: int = 0, content: Content | None = None, **fields) -> Entry:
    made = content or _content()
    defaults = {"stage": "capture", "digest": f"{number:016x}", "title": f"run {number}", "ended": 1e9 + number}
    return Entry(**{**defaults, "content": lambda: made, "run": RunConfig(), **fields})


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(TrackConfig(), "first", Storage(str(folder))).log([_entry()])
    return folder / "mlflow.db"


def storage_with(folder: Path, database: Path) -> Storage:
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(database.read_bytes())
    return Storage(str(folder))


@pytest.fixture
def storage(tmp_path: Path, empty_database: Path) -> Storage:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return Storage(str(tmp_path))


def _client(storage: Storage):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=default_uri(storage))


def _runs(storage: Storage, study: str = "study") -> list:
    experiment = _client(storage).get_experiment_by_name(study)
    return [] if experiment is None else list(_client(storage).search_runs([experiment.experiment_id]))


def test_a_stage_is_logged_once_with_params_metrics_curves_and_artifacts(storage):
    tracker = Tracker(TrackConfig(), "study", storage, version={"commit": "abc+"})
    assert tracker.log([_entry()]) == Sent(1, 0)
    assert tracker.log([_entry()]) == Sent(0, 0)
    assert Tracker(TrackConfig(), "study", storage).log([_entry()]) == Sent(0, 0)
    (run,) = _runs(storage)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model": "reference-joint", "complexity_ratio": "0.5"}
    assert set(run.data.metrics) == {"accuracy/high", "compression/vision/gini"}
    assert run.data.tags["digest"] == f"{0:016x}"
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    client = _client(storage)
    history = client.get_metric_history(run.info.run_id, "compression/vision/gini")
    assert [(m.step, m.value) for m in history] == [(0, 0.1), (1, 0.4)]
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "scenes seed 0, 200 images"
    names = {f.path for top in ("", "figures", "tables") for f in client.list_artifacts(run.info.run_id, top)}
    assert {"config.yaml", "figures/fig1.png", "tables/correlations.csv", "report.html"} <= names


def test_content_of_a_run_that_is_there_is_not_made_again(storage):
    tracker = Tracker(TrackConfig(), "study", storage)
    tracker.log([_entry()])

    def never() -> Content:
        raise AssertionError("made again")

    assert tracker.log([Entry("capture", f"{0:016x}", "run 0", never, ended=1e9)]) == Sent(0, 0)


def test_trials_nest_below_one_parent_that_spans_them(storage):
    tracker = Tracker(TrackConfig(), "study", storage)
    entries = [
        _entry(k, Content(seconds=5.0), stage="finetune", title=f"ratio {k}", parent="finetune", ended=1e9 + 10 * k)
        for k in range(3)
    ]
    tracker.log(entries[:1])
    tracker.log(entries)
    runs = {r.info.run_name: r for r in _runs(storage)}
    assert set(runs) == {"finetune", "ratio 0", "ratio 1", "ratio 2"}
    parent = runs.pop("finetune")
    assert {r.data.tags["mlflow.parentRunId"] for r in runs.values()} == {parent.info.run_id}
    assert [(r.info.end_time - r.info.start_time) / 1000 for r in runs.values()] == pytest.approx([5.0] * 3)
    assert (parent.info.end_time - parent.info.start_time) / 1000 == pytest.approx(25.0)


def test_a_summary_of_other_stages_replaces_the_one_before(storage):
    tracker = Tracker(TrackConfig(), "study", storage)
    for digest, best in (("a", 0.1), ("a", 0.2), ("b", 0.3)):
        content = Content(curves={"best": [(0, best)]})
        tracker.log([_entry(content=content, stage="report", title="report", digest=digest, replaces=True)])
    (run,) = _runs(storage)
    assert [(m.step, m.value) for m in _client(storage).get_metric_history(run.info.run_id, "best")] == [(0, 0.3)]


CALLS = (
    "get_experiment_by_name", "create_experiment", "search_runs", "delete_run", "create_run", "log_batch", "log_inputs",
    "log_artifacts", "create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs",
    "set_terminated", "get_experiment", "set_experiment_tag",
)  # fmt: skip
"""All that the tracker calls."""


def test_a_driver_killed_between_any_two_calls_leaves_nothing_stuck(tmp_path, empty_database, monkeypatch):
    """Killed after the first call, after the second, and so on; the next driver ends with one whole run each time."""
    from mlflow import MlflowClient

    entry = _entry(
        content=Content(params={"a": 1}, metrics={"accuracy/high": 0.5}, model={"adapter_config.json": b"{}"}),
        parent="capture",
    )
    killed_after: list[str] = []
    for k in range(1, 60):
        storage, made = storage_with(tmp_path / str(k), empty_database), []

        def counted(name, k=k, made=made):
            real = getattr(MlflowClient, name)

            def call(*args, **kwargs):
                found = real(*args, **kwargs)
                made.append(name)
                if len(made) == k:
                    killed_after.append(name)
                    raise OSError("the driver was killed here")
                return found

            return call

        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in CALLS:
                patch.setattr(MlflowClient, name, counted(name))
            Tracker(TrackConfig(), "study", storage).log([entry])
        if len(made) < k:
            break
        Tracker(TrackConfig(), "study", storage).log([entry])
        runs = {r.info.run_name: r for r in _runs(storage)}
        assert set(runs) == {"capture", "run 0"}, killed_after[-1]
        assert {r.info.status for r in runs.values()} == {"FINISHED"}, killed_after[-1]
        history = _client(storage).get_metric_history(runs["run 0"].info.run_id, "accuracy/high")
        assert [m.value for m in history] == [0.5], killed_after[-1]
    assert {*CALLS} - {*killed_after} <= {"delete_run", "set_experiment_tag"}, (
        "nothing is replaced, and one run has no view"
    )


def test_an_adapter_becomes_a_logged_model_with_its_metrics(storage):
    content = Content(metrics={"accuracy/high": 0.7}, model={"adapter_config.json": b"{}"})
    Tracker(TrackConfig(), "study", storage).log([_entry(content=content, stage="finetune", title="r=0.5 seed=1")])
    (run,) = _runs(storage)
    (output,) = run.outputs.model_outputs
    model = _client(storage).get_logged_model(output.model_id)
    assert model.name == "r_0_5_seed_1"
    assert str(model.status) == "READY"
    assert {m.key: m.value for m in model.metrics or []} == {"accuracy/high": 0.7}


def test_what_a_dead_server_misses_is_logged_later_and_once(storage):
    dead = Tracker(TrackConfig(uri=NOWHERE), "study", storage)
    with pytest.warns(UserWarning, match="vtsweep track") as caught:
        assert dead.log([_entry(0), _entry(1)]) == Sent(0, 2)
    assert "hunter2" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dead.log([_entry(2)]) == Sent(0, 1)
    here = Tracker(TrackConfig(), "study", storage)
    assert here.log([_entry(k) for k in range(3)]) == Sent(3, 0)
    assert here.log([_entry(k) for k in range(3)]) == Sent(0, 0)
    assert len(_runs(storage)) == 3


def test_a_deleted_experiment_is_named_with_the_way_out(storage):
    tracker = Tracker(TrackConfig(), "study", storage)
    tracker.log([_entry()])
    client = _client(storage)
    client.delete_experiment(client.get_experiment_by_name("study").experiment_id)
    with pytest.warns(UserWarning, match=r"deleted there; restore it .* track\.experiment"):
        assert Tracker(TrackConfig(), "study", storage).log([_entry(1)]) == Sent(0, 1)


def test_remote_storage_without_a_tracking_uri_says_so(tmp_path):
    storage = Storage(f"memory://{tmp_path.name}")
    with pytest.warns(UserWarning, match=r"track\.uri is not set"):
        assert Tracker(TrackConfig(), "study", storage).log([_entry()]) == Sent(0, 1)


@pytest.mark.parametrize("name", ["a b", "50%41 x", "q?mode=ro", "h#x", "größe"])
def test_any_storage_path_holds_its_own_database(tmp_path, empty_database, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    storage = Storage(str(folder))
    assert Tracker(TrackConfig(), "study", storage).log([_entry()]) == Sent(1, 0)
    assert len(_runs(storage)) == 1
    assert [p.name for p in tmp_path.iterdir()] == [name], "MLflow makes a folder of the encoded name besides"
    assert len(list(folder.rglob("mlflow-artifacts/**/config.yaml"))) == 1


def test_a_proxy_is_not_asked_for_a_server_on_this_machine(storage, monkeypatch):
    import http.server
    import threading

    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="does not take runs"):
        Tracker(TrackConfig(uri=f"http://127.0.0.1:{server.server_port}"), "study", storage).log([_entry()])
    server.shutdown()
    assert asked
    assert all(path.startswith("/api/") for path in asked)  # a proxy is sent whole addresses


def _first(folder: str) -> tuple[int, int]:
    return tuple(Tracker(TrackConfig(), "study", Storage(folder)).log([_entry()]))


def test_three_first_runs_at_once_make_one_database_and_one_run(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        counts = pool.map(_first, [str(tmp_path)] * 3)
    assert sorted(counts) == [(0, 0), (0, 0), (1, 0)]
    assert len(_runs(Storage(str(tmp_path)))) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=30), unique=True, max_size=8))
def test_names_are_accepted_and_stay_apart(names):
    from mlflow.utils.validation import _validate_metric_name

    made = server_names(names)
    assert len({m.lower() for m in made.values()}) == len({n.lower() for n in names}) or len(set(made.values())) == len(
        names
    )
    for name in made.values():
        _validate_metric_name(name)


def test_names_that_collide_after_cleaning_keep_one_value_a_step(storage):
    names = ["size@big", "size_big", "size#big", "a//b", "a/_/b", "../x"]
    content = Content(curves={name: [(0, k)] for k, name in enumerate(names)})
    rows = finite_metrics(content)
    assert len({name for name, _, _ in rows}) == len(names)
    assert ("size_big", 0, 1.0) in rows
    assert Tracker(TrackConfig(), "study", storage).log([_entry(content=content)]) == Sent(1, 0)
    (run,) = _runs(storage)
    assert sorted(run.data.metrics.values()) == list(range(len(names)))


def test_credentials_never_reach_the_database_or_the_artifacts(storage):
    secrets = {
        "hub_token": "plain-secret",
        "uri": "s3://key:plain-secret@bucket/x",
        "note": "hf_plainsecretplainsecret",
    }
    link = "https://me:plain-secret@host/?sig=plain-secret"
    content = Content(params=secrets, note=f"see {link}", tables={"t": pl.DataFrame({"place": [link]})})
    run = RunConfig.model_validate(
        {"data": {"source": "coco", "root": "https://me:plain-secret@host/coco?token=plain-secret"}}
    )
    Tracker(TrackConfig(), "study", storage, description=link).log([_entry(content=content, run=run)])
    dump = "\n".join(sqlite3.connect(storage.path("mlflow.db")).iterdump())
    files = [p for p in Path(storage.uri).rglob("*") if p.is_file() and p.suffix != ".db"]
    text = dump + "".join(p.read_text(errors="replace") for p in files)
    assert "***" in text
    assert "plain-secret" not in text
    assert "hf_plainsecret" not in text


def test_a_shared_view_shows_all_runs_of_a_sweep():
    """MLflow's own choice is the first ten, which leaves out the highest ratios."""
    (view, *_) = views.study_views({"finetune": ["accuracy/high"]})
    state = json.loads(views.encode(view, 0))["state"].removeprefix("deflate;")
    shown = json.loads(zlib.decompress(base64.b64decode(state)))
    assert (shown["runsHidden"], shown["runsHiddenMode"]) == ([], "SHOWALL")


def test_shared_views_are_written_once(storage):
    tracker = Tracker(TrackConfig(), "study", storage)
    trials = [
        _entry(
            k,
            Content(
                params={"complexity_ratio": k / 2, "seed": 0},
                metrics={"accuracy/high": 0.5, "accuracy/low": 0.9, "delta/vision/stable_rank_centred/middle": 0.1},
            ),
            stage="finetune",
            parent="finetune",
        )
        for k in range(3)
    ]
    tracker.log([*trials, _entry(9, parent="capture")])
    client = _client(storage)
    experiment = client.get_experiment_by_name("study")
    tags = {k: v for k, v in experiment.tags.items() if k.startswith(TAG)}
    assert set(tags) == {TAG + "trials", TAG + "captures"}
    tracker.log([*trials, _entry(9, parent="capture")])
    assert {k: v for k, v in client.get_experiment_by_name("study").tags.items() if k.startswith(TAG)} == tags


def test_tracking_that_is_off_writes_nothing(tmp_path):
    storage = Storage(str(tmp_path))
    assert Tracker(TrackConfig(enabled=False), "study", storage).log([_entry()]) == Sent(0, 0)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_tracker_imports_no_mlflow():
    code = "import sys, orchestrator.tracking.tracker; sys.exit(bool({'mlflow', 'torch'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
