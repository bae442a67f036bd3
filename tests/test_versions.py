"""Records of studies: overrides that change what is computed never replace another's record."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.store.filesystem import Storage
from orchestrator.store.study_list import list_studies, versions_of
from orchestrator.store.study_record import Study
from orchestrator.study.resolve import resolve
from orchestrator.study.run import finished_study, open_study, run_study
from orchestrator.study.versions import listed_stages, version_name
from tests.conftest import tiny_study


def opened(storage: Path, *overrides: str) -> Study:
    sweep = tiny_study(storage, *overrides)
    listed = listed_stages(sweep, sweep.study.stages)
    return open_study(sweep, resolve(sweep, listed), listed)


def test_other_settings_get_a_record_of_their_own_and_equal_ones_find_theirs_again(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert opened(tmp_path, "data.n_images=7").name == "tiny.v2"
    assert opened(tmp_path, "data.n_images=8").name == "tiny.v3"
    assert opened(tmp_path, "data.n_images=7").name == "tiny.v2"
    assert opened(tmp_path).name == "tiny"
    assert Study.load(str(tmp_path / "studies" / "tiny")).record["points"] == first.record["points"]
    assert versions_of(Storage(str(tmp_path)), "tiny.v2") == ["tiny", "tiny.v3"]


def test_how_the_work_is_done_makes_no_version(tmp_path: Path) -> None:
    opened(tmp_path)
    assert opened(tmp_path, "how.batch_size=2").name == "tiny"


def test_more_points_extend_a_record_and_fewer_do_not_shrink_it(tmp_path: Path) -> None:
    opened(tmp_path, "correlate.seed=0,1")
    assert opened(tmp_path, "correlate.seed=0,1,2").name == "tiny"
    assert opened(tmp_path, "correlate.seed=1").name == "tiny.v2"
    assert len(Study.load(str(tmp_path / "studies" / "tiny")).record["points"]) == 3


def test_fewer_stages_do_not_shrink_a_record(tmp_path: Path) -> None:
    opened(tmp_path)
    study = opened(tmp_path, "stages=capture")
    assert study.stages == ["capture", "correlate"]


def test_a_finished_study_is_known_by_its_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = tiny_study(tmp_path, "track.enabled=false", "data.n_images=6")
    assert finished_study(sweep) is None
    run_study(sweep, quiet=True)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a finished study was begun again")

    monkeypatch.setattr("orchestrator.study.preflight.preflight", forbidden)
    done = finished_study(sweep)
    assert done is not None
    assert run_study(sweep, quiet=True)[0].record == done.record
    assert finished_study(tiny_study(tmp_path, "track.enabled=false", "data.n_images=7")) is None
    (listed,) = list_studies(Storage(str(tmp_path)))
    assert (listed.stages_done, listed.stages) == (2, 2)
    assert listed.report
    (Path(done.views("correlate")[0].stage.store.path("_SUCCESS"))).unlink()
    assert finished_study(sweep) is None


def test_a_damaged_record_is_written_anew(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "studies" / "tiny" / "study.json").write_text('{"name": "ti')
    assert version_name(tiny_study(tmp_path), Storage(str(tmp_path))) == ("tiny", None)
    assert list_studies(Storage(str(tmp_path)))[0].problem


def test_a_study_is_found_by_its_bare_name_in_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    assert Study.load("tiny").name == "tiny"
    monkeypatch.chdir(tmp_path / "results")
    assert Study.load("tiny").name == "tiny"
