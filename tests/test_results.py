"""The published study: every number in its prose comes from its tables."""

from __future__ import annotations

import json
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import polars as pl
import pytest

from jobs import results
from jobs.published import figures, numbers, tables
from orchestrator.store.study_record import Study

ROOT = Path(__file__).parents[1]


def test_the_page_says_what_the_tables_say() -> None:
    assert (tables.FOLDER / "README.md").read_text(encoding="utf-8") == results.page()


def test_the_readme_opens_with_what_the_tables_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == results.readme(text)


def test_changed_tables_part_from_the_page(tmp_path: Path) -> None:
    for file in tables.FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    trials = pl.read_parquet(tmp_path / "ratio_trials.parquet")
    trials.with_columns(pl.col("accuracy/high/count") * 0.9).write_parquet(tmp_path / "ratio_trials.parquet")
    assert results.short(tmp_path) != results.short()
    assert results.page(tmp_path) != results.page()


def test_gains_are_those_of_a_plain_mean_over_paired_seeds() -> None:
    trials = pl.read_parquet(tables.FOLDER / "ratio_trials.parquet")
    found = numbers.ratio_numbers(trials)
    for model in tables.MODELS:
        own = trials.filter(pl.col("model") == model)
        high = {
            r: own.filter(pl.col("complexity_ratio") == r).sort("seed")["accuracy/high"].to_numpy() for r in (0.0, 1.0)
        }
        effect = next(p for p in found[model]["primary"] if p["outcome"] == "accuracy/high")
        assert effect["effect"] == pytest.approx(np.mean(high[1.0] - high[0.0]))
        assert effect["n_seeds"] == found["n_seeds"] == len(high[0.0])


@pytest.mark.parametrize("name", [n for n, (t, _) in figures.FIGURES.items() if (tables.FOLDER / t).exists()])
def test_figures_are_drawn_from_their_tables(name: str, tmp_path: Path) -> None:
    table, draw = figures.FIGURES[name]
    data = pl.read_parquet(tables.FOLDER / table)
    draw(data, tmp_path / "first.png")
    draw(data.with_columns(pl.col(pl.Float32, pl.Float64) * 0.5), tmp_path / "other.png")
    assert (tmp_path / "first.png").read_bytes() != (tmp_path / "other.png").read_bytes()
    assert (tables.FOLDER / name).exists()


def test_the_page_is_made_in_another_folder_from_its_tables_alone(tmp_path: Path) -> None:
    for file in tables.FOLDER.glob("*.parquet"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "study.json").write_bytes((tables.FOLDER / "study.json").read_bytes())
    before = (ROOT / "README.md").stat().st_mtime_ns
    results.write(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == results.page()
    assert (ROOT / "README.md").stat().st_mtime_ns == before


def test_a_rehearsal_never_writes_the_published_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["results", "run", "storage", "--small"])
    with pytest.raises(SystemExit) as ended:
        results.main()
    assert ended.value.code == 2


@pytest.mark.parametrize(("codes", "asked"), [([0] * 7, 7), ([0, 5], 2)])
def test_one_command_runs_every_sweep_and_ends_at_the_first_that_fails(
    codes: list[int], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[list[str]] = []

    def ended(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        said.append(words)
        return subprocess.CompletedProcess(words, codes[len(said) - 1])

    monkeypatch.setattr(results.subprocess, "run", ended)
    with pytest.raises(SystemExit) if codes[-1] else nullcontext():
        results.run("storage", "coco", small=False)
    assert len(said) == asked == len({Path(words[4]).stem for words in said})


@pytest.mark.parametrize("sweep", [*tables.SWEEPS, tables.COCO[0]])
def test_a_rehearsal_changes_sizes_alone(sweep: str) -> None:
    from orchestrator.config.sweep import load_sweep

    file, words = ROOT / "sweeps" / f"{sweep}.yaml", ("data.root=/x",) if sweep == "coco" else ()
    whole, small = (load_sweep(file, [*words, *more]) for more in ((), tables.SMALL[sweep]))
    assert (small.study.name, small.study.stages) == (whole.study.name, whole.study.stages)
    assert {p.run.model.name for p in small.points} == {p.run.model.name for p in whole.points}


def test_only_seeds_finished_everywhere_are_published() -> None:
    trials = pl.DataFrame({"seed": [0, 0, 1, 1, 2], "complexity_ratio": [0.0, 1.0, 0.0, 1.0, 0.0]})
    assert tables.whole_seeds(trials)["seed"].unique().sort().to_list() == [0, 1]


def test_trials_of_several_machines_are_published_together() -> None:
    file = Path("none.parquet")
    here = pl.DataFrame({"model": ["a"] * 2, "complexity_ratio": [0.0, 1.0], "seed": [6, 6], "x": [1.0, 2.0]})
    assert tables.merged(here, file).equals(here)


def test_a_trial_run_again_takes_the_place_of_the_published_one(tmp_path: Path) -> None:
    file = tmp_path / "trials.parquet"
    old = pl.DataFrame({"model": ["a"] * 2, "complexity_ratio": [0.0, 1.0], "seed": [0, 0], "x": [1.0, 2.0]})
    old.write_parquet(file)
    new = pl.DataFrame({"model": ["a"] * 2, "complexity_ratio": [1.0, 0.0], "seed": [0, 6], "x": [9.0, 3.0]})
    assert tables.merged(new, file)["x"].to_list() == [1.0, 3.0, 9.0]


def test_what_probes_tell_is_the_mean_over_the_places_of_the_published_table() -> None:
    table = pl.read_parquet(tables.FOLDER / "probes.parquet")
    row = next(
        r
        for r in numbers.probe_numbers(tables.FOLDER)
        if r["model"] == "reference-joint" and r["attribute"] == "size_mean"
    )
    own = table.filter(
        (pl.col("model") == "reference-joint")
        & (pl.col("attribute") == "size_mean")
        & (pl.col("tap") == "decoder")
        & (pl.col("layer") == 3)
        & (pl.col("solver") == "ridge")
    )
    single = own.filter(pl.col("position").str.contains(r"^vision_\d+$"))["score"]
    assert row["vision_single"]["score"] == pytest.approx(single.mean())
    assert row["last"]["score"] == pytest.approx(own.filter(pl.col("position") == "last")["score"][0])


@pytest.mark.skipif(not (tables.FOLDER / "routes.parquet").exists(), reason="the routes are not published yet")
def test_the_strongest_window_says_of_how_many() -> None:
    for route in numbers.route_numbers(tables.FOLDER):
        windows = pl.read_parquet(tables.FOLDER / "routes.parquet").filter(
            (pl.col("family") == "all")
            & (pl.col("model") == route["model"])
            & (pl.col("route") == route["route"])
            & (pl.col("tier") == route["tier"])
        )
        assert route["n_windows"] == windows.height - 1
        if route["strongest"]:
            assert (
                route["strongest"]["change"]
                == windows.filter(
                    pl.col("last_layer") - pl.col("first_layer") < route["last_layer"] - route["first_layer"]
                )["change"].min()
            )


def test_a_sweep_that_ran_whole_replaces_what_was_told_of_its_parts() -> None:
    parts = [{"sweep": "rivals", "commit": "a"}, {"sweep": "routes", "commit": "a"}, {"sweep": "routes", "commit": "b"}]
    again = {"sweep": "routes", "commit": "b", "hours": 1}
    assert tables.with_run(parts, again, whole=False) == [*parts[:2], again]
    assert tables.with_run(parts, again, whole=True) == [parts[0], again]


def test_hours_of_a_sweep_count_the_trials_of_runs_that_were_killed() -> None:
    trials = pl.LazyFrame({"trial_seconds": [5400.0, 5400.0]})
    record = {"hardware": {"cores": 2}, "seconds": {"finetune": 1800.0, "report": 36.0}}
    study = cast(Study, SimpleNamespace(record=record, table=lambda _: trials))
    assert tables.hours_of(study) == pytest.approx(1.51)
    record["seconds"] = {"finetune": 7200.0, "report": 36.0}
    assert tables.hours_of(study) == pytest.approx(2.01)


def test_a_sweep_that_has_not_ended_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {
        "hardware": {"cores": 2, "processor": "Intel(R) Xeon(R) Processor"},
        "command": "vtsweep run sweeps/rivals.yaml storage=elsewhere",
        "points": [{}, {}],
        "created": "2026-11-27T05:00:00+00:00",
        "commit": "0123456789",
        "seconds": {"ablate": 1800.0},
    }
    monkeypatch.setattr(tables.Study, "load", lambda _: SimpleNamespace(record=record))
    tables.collect_runs(str(tmp_path), tmp_path)
    assert json.loads((tmp_path / "study.json").read_text()) == []
    record["seconds"] = {"ablate": 1800.0, "report": 36.0}
    tables.collect_runs(str(tmp_path), tmp_path)
    told = json.loads((tmp_path / "study.json").read_text())
    assert [run["sweep"] for run in told] == [*tables.SWEEPS, "coco"]
    assert told[0] == {
        "sweep": "published_ratio",
        "n": "2 points",
        "hardware": "2 cores of an Intel Xeon Processor",
        "date": "27 November 2026",
        "commit": "0123456",
        "hours": 0.51,
    }
