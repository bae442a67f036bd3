"""The MLflow pages a reader meets, on a real server over a database that a `Tracker` wrote."""

import json
from urllib.parse import quote

import numpy as np
import polars as pl
import psutil
import pytest

from orchestrator.config import RunConfig, TrackConfig
from orchestrator.report.intervals import layer_curves
from orchestrator.store.stage_folder import Stage, Storage
from orchestrator.tracking.outbox import Content
from orchestrator.tracking.runs import Tracker, default_uri
from orchestrator.tracking.ui import experiment_pages, ui_server
from tests.report.fake_study import fake_point, fake_trials

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SLOW = 60_000
"""Milliseconds a page of the server may take on a busy machine."""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage(str(tmp_path_factory.mktemp("mlflow")))
    tracker = Tracker(TrackConfig(), "invented", storage, "Invented numbers.")
    table = fake_point().layer_metrics
    assert table is not None
    curves = {
        f"compression/{group}/{metric}": list(zip(part["layer"], part["mean"], strict=True))
        for (group, metric), part in layer_curves(table)
        .filter(pl.col("tap") == "decoder")
        .group_by("group", "metric", maintain_order=True)
    }
    content = Content(curves=curves, tables={"correlations": pl.DataFrame({"layer": [0], "rho": [0.25]})})
    tracker.log_stage(Stage(storage, "capture", {}), RunConfig(), content, title="reference-joint", parent="capture")
    for row in fake_trials(np.random.default_rng(0)).head(4).iter_rows(named=True):
        params = {"complexity_ratio": row["complexity_ratio"], "seed": row["seed"]}
        metrics = {k: v for k, v in row.items() if k.startswith(("accuracy/", "delta/")) and "_" not in k[-5:]}
        stage = Stage(storage, "finetune", {"trial": row["trial"]})
        title = f"ratio {row['complexity_ratio']}, seed {row['seed']}"
        tracker.log_stage(stage, RunConfig(), Content(params=params, metrics=metrics), title=title, parent="finetune")
    return storage


@pytest.fixture(scope="module")
def server(storage: Storage, request: pytest.FixtureRequest):
    request.getfixturevalue("browser")  # no server where there is no browser
    with ui_server(default_uri(storage) or "") as (address, process):
        yield address, process, experiment_pages(address)[0][1]


def _runs(storage: Storage) -> dict:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(storage))
    experiment = client.get_experiment_by_name("invented")
    return {r.info.run_name: r.info.run_id for r in client.search_runs([experiment.experiment_id])}


def test_server_runs_without_helper_processes(server):
    _, process, _ = server
    me = psutil.Process(process.pid)
    family = [me, *me.children(recursive=True)]
    assert len(family) <= 3
    assert sum(p.memory_info().rss for p in family) < 900e6


def test_experiment_page_shows_stages_and_nests_trials(server, watched):
    page = watched(server[2]).page
    page.get_by_role("link", name="finetune", exact=True).wait_for(timeout=SLOW)
    assert page.get_by_role("link", name="ratio 0.0, seed 0").count() == 0
    row = page.locator(".ag-row", has=page.get_by_role("link", name="finetune", exact=True))
    row.locator("button:has(svg)").first.click()
    page.get_by_role("link", name="ratio 0.0, seed 0").wait_for(timeout=SLOW)


def test_metrics_of_a_run_are_charts_by_layer_grouped_by_tokens(server, watched, storage):
    run = _runs(storage)["reference-joint"]
    page = watched(f"{server[0]}/#/experiments/1/runs/{run}/model-metrics").page
    for section in ("compression/text", "compression/vision"):
        page.get_by_text(section).first.wait_for(timeout=SLOW)
    page.get_by_text("stable_rank_centred").first.wait_for(timeout=SLOW)


def test_trials_compare_in_parallel_coordinates_with_the_ratio(server, watched, storage):
    trials = [run for name, run in _runs(storage).items() if name.startswith("ratio")]
    query = f"runs={quote(json.dumps(trials))}&experiments={quote(json.dumps(['1']))}"
    page = watched(f"{server[0]}/#/compare-runs?{query}").page
    page.get_by_text("Comparing 4 Runs").first.wait_for(timeout=SLOW)
    page.locator(".parcoords text", has_text="complexity_ratio").first.wait_for(timeout=SLOW)


def test_tables_are_shown_as_artifacts(server, watched, storage):
    run = _runs(storage)["reference-joint"]
    page = watched(f"{server[0]}/#/experiments/1/runs/{run}/artifacts/tables/correlations.csv").page
    page.get_by_text("rho").first.wait_for(timeout=SLOW)


def test_pages_ask_no_other_host(server, watched):
    seen = watched(server[2])
    seen.page.get_by_role("link", name="finetune", exact=True).wait_for(timeout=SLOW)
    assert [u for u in seen.asked if not u.startswith((server[0], "data:", "blob:"))] == []
