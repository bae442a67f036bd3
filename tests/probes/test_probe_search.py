"""The hyperparameter search: judged on training images alone, and the same on Ray as here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from orchestrator.config import HowConfig, ProbeConfig, RunConfig, ScenesConfig, SearchAxis
from orchestrator.config.probe_search import configured
from orchestrator.errors import ConfigError, StageError
from orchestrator.probes import probe_stage as probes_stage
from orchestrator.probes import ray as probes_on_ray
from orchestrator.probes.ray import search_table
from orchestrator.probes.search import Evaluation, groups, halve, judge, load_search_data, validation_split
from orchestrator.probes.search import Trial as Tried
from orchestrator.probes.split import make_split
from orchestrator.progress import Progress
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage
from tests.points import open_probes, probe_stage, run_probe_stage, run_probes

SCENES = ScenesConfig(n_images=80, width=32, height=32, n_objects=(1, 6))
POSITIONS = ["vision_mean", "vision_00", "text_mean"]


def make_capture(storage: Storage) -> Stage:
    """Noise at two layers; the number of objects stands, as a product of two features, in the mean vision token."""
    from orchestrator.data.source import make_source

    source = make_source(SCENES)
    rows = [{"image_id": source.ids[i], "index": i, **source.load(i).attributes} for i in range(len(source))]
    random = np.random.default_rng(0)
    features = random.normal(size=(len(rows), 2, len(POSITIONS), 6))
    features[:, :, 0, 0] = [[2.0 * row["n_objects"]] * 2 for row in rows]
    capture = Stage(storage, "capture", {})
    capture.open({})
    kept = {"features": {"decoder": {"layers": [0, 3], "positions": POSITIONS}}}
    capture.write_shard(0, {"images": pl.DataFrame(rows)}, {"features/decoder": features.astype(np.float16)}, kept)
    return capture


def make_run(**probe: Any) -> RunConfig:
    settings = {"n_folds": 2, "penalties": (0.1, 1.0), "n_bootstrap": 0, "controls": (), "mlp_steps": 20, **probe}
    probes = ProbeConfig(attributes=("n_objects",), solvers=("ridge", "logistic"), **settings)
    return RunConfig(data=SCENES, probe=probes, how=HowConfig(backend="local"))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(str(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def capture(storage: Storage) -> Stage:
    return make_capture(storage)


SPACE = {
    "probe.solver": SearchAxis(kind="choice", values=("linear", "mlp")),
    "probe.positions": SearchAxis(kind="choice", values=("vision_mean", "text_mean")),
    "probe.width": SearchAxis(kind="choice", values=(4, 8)),
    "probe.penalty": SearchAxis(kind="loguniform", low=1e-3, high=1.0),
    "finetune.seed": SearchAxis(kind="randint", low=0, high=9),
}


def test_the_search_finds_the_planted_position_and_judges_it_on_held_out_images(
    storage: Storage, capture: Stage
) -> None:
    run = make_run(search_trials=5)
    stage = run_probe_stage(run, storage, capture, search=SPACE, quiet=True)
    table = stage.scan("probe_search").collect()
    assert table["trial"].to_list() == list(range(6))
    best = table.filter("best").row(0, named=True)
    assert best["positions"] == "vision_mean"
    assert best["held_out"] > 0.8
    assert table.filter(positions="text_mean")["skill"].max() < 0.4  # type: ignore[operator]
    judged = table.filter(pl.col("held_out").is_not_null())["trial"].to_list()
    assert judged == sorted({0, best["trial"]})
    assert stage.summary()["search"]["trial"] == best["trial"]
    assert run_probe_stage(run, storage, capture, quiet=True).is_done()


def test_no_trial_sees_a_held_out_image(storage: Storage, capture: Stage) -> None:
    run = make_run()
    work = open_probes(run, storage, capture, quiet=True)
    data = load_search_data(work)
    before = judge(data, {"solver": "linear"}, held_out=False)
    for array in data.layers.values():
        array[work.split.test] = np.nan
    for target in data.targets:
        target.values[work.split.test] = 1e9
    assert judge(data, {"solver": "linear"}, held_out=False) == before
    inner = validation_split(work.split)
    assert set(inner.train) | set(inner.test) == set(work.split.train)
    assert not set(inner.train) & set(inner.test)


def test_nets_are_halved_after_a_quarter_and_a_half_of_their_steps_and_linear_probes_are_not(
    storage: Storage, capture: Stage
) -> None:
    run = make_run()
    data = load_search_data(open_probes(run, storage, capture, quiet=True))
    samples: list[dict[str, Any]] = [{"solver": "mlp", "width": 2 + i} for i in range(5)] + [{"solver": "linear"}] * 2
    rounds: list[list[Evaluation]] = []

    def judge_all(asked: list[Evaluation]) -> list[float]:
        rounds.append(asked)
        return [float(one.settings.get("width", 0)) for one in asked]  # the wider, the better

    trials = halve(data, samples, judge_all)
    nets = [[(a.settings["width"], a.steps) for a in asked if "width" in a.settings] for asked in rounds]
    assert nets == [[(w, 5) for w in range(2, 7)], [(w, 10) for w in (4, 5, 6)], [(w, 20) for w in (5, 6)]]
    assert [len(asked) for asked in rounds] == [7, 3, 2]
    assert [t.steps for t in trials] == [5, 5, 10, 20, 20, 20, 20]
    assert not any(asked.held_out for one in rounds for asked in one)


def test_settings_of_the_studys_own_net_are_in_the_table(storage: Storage, capture: Stage) -> None:
    run = make_run(mlp_steps=5)
    run = run.model_copy(update={"probe": run.probe.model_copy(update={"solvers": ("mlp",)})})
    data = load_search_data(open_probes(run, storage, capture, quiet=True))
    table = search_table(
        data, [Tried({"width": 4}, 5, 0.1), Tried({"solver": "linear", "width": 8}, 5, 0.2)], lambda a: [0.0] * len(a)
    )
    assert table["width"].to_list() == [64, 4, None]
    assert table["depth"].to_list() == [2, 2, None]


def test_position_kinds_cover_what_was_kept() -> None:
    found = groups(["vision_mean", *(f"vision_{i:02d}" for i in range(9)), "text_00", "last"])
    assert found == {
        "vision_mean": ["vision_mean"],
        "last": ["last"],
        "vision_single": ["vision_00", "vision_03", "vision_05", "vision_08"],
        "text_single": ["text_00"],
    }


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown probe setting 'widht'. Did you mean 'width'"):
        configured(ProbeConfig(), {"widht": 3})
    with pytest.raises(ConfigError, match="penalty"):
        configured(ProbeConfig(), {"penalty": -1.0})


@pytest.mark.parametrize(
    ("setting", "values", "message"),
    [
        (
            "positions",
            ("vision_mean", "vision_mea"),
            "nothing was captured at 'vision_mea'. Did you mean 'vision_mean'",
        ),
        ("solver", ("ridge",), "probe.solver: found 'ridge', expected linear or mlp"),
        ("width", (0,), "mlp_width"),
    ],
)
def test_a_space_no_trial_could_use_is_refused_before_anything_is_fitted(
    setting: str, values: tuple, message: str, storage: Storage, capture: Stage
) -> None:
    run = make_run(search_trials=2, seed=7)
    space = {f"probe.{setting}": SearchAxis(kind="choice", values=values)}
    with pytest.raises(ConfigError, match=message):
        run_probe_stage(run, storage, capture, search=space, quiet=True)
    assert not probe_stage(run, storage, capture).finished_shards()


def test_a_validation_split_keeps_as_many_folds() -> None:
    split = make_split(range(40), 0.3, 2, 0)
    assert set(validation_split(split).fold) == {0, 1}


def test_a_fit_that_fails_fails_the_search_and_the_next_run_draws_the_same_settings(
    storage: Storage, capture: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(search_trials=3, seed=11)
    judged: list[dict[str, Any]] = []
    shown: list[int] = []

    def broken(data: Any, one: Any) -> float:
        judged.append(dict(one.settings))
        reading = Progress.reading(probe_stage(run, storage, capture).digest)
        shown.append(len(reading.values.get("skill", ())) if reading else -1)
        if len(judged) == 3:
            raise StageError("worker lost")
        return judge_whole(data, one)

    judge_whole = probes_on_ray.evaluate
    monkeypatch.setattr(probes_on_ray, "evaluate", broken)
    with pytest.raises(StageError, match="worker lost"):
        run_probe_stage(run, storage, capture, search=SPACE, quiet=True)
    stage = probe_stage(run, storage, capture)
    assert not stage.is_done()
    assert not stage.store.files("probe_search"), "no smaller result"
    assert shown == [0, 1, 2], "who follows the search sees the skill of each fit"
    first = judged[:3]
    judged.clear()
    judged.extend([{}] * 3)
    table = run_probe_stage(run, storage, capture, search=SPACE, quiet=True).scan("probe_search").collect()
    assert judged[3:6] == first
    assert table.height == 4


@pytest.mark.ray
@pytest.mark.timeout(280)
def test_ray_gives_the_table_and_the_search_of_a_plain_process(
    storage: Storage, capture: Stage, tmp_path: Path
) -> None:
    run = make_run(search_trials=3)
    here = run_probe_stage(run, storage, capture, search=SPACE, quiet=True)
    elsewhere = Storage(str(tmp_path / "ray"))
    again = make_capture(elsewhere)
    on_ray = run.model_copy(update={"how": HowConfig(torch_threads=1, object_store_gb=0.2)})
    stage = run_probe_stage(on_ray, elsewhere, again, search=SPACE, quiet=True)
    assert stage.scan("probes").collect().equals(here.scan("probes").collect())
    ours, theirs = (s.scan("probe_search").collect() for s in (here, stage))
    assert_frame_equal(ours, theirs, abs_tol=1e-6)


def test_a_block_that_fails_is_named_and_the_others_are_kept(
    storage: Storage, capture: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(seed=3)
    fit_block = probes_stage.fit_block

    def broken(work: Any, index: int, device: str) -> None:
        if index == 1:
            raise StageError("worker lost")
        fit_block(work, index, device)

    monkeypatch.setattr(probes_stage, "fit_block", broken)
    with pytest.raises(StageError, match="worker lost"):
        run_probes(run, storage, capture, quiet=True)
    assert list(probe_stage(run, storage, capture).finished_shards()) == [0]
