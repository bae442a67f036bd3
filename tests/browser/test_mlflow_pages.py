"""The MLflow pages a reader meets, on a real server over a database that a `Tracker` wrote."""

import json
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
import psutil
import pytest

from orchestrator.config import RunConfig, TrackConfig
from orchestrator.report.intervals import layer_curves
from orchestrator.store.filesystem import Storage
from orchestrator.tracking.content import Content, Entry
from orchestrator.tracking.landing import landing_server
from orchestrator.tracking.tracker import Tracker, default_uri
from orchestrator.tracking.ui import study_pages, ui_server
from tests.report.fake_study import fake_point, fake_trials

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SLOW = 60_000
"""Milliseconds a page of the server may take on a busy machine."""


def _entry(number: int, stage: str, title: str, content: Content) -> Entry:
    return Entry(stage, f"{number:016x}", title, lambda: content, parent=stage, run=RunConfig(), ended=1.7e9 + number)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage(str(tmp_path_factory.mktemp("mlflow")))
    table = fake_point().layer_metrics
    assert table is not None
    curves = {
        f"compression/{group}/{metric}": list(zip(part["layer"], part["mean"], strict=True))
        for (group, metric), part in layer_curves(table)
        .filter(pl.col("tap") == "decoder")
        .group_by("group", "metric", maintain_order=True)
    }
    content = Content(curves=curves, tables={"correlations": pl.DataFrame({"layer": [0], "rho": [0.25]})})
    entries = [_entry(0, "capture", "reference-joint", content)]
    for number, row in enumerate(fake_trials(np.random.default_rng(0)).head(4).iter_rows(named=True), 1):
        params = {"complexity_ratio": row["complexity_ratio"], "seed": row["seed"]}
        metrics = {k: v for k, v in row.items() if k.startswith(("accuracy/", "delta/")) and "_" not in k[-5:]}
        title = f"ratio {row['complexity_ratio']}, seed {row['seed']}"
        entries.append(_entry(number, "finetune", title, Content(params=params, metrics=metrics)))
    assert Tracker(TrackConfig(), "invented", storage, "Invented numbers.").log(entries).sent == 5
    return storage


@pytest.fixture(scope="module")
def server(storage: Storage, request: pytest.FixtureRequest):
    request.getfixturevalue("browser")  # no server where there is no browser
    with ui_server(default_uri(storage) or "") as (address, process):
        yield address, process, study_pages(address)[0].page


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


def test_a_link_opens_compression_against_accuracy_over_the_ratio(server, watched):
    views = study_pages(server[0])[0].views
    seen = watched(views["Compression against accuracy over the complexity ratio"])
    page = seen.page
    page.set_viewport_size({"width": 1600, "height": 1400})
    page.get_by_text("Compression against accuracy over the complexity ratio").first.wait_for(timeout=SLOW)
    page.locator(".js-plotly-plot").nth(2).wait_for(timeout=SLOW)  # charts, not the table, without a click
    page.locator(".parcoords text", has_text="complexity_ratio").first.wait_for(state="attached", timeout=SLOW)
    axes = " ".join(page.locator(".js-plotly-plot text").all_text_contents())
    assert "accuracy/high" in axes
    assert "delta/vision/" in axes


def test_the_same_view_as_a_table_sorts_trials_by_ratio_with_accuracy_beside(server, watched):
    views = study_pages(server[0])[0].views
    address = views["Compression against accuracy over the complexity ratio"].replace("&compareRunsMode=CHART", "")
    page = watched(address).page
    page.set_viewport_size({"width": 1800, "height": 1000})
    for heading in ("complexity_ratio", "accuracy/high"):
        page.get_by_text(heading, exact=True).first.wait_for(timeout=SLOW)
    page.get_by_role("link", name="ratio 0.0, seed 0").wait_for(timeout=SLOW)
    assert page.get_by_role("link", name="reference-joint", exact=True).count() == 0


def test_one_click_from_the_studies_page_to_compression_against_accuracy(server, watched, storage):
    folder = Path(storage.path("studies/invented"))
    (folder / "report").mkdir(parents=True, exist_ok=True)
    record = {"name": "invented", "versions": {}, "stages": [], "points": [], "created": "2026-11-26", "hardware": {}}
    record |= dict.fromkeys(("description", "file", "text", "command"), "") | {"seconds": {}}
    (folder / "study.json").write_text(json.dumps(record))
    (folder / "report" / "report.html").write_text("<title>the report</title>")

    def links():
        return {one.name: (one.page, one.views) for one in study_pages(server[0])}

    with landing_server(storage, 0, links) as address:
        page = watched(address).page
        page.set_viewport_size({"width": 1600, "height": 1400})  # charts below the fold are not drawn
        page.get_by_role("link", name="Report").click()
        page.wait_for_url("**/report/invented/report.html")
        page.go_back()
        page.get_by_role("link", name="Compression against accuracy over the complexity ratio").click()
        page.locator(".js-plotly-plot").nth(2).wait_for(timeout=SLOW)
